"""`BankConfig`: its ranges, what is chosen for settings left open, and the dataclass being the only list of settings."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest

import gentransforms as gt
from gentransforms.bank.config import BankConfig, BankSettings, build_config
from gentransforms.errors import ConfigError


class TestBankConfig:
    @pytest.mark.parametrize(
        ("name", "good", "bad"),
        [
            ("variants", [1, 10**9], [0, -1, 1.0, "3", True, None]),
            ("base_seed", [-3, 0, 2**70], [0.5, "a", True, None]),
            ("batch_size", [1], [0, None]),
            ("unit_size", [1], [0, 1.5, None]),
            ("image_format", ["jpeg", "webp", "png", None], ["gif", "JPEG", 3]),
            ("quality", [1, 100, None], [0, 101, 90.0, True]),
            ("min_similarity", [-1, 0.5, 1, None], [-1.01, 2, "0.5", True, float("nan")]),
            ("max_attempts", [1], [0, None]),
            ("threads", [1, None], [0, True, 1.5]),
        ],
    )
    def test_ranges(self, name: str, good: list[Any], bad: list[Any]) -> None:
        for value in good:
            assert getattr(BankConfig(**{name: value}), name) == value
        for value in bad:
            with pytest.raises(ConfigError) as refused:
                BankConfig(**{name: value})
            assert str(refused.value).startswith(f"{name}={value!r}: expected ")

    def test_errors_say_what_was_expected(self) -> None:
        for wrong, words in (
            ({"variants": 0}, "a positive integer"),
            ({"quality": 0}, "an integer from 1 to 100, or None"),
            ({"min_similarity": 2}, "a number from -1 to 1, or None"),
            ({"image_format": "gif"}, "'jpeg', 'webp', 'png', or None"),
            ({"base_seed": "a"}, "an integer"),
        ):
            with pytest.raises(ConfigError, match=f"expected {words}$"):
                BankConfig(**wrong)  # type: ignore[arg-type]

    def test_is_frozen_and_equal_by_value(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            BankConfig().variants = 3  # type: ignore[misc]
        assert BankConfig(variants=3) == BankConfig(variants=3) != BankConfig()

    def test_every_field_is_described_once_and_typed_for_editors(self) -> None:
        names = [field.name for field in dataclasses.fields(BankConfig)]
        assert typing.get_type_hints(BankSettings) == {name: typing.get_type_hints(BankConfig)[name] for name in names}
        documented = (gt.BankConfig.__doc__ or "").split("Args:")[1].split("Raises:")[0]
        assert all(documented.count(f"        {name}: ") == 1 for name in names)


class TestResolve:
    @pytest.mark.parametrize(
        ("size", "expected"), [((32, 32), "png"), ((64, 64), "png"), ((64, 65), "jpeg"), ((128, 32), "jpeg"), ((512, 512), "jpeg")]
    )
    def test_small_images_are_kept_without_loss(self, size: tuple[int, int], expected: str) -> None:
        config = BankConfig().resolve(size, threads=1)
        assert (config.image_format, config.quality) == (expected, None if expected == "png" else 90)

    def test_what_is_given_stays(self) -> None:
        config = BankConfig(image_format="webp", quality=50, threads=3).resolve((32, 32), threads=1)
        assert (config.image_format, config.quality, config.threads) == ("webp", 50, 3)

    def test_png_has_no_quality_and_cuda_no_threads(self) -> None:
        config = BankConfig(image_format="png", quality=50, threads=3).resolve((256, 256), threads=None)
        assert (config.quality, config.threads) == (None, None)

    def test_what_is_left_open_is_the_banks(self) -> None:
        bank = dataclasses.asdict(BankConfig(variants=3, image_format="jpeg", quality=70, threads=4))
        config = BankConfig(variants=5).fill_from(bank)
        assert (config.image_format, config.quality, config.threads) == ("jpeg", 70, 4)
        assert config.variants == 5, "which is no open one, and is compared"
        assert BankConfig(quality=80).fill_from(bank).quality == 80


class TestBuildConfig:
    def test_settings_go_over_the_config(self) -> None:
        assert build_config(None, {}) == BankConfig()
        assert build_config(BankConfig(variants=3, unit_size=7), {"variants": 4}) == BankConfig(variants=4, unit_size=7)

    @pytest.mark.parametrize("name", ["varaints", "key", "workers"])
    def test_unknown_settings_are_refused_with_the_list(self, name: str) -> None:
        with pytest.raises(ConfigError) as refused:
            build_config(None, {name: 1})
        for word in (name, *(field.name for field in dataclasses.fields(BankConfig)), "open_source", "gentransforms.bank.Local"):
            assert word in str(refused.value)

    @pytest.mark.parametrize("config", [{"variants": 3}, 4, BankConfig])
    def test_what_is_no_config(self, config: Any) -> None:
        with pytest.raises(ConfigError, match=r"config=.*expected a BankConfig"):
            build_config(config, {})
