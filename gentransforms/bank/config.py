"""The settings of a bank: one dataclass shared by ``bank.json``, the functions and the command line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from gentransforms.errors import ConfigError

__all__ = ["IMAGE_FORMATS", "BankConfig", "BankSettings", "build_config"]

IMAGE_FORMATS = ("jpeg", "webp", "png")
_QUALITY = 90
# Settings that may be None, and are then chosen when a bank is started.
_LEFT_OPEN = ("image_format", "quality", "threads")
# A JPEG of 32 x 32 pixels at quality 90 has a PSNR of 36.5 dB; a lossless PNG takes 2.2 kB instead of 1.1.
_PNG_UP_TO = 64


@dataclass(frozen=True)
class BankConfig:
    """The settings of a bank, exactly those that ``bank.json`` holds.

    Together with the generator and the source, they determine every byte of the images. So they are fixed when a bank is
    started, and a later run with other settings is refused. The three that are None by default are chosen when a bank is
    started; later runs take them from the bank.

    Args:
        variants: Images generated from each source.
        base_seed: Selects the whole family of seeds; see `gentransforms.derive_seeds`.
        batch_size: Largest number of images generated at once.
        unit_size: Number of sources per unit; their variants are generated and written together.
        image_format: Encoding of the images: jpeg, webp or png. By default png up to 64 pixels, and jpeg above.
        quality: Quality of JPEG and WebP, from 1 to 100; 90 by default.
        min_similarity: Retry variants whose cosine similarity to their source, in the generator's features, is lower.
        max_attempts: How often a variant is tried before it is rejected.
        threads: Number of torch threads for a generator on the CPU; by default torch's own.

    Raises:
        ConfigError: if a setting is of another type or out of range.

    Example:
        >>> BankConfig(variants=4, image_format="webp").quality is None
        True
        >>> BankConfig(variants=0)
        Traceback (most recent call last):
        ...
        gentransforms.errors.ConfigError: variants=0: expected a positive integer
    """

    variants: int = field(default=10, metadata={"least": 1})
    base_seed: int = field(default=0, metadata={})
    batch_size: int = field(default=64, metadata={"least": 1})
    unit_size: int = field(default=100, metadata={"least": 1})
    image_format: str | None = field(default=None, metadata={"choices": IMAGE_FORMATS})
    quality: int | None = field(default=None, metadata={"least": 1, "most": 100})
    min_similarity: float | None = field(default=None, metadata={"least": -1.0, "most": 1.0})
    max_attempts: int = field(default=5, metadata={"least": 1})
    threads: int | None = field(default=None, metadata={"least": 1})

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if not (value is None and setting.default is None) and not _fits(value, setting):
                raise ConfigError(f"{setting.name}={value!r}: expected {_expected(setting)}")

    def resolve(self, image_size: tuple[int, int], threads: int | None) -> BankConfig:
        """Return the settings of a new bank, with a choice made for those that are None.

        Args:
            image_size: (h, w) of the generator's images.
            threads: number of torch threads, or None if the generator does not run on the CPU.

        Example:
            >>> BankConfig().resolve((32, 32), threads=2).image_format, BankConfig().resolve((256, 256), threads=2).image_format
            ('png', 'jpeg')
        """
        image_format = self.image_format or ("png" if max(image_size) <= _PNG_UP_TO else "jpeg")
        return dataclasses.replace(
            self,
            image_format=image_format,
            quality=None if image_format == "png" else self.quality or _QUALITY,  # PNG is lossless
            threads=None if threads is None else self.threads or threads,
        )

    def fill_from(self, settings: Mapping[str, Any]) -> BankConfig:
        """Return these settings, with those that are None taken from the `settings` of an existing bank."""
        left_open: dict[str, Any] = {name: settings.get(name) for name in _LEFT_OPEN if getattr(self, name) is None}
        return dataclasses.replace(self, **left_open)


class BankSettings(TypedDict, total=False):
    """The fields of `BankConfig` as keyword arguments, for type checkers and editors."""

    variants: int
    base_seed: int
    batch_size: int
    unit_size: int
    image_format: str | None
    quality: int | None
    min_similarity: float | None
    max_attempts: int
    threads: int | None


def build_config(config: BankConfig | None, settings: Mapping[str, Any]) -> BankConfig:
    """Return `config`, or the defaults, with some settings replaced by name.

    Raises:
        ConfigError: if there is no such setting, or its value is out of range.

    Example:
        >>> build_config(BankConfig(variants=4), {"unit_size": 50}).variants
        4
    """
    if config is not None and not isinstance(config, BankConfig):
        raise ConfigError(f"config={config!r}: expected a BankConfig; pass single settings by name, such as variants=10")
    names = [setting.name for setting in dataclasses.fields(BankConfig)]
    unknown = [name for name in settings if name not in names]
    if unknown:
        raise ConfigError(
            f"unknown setting {unknown[0]!r}: expected one of {', '.join(names)}; options of the source belong to "
            "gentransforms.open_source, and those of an engine to gentransforms.bank.Local or gentransforms.bank.Ray"
        )
    return dataclasses.replace(config or BankConfig(), **settings)


def _fits(value: object, setting: dataclasses.Field[Any]) -> bool:
    if "choices" in setting.metadata:
        return isinstance(value, str) and value in setting.metadata["choices"]
    if isinstance(value, bool) or not isinstance(value, (int, float) if "float" in str(setting.type) else int):
        return False
    return bool(setting.metadata.get("least", -math.inf) <= value <= setting.metadata.get("most", math.inf))


def _expected(setting: dataclasses.Field[Any]) -> str:
    metadata = setting.metadata
    if "choices" in metadata:
        kind = ", ".join(map(repr, metadata["choices"]))
    elif "most" in metadata:
        kind = f"{'a number' if 'float' in str(setting.type) else 'an integer'} from {metadata['least']:g} to {metadata['most']:g}"
    else:
        kind = "a positive integer" if "least" in metadata else "an integer"
    return f"{kind}, or None" if setting.default is None else kind
