"""Refuse pipelines of diffusers whose networks a generator cannot feed, and say what to use in their place."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.identity import uncompiled
from gentransforms.wording import with_article

__all__ = ["check_casting", "check_supported", "needs_a_mask"]

# The first layers of diffusers' transformers; some wrap the layer itself, as ``proj``.
_EMBEDDERS = ("x_embedder", "img_in", "patch_embed", "patch_embedding", "pos_embed")


def check_supported(pipe: Any, options: Collection[str] = ()) -> None:
    """Check that the networks of a pipeline take what its call gives them.

    Args:
        pipe: a diffusers pipeline.
        options: names of the options of its call that are given.

    Raises:
        WeightsError: naming what does not fit, and what to use.
    """
    name = type(pipe).__name__
    for part in ("controlnet", "adapter"):
        kind = type(getattr(pipe, part, None)).__name__
        if "MultiControlNet" in kind or "MultiAdapter" in kind:
            raise WeightsError(
                f"{with_article(name)} has {with_article(kind)}, whose networks take a control map each, and a generator makes one: "
                "give the pipeline a single network"
            )
    if getattr(getattr(pipe, "controlnet", None), "union", None) is True and "control_mode" not in options:  # FLUX's
        raise WeightsError(
            f"{with_article(name)} has a ControlNet for several kinds of control maps: give the option control_mode, the number of the "
            "kind that is on the card of the ControlNet"
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
    unet, transformer = (uncompiled(getattr(pipe, name, None)) for name in ("unet", "transformer"))
    coders = [getattr(getattr(pipe, name, None), "config", {}) for name in ("vae", "movq")]
    latents = next((found for coder in coders if (found := coder.get("latent_channels")) is not None), None)
    if latents is not None and getattr(unet, "config", {}).get("in_channels") == 2 * latents + 1:
        return True
    # FLUX Fill: twice the latents, and the mask in as many channels as the pixels of a patch. Its configuration counts the values of a
    # patch, that of Stable Diffusion 3 channels, and that of Qwen-Image one going in and the other coming out: layers say what holds.
    taken, made = _values_taken(transformer), getattr(getattr(transformer, "proj_out", None), "out_features", None)
    return bool(taken and made and taken > 2 * made)


def _values_taken(transformer: Any) -> int | None:
    """Return how many values a transformer takes for each patch, by its first layer; None if that is not known."""
    for name in _EMBEDDERS:
        outer = getattr(transformer, name, None)
        layer: Any = getattr(outer, "proj", outer)
        if isinstance(getattr(layer, "in_features", None), int):
            return int(layer.in_features)
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            return layer.in_channels * math.prod(layer.kernel_size)
    return None
