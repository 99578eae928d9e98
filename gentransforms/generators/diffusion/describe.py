"""Describe in JSON whatever affects the images in the parts of a pipeline: configurations, vocabularies, image statistics."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from gentransforms.generators.identity import to_json, uncompiled

__all__ = ["describe_part", "describe_pipeline"]

# Entries of a configuration that name versions and places, not the network.
_FORGET = ("transformers_version", "dtype", "torch_dtype", "architectures")
# Settings of an image processor that the generators here read.
_PROCESSOR = ("image_mean", "image_std", "size", "do_normalize", "keep_aspect_ratio", "ensure_multiple_of", "size_divisor")


def describe_pipeline(pipe: Any, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a pipeline's components and of further parts, by name.

    Args:
        pipe: a diffusers pipeline.
        parts: networks, schedulers and processors beside its components, or in their place.
    """
    own = {name: value for name, value in pipe.config.items() if name == "force_zeros_for_empty_prompt"}
    named = {**pipe.components, **parts}
    described = {name: describe_part(part) for name, part in named.items() if part is not None}
    return {"pipeline": {"_class_name": type(pipe).__name__, **own}} | {name: part for name, part in described.items() if part}


def describe_part(part: Any) -> dict[str, Any]:
    """Return class and configuration of a network or scheduler, vocabulary of a tokenizer, or statistics of an image processor."""
    part = uncompiled(part)
    if hasattr(part, "get_vocab"):
        return {"vocabulary": _digest_vocabulary(part), "model_max_length": part.model_max_length}
    if not hasattr(part, "config"):
        return {name: _plain(getattr(part, name)) for name in _PROCESSOR if getattr(part, name, None) is not None}
    config = part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)
    kind = type(part).__name__
    if kind == "DPMSolverSinglestepScheduler" and config.get("final_sigmas_type") == "zero":
        config |= {"lower_order_final": True}  # its set_timesteps says so in its configuration, from the first use on
    return {"_class_name": kind} | copy.deepcopy(_kept(config))


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration, and those inside it (of the text and the image model of one encoder), without `_FORGET`."""
    kept = {name: value for name, value in config.items() if not str(name).startswith("_") and name not in _FORGET}
    plain = {name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in kept.items()}  # how it was quantised
    return {name: _kept(value) if isinstance(value, dict) else value for name, value in plain.items()}


def _plain(value: Any) -> Any:
    """Return a processor's setting in a form that JSON can hold: some versions of transformers have a class of their own for sizes."""
    if isinstance(value, bool | int | float | str | list | tuple):
        return value
    sides = ("height", "width", "shortest_edge", "longest_edge")
    found = {side: value.get(side) if isinstance(value, Mapping) else getattr(value, side, None) for side in sides}
    return {side: pixels for side, pixels in found.items() if pixels is not None}


def _digest_vocabulary(tokenizer: Any) -> str:
    """Return a hash of the tokens, including those of a textual inversion, and of those that begin, end and pad a text."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    text = to_json(
        {"tokens": tokenizer.get_vocab(), "added": {str(t): i for t, i in tokenizer.get_added_vocab().items()}, "special": special}
    )
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def select_networks(parts: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Return those of the parts that are networks, seen through torch.compile."""
    return {name: uncompiled(part) for name, part in parts.items() if isinstance(part, nn.Module)}
