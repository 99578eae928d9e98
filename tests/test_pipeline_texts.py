"""Texts beside the prompt: one negative prompt, or one for the second encoder, holds for every image of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = torch.tensor([3, 4])
STRENGTH = {"strength": 0.5, "num_inference_steps": 4}


def photos() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(9))


def edits() -> Any:
    from diffusers import StableDiffusionInstructPix2PixPipeline

    parts = tiny_pipelines.img2img().components
    return StableDiffusionInstructPix2PixPipeline(**parts | {"unet": tiny_diffusion.unet(in_channels=8)}, requires_safety_checker=False)


def with_a_control_net() -> Any:
    from diffusers import StableDiffusionControlNetImg2ImgPipeline

    parts = tiny_pipelines.img2img().components
    parts["controlnet"] = tiny_diffusion.controlnet(parts["unet"])
    return StableDiffusionControlNetImg2ImgPipeline(**parts, requires_safety_checker=False)


FAMILIES: list[tuple[Callable[[], Any], dict[str, Any]]] = [
    (tiny_pipelines.img2img, STRENGTH | {"negative_prompt": "b c"}),
    (tiny_pipelines.img2img, STRENGTH | {"negative_prompt": ["b c"]}),
    (edits, {"num_inference_steps": 2, "negative_prompt": "b c"}),
    (with_a_control_net, STRENGTH | {"negative_prompt": "b c"}),
    (tiny_pipelines.img2img_xl, STRENGTH | {"prompt_2": "d", "negative_prompt": "b c", "negative_prompt_2": "e"}),
    (
        tiny_pipelines.stable_diffusion_3,
        STRENGTH | {"prompt_2": "d", "prompt_3": "f", "negative_prompt": "b", "negative_prompt_3": "g", "max_sequence_length": 16},
    ),
    (tiny_pipelines.z_image, STRENGTH | {"negative_prompt": "b", "max_sequence_length": 16}),
]
# Those that take texts as one before them does; slow tests.
ALIKE = (1, 2, 6)


class TestShared:
    @pytest.mark.parametrize(
        ("make", "options"),
        [
            pytest.param(make, options, id=f"{make.__name__}-{i}", marks=pytest.mark.slow if i in ALIKE else ())
            for i, (make, options) in enumerate(FAMILIES)
        ],
    )
    def test_equal_the_stock_call(self, make: Callable[[], Any], options: dict[str, Any]) -> None:
        pipe, maps = make(), photos().flip(0)
        takes_maps = make is with_a_control_net
        own: dict[str, Any] = {"condition": "maps"} if takes_maps else {}
        options = options | {"guidance_scale": 3.0}
        generator = gt.PipelineVariation.from_pipeline(pipe, prompt="a", image_size=32, **own, **options)
        made = generator(photos(), SEEDS, **({"control_maps": maps} if takes_maps else {}))
        assert generator.together == "sources"
        pipe.set_progress_bar_config(disable=True)
        several = make is tiny_pipelines.z_image  # whose negative prompts are counted against the prompts, as letters of a string
        for i in range(2):
            given: dict[str, Any] = {"control_image": maps[i : i + 1]} if takes_maps else {}
            if make in (tiny_pipelines.stable_diffusion_3, tiny_pipelines.z_image):
                given |= {"height": 32, "width": 32}
            texts = {n: [t] if several and isinstance(t, str) else t for n, t in (options | {"prompt": "a"}).items()}
            texts = {n: t[0] if isinstance(t, list) and not several else t for n, t in texts.items()}
            rng = torch.Generator().manual_seed(int(SEEDS[i]))
            with torch.no_grad():
                expected = pipe(image=photos()[i : i + 1], generator=rng, output_type="pt", **given, **texts).images
            assert (made[i : i + 1] - expected).abs().max() <= 1e-4
        without = {name: value for name, value in options.items() if "negative" not in name}
        other = gt.PipelineVariation.from_pipeline(pipe, prompt="a", image_size=32, **own, **without)
        assert (other(photos(), SEEDS, **({"control_maps": maps} if takes_maps else {})) - made).abs().max() > 1e-3

    @pytest.mark.parametrize("value", [["a", "b"], [], 3, [3]])
    def test_one_for_each_image_is_refused(self, value: Any) -> None:
        with pytest.raises(ConfigError, match=r"negative_prompt=.*expected one string"):
            gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), prompt="a", negative_prompt=value)
