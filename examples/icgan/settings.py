"""The settings of a training run: defaults here, a YAML file over them, ``name=value`` arguments over both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from ranges import refuse_useless_values
from shared import fill_in, read_layers


@dataclass
class EncoderSettings:
    """SimCLR with multi-crop on a SmallResNet. Sides of the views are fractions of the resolution, scales are fractions of the area.

    The learning rate rises over `warmup_steps`, but at most over a tenth of all steps, which are few for a small data set. `seconds`
    limits the time: a stage that would take longer goes through its schedule faster and takes fewer steps (pace.py).
    """

    widths: list[int] = field(default_factory=lambda: [64, 128, 256])
    blocks: list[int] = field(default_factory=lambda: [1, 1, 1])
    feature_stages: int = 1
    epochs: int = 14
    seconds: float | None = None
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

    From step `finish_from` on, `finish_neighbours` and `finish_consistency` replace `neighbours` and `consistency`. `seconds`
    limits the time, as for the encoder. `truncation` is that of the saved generators and the sample grids; it plays no part in
    training.
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
    seconds: float | None = None
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
    truncation: float = 0.7


@dataclass
class Settings:
    """Everything that determines a run, besides the images, of which `limit` takes so many, evenly spaced.

    `device` is a device of torch, or ``auto``: a CUDA GPU where there is one, else the CPU (common/devices.py). `precision` is
    ``float32``, ``bfloat16`` or ``auto``: bfloat16 where the device computes in it, else float32 (common/precision.py). Samples and
    a snapshot are written every `sample_every` steps of the generator, and earlier at 1/2, 1/4, 1/8 and 1/16 of it where these are
    whole numbers. `compile` runs encoder, generator and discriminator through ``torch.compile``.
    """

    resolution: int = 32
    seed: int = 0
    precision: str = "auto"
    device: str = "auto"
    compile: bool = False
    checkpoint_every: int = 250
    sample_every: int = 500
    log_every: int = 20
    limit: int | None = None
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)


def load_settings(path: str | Path | None, overrides: list[str]) -> Settings:
    """Merge defaults, the YAML file at `path` and overrides such as ``generator.steps=500``; refuse what is unknown or wrong."""
    settings: Settings = fill_in(OmegaConf.structured(Settings), read_layers(path, overrides))
    refuse_useless_values(settings)
    return settings
