"""Find boxes and key points in a sample by the names of its entries: as plain tensors and lists, they look like any other numbers."""

from __future__ import annotations

import re
from collections import UserDict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision import tv_tensors

__all__ = ["find_coordinates"]

# As the targets of torchvision, COCO, DETR, Pascal VOC, albumentations, kornia, Ultralytics and OpenMMLab are named.
_NAMES = re.compile(
    r"(?!(?:num|n|max|has)_)(?:.*[_.-])?(?:boxes|bbox|bboxes|bndbox|key_?points|landmarks)(?:[_-](?:xyxy|xywh|cxcywh|yxyx))?", re.IGNORECASE
)
_NUMBER = re.compile(r"\s*-?\d+(?:\.\d*)?\s*")
# What most samples hold: for these alone, a look at the type is enough.
_LEAVES = frozenset({Tensor, tv_tensors.Image, tv_tensors.Mask, PIL.Image.Image, np.ndarray, int, float, str, bytes, bool, type(None)})


def find_coordinates(sample: Any) -> str | None:
    """Return the place of the first entry of a sample that is named as boxes or key points are, and holds numbers; None if none is.

    Entries of dicts and named tuples are looked at, in lists too, and the fields of a dataclass. This is quick, because it reads no value
    whose name is another, and looks into no long list of numbers or strings.

    Args:
        sample: the sample as passed in.

    Example:
        >>> find_coordinates(("image", [{"bbox": [1.0, 1.0, 8.0, 8.0], "category_id": 1}]))
        "[1][0]['bbox']"
        >>> find_coordinates(("image", {"boxes": [], "labels": [3]}))
    """
    kind = type(sample)
    if kind in _LEAVES:
        return None
    if isinstance(sample, dict | UserDict):
        return _find(sample, sample.values(), "[{!r}]") or _find_inside(sample.items(), "[{!r}]")
    if isinstance(sample, list | tuple):
        names = getattr(kind, "_fields", ())
        if names and (found := _find(names, sample, ".{}")) is not None:
            return found
        if names:
            return _find_inside(zip(names, sample, strict=False), ".{}")
        return None if _is_plain(sample) else _find_inside(enumerate(sample), "[{}]")
    fields = getattr(kind, "__dataclass_fields__", ())
    # No further, because what a dataclass refers to may refer to it.
    return _find(fields, [getattr(sample, name, None) for name in fields], ".{}") if fields else None


def _find(names: Iterable[Any], values: Iterable[Any], form: str) -> str | None:
    for name, value in zip(names, values, strict=False):
        if isinstance(name, str) and _is_named_so(name) and _holds_numbers(value):
            return form.format(name)
    return None


def _find_inside(parts: Iterable[tuple[Any, Any]], form: str) -> str | None:
    for place, part in parts:
        found = find_coordinates(part)
        if found is not None:
            return form.format(place) + found
    return None


def _is_plain(sample: Sequence[Any]) -> bool:
    """Whether a list is a long one of numbers or strings, such as a polygon, judged by its ends."""
    return len(sample) > 8 and isinstance(sample[0], float | int | str) and isinstance(sample[-1], float | int | str)


@lru_cache(maxsize=1024)
def _is_named_so(name: str) -> bool:
    return _NAMES.fullmatch(name) is not None


def _holds_numbers(value: Any, *, alone: bool = False) -> bool:
    """Whether a value is a tensor or an array that is not empty, or a list or dict of numbers; in Pascal VOC they are strings."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim > 0 and 0 not in value.shape and value.dtype not in (torch.bool, np.bool_)
    if isinstance(value, Mapping):
        return any(_holds_numbers(item, alone=True) for item in value.values())
    if isinstance(value, str):
        return alone and _NUMBER.fullmatch(value) is not None
    if isinstance(value, Sequence):
        return any(_holds_numbers(item, alone=True) for item in value)
    return alone and isinstance(value, int | float | np.number) and not isinstance(value, bool)
