"""Bring what a transform's getters return into the form of one value per image."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from gentransforms.errors import ConfigError
from gentransforms.generators.maps import MAPS, as_map, as_tensor
from gentransforms.images import Image, count_images, same_aspect_ratio
from gentransforms.seeding import check_seeds
from gentransforms.sources.keys import as_keys
from gentransforms.transforms.samples import describe_counted
from gentransforms.wording import name_type

__all__ = ["gather", "per_image_inputs", "per_image_keys", "per_image_seeds"]


def per_image_seeds(seeds: Any, images: Sequence[Image]) -> Tensor:
    """Return (N,) int64 seeds on the CPU from an int, a list of ints or an int64 tensor, one for each of N images.

    For a batch (…, C, H, W), the seeds may also have the batch's leading dimensions.

    Raises:
        ConfigError: for another type, dtype or count.

    Example:
        >>> import torch
        >>> per_image_seeds(7, [torch.zeros(3, 4, 4)])
        tensor([7])
    """
    if not isinstance(seeds, Tensor):
        try:
            seeds = torch.tensor(seeds, device="cpu")
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ConfigError(f"seeds_getter returned {seeds!r}: expected one int64 seed per image ({error})") from None
    seeds = seeds.as_subclass(Tensor)
    if seeds.shape in ((), _leading(images)):
        seeds = seeds.reshape(-1)
    if not seeds.numel() and seeds.is_floating_point():
        seeds = seeds.long()  # an empty list, which torch takes for float
    try:
        # Tensors on other devices are copied to the CPU; a meta tensor has no data to copy, and is refused below.
        return check_seeds(seeds if seeds.is_meta else seeds.cpu(), count_images(images))
    except ConfigError as error:
        counted = describe_counted(images) if seeds.shape != (count_images(images),) else ""
        raise ConfigError(f"seeds_getter: {error}{counted}") from None


def per_image_keys(keys: Any, images: Sequence[Image]) -> list[str | int]:
    """Return the key of each of N images from one key, or a list, tuple, array or integer tensor of N keys.

    For a batch (…, C, H, W), a tensor may also have the batch's leading dimensions.

    Raises:
        ConfigError: for another type or count.

    Example:
        >>> import torch
        >>> per_image_keys("cats/1.jpg", [torch.zeros(3, 4, 4)])
        ['cats/1.jpg']
    """
    if isinstance(keys, Tensor | np.ndarray):
        keys = keys.reshape(-1)
    elif isinstance(keys, str | bytes) or not isinstance(keys, Sequence):
        keys = [keys]
    found, count = as_keys(keys, "keys_getter"), count_images(images)
    if len(found) != count:
        raise ConfigError(
            f"{len(found)} keys for {count} images: expected one for each, from the sample or from keys_getter={describe_counted(images)}"
        )
    return found


def per_image_inputs(values: Any, images: Sequence[Image], names: Sequence[str]) -> dict[str, Any]:
    """Return the `values` that the generator accepts, each as a tensor or list with one entry per image.

    For a sample with one image, the value is that image's own; for a batch (…, C, H, W), a tensor has the batch's leading
    dimensions, and a list has the batch's length. Arrays, alone or in a list, become tensors, or lists of strings; so do PIL images
    that are masks, with their values as they are, or control maps.

    Raises:
        ConfigError: if `values` is not a mapping, a value has another length, a mask another size than its image, or a control map
            another aspect ratio, or is a PIL image that is neither RGB nor L.

    Example:
        >>> import torch
        >>> per_image_inputs({"labels": 3}, [torch.zeros(3, 4, 4)], ["labels"])
        {'labels': tensor([3])}
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"inputs_getter returned {name_type(values)}: expected a dict with one value per image")
    count, lead = count_images(images), _leading(images)
    out: dict[str, Any] = {}
    for name in names:
        if name not in values:
            continue
        value = _as_tensors(name, values[name])
        if lead == ():
            if not _is_column_of_one(value):
                value = value[None] if isinstance(value, Tensor) else [value]
        elif isinstance(value, Tensor) and len(lead) > 1 and tuple(value.shape[: len(lead)]) == lead:
            value = value.flatten(0, len(lead) - 1)
        if not isinstance(value, Tensor | list | tuple) or (isinstance(value, Tensor) and not value.ndim) or len(value) != count:
            raise ConfigError(
                f"inputs_getter: {name}={_shown(value)}: expected one value for each of {count} images{describe_counted(images)}"
            )
        if not isinstance(value, Tensor) and all(isinstance(v, numbers.Real) for v in value):
            value = torch.tensor(value, dtype=_dtype_of(value))
        elif not isinstance(value, Tensor) and all(isinstance(v, Tensor) for v in value):
            value = _stack(name, value)
        if name in ("masks", "control_maps"):
            _check_sizes(name, value, images)
        out[name] = value
    return out


