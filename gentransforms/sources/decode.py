"""Decode image files: upright, RGB, transparency on white; or report in one line what is wrong with the file."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from gentransforms.errors import SourceError
from gentransforms.images import same_aspect_ratio
from gentransforms.sources.white import WhiteLevel
from gentransforms.wording import one_line

__all__ = [
    "DOWNLOAD", "NOT_AN_IMAGE", "SUFFIXES", "Encoded", "Orientation", "check_folder", "decode_image", "decode_mask", "decode_oriented",
    "exif_orientation", "find_file", "is_of_the_machine", "rgb_image", "turn_map", "turn_mask",
]  # fmt: skip

Encoded = bytes | bytearray | memoryview | str | Path | PIL.Image.Image

# Suffixes of image files: torchvision's, and those of the other still images that Pillow reads by itself. A list instead of
# Pillow's registry, because the images in a folder must not depend on the installed version.
SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".pbm", ".pcx",
    ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip
DOWNLOAD = "download them first, for example with img2dataset, and give the folder"
NOT_AN_IMAGE = "not an image, or of a kind that cannot be read"

_FILE_BYTES = 1 << 30

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


class Orientation(NamedTuple):
    """How an image was stored: (height, width) of the file, and the EXIF code that turns it upright; 1 for none."""

    size: tuple[int, int]
    code: int = 1

    def upright(self) -> Orientation:
        """Return the orientation of the same image once it is turned."""
        return Orientation(self.size if self.code < 5 else self.size[::-1])


def decode_image(data: Encoded, white_level: float | None = None) -> Tensor:
    """Return any image as uint8 (3, H, W): rotated by its EXIF orientation, transparency on white, 16-bit grey values scaled.

    Args:
        data: an encoded image (JPEG, PNG, WebP, TIFF, GIF, …), the path of one, or a PIL image of any mode.
        white_level: the value of white in grey images of more than 8 bits, 1023 for 10 bits; by default 65535, and of images of
            floats whichever of 1, 255 and 65535 fits; what overshoots becomes white.

    Raises:
        SourceError: if it cannot be read as an image, with the reason in one line; also if it has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`.

    Warns:
        UserWarning: if no `white_level` is given, and a grey image of 16 bits uses 14 or fewer of them, or one of floats less than a
            quarter of the range: it would be dark. Also if one of floats overshoots by more than a tenth.

    Example:
        >>> import PIL.Image
        >>> decode_image(PIL.Image.new("RGBA", (4, 2))).shape
        torch.Size([3, 2, 4])
        >>> decode_image(b"")
        Traceback (most recent call last):
        ...
        gentransforms.errors.SourceError: the file is empty
    """
    return decode_oriented(data, white_level)[0]


def decode_oriented(data: Encoded, white_level: float | WhiteLevel | None = None) -> tuple[Tensor, Orientation]:
    """Return an image as `decode_image` does, and how it was stored, so that its mask can be rotated in the same way.

    Example:
        >>> import PIL.Image
        >>> decode_oriented(PIL.Image.new("L", (4, 2)))[1]
        Orientation(size=(2, 4), code=1)
    """
    with _reasons():
        rgb, orientation, doubts = _rgb(data, white_level)
        pixels: Tensor = TF.pil_to_tensor(rgb)
    for doubt in doubts:
        warnings.warn(doubt, stacklevel=2)
    return pixels.contiguous(), orientation


def rgb_image(data: Encoded, white_level: float | None = None) -> PIL.Image.Image:
    """Return any image as a PIL image in mode RGB, by the rules of `decode_image`.

    Raises:
        SourceError: if it cannot be read as an image, with the reason in one line.

    Warns:
        UserWarning: as `decode_image`.

    Example:
        >>> import PIL.Image
        >>> rgb_image(PIL.Image.new("CMYK", (1, 1))).getpixel((0, 0))
        (255, 255, 255)
    """
    with _reasons():
        rgb, _, doubts = _rgb(data, white_level)
    for doubt in doubts:
        warnings.warn(doubt, stacklevel=2)
    return rgb


def decode_mask(data: Encoded, image: Orientation | None = None) -> Tensor:
    """Return a mask as int32 (H, W): grey values, palette indices, or 0 and 1 for a 1-bit image.

    Args:
        data: as for `decode_image`.
        image: the image of the mask; the mask is rotated by `turn_mask`, unless it has an EXIF orientation of its own.

    Raises:
        SourceError: if it cannot be read, holds colours, or has another size than its image.

    Example:
        >>> import PIL.Image
        >>> decode_mask(PIL.Image.new("P", (2, 1), 7))
        tensor([[7, 7]], dtype=torch.int32)
    """
    with _reasons():
        mask = _opened(data)
        if mask.mode not in ("1", "L", "P", "I") and not mask.mode.startswith("I;"):
            raise SourceError(f"a mask in mode {mask.mode}: expected one channel of whole numbers, such as mode L or P")
        code, turn = _load(mask)
        values = torch.from_numpy(np.asarray(_turned(mask, turn)).astype(np.int32))
    if image is None:
        return values
    return turn_mask(values, image if code == 1 else image.upright())


def turn_mask(mask: Tensor, image: Orientation) -> Tensor:
    """Rotate a mask (H, W), which has the size of its image as stored, in the same way as the image.

    Raises:
        SourceError: if it has another size, naming both.

    Example:
        >>> turn_mask(torch.tensor([[1, 2]]), Orientation((1, 2), 6))
        tensor([[1],
                [2]])
    """
    if tuple(mask.shape) != image.size:
        stored = "stored with " if image.code > 1 else ""
        raise SourceError(
            f"{mask.shape[1]} x {mask.shape[0]} pixels, and its image is {stored}{image.size[1]} x {image.size[0]}: "
            "expected a mask of the same size" + (", which is turned with its image" if image.code > 1 else "")
        )
    return _turned_pixels(mask, image.code)


def turn_map(pixels: Tensor, image: Orientation) -> Tensor:
    """Rotate a control map (C, H, W) of the whole image, at any resolution, in the same way as the image.

    Raises:
        SourceError: if its aspect ratio is another than that of the image as stored, naming both sizes.

    Example:
        >>> turn_map(torch.zeros(3, 4, 8), Orientation((1, 2), 6)).shape
        torch.Size([3, 8, 4])
    """
    height, width = pixels.shape[-2:]
    if not same_aspect_ratio((height, width), image.size):
        stored = "stored with " if image.code > 1 else ""
        raise SourceError(
            f"{width} x {height} pixels, and its image is {stored}{image.size[1]} x {image.size[0]}: "
            "expected a map of the same aspect ratio" + (", which is turned with its image" if image.code > 1 else "")
        )
    return _turned_pixels(pixels, image.code)


def exif_orientation(image: PIL.Image.Image) -> int:
    """Return the EXIF code of what is needed to turn an image upright; 1 for nothing, and if its EXIF data are damaged.

    Example:
        >>> exif_orientation(PIL.Image.new("L", (4, 2)))
        1
    """
    try:
        code = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # the pixels may be intact even if the EXIF data are damaged
        if is_of_the_machine(error):
            raise
        return 1
    return code if code in _TO_UPRIGHT else 1


def find_file(path: str | Path, folder: Path | None = None) -> Path:
    """Return the path of a file named in a data set, relative to the folder of the data set.

    Raises:
        SourceError: if it is an address, such as ``https://…``.

    Example:
        >>> find_file("images/cat.png", Path("photos")).as_posix()
        'photos/images/cat.png'
    """
    if "://" in str(path):
        raise SourceError(f"{str(path)!r} is an address: images are not downloaded here: {DOWNLOAD}")
    return Path(path) if folder is None else folder / path


def is_of_the_machine(error: BaseException) -> bool:
    """Return whether the machine caused an error, not the image: no memory or file handles left, a lost disk or network.

    A run should then stop instead of skipping the image.

    Example:
        >>> is_of_the_machine(MemoryError()), is_of_the_machine(FileNotFoundError(2, "No such file"))
        (True, False)
    """
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _OF_THE_MACHINE)


def check_folder(folder: Path, error: BaseException) -> None:
    """Raise if an image is missing because the source's whole folder is: a run should then stop instead of skipping the image.

    Args:
        folder: folder of the source. An empty folder counts as gone, because an unmounted file system leaves one.
        error: why the image cannot be read; nothing is checked unless a missing file is the cause.

    Raises:
        FileNotFoundError: if the folder no longer exists, or is empty.

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
    """Turn whatever Pillow's decoders raise for damaged files into a SourceError."""
    try:
        yield
    except SourceError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise SourceError(NOT_AN_IMAGE) from error
    except PIL.Image.DecompressionBombError as error:
        raise SourceError(_too_large(one_line(error).partition(",")[0])) from error
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
    try:
        image = PIL.Image.open(io.BytesIO(content))
    except PIL.Image.DecompressionBombWarning as error:  # where warnings are errors
        raise SourceError(_too_large(one_line(error).partition(",")[0])) from error
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise SourceError(_too_large(f"{image.width} x {image.height} pixels exceed the limit of {limit}"))
    return image


def _too_large(reason: str) -> str:
    return f"too large: {reason}: save a smaller copy, or raise PIL.Image.MAX_IMAGE_PIXELS"


def _content(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would block
        raise SourceError("a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if status.st_size > _FILE_BYTES:
        raise SourceError(f"too large: {status.st_size} bytes, more than {_FILE_BYTES}")
    return path.read_bytes()


def _load(image: PIL.Image.Image) -> tuple[int, int]:
    """Load an image; return its EXIF orientation as stored, and the one still to be applied: Pillow rotates a TIFF itself."""
    stored = exif_orientation(image) if image.format == "TIFF" else None
    image.load()
    turn = exif_orientation(image)
    return turn if stored is None else stored, turn


def _turned(image: PIL.Image.Image, code: int) -> PIL.Image.Image:
    return image.transpose(_TO_UPRIGHT[code]) if code in _TO_UPRIGHT else image


def _turned_pixels(pixels: Tensor, code: int) -> Tensor:
    """Turn (…, H, W) upright by an EXIF code."""
    if code >= 5:
        pixels = pixels.mT
    flipped = {2: [-1], 3: [-2, -1], 4: [-2], 6: [-1], 7: [-2, -1], 8: [-2]}.get(code)
    return pixels.flip(flipped) if flipped else pixels.contiguous()


def _rgb(data: Encoded, white_level: float | WhiteLevel | None) -> tuple[PIL.Image.Image, Orientation, list[str]]:
    """Return an image as RGB, how it was stored, and doubts about the value of its white."""
    image = _opened(data)
    code, turn = _load(image)
    white, doubts = (white_level if isinstance(white_level, WhiteLevel) else WhiteLevel(white_level)).of(image)
    rgb = _turned(_to_rgb(image, white), turn)
    size = (rgb.height, rgb.width)
    return rgb, Orientation(size if code < 5 else size[::-1], code), doubts


def _to_rgb(image: PIL.Image.Image, white: float) -> PIL.Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey(image, white).convert("RGB")
    if image.mode == "La":  # Pillow has no other conversion from this mode
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _grey(image: PIL.Image.Image, white: float) -> PIL.Image.Image:
    """Convert an image with more than 8 bits to 8 by scaling, where Pillow's own conversion would clip."""
    values = np.asarray(image)
    if image.mode == "F" and not np.isfinite(values).all():
        raise SourceError("pixels that are NaN or infinite: expected numbers")
    grey = np.rint(values * np.float32(255 / white)).clip(0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return PIL.Image.fromarray(grey)
