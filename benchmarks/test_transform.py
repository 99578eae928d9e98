"""What the transform costs over the bare generator, and what selecting images saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gentransforms as gt

BATCH = 64


@pytest.fixture(scope="module")
def generator() -> gt.ImageGenerator:
    return gt.load_generator("icgan-cifar10-32").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_bare_generator(benchmark: Any, generator: gt.ImageGenerator, images: torch.Tensor) -> None:
    floats, seeds = images.float() / 255, torch.arange(BATCH)
    benchmark.pedantic(generator, (floats, seeds), rounds=31, warmup_rounds=3)


@pytest.mark.parametrize("p", [0.25, 1.0])
def test_transform(benchmark: Any, p: float, generator: gt.ImageGenerator, images: torch.Tensor) -> None:
    # Seeds given, so that p = 0.25 chooses as many images in every round: 16 of 64 with these seeds.
    augment = gt.GenerativeAugment(generator, p=p, seeds_getter=lambda _: SEEDS)
    benchmark.pedantic(augment, (images,), rounds=31, warmup_rounds=3)


@torch.no_grad()
def test_encode_alone(benchmark: Any, generator: gt.ImageGenerator, images: torch.Tensor) -> None:
    benchmark.pedantic(generator.encode, (images.float() / 255,), rounds=31, warmup_rounds=3)


def _seeds_with_a_quarter_below() -> torch.Tensor:
    from gentransforms.seeding import seed_uniforms

    seeds = torch.arange(1000)
    low = seed_uniforms(seeds) < 0.25
    return torch.cat([seeds[low][: BATCH // 4], seeds[~low][: BATCH - BATCH // 4]])


SEEDS = _seeds_with_a_quarter_below()
