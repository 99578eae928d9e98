"""Which rows of a bank are whose: built without a loop over rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from gentransforms.bank.format.images import ADVICE
from gentransforms.errors import BankError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Index"]

Rows = npt.NDArray[np.int64]
Number = TypeVar("Number", np.int32, np.int64)


class Index:
    """From (key, variant) to the number of a row; rows are sorted by source, then variant.

    Args:
        batches: of all units in order, each with the name of the file it is from.
        variants: asked for, of each source.

    Raises:
        BankError: if the rows are not those of a bank.
    """

    def __init__(self, batches: Sequence[tuple[str, pa.RecordBatch]], variants: int) -> None:
        keys: list[str | int] = []
        starts: list[npt.NDArray[np.int64]] = []
        before = 0
        for name, batch in batches:
            names, begins = _runs(name, batch.column("key"))
            if keys and names[0] == keys[-1]:  # one key's rows in two batches
                names, begins = names[1:], begins[1:]
            keys += names
            begins += before
            starts.append(begins)
            before += batch.num_rows
        self.keys = keys
        self._starts = np.concatenate([*starts, [before]]).astype(np.int64)
        self._variants = np.concatenate([_variants(name, batch) for name, batch in batches] or [np.empty(0, np.int32)])
        self._places = dict(zip(keys, range(len(keys)), strict=True))
        self._check(batches, variants)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def variants_of(self, key: str | int) -> list[int]:
        """Return the variants that a key has, in order; none for an unknown key."""
        place = self._places.get(key)
        if place is None:
            return []
        found: list[int] = self._variants[self._starts[place] : self._starts[place + 1]].tolist()
        return found

    def find(self, keys: Sequence[str | int], variants: Sequence[int]) -> Rows:
        """Return the number of the row of each pair, -1 where there is none."""
        get = self._places.get
        places = np.fromiter((get(key, -1) for key in keys), np.int64, len(keys))
        wanted = np.asarray(variants, dtype=np.int64)
        rows = np.full(len(places), -1, dtype=np.int64)
        if not len(self):
            return rows
        first, stop = self._starts[places], self._starts[places + 1]
        guess = first + wanted  # right for a key that has all its variants
        inside = (places >= 0) & (wanted >= 0) & (guess < stop)
        hit = inside & (self._variants[np.where(inside, guess, 0)] == wanted)
        rows[hit] = guess[hit]
        for i in np.flatnonzero((places >= 0) & ~hit).tolist():
            own = self._variants[first[i] : stop[i]]
            place = int(np.searchsorted(own, wanted[i]))
            if place < len(own) and own[place] == wanted[i]:
                rows[i] = first[i] + place
        return rows

    def at(self, row: int) -> tuple[str | int, int]:
        """Return key and variant of a row."""
        place = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.keys[place], int(self._variants[row])

    def _check(self, batches: Sequence[tuple[str, pa.RecordBatch]], variants: int) -> None:
        if len(self._places) != len(self.keys):
            seen: set[str | int] = set()
            twice = next(key for key in self.keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise BankError(f"key {twice!r} has rows in two places: the bank is damaged; {ADVICE}")
        grows = np.diff(self._variants) > 0
        grows[self._starts[1:-1] - 1] = True  # from one key to the next
        fits = (self._variants >= 0) & (self._variants < variants)
        wrong = np.flatnonzero(~fits).tolist() or (np.flatnonzero(~grows) + 1).tolist()
        if wrong:
            key, variant = self.at(wrong[0])
            name = batches[int(np.searchsorted(np.cumsum([batch.num_rows for _, batch in batches]), wrong[0], side="right"))][0]
            raise BankError(f"{name}: variant {variant} of key {key!r} is twice, out of order, or not one of {variants}; {ADVICE}")


def _runs(name: str, column: pa.Array) -> tuple[list[str | int], npt.NDArray[np.int64]]:
    """Return the keys of a batch, each once for its run of rows, and where the runs begin."""
    import pyarrow.compute as pc

    try:
        column.validate(full=True)  # offsets that point elsewhere would crash the process
    except ValueError as error:
        raise BankError(f"{name}: its keys are damaged ({error}): {ADVICE}") from error
    if column.null_count:
        raise BankError(f"{name}: has rows without a key: {ADVICE}")
    runs = pc.run_end_encode(column, run_end_type="int64")
    begins = np.zeros(len(runs.values), dtype=np.int64)
    begins[1:] = _numbers(runs.run_ends, np.int64)[:-1]
    return runs.values.to_pylist(), begins


def _variants(name: str, batch: pa.RecordBatch) -> npt.NDArray[np.int32]:
    column = batch.column("variant")
    if column.null_count:
        raise BankError(f"{name}: has rows without a variant: {ADVICE}")
    return _numbers(column, np.int32)


def _numbers(column: pa.Array, dtype: type[Number]) -> npt.NDArray[Number]:
    """Return a column of integers without nulls as a view; `to_numpy` would import pandas, which takes half a second."""
    if not len(column):
        return np.empty(0, dtype)
    return np.frombuffer(column.buffers()[1], dtype)[column.offset : column.offset + len(column)]
