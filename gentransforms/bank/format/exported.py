"""The files of an export of a bank, according to its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gentransforms.bank.format.unit import list_units
from gentransforms.errors import BankError

__all__ = ["is_export", "list_exported_files", "name_marks"]


def is_export(directory: Path) -> bool:
    """Return whether a directory is an export of a bank, or what is left of one."""
    data = directory / "data"
    return any(data.glob("train-*.parquet")) or (data.is_dir() and not list_units(directory))


def list_exported_files(manifest: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the entries about Parquet files in the manifest of an export: ``file``, ``rows``, ``bytes`` and ``sha256`` of each.

    Raises:
        BankError: if there are none.
    """
    files = manifest["info"].get("files")
    kinds = {"file": str, "rows": int, "bytes": int, "sha256": str}
    whole = isinstance(files, list) and all(isinstance(f, dict) and all(type(f.get(n)) is k for n, k in kinds.items()) for f in files)
    if not files or not whole:
        raise BankError(f"{where}: lists no Parquet files, so it is not the manifest of an exported bank: export or push the bank again")
    return list(files)


def name_marks(manifest: dict[str, Any], where: str) -> dict[str, Any] | None:
    """Return the entry about the marks in the manifest of an export: ``file``, ``bytes`` and ``sha256``; None if it has none.

    Raises:
        BankError: if the entry is damaged.
    """
    entry = manifest["info"].get("marks")
    kinds = {"file": str, "bytes": int, "sha256": str}
    if entry is not None and not (isinstance(entry, dict) and all(type(entry.get(name)) is kind for name, kind in kinds.items())):
        raise BankError(f"{where}: info marks is {entry!r}: the file was edited by hand; export or push the bank again")
    return entry
