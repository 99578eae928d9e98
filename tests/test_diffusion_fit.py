"""Parts of a pipeline that do not fit each other: named when the generator is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion as tiny
import torch
from safetensors.torch import save_file

import gentransforms as gt
from gentransforms.errors import WeightsError

SD = gt.StableDiffusionVariation.from_pipeline
CONTROL = gt.ControlNetVariation.from_pipeline


def adapted(pipe: Any, encoder: Any, hidden: bool = False, embedding: int = 32, crop: int = 32) -> Any:
    pipe.register_modules(image_encoder=encoder, feature_extractor=tiny.image_processor(crop))
    pipe.load_ip_adapter(tiny.ip_adapter(pipe.unet, hidden, embedding), subfolder="", weight_name="", image_encoder_folder=None)
    return pipe


def wide_encoder() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=48, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, projection_dim=32
    )
    return CLIPVisionModelWithProjection(config).eval()


def swapped(pipe: Any, **parts: Any) -> Any:
    pipe.register_modules(**parts)
    return pipe


def vae_of(channels: int) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32), layers_per_block=1, latent_channels=channels, norm_num_groups=8, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip


def longer_tokenizer() -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 77
    return tokenizer


def richer_tokenizer() -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<cat>"])
    return tokenizer


def normaliser(width: int) -> Any:
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer

    return StableUnCLIPImageNormalizer(embedding_dim=width)


def xl_with_pooled(width: int) -> Any:
    pipe = tiny.stable_diffusion_xl()
    return adapted(swapped(pipe, text_encoder_2=tiny.text_encoder(16, projection=True)), tiny.image_encoder()) if width == 16 else pipe


def control(unet: Any, **changes: Any) -> Any:
    from diffusers import ControlNetModel

    return ControlNetModel.from_unet(unet, load_weights_from_unet=False, conditioning_embedding_out_channels=(8, 16), **changes).eval()


def on(device: str, pipe: Any, part: str) -> Any:
    getattr(pipe, part).to(device)
    return pipe


# Each with what the message names: the part, its number, the other's, and what to do.
CASES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "ip-adapter of another encoder": (
        lambda: SD(adapted(tiny.stable_diffusion(), tiny.image_encoder(), embedding=48)),
        ["image_encoder", "32", "IP-Adapter", "48", "ip_adapter=", "image_encoder_folder"],
    ),
    "ip-adapter plus of another encoder": (
        lambda: SD(adapted(tiny.stable_diffusion(), wide_encoder(), hidden=True)),
        ["image_encoder", "hidden states", "48", "IP-Adapter", "32", "ip_adapter="],
    ),
    "crop of another size": (
        lambda: SD(adapted(tiny.stable_diffusion(), tiny.image_encoder(), crop=24)), ["feature_extractor", "24", "image_encoder", "32"],
    ),
    "vae of other latents": (lambda: SD(swapped(tiny.unclip(), vae=vae_of(8))), ["vae", "8", "unet", "4", "vae="]),
    "unet for inpainting": (
        lambda: SD(swapped(tiny.variation(), unet=tiny.unet(in_channels=9))), ["unet", "9", "4", "inpainting"],
    ),
    "variation of another encoder": (
        lambda: SD(swapped(tiny.variation(), image_encoder=tiny.image_encoder(48))), ["image_encoder", "48", "unet", "32"],
    ),
    "unclip of another encoder": (
        lambda: SD(swapped(tiny.unclip(), image_encoder=tiny.image_encoder(48))), ["image_encoder", "48", "image_normalizer", "32"],
    ),
    "unclip of another encoder and normalizer": (
        lambda: SD(swapped(tiny.unclip(), image_encoder=tiny.image_encoder(48), image_normalizer=normaliser(48))),
        ["image_encoder", "96", "unet", "64"],
    ),
    "text encoder": (lambda: SD(swapped(tiny.unclip(), text_encoder=tiny.text_encoder(16))), ["text_encoder", "16", "unet", "32"]),
    "no text encoder": (
        lambda: CONTROL(swapped(tiny.stable_diffusion(), text_encoder=None), controlnet=tiny.controlnet(tiny.unet())),
        ["text_encoder", "StableDiffusionPipeline"],
    ),
    "tokens that the encoder does not know": (
        lambda: SD(swapped(tiny.unclip(), tokenizer=richer_tokenizer())),
        ["text_encoder", "54", "tokenizer", "55", "load_textual_inversion"],
    ),
    "texts too long": (
        lambda: SD(swapped(tiny.unclip(), tokenizer=longer_tokenizer())), ["text_encoder", "16", "tokenizer", "77"],
    ),
    "xl with one wider text encoder": (
        lambda: CONTROL(
            swapped(tiny.stable_diffusion_xl(), text_encoder=tiny.text_encoder(32)),
            controlnet=tiny.controlnet(tiny.stable_diffusion_xl().unet),
        ),
        ["text_encoder and text_encoder_2", "48", "unet", "32"],
    ),
    "controlnet of another text width": (
        lambda: CONTROL(tiny.stable_diffusion(), controlnet=control(tiny.unet(cross_attention_dim=48))), ["controlnet", "48", "unet", "32"],
    ),
    "second controlnet of other blocks": (
        lambda: CONTROL(
            tiny.stable_diffusion(), controlnet=[control(tiny.unet()), control(tiny.unet(block_out_channels=(32, 96)))],
            condition=["canny", "canny"],
        ),
        ["controlnet_1", "block_out_channels", "96", "unet", "64", "controlnet="],
    ),
    "controlnet of xl": (
        lambda: CONTROL(tiny.stable_diffusion(), controlnet=tiny.controlnet(tiny.stable_diffusion_xl().unet)),
        ["controlnet", "addition_embed_type", "text_time", "unet", "None"],
    ),
    "controlnet for other maps": (
        lambda: CONTROL(tiny.stable_diffusion(), controlnet=control(tiny.unet(), conditioning_channels=1)),
        ["controlnet", "1 channels", "3"],
    ),
    "controlnet that pools": (
        lambda: CONTROL(tiny.stable_diffusion(), controlnet=swap_config(control(tiny.unet()), global_pool_conditions=True)),
        ["controlnet", "global_pool_conditions"],
    ),
    "not a controlnet": (
        lambda: CONTROL(tiny.stable_diffusion(), controlnet=tiny.unet()), ["controlnet", "UNet2DConditionModel", "ControlNetModel"],
    ),
    "controlnet in another dtype": (
        lambda: CONTROL(tiny.stable_diffusion(), controlnet=tiny.controlnet(tiny.unet()).half()),
        ["controlnet", "float16", "unet", "float32", r"controlnet.to(torch.float32)"],
    ),
    "normalizer in another dtype": (
        lambda: SD(swapped(tiny.unclip(), image_normalizer=normaliser(32).half())), ["image_normalizer", "float16", "unet", "float32"],
    ),
    "unet in two dtypes": (lambda: SD(swapped(tiny.variation(), unet=mixed(tiny.unet()))), ["unet", "float16", "float32", "conv_out"]),
}  # fmt: skip


def swap_config(net: Any, **changes: Any) -> Any:
    net.register_to_config(**changes)
    return net


def mixed(unet: Any) -> Any:
    unet.conv_out.half()
    return unet


class TestParts:
    @pytest.mark.parametrize("case", CASES)
    def test_that_do_not_fit_are_named(self, case: str) -> None:
        build, named = CASES[case]
        with pytest.raises(WeightsError) as raised:
            build()
        for part in named:
            assert part in str(raised.value), (part, str(raised.value))

    def test_from_files(self, tmp_path: Path) -> None:
        pipe = tiny.stable_diffusion()
        pipe.save_pretrained(tmp_path / "base")
        weights = tiny.ip_adapter(pipe.unet, embedding=48)
        (tmp_path / "models").mkdir()
        save_file({f"{p}.{k}": v.contiguous() for p, t in weights.items() for k, v in t.items()}, tmp_path / "models" / "ip.safetensors")
        tiny.image_encoder(32).save_pretrained(tmp_path / "models" / "image_encoder")
        tiny.image_encoder(48).save_pretrained(tmp_path / "models" / "other_encoder")
        adapter = (str(tmp_path), "models", "ip.safetensors")
        with pytest.raises(WeightsError, match=r"image_encoder makes embeddings of width 32, the IP-Adapter in the unet takes 48.*fourth"):
            gt.StableDiffusionVariation.from_pretrained(tmp_path / "base", ip_adapter=adapter)
        # What it advises works.
        generator = gt.StableDiffusionVariation.from_pretrained(
            tmp_path / "base", ip_adapter=(*adapter, "other_encoder"), num_inference_steps=1
        )
        assert generator(torch.rand(1, 3, 32, 32), torch.tensor([1])).isfinite().all()

    def test_that_convert_may_differ_in_dtype(self) -> None:
        pipe = tiny.unclip()
        pipe.image_encoder.to(torch.bfloat16)
        pipe.text_encoder.to(torch.bfloat16)
        pipe.vae.to(torch.bfloat16)
        assert SD(pipe, num_inference_steps=1)(torch.rand(1, 3, 32, 32), torch.tensor([1])).isfinite().all()

    def test_a_depth_estimator_in_another_dtype(self) -> None:
        base = tiny.stable_diffusion()
        estimator, processor = tiny.depth_estimator()
        generator = CONTROL(
            base, controlnet=tiny.controlnet(base.unet), condition="depth", depth_estimator=(estimator.to(torch.bfloat16), processor),
            num_inference_steps=1,
        )  # fmt: skip
        assert generator(torch.rand(1, 3, 32, 32), torch.tensor([1])).isfinite().all()


class TestChannelOrder:
    def test_a_controlnet_for_bgr_maps_is_shown_them(self) -> None:
        import diffusers
        import stock

        base = tiny.stable_diffusion()
        net = swap_config(tiny.controlnet(base.unet), controlnet_conditioning_channel_order="bgr")
        generator = CONTROL(base, controlnet=net, condition=lambda images: images, num_inference_steps=2)
        images, seeds = torch.rand(2, 3, 32, 32), torch.tensor([1, 2])
        arguments = {"image": images, "prompt": ["", ""], "parts": {"controlnet": net}}
        expected = stock.run(diffusers.StableDiffusionControlNetPipeline, generator, seeds, **arguments)
        assert (generator(images, seeds) - expected).abs().max() < 1e-4
