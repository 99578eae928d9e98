"""One unit of a bank: an Arrow file of rows, and a sidecar that describes it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gentransforms.bank.format.locking import Partial, explain_write_error, locked, sync_directory
from gentransforms.sources.arrow import arrow

__all__ = [
    "FORMER", "INDEX", "UNREAD", "Row", "Unit", "find_command", "find_faults", "is_done", "is_unread", "list_entries",
    "list_units", "plan_units", "read_sidecar", "remove_former", "set_aside", "split_rejected", "unit_schema", "write_unit",
]  # fmt: skip

INDEX = "index.arrow"
FORMER = "former-"  # begins the names of the two files of a unit that is set aside until a new one has taken over what it has
# Begins the reason of a variant that was not tried: its source, which has other variants, could not be read when the bank was extended.
UNREAD = "its source could not be read: "
# Image bytes per record batch, which bounds the memory of writing. Arrow itself allows 2 GiB.
_BATCH_BYTES = 16 << 20


@dataclass(frozen=True, order=True)
class Unit:
    """A range of sources; all their variants are generated together and written as one file.

    Example:
        >>> Unit(100, 200).file, Unit(100, 200).sidecar
        ('unit-000000100-000000200.arrow', 'unit-000000100-000000200.json')
    """

    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of its two files, without suffix."""
        return f"unit-{self.start:09d}-{self.stop:09d}"

    @property
    def file(self) -> str:
        """Name of the Arrow file."""
        return f"{self.name}.arrow"

    @property
    def sidecar(self) -> str:
        """Name of the JSON file that describes it."""
        return f"{self.name}.json"


@dataclass(frozen=True)
class Row:
    """One generated image: its source's key, its variant, the seed and attempt that generated it, and its encoded bytes."""

    key: str | int
    variant: int
    seed: int
    attempt: int
    image: bytes


def plan_units(count: int, size: int) -> list[Unit]:
    """Return the units of `count` sources, `size` sources each; the last may be smaller.

    Example:
        >>> [(unit.start, unit.stop) for unit in plan_units(5, 2)]
        [(0, 2), (2, 4), (4, 5)]
    """
    return [Unit(start, min(start + size, count)) for start in range(0, count, size)]


def list_units(directory: Path, prefix: str = "", suffix: str = ".arrow") -> list[Unit]:
    """Return the units with an Arrow file in the directory, judging by file names alone, in source order.

    With `prefix` `FORMER`, those that are set aside; with `suffix` ``".json"``, those with a sidecar.
    """
    found = []
    for path in directory.glob(f"{prefix}unit-*{suffix}"):
        parts = path.stem.removeprefix(prefix).split("-")
        if len(parts) == 3 and parts[1].isdecimal() and parts[2].isdecimal():
            found.append(Unit(int(parts[1]), int(parts[2])))
    return sorted(found)


def find_command(directory: Path) -> str:
    """Return the command that made the units of a directory, ``generate`` or ``bank import``: imported images have no seeds."""
    pa = arrow()
    for unit in list_units(directory):
        try:
            with pa.memory_map(str(directory / unit.file)) as file, pa.ipc.open_stream(file) as stream:
                return "bank import" if stream.read_next_batch().column("seed")[0].as_py() == -1 else "generate"
        except (pa.ArrowException, OSError, StopIteration, KeyError):  # damaged, or without rows
            continue
    return "generate"


def unit_schema(key_type: str) -> Any:
    """Return the Arrow schema of a unit; `key_type` is ``"str"`` or ``"int"``.

    The metadata tell `datasets` that ``image`` holds encoded images, so that the Hub's viewer shows pictures.

    Example:
        >>> unit_schema("str").names
        ['key', 'variant', 'seed', 'attempt', 'image']
    """
    pa = arrow()
    kinds = {"key": "string" if key_type == "str" else "int64", "variant": "int32", "seed": "int64", "attempt": "int32"}
    features: dict[str, Any] = {name: {"dtype": kind, "_type": "Value"} for name, kind in kinds.items()}
    features["image"] = {"_type": "Image"}
    fields = [pa.field(name, getattr(pa, kind)()) for name, kind in kinds.items()]
    fields.append(pa.field("image", pa.struct({"bytes": pa.binary(), "path": pa.string()})))
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def read_sidecar(directory: Path, unit: Unit, prefix: str = "") -> dict[str, Any] | None:
    """Return the contents of a unit's sidecar, or with `prefix` `FORMER` of its former one; None if it is missing or cannot be read."""
    try:
        sidecar = json.loads((directory / f"{prefix}{unit.sidecar}").read_text())
    except (OSError, ValueError):
        return None
    return sidecar if isinstance(sidecar, dict) else None


