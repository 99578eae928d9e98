"""Check rows: keys, variants, order, seeds and images; and the index that refers to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gentransforms.bank.format.damage import Damage
from gentransforms.bank.format.images import decode_rgb
from gentransforms.bank.format.index import INDEX, Index, decode_marks, read_index
from gentransforms.bank.format.manifest import Facts
from gentransforms.bank.format.unit import Unit, list_entries
from gentransforms.errors import BankError
from gentransforms.seeding import derive_seeds

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["NO_ROWS", "Contents", "IndexCheck", "WithoutRows", "check_images", "check_rows"]

_SHOWN = 10  # damaged images of a file that are reported
_CHUNK = 64  # images that a thread decodes in one task


class Contents(NamedTuple):
    """Rows without their images, column by column."""

    keys: list[str | int]
    variants: list[int]
    seeds: list[int]
    attempts: list[int]

    @classmethod
    def read(cls, batch: pa.RecordBatch) -> Contents:
        """Return the rows of a validated batch."""
        return cls(*(batch.column(name).to_pylist() for name in ("key", "variant", "seed", "attempt")))

    def join(self, other: Contents) -> Contents:
        """Return these rows followed by those of `other`."""
        columns: Any = zip(self, other, strict=True)
        return Contents(*(mine + others for mine, others in columns))

    def split_last_key(self) -> tuple[Contents, Contents]:
        """Split the rows of the last key off; return the others and these."""
        row = len(self.keys)
        while row and self.keys[row - 1] == self.keys[-1]:
            row -= 1
        columns: tuple[Any, ...] = self
        return Contents(*(column[:row] for column in columns)), Contents(*(column[row:] for column in columns))


NO_ROWS = Contents([], [], [], [])


@dataclass(frozen=True)
class WithoutRows:
    """The sources and variants that have no rows, according to a bank.

    Attributes:
        failed: keys of the sources that could not be read.
        rejected: (key, variant) pairs for which every attempt was rejected.
    """

    failed: set[str | int]
    rejected: set[tuple[str | int, Any]]

    @classmethod
    def read(cls, failed: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]) -> WithoutRows:
        """Read the entries of a sidecar."""
        return cls({entry["key"] for entry in failed}, {(entry["key"], entry.get("variant")) for entry in rejected})

    def among(self, keys: set[str | int]) -> WithoutRows:
        """Return only the entries about these keys."""
        return WithoutRows(self.failed & keys, {pair for pair in self.rejected if pair[0] in keys})


def check_rows(contents: Contents, facts: Facts, without: WithoutRows | None, count: int | None) -> Iterator[tuple[str, str]]:
    """Yield the problems of the rows of some sources, as (kind, text).

    Args:
        contents: all rows of these sources.
        facts: the facts of the bank's manifest.
        without: which of these sources and their variants have no rows; None if unknown.
        count: number of these sources; None if unknown.
    """
    keys, variants = contents.keys, contents.variants
    pairs = Counter(zip(keys, variants, strict=True))
    twice = [pair for pair, times in pairs.items() if times > 1]
    if twice:
        yield "duplicate", _first(twice, "has variant {0[1]} of key {0[0]!r} more than once")
    outside = [pair for pair in pairs if not 0 <= pair[1] < facts.variants]
    if outside:
        yield "variant", _first(outside, f"has variant {{0[1]}} of key {{0[0]!r}}, expected 0 to {facts.variants - 1}")
    runs = [(key, [variant for _, variant in run]) for key, run in groupby(zip(keys, variants, strict=True), key=lambda pair: pair[0])]
    apart = [key for key, times in Counter(key for key, _ in runs).items() if times > 1]
    if apart:
        yield "order", _first(apart, "rows of key {0!r} are not next to each other")
    unsorted = [key for key, run in runs if run != sorted(run)]
    if unsorted:
        yield "order", _first(unsorted, "variants of key {0!r} are out of order")
    yield from _check_seeds(contents, facts)
    if without is not None:
        yield from _check_complete(pairs, facts, without, count)


def check_images(
    batches: Sequence[pa.RecordBatch], contents: Contents, size: tuple[int, int], pool: ThreadPoolExecutor
) -> Generator[tuple[str, str], None, int]:
    """Yield which images of these rows cannot be decoded or do not have (h, w) `size`, as (kind, text); return their number."""
    images = [image for batch in batches for image in batch.column("image").field("bytes")]
    bad = 0
    for texts in pool.map(lambda start: _decode(images, contents, start, size), range(0, len(images), _CHUNK)):
        for text in texts:
            bad += 1
            if bad <= _SHOWN:
                yield "image", text
    if bad > _SHOWN:
        yield "image", f"… and {bad - _SHOWN:,} more in this unit"
    return bad


class IndexCheck:
    """Compares the index of a bank with each of its units in order.

    Args:
        directory: directory of the bank.
        facts: the facts of its manifest.
    """

    def __init__(self, directory: Path, facts: Facts) -> None:
        self._index: Index | None = None
        self._fault = ""
        self._units = 0
        self._failed = list[dict[str, Any]]()
        self._rejected = list[dict[str, Any]]()
        try:
            self._index = read_index(directory, facts, thorough=True)
        except FileNotFoundError:  # not required: it only makes opening faster
            pass
        except Damage as error:
            self._fault = error.fault
        except BankError as error:
            self._fault = str(error)

    def check_unit(self, unit: Unit, size: int, contents: Contents, sidecar: Mapping[str, Any]) -> None:
        """Compare the entries of the index about a unit with its rows and its sidecar."""
        if self._index is None or self._fault:
            return
        lookup, number = self._index.lookup, self._units
        self._units += 1
        self._failed += list_entries(sidecar, "failed")
        self._rejected += list_entries(sidecar, "rejected")
        if lookup.files[number] != unit.file or lookup.file_sizes[number] != size:
            self._fault = f"{INDEX} says that file {number} is {lookup.files[number]} with {lookup.file_sizes[number]:,} bytes"
            return
        rows = np.arange(lookup.file_starts[number], lookup.file_starts[number + 1])
        _, places = lookup.locate(rows)
        keys = [lookup.key(place) for place in places.tolist()]
        if keys != contents.keys or lookup.variants[rows].tolist() != contents.variants:
            self._fault = f"{INDEX} lists other rows of {unit.file} than it has"
            return
        if lookup.marks is not None and lookup.marks[np.unique(places)].tobytes() != decode_marks(sidecar):
            self._fault = f"{INDEX} has other marks of sources than {unit.sidecar}"

    def finish(self) -> Iterator[tuple[str, str]]:
        """Yield the problem of the index, if there is one, as (kind, text), after all units were compared."""
        if self._index is not None and not self._fault:
            lookup = self._index.lookup
            if (self._index.failed, self._index.rejected) != (self._failed, self._rejected):
                self._fault = f"{INDEX} lists other failed sources or rejected variants than the sidecars of the units"
            elif lookup.find_keys(lookup.keys.to_pylist()).tolist() != list(range(len(lookup.keys))):
                self._fault = f"{INDEX} does not find its own keys"
        if self._fault:
            yield "index", f"{self._fault}: --repair rebuilds it"


def _check_seeds(contents: Contents, facts: Facts) -> Iterator[tuple[str, str]]:
    negative = [i for i, attempt in enumerate(contents.attempts) if attempt < 0]
    if negative:
        yield "seed", _first([contents.keys[i] for i in negative], "an attempt of key {0!r} is negative")
        return
    if facts.base_seed is None:  # imported images
        return
    numbers = [facts.seed_number(variant, attempt) for variant, attempt in zip(contents.variants, contents.attempts, strict=True)]
    expected = derive_seeds(facts.base_seed, contents.keys, numbers).tolist()
    wrong = [i for i, (seed, right) in enumerate(zip(contents.seeds, expected, strict=True)) if seed != right]
    if wrong:
        rows = [(contents.keys[i], contents.variants[i], contents.seeds[i], expected[i]) for i in wrong]
        yield "seed", _first(rows, "variant {0[1]} of key {0[0]!r} has seed {0[2]}, expected {0[3]}")


def _check_complete(
    pairs: Mapping[tuple[str | int, int], int], facts: Facts, without: WithoutRows, count: int | None
) -> Iterator[tuple[str, str]]:
    """Check that every source has each variant as a row or recorded as rejected, or is itself recorded as failed."""
    failed, accounted = without.failed, {*pairs, *without.rejected}
    sources = dict.fromkeys(key for key, _ in accounted)
    both = [key for key in sources if key in failed]
    if both:
        yield "rows", _first(both, "has rows of key {0!r}, which is recorded as failed")
    lacking = [
        (key, variant) for key in sources if key not in failed for variant in range(facts.variants) if (key, variant) not in accounted
    ]
    if lacking:
        yield "rows", _first(lacking, "lacks variant {0[1]} of key {0[0]!r}, which was not rejected")
    there = len({*sources, *failed})
    if count is not None and there != count:
        yield "rows", f"has {there} sources, including failed ones, expected {count}"


def _first(found: Sequence[Any], text: str) -> str:
    more = f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
    return text.format(found[0]) + more


def _decode(images: Sequence[pa.BinaryScalar], contents: Contents, start: int, size: tuple[int, int]) -> list[str]:
    """Return the problems of a chunk of images that begins at `start`."""
    wrong = []
    for row in range(start, min(start + _CHUNK, len(images))):
        text = ""
        try:
            shape = tuple(decode_rgb(bytearray(images[row].as_buffer()), thorough=True).shape)
            if shape[1:] != size:
                text = f"is {shape[1]} x {shape[2]} pixels, expected {size[0]} x {size[1]}"
        except BankError as error:
            text = f"cannot be decoded ({error})"
        if text:
            wrong.append(f"variant {contents.variants[row]} of key {contents.keys[row]!r} {text}")
    return wrong
