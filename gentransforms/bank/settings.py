"""What a bank was made with: written once into its manifest, compared by every later run."""

from __future__ import annotations

import datetime
import json
import platform
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from gentransforms.bank.encoding import Encoding
from gentransforms.bank.layout import FORMAT, FORMAT_VERSION, MANIFEST, digest_of, found_units, keys_digest, read_manifest, read_sidecar
from gentransforms.bank.making import Recipe
from gentransforms.bank.repository import is_export
from gentransforms.bank.source import BankSource
from gentransforms.bank.writer import create_manifest
from gentransforms.errors import BankError, ConfigError
from gentransforms.generators.base import ImageGenerator

__all__ = ["differences", "enter_directory", "settings_of"]

# Files that a directory may hold and still be a new bank's.
_HARMLESS = ("lost+found",)
_PACKAGES = ("gentransforms", "torch", "torchvision", "numpy", "pillow", "pyarrow", "diffusers", "transformers")


def settings_of(
    source: BankSource, generator: ImageGenerator, recipe: Recipe, encoding: Encoding, unit_size: int, threads: int | None
) -> dict[str, Any]:
    """Return everything that decides the bytes of a bank, JSON-able.

    Raises:
        ConfigError: if `unit_size` is not a positive integer.
    """
    if type(unit_size) is not int or unit_size < 1:
        raise ConfigError(f"unit_size={unit_size!r}: expected a positive integer, the sources of a work unit")
    described = {
        "class": type(generator).__name__,
        "fingerprint": generator.fingerprint,
        "config": generator.config,
        "preserves_geometry": generator.preserves_geometry,
    }
    settings = {
        "generator": described,
        "base_seed": recipe.base_seed,
        "variants": recipe.variants,
        "image_format": encoding.image_format,
        "quality": encoding.quality,
        "encoder": encoding.encoder,
        "batch_size": recipe.batch_size,
        "unit_size": unit_size,
        "threads": threads if generator.device.type == "cpu" else None,
        "device": generator.device.type,
        "image_size": list(generator.image_size),
        "max_draws": recipe.max_draws,
        "min_similarity": recipe.min_similarity,
        "source": {
            "count": len(source.keys),
            "keys": keys_digest(source.keys),
            "key_type": source.key_type,
            "inputs": list(source.inputs),
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


def enter_directory(directory: Path, settings: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of the bank in `directory`, made if there is none.

    Raises:
        BankError: if a bank of other settings is there, naming what differs, or the directory is another's.
    """
    if (directory / MANIFEST).exists() and is_export(directory):
        raise BankError(f"{directory}: is the export of a bank, which is not added to: give the bank's directory, or another")
    if not (directory / MANIFEST).exists():
        _check_empty(directory, settings)
        stamp = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        manifest: dict[str, Any] = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "settings": dict(settings),
            "info": {"created": stamp, "versions": _versions(), **info},
        }  # fmt: skip
        if create_manifest(directory, manifest):
            return manifest
    manifest = read_manifest(directory)
    found = differences(manifest["settings"], settings)
    if found:
        raise BankError(
            f"{directory}: this bank was made with other settings ({'; '.join(found)}): "
            "give the bank's, or another directory for a new bank"
        )
    _compare_versions(directory, manifest["info"].get("versions", {}))
    return manifest


def _check_empty(directory: Path, settings: Mapping[str, Any]) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise BankError(f"{directory}: is a file: expected a directory, new, empty or a bank's")
    for unit in found_units(directory):  # the manifest was lost: the units say whose they are
        sidecar = read_sidecar(directory, unit)
        if sidecar is None or sidecar.get("settings") != digest_of(settings):
            raise BankError(
                f"{directory}: {MANIFEST} is missing, and {unit.file} was made with other settings than these: "
                "give the bank's, or another directory for a new bank"
            )
        return
    others = [path.name for path in directory.iterdir() if not path.name.startswith(".") and path.name not in _HARMLESS]
    if others:
        raise BankError(f"{directory}: holds other files ({sorted(others)[0]}, …): expected a directory, new, empty or a bank's")


def _compare_versions(directory: Path, old: Mapping[str, Any]) -> None:
    changed = [f"{name} {old[name]} -> {version}" for name, version in _versions().items() if name in old and old[name] != version]
    if changed:
        warnings.warn(
            f"{directory}: was begun with other versions ({', '.join(changed)}): what is made now may differ from it in the last bits",
            stacklevel=3,
        )


def _versions() -> dict[str, str]:
    there = {distribution.metadata["Name"].lower(): distribution.version for distribution in metadata.distributions()}
    return {"python": platform.python_version()} | {name: there[name] for name in _PACKAGES if name in there}


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
