"""The settings of a recipe: defaults here, a YAML file over them, ``name=value`` arguments over both.

A file may begin with ``base: other.yaml``: it then holds what differs from that one. The arms of an experiment are written
so, and differ by the lines that one sees. Unknown names, wrong types and values out of range are refused before anything
is loaded.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass
class DataSettings:
    """Images: a folder, ``.parquet``, ``torchvision:NAME:ROOT[:SPLIT]`` or ``inaturalist:ROOT:SPLIT`` (data.py).

    `holdout` training images, evenly spaced, are taken out for choosing settings, then `limit` of the others are trained on.
    """

    train: str = ""
    test: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    image_size: int = 224
    in_memory: bool = False
    limit: int | None = None
    holdout: int = 0
    test_on_holdout: bool = False
    workers: int = 8


@dataclass
class ViewSettings:
    """Classic augmentation of one view, in this order: crop, jitter, grey, blur, solarise, flip."""

    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    jitter_p: float = 0.8
    grey_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma: list[float] = field(default_factory=lambda: [0.1, 2.0])
    solarise_p: float = 0.0
    flip_p: float = 0.5


# The three pairs of views of the paper; a file names one and may change single values of it.
_WEAK = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
_ASYMMETRIC = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
PRESETS: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "symmetric": ({}, {}),
    "symmetric-weak": (_WEAK, _WEAK),
    "asymmetric": (_ASYMMETRIC | {"blur_p": 1.0}, _ASYMMETRIC | {"blur_p": 0.1, "solarise_p": 0.2}),
}


@dataclass
class AugmentationSettings:
    """Both views, and what a generated image gets instead, if anything else: `generated`, over its view's values."""

    preset: str = "symmetric"
    interpolation: str = "bicubic"
    view1: ViewSettings = field(default_factory=ViewSettings)
    view2: ViewSettings = field(default_factory=ViewSettings)
    generated: ViewSettings | None = None


@dataclass
class GenerativeSettings:
    """Where generated images come from: ``none``, a ``bank``, or a generator ``online``, on the device, inside the step.

    `p` is the probability for each image and step that its view is generated; with `p_end`, p goes there from epoch to epoch.
    """

    source: str = "none"
    bank: str | None = None
    revision: str | None = None
    generator: str | None = None
    truncation: float | None = None
    p: float = 1.0
    p_end: float | None = None
    both_views: bool = False


@dataclass
class BackboneSettings:
    """``resnet50``, ``resnet18`` or ``small``; `stem` is ``imagenet`` (7x7, pooling) or ``cifar`` (3x3, none)."""

    name: str = "resnet50"
    stem: str = "imagenet"
    widths: list[int] = field(default_factory=lambda: [64, 128, 256])
    blocks: list[int] = field(default_factory=lambda: [1, 1, 1])


@dataclass
class SimCLRSettings:
    """SimCLR (Chen et al., ICML 2020)."""

    name: str = "simclr"
    hidden: int = 4096
    out: int = 512
    temperature: float = 0.2


@dataclass
class SimSiamSettings:
    """SimSiam (Chen and He, CVPR 2021)."""

    name: str = "simsiam"
    hidden: int = 4096
    out: int = 4096
    predictor_hidden: int = 512


@dataclass
class BYOLSettings:
    """BYOL (Grill et al., NeurIPS 2020)."""

    name: str = "byol"
    hidden: int = 4096
    out: int = 256
    predictor_hidden: int = 4096
    momentum_start: float = 0.99
    momentum_end: float = 1.0


@dataclass
class MoCoSettings:
    """MoCo v2+ : MoCo v2 (Chen et al., 2020) with a symmetric loss."""

    name: str = "mocov2plus"
    hidden: int = 2048
    out: int = 256
    temperature: float = 0.2
    queue: int = 65_536
    momentum_start: float = 0.99
    momentum_end: float = 0.999


@dataclass
class BarlowTwinsSettings:
    """Barlow Twins (Zbontar et al., ICML 2021)."""

    name: str = "barlowtwins"
    hidden: int = 4096
    out: int = 4096
    redundancy: float = 0.0051
    loss_scale: float = 0.048


