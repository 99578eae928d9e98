"""Which precision to train in: bfloat16 where the device computes in it, else float32.

On a processor without bfloat16 instructions every bfloat16 product is emulated: one convolution's step took 0.378 s instead
of 0.076 s on AVX2.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

# What Linux calls the instructions: x86 in "flags", Arm in "Features".
FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def choose_precision(device: str, timed: bool = True, cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, str]:
    """Return ``"bfloat16"`` or ``"float32"`` for training on a device, ``"cpu"``, ``"cuda"`` or ``"cuda:0"``, and the reason.

    For a processor the flags in `cpuinfo` decide. Where there are none, as on macOS and Windows, a few steps are timed, unless
    `timed` is False: several processes of one run could come to different results.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bfloat16", "the GPU computes in it") if has_it else ("float32", "the GPU has no bfloat16")
    if kind != "cpu":
        return "float32", f"bfloat16 is not tried on {kind}"
    flags = read_flags(cpuinfo)
    if flags:
        found = [flag for flag in FLAGS if flag in flags]
        return ("bfloat16", f"the processor has {found[0]}") if found else ("float32", "the processor has no bfloat16 instructions")
    if not timed:
        return "float32", "the processor does not say what it has"
    seconds = {dtype: time_steps(dtype) for dtype in (torch.float32, torch.bfloat16)}
    faster = "bfloat16" if seconds[torch.bfloat16] < seconds[torch.float32] else "float32"
    times = " and ".join(f"{1000 * value:.1f} ms in {str(dtype).removeprefix('torch.')}" for dtype, value in seconds.items())
    return faster, f"a step took {times}"


def settle_precision(
    asked: str, recorded: str | None, device: str, names: dict[str, str] | None = None, timed: bool = True
) -> tuple[str, str]:
    """Return the precision of a run and a line that says it.

    Args:
        asked: of the settings; anything but ``auto`` is taken as it is.
        recorded: what the run was begun with, if it has begun. A run keeps it on another machine.
        device: the device to choose for.
        names: what the recipe calls ``bfloat16`` and ``float32``.
        timed: as for `choose_precision`.
    """
    if asked != "auto":
        return asked, f"precision: {asked}"
    if recorded is not None:
        return recorded, f"precision: {recorded}, with which this run began"
    chosen, reason = choose_precision(device, timed)
    chosen = (names or {}).get(chosen, chosen)
    return chosen, f"precision: {chosen} ({reason})"


def read_flags(cpuinfo: Path) -> set[str]:
    """Return the processor's flags, empty where there is no such file or no such line."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.partition(":")[0].strip() in ("flags", "Features")), set())


def time_steps(dtype: torch.dtype, steps: int = 5) -> float:
    """Return the shortest of a few steps of a small convolution in seconds, forward and backward."""
    conv, images = nn.Conv2d(32, 64, 3, padding=1), torch.zeros(32, 32, 16, 16)
    conv, images = conv.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            conv(images).float().square().mean().backward()
        times.append(time.perf_counter() - start)
    return min(times)
