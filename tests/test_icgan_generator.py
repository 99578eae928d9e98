"""ICGAN: encode once, sample often, each image from its own seed."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import gentransforms as gt
from gentransforms.errors import ConfigError, ImageError, MissingInputError, WeightsError
from gentransforms.testing import check_generator, check_transform

NETWORK: dict[str, Any] = {"resolution": 32, "G_ch": 8, "dim_z": 16, "shared_dim_feat": 8, "feature_dim": 16, "G_attn": "0"}
EXTRACTOR = {"kind": "small-resnet", "widths": [8, 16], "blocks": [1, 1]}
CLASSES = {"class_cond": True, "n_classes": 5, "shared_dim": 4}


def tiny(**options: Any) -> gt.ICGAN:
    return gt.ICGAN(**({"network": NETWORK, "feature_extractor": EXTRACTOR} | options))


def photos(count: int = 4, size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(5))


class TestICGAN:
    """The generator's contract, and its options."""

    @pytest.mark.parametrize("network", [{}, {"G_attn": "16"}, {"hier": False}, {"resolution": 64}])
    def test_passes_the_batteries(self, network: dict[str, Any]) -> None:
        generator = tiny(network=NETWORK | network)
        check_generator(generator)
        if not network:  # the transform asks nothing of the network
            check_transform(gt.GenerativeAugment(generator, p=0.5))

    def test_class_conditional_passes_the_battery(self) -> None:
        check_generator(tiny(network=NETWORK | CLASSES), labels=torch.tensor([0, 1, 2, 4]))

    def test_encodes_once_for_many_variants(self) -> None:
        generator, calls = tiny(), []
        assert generator.feature_extractor is not None
        generator.feature_extractor.register_forward_hook(lambda *_: calls.append(1))
        condition = generator.encode(photos(2))
        variants = torch.stack([generator.sample(condition, torch.tensor([2 * i, 2 * i + 1])) for i in range(3)])
        assert calls == [1]
        assert len({v.numpy().tobytes() for v in variants.flatten(0, 1)}) == 6

    def test_features_have_length_one(self) -> None:
        features = tiny().encode(photos())["features"]
        assert features.shape == (4, 16)
        torch.testing.assert_close(features.norm(dim=1), torch.ones(4))

    def test_centre_square_is_what_it_sees(self) -> None:
        wide = photos(2, (32, 50))
        generator = tiny()
        torch.testing.assert_close(generator.encode(wide)["features"], generator.encode(wide[..., 9:41])["features"])

    @pytest.mark.parametrize("truncation", [0.3, 0.7, 1.0])
    def test_truncation_bounds_z(self, truncation: float) -> None:
        generator, seen = tiny(truncation=truncation), []
        generator.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        generator.sample(generator.encode(photos(1).expand(200, -1, -1, -1)), torch.arange(200))
        assert 1.9 * truncation < seen[0].abs().max() <= 2 * truncation

    def test_output_range(self) -> None:
        made = tiny()(photos(), torch.arange(4))
        assert made.shape == (4, 3, 32, 32)
        assert 0 <= made.min() <= made.max() <= 1

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_dtype_of_weights(self, dtype: torch.dtype, tmp_path: Path) -> None:
        tiny().save_pretrained(tmp_path)
        exact, other = gt.ICGAN.from_pretrained(tmp_path), gt.ICGAN.from_pretrained(tmp_path, dtype=dtype)
        assert {p.dtype for p in other.parameters()} == {dtype}
        seeds = torch.arange(4)
        made = other(photos(), seeds)
        assert made.dtype == torch.float32
        torch.testing.assert_close(made, exact(photos(), seeds), atol=1e-5 if dtype == torch.float64 else 0.1, rtol=0)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_photos_of_another_size_are_resized_as_by_the_transform(self, dtype: torch.dtype) -> None:
        generator, seeds = tiny().to(dtype), [3, 1, 4, 1]
        large = torch.rand(4, 3, 24, 36, generator=torch.Generator().manual_seed(5))
        augment = gt.GenerativeAugment(generator, 1.0, seeds_getter=lambda sample: seeds, output_size="generator")
        torch.testing.assert_close(generator(large, torch.tensor(seeds)), augment(large), atol=1e-6, rtol=0)

    def test_wide_images_and_double(self) -> None:
        assert tiny().encode(photos().double())["features"].dtype == torch.float32


