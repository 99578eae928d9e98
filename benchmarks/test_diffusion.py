"""Stable Diffusion unCLIP against the stock pipeline: a reduced SD 2.1, 256 pixels, 4 steps of DDIM with guidance, float32.

Each case makes 16 images, of 16 sources or of 2 with 8 variants each.
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
