"""Fetch the files of a bank that was pushed to the Hub, which there is a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gentransforms.errors import BankError
from gentransforms.hub.client import DATASET, bars_on_a_terminal, hub_errors

__all__ = ["card_metadata", "fetch_file", "fetch_folder"]


def fetch_file(repo_id: str, filename: str, revision: str | None = None) -> Path:
    """Return the local path of one file of a data set repository, downloaded first where needed.

    Raises:
        BankError: if there is no such repository, revision or file, or it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    with hub_errors(DATASET, repo_id, repr(filename), revision), bars_on_a_terminal():
        return Path(hf_hub_download(repo_id, filename, repo_type="dataset", revision=revision))


def fetch_folder(repo_id: str, filenames: Sequence[str], revision: str) -> Path:
    """Return a local folder with all those files of a data set repository, several downloaded at once where needed.

    Args:
        repo_id: ``"organisation/name"``.
        filenames: paths in it.
        revision: a commit. What is there of it is not asked for again.

    Raises:
        BankError: if the repository lacks one of them, or they cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    what = f"its {len(filenames)} files" if len(filenames) > 1 else repr(filenames[0])

    def folder(local: bool) -> Path:
        return Path(
            snapshot_download(repo_id, repo_type="dataset", revision=revision, allow_patterns=list(filenames), local_files_only=local)
        )

    def lacking(there: Path) -> list[str]:
        return [name for name in filenames if not (there / name).is_file()]

    with hub_errors(DATASET, repo_id, what, revision), bars_on_a_terminal():
        with contextlib.suppress(LocalEntryNotFoundError):
            if not lacking(there := folder(local=True)):
                return there
        there = folder(local=False)  # without a network, what is in the cache: perhaps not all
    if gone := lacking(there):
        raise BankError(
            f"{repo_id}: {gone[0]!r} at revision {revision!r} could not be fetched, and is not in the local cache: check the network; "
            "if the Hub has no such file, push the bank again"
        )
    return there


def card_metadata(**fields: Any) -> str:
    """Return the YAML that the Hub reads at the head of a data set's card."""
    from huggingface_hub import DatasetCardData

    return str(DatasetCardData(**fields).to_yaml())
