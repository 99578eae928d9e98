"""Open the files of a bank: a directory of units, an exported folder, or a data set on the Hub."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gentransforms.bank.format.damage import advising
from gentransforms.bank.format.exported import is_export, list_exported_files, name_marks
from gentransforms.bank.format.images import map_file
from gentransforms.bank.format.index import MARK, Index, build_index, list_sizes, read_index
from gentransforms.bank.format.lookup import LookupBuilder
from gentransforms.bank.format.manifest import MANIFEST, Facts, check_manifest, hash_json, read_manifest
from gentransforms.bank.format.unit import list_entries, unit_schema
from gentransforms.errors import BankError, ConfigError
from gentransforms.hub import datasets as hub
from gentransforms.hub.client import is_repository
from gentransforms.paths import local_path

__all__ = ["Opened", "open_files"]

# What to do about a damaged file of an export; one from the Hub is not downloaded again as long as it is in the cache.
_AGAIN = "download it again, or export the bank again"
_AGAIN_FROM_HUB = "remove {path} and open the bank again, which downloads it; if that changes nothing, push the bank again"


@dataclass(frozen=True)
class Opened:
    """The files of a bank, as `Bank` reads them.

    Attributes:
        path: directory of the bank or export; for a bank on the Hub, the folder in the cache that holds its files.
        manifest: its manifest, checked.
        index: the index of its rows.
        files: the Arrow files that hold the rows, in order: of an export, those that `datasets` made of its Parquet files.
        reopen: a function and its arguments that open the same files in another process.
        missing_units: number of units that are missing in an unfinished bank.
        advice: what to do if one of `files` is damaged; None for the units of a bank.
    """

    path: Path
    manifest: dict[str, Any]
    index: Index
    files: Sequence[str]
    reopen: tuple[Callable[..., Opened], tuple[Any, ...]]
    missing_units: int = 0
    advice: str | None = None

    def find_file(self, number: int) -> Path:
        """Return the path of an Arrow file by its number."""
        return self.path / self.files[number]


def open_files(path_or_repo: str | Path, revision: str | None = None, partial: bool = False) -> Opened:
    """Open a bank wherever it is; arguments and errors as in `Bank.open`."""
    directory = local_path(path_or_repo, "path_or_repo")
    if not directory.exists() and is_repository(str(path_or_repo)):
        return _open_repository(str(path_or_repo), revision)
    if revision is not None:
        raise ConfigError(f"revision={revision!r}: {str(directory)!r} is a directory on this machine and has no revisions")
    directory = directory.absolute()  # another process may have another working directory
    return _open_export(directory) if is_export(directory) else _open_directory(directory, partial)


def _open_directory(directory: Path, partial: bool, names: Sequence[str] | None = None, digest: str | None = None) -> Opened:
    """Open a directory of units; when it is opened again, with the unit files and the digest of the manifest that were found first."""
    manifest = read_manifest(directory)
    found = hash_json(manifest)
    if digest is not None and found != digest:
        raise BankError(
            f"{directory / MANIFEST}: has changed since this bank was opened, because another process has extended or replaced the bank: "
            "open it again in the main process"
        )
    facts = Facts.read(manifest, str(directory / MANIFEST))
    index, missing = (_map_index(directory, facts), 0) if names is None else (None, 0)
    if index is None:
        index, missing = _read_units(directory, facts, partial, names)
    files = index.lookup.files
    return Opened(directory, manifest, index, files, (_open_directory, (directory, False, files if missing else None, found)), missing)


def _map_index(directory: Path, facts: Facts) -> Index | None:
    """Return the index of a bank if it has one and all its units exist."""
    try:
        index = read_index(directory, facts)
    except FileNotFoundError:
        return None
    except BankError as error:
        warnings.warn(
            f"{error}: the bank is opened without its index, which takes longer; `gentransforms bank verify --repair` rebuilds it",
            stacklevel=5,
        )
        return None
    with os.scandir(directory) as entries:  # only their names: the sizes are checked when the files are read
        count = sum(1 for entry in entries if entry.name.startswith("unit-") and entry.name.endswith(".arrow"))
    return index if count == len(index.lookup.files) else None


def _read_units(directory: Path, facts: Facts, partial: bool, names: Sequence[str] | None) -> tuple[Index, int]:
    """Return the index of the units that exist, or of those in `names`, and the number of missing units."""
    sizes, planned = list_sizes(directory, facts), facts.units()
    pinned = None if names is None else set(names)
    wanted = [unit for unit in planned if pinned is None or unit.file in pinned]
    found = [unit for unit in wanted if unit.file in sizes]
    missing = len(planned) - len(found)
    if len(found) < len(wanted) and not partial:
        images = sum(unit.stop - unit.start for unit in set(planned) - set(found)) * facts.variants
        raise BankError(
            f"{directory}: unfinished: {missing:,} of {len(planned):,} units {'is' if missing == 1 else 'are'} missing, {images:,} of "
            f"{facts.count * facts.variants:,} images: run {facts.command} with the settings of this bank again to finish it, or open it "
            "with partial=True"
        )
    return build_index(directory, facts, found, sizes), missing


def _open_export(directory: Path, cached: Sequence[str] = ()) -> Opened:
    """Open an exported folder; when it is opened again, with the files that `datasets` wrote then."""
    manifest, index, cached, advice = _read_export(directory, read_manifest(directory), str(directory), cached, _AGAIN)
    return Opened(directory, manifest, index, cached, (_open_export, (directory, cached)), advice=advice)


def _open_repository(repo_id: str, revision: str | None, cached: Sequence[str] = ()) -> Opened:
    """Open a bank on the Hub; when it is opened again, at the same commit, which is then in the cache."""
    path = hub.fetch_file(repo_id, MANIFEST, revision)
    where = f"{repo_id}/{MANIFEST}"
    try:
        manifest = check_manifest(json.loads(path.read_bytes()), where)
    except ValueError as error:
        raise BankError(f"{where}: not JSON ({error}): {_AGAIN_FROM_HUB.format(path=path.resolve())}") from error
    commit = path.parent.name  # of the snapshot in the cache
    # Not through `datasets` itself, which without a network takes whatever revision it had last.
    files, marks = list_exported_files(manifest, where), name_marks(manifest, where)
    folder = hub.fetch_folder(repo_id, [MANIFEST, *(entry["file"] for entry in (*files, *([marks] if marks else [])))], commit)
    manifest, index, cached, advice = _read_export(folder, manifest, repo_id, cached, _AGAIN_FROM_HUB)
    return Opened(folder, manifest, index, cached, (_open_repository, (repo_id, commit, cached)), advice=advice)


def _read_export(
    folder: Path, manifest: dict[str, Any], where: str, cached: Sequence[str], again: str
) -> tuple[dict[str, Any], Index, Sequence[str], str]:
    """Return the manifest of an export, the index of its rows, the Arrow files in the cache of `datasets`, and what to do if one of
    these is damaged.

    Args:
        folder: folder of its files.
        manifest: its manifest.
        where: name of the export in errors.
        cached: the Arrow files, if they were there before.
        again: what to do about a damaged file of the export, with ``{path}`` for that file.

    Raises:
        BankError: if a file is missing, incomplete or damaged.
    """
    files, marked = list_exported_files(manifest, f"{where}/{MANIFEST}"), name_marks(manifest, f"{where}/{MANIFEST}")
    for entry in (*files, *([marked] if marked else [])):
        path = folder / entry["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            found = "is missing" if size is None else f"has {size:,} bytes, expected {entry['bytes']:,}"
            raise BankError(f"{where}: {entry['file']} {found}: {again.format(path=path.resolve())}")
    if marked is None and manifest["source"].get("key_type") == "int" and not cached:  # once, not in each worker
        warnings.warn(
            f"{where}: nothing can check that the numbers which are this bank's keys mean the same images in your data set, because the "
            "export has no marks of its sources: an earlier version wrote it, or the bank had none. Compare some images yourself, or "
            "export the bank again",
            stacklevel=5,
        )
    if not cached or not all(Path(file).is_file() for file in cached):
        cached = _convert([folder / entry["file"] for entry in files], where)
    facts = Facts.read(manifest, f"{where}/{MANIFEST}")
    builder = LookupBuilder(facts.variants, facts.key_type == "int")
    advice = _advise_on_cache(Path(cached[0]).parent, folder)
    with advising(advice):
        for file in cached:
            builder.add(file, Path(file).stat().st_size, map_file(file, unit_schema(facts.key_type)))
        lookup = builder.build()
    if marked is not None:
        lookup = dataclasses.replace(lookup, marks=_map_marks(folder / marked["file"], len(lookup.keys), where, again))
    index = Index(lookup, *(list_entries(manifest["info"], name) for name in ("failed", "rejected")))
    rows, expected = len(index.lookup), sum(entry["rows"] for entry in files)
    if rows != expected:
        raise BankError(f"{where}: has {rows:,} rows, expected {expected:,}: {advice}")
    return manifest, index, cached, advice


def _map_marks(path: Path, count: int, where: str, again: str) -> npt.NDArray[np.uint8]:
    """Map the marks of `count` sources, (count, 48) uint8."""
    try:
        marks = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BankError(f"{where}: {path.name} cannot be read ({error}): {again.format(path=path.resolve())}") from error
    if marks.shape != (count, MARK) or marks.dtype != np.uint8:
        raise BankError(
            f"{where}: {path.name} is {marks.dtype} of shape {marks.shape}, expected uint8 of ({count}, {MARK}): "
            f"{again.format(path=path.resolve())}"
        )
    return np.asarray(marks)


def _advise_on_cache(cache: Path, folder: Path) -> str:
    """Return what to do if a file in the cache of `datasets` is damaged, which it made from the Parquet files in a folder."""
    return (
        f"what datasets keeps of it in its cache is damaged: remove the folder {cache} and open the bank again; if that changes nothing, "
        f"`gentransforms bank verify {shlex.quote(str(folder))}` says what is wrong with the bank itself"
    )


def _convert(files: list[Path], where: str) -> tuple[str, ...]:
    """Let `datasets` convert Parquet files to Arrow files in its cache; return these."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{where}: exported banks need datasets ({error}): pip install 'gentransforms[bank]'") from error
    patterns = [glob.escape(str(file)) for file in files]
    with _quiet(datasets):
        try:
            # Whatever HF_DATASETS_IN_MEMORY_MAX_SIZE says: only files can be mapped.
            loaded = datasets.load_dataset("parquet", split="train", data_files=patterns, keep_in_memory=False)
        except Exception as error:  # damaged files, a full disk
            reason = error.__cause__ or error  # DatasetGenerationError hides it
            advice = "check that the disk with the cache of datasets is not full, and download or export the bank again"
            with contextlib.suppress(Exception):
                cache = Path(datasets.load_dataset_builder("parquet", data_files=patterns).cache_dir)
                if cache.is_dir():  # it was there before; `datasets` removes what it has begun
                    advice = _advise_on_cache(cache, files[0].parents[1])
            raise BankError(
                f"{where}: cannot be loaded as a data set: {type(reason).__name__}: {' '.join(str(reason).split())}: {advice}"
            ) from error
    return tuple(entry["filename"] for entry in loaded.cache_files)


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Hide the progress bars of `datasets` unless stderr is a terminal."""
    enabled = getattr(datasets, "is_progress_bar_enabled", lambda: True)()
    if sys.stderr.isatty() or not enabled:
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
