"""Open a bank that was exported: from a folder, or from the Hub, through `datasets`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gentransforms import hub
from gentransforms.bank.layout import MANIFEST, check_manifest, read_manifest, schema_of
from gentransforms.errors import BankError, ConfigError

__all__ = ["exported_rows", "is_export", "repository_rows"]


def is_export(directory: Path) -> bool:
    """Whether a directory holds a bank as `export_bank` wrote it."""
    return any((directory / "data").glob("train-*.parquet"))


def exported_rows(directory: Path) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Return the manifest and the record batches of an exported bank, memory-mapped from the cache of `datasets`.

    Raises:
        BankError: if it is damaged.
    """
    manifest = read_manifest(directory)
    files = sorted(str(path) for path in (directory / "data").glob("train-*.parquet"))
    return manifest, _batches(manifest, str(directory), "parquet", data_files=files)


def repository_rows(repo_id: str, revision: str | None) -> tuple[dict[str, Any], list[tuple[str, Any]], str]:
    """Return the manifest and the record batches of a bank on the Hub, and the commit they are of.

    Raises:
        BankError: if there is none, or it cannot be fetched.
    """
    path = hub.dataset_file(repo_id, MANIFEST, revision)
    try:
        manifest = check_manifest(json.loads(path.read_text()), f"{repo_id}/{MANIFEST}")
    except ValueError as error:
        raise BankError(f"{repo_id}/{MANIFEST}: not JSON ({error}): push the bank again") from error
    commit = path.parent.name  # of the cache's snapshot
    return manifest, _batches(manifest, repo_id, repo_id, revision=commit), commit


def _batches(manifest: dict[str, Any], where: str, loader: str, **options: Any) -> list[tuple[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{where}: exported banks need datasets ({error}): pip install 'gentransforms[bank]'") from error
    with _quiet(datasets):
        try:
            table = datasets.load_dataset(loader, split="train", **options).data.table
        except Exception as error:  # of the client, the network or the files
            raise BankError(f"{where}: cannot be loaded as a data set: {type(error).__name__}: {error}") from error
    schema = schema_of(manifest["settings"]["source"]["key_type"])
    try:
        return [(f"train[{i}]", batch) for i, batch in enumerate(table.select(schema.names).cast(schema).to_batches())]
    except (KeyError, ValueError) as error:
        raise BankError(f"{where}: its columns are not those of a bank ({error}): export or push the bank again") from error


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No bars of `datasets` while a bank opens."""
    shown = datasets.is_progress_bar_enabled() if hasattr(datasets, "is_progress_bar_enabled") else True
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
