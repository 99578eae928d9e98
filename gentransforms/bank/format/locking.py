"""Files that several processes write at once: each appears completely or not at all, and a bank has one lock."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from filelock import lock_descriptor

from gentransforms.errors import BankError

__all__ = [
    "Partial", "create_json", "explain_write_error", "locked", "partial_name", "remove_partials", "sync_directory", "write_json",
]  # fmt: skip

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class Partial:
    """A file that is written under another name, ``.<name>.<host>.<process>-<token>.partial``, until it is published.

    It is locked while it is open, so that another container, which may have the same host name and process number, does not
    take it for the file of a dead process. Leaving the ``with`` block without publishing removes it.

    Args:
        target: the name under which it appears.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "file"
        >>> with Partial(target) as partial:
        ...     _ = partial.file.write(b"whole")
        ...     partial.finish()
        ...     partial.publish()
        >>> target.read_bytes()
        b'whole'
    """

    file: BinaryIO

    def __init__(self, target: Path) -> None:
        self.target, self.path = target, target.with_name(partial_name(target.name))

    def __enter__(self) -> Partial:
        self.file = self.path.open("wb")
        with contextlib.suppress(OSError):  # no locks on this file system, or this platform
            lock_descriptor(self.file.fileno(), blocking=False)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # from a full disk, which has been reported already
            self.file.close()
        _remove(self.path)

    def finish(self) -> None:
        """Flush the file to disk and close it."""
        _sync(self.file)
        self.file.close()

    def publish(self) -> None:
        """Rename the file to its target, replacing an existing file."""
        self.path.replace(self.target)


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a JSON file atomically, replacing an existing one."""
    with Partial(path) as partial:
        partial.file.write((json.dumps(value, indent=indent) + "\n").encode())
        partial.finish()
        partial.publish()


def create_json(path: Path, value: Mapping[str, Any]) -> bool:
    """Write a JSON file unless it exists; return whether it was written. If two processes try at once, one wins."""
    with Partial(path) as partial:
        partial.file.write((json.dumps(value, indent=2) + "\n").encode())
        partial.finish()
        try:
            os.link(partial.path, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
                raise
            with locked(path.parent):  # a file system without hard links
                if path.exists():
                    return False
                partial.publish()
        sync_directory(path.parent)
    return True


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the bank's lock; do without if the file system or the platform has no locks."""
    with (directory / ".lock").open("w") as file:
        with contextlib.suppress(OSError):
            lock_descriptor(file.fileno(), poll_interval=0.01)
        yield


def remove_partials(directory: Path) -> int:
    """Remove unfinished files of killed processes on this host; return the number of files."""
    count = 0
    for path in directory.glob(f".*.{_host()}.*.partial"):
        pid = path.name.split(".")[-2].partition("-")[0]
        if pid.isdecimal() and not _is_alive(int(pid)) and not _is_locked(path):
            _remove(path)
            count += 1
    return count


def partial_name(name: str) -> str:
    """Return the name that a file has while it is written."""
    # The token distinguishes threads of one process, and containers with the same host name and process number.
    return f".{name}.{_host()}.{os.getpid()}-{secrets.token_hex(4)}.partial"


def sync_directory(directory: Path) -> None:
    """Flush the entries of a directory to disk."""
    if os.name != "posix":  # other platforms cannot open a directory
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some file systems do not flush directories; the files themselves are on disk
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def explain_write_error(error: OSError, directory: Path) -> BankError:
    """Return the error to raise when a file of a bank cannot be written."""
    if error.errno in _FULL:
        return BankError(
            f"{directory}: the disk is full ({error.strerror}): free some space and run the same command again; completed units are intact"
        )
    return BankError(f"{error.filename or directory}: cannot be written: {error.strerror or error}; fix it and run the same command again")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _host() -> str:
    return "".join(c if c.isalnum() or c == "-" else "_" for c in socket.gethostname()) or "host"


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r+b") as file:
            return not lock_descriptor(file.fileno(), blocking=False)
    except OSError:
        return False


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # on Windows, signal 0 would be Ctrl-C
        return True
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
