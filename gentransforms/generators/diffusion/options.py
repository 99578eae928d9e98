"""The options that all diffusion generators share: checked when given, saved with the generator."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from gentransforms.containers import as_plain
from gentransforms.errors import ConfigError

__all__ = [
    "PRESETS",
    "Preset",
    "SchedulerName",
    "check_count",
    "check_number",
    "given",
    "image_size",
    "keyword_options",
    "override",
    "with_preset",
]

Preset = Literal["paper", "fast"]
SchedulerName = Literal["ddim", "dpm++", "unipc", "euler", "lcm"]

# `paper`: Ayromlou et al. (AAAI 2025), the settings of the authors' released code. `fast`: a draft, for slow machines.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"scheduler": "ddim", "num_inference_steps": 10, "guidance_scale": 10.0, "noise_level": 0, "eta": 0.0, "prompt": ""},
    "fast": {"scheduler": "dpm++", "num_inference_steps": 4, "guidance_scale": 1.0},
}


# Options that have no effect, and are refused, at some values of another: by the other's name, those values and the options.
_DEPENDENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "cache_interval": (lambda interval: interval == 1, "cache_branch"),
    "guidance_scale": (lambda scale: isinstance(scale, int | float) and scale <= 1, "guidance_interval"),
    "noise_level": (lambda level: level != "foreground", "foreground_bounds"),
}


def keyword_options(cls: type) -> frozenset[str]:
    """Return the names of the keyword-only arguments of a class's constructor, and of those that it extends."""
    constructors = (vars(parent)["__init__"] for parent in cls.__mro__ if "__init__" in vars(parent) and parent is not object)
    signatures = map(inspect.signature, constructors)
    return frozenset(p.name for signature in signatures for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY)


def given(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the options among a function's arguments, its ``locals()``, that were given: those that are not None, as plain values.

    Example:
        >>> given({"self": 1, "eta": 0.5, "prompt": None}, {"eta", "prompt"})
        {'eta': 0.5}
    """
    return {name: as_plain(value) for name, value in values.items() if name in names and value is not None}


def override(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a saved generator, overridden by those that were given, and by those of a preset that was given.

    A saved option that has no effect together with those is left out: without guidance, its interval means nothing.

    Example:
        >>> override({"cache_interval": 2, "cache_branch": 1, "eta": 0.5}, {"cache_interval": 1})
        {'cache_interval': 1, 'eta': 0.5}
        >>> override({"num_inference_steps": 30, "eta": 0.5}, {"preset": "fast"})
        {'eta': 0.5, 'preset': 'fast'}
    """
    preset = given.get("preset")
    of_preset = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
    effective = of_preset | dict(given)
    idle = {name for switch, (off, name) in _DEPENDENTS.items() if switch in effective and off(effective[switch])}
    return {name: value for name, value in saved.items() if name not in idle | of_preset.keys()} | dict(given)


def with_preset(options: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the options with those of ``options["preset"]`` filled in; explicit options take precedence.

    Args:
        options: as the user gave them.
        known: the options of the generator; whatever else a preset sets is left out.

    Raises:
        ConfigError: if there is no such preset.

    Example:
        >>> with_preset({"preset": "fast", "num_inference_steps": 2}, {"num_inference_steps", "guidance_scale"})
        {'num_inference_steps': 2, 'guidance_scale': 1.0}
    """
    own = {name: value for name, value in options.items() if name != "preset"}
    preset = options.get("preset")
    if preset is None:
        return own
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(f"preset={preset!r}: expected one of {', '.join(map(repr, PRESETS))}, or None for the repository's own settings")
    return {name: value for name, value in PRESETS[preset].items() if name in known} | own


def check_count(name: str, value: Any, *, none: bool = False) -> Any:
    """Return a positive integer, or None where that is allowed.

    Raises:
        ConfigError: if it is not one.
    """
    if (none and value is None) or (type(value) is int and value > 0):
        return value
    raise ConfigError(f"{name}={value!r}: expected a positive integer" + (", or None for all at once" if none else ""))


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> float:
    """Return a number from low to high.

    Raises:
        ConfigError: if it is not a number, or out of range.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and math.isfinite(value):
        return value
    bounds = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
    raise ConfigError(f"{name}={value!r}: expected a number {bounds}")


def image_size(value: Any, multiple: int) -> tuple[int, int]:
    """Return (h, w) for a side or a pair, each a multiple of the factor by which the VAE downscales.

    Raises:
        ConfigError: otherwise, with the nearest size that fits.

    Example:
        >>> image_size(512, 8)
        (512, 512)
    """
    size = (value, value) if type(value) is int else value
    if not (isinstance(size, tuple | list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise ConfigError(f"image_size={value!r}: expected a number of pixels, or (height, width)")
    if any(n % multiple for n in size):
        near = tuple(max(multiple, round(n / multiple) * multiple) for n in size)
        raise ConfigError(f"image_size={value!r}: expected multiples of {multiple}, by which this VAE downscales images, such as {near}")
    return (size[0], size[1])
