"""Have a transform's `make_params` draw with the `p` and the seeds of one call, whatever its signature in a user's subclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from gentransforms.errors import ConfigError
from gentransforms.images import Image

__all__ = ["asked_of", "draw_params"]


@dataclass(slots=True)
class _Asked:
    transform: Any
    p: float
    seeds: Tensor | None
    used: bool = False


# Beside the arguments, because torchvision's signature is make_params(self, flat_inputs): a subclass with it passes on no others.
# Not on the module, which threads may share.
_ASKED: ContextVar[_Asked | None] = ContextVar("gentransforms_asked", default=None)


def draw_params(transform: Any, images: list[Image], p: float, seeds: Tensor | None = None) -> dict[str, Any]:
    """Return what `transform.make_params` draws for the images, with this `p` and these seeds.

    Args:
        transform: with a `make_params` that uses `asked_of`, which a subclass may override.
        images: N in total.
        p: probability of this call.
        seeds: (N,) int64 that decide what is drawn, or None.

    Raises:
        ConfigError: if a subclass draws without them.
    """
    asked, name = _Asked(transform, p, seeds), type(transform).__name__
    passed = p != transform.p and _takes_p(getattr(transform.make_params, "__func__", transform.make_params))
    token = _ASKED.set(asked)
    try:
        params: dict[str, Any] = transform.make_params(images, p=p) if passed else transform.make_params(images)
    finally:
        _ASKED.reset(token)
    if asked.used:
        return params
    if seeds is not None:
        raise ConfigError(
            f"seeds_getter: {name}.make_params does not use its seeds: let it call super().make_params(flat_inputs), and change what "
            "that returns"
        )
    if p != transform.p and not passed:
        raise ConfigError(
            f"p={p!r}: {name}.make_params does not use it: let it call super().make_params(flat_inputs), or take an argument p=None"
        )
    return params


def asked_of(transform: Any, p: float | None) -> tuple[float, Tensor | None]:
    """Return the probability with which a `make_params` is to draw, and the seeds, None if it has to draw them.

    Args:
        transform: whose `make_params` it is.
        p: its argument, which goes first; then the `p` of the call; outside of a call the transform's own.
    """
    asked = _ASKED.get()
    if asked is None or asked.transform is not transform:
        return transform.p if p is None else p, None
    asked.used = True
    return asked.p if p is None else p, asked.seeds


@lru_cache(maxsize=64)
def _takes_p(make_params: Callable[..., Any]) -> bool:
    parameters = inspect.signature(make_params).parameters
    return "p" in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
