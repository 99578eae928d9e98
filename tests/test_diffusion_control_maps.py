"""Control maps that come beside the images: from tensors, from the transform's inputs, and from files into a bank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import tiny_diffusion as tiny
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

import gentransforms as gt
from gentransforms.errors import ConfigError, MissingInputError
from gentransforms.testing import check_generator

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = torch.tensor([3, 4])


def same(images: Tensor) -> Tensor:
    return images


same.version = "1"  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    base = tiny.stable_diffusion()
    return base, tiny.controlnet(base.unet)


@pytest.fixture(scope="module")
def generator(parts: tuple[Any, Any]) -> gt.ControlNetVariation:
    return gt.ControlNetVariation.from_pipeline(parts[0], controlnet=parts[1], condition="maps", num_inference_steps=1)


def pictures(count: int = 2, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


class TestMaps:
    def test_are_what_the_controlnet_is_shown(self, parts: tuple[Any, Any], generator: gt.ControlNetVariation) -> None:
        maps = pictures()
        by_function = gt.ControlNetVariation.from_pipeline(parts[0], controlnet=parts[1], condition=same, num_inference_steps=1)
        expected = by_function(maps / 255, SEEDS)
        made = generator(torch.rand(2, 3, 32, 32), SEEDS, control_maps=maps)
        assert (made - expected).abs().max() < 1e-4
        assert torch.equal(generator(torch.rand(2, 3, 32, 32), SEEDS, control_maps=maps / 255), made)
        assert torch.equal(generator(torch.rand(2, 3, 32, 32), SEEDS, control_maps=list(maps)), made)

    def test_of_other_sizes_and_one_channel(self, generator: gt.ControlNetVariation) -> None:
        maps = [torch.rand(1, 48, 20), torch.rand(3, 16, 16)]
        condition = generator.encode(torch.rand(2, 3, 32, 32), control_maps=maps)
        assert condition["control_0"].shape == (2, 3, 32, 32)
        assert torch.equal(condition["control_0"][0, 0], condition["control_0"][0, 2])

    def test_as_arrays_and_pictures(self, generator: gt.ControlNetVariation) -> None:
        maps, images = pictures(), torch.rand(2, 3, 32, 32)
        expected = generator.encode(images, control_maps=maps)["control_0"]
        for given in (maps.numpy(), [m.numpy() for m in maps], tuple(TF.to_pil_image(m) for m in maps)):
            assert torch.equal(generator.encode(images, control_maps=given)["control_0"], expected)
            augment = gt.GenerativeAugment(generator, p=1.0, inputs_getter=lambda _, given=given: {"control_maps": given})
            assert augment(images).shape == images.shape

    @pytest.mark.slow
    def test_the_contract(self, generator: gt.ControlNetVariation) -> None:
        check_generator(generator, control_maps=torch.rand(4, 3, 32, 32), prompts=["a", "b", "c", "d"])

    def test_through_the_transform(self, generator: gt.ControlNetVariation) -> None:
        augment = gt.GenerativeAugment(generator, p=1.0, inputs_getter=lambda sample: {"control_maps": sample["map"]})
        assert augment({"image": pictures(), "map": torch.rand(2, 3, 32, 32)})["image"].shape == (2, 3, 32, 32)

    def test_missing(self, generator: gt.ControlNetVariation) -> None:
        assert generator.required_inputs == ("control_maps",)
        with pytest.raises(MissingInputError, match=r"control_maps are missing.*inputs_getter"):
            generator.encode(torch.rand(1, 3, 32, 32))

    @pytest.mark.parametrize(
        ("maps", "message"),
        [
            (torch.rand(3, 3, 32, 32), r"\b3 entries: expected 2\b"),
            (torch.rand(2, 4, 32, 32), r"\(2, 4, 32, 32\).*1 or 3"),
            (torch.zeros(2, 3, 32, 32, dtype=torch.int64), r"int64.*uint8"),
            (torch.rand(2, 3, 32, 32) * 255, r"expected \[0, 1\].*255"),
            ([None, None], r"control_maps holds a NoneType"),
            ([PIL.Image.new("RGBA", (8, 8))] * 2, r"control_maps: PIL image in mode 'RGBA'.*convert"),
            (PIL.Image.new("RGB", (8, 8)), r"control_maps is an Image: expected"),
        ],
    )
    def test_of_other_kinds(self, generator: gt.ControlNetVariation, maps: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            generator.encode(torch.rand(2, 3, 32, 32), control_maps=maps)

    def test_twice(self, parts: tuple[Any, Any]) -> None:
        with pytest.raises(ConfigError, match="'maps' is in it twice"):
            gt.ControlNetVariation.from_pipeline(parts[0], controlnet=[parts[1]] * 2, condition=["maps", "maps"])


class TestBanks:
    def test_from_files(self, tmp_path: Path, generator: gt.ControlNetVariation) -> None:
        (tmp_path / "photos").mkdir()
        photos, maps = pictures(3), pictures(3, 40)
        lines = []
        for i in range(3):
            TF.to_pil_image(photos[i]).save(tmp_path / "photos" / f"{i}.png")
            (tmp_path / "photos" / "maps").mkdir(exist_ok=True)
            TF.to_pil_image(maps[i]).save(tmp_path / "photos" / "maps" / f"m{i}.png")
            lines.append(json.dumps({"file_name": f"{i}.png", "control_map": f"maps/m{i}.png"}))
        (tmp_path / "photos" / "metadata.jsonl").write_text("\n".join(lines))
        self.check(tmp_path / "photos", tmp_path / "bank", generator, photos, maps)

    def test_from_a_map_style_data_set(self, tmp_path: Path, generator: gt.ControlNetVariation) -> None:
        photos, maps = pictures(3), pictures(3, 40)
        pil: list[PIL.Image.Image] = [TF.to_pil_image(m) for m in maps]
        data = [{"image": photos[i], "control_map": pil[i], "key": f"{i}.png"} for i in range(3)]
        self.check(data, tmp_path / "bank", generator, photos, maps)

    def check(self, source: Any, path: Path, generator: gt.ControlNetVariation, photos: Tensor, maps: Tensor) -> None:
        gt.generate_bank(source, path, generator, variants=1, base_seed=5, image_format="png", progress=False)
        bank = gt.Bank.open(path)
        keys = list(bank.keys)
        made = generator(photos / 255, gt.derive_seeds(5, keys, [0] * 3), control_maps=maps)
        found = torch.as_tensor(bank.read(keys, [0] * 3)) / 255
        assert (found - made).abs().max() < 0.01


def test_a_function_with_a_version_fills_a_bank(tmp_path: Path, parts: tuple[Any, Any]) -> None:
    generator = gt.ControlNetVariation.from_pipeline(parts[0], controlnet=parts[1], condition=same, num_inference_steps=1)
    data = [{"image": photo, "key": i} for i, photo in enumerate(pictures(2))]
    gt.generate_bank(data, tmp_path / "bank", generator, variants=1, progress=False)
    config = gt.Bank.open(tmp_path / "bank").manifest["generator"]["config"]
    assert config["condition"] == {"function": f"{same.__module__}.same", "version": "1"}
