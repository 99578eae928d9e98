"""Tiny diffusers pipelines with random weights: the real components, from configs of a few channels."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

VOCABULARY = Path(tempfile.mkdtemp())


def tokenizer() -> Any:
    """A CLIP tokenizer that knows single letters: its files, and the class that reads them, are the real ones."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (VOCABULARY / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (VOCABULARY / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(VOCABULARY / "vocab.json"), str(VOCABULARY / "merges.txt"), model_max_length=16)


def text_encoder(width: int = 32, projection: bool = False, seed: int = 0) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        bos_token_id=52, eos_token_id=53, pad_token_id=53, vocab_size=54, hidden_size=width, intermediate_size=37, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=16, projection_dim=width, initializer_range=0.3,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def image_encoder(width: int = 32, side: int = 32) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=3, num_attention_heads=4, image_size=side, patch_size=8,
        projection_dim=width, initializer_range=0.3,
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config).eval()


def image_processor(side: int = 32) -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def unet(**changes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(2)
    config = {
        "sample_size": 16, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32, "attention_head_dim": (2, 4), "norm_num_groups": 8, "use_linear_projection": True,
    }  # fmt: skip
    return UNet2DConditionModel(**(config | changes)).eval()


def vae() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(3)
    return AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1, latent_channels=4, norm_num_groups=8,
        sample_size=32, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip


def scheduler(**changes: Any) -> Any:
    from diffusers import PNDMScheduler

    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True, "steps_offset": 1}
    return PNDMScheduler(**(config | changes))


def unclip() -> Any:
    """As Stable Diffusion 2.1 unCLIP: noised image embedding as class labels, v-prediction, text."""
    from diffusers import DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer

    torch.manual_seed(4)
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=32)
    with torch.no_grad():
        normalizer.mean.normal_(0, 0.1)
        normalizer.std.uniform_(0.5, 1.5)
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=image_processor(), image_encoder=image_encoder(), image_normalizer=normalizer,
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"), tokenizer=tokenizer(), text_encoder=text_encoder(),
        unet=unet(class_embed_type="projection", projection_class_embeddings_input_dim=64),
        scheduler=DDIMScheduler(**_SD, prediction_type="v_prediction"), vae=vae(),
    )  # fmt: skip


def variation() -> Any:
    """As sd-image-variations: the image embedding in place of the text."""
    from diffusers import StableDiffusionImageVariationPipeline

    return StableDiffusionImageVariationPipeline(
        vae=vae(), image_encoder=image_encoder(), unet=unet(), scheduler=scheduler(), safety_checker=None,
        feature_extractor=image_processor(), requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion(**changes: Any) -> Any:
    """As Stable Diffusion 1.5."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae(), text_encoder=text_encoder(), tokenizer=tokenizer(), unet=unet(**changes), scheduler=scheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl() -> Any:
    """As Stable Diffusion XL: two text encoders, pooled text, sizes, zeros for an empty negative prompt."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=text_encoder(16), text_encoder_2=text_encoder(16, projection=True, seed=5), tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1),
        add_watermarker=False,
        unet=unet(addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16),
    )  # fmt: skip


def controlnet(of: Any, seed: int = 6) -> Any:
    """A ControlNet of a UNet, whose zero convolutions are not zero."""
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    changes = {"conditioning_embedding_out_channels": (8, 16)}
    net = ControlNetModel.from_unet(of, load_weights_from_unet=False, **changes)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return net.eval()


def ip_adapter(of: Any, hidden: bool = False, embedding: int = 32) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of an IP-Adapter for a UNet, in the layout of the released files; `hidden` for the Plus kind.

    `embedding` is the width of the image encoder's embeddings.
    """
    torch.manual_seed(7)
    width = of.config.cross_attention_dim
    names = [name for name in of.attn_processors if name.endswith("attn2.processor")]
    weights: dict[str, torch.Tensor] = {}
    for i, name in enumerate(of.attn_processors):
        if name in names:
            module = of.get_submodule(name.removesuffix(".processor"))
            for part in ("k", "v"):
                weights[f"{i}.to_{part}_ip.weight"] = torch.randn(module.to_k.weight.shape[0], width) * 0.2
    if not hidden:
        projection = {"proj.weight": torch.randn(4 * width, embedding) * 0.2, "proj.bias": torch.randn(4 * width) * 0.2}
        projection |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
        return {"image_proj": projection, "ip_adapter": weights}
    resampler = {
        "latents": torch.randn(1, 4, width) * 0.2,
        "proj_in.weight": torch.randn(width, 32) * 0.2,
        "proj_in.bias": torch.zeros(width),
    }
    resampler |= {"proj_out.weight": torch.randn(width, width) * 0.2, "proj_out.bias": torch.zeros(width)}
    resampler |= {"norm_out.weight": torch.ones(width), "norm_out.bias": torch.zeros(width)}
    for n in range(4):  # as many layers as the released ones have
        for part in ("0.norm1", "0.norm2", "1.0"):
            resampler |= {f"layers.{n}.{part}.weight": torch.ones(width), f"layers.{n}.{part}.bias": torch.zeros(width)}
        shapes = {
            "0.to_q": (64, width),
            "0.to_kv": (128, width),
            "0.to_out": (width, 64),
            "1.1": (4 * width, width),
            "1.3": (width, 4 * width),
        }
        resampler |= {f"layers.{n}.{part}.weight": torch.randn(shape) * 0.2 for part, shape in shapes.items()}
    return {"image_proj": resampler, "ip_adapter": weights}


_SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}


def depth_estimator(**changes: Any) -> tuple[Any, Any]:
    """A depth-estimation model of transformers (DPT) and its image processor."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(9)
    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, initializer_range=0.3, **changes,
    )  # fmt: skip
    return DPTForDepthEstimation(config).eval(), DPTImageProcessor(size={"height": 32, "width": 32})


def depth_anything() -> tuple[Any, Any]:
    """Depth Anything, the default, and its image processor: the aspect ratio kept, in multiples of its patches."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    torch.manual_seed(9)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14, reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"], apply_layernorm=True, initializer_range=0.3,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, head_hidden_size=8,
        patch_size=14, initializer_range=0.3,
    )  # fmt: skip
    processor = DPTImageProcessor(size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14)
    return DepthAnythingForDepthEstimation(config).eval(), processor


def glpn() -> tuple[Any, Any]:
    """A depth-estimation model of metres, whose processor gives a divisor instead of a size."""
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessor

    torch.manual_seed(9)
    config = GLPNConfig(
        hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_encoder_blocks=4,
        initializer_range=0.3,
    )  # fmt: skip
    return GLPNForDepthEstimation(config).eval(), GLPNImageProcessor()
