"""Open a bank that was exported: from a folder, or from the Hub, through `datasets`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentransforms.bank.format.facts import Facts
from gentransforms.bank.format.images import map_file
from gentransforms.bank.format.index import Index
from gentransforms.bank.format.lookup import LookupBuilder
from gentransforms.bank.format.manifest import MANIFEST, check_manifest, list_exported_files, read_manifest
from gentransforms.bank.format.unit import list_entries, unit_schema
from gentransforms.errors import BankError, ConfigError
from gentransforms.hub import datasets as hub

if TYPE_CHECKING:
    pass

__all__ = ["Exported", "open_export", "open_repository"]


@dataclass(frozen=True)
class Exported:
    """An exported bank, open: its folder, and its rows as `datasets` keeps them for memory-mapping.

    Attributes:
        folder: of the export.
        manifest: of the export.
        index: of its rows.
        cached: the Arrow files that `datasets` made of the Parquet files.
    """

    folder: Path
    manifest: dict[str, Any]
    index: Index
    cached: tuple[str, ...]

    def find_file(self, number: int) -> Path:
        """Return the path of one of the cached files."""
        return Path(self.cached[number])


def open_export(directory: Path, cached: Sequence[str] = ()) -> Exported:
    """Return an exported bank, with its rows in the cache of `datasets`.

    Args:
        directory: of the export.
        cached: the files that `datasets` wrote when it was opened before; without them it is asked again.

    Raises:
        BankError: if a file is missing, cut short or damaged.
    """
    return _open(directory, read_manifest(directory), str(directory), cached)


def open_repository(repo_id: str, revision: str | None, cached: Sequence[str] = ()) -> tuple[Exported, str]:
    """Return a bank on the Hub, and the commit it is of; a commit that was fetched before is not asked for again.

    Raises:
        BankError: if there is none, or it cannot be fetched.
    """
    path = hub.fetch_file(repo_id, MANIFEST, revision)
    where = f"{repo_id}/{MANIFEST}"
    try:
        manifest = check_manifest(json.loads(path.read_text()), where)
    except ValueError as error:
        raise BankError(f"{where}: not JSON ({error}): push the bank again") from error
    commit = path.parent.name  # of the cache's snapshot
    # Not `datasets` itself, which without a network takes whatever revision it had last.
    folder = hub.fetch_folder(repo_id, [MANIFEST, *(entry["file"] for entry in list_exported_files(manifest, where))], commit)
    return _open(folder, manifest, repo_id, cached), commit


def _open(folder: Path, manifest: dict[str, Any], where: str, cached: Sequence[str]) -> Exported:
    files = list_exported_files(manifest, f"{where}/{MANIFEST}")
    for entry in files:
        path = folder / entry["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            found = "is missing" if size is None else f"has {size:,} bytes, expected {entry['bytes']:,}"
            raise BankError(f"{where}: {entry['file']} {found}: fetch it whole, or export the bank again")
    if not cached or not all(Path(file).is_file() for file in cached):
        cached = _through_datasets([str(folder / entry["file"]) for entry in files], where)
    facts = Facts.read(manifest, f"{where}/{MANIFEST}")
    builder = LookupBuilder(facts.variants, facts.key_type == "int")
    for file in cached:
        builder.add(Path(file).name, Path(file).stat().st_size, map_file(file, unit_schema(facts.key_type)))
    index = Index(builder.build(), *(list_entries(manifest["info"], name) for name in ("failed", "rejected")))
    rows, expected = len(index.lookup), sum(entry["rows"] for entry in files)
    if rows != expected:
        raise BankError(f"{where}: has {rows:,} rows, expected {expected:,}: remove {Path(cached[0]).parent} and open it again")
    return Exported(folder, manifest, index, tuple(cached))


def _through_datasets(files: list[str], where: str) -> tuple[str, ...]:
    """Have `datasets` write Parquet files as Arrow files into its cache, and return those."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{where}: exported banks need datasets ({error}): pip install 'gentransforms[bank]'") from error
    with _quiet(datasets):
        try:
            loaded = datasets.load_dataset("parquet", split="train", data_files=files)
        except Exception as error:  # of the files, or the disk
            reason = error.__cause__ or error  # what DatasetGenerationError hides
            raise BankError(
                f"{where}: cannot be loaded as a data set: {type(reason).__name__}: {' '.join(str(reason).split())}: "
                "see that the disk of the cache is not full, and fetch or export the bank again"
            ) from error
    return tuple(entry["filename"] for entry in loaded.cache_files)


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """No bars of `datasets` where nobody watches."""
    shown = getattr(datasets, "is_progress_bar_enabled", lambda: True)()
    if sys.stderr.isatty() or not shown:
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
