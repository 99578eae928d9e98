"""Diffusers' offloading: keep networks on the CPU until their turn on the accelerator."""

from __future__ import annotations

import contextlib
import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.describe import select_networks
from gentransforms.generators.diffusion.faster.compiled import CompiledGenerator
from gentransforms.generators.diffusion.state import is_offloaded
from gentransforms.generators.placement import with_index

__all__ = ["OffloadedGenerator", "asked_device", "check_offload", "find_accelerator"]

_WAYS = {"model": "enable_model_cpu_offload", "sequential": "enable_sequential_cpu_offload"}


def check_offload(value: Any) -> str | None:
    """Validate the option `offload` and return it.

    Raises:
        ConfigError: if it is no way of diffusers', or there is none.
    """
    if value is None:
        return None
    if value not in ("model", "sequential"):
        raise ConfigError(f"offload={value!r}: expected 'model', 'sequential', or None")
    if find_accelerator() is None:
        raise ConfigError(
            f"offload={value!r}: networks wait on the CPU for their turn on an accelerator, and there is none here: leave offload out; "
            "where memory is short, give dtype=torch.bfloat16 or quantised components"
        )
    return str(value)


def find_accelerator() -> torch.device | None:
    """Return the current accelerator of this machine, with its index; None without one."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else with_index(found)


def asked_device(fn: Callable[[Tensor], Tensor]) -> torch.device | None:
    """Return the device to which `fn`, the argument of `nn.Module._apply`, moves tensors; None if it leaves them where they are."""
    there = fn(torch.empty(0))
    if there.device.type != "cpu":
        return there.device
    try:
        moves = not fn(torch.empty(0, device="meta")).is_meta
    except NotImplementedError:  # what has no values cannot be moved
        moves = True
    except RuntimeError:  # share_memory
        moves = False
    return there.device if moves else None


def _is_hooked(pipe: Any) -> bool:
    return any(map(is_offloaded, select_networks(pipe.components).values()))


def _is_on_cpu(network: nn.Module) -> bool:
    return all(parameter.is_cpu for parameter in network.parameters())


def _reach(device: torch.device) -> None:
    torch.empty(0, device=device)


class OffloadedGenerator(CompiledGenerator):
    """Base of generators that call a pipeline, with an option `offload`.

    Hooks of accelerate move the networks. They are on where images are made, and off while weights are read, copied or
    converted; after pickling, the next image sets them again. The pipeline itself says whether they are on, because others that
    share it may set them and take them off. ``.to("cpu")`` takes a generator off the accelerator: it computes on the CPU, all
    networks there, until it is moved to an accelerator again.
    """

    pipe: Any
    prior: Any
    depth_estimator: Any
    _own_depth: bool  # whether that is the generator's own, beside the pipeline
    offload: str | None = None
    _offload_to: torch.device | None = None
    _once: Any

    @property
    def device(self) -> torch.device:
        """The device that the pipeline computes on; with offloading, the weights are elsewhere."""
        if self.offload is not None:
            return with_index(self._offload_to or torch.device("cpu"))
        return with_index(torch.device(self.pipe._execution_device))

    @property
    def _is_held_in_place(self) -> bool:
        return self.offload is None and any(map(is_offloaded, self._networks().values()))

    def _start_offloading(self, offload: Any) -> None:
        self.offload = check_offload(offload)
        if self.offload is None:
            return
        for name, network in self._networks().items():
            if is_offloaded(network):
                raise ConfigError(
                    f"offload={offload!r}: {name} is offloaded already: leave offload out, or call pipe.remove_all_hooks() before"
                )
        self._offload_to = find_accelerator()
        self._hook()

    def _hook(self) -> None:
        """Set the hooks that move networks, unless they are set."""
        if self._offload_to is None:
            return
        bare = [pipe for pipe in self._pipelines() if not _is_hooked(pipe)]
        way = _WAYS[str(self.offload)]
        try:
            if bare:
                _reach(self._offload_to)
            for pipe in bare:
                getattr(pipe, way)(device=self._offload_to)
        except (ImportError, ValueError, RuntimeError, AssertionError) as error:
            self._lift()
            raise ConfigError(f"offload={self.offload!r}: not possible on {self._offload_to} ({error}): leave offload out") from error
        if self._own_depth:
            self.depth_estimator.to(self._offload_to)

    def _lift(self) -> None:
        """Take the hooks off; all networks are on the CPU then."""
        if self.offload is None:
            return
        away = [network for network in self._networks().values() if is_offloaded(network) or not _is_on_cpu(network)]
        if not away:
            return
        for pipe in self._pipelines():
            pipe.remove_all_hooks()
        for network in away:
            if not _is_on_cpu(network):  # those of 8 bits by bitsandbytes cannot be moved
                network.to("cpu")
        self._once.clear()  # weights that came back are new ones

    @contextlib.contextmanager
    def _lifted(self) -> Iterator[None]:
        """Take the hooks off inside the context, and set them again if they were on."""
        hooked = self.offload is not None and any(map(_is_hooked, self._pipelines()))
        self._lift()
        try:
            yield
        finally:
            if hooked:
                self._hook()

    def _rest(self) -> None:
        """Move the prior's networks back to the CPU; a pipeline's own call does so at its end."""
        if self.prior is not None:
            self.prior.maybe_free_model_hooks()

    def _pipelines(self) -> list[Any]:
        return [self.pipe] if self.prior is None else [self.pipe, self.prior]

    @abstractmethod
    def _networks(self) -> dict[str, nn.Module]:
        """Return the networks by name."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._once.clear()
        if self.offload is None:
            if self._is_held_in_place:
                return self._stay(fn)
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        place = asked_device(fn)
        if place is not None and place.type == "meta":
            raise ConfigError(f"offload={self.offload!r}: the device meta has no values to compute with: build it without offload")
        self._lift()
        super()._apply(fn if place is None else lambda tensor: fn(tensor).cpu(), recurse)  # type: ignore[no-untyped-call]
        if place is not None:
            self._offload_to = None if place.type == "cpu" else place
        self._hook()
        return self

    def _stay(self, fn: Callable[[Tensor], Tensor]) -> Any:
        """Return a generator whose pipeline came offloaded, if `fn` wants it where it computes; raise where it would be moved."""
        place, here, kind = asked_device(fn), self.device, fn(torch.empty(0, dtype=self.dtype)).dtype
        if place is None and kind == self.dtype:  # shared memory, another memory format
            return super()._apply(fn)  # type: ignore[no-untyped-call]
        if place is not None and kind == self.dtype and with_index(place) == here:
            return self
        what = f"be moved to {place}" if place is not None else f"change to {kind}"
        raise ConfigError(
            f"the pipeline came offloaded, by hooks that compute on {here}, and cannot {what} under them: call pipe.remove_all_hooks() "
            "first, or build the generator from a pipeline without them, with offload='model'"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        with self._lifted():
            other: Any = type(self).__new__(type(self))
            memo[id(self)] = other
            other.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return other

    def __getstate__(self) -> dict[str, Any]:
        self._lift()  # hooks can neither be copied nor pickled
        return super().__getstate__()
