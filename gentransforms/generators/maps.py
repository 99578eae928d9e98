"""Maps of the height and width of an image — masks and control maps — as tensors, from arrays and PIL images."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from gentransforms.errors import ConfigError, ImageError
from gentransforms.images import to_rows
from gentransforms.wording import name_type

__all__ = ["MAPS", "as_map", "as_maps", "as_tensor"]

MAPS = ("masks", "control_maps", "foreground")  # inputs of the height and width of an image
_WIDE = (torch.uint16, torch.uint32, torch.uint64)  # which torch stores, and hardly computes with


def as_maps(name: str, maps: Any, count: int) -> Tensor | list[Tensor]:
    """Return the maps of `count` images as one tensor with a row for each, or as a list of tensors.

    Args:
        name: of the input, one of `MAPS`.
        maps: a tensor or an array, or a list or tuple of tensors, arrays and PIL images.
        count: the number of images.

    Raises:
        ConfigError: if there is not one for each image, or one is something else.

    Example:
        >>> [tuple(mask.shape) for mask in as_maps("masks", [np.zeros((4, 6), np.uint8), PIL.Image.new("P", (3, 2))], 2)]
        [(4, 6), (1, 2, 3)]
    """
    if isinstance(maps, Tensor | np.ndarray):
        maps = as_map(name, maps)
    if not isinstance(maps, Tensor | list | tuple) or (isinstance(maps, Tensor) and not maps.ndim):
        raise ConfigError(f"{name} is {name_type(maps)}: expected a tensor with an entry for each of {count} images, or a list of them")
    if len(maps) != count:
        raise ConfigError(f"{name} has {len(maps)} entries: expected {count}, one for each image")
    return maps if isinstance(maps, Tensor) else [as_map(name, one) for one in maps]


def as_map(name: str, value: Any) -> Tensor:
    """Return one map as a tensor: of a PIL image (C, H, W), with the values of a mask as they are stored, as `tv_tensors.Mask` keeps them.

    Args:
        name: of the input, one of `MAPS`.
        value: a tensor, an array or a PIL image; a control map in mode RGB or L, as any image.

    Raises:
        ConfigError: if it is something else.

    Example:
        >>> as_map("masks", PIL.Image.new("L", (2, 1), 7)).tolist()
        [[[7, 7]]]
    """
    if isinstance(value, PIL.Image.Image):
        if name == "control_maps":
            try:
                return to_rows(value)[0]
            except ImageError as error:
                raise ConfigError(f"{name}: {error}") from None
        if value.mode.startswith("I;"):  # 16 bits in either order
            value = value.convert("I")
        found = TF.pil_to_tensor(value)
    else:
        found = as_tensor(value) if isinstance(value, np.ndarray) else value
    if not isinstance(found, Tensor):
        kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else name_type(value)
        raise ConfigError(f"{name} holds {kind}: expected tensors, arrays or PIL images, one for each image")
    found = found.as_subclass(Tensor)
    return found.long() if found.dtype in _WIDE else found


def as_tensor(array: np.ndarray | np.generic) -> Any:
    """Return an array as a tensor; as Python objects, in lists, if it holds strings, or anything else that is no number.

    The tensor shares memory with the array only where both could change it.

    Example:
        >>> as_tensor(np.array(["a", "b"])), as_tensor(np.arange(3)[::-1])
        (['a', 'b'], tensor([2, 1, 0]))
    """
    if array.dtype.kind not in "biufc" or array.dtype in (np.longdouble, np.clongdouble):
        return array.tolist()
    # torch takes neither the other byte order nor negative strides, and warns of arrays that are read-only, as those of PIL images are.
    found = torch.as_tensor(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    return found.long() if found.dtype in _WIDE else found
