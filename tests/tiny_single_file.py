"""A tiny Stable Diffusion as one checkpoint file, in the names of its first authors' code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
_OUTER = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
          "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write(pipe: Any, file: Path) -> Path:
    """Write UNet, VAE and text encoder of a tiny Stable Diffusion pipeline."""
    layers = pipe.unet.config.layers_per_block
    weights = {f"model.diffusion_model.{unet_name(name, layers)}": value for name, value in pipe.unet.state_dict().items()}
    depth = len(pipe.vae.config.block_out_channels)
    for name, value in pipe.vae.state_dict().items():
        renamed = vae_name(name, depth)
        square = renamed.endswith(("q.weight", "k.weight", "v.weight", "proj_out.weight")) and value.ndim == 2
        weights[f"first_stage_model.{renamed}"] = value[..., None, None] if square else value
    for name, value in pipe.text_encoder.state_dict().items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    save_file({name: value.contiguous().clone() for name, value in weights.items()}, file)
    return file


def unet_name(name: str, layers: int) -> str:
    for ours, theirs in _OUTER.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    if match := re.match(r"mid_block\.(\w+\.\d)\.(.*)", name):
        return f"middle_block.{_MIDDLE[match[1]]}.{inner_name(match[1], match[2])}"
    match = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name)
    assert match, name
    side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{1 + block * (layers + 1) + layers}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":  # in the tiny one, those of the first block, which has attention
        return f"output_blocks.{block * (layers + 1) + layers}.2.{rest}"
    number = block * (layers + 1) + layer
    place = f"input_blocks.{1 + number}" if side == "down" else f"output_blocks.{number}"
    return f"{place}.{0 if kind == 'resnets' else 1}.{inner_name(kind, rest)}"


def inner_name(kind: str, rest: str) -> str:
    if not kind.startswith("resnets"):
        return rest
    part, _, last = rest.rpartition(".")
    return f"{_RESNET[part]}.{last}"


def vae_name(name: str, depth: int) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if match := re.match(r"(.*)mid_block\.attentions\.0\.(.*)\.(weight|bias)$", name):
        return f"{match[1]}mid.attn_1.{_ATTENTION[match[2]]}.{match[3]}"
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{depth - 1 - int(m[1])}.block.", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{depth - 1 - int(m[1])}.upsample.", name)


def names_of(pipe: Any) -> dict[str, Tensor]:
    """All weights of a pipeline, by component."""
    return {f"{part}.{n}": t for part in ("unet", "vae", "text_encoder") for n, t in getattr(pipe, part).state_dict().items()}
