"""The index of a finished bank, ``index.arrow``: all that is needed to open the bank, in one memory-mapped file."""

from __future__ import annotations

import base64
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gentransforms.bank.format.checksums import IndexChecksum, checksum_columns, checksum_lists
from gentransforms.bank.format.damage import Damage
from gentransforms.bank.format.images import map_file
from gentransforms.bank.format.locking import Partial, explain_write_error, locked, sync_directory
from gentransforms.bank.format.lookup import Lookup, LookupBuilder, Numbers, view_numbers
from gentransforms.bank.format.manifest import MANIFEST, Facts, read_manifest
from gentransforms.bank.format.unit import INDEX, Unit, find_faults, list_entries, read_sidecar, unit_schema
from gentransforms.errors import BankError
from gentransforms.sources.arrow import arrow

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "INDEX", "MARK", "Index", "build_index", "decode_marks", "encode_marks", "list_sizes", "read_index", "save_index", "write_index",
]  # fmt: skip

MARK = 48  # bytes: 4 x 4 mean colours
_VERSION = 1
_SUMS = b"checksums"


@dataclass(frozen=True)
class Index:
    """What is needed to open a bank: where its rows are, and which sources and variants have none.

    Attributes:
        lookup: where each row is.
        failed: sources that could not be read.
        rejected: variants for which every attempt was rejected.
    """

    lookup: Lookup
    failed: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)


def write_index(directory: str | Path) -> bool:
    """Write the index of a bank if all its units exist; return whether the bank has one now.

    Any number of processes may do so at once, and others may write units meanwhile: if units change while the index is built, it
    is built again.

    Raises:
        BankError: if the bank is damaged, or its directory cannot be written.
    """
    directory = Path(directory)
    facts = Facts.read(read_manifest(directory), str(directory / MANIFEST))
    units = facts.units()
    while True:
        sizes = list_sizes(directory, facts)
        if not all(unit.file in sizes for unit in units):
            return False
        try:
            read_index(directory, facts, thorough=True)
        except (BankError, FileNotFoundError):
            pass
        else:
            return True
        unchanged = functools.partial(_matches, directory, _stamp(directory))
        if save_index(directory, facts, build_index(directory, facts, units, sizes), unchanged):
            return True


def save_index(directory: Path, facts: Facts, index: Index, still_true: Callable[[], bool] = lambda: True) -> bool:
    """Write an index; return whether it was written.

    Args:
        directory: directory of the bank.
        facts: the facts of its manifest.
        index: the index of all its units.
        still_true: called with the bank's lock held, so that no unit can change; if it returns False, nothing is written.

    Raises:
        BankError: if the directory cannot be written.
    """
    batch = _to_arrow(index, facts)
    try:
        with Partial(directory / INDEX) as partial:
            with arrow().ipc.new_stream(partial.file, batch.schema) as stream:
                stream.write_batch(batch)
            partial.finish()
            with locked(directory):
                if not still_true():
                    return False
                partial.publish()
                sync_directory(directory)
    except OSError as error:
        raise explain_write_error(error, directory) from error
    return True


