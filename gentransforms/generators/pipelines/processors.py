"""Refuse to save what diffusers' files leave out: IP-Adapters, and attention processors other than those of the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from gentransforms.errors import ConfigError
from gentransforms.generators.structure import build_empty

__all__ = ["check_saved_whole"]

# Attention computed in another way, with the same result but for rounding, by the names of diffusers' classes.
_ROUNDED = re.compile(r"^(Fused|XFormers|Sliced|XLAFlash)|(2_0|NPU)$")
_FUSED = re.compile(r"\.to_(added_)?q?kv\.")  # projections fused by diffusers, whose parts are saved too


def check_saved_whole(networks: Mapping[str, nn.Module]) -> None:
    """Raise if diffusers would load a saved network without layers or attention processors that it has now.

    Args:
        networks: by name; those that are not diffusers' own are left alone.

    Raises:
        ConfigError: naming the network and what would be lost.
    """
    for name, network in networks.items():
        settings: Any = getattr(network, "config", None)
        if not hasattr(type(network), "from_config") or not isinstance(settings, Mapping):
            continue
        adapted = settings.get("encoder_hid_dim_type") == "ip_image_proj"  # load_ip_adapter sets it
        built = None if adapted else _build(network)
        if built is not None:
            paths = {_plain(path) for path in built.state_dict()}
            more = [path for path in map(_plain, network.state_dict()) if path not in paths and not _FUSED.search(path)]
            adapted = any("encoder_hid_proj" in path or "image_proj" in path or "_ip" in path for path in more)
            if more and not adapted:
                raise ConfigError(
                    f"{name} has the weights {more[0]}, which its configuration does not build, so that they would be lost on loading: "
                    f"save the generator without them, and add them to the loaded pipeline again for from_pipeline"
                )
        if adapted:
            raise ConfigError(
                f"{name} holds an IP-Adapter, which the files of diffusers' pipelines leave out: call pipe.unload_ip_adapter(), save, and "
                "load the adapter into the loaded pipeline again for from_pipeline; StableDiffusionVariation and ControlNetVariation "
                "save their adapters"
            )
        expected = getattr(built, "attn_processors", {})
        for path, processor in getattr(network, "attn_processors", {}).items() if built is not None else ():
            default = expected.get(_plain(path))
            if _describe(processor) != _describe(default):
                raise ConfigError(
                    f"{name} has the attention processor {type(processor).__name__} ({path}), where its configuration builds "
                    f"{type(default).__name__}, or one with other settings; files hold no processors: call "
                    f"pipe.{name}.set_default_attn_processor() if it has that, save, and set the processors of the loaded pipeline again "
                    "for from_pipeline"
                )


def _build(network: Any) -> Any:
    """Return the network that its configuration builds, without weights; None if that fails, of which a warning told already."""
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    built = build_empty(type(network), config)
    return None if isinstance(built, str) else built


def _plain(path: str) -> str:
    return f".{path}".replace("._orig_mod.", ".").removeprefix(".")


def _describe(processor: Any) -> tuple[str, dict[str, Any]]:
    """Return what a processor does, but for rounding: its class, of diffusers' ones without the kind of kernel, and its plain fields."""
    kind, fields = type(processor).__name__, getattr(processor, "__dict__", {})
    ours = type(processor).__module__.startswith("diffusers.")
    kept = {
        name: value
        for name, value in fields.items()
        if isinstance(value, bool | int | float | str | list | tuple)
        and name[0] != "_"
        and name != "training"
        and not (ours and name == "slice_size")
    }
    if not ours:
        return f"{type(processor).__module__}.{kind}", kept
    while (shorter := _ROUNDED.sub("", kind)) != kind:
        kind = shorter
    return kind, kept
