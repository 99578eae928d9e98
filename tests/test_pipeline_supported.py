"""Pipelines that would make wrong images, or whose size fits nothing, are refused with what to use in their place."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines

import gentransforms as gt
from gentransforms.errors import WeightsError

pytestmark = pytest.mark.usefixtures("one_thread")


def base(**unet: Any) -> dict[str, Any]:
    parts = {"vae": tiny_diffusion.vae(), "text_encoder": tiny_diffusion.text_encoder(), "tokenizer": tiny_diffusion.tokenizer()}
    return parts | {"scheduler": tiny_diffusion.scheduler(), "unet": tiny_diffusion.unet(**unet)}


def inpainting(channels: int = 9) -> Any:
    from diffusers import StableDiffusionInpaintPipeline

    return StableDiffusionInpaintPipeline(
        **base(in_channels=channels), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def filling() -> Any:
    from diffusers import FluxFillPipeline, FluxTransformer2DModel

    pipe = tiny_pipelines.flux()
    config = {name: value for name, value in pipe.transformer.config.items() if name[0] != "_"}
    config |= {"in_channels": 8 + 8 + 4, "out_channels": 8}
    names = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    parts = {name: getattr(pipe, name) for name in names}
    return FluxFillPipeline(**parts, transformer=FluxTransformer2DModel.from_config(config))


class TestPixels:
    def test_deepfloyd(self) -> None:
        from diffusers import DDPMScheduler, IFImg2ImgPipeline

        encoder, tokenizer = tiny_pipelines.t5()
        pipe = IFImg2ImgPipeline(
            text_encoder=encoder, tokenizer=tokenizer, unet=tiny_diffusion.unet(in_channels=3, out_channels=6), scheduler=DDPMScheduler(),
            safety_checker=None, feature_extractor=None, watermarker=None, requires_safety_checker=False,
        )  # fmt: skip
        with pytest.raises(WeightsError, match=r"IFImg2ImgPipeline works without an autoencoder .*FLUX, or StableDiffusionVariation"):
            gt.PipelineVariation.from_pipeline(pipe, prompt="a")


class TestSizes:
    @pytest.mark.filterwarnings("ignore:The configuration file of the vae:FutureWarning")
    def test_upscalers(self) -> None:
        from diffusers import DDPMScheduler, StableDiffusionUpscalePipeline

        pipe = StableDiffusionUpscalePipeline(**base(in_channels=7, num_class_embeds=1000), low_res_scheduler=DDPMScheduler())
        with pytest.raises(WeightsError, match=r"StableDiffusionUpscalePipeline enlarges its source.*image-to-image"):
            gt.PipelineVariation.from_pipeline(pipe, prompt="a")

    @pytest.mark.parametrize("name", ["StableDiffusionLatentUpscalePipeline", "LDMSuperResolutionPipeline", "IFSuperResolutionPipeline"])
    def test_those_without_a_scheduler_for_it(self, name: str) -> None:
        import diffusers

        from gentransforms.generators.pipelines.supported import check_supported

        kind: Any = getattr(diffusers, name)
        pipe = kind.__new__(kind)
        with pytest.raises(WeightsError, match=f"{name} enlarges its source"):
            check_supported(pipe)


class TestInpainting:
    def test_with_a_network_that_reads_a_mask(self) -> None:
        with pytest.raises(WeightsError, match=r"StableDiffusionInpaintPipeline .*takes a mask.*repository of the base model"):
            gt.PipelineVariation.from_pipeline(inpainting())

    def test_where_that_network_is_in_another_pipeline(self) -> None:
        from diffusers import AutoPipelineForImage2Image

        other = AutoPipelineForImage2Image.from_pipe(inpainting())
        with pytest.raises(WeightsError, match=r"StableDiffusionImg2ImgPipeline has a network for inpainting.*base model"):
            gt.PipelineVariation.from_pipeline(other)

    def test_with_the_network_of_a_base_model(self) -> None:
        """As the advice says, its parts run as image to image."""
        from diffusers import AutoPipelineForImage2Image

        pipe = inpainting(4)
        with pytest.raises(WeightsError, match=r"paints what a mask covers anew: use .*AutoPipelineForImage2Image\.from_pipe"):
            gt.PipelineVariation.from_pipeline(pipe)
        gt.PipelineVariation.from_pipeline(AutoPipelineForImage2Image.from_pipe(pipe))

    def test_flux_fill(self) -> None:
        from diffusers import FluxImg2ImgPipeline

        pipe = filling()
        with pytest.raises(WeightsError, match=r"FluxFillPipeline .*takes a mask.*base model"):
            gt.PipelineVariation.from_pipeline(pipe)
        with pytest.raises(WeightsError, match=r"FluxImg2ImgPipeline has a network for inpainting"):
            gt.PipelineVariation.from_pipeline(FluxImg2ImgPipeline(**pipe.components))
