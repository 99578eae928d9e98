"""The manifest of a bank, ``bank.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gentransforms.bank.format.locking import create_json, explain_write_error
from gentransforms.bank.format.unit import list_units
from gentransforms.errors import BankError

__all__ = [
    "AGREED", "FORMAT", "FORMAT_VERSION", "MANIFEST", "check_manifest", "create_manifest", "hash_json", "hash_keys", "hash_manifest",
    "is_export", "list_exported_files", "read_manifest",
]  # fmt: skip

FORMAT, FORMAT_VERSION, MANIFEST = "gentransforms-bank", 1, "bank.json"
# What decides the bytes of a bank, and must agree between runs. The rest of a manifest, "info", need not.
AGREED = ("settings", "generator", "source", "device", "encoder")
_SECTIONS = ("settings", "generator", "source", "info")


def hash_manifest(manifest: Mapping[str, Any]) -> str:
    """Return 32 hexadecimal digits of all of a manifest that must agree between runs; each sidecar repeats them."""
    history = {"history": manifest["history"]} if manifest.get("history") else {}
    return hash_json({name: manifest.get(name) for name in AGREED} | history)


def hash_json(value: Any) -> str:
    """Return the BLAKE2b hash of a JSON-able value in 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


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
    lacking = [name for name in _SECTIONS if not isinstance(manifest.get(name), dict)]
    if lacking:
        raise BankError(f"{where}: lacks {', '.join(lacking)}: delete it and run generate with the settings of this bank again")
    return manifest


def create_manifest(directory: Path, manifest: Mapping[str, Any]) -> bool:
    """Write ``bank.json`` unless there is one; return whether it was written. Of two at once, one wins.

    Raises:
        BankError: if the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return create_json(directory / MANIFEST, manifest)
    except OSError as error:
        raise explain_write_error(error, directory) from error


def is_export(directory: Path) -> bool:
    """Whether a directory holds a bank as `export_bank` wrote it, or what is left of one."""
    data = directory / "data"
    return any(data.glob("train-*.parquet")) or (data.is_dir() and not list_units(directory))


def list_exported_files(manifest: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Return what the manifest of an export says of its Parquet files: ``file``, ``rows``, ``bytes``, ``sha256`` of each.

    Raises:
        BankError: if it says nothing of them.
    """
    files = manifest["info"].get("files")
    kinds = {"file": str, "rows": int, "bytes": int, "sha256": str}
    whole = isinstance(files, list) and all(isinstance(f, dict) and all(type(f.get(n)) is k for n, k in kinds.items()) for f in files)
    if not files or not whole:
        raise BankError(f"{where}: names no Parquet files, so it is not the manifest of an exported bank: export or push the bank again")
    return list(files)


def _absent(directory: Path) -> str:
    if not directory.is_dir():
        return f"{directory}: no such directory: expected a bank made by generate_bank or `gentransforms generate`"
    if list_units(directory):
        return f"{directory}: {MANIFEST} is missing and units are there: run generate with their settings again, which writes it anew"
    return f"{directory}: no {MANIFEST} in it: expected a bank made by generate_bank or `gentransforms generate`"


def hash_keys(keys: Sequence[str | int]) -> str:
    """Return the BLAKE2b hash of the list of keys, in order, in hexadecimal; ``"1"`` and ``1`` differ."""
    digest = hashlib.blake2b(digest_size=16)
    for key in keys:
        digest.update(json.dumps(key).encode() + b"\n")
    return digest.hexdigest()
