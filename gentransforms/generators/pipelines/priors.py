"""Compute the image embeddings of a prior, from which Kandinsky's decoders and FLUX Redux start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gentransforms.generators.diffusion import appearance
from gentransforms.generators.pipelines.once import EncodeOnce

__all__ = ["EMBEDDINGS", "embed", "embed_nothing", "reads_prompts", "unit_range"]

EMBEDDINGS = ("image_embeds", "prompt_embeds", "pooled_prompt_embeds")


def reads_prompts(prior: Any) -> bool:
    """Return whether a prior embeds an image together with a prompt, as FLUX Redux with text encoders does."""
    return hasattr(prior, "image_embedder") and getattr(prior, "text_encoder", None) is not None


def embed(prior: Any, images: Tensor, texts: Sequence[str], size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the embeddings of images, of `EMBEDDINGS` those that the prior makes, each (B, ...).

    Args:
        prior: Kandinsky's, or that of FLUX Redux.
        images: (B, 3, H, W) floating in [0, 1].
        texts: one for each image, where the prior reads them; else empty.
        size: (h, w) of an image, where there is none.
    """
    if hasattr(prior, "get_zero_embed"):
        encoder = prior.image_encoder
        pixels = appearance.preprocess(images.float(), prior.image_processor, encoder.config.image_size)
        if not len(images):
            return {"image_embeds": pixels.new_zeros(0, encoder.config.projection_dim)}
        return {"image_embeds": encoder(pixels.to(encoder.dtype)).image_embeds}
    seen = images if len(images) else torch.zeros(1, 3, *size)
    given = [{"prompt": text} for text in texts or [""]] if reads_prompts(prior) else [{}] * len(seen)
    with unit_range(prior.feature_extractor):
        made = [prior(seen[i : i + 1], **text) for i, text in enumerate(given)]
    return {name: torch.cat([output[name] for output in made])[: len(images)] for name in EMBEDDINGS[1:]}


@contextlib.contextmanager
def unit_range(processor: Any) -> Iterator[None]:
    """Let an image processor of transformers take tensors in [0, 1] inside the context: by default it divides them by 255."""
    before = processor.do_rescale
    processor.do_rescale = False
    try:
        yield
    finally:
        processor.do_rescale = before


def embed_nothing(prior: Any, count: int, device: torch.device, once: EncodeOnce) -> Tensor:
    """Return (count, D): the embedding of a black image, which guidance leads away from; encoded once."""
    found: Tensor = once.get(prior.image_encoder, f"nothing {device}".encode(), lambda: prior.get_zero_embed(1, device))
    return found.expand(count, *found.shape[1:])
