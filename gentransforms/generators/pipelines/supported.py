"""Refuse pipelines of diffusers that a generator cannot call, or whose images would be wrong, and say what to use in their place."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.identity import uncompiled
from gentransforms.wording import with_article

__all__ = ["check_casting", "check_supported", "needs_a_mask"]

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
    for part in ("controlnet", "adapter"):
        kind = type(getattr(pipe, part, None)).__name__
        if "MultiControlNet" in kind or "MultiAdapter" in kind:
            raise WeightsError(
                f"{with_article(name)} has {with_article(kind)}, whose networks take a control map each, and a generator makes one: "
                "give the pipeline a single network"
            )
    if "Img2Img" in name and needs_a_mask(pipe):
        raise WeightsError(
            f"{with_article(name)} has a network for inpainting, which reads a mask beside the image: "
            "use the repository of the base model, which was not trained for inpainting"
        )


def check_casting(networks: Mapping[str, nn.Module]) -> None:
    """Raise for weights that are stored in a dtype and computed in another, by hooks that can be neither copied nor pickled.

    Raises:
        ConfigError: naming the network, and what saves memory too.
    """
    for name, network in networks.items():
        for module in network.modules():
            hook = getattr(vars(module).get("_diffusers_hook"), "hooks", {}).get("layerwise_casting")
            if hook is not None:
                raise ConfigError(
                    f"{name} stores weights as {hook.storage_dtype} (enable_layerwise_casting), by hooks with which a generator can be "
                    "neither copied nor pickled: load the pipeline without it; where memory is short, give quantised parts "
                    "(quantization_config=), dtype=torch.bfloat16 or offload='model'"
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
