"""How pipelines read their sources: depth estimators of their own, combined pipelines, tensors taken as normalised pixels."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

import gentransforms as gt
from gentransforms.errors import ConfigError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(r"ignore:In CPU autocast, but the target:UserWarning"),  # diffusers' own, of its depth estimation
    pytest.mark.filterwarnings("ignore:`callback_steps` is deprecated:FutureWarning"),  # and of its combined pipelines
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*ControlNetPipeline.*runs one image at a time:UserWarning"),
    pytest.mark.filterwarnings("ignore:StableUnCLIPImg2ImgPipeline.*runs one image at a time:UserWarning"),
]
SEEDS = torch.tensor([3, 4])
STRENGTH: dict[str, Any] = {"strength": 0.5, "num_inference_steps": 4}


def smooth(size: int) -> Tensor:
    """Of whole steps of 8 bits, which PIL images can hold."""
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(9))
    images = torch.nn.functional.interpolate(images, (size, size), mode="bicubic").clamp(0, 1)
    return (images * 255).round() / 255


def picture(image: Tensor) -> Any:
    return TF.to_pil_image((image * 255).round().byte())


def depth_to_image() -> Any:
    """Stable Diffusion 2 depth, whose own call estimates the depth of its source."""
    from diffusers import StableDiffusionDepth2ImgPipeline

    estimator, processor = tiny_diffusion.depth_estimator()
    pipe = StableDiffusionDepth2ImgPipeline(
        vae=tiny_diffusion.vae(), text_encoder=tiny_diffusion.text_encoder(), tokenizer=tiny_diffusion.tokenizer(),
        unet=tiny_diffusion.unet(in_channels=5), scheduler=tiny_diffusion.scheduler(), depth_estimator=estimator,
        feature_extractor=processor,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def combined() -> Any:
    """Kandinsky 2.2 with its prior, image to image, as diffusers' AutoPipelineForImage2Image gives it."""
    from diffusers import KandinskyV22Img2ImgCombinedPipeline, PriorTransformer

    decoder, prior = tiny_pipelines.kandinsky()
    torch.manual_seed(4)
    network = PriorTransformer(num_attention_heads=2, attention_head_dim=16, embedding_dim=32, num_layers=1, num_embeddings=16).eval()
    return KandinskyV22Img2ImgCombinedPipeline(
        unet=decoder.unet, scheduler=decoder.scheduler, movq=decoder.movq, prior_prior=network, prior_image_encoder=prior.image_encoder,
        prior_text_encoder=prior.text_encoder, prior_tokenizer=prior.tokenizer, prior_scheduler=prior.scheduler,
        prior_image_processor=prior.image_processor,
    )  # fmt: skip


