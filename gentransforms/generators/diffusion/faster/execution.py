"""The same images in less time, up to rounding: compiled networks, and fused projections of the attention."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.state import holds_lora, quantisation
from gentransforms.generators.identity import named_weights, uncompiled

__all__ = [
    "COMPILED_ELSEWHERE", "CompileMode", "check_compile", "check_fused", "check_uncompiled", "compile_function", "compile_network",
    "copy_outputs", "fuse_projections", "is_compiled", "repeated_blocks", "unfused_weights", "uses_cuda_graphs",
]  # fmt: skip

CompileMode = Literal["regional", "full", "max-autotune", "reduce-overhead"]
COMPILED_ELSEWHERE = "elsewhere"  # what `config` records of a network that something else compiled
_MODES = ("regional", "full", "max-autotune", "reduce-overhead")
# The blocks that a UNet or ControlNet repeats, where the class does not name its own.
_BLOCKS = ("BasicTransformerBlock",)
# What fused projections of diffusers' attention layers are called, and which they join.
_JOINED = {
    "to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v"), "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}  # fmt: skip


def check_compile(value: Any) -> Any:
    """Return what the option `compile` may be: True, False or one of the modes.

    Raises:
        ConfigError: if it is something else.
    """
    if isinstance(value, bool) or (isinstance(value, str) and value in _MODES):
        return value
    raise ConfigError(f"compile={value!r}: expected {', '.join(map(repr, _MODES))}, True for 'full', or False")


def is_compiled(network: nn.Module) -> bool:
    """Return whether ``torch.compile`` runs a network or a part of it: as a wrapper, or in place, as ``network.compile()`` does."""
    return any(uncompiled(module) is not module or module._compiled_call_impl is not None for module in network.modules())


def check_uncompiled(name: str, network: nn.Module, mode: Any) -> None:
    """Raise if a network that is to be compiled is compiled already.

    Args:
        name: of the network, for the message.
        network: a UNet, transformer or ControlNet.
        mode: the option `compile`.

    Raises:
        ConfigError: with what to give instead.
    """
    if not is_compiled(network):
        return
    wrapped = uncompiled(network) is not network
    raise ConfigError(
        f"compile={mode!r}: {name} went through torch.compile already, by a call of yours or for another generator that shares it: leave "
        f"compile out to run it as it is, or give {'what it wraps' if wrapped else f'copy.deepcopy({name}), which is not compiled'}"
    )


def compile_network(network: Any, mode: Any) -> None:
    """Run a network through ``torch.compile``; nothing is compiled before its first call.

    Args:
        network: a UNet, transformer or ControlNet.
        mode: ``"regional"`` compiles the transformer blocks, which repeat, so that there is little to compile; any other mode the
            whole network, True as ``"full"``.
    """
    if mode != "regional":
        network.compile(**_arguments(mode))
        return
    for block in repeated_blocks(network):
        block.compile(**_many_recompiles())


def repeated_blocks(network: Any) -> list[Any]:
    """Return the blocks that a network repeats, which ``"regional"`` compiles."""
    names = getattr(network, "_repeated_blocks", None) or _BLOCKS
    return [module for module in network.modules() if type(module).__name__ in names]


def copy_outputs(network: Any) -> None:
    """Let a network compiled with CUDA graphs return copies, for callers that keep a result beyond its next call.

    Args:
        network: after `compile_network`; torch leaves what is compiled, and this with it, out of copies and pickles.
    """
    run = network._compiled_call_impl

    def call(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return tree_map_only(Tensor, Tensor.clone, run(*args, **kwargs))

    network._compiled_call_impl = call


def compile_function(function: Callable[..., Any], mode: Any) -> Callable[..., Any]:
    """Return a function that runs a part of a network, compiled as `compile_network` would the whole."""
    return function if mode in (False, "regional") else torch.compile(function, **_arguments(mode), **_many_recompiles())


def uses_cuda_graphs(mode: Any) -> bool:
    """Return whether what a compiled network returns is overwritten by its next call, on a GPU."""
    return mode in ("max-autotune", "reduce-overhead")


def fuse_projections(name: str, network: Any) -> None:
    """Let one matrix product make queries, keys and values, or the keys and values of text.

    Args:
        name: of the network, for messages.
        network: a UNet or ControlNet; it keeps its own weights, and gets copies of them that are joined.

    Raises:
        ConfigError: if it holds an IP-Adapter, a LoRA beside its weights, or quantised weights.
    """
    from diffusers.models.attention_processor import FusedAttnProcessor2_0

    network = uncompiled(network)
    if any(type(processor).__name__.startswith("IPAdapter") for processor in network.attn_processors.values()):
        raise ConfigError(f"fuse_qkv=True: the {name} holds an IP-Adapter, whose attention cannot be fused: leave fuse_qkv out")
    if holds_lora(network):
        raise ConfigError(
            f"fuse_qkv=True: the {name} holds a LoRA beside its weights, which fused projections would leave out: merge it first, "
            "pipe.fuse_lora() and then pipe.unload_lora_weights()"
        )
    if (method := quantisation(network)) is not None:
        raise ConfigError(f"fuse_qkv=True: the weights of the {name} are quantised ({method}) and cannot be fused: leave fuse_qkv out")
    with torch.no_grad():
        for _, module in _attentions(network):
            module.fuse_projections(fuse=True)
    network.set_attn_processor(FusedAttnProcessor2_0())


def check_fused(name: str, network: nn.Module) -> None:
    """Raise if fused projections are not what the weights are now: those are saved and in the fingerprint, these make images.

    Raises:
        ConfigError: naming the layer.
    """
    for path, module, joined in _fused(network):
        parts = [getattr(module, part) for part in _JOINED[joined]]
        where = f"{name}.{path}.{joined}" if path else f"{name}.{joined}"
        again = f"call pipe.{name}.unfuse_qkv_projections() and build the generator again"
        if any(hasattr(part, "lora_A") for part in parts):
            raise ConfigError(f"{where} leaves out the LoRA that {name} holds beside its weights: {again}")
        for kind in ("weight", "bias"):
            own, tensors = getattr(getattr(module, joined), kind, None), [getattr(part, kind, None) for part in parts]
            plain = [t for t in tensors if isinstance(t, Tensor)]
            if own is None or own.is_meta or not plain:
                continue
            if not torch.equal(own, torch.cat(plain)):
                raise ConfigError(
                    f"{where} differs from the weights that were fused into it, which changed afterwards: {again}, fused again"
                )


def unfused_weights(module: nn.Module, networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the weights of a generator without fused projections, which are copies of others.

    Args:
        module: the generator.
        networks: its networks by name.

    Raises:
        ConfigError: if fused projections are not what the weights are now.
    """
    for name, network in networks.items():
        check_fused(name, network)
    fused = {f"{path}.{joined}.".replace("_orig_mod.", "") for path, _, joined in _fused(module)}
    return {name: t for name, t in named_weights(module).items() if name.rpartition(".")[0] + "." not in fused}


def _fused(network: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """Yield path, layer and name of each fused projection that stands beside the plain ones; some layers have no others."""
    for path, module in network.named_modules():
        if vars(module).get("fused_projections", getattr(type(module), "fused_projections", False)):
            for joined, parts in _JOINED.items():
                if all(isinstance(getattr(module, part, None), nn.Module) for part in (joined, *parts)):
                    yield path, module, joined


def _attentions(network: Any) -> Iterator[tuple[str, Any]]:
    from diffusers.models.attention_processor import Attention

    return ((path, module) for path, module in network.named_modules() if isinstance(module, Attention))


def _arguments(mode: Any) -> dict[str, Any]:
    return {} if mode in (True, "full") else {"mode": mode}


def _many_recompiles() -> dict[str, Any]:
    """Room for a graph of each width and resolution: torch stops compiling a function after eight, and blocks share one."""
    return {"recompile_limit": 64} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}
