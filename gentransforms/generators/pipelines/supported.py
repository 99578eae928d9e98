"""Refuse pipelines of diffusers whose images would be wrong or of another size, and say what to use in their place."""

from __future__ import annotations

import inspect
import re
from typing import Any

from gentransforms.errors import WeightsError
from gentransforms.generators.identity import uncompiled
from gentransforms.wording import with_article

__all__ = ["check_supported", "needs_a_mask"]

_CODERS = ("vae", "movq", "vqvae")
_ENLARGES = re.compile("Upscale|SuperResolution")


def check_supported(pipe: Any) -> None:
    """Check that a pipeline makes images of the source's size, on latents, and that its network takes what the call gives it.

    Raises:
        WeightsError: naming what does not fit, and what to use.
    """
    name, parts = type(pipe).__name__, inspect.signature(type(pipe).__init__).parameters
    if "low_res_scheduler" in parts or _ENLARGES.search(name):
        raise WeightsError(
            f"{with_article(name)} enlarges its source, so that no image_size fits: use an image-to-image pipeline, and enlarge its "
            "images afterwards if you need to"
        )
    # What a pipeline of one's own takes is found out at its first use.
    if type(pipe).__module__.startswith("diffusers.") and not any(coder in parts for coder in _CODERS):
        raise WeightsError(
            f"{with_article(name)} works without an autoencoder ({', '.join(_CODERS)}), on pixels; such pipelines of diffusers take and "
            "return tensors in other ranges than [0, 1]: use a pipeline on latents, such as the image-to-image pipelines of Stable "
            "Diffusion, SDXL or FLUX, or StableDiffusionVariation, which starts from the image's embedding"
        )
    if "Img2Img" in name and needs_a_mask(pipe):
        raise WeightsError(
            f"{with_article(name)} has a network for inpainting, which reads a mask beside the image: "
            "use the repository of the base model, which was not trained for inpainting"
        )


def needs_a_mask(pipe: Any) -> bool:
    """Return whether the network of a pipeline takes a mask and a masked image beside the latents, as those for inpainting do."""
    unet, transformer = (getattr(uncompiled(getattr(pipe, name, None)), "config", {}) for name in ("unet", "transformer"))
    vae: Any = getattr(getattr(pipe, "vae", None), "config", {})
    latents = vae.get("latent_channels")
    if latents is not None and unet.get("in_channels") == 2 * latents + 1:
        return True
    # FLUX Fill: twice the latents, and the mask in as many channels as the pixels of a patch.
    taken, made = transformer.get("in_channels"), transformer.get("out_channels")
    return bool(taken and made and taken > 2 * made)
