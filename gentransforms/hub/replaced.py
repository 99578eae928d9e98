"""Saving over an earlier save: which of its files the new ones replace, and how, so that no loader meets a mixture of both."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["replaced_files", "replaced_patterns", "replacing"]

# A file of weights, one of its shards, or the index of these.
_WEIGHTS = re.compile(r"(?P<stem>.+?)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def replaced_patterns(written: Iterable[str]) -> list[str]:
    """Return patterns of the weights that others replace: the same weights in one file, in shards, and with an index.

    diffusers prefers an index to a file, and transformers a file to an index, so one that stays behind would be loaded. Weights of another
    name in the same folder, such as those of a variant (``model.fp16.safetensors``), and the top folder are left alone.

    Args:
        written: names of files, relative to their top folder, with slashes.

    Example:
        >>> replaced_patterns(["unet/model.safetensors", "config.json"])
        ['unet/model-?????-of-?????.safetensors', 'unet/model.safetensors', 'unet/model.safetensors.index.json']
    """
    found = (_WEIGHTS.fullmatch(name) for name in written if "/" in name)
    stems = {glob.escape(match["stem"]) for match in found if match}
    endings = ("-?????-of-?????.safetensors", ".safetensors", ".safetensors.index.json")
    return sorted(stem + ending for stem in stems for ending in endings)


def replaced_files(written: Iterable[str], there: Iterable[str]) -> list[str]:
    """Return those of the files `there` that weights among those `written` replace, and that were not written themselves.

    Example:
        >>> replaced_files(["unet/model.safetensors"], ["unet/model.safetensors", "unet/model.safetensors.index.json", "unet/notes.txt"])
        ['unet/model.safetensors.index.json']
    """
    new = set(written)
    patterns = replaced_patterns(new)
    return sorted(name for name in set(there) - new if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


@contextlib.contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """Yield an empty folder, whose files go to `directory` in the end, over those of an earlier save.

    Weights there that the new ones replace, such as the shards of before, are removed; other files stay. If writing fails, `directory` is
    as it was. A link there, such as those in the Hub's cache, is replaced; what it points to stays as it is.

    Args:
        directory: created if it does not exist.
    """
    existed = directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=directory) as temporary:
            yield Path(temporary)
            _move(Path(temporary), directory)
    except BaseException:
        if not existed:
            with contextlib.suppress(OSError):  # something was moved already
                directory.rmdir()
        raise


def _move(source: Path, target: Path) -> None:
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    folders = {file.parent for file in files}
    there = [path.relative_to(target) for folder in folders for path in (target / folder).glob("*") if path.is_file()]
    for name in replaced_files([file.as_posix() for file in files], [file.as_posix() for file in there]):
        (target / name).unlink()
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).replace(target / file)
