"""Whether this machine has a device, asked before anything is read or written."""

from __future__ import annotations

import torch


def settle_device(device: str, option: str) -> str:
    """Return the device to compute on: for ``auto`` a CUDA GPU where there is one, else the CPU.

    Args:
        device: ``auto`` or a device of torch, such as ``cpu``, ``cuda:1`` or ``mps``.
        option: the device as the user wrote it, such as ``--device cuda``.

    Raises:
        SystemExit: if this machine has no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without that kind of device
        raise SystemExit(f"{option}: not a device of this machine ({str(error).splitlines()[0]})") from error
    return device
