"""Look into a sample: find its images, check what comes with them, and describe a sample without images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from gentransforms.errors import ImageError
from gentransforms.images import Image
from gentransforms.wording import name_type

__all__ = ["check_companions", "describe_counted", "describe_leaves", "find_images"]


def find_images(sample: Any, flat: Sequence[Any], needed: Sequence[bool]) -> tuple[list[int], list[Image]]:
    """Return the positions of the images in a flattened sample, and the images.

    Images are what torchvision takes for images: PIL images and `tv_tensors.Image`, or else the first plain tensor. A list
    that consists of plain tensors that differ in height and width at most is a batch of views: each of them is an image.

    Args:
        sample: the sample as passed in.
        flat: its leaves.
        needed: which leaves torchvision would transform.

    Example:
        >>> import torch
        >>> views = [torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 6, 6), torch.zeros(4, 3, 6, 6)]
        >>> find_images(views, views, [True, False, False])[0]
        [0, 1, 2]
    """
    places = list(range(len(flat))) if _are_views(sample) else [i for i, wanted in enumerate(needed) if wanted]
    # A parameter is returned as a plain tensor, selected or not.
    images = [flat[i].as_subclass(Tensor) if isinstance(flat[i], nn.Parameter) else flat[i] for i in places]
    return places, images


def check_companions(flat: Sequence[Any], generator: str, preserves_geometry: bool, output_size: str | tuple[int, int]) -> None:
    """Raise if something that comes with the images of a sample would become wrong.

    Args:
        flat: the leaves of the sample.
        generator: name of the generator, for messages.
        preserves_geometry: whether it keeps the layout of an image.
        output_size: ``"input"``, or a value that changes the size.

    Raises:
        ImageError: for a video, and for boxes, masks and key points if layout or size change.

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


def describe_leaves(flat: Sequence[Any]) -> str:
    """Describe the contents of a sample without an image, and how to turn them into one.

    Example:
        >>> import numpy as np
        >>> describe_leaves([np.zeros((4, 4, 3), np.uint8), 7])
        'a NumPy array (4, 4, 3) of uint8 (use v2.ToImage() before), an int'
    """
    named = list(dict.fromkeys(map(_describe, flat)))
    return ", ".join(named[:6]) + (", …" if len(named) > 6 else "")


def describe_counted(images: Sequence[Image]) -> str:
    """Return what was taken for the images of a sample, and how to say what is none, as the end of a message; "" of one image or batch.

    Example:
        >>> describe_counted([PIL.Image.new("RGB", (6, 4)), PIL.Image.new("L", (6, 4))])
        ' (PIL RGB 6 x 4, PIL L 6 x 4): if one of these is a mask, wrap it in tv_tensors.Mask(mask), as it is'
    """
    if len(images) < 2:
        return ""
    pictures = [image for image in images if isinstance(image, PIL.Image.Image)]
    named = [
        f"PIL {image.mode} {image.width} x {image.height}" if isinstance(image, PIL.Image.Image) else str(tuple(image.shape))
        for image in images[:4]
    ]
    hint = "wrap it in tv_tensors.Mask(mask), as it is" if pictures else "make the images tv_tensors.Image"
    what = "a mask" if pictures else "no image"
    return f" ({', '.join(named)}{', …' if len(images) > 4 else ''}): if one of these is {what}, {hint}"


def _are_views(sample: Any) -> bool:
    if type(sample) is not list or len(sample) < 2 or not all(v2._utils.is_pure_tensor(view) and view.ndim > 2 for view in sample):
        return False
    first = sample[0]
    return all((view.shape[:-2], view.dtype, view.device) == (first.shape[:-2], first.dtype, first.device) for view in sample)


def _describe(leaf: Any) -> str:
    if isinstance(leaf, np.ndarray):
        return f"a NumPy array {leaf.shape} of {leaf.dtype} (use v2.ToImage() before)"
    if isinstance(leaf, PIL.Image.Image | Tensor):  # a mask or boxes
        return f"{name_type(leaf)} {tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf.size}"
    if isinstance(leaf, Mapping):
        return f"{name_type(leaf)}, which is not searched for images (pass dict(sample) instead)"
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        return f"{name_type(leaf)}, which is not searched for images (pass its image instead)"
    return name_type(leaf)
