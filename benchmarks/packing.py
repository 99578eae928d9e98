"""A folder in one file below a size: first what is small and says most, then pictures and weights as long as they fit."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path

LIMIT = 15_500_000  # bytes; 16 MB at most may come back from a lent machine
ORDER = (".json", ".md", ".txt", ".yaml", ".png", ".safetensors", ".pt")


def pack(folder: Path, target: Path, limit: int = LIMIT) -> list[str]:
    """Write the files below `folder` into a zip file of at most `limit` bytes; return the names of those left out.

    The file is replaced as a whole, so that a reader, or the end of the machine, never finds half of one. It is written beside
    `folder`, so that no other file lies beside `target` for long.
    """
    files = sorted((path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()), key=_rank)
    part, left_out, size = folder.with_name(f"{target.stem}.partial"), [], 1000
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            name = path.relative_to(folder).as_posix()
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # the part still writes
                continue
            cost = min(len(content), len(zlib.compress(content, 6))) + 2 * len(name.encode()) + 200
            if size + cost > limit:
                left_out.append(name)
                continue
            archive.writestr(name, content)
            size += cost
        if left_out:
            archive.writestr("left_out.txt", "\n".join(left_out)[:500] + "\n")
    try:
        part.replace(target)
    except OSError:  # on another file system
        beside = target.with_suffix(".partial")
        shutil.move(part, beside)
        beside.replace(target)
    return left_out


def _rank(path: Path) -> tuple[int, int, str]:
    kind = ORDER.index(path.suffix) if path.suffix in ORDER else len(ORDER)
    return kind, path.stat().st_size if path.exists() else 0, path.as_posix()
