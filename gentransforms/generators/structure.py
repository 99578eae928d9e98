"""Compare networks of diffusers with those that their configurations build: what was set in them afterwards is in no file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from gentransforms.errors import ConfigError
from gentransforms.wording import with_article

__all__ = ["build_empty", "check_structure"]

# Attributes without effect on images but for rounding, in the fingerprint already (FreeU, tiling), or of training.
_IGNORED = {
    "training", "inplace", "sample_size", "gradient_checkpointing", "use_slicing", "use_tiling", "fused_projections",
    "s1", "s2", "b1", "b2",
}  # fmt: skip
_PLAIN = (bool, int, float, str, tuple, type(None))
Structure = dict[str, tuple[type, dict[str, Any]]]
_told: set[type] = set()  # classes that a warning has named


def check_structure(name: str, network: nn.Module, quantised: bool = False) -> None:
    """Raise if a module of a diffusers network is not as the network's configuration builds it.

    Modules that were added (LoRA, IP-Adapter, fused projections) are read elsewhere, and skipped here.

    Args:
        name: of the network, for the message.
        network: of any class; those that are not diffusers' own are left alone.
        quantised: whether other classes of layers are expected.

    Warns once for each class that cannot be built from its configuration without weights, and so is not compared.

    Raises:
        ConfigError: naming the first module and attribute that differs.
    """
    kind: Any = type(network)
    if not kind.__module__.startswith("diffusers.") or not hasattr(kind, "from_config"):
        return
    settings: Any = network.config
    config = {key: value for key, value in settings.items() if not key.startswith("_")}
    if config.get("encoder_hid_dim_type") == "ip_image_proj":  # set by an IP-Adapter, whose layers are read elsewhere
        config["encoder_hid_dim_type"] = None
    expected = _build(kind, json.dumps(config, sort_keys=True, default=str))
    if isinstance(expected, str):
        if kind not in _told:
            _told.add(kind)
            warnings.warn(
                f"{name} ({kind.__name__}) cannot be built from its configuration without weights ({expected}): whether something "
                "was set in it afterwards is not checked, and such a change would be neither saved nor in the fingerprint",
                stacklevel=2,
            )
        return
    for path, (own_kind, own) in _describe(network).items():
        if path not in expected:
            continue
        built_kind, built = expected[path]
        where = f"{name}.{path}" if path else name
        if own_kind is not built_kind:
            if quantised:
                continue
            raise ConfigError(
                f"{where} is {with_article(own_kind.__name__)}, where the configuration of {name} builds "
                f"{with_article(built_kind.__name__)}: a generator is saved "
                "and recognised by configuration and weights alone, so build it from a pipeline without that change"
            )
        for key, given in sorted(built.items()):  # what only the network has is a note of a library, such as lora_scale
            found = own.get(key)
            if found != given:
                raise ConfigError(
                    f"{where}.{key} is {found!r}, where the configuration of {name} builds {given!r}: a generator is saved and recognised "
                    f"by configuration and weights alone, so set it back to {given!r} before building the generator"
                )


@lru_cache(maxsize=32)
def _build(kind: Any, config: str) -> Structure | str:
    """Return the structure of a network as its configuration builds it, or why it cannot be built without weights."""
    built = build_empty(kind, json.loads(config))
    return built if isinstance(built, str) else _describe(built)


def build_empty(kind: Any, config: Mapping[str, Any]) -> Any:
    """Return the network of a class of diffusers that a configuration builds, without weights, or the reason why that fails.

    Example:
        >>> from diffusers import AutoencoderKL
        >>> build_empty(AutoencoderKL, {"latent_channels": 4}).quant_conv.weight.device
        device(type='meta')
    """
    try:
        with torch.device("meta"):
            return kind.from_config(config)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"


def _describe(network: nn.Module) -> Structure:
    """Return class and plain attributes of each module by its path, seen through torch.compile and the layers of peft."""
    found: Structure = {}
    for outer_path, outer in network.named_modules(remove_duplicate=False):
        path = f"{outer_path}.".replace("._orig_mod.", ".").removeprefix("_orig_mod.").removesuffix(".")
        module: Any = outer
        for inner in ("_orig_mod", "base_layer"):  # looked up in dicts: a miss of getattr is slow in modules, and there are thousands
            while isinstance(vars(module).get("_modules", {}).get(inner), nn.Module):
                module = vars(module)["_modules"][inner]
        found.setdefault(path, (type(module), _plain(module)))
    return found


def _plain(module: nn.Module) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, _PLAIN)
        and key not in _IGNORED
        and not key.startswith(("_", "tile_"))
        and not (key == "p" and "Dropout" in type(module).__name__)
    }