class TestLabels:
    """A class-conditional model needs labels, and says where they come from."""

    def test_missing(self) -> None:
        with pytest.raises(MissingInputError, match="inputs_getter"):
            tiny(network=NETWORK | CLASSES)(photos(), torch.arange(4))

    def test_missing_through_the_transform(self) -> None:
        with pytest.raises(MissingInputError, match="inputs_getter"):
            gt.GenerativeAugment(tiny(network=NETWORK | CLASSES), p=1.0)(photos())

    def test_through_the_transform(self) -> None:
        generator = tiny(network=NETWORK | CLASSES)
        augment = gt.GenerativeAugment(generator, p=1.0, inputs_getter=lambda s: {"labels": s[1]}, seeds_getter=lambda s: s[1] * 10)
        labels = torch.tensor([3, 0, 1, 4])
        made, out = augment(photos(), labels)
        torch.testing.assert_close(made, generator(photos(), labels * 10, labels=labels))
        assert out is labels
        assert not torch.allclose(made, generator(photos(), labels * 10, labels=(labels + 1) % 5))

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (torch.tensor([0, 1, 2, 5]), "0 to 4"),
            (torch.tensor([0, 1, 2, -1]), "0 to 4"),
            (torch.tensor([0.0, 1, 2, 3]), "int64"),
            (torch.tensor([0, 1]), r"expected \(4,\)"),
            ([0, 1, 2, 3], r"expected \(4,\)"),
            (torch.tensor([True, False, True, True]), "int64"),
        ],
    )
    def test_refused(self, labels: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            tiny(network=NETWORK | CLASSES).encode(photos(), labels=labels)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
    def test_smaller_integers_name_the_same_classes(self, dtype: torch.dtype) -> None:
        generator, labels = tiny(network=NETWORK | CLASSES), torch.tensor([1, 2, 3, 1])
        expected = generator(photos(), torch.arange(4), labels=labels)
        assert torch.equal(generator(photos(), torch.arange(4), labels=labels.to(dtype)), expected)
        condition = generator.encode(photos(), labels=labels) | {"labels": labels.to(dtype)}
        assert torch.equal(generator.sample(condition, torch.arange(4)), expected)


class TestSeeds:
    """One seed for each image, in `sample` and in a direct call."""

    @pytest.mark.parametrize("seeds", [torch.tensor([1]), torch.arange(5), torch.arange(4).float(), torch.zeros(4, 1).long(), [1, 2, 3, 4]])
    def test_refused(self, seeds: Any) -> None:
        generator = tiny()
        with pytest.raises(ConfigError, match="seeds"):
            generator(photos(), seeds)
        with pytest.raises(ConfigError, match="seeds"):
            generator.sample(generator.encode(photos()), seeds)


class TestImages:
    """A direct call takes floating batches only."""

    @pytest.mark.parametrize("images", [torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(3, 32, 32), None])
    def test_refused(self, images: Any) -> None:
        with pytest.raises(ImageError, match=r"expected \(B, 3, H, W\) floating"):
            tiny().encode(images)


class TestWithoutExtractor:
    """A generator without feature extractor samples, and says what encode lacks."""

    def test_samples_from_given_features(self) -> None:
        features = torch.nn.functional.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))
        assert tiny(feature_extractor=None).sample({"features": features}, torch.arange(3)).shape == (3, 3, 32, 32)

    def test_encode_says_how_to_add_it(self) -> None:
        with pytest.raises(MissingInputError, match=r"--features swav\.pth\.tar"):
            tiny(feature_extractor=None).encode(photos())

    def test_extractor_of_another_width(self) -> None:
        with pytest.raises(ConfigError, match="features have 8 numbers"):
            tiny(feature_extractor={"kind": "small-resnet", "widths": [4, 8], "blocks": [1, 1]})

    def test_an_extractor_that_a_saved_config_could_not_name(self) -> None:
        generator = tiny()
        before = generator.fingerprint()
        with pytest.raises(ConfigError, match=r"extractor is a Linear: expected a ResNet50Features or a SmallResNet; gentransforms\."):
            generator.set_feature_extractor(torch.nn.Linear(3, 16))
        own = type("Own", (gt.generators.icgan.features.SmallResNet,), {})(widths=[8, 16], blocks=[1, 1])
        with pytest.raises(ConfigError, match="extractor is an Own: expected"):  # it would be loaded as a SmallResNet
            generator.set_feature_extractor(own)
        assert generator.fingerprint() == before


