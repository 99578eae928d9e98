"""A generator that costs nothing, and sources that are there already: what is left is the bank's own work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

import gentransforms as gt
from gentransforms.sources.base import ImageSource, SourceSample


def smooth_images(count: int, side: int) -> Tensor:
    """Random images (count, 3, side, side) float32 in [0, 1] that compress about as photos do: 8-pixel noise, upsampled."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, -(-side // 8), -(-side // 8), generator=rng)
    return torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1).contiguous()


class Free(gt.ImageGenerator):
    """Returns the same images whatever it is asked."""

    preserves_geometry = False

    def __init__(self, side: int = 224, count: int = 64) -> None:
        super().__init__()
        self.image_size = (side, side)
        self.made = smooth_images(count, side)

    def encode(self, images: Tensor, **inputs: Any) -> dict[str, Tensor]:
        return {"count": torch.zeros(len(images), 1)}

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        return self.made[: len(seeds)]


class Same(ImageSource):
    """One image under many keys."""

    def __init__(self, count: int, side: int = 224) -> None:
        super().__init__(range(count), description={"kind": "benchmark"})
        self.image = torch.zeros(3, side, side, dtype=torch.uint8)

    def read_range(self, start: int, stop: int) -> Iterator[SourceSample]:
        yield from (SourceSample(self.image) for _ in range(start, stop))
