"""Match a source with the bank that it fills: its keys, which may come in another order, and what its images look like."""

from __future__ import annotations

import base64
import json
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gentransforms.bank.format.index import build_index, decode_marks, list_sizes, read_index
from gentransforms.bank.format.manifest import MANIFEST, Facts, has_manifest, hash_keys, read_manifest
from gentransforms.bank.format.unit import FORMER, Unit, list_entries, read_sidecar
from gentransforms.bank.generate.inputs import digest_inputs
from gentransforms.bank.generate.reading import read_samples
from gentransforms.errors import BankError, ImageError, OtherBankError, SourceError
from gentransforms.images import check_range, to_rows
from gentransforms.sources.base import ImageSource, SourceSample
from gentransforms.sources.keys import tell_other_root
from gentransforms.sources.resemblance import MARK_SIZE, mark

__all__ = [
    "KEYS", "ArrangedSource", "arrange_source", "changed_sample", "check_marks", "compare_keys", "read_marks", "sample_more",
    "sample_sources",
]  # fmt: skip

KEYS = "keys.json"  # the keys in the bank's order, if that is not the source's
_SHOWN = 3  # keys in a message
# How many sources are read when a run begins, and compared with those of earlier runs.
_SAMPLES = 64
_ENTRIES = {"index", "key", "size", "mark", "inputs"}  # of a sample
# Other versions of a decoder differ by a grey level here and there; some cell of a different image differs by more.
_TOLERANCE = 3


class ArrangedSource(ImageSource):
    """A source in the order of a bank: the bank's keys first, then new ones. A key whose place is None is gone from the source."""

    def __init__(self, source: ImageSource, keys: Sequence[str | int], places: Sequence[int | None]) -> None:
        self.source, self.places = source, list(places)
        super().__init__(keys, inputs=source.inputs, description=source.description)

    def read_range(self, start: int, stop: int) -> Iterator[SourceSample | SourceError]:
        """Yield the samples of a range, in this order."""
        while start < stop:
            first, end = self.places[start], start + 1
            if first is None:
                yield SourceError("is gone from the source; it could not be read by an earlier run either")
            else:
                while end < stop and self.places[end] == first + end - start:  # neighbours in the source are read together
                    end += 1
                yield from self.source.read_range(first, first + end - start)
            start = end


def arrange_source(source: ImageSource, directory: Path, extend: bool) -> ImageSource:
    """Return a source in the order of an existing bank: the bank's keys first, in their order, then new ones.

    Sources that could not be read, and are gone since, keep their places: the bank has no images of them.

    Raises:
        OtherBankError: if the bank is to be extended, and the source lacks other keys, or the bank's are not known.
    """
    if not has_manifest(directory):
        return source
    facts = Facts.read(read_manifest(directory), str(directory / MANIFEST))
    if facts.key_type != source.key_type or hash_keys(source.keys[: facts.count]) == facts.keys_digest:
        return source
    failed = {} if isinstance(source.keys, range) else _list_failed(directory, facts)  # row numbers shift if a row is removed
    own: list[str | int] = list(source.keys)
    places = {key: place for place, key in enumerate(own)}
    known = _restore_keys(source, failed, places, facts) or _read_keys(directory, facts)
    if known is None:
        if not extend:
            return source
        raise OtherBankError(
            f"{directory}: unfinished, and the source begins with other keys than the bank's, so it is not known which are new: "
            "finish the bank with the source that it was started with, then extend it"
        )
    lacking, excused = [key for key in known if key not in places], set(failed.values())
    refused = [key for key in lacking if key not in excused]
    if refused and extend:
        raise OtherBankError(
            f"{directory}: the source lacks {len(refused)} of the bank's {len(known)} keys ({_show(refused)}): a bank can only be extended "
            "with a source that has all of them; put these back"
        )
    if refused:
        return source
    if lacking:
        warnings.warn(
            f"{directory}: {_count(lacking, 'source')} that could not be read {'is' if len(lacking) == 1 else 'are'} gone "
            f"({_show(lacking)}): the bank still lists {'it' if len(lacking) == 1 else 'them'} as failed",
            stacklevel=4,
        )
    had = set(known)
    keys = [*known, *(key for key in source.keys if key not in had)]
    return ArrangedSource(source, keys, [places.get(key) for key in keys])


