"""Pipelines with an IP-Adapter see the source through it: with UNets, transformers, ControlNets, and several adapters."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

import gentransforms as gt
from gentransforms.errors import WeightsError
from gentransforms.generators.diffusion import state

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = torch.tensor([3, 4])
STRENGTH: dict[str, Any] = {"strength": 0.5, "num_inference_steps": 2}
T5: dict[str, Any] = STRENGTH | {"max_sequence_length": 16}


def photos() -> Tensor:
    """Of whole steps of 8 bits, which PIL images can hold."""
    return torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float() / 255


def give_encoder(pipe: Any) -> Any:
    pipe.register_modules(image_encoder=tiny_diffusion.image_encoder(), feature_extractor=tiny_diffusion.image_processor())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_3() -> Any:
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    pipe = give_encoder(tiny_pipelines.stable_diffusion_3())
    network = pipe.transformer
    torch.manual_seed(7)
    network.set_attn_processor(
        {
            name: SD3IPAdapterJointAttnProcessor2_0(hidden_size=32, ip_hidden_states_dim=32, head_dim=8, timesteps_emb_dim=16)
            for name in network.attn_processors
        }
    )
    network.image_proj = IPAdapterTimeImageProjection(
        embed_dim=32, output_dim=32, hidden_dim=16, depth=1, heads=1, num_queries=2, timestep_in_dim=16
    ).eval()
    return pipe


def flux() -> Any:
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    pipe = give_encoder(tiny_pipelines.flux())
    network = pipe.transformer
    torch.manual_seed(7)
    network.set_attn_processor(
        {
            name: own
            if name.startswith("single")
            else FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=32, num_tokens=[4], scale=1.0)
            for name, own in network.attn_processors.items()
        }
    )
    network.encoder_hid_proj = MultiIPAdapterImageProjection(
        [ImageProjection(cross_attention_dim=32, image_embed_dim=32, num_image_text_embeds=4)]
    )
    return pipe


def two_on_a_unet() -> Any:
    pipe = give_encoder(tiny_pipelines.img2img())
    first, second = (tiny_diffusion.ip_adapter(pipe.unet, hidden=hidden) for hidden in (False, True))
    pipe.load_ip_adapter([first, second], subfolder="", weight_name=["", ""], image_encoder_folder=None)
    return pipe


def with_a_control_net() -> Any:
    from diffusers import StableDiffusionControlNetPipeline

    parts = tiny_pipelines.img2img().components
    parts["controlnet"] = tiny_diffusion.controlnet(parts["unet"])
    pipe = give_encoder(StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False))
    pipe.load_ip_adapter(tiny_diffusion.ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
    return pipe


class TestSources:
    @pytest.mark.parametrize(
        ("make", "options"),
        [(stable_diffusion_3, T5 | {"guidance_scale": 3.0}), pytest.param(flux, T5, marks=pytest.mark.slow), (two_on_a_unet, STRENGTH)],
    )
    @torch.no_grad()
    def test_equal_the_stock_call_with_pictures(self, make: Any, options: dict[str, Any]) -> None:
        pipe = make()
        generator = gt.PipelineVariation.from_pipeline(pipe, prompt="a", image_size=32, **options)
        together = "variants" if make is two_on_a_unet else "nothing"  # those of transformers draw from the first rng alone for the source
        with warnings.catch_warnings() if together == "variants" else pytest.warns(UserWarning, match="one image at a time"):
            made, images = generator(photos(), SEEDS), photos()
        assert generator.together == together
        sizes: dict[str, Any] = {} if make is two_on_a_unet else {"height": 32, "width": 32}
        seen: list[Tensor] = []
        hook = pipe.image_encoder.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        for i in range(2):
            seen.clear()
            generator(images[i : i + 1], SEEDS[i : i + 1])
            ours = list(seen)
            seen.clear()
            picture, rng = TF.to_pil_image((images[i] * 255).round().byte()), torch.Generator().manual_seed(int(SEEDS[i]))
            given: dict[str, Any] = {"ip_adapter_image": [[picture], [picture]] if make is two_on_a_unet else picture}
            expected = pipe(prompt="a", image=images[i : i + 1], generator=rng, output_type="pt", **given, **sizes, **options).images
            assert (made[i : i + 1] - expected).abs().max() <= 1e-4
            assert len(ours) == len(seen) > 0, "the source reaches the adapter"
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, seen, strict=True))
        hook.remove()

    def test_its_scale_is_in_the_fingerprint(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(stable_diffusion_3(), image_size=32, **T5)
        before = generator.fingerprint()
        generator.pipe.set_ip_adapter_scale(0.3)
        assert generator.fingerprint() != before

    def test_the_scale_of_each_is_in_the_fingerprint(self) -> None:
        pipe = two_on_a_unet()
        generator = gt.PipelineVariation.from_pipeline(pipe, **STRENGTH)
        found, images = {}, []
        for scales in ([1.0, 1.0], [1.0, 0.2], [0.2, 1.0], [0.2, 0.2]):
            pipe.set_ip_adapter_scale(scales)
            found[generator.fingerprint()] = generator.config["state"]["ip_adapter_scale"]["unet"]
            images.append(generator(photos()[:1], SEEDS[:1]))
        assert list(found.values()) == [1.0, [1.0, 0.2], [0.2, 1.0], 0.2], "one number where there is one"
        assert min((a - b).abs().max() for i, a in enumerate(images) for b in images[:i]) > 1e-3
        pipe.set_ip_adapter_scale([1.0, 1.0])
        assert generator.fingerprint() == next(iter(found))
        for scales in ([{"up": {"block_0": [0.0, 1.0]}}, 0.5], [0.5, {"up": {"block_0": [0.0, 1.0]}}]):  # other ones in each layer
            pipe.set_ip_adapter_scale(scales)
            found[generator.fingerprint()] = generator.config["state"]["ip_adapter_scale"]["unet"]
        assert len(found) == 6

    @pytest.mark.parametrize("scales", [[0.3, 0.3], [0.3, 0.6], [{"up": {"block_0": [0.0, 1.0]}}, 0.5]])
    def test_the_scale_of_each_can_be_set_again(self, scales: Any) -> None:
        one, other = two_on_a_unet(), two_on_a_unet()
        one.set_ip_adapter_scale(scales)
        found = state.ip_adapter_scale(one.unet)
        layers = {path: found for path, _ in state._ip_processors(one.unet)} if not isinstance(found, dict) else found
        state.set_ip_adapter_scale(other, layers)
        assert state.ip_adapter_scale(other.unet) == found

    def test_options_that_a_call_adds_to_stay_as_they_are(self) -> None:
        given: dict[str, Any] = {"scale": 1.0}
        options = T5 | {"joint_attention_kwargs": given}
        generator = gt.PipelineVariation.from_pipeline(stable_diffusion_3(), image_size=32, **options)
        before = generator.fingerprint()
        generator(photos()[:1], SEEDS[:1])
        assert given == {"scale": 1.0}
        assert generator.fingerprint() == before

    @pytest.mark.slow
    def test_beside_a_control_map(self) -> None:
        pipe, maps = with_a_control_net(), photos().flip(0)
        generator = gt.PipelineVariation.from_pipeline(pipe, image_size=32, condition="maps", num_inference_steps=2)
        made = generator(photos(), SEEDS, control_maps=maps)
        for i in range(2):
            picture, rng = TF.to_pil_image((photos()[i] * 255).round().byte()), torch.Generator().manual_seed(int(SEEDS[i]))
            with torch.no_grad():
                expected = pipe(
                    "",
                    maps[i : i + 1],
                    ip_adapter_image=picture,
                    generator=rng,
                    output_type="pt",
                    num_inference_steps=2,
                    height=32,
                    width=32,
                ).images
            assert (made[i : i + 1] - expected).abs().max() <= 1e-4


class TestRefused:
    def test_without_an_image_encoder(self) -> None:
        pipe = flux()
        pipe.register_modules(image_encoder=None)
        with pytest.raises(WeightsError, match=r"FluxImg2ImgPipeline has an IP-Adapter and no image encoder.*image_encoder_folder"):
            gt.PipelineVariation.from_pipeline(pipe)

    def test_where_the_call_takes_no_image_for_it(self) -> None:
        pipe = tiny_pipelines.z_image()
        pipe.transformer.attn_processors = {"one": type("SomeIPAdapterProcessor", (), {})()}
        with pytest.raises(WeightsError, match=r"ZImageImg2ImgPipeline has an IP-Adapter, and its call takes no image for it"):
            gt.PipelineVariation.from_pipeline(pipe)

    def test_not_where_an_adapter_was_unloaded(self) -> None:
        pipe = two_on_a_unet()
        pipe.unload_ip_adapter()
        pipe.register_modules(image_encoder=None)
        gt.PipelineVariation.from_pipeline(pipe)
        assert not isinstance(pipe.unet.encoder_hid_proj, nn.Module)
