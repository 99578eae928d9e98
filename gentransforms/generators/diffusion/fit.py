"""Check that the parts of a pipeline fit together: when a generator is built, not at the first image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from gentransforms.errors import WeightsError
from gentransforms.generators.diffusion.state import quantisation
from gentransforms.generators.identity import uncompiled
from gentransforms.wording import with_article

__all__ = ["check_controlnets", "check_parts", "check_placement"]


def check_parts(pipe: Any, kind: str) -> None:
    """Raise unless image encoder, text encoders, UNet, VAE and scheduler of a pipeline fit each other.

    Args:
        pipe: a diffusers pipeline of one of the bases.
        kind: how its UNet is conditioned on an image, one of `appearance.KINDS`.

    Raises:
        WeightsError: naming both parts, their widths, and what to use instead.
    """
    unet, vae = uncompiled(pipe.unet).config, uncompiled(pipe.vae).config
    if unet.in_channels != unet.out_channels:
        raise WeightsError(
            f"unet takes {unet.in_channels} channels and makes {unet.out_channels}: it is one for inpainting or editing; use a Stable "
            "Diffusion repository for generating images, whose UNet has as many channels in as out"
        )
    _same("vae", "latents", vae.latent_channels, "unet", unet.in_channels, "give vae= the VAE of this base, or leave it out")
    if kind == "variation":
        _same(
            "image_encoder", "embeddings", _image_width(pipe), "unet", unet.cross_attention_dim,
            "use the image encoder that the repository came with",
        )  # fmt: skip
    else:
        _check_text(pipe, unet)
    if kind == "unclip":
        width = _image_width(pipe)
        normalizer = getattr(pipe.image_normalizer, "mean", torch.empty(1, width)).shape[-1]
        _same("image_encoder", "embeddings", width, "image_normalizer", normalizer, "both come with one unCLIP repository")
        labels = unet.projection_class_embeddings_input_dim
        _same(
            "image_encoder", "embeddings", 2 * width, "unet", labels,
            "an embedding and its noise level, each of that width, are the UNet's class label: use the unCLIP repository's own encoder",
        )  # fmt: skip
    if kind == "ip-adapter":
        _check_ip_adapter(pipe)


def _check_text(pipe: Any, unet: Any) -> None:
    encoders = {name: uncompiled(getattr(pipe, name, None)) for name in ("text_encoder", "text_encoder_2")}
    encoders = {name: encoder for name, encoder in encoders.items() if encoder is not None}
    if not encoders:
        raise WeightsError(
            f"the {type(pipe).__name__} has no text_encoder: load the repository with it, since even the empty prompt needs one"
        )
    widths = {name: encoder.config.hidden_size for name, encoder in encoders.items()}
    _same(
        " and ".join(widths), "text states", sum(widths.values()), "unet", unet.cross_attention_dim,
        "use the text encoder of the UNet's own base (Stable Diffusion 1: 768, 2: 1024, XL: 768 and 1280)",
    )  # fmt: skip
    for name, encoder in encoders.items():
        tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"), None)
        rows = encoder.get_input_embeddings().weight.shape[0]
        if tokenizer is not None and len(tokenizer) > rows:
            raise WeightsError(
                f"{name} has {rows} tokens, its tokenizer {len(tokenizer)}: load the textual inversion into the pipeline with "
                "pipe.load_textual_inversion(…), which adds to both"
            )
        longest = encoder.config.max_position_embeddings
        if tokenizer is not None and longest < tokenizer.model_max_length < 10**6:
            raise WeightsError(
                f"{name} takes {longest} tokens, its tokenizer up to {tokenizer.model_max_length}: use the tokenizer of the same repository"
            )
    if unet.addition_embed_type == "text_time" and "text_encoder_2" in encoders:
        pooled = encoders["text_encoder_2"].config.projection_dim + 6 * unet.addition_time_embed_dim
        _same(
            "text_encoder_2", "pooled text and sizes", pooled, "unet", unet.projection_class_embeddings_input_dim,
            "use the second text encoder of this Stable Diffusion XL repository",
        )  # fmt: skip


def _check_ip_adapter(pipe: Any) -> None:
    layers = uncompiled(pipe.unet).encoder_hid_proj.image_projection_layers
    wanted = next((m.in_features for m in layers[0].modules() if isinstance(m, nn.Linear)), None)
    encoder = uncompiled(pipe.image_encoder)
    hidden = type(layers[0]).__name__ != "ImageProjection"
    found = encoder.config.hidden_size if hidden else encoder.config.projection_dim
    what = "hidden states" if hidden else "embeddings"
    if wanted is not None and found != wanted:
        raise WeightsError(
            f"image_encoder makes {what} of width {found}, the IP-Adapter in the unet takes {wanted}: it was trained with another encoder; "
            "give ip_adapter=(repo, subfolder, weight_name, image_encoder_folder) with the encoder's folder as fourth entry, for example "
            "'models/image_encoder' (width 1024) or 'sdxl_models/image_encoder' (1280) of h94/IP-Adapter"
        )
    side, crop = encoder.config.image_size, getattr(getattr(pipe, "feature_extractor", None), "crop_size", None) or {}
    height = crop.get("height") if hasattr(crop, "get") else getattr(crop, "height", None)
    if height is not None and height != side:
        raise WeightsError(
            f"feature_extractor crops images to {height} pixels, image_encoder takes {side}: "
            f"give the pipeline feature_extractor=CLIPImageProcessor(size={side}, crop_size={side})"
        )


def check_controlnets(nets: Mapping[str, Any], unet: Any) -> None:
    """Raise unless each ControlNet fits the UNet.

    Raises:
        WeightsError: naming the ControlNet, what differs, and what to give instead.
    """
    unet = uncompiled(unet).config
    for name, net in nets.items():
        kind = type(uncompiled(net)).__name__
        if kind != "ControlNetModel":
            raise WeightsError(f"{name} is {with_article(kind)}: expected a ControlNetModel; other kinds are called with other arguments")
        config = uncompiled(net).config
        advice = f"give controlnet= one that was trained for this base (its width is {unet.cross_attention_dim})"
        _same(name, "text states", config.cross_attention_dim, "unet", unet.cross_attention_dim, advice, verb="takes")
        _same(name, "latents", config.in_channels, "unet", unet.in_channels, advice, verb="takes")
        for field in ("block_out_channels", "layers_per_block", "addition_embed_type", "projection_class_embeddings_input_dim"):
            own, other = (_listed(getattr(c, field, None)) for c in (config, unet))
            if field == "projection_class_embeddings_input_dim" and config.class_embed_type is None and config.addition_embed_type is None:
                continue
            if own != other:
                raise WeightsError(f"{name} has {field} {own}, the unet {other}: {advice}")
        if config.conditioning_channels != 3:
            raise WeightsError(
                f"{name} takes control maps of {config.conditioning_channels} channels: expected 3; use a ControlNet for RGB maps"
            )
        if getattr(config, "global_pool_conditions", False):
            raise WeightsError(
                f"{name} pools its control map (global_pool_conditions), so the layout is lost: use a ControlNet that keeps it"
            )


def check_placement(networks: Mapping[str, nn.Module]) -> None:
    """Raise unless networks that work on each other's tensors share a device and, where they do not convert, a dtype.

    The encoders, the VAE and a depth estimator may have a dtype of their own, because their output is converted.

    Raises:
        WeightsError: naming the networks, both dtypes or devices, and what to call.
    """
    unet = networks["unet"]
    device, dtype = _first_device(unet), _dtypes(unet)
    for name, network in networks.items():
        if (own := _first_device(network)) not in (None, device):
            raise WeightsError(f"{name} is on {own}, unet on {device}: move all parts to one device, {name}.to({str(device)!r})")
        if quantisation(network) is not None:
            continue
        kinds = _dtypes(network)
        # Float32 norms inside a float16 network are intended (transformers and diffusers keep some), in an encoder that converts.
        must_match = name == "unet" or name.startswith("controlnet") or name == "image_normalizer"
        if must_match and len(kinds) > 1:
            first, second = sorted(map(str, kinds))[:2]
            example = {d: next(path for path, t in network.named_parameters() if t.dtype == d) for d in kinds}
            raise WeightsError(
                f"{name} holds weights in {first} and in {second} ({', '.join(example.values())}): "
                f"convert all to one dtype, {name}.to(dtype)"
            )
        if must_match and kinds and dtype and kinds != dtype and quantisation(unet) is None:
            own_dtype, other = next(iter(kinds)), next(iter(dtype))
            raise WeightsError(
                f"{name} is in {own_dtype}, unet in {other}: convert both to one dtype, {name}.to({other}), or pass "
                "dtype= to from_pretrained"
            )


def _same(name: str, what: str, own: Any, other: str, expected: Any, advice: str, verb: str = "makes") -> None:
    if own != expected:
        raise WeightsError(f"{name} {verb} {what} of width {own}, the {other} takes {expected}: {advice}")


def _image_width(pipe: Any) -> int:
    return int(uncompiled(pipe.image_encoder).config.projection_dim)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _first_device(network: nn.Module) -> torch.device | None:
    return next((t.device for t in _tensors(network)), None)


def _dtypes(network: nn.Module) -> set[torch.dtype]:
    return {t.dtype for t in network.parameters() if t.is_floating_point()}


def _tensors(network: nn.Module) -> Iterator[torch.Tensor]:
    yield from network.parameters()
    yield from network.buffers()
