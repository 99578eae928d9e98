"""Write the model card that is saved beside the weights."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.identity import hash_state
from gentransforms.generators.narrowing import check_fits
from gentransforms.hub import models as hub
from gentransforms.hub.card_parts import card_part
from gentransforms.hub.card_sections import FIELDS, SECTIONS, UNSAID, card_section, is_model_card, named_parts, weights_of
from gentransforms.hub.card_update import update_card
from gentransforms.wording import with_article

__all__ = ["check_card", "is_about", "model_card", "next_card"]


def check_card(sections: Iterable[str]) -> None:
    """Raise ConfigError if a section that was given for a card is unknown."""
    if unknown := sorted(set(sections) - set(FIELDS)):
        raise ConfigError(f"card: unknown sections {unknown}, expected title, description, license, license_link or {sorted(SECTIONS)}")


def next_card(generator: Any, card: Mapping[str, Any] | None, directory: Path, dtype: torch.dtype | None = None) -> str:
    """Return the card that goes into a folder: that of the generator's earlier save there, else of where it was loaded from, renewed.

    Args:
        generator: the ImageGenerator to save.
        card: the sections that are given; an empty mapping for a card that begins anew.
        directory: the folder, which `check_folder` has let pass.
        dtype: dtype of the floating weights in the files; None leaves them as they are.

    Raises:
        ConfigError: if a section is unknown.
        WeightsError: if the metadata of the card are needed and cannot be read, or `dtype` cannot hold the weights.
        UserWarning: if the card beside the weights could not be read when the generator was loaded.
    """
    if card is not None and not card:
        return model_card(generator, card, dtype=dtype)
    path, loaded = directory / hub.CARD_FILE, generator._loaded_card
    there = path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    if loaded is None and generator.name_or_path is not None and not there:
        warnings.warn(
            f"the card of {generator.name_or_path} could not be read when it was loaded: the new one lacks what it states; "
            "load it again, or give the sections in card=",
            stacklevel=4,
        )
    if there and loaded and _replaces(generator, loaded, there, dtype):
        there = ""
    license = hub.read_license(hub.Source(directory), there).name if there and not _is_at(generator, directory) else None
    page, given = model_card(generator, card or {}, stated=license, dtype=dtype), named_parts(card or ())
    if loaded and generator.license not in (None, hub.stated_license(loaded)[0]):  # the attribute was set since
        given = [*given, "licence"]
    if loaded and is_model_card(loaded):  # the card of another library is about another use; its licence is the generator's
        page = _update(str(generator.name_or_path), loaded, page, [*given, *_known(generator)])
    return _update(str(path), there, page, given) if there else page


def is_about(card: str, generator: Any, dtype: torch.dtype | None = None) -> bool:
    """Return whether a card names the weights of a generator, as files of `dtype` hold them, as what it is about."""
    named = weights_of(card)
    return bool(named) and named == _state(generator, generator._saved_weights(), dtype).partition("_")[0]


def model_card(generator: Any, sections: Mapping[str, Any], *, stated: str | None = None, dtype: torch.dtype | None = None) -> str:
    """Return a model card for `generator` in Markdown, with the metadata that the Hub reads.

    Args:
        generator: the ImageGenerator to save.
        sections: text of ``title``, ``description``, ``license``, ``license_link`` and of the sections; the card says so if one is absent.
        stated: the licence of the card that this one renews, which stays unless one is given.
        dtype: dtype of the floating weights in the files; None leaves them as they are.

    Raises:
        ConfigError: if a section is unknown.
        WeightsError: if `dtype` cannot hold the weights.

    Example:
        >>> from gentransforms.testing import FakeGenerator
        >>> "library_name: gentransforms" in model_card(FakeGenerator(), {"license": "apache-2.0"})
        True
    """
    check_card(sections)
    name = type(generator).__name__
    article = with_article(name).partition(" ")[0]
    tags = ["data-augmentation", "self-supervised-learning", name.lower()]
    license = sections.get("license", (stated if "license_link" in sections else None) or generator.license)
    link = sections.get("license_link", generator._license_link if license == generator.license else None)
    metadata = hub.card_metadata(license, link, pipeline_tag="image-to-image", tags=tags)
    height, width = generator.image_size
    saved = generator._saved_weights()
    check_fits(saved, dtype)  # here, where all classes come by before they write
    figures = [
        f"- Images: {height} x {width} pixels; keeps the source's layout: {'yes' if generator.preserves_geometry else 'no'}",
        f"- Weights: {sum(tensor.numel() for tensor in saved.values()):,} numbers",
        f"- Inputs besides the image: {', '.join(generator.inputs) or 'none'}",
        *(f"- {what}: {text}" for what, text in generator.notes.items() if text != sections.get("license", stated or license)),
    ]
    description = f"{article.capitalize()} `{name}` image generator for [gentransforms], saved with `save_pretrained`."
    lines = [
        f"---\n{metadata}\n---\n",
        f"# {sections.get('title', name)}\n",
        card_part("description", sections.get("description", description)) + "\n",
        card_part("figures", "\n".join(figures), of=_state(generator, saved, dtype)) + "\n",
        card_part("licence", f"- Licence: {f'[{license}]({link})' if license and link else license or UNSAID}") + "\n",
        "## How to load\n",
        "```python\nimport gentransforms as gt\n",
        'augment = gt.GenerativeAugment.from_pretrained("<this repository or folder>", p=0.5)\n```\n',
    ]
    lines += [card_section(key, str(sections.get(key, default))) + "\n" for key, (_, default) in SECTIONS.items()]
    return "\n".join(lines)


def _update(where: str, there: str, new: str, given: Collection[str]) -> str:
    try:
        return update_card(there, new, given)
    except ValueError as error:
        raise WeightsError(f"{where}: {error}") from error


def _state(generator: Any, weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> str:
    """Return the digests of what the generator is now; empty if weights are nowhere, as after accelerate's offloading."""
    config = {name: value for name, value in generator.config.items() if name not in generator.execution_options}
    try:
        return hash_state(config, weights, dtype)
    except WeightsError:
        return ""


def _replaces(generator: Any, loaded: str, there: str, dtype: torch.dtype | None) -> bool:
    """Return whether the card that a generator was loaded with is about its weights, and that of the folder about others.

    Then the folder comes to hold another generator, under its own card and licence.
    """
    other = weights_of(there)
    return other not in ("", weights_of(loaded)) and is_about(loaded, generator, dtype)


def _known(generator: Any) -> Collection[str]:
    # Its licence is that of the card it was loaded with, unless the attribute was set; the link to a text is an address by now.
    return () if generator.license is None else ("licence",)


def _is_at(generator: Any, directory: Path) -> bool:
    """Return whether the generator was loaded from this folder, so that the licence stated there is its own."""
    name = generator.name_or_path
    return bool(name) and Path(str(name)).expanduser().resolve() == directory.resolve()
