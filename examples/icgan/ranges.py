"""Checks of the values of settings, so that a wrong one of the generator does not end a run after hours of its encoder's training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared import flatten

from gentransforms.errors import ConfigError
from gentransforms.generators.icgan.architecture import BigGANConfig

if TYPE_CHECKING:
    from settings import Settings

DIFFAUGMENT = ("color", "cutout", "translation")
COUNTS = (
    "checkpoint_every", "sample_every", "log_every", "limit", "encoder.epochs", "encoder.projection", "encoder.local_views",
    "encoder.warmup_steps", "generator.D_ch", "generator.neighbours", "generator.steps", "generator.finish_from",
    "generator.finish_neighbours", "encoder.batch_size", "generator.batch_size",
)  # fmt: skip
LEAST = dict.fromkeys(("encoder.local_views", "encoder.warmup_steps", "generator.finish_from"), 0)
LEAST |= dict.fromkeys(("encoder.batch_size", "generator.batch_size"), 2)  # batch norm needs them
POSITIVE = (
    "encoder.seconds", "encoder.learning_rate", "encoder.temperature", "generator.seconds", "generator.learning_rate_G",
    "generator.learning_rate_D", "generator.truncation",
)  # fmt: skip
NOT_NEGATIVE = ("encoder.weight_decay", "generator.consistency", "generator.finish_consistency")
SHARES = ("encoder.view_side", "encoder.crop_scale", "encoder.local_side", "encoder.local_scale")


def refuse_useless_values(settings: Settings) -> None:
    """Exit, naming the setting, its value and what was expected, if a value is out of range."""
    values = flatten(settings)
    _expect(settings.precision in ("auto", "float32", "bfloat16"), values, "precision", "auto, float32 or bfloat16")
    for name in ("encoder.widths", "encoder.blocks"):
        _expect(bool(values[name]) and min(values[name]) >= 1, values, name, "numbers of 1 or more")
    stages = len(settings.encoder.widths)
    _expect(len(settings.encoder.blocks) == stages, values, "encoder.blocks", f"{stages} numbers, as many as encoder.widths has")
    _expect(1 <= settings.encoder.feature_stages <= stages, values, "encoder.feature_stages", f"1 to {stages}, as encoder.widths has")
    for name in COUNTS:
        least = LEAST.get(name, 1)
        _expect(values[name] is None or values[name] >= least, values, name, f"{least} or more")
    for name in POSITIVE:
        _expect(values[name] is None or 0 < values[name] < float("inf"), values, name, "a number above 0")
    for name in NOT_NEGATIVE:
        _expect(0 <= values[name] < float("inf"), values, name, "0 or more")
    for name in SHARES:
        _expect(0 < values[name] <= 1, values, name, "a number above 0 and at most 1")
    _expect(settings.encoder.local_scale <= settings.encoder.crop_scale, values, "encoder.local_scale", "at most encoder.crop_scale")
    _expect(0 <= settings.generator.ema < 1, values, "generator.ema", "0 or more and less than 1")
    policy = [name for name in settings.generator.diffaugment.split(",") if name]
    _expect(set(policy) <= set(DIFFAUGMENT), values, "generator.diffaugment", f"any of {', '.join(DIFFAUGMENT)}, joined by commas")
    config = build_config(settings)
    attended = {int(part) for part in config.G_attn.split("_") if part} - {0}
    wide = [8 * 2**i for i, width in enumerate(config.widths[1:]) if width >= 8]  # queries and keys have an eighth of the width
    _expect(attended <= set(wide), values, "generator.G_attn", f"0, or some of {', '.join(map(str, wide)) or 'none'} joined by _")


def build_config(settings: Settings) -> BigGANConfig:
    """Return the generator's architecture; exit, naming the setting, if there is none of these values."""
    s = settings.generator
    width = sum(settings.encoder.widths[-settings.encoder.feature_stages :])
    try:
        return BigGANConfig(
            resolution=settings.resolution, G_ch=s.G_ch, dim_z=s.dim_z, G_attn=s.G_attn, G_param=s.G_param,
            shared_dim_feat=s.shared_dim_feat, feature_dim=width,
        )  # fmt: skip
    except ConfigError as error:
        raise SystemExit(str(error) if str(error).startswith("resolution=") else f"generator.{error}") from error


def _expect(fine: bool, values: dict[str, Any], name: str, expected: str) -> None:
    if not fine:
        raise SystemExit(f"{name}={values[name]!r}: expected {expected}")
