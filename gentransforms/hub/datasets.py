"""Fetch the files of a bank from the Hub, where it is a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gentransforms.errors import BankError
from gentransforms.hub.client import DATASET, bars_on_a_terminal, hub_errors

__all__ = ["card_metadata", "fetch_file", "fetch_folder"]


def fetch_file(repo_id: str, filename: str, revision: str | None = None) -> Path:
    """Return the local path of one file of a data set repository, downloading it if needed.

    Raises:
        BankError: if there is no such repository, revision or file, or it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    with hub_errors(DATASET, repo_id, repr(filename), revision), bars_on_a_terminal():
        return Path(hf_hub_download(repo_id, filename, repo_type="dataset", revision=revision))


def fetch_folder(repo_id: str, filenames: Sequence[str], revision: str) -> Path:
    """Return a local folder with all these files of a data set repository, downloading several at once if needed.

    Args:
        repo_id: ``"organisation/name"``.
        filenames: paths in the repository.
        revision: a commit. Files that are in the cache are not requested again.

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
        there = folder(local=False)  # without a network this is what the cache holds, which may be incomplete
    if gone := lacking(there):
        raise BankError(
            f"{repo_id}: {gone[0]!r} at revision {revision!r} could not be fetched, and is not in the local cache: check the network; "
            "if the Hub has no such file, push the bank again"
        )
    return there


def card_metadata(**fields: Any) -> str:
    """Return the YAML header of a data set card, which the Hub reads."""
    from huggingface_hub import DatasetCardData

    return str(DatasetCardData(**fields).to_yaml())
