"""Keys and values of the text, which no step changes: computed once for all steps of a call, instead of in each.

In the cross-attention of a UNet, queries come from the image that is being denoised, and keys and values from the text. For 77 tokens
those are 1.1% of the operations of the network in benchmarks/test_diffusion.py.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch.nn.functional as F
from torch import Tensor, nn

from gentransforms.generators.identity import uncompiled

__all__ = ["KnownKeys", "known_keys"]

_PLAIN = ("AttnProcessor2_0", "FusedAttnProcessor2_0")
# By network: what keeps two threads from using it at once, and its cross-attention layers.
_FOUND: WeakKeyDictionary[nn.Module, tuple[Any, list[Any]]] = WeakKeyDictionary()


class KnownKeys:
    """Attention to keys and values that are there already.

    Args:
        own: the layer's own processor, whose place it takes for a call; a copy of the network made meanwhile gets that one.
        key: (R, heads, T, d).
        value: (R, heads, T, d). A call with fewer than R rows takes the last ones: a step without guidance.
    """

    def __init__(self, own: Any, key: Tensor, value: Tensor) -> None:
        self.own, self.key, self.value = own, key, value

    def __reduce__(self) -> tuple[Any, ...]:
        return copy.copy, (self.own,)

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        count = len(hidden_states)
        query = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, self.key[-count:], self.value[-count:])
        projected, dropout = attn.to_out
        made: Tensor = dropout(projected(mixed.transpose(1, 2).flatten(2)))
        return made


@contextlib.contextmanager
def known_keys(networks: Iterable[Any], text: Tensor) -> Iterator[None]:
    """Compute keys and values of a text now, and let the networks use them inside the context.

    Layers with an attention of another kind (IP-Adapters, xformers) are left alone. Exact up to rounding.

    Args:
        networks: UNets and ControlNets whose ``encoder_hidden_states`` are the text.
        text: (R, T, D), the rows of a guided step, or those of every step where none is guided.
    """
    plain = [network for network in map(uncompiled, networks) if getattr(network, "encoder_hid_proj", None) is None]
    taken: list[Any] = []
    with contextlib.ExitStack() as stack:
        for network in sorted(plain, key=id):  # two threads take the locks of several networks in the same order
            stack.enter_context(_find(network)[0])
        try:
            for attn in (attn for network in plain for attn in _find(network)[1]):
                if type(attn.processor).__name__ in _PLAIN:
                    known = KnownKeys(attn.processor, *_keys_and_values(attn, text))
                    taken.append(attn)
                    attn.processor = known
            yield
        finally:
            _give_back(taken)


def _keys_and_values(attn: Any, text: Tensor) -> list[Tensor]:
    fused = getattr(attn, "fused_projections", False) and getattr(attn, "to_kv", None) is not None
    made = attn.to_kv(text).chunk(2, dim=-1) if fused else (attn.to_k(text), attn.to_v(text))
    return [part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in made]


def _give_back(layers: Iterable[Any]) -> None:
    for attn in layers:
        if isinstance(attn.processor, KnownKeys):
            attn.processor = attn.processor.own


def _forget() -> None:
    """Undo in a forked process what another thread of its parent was at: that thread is not there."""
    for _, layers in _FOUND.values():
        _give_back(layers)
    _FOUND.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _find(network: nn.Module) -> tuple[Any, list[Any]]:
    if network not in _FOUND:
        blocks = [module for module in network.modules() if type(module).__name__ == "BasicTransformerBlock"]
        layers = [attn for block in blocks if (attn := getattr(block, "attn2", None)) is not None and _reads_text(attn)]
        _FOUND[network] = threading.RLock(), layers
    return _FOUND[network]


def _reads_text(attn: Any) -> bool:
    """Whether an attention layer is a plain one over the text: without norms of its keys, or a residual of its own."""
    more = ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k", "residual_connection", "added_kv_proj_dim")
    return bool(attn.is_cross_attention) and not any(getattr(attn, name, None) for name in more) and attn.rescale_output_factor == 1
