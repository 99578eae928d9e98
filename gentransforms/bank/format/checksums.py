"""Checksums of what an index holds, so that a flipped bit in it is not taken for a key that a bank does not have."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gentransforms.bank.format.damage import Damage

if TYPE_CHECKING:
    from gentransforms.bank.format.lookup import Lookup

__all__ = ["IndexChecksum", "checksum_columns", "checksum_lists"]


def checksum_lists(lookup: Lookup, failed: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]) -> int:
    """Return the CRC-32 of what is read whenever an index is opened."""
    found = zlib.crc32(json.dumps([list(lookup.files), list(failed), list(rejected)]).encode())
    for numbers in (lookup.file_starts, lookup.file_sizes):
        found = zlib.crc32(np.ascontiguousarray(numbers).data, found)
    return found


def checksum_columns(lookup: Lookup) -> int:
    """Return the CRC-32 of the columns by which keys and variants are found, and of the marks. A million rows take some milliseconds."""
    found = zlib.crc32(bytes.fromhex(lookup.digest()))
    for numbers in (lookup.hashes, lookup.order, lookup.marks):
        if numbers is not None:
            found = zlib.crc32(np.ascontiguousarray(numbers).data, found)
    return found


class IndexChecksum:
    """Checks an index once, when something is not found in it; at opening that would cost more than all else.

    Args:
        where: path of the index, for the error.
        expected: the result of `checksum_columns` when it was written.
    """

    def __init__(self, where: str, expected: int) -> None:
        self._where, self._expected, self._checked = where, expected, False

    def check(self, lookup: Lookup) -> None:
        """Check the columns unless that was done before.

        Raises:
            BankError: if they have changed since the index was written.
        """
        if self._checked:
            return
        if checksum_columns(lookup) != self._expected:
            raise Damage(f"{self._where}: has changed since it was written", "`gentransforms bank verify --repair` rebuilds it")
        self._checked = True
