"""Tiny pipelines of other families than tiny_diffusion's, with random weights: the real components of diffusers, a few channels wide.

``python tests/tiny_pipelines.py`` writes those of docs/pipelines.md into the current folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_diffusion as tiny
import torch


def img2img() -> Any:
    """Stable Diffusion 1.5, image to image."""
    from diffusers import StableDiffusionImg2ImgPipeline

    return StableDiffusionImg2ImgPipeline(
        vae=tiny.vae(), text_encoder=tiny.text_encoder(), tokenizer=tiny.tokenizer(), unet=tiny.unet(), scheduler=tiny.scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def img2img_xl() -> Any:
    """Stable Diffusion XL, image to image."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    parts = tiny.stable_diffusion_xl().components
    taken = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    return StableDiffusionXLImg2ImgPipeline(**{name: parts[name] for name in taken}, add_watermarker=False)


def lcm() -> Any:
    """A latent consistency model, image to image."""
    from diffusers import LatentConsistencyModelImg2ImgPipeline, LCMScheduler

    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    return LatentConsistencyModelImg2ImgPipeline(
        vae=tiny.vae(), text_encoder=tiny.text_encoder(), tokenizer=tiny.tokenizer(), unet=tiny.unet(time_cond_proj_dim=16),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def t5() -> tuple[Any, Any]:
    """A T5 encoder and a tokenizer that knows single letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    letters = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=48)
    return T5EncoderModel(config).eval(), fast


def flux() -> Any:
    """FLUX, image to image."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline, FluxTransformer2DModel

    encoder, tokenizer = t5()
    torch.manual_seed(2)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    torch.manual_seed(3)
    vae = AutoencoderKL(
        block_out_channels=(16, 32), layers_per_block=1, latent_channels=2, norm_num_groups=8, sample_size=32, shift_factor=0.05,
        scaling_factor=1.5, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()  # fmt: skip
    return FluxImg2ImgPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=tiny.text_encoder(), tokenizer=tiny.tokenizer(),
        text_encoder_2=encoder, tokenizer_2=tokenizer, transformer=transformer,
    )  # fmt: skip


def kandinsky() -> tuple[Any, Any]:
    """Kandinsky 2.2: the decoder and its prior."""
    from diffusers import (
        DDPMScheduler,
        KandinskyV22Pipeline,
        KandinskyV22PriorPipeline,
        PriorTransformer,
        UnCLIPScheduler,
        UNet2DConditionModel,
        VQModel,
    )  # fmt: skip

    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=8, layers_per_block=1, block_out_channels=(32, 64), addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), encoder_hid_dim=32, encoder_hid_dim_type="image_proj",
        cross_attention_dim=32, attention_head_dim=4, resnet_time_scale_shift="scale_shift", class_embed_type=None,
    ).eval()  # fmt: skip
    torch.manual_seed(3)
    movq = VQModel(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), in_channels=3, latent_channels=4,
        layers_per_block=1, norm_num_groups=8, norm_type="spatial", num_vq_embeddings=12, out_channels=3,
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), vq_embed_dim=4,
    ).eval()  # fmt: skip
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=True, prediction_type="epsilon",
        variance_type="learned_range", thresholding=False,
    )  # fmt: skip
    torch.manual_seed(4)
    prior = PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=32, num_layers=1)
    priors = KandinskyV22PriorPipeline(
        prior=prior, image_encoder=tiny.image_encoder(), text_encoder=tiny.text_encoder(projection=True), tokenizer=tiny.tokenizer(),
        scheduler=UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample"), image_processor=tiny.image_processor(),
    )  # fmt: skip
    return KandinskyV22Pipeline(unet=unet, scheduler=scheduler, movq=movq), priors


def flux2_klein(layers: int = 3, resolutions: int = 2) -> Any:
    """FLUX.2 klein, which edits the image it is given by an instruction.

    Args:
        layers: of the text encoder; the pipeline's call reads those up to the 27th by default.
        resolutions: of the autoencoder; the released one has four.
    """
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(2)
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, timestep_guidance_channels=256, axes_dims_rope=[4, 4, 4, 4], guidance_embeds=False,
    ).eval()  # fmt: skip
    torch.manual_seed(3)
    vae = AutoencoderKLFlux2(
        sample_size=32, down_block_types=("DownEncoderBlock2D",) * resolutions, up_block_types=("UpDecoderBlock2D",) * resolutions,
        block_out_channels=(16,) * (resolutions - 1) + (32,), layers_per_block=1, latent_channels=4, norm_num_groups=8,
        use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip
    torch.manual_seed(5)
    config = Qwen3Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    _, tokenizer = t5()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=Qwen3ForCausalLM(config).eval(), tokenizer=tokenizer,
        transformer=transformer,
    )  # fmt: skip


def stable_diffusion_3() -> Any:
    """Stable Diffusion 3, image to image."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Img2ImgPipeline

    encoder, tokenizer = t5()
    torch.manual_seed(2)
    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=32,
        caption_projection_dim=32, pooled_projection_dim=64, out_channels=4,
    ).eval()  # fmt: skip
    torch.manual_seed(3)
    vae = AutoencoderKL(
        block_out_channels=(16, 32), layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=32, shift_factor=0.06,
        scaling_factor=1.5, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()  # fmt: skip
    return StableDiffusion3Img2ImgPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=tiny.text_encoder(projection=True),
        tokenizer=tiny.tokenizer(), text_encoder_2=tiny.text_encoder(projection=True, seed=5), tokenizer_2=tiny.tokenizer(),
        text_encoder_3=encoder, tokenizer_3=tokenizer,
    )  # fmt: skip


def flux_redux() -> tuple[Any, Any]:
    """FLUX from the embedding of an image, which FLUX Redux makes of SigLIP's."""
    from diffusers import FluxPipeline, FluxPriorReduxPipeline
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    parts = flux().components
    torch.manual_seed(6)
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    prior = FluxPriorReduxPipeline(
        image_encoder=SiglipVisionModel(config).eval(), feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
        image_embedder=ReduxImageEncoder(redux_dim=32, txt_in_features=32).eval(), text_encoder=parts["text_encoder"],
        tokenizer=parts["tokenizer"], text_encoder_2=parts["text_encoder_2"], tokenizer_2=parts["tokenizer_2"],
    )  # fmt: skip
    names = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
    return FluxPipeline(**{name: parts[name] for name in names}), prior


