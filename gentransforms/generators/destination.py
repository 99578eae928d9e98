"""Decide whether a generator may be saved into a folder: nothing there that is not ours is replaced."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gentransforms.errors import WeightsError
from gentransforms.hub import models as hub
from gentransforms.hub.card_sections import is_empty, is_model_card

__all__ = ["check_folder"]

_ADVICE = "choose a new folder, or move that file away"


def check_folder(directory: Path, kind: str, written: Collection[str] = ()) -> None:
    """Raise unless a generator can be saved into a folder: a new one, one without our files, or one of an earlier save.

    Files of other names, such as notes and pictures, may lie beside a generator.

    Args:
        directory: the folder.
        kind: name of the generator's class.
        written: names of the files at its top that the class writes, besides ``config.json`` and the card.

    Raises:
        WeightsError: if ``config.json`` is not ours or that of another class, ``README.md`` is neither the card of a generator nor empty,
            or other files would be replaced in a folder that nothing of ours was saved into.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise WeightsError(f"{directory} is a file: expected a folder to save into, new or of an earlier save")
    config, card = directory / hub.CONFIG_FILE, directory / hub.CARD_FILE
    description, text = _read_config(config), _read_text(card)
    if _is_there(config) and description.get("format") != "gentransforms":
        raise WeightsError(f"{config} is not of a generator that was saved with gentransforms, and is not replaced: {_ADVICE}")
    if _is_there(card) and (text is None or not (is_model_card(text) or is_empty(text))):
        raise WeightsError(
            f"{card} is not the card of a generator that was saved with gentransforms, and is not replaced: {_ADVICE}; push_to_hub keeps "
            "such a card in its repository, and adds to it"
        )
    if description and description.get("class") != kind:
        raise WeightsError(
            f"{directory} holds a generator of the class {description.get('class')!r}, and this is {kind!r}: choose a new folder"
        )
    if not description and text is None:
        for name in written:
            if _is_there(directory / name):
                raise WeightsError(f"{directory / name} was not saved with gentransforms, and is not replaced: {_ADVICE}")


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()  # a broken link, too


def _read_config(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return None
