"""Recognise whether what was computed from networks still holds, without reading their weights."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gentransforms.generators.diffusion.state import read_lora
from gentransforms.generators.identity import uncompiled

__all__ = ["Stamp", "describe_tokenizer", "make_stamp", "same"]


@dataclass(frozen=True, eq=False)
class Stamp:
    """What networks and settings were at one time; see `make_stamp`. It keeps no weights alive.

    Attributes:
        settings: compared by value.
        tensors: weak references to the weights, compared by identity.
        versions: of each weight, its dtype, its place in memory, and how often torch changed it in place.
    """

    settings: Any
    tensors: list[weakref.ref[Tensor]]
    versions: list[tuple[Any, ...]]


def make_stamp(networks: Iterable[nn.Module | None], settings: Any = None) -> Stamp:
    """Return a stamp that differs after weights were replaced, loaded, trained or moved, and after LoRAs were set.

    It takes about a microsecond a weight, and never waits for a device. A change of values past torch's counting
    (``weight.data.mul_(2)``) is not seen.

    Args:
        networks: those that a result was computed with; None is left out.
        settings: what else it was computed from, comparable by value.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> layer = nn.Linear(2, 2)
        >>> before = make_stamp([layer])
        >>> with torch.no_grad():
        ...     _ = layer.weight.mul_(2)
        >>> same(before, make_stamp([layer]))
        False
    """
    tensors: list[Tensor] = []
    loras = []
    for network in map(uncompiled, networks):
        if network is None:
            continue
        adapted = False
        for module in network.modules():
            own = vars(module)
            tensors += [t for kept in (own["_parameters"], own["_buffers"]) for t in kept.values() if t is not None]
            adapted = adapted or isinstance(own.get("scaling"), dict)
        # What peft merged for good leaves a note behind, though it is past the counting.
        loras.append((read_lora(network) if adapted else None, vars(network).get("_hf_peft_config_loaded", "never")))
    return Stamp((settings, loras), [weakref.ref(tensor) for tensor in tensors], [_version(tensor) for tensor in tensors])


def same(one: Stamp | None, other: Stamp) -> bool:
    """Return whether two stamps are of the same networks in the same state, with the same settings."""
    return (
        one is not None
        and one.settings == other.settings
        and one.versions == other.versions
        and all(a() is b() for a, b in zip(one.tensors, other.tensors, strict=True))
    )


def describe_tokenizer(tokenizer: Any) -> Any:
    """Return what changes when tokens are added to a tokenizer, as by a textual inversion, or its settings change."""
    if tokenizer is None:
        return None
    special = sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items())
    return id(tokenizer), len(tokenizer), sorted(tokenizer.get_added_vocab().items()), special, tokenizer.model_max_length


def _version(tensor: Tensor) -> tuple[Any, ...]:
    plain = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta
    return tensor.dtype, tensor.data_ptr() if plain else 0, None if tensor.is_inference() else tensor._version
