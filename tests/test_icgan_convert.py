"""Conversion of released folders: every variant, and every way a folder can be wrong."""

from __future__ import annotations

import itertools
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from released import FOLDERS, SHARED, random_state, write_released
from safetensors.torch import load_file, save_file
from torchvision.models import resnet50

import gentransforms as gt
from gentransforms.errors import ConfigError, ConversionError
from gentransforms.generators.icgan.architecture import BigGANConfig
from gentransforms.generators.icgan.convert import convert_icgan
from gentransforms.generators.icgan.released import load_resnet50_features, read_released

SMALL = BigGANConfig(resolution=32, G_ch=4, dim_z=16, G_attn="16", shared_dim=4, shared_dim_feat=8, feature_dim=2048)


def swav_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Write a ResNet-50 as SwAV saves one, and return its torchvision state."""
    torch.manual_seed(0)
    model = resnet50(weights=None)
    state = {f"module.{name}": t for name, t in model.state_dict().items() if not name.startswith("fc.")}
    state |= {"module.projection_head.0.weight": torch.zeros(4, 2048), "module.prototypes.weight": torch.zeros(3, 4)}
    torch.save(state, path)
    return model.state_dict()


class TestConvert:
    """A released folder becomes one that loads."""

    @pytest.mark.parametrize(
        ("statistics", "class_cond", "hier", "prefix"),
        [*itertools.product(["plain", "mybn", "cross_replica"], [False, True], [True, False], [""]), ("plain", False, True, "module.")],
    )
    def test_every_variant(self, statistics: str, class_cond: bool, hier: bool, prefix: str, tmp_path: Path) -> None:
        fields = SMALL.to_dict() | {"statistics": statistics, "class_cond": class_cond, "hier": hier, "n_classes": 3 if class_cond else 0}
        config = BigGANConfig(**fields)
        state = random_state(config)
        folder = write_released(tmp_path / "released", config, state, prefix=prefix)
        convert_icgan(folder, tmp_path / "ours")
        saved = load_file(tmp_path / "ours" / "model.safetensors")
        assert {name.removeprefix("network."): t.shape for name, t in saved.items()} == {n: t.shape for n, t in state.items()}
        assert all(torch.equal(saved[f"network.{name}"], tensor) for name, tensor in state.items())  # as released
        generator = gt.load_generator(tmp_path / "ours")
        assert generator.config["network"] == fields
        condition = {"features": torch.nn.functional.normalize(torch.ones(2, 2048))}
        if class_cond:
            condition["labels"] = torch.tensor([0, 2])
        assert generator.sample(condition, torch.tensor([1, 2])).shape == (2, 3, 32, 32)

    @pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/parity/icgan is absent")
    @pytest.mark.parametrize("name", FOLDERS)
    def test_authors_folders(self, name: str, tmp_path: Path) -> None:
        convert_icgan(SHARED / name, tmp_path)
        expected = load_file(SHARED / name / "expected.safetensors")
        for dtype, key, bound in ((torch.float32, "output", 1e-5), (torch.float64, "output_float64", 1e-9)):
            generator = gt.ICGAN.from_pretrained(tmp_path, dtype=dtype)
            with torch.no_grad():
                found = generator.network(expected["z"], expected["instance_features"], expected.get("labels"))
            assert (found - expected[key]).abs().max().item() <= bound
        assert "cc-by-nc-4.0" in (tmp_path / "README.md").read_text()

    def test_the_card_is_that_of_the_release(self, tmp_path: Path) -> None:
        """In the clone of a new repository, whose card states another licence, and where another release was converted before."""
        first, second = (
            write_released(tmp_path / name, SMALL, random_state(SMALL, seed)) for seed, name in enumerate(("res128", "res256"))
        )
        (tmp_path / "ours").mkdir()
        card = tmp_path / "ours" / "README.md"
        card.write_text("---\nlicense: mit\n---\n")
        convert_icgan(first, tmp_path / "ours")
        card.write_text(card.read_text().replace("weights unchanged", "weights unchanged. My words"))
        convert_icgan(first, tmp_path / "ours")
        assert "My words" in card.read_text()
        for release in (first, second):
            convert_icgan(release, tmp_path / "ours")
            text = card.read_text()
            assert gt.load_generator(tmp_path / "ours").license == "cc-by-nc-4.0"
            assert "license: mit" not in text
            assert [line for line in text.splitlines() if line.startswith("# ")] == [f"# {release.name}"]
            assert "it may no longer hold" not in text

    def test_unused_class_table_is_kept(self, tmp_path: Path) -> None:
        config = BigGANConfig(**(SMALL.to_dict() | {"n_classes": 7}))
        folder = write_released(tmp_path / "released", config, random_state(config))
        assert convert_icgan(folder, tmp_path / "ours").architecture.n_classes == 7

    def test_the_better_of_two(self, tmp_path: Path) -> None:
        states = [random_state(SMALL, seed) for seed in (0, 1)]
        for number, fid in enumerate((20.0, 10.0)):
            write_released(tmp_path, SMALL, states[number], number=number, best_fid=fid)
        state, _ = read_released(tmp_path)
        assert torch.equal(state["linear.weight"], states[1]["linear.weight"])


class TestRefused:
    """A wrong folder is refused, with what is wrong."""

    def test_missing_extra_and_misshapen_keys_are_listed(self, tmp_path: Path) -> None:
        state = random_state(SMALL)
        del state["blocks.1.0.conv2.bias"]
        state["blocks.9.0.conv1.weight"] = torch.zeros(1)
        state["output_layer.2.bias"] = torch.zeros(4)
        with pytest.raises(ConversionError) as caught:
            convert_icgan(write_released(tmp_path / "r", SMALL, state), tmp_path / "ours")
        for part in (
            "missing blocks.1.0.conv2.bias", "unexpected blocks.9.0.conv1.weight", "output_layer.2.bias has shape (4,), expected (3,)",
        ):  # fmt: skip
            assert part in str(caught.value)
        assert not (tmp_path / "ours").exists()

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match="no state_dict_best"):
            read_released(tmp_path)

    def test_weights_absent(self, tmp_path: Path) -> None:
        (write_released(tmp_path, SMALL, random_state(SMALL)) / "G_ema_best0.pth").unlink()
        with pytest.raises(ConversionError, match=r"G_ema_best0\.pth is missing"):
            read_released(tmp_path)

    @pytest.mark.parametrize("name", ["state_dict_best0.pth", "G_ema_best0.pth"])
    @pytest.mark.parametrize("damage", ["cut", "empty", "text"])
    def test_damaged_file(self, name: str, damage: str, tmp_path: Path) -> None:
        path = write_released(tmp_path, SMALL, random_state(SMALL)) / name
        path.write_bytes({"cut": path.read_bytes()[: path.stat().st_size // 2], "empty": b"", "text": b"not a checkpoint"}[damage])
        with pytest.raises(ConversionError, match=name):
            read_released(tmp_path)

    def test_pickle_runs_nothing(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "executed"),)

        folder = write_released(tmp_path, SMALL, random_state(SMALL))
        torch.save({"config": {}, "best_FID": Evil()}, folder / "state_dict_best0.pth")
        with pytest.raises(ConversionError, match="weights alone"):
            read_released(folder)
        (folder / "state_dict_best0.pth").write_bytes(pickle.dumps({"config": Evil()}, protocol=2))
        with pytest.raises(ConversionError):
            read_released(folder)
        assert not (tmp_path / "executed").exists()

    def test_only_numpy_scalars_are_allowed(self, tmp_path: Path) -> None:
        folder = write_released(tmp_path, SMALL, random_state(SMALL))
        torch.save({"config": {}, "best_FID": numpy.zeros(3)}, folder / "state_dict_best0.pth")
        with pytest.raises(ConversionError):
            read_released(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"instance_cond": False}, "instance_cond=False"),
            ({"G_param": "WN"}, "G_param='WN'"),
            ({"resolution": 48}, "resolution=48"),
            ({"norm_style": "in"}, "norm_style='in'"),
            ({"G_shared": False}, "G_shared=False"),
        ],
    )
    def test_config_the_network_does_not_compute(self, change: dict[str, Any], message: str, tmp_path: Path) -> None:
        folder = write_released(tmp_path, SMALL, random_state(SMALL))
        record = torch.load(folder / "state_dict_best0.pth", weights_only=False)
        record["config"] |= change
        torch.save(record, folder / "state_dict_best0.pth")
        with pytest.raises(ConfigError, match=message):
            read_released(folder)

    def test_config_of_something_else(self, tmp_path: Path) -> None:
        folder = write_released(tmp_path, SMALL, random_state(SMALL))
        torch.save({"config": {"lr": 1}}, folder / "state_dict_best0.pth")
        with pytest.raises(ConfigError, match="lacks G_ch"):
            read_released(folder)
        torch.save({"epoch": 1}, folder / "state_dict_best0.pth")
        with pytest.raises(ConversionError, match="no 'config'"):
            read_released(folder)


class TestFeatures:
    """The separate feature extractor."""

    @pytest.mark.slow
    def test_swav_layout(self, tmp_path: Path) -> None:
        state = swav_checkpoint(tmp_path / "swav.pth.tar")
        extractor = load_resnet50_features(tmp_path / "swav.pth.tar")
        assert torch.equal(extractor.backbone.layer4[2].conv3.weight, state["layer4.2.conv3.weight"])

    def test_torchvision_layout_and_safetensors(self, tmp_path: Path) -> None:
        state = swav_checkpoint(tmp_path / "swav.pth.tar")
        save_file(state, tmp_path / "resnet50.safetensors")
        extractor = load_resnet50_features(tmp_path / "resnet50.safetensors")
        assert torch.equal(extractor.backbone.conv1.weight, state["conv1.weight"])

    @pytest.mark.slow
    def test_converted_with_and_added_later_agree(self, tmp_path: Path) -> None:
        swav_checkpoint(tmp_path / "swav.pth.tar")
        folder = write_released(tmp_path / "r", SMALL, random_state(SMALL))
        convert_icgan(folder, tmp_path / "with", features=tmp_path / "swav.pth.tar")
        convert_icgan(folder, tmp_path / "without")
        photos = torch.rand(1, 3, 40, 32, generator=torch.Generator().manual_seed(0))
        one = gt.ICGAN.from_pretrained(tmp_path / "with")
        other = gt.ICGAN.from_pretrained(tmp_path / "without", features=tmp_path / "swav.pth.tar")
        assert json.loads((tmp_path / "with/config.json").read_text())["config"]["feature_extractor"] == {"kind": "resnet50"}
        assert torch.equal(one(photos, torch.tensor([3])), other(photos, torch.tensor([3])))
        assert one.fingerprint() == other.fingerprint()

    def test_not_a_resnet50(self, tmp_path: Path) -> None:
        torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
        with pytest.raises(ConversionError, match="not a ResNet-50"):
            load_resnet50_features(tmp_path / "other.pth")

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match=r"none\.pth"):
            load_resnet50_features(tmp_path / "none.pth")