class TestArguments:
    """Wrong arguments are refused by name."""

    @pytest.mark.parametrize("truncation", [0, -1, float("nan"), float("inf"), "a", None, True])
    def test_truncation(self, truncation: Any) -> None:
        with pytest.raises(ConfigError, match="truncation="):
            tiny(truncation=truncation)

    def test_unknown_network_field(self) -> None:
        with pytest.raises(ConfigError, match="unknown fields \\['G_chh'\\]"):
            tiny(network=NETWORK | {"G_chh": 3})

    @pytest.mark.parametrize("extractor", [{"kind": "vgg"}, {}, {"kind": "small-resnet", "depth": 3}])
    def test_unknown_extractor(self, extractor: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="feature_extractor"):
            tiny(feature_extractor=extractor)

    @pytest.mark.parametrize(
        "options", [{"dtype": "float16"}, {"dtype": torch.int8}, {"device": "nowhere"}, {"device": 1.5}, {"device": ""}]
    )
    def test_placement(self, options: dict[str, Any], tmp_path: Path) -> None:
        tiny().save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=next(iter(options))):
            gt.load_generator(tmp_path, **options)

    def test_unknown_keyword(self, tmp_path: Path) -> None:
        tiny().save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=r"unknown option 'trunc'.*truncation"):
            gt.load_generator(tmp_path, trunc=0.5)


