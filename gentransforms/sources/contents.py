"""What a folder holds: images, Parquet files, tar shards, or a saved data set. Where several fit, nothing is read in silence."""

from __future__ import annotations

import itertools
import os
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from gentransforms.errors import ConfigError
from gentransforms.sources.decode import SUFFIXES
from gentransforms.sources.image_column import may_hold_images
from gentransforms.sources.split_files import names_parquet

__all__ = ["is_litter", "kind_of_folder", "shards_in"]

_LOOKED_AT = 8  # entries of each subfolder that are checked: a folder of images may hold millions
_FEW = 8  # images that may be the logo and the figures of a README
_OPENED = 16  # Parquet files in which a column of images is looked for
_ENTRIES = 10_000  # of a folder with Parquet or tar files that are checked for images

# Folders that systems leave among images: the second parts of files on macOS, and the thumbnails of Synology's file servers.
_LITTER = frozenset({"__MACOSX", "@eaDir"})

Kind = Literal["images", "parquet", "shards", "saved"]

_NAMES = {"images": "images", "parquet": "Parquet files with images", "shards": "tar files", "saved": "what save_to_disk wrote"}
_ADVICE = {
    "images": "for the images, move the other files out of this folder",
    "parquet": "for the Parquet files, give one of them, or move them to a folder of their own",
    "shards": "for the tar files as shards of WebDataset, give one of them, or move them to a folder of their own",
    "saved": "for the data set of save_to_disk, move it to a folder of its own",
}


def is_litter(name: str) -> bool:
    """Return whether a file or folder is no part of a data set, by its name: hidden ones, and those that systems leave.

    Example:
        >>> is_litter(".DS_Store"), is_litter("._cat.tar"), is_litter("cat.tar")
        (True, True, False)
    """
    return name.startswith(".") or name in _LITTER


def shards_in(folder: Path) -> list[Path]:
    """Return the tar files in a folder, sorted by name.

    Example:
        >>> shards_in(Path(__file__).parent)
        []
    """
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if _is_file(entry, ".tar"))


def kind_of_folder(folder: Path) -> Kind:
    """Return how a folder is to be read.

    Parquet files without a column of images say something about the images or shards beside them, and are left aside.

    Raises:
        ConfigError: if several kinds fit, such as the images of a tar file and that file beside them: each would be another data
            set, with other keys.

    Warns:
        UserWarning: if a few images lie beside Parquet files that a README.md does not name. They are not read.

    Example:
        >>> import gentransforms
        >>> kind_of_folder(Path(gentransforms.__file__).parent / "samples")
        'images'
    """
    tars, files, declared = shards_in(folder), _some_parquet(folder), names_parquet(folder / "README.md")
    saved = _saved_to_disk(folder)
    if not tars and not files and not declared and not saved:
        return "images"
    images = _some_images(folder)
    if not tars and not images and not saved:
        return "parquet"
    found: dict[Kind, str] = {}
    with_images = next((file for file in files if may_hold_images(file)), None)
    if declared and not saved and (with_images is not None or not files):
        return "parquet"
    if images and with_images is not None and not tars and not saved and len(images) <= _FEW:
        warnings.warn(f"{folder}: the Parquet files are read, and not the images beside them: {', '.join(map(repr, images))}", stacklevel=4)
        return "parquet"
    if images:
        found["images"] = images[0]
    if with_images is not None:
        found["parquet"] = os.path.relpath(with_images, folder)
    if tars:
        found["shards"] = tars[0].name
    if saved:
        found["saved"] = saved
    if len(found) > 1:
        holds = " and ".join(f"{_NAMES[kind]}, such as {example!r}," for kind, example in found.items())
        raise ConfigError(
            f"source={str(folder)!r}: holds {holds} which are different data sets: {'; '.join(_ADVICE[kind] for kind in found)}"
        )
    return next(iter(found))


def _saved_to_disk(folder: Path) -> str | None:
    """Return a file by which `datasets` tells a folder of ``save_to_disk``; other programs too leave files called ``state.json``."""
    if (folder / "dataset_dict.json").is_file():
        return "dataset_dict.json"
    return "state.json" if all((folder / name).is_file() for name in ("state.json", "dataset_info.json")) else None


def _some_parquet(folder: Path) -> list[Path]:
    """Return Parquet files other than the metadata of an image folder, `_OPENED` at most.

    Looks as deep as the Hub's own layout, ``default/train/0000.parquet``; not that deep in a folder of many images.
    """
    found: list[Path] = []
    level, images = [os.fspath(folder)], 0
    for depth in range(3):
        below: list[str] = []
        for path in level:
            for entry in itertools.islice(_entries(path), _LOOKED_AT if depth else None):
                if _is_file(entry, ".parquet") and entry.name != "metadata.parquet":
                    found.append(Path(entry.path))
                    if len(found) == _OPENED:
                        return found
                elif _is_image(entry):
                    images += 1
                elif depth < 2 and not is_litter(entry.name) and _is_folder(entry):
                    below.append(entry.path)
        if depth and images > _FEW:
            break
        level = below
    return found


def _some_images(folder: Path) -> list[str]:
    """Return the paths of images in a folder and its subfolders, the highest ones, no more than are needed to tell many from few."""
    found: list[str] = []
    looked_at = 0
    folders = deque([os.fspath(folder)])
    while folders:
        for entry in _entries(folders.popleft()):
            looked_at += 1
            if _is_image(entry):
                found.append(os.path.relpath(entry.path, folder))
            elif not is_litter(entry.name) and _is_folder(entry):
                folders.append(entry.path)
            if len(found) > _FEW or looked_at == _ENTRIES:
                return sorted(found)
    return sorted(found)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:  # told when it is read
        return


def _is_image(entry: os.DirEntry[str]) -> bool:
    return _is_file(entry, *SUFFIXES)


def _is_file(entry: os.DirEntry[str], *suffixes: str) -> bool:
    return entry.name.lower().endswith(suffixes) and not is_litter(entry.name) and not _is_folder(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
