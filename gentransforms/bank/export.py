"""Write a bank as the Hub holds it: Parquet files, the manifest and a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentransforms import hub
from gentransforms.bank.arrow import arrow
from gentransforms.bank.card import bank_card
from gentransforms.bank.layout import MANIFEST, schema_of
from gentransforms.errors import BankError, ConfigError

if TYPE_CHECKING:
    from gentransforms.bank.reader import Bank

__all__ = ["export_bank", "push_bank"]

# Rows of a Parquet row group: what the Hub's viewer and a streaming reader fetch at once.
_GROUP = 100


def export_bank(
    bank: Bank, directory: str | Path, *, shard_bytes: int = 500_000_000, license: str | None = None, description: str = ""
) -> int:
    """Write a bank into a new directory, as an ordinary Hugging Face data set; return the number of Parquet files.

    The directory is what `push_to_hub` uploads; `datasets.load_dataset` and `Bank.open` read it. Failed sources and
    rejected variants stand in its ``bank.json``.

    Args:
        bank: to write.
        directory: made; must be new or empty.
        shard_bytes: of image bytes in a file, about.
        license: of the images, for the card.
        description: for the card.

    Raises:
        BankError: if the directory holds files, or cannot be written.
        ConfigError: if `shard_bytes` is not positive.
    """
    import pyarrow.parquet as pq

    if type(shard_bytes) is not int or shard_bytes < 1:
        raise ConfigError(f"shard_bytes={shard_bytes!r}: expected a positive integer")
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BankError(f"{directory}: is there already: expected a new or empty directory")
    schema = schema_of(bank.settings["source"]["key_type"])
    shards = _shards(bank, shard_bytes)
    try:
        (directory / "data").mkdir(parents=True)
        for i, batches in enumerate(shards):
            file = directory / "data" / f"train-{i:05d}-of-{len(shards):05d}.parquet"
            with pq.ParquetWriter(file, schema, compression="none") as writer:  # the images are compressed already
                for batch in batches:
                    writer.write_table(arrow().Table.from_batches([batch]), row_group_size=_GROUP)
        info = {**bank.manifest["info"], "failed": bank.failed, "rejected": bank.rejected}
        (directory / MANIFEST).write_text(json.dumps({**bank.manifest, "info": info}, indent=2) + "\n")
        (directory / hub.CARD_FILE).write_text(bank_card(bank.manifest, len(bank), license=license, description=description))
    except OSError as error:
        raise BankError(f"{directory}: cannot be written: {error.strerror or error}") from error
    return len(shards)


def push_bank(bank: Bank, repo_id: str, *, license: str | None = None, description: str = "", **options: Any) -> str:
    """Export a bank and upload it to the data set repository `repo_id`; return the address of the commit.

    Args:
        bank: to share.
        repo_id: ``"organisation/name"``; made if absent.
        license: of the images, for the card.
        description: for the card.
        options: ``private``, ``token``, ``revision``, ``commit_message``.
    """

    def save(directory: Path) -> None:
        export_bank(bank, directory, license=license, description=description)

    return hub.upload(save, repo_id, repo_type="dataset", **options)


def _shards(bank: Bank, size: int) -> list[list[Any]]:
    """The bank's record batches, a list for each file."""
    shards: list[list[Any]] = [[]]
    used = 0
    for batch in bank.batches():
        if used and used + batch.nbytes > size:
            shards.append([])
            used = 0
        shards[-1].append(batch)
        used += batch.nbytes
    return shards
