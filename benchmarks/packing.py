"""A folder in files below a size: first what is small and says most, then pictures and weights as long as they fit."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path

LIMIT = 15_500_000  # bytes; 16 MB at most may come back from a lent machine
ORDER = (".json", ".md", ".txt", ".yaml", ".png", ".safetensors", ".pt", ".ckpt")
SMALL = 500_000  # bytes of a file of another kind, such as curves, that is packed before weights


def pack(folder: Path, target: Path, limit: int = LIMIT, files: int = 1) -> list[str]:
    """Write the files below `folder` into a zip file of at most `limit` bytes; return the names of those left out.

    What does not fit into `target` goes into further ones, TARGET-2.zip and so on, at most `files` in all. Each is replaced as a
    whole, so that a reader, or the end of the machine, never finds half of one. They are written beside `folder`, so that no other
    file lies beside `target` for long.
    """
    left = sorted((path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()), key=_rank)
    for number in range(1, files + 1):
        name = target if number == 1 else target.with_name(f"{target.stem}-{number}{target.suffix}")
        if number == 1 or left:
            left = _write(left, folder, name, limit, number == files)
        else:  # of an earlier call, when there was more
            name.unlink(missing_ok=True)
    return [path.relative_to(folder).as_posix() for path in left]


def _write(paths: list[Path], folder: Path, target: Path, limit: int, last: bool) -> list[Path]:
    """Write as many of the files as fit; return the others, which the last zip file names."""
    part, left_out, size = folder.with_name(f"{target.stem}.partial"), [], 1000
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            name = path.relative_to(folder).as_posix()
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # the part still writes
                continue
            cost = min(len(content), len(zlib.compress(content, 6))) + 2 * len(name.encode()) + 200
            if size + cost > limit:
                left_out.append(path)
                continue
            archive.writestr(name, content)
            size += cost
        if left_out and last:
            archive.writestr("left_out.txt", "\n".join(path.relative_to(folder).as_posix() for path in left_out)[:500] + "\n")
    try:
        part.replace(target)
    except OSError:  # on another file system
        beside = target.with_suffix(".partial")
        shutil.move(part, beside)
        beside.replace(target)
    return left_out


def _rank(path: Path) -> tuple[int, int, str]:
    try:
        size = path.stat().st_size
    except FileNotFoundError:  # the part still writes
        size = 0
    other = ORDER.index(".png") if size < SMALL else len(ORDER)
    return ORDER.index(path.suffix) if path.suffix in ORDER else other, size, path.as_posix()