def read_index(directory: Path, facts: Facts, *, thorough: bool = False) -> Index:
    """Map the index of a bank.

    Args:
        directory: directory of the bank.
        facts: the facts of its manifest.
        thorough: whether all of it is read, to compare it with its checksums; otherwise only once something is not found in it.

    Raises:
        FileNotFoundError: if there is none.
        BankError: if it is damaged, or does not belong to the bank that the manifest describes.
    """
    path, pa = directory / INDEX, arrow()
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            schema, batch = stream.schema, stream.read_next_batch()
        about = json.loads((schema.metadata or {}).get(b"gentransforms", b"{}"))
        if about != _describe(facts):
            raise BankError(f"{path}: does not belong to the bank that {MANIFEST} describes")
        if not schema.equals(_schema(facts.key_type), check_metadata=False) or batch.num_rows != 1:
            raise BankError(f"{path}: is damaged: it does not have the columns of an index")
        batch.validate()
        index = _from_arrow(batch, facts)
        if sums := json.loads(schema.metadata.get(_SUMS, b"null")):  # none in an index of an earlier version
            if checksum_lists(index.lookup, index.failed, index.rejected) != sums["lists"]:
                raise ValueError("it has changed since it was written")
            index = replace(index, lookup=replace(index.lookup, guard=IndexChecksum(str(path), sums["columns"])))
    except (pa.ArrowException, OSError, EOFError, StopIteration, ValueError, KeyError) as error:
        raise BankError(f"{path}: is damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from error
    if thorough and index.lookup.guard is not None:
        index.lookup.guard.check(index.lookup)
    return index


def build_index(directory: Path, facts: Facts, units: Sequence[Unit], sizes: Mapping[str, int]) -> Index:
    """Build the index of some units from their sidecars and rows. Only one unit is mapped at a time.

    Args:
        directory: directory of the bank.
        facts: the facts of its manifest.
        units: existing units.
        sizes: sizes of their files in bytes, by name.

    Raises:
        BankError: if a unit is damaged, which an interrupted run does not cause, or was made with other settings.
    """
    schema = unit_schema(facts.key_type)
    builder = LookupBuilder(facts.variants, facts.key_type == "int")
    failed, rejected = list[dict[str, Any]](), list[dict[str, Any]]()
    for unit in units:
        sidecar, size = read_sidecar(directory, unit), sizes[unit.file]
        faults = find_faults(unit, sidecar, size, facts.digest, facts.earlier)
        if faults:
            others = next((text for kind, text in faults if kind in ("settings", "missing")), None)
            if others is not None:  # not damaged, and not removed by --repair
                raise BankError(f"{directory}: {others}")
            raise Damage(f"{directory / unit.file}: damaged: {faults[0][1]}")
        assert sidecar is not None
        batches = map_file(f"{directory}/{unit.file}", schema)
        rows = sum(batch.num_rows for batch in batches)
        if rows != sidecar.get("rows"):
            raise Damage(f"{directory / unit.file}: has {rows} rows, and its sidecar says {sidecar.get('rows')}")
        builder.add(unit.file, size, batches, decode_marks(sidecar))
        failed += list_entries(sidecar, "failed")
        rejected += list_entries(sidecar, "rejected")
    return Index(builder.build(), failed, rejected)


def list_sizes(directory: Path, facts: Facts) -> dict[str, int]:
    """Return the size of each Arrow file in a directory, in bytes, by name; without units from before the bank was extended."""
    with os.scandir(directory) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries if entry.name.endswith(".arrow")}
    if earlier := facts.earlier:
        for unit in facts.units():
            if unit.file in sizes and (read_sidecar(directory, unit) or {}).get("settings") in earlier:
                del sizes[unit.file]
    return sizes


def encode_marks(marks: Sequence[bytes]) -> str:
    """Encode the marks of a unit's sources that have rows, in order, 48 bytes each, as the entry ``marks`` of its sidecar."""
    return base64.b64encode(b"".join(marks)).decode()


def decode_marks(sidecar: Mapping[str, Any]) -> bytes | None:
    """Decode the entry ``marks`` of a sidecar; None if there is none."""
    try:
        return base64.b64decode(sidecar["marks"], validate=True)
    except (KeyError, ValueError, TypeError):
        return None


def _stamp(directory: Path) -> dict[str, tuple[int, int]]:
    """Return the inode and the modification time of each unit file."""
    with os.scandir(directory) as entries:
        return {entry.name: (entry.inode(), entry.stat().st_mtime_ns) for entry in entries if entry.name.startswith("unit-")}


def _matches(directory: Path, stamp: Mapping[str, tuple[int, int]]) -> bool:
    return _stamp(directory) == stamp


def _describe(facts: Facts) -> dict[str, Any]:
    return {"version": _VERSION, "settings": facts.digest, "units": len(facts.units())}


