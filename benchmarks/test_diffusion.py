"""Stable Diffusion unCLIP against the stock pipeline: a reduced SD 2.1, 256 pixels, 4 steps of DDIM with guidance, float32.

Each case makes 16 images, of 16 sources or of 2 with 8 variants each. `-k faster` compares the options for a faster loop: 10 steps,
2 images, and how far from the plain loop's images those of each option are. On a busy machine, measure processor time:
``--benchmark-timer=time.process_time``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gentransforms as gt
from benchmarks import full_size

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

OPTIONS: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 10.0, "scheduler": "ddim", "image_size": 256}
SEEDS = torch.arange(16)


@pytest.fixture(scope="module")
def images() -> Tensor:  # of the size of the image encoder, so that neither resizes
    return torch.rand(16, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def ours(generator: gt.StableDiffusionVariation, images: Tensor, variants: int) -> Tensor:
    condition = generator.encode(images[: 16 // variants])
    return generator.sample({name: rows.repeat_interleave(variants, 0) for name, rows in condition.items()}, SEEDS)


@pytest.mark.parametrize("variants", [1, 8])
@pytest.mark.parametrize("kind", ["plain", "compiled"])
@torch.no_grad()
def test_diffusion_ours(benchmark: Any, kind: str, variants: int, images: Tensor) -> None:
    generator = gt.StableDiffusionVariation.from_pipeline(full_size.reduced_unclip(), compile=kind == "compiled", **OPTIONS)
    benchmark.pedantic(ours, (generator, images, variants), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("variants", [1, 8])
@torch.no_grad()
def test_diffusion_stock(benchmark: Any, variants: int, images: Tensor) -> None:
    """As fast as the stock pipeline goes: one batch, and for several variants each source encoded once."""
    import stock
    from diffusers import StableUnCLIPImg2ImgPipeline

    generator = gt.StableDiffusionVariation.from_pipeline(full_size.reduced_unclip(), **OPTIONS)
    pixels = stock.normalised(generator, images)[: 16 // variants]
    arguments = {"image": pixels, "prompt": [""] * len(pixels), "num_images_per_prompt": variants}
    made = benchmark.pedantic(stock.run, (StableUnCLIPImg2ImgPipeline, generator, SEEDS), arguments, rounds=3, warmup_rounds=1)
    if variants == 1:  # for several, the stock pipeline draws the noise on the embeddings in another order
        assert (made - ours(generator, images, 1)).abs().max() <= 1e-4


EXACT: dict[str, Any] = {"compile": "regional", "fuse_qkv": True}
FASTER: dict[str, dict[str, Any]] = {
    "plain": {},
    "regional": {"compile": "regional"},
    "fused": {"fuse_qkv": True},
    "exact": EXACT,
    "interval": {"guidance_interval": (0.25, 0.75)},
    "deepcache2": {"cache_interval": 2},
    "all": EXACT | {"guidance_interval": (0.25, 0.75), "cache_interval": 2},
}
TEN = OPTIONS | {"num_inference_steps": 10}


@pytest.fixture(scope="module")
def plain_images(images: Tensor) -> Tensor:
    generator = gt.StableDiffusionVariation.from_pipeline(full_size.reduced_unclip(), **TEN)
    with torch.no_grad():
        return generator(images[:2], SEEDS[:2])


@pytest.mark.parametrize("kind", FASTER)
@torch.no_grad()
def test_faster_ours(benchmark: Any, kind: str, images: Tensor, plain_images: Tensor) -> None:
    generator = gt.StableDiffusionVariation.from_pipeline(full_size.reduced_unclip(), **TEN, **FASTER[kind])
    compiled = int("compile" in FASTER[kind])
    made = benchmark.pedantic(generator, (images[:2], SEEDS[:2]), rounds=3, warmup_rounds=compiled)
    difference = (made - plain_images).abs()
    print(f"\n{kind}: differs from the plain loop by {difference.mean():.2g} on average, {difference.max():.2g} at most")
    benchmark.extra_info["mean_difference"] = float(difference.mean())
    if kind in ("plain", "regional", "fused", "exact"):
        assert difference.max() <= 1e-3  # rounding, which ten steps with guidance 10 enlarge


@torch.no_grad()
def test_faster_stock(benchmark: Any, images: Tensor, plain_images: Tensor) -> None:
    import stock
    from diffusers import StableUnCLIPImg2ImgPipeline

    generator = gt.StableDiffusionVariation.from_pipeline(full_size.reduced_unclip(), **TEN)
    arguments = {"image": stock.normalised(generator, images)[:2], "prompt": [""] * 2}
    made = benchmark.pedantic(stock.run, (StableUnCLIPImg2ImgPipeline, generator, SEEDS[:2]), arguments, rounds=3)
    assert (made - plain_images).abs().max() <= 1e-3
