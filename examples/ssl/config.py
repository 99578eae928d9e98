"""The settings of a recipe: defaults here, a YAML file over them, ``name=value`` arguments over both.

A file may begin with ``base: other.yaml`` and then holds only what differs from that file; the arms of an experiment are
written this way. Unknown names, wrong types (common/layers.py) and values out of range (checks.py) are refused before
anything is loaded.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checks import refuse_useless_values
from omegaconf import DictConfig, OmegaConf
from shared import fill_in, flatten, read_layers


@dataclass
class DataSettings:
    """Images: a folder, ``.parquet``, ``torchvision:NAME:ROOT[:SPLIT]`` or ``inaturalist:ROOT:SPLIT`` (data.py).

    `holdout` training images, evenly spaced, are set aside for choosing settings; training uses `limit` of the others. With
    `in_memory` the images are read once, as squares of `image_size` pixels, which are what an online generator sees, too.
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
    """Classic augmentation of one view, in this order: crop, jitter, grey, blur, solarise, flip.

    `crop_scale` is the smallest and the largest share of the area; with ``[1.0, 1.0]`` the whole image is resized instead.
    """

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


# The paper's three pairs of views; a file names one of them and may change single values.
_WEAK = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
_ASYMMETRIC = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
PRESETS: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "symmetric": ({}, {}),
    "symmetric-weak": (_WEAK, _WEAK),
    "asymmetric": (_ASYMMETRIC | {"blur_p": 1.0}, _ASYMMETRIC | {"blur_p": 0.1, "solarise_p": 0.2}),
}


@dataclass
class AugmentationSettings:
    """Both views. `generated` is the augmentation of generated images, if it differs; unset values are those of the second view."""

    preset: str = "symmetric"
    interpolation: str = "bicubic"
    view1: ViewSettings = field(default_factory=ViewSettings)
    view2: ViewSettings = field(default_factory=ViewSettings)
    generated: ViewSettings | None = None


@dataclass
class GenerativeSettings:
    """Where generated images come from: ``none``, a ``bank``, or a generator on the device in each step (``online``).

    `p` is the probability that a view is generated, for each image and step; with `p_end` it changes linearly over the epochs.
    `scores` is the scores.parquet of an audit of the bank. `select` says which variants are used: an expression over the scores, or a
    file that ``gentransforms bank select`` wrote (.json). `weights` is the score in proportion to which they are drawn.
    """

    source: str = "none"
    bank: str | None = None
    revision: str | None = None
    scores: str | None = None
    select: str | None = None
    weights: str | None = None
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
class MethodSettings:
    """What the methods have in common; `name` decides which of the classes below is meant."""

    name: str = ""
    hidden: int = 0
    out: int = 0


@dataclass
class SimCLRSettings(MethodSettings):
    """SimCLR (Chen et al., ICML 2020)."""

    name: str = "simclr"
    hidden: int = 4096
    out: int = 512
    temperature: float = 0.2


@dataclass
class SimSiamSettings(MethodSettings):
    """SimSiam (Chen and He, CVPR 2021).

    `predictor_schedule` is ``constant``, which is the paper's: the predictor keeps the full learning rate; null: that of the rest.
    """

    name: str = "simsiam"
    hidden: int = 4096
    out: int = 4096
    predictor_hidden: int = 512
    predictor_schedule: str | None = None


@dataclass
class BYOLSettings(MethodSettings):
    """BYOL (Grill et al., NeurIPS 2020)."""

    name: str = "byol"
    hidden: int = 4096
    out: int = 256
    predictor_hidden: int = 4096
    momentum_start: float = 0.99
    momentum_end: float = 1.0


@dataclass
class MoCoSettings(MethodSettings):
    """MoCo v2+ : MoCo v2 (Chen et al., 2020) with a symmetric loss."""

    name: str = "mocov2plus"
    hidden: int = 2048
    out: int = 256
    temperature: float = 0.2
    queue: int = 65_536
    momentum_start: float = 0.99
    momentum_end: float = 0.999


@dataclass
class BarlowTwinsSettings(MethodSettings):
    """Barlow Twins (Zbontar et al., ICML 2021)."""

    name: str = "barlowtwins"
    hidden: int = 4096
    out: int = 4096
    redundancy: float = 0.0051
    loss_scale: float = 0.048


_KINDS = (SimCLRSettings, SimSiamSettings, BYOLSettings, MoCoSettings, BarlowTwinsSettings)
METHODS: dict[str, type[MethodSettings]] = {kind.name: kind for kind in _KINDS}


@dataclass
class OptimizerSettings:
    """The learning rate is base_lr x images per step / 256; warm-up and cosine are per step (optimizers.py)."""

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
    """`batch_size` is per device; checkpoints are written every `checkpoint_every` optimiser steps.

    `precision` is ``32-true``, ``16-mixed`` or ``bf16-mixed``, as Lightning names them, or ``auto``: bfloat16 where the device
    computes in it, else float32 (common/precision.py).
    """

    epochs: int = 100
    batch_size: int = 256
    devices: int = 4
    nodes: int = 1
    accumulate: int = 1
    accelerator: str = "auto"
    precision: str = "auto"
    sync_batchnorm: bool = True
    compile: bool = False
    checkpoint_every: int = 500
    log_every: int = 10


@dataclass
class ProbeSettings:
    """Every so many epochs, weighted k-NN and the online linear layer are evaluated on the test images."""

    every: int = 5
    images: int = 50_000
    k: int = 200
    temperature: float = 0.1
    linear_lr: float = 0.1


@dataclass
class Settings:
    """Everything that determines a run, besides the images."""

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
    return build_settings(read_layers(path, overrides or [], _join))


def build_settings(values: dict[str, Any]) -> Settings:
    """Build the settings from nested dicts, as `dataclasses.asdict` writes them, and check them."""
    given = OmegaConf.create(values)
    preset, method = (OmegaConf.select(given, name) for name in ("augmentation.preset", "method.name"))
    if preset is not None and preset not in PRESETS:
        raise SystemExit(f"augmentation.preset={preset!r}: expected one of {sorted(PRESETS)}")
    if method is not None and method not in METHODS:
        raise SystemExit(f"method.name={method!r}: expected one of {sorted(METHODS)}")
    schema = _schema(preset or "symmetric", method or "simclr")
    if OmegaConf.select(given, "augmentation.generated") is not None:  # it starts from the second view
        schema = copy.deepcopy(schema)
        schema.augmentation.generated = fill_in(schema.augmentation.view2, values["augmentation"].get("view2", {}))
    settings: Settings = fill_in(schema, values)
    refuse_useless_values(flatten(settings))
    return settings


@functools.cache
def _schema(preset: str, method: str) -> DictConfig:
    """Return the schema of all settings with the defaults of a preset and a method; made once, and not to be changed."""
    schema: DictConfig = OmegaConf.structured(Settings)
    schema.method = METHODS[method]()
    for name, changes in zip(("view1", "view2"), PRESETS[preset], strict=True):
        schema.augmentation[name] = ViewSettings(**changes)  # type: ignore[arg-type]
    return schema


def _join(below: DictConfig, above: DictConfig) -> DictConfig:
    """Put one layer over another; a layer with another method takes none of the values of the method below."""
    methods = [OmegaConf.select(layer, "method.name") for layer in (below, above)]
    if None not in methods and methods[0] != methods[1]:
        below.pop("method")
    return OmegaConf.unsafe_merge(below, above)  # type: ignore[return-value]  # neither is used again
