"""The released models at full size, with random weights: their published configurations, built on any device, or on none (meta)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

__all__ = ["KINDS", "build", "controlnet", "image_encoder", "reduced_unclip", "tiny_vae", "unet", "vae"]

_SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}
# width, layers, heads, feed-forward width, projection
_VISION = {"ViT-H/14": (1280, 32, 16, 5120, 1024), "ViT-L/14": (1024, 24, 16, 4096, 768)}
_TEXT = {"2.1": (1024, 23, 16, 4096), "1.5": (768, 12, 12, 3072), "xl": (1280, 32, 20, 5120)}  # XL's second; its first is that of 1.5
KINDS = ("unclip-large", "unclip-small", "variation", "sd15", "sdxl")


def unet(version: str, **changes: Any) -> Any:
    """The UNet of Stable Diffusion 2.1, 1.5 or XL."""
    from diffusers import UNet2DConditionModel

    config: dict[str, Any] = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2}
    if version == "xl":
        config |= {
            "sample_size": 128, "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048, "use_linear_projection": True, "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
        }  # fmt: skip
    elif version == "2.1":
        config |= {"sample_size": 96, "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True}
    else:
        config |= {"attention_head_dim": 8, "cross_attention_dim": 768}
    return UNet2DConditionModel(**(config | changes))


def vae() -> Any:
    """The VAE of Stable Diffusion 1 and 2."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def tiny_vae() -> Any:
    """Its small replacement, taesd, whose configuration is the class's default."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny()


def controlnet(of: Any) -> Any:
    """A ControlNet for a UNet."""
    from diffusers import ControlNetModel

    return ControlNetModel.from_unet(of, load_weights_from_unet=False)


def image_encoder(name: str) -> Any:
    """CLIP's image encoder, 224 pixels: ``"ViT-H/14"`` or ``"ViT-L/14"``."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    width, layers, heads, inner, projection = _VISION[name]
    return CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner, projection_dim=projection,
        image_size=224, patch_size=14, hidden_act="gelu" if name == "ViT-H/14" else "quick_gelu",
    ))  # fmt: skip


def text_encoder(version: str) -> Any:
    """CLIP's text encoder as in Stable Diffusion 2.1 or 1.5, or the second of XL."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    width, layers, heads, inner = _TEXT[version]
    return (CLIPTextModelWithProjection if version == "xl" else CLIPTextModel)(CLIPTextConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner, max_position_embeddings=77,
        vocab_size=49408, hidden_act="quick_gelu" if version == "1.5" else "gelu", bos_token_id=52, eos_token_id=53, pad_token_id=53,
        projection_dim=width,
    ))  # fmt: skip


def tokenizer() -> Any:
    """A CLIP tokenizer of single letters: 77 tokens for a text, as the released one."""
    from transformers import CLIPTokenizer

    folder = Path(tempfile.mkdtemp())
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def build(kind: str, device: torch.device | str = "meta", dtype: torch.dtype = torch.float32) -> Any:
    """Return the diffusers pipeline of one of `KINDS`, with random weights.

    ``unclip-large`` (ViT-H/14) and ``unclip-small`` (ViT-L/14) are Stable Diffusion 2.1 unCLIP, ``variation`` is
    sd-image-variations, ``sd15`` Stable Diffusion 1.5, ``sdxl`` Stable Diffusion XL.
    """
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            parts = _networks(kind)
    finally:
        torch.set_default_dtype(before)
    return _pipeline(kind, {name: part.eval() for name, part in parts.items()})


def reduced_unclip() -> Any:
    """Stable Diffusion 2.1 unCLIP in small, for CPUs: same blocks, a fifth of the width, and a UNet that takes most of the time."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=256, num_hidden_layers=12, num_attention_heads=8, intermediate_size=1024, projection_dim=256, image_size=224,
        patch_size=14,
    )  # fmt: skip
    text = CLIPTextConfig(
        hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512, vocab_size=54, bos_token_id=52, eos_token_id=53,
        pad_token_id=53,
    )  # fmt: skip
    small = AutoencoderKL(
        block_out_channels=(16, 32, 32, 32), layers_per_block=1, latent_channels=4, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    parts = {
        "unet": unet(
            "2.1", sample_size=32, block_out_channels=(64, 128, 256, 256), attention_head_dim=(2, 4, 8, 8), cross_attention_dim=128,
            class_embed_type="projection", projection_class_embeddings_input_dim=512,
        ),
        "vae": small, "image_encoder": CLIPVisionModelWithProjection(vision), "text_encoder": CLIPTextModel(text),
    }  # fmt: skip
    return _pipeline("unclip-reduced", {name: part.eval() for name, part in parts.items()})


def _networks(kind: str) -> dict[str, Any]:
    if kind == "sd15":
        return {"unet": unet("1.5"), "vae": vae(), "text_encoder": text_encoder("1.5")}
    if kind == "sdxl":
        return {"unet": unet("xl"), "vae": vae(), "text_encoder": text_encoder("1.5"), "text_encoder_2": text_encoder("xl")}
    if kind == "variation":
        return {"unet": unet("1.5"), "vae": vae(), "image_encoder": image_encoder("ViT-L/14")}
    name = {"unclip-large": "ViT-H/14", "unclip-small": "ViT-L/14"}[kind]
    classes = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * _VISION[name][4]}
    return {"unet": unet("2.1", **classes), "vae": vae(), "image_encoder": image_encoder(name), "text_encoder": text_encoder("2.1")}


def _pipeline(kind: str, parts: dict[str, Any]) -> Any:
    import diffusers
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
    from transformers import CLIPImageProcessor

    if kind == "sd15":
        return diffusers.StableDiffusionPipeline(
            **parts, tokenizer=tokenizer(), scheduler=diffusers.PNDMScheduler(**_pndm()), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    if kind == "sdxl":
        return diffusers.StableDiffusionXLPipeline(
            **parts, tokenizer=tokenizer(), tokenizer_2=tokenizer(), scheduler=diffusers.EulerDiscreteScheduler(**_betas()),
            add_watermarker=False,
        )  # fmt: skip
    if kind == "variation":
        return diffusers.StableDiffusionImageVariationPipeline(
            **parts, scheduler=diffusers.PNDMScheduler(**_pndm()), safety_checker=None, feature_extractor=CLIPImageProcessor(),
            requires_safety_checker=False,
        )  # fmt: skip
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=parts["image_encoder"].config.projection_dim)
    return diffusers.StableUnCLIPImg2ImgPipeline(
        **parts, feature_extractor=CLIPImageProcessor(), tokenizer=tokenizer(),
        image_normalizer=normalizer.to(parts["unet"].device, parts["unet"].dtype),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        scheduler=diffusers.PNDMScheduler(**_pndm(), prediction_type="v_prediction"),
    )  # fmt: skip


def _pndm() -> dict[str, Any]:
    return _betas() | {"skip_prk_steps": True}


def _betas() -> dict[str, Any]:
    return {name: value for name, value in _SD.items() if name != "clip_sample"}
