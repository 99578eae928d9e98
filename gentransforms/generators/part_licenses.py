"""Licences of the parts of a generator that come from elsewhere than its pipeline: LoRAs, adapters, ControlNets, priors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from gentransforms.errors import GentransformsError
from gentransforms.hub import models as hub
from gentransforms.paths import local_path

__all__ = ["lora_places", "read_licenses", "read_own_license"]


def read_licenses(parts: Mapping[str, Any], where: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the licences of parts, by what they are; None where neither their card nor their file states one.

    Args:
        parts: by what they are, such as ``"the LoRA"``: repositories, folders, files or networks, or lists of these; None for none.
        where: options of `hub.Source`, for repositories.
    """
    found: dict[str, str | None] = {}
    for what, given in parts.items():
        places = list(given) if isinstance(given, list | tuple | nn.ModuleList) else [given]
        for i, place in enumerate(places):
            if isinstance(place, nn.Module):
                found[what if len(places) == 1 else f"{what} {i + 1}"] = read_own_license(place).name
            elif place is not None:
                found[f"{what} {_label(place)}"] = _read(place, where)
    return found


def read_own_license(loaded: Any) -> hub.License:
    """Return the licence on the card of where a pipeline or network was loaded from, as far as it is on this machine."""
    place = getattr(loaded, "name_or_path", None) or getattr(getattr(loaded, "config", None), "_name_or_path", None)
    try:
        return hub.read_license(hub.Source(str(place or ""), local_files_only=True))
    except GentransformsError:  # it was built from parts
        return hub.License()


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
    return f"{path.parent.name}/{path.name}" if path.exists() else str(place)