class TestSaving:
    """What was loaded is what is saved: the weights before folding."""

    def test_round_trip_keeps_bytes_and_fingerprint(self, tmp_path: Path) -> None:
        generator = tiny()
        generator.save_pretrained(tmp_path / "a")
        loaded = gt.ICGAN.from_pretrained(tmp_path / "a")
        loaded.save_pretrained(tmp_path / "b")
        assert loaded.fingerprint() == generator.fingerprint()
        assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
        assert torch.equal(loaded(photos(), torch.arange(4)), generator(photos(), torch.arange(4)))

    def test_options_replace_the_config(self, tmp_path: Path) -> None:
        tiny().save_pretrained(tmp_path)
        loaded = gt.ICGAN.from_pretrained(tmp_path, truncation=0.2)
        assert loaded.truncation == 0.2
        assert loaded.config["truncation"] == 0.2
        assert loaded.fingerprint() != gt.ICGAN.from_pretrained(tmp_path).fingerprint()

    def test_changed_weights_are_not_lost_silently(self, tmp_path: Path) -> None:
        generator = tiny()
        generator.network.linear_bias += 1
        with pytest.raises(WeightsError, match="changed after loading"):
            generator.save_pretrained(tmp_path)

    @pytest.mark.parametrize("part", ["network", "feature_extractor"])
    def test_diverged_weights_are_not_saved(self, part: str, tmp_path: Path) -> None:
        """NaN differs from NaN: the network seemed to be changed after loading."""
        tiny().save_pretrained(tmp_path / "before")
        generator, value = tiny(), float("nan" if part == "network" else "inf")
        if part == "network":
            state = {name: t.clone() for name, t in generator._released.items()}
            state["linear.weight"][0, 0] = value
            generator = gt.ICGAN.from_released(state, generator.architecture, generator.feature_extractor)
        else:
            generator.feature_extractor.stem[0].weight[0, 0, 0, 0] = value
        name = {"network": r"network\.linear\.weight", "feature_extractor": r"feature_extractor\.stem\.0\.weight"}[part]
        with pytest.raises(WeightsError, match=rf"1 of the \d+ weights hold NaN or infinity, such as {name}: the training"):
            generator.save_pretrained(tmp_path / "after")
        assert not (tmp_path / "after").exists()

    def test_weights_that_overflow_in_use_are_not_saved(self, tmp_path: Path) -> None:
        state = {name: t.clone() for name, t in tiny()._released.items()}
        state["linear.bias"][0] = 1e6
        generator = gt.ICGAN.from_released(state, tiny().architecture).to(torch.float16)
        with pytest.raises(WeightsError, match=r"network\.linear_bias holds NaN or infinity in torch\.float16, though"):
            generator.save_pretrained(tmp_path)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
    def test_the_slightest_training_is_a_change(self, dtype: torch.dtype, tmp_path: Path) -> None:
        generator = tiny().to(dtype)
        generator.network.linear_weight.mul_(1.002)
        for call in (generator.fingerprint, lambda: generator.save_pretrained(tmp_path)):
            with pytest.raises(WeightsError, match="changed after loading"):
                call()

    def test_weights_that_were_rounded_on_the_way_have_another_fingerprint(self) -> None:
        generator, features = tiny(feature_extractor=None), torch.eye(16)
        before, made = generator.fingerprint(), generator.sample({"features": features}, torch.arange(16))
        assert generator.to(torch.float64).to(torch.float32).fingerprint() == before
        assert generator.to(torch.bfloat16).to(torch.float32).fingerprint() != before
        assert not torch.equal(generator.sample({"features": features}, torch.arange(16)), made)

    def test_surrounding_defaults_change_no_untrained_weights(self) -> None:
        expected = tiny(feature_extractor=None).fingerprint()
        torch.set_default_dtype(torch.float64)
        try:
            generator, whole = tiny(feature_extractor=None), tiny()
        finally:
            torch.set_default_dtype(torch.float32)
        assert generator.fingerprint() == expected
        assert whole(photos(), torch.arange(4)).shape == (4, 3, 32, 32)

    @pytest.mark.parametrize("moves", [[torch.float64], [torch.bfloat16, torch.float32], [torch.float16, torch.float64]])
    def test_a_change_of_dtype_is_no_change_of_weights(self, moves: list[torch.dtype], tmp_path: Path) -> None:
        generator, original = tiny(feature_extractor=None), tiny(feature_extractor=None)
        for dtype in moves:
            generator.to(dtype)
        generator.save_pretrained(tmp_path)
        assert gt.ICGAN.from_pretrained(tmp_path).fingerprint() == original.fingerprint()

    def test_half_precision_file(self, tmp_path: Path) -> None:
        generator = tiny()
        generator.save_pretrained(tmp_path / "full")
        generator.save_pretrained(tmp_path / "half", dtype=torch.float16)
        sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
        assert sizes[1] < 0.6 * sizes[0]
        made = gt.ICGAN.from_pretrained(tmp_path / "half")(photos(), torch.arange(4))
        torch.testing.assert_close(made, generator(photos(), torch.arange(4)), atol=0.02, rtol=0)

    def test_copies_share_the_released_weights(self) -> None:
        generator = tiny()
        twin = copy.deepcopy(generator)
        assert twin._released is generator._released
        assert pickle.loads(pickle.dumps(generator)).fingerprint() == generator.fingerprint() == twin.fingerprint()