def z_image() -> Any:
    """Z-Image, image to image."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageImg2ImgPipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(2)
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        norm_eps=1e-5, qk_norm=True, cap_feat_dim=16, rope_theta=256.0, t_scale=1000.0, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in transformer.parameters():
            if not parameter.isfinite().all() or not parameter.any():
                parameter.normal_(0, 0.05)
    torch.manual_seed(3)
    vae = AutoencoderKL(
        block_out_channels=(16, 32), layers_per_block=1, latent_channels=16, norm_num_groups=8, sample_size=32, shift_factor=0.06,
        scaling_factor=0.36, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()  # fmt: skip
    torch.manual_seed(5)
    config = Qwen3Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    _, tokenizer = t5()
    tokenizer.chat_template = "{% for m in messages %}user {{ m['content'] }}{% endfor %}"
    return ZImageImg2ImgPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=Qwen3Model(config).eval(), tokenizer=tokenizer,
        transformer=transformer,
    )  # fmt: skip


def sana_sprint() -> Any:
    """SANA-Sprint, image to image, in one or two steps."""
    from diffusers import AutoencoderDC, SanaSprintImg2ImgPipeline, SanaTransformer2DModel, SCMScheduler
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(2)
    transformer = SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4, num_cross_attention_heads=2,
        cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8, sample_size=32, qk_norm="rms_norm_across_heads",
        guidance_embeds=True,
    ).eval()  # fmt: skip
    torch.manual_seed(3)
    vae = AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
        decoder_act_fns="silu", scaling_factor=0.41407,
    ).eval()  # fmt: skip
    torch.manual_seed(5)
    config = Gemma2Config(
        vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=4,
        bos_token_id=None, eos_token_id=1, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    return SanaSprintImg2ImgPipeline(
        tokenizer=t5()[1], text_encoder=Gemma2Model(config).eval(), vae=vae, transformer=transformer, scheduler=SCMScheduler()
    )


def qwen_image_edit() -> Any:
    """Qwen-Image-Edit, which reads the image with the instruction."""
    from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageEditPipeline, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(2)
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=3, joint_attention_dim=16,
        guidance_embeds=False, axes_dims_rope=(8, 4, 4),
    ).eval()  # fmt: skip
    torch.manual_seed(3)
    vae = AutoencoderKLQwenImage(
        base_dim=12, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    processor = qwen_processor()
    ids = {
        name: processor.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    torch.manual_seed(5)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
            "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
        },
        vision_config={"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
        image_token_id=ids["image_pad"], video_token_id=ids["video_pad"], vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )  # fmt: skip
    return QwenImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=processor.tokenizer, processor=processor, transformer=transformer,
    )  # fmt: skip


def qwen_image() -> Any:
    """Qwen-Image as image to image: text from a language model, and patches that the pipeline packs."""
    from diffusers import QwenImageImg2ImgPipeline

    parts = qwen_image_edit().components
    return QwenImageImg2ImgPipeline(**{name: part for name, part in parts.items() if name != "processor"})


def qwen_processor() -> Any:
    """The processor of Qwen2-VL, whose tokenizer knows single letters."""
    from transformers import Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    special = [f"<|{name}|>" for name in ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")]
    letters = {token: i for i, token in enumerate(["<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Qwen2Tokenizer(vocab=letters, merges=[], unk_token="<|endoftext|>", pad_token="<|endoftext|>", extra_special_tokens=special)
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(max_pixels=56 * 56), tokenizer=tokenizer, video_processor=Qwen2VLVideoProcessor()
    )


def kandinsky_depth() -> tuple[Any, Any]:
    """Kandinsky 2.2 with a depth map beside the image's embedding."""
    from diffusers import KandinskyV22ControlnetPipeline, UNet2DConditionModel, VQModel

    decoder, prior = kandinsky()
    torch.manual_seed(2)
    config = {name: value for name, value in decoder.unet.config.items() if not name.startswith("_")}
    unet = UNet2DConditionModel(**config | {"in_channels": 8, "addition_embed_type": "image_hint"}).eval()
    torch.manual_seed(3)
    config = {name: value for name, value in decoder.movq.config.items() if not name.startswith("_")}
    # The hint is made eight times smaller, as MoVQ's latents are.
    config |= {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
    config |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return KandinskyV22ControlnetPipeline(unet=unet, scheduler=decoder.scheduler, movq=VQModel(**config).eval()), prior


def write_repositories(folder: Path) -> None:
    """Write what stands for the repositories of docs/pipelines.md into a folder, under their names."""
    decoder, prior = kandinsky()
    parts = {
        "stabilityai/sdxl-turbo": tiny.stable_diffusion_xl(),
        "kandinsky-community/kandinsky-2-2-decoder": decoder,
        "kandinsky-community/kandinsky-2-2-prior": prior,
        "black-forest-labs/FLUX.2-klein-4B": flux2_klein(layers=28, resolutions=4),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)


if __name__ == "__main__":
    write_repositories(Path())
