"""From a generated image to the bytes that a bank holds."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from torch import Tensor

from gentransforms.errors import ConfigError

__all__ = ["FORMATS", "Encoding", "to_uint8"]

FORMATS = ("jpeg", "webp", "png")
_local = threading.local()


@dataclass(frozen=True)
class Encoding:
    """How a bank's images are encoded.

    Args:
        image_format: ``"jpeg"``, ``"webp"`` or ``"png"``.
        quality: from 1 to 100; of JPEG and WebP. PNG loses nothing and ignores it.

    Raises:
        ConfigError: if one is outside that.

    Example:
        >>> import torch
        >>> Encoding("png").encode(torch.zeros(3, 8, 8))[1:4]
        b'PNG'
    """

    image_format: str = "jpeg"
    quality: int = 90

    def __post_init__(self) -> None:
        if self.image_format not in FORMATS:
            raise ConfigError(f"image_format={self.image_format!r}: expected one of {', '.join(map(repr, FORMATS))}")
        if type(self.quality) is not int or not 1 <= self.quality <= 100:
            raise ConfigError(f"quality={self.quality!r}: expected an integer from 1 to 100")

    def encode(self, image: Tensor) -> bytes:
        """Return the bytes of an image (3, H, W) on the CPU: uint8, or floating in [0, 1]; safe in several threads."""
        # Pillow joins the planes faster than NumPy or torch bring the channels last.
        picture = PIL.Image.merge("RGB", [PIL.Image.fromarray(plane) for plane in to_uint8(image)])
        buffer = io.BytesIO()
        picture.save(buffer, self.image_format, **({} if self.image_format == "png" else {"quality": self.quality}))
        return buffer.getvalue()


def to_uint8(image: Tensor) -> Any:
    """Return an image (C, H, W) on the CPU, uint8 or floating in [0, 1], as a NumPy array of uint8, rounded as by `GenerativeAugment`.

    NumPy and a buffer of each thread, because torch would start threads of its own in each of the encoder's.

    Example:
        >>> import torch
        >>> to_uint8(torch.full((1, 1, 2), 0.5)).tolist()
        [[[128, 128]]]
    """
    array = image.numpy()
    if array.dtype == np.uint8:
        return array
    buffer = getattr(_local, "buffer", None)
    if buffer is None or buffer.shape != array.shape:
        buffer = _local.buffer = np.empty(array.shape, np.float32)
    np.multiply(array, np.float32(255), out=buffer, casting="same_kind")
    np.rint(buffer, out=buffer)
    np.clip(buffer, 0, 255, out=buffer)
    return buffer.astype(np.uint8)
