"""Saving a generator and loading it again: what is kept, what is refused and how, and the model card."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import ConfigError, GentransformsError, WeightsError
from gentransforms.hub import models as hub
from gentransforms.hub.client import sha256
from gentransforms.seeding import sample_noise
from gentransforms.testing import FakeGenerator

TINY: dict[str, Any] = {
    "network": {"resolution": 32, "G_ch": 8, "dim_z": 16, "shared_dim_feat": 8, "feature_dim": 16, "G_attn": "0"},
    "feature_extractor": {"kind": "small-resnet", "widths": [8, 16], "blocks": [1, 1]},
}
LOADERS = [gt.load_generator, gt.ICGAN.from_pretrained]


class Tinted(gt.ImageGenerator):
    """A user's generator: the source's mean colour, tinted by a learned colour, with noise."""

    preserves_geometry = False

    def __init__(self, size: int = 8, *, strength: float = 0.1, **names: str) -> None:
        super().__init__()
        self.image_size = (size, size)
        self.strength, self.names = strength, names
        self.tint = torch.nn.Parameter(torch.full((3, 1, 1), 0.5))
        self.register_buffer("count", torch.tensor(3))

    def encode(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"mean": images.mean((2, 3), keepdim=True)}

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        noise = sample_noise(seeds, (3, *self.image_size)).to(self.device)
        return ((condition["mean"] + self.tint) / 2 + self.strength * noise).clamp(0, 1).float()


@pytest.fixture(scope="module")
def generator() -> gt.ICGAN:
    return gt.ICGAN(**TINY)


@pytest.fixture(scope="module")
def original(generator: gt.ICGAN, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("original")
    generator.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(original: dict[str, bytes], tmp_path: Path) -> Path:
    """A saved generator that a test may damage."""
    for name, content in original.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def describe(folder: Path, **changes: Any) -> None:
    """Change entries of config.json; its SHA-256 becomes that of the weights as they are."""
    path = folder / hub.CONFIG_FILE
    changes = {"weights_sha256": sha256(folder / hub.WEIGHTS_FILE)} | changes
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path, error: type[GentransformsError], *words: str) -> None:
    """Both ways to load the folder fail, and the message names it."""
    for load in LOADERS:
        with pytest.raises(error) as caught:
            load(folder)
        assert all(word in str(caught.value) for word in (str(folder), *words)), str(caught.value)


class TestRoundTrip:
    """save_pretrained, then from_pretrained."""

    @pytest.mark.parametrize("load", LOADERS)
    def test_same_images_and_fingerprint(self, generator: gt.ICGAN, folder: Path, load: Any) -> None:
        loaded = load(folder)
        images, seeds = torch.rand(3, 3, 32, 32), torch.arange(3)
        assert type(loaded) is gt.ICGAN
        assert not loaded.training
        assert torch.equal(loaded(images, seeds), generator(images, seeds))
        assert (loaded.fingerprint(), loaded.config) == (generator.fingerprint(), generator.config)

    def test_files(self, folder: Path) -> None:
        description = json.loads((folder / "config.json").read_text())
        assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        assert {k: description[k] for k in ("format", "format_version", "class")} == {
            "format": "gentransforms", "format_version": 1, "class": "ICGAN",
        }  # fmt: skip
        assert description["weights_sha256"] == sha256(folder / "model.safetensors")

    def test_files_are_as_readable_as_any(self, generator: gt.ICGAN, tmp_path: Path) -> None:
        generator.save_pretrained(tmp_path / "saved")
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()}
        assert set(modes.values()) == {modes["config.json"]}

    def test_options_replace_the_config(self, folder: Path) -> None:
        loaded = gt.load_generator(folder, truncation=0.4, dtype=torch.float64, device="cpu")
        assert (loaded.truncation, loaded.dtype) == (0.4, torch.float64)

    def test_float16_file(self, generator: gt.ICGAN, original: dict[str, bytes], tmp_path: Path) -> None:
        generator.save_pretrained(tmp_path, dtype=torch.float16)
        saved = load_file(tmp_path / "model.safetensors")
        assert {t.dtype for t in saved.values() if t.is_floating_point()} == {torch.float16}
        assert (tmp_path / "model.safetensors").stat().st_size < 0.6 * len(original["model.safetensors"])
        loaded = gt.load_generator(tmp_path)
        assert loaded.dtype == torch.float32
        images, seeds = torch.rand(3, 3, 32, 32), torch.arange(3)
        assert (loaded(images, seeds) - generator(images, seeds)).abs().max() < 0.02
        assert generator.dtype == torch.float32  # saving changes nothing

    def test_user_class(self, tmp_path: Path) -> None:
        generator = Tinted(6, strength=0.2, owner="me")
        torch.nn.init.constant_(generator.tint, 0.25)
        generator.save_pretrained(tmp_path / "tinted")
        for load in (gt.load_generator, Tinted.from_pretrained):
            loaded = load(tmp_path / "tinted")
            assert type(loaded) is Tinted
            assert loaded.config == {"size": 6, "strength": 0.2, "owner": "me"}
            assert loaded.fingerprint() == generator.fingerprint()
            images, seeds = torch.rand(2, 3, 9, 9), torch.arange(2)
            assert torch.equal(loaded(images, seeds), generator(images, seeds))

    def test_a_trained_user_class_has_another_fingerprint(self) -> None:
        generator, other = Tinted(), Tinted()
        assert generator.fingerprint() == other.fingerprint()
        torch.nn.init.zeros_(other.tint)
        assert generator.fingerprint() != other.fingerprint()

    @pytest.mark.usefixtures("no_repository")
    def test_config_that_json_cannot_hold(self, tmp_path: Path) -> None:
        generator = Tinted(size=torch.tensor(8))
        for save in (lambda: generator.save_pretrained(tmp_path / "out"), lambda: generator.push_to_hub("org/name")):
            with pytest.raises(ConfigError, match="cannot be written as JSON"):
                save()
        assert not (tmp_path / "out").exists()

    def test_transform_from_pretrained(self, folder: Path) -> None:
        augment = gt.GenerativeAugment.from_pretrained(folder, p=1.0, truncation=0.4)
        assert augment.generator.truncation == 0.4
        assert augment(torch.rand(2, 3, 40, 40)).shape == (2, 3, 40, 40)


class TestDamage:
    """Files that are missing, damaged, or of another kind."""

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_missing(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        refused(folder, WeightsError, f"no file {name!r}", "save_pretrained")

    @pytest.mark.parametrize("size", [0, 5, 1000, -1])
    def test_truncated_weights(self, folder: Path, original: dict[str, bytes], size: int) -> None:
        (folder / "model.safetensors").write_bytes(original["model.safetensors"][:size])
        refused(folder, WeightsError, "model.safetensors is damaged", "SHA-256")
        describe(folder)  # and with a config that describes the damaged file
        refused(folder, WeightsError, "not a complete safetensors file")

    def test_one_changed_byte(self, folder: Path, original: dict[str, bytes]) -> None:
        content = bytearray(original["model.safetensors"])
        content[-1] ^= 1
        (folder / "model.safetensors").write_bytes(content)
        refused(folder, WeightsError, "SHA-256")

    def test_pickle_in_disguise_runs_nothing(self, folder: Path, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "exploded",)

        for content in (pickle.dumps(Bomb()), pickle.dumps({"network.weight": Bomb()})):
            (folder / "model.safetensors").write_bytes(content)
            describe(folder)
            refused(folder, WeightsError, "not a complete safetensors file")
        torch.save({"a": Bomb()}, folder / "model.safetensors")
        describe(folder)
        refused(folder, WeightsError, "not a complete safetensors file")
        assert not (tmp_path / "exploded").exists()

    def test_only_safetensors_is_read(self, folder: Path) -> None:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        refused(folder, WeightsError, "no file 'model.safetensors'")

    @pytest.mark.parametrize("text", ["", "{", "not json", '{"a": 1,}'])
    def test_config_that_is_no_json(self, folder: Path, text: str) -> None:
        (folder / "config.json").write_text(text)
        refused(folder, WeightsError, "config.json is not JSON")

    def test_config_that_is_no_text(self, folder: Path) -> None:
        (folder / "config.json").write_bytes(b"\xff\xfe\x00")
        refused(folder, WeightsError, "config.json is not JSON")

    @pytest.mark.parametrize(("text", "kind"), [("[]", "a list"), ('"a"', "a str"), ("1", "an int"), ("null", "a NoneType")])
    def test_config_that_is_no_object(self, folder: Path, text: str, kind: str) -> None:
        (folder / "config.json").write_text(text)
        refused(folder, WeightsError, f"config.json holds {kind}: expected an object")

    @pytest.mark.parametrize("description", [{}, {"model_type": "bert"}, {"_class_name": "UNet2DModel"}, {"format": "gentransforms"}])
    def test_config_of_another_library(self, folder: Path, description: dict[str, str]) -> None:
        (folder / "config.json").write_text(json.dumps(description))
        refused(folder, WeightsError, "config.json is not one of gentransforms")

    def test_newer_format(self, folder: Path) -> None:
        describe(folder, format_version=2)
        refused(folder, WeightsError, "format version 2 is newer than this library reads (1)", "upgrade")

    @pytest.mark.parametrize(
        "changes", [{"format_version": "1"}, {"class": ["ICGAN"]}, {"config": [1]}, {"config": None}, {"weights_sha256": 3}]
    )
    def test_entries_of_another_type(self, folder: Path, changes: dict[str, Any]) -> None:
        describe(folder, **changes)
        refused(folder, GentransformsError)

    def test_unknown_class(self, folder: Path) -> None:
        describe(folder, **{"class": "Unheard"})
        with pytest.raises(WeightsError, match=r"holds the class 'Unheard', which is not known here: import the module .*ICGAN.*Tinted"):
            gt.load_generator(folder)
        with pytest.raises(WeightsError, match="holds an Unheard, not an ICGAN"):
            gt.ICGAN.from_pretrained(folder)

    def test_another_class(self, folder: Path) -> None:
        for cls in (Tinted, FakeGenerator, gt.ImageGenerator):
            with pytest.raises(WeightsError, match=f"holds an ICGAN, not an? {cls.__name__}: use gentransforms.load_generator"):
                cls.from_pretrained(folder)


class TestWeightsOfAnotherConfig:
    """Weights and config that are whole, and do not belong together."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"network.shared_feat.weight": None}, "missing shared_feat.weight"),
            ({"network.extra": torch.zeros(2)}, "unexpected extra"),
            ({"network.shared_feat.weight": torch.zeros(3, 3)}, "shared_feat.weight has shape (3, 3), expected (8, 16)"),
            ({"elsewhere": torch.zeros(2)}, "elsewhere"),
            ({"feature_extractor.extra": torch.zeros(2)}, "extra"),
        ],
    )
    def test_tensors(self, folder: Path, change: dict[str, Tensor | None], words: str) -> None:
        weights = {name: t for name, t in (load_file(folder / "model.safetensors") | change).items() if t is not None}
        save_file(weights, folder / "model.safetensors")
        describe(folder)
        refused(folder, WeightsError, words)

    def test_missing_extractor(self, folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file({name: t for name, t in weights.items() if name.startswith("network.")}, folder / "model.safetensors")
        describe(folder)
        refused(folder, WeightsError, "do not fit the config")

    def test_larger_network(self, folder: Path) -> None:
        config = {**TINY, "network": TINY["network"] | {"G_ch": 16}, "truncation": 0.7}
        describe(folder, config=config)
        refused(folder, WeightsError, "keys do not fit the architecture", "has shape")

    def test_unknown_entry_of_the_config(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())["config"]
        describe(folder, config=config | {"colour": 1})
        refused(folder, ConfigError, "unknown entry 'colour' in the config of ICGAN")

    def test_missing_entry_of_the_config(self, folder: Path) -> None:
        describe(folder, config={"truncation": 0.7})
        refused(folder, GentransformsError, "network")

    @pytest.mark.parametrize(
        "entry", [{"feature_extractor": 3}, {"network": 3}, {"network": {"resolution": []}}, {"network": {"BN_eps": "x"}}]
    )
    def test_entry_of_another_type(self, folder: Path, entry: dict[str, Any]) -> None:
        if isinstance(entry.get("network"), dict):
            entry = {"network": TINY["network"] | entry["network"]}
        describe(folder, config=TINY | {"truncation": 0.7} | entry)
        refused(folder, GentransformsError, *entry)

    def test_unknown_option(self, folder: Path) -> None:
        for load in LOADERS:
            with pytest.raises(
                ConfigError, match=r"unknown option 'truncate' of ICGAN: expected one of feature_extractor, network, truncation"
            ):
                load(folder, truncate=0.5)

    def test_user_class(self, tmp_path: Path) -> None:
        FakeGenerator(size=6).save_pretrained(tmp_path)
        save_file({"weakness": torch.zeros(1)}, tmp_path / "model.safetensors")
        describe(tmp_path)
        with pytest.raises(WeightsError, match=f"(?s){tmp_path}: the weights do not fit the config of FakeGenerator: .*strength.*weakness"):
            gt.load_generator(tmp_path)


class TestModelCard:
    """README.md beside the weights."""

    def card(self, folder: Path, **sections: str) -> ModelCard:
        Tinted(6).save_pretrained(folder, card=sections)
        return ModelCard.load(folder / "README.md")

    def test_metadata(self, tmp_path: Path) -> None:
        data = self.card(tmp_path, license="mit").data
        assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "gentransforms", "image-to-image")
        assert data.tags == ["data-augmentation", "self-supervised-learning", "tinted"]

    def test_says_what_it_was_told(self, tmp_path: Path) -> None:
        told = {
            "title": "Tinted photos", "description": "Tints photos.", "training_data": "Ten photos of mine.", "license": "mit",
            "intended_use": "None at all.", "limits": "It is very small.", "evaluation": "FID 400.",
        }  # fmt: skip
        text = self.card(tmp_path, **told).text
        headings = re.findall(r"^##? (.*)$", text, re.MULTILINE)
        assert headings == ["Tinted photos", "How to load", "Training data", "Evaluation", "Intended use", "Limits"]
        assert all(line in text for line in told.values())
        assert "Images: 6 x 6 pixels; keeps the source's layout: no" in text
        assert "Licence: mit" in text

    def test_says_what_it_was_not_told(self, tmp_path: Path) -> None:
        card = self.card(tmp_path)
        assert card.data.license is None
        assert card.text.count("Not stated by whoever saved these weights.") == 3  # licence, training data, evaluation
        assert "evaluation sets" in card.text
        assert "Augmenting training images" in card.text

    def test_how_to_load_works(self, tmp_path: Path) -> None:
        code = re.search(r"```python\n(.*?)```", self.card(tmp_path).text, re.DOTALL)
        assert code is not None
        names: dict[str, Any] = {}
        exec(code[1].replace("<this repository or folder>", str(tmp_path)), names)
        assert type(names["augment"].generator) is Tinted

    @pytest.mark.usefixtures("no_repository")
    def test_unknown_section(self, tmp_path: Path) -> None:
        for save in (lambda: self.card(tmp_path, author="me"), lambda: Tinted(6).push_to_hub("org/name", card={"author": "me"})):
            with pytest.raises(ValueError, match=r"card: unknown sections \['author'\], expected title, description"):
                save()