def _schema(key_type: str) -> Any:
    pa = arrow()
    text = key_type == "str"
    columns = {
        "file": pa.string(), "file_start": pa.int64(), "file_size": pa.int64(), "key": pa.large_string() if text else pa.int64(),
        "start": pa.int64(), "variant": pa.int32(), "hash": pa.uint32() if text else pa.int64(), "order": pa.int32(),
        "mark": pa.binary(MARK), "failed": pa.string(), "rejected": pa.string(),
    }  # fmt: skip
    # One row in which each column is a list: columns of different lengths share a file, and each is one piece of memory.
    return pa.schema([pa.field(name, pa.large_list(kind)) for name, kind in columns.items()])


def _to_arrow(index: Index, facts: Facts) -> Any:
    pa, lookup, schema = arrow(), index.lookup, _schema(facts.key_type)
    marks = b"" if lookup.marks is None else lookup.marks.tobytes()
    values = {
        "file": lookup.files, "file_start": lookup.file_starts, "file_size": lookup.file_sizes, "key": lookup.keys,
        "start": lookup.starts, "variant": lookup.variants, "hash": lookup.hashes, "order": lookup.order,
        "mark": pa.Array.from_buffers(pa.binary(MARK), len(marks) // MARK, [None, pa.py_buffer(marks)]),
        "failed": [json.dumps(entry) for entry in index.failed], "rejected": [json.dumps(entry) for entry in index.rejected],
    }  # fmt: skip
    columns = []
    for column in schema:
        given = values[column.name]
        array = given if isinstance(given, pa.Array) else pa.array(given, column.type.value_type)
        columns.append(pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), array, type=column.type))
    sums = {"lists": checksum_lists(lookup, index.failed, index.rejected), "columns": checksum_columns(lookup)}
    metadata = {"gentransforms": json.dumps(_describe(facts)), _SUMS: json.dumps(sums)}
    return pa.RecordBatch.from_arrays(columns, schema=schema.with_metadata(metadata))


def _from_arrow(batch: pa.RecordBatch, facts: Facts) -> Index:
    values = {name: batch.column(name).flatten() for name in batch.schema.names}
    for name, column in values.items():
        if column.null_count:
            raise ValueError(f"column {name} has missing values")
        if name in ("file", "key", "failed", "rejected"):
            column.validate(full=True)  # offsets that point elsewhere would crash the process
    numbers = {
        name: view_numbers(values[name], values[name].type.to_pandas_dtype())
        for name in ("file_start", "file_size", "start", "variant", "hash", "order")
    }
    files, keys, marks = values["file"], values["key"], values["mark"]
    lookup = Lookup(
        files=files.to_pylist(), file_starts=numbers["file_start"], file_sizes=numbers["file_size"], keys=keys, starts=numbers["start"],
        variants=numbers["variant"], hashes=numbers["hash"], order=numbers["order"],
        marks=np.frombuffer(marks.buffers()[1], np.uint8).reshape(-1, MARK)[marks.offset :][: len(marks)] if len(marks) else None,
    )  # fmt: skip
    count, rows = len(keys), len(lookup)
    lengths = (len(lookup.starts) - 1, len(lookup.hashes), len(lookup.order), count if lookup.marks is None else len(marks))
    fits = lengths == (count,) * 4 and len(files) == len(lookup.file_sizes) == len(lookup.file_starts) - 1 == len(facts.units())
    if not fits or not all(_is_ordered(bounds, rows) for bounds in (lookup.starts, lookup.file_starts)):
        raise ValueError("the lengths of its columns do not agree")
    if count and not 0 <= int(lookup.order.min()) <= int(lookup.order.max()) < count:
        raise ValueError("it refers to keys that it does not have")
    failed, rejected = ([json.loads(entry) for entry in values[name].to_pylist()] for name in ("failed", "rejected"))
    return Index(lookup, failed, rejected)


def _is_ordered(bounds: Numbers, rows: int) -> bool:
    return bool(bounds[0] == 0 and bounds[-1] == rows and (bounds[1:] >= bounds[:-1]).all())
