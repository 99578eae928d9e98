"""Refuse to save weights in a dtype that cannot hold them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gentransforms.errors import WeightsError

__all__ = ["check_fits"]


def check_fits(weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """Raise if finite weights would become infinite in `dtype`; None leaves weights as they are.

    Args:
        weights: weights by name, on any device.
        dtype: dtype of the floating weights in the files.

    Raises:
        WeightsError: naming a dtype that holds them.

    Example:
        >>> check_fits({"scale": torch.tensor([60000.0])}, torch.float16)
        >>> check_fits({"scale": torch.tensor([70000.0])}, torch.float16)
        Traceback (most recent call last):
        ...
        gentransforms.errors.WeightsError: dtype=torch.float16: 1 of 1 weights, such as scale, reach beyond its range ...
    """
    if dtype is None:
        return
    largest = torch.finfo(dtype).max
    wider = {n: t for n, t in weights.items() if t.is_floating_point() and torch.finfo(t.dtype).max > largest and t.numel()}
    bad = [name for name, tensor in wider.items() if bool((tensor.isfinite() & ~tensor.to(dtype).isfinite()).any())]
    if bad:
        raise WeightsError(
            f"dtype={dtype}: {len(bad)} of {len(weights)} weights, such as {bad[0]}, reach beyond its range of ±{largest:g} and would "
            "become infinite: save in torch.bfloat16, or as they are"
        )
