"""What a trial of a pipeline has shown: when it is forgotten, and when it shows nothing."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from diffusers.models.attention_processor import AttnProcessor
from test_diffusion_state import write_lora
from torch import Tensor, nn

import gentransforms as gt
from gentransforms.errors import GeneratorError, WeightsError

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = torch.tensor([7, 7, 7])
ONE_STEP: dict[str, Any] = {"strength": 1.0, "num_inference_steps": 1, "guidance_scale": 1.0}


def photos() -> Tensor:
    return torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(5)).float() / 255


def img2img() -> Any:
    pipe = tiny_pipelines.img2img()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.register_modules(image_encoder=tiny_diffusion.image_encoder(), feature_extractor=tiny_diffusion.image_processor())
    return pipe


@functools.cache
def first() -> gt.PipelineVariation:
    generator = gt.PipelineVariation.from_pipeline(img2img(), **ONE_STEP)
    generator(photos(), SEEDS)
    return generator


def tried() -> gt.PipelineVariation:
    """An image-to-image generator of which a batch has shown that sources go together."""
    generator = copy.deepcopy(first())
    assert generator.together == "sources"
    return generator


def add_adapter(generator: gt.PipelineVariation) -> None:
    unet = generator.pipe.unet
    generator.pipe.load_ip_adapter(tiny_diffusion.ip_adapter(unet), subfolder="", weight_name="", image_encoder_folder=None)


def one_by_one(generator: gt.PipelineVariation) -> Tensor:
    return torch.cat([generator(photos()[i : i + 1], SEEDS[i : i + 1]) for i in range(3)])


def count_calls(generator: gt.PipelineVariation) -> list[int]:
    """Return a list that gets the size of every batch that the UNet is given."""
    sizes: list[int] = []
    generator.pipe.unet.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    return sizes


class GlobalNoise(DDIMScheduler):
    """Draws from torch's global random state."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        made = super().step(*args, **kwargs)
        return (made[0] + torch.randn_like(made[0]), *made[1:])


class Mixing(AttnProcessor):
    """Adds what stands first in the batch, as processors do that attend across images."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        return made + made[:1]


class Checker(nn.Module):
    """A safety checker that blacks out everything until it is told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.black, self.seen = True, 0

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def forward(self, images: Any, clip_input: Tensor) -> tuple[Any, list[bool]]:
        self.seen += len(images)
        return (images * 0 if self.black else images), [self.black] * len(images)


