"""Refuse to work on what stands for images inside torch.fx and torch.func.vmap, and to be recorded by torch.jit.trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx

from gentransforms.errors import ImageError

__all__ = ["refuse_proxies", "refuse_recording", "refuse_vmap"]


def refuse_proxies(name: str, flat: Sequence[Any]) -> None:
    """Raise if one of the leaves of a sample is a proxy of torch.fx, which traces a model and would leave the transform `name` out.

    Raises:
        ImageError: naming what to do.

    Example:
        >>> refuse_proxies("GenerativeAugment", [torch.zeros(3, 8, 8)])
    """
    if any(isinstance(leaf, torch.fx.Proxy) for leaf in flat):
        raise ImageError(
            f"{name} was called with a torch.fx.Proxy: torch.fx traces the model, and would leave the transform out of its graph; make "
            f'it a leaf: create_feature_extractor(model, nodes, tracer_kwargs={{"leaf_modules": [{name}]}}), or a torch.fx.Tracer '
            f"whose is_leaf_module returns True for it"
        )


def refuse_vmap(name: str) -> None:
    """Raise inside `torch.func.vmap`, where one sample stands for many and has no pixels to look at.

    Raises:
        ImageError: naming what to do.

    Example:
        >>> refuse_vmap("GenerativeAugment")
    """
    functorch = torch._C._functorch
    if functorch.peek_interpreter_stack() is None:  # outside torch.func: this is all that an ordinary call pays
        return
    if any(level.key() == functorch.TransformType.Vmap for level in functorch.get_interpreter_stack() or ()):
        raise ImageError(
            f"{name} was called inside torch.func.vmap, where it cannot read its images: apply it to the whole batch before, and map the "
            "rest of the model over the result (jacfwd and hessian use vmap, too; jacrev does so in the backward pass only)"
        )


def refuse_recording(name: str) -> None:
    """Raise inside `torch.jit.trace`, whose graph would replace, in each batch, the images that were chosen when it was recorded.

    Raises:
        ImageError: naming what to do.

    Example:
        >>> refuse_recording("GenerativeAugment")
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        raise ImageError(
            f"{name} was called inside torch.jit.trace (SummaryWriter.add_graph uses it, too), which would record one choice of images and "
            "repeat it: trace the rest of the model without the transform, or set its p to 0"
        )
