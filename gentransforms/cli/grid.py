"""Draw the picture of `demo` and `preview`: one row or column per source, the source first, then its variants."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gentransforms.cli.plain import Failure, WrongCall

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor

__all__ = ["check_output", "draw_grid", "write_picture"]

_CELL = 96  # smallest side of a cell, in pixels: nobody can judge a 32-pixel image at its own size
_GAP, _SOURCE_GAP = 4, 12
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def draw_grid(sources: Tensor, variants: Tensor, columns: bool = False) -> PIL.Image.Image:
    """Return the grid as a picture, a row per source; images below 96 pixels are enlarged by an integer factor, nearest neighbour.

    Args:
        sources: (N, 3, H, W) uint8.
        variants: (N, V, 3, H, W) uint8.
        columns: draw a column per source instead of a row, for a picture that is wide rather than tall.

    Example:
        >>> import torch
        >>> draw_grid(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, 3, 3, 32, 32, dtype=torch.uint8)).size
        (404, 196)
    """
    import PIL.Image

    height, width = sources.shape[-2:]
    factor = -(-_CELL // min(height, width))  # rounded up
    height, width = height * factor, width * factor
    count, made = variants.shape[:2]
    shape = (made + 1, count) if columns else (count, made + 1)
    tall, wide = (n * (side + _GAP) - _GAP for n, side in zip(shape, (height, width), strict=True))
    extra = _SOURCE_GAP - _GAP
    picture = PIL.Image.new("RGB", (wide, tall + extra) if columns else (wide + extra, tall), "white")
    for number in range(count):
        for place, image in enumerate((sources[number], *variants[number])):
            cell = PIL.Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
            row, column = (place, number) if columns else (number, place)
            top, left = row * (height + _GAP), column * (width + _GAP)
            if place:
                top, left = (top + extra, left) if columns else (top, left + extra)
            picture.paste(cell.resize((width, height), PIL.Image.Resampling.NEAREST), (left, top))
    return picture


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Raise, before any work is done, if the picture could not be written to `path`.

    Raises:
        WrongCall: if it is a folder, lies below a file, is one of `inputs`, or does not have a picture's suffix.
        Failure: if its folder is not writable.
    """
    if path.is_dir():
        raise WrongCall(f"{path}: expected the name of a picture to write, but this is a folder")
    if path.suffix.lower() not in _FORMATS:
        raise WrongCall(f"{path}: the picture's name must end in {', '.join(_FORMATS)}")
    if any(path.exists() and path.samefile(other) for other in inputs if other.exists()):
        raise WrongCall(f"{path}: this is one of the input images and would be overwritten: choose another output")
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise WrongCall(f"{path}: cannot be written, because {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Failure(f"{path}: cannot be written, because the folder {folder} is not writable")


def write_picture(picture: PIL.Image.Image, path: Path) -> None:
    """Write `picture` to `path`, completely or not at all; creates the folder if needed.

    Raises:
        Failure: if it cannot be written.
    """
    partial = path.with_name(f".gentransforms-{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(partial, format=_FORMATS[path.suffix.lower()])
        partial.replace(path)
    except (OSError, ValueError) as error:  # ValueError: more pixels than the format holds
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise Failure(f"{path}: could not be written: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
