"""DeepCache: deep features change little from step to step, so that most steps take them from an earlier one.

A UNet goes down through ever coarser features and up again, and on the way up each layer is joined by a skip connection with what
the way down left there. Skip connection 0 carries the output of the first convolution and is used last. With branch B, a cached step
computes skip connections 0 to B, and the layers that use them; what these start from, the output of all that lies deeper, is that
of the last full step.

Source: Ma, Fang and Wang, "DeepCache: Accelerating Diffusion Models for Free" (CVPR 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.appearance import UNetInputs
from gentransforms.generators.identity import uncompiled
from gentransforms.wording import with_article

__all__ = ["check_branch", "control_residuals", "count_skips", "run_unet"]

# Blocks whose layers are known here, each a residual block and perhaps a transformer, then perhaps a change of resolution.
_DOWN, _UP = {"DownBlock2D", "CrossAttnDownBlock2D"}, {"UpBlock2D", "CrossAttnUpBlock2D"}


def run_unet(
    unet: Any,
    noisy: Tensor,
    t: Tensor,
    inputs: UNetInputs,
    *,
    branch: int,
    timestep_cond: Tensor | None = None,
    residuals: Sequence[Tensor] = (),
    middle: Tensor | None = None,
    deep: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the prediction of a ``UNet2DConditionModel``, and the deep features that the layers of `branch` start from.

    Args:
        unet: one that `check_branch` let pass.
        noisy: (B, C, h, w).
        t: the timestep, 0-dim, on the same device.
        inputs: the other conditions of each image.
        branch: the deepest skip connection that a cached step computes.
        timestep_cond: (B, D), for networks that were distilled with guidance.
        residuals: what ControlNets add to the skip connections: to all, or, with `deep`, to those up to `branch`.
        middle: what they add to the output of the middle block; none is needed with `deep`.
        deep: the deep features of an earlier step, for a cached one; by default the whole network runs.

    Returns:
        prediction (B, C, h, w), deep features (B, C', h', w').
    """
    sample = 2 * noisy - 1.0 if unet.config.center_input_sample else noisy
    emb = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=t), timestep_cond)
    labels = unet.get_class_embed(sample=sample, class_labels=inputs.class_labels)
    if labels is not None:
        emb = torch.cat([emb, labels], dim=-1) if unet.config.class_embeddings_concat else emb + labels
    context = inputs.encoder_hidden_states
    further = unet.get_aug_embed(emb=emb, encoder_hidden_states=context, added_cond_kwargs=inputs.added)
    if further is not None:
        emb = emb + further
    if unet.time_embed_act is not None:
        emb = unet.time_embed_act(emb)
    context = unet.process_encoder_hidden_states(encoder_hidden_states=context, added_cond_kwargs=inputs.added)
    skips = _go_down(unet, unet.conv_in(sample), emb, context, count_skips(unet) if deep is None else branch + 1)
    hidden = skips[-1] if deep is None else deep
    if residuals:
        skips = [skip + residual for skip, residual in zip(skips, residuals, strict=True)]
    if deep is None:
        hidden = _cross_middle(unet, hidden, emb, context)
        if middle is not None:
            hidden = hidden + middle
    hidden, deep = _go_up(unet, hidden, emb, context, skips, branch)
    if unet.conv_norm_out is not None:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    return unet.conv_out(hidden), deep


def control_residuals(
    net: Any, noisy: Tensor, t: Tensor, inputs: UNetInputs, embedded: Tensor, *, scale: float, branch: int
) -> list[Tensor]:
    """Return what a ``ControlNetModel`` adds to skip connections 0 to `branch` of a UNet; nothing deeper is computed.

    Args:
        net: the ControlNet.
        noisy: (B, C, h, w).
        t: the timestep, 0-dim, on the same device.
        inputs: the other conditions of each image.
        embedded: (B, C', h, w), the control maps as its ``controlnet_cond_embedding`` embeds them.
        scale: weight of the ControlNet.
        branch: the deepest skip connection.
    """
    steps = net.time_proj(t[None].expand(len(noisy))).to(noisy.dtype)
    emb = net.time_embedding(steps)
    if net.class_embedding is not None:
        labels = net.time_proj(inputs.class_labels) if net.config.class_embed_type == "timestep" else inputs.class_labels
        emb = emb + net.class_embedding(labels).to(noisy.dtype)
    if net.config.addition_embed_type == "text":
        emb = emb + net.add_embedding(inputs.encoder_hidden_states)
    elif net.config.addition_embed_type == "text_time":
        texts = inputs.added["text_embeds"]
        sizes = net.add_time_proj(inputs.added["time_ids"].flatten()).reshape(len(texts), -1)
        emb = emb + net.add_embedding(torch.cat([texts, sizes], dim=-1).to(emb.dtype))
    skips = _go_down(net, net.conv_in(noisy) + embedded, emb, inputs.encoder_hidden_states, branch + 1)
    return [zero(skip) * scale for zero, skip in zip(net.controlnet_down_blocks, skips, strict=False)]


