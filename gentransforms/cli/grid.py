"""Draw the picture of `demo` and `preview`: one row per source, the source first, then its variants."""

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


def draw_grid(sources: Tensor, variants: Tensor) -> PIL.Image.Image:
    """Return the grid as a picture; images below 96 pixels are enlarged by an integer factor, nearest neighbour.

    Args:
        sources: (N, 3, H, W) uint8.
        variants: (N, V, 3, H, W) uint8.

    Example:
        >>> import torch
        >>> draw_grid(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, 3, 3, 32, 32, dtype=torch.uint8)).size
        (404, 196)
    """
    import PIL.Image

    height, width = sources.shape[-2:]
    factor = -(-_CELL // min(height, width))  # rounded up
    height, width = height * factor, width * factor
    count, columns = variants.shape[:2]
    size = ((columns + 1) * (width + _GAP) - _GAP + _SOURCE_GAP - _GAP, count * (height + _GAP) - _GAP)
    picture = PIL.Image.new("RGB", size, "white")
    for row in range(count):
        for column, image in enumerate((sources[row], *variants[row])):
            cell = PIL.Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
            left = column * (width + _GAP) + (_SOURCE_GAP - _GAP if column else 0)
            picture.paste(cell.resize((width, height), PIL.Image.Resampling.NEAREST), (left, row * (height + _GAP)))
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
