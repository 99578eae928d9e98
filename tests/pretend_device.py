"""A pretended accelerator: tensors that say they are on it and compute on the CPU, so that CI shows what would make a GPU wait.

It refuses what a GPU refuses, tensors of two devices in one operation, and records what makes the host wait for the device:
blocking copies in either direction, numbers that are read, and operations whose result has a size that depends on values.
Registering it with torch holds for the whole process: import it only in one of its own. It has no autocast.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

ROOT = Path(__file__).parents[1]
aten = torch.ops.aten
_READS = (aten._local_scalar_dense, aten.is_nonzero, aten.equal)
_SIZES = (aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.histc)
_INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
# These check on the host whether the factorisation worked.
_CHECKED = ("linalg_inv", "linalg_solve", "linalg_cholesky", "linalg_eigh", "_linalg_eigh", "linalg_qr", "linalg_svd", "_linalg_svd")


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("pretend", _Backend())
DEVICE = torch.device("pretend", 0)


class OnDevice(Tensor):
    """A tensor on the pretended device; `inner` holds its values."""

    __slots__ = ("inner",)  # not in __dict__, which results take over from the images of a user's own subclass
    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, **layout, dtype=inner.dtype, device=DEVICE)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def tolist(self) -> Any:  # torch refuses it for subclasses
        assert PretendDevice.active is not None
        PretendDevice.active._note("numbers are read")
        return self.inner.tolist()

    def __repr__(self) -> str:
        return f"OnDevice({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert PretendDevice.active is not None, f"{func} on the pretended device, but not in a block of pretend_device"
        with PretendDevice.active:
            return func(*args, **(kwargs or {}))


class PretendDevice(TorchDispatchMode):
    """Attributes: `waits`, how often what happened at which line of ours; `launches`, a count of kernels, none for views."""

    active: PretendDevice | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        ours, name = [x for x in tensors if isinstance(x, OnDevice)], func.overloadpacket
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if not ours and (target is None or target.type != DEVICE.type):
            return func(*args, **kwargs)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        values, options = tree_map(_value, (args, kwargs))
        if name is aten.copy_:
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            self._move(isinstance(args[1], OnDevice), isinstance(args[0], OnDevice), blocking)
            func(*values, **options)
            return args[0]
        here = target.type == DEVICE.type if target is not None else True
        if name is aten._to_copy:
            self._move(isinstance(args[0], OnDevice), here, not kwargs.get("non_blocking", False))
        elif ours:
            self._watch(func, name, args, tensors)
        if not func.is_view:
            self.launches += 1
        out = func(*values, **options)
        if not here:
            return out
        known = {id(x.inner): x for x in ours}  # operations in place return their own argument
        return tree_map(lambda x: (known[id(x)] if id(x) in known else OnDevice(x)) if isinstance(x, Tensor) else x, out)

    def _watch(self, func: Any, name: Any, args: Any, tensors: list[Tensor]) -> None:
        if name in _READS:
            self._note("a number is read")
        elif name in _SIZES or str(name).removeprefix("aten.") in _CHECKED:
            self._note(f"{name} waits")
        indices = [i for i in args[1] if i is not None] if name in _INDEXED else []
        for index in indices:
            if index.dtype in (torch.bool, torch.uint8):
                self._note("a mask as an index")
            elif not isinstance(index, OnDevice):
                self._note("an index on the CPU")
        for x in tensors:
            if x.ndim and not isinstance(x, OnDevice) and not any(x is index for index in indices):
                raise RuntimeError(f"{func}: a tensor {tuple(x.shape)} on {x.device} among tensors on {DEVICE}")

    def _move(self, from_device: bool, to_device: bool, blocking: bool) -> None:
        if from_device and not to_device:
            if not blocking:
                raise RuntimeError("a copy to the CPU that nothing waits for: on a GPU, its memory holds something else when it is read")
            self._note("copied to the CPU")
        elif to_device and not from_device and blocking:
            self._note("a blocking copy to the device")

    def _note(self, what: str) -> None:
        frame, place = sys._getframe(2), "torch"
        while frame is not None:
            if frame.f_code.co_name == "_to_device_nonblocking":  # kornia's, which does not block on CUDA
                return
            path = Path(frame.f_code.co_filename)
            if place == "torch" and path.is_relative_to(ROOT) and "site-packages" not in path.parts and path != Path(__file__):
                place = f"{path.name}:{frame.f_lineno}"
            frame = frame.f_back  # type: ignore[assignment]
        self.waits[f"{place}: {what}"] += 1


def _value(x: Any) -> Any:
    return x.inner if isinstance(x, OnDevice) else x


@contextlib.contextmanager
def pretend_device() -> Iterator[PretendDevice]:
    """Run a block in which tensors can be moved to, and made on, the device ``pretend``."""
    mode = PretendDevice.active = PretendDevice()
    makers = {name: getattr(torch, name) for name in ("tensor", "as_tensor", "asarray")}
    try:
        for name, function in makers.items():
            setattr(torch, name, functools.partial(_make, function))
        with mode:
            yield mode
    finally:
        PretendDevice.active = None
        for name, function in makers.items():
            setattr(torch, name, function)


def _make(function: Callable[..., Tensor], data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
    """Make a tensor of numbers: torch makes it on the CPU and copies it, unseen by a dispatch mode."""
    if device is None or torch.device(device).type != DEVICE.type or isinstance(data, OnDevice):
        return function(data, *args, device=device, **kwargs)
    return function(data, *args, **kwargs).to(DEVICE)