def gather(value: Any, chosen: Tensor) -> Any:
    """Return the chosen entries of a tensor or list with one entry per image.

    Example:
        >>> import torch
        >>> gather(["cat", "dog"], torch.tensor([False, True]))
        ['dog']
    """
    index = chosen.nonzero().squeeze(1)
    if isinstance(value, Tensor):
        return value[index.to(value.device, non_blocking=True)]  # by index: a mask on a device would cost a sync
    return [value[i] for i in index.tolist()]


def _as_tensors(name: str, value: Any) -> Any:
    """Return a value, or each entry of a list of values, as a tensor if it is an array, or a PIL image where a map is expected."""
    if isinstance(value, list | tuple):
        plain = all(isinstance(v, numbers.Real | str) for v in value)
        return value if plain else [v if isinstance(v, list | tuple) else _as_tensors(name, v) for v in value]
    if isinstance(value, PIL.Image.Image) and name in MAPS:
        return as_map(name, value)
    if isinstance(value, np.ndarray | np.generic):
        value = as_tensor(value) if _dtype_of([value]) is None else torch.tensor(value, dtype=torch.float32)
    return value.as_subclass(Tensor) if isinstance(value, Tensor) else value


def _shown(value: Any) -> str:
    """A value as a message shows it: a tensor by its shape, a long list by its length."""
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if not isinstance(value, list | tuple) or len(repr(value)) <= 60:
        return repr(value)
    return f"{name_type(value)} of {len(value)}" if len(value) != 1 else f"{name_type(value)} of one, {_shown(value[0])}"


def _dtype_of(values: Sequence[Any]) -> torch.dtype | None:
    """float32 for Python's floats, whatever torch's default dtype is; None where torch infers it from the values alone."""
    return torch.float32 if any(isinstance(value, float) for value in values) else None


def _leading(images: Sequence[Image]) -> tuple[int, ...]:
    """Return the dimensions before (C, H, W) of the sample's only image; for several images, their number."""
    if len(images) != 1:
        return (len(images),)
    return () if isinstance(images[0], PIL.Image.Image) else tuple(images[0].shape[:-3])


def _is_column_of_one(value: Any) -> bool:
    """Whether a value stands in a list already, as in samples that are columns of one row, such as those of Hugging Face data sets."""
    return tuple(value.shape) == (1,) if isinstance(value, Tensor) else isinstance(value, list) and len(value) == 1


def _check_sizes(name: str, values: Any, images: Sequence[Image]) -> None:
    """Refuse masks of another size than their images, which do not say where in the image a value stands, and control maps of
    another aspect ratio: they may have any resolution.
    """
    sizes = [size for image in images for size in [_size(image)] * count_images([image])]
    what, expected, fits = ("mask", "size", operator.eq) if name == "masks" else ("control map", "aspect ratio", same_aspect_ratio)
    for value, size in zip(values, sizes, strict=True):
        own = _size(value)
        if own is not None and size is not None and not fits(own, size):
            advice = f"turn, crop and resize a {what} with its image"
            if value.ndim == 3 and value.shape[-1] in (1, 3) and fits((value.shape[0], value.shape[1]), size):
                advice = f"it is {tuple(value.shape)}, and expected as (C, H, W), as value.transpose(2, 0, 1) makes it of an array"
            raise ConfigError(
                f"inputs_getter: a {what} of {own[1]} x {own[0]} pixels, and its image is {size[1]} x {size[0]}: expected the same "
                f"{expected}; {advice}"
            )


def _size(image: Any) -> tuple[int, int] | None:
    """The (h, w) of an image or mask; None of something else, which the generator refuses."""
    if isinstance(image, PIL.Image.Image):  # of the sample
        return image.height, image.width
    return (int(image.shape[-2]), int(image.shape[-1])) if getattr(image, "ndim", 0) >= 2 else None


def _stack(name: str, values: Sequence[Tensor]) -> Any:
    if len({value.shape for value in values}) > 1:
        return list(values)  # masks of different sizes: the generator resizes each
    return torch.stack([value.as_subclass(Tensor) for value in values])
