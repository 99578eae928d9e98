"""What transforms that replace images share: their arguments, what may stand beside an image, and putting the new ones in place."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import Tensor
from torchvision import tv_tensors

from gentransforms.errors import ConfigError, ImageError
from gentransforms.images import Image, centre, from_unit, resize, restore, rows_of, to_unit

__all__ = ["check_companions", "framed", "images_in", "output_size_of", "probability", "scatter", "take"]


def probability(p: object) -> float:
    """Return `p` as a float.

    Raises:
        ConfigError: if it is not a number in [0, 1].

    Example:
        >>> probability(1)
        1.0
    """
    if isinstance(p, bool) or not isinstance(p, Real) or not 0 <= float(p) <= 1:
        raise ConfigError(f"p={p!r}: expected a number in [0, 1]")
    return float(p)


def output_size_of(size: object, names: Sequence[str] = ("input", "generator")) -> str | tuple[int, int]:
    """Return `size` if it is one of `names`, or two positive integers.

    Raises:
        ConfigError: otherwise.

    Example:
        >>> output_size_of([32, 48])
        (32, 48)
    """
    if isinstance(size, str) and size in names:
        return size
    if isinstance(size, tuple | list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
        return size[0], size[1]
    known = ", ".join(f'"{name}"' for name in names)
    raise ConfigError(f"output_size={size!r}: expected {known} or (height, width) in pixels")


def check_companions(flat: Sequence[Any], generator: str, preserves_geometry: bool, output_size: str | tuple[int, int]) -> None:
    """Refuse, by name, what stands beside the images of a sample and would become wrong.

    Args:
        flat: the leaves of the sample.
        generator: name of what makes the new images.
        preserves_geometry: whether it keeps the layout of an image.
        output_size: ``"input"``, or whatever changes the size.

    Raises:
        ImageError: for a video; for boxes, masks and key points of a layout or size that changes.

    Example:
        >>> check_companions(["a label"], "ICGAN", False, "input")
    """
    for inpt in flat:
        if isinstance(inpt, tv_tensors.Video):
            raise ImageError("the sample holds a tv_tensors.Video: expected images; frames would not agree with each other")
        if not isinstance(inpt, tv_tensors.BoundingBoxes | tv_tensors.Mask | tv_tensors.KeyPoints):
            continue
        kind = f"tv_tensors.{type(inpt).__name__}"
        if not preserves_geometry:
            raise ImageError(
                f"the sample holds {kind} and {generator} does not keep the layout of an image "
                "(preserves_geometry=False), so they would be wrong: use a generator that does, such as ControlNetVariation"
            )
        if output_size != "input":
            raise ImageError(
                f"the sample holds {kind}, which output_size={output_size!r} would make wrong: "
                'use output_size="input" and a v2.Resize after it'
            )


def images_in(flat: Sequence[Any], needed: Sequence[bool]) -> tuple[list[int], list[Image], list[Tensor]]:
    """Return the places of the images in a flattened sample, the images, and each as rows (N, C, H, W).

    Called before a getter is, so that an image of a wrong kind is refused before the getter speaks of what it does not know.

    Args:
        flat: the leaves of the sample.
        needed: which of them are to be transformed, as torchvision decides it.

    Raises:
        ImageError: if one is of another kind.

    Example:
        >>> import torch
        >>> places, images, rows = images_in(["text", torch.zeros(3, 4, 4)], [False, True])
        >>> places, rows[0].shape
        ([1], torch.Size([1, 3, 4, 4]))
    """
    places = [i for i, wanted in enumerate(needed) if wanted]
    images = [flat[i] for i in places]
    return places, images, [rows_of(image) for image in images]


def framed(rows: Tensor, size: Sequence[int], generator_size: Sequence[int], preserves_geometry: bool) -> Tensor:
    """Return rows (N, C, H, W) at `size` (h, w), own dtype: the part of each image that a generated one shows.

    So that both kinds look alike in one batch: the whole image where the generator keeps geometry, else its centre
    rectangle of the generator's aspect ratio.

    Example:
        >>> import torch
        >>> framed(torch.zeros(2, 3, 8, 6), (4, 4), (16, 16), False).shape
        torch.Size([2, 3, 4, 4])
    """
    if tuple(rows.shape[-2:]) == tuple(size):
        return rows
    seen = rows if preserves_geometry else centre(rows, generator_size)
    return from_unit(resize(to_unit(seen), size), like=rows)


def take(rows: Tensor, chosen: Tensor) -> Tensor:
    """Return the chosen rows, (N,) bool on the CPU, without a copy when all are.

    Example:
        >>> import torch
        >>> take(torch.arange(3), torch.tensor([True, False, True])).tolist()
        [0, 2]
    """
    if bool(chosen.all()):
        return rows
    return rows[chosen.nonzero().squeeze(1).to(rows.device, non_blocking=True)]


def scatter(base: Tensor, image: Image, chosen: Tensor, new: Tensor) -> Image:
    """Return `base` (N, C, h, w) with its chosen rows replaced by `new`, with the structure of `image`.

    Example:
        >>> import torch
        >>> scatter(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), torch.tensor([False, True]), torch.ones(1, 1, 1, 1)).flatten()
        tensor([0., 1.])
    """
    if len(new) == len(base):
        return restore(new, image)
    index = chosen.nonzero().squeeze(1).to(base.device, non_blocking=True)
    return restore(base.index_copy(0, index, new), image)
