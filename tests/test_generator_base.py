"""What every generator has from its base class: config, device, dtype, fingerprint."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.generators.placement import check_placement
from gentransforms.testing import FakeGenerator


class Minimal(gt.ImageGenerator):
    """What DESIGN asks of a subclass, and nothing more."""

    image_size, preserves_geometry = (4, 6), False

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        return {"mean": images.mean((1, 2, 3))}

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        return condition["mean"].view(-1, 1, 1, 1).expand(-1, 3, 4, 6).float()


class Configured(Minimal):
    def __init__(self, width: int, *layers: int, scale: float = 0.5, names: Any = None, **options: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2)
        self.scale = scale


class Labelled(Minimal):
    inputs = ("labels",)

    def encode(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"mean": labels.float()}


class Settable(Minimal):
    def __init__(self, strength: float = 0.1, size: int = 8, table: Any = None, widths: Any = (1,)) -> None:
        super().__init__()
        self.strength, self.size, self.table, self.widths = strength, (size, size), table, widths
        if isinstance(widths, list):
            widths.insert(0, 3)


class Cloning(Minimal):
    def __init__(self, table: Any) -> None:
        super().__init__()
        self.table = copy.deepcopy(table)


class Positional(Minimal):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = sizes


class TestInterface:
    def test_two_methods_and_two_attributes_are_all_that_is_required(self) -> None:
        generator = Minimal()
        images = torch.rand(3, 3, 4, 6)
        made = generator(images, torch.arange(3))
        torch.testing.assert_close(made[:, 0, 0, 0], images.mean((1, 2, 3)))
        result = gt.GenerativeAugment(generator, 1.0)(images)
        torch.testing.assert_close(result[:, 0, 0, 0], images.mean((1, 2, 3)))

    @pytest.mark.parametrize("missing", ["encode", "sample"])
    def test_without_either_method_it_is_abstract(self, missing: str) -> None:
        methods = {name: vars(Minimal)[name] for name in ("encode", "sample") if name != missing}
        incomplete = type("Incomplete", (gt.ImageGenerator,), methods)
        with pytest.raises(TypeError, match=missing):
            incomplete()

    def test_calling_is_encoding_and_sampling(self) -> None:
        generator, images, seeds = FakeGenerator(), torch.rand(3, 3, 8, 8), torch.arange(3)
        assert generator(images, seeds).equal(generator.sample(generator.encode(images), seeds))

    def test_calling_passes_the_inputs_to_encode(self) -> None:
        made = Labelled()(torch.zeros(2, 3, 8, 8), torch.arange(2), labels=torch.tensor([0.25, 0.5]))
        assert made[:, 0, 0, 0].tolist() == [0.25, 0.5]

    def test_needs_nothing_beside_the_image_unless_it_says_so(self) -> None:
        assert gt.ImageGenerator.inputs == ()
        assert Minimal().inputs == ()

    def test_is_a_module(self) -> None:
        assert isinstance(Minimal(), nn.Module)

    def test_a_condition_serves_many_variants(self) -> None:
        generator = FakeGenerator()
        condition = generator.encode(torch.rand(2, 3, 8, 8))
        variants = [generator.sample(condition, torch.tensor([seed, seed + 1])) for seed in (1, 10, 1)]
        assert variants[0].equal(variants[2])
        assert not variants[0].equal(variants[1])
        assert generator.encoded == 2


class TestConfig:
    def test_is_the_constructors_arguments(self) -> None:
        assert FakeGenerator().config == {"size": 16, "preserves_geometry": False}
        assert FakeGenerator(8, preserves_geometry=True).config == {"size": 8, "preserves_geometry": True}
        assert Minimal().config == {}

    def test_of_every_kind_of_argument(self) -> None:
        generator = Configured(3, scale=0.25, depth=7)
        assert generator.config == {"width": 3, "scale": 0.25, "names": None, "depth": 7}
        assert Configured(**generator.config).config == generator.config

    def test_builds_the_generator_again(self) -> None:
        generator = FakeGenerator(9, True)
        again = type(generator)(**json.loads(json.dumps(generator.config)))
        assert (again.image_size, again.preserves_geometry) == ((9, 9), True)

    def test_belongs_to_the_instance(self) -> None:
        one, other = FakeGenerator(8), FakeGenerator(9)
        one.config["size"] = 1
        assert (one.config["size"], other.config["size"]) == (8, 9)

    @pytest.mark.parametrize(
        "copied", [copy.copy, copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))], ids=["copy", "deepcopy", "pickle"]
    )
    def test_goes_with_copies(self, copied: Any) -> None:
        for generator in (FakeGenerator(9), Configured(3, scale=0.25)):
            assert copied(generator).config == generator.config
            assert copied(generator).fingerprint() == generator.fingerprint()

    def test_follows_attributes_that_hold_an_argument(self, tmp_path: Path) -> None:
        generator = Settable(strength=0.25)
        before = generator.fingerprint()
        assert generator.config == {"strength": 0.25, "size": 8, "table": None, "widths": (1,)}
        generator.strength = 0.5
        for one in (generator, copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
            assert one.config["strength"] == 0.5
            assert one.fingerprint() != before
        generator.save_pretrained(tmp_path)
        assert gt.load_generator(tmp_path).strength == 0.5
        generator.strength = 0.25
        assert generator.fingerprint() == before

    def test_takes_no_attribute_of_another_meaning_for_an_argument(self) -> None:
        given = [4]
        generator = Settable(widths=given)  # which changes its list, and makes a pair of its size
        assert (generator.size, generator.widths) == ((8, 8), [3, 4])
        assert (generator.config["size"], generator.config["widths"]) == (8, [4])

    @pytest.mark.parametrize("table", [torch.ones(2), [torch.ones(2)], {"a": (torch.ones(2),)}], ids=["tensor", "list", "dict"])
    def test_compares_no_tensors(self, table: Any) -> None:
        """Whose comparison is no truth value."""
        assert Cloning(table).config.keys() == {"table"}

    def test_what_json_would_change_is_not_saved(self, tmp_path: Path) -> None:
        for table in ({1: "a"}, {0: "a"}, {"a": [{2: "b"}]}):
            with pytest.raises(ConfigError, match="keys of str only"):
                Settable(table=table).save_pretrained(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_several_positional_arguments(self, tmp_path: Path) -> None:
        assert Positional(1, 2).fingerprint() != Positional(5).fingerprint()
        with pytest.raises(ConfigError, match=r"\*sizes=\(1, 2\).*take one argument, a list"):
            Positional(1, 2).save_pretrained(tmp_path)
        Positional().save_pretrained(tmp_path)
        assert gt.load_generator(tmp_path).sizes == ()

    def test_signature_is_the_constructors(self) -> None:
        assert list(inspect.signature(Settable).parameters) == ["strength", "size", "table", "widths"]

    def test_a_wrong_call_fails_as_python_has_it(self) -> None:
        with pytest.raises(TypeError, match="width"):
            Configured()
        with pytest.raises(TypeError, match="colour"):
            FakeGenerator(colour=1)


class TestDeviceAndDtype:
    def test_of_one_without_weights(self) -> None:
        assert Minimal().device == torch.device("cpu")
        assert Minimal().dtype == torch.float32

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_are_those_of_its_weights(self, dtype: torch.dtype) -> None:
        assert FakeGenerator().to(dtype).dtype == dtype
        assert FakeGenerator().to("meta").device.type == "meta"

    def test_of_one_with_buffers_alone(self) -> None:
        generator = Minimal()
        generator.register_buffer("steps", torch.zeros(2, dtype=torch.int64, device="meta"))
        assert generator.device.type == "meta"
        assert generator.dtype == torch.float32  # whole numbers are no weights
        generator.register_buffer("scale", torch.zeros(2, dtype=torch.float64, device="meta"))
        assert generator.dtype == torch.float64


class TestSaveAgain:
    """`save_pretrained` into a folder that holds an earlier save."""

    def test_what_links_point_to_stays(self, tmp_path: Path) -> None:
        blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"  # as in the Hub's cache
        FakeGenerator(7).save_pretrained(blobs)
        before = {path.name: path.read_bytes() for path in blobs.iterdir()}
        folder.mkdir()
        for name in before:
            (folder / name).symlink_to(blobs / name)
        FakeGenerator(9).save_pretrained(folder, card={"title": "Another"})
        assert {path.name: path.read_bytes() for path in blobs.iterdir()} == before
        assert FakeGenerator.from_pretrained(folder).image_size == (9, 9)

    def test_a_failure_leaves_the_earlier_save(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        FakeGenerator(7).save_pretrained(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            FakeGenerator(9).save_pretrained(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class TestFingerprint:
    def test_is_32_hexadecimal_digits(self) -> None:
        fingerprint = FakeGenerator().fingerprint()
        assert len(fingerprint) == 32
        assert set(fingerprint) <= set(string.hexdigits.lower())

    def test_the_same_generator_has_the_same(self) -> None:
        assert FakeGenerator(8).fingerprint() == FakeGenerator(8).fingerprint()
        generator = FakeGenerator()
        before = generator.fingerprint()
        generator(torch.rand(2, 3, 8, 8), torch.arange(2))
        gt.GenerativeAugment(generator)
        assert generator.fingerprint() == before

    def test_pinned(self) -> None:
        # Banks hold it: another value for the same generator makes every bank refuse to go on.
        assert FakeGenerator(7).fingerprint() == "0dab35bc8b5f31407c56b07e50fb7a4d"

    def test_covers_class_config_dtype_and_weights(self) -> None:
        class Another(FakeGenerator):
            pass

        changed = FakeGenerator()
        with torch.no_grad():
            changed.strength.add_(1e-6)
        several = [FakeGenerator(), FakeGenerator(8), FakeGenerator(preserves_geometry=True), Another(), FakeGenerator().half(), changed]
        assert len({generator.fingerprint() for generator in several}) == len(several)

    def test_covers_names_and_shapes(self) -> None:
        def of(**weights: Tensor) -> str:
            generator = Minimal()
            for name, weight in weights.items():
                generator.register_buffer(name, weight)
            return generator.fingerprint()

        weights = torch.arange(6.0)
        several = [
            of(a=weights),
            of(b=weights),
            of(a=weights.view(2, 3)),
            of(a=weights[:3], b=weights[3:]),
            of(a=weights[:4], b=weights[4:]),
        ]
        assert len(set(several)) == len(several)
        assert of(a=weights, b=weights + 1) == of(b=weights + 1, a=weights)

    def test_of_strided_and_half_precision_weights(self) -> None:
        def of(weight: Tensor) -> str:
            generator = Minimal()
            generator.register_buffer("a", weight)
            return generator.fingerprint()

        weight = torch.rand(4, 6)
        assert of(weight.t()) == of(weight.t().contiguous())
        assert of(weight.bfloat16()) != of(weight.half())

    def test_a_config_that_is_no_json_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="cannot be written as JSON"):
            _ = Configured(3, names=object()).fingerprint()


class TestPlacement:
    def test_a_number_is_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []

        def empty(*_: Any, device: torch.device) -> None:
            asked.append(device)

        monkeypatch.setattr(torch, "empty", empty)
        assert check_placement(0, None) == torch.device(0) == asked[0]
        assert check_placement(None, None) == torch.device("cpu") == asked[1]
