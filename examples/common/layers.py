"""Settings in layers: the defaults of dataclasses, a YAML file over them, ``name=value`` arguments over both.

A file may begin with ``base: other.yaml`` and then holds only what differs from that file. OmegaConf merges the layers into
the dataclasses; unknown names and values of another type end the program before anything is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

Join = Callable[[Any, Any], Any]


def read_layers(path: str | Path | None, overrides: Sequence[str] = (), join: Join = OmegaConf.unsafe_merge) -> dict[str, Any]:
    """Return nested values: the file at `path` over the files that it is based on, and the overrides over both.

    Args:
        path: a YAML file, or None.
        overrides: ``name=value`` each; names are dotted, values are YAML.
        join: puts one layer over another; both are ``DictConfig``, and are not used again.

    Raises:
        SystemExit: if a file is missing or not YAML, or an override is not ``name=value``.
    """
    values = _read_file(Path(path), join) if path is not None else OmegaConf.create()
    given = OmegaConf.create()  # one layer, whatever the order: a later one may change what a layer takes from those below
    for item in overrides:
        if "=" not in item:
            raise SystemExit(f"override {item!r}: expected name=value, for example seed=5")
        try:
            given = OmegaConf.unsafe_merge(given, OmegaConf.from_dotlist([item]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise SystemExit(f"override {item!r} is not YAML: {error}") from None
    return OmegaConf.to_container(join(values, given))  # type: ignore[return-value]


def fill_in(schema: DictConfig, values: dict[str, Any]) -> Any:
    """Return the dataclasses of `schema`, made by ``OmegaConf.structured``, with `values` over their defaults.

    Raises:
        SystemExit: if a name is unknown, with the known ones, or a value has another type than its field.
    """
    values = _whole_numbers_as_int(values)
    _refuse_values_for_groups(schema, values)
    try:
        merged = OmegaConf.merge(schema, values)
        OmegaConf.resolve(merged)
    except ConfigKeyError as error:
        prefix, _, _ = str(error.full_key).rpartition(".")
        known = sorted(_join_names(prefix, field.name) for field in dataclasses.fields(error.object_type or object))
        raise SystemExit(f"unknown setting {error.full_key!r}; known: {', '.join(known)}") from None
    except OmegaConfBaseException as error:
        raise SystemExit(_describe_refusal(schema, values, str(error.full_key or ""), error)) from None
    for name, given in flatten(values).items():  # 3 would become True
        if isinstance(OmegaConf.select(merged, name), bool) and not isinstance(given, bool):
            raise SystemExit(f"{name}={given!r}: expected bool")
    return OmegaConf.to_object(merged)


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return every value of nested dicts or dataclasses by its full name, such as ``trainer.epochs``."""
    values = values if isinstance(values, dict) else dataclasses.asdict(values)
    found: dict[str, Any] = {}
    for name, value in values.items():
        full = _join_names(prefix, name)
        found |= flatten(value, full) if isinstance(value, dict) else {full: value}
    return found


def _read_file(path: Path, join: Join) -> DictConfig:
    try:
        values = OmegaConf.load(path)
    except FileNotFoundError:
        raise SystemExit(f"no settings file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SystemExit(f"{path} is not YAML: {error}") from None
    except OSError as error:  # OmegaConf's word for a file that holds a single value
        raise SystemExit(f"{path}: expected names and values ({error})") from None
    if not isinstance(values, DictConfig):
        raise SystemExit(f"{path}: expected names and values, found {OmegaConf.to_container(values)!r}")
    base = values.pop("base", None)
    return values if base is None else join(_read_file(path.parent / base, join), values)


def _whole_numbers_as_int(value: Any) -> Any:
    """Return nested values with 2e4 as 20000: OmegaConf takes integers for float fields, but not the reverse."""
    if isinstance(value, dict):
        return {name: _whole_numbers_as_int(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers_as_int(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refuse_values_for_groups(schema: DictConfig, values: dict[str, Any], prefix: str = "") -> None:
    for name, value in values.items():
        group, full = schema.get(name) if name in schema else None, _join_names(prefix, name)
        if isinstance(group, DictConfig):
            if not isinstance(value, dict):
                raise SystemExit(f"{full}={value!r}: expected settings below it, such as {full}.{next(iter(group))}=value")
            _refuse_values_for_groups(group, value, full)


def _describe_refusal(schema: DictConfig, values: dict[str, Any], name: str, error: OmegaConfBaseException) -> str:
    parent, _, last = name.partition("[")[0].rpartition(".")
    given = OmegaConf.select(OmegaConf.create(values), name) if name else values
    given = OmegaConf.to_container(given) if OmegaConf.is_config(given) else given
    kind = OmegaConf.get_type(schema, parent or None) if not parent else OmegaConf.get_type(OmegaConf.select(schema, parent))
    hint = next((field.type for field in dataclasses.fields(kind) if field.name == last), None) if dataclasses.is_dataclass(kind) else None
    if isinstance(hint, str) and "Settings" in hint:
        return f"{name}={given!r}: expected settings below it, such as {name}.NAME=value, or null"
    return f"{name}={given!r}: expected {hint}" if hint else f"{name}={given!r}: {str(error).splitlines()[0]}"


def _join_names(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else str(name)
