"""Photos from files, as the generators want them: upright and RGB."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gentransforms.cli.plain import WrongCall

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["find_photos", "read_photo", "sample_photos"]

_SUFFIXES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def sample_photos() -> list[Path]:
    """Return the photos that come with the package.

    Example:
        >>> len(sample_photos())
        10
    """
    return sorted((Path(__file__).parents[1] / "samples").glob("*.png"))


def find_photos(folder: Path) -> list[Path]:
    """Return the image files in `folder` (not in its subfolders), by their suffix, in order of name.

    Raises:
        WrongCall: if it is no folder, or holds none.
    """
    if not folder.is_dir():
        raise WrongCall(f"{folder}: {'expected a folder of images' if folder.exists() else 'no such folder'}")
    try:
        photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."))
    except PermissionError as error:
        raise WrongCall(f"{folder}: this folder may not be read") from error
    if not photos:
        raise WrongCall(f"{folder}: no images in this folder (looked for {', '.join(sorted(_SUFFIXES))}, not in subfolders)")
    return photos


def read_photo(path: Path) -> PIL.Image.Image:
    """Return the image of a file in mode RGB, turned as its EXIF orientation says, transparency on white.

    Raises:
        WrongCall: if there is no such file, or it cannot be read as an image.
    """
    import PIL.Image
    import PIL.ImageOps

    if path.is_dir():
        raise WrongCall(f"{path}: expected an image file, this is a folder (gentransforms demo --images takes one)")
    if not path.exists():
        raise WrongCall(f"{path}: no such file")
    if path.is_file() and path.stat().st_size == 0:
        raise WrongCall(f"{path}: this file is empty")
    try:
        with PIL.Image.open(path) as image:
            return _to_rgb(PIL.ImageOps.exif_transpose(image))
    except PIL.UnidentifiedImageError as error:
        raise WrongCall(f"{path}: not an image, or of a kind that cannot be read") from error
    except Exception as error:  # Pillow's decoders raise all kinds of errors on damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise WrongCall(f"{path}: cannot be read as an image: {reason}") from error


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    import PIL.Image

    if image.mode.startswith("I"):  # 16 bits of grey, which convert("RGB") would clip to white
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
