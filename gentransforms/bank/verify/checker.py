"""Check a bank against its manifest and the sidecars of its units, down to each image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gentransforms.bank.format.facts import Facts
from gentransforms.bank.format.images import map_file
from gentransforms.bank.format.manifest import hash_keys, is_export, read_manifest
from gentransforms.bank.format.unit import Unit, find_faults, list_units, read_sidecar, unit_schema
from gentransforms.bank.verify.export import verify_export
from gentransforms.bank.verify.repair import remove_units
from gentransforms.bank.verify.report import BankReport, Problem, damaged_units
from gentransforms.bank.verify.rows import Contents, check_images, check_rows
from gentransforms.errors import BankError, ConfigError
from gentransforms.hub.client import sha256

__all__ = ["BankReport", "Problem", "verify_bank"]


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

    An export is checked too: its files by the SHA-256 in ``bank.json``, its rows and images as those of units are.

    Args:
        path: directory of the bank, or of its export.
        images: decode them too.
        threads: that decode; None for one for each core, at most 8.
        repair: remove the files of damaged units, so that the next generate makes them again; each is checked once more before,
            since another process may have made it meanwhile. Units of other settings, or that do not belong to the bank, stay:
            they may be another bank's good ones.
        on_progress: called with the units done and their number after each.

    Raises:
        BankError: if there is no such directory, or a damaged unit cannot be removed.
        ConfigError: if `threads` is no positive integer, or an export is to be repaired.

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
    threads = threads or min(8, os.cpu_count() or 1)
    if is_export(directory):
        if repair:
            raise ConfigError(f"repair=True: {directory} is an export, which no generate makes again: export the bank again")
        return verify_export(directory, images, threads, on_progress)
    check = _Check(directory, images, threads)
    check.run(on_progress)
    removed = remove_units(directory, damaged_units(check.problems), check.still_damaged) if repair else ()
    return BankReport(
        path=str(directory), units=check.units, rows=check.rows, images=check.images,
        partials=sum(1 for _ in directory.glob(".*.partial")), problems=check.problems, removed=removed,
    )  # fmt: skip


class _Check:
    """One run over a bank; adds up as it goes."""

    def __init__(self, directory: Path, decode: bool, threads: int) -> None:
        self.directory, self.decode, self.threads = directory, decode, threads
        self.problems: list[Problem] = []
        self.units = self.rows = self.images = 0
        self.owner: dict[str | int, str] = {}  # which unit has a key
        self.sources: list[str | int] | None = []  # all, in order; None once a place is unknown
        self.facts: Facts | None = None
        self.seen: dict[str, tuple[int, int, int]] = {}  # which file it was that was checked, by the unit's name

    def run(self, on_progress: Callable[[int, int], None] | None) -> None:
        facts = self.facts = self._facts()
        found = list_units(self.directory)
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
            text = f"{unit.file} does not belong to this bank of {facts.count:,} sources in units of {facts.unit_size:,}: move it out"
            self.problems.append(Problem(unit.name, "plan", text))
        if not self.problems and self.sources is not None and hash_keys(self.sources) != facts.keys_digest:
            self.problems.append(Problem("", "keys", "the keys of the rows are not those of the source, or in another order"))

    def still_damaged(self, name: str) -> bool:
        """Check a unit alone once more; what is found takes the place of what was."""
        assert self.facts is not None, "without a manifest nobody can say what is damaged"
        unit = next(unit for unit in self.facts.units() if unit.name == name)
        again = _Check(self.directory, self.decode, self.threads)
        with ThreadPoolExecutor(self.threads) as pool:
            found = [Problem(name, kind, text) for kind, text in again._unit(unit, self.facts, pool)]
        if again.seen.get(name) == self.seen.get(name):  # the file is the same, so what it has in common with others is, too
            found += [problem for problem in self.problems if problem.unit == name and problem.kind == "duplicate" and problem not in found]
        self.problems = [problem for problem in self.problems if problem.unit != name] + found
        return name in damaged_units(found)

    def _facts(self) -> Facts | None:
        try:
            return Facts.read(read_manifest(self.directory), str(self.directory / "bank.json"))
        except BankError as error:
            self.problems.append(Problem("", "manifest", str(error)))
            return None

    def _unit(self, unit: Unit, facts: Facts | None, pool: ThreadPoolExecutor) -> Iterator[tuple[str, str]]:
        path = self.directory / unit.file
        try:
            state = path.stat()
        except OSError:
            yield "missing", f"{unit.file} is not there: run generate with the settings of this bank again"
            return
        size = state.st_size
        self.seen[unit.name] = (state.st_ino, state.st_mtime_ns, size)
        # Only now: generate, which may be at work, puts the sidecar in its place before the unit.
        sidecar = read_sidecar(self.directory, unit)
        self.units += 1
        faults = find_faults(unit, sidecar, size, None if facts is None else facts.digest)
        yield from faults
        if sidecar is not None and not any(kind == "size" for kind, _ in faults):
            try:
                intact = sha256(path) == sidecar.get("sha256")
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
            batches = map_file(path, unit_schema(facts.key_type))
            for batch in batches:
                batch.validate(full=True)
                for name in ("key", "variant", "seed", "attempt", "image"):
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
            yield from check_images(batches, contents, facts.image_size, pool)
            self.images += len(contents.keys)