class TestForgotten:
    def test_with_an_adapter_that_was_loaded_after_the_first_batch(self) -> None:
        generator = tried()
        add_adapter(generator)
        batch = generator(photos(), SEEDS)
        assert generator.together == "variants"
        assert (batch - one_by_one(generator)).abs().max() <= 1e-4
        assert (batch[0] - batch[1]).abs().max() > 0.01
        generator.pipe.unload_ip_adapter()
        generator.pipe.register_modules(image_encoder=None)
        generator(photos(), SEEDS)
        assert generator.together == "sources"

    def test_with_an_adapter_that_was_loaded_after_a_single_image(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(img2img(), **ONE_STEP)
        generator(photos()[:1], SEEDS[:1])
        assert generator._repeatable
        add_adapter(generator)
        sizes = count_calls(generator)
        generator(photos()[:1], SEEDS[:1])
        assert len(sizes) >= 2, "its first image is made twice again"
        assert generator.together is None

    def test_copies_forget_too(self) -> None:
        generator = tried()
        for again in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
            sizes = count_calls(again)
            again(photos(), SEEDS)
            assert sizes == [3], "a copy knows what was found out: no other images than these"
            add_adapter(again)
            batch = again(photos(), SEEDS)
            assert (batch - one_by_one(again)).abs().max() <= 1e-4

    def test_sources_never_go_together_where_one_is_seen_alone(self) -> None:
        """Whatever was found out, or set."""
        generator = tried()
        add_adapter(generator)
        expected = one_by_one(generator)
        generator.together = "sources"
        assert (generator(photos(), SEEDS) - expected).abs().max() <= 1e-4

    def test_an_adapter_without_an_image_encoder_is_named(self) -> None:
        generator = tried()
        add_adapter(generator)
        generator.pipe.image_encoder = None
        for _ in range(2):
            with pytest.raises(WeightsError, match="has an IP-Adapter and no image encoder"):
                generator(photos(), SEEDS)

    def test_with_a_scheduler_of_another_kind(self) -> None:
        generator = tried()
        own = generator.pipe.scheduler.config
        generator.pipe.scheduler = GlobalNoise.from_config(own)
        with pytest.raises(GeneratorError, match="another image of the same source and rng with each call"):
            generator(photos(), SEEDS)
        generator.pipe.scheduler = EulerDiscreteScheduler.from_config(own)
        batch = generator(photos(), SEEDS)
        assert (batch - one_by_one(generator)).abs().max() <= 1e-4

    def test_with_attention_across_images(self) -> None:
        generator = tried()
        generator.pipe.unet.set_attn_processor(Mixing())
        with pytest.warns(UserWarning, match="its images depend on what else is in the batch: it runs one image at a time"):
            batch = generator(photos(), SEEDS)
        assert generator.together == "nothing"
        assert (batch - one_by_one(generator)).abs().max() <= 1e-4


def load_a_lora(generator: gt.PipelineVariation, folder: Path) -> None:
    pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator.pipe.load_lora_weights(write_lora(folder), adapter_name="one")


def tile(generator: gt.PipelineVariation, _folder: Path) -> None:
    generator.pipe.vae.enable_tiling()


def set_a_prompt(generator: gt.PipelineVariation, _folder: Path) -> None:
    generator.prompt = "a"
    generator.options["guidance_scale"] = 1.1


def move(generator: gt.PipelineVariation, _folder: Path) -> None:
    generator.to(torch.float64).to(torch.float32)


class TestKept:
    @pytest.mark.parametrize("change", [load_a_lora, tile, set_a_prompt, move])
    def test_with_what_mixes_no_images(self, change: Callable[[gt.PipelineVariation, Path], None], tmp_path: Path) -> None:
        generator = tried()
        change(generator, tmp_path)
        sizes = count_calls(generator)
        batch = generator(photos(), SEEDS)
        assert sizes == [6 if change is set_a_prompt else 3], "no other images than these"
        assert (batch - one_by_one(generator)).abs().max() <= 1e-4


class TestSafetyChecker:
    @staticmethod
    def flagged() -> tuple[gt.PipelineVariation, Checker]:
        """Of sd-image-variations, which takes tensors for something else than pixels: a trial that works finds that out."""
        pipe, checker = tiny_diffusion.variation(), Checker()
        pipe.register_modules(safety_checker=checker, feature_extractor=tiny_diffusion.image_processor())
        return gt.PipelineVariation.from_pipeline(pipe, num_inference_steps=1), checker

    def test_it_does_not_see_the_trial(self) -> None:
        generator, checker = self.flagged()
        before = generator.fingerprint()
        assert generator(photos(), SEEDS).isnan().all()
        assert checker.seen == 3
        assert (generator.together, generator._pictures) == ("variants", True)
        assert generator.pipe.safety_checker is checker
        assert generator.pipe.config["safety_checker"] != (None, None)
        assert generator.fingerprint() == before
        checker.black = False
        plain = tiny_diffusion.variation()
        expected = gt.PipelineVariation.from_pipeline(plain, num_inference_steps=1)(photos(), SEEDS)
        assert (generator(photos(), SEEDS) - expected).abs().max() <= 1e-4

    def test_it_comes_back_where_the_trial_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        generator, checker = self.flagged()
        monkeypatch.setattr(generator.pipe.unet, "forward", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            generator(photos(), SEEDS)
        assert generator.pipe.safety_checker is checker

    def test_a_trial_with_black_images_decides_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As of a pipeline that checks its images in a way of its own, or overflows."""
        generator = gt.PipelineVariation.from_pipeline(img2img(), **ONE_STEP)
        own = generator.pipe.vae.decode
        monkeypatch.setattr(generator.pipe.vae, "decode", lambda latents, **given: tuple(x * torch.nan for x in own(latents, **given)))
        for _ in range(2):
            with pytest.warns(UserWarning, match="says nothing of a batch: it runs one image at a time until they are"):
                assert generator(photos(), SEEDS).isnan().all()
            assert generator.together is None
        monkeypatch.setattr(generator.pipe.vae, "decode", own)
        made = generator(photos(), SEEDS)
        assert generator.together == "sources"
        assert (made - one_by_one(generator)).abs().max() <= 1e-4
