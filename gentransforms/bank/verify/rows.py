"""Check the rows of one unit: whose they are, their order, the seeds that follow from them, and their images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from gentransforms.bank.format.facts import Facts
from gentransforms.bank.format.images import MappedFile, decode_rgb
from gentransforms.bank.format.unit import Unit, list_entries
from gentransforms.errors import BankError
from gentransforms.seeding import derive_seeds

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Contents", "check_images", "check_rows"]

_SHOWN = 10  # of the bad images of a unit
_CHUNK = 64  # images that a thread decodes at once


@dataclass(frozen=True)
class Contents:
    """The rows of a unit without their images, column by column."""

    keys: list[str | int]
    variants: list[int]
    seeds: list[int]
    attempts: list[int]

    @classmethod
    def of(cls, batches: Sequence[pa.RecordBatch]) -> Contents:
        """Return those of validated batches."""
        columns = (
            [value for batch in batches for value in batch.column(name).to_pylist()] for name in ("key", "variant", "seed", "attempt")
        )
        return cls(*columns)

    def sources(self, unit: Unit, sidecar: Mapping[str, Any]) -> list[str | int] | None:
        """Return the keys of the unit's sources in order, or None if it is not known.

        A source without rows has its place where its entry in the sidecar gives its ``index``.
        """
        named = list(dict.fromkeys(self.keys))
        known = set(named)
        others = {entry["key"]: entry.get("index") for entry in list_entries(sidecar, "failed", "rejected") if entry["key"] not in known}
        placed = sorted((index, key) for key, index in others.items() if type(index) is int)
        if len(placed) < len(others):
            return None
        for index, key in placed:
            named.insert(index - unit.start, key)
        return named


def check_rows(contents: Contents, unit: Unit, sidecar: Mapping[str, Any], facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the rows of a unit, as (kind, text)."""
    keys, variants = contents.keys, contents.variants
    if sidecar and sidecar.get("rows") != len(keys):
        yield "rows", f"has {len(keys)} rows, and its sidecar says {sidecar.get('rows')}"
    pairs = Counter(zip(keys, variants, strict=True))
    twice = [pair for pair, count in pairs.items() if count > 1]
    if twice:
        yield "duplicate", _first(twice, "has variant {0[1]} of key {0[0]!r} more than once")
    outside = [pair for pair in pairs if not 0 <= pair[1] < facts.variants]
    if outside:
        yield "variant", _first(outside, f"has variant {{0[1]}} of key {{0[0]!r}}, expected 0 to {facts.variants - 1}")
    runs = [(key, [variant for _, variant in run]) for key, run in groupby(zip(keys, variants, strict=True), key=lambda pair: pair[0])]
    apart = [key for key, count in Counter(key for key, _ in runs).items() if count > 1]
    if apart:
        yield "order", _first(apart, "rows of key {0!r} do not stand together")
    unsorted = [key for key, run in runs if run != sorted(run)]
    if unsorted:
        yield "order", _first(unsorted, "variants of key {0!r} are out of order")
    yield from _check_seeds(contents, facts)
    if sidecar:
        yield from _check_complete(pairs, unit, sidecar, facts)


def check_images(
    batches: Sequence[pa.RecordBatch], contents: Contents, size: tuple[int, int], pool: ThreadPoolExecutor
) -> Iterator[tuple[str, str]]:
    """Yield which images of a unit do not decode to (h, w) `size`, as (kind, text)."""
    images = MappedFile(batches)
    bad = 0
    for texts in pool.map(lambda start: _decode(images, contents, start, size), range(0, len(images), _CHUNK)):
        for text in texts:
            bad += 1
            if bad <= _SHOWN:
                yield "image", text
    if bad > _SHOWN:
        yield "image", f"… and {bad - _SHOWN:,} more in this unit"


def _check_seeds(contents: Contents, facts: Facts) -> Iterator[tuple[str, str]]:
    negative = [i for i, attempt in enumerate(contents.attempts) if attempt < 0]
    if negative:
        yield "seed", _first([contents.keys[i] for i in negative], "a attempt of key {0!r} is negative")
        return
    if facts.base_seed is None:  # images that others made
        return
    numbers = [variant + attempt * facts.variants for variant, attempt in zip(contents.variants, contents.attempts, strict=True)]
    expected = derive_seeds(facts.base_seed, contents.keys, numbers).tolist()
    wrong = [i for i, (seed, right) in enumerate(zip(contents.seeds, expected, strict=True)) if seed != right]
    if wrong:
        rows = [(contents.keys[i], contents.variants[i], contents.seeds[i], expected[i]) for i in wrong]
        yield "seed", _first(rows, "variant {0[1]} of key {0[0]!r} has seed {0[2]}, expected {0[3]}")


def _check_complete(
    pairs: Mapping[tuple[str | int, int], int], unit: Unit, sidecar: Mapping[str, Any], facts: Facts
) -> Iterator[tuple[str, str]]:
    """Every source of the unit has each variant as a row, or recorded as rejected, or is recorded as failed itself."""
    failed = {entry["key"] for entry in list_entries(sidecar, "failed")}
    accounted = {*pairs, *((entry["key"], entry.get("variant")) for entry in list_entries(sidecar, "rejected"))}
    sources = dict.fromkeys(key for key, _ in accounted)
    both = [key for key in sources if key in failed]
    if both:
        yield "rows", _first(both, "has rows of key {0!r}, which its sidecar counts as failed")
    lacking = [
        (key, variant) for key in sources if key not in failed for variant in range(facts.variants) if (key, variant) not in accounted
    ]
    if lacking:
        yield "rows", _first(lacking, "lacks variant {0[1]} of key {0[0]!r}, which was not rejected")
    count = len({*sources, *failed})
    if count != unit.stop - unit.start:
        yield "rows", f"has {count} sources, failed ones counted, expected {unit.stop - unit.start}"


def _first(found: Sequence[Any], text: str) -> str:
    more = f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
    return text.format(found[0]) + more


def _decode(images: MappedFile, contents: Contents, start: int, size: tuple[int, int]) -> list[str]:
    """Return what is wrong with the images from `start` on."""
    wrong = []
    for row in range(start, min(start + _CHUNK, len(images))):
        text = ""
        try:
            shape = tuple(decode_rgb(images.image(row)).shape)
            if shape[1:] != size:
                text = f"is {shape[1]} x {shape[2]} pixels, expected {size[0]} x {size[1]}"
        except BankError as error:
            text = f"does not decode ({error})"
        if text:
            wrong.append(f"variant {contents.variants[row]} of key {contents.keys[row]!r} {text}")
    return wrong
