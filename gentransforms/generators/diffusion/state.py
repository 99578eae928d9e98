"""State of networks that affects images but is in no configuration: read so that fingerprints cover it, or refused by name.

Calls such as ``set_ip_adapter_scale``, ``set_adapters``, ``enable_freeu``, ``enable_vae_tiling`` and ``set_attn_processor`` change
what diffusers' pipelines and models produce. What changes images only by rounding (slicing, fused projections, xformers) is left
as it is, and not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.identity import uncompiled
from gentransforms.generators.structure import check_structure

__all__ = [
    "apply_state", "check_networks", "check_saveable", "holds_lora", "ip_adapter_scale", "is_offloaded", "quantisation",
    "read_lora", "read_state", "set_ip_adapter_scale",
]  # fmt: skip

# Attention computed in another way, with the same result but for rounding.
_EXACT = {
    "AttnProcessor", "AttnProcessor2_0", "AttnProcessorNPU", "AttnAddedKVProcessor", "AttnAddedKVProcessor2_0", "XFormersAttnProcessor",
    "XFormersAttnAddedKVProcessor", "SlicedAttnProcessor", "SlicedAttnAddedKVProcessor", "FusedAttnProcessor2_0",
    "XLAFlashAttnProcessor2_0",
}  # fmt: skip
_IP_ADAPTER = {"IPAdapterAttnProcessor", "IPAdapterAttnProcessor2_0", "IPAdapterXFormersAttnProcessor"}
# Their forward hooks count, capture or move tensors, or are read elsewhere.
_LIBRARIES = {"accelerate", "diffusers", "gentransforms", "peft", "torch", "transformers"}
_LOSSY = ("sage", "fp8")  # in the names of attention backends that round to few bits
_FREEU = ("s1", "s2", "b1", "b2")


def read_state(networks: Mapping[str, nn.Module], strict: bool = True) -> dict[str, Any]:
    """Return the state that affects images, JSON-able; empty for networks as they were loaded.

    Args:
        networks: by name: those of the pipeline, ControlNets and others.
        strict: whether anything unknown is refused, instead of recorded by its name.

    Returns:
        ``lora``: adapters that are active, merged or disabled, with their scales; ``freeu``: the four factors of each block;
        ``tiling``: the tiles of a VAE; ``attention``, ``attention_backend`` and ``hooks``, unless strict: classes and settings of
        attention processors, backends that round to few bits, and caches.

    Raises:
        ConfigError: if a network holds what cannot be described (`check_networks`).
    """
    state: dict[str, Any] = {}
    check_networks(networks, strict)
    if not strict:
        state = _name_unknown(networks)
    for name, network in networks.items():
        if lora := read_lora(network):
            state.setdefault("lora", {})[name] = lora
        blocks = [[getattr(block, factor, None) for factor in _FREEU] for block in getattr(network, "up_blocks", ())]
        if any(all(factors) for factors in blocks):
            state.setdefault("freeu", {})[name] = blocks
        if getattr(network, "use_tiling", False):
            state.setdefault("tiling", {})[name] = {key: value for key, value in vars(network).items() if key.startswith("tile_")}
    return state


def _name_unknown(networks: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return the class names of whatever changes how networks compute, and the settings of caches between steps."""
    state: dict[str, Any] = {}
    for name, network in networks.items():
        processors = getattr(network, "attn_processors", {})
        named = {path: _describe_processor(p) for path, p in processors.items() if type(p).__name__ not in _EXACT}
        if named:
            kinds = sorted(set(named.values()))
            state.setdefault("attention", {})[name] = kinds if len(kinds) == 1 and len(named) == len(processors) else named
        if any(type(p).__name__ in _IP_ADAPTER for p in processors.values()):
            state.setdefault("ip_adapter_scale", {})[name] = ip_adapter_scale(network)
        if lossy := sorted(set(_lossy_backends(network).values())):
            state.setdefault("attention_backend", {})[name] = lossy
        if (cache := getattr(network, "_cache_config", None)) is not None:
            state.setdefault("hooks", {})[name] = f"{type(cache).__name__} {_plain_fields(cache)}"
    return state


