"""Arguments of a generator's constructor: recorded, followed where attributes hold them, and checked before they are saved."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Iterator, Mapping
from typing import Any

from gentransforms.containers import as_plain
from gentransforms.errors import ConfigError

__all__ = ["Recorded", "check_saveable", "copy_plain"]


class Recorded(ABCMeta):
    """Record, once a generator is built, which attributes hold arguments of its constructor: `config` follows these.

    A constructor gets lists and dicts of OmegaConf as plain ones.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        generator = super().__call__(*map(as_plain, args), **{name: as_plain(value) for name, value in kwargs.items()})
        generator.__dict__["_followed"] = tuple(
            name
            for name, value in generator.__dict__.get("_init_config", {}).items()
            if name in vars(generator) and _is_same(vars(generator)[name], value)
        )
        return generator

    @property
    def __signature__(cls) -> inspect.Signature:  # or `inspect` would show that of `__call__`
        own = inspect.signature(cls.__init__)  # type: ignore[misc]
        return own.replace(parameters=list(own.parameters.values())[1:])


def copy_plain(value: Any) -> Any:
    """Return a copy of lists, tuples and dicts, which a constructor may change; anything else as it is."""
    if type(value) in (list, tuple):
        return type(value)(map(copy_plain, value))
    return {key: copy_plain(item) for key, item in value.items()} if type(value) is dict else value


def check_saveable(cls: type, config: Mapping[str, Any]) -> None:
    """Raise if the arguments of a constructor would come back from JSON as others.

    Raises:
        ConfigError: for ``*args``, and for dicts whose keys are no strings.
    """
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL and name in config:
            raise ConfigError(
                f"{cls.__name__} was built with *{name}={config[name]!r}, which a saved config cannot pass on: let {cls.__name__}.__init__ "
                "take one argument, a list; banks work as it is"
            )
    for key in _other_keys(config):
        raise ConfigError(
            f"config {dict(config)!r} holds a dict with the key {key!r}, which would be loaded as {str(key)!r}: JSON has keys of str only"
        )


def _is_same(one: Any, other: Any) -> bool:
    # Plain values only: a tensor or an array, also in a list, does not compare to one truth value.
    return type(one) is type(other) and _is_plain(one) and _is_plain(other) and one == other


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | dict):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, bool | int | float | str)


def _other_keys(value: Any) -> Iterator[Any]:
    """Yield the keys of dicts, however deep, that are no str."""
    if isinstance(value, Mapping):
        yield from (key for key in value if not isinstance(key, str))
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _other_keys(item)
