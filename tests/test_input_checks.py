"""Labels, masks and control maps are checked before they are moved to the generator's device, where reading a value would wait.

The meta device stands for an accelerator: what is moved there cannot be read any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import tiny_diffusion as tiny
import tiny_pipelines
import torch
from small_generators import Flat
from torch import Tensor

import gentransforms as gt
from gentransforms.bank.config import BankConfig
from gentransforms.bank.generate.variants import make_block
from gentransforms.errors import ConfigError
from gentransforms.generators.generate import generate
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SEEDS = torch.tensor([1, 2])


def icgan(kind: type[gt.ICGAN] = gt.ICGAN) -> gt.ICGAN:
    network = {"resolution": 32, "G_ch": 4, "dim_z": 8, "shared_dim_feat": 6, "feature_dim": 16, "G_attn": "0"}
    classes = {"class_cond": True, "n_classes": 5, "shared_dim": 4}
    return kind(network | classes, {"kind": "small-resnet", "widths": [8, 16], "blocks": [1, 1]})


def controlled(condition: str, **options: Any) -> gt.ControlNetVariation:
    pipe = tiny.stable_diffusion()
    return gt.ControlNetVariation(pipe, controlnet=tiny.controlnet(pipe.unet), condition=condition, image_size=32, **options)  # type: ignore[arg-type]


def mapped() -> gt.PipelineVariation:
    pipe, prior = tiny_pipelines.kandinsky_depth()
    return gt.PipelineVariation.from_pipeline(pipe, prior=prior, condition="maps", num_inference_steps=1)


def noised(level: Any = 0) -> gt.StableDiffusionVariation:
    return gt.StableDiffusionVariation.from_pipeline(tiny.unclip(), noise_level=level, num_inference_steps=1)


MAPS = torch.full((2, 1, 32, 32), 128.0)
CASES: dict[str, tuple[Callable[[], gt.ImageGenerator], dict[str, Any], str]] = {
    "labels below": (icgan, {"labels": torch.tensor([0, -1])}, r"labels from -1 to 0: expected 0 to 4"),
    "labels above": (icgan, {"labels": torch.tensor([5, 0])}, r"labels from 0 to 5: expected 0 to 4"),
    "masks": (lambda: controlled("segmentation"), {"masks": torch.full((2, 32, 32), 200)}, r"from 200 to 200: expected 0 to 149"),
    "a list of masks": (
        lambda: controlled("segmentation"), {"masks": [torch.zeros(8, 8, dtype=torch.int64), torch.full((1, 9, 7), -1)]}, r"from -1 to -1",
    ),
    "control maps": (lambda: controlled("maps"), {"control_maps": MAPS}, r"control_maps from 128 to 128: expected \[0, 1\]"),
    "control maps of a pipeline": (mapped, {"control_maps": MAPS}, r"control_maps from 128 to 128: expected \[0, 1\]"),
    "noise levels": (noised, {"noise_levels": torch.tensor([0, 1000])}, r"noise_level=1000: expected an integer from 0 to 999"),
    "foreground": (lambda: noised("foreground"), {"foreground": MAPS}, r"foreground holds values from 128 to 128: expected \[0, 1\]"),
}  # fmt: skip


class TestCheckInputs:
    @pytest.mark.parametrize("case", CASES)
    def test_values_on_the_cpu_are_checked_wherever_the_generator_is(self, case: str) -> None:
        make, inputs, message = CASES[case]
        generator = make().to("meta")
        with pytest.raises(ConfigError, match=message):
            generate(generator, IMAGES, SEEDS, inputs)
        with pytest.raises(ConfigError, match=message):
            next(make_block(generator, BankConfig(variants=1), ["a", "b"], IMAGES, inputs))
        with pytest.raises(ConfigError, match=message):
            generator.encode(IMAGES.to("meta"), **inputs)

    def test_a_class_of_ones_own_needs_none_and_may_have_one(self) -> None:
        class Ranked(Flat):
            def check_encode_inputs(self, inputs: Mapping[str, Any], count: int) -> None:
                seen.append((dict(inputs), count))
                if max(inputs["ranks"]) > "m":
                    raise ConfigError(f"ranks up to {max(inputs['ranks'])}: expected at most m")

        seen: list[Any] = []
        given = {"ranks": ["a", "b"]}
        assert len(generate(Flat(inputs=("ranks",)), IMAGES, SEEDS, given)[0]) == 2
        augment = gt.GenerativeAugment(Ranked(inputs=("ranks",)), p=1.0, inputs_getter=lambda sample: {"ranks": sample[1]})
        augment((IMAGES, ["a", "b"]))
        augment((IMAGES, ["c", "d"]))
        assert seen == [({"ranks": ["a", "b"]}, 2), ({"ranks": ["c", "d"]}, 2)]
        with pytest.raises(ConfigError, match="ranks up to z"):
            augment((IMAGES, ["a", "z"]))

    def test_a_subclass_with_an_encode_of_its_own_takes_other_inputs(self) -> None:
        class Guessing(gt.ICGAN):
            required_inputs = ()

            def encode(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
                return super().encode(images, labels=torch.zeros(len(images), dtype=torch.int64))

        class Helped(Flat):
            def check_inputs(self, images: Tensor, labels: list[int]) -> None:
                raise AssertionError(f"not the library's: {images.shape}, {labels}")

        assert len(generate(icgan(Guessing), IMAGES, SEEDS, {})[0]) == 2
        assert len(generate(Helped(), IMAGES, SEEDS, {})[0]) == 2

    def test_only_the_chosen_images_inputs_are_looked_at(self) -> None:
        augment = gt.GenerativeAugment(icgan(), p=0.0, inputs_getter=lambda sample: {"labels": sample[1]})
        augment((IMAGES, torch.tensor([-1, 99])))

    def test_without_defaults_of_torch_in_the_way(self) -> None:
        class Asks(FakeGenerator):
            inputs = ("labels",)

            def check_encode_inputs(self, inputs: Mapping[str, Any], count: int) -> None:
                found.append((torch.zeros(1).device.type, torch.zeros(1).dtype))

        found: list[Any] = []
        with torch.device("meta"):
            generate(Asks(), IMAGES, SEEDS, {})
        assert found == [("cpu", torch.float32)]

    def test_an_index_below_zero_is_no_class(self) -> None:
        generator = icgan()
        condition = generator.encode(IMAGES, labels=torch.tensor([0, 1]))
        z: Tensor = torch.zeros(2, generator.architecture.z_dim)
        with pytest.raises(IndexError):
            generator.network(z, condition["features"], torch.tensor([0, -1]))
