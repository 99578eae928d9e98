"""Hand the images of a sample to a user's `transform` one by one, and make the new images all at once nevertheless."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from gentransforms.images import Image
from gentransforms.transforms.memory import find_changed, note_versions

__all__ = ["ImageParams", "split_params"]

Results = tuple[list[Image], Tensor]
_LISTS = ("keys", "origins")  # params of ours that are lists with one entry per image


class ImageParams(dict[str, Any]):
    """The params of one image, or batch, of a sample, as `transform` gets them.

    Args:
        params: those of this image.
        image: the image.
        find: makes the new images of the whole sample, when it is first called, and returns this one and which of its rows are new.

    Attributes:
        replaced: which of its rows were replaced, (n,) bool; the selection as long as that is not known.
    """

    def __init__(self, params: dict[str, Any], image: Image, find: Callable[[], tuple[Image, Tensor]]) -> None:
        super().__init__(params)
        self.replaced: Tensor = params["chosen"]
        self._image, self._find = image, find
        self._leaves, self._spec = tree_flatten(params)
        self._versions = note_versions(self._leaves)

    def find(self, image: Image) -> tuple[Image, Tensor] | None:
        """Return the new image and which of its rows are new; None for another image, or if these params were changed."""
        leaves, spec = tree_flatten(dict(self))
        same = image is self._image and spec == self._spec and all(a is b for a, b in zip(leaves, self._leaves, strict=True))
        return self._find() if same and find_changed(self._versions) is None else None


def split_params(images: Sequence[Image], counts: Sequence[int], params: dict[str, Any], make: Callable[[], Results]) -> list[ImageParams]:
    """Return the params of each image.

    Tensors with a row for each image are split, and so are the lists that our own transforms draw; all else is whole in each.

    Args:
        images: the images of a sample.
        counts: how many each of them holds, N in total.
        params: drawn for all of them.
        make: returns the new images, and which of the N are new.
    """
    results: list[Results] = []

    def find(i: int) -> tuple[Image, Tensor]:
        if not results:
            results.append(make())
        outputs, replaced = results[0]
        return outputs[i], torch.split(replaced, list(counts))[i]

    out, start = [], 0
    for i, (image, count) in enumerate(zip(images, counts, strict=True)):
        own = {name: _rows(name, value, slice(start, start + count), sum(counts)) for name, value in params.items()}
        out.append(ImageParams(own, image, lambda i=i: find(i)))  # type: ignore[misc]
        start += count
    return out


def _rows(name: str, value: Any, rows: slice, count: int) -> Any:
    if name == "inputs":
        return {key: _rows("keys", inner, rows, count) for key, inner in value.items()}
    if isinstance(value, Tensor):
        part = value[rows] if value.ndim and len(value) == count else value
        return part.clone() if part.is_inference() else part  # whose changes are not counted
    return value[rows] if name in _LISTS and len(value) == count else value
