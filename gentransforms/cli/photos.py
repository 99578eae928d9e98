"""Read photos from files as the generators expect them: upright and RGB."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gentransforms.cli.plain import WrongCall
from gentransforms.errors import SourceError

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["find_photos", "read_photo", "sample_photos"]


def sample_photos() -> list[Path]:
    """Return the photos that come with the package.

    Example:
        >>> len(sample_photos())
        10
    """
    return sorted((Path(__file__).parents[1] / "samples").glob("*.png"))


def find_photos(folder: Path) -> list[Path]:
    """Return the image files in `folder`, recognised by suffix and sorted by name.

    If there are none, those in its subfolders: the first of each, then the second of each, so that a few show every class.

    Raises:
        WrongCall: if it is not a folder, or contains no images.
    """
    if not folder.is_dir():
        raise WrongCall(f"{folder}: {'expected a folder of images' if folder.exists() else 'no such folder'}")
    from gentransforms.sources.decode import SUFFIXES  # after what needs no torch

    try:
        photos = _images_in(folder, (path.name for path in folder.iterdir()))
    except PermissionError as error:
        raise WrongCall(f"{folder}: this folder is not readable") from error
    if not photos:
        inside = ((Path(place), names) for place, _, names in os.walk(folder))
        found = sorted((place, names) for place, names in inside if not any(part[0] == "." for part in place.relative_to(folder).parts))
        rounds = itertools.zip_longest(*(_images_in(place, names) for place, names in found))
        photos = [path for paths in rounds for path in paths if path is not None]
    if not photos:
        raise WrongCall(f"{folder}: no images in this folder or its subfolders (looked for {', '.join(sorted(SUFFIXES))})")
    return photos


def _images_in(folder: Path, names: Iterable[str]) -> list[Path]:
    from gentransforms.sources.decode import SUFFIXES

    return [folder / name for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")]


def read_photo(path: Path, white_level: float | None = None) -> PIL.Image.Image:
    """Return the image in a file in mode RGB, rotated according to its EXIF orientation, with transparency on white.

    Args:
        path: of the file.
        white_level: the value of white in grey images of more than 8 bits; chosen by default, with a warning where that may be wrong.

    Raises:
        WrongCall: if there is no such file, or it cannot be read as an image.
    """
    if path.is_dir():
        raise WrongCall(f"{path}: expected an image file, but this is a folder (gentransforms demo --images takes one)")
    if not path.exists():
        raise WrongCall(f"{path}: no such file")
    if path.is_file() and path.stat().st_size == 0:
        raise WrongCall(f"{path}: this file is empty")
    from gentransforms.sources.decode import NOT_AN_IMAGE, rgb_image  # after what needs no torch

    try:
        return rgb_image(path if path.is_file() else path.read_bytes(), white_level)  # a pipe can be read once, from its start
    except SourceError as error:
        reason = str(error) if str(error) == NOT_AN_IMAGE else f"cannot be read as an image: {error}"
        raise WrongCall(f"{path}: {reason}") from error
