"""One rule for every path that a user gives: ``~`` is expanded, and addresses are refused, not turned into a local folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gentransforms.errors import ConfigError

__all__ = ["local_path"]

# Two letters at least: C:\photos is a drive. One slash too, which is what Path("s3://bucket") leaves of the two.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//?)(.*)", re.DOTALL)
_ADVICE = {
    "file": "give the path itself, {rest!r}",
    "hf": "give the name of the repository, 'org/name'",
}
_OTHER = "copy it to a disk, or mount it, and give that folder"


def local_path(path: str | os.PathLike[str], name: str = "path") -> Path:
    """Return a path that a user gave as a `Path`, with ``~`` expanded.

    Args:
        path: of a file or folder on this machine; need not exist.
        name: of the argument, for errors.

    Raises:
        ConfigError: if it is an address such as ``s3://bucket/photos``, saying what to do; if it is empty, or of another type.

    Example:
        >>> local_path("~/photos").is_absolute(), local_path("photos").as_posix()
        (True, 'photos')
        >>> local_path("s3://bucket/photos", "source")
        Traceback (most recent call last):
        ...
        gentransforms.errors.ConfigError: source='s3://bucket/photos': is an address, expected a path on this machine: copy it to ...
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"{name}={path!r}: expected a path, a str or a pathlib.Path")
    text = os.fspath(path)
    if not isinstance(text, str):
        raise ConfigError(f"{name}={path!r}: expected a path of text, not of bytes")
    if not text:
        raise ConfigError(f"{name}={text!r}: expected a path; the working directory is '.'")
    if "\0" in text:
        raise ConfigError(f"{name}={text!r}: holds a null character, which no path may")
    address = _ADDRESS.match(text)
    if address and (address[2] == "//" or not Path(text).exists()):
        advice = _ADVICE.get(address[1].lower(), _OTHER).format(rest="/" + address[3].lstrip("/"))
        raise ConfigError(f"{name}={text!r}: is an address, expected a path on this machine: {advice}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # of a user that this machine does not know
        if Path(text).exists():
            return Path(text)
        raise ConfigError(f"{name}={text!r}: this machine has no such user: for a name that begins with ~, write './~…'") from error