MethodSettings = SimCLRSettings | SimSiamSettings | BYOLSettings | MoCoSettings | BarlowTwinsSettings
METHODS: dict[str, type[Any]] = {kind.name: kind for kind in typing.get_args(MethodSettings)}


@dataclass
class OptimizerSettings:
    """The learning rate is base_lr x images per step / 256; warm-up and cosine go by step (optimizers.py)."""

    name: str = "lars"
    base_lr: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 1e-6
    eta: float = 0.001
    clip: bool = False
    exclude_bias_and_norm: bool = True
    warmup_epochs: int = 10
    warmup_start_lr: float = 3e-5
    final_lr: float = 0.0


@dataclass
class TrainerSettings:
    """`batch_size` is per device; `precision` as Lightning names it; checkpoints are written every so many steps."""

    epochs: int = 100
    batch_size: int = 256
    devices: int = 4
    nodes: int = 1
    accumulate: int = 1
    accelerator: str = "auto"
    precision: str = "16-mixed"
    sync_batchnorm: bool = True
    compile: bool = False
    checkpoint_every: int = 500
    log_every: int = 10


@dataclass
class ProbeSettings:
    """Watching the training: every so many epochs weighted k-NN and the online linear layer on the test images."""

    every: int = 5
    images: int = 50_000
    k: int = 200
    temperature: float = 0.1
    linear_lr: float = 0.1


