"""Check the index of a bank against its units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gentransforms.bank.format.facts import Facts
from gentransforms.bank.format.index import INDEX, Index, decode_marks, read_index
from gentransforms.bank.format.unit import Unit, list_entries
from gentransforms.bank.verify.rows import Contents
from gentransforms.errors import BankError

__all__ = ["IndexCheck"]


class IndexCheck:
    """What the index of a bank says, compared with each of its units in order.

    Args:
        directory: of the bank.
        facts: of its manifest.
    """

    def __init__(self, directory: Path, facts: Facts) -> None:
        self._index: Index | None = None
        self._fault = ""
        self._units = 0
        self._failed = list[dict[str, Any]]()
        self._rejected = list[dict[str, Any]]()
        try:
            self._index = read_index(directory, facts)
        except FileNotFoundError:  # it is faster to open a bank with one; it does not need one
            pass
        except BankError as error:
            self._fault = str(error)

    def check_unit(self, unit: Unit, size: int, contents: Contents, sidecar: Mapping[str, Any]) -> None:
        """Compare what the index says of a unit with its rows and its sidecar."""
        if self._index is None or self._fault:
            return
        lookup, number = self._index.lookup, self._units
        self._units += 1
        self._failed += list_entries(sidecar, "failed")
        self._rejected += list_entries(sidecar, "rejected")
        if lookup.files[number] != unit.file or lookup.file_sizes[number] != size:
            self._fault = f"{INDEX} says that file {number} is {lookup.files[number]} of {lookup.file_sizes[number]:,} bytes"
            return
        rows = np.arange(lookup.file_starts[number], lookup.file_starts[number + 1])
        _, places = lookup.locate(rows)
        keys = [lookup.key(place) for place in places.tolist()]
        if keys != contents.keys or lookup.variants[rows].tolist() != contents.variants:
            self._fault = f"{INDEX} says that {unit.file} has other rows than it has"
            return
        if lookup.marks is not None and lookup.marks[np.unique(places)].tobytes() != decode_marks(sidecar):
            self._fault = f"{INDEX} has other marks of its sources than {unit.sidecar}"

    def finish(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the index, as (kind, text), once all units were compared."""
        if self._index is not None and not self._fault:
            lookup = self._index.lookup
            if (self._index.failed, self._index.rejected) != (self._failed, self._rejected):
                self._fault = f"{INDEX} says that other sources failed, or other variants were rejected, than the sidecars of the units"
            elif lookup.find_keys(lookup.keys.to_pylist()).tolist() != list(range(len(lookup.keys))):
                self._fault = f"{INDEX} does not find the keys that it holds"
        if self._fault:
            yield "index", f"{self._fault}: --repair builds it anew"
