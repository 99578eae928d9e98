"""Write a bank as the Hub holds it: Parquet files, the manifest and a card."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentransforms.bank.format.manifest import MANIFEST
from gentransforms.bank.format.unit import unit_schema
from gentransforms.bank.share.card import bank_card
from gentransforms.errors import BankError, ConfigError
from gentransforms.hub.client import DATASET, sha256, upload
from gentransforms.hub.models import CARD_FILE

if TYPE_CHECKING:
    import pyarrow as pa

    from gentransforms.bank.reader import Bank

__all__ = ["export_bank", "push_bank"]

# Rows of a Parquet row group: what the Hub's viewer and a streaming reader fetch at once.
_GROUP = 100


def export_bank(
    bank: Bank,
    directory: str | Path,
    *,
    shard_bytes: int = 500_000_000,
    license: str | None = None,
    description: str = "",
    repo_id: str | None = None,
) -> int:
    """Write a bank into a new directory, as an ordinary Hugging Face data set; return the number of Parquet files.

    The directory is what `push_to_hub` uploads; `datasets.load_dataset` and `Bank.open` read it. Failed sources, rejected
    variants and the SHA-256 of each file stand in its ``bank.json``.

    Args:
        bank: to write.
        directory: made; must be new or empty.
        shard_bytes: of image bytes in a file, about.
        license: of the images, for the card.
        description: for the card.
        repo_id: where it will be on the Hub, for the card.

    Raises:
        BankError: if the bank is unfinished or empty, or the directory holds files or cannot be written; nothing is left in it then.
        ConfigError: if `shard_bytes` is not positive.
    """
    if type(shard_bytes) is not int or shard_bytes < 1:
        raise ConfigError(f"shard_bytes={shard_bytes!r}: expected a positive integer")
    _check_whole(bank)
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BankError(f"{directory}: is there already: expected a new or empty directory")
    made = not directory.exists()
    shards, batches = _plan_shards(bank, shard_bytes), bank.batches()
    try:
        (directory / "data").mkdir(parents=True)
        files = [_write(directory, i, len(shards), itertools.islice(batches, count), bank) for i, count in enumerate(shards)]
        info = {**bank.manifest["info"], "failed": bank.failed, "rejected": bank.rejected, "files": files}
        card = bank_card(bank.manifest, len(bank), license=license, description=description, repo_id=repo_id)
        (directory / CARD_FILE).write_text(card, encoding="utf-8")
        (directory / MANIFEST).write_text(json.dumps({**bank.manifest, "info": info}, indent=2) + "\n")
    except BaseException as error:
        _clear(directory, made)
        if not isinstance(error, OSError):
            raise
        raise BankError(f"{directory}: cannot be written: {error.strerror or error}: nothing is left of it; export again") from error
    return len(shards)


def push_bank(bank: Bank, repo_id: str, *, license: str | None = None, description: str = "", **options: Any) -> str:
    """Export a bank and upload it to the data set repository `repo_id`; return the address of the commit.

    Args:
        bank: to share.
        repo_id: ``"organisation/name"``; made if absent.
        license: of the images, for the card.
        description: for the card.
        options: ``private``, ``token``, ``revision``, ``commit_message``.

    Raises:
        BankError: if the bank is unfinished or empty, or the Hub refuses; a wrong name or token before anything is exported.
    """
    _check_whole(bank)  # before the repository is made

    def save(directory: Path) -> None:
        export_bank(bank, directory, license=license, description=description, repo_id=repo_id)

    # Files of an earlier bank would be rows of this one.
    return upload(save, repo_id, DATASET, replace="data/*.parquet", **options)


def _check_whole(bank: Bank) -> None:
    if bank.missing_units:
        raise BankError(f"{bank.path}: unfinished, {bank.missing_units} units are missing: run generate again, then export it")
    if not len(bank):
        raise BankError(f"{bank.path}: has no images, since none of its sources gave one: there is nothing to share")


def _write(directory: Path, number: int, count: int, batches: Iterable[pa.RecordBatch], bank: Bank) -> dict[str, Any]:
    """Write a Parquet file; return what the manifest says of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    name = f"data/train-{number:05d}-of-{count:05d}.parquet"
    # The images are compressed already.
    with pq.ParquetWriter(directory / name, unit_schema(bank.manifest["source"]["key_type"]), compression="none") as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch]), row_group_size=_GROUP)
            rows += batch.num_rows
    path = directory / name
    return {"file": name, "rows": rows, "bytes": path.stat().st_size, "sha256": sha256(path)}


def _clear(directory: Path, made: bool) -> None:
    shutil.rmtree(directory / "data", ignore_errors=True)
    with contextlib.suppress(OSError):
        for name in (MANIFEST, CARD_FILE):
            (directory / name).unlink(missing_ok=True)
        if made:
            directory.rmdir()


def _plan_shards(bank: Bank, size: int) -> list[int]:
    """Return how many of the bank's record batches each Parquet file takes."""
    counts, used = [0], 0
    for batch in bank.batches():
        if used and used + batch.nbytes > size:
            counts.append(0)
            used = 0
        counts[-1] += 1
        used += batch.nbytes
    return counts
