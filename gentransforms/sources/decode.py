"""Pixels of any image file: upright, RGB, transparency on white, in bounded memory; or one line on what is wrong with it."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import PIL.Image
import torch
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from gentransforms.errors import SourceError

__all__ = [
    "NOT_AN_IMAGE", "SUFFIXES", "Encoded", "check_folder", "decode_image", "decode_mask", "is_of_the_machine", "one_line", "rgb_image",
]  # fmt: skip

Encoded = bytes | bytearray | memoryview | str | Path | PIL.Image.Image

# What names an image file: torchvision's suffixes, and those of the other still images that Pillow reads by itself. A list,
# not Pillow's registry: which files a folder holds must not depend on the version installed.
SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".pbm", ".pcx",
    ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip
NOT_AN_IMAGE = "not an image, or of a kind that cannot be read"

# Larger images are reduced, one at a time. Above what cameras give and far above what any generator sees; in Pillow's
# four bytes a pixel 134 MB, which each decoding thread may need at once.
_LARGE = 1 << 25
_STRIP = 1 << 22  # pixels of a large image that are converted at once
_FILE_BYTES = 1 << 30
_REASON = 200
_turns = threading.Lock()

_ORIENTATION = 0x0112
_TO_UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT, 3: PIL.Image.Transpose.ROTATE_180, 4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE, 6: PIL.Image.Transpose.ROTATE_270, 7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}  # fmt: skip
_OF_THE_MACHINE = frozenset({
    errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN,  # a disk, or a file system on a network, that went away
})  # fmt: skip


def decode_image(data: Encoded) -> Tensor:
    """Return any image as uint8 (3, H, W): upright by its EXIF orientation, transparency on white, grey of 16 bits scaled.

    Of an image of more than 2^25 pixels a smaller one is returned, averaged over whole blocks of pixels; so a JPEG of any
    size can be read. Others may have as many pixels as Pillow's own limit (`PIL.Image.MAX_IMAGE_PIXELS`, twice) allows.

    Args:
        data: an encoded image (JPEG, PNG, WebP, TIFF, GIF, …), the path of one, or a PIL image of any mode.

    Raises:
        SourceError: if it cannot be read as an image, with the reason in one line.

    Example:
        >>> import PIL.Image
        >>> decode_image(PIL.Image.new("RGBA", (4, 2))).shape
        torch.Size([3, 2, 4])
        >>> decode_image(b"")
        Traceback (most recent call last):
        ...
        gentransforms.errors.SourceError: the file is empty
    """
    with _reasons():
        pixels: Tensor = TF.pil_to_tensor(_rgb(data))
        return pixels.contiguous()


def rgb_image(data: Encoded) -> PIL.Image.Image:
    """Return any image as a PIL image in mode RGB, by the rules of `decode_image`.

    Raises:
        SourceError: if it cannot be read as an image, with the reason in one line.

    Example:
        >>> import PIL.Image
        >>> rgb_image(PIL.Image.new("CMYK", (1, 1))).getpixel((0, 0))
        (255, 255, 255)
    """
    with _reasons():
        return _rgb(data)


def decode_mask(data: Encoded) -> Tensor:
    """Return a mask as int32 (H, W): the values of a grey image, the palette's numbers of a palette image; 0 and 1 of 1 bit.

    Of a mask of more than 2^25 pixels, every second, third, … pixel.

    Raises:
        SourceError: if it cannot be read, or holds colours.

    Example:
        >>> import PIL.Image
        >>> decode_mask(PIL.Image.new("P", (2, 1), 7))
        tensor([[7, 7]], dtype=torch.int32)
    """
    with _reasons():
        image = _opened(data)
        if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;"):
            raise SourceError(f"a mask in mode {image.mode}: expected one channel of whole numbers, such as mode L or P")
        with _turn(image):
            image.load()
            factor = _factor(image)
            values = np.asarray(_upright(image, image))[::factor, ::factor].astype(np.int32)
        return torch.from_numpy(values)


def one_line(error: BaseException) -> str:
    """Return what an error says in one line of bounded length; its type, if it says nothing.

    Example:
        >>> one_line(ValueError("two\\nlines")), one_line(KeyError())
        ('two lines', 'KeyError')
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join(text.split())
    if len(line) > _REASON:
        line = f"{line[: _REASON - 1]}…"
    return line or type(error).__name__


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error is of the machine, not of the image: no memory or file handles left, a disk or network that went away.

    A run should stop then, not skip the image.

    Example:
        >>> is_of_the_machine(MemoryError()), is_of_the_machine(FileNotFoundError(2, "No such file"))
        (True, False)
    """
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _OF_THE_MACHINE)


def check_folder(folder: Path, error: BaseException) -> None:
    """Raise if an image is missing because the whole folder of the source is: for a run that should stop, not skip the image.

    Args:
        folder: of the source; one that is empty is gone too, as the place where a file system was mounted is.
        error: why the image cannot be read; unless the cause is that a file is missing, nothing is looked at.

    Raises:
        FileNotFoundError: if there is no such folder any more, or nothing in it.

    Example:
        >>> check_folder(Path("no/such/folder"), ValueError("damaged"))
        >>> check_folder(Path("no/such/folder"), FileNotFoundError(2, "No such file"))
        Traceback (most recent call last):
        ...
        FileNotFoundError: [Errno 2] the folder of the images is gone, or nothing is in it: 'no/such/folder'
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, FileNotFoundError):
        cause = cause.__cause__
    if cause is None:
        return
    try:
        with os.scandir(folder) as entries:
            there = next(entries, None) is not None
    except (FileNotFoundError, NotADirectoryError):
        there = False
    if not there:
        raise FileNotFoundError(errno.ENOENT, "the folder of the images is gone, or nothing is in it", str(folder)) from error


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turn what Pillow's decoders raise on damaged files, which is all kinds of errors, into SourceError."""
    try:
        yield
    except SourceError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise SourceError(NOT_AN_IMAGE) from error
    except PIL.Image.DecompressionBombError as error:
        raise SourceError(f"too large: {one_line(error).partition(',')[0]}") from error
    except Exception as error:
        if is_of_the_machine(error):
            raise
        reason = one_line(error)
        if "truncated" in reason.lower() or isinstance(error, EOFError):
            reason = f"truncated: {reason}"
        elif not (isinstance(error, OSError) and error.strerror):
            reason = f"damaged: {reason}"
        raise SourceError(reason) from error


