"""Check a bank against its manifest and the sidecars of its units, down to each image."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gentransforms.bank.facts import Facts, facts_of
from gentransforms.bank.layout import Unit, found_units, keys_digest, read_manifest, read_sidecar, schema_of
from gentransforms.bank.rows import Contents, check_rows
from gentransforms.bank.segments import Images, decode_rgb, map_file
from gentransforms.errors import BankError, ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BankReport", "Problem", "unit_faults", "verify_bank"]

# What `repair` leaves alone: there is nothing to remove, or removing could destroy what is good.
_NOT_REPAIRED = ("missing", "settings", "plan", "manifest", "keys")
_SHOWN = 10  # of a kind, in one unit or in the text
_CHUNK = 64  # images that a thread decodes at once


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        unit: the name of the unit; empty if it is the bank.
        kind: one word: manifest, missing, sidecar, settings, size, checksum, arrow, rows, order, duplicate, variant, seed, image,
            plan or keys.
        text: what was found, and what was expected.
    """

    unit: str
    kind: str
    text: str


@dataclass(frozen=True)
class BankReport:
    """What `verify_bank` found.

    Attributes:
        path: of the bank.
        units: how many were looked at.
        rows: in them.
        images: how many were decoded.
        partials: files that a killed process left behind; they do no harm.
        problems: everything that is wrong.
        removed: names of the units that `repair` removed.

    Example:
        >>> print(BankReport("bank", units=1, rows=10, images=10, problems=[Problem("unit-0", "checksum", "it differs")]))
        bank: 1 unit, 10 rows, 10 images decoded
        checksum: unit-0: it differs
        1 problem
    """

    path: str
    units: int = 0
    rows: int = 0
    images: int = 0
    partials: int = 0
    problems: list[Problem] | tuple[Problem, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"{self.path}: {_count(self.units, 'unit')}, {_count(self.rows, 'row')}, {_count(self.images, 'image')} decoded"]
        if self.partials:
            lines.append(f"{_count(self.partials, 'unfinished file')} left behind, which does no harm")
        shown: Counter[str] = Counter()
        for problem in self.problems:
            shown[problem.kind] += 1
            if shown[problem.kind] <= _SHOWN:
                lines.append(": ".join(part for part in (problem.kind, problem.unit, problem.text) if part))
        lines += [f"{kind}: … and {count - _SHOWN:,} more" for kind, count in shown.items() if count > _SHOWN]
        lines.append(_count(len(self.problems), "problem") if self.problems else "no problem")
        if self.removed:
            lines.append(f"{_count(len(self.removed), 'unit')} removed: run generate with the settings of this bank again")
        return "\n".join(lines)


