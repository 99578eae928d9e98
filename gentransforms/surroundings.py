"""Shield work from what surrounds it: autocast, torch's default dtype and device, inference mode, faster float32 arithmetic."""

from __future__ import annotations

import contextlib
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["isolate", "isolate_loading", "isolate_thread"]


@contextlib.contextmanager
def isolate_thread(*devices: torch.device) -> Iterator[None]:
    """Run a block without what surrounds it in its own thread: autocast, the default device, inference mode.

    For code that depends on no setting of the whole process: it gives every tensor a dtype, and computes no products of matrices.
    Gradients stay as they were, and are off where inference mode was on.

    Args:
        devices: where the block computes besides the CPU; their autocast is disabled too.

    Example:
        >>> import torch
        >>> with torch.device("meta"), isolate_thread():
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
        yield


@contextlib.contextmanager
def isolate(*devices: torch.device, default_dtype: bool = True) -> Iterator[None]:
    """Run a block with torch's own defaults: float32, the CPU, no autocast, no inference mode, float32 products in float32.

    Users build, move and call models under all of these: Lightning's ``bf16-true`` sets the default dtype and it advises
    ``torch.set_float32_matmul_precision("medium")``, transformers builds models on the meta device. None of them may change a
    generator's weights, its arithmetic or what is drawn. Gradients stay as they were, and are off where inference mode was on.
    TensorFloat-32 in the convolutions of a GPU, torch's default, stays as it is set.

    torch has one default dtype and one precision of products for all threads, so other threads see them change meanwhile.

    Args:
        devices: where the block computes besides the CPU; their autocast is disabled too.
        default_dtype: whether the default dtype is float32 in the block; False for one that does not depend on it.

    Warns:
        UserWarning: once, if a thread other than the main one has to change a setting of the process, or if another thread changed it
            meanwhile.

    Example:
        >>> import torch
        >>> torch.set_float32_matmul_precision("high")
        >>> with isolate():
        ...     torch.get_float32_matmul_precision()
        'highest'
        >>> torch.set_float32_matmul_precision("highest")
    """
    with isolate_thread(*devices), _DTYPE if default_dtype else contextlib.nullcontext(), _ARITHMETIC:
        yield


class _ProcessWide(ABC):
    """Keep a setting of the whole process at torch's default while any thread is inside, and restore it when the last one leaves.

    If threads, such as DataParallel's, each saved and restored it on their own, they could leave it changed. Other threads see the
    default meanwhile, and what they or the block itself set is overwritten at the end, if the default was not set before. There is
    no way within one thread: a mode for torch functions, as ``torch.device`` is one, sees neither type promotion (``integers / 2``)
    nor what torch's own Python functions and compiled networks create.
    """

    name: str
    effect: str  # on other threads
    remedy: str

    def __init__(self) -> None:
        self._lock, self._inside, self._before, self._warned = threading.Lock(), 0, None, False

    @abstractmethod
    def read(self) -> Any:
        """Return the present setting, None if it is torch's default."""

    @abstractmethod
    def set_default(self, before: Any) -> Any:
        """Set torch's default; return what is needed to restore the setting from before."""

    @abstractmethod
    def restore(self, before: Any) -> None:
        """Restore a setting."""

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                before = self.read()
                if before is not None:
                    if threading.current_thread() is not threading.main_thread():
                        self._warn(f"a thread sets {self.name} to torch's default while it generates images, and {self.effect}")
                    before = self.set_default(before)
                self._before = before
            self._inside += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            changed = self.read() is not None
            self._inside -= 1
            if not self._inside and self._before is not None:
                self.restore(self._before)
        if changed and kind is None:
            self._warn(f"{self.name} was changed while images were generated, by another thread or by the generator, so they may differ")

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"{what}: it belongs to all threads of the process; {self.remedy}", stacklevel=5)


class _DefaultDtype(_ProcessWide):
    name = "the default dtype"
    effect = "what other threads create meanwhile is float32"
    remedy = "augment in the thread that sets it, or leave it at float32 and convert the model, as model.double() does"

    def read(self) -> torch.dtype | None:
        dtype = torch.get_default_dtype()
        return None if dtype == torch.float32 else dtype

    def set_default(self, before: torch.dtype) -> torch.dtype:
        torch.set_default_dtype(torch.float32)
        return before

    def restore(self, before: torch.dtype) -> None:
        torch.set_default_dtype(before)


class _Float32Arithmetic(_ProcessWide):
    """Products and convolutions of float32 in float32; both of torch's ways to ask for less are there, and do not mix.

    The older way, ``torch.set_float32_matmul_precision``, is also what ``torch.compile`` reads; it raises once the newer one,
    ``torch.backends.….fp32_precision`` (since torch 2.9), has been used.
    """

    name = "the precision of float32 products"
    effect = "what other threads compute meanwhile is exact, but slower"
    remedy = "augment in the thread that trains, or leave it at 'highest' and train under autocast"

    # Those that a default leaves at "none", which is full precision unless a parent says less.
    NEWER = (("cuda", "matmul"), ("mkldnn", "matmul"), ("mkldnn", "conv"))

    def read(self) -> tuple[str | None, dict[Any, str]] | None:
        newer = {setting: _read(setting) for setting in self.NEWER if _has(setting)}
        older = _read_older()
        if older in ("highest", None) and all(value in ("none", "ieee") for value in newer.values()):
            return None
        return older, newer

    def set_default(self, before: tuple[str | None, dict[Any, str]]) -> tuple[str | None, dict[Any, str]]:
        older, newer = before
        if older is not None:
            torch.set_float32_matmul_precision("highest")
        for setting in newer:
            if _read(setting) not in ("none", "ieee"):
                _write(setting, "ieee")
        if older is None and (hidden := _read_older()) not in (None, "highest"):  # both ways were used, and disagreed until now
            torch.set_float32_matmul_precision("highest")
            older = hidden
        return older, newer

    def restore(self, before: tuple[str | None, dict[Any, str]]) -> None:
        older, newer = before
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for setting, value in newer.items():
            if _read(setting) != value:
                _write(setting, "none")  # if it was, it follows its parent again
            if _read(setting) != value:
                _write(setting, value)


def _read_older() -> str | None:
    """Return what ``torch.set_float32_matmul_precision`` has set; None where newer settings say something else."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _has(setting: tuple[str, str]) -> bool:
    backend, operation = setting
    return hasattr(getattr(getattr(torch.backends, backend), operation, None), "fp32_precision")


def _read(setting: tuple[str, str]) -> str:
    backend, operation = setting
    return str(getattr(getattr(torch.backends, backend), operation).fp32_precision)


def _write(setting: tuple[str, str], value: str) -> None:
    backend, operation = setting
    getattr(getattr(torch.backends, backend), operation).fp32_precision = value


_DTYPE, _ARITHMETIC = _DefaultDtype(), _Float32Arithmetic()


@contextlib.contextmanager
def isolate_loading() -> Iterator[None]:
    """Run a block that loads a model as `isolate` does, outside any empty-weights context, and leave torch's random numbers alone.

    Such a context (accelerate's ``init_empty_weights``, transformers' own) puts every registered parameter on the meta
    device; a generator loaded inside it gets real weights all the same. Layers draw initial weights, which the loaded ones then
    replace: without a restored state, the user's own network would start from other weights than without a generator.

    Example:
        >>> import torch
        >>> with torch.device("meta"), isolate_loading():
        ...     torch.nn.Linear(1, 1).weight.is_meta
        False
    """
    patched = {name: getattr(nn.Module, name) for name in ("register_parameter", "register_buffer")}
    with isolate(), torch.random.fork_rng(devices=[]):
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
