"""Say when a sample holds many images of one kind as plain tensors, of which only the first is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torchvision.transforms import v2

__all__ = ["count_overlooked"]


def count_overlooked(sample: Any, flat: Sequence[Any], places: Sequence[int]) -> int:
    """Return how many plain tensors of a sample are images like the one that was taken; 0 if there is no other.

    Found are a list of samples, of which each has one, and what ``zip`` makes of such a list: a list of images (C, H, W) beside
    equally long lists. An image beside a list of views is neither, nor is a list of views beside a label.

    Args:
        sample: the sample as passed in.
        flat: its leaves.
        places: which of them are taken for images.

    Example:
        >>> import torch
        >>> samples = [(image, 5) for image in torch.zeros(4, 3, 8, 8)]
        >>> count_overlooked(samples, [leaf for pair in samples for leaf in pair], [0])
        4
        >>> count_overlooked(samples[0], samples[0], [0])
        0
    """
    if len(places) != 1 or not v2._utils.is_pure_tensor(flat[places[0]]):
        return 0
    taken = flat[places[0]]
    for column in _columns(sample):
        if column[0] is taken and len(column) > 1 and taken.ndim > 2 and all(_kind(other) == _kind(taken) for other in column):
            return len(column)
    return 0


def _columns(sample: Any) -> Iterator[Sequence[Any]]:
    """Yield what may be the images of several samples."""
    parts = list(sample.values()) if type(sample) is dict else sample
    if not isinstance(parts, list | tuple) or len(parts) < 2:
        return
    if type(sample) is not dict and isinstance(parts[0], list | tuple | dict) and all(type(part) is type(parts[0]) for part in parts):
        names = [list(part) if isinstance(part, Mapping) else range(len(part)) for part in parts]
        if all(other == names[0] for other in names):
            yield from ([part[name] for part in parts] for name in names[0])
    if all(isinstance(part, list | tuple) and len(part) == len(parts[0]) for part in parts):
        yield from (part for part in parts if part and getattr(part[0], "ndim", 0) == 3)


def _kind(leaf: Any) -> Any:
    """What images of one data set have in common: a plain tensor's dtype, dimensions and channels."""
    return (leaf.dtype, leaf.ndim, leaf.shape[-3]) if v2._utils.is_pure_tensor(leaf) and leaf.ndim > 2 else None