def _describe_processor(processor: Any) -> str:
    """Return the class of an attention processor, with its plain attributes; the scales of IP-Adapters are read elsewhere."""
    kind = type(processor).__name__
    if type(processor).__module__.startswith("diffusers.") and kind.startswith("Fused"):  # the same up to rounding
        kind = kind.removeprefix("Fused")
    fields = {} if kind in _IP_ADAPTER else _plain_fields(processor)
    fields = {key: value for key, value in fields.items() if not key.startswith("_") and key != "training"}
    return f"{kind} {fields}" if fields else kind


def _plain_fields(config: Any) -> dict[str, Any]:
    return {key: value for key, value in sorted(vars(config).items()) if isinstance(value, bool | int | float | str | list | tuple)}


def apply_state(networks: Mapping[str, nn.Module], state: Mapping[str, Any]) -> None:
    """Set the state that `read_state` returned in newly loaded networks. LoRAs are not saved, so none are set."""
    for name, blocks in state.get("freeu", {}).items():
        network: Any = networks[name]
        for block, factors in zip(network.up_blocks, blocks, strict=True):
            for factor, value in zip(_FREEU, factors, strict=True):
                setattr(block, factor, value)
    for name, tiles in state.get("tiling", {}).items():
        for key, value in {"use_tiling": True, **tiles}.items():
            setattr(networks[name], key, value)


def check_saveable(networks: Mapping[str, nn.Module]) -> None:
    """Raise if a network holds what diffusers' files cannot: LoRAs that are not merged, quantised weights, or weights on the meta device.

    Raises:
        ConfigError: naming the network, with the calls that make it saveable.
        WeightsError: if weights are on the meta device.
    """
    for name, network in networks.items():
        if any(tensor.is_meta for tensor in network.parameters()):
            raise WeightsError(
                f"{name} has weights on the meta device, without values, as accelerate's offloading leaves them: call "
                "pipe.remove_all_hooks() and pipe.to(device) before saving"
            )
        _check_backend(name, network)
        if read_lora(network):
            raise ConfigError(
                f"{name} holds a LoRA beside its weights, which cannot be saved: merge it first, "
                "pipe.fuse_lora() and then pipe.unload_lora_weights(), or load it with lora= in from_pretrained"
            )
        if (method := quantisation(network)) is not None:
            raise ConfigError(
                f"{name} is quantised ({method}), which safetensors files of a generator cannot hold: save the generator before "
                "quantising it, and quantise after loading; banks work as it is"
            )


def holds_lora(network: nn.Module) -> bool:
    """Return whether a network holds a LoRA beside its weights."""
    return bool(read_lora(network))