def verify_bank(
    path: str | Path,
    *,
    images: bool = True,
    threads: int | None = None,
    repair: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> BankReport:
    """Check a bank, finished or not, whatever its state; one unit after another, so that memory stays bounded.

    Every unit: that it is there, as long as its sidecar says, of its SHA-256 and of the bank's settings; that its rows
    are each source's variants in order, none twice, with the seeds that follow from their keys; that every image
    decodes to the bank's size.

    Args:
        path: directory of the bank.
        images: decode them too.
        threads: that decode; None for one for each core, at most 8.
        repair: remove the files of damaged units, so that the next generate makes them again. Units of other settings,
            or that do not belong to the bank, stay: they may be another bank's good ones.
        on_progress: called with the units done and their number after each.

    Raises:
        BankError: if there is no such directory.
        ConfigError: if `threads` is no positive integer.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = verify_bank(folder)
        >>> report.ok, report.problems[0].kind
        (False, 'manifest')
    """
    directory = Path(path)
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ConfigError(f"threads={threads!r}: expected a positive integer or None")
    if not directory.is_dir():
        raise BankError(f"{directory}: no such directory: expected a bank made by generate_bank or `gentransforms generate`")
    check = _Check(directory, images, threads or min(8, os.cpu_count() or 1))
    check.run(on_progress)
    removed = _remove(directory, check.problems) if repair else ()
    return BankReport(
        path=str(directory), units=check.units, rows=check.rows, images=check.images,
        partials=sum(1 for _ in directory.glob(".*.partial")), problems=check.problems, removed=removed,
    )  # fmt: skip


def unit_faults(unit: Unit, sidecar: dict[str, Any] | None, size: int, digest: str | None) -> list[tuple[str, str]]:
    """Return what is wrong with a unit's file by its sidecar alone, as (kind, text).

    Args:
        unit: whose.
        sidecar: as read; None if it could not be.
        size: of the Arrow file in bytes.
        digest: of the bank's settings; None if unknown.

    Example:
        >>> unit_faults(Unit(0, 2), None, 100, None)
        [('sidecar', 'unit-000000000-000000002.json is missing or cannot be read')]
    """
    if sidecar is None:
        return [("sidecar", f"{unit.sidecar} is missing or cannot be read")]
    faults = []
    if sidecar.get("unit") != unit.name:
        faults.append(("sidecar", f"{unit.sidecar} describes {sidecar.get('unit')!r}"))
    if digest is not None and sidecar.get("settings") != digest:
        faults.append((
            "settings", f"{unit.file} was made with other settings than the bank's: put the right bank.json back, or delete the unit",
        ))  # fmt: skip
    if sidecar.get("bytes") != size:
        faults.append(("size", f"{unit.file} has {size:,} bytes, and its sidecar says {_shown(sidecar.get('bytes'))}"))
    return faults


class _Check:
    """One run over a bank; adds up as it goes."""

    def __init__(self, directory: Path, decode: bool, threads: int) -> None:
        self.directory, self.decode, self.threads = directory, decode, threads
        self.problems: list[Problem] = []
        self.units = self.rows = self.images = 0
        self.owner: dict[str | int, str] = {}  # which unit has a key
        self.sources: list[str | int] | None = []  # all, in order; None once a place is unknown

    def run(self, on_progress: Callable[[int, int], None] | None) -> None:
        facts = self._facts()
        found = found_units(self.directory)
        planned = found if facts is None else facts.units()
        with ThreadPoolExecutor(self.threads) as pool:
            for done, unit in enumerate(planned, 1):
                for kind, text in self._unit(unit, facts, pool):
                    self.problems.append(Problem(unit.name, kind, text))
                if on_progress is not None:
                    on_progress(done, len(planned))
        if facts is None:
            return
        for unit in sorted(set(found) - set(planned)):
            text = f"{unit.file} does not belong to this bank of {facts.count:,} sources in units of {facts.unit_size:,}: delete it"
            self.problems.append(Problem(unit.name, "plan", text))
        if not self.problems and self.sources is not None and keys_digest(self.sources) != facts.keys_digest:
            self.problems.append(Problem("", "keys", "the keys of the rows are not those of the source, or in another order"))

    def _facts(self) -> Facts | None:
        try:
            return facts_of(read_manifest(self.directory), str(self.directory / "bank.json"))
        except BankError as error:
            self.problems.append(Problem("", "manifest", str(error)))
            return None

    def _unit(self, unit: Unit, facts: Facts | None, pool: ThreadPoolExecutor) -> Iterator[tuple[str, str]]:
        path, sidecar = self.directory / unit.file, read_sidecar(self.directory, unit)
        try:
            size = path.stat().st_size
        except OSError:
            yield "missing", f"{unit.file} is not there: run generate with the settings of this bank again"
            return
        self.units += 1
        faults = unit_faults(unit, sidecar, size, None if facts is None else facts.digest)
        yield from faults
        if sidecar is not None and not any(kind == "size" for kind, _ in faults):
            try:
                intact = _sha256(path) == sidecar.get("sha256")
            except OSError as error:
                yield "arrow", f"{unit.file} cannot be read ({error.strerror or error})"
                return
            if not intact:
                faults.append(("checksum", ""))
                yield "checksum", f"{unit.file} has other bytes than were written: its SHA-256 differs from its sidecar's"
        # What is known to be damaged is not parsed.
        if facts is None or any(kind in ("size", "checksum", "settings") for kind, _ in faults):
            self.sources = None
            return
        yield from self._contents(unit, path, sidecar or {}, facts, pool)

    def _contents(
        self, unit: Unit, path: Path, sidecar: dict[str, Any], facts: Facts, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[str, str]]:
        try:
            batches = map_file(path, schema_of(facts.key_type))
            for batch in batches:
                batch.validate(full=True)
                for name in ("key", "variant", "seed", "draw", "image"):
                    if batch.column(name).null_count:
                        raise BankError(f"{path}: has rows without {name}")
        except (BankError, ValueError) as error:
            self.sources = None
            yield "arrow", str(error)
            return
        contents = Contents.of(batches)
        self.rows += len(contents.keys)
        yield from check_rows(contents, unit, sidecar, facts)
        order = contents.sources(unit, sidecar)
        if order is None or self.sources is None:
            self.sources = None
        else:
            self.sources += order
        shared: dict[str, list[str | int]] = {}
        for key in dict.fromkeys(contents.keys):
            other = self.owner.setdefault(key, unit.name)
            if other != unit.name:
                shared.setdefault(other, []).append(key)
        for other, keys in shared.items():  # which of the two is right cannot be told: both are made again
            text = f"has rows of key {keys[0]!r}" + (f" (and of {len(keys) - 1:,} more)" if len(keys) > 1 else "")
            self.problems.append(Problem(other, "duplicate", f"{text}, and so has {unit.name}"))
            yield "duplicate", f"{text}, and so has {other}"
        if self.decode:
            yield from self._images(batches, contents, facts, pool)

    def _images(
        self, batches: list[pa.RecordBatch], contents: Contents, facts: Facts, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[str, str]]:
        images = Images([("", batch) for batch in batches])
        bad = 0
        for texts in pool.map(lambda start: _decode(images, contents, start, facts.image_size), range(0, len(images), _CHUNK)):
            for text in texts:
                bad += 1
                if bad <= _SHOWN:
                    yield "image", text
        if bad > _SHOWN:
            yield "image", f"… and {bad - _SHOWN:,} more in this unit"
        self.images += len(images)


def _decode(images: Images, contents: Contents, start: int, size: tuple[int, int]) -> list[str]:
    """Return what is wrong with the images from `start` on."""
    wrong = []
    for row in range(start, min(start + _CHUNK, len(images))):
        text = ""
        try:
            shape = tuple(decode_rgb(images.one(row)).shape)
            if shape[1:] != size:
                text = f"is {shape[1]} x {shape[2]} pixels, expected {size[0]} x {size[1]}"
        except BankError as error:
            text = f"does not decode ({error})"
        if text:
            wrong.append(f"variant {contents.variants[row]} of key {contents.keys[row]!r} {text}")
    return wrong


def _remove(directory: Path, problems: list[Problem]) -> tuple[str, ...]:
    if any(problem.kind == "manifest" for problem in problems):
        return ()  # without it nobody can say what is damaged
    spared = {problem.unit for problem in problems if problem.kind in _NOT_REPAIRED}
    names = tuple(sorted({problem.unit for problem in problems} - spared))
    for name in names:
        for suffix in (".arrow", ".json"):
            with contextlib.suppress(FileNotFoundError):
                (directory / f"{name}{suffix}").unlink()
    return names


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _shown(value: object) -> str:
    return f"{value:,}" if type(value) is int else repr(value)
