"""Say what in a sample may be a mask that is not marked as one, so that it stays as it was, or is taken for an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms import v2

from gentransforms.errors import ImageError
from gentransforms.images import to_rows
from gentransforms.wording import name_type

__all__ = ["name_doubt", "name_two_valued", "refuse_mask_modes"]

_MASK_MODES = ("1", "P", "I", "F")  # in which masks, labels of pixels and depths are stored; photos seldom


def refuse_mask_modes(flat: Sequence[Any], places: Sequence[int]) -> None:
    """Raise for a PIL image that may be a mask: it has another image of its size beside it, and a mode that cannot be read.

    The advice for that mode alone would have the mask converted to an image, which is then replaced without a word.

    Args:
        flat: the leaves of the sample.
        places: which of them are taken for images.

    Raises:
        ImageError: naming what to do with a mask, and with an image.

    Example:
        >>> refuse_mask_modes([PIL.Image.new("P", (8, 8)), 3], [0])
    """
    for i in places:
        image = flat[i]
        if not isinstance(image, PIL.Image.Image) or image.mode.partition(";")[0] not in _MASK_MODES:
            continue
        size = (image.height, image.width)
        if any(k != i and _is_image_like(leaf) and _shape(leaf)[-2:] == size for k, leaf in enumerate(flat)):
            try:
                to_rows(image)
            except ImageError as error:
                raise ImageError(
                    f"PIL image in mode {image.mode!r} beside another image of its size: if it is a mask, wrap it, as it is, in "
                    f"tv_tensors.Mask(mask), which keeps its values; if it is an image: {str(error).partition(': ')[2]}"
                ) from None


def name_doubt(flat: Sequence[Any], places: Sequence[int], left: bool) -> str | None:
    """Return why something in a sample may be a mask that is not marked as one, to be said in a warning; None if nothing may.

    Args:
        flat: the leaves of the sample.
        places: which of them are taken for images.
        left: whether to look at what is left as it was, too: a mask of a new image of another layout would be wrong.

    Example:
        >>> import torch
        >>> batch = [torch.zeros(4, 3, 8, 8), torch.zeros(4, 1, 8, 8)]
        >>> name_doubt(batch, [0], True)
        'the plain tensor (4, 3, 8, 8) was taken for the image, and a tensor of this height and width, (4, 1, 8, 8), was left as it was'
        >>> name_doubt(batch, [0], False)
    """
    images = [flat[i] for i in places]
    modes = {(image.mode, image.size) for image in images if isinstance(image, PIL.Image.Image)}
    if any(("RGB", size) in modes for mode, size in modes if mode == "L"):
        return "PIL images of the modes RGB and L and of one size were all taken for images"
    taken = {i: _shape(image) for i, image in zip(places, images, strict=True)}
    others = {i: _shape(leaf) for i, leaf in enumerate(flat) if i not in taken and _may_be_mask(leaf)}
    for i, other in others.items():
        for k, shape in taken.items():
            channels = _channels_beside(other, shape)
            if channels is None:
                continue
            plain = v2._utils.is_pure_tensor(flat[k])  # beside a named image there is no doubt which of the two is one
            if plain and other[-2:] == shape[-2:]:
                another_view = channels == shape[-3] and flat[i].dtype == flat[k].dtype
            else:
                another_view = channels == shape[-3] == 3 and _may_hold_pixels(flat[i])
            coloured = plain and other[:-2] == (*shape[:-3], 3) and shape[-3] != 3
            if (left and not another_view) or coloured:
                kind = "an array" if isinstance(flat[i], np.ndarray) else "a tensor"
                return f"{_name_image(flat[k])} was taken for the image, and {kind} of this height and width, {other}, was left as it was"
    return None


def name_two_valued(flat: Sequence[Any], places: Sequence[int], left: bool) -> str | None:
    """Return why one of several tensors of the form of an image may be a mask: it has two values only; None if none may.

    This reads the values, which takes a pass over them and a device sync.

    Example:
        >>> import torch
        >>> batch = [torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8).round()]
        >>> name_two_valued(batch, [0, 1], True)
        'all plain tensors of a list were taken for images, and one of them, (4, 1, 8, 8), has two values only'
        >>> name_two_valued(batch, [0], True)
        'the plain tensor (4, 1, 8, 8) was taken for the image, and another, which has two values only, was left as it was'
    """
    tensors = {
        i: leaf for i, leaf in enumerate(flat) if v2._utils.is_pure_tensor(leaf) and leaf.ndim > 2 and leaf.numel() and not leaf.is_meta
    }
    taken = [i for i in places if i in tensors]
    if not taken or len(taken) < len(places):
        return _name_two_valued_beside([flat[i] for i in places if i not in taken], list(tensors.values())) if left else None
    first = tensors[taken[0]]
    if len(taken) > 1:
        two = [i for i in taken if _has_two_values(tensors[i])]
        if two and len(two) < len(taken):
            return (
                f"all plain tensors of a list were taken for images, and one of them, {tuple(tensors[two[0]].shape)}, has two values only"
            )
        return None
    alike = [i for i, t in tensors.items() if i not in taken and (t.shape, t.dtype) == (first.shape, first.dtype)]
    if left and any(_has_two_values(tensors[i]) for i in alike) and not _has_two_values(first):
        return f"the plain tensor {tuple(first.shape)} was taken for the image, and another, which has two values only, was left as it was"
    return None


def _name_two_valued_beside(images: Sequence[Any], tensors: Sequence[Tensor]) -> str | None:
    """The same for tensors beside named images, such as three masks (3, H, W) beside one in colour."""
    for image in images:
        alike = [t for t in tensors if t.shape[-3:] == _shape(image)[-3:]]
        if any(map(_has_two_values, alike)) and not _has_two_values(to_rows(image)):
            return f"{_name_image(image)} was taken for the image, and a tensor of its form, which has two values only, was left as it was"
    return None


def _shape(leaf: Any) -> tuple[int, ...]:
    """The shape of an image, (…, C, H, W), or of what may be a mask."""
    return (len(leaf.getbands()), leaf.height, leaf.width) if isinstance(leaf, PIL.Image.Image) else tuple(leaf.shape)


def _channels_beside(other: tuple[int, ...], image: tuple[int, ...]) -> int | None:
    """How many maps of the height and width of an image (…, C, H, W) a shape has for each image, 0 if they have no dimension of
    their own; None if it is something else.

    Maps are (…, H, W), (…, K, H, W) or (…, H, W, K), or for one image of a batch, (K, H, W).
    """
    lead, size = image[:-3], image[-2:]
    if other == (*lead, *size):
        return 0
    if len(other) > 2 and other[-2:] == size and other[:-3] in (lead, ()):
        return other[-3]
    return other[-1] if len(other) > 2 and other[:-1] == (*lead, *size) else None


def _may_hold_pixels(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.dtype == torch.uint8 or leaf.is_floating_point()
    return leaf.dtype == np.uint8 or np.issubdtype(leaf.dtype, np.floating)


def _may_be_mask(leaf: Any) -> bool:
    return (v2._utils.is_pure_tensor(leaf) or isinstance(leaf, np.ndarray)) and leaf.ndim > 1


def _is_image_like(leaf: Any) -> bool:
    return isinstance(leaf, PIL.Image.Image) or (isinstance(leaf, Tensor) and leaf.ndim > 2 and leaf.shape[-3] in (1, 3))


def _name_image(image: Any) -> str:
    if isinstance(image, PIL.Image.Image):
        return f"the PIL image of {image.width} x {image.height} pixels"
    kind = "plain tensor" if v2._utils.is_pure_tensor(image) else name_type(image).partition(" ")[2]
    return f"the {kind} {tuple(image.shape)}"


def _has_two_values(tensor: Tensor) -> bool:
    low, high = tensor.detach().aminmax()
    return bool((low < high) & ((tensor == low) | (tensor == high)).all())
