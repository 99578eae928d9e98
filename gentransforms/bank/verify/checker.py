"""Check a bank against its manifest and sidecars, or an export against its manifest, including every image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentransforms.bank.format.exported import is_export, list_exported_files, name_marks
from gentransforms.bank.format.images import map_file
from gentransforms.bank.format.index import write_index
from gentransforms.bank.format.manifest import MANIFEST, Facts, check_copy, find_manifest, hash_keys, repair_manifest
from gentransforms.bank.format.unit import Unit, find_faults, list_entries, list_units, read_sidecar, unit_schema
from gentransforms.bank.verify.report import BankReport, Problem, damaged_units, remove_index, remove_units
from gentransforms.bank.verify.rows import NO_ROWS, Contents, IndexCheck, WithoutRows, check_images, check_rows
from gentransforms.errors import BankError, ConfigError
from gentransforms.hub.client import sha256
from gentransforms.paths import local_path
from gentransforms.sources.arrow import arrow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["BankReport", "Checker", "Problem", "verify_bank"]

_ROWS = 1000  # rows of a Parquet file that are read at once
_MANY = 10  # images; if none of so many can be decoded, the fault may be the decoder's
Fault = tuple[str, str]  # kind and text


def verify_bank(
    path: str | Path,
    *,
    images: bool = True,
    threads: int | None = None,
    repair: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> BankReport:
    """Check a bank in any state, one unit after another, so that memory stays bounded.

    Each unit must exist, have the size and SHA-256 that its sidecar says, and have the bank's settings. Its rows must be all
    variants of each source in order, each once and with the right seed, and every image must decode to the right size. The index,
    if there is one, must agree with the units.

    The files of an export must have the SHA-256 that ``bank.json`` says; its rows and images are checked like those of units.

    Args:
        path: directory of a bank or of its export.
        images: whether images are decoded.
        threads: number of threads that decode; by default one per core, at most 8.
        repair: whether the files of damaged units are removed, so that the next run of generate makes them again. Each is checked
            once more first, because another process may have replaced it meanwhile. Units that have other settings or do not
            belong to the bank stay, because they may be intact units of another bank. A wrong index is removed, and rebuilt if
            all units are intact. A manifest that is missing or damaged is restored from its copy, and the copy from it.
        on_progress: called after each unit with the number of units done and their total number.

    Raises:
        BankError: if there is no such directory, a damaged unit cannot be removed, or units would be removed although the fault may
            be this machine's, because it decodes none of their images.
        ConfigError: if `threads` is not a positive integer, or an export is to be repaired.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = verify_bank(folder)
        >>> report.ok, report.problems[0].kind
        (False, 'manifest')
    """
    directory = local_path(path)
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ConfigError(f"threads={threads!r}: expected a positive integer or None")
    if not directory.is_dir():
        raise BankError(f"{directory}: no such directory: expected a bank made by generate_bank or `gentransforms generate`")
    threads = threads or min(8, os.cpu_count() or 1)
    if repair and is_export(directory):
        raise ConfigError(
            f"repair=True: {directory} is an export, whose files generate cannot make again: verify it without repair, and "
            "download the damaged files again, or export the bank again"
        )
    with Checker(directory, images, threads) as checker:
        if is_export(directory):
            checker.check_export(on_progress)
            return BankReport(str(directory), checker.files, checker.rows, checker.images, problems=checker.problems, exported=True)
        checker.check_units(on_progress)
        if repair:
            checker.check_decoder()
        repaired = repair and any(problem.kind == "copy" for problem in checker.problems)
        if repaired:
            repair_manifest(directory)
            checker.problems[:] = [problem for problem in checker.problems if problem.kind != "copy"]
        removed, rebuilt = (remove_units(directory, damaged_units(checker.problems), checker.check_again), False) if repair else ((), False)
        if repair and any(problem.kind == "index" for problem in checker.problems):
            remove_index(directory)
            rebuilt = all(problem.kind == "index" for problem in checker.problems) and write_index(directory)
        if rebuilt:
            checker.problems.clear()
    return BankReport(
        path=str(directory), units=checker.files, rows=checker.rows, images=checker.images,
        partials=sum(1 for _ in directory.glob(".*.partial")), problems=checker.problems, removed=removed, index_rebuilt=rebuilt,
        manifest_repaired=repaired, command=checker.command,
    )  # fmt: skip


class Checker:
    """One check of the files of a bank or of its export. Memory is bounded except for the keys.

    Args:
        directory: directory of the bank or of its export.
        decode: whether images are decoded.
        threads: number of threads that decode.

    Attributes:
        problems: the problems found so far.
        files, rows, images: how many were checked so far.
        undecoded: how many of the images cannot be decoded, or have another size.
    """

    def __init__(self, directory: Path, decode: bool, threads: int) -> None:
        self.directory, self.decode, self.threads = directory, decode, threads
        self.problems: list[Problem] = []
        self.files = self.rows = self.images = self.undecoded = 0
        self._owners: dict[str | int, str] = {}  # the file that has a key
        self._sources: list[str | int] | None = []  # all so far, in order; None after one whose place is unknown
        self._expect(None)
        self._seen: dict[str, tuple[int, int, int]] = {}  # identity of the file that was checked, by the name of its unit
        self._facts: Facts | None = None
        self._manifest: dict[str, Any] = {}
        try:
            self._manifest, _ = find_manifest(directory)
            kind, text = check_copy(directory)
            if kind:
                self.problems.append(Problem("", kind, f"{text}: --repair restores it" if kind == "copy" else text))
            self._facts = Facts.read(self._manifest, str(directory / MANIFEST))
        except BankError as error:
            self.problems.append(Problem("", "manifest", str(error)))

    @property
    def command(self) -> str:
        """The command that makes the units of the bank."""
        return self._facts.command if self._facts is not None else "generate"

    def __enter__(self) -> Checker:
        self._pool = ThreadPoolExecutor(self.threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def check_units(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Check all units of a bank, and its index."""
        facts, found = self._facts, list_units(self.directory)
        planned = found if facts is None else facts.units()
        index = None if facts is None else IndexCheck(self.directory, facts)
        for done, unit in enumerate(planned, 1):
            self._add(unit.name, self._check_unit(unit, index))
            if on_progress is not None:
                on_progress(done, len(planned))
        if facts is None or index is None:
            return
        for unit in sorted(set(found) - set(planned)):
            text = f"{unit.file} does not belong to this bank of {facts.count:,} sources in units of {facts.unit_size:,}: move it away"
            self._add(unit.name, [("plan", text)])
        if all(problem.kind == "copy" for problem in self.problems):
            self._check_order(facts)
        if all(problem.kind == "copy" for problem in self.problems):
            self._add("", index.finish())

    def check_export(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Check all files of an export."""
        facts = self._facts
        try:
            files = list_exported_files(self._manifest, str(self.directory / MANIFEST)) if facts is not None else []
            marks = name_marks(self._manifest, str(self.directory / MANIFEST)) if facts is not None else None
        except BankError as error:
            self._add("", [("manifest", str(error))])
            return
        if facts is None:
            return
        self._expect(self._manifest["info"])
        rest = NO_ROWS  # rows of a source that may continue in the next file
        for done, entry in enumerate(files, 1):
            rest = self._check_exported_file(entry, facts, rest)
            if on_progress is not None:
                on_progress(done, len(files))
        if marks is not None:
            self._add(marks["file"], self._check_whole_file(marks))
        strangers = {f"data/{path.name}" for path in (self.directory / "data").glob("*.parquet")} - {entry["file"] for entry in files}
        for name in sorted(strangers):
            self._add(name, [("plan", "does not belong to this bank: delete it")])
        if all(problem.kind == "plan" for problem in self.problems):  # otherwise these follow from a missing or damaged file
            self._add("", self._check_rows("", rest, facts))
            self._add("", self._check_rest(facts))
            if not self.problems:
                self._check_order(facts)

    def check_decoder(self) -> None:
        """Check, before anything is removed, that some of the images can be decoded; those that were are as they were written.

        Raises:
            BankError: if there are many, and none can be.
        """
        if self.images >= _MANY and self.undecoded == self.images:
            first = next(problem.text for problem in self.problems if problem.kind == "image")
            raise BankError(
                f"{self.directory}: repair=True: none of its {self.images:,} images can be decoded here, though they are as they were "
                f"written ({first}), so nothing was removed: install what decodes them (`python -m PIL` lists formats); or, if they are "
                f"wrong, move the units away and run {self.command} again"
            )

    def check_again(self, name: str) -> bool:
        """Check a single unit again; replace its problems with those found now, and return whether it is damaged."""
        assert self._facts is not None, "units are only called damaged if there is a manifest"
        unit = next(unit for unit in self._facts.units() if unit.name == name)
        with Checker(self.directory, self.decode, self.threads) as again:
            found = [Problem(name, kind, text) for kind, text in again._check_unit(unit, None)]
        if again._seen.get(name) == self._seen.get(name):  # the same file, so it still has keys in common with others
            found += [problem for problem in self.problems if problem.unit == name and problem.kind == "duplicate" and problem not in found]
        self.problems = [problem for problem in self.problems if problem.unit != name] + found
        return name in damaged_units(found)

    def _add(self, name: str, faults: Iterable[Fault]) -> None:
        for kind, text in faults:
            self.problems.append(Problem(name, kind, text))

    def _check_unit(self, unit: Unit, index: IndexCheck | None) -> Iterator[Fault]:
        path, facts = self.directory / unit.file, self._facts
        try:
            state = path.stat()
        except OSError:
            yield "missing", f"{unit.file} does not exist: run {self.command} with the settings of this bank again"
            return
        self._seen[unit.name] = (state.st_ino, state.st_mtime_ns, state.st_size)
        # Read after that: a running generate writes the sidecar before the unit.
        sidecar = read_sidecar(self.directory, unit)
        self.files += 1
        digest, earlier = (None, ()) if facts is None else (facts.digest, facts.earlier)
        faults = find_faults(unit, sidecar, state.st_size, digest, earlier)
        yield from faults
        kinds = {kind for kind, _ in faults}
        if sidecar is not None and "size" not in kinds:
            try:
                intact = sha256(path) == sidecar.get("sha256")
            except OSError as error:
                yield "arrow", f"{unit.file} cannot be read ({error.strerror or error})"
                return
            if not intact:
                kinds.add("checksum")
                yield "checksum", f"{unit.file} has changed since it was written: its SHA-256 differs from that in its sidecar"
        # A file that is known to be damaged is not parsed, nor one whose rows are not yet those of the bank.
        if facts is None or kinds & {"size", "checksum", "settings", "missing"}:
            self._sources = None
            return
        try:
            batches = map_file(path, unit_schema(facts.key_type))
            contents = NO_ROWS
            for batch in batches:
                contents = contents.join(_read_rows(batch, str(path)))
        except (BankError, ValueError) as error:
            self._sources = None
            yield "arrow", str(error)
            return
        self.rows += len(contents.keys)
        if sidecar and sidecar.get("rows") != len(contents.keys):
            yield "rows", f"has {len(contents.keys)} rows, and its sidecar says {sidecar.get('rows')}"
        self._expect(sidecar)
        yield from check_rows(contents, facts, self._without, unit.stop - unit.start)
        yield from self._place(unit.name, contents.keys)
        self._pass_those_without_rows(None)
        if self._placeless - set(contents.keys):
            self._sources = None
        if index is not None and sidecar is not None:
            index.check_unit(unit, state.st_size, contents, sidecar)
        if self.decode:
            self.undecoded += yield from check_images(batches, contents, facts.image_size, self._pool)
            self.images += len(contents.keys)

    def _check_exported_file(self, entry: Mapping[str, Any], facts: Facts, rest: Contents) -> Contents:
        """Check a file and all sources that end in it; return the rows of a source that may continue in the next file."""
        name, path = entry["file"], self.directory / entry["file"]
        self.files += path.is_file()
        if faults := list(self._check_whole_file(entry)):
            self._add(name, faults)
            return rest
        rows = 0
        try:
            for batch in _read_parquet(path, unit_schema(facts.key_type)):
                contents = _read_rows(batch, name)
                rows += batch.num_rows
                if self.decode:
                    self._add(name, check_images([batch], contents, facts.image_size, self._pool))
                    self.images += batch.num_rows
                whole, rest = rest.join(contents).split_last_key()
                self._add(name, self._check_rows(name, whole, facts))
        except (BankError, ValueError, OSError) as error:  # pyarrow's errors are ValueErrors or OSErrors
            self._add(name, [("arrow", f"cannot be read: {' '.join(str(error).split())}")])
            return rest
        self.rows += rows
        if rows != entry["rows"]:
            self._add(name, [("rows", f"has {rows:,} rows, and bank.json says {entry['rows']:,}")])
        return rest

    def _check_whole_file(self, entry: Mapping[str, Any]) -> Iterator[Fault]:
        """Check a file of an export against its size and SHA-256."""
        path = self.directory / entry["file"]
        if not path.is_file():
            yield "missing", "does not exist: download it, or export the bank again"
        elif (size := path.stat().st_size) != entry["bytes"]:
            yield "size", f"has {size:,} bytes, expected {entry['bytes']:,}: download it again, or export the bank again"
        elif sha256(path) != entry["sha256"]:
            yield "checksum", "has changed since it was written: its SHA-256 differs from that in bank.json: download it again"

    def _check_rows(self, name: str, contents: Contents, facts: Facts) -> Iterator[Fault]:
        """Check all rows of some sources of an export."""
        assert self._without is not None
        yield from check_rows(contents, facts, self._without.among(set(contents.keys)), None)
        yield from self._place(name, contents.keys)

    def _check_rest(self, facts: Facts) -> Iterator[Fault]:
        """Check the sources of an export that have no rows, after all others."""
        assert self._without is not None
        assert self._sources is not None
        self._pass_those_without_rows(None)
        unseen = {key for key, _ in self._without.rejected} - self._owners.keys()
        yield from check_rows(NO_ROWS, facts, self._without.among(unseen), None)
        placeless = self._placeless - self._owners.keys()
        if (there := len(self._sources) + len(placeless)) != facts.count:
            yield "rows", f"has {there:,} sources, including failed ones, expected {facts.count:,}"
        if placeless:
            self._sources = None

    def _check_order(self, facts: Facts) -> None:
        if self._sources is not None and hash_keys(self._sources) != facts.keys_digest:
            self._add("", [("keys", "the keys of the rows are not those of the source, or are in another order")])

    def _expect(self, stated: Mapping[str, Any] | None) -> None:
        """Read what a sidecar, or the manifest of an export, says about sources and variants without rows."""
        failed, rejected = (list_entries(stated or {}, name) for name in ("failed", "rejected"))
        self._without = None if stated is None else WithoutRows.read(failed, rejected)
        self._places = {entry["index"]: entry["key"] for entry in [*rejected, *failed] if type(entry.get("index")) is int}
        self._placeless = {entry["key"] for entry in [*rejected, *failed]} - set(self._places.values())

    def _place(self, name: str, keys: Sequence[str | int]) -> Iterator[Fault]:
        """Add the sources of these rows to the list of all sources; none may be in it already."""
        shared: dict[str, list[str | int]] = {}
        for key in dict.fromkeys(keys):
            if other := self._owners.setdefault(key, ""):
                shared.setdefault(other, []).append(key)
            else:
                self._owners[key] = name
            self._pass_those_without_rows(key)
            if self._sources is not None:
                self._sources.append(key)
        for other, twice in shared.items():
            text = f"has rows of key {twice[0]!r}" + (f" (and of {len(twice) - 1:,} more)" if len(twice) > 1 else "")
            if other == name:
                yield "duplicate", f"{text} in two places"
                continue
            # It is unknown which of the two is right, so both are made again.
            self.problems.append(Problem(other, "duplicate", f"{text}, and so has {name}"))
            yield "duplicate", f"{text}, and so has {other}"

    def _pass_those_without_rows(self, key: str | int | None) -> None:
        """Add sources to the list of all sources as long as the next one is known to have no rows; `key` is the next with rows."""
        if self._sources is None:
            return
        while (there := self._places.get(len(self._sources))) is not None and there != key and there not in self._owners:
            self._sources.append(there)


def _read_rows(batch: pa.RecordBatch, where: str) -> Contents:
    """Validate a batch; return its rows without their images."""
    batch.validate(full=True)
    for name in batch.schema.names:
        if batch.column(name).null_count:
            raise BankError(f"{where}: has rows without {name}")
    return Contents.read(batch)


def _read_parquet(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    pa = arrow()
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if not file.schema_arrow.equals(schema, check_metadata=False):
            raise BankError(f"has the columns {', '.join(file.schema_arrow.names)}, which are not those of this bank")
        for batch in file.iter_batches(_ROWS):
            yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)
