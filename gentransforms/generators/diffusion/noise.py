"""Noise levels of unCLIP: how much noise is added to an image's embedding before it conditions the UNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gentransforms.errors import ConfigError

__all__ = ["check_level", "check_levels"]


def check_level(level: Any, top: int) -> Any:
    """Return a noise level that holds for all images, or ``"foreground"``.

    Args:
        level: as the user gave it.
        top: the highest level.

    Raises:
        ConfigError: if it is neither.
    """
    if level != "foreground" and (type(level) is not int or not 0 <= level <= top):
        raise ConfigError(f"noise_level={level!r}: expected an integer from 0 to {top}, or 'foreground'")
    return level


def check_levels(levels: Any, count: int, top: int) -> Tensor:
    """Return the noise levels of `count` images, (count,) of an integer type.

    Raises:
        ConfigError: if they are something else, or out of range. The range is checked on the CPU alone: elsewhere, reading the
            values would wait for the device.
    """
    try:
        found = torch.as_tensor(levels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"noise_levels={levels!r}: expected {count} integers, one for each image ({error})") from None
    if found.shape != (count,) or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise ConfigError(f"noise_levels has shape {tuple(found.shape)} and dtype {found.dtype}: expected ({count},) int64")
    if found.device.type == "cpu" and count:
        check_level(int(found.min()), top)
        check_level(int(found.max()), top)
    return found