@dataclass
class Settings:
    """Everything that decides a run, besides the images themselves."""

    seed: int = 0
    data: DataSettings = field(default_factory=DataSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    generative: GenerativeSettings = field(default_factory=GenerativeSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    method: MethodSettings = field(default_factory=SimCLRSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    probe: ProbeSettings = field(default_factory=ProbeSettings)


def load_settings(path: str | Path | None, overrides: list[str] | None = None) -> Settings:
    """Merge defaults, the YAML file at `path` and overrides such as ``trainer.epochs=5``; refuse what is unknown or wrong."""
    values = _read(Path(path)) if path is not None else {}
    for item in overrides or []:
        name, sep, value = item.partition("=")
        if not sep:
            raise SystemExit(f"override {item!r}: expected name=value, for example trainer.epochs=5")
        try:
            nested: Any = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SystemExit(f"override {item!r}: {value!r} is not YAML ({error})") from None
        for part in reversed(name.split(".")):
            nested = {part: nested}
        values = _joined(values, nested)
    return settings_of(values)


def settings_of(values: dict[str, Any]) -> Settings:
    """Build the settings from nested dicts, as `dataclasses.asdict` writes them, and check them."""
    augmentation, method = values.get("augmentation"), values.get("method")
    if isinstance(augmentation, dict):
        preset = augmentation.get("preset", "symmetric")
        if preset not in PRESETS:
            raise SystemExit(f"augmentation.preset={preset!r}: expected one of {sorted(PRESETS)}")
        views: dict[str, Any] = dict(zip(("view1", "view2"), PRESETS[preset], strict=True))
        augmentation = _joined(views, augmentation)
        if augmentation.get("generated") is not None:
            augmentation["generated"] = _joined(augmentation["view2"], augmentation["generated"])
        values = values | {"augmentation": augmentation}
    if isinstance(method, dict) and method.get("name", "simclr") not in METHODS:
        raise SystemExit(f"method.name={method['name']!r}: expected one of {sorted(METHODS)}")
    settings: Settings = _build(Settings, values, "")
    _check(settings)
    return settings


def flat(settings: Settings) -> dict[str, Any]:
    """Return every setting by its full name, such as ``trainer.epochs``."""

    def walk(values: dict[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            found |= walk(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
        return found

    return walk(dataclasses.asdict(settings), "")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        raise SystemExit(f"no settings file {path}") from None
    except yaml.YAMLError as error:
        raise SystemExit(f"{path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise SystemExit(f"{path}: expected names and values, found {values!r}")
    base = values.pop("base", None)
    return values if base is None else _joined(_read(path.parent / base), values)


def _joined(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return both, `above` over `below`; another method brings none of the values of the one below."""
    if "name" in below and "name" in above and below["name"] != above["name"] and above["name"] in METHODS:
        return above
    joined = dict(below)
    for name, value in above.items():
        known = joined.get(name)
        joined[name] = _joined(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return joined


def _build(kind: type[Any], values: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise SystemExit(f"unknown setting {prefix + unknown[0]!r}; known: {', '.join(prefix + name for name in sorted(hints))}")
    return kind(**{name: _typed(prefix + name, value, hints[name]) for name, value in values.items()})


def _typed(name: str, value: Any, hint: Any) -> Any:
    """Return `value` as the type `hint`; YAML reads 4e-4 and 2e4 as strings."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    hint = next(option for option in options if option is not type(None))
    if hint is SimCLRSettings:  # the union of the methods: its name says which
        hint = METHODS[value.get("name", "simclr")] if isinstance(value, dict) else hint
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise SystemExit(f"{name}={value!r}: expected settings below it, such as {name}.NAME=value")
        return _build(hint, value, f"{name}.")
    if typing.get_origin(hint) is list:
        if not isinstance(value, list) or not value:
            raise SystemExit(f"{name}={value!r}: expected a list")
        return [_typed(name, item, typing.get_args(hint)[0]) for item in value]
    try:
        if hint in (int, float) and not isinstance(value, bool):
            number = float(value)
            if hint is float or number == int(number):
                return hint(number)
        elif hint not in (int, float) and isinstance(value, hint):
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    raise SystemExit(f"{name}={value!r}: expected {hint.__name__}")


def _check(s: Settings) -> None:
    values = flat(s)
    for name, value in values.items():
        last = name.rpartition(".")[2]
        if (last in ("p", "p_end") or last.endswith("_p")) and value is not None and not 0 <= value <= 1:
            raise SystemExit(f"{name}={value!r}: expected a probability, from 0 to 1")
    choices = {
        "generative.source": ("none", "bank", "online"),
        "augmentation.interpolation": ("bicubic", "bilinear"),
        "backbone.name": ("resnet50", "resnet18", "small"),
        "backbone.stem": ("imagenet", "cifar"),
        "optimizer.name": ("lars", "sgd", "adamw"),
        "trainer.precision": ("32-true", "16-mixed", "bf16-mixed"),
    }
    for name, allowed in choices.items():
        if values[name] not in allowed:
            raise SystemExit(f"{name}={values[name]!r}: expected one of {', '.join(allowed)}")
    positive = ["data.image_size", "optimizer.base_lr", "probe.every", "probe.k", "probe.images", "probe.temperature"]
    positive += [f"trainer.{name}" for name in ("epochs", "batch_size", "devices", "nodes", "accumulate", "checkpoint_every", "log_every")]
    positive += ["data.limit"] if s.data.limit is not None else []
    for name in [*positive, *(name for name in ("method.temperature", "method.queue") if name in values)]:
        if values[name] <= 0:
            raise SystemExit(f"{name}={values[name]!r}: expected more than 0")
    for name in ("data.holdout", "data.workers", "optimizer.warmup_epochs"):
        if values[name] < 0:
            raise SystemExit(f"{name}={values[name]!r}: expected 0 or more")
    for name, value in values.items():
        if name.endswith((".crop_scale", ".blur_sigma")) and not (len(value) == 2 and 0 < value[0] <= value[1]):
            raise SystemExit(f"{name}={value!r}: expected two numbers above 0, the smaller first")
    if len(s.backbone.widths) != len(s.backbone.blocks):
        raise SystemExit(f"backbone.blocks={s.backbone.blocks!r}: expected as many numbers as backbone.widths={s.backbone.widths!r}")
    if s.generative.source == "bank" and not s.generative.bank:
        raise SystemExit("generative.source=bank needs generative.bank=FOLDER; `gentransforms generate SOURCE BANK` makes one")
    if s.generative.source == "online" and not s.generative.generator:
        raise SystemExit("generative.source=online needs generative.generator, for example icgan-cifar10-32")
    if not s.data.train:
        raise SystemExit("data.train is not set: expected a folder, a .parquet file or torchvision:NAME:ROOT")
    if s.trainer.batch_size < 2:
        raise SystemExit(f"trainer.batch_size={s.trainer.batch_size}: expected 2 or more, batch norm needs them")
