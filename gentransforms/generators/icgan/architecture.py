"""The architecture of a BigGAN generator: its configuration, and the name and shape of every released tensor.

Source: Brock et al., "BigGAN" (ICLR 2019), appendix B; Casanova et al., "Instance-Conditioned GAN" (NeurIPS 2021),
section 3. Field names are those of the authors' configuration files.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gentransforms.errors import ConfigError

__all__ = ["BigGANConfig", "released_shapes"]

# Output width of each block in units of G_ch; each block doubles the resolution, from 4 x 4. The first entry is the input's width.
_WIDTHS = {
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}
_STATISTICS = ("plain", "mybn", "cross_replica")


@dataclass(frozen=True)
class BigGANConfig:
    """The settings that determine the tensors of a BigGAN generator and their meaning.

    Args:
        resolution: side of the output, in pixels: 32, 64, 128, 256 or 512.
        G_ch: base width; a block has `G_ch` times a multiplier of channels.
        dim_z: length of the latent vector; with `hier` it is rounded down to a multiple of the number of slots.
        hier: whether each block gets a slice of z in its condition.
        G_attn: output resolutions followed by self-attention, such as ``"64"`` or ``"32_64"``; ``"0"`` for none.
        shared_dim: width of a class embedding.
        shared_dim_feat: width of the mapped instance feature.
        feature_dim: width of an instance feature.
        class_cond: whether a class label is needed.
        n_classes: rows of the class embedding table; 0 where there is no table.
        G_param: ``"SN"`` for weights under spectral norm, ``"plain"`` for weights used as they are.
        statistics: how batch norm statistics are named: ``"plain"``, ``"mybn"`` or ``"cross_replica"``.
        BN_eps: added to a variance.
        SN_eps: smallest length of a vector in the power iteration of spectral norm.

    Raises:
        ConfigError: if a value is outside what is described above.

    Example:
        >>> BigGANConfig(resolution=256, G_ch=96, dim_z=120).z_dim
        119
    """

    resolution: int = 256
    G_ch: int = 96
    dim_z: int = 120
    hier: bool = True
    G_attn: str = "64"
    shared_dim: int = 128
    shared_dim_feat: int = 512
    feature_dim: int = 2048
    class_cond: bool = False
    n_classes: int = 0
    G_param: str = "SN"
    statistics: str = "plain"
    BN_eps: float = 1e-5
    SN_eps: float = 1e-12

    def __post_init__(self) -> None:
        for name in ("hier", "class_cond"):
            _expect(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")
        for name in ("BN_eps", "SN_eps"):
            value = getattr(self, name)
            _expect(type(value) in (int, float) and value > 0, name, value, "a positive number")
        _expect(type(self.n_classes) is int and self.n_classes >= 0, "n_classes", self.n_classes, "a whole number")
        _expect(type(self.resolution) is int and self.resolution in _WIDTHS, "resolution", self.resolution, f"one of {sorted(_WIDTHS)}")
        _expect(self.statistics in _STATISTICS, "statistics", self.statistics, f"one of {_STATISTICS}")
        _expect(self.G_param in ("SN", "plain"), "G_param", self.G_param, "'SN' or 'plain'")
        for name in ("G_ch", "dim_z", "shared_dim", "shared_dim_feat", "feature_dim"):
            value = getattr(self, name)
            _expect(type(value) is int and value > 0, name, value, "a positive integer")
        _expect(self.n_classes > 0 or not self.class_cond, "n_classes", self.n_classes, "positive with class_cond")
        _expect(not self.hier or self.dim_z >= self.slots, "dim_z", self.dim_z, f"at least {self.slots}, one per slot")
        _expect(
            isinstance(self.G_attn, str) and all(part.isdigit() for part in self.G_attn.split("_") if part),
            "G_attn", self.G_attn, "resolutions joined by '_', such as '64' or '32_64'",
        )  # fmt: skip

    @classmethod
    def from_released(cls, config: Mapping[str, Any], *, feature_dim: int, has_table: bool) -> BigGANConfig:
        """Read the authors' ``config`` dictionary; raise if it asks for something that our network does not support."""
        required = {"instance_cond": True, "G_shared": True, "G_shared_feat": True, "bottom_width": 4, "G_param": "SN"}
        required |= {"norm_style": "bn", "num_G_SVs": 1, "num_G_SV_itrs": 1, "G_kernel_size": 3}
        for name, expected in required.items():
            _expect(config.get(name, expected) == expected, name, config.get(name), repr(expected))
        _expect(config.get("G_nl", "relu") in ("relu", "inplace_relu"), "G_nl", config.get("G_nl"), "'relu'")
        names = {f.name for f in dataclasses.fields(cls)} - {"statistics", "feature_dim", "n_classes"}
        missing = sorted({"resolution", "G_ch", "dim_z", "hier", "shared_dim_feat"} - config.keys())
        if missing:
            raise ConfigError(f"the released config lacks {', '.join(missing)}; is this an IC-GAN BigGAN checkpoint?")
        statistics = "cross_replica" if config.get("cross_replica") else "mybn" if config.get("mybn") else "plain"
        n_classes = int(config.get("n_classes", 0)) if has_table else 0
        values = {name: config[name] for name in sorted(names & config.keys())}
        return cls(**values, statistics=statistics, feature_dim=feature_dim, n_classes=n_classes)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels before the first block and after each."""
        return tuple(self.G_ch * m for m in _WIDTHS[self.resolution])

    @property
    def slots(self) -> int:
        """Number of parts that z is split into under `hier`: one for the first linear layer and one for each block."""
        return len(_WIDTHS[self.resolution])

    @property
    def slot_dim(self) -> int:
        """Length of one slot of z, or of all of z without `hier`."""
        return self.dim_z // self.slots if self.hier else self.dim_z

    @property
    def z_dim(self) -> int:
        """Length of z that is used: `dim_z`, rounded down to whole slots."""
        return self.slot_dim * self.slots if self.hier else self.dim_z

    @property
    def y_dim(self) -> int:
        """Width of the condition that all blocks share: [class embedding, mapped feature]."""
        return self.shared_dim_feat + (self.shared_dim if self.class_cond else 0)

    @property
    def condition_dim(self) -> int:
        """Width of one block's condition: y, with the block's slice of z under `hier`."""
        return self.y_dim + (self.slot_dim if self.hier else 0)

    @property
    def attention(self) -> tuple[bool, ...]:
        """For each block, whether self-attention follows."""
        wanted = {int(part) for part in self.G_attn.split("_") if part}
        return tuple(8 * 2**i in wanted for i in range(len(self.widths) - 1))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-able dictionary."""
        return dataclasses.asdict(self)


