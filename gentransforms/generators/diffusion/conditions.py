"""Control maps: edges, depth and segmentation colours, from images and masks, batched on their device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentransforms.errors import ConfigError, GeneratorError, MissingInputError
from gentransforms.generators.identity import describe_argument, hash_weights, named_weights
from gentransforms.generators.maps import as_maps
from gentransforms.images import fit
from gentransforms.seeding import seed_uniforms

__all__ = [
    "ADE20K", "canny_edges", "canny_magnitude", "check_maps", "check_masks", "check_thresholds", "colour_masks", "depth_maps", "describe",
    "draw_thresholds", "given_maps", "run_callable",
]  # fmt: skip

# Colours of the 150 classes of ADE20K (Zhou et al., CVPR 2017) in the order of the benchmark, as its authors draw them and as
# the released segmentation ControlNets were trained: six hexadecimal digits each.
ADE20K = torch.frombuffer(bytearray(bytes.fromhex(
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff06528fff8cccff04ff3307cc4603"
    "0066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0ffb8060aff47ff290a07ffffe0ff086608ffff3d06ffc207"
    "ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe00099ff000000ffff470000ebff00adff1f00ff"
    "0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff000052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ff"
    "ff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc200ff52000aff0070ff3300ff00c2ff007aff00ffa3ff990000ff0aff7000"
    "8fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ffff001f00b8ff00d6ffff00705cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3"
    "ffcc00ff008f00ffeb85ff00ff00ebf500ffff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff"
    "4700ff7a00ff00ffb8005cffb8ff000085ffffd60019c2c266ff005c00ff"
)), dtype=torch.uint8).view(150, 3)  # fmt: skip
Thresholds = tuple[tuple[float, float], tuple[float, float]]


def check_thresholds(value: Any) -> Thresholds:
    """Return ((low from, low to), (high from, high to)) of Canny's thresholds, each given as a number or a range.

    Raises:
        ConfigError: unless 0 < low <= high everywhere.

    Example:
        >>> check_thresholds((0.4, (0.6, 0.9)))
        ((0.4, 0.4), (0.6, 0.9))
    """
    pairs = []
    if isinstance(value, Sequence) and len(value) == 2:
        pairs = [tuple(v) if isinstance(v, Sequence) else (v, v) for v in value]
    if len(pairs) == 2 and all(len(p) == 2 and all(isinstance(n, int | float) and n > 0 for n in p) and p[0] <= p[1] for p in pairs):
        (low, high) = pairs
        if low[1] <= high[0]:
            return ((float(low[0]), float(low[1])), (float(high[0]), float(high[1])))
    raise ConfigError(
        f"canny_thresholds={value!r}: expected (low, high), each a positive number or a range (from, to), low at most high; "
        "in units of OpenCV's thresholds / 255, such as (100 / 255, 200 / 255)"
    )


def draw_thresholds(thresholds: Thresholds, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Return low and high, each (B,) float32 on the CPU, drawn uniformly from their ranges by a hash of each seed.

    A hash rather than the seed's rng, so that the noise remains that of the stock pipelines.
    """
    # Two numbers of their own, unrelated to each other and to the selection that follows from a seed.
    uniform = (seed_uniforms(seeds ^ 0x5DEECE66D), seed_uniforms(seeds ^ 0x2545F4914F6CDD1D))
    low, high = ((a + (b - a) * u).float() for (a, b), u in zip(thresholds, uniform, strict=True))
    return low, high


def canny_magnitude(images: Tensor) -> Tensor:
    """Return the gradient's magnitude where it is largest along its direction, else zero: (B, 1, H, W), for `canny_edges`.

    The part of Canny's detector that does not depend on the thresholds, so that variants of one image with different
    thresholds share it. Gaussian blur of 5 x 5 and deviation 1, Sobel, non-maximum suppression, by kornia.

    Args:
        images: (B, 3, H, W) floating in [0, 1].
    """
    import kornia

    if not len(images):
        return images.new_zeros(0, 1, *images.shape[-2:])
    magnitude: Tensor = kornia.filters.canny(images, hysteresis=False)[0]
    return magnitude


