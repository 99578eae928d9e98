"""Describe a bank, its generator and its source for the manifest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from gentransforms.bank.config import BankConfig
from gentransforms.bank.format.manifest import FORMAT, FORMAT_VERSION, hash_keys
from gentransforms.generators.base import ImageGenerator
from gentransforms.sources.base import ImageSource

__all__ = ["describe_bank", "describe_generator", "describe_source"]


def describe_bank(
    config: BankConfig | Mapping[str, Any],
    generator: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    device: str | None,
    encoder: str | None,
    info: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the manifest of a bank, JSON-able.

    Args:
        config: resolved settings.
        generator: the result of `describe_generator`.
        source: the result of `describe_source`.
        device: type of the device on which the generator runs, such as ``"cuda"``.
        encoder: the library that encodes the images, such as ``"torchvision"``.
        info: further information, which need not agree between runs.
    """
    settings = dataclasses.asdict(config) if isinstance(config, BankConfig) else dict(config)
    manifest = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "settings": settings, "generator": generator, "source": source,
        "device": device, "encoder": encoder, "info": info,
    }  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps(manifest))  # tuples become lists, as in the file with which it is compared
    return plain


def describe_generator(generator: ImageGenerator) -> dict[str, Any]:
    """Return a manifest's description of a generator. All its weights are hashed, so call this once in a run.

    Options that change images only by rounding are left out, so that runs with and without ``compile`` can work on one bank.
    """
    return {
        "class": type(generator).__name__,
        "fingerprint": generator.fingerprint(),
        "config": {name: value for name, value in generator.config.items() if name not in generator.execution_options},
        "preserves_geometry": generator.preserves_geometry,
        "image_size": list(generator.image_size),
    }


def describe_source(source: ImageSource) -> dict[str, Any]:
    """Return a manifest's description of a source, as far as it determines the images."""
    return {
        "count": len(source.keys),
        "keys": hash_keys(source.keys),
        "key_type": source.key_type,
        "inputs": list(source.inputs),
        "decides": source.description.get("decides", {}),
    }
