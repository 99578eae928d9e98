"""Shield work from what surrounds it: autocast, torch's default dtype and device, inference mode."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

__all__ = ["isolate"]


@contextlib.contextmanager
def isolate(*devices: torch.device) -> Iterator[None]:
    """Run a block with torch's own defaults: float32, the CPU, no autocast, no inference mode.

    Models are built, moved and called under all of these: Lightning's ``bf16-true`` sets the default dtype, transformers
    builds a model on the meta device. None of them may change a generator's weights, its arithmetic or what is drawn.
    Gradients stay as they were, and are off where inference mode was on.

    Args:
        devices: where the block computes, beside the CPU: their autocast is disabled too.

    Example:
        >>> import torch
        >>> with torch.device("meta"), isolate():
        ...     torch.zeros(1).device
        device(type='cpu')
    """
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())  # leaving inference mode turns gradients on
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in {"cpu", *(device.type for device in devices)}:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_FLOAT32)
        yield


class _Float32Default:
    """Sets torch's default dtype to float32 while any thread is inside, and back after the last one has left.

    The default is one for the whole process, so threads that saved and restored it each on their own, as DataParallel's
    would, could leave it changed.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, torch.float32

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = torch.get_default_dtype()
                if self._before != torch.float32:
                    torch.set_default_dtype(torch.float32)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._before != torch.float32:
                torch.set_default_dtype(self._before)


_FLOAT32 = _Float32Default()
