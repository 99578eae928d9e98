"""Write the files of a bank so that nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gentransforms.bank.format.manifest import MANIFEST, Unit, read_sidecar, schema_of
from gentransforms.errors import BankError
from gentransforms.sources.arrow import arrow

__all__ = ["Row", "create_manifest", "is_done", "remove_partials", "write_unit"]

# Of the images of a record batch, which bounds the memory of writing. Arrow itself allows 2 GiB.
_BATCH_BYTES = 16 << 20


@dataclass(frozen=True)
class Row:
    """One generated image: whose variant it is, the seed and the attempt that made it, and its encoded bytes."""

    key: str | int
    variant: int
    seed: int
    attempt: int
    image: bytes


def write_unit(directory: Path, unit: Unit, rows: Sequence[Row], key_type: str, facts: Mapping[str, Any], *, replace: bool = False) -> bool:
    """Write a unit and its sidecar, unless another process has meanwhile; return whether it was written.

    The Arrow file appears last and whole: a unit whose file is there is done.

    Args:
        directory: of the bank.
        unit: what the rows are of.
        rows: sorted by source position, then variant.
        key_type: ``"str"`` or ``"int"``.
        facts: what else the sidecar says, JSON-able: ``settings``, ``failed``, ``rejected``.
        replace: whether a unit that is there already is written anew.

    Raises:
        BankError: if the disk is full or cannot be written; the bank stays as it was.
    """
    pa, partial = arrow(), directory / _partial_name(unit.file)
    try:
        with partial.open("wb") as file:
            _hold(file)
            hashed = _Hashed(file)
            with pa.ipc.new_stream(pa.PythonFile(hashed, mode="w"), schema_of(key_type)) as stream:
                for batch in _batches(rows, schema_of(key_type)):
                    stream.write_batch(batch)
            _sync(file)
        sidecar = {"unit": unit.name, "bytes": hashed.count, "sha256": hashed.digest.hexdigest(), "rows": len(rows), **facts}
        with _publishing(directory):
            if not replace and is_done(
                directory, unit, facts.get("settings")
            ):  # by a second process on the same bank: its bytes are the same, and may be in use
                partial.unlink()
                return False
            _write_json(directory / unit.sidecar, sidecar)
            partial.replace(directory / unit.file)
            _sync_directory(directory)
    except OSError as error:
        _remove(partial)
        raise _explained(error, directory) from error
    except BaseException:
        _remove(partial)
        raise
    return True


def is_done(directory: Path, unit: Unit, settings: str | None = None) -> bool:
    """Whether a unit is there, whole: its file as long as its sidecar says; and, if given, made with those settings."""
    try:
        size = (directory / unit.file).stat().st_size
    except OSError:
        return False
    sidecar = read_sidecar(directory, unit)
    return sidecar is not None and sidecar.get("bytes") == size and settings in (None, sidecar.get("settings"))


def create_manifest(directory: Path, manifest: Mapping[str, Any]) -> bool:
    """Write ``bank.json`` unless there is one; return whether it was written. Of two at once, one wins.

    Raises:
        BankError: if the directory cannot be written.
    """
    partial = directory / _partial_name(MANIFEST)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with partial.open("w") as file:
            file.write(json.dumps(manifest, indent=2) + "\n")
            _sync(file)
        try:
            os.link(partial, directory / MANIFEST)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
                raise
            with _publishing(directory):  # a file system without hard links
                if (directory / MANIFEST).exists():
                    return False
                partial.replace(directory / MANIFEST)
        _sync_directory(directory)
    except OSError as error:
        raise _explained(error, directory) from error
    finally:
        _remove(partial)
    return True


def remove_partials(directory: Path) -> int:
    """Remove what killed processes of this host left unfinished; return how many files that were."""
    count = 0
    for path in directory.glob(f".*.{_host()}.*.partial"):
        pid = path.name.split(".")[-2].partition("-")[0]
        if pid.isdecimal() and not _alive(int(pid)) and not _held(path):
            _remove(path)
            count += 1
    return count


def _batches(rows: Sequence[Row], schema: Any) -> Iterator[Any]:
    start, size = 0, 0
    for i, row in enumerate(rows):
        if size and size + len(row.image) > _BATCH_BYTES:
            yield _batch(rows[start:i], schema)
            start, size = i, 0
        size += len(row.image)
    if rows:
        yield _batch(rows[start:], schema)


def _batch(rows: Sequence[Row], schema: Any) -> Any:
    """Put rows into Arrow's layout, out of buffers: ``pa.array`` would import pandas, if it is there, which takes a second."""
    pa, columns = arrow(), []
    for name in schema.names[:-1]:
        values, kind = [getattr(row, name) for row in rows], schema.field(name).type
        if pa.types.is_string(kind):
            columns.append(_binary([value.encode() for value in values], kind))
        else:
            numbers = np.array(values, kind.to_pandas_dtype())
            columns.append(pa.Array.from_buffers(kind, len(rows), [None, pa.py_buffer(numbers)]))
    images = _binary([row.image for row in rows], pa.binary())
    fields = list(schema.field("image").type)
    columns.append(pa.StructArray.from_arrays([images, pa.nulls(len(rows), pa.string())], fields=fields))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _binary(values: Sequence[bytes], kind: Any) -> Any:
    pa, offsets = arrow(), np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))])


class _Hashed:
    """A file that hashes and counts what is written to it."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest, self.count, self.closed = file, hashlib.sha256(), 0, False

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.count += len(data)
        return int(self.file.write(data))

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.closed = True


@contextlib.contextmanager
def _publishing(directory: Path) -> Iterator[None]:
    """Hold the bank's lock, so that the two files of a unit are of one process; without one where the file system has no locks."""
    with (directory / ".lock").open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(_partial_name(path.name))
    try:
        with partial.open("w") as file:
            file.write(json.dumps(value) + "\n")
            _sync(file)
        partial.replace(path)
    except BaseException:
        _remove(partial)
        raise


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some file systems do not flush directories; the files themselves are on disk
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _partial_name(name: str) -> str:
    # The token is for threads of one process, and for containers that have host name and process number in common.
    return f".{name}.{_host()}.{os.getpid()}-{secrets.token_hex(4)}.partial"


def _host() -> str:
    return "".join(c if c.isalnum() or c == "-" else "_" for c in socket.gethostname()) or "host"


def _hold(file: Any) -> None:
    """Lock a partial file while it is written, so that another container does not take it for a dead process's."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _held(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _explained(error: OSError, directory: Path) -> BankError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BankError(
            f"{directory}: the disk is full ({error.strerror}): free some space and run the same command again; what is there is good"
        )
    return BankError(f"{error.filename or directory}: cannot be written: {error.strerror or error}; mend it and run the same command again")
