"""What the stock pipelines of diffusers make of the same images, seeds and settings: the reference of the agreement tests."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from gentransforms.generators.diffusion.base import DiffusionGenerator


def rngs(seeds: Tensor) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def normalised(generator: DiffusionGenerator, images: Tensor) -> Tensor:
    """Images as the CLIP encoder wants them, by the processor of the repository itself, on PIL-like arrays."""
    processor = generator.pipe.feature_extractor
    side = generator.image_encoder.config.image_size
    assert images.shape[-2:] == (side, side), "of the encoder's size, so that nothing is resized and only the normalisation is at work"
    return torch.as_tensor(processor(images, do_rescale=False, return_tensors="pt").pixel_values)


def run(cls: Any, generator: DiffusionGenerator, seeds: Tensor, **arguments: Any) -> Tensor:
    """Images of a stock pipeline made of the generator's components and scheduler, each with an rng of its seed."""
    parts = {**generator.pipe.components, **arguments.pop("parts", {})}
    options = {"requires_safety_checker": False} if "safety_checker" in cls.__init__.__annotations__ or "safety_checker" in parts else {}
    pipe = cls(**parts, **options)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = copy.deepcopy(generator.scheduler)
    size = {} if "ControlNetImg2Img" in cls.__name__ else size_of(generator)  # that one takes the images' size
    with torch.no_grad():
        images: Tensor = pipe(
            num_inference_steps=generator.num_inference_steps, guidance_scale=generator.guidance_scale, eta=generator.eta,
            generator=rngs(seeds), output_type="pt", **size, **arguments,
        ).images  # fmt: skip
    return images


def size_of(generator: DiffusionGenerator) -> dict[str, int]:
    height, width = generator.image_size
    return {"height": height, "width": width}
