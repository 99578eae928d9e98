"""Look up rows: from (key, variant) to the number of a row and its file. Only arrays are used, so that they can be memory-mapped."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from gentransforms.bank.format.checksums import IndexChecksum
from gentransforms.bank.format.damage import Damage
from gentransforms.sources.arrow import arrow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Lookup", "LookupBuilder", "Numbers", "view_numbers"]

Numbers = npt.NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Lookup:
    """The rows of a bank without their images, numbered across all files and sorted by source, then variant.

    A key is found by binary search among the sorted hashes of all keys: the CRC-32 of a str, or an int itself. Unlike a dict, this
    takes neither time nor memory when a bank is opened.

    Attributes:
        files: names of the files, in order.
        file_starts: (files + 1,) number of the first row of each file.
        file_sizes: (files,) sizes in bytes.
        keys: Arrow array of the keys that have rows, each once, in source order: large_string or int64.
        starts: (keys + 1,) number of the first row of each key.
        variants: (rows,) int32, variant of each row.
        hashes: (keys,) sorted hashes: uint32 for str, int64 for int.
        order: (keys,) int32, index in `keys` of the key with each hash.
        marks: (keys, 48) uint8, mark of each source; None if the bank has none.
        kept: (rows,) bool, which rows are used; None for all. Rows keep their numbers.
        guard: checks the index from which this was read, before a key or a variant is said to be absent; None if there is none.
    """

    files: Sequence[str]
    file_starts: Numbers
    file_sizes: Numbers
    keys: pa.Array
    starts: Numbers
    variants: npt.NDArray[np.int32]
    hashes: npt.NDArray[Any]
    order: npt.NDArray[np.int32]
    marks: npt.NDArray[np.uint8] | None = None
    kept: npt.NDArray[np.bool_] | None = None
    guard: IndexChecksum | None = None
    _key_data: Any = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if not _is_int(self.keys):
            _, offsets, data = self.keys.buffers()
            ends = np.frombuffer(offsets, np.int64)[self.keys.offset :] if offsets is not None else np.zeros(1, np.int64)
            object.__setattr__(self, "_key_data", (ends, memoryview(data if data is not None else b"")))
        else:
            object.__setattr__(self, "_key_data", view_numbers(self.keys, np.int64))

    def __len__(self) -> int:
        return len(self.variants) if self.kept is None else int(self.kept.sum())

    @property
    def integer_keys(self) -> bool:
        """Whether keys are int rather than str."""
        return _is_int(self.keys)

    def find_key(self, key: str | int) -> int:
        """Return the index of a key in `keys`, or -1."""
        return int(self.find_keys([key])[0])

    def find_keys(self, keys: Sequence[str | int]) -> Numbers:
        """Return the index of each key in `keys`, or -1.

        Raises:
            BankError: if one is not found, and the index from which this was read is damaged.
        """
        kind, hashing = (int, _hash_int) if self.integer_keys else (str, _hash_text)
        fits = np.fromiter((isinstance(key, kind) and (kind is str or key in _INT64) for key in keys), bool, len(keys))
        wanted = np.fromiter((hashing(key) if fit else 0 for key, fit in zip(keys, fits, strict=True)), self.hashes.dtype, len(keys))
        found = np.full(len(keys), -1, dtype=np.int64)
        first, stop = np.searchsorted(self.hashes, wanted), np.searchsorted(self.hashes, wanted, side="right")
        for i in np.flatnonzero(fits & (first < stop)).tolist():
            own = keys[i] if kind is int else _encode(keys[i])
            for place in self.order[first[i] : stop[i]].tolist():  # several if hashes collide
                if self.raw_key(place) == own:
                    found[i] = place
        if self.guard is not None and (found < 0).any():
            self.guard.check(self)
        return found

    def find_rows(self, keys: Sequence[str | int], variants: Sequence[int]) -> Numbers:
        """Return the number of the row of each pair, or -1; errors as in `find_keys`."""
        places = self.find_keys(keys)
        wanted = np.asarray(variants, dtype=np.int64)
        rows = np.full(len(places), -1, dtype=np.int64)
        if not len(self.variants):
            return rows
        first, stop = self.starts[places], self.starts[places + 1]
        guess = first + wanted  # right for a key that has all its variants
        inside = (places >= 0) & (wanted >= 0) & (guess < stop)
        hit = inside & (self.variants[np.where(inside, guess, 0)] == wanted)
        rows[hit] = guess[hit]
        for i in np.flatnonzero((places >= 0) & ~hit).tolist():
            own = self.variants[first[i] : stop[i]]
            place = int(np.searchsorted(own, wanted[i]))
            if place < len(own) and own[place] == wanted[i]:
                rows[i] = first[i] + place
        if self.guard is not None and (rows < 0).any():
            self.guard.check(self)
        if self.kept is not None:
            rows[~self.kept[rows]] = -1  # a row of -1 looks at the last row, and stays -1 either way
        return rows

    def variants_of(self, key: str | int) -> list[int]:
        """Return the variants of a key, in order; none for an unknown key."""
        place = self.find_key(key)
        if place < 0:
            return []
        rows = slice(self.starts[place], self.starts[place + 1])
        found: list[int] = (self.variants[rows] if self.kept is None else self.variants[rows][self.kept[rows]]).tolist()
        return found

    def list_keys(self) -> list[str | int]:
        """Return the keys that have rows, each once, in source order."""
        keys: list[str | int] = (self.keys if self.kept is None else self.keys.filter(arrow().array(self.used))).to_pylist()
        return keys

    @property
    def used(self) -> npt.NDArray[np.bool_]:
        """Which keys have a row that is used: (keys,) bool."""
        kept = np.ones(len(self.variants), dtype=bool) if self.kept is None else self.kept
        before = np.concatenate([[0], np.cumsum(kept)])
        used: npt.NDArray[np.bool_] = before[self.starts[1:]] > before[self.starts[:-1]]
        return used

    def digest(self) -> str:
        """Return a hash of the key and variant of each row, in order, whatever rows are used and whatever files they are in."""
        found = hashlib.blake2b(digest_size=16)
        if self.integer_keys:
            found.update(self._key_data.tobytes())
        else:
            ends, data = self._key_data
            ends = ends[: len(self.keys) + 1]
            found.update((ends - ends[0]).tobytes())
            found.update(data[ends[0] : ends[-1]])
        for numbers in (self.starts, self.variants):
            found.update(np.ascontiguousarray(numbers).tobytes())
        return found.hexdigest()

    def locate(self, rows: Numbers) -> tuple[Numbers, Numbers]:
        """Return for each row the number of its file and the index of its key."""
        return np.searchsorted(self.file_starts, rows, side="right") - 1, np.searchsorted(self.starts, rows, side="right") - 1

    def raw_key(self, place: int) -> bytes | int:
        """Return a key by its index, a str encoded as UTF-8."""
        if self.integer_keys:
            return int(self._key_data[place])
        ends, data = self._key_data
        return bytes(data[ends[place] : ends[place + 1]])

    def key(self, place: int) -> str | int:
        """Return a key by its index."""
        raw = self.raw_key(place)
        return raw if isinstance(raw, int) else raw.decode()


class LookupBuilder:
    """Build a `Lookup` from one file after the other, without keeping any of them.

    Args:
        variants: largest number of variants of a source.
        integer_keys: whether keys are int.
    """

    def __init__(self, variants: int, integer_keys: bool) -> None:
        pa = arrow()
        self.count, self.kind = variants, pa.int64() if integer_keys else pa.large_string()
        self.files: list[str] = []
        self.file_starts, self.file_sizes = [0], list[int]()
        self.keys: list[Any] = []
        self.starts: list[Numbers] = []
        self.variants: list[npt.NDArray[np.int32]] = []
        self.last: object = None  # the last key so far
        self.marks: list[bytes] | None = []

    def add(self, name: str, size: int, batches: Iterable[pa.RecordBatch], marks: bytes | None = None) -> None:
        """Add the rows of a file of `size` bytes, and the marks of its keys, 48 bytes each.

        Raises:
            BankError: if a row has no key or no variant, or the keys are damaged.
        """
        rows = self.file_starts[-1]
        for batch in batches:
            keys, begins = _find_runs(name, batch.column("key"))
            if self.keys and len(keys) and keys[0].as_py() == self.last:  # one key's rows in two batches
                keys, begins = keys[1:], begins[1:]
            if len(keys):
                self.last = keys[-1].as_py()
            self.keys.append(keys.cast(self.kind))
            self.starts.append(begins + rows)
            self.variants.append(_read_variants(name, batch))
            rows += batch.num_rows
        self.files.append(name)
        self.file_starts.append(rows)
        self.file_sizes.append(size)
        if marks is None:
            self.marks = None
        elif self.marks is not None:
            self.marks.append(marks)

    def build(self) -> Lookup:
        """Return the lookup of all files.

        Raises:
            BankError: if a key or variant occurs twice or out of order, or a variant is out of range.
        """
        pa = arrow()
        keys = pa.concat_arrays(self.keys) if self.keys else pa.nulls(0, self.kind)
        hashes = _hash_all(keys)
        order = np.argsort(hashes, kind="stable").astype(np.int32)
        file_starts = np.asarray(self.file_starts, np.int64)
        marks = np.frombuffer(b"".join(self.marks), np.uint8).reshape(-1, 48) if self.marks else None
        lookup = Lookup(
            files=self.files, file_starts=file_starts, file_sizes=np.asarray(self.file_sizes, np.int64), keys=keys,
            starts=np.concatenate([*self.starts, file_starts[-1:]]), variants=np.concatenate([*self.variants, np.empty(0, np.int32)]),
            hashes=hashes[order], order=order, marks=marks if marks is not None and len(marks) == len(keys) else None,
        )  # fmt: skip
        self._check(lookup)
        return lookup

    def _check(self, lookup: Lookup) -> None:
        alike = np.flatnonzero(lookup.hashes[1:] == lookup.hashes[:-1]).tolist()
        seen = set[str | int]()
        for place in lookup.order[sorted({*alike, *(i + 1 for i in alike)})].tolist():
            key = lookup.key(place)
            if key in seen:
                raise Damage(f"key {key!r} has rows in two places, so the bank is damaged")
            seen.add(key)
        grows = np.diff(lookup.variants) > 0
        grows[lookup.starts[1:-1] - 1] = True  # from one key to the next
        fits = (lookup.variants >= 0) & (lookup.variants < self.count)
        wrong = np.flatnonzero(~fits).tolist() or (np.flatnonzero(~grows) + 1).tolist()
        if wrong:
            (file,), (place,) = lookup.locate(np.asarray(wrong[:1], np.int64))
            raise Damage(
                f"{lookup.files[file]}: variant {lookup.variants[wrong[0]]} of key {lookup.key(int(place))!r} occurs twice or out of "
                f"order, or is not one of 0 to {self.count - 1}, so the bank is damaged"
            )


def view_numbers(column: pa.Array, dtype: type[Scalar]) -> npt.NDArray[Scalar]:
    """Return a column of numbers without nulls as a view. The `to_numpy` of pyarrow would import pandas, which takes a second."""
    if not len(column):
        return np.empty(0, dtype)
    return np.frombuffer(column.buffers()[1], dtype)[column.offset : column.offset + len(column)]


def _is_int(keys: pa.Array) -> bool:
    return bool(keys.type == arrow().int64())


def _hash_text(key: Any) -> int:
    return zlib.crc32(_encode(key))


def _encode(key: Any) -> bytes:
    encoded: bytes = key.encode(errors="surrogatepass")  # file names may contain surrogates, no key of a bank does
    return encoded


def _hash_int(key: Any) -> int:
    return int(key)


def _hash_all(keys: pa.Array) -> npt.NDArray[Any]:
    if _is_int(keys):
        return view_numbers(keys, np.int64)
    return np.fromiter((zlib.crc32(key.encode()) for key in keys.to_pylist()), np.uint32, len(keys))


def _find_runs(name: str, column: pa.Array) -> tuple[pa.Array, Numbers]:
    """Return the key of each run of equal keys in a batch, and where the runs begin."""
    import pyarrow.compute as pc

    try:
        column.validate(full=True)  # offsets that point elsewhere would crash the process
    except ValueError as error:
        raise Damage(f"{name}: its keys are damaged ({error})") from error
    if column.null_count:
        raise Damage(f"{name}: has rows without a key")
    runs = pc.run_end_encode(column, run_end_type="int64")
    begins = np.zeros(len(runs.values), dtype=np.int64)
    begins[1:] = view_numbers(runs.run_ends, np.int64)[:-1]
    return runs.values, begins


def _read_variants(name: str, batch: pa.RecordBatch) -> npt.NDArray[np.int32]:
    column = batch.column("variant")
    if column.null_count:
        raise Damage(f"{name}: has rows without a variant")
    return view_numbers(column, np.int32).copy()  # otherwise the file would stay mapped
