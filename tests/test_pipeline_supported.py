"""Pipelines that would make wrong images, or whose size fits nothing, are refused with what to use in their place."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch

import gentransforms as gt
from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.pipelines.kinds.supported import _values_taken, needs_a_mask

pytestmark = pytest.mark.usefixtures("one_thread")


def base(**unet: Any) -> dict[str, Any]:
    parts = {"vae": tiny_diffusion.vae(), "text_encoder": tiny_diffusion.text_encoder(), "tokenizer": tiny_diffusion.tokenizer()}
    return parts | {"scheduler": tiny_diffusion.scheduler(), "unet": tiny_diffusion.unet(**unet)}


def inpainting(channels: int = 9) -> Any:
    from diffusers import StableDiffusionInpaintPipeline

    return StableDiffusionInpaintPipeline(
        **base(in_channels=channels), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def empty(name: str, **config: Any) -> Any:
    """A network without weights, of one layer where its class lets one say so."""
    import diffusers

    kind: Any = getattr(diffusers, name)
    layers = ("num_layers", "num_single_layers", "n_layers", "num_refiner_layers", "n_refiner_layers")
    few = {name: 1 for name in layers if name in inspect.signature(kind.__init__).parameters}
    with torch.device("meta"):
        return kind(**few | config)


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

        from gentransforms.generators.pipelines.kinds.classes import check_kind

        kind: Any = getattr(diffusers, name)
        with pytest.raises(WeightsError, match=f"{name} enlarges its source"):
            check_kind(kind)


class TestInpainting:
    def test_with_a_network_that_reads_a_mask(self) -> None:
        with pytest.raises(WeightsError, match=r"StableDiffusionInpaintPipeline .*takes a mask.*repository of the base model"):
            gt.PipelineVariation.from_pipeline(inpainting())

    def test_where_that_network_is_in_another_pipeline(self) -> None:
        from diffusers import AutoPipelineForImage2Image

        other = AutoPipelineForImage2Image.from_pipe(inpainting())
        with pytest.raises(WeightsError, match=r"StableDiffusionImg2ImgPipeline has a network for inpainting.*base model"):
            gt.PipelineVariation.from_pipeline(other)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_with_the_network_of_a_base_model(self, dtype: torch.dtype) -> None:
        """As the advice says, its parts run as image to image, in the dtype that they have."""
        import diffusers

        pipe = inpainting(4).to(dtype)
        with pytest.raises(WeightsError, match=r"paints what a mask covers anew: use ") as caught:
            gt.PipelineVariation.from_pipeline(pipe)
        advised = re.search(r"diffusers\.StableDiffusionImg2ImgPipeline\.from_pipe\(.*?\)", str(caught.value))
        assert advised is not None
        other = eval(advised[0], {"diffusers": diffusers, "pipe": pipe})
        assert gt.PipelineVariation.from_pipeline(other).pipe.unet.dtype == dtype

    def test_flux_fill(self) -> None:
        from diffusers import FluxImg2ImgPipeline

        pipe = filling()
        with pytest.raises(WeightsError, match=r"FluxFillPipeline .*takes a mask.*base model"):
            gt.PipelineVariation.from_pipeline(pipe)
        with pytest.raises(WeightsError, match=r"FluxImg2ImgPipeline has a network for inpainting"):
            gt.PipelineVariation.from_pipeline(FluxImg2ImgPipeline(**pipe.components))

    def test_kandinsky(self) -> None:
        """Its autoencoder is called movq."""
        parts = {"unet": SimpleNamespace(config={"in_channels": 9}), "movq": SimpleNamespace(config={"latent_channels": 4})}
        assert needs_a_mask(SimpleNamespace(**parts))

    @pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
    @pytest.mark.parametrize(
        ("name", "channels"),
        [
            ("FluxTransformer2DModel", 64 + 64 + 256),
            ("SD3Transformer2DModel", 16 + 16 + 1),  # counts channels
            ("QwenImageTransformer2DModel", 64 + 64 + 4),  # counts values of a patch going in, and channels coming out
            ("ChromaTransformer2DModel", 64 + 64 + 4),
            ("SanaTransformer2DModel", 32 + 32 + 1),
        ],
    )
    def test_transformers_of_base_models_and_for_inpainting(self, name: str, channels: int) -> None:
        """Those of base models are built as their classes have it by default, which is how the released ones are."""
        assert not needs_a_mask(SimpleNamespace(transformer=empty(name)))
        made = {} if name == "SD3Transformer2DModel" else {"out_channels": empty(name).config.out_channels or 64}
        assert needs_a_mask(SimpleNamespace(transformer=empty(name, in_channels=channels, **made)))

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
    def test_every_network_of_image_to_image(self) -> None:
        """No default configuration of a network is taken for one of inpainting."""
        import typing

        import diffusers

        networks = set()
        for name in dir(diffusers):
            cls: Any = getattr(diffusers, name, None) if re.search("(Img2Img|Inpaint|Edit|Kontext).*Pipeline$", name) else None
            parts = inspect.signature(cls.__init__).parameters if isinstance(cls, type) else {}
            for part in parts.keys() & {"unet", "transformer"}:
                kinds = typing.get_args(parts[part].annotation) or (parts[part].annotation,)
                networks |= {(part, each) for each in kinds if isinstance(each, type) and hasattr(each, "from_config")}
        built = 0
        for part, kind in networks:
            latents = SimpleNamespace(config={"latent_channels": 4})
            try:
                network = empty(kind.__name__)
            except TypeError:  # a class whose defaults build nothing, such as HunyuanDiT2DModel
                continue
            built += 1
            assert not needs_a_mask(SimpleNamespace(vae=latents, **{part: network})), kind
            taken = _values_taken(network) if hasattr(network, "proj_out") else None
            assert taken is None or taken == network.proj_out.out_features, kind
        assert built > 8


class TestCasting:
    def test_weights_that_are_stored_in_another_dtype(self) -> None:
        pipe = tiny_pipelines.img2img()
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        with pytest.raises(ConfigError, match=r"unet stores weights as torch\.float8_e4m3fn.*without it.*quantised"):
            gt.PipelineVariation.from_pipeline(pipe)

    def test_after_the_generator_was_built(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img())
        generator.pipe.vae.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
        with pytest.raises(ConfigError, match=r"vae stores weights as torch\.bfloat16"):
            generator.fingerprint()


def with_an_adapter(channels: int) -> Any:
    from diffusers import StableDiffusionAdapterPipeline, T2IAdapter

    parts = base() | {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    torch.manual_seed(8)
    adapter = T2IAdapter(in_channels=channels, channels=[32], num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter")
    pipe = StableDiffusionAdapterPipeline(**parts, adapter=adapter.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning")
class TestControlMaps:
    @pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.slow)])
    def test_have_the_channels_that_an_adapter_takes(self, channels: int) -> None:
        pipe, maps = with_an_adapter(channels), torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        generator = gt.PipelineVariation.from_pipeline(pipe, prompt="a", condition="maps", num_inference_steps=2, image_size=32)
        images, seeds = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 4])
        made = generator(images, seeds, control_maps=maps)
        for i in range(2):
            given = {"image": maps[i : i + 1].expand(-1, channels, -1, -1), "generator": torch.Generator().manual_seed(int(seeds[i]))}
            with torch.no_grad():
                expected = pipe("a", height=32, width=32, num_inference_steps=2, output_type="np", **given).images
            assert (made[i] - torch.from_numpy(expected[0]).permute(2, 0, 1)).abs().max() <= 1e-4

    def test_in_colours_for_an_adapter_of_one_channel(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(with_an_adapter(1), condition="maps", num_inference_steps=2, image_size=32)
        with pytest.raises(ConfigError, match=r"three channels that differ, and the T2IAdapter takes one: give grey maps"):
            generator.encode(torch.rand(1, 3, 32, 32), control_maps=torch.rand(1, 3, 32, 32))

    def test_of_several_networks_at_once_are_refused(self) -> None:
        from diffusers import MultiAdapter, StableDiffusionControlNetPipeline

        pipe = with_an_adapter(3)
        pipe.adapter = MultiAdapter([pipe.adapter, pipe.adapter])
        with pytest.raises(WeightsError, match=r"has a MultiAdapter, whose networks take a control map each"):
            gt.PipelineVariation.from_pipeline(pipe, condition="maps")
        parts = base() | {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        nets = [tiny_diffusion.controlnet(parts["unet"])] * 2
        with pytest.raises(WeightsError, match=r"has a MultiControlNetModel"):
            gt.PipelineVariation.from_pipeline(StableDiffusionControlNetPipeline(**parts, controlnet=nets), condition="maps")