def _opened(data: Encoded) -> PIL.Image.Image:
    if isinstance(data, PIL.Image.Image):
        if 0 in data.size:
            raise SourceError(f"an image of {data.width} x {data.height} pixels")
        return data
    content = bytes(data) if isinstance(data, bytes | bytearray | memoryview) else _content(Path(data))
    if not content:
        raise SourceError("the file is empty")
    if content[:3] == b"\xff\xd8\xff":
        # Not through PIL.Image.open, whose limit does not know that a JPEG can be decoded at a smaller scale.
        image = JpegImageFile(io.BytesIO(content))
        limit = PIL.Image.MAX_IMAGE_PIXELS
        if image.info.get("progressive") and limit is not None and image.width * image.height > 2 * limit:
            # Its coefficients are all held before the first pixel, at any scale.
            raise SourceError(f"too large: a progressive JPEG of {image.width} x {image.height} pixels; save it as a baseline JPEG")
        return image
    _hush_size_warning()
    return PIL.Image.open(io.BytesIO(content))


def _content(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise SourceError("a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if status.st_size > _FILE_BYTES:
        raise SourceError(f"too large: {status.st_size} bytes, more than {_FILE_BYTES}")
    return path.read_bytes()


def _hush_size_warning() -> None:
    """Keep Pillow from warning of images that are large: those are reduced here.

    For good, because warnings.catch_warnings is not safe among threads, and makes warnings that are shown once show again.
    Pillow's error, at twice the size, stays. Looked for each time: leaving someone's catch_warnings takes it away.
    """
    if ("ignore", None, PIL.Image.DecompressionBombWarning, None, 0) not in warnings.filters:
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)


def _turn(image: PIL.Image.Image) -> contextlib.AbstractContextManager[object]:
    """Large images wait for each other, so that threads do not multiply the peak."""
    return _turns if image.width * image.height > _LARGE else contextlib.nullcontext()


def _factor(image: PIL.Image.Image) -> int:
    return math.ceil(math.sqrt(image.width * image.height / _LARGE))


def _rgb(data: Encoded) -> PIL.Image.Image:
    image = _opened(data)
    with _turn(image):
        if image is not data and isinstance(image, JpegImageFile) and (factor := _factor(image)) > 1:
            scale = min(8, 1 << (factor - 1).bit_length())
            image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
        image.load()
        white = _white(image)
        rgb = _to_rgb(image, white) if (factor := _factor(image)) == 1 else _reduced(image, factor, white)
        # After loading: a TIFF turns itself, and then has no orientation left.
        return _upright(image, rgb)


def _reduced(image: PIL.Image.Image, factor: int, white: float) -> PIL.Image.Image:
    """Return the image averaged over blocks of factor x factor pixels, converted strip by strip."""
    width, height = image.size
    small = PIL.Image.new("RGB", (-(-width // factor), -(-height // factor)))
    step = factor * max(1, _STRIP // (width * factor))
    for top in range(0, height, step):
        strip = image.crop((0, top, width, min(top + step, height)))
        small.paste(_to_rgb(strip, white).reduce(factor), (0, top // factor))
    return small


def _to_rgb(image: PIL.Image.Image, white: float) -> PIL.Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey(image, white).convert("RGB")
    if image.mode == "La":  # Pillow knows no other way out of this mode
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _white(image: PIL.Image.Image) -> float:
    """The value that stands for white in an image of more than 8 bits; without use for others."""
    if image.mode not in ("I", "F"):
        return 65535
    low, high = cast("tuple[float, float]", image.getextrema())
    for white in (65535,) if image.mode == "I" else (1, 255, 65535):
        if -0.001 <= low <= high <= 1.001 * white:
            return white
    expected = "0 to 65535" if image.mode == "I" else "0 to 1, 0 to 255 or 0 to 65535"
    raise SourceError(f"pixels from {low:g} to {high:g}: expected {expected}")


def _grey(image: PIL.Image.Image, white: float) -> PIL.Image.Image:
    """Return an image of more than 8 bits with 8: scaled, where Pillow's own conversion clips."""
    values = np.asarray(image)
    if image.mode == "F" and not np.isfinite(values).all():
        raise SourceError("pixels that are NaN or infinite: expected numbers")
    grey = np.rint(values * np.float32(255 / white)).clip(0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return PIL.Image.fromarray(grey)


def _upright(source: PIL.Image.Image, image: PIL.Image.Image) -> PIL.Image.Image:
    """Return `image` turned as the EXIF data of `source` say."""
    try:
        turn = _TO_UPRIGHT.get(source.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # damaged EXIF data say nothing of the pixels
        if is_of_the_machine(error):
            raise
        return image
    return image if turn is None else image.transpose(turn)
