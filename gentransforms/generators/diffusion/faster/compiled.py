"""A generator whose networks may be compiled, and stay so in its copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.diffusion.faster.execution import COMPILED_ELSEWHERE, compile_function, compile_network, is_compiled
from gentransforms.generators.diffusion.pickling import drop_capturing_hooks

__all__ = ["CompiledGenerator"]


class CompiledGenerator(ImageGenerator):
    """Base of the generators with an option `compile`, which `_init_config` holds.

    A subclass says in `_denoising_networks` what runs in each step.
    """

    unet: Any

    def _compile(self, networks: Iterable[nn.Module]) -> None:
        if mode := self._init_config.get("compile", False):
            for network in networks:
                compile_network(network, mode)

    def _found_compiled(self) -> dict[str, str]:
        """Return what `config` records where networks run compiled that this generator did not compile."""
        found = not self._init_config.get("compile") and any(map(is_compiled, self._denoising_networks()))
        return {"compile": COMPILED_ELSEWHERE} if found else {}

    def _denoising_networks(self) -> list[nn.Module]:
        """Return the networks that run in each step."""
        return [self.unet]

    def _part(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that runs a part of a network, compiled if networks are; it is compiled once in a generator's life."""
        compiled: dict[str, Any] = self.__dict__.setdefault("_compiled_parts", {})
        name = function.__name__
        if name not in compiled:
            compiled[name] = compile_function(function, self._init_config.get("compile", False))
        return compiled[name]  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        drop_capturing_hooks(self.modules())
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        state.pop("_compiled_parts", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._compile(self._denoising_networks())  # what was compiled stays with the original
