"""Share a bank in the form in which the Hub stores it: Parquet files, the manifest and a data set card."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gentransforms.bank.format.manifest import MANIFEST, Facts
from gentransforms.bank.format.unit import unit_schema
from gentransforms.bank.share.card import bank_card, read_audit
from gentransforms.errors import BankError, ConfigError
from gentransforms.hub.client import DATASET, sha256, upload_one_by_one
from gentransforms.hub.models import CARD_FILE
from gentransforms.paths import local_path

if TYPE_CHECKING:
    import pyarrow as pa

    from gentransforms.bank.reader import Bank

__all__ = ["export_bank", "push_bank"]

# Rows per Parquet row group, which the Hub's viewer and streaming readers fetch at once.
_GROUP = 100
_SHARD_BYTES = 500_000_000
MARKS = "marks.npy"  # (sources with images, 48) uint8, in the order of the rows


def export_bank(
    bank: Bank,
    directory: str | Path,
    *,
    shard_bytes: int = _SHARD_BYTES,
    license: str | None = None,
    description: str = "",
    repo_id: str | None = None,
    audit: str | Path | None = None,
) -> int:
    """Write a bank into a new directory, as an ordinary Hugging Face data set; return the number of Parquet files.

    `push_to_hub` uploads the same files; `datasets.load_dataset` and `Bank.open` read the directory. Failed sources, rejected
    variants and the SHA-256 of each file are in its ``bank.json``; the marks of the sources, with which row numbers are checked, in
    ``marks.npy``.

    Args:
        bank: the bank to export.
        directory: the directory to create; must be new or empty.
        shard_bytes: approximate number of image bytes per file.
        license: licence of the images, for the card.
        description: text for the card.
        repo_id: the bank's future repository on the Hub, for the card.
        audit: folder of a saved audit of this bank; the card then shows its main figures.

    Raises:
        BankError: if the bank is unfinished or empty, the audit is that of another bank, or the directory is not empty or cannot
            be written; no file is left in it.
        ConfigError: if `shard_bytes` is not positive.
    """
    if type(shard_bytes) is not int or shard_bytes < 1:
        raise ConfigError(f"shard_bytes={shard_bytes!r}: expected a positive integer")
    _check_whole(bank)
    audited = None if audit is None else read_audit(audit, bank)
    directory = local_path(directory, "directory")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BankError(f"{directory}: already exists: expected a new or empty directory")
    made = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        written = list(_write_files(bank, directory, shard_bytes, license, description, repo_id, audited))
    except BaseException as error:
        _clear(directory, made)
        if not isinstance(error, OSError):
            raise
        raise BankError(
            f"{directory}: cannot be written: {error.strerror or error}: the partial export was removed; fix this and export again"
        ) from error
    return sum(path.suffix == ".parquet" for path in written)


def push_bank(
    bank: Bank, repo_id: str, *, license: str | None = None, description: str = "", audit: str | Path | None = None, **options: Any
) -> str:
    """Upload a bank to the data set repository `repo_id`, as `export_bank` writes it; return the address of the commit.

    Each Parquet file, of about 500 MB, is written, uploaded and removed before the next one, so that the disk holds only one at a
    time. All become visible together, in one commit at the end. If a push is interrupted, the same call resumes it: files that the
    Hub already has are not uploaded again.

    Args:
        bank: the bank to share.
        repo_id: ``"organisation/name"``, or the name alone for a repository of your own; created if it does not exist.
        license: licence of the images, for the card.
        description: text for the card.
        audit: folder of a saved audit of this bank; the card then shows its main figures. The card of a repository that has one is kept,
            with the figures and settings of this bank, and with the licence, description and audit if they are given: what was written on
            the Hub stays, except the audit of another bank. The text of a card that is not ours follows that of the new card. A card of
            an earlier version, which has no marks around its parts, is replaced; its licence stays unless one is given.
        options: ``private``, ``token``, ``revision``, ``commit_message``.

    Raises:
        BankError: if the bank is unfinished or empty, or the Hub refuses; a wrong name or token is found before the export.
    """
    _check_whole(bank)  # before the repository is created
    audited = None if audit is None else read_audit(audit, bank)

    def write(directory: Path, name: str) -> Iterator[Path]:
        try:
            yield from _write_files(bank, directory, _SHARD_BYTES, license, description, name, audited)
        except OSError as error:
            raise BankError(
                f"{directory}: cannot be written: {error.strerror or error}: one Parquet file of "
                f"{_SHARD_BYTES // 1_000_000} MB has to fit there; free some space, or set TMPDIR to another directory, and push again"
            ) from error

    # Leftover files of an earlier bank would be read as rows of this one.
    stated = {"licence": license, "description": description, "audit": audit}
    given = [name for name, value in stated.items() if value]
    return upload_one_by_one(write, repo_id, DATASET, replace="data/*.parquet", given=given, **options)


def _check_whole(bank: Bank) -> None:
    if bank.missing_units:
        command = Facts.read(bank.manifest, str(bank.path)).command
        raise BankError(f"{bank.path}: unfinished, {bank.missing_units:,} units are missing: run {command} again, then export it")
    if bank.selection is not None:
        raise BankError(f"{bank.path}: is a selection of a bank: share the whole bank, and with it the small file of the selection")
    if not len(bank):
        raise BankError(f"{bank.path}: has no images, because none could be generated: there is nothing to share")


def _write_files(
    bank: Bank, directory: Path, shard_bytes: int, license: str | None, description: str, repo_id: str | None, audit: dict[str, Any] | None
) -> Iterator[Path]:
    """Write the files of an export one after the other, and yield each; equal banks give equal files."""
    counts, batches = _plan_shards(bank, shard_bytes), bank.batches()
    (directory / "data").mkdir()
    files = []
    for number, count in enumerate(counts):
        name = f"data/train-{number:05d}-of-{len(counts):05d}.parquet"
        files.append(_write_parquet(directory, name, itertools.islice(batches, count), bank))
        yield directory / name
    info = {**bank.manifest["info"], "failed": bank.failed, "rejected": bank.rejected, "files": files, "marks": None}
    if (marks := bank.marks) is not None:
        np.save(directory / MARKS, marks, allow_pickle=False)
        size, digest = (directory / MARKS).stat().st_size, sha256(directory / MARKS)
        info["marks"] = {"file": MARKS, "bytes": size, "sha256": digest}
        yield directory / MARKS
    card = bank_card(bank.manifest, len(bank), license=license, description=description, repo_id=repo_id, audit=audit)
    for name, text in {CARD_FILE: card, MANIFEST: json.dumps({**bank.manifest, "info": info}, indent=2) + "\n"}.items():
        (directory / name).write_text(text, encoding="utf-8")
        yield directory / name


def _write_parquet(directory: Path, name: str, batches: Iterable[pa.RecordBatch], bank: Bank) -> dict[str, Any]:
    """Write a Parquet file; return its entry in the manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, path = 0, directory / name
    # The images are already compressed.
    with pq.ParquetWriter(path, unit_schema("int" if bank.integer_keys else "str"), compression="none") as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch]), row_group_size=_GROUP)
            rows += batch.num_rows
    return {"file": name, "rows": rows, "bytes": path.stat().st_size, "sha256": sha256(path)}


def _clear(directory: Path, made: bool) -> None:
    shutil.rmtree(directory / "data", ignore_errors=True)
    with contextlib.suppress(OSError):
        for name in (MANIFEST, CARD_FILE, MARKS):
            (directory / name).unlink(missing_ok=True)
        if made:
            directory.rmdir()


def _plan_shards(bank: Bank, size: int) -> list[int]:
    """Return the number of record batches of the bank in each Parquet file."""
    counts, used = [0], 0
    for batch in bank.batches():
        if used and used + batch.nbytes > size:
            counts.append(0)
            used = 0
        counts[-1] += 1
        used += batch.nbytes
    return counts
