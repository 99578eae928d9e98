"""Read photos from files as the generators expect them: upright and RGB."""

from __future__ import annotations

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
    """Return the image files in `folder` (not in subfolders), recognised by suffix and sorted by name.

    Raises:
        WrongCall: if it is not a folder, or contains no images.
    """
    from gentransforms.sources.decode import SUFFIXES

    if not folder.is_dir():
        raise WrongCall(f"{folder}: {'expected a folder of images' if folder.exists() else 'no such folder'}")
    try:
        photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    except PermissionError as error:
        raise WrongCall(f"{folder}: this folder is not readable") from error
    if not photos:
        raise WrongCall(f"{folder}: no images in this folder (looked for {', '.join(sorted(SUFFIXES))}, not in subfolders)")
    return photos


def read_photo(path: Path) -> PIL.Image.Image:
    """Return the image in a file in mode RGB, rotated according to its EXIF orientation, with transparency on white.

    Raises:
        WrongCall: if there is no such file, or it cannot be read as an image.
    """
    from gentransforms.sources.decode import NOT_AN_IMAGE, rgb_image

    if path.is_dir():
        raise WrongCall(f"{path}: expected an image file, but this is a folder (gentransforms demo --images takes one)")
    if not path.exists():
        raise WrongCall(f"{path}: no such file")
    if path.is_file() and path.stat().st_size == 0:
        raise WrongCall(f"{path}: this file is empty")
    try:
        return rgb_image(path if path.is_file() else path.read_bytes())  # a pipe can be read once, from its start
    except SourceError as error:
        reason = str(error) if str(error) == NOT_AN_IMAGE else f"cannot be read as an image: {error}"
        raise WrongCall(f"{path}: {reason}") from error