def count_skips(unet: Any) -> int:
    """Return how many skip connections a UNet has."""
    return sum(len(block.resnets) for block in unet.up_blocks)


def check_branch(unet: Any, branch: Any, interval: int) -> int:
    """Return the branch of a cache, if the UNet has it; 0 where `interval` is 1 and nothing is cached.

    Raises:
        ConfigError: if it has not, or is of a kind whose parts are not known here; if a branch is given and nothing is cached.
    """
    if interval == 1:
        if branch != 0:
            raise ConfigError(f"cache_branch={branch!r} has no effect with cache_interval=1: leave it out, or give cache_interval=2")
        return 0
    unet = uncompiled(unet)
    found = {type(block).__name__ for blocks in (unet.down_blocks, unet.up_blocks) for block in blocks}
    if type(unet).__name__ != "UNet2DConditionModel" or (unknown := sorted(found - _DOWN - _UP)) or unet.mid_block is None:
        strange = unknown[0] if type(unet).__name__ == "UNet2DConditionModel" and unknown else type(unet).__name__
        raise ConfigError(
            f"cache_interval: the unet has {with_article(strange)}, and only UNets of {', '.join(sorted(_DOWN | _UP))} can be cached: "
            "leave it out"
        )
    last = count_skips(unet) - 1
    if type(branch) is not int or not 0 <= branch <= last:
        raise ConfigError(f"cache_branch={branch!r}: expected an integer from 0, the least work, to {last}, for this UNet")
    return branch


def _go_down(net: Any, sample: Tensor, emb: Tensor, context: Any, count: int) -> list[Tensor]:
    """Return the first `count` skip connections of a UNet or ControlNet; nothing beyond them is computed."""
    skips = [sample]
    for block in net.down_blocks:
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        layers = [*zip(block.resnets, attentions, strict=True), *([None] if block.downsamplers else [])]
        for layer in layers:
            if len(skips) == count:
                return skips
            if layer is None:
                for downsampler in block.downsamplers:
                    sample = downsampler(sample)
            else:
                sample = _run_layer(*layer, sample, emb, context)
            skips.append(sample)
    return skips


def _cross_middle(unet: Any, hidden: Tensor, emb: Tensor, context: Any) -> Tensor:
    attends = getattr(unet.mid_block, "has_cross_attention", False)
    crossed: Tensor = unet.mid_block(hidden, emb, **({"encoder_hidden_states": context} if attends else {}))
    return crossed


def _go_up(unet: Any, hidden: Tensor, emb: Tensor, context: Any, skips: list[Tensor], branch: int) -> tuple[Tensor, Tensor]:
    """Return what the layers that use `skips` make of `hidden`, and what those of `branch` and above started from."""
    from diffusers.utils.torch_utils import apply_freeu

    deep, skips, started = hidden, list(skips), len(skips)
    # Where the latents are not a multiple of what the UNet shrinks by, each upsampler has to meet the size of the next skip connection.
    uneven = any(side % 2**unet.num_upsamplers for side in skips[0].shape[-2:])
    below = count_skips(unet)
    for block in unet.up_blocks:
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        freeu = {name: getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")}
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            below -= 1
            if below >= len(skips):
                continue  # deeper than a cached step goes
            if below == branch:
                deep = hidden
            skip = skips.pop()
            if all(freeu.values()):
                # It works in place, on what may be the cached features.
                hidden, skip = apply_freeu(block.resolution_idx, hidden.clone(), skip, **freeu)
            hidden = _run_layer(resnet, attention, torch.cat([hidden, skip], dim=1), emb, context)
        if block.upsamplers and below == len(skips) < started:
            for upsampler in block.upsamplers:
                hidden = upsampler(hidden, skips[-1].shape[2:] if uneven else None)
    return hidden, deep


def _run_layer(resnet: Any, attention: Any, hidden: Tensor, emb: Tensor, context: Any) -> Tensor:
    hidden = resnet(hidden, emb)
    if attention is not None:
        hidden = attention(hidden, encoder_hidden_states=context, return_dict=False)[0]
    return hidden
