"""Control maps and masks of the foreground show whole photos: they are cropped as the photos are, where a generator sees their centre."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from torch import Tensor

import gentransforms as gt
from gentransforms.generators.diffusion.conditions import given_maps
from gentransforms.generators.diffusion.foreground import mask_share
from gentransforms.images import fit

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SIZES = [(32, 96), (96, 32), (40, 40), (37, 64)]


def watched(generator: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Let a generator keep the conditions it is given, and make grey images."""
    seen: list[dict[str, Tensor]] = []

    def sample(condition: dict[str, Tensor], seeds: Tensor) -> Tensor:
        seen.append(condition)
        return torch.full((len(seeds), 3, *generator.image_size), 0.5)

    monkeypatch.setattr(generator, "sample", sample)
    return seen


class TestGivenMaps:
    @pytest.mark.parametrize("shape", SIZES)
    def test_equal_the_photo_that_they_are_of(self, shape: tuple[int, int]) -> None:
        photos = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
        for preserves_geometry in (False, True):
            expected = fit(photos, (16, 24), preserves_geometry)
            for maps in (photos, list(photos)):
                assert (given_maps(maps, (16, 24), 2, preserves_geometry) - expected).abs().max() <= 1e-6

    def test_of_any_resolution(self) -> None:
        """A white third on the left of a photo three times as wide as high is outside the centre."""
        for width in (48, 96, 384):
            maps = torch.zeros(1, 1, width // 3, width)
            maps[..., : width // 3] = 1
            assert float(given_maps(maps, (32, 32), 1, False).max()) == 0
            assert float(given_maps(maps, (32, 32), 1, True).mean()) == pytest.approx(1 / 3, abs=0.01)


class TestMaskShare:
    def test_is_that_of_the_part_that_is_seen(self) -> None:
        wide = torch.zeros(32, 96)
        wide[:, 32:64] = 1
        tall = torch.zeros(1, 96, 32)
        tall[:, :32] = 1
        assert mask_share([wide, tall], 2, CPU, (32, 32)).tolist() == [1, 0]
        assert mask_share([wide, tall], 2, CPU).tolist() == pytest.approx([1 / 3, 1 / 3])
        assert mask_share(wide[None].bool(), 1, CPU, (16, 32)).tolist() == [0.5]
        assert mask_share(wide[None, None], 1, CPU, (64, 64)).tolist() == [1]


class TestPipelineVariation:
    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls) -> Any:
        from diffusers import StableDiffusionControlNetImg2ImgPipeline

        parts = tiny_pipelines.img2img().components
        net = tiny_diffusion.controlnet(parts["unet"])
        return StableDiffusionControlNetImg2ImgPipeline(**parts, controlnet=net, requires_safety_checker=False)

    @pytest.mark.parametrize("preserves_geometry", [False, True])
    @pytest.mark.parametrize("shape", SIZES)
    def test_a_map_shows_what_the_image_shows(
        self, shape: tuple[int, int], preserves_geometry: bool, pipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        options: dict[str, Any] = {"preserves_geometry": preserves_geometry, "num_inference_steps": 2}
        generator = gt.PipelineVariation.from_pipeline(pipe, condition="maps", **options)
        photo = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        seen = watched(generator, monkeypatch)
        generator(photo[None] / 255, torch.tensor([1]), control_maps=photo[None])
        gt.GenerativeAugment(generator, p=1.0, inputs_getter=lambda _: {"control_maps": photo})(photo)
        gt.generate_bank([{"image": photo, "control_map": photo, "key": 0}], tmp_path / "bank", generator, variants=1, progress=False)
        assert len(seen) == 3
        for condition in seen:
            assert (condition["images"] - condition["control"]).abs().max() <= 1e-5


class TestForeground:
    MASK = torch.zeros(32, 96)
    MASK[:, 32:64] = 1

    def test_of_a_wide_photo(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pipe = tiny_diffusion.unclip()
        generator = gt.StableDiffusionVariation.from_pipeline(pipe, noise_level="foreground", num_inference_steps=1)
        seen = watched(generator, monkeypatch)
        generator(torch.rand(1, 3, 32, 96), torch.tensor([1]), foreground=self.MASK[None])
        gt.GenerativeAugment(generator, p=1.0, inputs_getter=lambda _: {"foreground": self.MASK})(torch.rand(3, 32, 96))
        assert [condition["noise_levels"].tolist() for condition in seen] == [[400], [400]]

    def test_of_a_generator_that_sees_the_whole_photo(self) -> None:
        pipe = tiny_diffusion.unclip()
        net = tiny_diffusion.controlnet(pipe.unet)
        generator = gt.ControlNetVariation.from_pipeline(pipe, controlnet=net, noise_level="foreground", num_inference_steps=1)
        assert generator.encode(torch.rand(1, 3, 32, 96), foreground=self.MASK[None])["noise_levels"].tolist() == [100]
