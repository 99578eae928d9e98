"""What lies in a bank's directory: the manifest ``bank.json``, and one Arrow file with its sidecar for each work unit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gentransforms.errors import BankError
from gentransforms.sources.arrow import arrow

__all__ = [
    "FORMAT", "FORMAT_VERSION", "MANIFEST", "Unit", "check_manifest", "digest_of", "found_units", "keys_digest", "read_manifest",
    "read_sidecar", "schema_of", "units_of",
]  # fmt: skip

FORMAT, FORMAT_VERSION, MANIFEST = "gentransforms-bank", 1, "bank.json"
# What a manifest says beside "format" and "format_version": "settings" decide the bytes and must agree between runs; "info" does not.
_SEALED = ("settings", "info")


@dataclass(frozen=True, order=True)
class Unit:
    """A range of sources, all of whose variants are made together and written as one file.

    Example:
        >>> Unit(100, 200).file, Unit(100, 200).sidecar
        ('unit-000000100-000000200.arrow', 'unit-000000100-000000200.json')
    """

    start: int
    stop: int

    @property
    def name(self) -> str:
        """What its two files are called, without suffix."""
        return f"unit-{self.start:09d}-{self.stop:09d}"

    @property
    def file(self) -> str:
        """Name of the Arrow file."""
        return f"{self.name}.arrow"

    @property
    def sidecar(self) -> str:
        """Name of the file that describes it."""
        return f"{self.name}.json"


def units_of(count: int, size: int) -> list[Unit]:
    """Return the units of `count` sources, `size` sources each; the last may be smaller.

    Example:
        >>> [(unit.start, unit.stop) for unit in units_of(5, 2)]
        [(0, 2), (2, 4), (4, 5)]
    """
    return [Unit(start, min(start + size, count)) for start in range(0, count, size)]


def found_units(directory: Path) -> list[Unit]:
    """Return the units whose Arrow file is in the directory, by their names alone, in source order."""
    found = []
    for path in directory.glob("unit-*.arrow"):
        parts = path.stem.split("-")
        if len(parts) == 3 and parts[1].isdecimal() and parts[2].isdecimal():
            found.append(Unit(int(parts[1]), int(parts[2])))
    return sorted(found)


def schema_of(key_type: str) -> Any:
    """Return the Arrow schema of a unit; `key_type` is ``"str"`` or ``"int"``.

    The metadata tell `datasets` that ``image`` holds encoded images, so that its viewer shows pictures.

    Example:
        >>> schema_of("str").names
        ['key', 'variant', 'seed', 'attempt', 'image']
    """
    pa = arrow()
    kinds = {"key": "string" if key_type == "str" else "int64", "variant": "int32", "seed": "int64", "attempt": "int32"}
    features: dict[str, Any] = {name: {"dtype": kind, "_type": "Value"} for name, kind in kinds.items()}
    features["image"] = {"_type": "Image"}
    fields = [pa.field(name, getattr(pa, kind)()) for name, kind in kinds.items()]
    fields.append(pa.field("image", pa.struct({"bytes": pa.binary(), "path": pa.string()})))
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def digest_of(settings: Mapping[str, Any]) -> str:
    """Return 32 hexadecimal digits that name the settings of a bank; each sidecar repeats them."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a bank.

    Raises:
        BankError: if there is none, or it is not of this format and version.
    """
    path = directory / MANIFEST
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise BankError(_absent(directory)) from None
    except OSError as error:
        raise BankError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise BankError(f"{path}: not JSON ({error}): delete it and run generate with the settings of this bank again") from error
    return check_manifest(manifest, str(path))


def check_manifest(manifest: Any, where: str) -> dict[str, Any]:
    """Return a parsed manifest if it is one that this library reads.

    Raises:
        BankError: otherwise, saying what was found.
    """
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BankError(f"{where}: not the manifest of a gentransforms bank")
    version = manifest.get("format_version")
    if type(version) is not int or version < 1:
        raise BankError(f"{where}: format version {version!r}: expected {FORMAT_VERSION}; read it with the version that wrote it")
    if version > FORMAT_VERSION:
        raise BankError(f"{where}: format version {version} is newer than this library reads ({FORMAT_VERSION}): upgrade gentransforms")
    lacking = [name for name in _SEALED if not isinstance(manifest.get(name), dict)]
    if lacking:
        raise BankError(f"{where}: lacks {', '.join(lacking)}: delete it and run generate with the settings of this bank again")
    return manifest


def read_sidecar(directory: Path, unit: Unit) -> dict[str, Any] | None:
    """Return what is written beside a unit; None if there is nothing, or it cannot be read."""
    try:
        sidecar = json.loads((directory / unit.sidecar).read_text())
    except (OSError, ValueError):
        return None
    return sidecar if isinstance(sidecar, dict) else None


def _absent(directory: Path) -> str:
    if not directory.is_dir():
        return f"{directory}: no such directory: expected a bank made by generate_bank or `gentransforms generate`"
    if found_units(directory):
        return f"{directory}: {MANIFEST} is missing and units are there: run generate with their settings again, which writes it anew"
    return f"{directory}: no {MANIFEST} in it: expected a bank made by generate_bank or `gentransforms generate`"


def keys_digest(keys: Sequence[str | int]) -> str:
    """Return the BLAKE2b hash of the list of keys, in order, in hexadecimal; ``"1"`` and ``1`` differ."""
    digest = hashlib.blake2b(digest_size=16)
    for key in keys:
        digest.update(json.dumps(key).encode() + b"\n")
    return digest.hexdigest()
