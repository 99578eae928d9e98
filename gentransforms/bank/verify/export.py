"""Check an exported bank: its Parquet files, their rows and images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentransforms.bank.format.facts import Facts
from gentransforms.bank.format.manifest import MANIFEST, hash_keys, read_manifest
from gentransforms.bank.format.unit import Unit, list_entries, unit_schema
from gentransforms.bank.share.opening import exported_files
from gentransforms.bank.verify.report import BankReport, Problem
from gentransforms.bank.verify.rows import Contents, check_images, check_rows
from gentransforms.errors import BankError
from gentransforms.hub.client import sha256
from gentransforms.sources.arrow import arrow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["verify_export"]

_ROWS = 1000  # read at once


def verify_export(directory: Path, images: bool, threads: int, on_progress: Callable[[int, int], None] | None = None) -> BankReport:
    """Check an export, file after file; memory stays bounded but for the keys.

    Args:
        directory: of the export.
        images: decode them too.
        threads: that decode.
        on_progress: called with the files done and their number after each.
    """
    check = _Check(directory, images)
    with ThreadPoolExecutor(threads) as pool:
        check.run(pool, on_progress)
    return BankReport(str(directory), check.files, check.rows, check.images, problems=check.problems, exported=True)


class _Check:
    """One run over an export; adds up as it goes."""

    def __init__(self, directory: Path, decode: bool) -> None:
        self.directory, self.decode = directory, decode
        self.problems: list[Problem] = []
        self.files = self.rows = self.images = 0
        self.sources: list[str | int] = []  # all so far, in order
        self.waiting = Contents([], [], [], [])  # rows whose source may go on in the next batch
        self.known: set[str | int] = set()

    def run(self, pool: ThreadPoolExecutor, on_progress: Callable[[int, int], None] | None) -> None:
        try:
            manifest = read_manifest(self.directory)
            facts = Facts.read(manifest, str(self.directory / MANIFEST))
            files = exported_files(manifest, str(self.directory / MANIFEST))
        except BankError as error:
            self.problems.append(Problem("", "manifest", str(error)))
            return
        self.without_rows(manifest["info"])
        for done, entry in enumerate(files, 1):
            for kind, text in self.file(entry, facts, pool):
                self.problems.append(Problem(entry["file"], kind, text))
            if on_progress is not None:
                on_progress(done, len(files))
        strangers = {f"data/{path.name}" for path in (self.directory / "data").glob("*.parquet")} - {entry["file"] for entry in files}
        self.problems += [Problem(name, "plan", "does not belong to this bank: delete it") for name in sorted(strangers)]
        if any(problem.kind != "plan" for problem in self.problems):
            return  # what follows from a missing or damaged file is no news
        self.problems += [Problem("", kind, text) for kind, text in self.flush(facts, last=True)]
        if not self.problems and hash_keys(self.sources) != facts.keys_digest:
            self.problems.append(Problem("", "keys", "the keys of the rows are not those of the source, or in another order"))

    def without_rows(self, info: dict[str, Any]) -> None:
        self.failed, self.rejected = list_entries(info, "failed"), list_entries(info, "rejected")
        self.at = {entry["index"]: entry["key"] for entry in [*self.rejected, *self.failed] if type(entry.get("index")) is int}

    def file(self, entry: dict[str, Any], facts: Facts, pool: ThreadPoolExecutor) -> Iterator[tuple[str, str]]:
        path = self.directory / entry["file"]
        if not path.is_file():
            yield "missing", "is not there: fetch it, or export the bank again"
            return
        self.files += 1
        size = path.stat().st_size
        if size != entry["bytes"]:
            yield "size", f"has {size:,} bytes, expected {entry['bytes']:,}: fetch it whole, or export the bank again"
            return
        if sha256(path) != entry["sha256"]:
            yield "checksum", "has other bytes than were written: its SHA-256 differs from that in bank.json: fetch it again"
            return
        before = self.rows
        try:
            for batch in _batches(path, unit_schema(facts.key_type)):
                contents = Contents.of([batch])
                self.rows += batch.num_rows
                if self.decode:
                    yield from check_images([batch], contents, facts.image_size, pool)
                    self.images += batch.num_rows
                self.waiting = Contents(*(a + b for a, b in zip(_columns(self.waiting), _columns(contents), strict=True)))
                yield from self.flush(facts)
        except (BankError, ValueError, OSError) as error:  # pyarrow's errors are ValueErrors or OSErrors
            yield "arrow", f"cannot be read: {' '.join(str(error).split())}"
            return
        if self.rows - before != entry["rows"]:
            yield "rows", f"has {self.rows - before:,} rows, and bank.json says {entry['rows']:,}"

    def flush(self, facts: Facts, last: bool = False) -> Iterator[tuple[str, str]]:
        """Check the rows of all sources that are complete: but for the last one, which may go on."""
        contents = self.waiting
        stop = len(contents.keys)
        while not last and stop and contents.keys[stop - 1] == contents.keys[-1]:
            stop -= 1
        whole = Contents(*(column[:stop] for column in _columns(contents)))
        self.waiting = Contents(*(column[stop:] for column in _columns(contents)))
        start = len(self.sources)
        for key in dict.fromkeys(whole.keys):
            self.add_those_without_rows(key)
            if key in self.known:
                yield "duplicate", f"has rows of key {key!r} in two places"
            self.known.add(key)
            self.sources.append(key)
        if last:
            self.add_those_without_rows(None)
        unit = Unit(start, facts.count if last else len(self.sources))
        own = set(self.sources[start:])
        sidecar = {
            "rows": len(whole.keys),
            "failed": [entry for entry in self.failed if entry["key"] in own],
            "rejected": [entry for entry in self.rejected if entry["key"] in own],
        }
        yield from check_rows(whole, unit, sidecar, facts)

    def add_those_without_rows(self, key: str | int | None) -> None:
        """Go on in the list of sources as long as the next is one without rows; `key` is the next with rows."""
        while (there := self.at.get(len(self.sources))) is not None and there != key:
            if there in self.known:
                return
            self.known.add(there)
            self.sources.append(there)


def _columns(contents: Contents) -> tuple[list[Any], ...]:
    return contents.keys, contents.variants, contents.seeds, contents.attempts


def _batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    pa = arrow()
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if not file.schema_arrow.equals(schema, check_metadata=False):
            raise BankError(f"holds columns {', '.join(file.schema_arrow.names)}, not those of this bank")
        for batch in file.iter_batches(_ROWS):
            for name in schema.names:
                if batch.column(name).null_count:
                    raise BankError(f"has rows without {name}")
            yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)
