"""Licences of the parts of a generator that come from elsewhere than its pipeline: LoRAs, adapters, ControlNets, priors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from gentransforms.errors import GentransformsError
from gentransforms.hub import models as hub
from gentransforms.paths import local_path

__all__ = ["add_licenses", "lora_places", "own_source", "read_licenses", "read_own_license"]


def read_licenses(parts: Mapping[str, Any], where: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the licences of parts, by what they are; None where neither their card nor their file states one.

    Args:
        parts: by what they are, such as ``"the LoRA"``: repositories, folders, files or networks, or lists of these; None for none.
        where: options of `hub.Source`, for repositories.
    """
    found: dict[str, str | None] = {}
    seen: set[tuple[str, str]] = set()
    for what, given in parts.items():
        places = list(given) if isinstance(given, list | tuple | nn.ModuleList) else [given]
        for i, place in enumerate(places):
            if isinstance(place, nn.Module):
                found[what if len(places) == 1 else f"{what} {i + 1}"] = read_own_license(place).name
            elif place is not None and (what, str(place)) not in seen:  # two files of one repository are one part
                seen.add((what, str(place)))
                found[_unused(f"{what} {_label(place)}", found)] = _read(place, where)
    return found


def add_licenses(saved: Mapping[str, str | None], parts: Mapping[str, Any], where: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the licences of the parts of a saved generator, with those of parts that were given when it was loaded.

    LoRAs are added to those that were merged before. Any other part replaces the saved one.

    Args:
        saved: licences by part, as `read_licenses` found them before.
        parts: those given now, as in `read_licenses`.
        where: options of `hub.Source`, for repositories.
    """
    replaced = [what for what, given in parts.items() if given is not None and given != [] and what != "the LoRA"]
    found = {part: name for part, name in saved.items() if not any(part == what or part.startswith(f"{what} ") for what in replaced)}
    for part, name in read_licenses(parts, where).items():
        if part not in found or found[part] != name:
            found[_unused(part, found)] = name
    return found


def own_source(loaded: Any) -> hub.Source | None:
    """Return where a pipeline or network was loaded from, as far as it is on this machine; None if it was built from parts."""
    place = getattr(loaded, "name_or_path", None) or getattr(getattr(loaded, "config", None), "_name_or_path", None)
    try:
        return hub.Source(str(place or ""), local_files_only=True)
    except GentransformsError:
        return None


def read_own_license(loaded: Any) -> hub.License:
    """Return the licence on the card of where a pipeline or network was loaded from."""
    source = own_source(loaded)
    return hub.License() if source is None else hub.read_license(source)


def lora_places(choice: Any) -> list[Any]:
    """Return the repositories, folders and files that an option `lora` names: one, (repo, weight_name), or a mapping from these."""
    keys = list(choice) if isinstance(choice, Mapping) else [] if choice is None else [choice]
    return [key[0] if isinstance(key, list | tuple) else key for key in keys]


def _read(place: Any, where: Mapping[str, Any]) -> str | None:
    path = local_path(place, "name_or_path")
    own = _read_header(path) if path.is_file() else None
    return own or hub.read_license(hub.Source(path.parent if path.is_file() else place, **where)).name


def _read_header(path: Path) -> str | None:
    """Return the licence that a safetensors file states, by the ModelSpec that trainers of LoRAs write into it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("modelspec.license") or None
    except (SafetensorError, OSError):
        return None


def _label(place: Any) -> str:
    """Return what a card calls a part: cards are public, and paths of this machine tell nobody else anything."""
    path = local_path(place, "name_or_path")
    if not path.exists():
        return str(place)
    # Links are not followed: the cache of the Hub links to files that are named by their hash.
    full = Path(os.path.abspath(path))  # noqa: PTH100
    return "/".join(part for part in full.parts[-2:] if part != full.anchor) or str(full)


def _unused(label: str, taken: Mapping[str, Any]) -> str:
    """Return a label, with a number if another part has it already."""
    numbered, number = label, 1
    while numbered in taken:
        number += 1
        numbered = f"{label} ({number})"
    return numbered
