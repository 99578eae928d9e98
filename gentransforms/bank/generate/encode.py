"""Encode generated images into the bytes that a bank holds."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
import torchvision.io  # noqa: F401  # registers the operators
from torch import Tensor

__all__ = ["Encoding", "to_uint8"]

_local = threading.local()


@dataclass(frozen=True)
class Encoding:
    """How a bank's images are encoded.

    Args:
        image_format: ``"jpeg"``, ``"webp"`` or ``"png"``.
        quality: quality of JPEG and WebP, from 1 to 100; None for PNG, which is lossless.

    Example:
        >>> import torch
        >>> Encoding("png").encode(torch.zeros(3, 8, 8))[1:4]
        b'PNG'
    """

    image_format: str
    quality: int | None = None

    @property
    def encoder(self) -> str:
        """The library that encodes, ``"torchvision"`` or ``"pillow"``: their bytes differ, so the manifest names it."""
        return "pillow" if _operator(self.image_format) is None else "torchvision"

    def encode(self, image: Tensor) -> bytes:
        """Encode an image (3, H, W) on the CPU, uint8 or floating in [0, 1]; thread-safe."""
        pixels, operator = to_uint8(image), _operator(self.image_format)
        if operator is not None:
            encoded: Tensor = operator(torch.from_numpy(pixels), *_OPERATORS[self.image_format][1](self.quality))
            return encoded.numpy().tobytes()
        picture = PIL.Image.merge("RGB", [PIL.Image.fromarray(plane) for plane in pixels])
        buffer = io.BytesIO()
        picture.save(buffer, self.image_format, **({} if self.quality is None else {"quality": self.quality}))
        return buffer.getvalue()


def to_uint8(image: Tensor) -> Any:
    """Convert an image (C, H, W) on the CPU, uint8 or floating in [0, 1], to a uint8 NumPy array, rounded as in `GenerativeAugment`.

    The array belongs to this thread and is valid until its next call, because allocating memory costs more than the
    arithmetic. NumPy is used because torch would start threads of its own in each encoder thread.

    Example:
        >>> import torch
        >>> to_uint8(torch.full((1, 1, 2), 0.5)).tolist()
        [[[128, 128]]]
    """
    array = image.numpy()
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if getattr(_local, "shape", None) != array.shape:
        _local.shape, _local.floats, _local.bytes = array.shape, np.empty(array.shape, np.float32), np.empty(array.shape, np.uint8)
    floats, pixels = _local.floats, _local.bytes
    np.multiply(array, np.float32(255), out=floats, casting="same_kind")
    np.rint(floats, out=floats)
    np.clip(floats, 0, 255, out=floats)
    np.copyto(pixels, floats, casting="unsafe")
    return pixels


# torchvision's operators release the GIL while they work, which Pillow's encoders do not. The operators are called directly,
# because since 0.29 their public wrappers warn at each call that they are deprecated.
_OPERATORS: dict[str, Any] = {"jpeg": ("encode_jpeg", lambda quality: (quality,)), "png": ("encode_png", lambda _quality: (6,))}


def _operator(image_format: str) -> Any:
    """Return torchvision's operator, or None if there is none, in which case Pillow encodes."""
    try:
        return getattr(torch.ops.image, _OPERATORS[image_format][0]).default
    except (KeyError, AttributeError, RuntimeError):
        return None
