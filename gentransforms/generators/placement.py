"""Where a network is to run, and in which dtype, as its users say it; which device that is."""

from __future__ import annotations

import torch

from gentransforms.errors import ConfigError
from gentransforms.wording import one_line

__all__ = ["check_placement", "with_index"]


def check_placement(device: torch.device | str | int | None, dtype: torch.dtype | None = None) -> torch.device:
    """Return the device that is meant, after trying it: the CPU for None, a GPU for a number.

    Raises:
        ConfigError: if the device is not usable here, or `dtype` is not floating.

    Example:
        >>> check_placement(None)
        device(type='cpu')
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(f"dtype={dtype!r}: expected a floating torch.dtype, such as torch.bfloat16")
    try:
        place = torch.device("cpu" if device is None else device)
        torch.empty(0, device=place)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ConfigError(f"device={device!r}: not usable here ({one_line(error)})") from error
    return place


def with_index(device: torch.device) -> torch.device:
    """Return a device as its tensors name it, so that two names of one device are equal: ``cuda`` alone is the current one, ``cuda:0``.

    Example:
        >>> with_index(torch.device("cpu", 0)) == with_index(torch.device("cpu"))
        True
    """
    if device.type == "cpu":
        return torch.device("cpu")
    here = torch.accelerator.current_accelerator()
    if device.index is not None or here is None or here.type != device.type:
        return device
    return torch.device(device.type, torch.accelerator.current_device_index())