def canny_edges(magnitude: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return edges (B, 1, H, W), 0 or 1: where the magnitude is above `high`, or above `low` and connected to such a pixel.

    Args:
        magnitude: (B, 1, H, W) from `canny_magnitude`.
        low: (B,), on any device.
        high: (B,), at least `low`.

    Source: Canny, "A Computational Approach to Edge Detection" (1986).
    """
    low, high = (t.to(magnitude.device, magnitude.dtype, non_blocking=True).view(-1, 1, 1, 1) for t in (low, high))
    weak, strong = magnitude > low, magnitude > high
    if not magnitude.numel():
        return strong.to(magnitude.dtype)
    # An edge is a connected group of weak pixels with a strong one among them.
    group = _groups(weak)
    found = torch.zeros_like(group).scatter_reduce(1, group, strong.flatten(1).long(), "amax")
    return found.gather(1, group).view_as(magnitude).to(magnitude.dtype)


def _groups(mask: Tensor) -> Tensor:
    """Return a number for each pixel of mask (B, 1, H, W), the same for those connected by their sides or corners: (B, H * W) int64.

    Each pixel points at another of its group, until all point at the same one. Checking for that makes the host wait for the
    device, so there is only one check after as many rounds as nearly always suffice.

    Source: Zhang, Azad and Hu, "FastSV: A Distributed-Memory Connected Component Algorithm with Fast Convergence" (2020).
    """
    count = mask[0].numel()
    exact = torch.float32 if count < 2**24 else torch.float64  # pooling takes floating numbers; these hold every index
    pointer = torch.arange(count, device=mask.device).expand(len(mask), count)
    while True:
        for _ in range(count.bit_length()):
            before = pointer
            near = F.max_pool2d(pointer.view_as(mask).to(exact).masked_fill(~mask, -1), 3, stride=1, padding=1)
            near = torch.where(mask, near.long(), pointer.view_as(mask)).flatten(1)
            # Both a pixel and what it points at now point as far as its neighbours do, and then twice as far.
            pointer = torch.maximum(pointer.scatter_reduce(1, pointer, near, "amax"), near)
            pointer = pointer.gather(1, pointer)
        if torch.equal(pointer, before):
            return pointer


def depth_maps(estimator: Any, processor: Any, images: Tensor) -> Tensor:
    """Return depth (B, 3, H, W) in [0, 1], near bright and far dark, as the depth ControlNets expect it.

    Args:
        estimator: a transformers depth-estimation model.
        processor: its image processor, whose size, mean and standard deviation are used.
        images: (B, 3, H, W) floating in [0, 1].
    """
    if not len(images):
        return images
    height, width = _estimator_size(estimator, processor, images.shape[-2:])
    pixels = F.interpolate(images.float(), (height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    mean, std = (
        torch.tensor(getattr(processor, name, None) or (0.5, 0.5, 0.5)).view(1, 3, 1, 1).to(pixels.device, non_blocking=True)
        for name in ("image_mean", "image_std")
    )
    pixels = (pixels - mean) / std if getattr(processor, "do_normalize", True) else pixels
    depth = estimator(pixels.to(getattr(estimator, "dtype", pixels.dtype))).predicted_depth.float()
    if getattr(estimator.config, "depth_estimation_type", "relative") == "metric" or estimator.config.model_type in _METRIC:
        depth = 1 / depth.clamp_min(1e-3)  # from metres to nearness, which the others predict
    depth = F.interpolate(depth[:, None], images.shape[-2:], mode="bilinear", align_corners=False)
    near, far = depth.amax((1, 2, 3), keepdim=True), depth.amin((1, 2, 3), keepdim=True)
    return ((depth - far) / (near - far).clamp_min(1e-6)).expand(-1, 3, -1, -1).to(images.dtype)


_METRIC = ("zoedepth", "glpn", "depth_pro")  # models that predict metres


def _estimator_size(estimator: Any, processor: Any, size: Sequence[int]) -> tuple[int, int]:
    """Return the size of the images that an estimator receives: that of its processor, in multiples of its patches."""
    wanted = getattr(processor, "size", None) or {}
    side = (wanted.get("height"), wanted.get("width"))
    height, width = (n or m for n, m in zip(side, size, strict=True))
    if getattr(processor, "keep_aspect_ratio", False):
        scale = max(height / size[0], width / size[1], key=lambda s: -abs(1 - s))
        height, width = round(size[0] * scale), round(size[1] * scale)
    multiple = int(getattr(processor, "ensure_multiple_of", None) or getattr(processor, "size_divisor", None) or 1)
    height, width = (max(multiple, round(n / multiple) * multiple) for n in (height, width))
    return height, width


def colour_masks(masks: Any, palette: Tensor, size: Sequence[int], count: int) -> Tensor:
    """Return the colours of class masks: (B, 3, *size) float32 in [0, 1].

    Args:
        masks: integer classes, (B, H, W) or (B, 1, H, W), or a list of B masks (H, W) or (1, H, W) of any sizes; tensors or arrays,
            in a list also PIL images. 255 is unlabelled, and black.
        palette: (K, 3) uint8.
        size: (h, w) of the maps; masks are resized by nearest neighbour.
        count: B.

    Raises:
        MissingInputError: as in `check_masks`.
        ConfigError: as there.
    """
    batches = check_masks(masks, len(palette), count)
    if not count:
        return torch.zeros(0, 3, *size, device=palette.device)
    return torch.cat([_colours(batch[:, 0] if batch.ndim == 4 else batch, palette, size) for batch in batches])


def _colours(masks: Tensor, palette: Tensor, size: Sequence[int]) -> Tensor:
    masks = F.interpolate(masks[:, None].float(), tuple(size), mode="nearest-exact")[:, 0].long().to(palette.device)
    black = (masks < 0) | (masks >= len(palette))
    colours = palette[masks.clamp(0, len(palette) - 1)].masked_fill(black[..., None], 0)
    return colours.movedim(-1, 1).float() / 255


def check_masks(masks: Any, colours: int, count: int) -> list[Tensor]:
    """Check class masks, one for each of `count` images, of which a palette has all the colours; return them as batches of one size.

    Args:
        masks: as for `colour_masks`.
        colours: how many colours the palette has.
        count: B.

    Raises:
        MissingInputError: if there are no masks.
        ConfigError: if their shape, dtype or number is wrong, or (on the CPU) a class has no colour.
    """
    if masks is None:
        raise MissingInputError(
            "masks are missing: condition='segmentation' needs one for each image; give the transform "
            "inputs_getter=lambda sample: {'masks': sample['mask']}, or pass masks= to encode"
        )
    masks = as_maps("masks", masks, count)
    # Masks of one tensor have one size; those of a list may differ, and each is a batch of its own.
    batches = ([masks] if isinstance(masks, Tensor) else [mask[None] for mask in masks]) if count else []
    for batch in batches:
        _check_classes(batch, colours)
    return batches


def _check_classes(masks: Tensor, colours: int) -> None:
    shape, kind = tuple(masks.shape), masks.dtype
    if not (masks.ndim == 3 or (masks.ndim == 4 and masks.shape[1] == 1)) or masks.is_floating_point() or masks.is_complex():
        raise ConfigError(f"masks has shape {shape} and dtype {kind}: expected (B, H, W) or (B, 1, H, W), integer classes")
    if masks.device.type == "cpu":
        used = masks[masks != 255]
        if used.numel() and not 0 <= int(used.min()) <= int(used.max()) < colours:
            raise ConfigError(
                f"masks hold classes from {int(used.min())} to {int(used.max())}: expected 0 to {colours - 1}, for which the palette "
                "has a colour, or 255 for unlabelled"
            )


def given_maps(maps: Any, size: Sequence[int], count: int, preserves_geometry: bool = True) -> Tensor:
    """Return control maps that were made elsewhere, cropped and resized as their images are: (B, 3, *size) float32 in [0, 1].

    They stay on the device they are on.

    Args:
        maps: (B, 1 or 3, H, W) uint8, or floating in [0, 1]; or a list of B maps (1 or 3, H, W) of any sizes; tensors or arrays,
            in a list also PIL images.
        size: (h, w) of the generator's images.
        count: B.
        preserves_geometry: whether the generator sees its images whole, and not their centre alone.

    Raises:
        MissingInputError: as in `check_maps`.
        ConfigError: as there.
    """
    fitted = [_fit_maps(batch, size, preserves_geometry) for batch in check_maps(maps, count)]
    if len(fitted) == 1:
        return fitted[0]
    return torch.cat(fitted) if fitted else torch.zeros(0, 3, *size)


def _fit_maps(maps: Tensor, size: Sequence[int], preserves_geometry: bool) -> Tensor:
    values = maps.float() / 255 if maps.dtype == torch.uint8 else maps.float()
    if not len(values):
        return values.new_zeros(0, 3, *size)
    return fit(values, size, preserves_geometry).clamp(0, 1).expand(-1, 3, -1, -1)


def check_maps(maps: Any, count: int) -> list[Tensor]:
    """Check control maps that were made elsewhere, one for each of `count` images; return them as batches of one size.

    Args:
        maps: as for `given_maps`.
        count: B.

    Raises:
        MissingInputError: if there are none.
        ConfigError: if their number, shape or dtype is wrong, or (on the CPU) their values are out of range.
    """
    if maps is None:
        raise MissingInputError(
            "control_maps are missing: condition='maps' needs one for each image; give the transform "
            "inputs_getter=lambda sample: {'control_maps': sample['map']}, or pass control_maps= to encode"
        )
    maps = as_maps("control_maps", maps, count)
    batches = [maps] if isinstance(maps, Tensor) else [one[None] for one in maps]
    for batch in batches:
        _check_pixels(batch)
    return batches


def _check_pixels(maps: Tensor) -> None:
    if maps.ndim != 4 or maps.shape[1] not in (1, 3) or not (maps.dtype == torch.uint8 or maps.is_floating_point()):
        raise ConfigError(f"control_maps has shape {tuple(maps.shape)}, dtype {maps.dtype}: expected (B, 1 or 3, H, W), uint8 or floating")
    looked_at = maps.device.type == "cpu" and maps.is_floating_point() and maps.numel()
    if looked_at and not (maps.min() >= 0 and maps.max() <= 1):
        raise ConfigError(f"control_maps from {maps.min():g} to {maps.max():g}: expected [0, 1]; divide by 255, or give uint8")


def describe(condition: Any) -> Any:
    """Return how a configuration records a condition: by its name, or for a function by name and version.

    Raises:
        ConfigError: if a function has no version, or no name by which it could be imported.

    Example:
        >>> def edges(images): ...
        >>> edges.version = "2"
        >>> describe(edges)["version"], describe("canny")
        ('2', 'canny')
    """
    if isinstance(condition, str):
        return condition
    named = {}
    if isinstance(condition, nn.Module):
        digest = hashlib.blake2b(digest_size=16)
        hash_weights(digest, named_weights(condition))
        named = describe_argument(condition) | {"weights": digest.hexdigest()}
    own = condition if hasattr(condition, "__qualname__") else type(condition)
    name, version = getattr(condition, "name", f"{own.__module__}.{own.__qualname__}"), getattr(condition, "version", None)
    if not named and version is None:
        raise ConfigError(
            f"condition={condition!r}: a function affects the images, and no fingerprint covers its code: give it a version, "
            "such as edges.version = '1', and increase it with every change"
        )
    if "<lambda>" in name:
        raise ConfigError(
            f"condition={condition!r}: a lambda has no name: define it with def, or give it one, such as edges.name = 'edges'"
        )
    return {"function": name, "version": version} | named


def run_callable(function: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Return the control maps that a user's function returns, checked.

    Raises:
        GeneratorError: if they are not (B, 3, H, W) floating, on the images' device.
    """
    maps = function(images)
    if not isinstance(maps, Tensor) or maps.shape != images.shape or not maps.is_floating_point() or maps.device != images.device:
        found = f"{tuple(maps.shape)} {maps.dtype} on {maps.device}" if isinstance(maps, Tensor) else type(maps).__name__
        raise GeneratorError(
            f"condition={function!r} returned {found}: expected control maps {tuple(images.shape)}, floating in [0, 1], on {images.device}"
        )
    return maps.to(images.dtype)
