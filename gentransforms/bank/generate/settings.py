"""What a bank was made with: written once into its manifest, compared by every later run."""

from __future__ import annotations

import datetime
import json
import platform
import warnings
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gentransforms.bank.format.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    create_manifest,
    hash_keys,
    hash_settings,
    is_export,
    read_manifest,
)
from gentransforms.bank.format.unit import list_units, read_sidecar
from gentransforms.bank.generate.encode import Encoding
from gentransforms.bank.generate.variants import Recipe
from gentransforms.errors import BankError, ConfigError
from gentransforms.generators.base import ImageGenerator
from gentransforms.sources.base import ImageSource
from gentransforms.sources.marks import changed_sample, sample_marks

__all__ = ["differences", "enter_directory", "settings_of"]

# Files that a directory may hold and still be a new bank's.
_HARMLESS = ("lost+found",)
_PACKAGES = ("gentransforms", "torch", "torchvision", "numpy", "pillow", "pyarrow", "diffusers", "transformers")


def settings_of(
    source: ImageSource, generator: ImageGenerator, recipe: Recipe, encoding: Encoding, unit_size: int, threads: int | None, device: str
) -> dict[str, Any]:
    """Return everything that decides the bytes of a bank, JSON-able; `device` is the type of where the generator will run.

    Raises:
        ConfigError: if `unit_size` is not a positive integer.
    """
    if type(unit_size) is not int or unit_size < 1:
        raise ConfigError(f"unit_size={unit_size!r}: expected a positive integer, the sources of a work unit")
    described = {
        "class": type(generator).__name__,
        "fingerprint": generator.fingerprint(),
        "config": generator.config,
        "preserves_geometry": generator.preserves_geometry,
    }
    settings = {
        "generator": described,
        "base_seed": recipe.base_seed,
        "variants": recipe.variants,
        "image_format": encoding.image_format,
        "quality": None if encoding.image_format == "png" else encoding.quality,
        "encoder": encoding.encoder,
        "batch_size": recipe.batch_size,
        "unit_size": unit_size,
        "threads": threads if device == "cpu" else None,
        "device": device,
        "image_size": list(generator.image_size),
        "max_attempts": recipe.max_attempts,
        "min_similarity": recipe.min_similarity,
        "source": {
            "count": len(source.keys),
            "keys": hash_keys(source.keys),
            "key_type": source.key_type,
            "inputs": list(source.inputs),
            "decides": source.description.get("decides", {}),
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))  # tuples are lists in the file: compared as such
    return plain


def differences(bank: Mapping[str, Any], call: Mapping[str, Any]) -> list[str]:
    """Return the settings in which a bank and a call differ, each as ``name: the bank has A, this call B``.

    Example:
        >>> differences({"variants": 10, "generator": {"class": "ICGAN"}}, {"variants": 4, "generator": {"class": "ICGAN"}})
        ['variants: the bank has 10, this call 4']
    """
    found = []
    for name in dict.fromkeys([*bank, *call]):
        old, new = bank.get(name), call.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [f"{name} {line}" for line in differences(old, new)]
        else:
            found.append(f"{name}: the bank has {_short(old)}, this call {_short(new)}")
    return found


def enter_directory(
    directory: Path, settings: Mapping[str, Any], info: Mapping[str, Any], source: ImageSource, free: Collection[str] = ()
) -> dict[str, Any]:
    """Return the manifest of the bank in `directory`, made if there is none.

    Args:
        directory: of the bank.
        settings: of this call.
        info: what else a new manifest says.
        source: compared with what a few of its samples looked like when the bank was begun.
        free: settings that the call leaves to the bank, such as ``threads``.

    Raises:
        BankError: if a bank of other settings is there, naming what differs, or the directory is another's.
    """
    if (directory / MANIFEST).exists() and is_export(directory):
        raise BankError(f"{directory}: is the export of a bank, which is not added to: give the bank's directory, or another")
    if not (directory / MANIFEST).exists():
        _check_empty(directory, settings)
        stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        manifest: dict[str, Any] = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "settings": dict(settings),
            "info": {"created": stamp, "versions": _versions(settings), "samples": sample_marks(source), **info},
        }  # fmt: skip
        if create_manifest(directory, manifest):
            return manifest
    manifest = read_manifest(directory)
    left_open = {name: manifest["settings"][name] for name in free if name in manifest["settings"]}
    found = differences(manifest["settings"], {**settings, **left_open})
    if found:
        raise BankError(
            f"{directory}: this bank was made with other settings ({'; '.join(found)}): "
            "give the bank's, or another directory for a new bank"
        )
    changed = changed_sample(source, manifest["info"].get("samples", ()))
    if changed:
        raise BankError(
            f"{directory}: the source is not what this bank was begun with: {changed}. "
            "Give the same images, or another directory for a new bank"
        )
    _compare_versions(directory, manifest["info"].get("versions", {}), _versions(settings))
    return manifest


def _check_empty(directory: Path, settings: Mapping[str, Any]) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise BankError(f"{directory}: is a file: expected a directory, new, empty or a bank's")
    units = list_units(directory)
    for unit in units:  # the manifest was lost: the units say whose they are
        sidecar = read_sidecar(directory, unit)
        if sidecar is None:
            raise BankError(f"{directory}: {MANIFEST} is missing, and so is {unit.sidecar}: put one of them back, or remove {unit.file}")
        if sidecar.get("settings") != hash_settings(settings):
            raise BankError(
                f"{directory}: {MANIFEST} is missing, and {unit.file} was made with other settings than these: "
                "give the bank's, or another directory for a new bank"
            )
    if units:
        return
    others = [path.name for path in directory.iterdir() if not path.name.startswith(".") and path.name not in _HARMLESS]
    if others:
        raise BankError(f"{directory}: holds other files ({sorted(others)[0]}, …): expected a directory, new, empty or a bank's")


def _compare_versions(directory: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = [f"{name} {old[name]} -> {version}" for name, version in new.items() if name in old and old[name] != version]
    if changed:
        warnings.warn(
            f"{directory}: was begun with other versions ({', '.join(changed)}): what is made now may differ from it in the last bits",
            stacklevel=3,
        )


def _versions(settings: Mapping[str, Any]) -> dict[str, str]:
    """What may change the last bits, beside the settings: packages, and the kind of processor."""
    there = {distribution.metadata["Name"].lower(): distribution.version for distribution in metadata.distributions()}
    versions = {"python": platform.python_version()} | {name: there[name] for name in _PACKAGES if name in there}
    if settings["device"] == "cpu":
        versions["cpu"] = torch.backends.cpu.get_cpu_capability()
    elif settings["device"] == "cuda" and torch.cuda.is_available():
        versions["gpu"] = torch.cuda.get_device_name()
    return versions


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
