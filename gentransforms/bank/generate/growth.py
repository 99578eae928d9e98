"""A bank grows: more variants, or more sources. What is there stays, and the manifest's history says what it was before.

When a bank is extended, its units are renamed, ``former-unit-….arrow``: to everybody who reads the bank they are missing. A run
that makes a unit takes over the rows of its former one, and generates what is lacking.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gentransforms.bank.format.facts import Facts
from gentransforms.bank.format.index import decode_marks
from gentransforms.bank.format.locking import explain_write_error, locked, sync_directory, write_json
from gentransforms.bank.format.manifest import MANIFEST, hash_keys, hash_manifest, read_manifest
from gentransforms.bank.format.unit import INDEX, Row, Unit, is_done, list_entries, list_units, read_sidecar
from gentransforms.bank.generate.marks import is_same_image
from gentransforms.errors import BankError, SourceError
from gentransforms.sources import ImageSource, SourceSample
from gentransforms.sources.arrow import arrow
from gentransforms.sources.resemblance import MARK_SIZE

__all__ = [
    "Former", "GrownSource", "adopt_unit", "arrange_source", "can_extend", "check_not_extended", "extend_bank", "extend_manifest",
    "former_sidecar", "read_former", "remove_former", "retire_units",
]  # fmt: skip

KEYS = "keys.json"  # the keys in the bank's order, where that is not the source's
_FORMER = "former-"


@dataclass
class Former:
    """What is left of a unit of the time before the bank was extended."""

    variants: int = 0
    rows: list[Row] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    marks: dict[str | int, bytes] = field(default_factory=dict)  # of the sources that have rows

    def check_source(self, directory: Path, key: str | int, seen: bytes) -> None:
        """Compare the mark of a source just read with the one that it had; an empty one is that of a source that cannot be read.

        Raises:
            BankError: if it is another image, whose variants would stand beside those of the first.
        """
        expected = self.marks.get(key)
        if seen and expected and not is_same_image(seen, expected):
            raise BankError(
                f"{directory}: the source is not the one that this bank was made from: the image of {key!r} is a different one. "
                "Give the same images, or another directory for a new bank"
            )

    def tried(self, facts: Facts, max_attempts: int) -> dict[str | int, set[int]]:
        """Return, for each source that was read, the seed numbers that second and later attempts at its variants took."""
        found: dict[str | int, set[int]] = {}
        attempts = [(row.key, row.variant, row.attempt) for row in self.rows]
        attempts += [(entry["key"], entry["variant"], max_attempts - 1) for entry in self.rejected]
        for key, variant, last in attempts:
            found.setdefault(key, set()).update(facts.seed_number(variant, attempt) for attempt in range(1, last + 1))
        return found

    def merge(
        self, keys: Sequence[str | int], rows: list[Row], failed: list[dict[str, Any]], rejected: list[dict[str, Any]], variants: int
    ) -> None:
        """Add what there was to what a run made of the same unit, in order.

        A source that could be read then, and cannot now, keeps its images; the variants that it lacks count as rejected.
        """
        order = {key: i for i, key in enumerate(keys)}
        had = {row.key for row in self.rows} | {entry["key"] for entry in self.rejected}
        lost = [entry for entry in failed if entry["key"] in had]
        failed[:] = [entry for entry in failed if entry["key"] not in had]
        rejected += self.rejected
        rejected += [
            {"key": e["key"], "index": e["index"], "variant": v, "attempts": 0, "reason": f"its source could not be read: {e['reason']}"}
            for e in lost
            for v in range(self.variants, variants)
        ]
        rejected.sort(key=lambda entry: (order[entry["key"]], entry["variant"]))
        rows += self.rows
        rows.sort(key=lambda row: (order[row.key], row.variant))


class GrownSource(ImageSource):
    """A source in the order of a bank that has grown: first the keys that it had, then those that are new."""

    def __init__(self, source: ImageSource, places: Sequence[int]) -> None:
        self.source, self.places = source, list(places)
        super().__init__([source.keys[place] for place in places], inputs=source.inputs, description=source.description)

    def read_range(self, start: int, stop: int) -> Iterator[SourceSample | SourceError]:
        """Yield the samples of a range, in this order."""
        while start < stop:
            end = start + 1
            while end < stop and self.places[end] == self.places[end - 1] + 1:  # what follows in the source is read at once
                end += 1
            yield from self.source.read_range(self.places[start], self.places[end - 1] + 1)
            start = end


def arrange_source(source: ImageSource, directory: Path, extend: bool) -> ImageSource:
    """Return a source in the order of the bank that is there: its keys first, in their order, then new ones.

    Raises:
        BankError: if the bank has keys that the source lacks, and is to be extended.
    """
    if not (directory / MANIFEST).exists():
        return source
    facts = Facts.read(read_manifest(directory), str(directory / MANIFEST))
    if facts.key_type != source.key_type or hash_keys(source.keys[: facts.count]) == facts.keys_digest:
        return source
    try:
        known = json.loads((directory / KEYS).read_text())
    except (OSError, ValueError):
        known = _read_keys(directory, facts) if extend else None
    if known is None:
        return source
    places = {key: place for place, key in enumerate(source.keys)}
    lacking = [key for key in known if key not in places]
    if lacking and extend:
        raise BankError(
            f"{directory}: the source lacks {len(lacking)} of the bank's {len(known)} keys, such as {lacking[0]!r}: a bank is extended "
            "with a source that has all of them, and more"
        )
    if lacking:
        return source
    had = set(known)
    return GrownSource(source, [places[key] for key in known] + [place for place, key in enumerate(source.keys) if key not in had])


def can_extend(old: Mapping[str, Any], new: Mapping[str, Any], keys: Sequence[str | int]) -> bool:
    """Whether a bank differs from a call only in that the call wants more variants or has more sources."""
    count = old["source"]["count"]
    grown = {
        **old,
        "settings": {**old["settings"], "variants": new["settings"]["variants"]},
        "source": {**old["source"], "count": new["source"]["count"], "keys": new["source"]["keys"]},
    }
    fewer = new["settings"]["variants"] < old["settings"]["variants"] or new["source"]["count"] < count
    grown.pop("history", None)
    return not fewer and hash_manifest(grown) == hash_manifest(new) and hash_keys(keys[:count]) == old["source"]["keys"]


def extend_bank(directory: Path, new: Mapping[str, Any], source: ImageSource) -> dict[str, Any]:
    """Put the manifest of the extended bank in the place of the old one, which becomes part of its history; return it.

    Raises:
        BankError: if the directory cannot be written.
    """
    try:
        with locked(directory):
            old = read_manifest(directory)
            manifest = extend_manifest(old, new)
            if all(old[name] == new[name] for name in ("settings", "source")):
                return old  # another process was faster
            if isinstance(source, GrownSource) or (directory / KEYS).exists():
                write_json(directory / KEYS, list(source.keys))
            (directory / INDEX).unlink(missing_ok=True)
            write_json(directory / MANIFEST, manifest, indent=2)
            sync_directory(directory)
    except OSError as error:
        raise explain_write_error(error, directory) from error
    return manifest


def extend_manifest(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of an extended bank: the settings, source and info of `new`, and what it was before in its history."""
    before = {
        "variants": old["settings"]["variants"], "count": old["source"]["count"], "keys": old["source"]["keys"],
        "digest": hash_manifest(old), "until": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    return {**old, **{name: new[name] for name in ("settings", "source", "info")}, "history": [*old.get("history", []), before]}


def check_not_extended(directory: Path, facts: Facts) -> None:
    """Check, with the bank's lock held, that it still is the one that a run began with.

    Raises:
        BankError: if another process has extended it: its units may be newer than those of this run.
    """
    if hash_manifest(read_manifest(directory)) != facts.digest:
        raise BankError(
            f"{directory}: the bank was extended meanwhile by another process, so this run wrote nothing more: repeat the call, with the "
            f"settings and sources that {MANIFEST} has now"
        )


def retire_units(directory: Path, facts: Facts) -> None:
    """Rename the units of the time before the bank was extended; remove those that were taken over already."""
    earlier = {before.digest for before in facts.history}
    if not earlier:
        return
    try:
        with locked(directory):
            for unit in list_units(directory):
                sidecar = read_sidecar(directory, unit)
                if sidecar is not None and sidecar.get("settings") in earlier:
                    for name in (unit.file, unit.sidecar):  # the Arrow file first: a unit is there if that is
                        (directory / name).replace(directory / f"{_FORMER}{name}")
            for path in directory.glob(f"{_FORMER}unit-*.arrow"):
                start, stop = map(int, path.stem.removeprefix(f"{_FORMER}unit-").split("-"))
                if is_done(directory, Unit(start, stop), facts.digest):
                    remove_former(directory, Unit(start, stop))
    except OSError as error:
        raise explain_write_error(error, directory) from error


def remove_former(directory: Path, unit: Unit) -> None:
    """Remove the two files of a former unit, if they are there."""
    for name in (unit.file, unit.sidecar):
        with contextlib.suppress(OSError):
            (directory / f"{_FORMER}{name}").unlink()


def former_sidecar(directory: Path, unit: Unit) -> dict[str, Any] | None:
    """Return what is said beside a former unit that is whole; None if there is none."""
    try:
        sidecar = json.loads((directory / f"{_FORMER}{unit.sidecar}").read_text())
        whole = isinstance(sidecar, dict) and (directory / f"{_FORMER}{unit.file}").stat().st_size == sidecar.get("bytes")
    except (OSError, ValueError):
        return None
    return sidecar if whole else None


def adopt_unit(directory: Path, unit: Unit, facts: Facts) -> bool:
    """Take over a former unit that lacks nothing as it is; return whether there was one."""
    sidecar = former_sidecar(directory, unit)
    if sidecar is None or _variants(sidecar, facts) != facts.variants or list_entries(sidecar, "failed"):
        return False
    try:
        with locked(directory):
            check_not_extended(directory, facts)
            if not is_done(directory, unit, facts.digest):
                write_json(directory / unit.sidecar, {**sidecar, "settings": facts.digest})
                (directory / f"{_FORMER}{unit.file}").replace(directory / unit.file)
                sync_directory(directory)
    except OSError as error:
        raise explain_write_error(error, directory) from error
    remove_former(directory, unit)
    return True


def read_former(directory: Path, unit: Unit, facts: Facts) -> Former:
    """Return what a former unit holds; nothing if there is none, or it is damaged."""
    sidecar = former_sidecar(directory, unit)
    variants = 0 if sidecar is None else _variants(sidecar, facts)
    if sidecar is None or not variants:
        return Former()
    with arrow().memory_map(str(directory / f"{_FORMER}{unit.file}")) as file:
        table = arrow().ipc.open_stream(file).read_all().to_pylist()
    rows = [Row(row["key"], row["variant"], row["seed"], row["attempt"], row["image"]["bytes"]) for row in table]
    keys, marks = list(dict.fromkeys(row.key for row in rows)), decode_marks(sidecar) or b""
    parts = [marks[start : start + MARK_SIZE] for start in range(0, len(marks), MARK_SIZE)]
    known = dict(zip(keys, parts, strict=True)) if len(marks) == len(keys) * MARK_SIZE else {}
    return Former(variants, rows, list_entries(sidecar, "failed"), list_entries(sidecar, "rejected"), known)


def _variants(sidecar: Mapping[str, Any], facts: Facts) -> int:
    """How many variants of each source a former unit was to have; 0 if it is none of this bank's."""
    return next((before.variants for before in facts.history if before.digest == sidecar.get("settings")), 0)


def _read_keys(directory: Path, facts: Facts) -> list[str | int]:
    """Return the keys of a bank in order, out of its units."""
    keys: list[str | int] = []
    for unit in facts.units():
        sidecar = read_sidecar(directory, unit)
        if sidecar is None or not is_done(directory, unit):
            raise BankError(
                f"{directory}: unfinished, so that nobody knows which of the sources are new: finish it with the source that it was begun "
                "with, then extend it"
            )
        with arrow().memory_map(str(directory / unit.file)) as file:
            batches: Iterable[Any] = list(arrow().ipc.open_stream(file))
            named = list(dict.fromkeys(key for batch in batches for key in batch.column("key").to_pylist()))
        had = set(named)
        others = {entry["index"]: entry["key"] for entry in list_entries(sidecar, "failed", "rejected") if entry["key"] not in had}
        for index in sorted(others):
            named.insert(index - unit.start, others[index])
        keys += named
    if hash_keys(keys) != facts.keys_digest:
        raise BankError(f"{directory}: its units do not hold the keys that {MANIFEST} speaks of: `gentransforms bank verify` says more")
    return keys
