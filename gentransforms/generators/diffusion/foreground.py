"""More noise where the subject fills more of the image: a noise level for each image from its share of foreground.

With little in the background, a noised embedding still says what the subject is; with a small subject, noise would lose it.

Source: Li et al., "GenView: Enhancing View Quality with Pretrained Generative Model for Self-Supervised Learning" (ECCV 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gentransforms.errors import ConfigError
from gentransforms.generators.maps import as_maps
from gentransforms.images import centre, to_device

__all__ = ["BOUNDS", "STEP", "check_bounds", "check_foreground", "foreground_share", "mask_share", "to_levels"]

BOUNDS = (0.2, 0.4, 0.6, 0.8)  # five equal bins
STEP = 100  # from the noise level of one bin to that of the next


def foreground_share(patches: Tensor) -> Tensor:
    """Return the share of each image's patches that are foreground, (B,) float32 from 0 to 1.

    The patches are split in two along their first principal component, where the two parts differ most (Otsu, 1979); the part
    with less of the image's border is the foreground. GenView takes one component and one threshold for a whole batch; here each image
    has its own, because a generated image must not depend on its batch. An image whose patches are all alike has no foreground.

    Args:
        patches: (B, N, D), features of N patches in a square grid, row after row.
    """
    count = patches.shape[1]
    side = round(count**0.5)
    assert side * side == count, "a square grid"
    centred = patches.float() - patches.float().mean(1, keepdim=True)
    products = centred @ centred.mT
    varied = products.diagonal(dim1=1, dim2=2).mean(1) > 1e-6 * patches.float().square().sum(2).mean(1)
    # The power method, by squaring: of what it starts from only the first component remains, with its sign. No decomposition, because
    # those wait for the device. It starts from inside against border, so that the foreground is where the result is high.
    for _ in range(10):
        products = products / products.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-30)[:, None, None]
        products = products @ products
    inside = torch.ones(side, side, device=patches.device)
    inside[[0, -1]] = 0
    inside[:, [0, -1]] = 0
    scores = products @ (inside.flatten() - inside.mean())
    scores = scores / scores.abs().amax(1, keepdim=True).clamp_min(1e-30)
    # The variance between the k highest scores and the others, whose mean together is zero, up to a factor.
    highest = scores.sort(dim=1, descending=True).values[:, :-1].cumsum(1)
    k = torch.arange(1, count, device=patches.device)
    best = (highest.square() / (k * (count - k))).argmax(1) + 1
    return torch.where(varied, best / count, 0.0)


def mask_share(masks: Any, count: int, device: torch.device, size: Sequence[int] | None = None) -> Tensor:
    """Return the share of each image that a mask says is foreground, (B,) float32 from 0 to 1.

    Of a mask of the whole image, only the part counts that the generator sees.

    Args:
        masks: (B, H, W) or (B, 1, H, W), or a list of B of any sizes, tensors, arrays or PIL images: true or other than 0 in the
            foreground, or floating in [0, 1].
        count: B.
        device: device of the result.
        size: (h, w) of the generator's images if it sees the centre of an image alone; None if it sees it whole.

    Raises:
        ConfigError: as in `check_foreground`.
    """
    check_foreground(masks, count)
    if not count:
        return torch.zeros(0, device=device)
    means = []
    for batch in _batches(masks, count):
        values = batch.float() if batch.is_floating_point() else (batch != 0).float()
        means.append((values if size is None else centre(values, size)).flatten(1).mean(1))
    return to_device(torch.cat(means), device)


def check_foreground(masks: Any, count: int) -> None:
    """Check masks of the subject: one for each of `count` images.

    Args:
        masks: as for `mask_share`.
        count: B.

    Raises:
        ConfigError: if there is not one mask for each image, it has another shape, or (on the CPU) its values are out of range.
    """
    for batch in _batches(masks, count):
        shape = tuple(batch.shape[1:])
        if len(shape) < 2 or batch[0].numel() != shape[-2] * shape[-1] or not batch.numel():
            raise ConfigError(f"foreground holds a mask of shape {shape}: expected (H, W) or (1, H, W)")
        looked_at = batch.device.type == "cpu" and batch.is_floating_point()
        if looked_at and not (batch.min() >= 0 and batch.max() <= 1):
            raise ConfigError(f"foreground holds values from {batch.min():g} to {batch.max():g}: expected [0, 1], or a boolean mask")


def _batches(masks: Any, count: int) -> list[Tensor]:
    """Return masks as batches: those of one tensor have one size; those of a list may differ, and each is a batch of its own."""
    masks = as_maps("foreground", masks, count)
    if not count:
        return []
    return [masks] if isinstance(masks, Tensor) else [mask[None] for mask in masks]


def to_levels(shares: Tensor, bounds: Sequence[float]) -> Tensor:
    """Return a noise level for each share of foreground, (B,) int64: 0 below the first bound, 100 more from each bound on.

    Example:
        >>> to_levels(torch.tensor([0.0, 0.2, 0.79, 1.0]), BOUNDS).tolist()
        [0, 100, 300, 400]
    """
    return STEP * torch.bucketize(shares, torch.tensor(bounds).to(shares.device, non_blocking=True), right=True)


def check_bounds(value: Any, top: int) -> tuple[float, ...]:
    """Return the bounds between bins of foreground.

    Args:
        value: as the user gave it.
        top: the highest noise level.

    Raises:
        ConfigError: unless they are rising numbers between 0 and 1, and no more than there are noise levels for.
    """
    numbers = isinstance(value, Sequence) and not isinstance(value, str) and all(type(v) in (int, float) for v in value)
    if not numbers or not value or not all(a < b for a, b in zip((0, *value), (*value, 1), strict=True)):
        raise ConfigError(f"foreground_bounds={value!r}: expected rising numbers between 0 and 1, such as {BOUNDS}")
    if len(value) * STEP > top:
        raise ConfigError(
            f"foreground_bounds={value!r}: {len(value)} bounds, expected at most {top // STEP}: each adds {STEP} noise levels"
        )
    return tuple(map(float, value))
