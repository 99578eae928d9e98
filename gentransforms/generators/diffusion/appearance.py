"""How the source image conditions the UNet: as unCLIP class labels, as embeddings in place of text, or by an IP-Adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.diffusion.sampling import draw
from gentransforms.wording import with_article

__all__ = [
    "KINDS", "UNetInputs", "embed_images", "find_kind", "negative_embeds", "noise_embeds", "on_hidden_states", "preprocess", "select_rows",
    "with_unconditional",
]  # fmt: skip

KINDS = ("unclip", "variation", "ip-adapter", "none")


@dataclass
class UNetInputs:
    """Inputs of one UNet call besides latents and timestep: a row per image, and under guidance the unconditional rows before them."""

    encoder_hidden_states: Tensor
    class_labels: Tensor | None = None
    added: dict[str, Any] = field(default_factory=dict)

    def last(self, count: int) -> UNetInputs:
        """Return the last `count` rows: those of the images, in a step without guidance."""
        if count == len(self.encoder_hidden_states):
            return self
        labels = None if self.class_labels is None else self.class_labels[-count:]
        added = {name: [t[-count:] for t in value] if isinstance(value, list) else value[-count:] for name, value in self.added.items()}
        return UNetInputs(self.encoder_hidden_states[-count:], labels, added)


def find_kind(pipe: Any) -> str:
    """Return how a pipeline conditions its UNet on an image: one of `KINDS`.

    Raises:
        WeightsError: if a component is missing.
        ConfigError: if it holds several IP-Adapters.
    """
    if getattr(pipe, "image_noising_scheduler", None) is not None:
        kind = "unclip"
    elif type(pipe).__name__ == "StableDiffusionImageVariationPipeline":
        kind = "variation"
    elif pipe.unet.config.encoder_hid_dim_type == "ip_image_proj":
        kind = "ip-adapter"
        layers = pipe.unet.encoder_hid_proj.image_projection_layers
        if len(layers) != 1:
            raise ConfigError(
                f"pipe holds {len(layers)} IP-Adapters: expected one; call pipe.unload_ip_adapter(), then load one of them again"
            )
    else:
        return "none"
    if getattr(pipe, "image_encoder", None) is None:
        raise WeightsError(
            f"the {type(pipe).__name__} has no image_encoder: {with_article(kind)} generator needs one to see the source image"
        )
    return kind


def preprocess(images: Tensor, processor: Any, side: int) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] as a CLIP image encoder expects them: (B, 3, side, side), normalised.

    This takes the centre square and resizes it bicubically with antialiasing, as the processor does with a PIL image, but in
    tensor arithmetic.

    Args:
        images: floating.
        processor: a transformers image processor, whose mean and standard deviation are used; None for CLIP's.
        side: side of the encoder's input, in pixels.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    if (height, width) != (side, side):
        size = (height * side // short, width * side // short)
        images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = ((n - side) // 2 for n in images.shape[-2:])
        images = images[..., top : top + side, left : left + side]
    mean = getattr(processor, "image_mean", None) or (0.48145466, 0.4578275, 0.40821073)
    std = getattr(processor, "image_std", None) or (0.26862954, 0.26130258, 0.27577711)
    m, s = (torch.tensor(v, dtype=images.dtype).view(1, 3, 1, 1).to(images.device, non_blocking=True) for v in (mean, std))
    return (images - m) / s


def embed_images(pipe: Any, kind: str, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the embeddings of preprocessed images (B, 3, S, S) for the UNet, and features of their N patches, (B, N, D').

    The first is (B, D), or (B, T, D) for an IP-Adapter on hidden states.
    """
    if not len(pixels):  # CLIP takes no empty batch
        embeds, patches = embed_images(pipe, kind, pixels.new_zeros(1, *pixels.shape[1:]))
        return embeds[:0], patches[:0]
    pixels = pixels.to(pipe.image_encoder.dtype)
    hidden = kind == "ip-adapter" and on_hidden_states(pipe)
    encoded = pipe.image_encoder(pixels, **({"output_hidden_states": True} if hidden else {}))
    # The first is of the image as a whole.
    return encoded.hidden_states[-2] if hidden else encoded.image_embeds, encoded.last_hidden_state[:, 1:]


def negative_embeds(pipe: Any, kind: str) -> Tensor | None:
    """Return the embeddings (1, T, D) that guidance steers an IP-Adapter on hidden states away from: those of pixels that are zero
    after normalisation, as in the stock pipelines; None where the negative itself is zero."""
    if kind != "ip-adapter" or not on_hidden_states(pipe):
        return None
    side = pipe.image_encoder.config.image_size
    return embed_images(pipe, kind, torch.zeros(1, 3, side, side, device=pipe.image_encoder.device))[0]


def noise_embeds(pipe: Any, embeds: Tensor, levels: Tensor, rngs: list[torch.Generator]) -> Tensor:
    """Return the class labels (B, 2 D) of an unCLIP UNet: noised embeddings, with the embedding of their noise level.

    Args:
        pipe: an unCLIP pipeline.
        embeds: (B, D).
        levels: (B,) int64 from 0, the steps of the noising schedule, on the device of `embeds`.
        rngs: one for each image; each draws once, at level 0 too, as in the stock pipeline.

    Source: Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents" (2022).
    """
    from diffusers.models.embeddings import get_timestep_embedding

    noise = draw(rngs, embeds.shape[1:], embeds)
    normal = pipe.image_normalizer
    noised = pipe.image_noising_scheduler.add_noise(normal.scale(embeds), timesteps=levels, noise=noise)
    noised = normal.unscale(noised)
    level = get_timestep_embedding(levels, noised.shape[-1], flip_sin_to_cos=True, downscale_freq_shift=0)
    return torch.cat([noised, level.to(noised.dtype)], dim=1)


def on_hidden_states(pipe: Any) -> bool:
    """Return whether the IP-Adapter in a pipeline reads the image encoder's hidden states (the Plus kind), not one embedding."""
    from diffusers.models.embeddings import ImageProjection

    layers: nn.ModuleList = pipe.unet.encoder_hid_proj.image_projection_layers
    return not isinstance(layers[0], ImageProjection)


def with_unconditional(rows: Tensor, negative: Tensor | None) -> Tensor:
    """Return the rows for guidance: (B, ...) of `negative` (one row for all, or zeros if None), followed by the B of `rows`."""
    return torch.cat([torch.zeros_like(rows) if negative is None else negative.to(rows).expand_as(rows), rows])


def select_rows(condition: Mapping[str, Tensor], shared: Mapping[str, Tensor], name: str, count: int) -> Tensor:
    """Return (count, ...): the condition's own rows, or the one row that all images share."""
    if name in condition:
        return condition[name]
    return shared[name].expand(count, *shared[name].shape[1:])
