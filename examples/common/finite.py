"""Whether what training made is finite: NaN and infinity are neither saved nor measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_finite(value: Any) -> bool:
    """Return whether a number, a tensor, or all that a module, a mapping or a list holds is finite."""
    flags: dict[torch.device, list[Tensor]] = {}
    for item in _leaves(value):
        if isinstance(item, Tensor) and item.is_floating_point():
            flags.setdefault(item.device, []).append(item.isfinite().all())
        elif isinstance(item, float) and not math.isfinite(item):
            return False
    return all(bool(torch.stack(found).all()) for found in flags.values())  # one transfer from a device, not one for each tensor


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, nn.Module | torch.optim.Optimizer):
        value = value.state_dict()
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(item)
    else:
        yield value
