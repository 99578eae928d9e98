"""Lists and dicts of OmegaConf, which Hydra passes to what it builds, as plain ones."""

from __future__ import annotations

from typing import Any

__all__ = ["as_plain"]


def as_plain(value: Any) -> Any:
    """Return an OmegaConf list or dict, which is neither a `list` nor a `dict`, as a plain one, with all that is in it; else `value`.

    Example:
        >>> as_plain((32, 48))
        (32, 48)
    """
    if not type(value).__module__.startswith("omegaconf."):
        return value
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value