def released_shapes(config: BigGANConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of a released generator, in the authors' names.

    Example:
        >>> shapes = released_shapes(BigGANConfig(resolution=32, G_ch=8, dim_z=16))
        >>> shapes["blocks.0.0.conv1.weight"]
        (32, 32, 3, 3)
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, weight: tuple[int, ...], bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]
        if config.G_param == "SN":
            shapes[f"{name}.u0"], shapes[f"{name}.sv0"] = (1, weight[0]), (1,)

    def statistics(name: str, width: int) -> None:
        if config.statistics == "cross_replica":
            names = {"bn.running_mean": (width,), "bn.running_var": (width,), "bn.num_batches_tracked": ()}
        elif config.statistics == "mybn":
            names = {"bn.stored_mean": (width,), "bn.stored_var": (width,), "bn.accumulation_counter": (1,)}
        else:
            names = {"stored_mean": (width,), "stored_var": (width,)}
        shapes.update({f"{name}.{key}": shape for key, shape in names.items()})

    def conditional_norm(name: str, width: int) -> None:
        layer(f"{name}.gain", (width, config.condition_dim), bias=False)
        layer(f"{name}.bias", (width, config.condition_dim), bias=False)
        statistics(name, width)

    widths = config.widths
    if config.n_classes:
        shapes["shared.weight"] = (config.n_classes, config.shared_dim)
    layer("shared_feat", (config.shared_dim_feat, config.feature_dim))
    layer("linear", (widths[0] * 16, config.slot_dim))
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        block = f"blocks.{i}.0"
        layer(f"{block}.conv1", (outputs, inputs, 3, 3))
        layer(f"{block}.conv2", (outputs, outputs, 3, 3))
        layer(f"{block}.conv_sc", (outputs, inputs, 1, 1))
        conditional_norm(f"{block}.bn1", inputs)
        conditional_norm(f"{block}.bn2", outputs)
        if config.attention[i]:
            shapes[f"blocks.{i}.1.gamma"] = ()
            for key, shape in {"theta": (outputs // 8, outputs), "phi": (outputs // 8, outputs),
                               "g": (outputs // 2, outputs), "o": (outputs, outputs // 2)}.items():  # fmt: skip
                layer(f"blocks.{i}.1.{key}", (*shape, 1, 1), bias=False)
    affine = ("bn.weight", "bn.bias") if config.statistics == "cross_replica" else ("gain", "bias")
    shapes.update({f"output_layer.0.{key}": (widths[-1],) for key in affine})
    statistics("output_layer.0", widths[-1])
    layer("output_layer.2", (3, widths[-1], 3, 3))
    return shapes


def _expect(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise ConfigError(f"{name}={value!r}: expected {expected}")
