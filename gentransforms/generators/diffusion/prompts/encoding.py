"""Text conditioning: prompts through the pipeline's own tokenizer and text encoders, each distinct prompt once."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gentransforms.errors import ConfigError

__all__ = ["check_prompts", "encode_prompts", "takes_prompts"]


def takes_prompts(pipe: Any) -> bool:
    """Whether the pipeline has a text encoder."""
    return getattr(pipe, "text_encoder", None) is not None and getattr(pipe, "tokenizer", None) is not None


def check_prompts(prompts: Any, count: int) -> list[str]:
    """Return `prompts` if it is one string per image.

    Raises:
        ConfigError: otherwise.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not all(isinstance(p, str) for p in prompts):
        raise ConfigError(f"prompts={prompts!r}: expected a list of {count} strings, one for each image")
    if len(prompts) != count:
        raise ConfigError(f"prompts has {len(prompts)} entries: expected {count}, one for each image")
    return list(prompts)


def encode_prompts(pipe: Any, prompts: Sequence[str], negative_prompt: str | None, guided: bool) -> dict[str, Tensor]:
    """Return the text conditions: ``prompt`` (B, T, D), ``negative`` (1, T, D) if guided, and for SDXL ``pooled``, ``negative_pooled``.

    Args:
        pipe: a diffusers pipeline with a text encoder.
        prompts: B of them; each distinct one is encoded once, in one batch with the negative prompt.
        negative_prompt: text that guidance steers away from; None for the stock pipeline's default, the empty prompt (SDXL: zeros).
        guided: whether the negative prompt is needed.
    """
    zeros = negative_prompt is None and bool(getattr(pipe.config, "force_zeros_for_empty_prompt", False))
    negative = negative_prompt or ""
    # The encoders take no empty batch: there is always one text.
    texts = sorted({*prompts, *([negative] if (guided and not zeros) or not prompts else [])})
    accepted = inspect.signature(pipe.encode_prompt).parameters
    wanted = {"prompt": texts, "device": pipe.unet.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    encoded = pipe.encode_prompt(**{name: value for name, value in wanted.items() if name in accepted})
    # (prompt, negative) of most pipelines; (prompt, negative, pooled, negative pooled) of SDXL.
    named = {"prompt": encoded[0]} if len(encoded) == 2 else {"prompt": encoded[0], "pooled": encoded[2]}
    index = torch.tensor([texts.index(prompt) for prompt in prompts], dtype=torch.int64, device=pipe.unet.device)
    out = {name: value[index] for name, value in named.items()}
    if guided:
        for name, value in named.items():
            row = torch.zeros_like(value[:1]) if zeros else value[texts.index(negative)][None]
            out["negative" if name == "prompt" else "negative_pooled"] = row
    return out
