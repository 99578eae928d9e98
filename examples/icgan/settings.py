"""The settings of a training run: defaults here, a YAML file over them, ``name=value`` arguments over both."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass
class EncoderSettings:
    """SimCLR with multi-crop on a SmallResNet; sides of the views are shares of the resolution, scales are shares of the area."""

    widths: list[int] = field(default_factory=lambda: [64, 128, 256])
    blocks: list[int] = field(default_factory=lambda: [1, 1, 1])
    feature_stages: int = 1
    epochs: int = 14
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 200
    temperature: float = 0.2
    projection: int = 128
    view_side: float = 0.75
    crop_scale: float = 0.25
    local_views: int = 2
    local_side: float = 0.5
    local_scale: float = 0.1


@dataclass
class GeneratorSettings:
    """IC-GAN (Casanova et al., NeurIPS 2021) with the BigGAN generator of the library.

    From step `finish_from` on, `finish_neighbours` and `finish_consistency` take the place of `neighbours` and `consistency`.
    """

    G_ch: int = 24
    dim_z: int = 64
    G_attn: str = "0"
    G_param: str = "plain"
    shared_dim_feat: int = 128
    D_ch: int = 32
    feature_heads: bool = True
    neighbours: int = 50
    steps: int = 10_000
    batch_size: int = 64
    learning_rate_G: float = 3e-4
    learning_rate_D: float = 5e-4
    ema: float = 0.999
    consistency: float = 2.0
    finish_from: int | None = None
    finish_neighbours: int = 2
    finish_consistency: float = 8.0
    diffaugment: str = "translation,cutout"
    flip: bool = True


@dataclass
class Settings:
    """Everything that decides a run, besides the images themselves."""

    resolution: int = 32
    seed: int = 0
    precision: str = "bfloat16"
    device: str = "cpu"
    checkpoint_every: int = 250
    sample_every: int = 500
    log_every: int = 20
    limit: int | None = None
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)


def load_settings(path: str | Path | None, overrides: list[str]) -> Settings:
    """Merge defaults, the YAML file at `path` and overrides such as ``generator.steps=500``; refuse unknown names."""
    settings = Settings()
    if path is not None:
        _merge(settings, yaml.safe_load(Path(path).read_text()) or {}, "")
    for item in overrides:
        name, sep, value = item.partition("=")
        if not sep:
            raise SystemExit(f"override {item!r}: expected name=value, for example generator.steps=500")
        nested: Any = yaml.safe_load(value)
        for part in reversed(name.split(".")):
            nested = {part: nested}
        _merge(settings, nested, "")
    return settings


def _merge(target: Any, values: dict[str, Any], prefix: str) -> None:
    names = {f.name for f in dataclasses.fields(target)}
    for name, value in values.items():
        if name not in names:
            raise SystemExit(f"unknown setting {prefix + name!r}; known: {', '.join(sorted(names))}")
        current = getattr(target, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise SystemExit(f"{prefix + name}={value!r}: expected settings below it, such as {prefix + name}.NAME=value")
            _merge(current, value, f"{prefix}{name}.")
        else:
            setattr(target, name, _typed(prefix + name, value, current))


def _typed(name: str, value: Any, current: Any) -> Any:
    """Return `value` with the type of the default; YAML reads 4e-4 and 2e4 as strings."""
    try:
        if isinstance(current, bool):
            ok = isinstance(value, bool)
        elif isinstance(current, int | None):
            value = None if value is None and current is None else int(float(value))
            ok = True
        elif isinstance(current, float):
            value, ok = float(value), True
        elif isinstance(current, list):
            ok = isinstance(value, list) and all(type(v) is int and v > 0 for v in value)
        else:
            value, ok = str(value), value is not None
    except (TypeError, ValueError):
        ok = False
    if not ok:
        raise SystemExit(f"{name}={value!r}: expected something like {current!r}")
    return value