class TestDepthOfItsOwn:
    @torch.no_grad()
    def test_equals_the_stock_call_with_pictures(self) -> None:
        pipe = depth_to_image()
        generator = gt.PipelineVariation.from_pipeline(pipe, prompt="a", **STRENGTH)
        images = smooth(generator.image_size[0])
        made = generator(images, SEEDS)
        assert generator.together == "sources"  # as tensors, several at a time
        for i in range(2):
            rng = torch.Generator().manual_seed(int(SEEDS[i]))
            expected = pipe(prompt="a", image=picture(images[i]), generator=rng, output_type="pt", **STRENGTH).images
            assert (made[i : i + 1] - expected).abs().max() <= 5e-3  # the processor resizes pictures in steps of 8 bits
        assert pipe.feature_extractor.do_rescale

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        generator = gt.PipelineVariation.from_pipeline(depth_to_image(), prompt="a", **STRENGTH)
        generator.save_pretrained(tmp_path / "saved")
        again = gt.load_generator(tmp_path / "saved")
        images = smooth(generator.image_size[0])[:1]
        assert again.fingerprint() == generator.fingerprint()
        assert (again(images, SEEDS[:1]) - generator(images, SEEDS[:1])).abs().max() <= 1e-5
        assert torch.equal(copy.deepcopy(generator)(images, SEEDS[:1]), generator(images, SEEDS[:1]))

    def test_another_estimator_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"depth_estimator has no effect on a StableDiffusionDepth2ImgPipeline.*one of its own"):
            gt.PipelineVariation.from_pipeline(depth_to_image(), depth_estimator=tiny_diffusion.depth_estimator())
        with pytest.raises(ConfigError, match="depth_estimator has no effect"):
            gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), depth_estimator=tiny_diffusion.depth_estimator())

    def test_is_replaced_in_the_pipeline(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(depth_to_image(), **STRENGTH)
        before = generator.fingerprint()
        generator.depth_estimator = other = copy.deepcopy(generator.depth_estimator)
        assert generator.pipe.depth_estimator is other
        assert generator.fingerprint() == before


class TestCombined:
    OPTIONS = STRENGTH | {"prior_num_inference_steps": 2}

    @torch.no_grad()
    def test_equals_the_stock_call(self, capfd: pytest.CaptureFixture[str]) -> None:
        pipe = combined()
        generator = gt.PipelineVariation.from_pipeline(pipe, prompt="a", **self.OPTIONS)
        height, width = generator.image_size
        images = smooth(height)
        made = generator(images, SEEDS)
        assert "it/s" not in capfd.readouterr().err
        assert not any("_progress_bar_config" in vars(each) for each in (pipe, pipe.prior_pipe, pipe.decoder_pipe))
        pipe.set_progress_bar_config(disable=True)
        for i in range(2):
            rng = torch.Generator().manual_seed(int(SEEDS[i]))
            given: dict[str, Any] = {"image": images[i : i + 1], "generator": rng, "output_type": "pt", "height": height, "width": width}
            assert (made[i : i + 1] - pipe(prompt="a", **given, **self.OPTIONS).images).abs().max() <= 1e-4

    def test_a_network_that_is_replaced_makes_the_images(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(combined(), prompt="a", **self.OPTIONS)
        images = smooth(generator.image_size[0])[:1]
        before = generator(images, SEEDS[:1])
        other = copy.deepcopy(generator.unet)
        with torch.no_grad():
            other.conv_in.weight.mul_(0.5)
        generator.unet = other
        assert generator.pipe.decoder_pipe.unet is other
        assert (generator(images, SEEDS[:1]) - before).abs().max() > 1e-3

    @pytest.mark.slow
    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        generator = gt.PipelineVariation.from_pipeline(combined(), prompt="a", **self.OPTIONS)
        generator.save_pretrained(tmp_path / "saved")
        again = gt.load_generator(tmp_path / "saved")
        images = smooth(generator.image_size[0])[:1]
        assert again.fingerprint() == generator.fingerprint()
        assert (again(images, SEEDS[:1]) - generator(images, SEEDS[:1])).abs().max() <= 1e-5


def controlled_flux() -> Any:
    """FLUX with a ControlNet, whose call normalises control maps that are PIL images, and no tensors."""
    from diffusers import FluxControlNetModel, FluxControlNetPipeline

    parts = {name: part for name, part in tiny_pipelines.flux().components.items() if part is not None}
    names = ("patch_size", "in_channels", "num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads")
    names += ("joint_attention_dim", "pooled_projection_dim", "axes_dims_rope")
    config = {name: parts["transformer"].config[name] for name in names}
    network = FluxControlNetModel(**config)
    torch.manual_seed(8)
    with torch.no_grad():  # its zeros too, so that it changes images
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    return FluxControlNetPipeline(**parts, controlnet=network.eval())


class TestNormalisedTensors:
    """Calls that take tensors for pixels as the image encoder sees them are given pictures."""

    @pytest.mark.parametrize(
        ("family", "count"),
        [("unclip", 1), ("variation", 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("unclip", 2), ("variation", 1)))],
    )
    @torch.no_grad()
    def test_equal_the_stock_call_with_pictures(self, family: str, count: int) -> None:
        pipe = getattr(tiny_diffusion, family)()
        pipe.set_progress_bar_config(disable=True)
        generator = gt.PipelineVariation.from_pipeline(pipe, num_inference_steps=2)
        images = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float() / 255
        made = generator(images, SEEDS[:count])
        text = {"prompt": ""} if family == "unclip" else {}
        for i in range(count):
            rng = torch.Generator().manual_seed(int(SEEDS[i]))
            expected = pipe(image=picture(images[i]), generator=rng, output_type="pt", num_inference_steps=2, **text).images
            assert (made[i : i + 1] - expected).abs().max() <= 1e-4

    @pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
    @torch.no_grad()
    def test_control_maps_equal_the_stock_call_with_pictures(self, count: int) -> None:
        pipe = controlled_flux()
        options: dict[str, Any] = {"num_inference_steps": 2, "max_sequence_length": 16}
        generator = gt.PipelineVariation.from_pipeline(pipe, prompt="a", condition="maps", image_size=32, **options)
        maps = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float() / 255
        made = generator(smooth(32)[:count], SEEDS[:count], control_maps=maps)
        pipe.set_progress_bar_config(disable=True)
        for i in range(count):
            rng = torch.Generator().manual_seed(int(SEEDS[i]))
            given: dict[str, Any] = {"generator": rng, "output_type": "pt", "height": 32, "width": 32}
            expected = pipe(prompt="a", control_image=picture(maps[i]), **given, **options).images
            assert (made[i : i + 1] - expected).abs().max() <= 1e-4
        assert generator._pictures

    def test_others_are_given_tensors(self) -> None:
        for make in (tiny_pipelines.img2img, tiny_pipelines.flux, tiny_pipelines.img2img_xl):
            generator = gt.PipelineVariation.from_pipeline(make(), image_size=32, **STRENGTH)
            fine = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
            made = generator(fine, SEEDS[:1])
            assert (made - generator((fine * 255).round() / 255, SEEDS[:1])).abs().max() > 0
            assert not generator._pictures
