"""Select and compile the denoising networks of a pipeline."""

from __future__ import annotations

from typing import Any

from torch import nn

from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.faster.execution import (
    check_compile,
    check_uncompiled,
    compile_network,
    copy_outputs,
    repeated_blocks,
    uses_cuda_graphs,
)
from gentransforms.wording import name_type, with_article

__all__ = ["check_compiling", "check_denoiser", "compile_denoiser", "denoisers"]

# By the names that diffusers gives to what runs in each step.
_DENOISERS, _BESIDE = ("unet", "transformer", "transformer_2"), ("controlnet",)


def denoisers(pipe: Any) -> list[str]:
    """Return the names of the networks that run in each step of a pipeline."""
    parts = pipe.components
    return [name for name in (*_DENOISERS, *_BESIDE) if isinstance(parts.get(name), nn.Module)]


def check_compiling(pipe: Any, mode: Any, cache: Any = None, offload: Any = None) -> Any:
    """Validate the option `compile` and return it.

    Args:
        pipe: the pipeline.
        mode: the option.
        cache: the option of this name; its hooks are set in each call anew.
        offload: the option of this name.

    Raises:
        ConfigError: if it is no mode, the pipeline has nothing to compile, its denoiser is compiled already, or another option
            excludes it.
    """
    if not check_compile(mode):
        return False
    names, pipeline = denoisers(pipe), type(pipe).__name__
    if not set(names) & set(_DENOISERS):
        raise ConfigError(
            f"compile={mode!r}: {with_article(pipeline)} has no unet or transformer that could be compiled: leave compile out"
        )
    for name in names:
        check_denoiser(name, pipe.components[name], mode)
    if cache is not None:
        raise ConfigError(
            f"compile={mode!r} and cache: hooks of a cache are set in each call anew, so that each would compile again: leave one out"
        )
    if offload is not None and (mode != "regional" or offload != "model"):
        raise ConfigError(
            f"compile={mode!r} and offload={offload!r}: hooks that move weights would be compiled too, and again in each call: give "
            "compile='regional' and offload='model', or leave one out"
        )
    return mode


def check_denoiser(name: str, network: Any, mode: Any) -> None:
    """Check that a denoising network can be compiled in this mode.

    Raises:
        ConfigError: if it is compiled already, or regional compilation finds nothing in it.
    """
    check_uncompiled(name, network, mode)
    if mode == "regional" and name in _DENOISERS and not repeated_blocks(network):
        raise ConfigError(
            f"compile='regional': {name} is {name_type(network)} without blocks that repeat, as far as diffusers names them: "
            "give compile='full'"
        )


def compile_denoiser(network: Any, mode: Any) -> None:
    """Compile a network for a pipeline, which may keep the result of one call beyond the next."""
    compile_network(network, mode)
    if uses_cuda_graphs(mode):
        copy_outputs(network)
