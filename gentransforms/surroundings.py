"""Shield work from what surrounds it: autocast, torch's default dtype and device, inference mode."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["isolate", "isolate_loading"]


@contextlib.contextmanager
def isolate(*devices: torch.device) -> Iterator[None]:
    """Run a block with torch's own defaults: float32, the CPU, no autocast, no inference mode.

    Users build, move and call models under all of these: Lightning's ``bf16-true`` sets the default dtype, transformers
    builds models on the meta device. None of them may change a generator's weights, its arithmetic or what is drawn.
    Gradients stay as they were, and are off where inference mode was on.

    Args:
        devices: where the block computes besides the CPU; their autocast is disabled too.

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
    """Set torch's default dtype to float32 while any thread is inside, and restore it when the last one leaves.

    The default is global to the process: if threads, such as DataParallel's, each saved and restored it on their own, they
    could leave it changed.
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


@contextlib.contextmanager
def isolate_loading() -> Iterator[None]:
    """Run a block that loads a model as `isolate` does, and outside any empty-weights context.

    Such a context (accelerate's ``init_empty_weights``, transformers' own) puts every registered parameter on the meta
    device; a generator loaded inside it gets real weights all the same.

    Example:
        >>> import torch
        >>> with torch.device("meta"), isolate_loading():
        ...     torch.nn.Linear(1, 1).weight.is_meta
        False
    """
    patched = {name: getattr(nn.Module, name) for name in ("register_parameter", "register_buffer")}
    with isolate():
        try:
            for name, function in patched.items():
                setattr(nn.Module, name, _unwrap(function, name))
            yield
        finally:
            for name, function in patched.items():
                setattr(nn.Module, name, function)


def _unwrap(function: Any, name: str) -> Any:
    """Return torch's own method of that name, which an empty-weights context has wrapped in a closure."""
    while function.__module__ != nn.Module.__module__:
        inside = [cell.cell_contents for cell in function.__closure__ or ()]
        inner = next((f for f in inside if getattr(f, "__module__", None) == nn.Module.__module__ and f.__name__ == name), None)
        inner = inner or next((f for f in inside if name.removeprefix("register_") in getattr(f, "__name__", "")), None)
        if inner is None:
            return function
        function = inner
    return function