def compare_keys(source: ImageSource, directory: Path, facts: Facts) -> tuple[str, bool]:
    """Return how the keys of a source differ from a bank's, as a sentence, and whether some are missing from the source."""
    known, sizes = _read_keys(directory, facts), list_sizes(directory, facts)
    some = known or build_index(directory, facts, [unit for unit in facts.units() if unit.file in sizes], sizes).lookup.list_keys()
    ours, theirs = set(source.keys), set(some)
    missing = [key for key in some if key not in ours]
    new = [] if known is None else [key for key in source.keys if key not in theirs]
    parts = []
    if missing:
        parts.append(f"{len(missing)} of the bank's {'is' if len(missing) == 1 else 'are'} missing from the source ({_show(missing)})")
    if new:
        parts.append(f"{len(new)} {'is' if len(new) == 1 else 'are'} new ({_show(new)})")
    text = ", ".join(parts) or ("in another order" if known is not None else "not those that the bank was started with")
    root = tell_other_root(source.keys[0], some, source.keys[1:_SAMPLES]) if missing and source.keys[0] not in theirs else ""
    return f"source keys: {text}" + (f"; {source.keys[0]!r} is not in the bank, but {root}" if root else ""), bool(missing)


def sample_sources(source: ImageSource) -> list[dict[str, Any]]:
    """Return JSON-able descriptions of up to 64 sources, spread evenly, without those that cannot be read.

    Example:
        >>> import torch
        >>> from gentransforms.sources.map_style import MapStyleSource
        >>> samples = sample_sources(MapStyleSource([torch.full((3, 4, 6), 7, dtype=torch.uint8)] * 1000))
        >>> len(samples), samples[1]["index"], samples[1]["size"]
        (64, 15, [4, 6])
    """
    left_out: dict[str, str] = {}
    found = _describe(source, _spread(len(source.keys)), left_out)
    for name, kind in left_out.items():
        warnings.warn(
            f"input {name!r}: a later run cannot compare values of the class {kind}, whose repr shows an address in memory, and takes them "
            "for the same: give a tensor, an array, a PIL image, text or numbers, or a class whose repr says what it holds",
            stacklevel=5,
        )
    return found


