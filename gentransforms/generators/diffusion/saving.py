"""Saving a diffusion generator in diffusers layout, with our own config beside it, and opening either kind of folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.base import FORMAT_VERSION
from gentransforms.hub import models as hub
from gentransforms.wording import with_article

__all__ = ["IP_ADAPTER_FILE", "describe", "saved_options", "write"]

IP_ADAPTER_FILE = ("", "ip_adapter", "ip_adapter.safetensors")  # what an `ip_adapter` option of a saved folder says: the folder itself


def saved_options(source: hub.Source, class_name: str) -> dict[str, Any]:
    """Return the options in ``config.json`` if a generator of ours was saved there, none for a repository of others.

    Raises:
        WeightsError: if it holds another of our classes, or has a newer format.
    """
    description = hub.own_config(source)
    if description is None:
        return {}
    hub.check_format(source, description, FORMAT_VERSION)
    if description["class"] != class_name:
        raise WeightsError(
            f"{source} holds {with_article(description['class'])}, not {with_article(class_name)}: "
            f"use gentransforms.load_generator({str(source)!r})"
        )
    return dict(description["config"])


def describe(generator: Any, config: Mapping[str, Any]) -> str:
    """Return the text of ``config.json`` for a generator.

    Raises:
        ConfigError: if a value cannot be written as JSON.
    """
    ours = {"format": "gentransforms", "format_version": FORMAT_VERSION, "class": type(generator).__name__}
    try:
        return json.dumps(ours | {"config": dict(config)}, indent=2)
    except TypeError as error:
        raise ConfigError(f"config {dict(config)!r} cannot be written as JSON ({error}): use numbers, strings, lists, dicts") from error


def write(generator: Any, directory: Path, config: str, page: str, dtype: torch.dtype | None, adapter: Path | None) -> None:
    """Write the pipeline's components, ``config.json`` and the model card.

    Args:
        generator: the DiffusionGenerator.
        directory: an empty folder, as `gentransforms.hub.replaced.replacing` yields it.
        config: the text of ``config.json``, as `describe` returns it.
        page: the text of the model card.
        dtype: dtype of the floating-point weights; None leaves them unchanged.
        adapter: the file of the IP-Adapter that is in the UNet, if there is one.
    """
    pipe = generator.pipe
    if dtype is not None or adapter is not None:
        pipe = copy.deepcopy(pipe)
    if adapter is not None:
        pipe.unload_ip_adapter()
        pipe.register_modules(image_encoder=copy.deepcopy(generator.image_encoder), feature_extractor=generator.pipe.feature_extractor)
    if dtype is not None:
        pipe.to(dtype=dtype)
    pipe.save_pretrained(directory, safe_serialization=True)
    if adapter is not None:
        _write_adapter(adapter, directory / IP_ADAPTER_FILE[1] / IP_ADAPTER_FILE[2], dtype)
    (directory / hub.CONFIG_FILE).write_text(config + "\n")
    (directory / hub.CARD_FILE).write_text(page, encoding="utf-8")


def _write_adapter(source: Path, target: Path, dtype: torch.dtype | None) -> None:
    """Copy an IP-Adapter into a safetensors file, whatever format it came in."""
    from safetensors.torch import load_file, save_file

    if source.suffix == ".safetensors":
        weights: dict[str, Tensor] = load_file(source)
    else:
        nested = torch.load(source, map_location="cpu", weights_only=True)
        weights = {f"{part}.{name}": tensor for part, tensors in nested.items() for name, tensor in tensors.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: t.to(dtype) if dtype is not None and t.is_floating_point() else t for name, t in weights.items()}
    save_file({name: t.contiguous() for name, t in weights.items()}, target)
