"""Diffusers' caches, which reuse outputs of a transformer between steps: approximate, and faster."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from gentransforms.errors import ConfigError
from gentransforms.generators.identity import uncompiled
from gentransforms.generators.pipelines.calls import source_of_call
from gentransforms.wording import name_type, with_article

__all__ = ["check_cache", "enabled_cache", "per_batch"]

# Those that decide by the change of a whole batch whether to compute a step.
_PER_BATCH = ("FirstBlockCache", "SeaCache")
_CALLBACK = "current_timestep_callback"


def check_cache(pipe: Any, choice: Any, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Validate the option `cache` and return it as a configuration stores it, ``{"name": "FirstBlockCache", "threshold": 0.1}``, or None.

    Args:
        pipe: the pipeline.
        choice: a name of diffusers' caches, such as ``"FirstBlockCache"``; a mapping with ``name`` and settings; or diffusers' own
            configuration, such as ``FirstBlockCacheConfig(threshold=0.1)``.
        options: of the pipeline's call.

    Raises:
        ConfigError: if there is no such cache or setting, the pipeline supports no cache, or its transformer does not support this one.
    """
    network = uncompiled(getattr(pipe, "transformer", None))
    if getattr(network, "is_cache_enabled", False):
        raise ConfigError(
            "transformer runs under a cache, whose memory of one call would reach into the next: call pipe.transformer.disable_cache(), "
            "and give the generator cache=…, with which each call starts anew"
        )
    if choice is None:
        return None
    if not hasattr(network, "enable_cache"):
        part = getattr(pipe, "unet", None) if network is None else network
        raise ConfigError(f"cache={choice!r}: {name_type(part)} has none: only transformers with diffusers' enable_cache do")
    described = _describe(choice)
    config = _build(described)
    name, pipeline = described["name"], type(pipe).__name__
    if hasattr(config, _CALLBACK) and not hasattr(type(pipe), "current_timestep"):
        raise ConfigError(f"cache={choice!r}: {name} goes by timesteps, which {with_article(pipeline)} does not tell: use FirstBlockCache")
    source = source_of_call(pipe)
    if name == "SeaCache" and "step_index" not in source:
        raise ConfigError(f"cache={choice!r}: {name} goes by steps, which {with_article(pipeline)} does not tell: use FirstBlockCache")
    if "cache_context" not in source and options.get("true_cfg_scale", 1) > 1 and options.get("negative_prompt") is not None:
        raise ConfigError(
            f"cache={choice!r}: {with_article(pipeline)} does not tell the cache which of its calls are those of the negative prompt: "
            "leave negative_prompt or the cache out"
        )
    try:
        with enabled_cache(pipe, described):  # raises where it has nothing to work in
            return described
    except (TypeError, LookupError, AttributeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"cache={choice!r}: the installed diffusers cannot use it in {with_article(pipeline)} ({error}): use another, or none"
        ) from error


def per_batch(described: Mapping[str, Any] | None) -> bool:
    """Return whether a cache decides for a whole batch at once, so that images depend on their batch unless they run alone."""
    return described is not None and described["name"] in _PER_BATCH


@contextlib.contextmanager
def enabled_cache(pipe: Any, described: Mapping[str, Any] | None) -> Iterator[None]:
    """Enable an empty cache on the pipeline's transformer inside the context."""
    if described is None:
        yield
        return
    network, config = uncompiled(pipe.transformer), _build(described)
    assert network is not None
    if hasattr(config, _CALLBACK):
        setattr(config, _CALLBACK, lambda: pipe.current_timestep)
    before = _hooks_of(network)
    try:
        network.enable_cache(config)
        if all(part is network for part, _ in _hooks_of(network) - before):
            raise ConfigError(f"cache={dict(described)!r}: it finds no part of {name_type(network)} to work in: use another, or none")
        with _one_call_a_step(pipe, network, described), network.cache_context("image"):  # for pipelines that set no context themselves
            yield
    finally:
        if network.is_cache_enabled:
            network.disable_cache()
        for part, name in _hooks_of(network) - before:  # of one that could not be enabled in full
            part._diffusers_hook.remove_hook(name, recurse=False)
        for module in network.modules():  # what the hooks leave behind keeps a module from being copied
            own = vars(module)
            if not getattr(own.get("_diffusers_hook"), "hooks", True):
                del own["_diffusers_hook"]
                if getattr(own.get("forward"), "__self__", None) is module:
                    del own["forward"]


