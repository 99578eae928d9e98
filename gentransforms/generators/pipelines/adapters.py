"""IP-Adapters in a pipeline: whether there are some, and how they are given the source."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from gentransforms.errors import WeightsError
from gentransforms.generators.diffusion import appearance
from gentransforms.generators.identity import uncompiled
from gentransforms.wording import with_article

__all__ = ["adapter_pixels", "check_adapters", "sees_by_adapter"]


def sees_by_adapter(pipe: Any) -> bool:
    """Return whether a pipeline has an IP-Adapter, which reads a list of images as several references for one image."""
    networks: list[Any] = [uncompiled(getattr(pipe, name, None)) for name in ("unet", "transformer")]
    for network in networks:
        if getattr(getattr(network, "config", None), "encoder_hid_dim_type", None) == "ip_image_proj":
            return True
        if any("IPAdapter" in type(processor).__name__ for processor in getattr(network, "attn_processors", {}).values()):
            return True
    return False


def check_adapters(pipe: Any) -> None:
    """Check that a pipeline's call can give the source to its IP-Adapters.

    Raises:
        WeightsError: if its call takes no image for them, or it has no image encoder.
    """
    if not sees_by_adapter(pipe):
        return
    name = type(pipe).__name__
    if "ip_adapter_image" not in inspect.signature(type(pipe).__call__).parameters:
        raise WeightsError(
            f"{with_article(name)} has an IP-Adapter, and its call takes no image for it: call pipe.unload_ip_adapter(), or use a "
            "pipeline whose call takes ip_adapter_image"
        )
    if getattr(pipe, "image_encoder", None) is None:
        raise WeightsError(
            f"{with_article(name)} has an IP-Adapter and no image encoder, which makes the embedding that it reads: load the adapter "
            "with its encoder, load_ip_adapter(…, image_encoder_folder=…), or set it by register_modules(image_encoder=…)"
        )


def adapter_pixels(pipe: Any, images: Tensor) -> Tensor | list[Tensor]:
    """Return images as a pipeline's IP-Adapters take tensors, as its image processor leaves them; a list of them for several adapters.

    Args:
        pipe: a pipeline with an IP-Adapter.
        images: (B, 3, H, W) in [0, 1].
    """
    processor = getattr(pipe, "feature_extractor", None)
    pixels: Tensor
    if processor is None:
        pixels = appearance.preprocess(images, None, pipe.image_encoder.config.image_size)
    else:
        pixels = processor(images, do_rescale=False, return_tensors="pt").pixel_values
    count = _count_adapters(pipe)
    return pixels if count == 1 else [pixels] * count


def _count_adapters(pipe: Any) -> int:
    for network in (uncompiled(getattr(pipe, name, None)) for name in ("unet", "transformer")):
        layers = getattr(getattr(network, "encoder_hid_proj", None), "image_projection_layers", None)
        if layers is not None:
            return len(layers)
    return 1
