"""What the tests of audits share: images of two classes, a generator that adds noise to them, and an encoder that counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import gentransforms as gt
from gentransforms.seeding import sample_noise

N, V = 40, 3
PROBED = 4  # images by which a user's encoder is told from others of its name


class NoisyForAudits(gt.ImageGenerator):
    """The source with noise; its feature is the image in 4 x 4."""

    image_size, preserves_geometry, instance_feature = (8, 8), False, "features"

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__()
        self.noise = noise

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        return {"images": images, "features": nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)}

    def sample(self, condition: Any, seeds: Tensor) -> Tensor:
        return (condition["images"] + self.noise * sample_noise(seeds, (3, 8, 8))).clamp(0, 1)


def photos(count: int = N, seed: int = 0) -> list[tuple[Tensor, int]]:
    """Images of two classes, red and blue, with their label."""
    rng = torch.Generator().manual_seed(seed)
    images = 0.3 + 0.3 * torch.rand(count, 3, 8, 8, generator=rng)
    for i in range(count):
        images[i, 2 * (i % 2)] += 0.35
    return [((image.clamp(0, 1) * 255).to(torch.uint8), i % 2) for i, image in enumerate(images)]


class Pool(nn.Module):
    """An encoder that counts what it encodes."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        type(self).calls += len(images)
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