@contextlib.contextmanager
def _one_call_a_step(pipe: Any, network: Any, described: Mapping[str, Any]) -> Iterator[None]:
    """Raise, inside the context, at a second call of the transformer in a step that the pipeline does not tell the cache from the first.

    A guided pipeline makes two calls a step. Where they share the memory of a cache, one reuses what the other computed.
    """
    name, called, own_context = "", set[str](), network.cache_context
    scheduler: Any = getattr(pipe, "scheduler", None)

    @contextlib.contextmanager
    def told(given: str, **kwargs: Any) -> Iterator[None]:
        nonlocal name
        before, name = name, given
        try:
            with own_context(given, **kwargs):
                yield
        finally:
            name = before

    def count(*_: Any) -> None:
        if name in called:
            raise ConfigError(
                f"cache={dict(described)!r}: {name_type(pipe)} calls its transformer more than once a step with these options and "
                "does not tell the cache which call is which: leave guidance (guidance_scale, true_cfg_scale) or the cache out"
            )
        called.add(name)

    hook = pipe.transformer.register_forward_pre_hook(count)
    network.cache_context = told
    try:
        if hasattr(scheduler, "step"):
            own_step = scheduler.step

            @functools.wraps(own_step)  # pipelines ask for its parameters
            def step(*args: Any, **kwargs: Any) -> Any:
                called.clear()
                return own_step(*args, **kwargs)

            scheduler.step = step
        yield
    finally:
        hook.remove()
        del network.cache_context
        getattr(scheduler, "__dict__", {}).pop("step", None)


def _hooks_of(network: Any) -> set[tuple[Any, str]]:
    """Return what diffusers has put on the parts of a network: each part with the name of a hook."""
    registries = ((part, vars(part).get("_diffusers_hook")) for part in network.modules())
    return {(part, name) for part, registry in registries if registry is not None for name in registry.hooks}


def _describe(choice: Any) -> dict[str, Any]:
    if isinstance(choice, str):
        return {"name": choice.removesuffix("Config")}
    if isinstance(choice, Mapping):
        if not isinstance(choice.get("name"), str):
            raise ConfigError(f"cache={dict(choice)!r}: expected an entry 'name', such as {{'name': 'FirstBlockCache', 'threshold': 0.1}}")
        return {**choice, "name": choice["name"].removesuffix("Config")}
    if not dataclasses.is_dataclass(choice) or isinstance(choice, type):
        raise ConfigError(f"cache={choice!r}: expected a name, a mapping with a name and settings, or a configuration of diffusers.hooks")
    given = {}
    for field in dataclasses.fields(choice):
        value = getattr(choice, field.name)
        if field.name.endswith("callback") or value == field.default:
            continue
        given[field.name] = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
    return {"name": type(choice).__name__.removesuffix("Config"), **given}


def _build(described: Mapping[str, Any]) -> Any:
    """Return diffusers' own configuration of a described cache."""
    import diffusers.hooks as hooks

    names = sorted(n.removesuffix("Config") for n in dir(hooks) if n.endswith("CacheConfig") or n == "PyramidAttentionBroadcastConfig")
    name, settings = described["name"], {key: value for key, value in described.items() if key != "name"}
    if name not in names:
        raise ConfigError(f"cache={name!r}: expected one of {', '.join(names)}, which the installed diffusers has")
    kind: Any = getattr(hooks, f"{name}Config")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(settings.keys() - fields.keys()):
        raise ConfigError(f"cache: unknown setting {unknown[0]!r} of {name}: it takes {', '.join(fields)}")
    for key, value in settings.items():
        if isinstance(fields[key].default, torch.dtype) and isinstance(value, str):
            settings[key] = getattr(torch, value, value)
        elif isinstance(fields[key].default, tuple) and isinstance(value, list):
            settings[key] = tuple(value)
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cache={dict(described)!r}: {error}") from error