def list_entries(sidecar: Mapping[str, Any], *names: str) -> list[dict[str, Any]]:
    """Return the well-formed entries of the requested lists of a sidecar, ``failed`` or ``rejected``."""
    lists = [sidecar.get(name) for name in names]
    return [
        entry
        for one in lists
        if isinstance(one, list)
        for entry in one
        if isinstance(entry, dict) and isinstance(entry.get("key"), str | int)
    ]


def is_unread(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry of a list ``rejected`` is about a variant that was not tried, because its source could not be read."""
    return entry.get("attempts") == 0 and str(entry.get("reason")).startswith(UNREAD)


def split_rejected(entries: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split entries of a list ``rejected``: return the variants that were tried, and as failed sources those of all others.

    Example:
        >>> tried = {"key": "a", "index": 0, "variant": 1, "attempts": 5, "reason": "the generator made NaN or infinity"}
        >>> lacking = {"key": "b", "index": 1, "variant": 2, "attempts": 0, "reason": "its source could not be read: empty"}
        >>> split_rejected([tried, lacking, {**lacking, "variant": 3}])[1]
        [{'key': 'b', 'index': 1, 'reason': 'empty'}]
    """
    tried, unread = [], dict[str | int, dict[str, Any]]()
    for entry in entries:
        if is_unread(entry):
            source = {name: entry[name] for name in ("key", "index") if name in entry}
            unread.setdefault(entry["key"], source | {"reason": str(entry["reason"]).removeprefix(UNREAD)})
        else:
            tried.append(dict(entry))
    return tried, list(unread.values())


def find_faults(
    unit: Unit, sidecar: Mapping[str, Any] | None, size: int, settings: str | None, earlier: Collection[str] = ()
) -> list[tuple[str, str]]:
    """Return what is wrong with a unit according to its sidecar, as (kind, text).

    Args:
        unit: the unit.
        sidecar: its sidecar; None if it could not be read.
        size: size of the Arrow file in bytes.
        settings: hash of the bank's settings; None if unknown.
        earlier: those that it had before it was extended. A unit of these is not foreign: the run that extends the bank has not come to
            it, or was killed before. It counts as missing.

    Example:
        >>> find_faults(Unit(0, 2), None, 100, None)
        [('sidecar', 'unit-000000000-000000002.json is missing or cannot be read')]
    """
    if sidecar is None:
        return [("sidecar", f"{unit.sidecar} is missing or cannot be read")]
    faults = []
    if sidecar.get("unit") != unit.name:
        faults.append(("sidecar", f"{unit.sidecar} describes {sidecar.get('unit')!r}"))
    if sidecar.get("settings") in earlier:
        faults.append((
            "missing", f"{unit.file} is from before the bank was extended: run generate with the settings of this bank again, which "
            "continues the extension and keeps what the unit has",
        ))  # fmt: skip
    elif settings is not None and sidecar.get("settings") != settings:
        faults.append((
            "settings", f"{unit.file} was made with other settings than the bank's (by another run, or with another number of threads): "
            "move its two files away and run generate again, or restore the right bank.json",
        ))  # fmt: skip
    if (recorded := sidecar.get("bytes")) != size:
        shown = f"{recorded:,}" if type(recorded) is int else repr(recorded)
        faults.append(("size", f"{unit.file} has {size:,} bytes, and its sidecar says {shown}"))
    return faults


def is_done(directory: Path, unit: Unit, settings: str | None = None) -> bool:
    """Return whether a unit is complete: its file has the size in its sidecar and, if `settings` are given, these settings."""
    try:
        size = (directory / unit.file).stat().st_size
    except OSError:
        return False
    sidecar = read_sidecar(directory, unit)
    return sidecar is not None and sidecar.get("bytes") == size and settings in (None, sidecar.get("settings"))


def write_unit(
    directory: Path,
    unit: Unit,
    rows: Sequence[Row],
    key_type: str,
    facts: Mapping[str, Any],
    *,
    replaces: str = "",
    check: Callable[[], object] | None = None,
) -> bool:
    """Write a unit and its sidecar, unless another process has done so in the meantime; return whether it was written.

    The Arrow file appears last and complete, so that a unit whose file exists is done. Equal rows give equal bytes. A unit that is
    replaced is set aside until the new one is there; if the process is killed before, the next run takes over what it has.

    Args:
        directory: directory of the bank.
        unit: the unit of the rows.
        rows: sorted by source position, then variant.
        key_type: ``"str"`` or ``"int"``.
        facts: further JSON-able entries of the sidecar: ``settings``, ``failed``, ``rejected``.
        replaces: SHA-256, as in its sidecar, of the existing unit that is replaced; any other one stays.
        check: called with the bank's lock held, before anything changes; if it raises, nothing is written.

    Raises:
        BankError: if the disk is full or cannot be written; the bank stays as it was.
    """
    pa, schema = arrow(), unit_schema(key_type)
    try:
        with Partial(directory / unit.file) as partial, Partial(directory / unit.sidecar) as description:
            hashed = _Hashed(partial.file)
            with pa.ipc.new_stream(pa.PythonFile(hashed, mode="w"), schema) as stream:
                for batch in _split(rows):
                    stream.write_batch(_to_arrow(batch, schema))
            partial.finish()
            sidecar = {"unit": unit.name, "bytes": hashed.count, "sha256": hashed.digest.hexdigest(), "rows": len(rows), **facts}
            description.file.write((json.dumps(sidecar) + "\n").encode())
            description.finish()  # from here on, only names change
            with locked(directory):
                if check is not None:
                    check()
                # If two processes generate the same unit, the first file stays: its bytes are the same, and it may be in use.
                there = is_done(directory, unit, facts.get("settings"))
                if there and str((read_sidecar(directory, unit) or {}).get("sha256")) != replaces:
                    remove_former(directory, unit)
                    return False
                (directory / INDEX).unlink(missing_ok=True)  # it describes the unit that is replaced
                if there:
                    set_aside(directory, unit)
                description.publish()
                partial.publish()
                sync_directory(directory)
                remove_former(directory, unit)
    except OSError as error:
        raise explain_write_error(error, directory) from error
    return True


def set_aside(directory: Path, unit: Unit) -> None:
    """Rename the two files of a unit so that they begin with `FORMER`."""
    for name in (unit.file, unit.sidecar):  # the Arrow file first: a unit exists if its Arrow file does
        (directory / name).replace(directory / f"{FORMER}{name}")


def remove_former(directory: Path, unit: Unit) -> None:
    """Remove the two files of a unit that was set aside, if they exist."""
    for name in (unit.file, unit.sidecar):
        with contextlib.suppress(OSError):
            (directory / f"{FORMER}{name}").unlink()


def _split(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Yield the rows in batches of bounded size."""
    start, size = 0, 0
    for i, row in enumerate(rows):
        if size and size + len(row.image) > _BATCH_BYTES:
            yield rows[start:i]
            start, size = i, 0
        size += len(row.image)
    if rows:
        yield rows[start:]


def _to_arrow(rows: Sequence[Row], schema: Any) -> Any:
    pa = arrow()
    columns = [pa.array([getattr(row, name) for row in rows], schema.field(name).type) for name in schema.names[:-1]]
    images = pa.array([row.image for row in rows], pa.binary())
    columns.append(pa.StructArray.from_arrays([images, pa.nulls(len(rows), pa.string())], fields=list(schema.field("image").type)))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


class _Hashed:
    """A file wrapper that hashes and counts what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.count, self.closed = file, hashlib.sha256(), 0, False

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.count += len(data)
        return int(self.file.write(data))

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.closed = True
