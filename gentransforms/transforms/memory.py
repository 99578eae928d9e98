"""Copy what a result shares with the sample it was made of, so that changing one in place leaves the other as it was."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

__all__ = ["copy_shared", "find_changed", "note_versions"]


class _Span(NamedTuple):
    """Bytes from `start` to `stop` of a device's memory; of what has no address, places in a space of its own."""

    space: str
    start: int
    stop: int


# Inside a graph there are no addresses.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def copy_shared(result: Any, sample: Any) -> Any:
    """Return `result` with copies of the tensors, arrays and PIL images in it that are, or share memory with, those in `sample`.

    Tensors share memory if their storages overlap, also of different views and with arrays. A tensor without an address, such as one
    of `torch.func`, is copied if `sample` has such a tensor too. Copies keep their class, attributes and gradients.

    Example:
        >>> photo = torch.zeros(3, 8, 8)
        >>> crop, label = copy_shared((photo[:, 2:6, 2:6], 3), (photo, 3))
        >>> _ = crop.add_(1)
        >>> photo.max().item(), label
        (0.0, 3)
    """
    taken = _join(span for leaf in tree_leaves(sample) if (span := _span(leaf)) is not None)
    flat, spec = tree_flatten(result)
    return tree_unflatten([_copy(leaf) if _overlaps(_span(leaf), taken) else leaf for leaf in flat], spec)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def note_versions(sample: Any) -> list[tuple[Tensor, int]]:
    """Return the tensors of a sample and how often each was changed in place; without those of inference mode, which do not count it.

    Example:
        >>> note_versions((torch.zeros(2), 3))
        [(tensor([0., 0.]), 0)]
    """
    return [(leaf, leaf._version) for leaf in tree_leaves(sample) if isinstance(leaf, Tensor) and not leaf.is_inference()]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def find_changed(versions: Sequence[tuple[Tensor, int]]) -> Tensor | None:
    """Return the first tensor that was changed in place since `note_versions`, or None.

    Example:
        >>> tensor = torch.zeros(2)
        >>> versions = note_versions([tensor])
        >>> _ = tensor[:1].add_(1)
        >>> find_changed(versions)
        tensor([1., 0.])
    """
    return next((tensor for tensor, version in versions if tensor._version != version), None)


def _span(leaf: Any) -> _Span | None:
    """Where a leaf lies; None if it has nothing that could be changed."""
    if isinstance(leaf, Tensor):
        return _span_of_tensor(leaf)
    if isinstance(leaf, PIL.Image.Image):
        return _Span("PIL", id(leaf), id(leaf) + 1)
    if not isinstance(leaf, np.ndarray) or not leaf.size:
        return None
    # np.byte_bounds has another place in each numpy.
    start = leaf.__array_interface__["data"][0]
    steps = [(count - 1) * step for count, step in zip(leaf.shape, leaf.strides, strict=True)]
    return _Span("cpu", start + sum(min(step, 0) for step in steps), start + sum(max(step, 0) for step in steps) + leaf.itemsize)


def _span_of_tensor(tensor: Tensor) -> _Span | None:
    if not tensor.numel():
        return None
    try:
        storage = tensor.untyped_storage()
        start = 0 if storage.device.type == "meta" else storage.data_ptr()  # also for fake tensors, for which it is deprecated
    except (RuntimeError, NotImplementedError):  # sparse, or of torch.func
        start = 0
    # Without an address (or 0, as for a subclass that wraps others) its memory may be that of any other such tensor.
    return _Span(str(tensor.device), start, start + storage.nbytes()) if start else _Span("nowhere", 0, 1)


def _join(spans: Iterable[_Span]) -> dict[str, tuple[list[int], list[int]]]:
    """Return for each space the sorted starts, and the furthest stop among the spans up to each."""
    spaces = defaultdict(list)
    for space, start, stop in spans:
        spaces[space].append((start, stop))
    joined = {}
    for space, bounds in spaces.items():
        bounds.sort()
        joined[space] = [start for start, _ in bounds], list(accumulate((stop for _, stop in bounds), max))
    return joined


def _overlaps(span: _Span | None, taken: dict[str, tuple[list[int], list[int]]]) -> bool:
    if span is None or span.space not in taken:
        return False
    starts, stops = taken[span.space]
    before = bisect_left(starts, span.stop)  # how many begin before the span ends
    return before > 0 and stops[before - 1] > span.start


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf.copy(order="K")
    if not isinstance(leaf, Tensor):
        return leaf.copy()
    copy = leaf.clone()
    if type(copy) is type(leaf):
        vars(copy).update(vars(leaf))
    return copy
