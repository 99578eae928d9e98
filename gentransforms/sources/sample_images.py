"""Find the image in a sample of a map-style data set, and read its pixels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision import tv_tensors

from gentransforms.errors import SourceError
from gentransforms.sources.decode import Orientation, decode_oriented, find_file
from gentransforms.sources.image_column import INPUT_COLUMNS
from gentransforms.sources.white import WhiteLevel
from gentransforms.wording import name_type

__all__ = ["entries", "first_image", "is_image", "is_stored", "outline", "read_pixels", "same_value"]


def first_image(sample: Any) -> Any:
    """Return the first PIL image, `tv_tensors.Image` or encoded image in a sample, or else its first tensor (C, H, W); or None.

    Raises:
        SourceError: if this one is in a list or dict inside the sample with others of its kind: it need not be the image.

    Example:
        >>> first_image((torch.zeros(3, 8, 8), PIL.Image.new("RGB", (4, 4)))).size
        (4, 4)
    """
    leaves = list(_leaves(sample))
    explicit = (leaf for leaf in leaves if not _is_plain(leaf))
    image = next(explicit, next(iter(leaves), None))
    for group in _groups(sample) if len(leaves) > 1 else ():
        alike = [leaf for leaf in _leaves(group) if _is_plain(leaf) == _is_plain(image)]
        if len(alike) > 1 and any(leaf is image for leaf in alike):
            raise SourceError(f"{name_type(group)} in it holds {len(alike)} images, any of which may be the image")
    return image


def is_image(value: Any) -> bool:
    """Return whether a value is an image by its type; a plain tensor may be one or not.

    Example:
        >>> is_image(PIL.Image.new("RGB", (4, 4))), is_image(torch.zeros(3, 8, 8))
        (True, False)
    """
    return isinstance(value, PIL.Image.Image | tv_tensors.Image | bytes) or is_stored(value)


def is_stored(value: Any) -> bool:
    """Return whether this is an image in the form in which `datasets` stores them.

    Example:
        >>> is_stored({"bytes": None, "path": "cat.png"})
        True
    """
    return isinstance(value, Mapping) and value.keys() == {"bytes", "path"}


def read_pixels(value: Any, white_level: WhiteLevel | None) -> tuple[Tensor, Orientation]:
    """Return an image as a tensor (C, H, W), and how it was stored.

    Raises:
        SourceError: if it is no image, or cannot be read.

    Example:
        >>> read_pixels(PIL.Image.new("L", (4, 2)), None)[0].shape
        torch.Size([3, 2, 4])
    """
    if isinstance(value, Tensor):
        image = value.as_subclass(Tensor).detach()
        if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
            raise SourceError(f"an image of shape {tuple(image.shape)}: expected (C, H, W) with C 1 or 3")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise SourceError(f"an image of dtype {image.dtype}: expected uint8 or floating; use v2.ToDtype(torch.uint8, scale=True)")
        return image.cpu(), Orientation((image.shape[1], image.shape[2]))
    if isinstance(value, Mapping):
        if value.get("bytes") is None and value.get("path") is None:
            raise SourceError("no image in this row")
        value = find_file(value["path"]) if value.get("bytes") is None else value["bytes"]
    if value is None:
        raise SourceError("no image in this row")
    if not isinstance(value, bytes | str | Path | PIL.Image.Image):
        raise SourceError(f"the image is {name_type(value)}: expected a PIL image, a tensor (C, H, W) or an encoded image")
    return decode_oriented(find_file(value) if isinstance(value, str) else value, white_level)


def same_value(first: Any, second: Any) -> bool:
    """Return whether two readings of a value agree; True of values of kinds that cannot be compared, such as a user's own objects.

    Example:
        >>> same_value("a cat", "a dog"), same_value(torch.zeros(2), torch.zeros(2)), same_value(object(), object())
        (False, True, True)
    """
    if first is second:
        return True
    if first is None or second is None:
        return False
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and torch.equal(first.nan_to_num(), second.nan_to_num())
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.array_equal(first, second, equal_nan=first.dtype.kind == second.dtype.kind == "f")
    if isinstance(first, PIL.Image.Image) and isinstance(second, PIL.Image.Image):
        return (first.mode, first.size) == (second.mode, second.size) and first.tobytes() == second.tobytes()
    if isinstance(first, str | bytes | int | float) and isinstance(second, str | bytes | int | float):
        return first == second or (first != first and second != second)
    return True


def entries(sample: Any) -> Collection[tuple[Any, Any]]:
    """Return the parts of a sample with their names: those of a dict, or the places in a tuple or list.

    Example:
        >>> list(entries(("image", 3)))
        [(0, 'image'), (1, 3)]
    """
    return sample.items() if isinstance(sample, Mapping) else list(enumerate(sample)) if isinstance(sample, tuple | list) else []


def outline(sample: Any) -> str:
    """Describe the structure of a sample, for error messages.

    Example:
        >>> outline((1, "a"))
        'a tuple of int, str'
    """
    if isinstance(sample, Mapping):
        return "a dict of " + ", ".join(f"{name!r}: {type(value).__name__}" for name, value in sample.items())
    if isinstance(sample, tuple | list):
        return f"{name_type(sample)} of " + ", ".join(type(value).__name__ for value in sample)
    return name_type(sample)


def _leaves(sample: Any) -> Iterator[Any]:
    """Yield everything in a sample that may be an image, in order."""
    if is_image(sample) or _is_plain(sample):
        yield sample
    else:
        for name, value in entries(sample):
            if name not in INPUT_COLUMNS:
                yield from _leaves(value)


def _groups(sample: Any) -> Iterator[Any]:
    """Yield the lists, tuples and dicts inside a sample; not itself, as in many data sets a mask follows the image."""
    for _, value in entries(sample):
        if not is_image(value) and entries(value):
            yield value
            yield from _groups(value)


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, tv_tensors.TVTensor) and value.ndim >= 3