def quantisation(network: nn.Module) -> str | None:
    """Return how a network's weights are quantised; None for plain weights."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    config = getattr(network, "hf_quantizer", None)
    if config is not None:
        return str(getattr(config.quantization_config, "quant_method", "quantised")).rpartition(".")[2].lower()
    for tensor in network.parameters():
        kind = type(tensor)
        plain = kind is nn.Parameter
        if tensor.dtype in (torch.int8, torch.uint8) or (not plain and is_traceable_wrapper_subclass(tensor)):
            return str(tensor.dtype).removeprefix("torch.") if plain else kind.__name__
    return None


def check_networks(networks: Mapping[str, nn.Module], strict: bool = True) -> None:
    """Raise if a network holds something that no fingerprint can cover, or cannot run as it is.

    Args:
        networks: by name.
        strict: whether attention processors, caches and offloading are refused too, which a pipeline's own call can handle.

    Raises:
        ConfigError: naming the network and what it holds: replaced ``forward`` methods, forward hooks, modules that are not as the
            configuration builds them; attention processors of unknown effect, caches between steps, offloading.
        WeightsError: if some weights are on the meta device, and others are not; without `strict`, unless accelerate offloads them.
    """
    # A generator that is on the meta device as a whole is there to count operations; its fingerprint is refused.
    counted = all(tensor.is_meta for network in networks.values() for tensor in network.parameters())
    for name, network in networks.items():
        if strict:
            _check_backend(name, network)
            for path, processor in getattr(network, "attn_processors", {}).items():
                _check_processor(name, path, processor)
        for path, module in network.named_modules():
            where = f"{name}.{path}" if path else name
            if strict:
                _check_managed(name, where, module)
            _check_replaced(where, module)
        check_structure(name, network, quantised=quantisation(network) is not None)
        meta = next((path for path, tensor in network.named_parameters() if tensor.is_meta), None)
        offloaded = not strict and any(vars(module).get("_hf_hook") is not None for module in network.modules())
        if meta is not None and not counted and not offloaded:
            raise WeightsError(f"{name} has weights without values, on the meta device ({meta}): load them before building the generator")


def _check_processor(name: str, path: str, processor: Any) -> None:
    kind = type(processor)
    if not kind.__module__.startswith("diffusers.") or kind.__name__ not in _EXACT | _IP_ADAPTER:
        raise ConfigError(
            f"{name} has the attention processor {kind.__name__} ({path}), and a fingerprint cannot tell what it does to images: "
            f"call pipe.{name}.set_attn_processor(AttnProcessor2_0()), from diffusers.models.attention_processor"
        )


def _check_backend(name: str, network: nn.Module) -> None:
    if backends := _lossy_backends(network):
        raise ConfigError(
            f"{name} computes attention by {sorted(set(backends.values()))[0]}, which rounds to few bits: call "
            f"pipe.{name}.reset_attention_backend(), or pipe.{name}.set_attention_backend('native') if DIFFUSERS_ATTN_BACKEND set it"
        )


def _lossy_backends(network: nn.Module) -> dict[str, str]:
    """Return the attention backends of diffusers that round to few bits, by the layer that uses one."""
    processors = {path: p for path, module in network.named_modules() if (p := _processor(module)) is not None}
    chosen = {path: p._attention_backend for path, p in processors.items() if hasattr(p, "_attention_backend")}
    if not chosen:
        return {}
    from diffusers.models import attention_dispatch

    # The one of every layer that has none of its own, set by DIFFUSERS_ATTN_BACKEND or diffusers' context manager.
    default = attention_dispatch._AttentionBackendRegistry._active_backend
    names = {path: str(getattr(b, "value", b)).lower() for path, b in ((p, b or default) for p, b in chosen.items())}
    return {path: backend for path, backend in names.items() if any(word in backend for word in _LOSSY)}


def _processor(module: nn.Module) -> Any:
    """Return the attention processor of a module, looked up in dicts: a miss of getattr is slow in modules, and there are thousands."""
    own = vars(module)
    return own.get("processor", own["_modules"].get("processor"))


def _check_managed(name: str, where: str, module: nn.Module) -> None:
    """Raise for hooks of diffusers and accelerate, as these libraries register them."""
    own = vars(module)
    hooks = getattr(own.get("_diffusers_hook"), "hooks", {})
    if hooks:
        advice = f"call pipe.{name}.disable_cache()" if _caches(hooks) else f"load {name} again without it"
        raise ConfigError(f"{where} runs under diffusers' hook {', '.join(map(repr, hooks))}, which changes how it computes: {advice}")
    hook = own.get("_hf_hook")
    if hook is not None and any(_offloads(inner) for inner in getattr(hook, "hooks", [hook])):
        raise ConfigError(
            f"{where} is offloaded by accelerate ({type(hook).__name__}): call pipe.remove_all_hooks() and pipe.to(device) first; where "
            "memory is short, give dtype=torch.float16 and decode_batch_size=1"
        )


def _check_replaced(where: str, module: nn.Module) -> None:
    """Raise for code that was injected into a module: another ``forward``, forward hooks, merged tokens."""
    own = vars(module)
    managed = own.get("_hf_hook") is not None or bool(getattr(own.get("_diffusers_hook"), "hooks", {}))
    if not managed and "forward" in own and getattr(own["forward"], "__func__", None) is not type(module).forward:
        raise ConfigError(
            f"the forward method of {where} was replaced (by one of {getattr(own['forward'], '__module__', 'unknown')}), and a fingerprint "
            "cannot tell what it does: build the generator from a pipeline without it"
        )
    for kind in ("_forward_pre_hooks", "_forward_hooks"):
        for hook in own.get(kind, {}).values():
            function = getattr(hook, "func", hook)
            origin = str(getattr(function, "__module__", ""))
            if origin.partition(".")[0] not in _LIBRARIES:
                called = getattr(function, "__qualname__", type(function).__name__)
                raise ConfigError(
                    f"{where} has a forward hook ({called}, of {origin}), and a fingerprint cannot tell what it does: call remove() on "
                    "the handle that register_forward_hook or register_forward_pre_hook returned"
                )
    if "_tome_info" in own:
        raise ConfigError(f"{where} merges tokens (tomesd), which no fingerprint covers: call tomesd.remove_patch(pipe)")


def _caches(hooks: Mapping[str, Any]) -> bool:
    return any(word in name for name in hooks for word in ("cache", "broadcast", "taylorseer"))


def is_offloaded(network: nn.Module) -> bool:
    """Return whether hooks move a network's weights between devices: accelerate's, or those of diffusers' group offloading."""
    for module in network.modules():
        hook = vars(module).get("_hf_hook")
        if hook is not None and any(_offloads(inner) for inner in getattr(hook, "hooks", [hook])):
            return True
        if any("offload" in name for name in getattr(vars(module).get("_diffusers_hook"), "hooks", ())):
            return True
    return False


