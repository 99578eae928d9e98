"""Stable Diffusion image variation: new images of what an image shows, from its embedding."""

from __future__ import annotations

from typing import Any

from gentransforms.errors import WeightsError
from gentransforms.generators.diffusion.pretrained import PretrainedDiffusion

__all__ = ["StableDiffusionVariation"]


class StableDiffusionVariation(PretrainedDiffusion):
    """Image variation by Stable Diffusion, conditioned on an embedding of the source image.

    Three ways of conditioning, told apart by what is loaded: unCLIP (``StableUnCLIPImg2ImgPipeline``),
    sd-image-variations (``StableDiffusionImageVariationPipeline``), and an IP-Adapter on Stable Diffusion 1.5 or XL. Load
    with `from_pretrained`, or take a pipeline with `from_pipeline`. An option not given keeps the repository's own setting
    and the stock pipeline's default. Row i of `sample` is what the stock pipeline makes with its own rng of seed i.

    Args:
        pipe: a diffusers pipeline of one of these kinds; its networks are shared, frozen and put into eval mode.

    Keyword Args:
        preset: ``"paper"`` (Ayromlou et al.: DDIM with trailing timesteps and zero terminal SNR, 10 steps, guidance 10, no
            noise, empty prompt) or ``"fast"`` (DPM-Solver++, 4 steps, no guidance); options given win over it.
        num_inference_steps: denoising steps.
        guidance_scale: of classifier-free guidance; at 1 or below there is none, and half the work.
        scheduler: ``"ddim"``, ``"dpm++"``, ``"unipc"``, ``"euler"``, ``"lcm"``, or a diffusers scheduler.
        eta: noise of DDIM, from 0 to 1.
        image_size: of the images made, in pixels: a side or (height, width).
        prompt: the text for images that come without their own.
        negative_prompt: what guidance leads away from.
        noise_level: noise on the image embedding (unCLIP), from 0 to 999: more of it, more variety.
        ip_adapter_scale: weight of the image against the text (IP-Adapter).
        decode_batch_size: how many images the VAE decodes at once.
        channels_last: memory format of the networks.
        compile: run the UNet through ``torch.compile``.

    Raises:
        WeightsError: if the pipeline is of another kind, or lacks a component.
        ConfigError: if an option is unknown or out of its range.

    Attributes:
        inputs: ``prompts``, one string for each image, where there is a text encoder; ``noise_levels`` (B,) int64 (unCLIP).

    Example:
        >>> import torch
        >>> generator = StableDiffusionVariation.from_pretrained(unclip_folder, num_inference_steps=2)  # a folder or repository
        >>> generator(torch.rand(2, 3, 40, 40), torch.tensor([1, 2])).shape
        torch.Size([2, 3, 32, 32])

    Source: Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents" (2022); Rombach et al., "High-Resolution
    Image Synthesis with Latent Diffusion Models" (CVPR 2022); Ye et al., "IP-Adapter" (2023).
    """

    preserves_geometry = False

    def __init__(self, pipe: Any, **options: Any) -> None:
        super().__init__(pipe, **options)
        if self.kind == "none":
            raise WeightsError(
                f"a {type(self.pipe).__name__} does not see the source image: give ip_adapter=(repo, subfolder, weight_name), or use "
                "ControlNetVariation; StableUnCLIPImg2ImgPipeline and StableDiffusionImageVariationPipeline see it by themselves"
            )