def sample_more(source: ImageSource, samples: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the samples of a bank of `count` sources that now has more: up to 64 again, some of the new sources among them."""
    new = _describe(source, [place for place in _spread(len(source.keys)) if place >= count])
    kept = _spread(len(samples), _SAMPLES - len(new))
    return [*(dict(samples[i]) for i in kept), *new]


def changed_sample(source: ImageSource, samples: Any, where: str) -> str:
    """Return how a source differs from the samples of an earlier run, as a sentence; empty if it does not.

    Raises:
        OtherBankError: if the samples are not those of this version of the library; `where` names the manifest.
    """
    if not isinstance(samples, list) or not all(_is_sample(old, len(source.keys)) for old in samples):
        raise OtherBankError(
            f"{where}: info samples is not what this version of gentransforms writes: the file is damaged or was edited, or another "
            "version started the bank. Put a copy of it back, or start a new bank in another directory; or, if you are sure that the "
            "source is the same, remove samples from info, and checksum"
        )
    for old in samples:
        for new in _describe(source, [old["index"]]):
            if new["size"] != old["size"]:
                return f"the image of {old['key']!r} is a different one: {new['size']} pixels, not {old['size']}"
            distance = _distance(*(base64.b64decode(sample["mark"]) for sample in (new, old)))
            if distance > _TOLERANCE:
                return f"the image of {old['key']!r} is a different one: its colours differ by up to {distance} levels"
            if new["inputs"] != old["inputs"]:
                return f"the inputs of {old['key']!r} ({', '.join(source.inputs)}) are different"
    return ""


def read_marks(directory: Path, unit: Unit, facts: Facts, keys: Sequence[str | int]) -> dict[str | int, bytes]:
    """Return the marks of a unit's sources as an earlier run recorded them, even if the unit is damaged or to be replaced.

    Args:
        directory: directory of the bank.
        unit: the unit.
        facts: the facts of the bank's manifest.
        keys: the keys of its sources.
    """
    for prefix in (FORMER, ""):
        sidecar = read_sidecar(directory, unit, prefix) or {}
        variants, marks = facts.variants_at(sidecar.get("settings")), decode_marks(sidecar)
        if not variants or marks is None:
            continue
        rejected = Counter(entry["key"] for entry in list_entries(sidecar, "rejected"))
        failed = {entry["key"] for entry in list_entries(sidecar, "failed")}
        marked = [key for key in keys if key not in failed and rejected[key] < variants]  # those that have rows
        if len(marks) == len(marked) * MARK_SIZE:
            return {key: marks[i * MARK_SIZE : (i + 1) * MARK_SIZE] for i, key in enumerate(marked)}
    return {}


def check_marks(directory: Path, keys: Sequence[str | int], seen: Sequence[bytes], recorded: Mapping[str | int, bytes]) -> None:
    """Compare the marks of sources that were just read with those that an earlier run recorded.

    Args:
        directory: directory of the bank.
        keys: keys of the sources.
        seen: their marks; empty for a source that cannot be read.
        recorded: the result of `read_marks`.

    Raises:
        OtherBankError: if one is a different image, whose variants would replace those of the first, or stand beside them.
    """
    for key, found in zip(keys, seen, strict=True):
        if found and key in recorded and _distance(found, recorded[key]) > _TOLERANCE:
            raise OtherBankError(
                f"{directory}: the source is not the one that this bank was made from: the image of {key!r} is a different one. "
                "Give the same images, or another directory for a new bank"
            )


def _list_failed(directory: Path, facts: Facts) -> dict[int, str | int]:
    """Return the sources of a bank that could not be read: their keys by their places."""
    sidecars = (read_sidecar(directory, unit, prefix) for unit in facts.units() for prefix in ("", FORMER))
    entries = [entry for sidecar in sidecars for entry in list_entries(sidecar or {}, "failed")]
    return {entry["index"]: entry["key"] for entry in entries if type(entry.get("index")) is int}


def _restore_keys(
    source: ImageSource, failed: Mapping[int, str | int], places: Collection[str | int], facts: Facts
) -> list[str | int] | None:
    """Return the bank's keys if they are the source's and, in their places, those of failed sources that are gone; else None."""
    keys: list[str | int] = list(source.keys)
    for place in sorted(place for place, key in failed.items() if key not in places):
        keys.insert(place, failed[place])
    return keys[: facts.count] if hash_keys(keys[: facts.count]) == facts.keys_digest else None


def _read_keys(directory: Path, facts: Facts) -> list[str | int] | None:
    """Return the keys of a bank, in its order; None if it is unfinished and nothing else says what they are.

    Raises:
        BankError: if a unit is damaged.
    """
    try:
        keys: list[str | int] = json.loads((directory / KEYS).read_text())
    except (OSError, ValueError):
        try:
            index = read_index(directory, facts, thorough=True)
        except (BankError, FileNotFoundError):
            sizes, units = list_sizes(directory, facts), facts.units()
            if not all(unit.file in sizes for unit in units):
                return None
            index = build_index(directory, facts, units, sizes)
        keys = index.lookup.list_keys()
        had = set(keys)
        others = {entry.get("index", 0): entry["key"] for entry in (*index.failed, *index.rejected) if entry["key"] not in had}
        for place in sorted(others):
            keys.insert(place, others[place])
    if hash_keys(keys[: facts.count]) != facts.keys_digest:
        raise BankError(
            f"{directory}: its keys are not those that {MANIFEST} was written for: `gentransforms bank verify` says what is wrong"
        )
    return keys[: facts.count]


def _describe(source: ImageSource, places: Sequence[int], left_out: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Describe the sources at these places, without those that cannot be read: the run says why."""
    return [sample for sample in (_describe_one(source, place, left_out) for place in places) if sample is not None]


def _describe_one(source: ImageSource, place: int, left_out: dict[str, str] | None) -> dict[str, Any] | None:
    (sample,) = read_samples(source, range(place, place + 1))
    if isinstance(sample, SourceError):
        return None
    try:
        rows = to_rows(sample.image)
        check_range(rows)
    except ImageError:
        return None
    if len(rows) != 1:
        return None
    digest, loose = digest_inputs(sample.inputs)
    if left_out is not None:
        left_out.update(loose)
    seen = base64.b64encode(mark(rows[0]).tobytes()).decode()
    return {"index": place, "key": source.keys[place], "size": list(rows.shape[-2:]), "mark": seen, "inputs": digest}


def _spread(count: int, most: int = _SAMPLES) -> list[int]:
    """Return up to `most` of the places 0 to count - 1, spread evenly; the first and the last are among them."""
    if count <= most or most < 2:
        return list(range(min(count, most)))
    return [i * (count - 1) // (most - 1) for i in range(most)]


def _is_sample(old: Any, count: int) -> bool:
    """Return whether a sample of an earlier run can be compared with a source of at least `count` images."""
    if not isinstance(old, dict) or not old.keys() >= _ENTRIES:
        return False
    try:
        whole = len(base64.b64decode(old["mark"], validate=True)) == MARK_SIZE
    except (TypeError, ValueError):
        return False
    return whole and type(old["index"]) is int and 0 <= old["index"] < count


def _distance(seen: bytes, expected: bytes) -> int:
    """Return the largest difference between two marks in any cell, in grey levels."""
    a, b = (np.frombuffer(one, np.uint8).astype(np.int16) for one in (seen, expected))
    return int(np.abs(a - b).max())


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things):,} {name}{'' if len(things) == 1 else 's'}"


def _show(keys: Sequence[str | int]) -> str:
    return ", ".join(map(repr, keys[:_SHOWN])) + (", …" if len(keys) > _SHOWN else "")