def _offloads(hook: Any) -> bool:
    return type(hook).__name__ in ("CpuOffload", "UserCpuOffloadHook") or bool(getattr(hook, "offload", False))


def ip_adapter_scale(unet: nn.Module) -> Any:
    """Return the weight of the image in a UNet with IP-Adapters: a number, a list with one for each adapter where they differ, or either
    for each attention layer by its name."""
    scales = {path: _plain_scale(processor.scale) for path, processor in _ip_processors(unet)}
    first = next(iter(scales.values()), None)
    return first if scales and all(scale == first for scale in scales.values()) else scales


def set_ip_adapter_scale(pipe: Any, scale: Any) -> None:
    """Set what `ip_adapter_scale` returned, or what diffusers' ``set_ip_adapter_scale`` takes.

    Raises:
        ConfigError: if it is none of these.
    """
    processors = dict(_ip_processors(pipe.unet))
    if isinstance(scale, Mapping) and scale.keys() == processors.keys():
        for path, processor in processors.items():
            given = scale[path]
            processor.scale[:] = map(_checked, given) if isinstance(given, list) else [_checked(given)] * len(processor.scale)
        return
    try:
        pipe.set_ip_adapter_scale(dict(scale) if isinstance(scale, Mapping) else _checked(scale))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"ip_adapter_scale={scale!r}: {error}") from error


def _ip_processors(unet: Any) -> Iterator[tuple[str, Any]]:
    return ((path, p) for path, p in uncompiled(unet).attn_processors.items() if type(p).__name__ in _IP_ADAPTER)


def _plain_scale(scales: Sequence[Any]) -> Any:
    """Return the scales of a processor, one for each adapter, or the number that all of them are."""
    found = [_number(scale) for scale in scales]
    return found[0] if isinstance(found[0], float) and all(scale == found[0] for scale in found) else found


def _number(value: Any) -> Any:
    """Return a scale as a number; several for one adapter, which looks through as many masks, as a list."""
    return [float(v) for v in value] if isinstance(value, list | tuple) else float(value)


def _checked(scale: Any) -> float:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale >= 0:
        raise ConfigError(f"ip_adapter_scale={scale!r}: expected a number of at least 0, or a dict of blocks as diffusers takes it")
    return scale


def read_lora(network: nn.Module) -> Any:
    """Return which adapters of peft a network holds and how they act: one description, or one for each layer where they differ."""
    layers = {}
    for path, layer in network.named_modules():
        if not (isinstance(vars(layer).get("scaling"), dict) and hasattr(layer, "active_adapters")):
            continue
        active = {adapter: float(layer.scaling[adapter]) for adapter in layer.active_adapters if adapter in layer.scaling}
        layers[path] = {"active": active, "merged": list(layer.merged_adapters), "disabled": bool(layer.disable_adapters)}
    distinct = list(layers.values())
    return distinct[0] if distinct and all(layer == distinct[0] for layer in distinct) else layers
