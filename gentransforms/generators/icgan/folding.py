"""Turn a released state dict into the weights that run: every fold in float64, then one cast.

Source: Miyato et al., "Spectral Normalization" (ICLR 2018), for the norm of a weight; the rest is algebra, given beside
each function.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from gentransforms.generators.icgan.architecture import BigGANConfig

__all__ = ["fold", "merge_upsampling", "spectral_norm"]


def spectral_norm(weight: Tensor, u0: Tensor, eps: float) -> Tensor:
    """Return the scalar s by which `weight` (out, …) is divided: one power iteration from `u0` (1, out)."""
    matrix = weight.flatten(1)
    v = F.normalize(u0 @ matrix, eps=eps)
    u = F.normalize(v @ matrix.T, eps=eps)
    return (v @ matrix.T @ u.T).squeeze()


def merge_upsampling(weight: Tensor) -> Tensor:
    """Return the 4x4 stride-2 transposed kernel (in, out, 4, 4) of nearest x2 followed by `weight` (out, in, 3, 3).

    Example:
        >>> import torch
        >>> from torch.nn.functional import conv2d, conv_transpose2d, interpolate
        >>> x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
        >>> plain = conv2d(interpolate(x, scale_factor=2), w, padding=1)
        >>> torch.allclose(plain, conv_transpose2d(x, merge_upsampling(w), stride=2, padding=1), atol=1e-5)
        True
    """
    # Along each side, "nearest x2, then 3 taps" is a stride-2 transposed convolution of 4 taps:
    # y[2i] = w0 x[i-1] + (w1 + w2) x[i],  y[2i+1] = (w0 + w1) x[i] + w2 x[i+1].
    # By sums, not by a product with a constant matrix: on an accelerator, bringing a constant there waits for the device.
    for side in (2, 3):
        w0, w1, w2 = weight.unbind(side)
        weight = torch.stack([w2, w1 + w2, w0 + w1, w0], dim=side)
    return weight.transpose(0, 1)


def fold(released: Mapping[str, Tensor], config: BigGANConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the state dict of `BigGANNetwork` in `dtype` from one in the authors' names (any floating dtype)."""

    def get(name: str) -> Tensor:
        return released[name].double()

    def normed(name: str) -> Tensor:
        weight = get(f"{name}.weight")
        if config.G_param == "plain":
            return weight
        return weight / spectral_norm(weight, get(f"{name}.u0"), config.SN_eps)

    def statistics(name: str) -> tuple[Tensor, Tensor]:
        prefix = {"plain": "stored_", "mybn": "bn.stored_", "cross_replica": "bn.running_"}[config.statistics]
        inverse = (get(f"{name}.{prefix}var") + config.BN_eps).rsqrt()
        return get(f"{name}.{prefix}mean"), inverse

    def conditional_norm(name: str) -> tuple[Tensor, Tensor]:
        # (x - mean) * inverse * (1 + G c) + B c = x * scale + shift, where scale = inverse + (inverse G) c and
        # shift = -mean * inverse + (B - mean * inverse * G) c: both affine in the condition c.
        mean, inverse = statistics(name)
        gain, bias = normed(f"{name}.gain"), normed(f"{name}.bias")
        weight = torch.cat([inverse[:, None] * gain, bias - (mean * inverse)[:, None] * gain])
        return weight, torch.cat([inverse, -mean * inverse])

    folded = {
        "feature_weight": normed("shared_feat"), "feature_bias": get("shared_feat.bias"),
        "linear_weight": normed("linear"), "linear_bias": get("linear.bias"),
    }  # fmt: skip
    if config.class_cond:
        folded["classes"] = get("shared.weight")
    weights, biases = [], []
    for i, attention in enumerate(config.attention):
        source, target = f"blocks.{i}.0", f"blocks.{i}"
        norms = [conditional_norm(f"{source}.bn1"), conditional_norm(f"{source}.bn2")]
        weight = torch.cat([weight for weight, _ in norms])
        weights.append(weight[:, : config.y_dim])
        biases.append(torch.cat([bias for _, bias in norms]))
        if config.hier:
            folded[f"{target}.slot_weight"] = weight[:, config.y_dim :]
        folded[f"{target}.up_weight"] = merge_upsampling(normed(f"{source}.conv1"))
        folded[f"{target}.conv_weight"] = normed(f"{source}.conv2")
        folded[f"{target}.skip_weight"] = normed(f"{source}.conv_sc")
        for ours, theirs in (("up", "conv1"), ("conv", "conv2"), ("skip", "conv_sc")):
            folded[f"{target}.{ours}_bias"] = get(f"{source}.{theirs}.bias")
        if attention:
            layer = f"blocks.{i}.1"
            folded[f"{target}.attention.in_weight"] = torch.cat([normed(f"{layer}.{n}") for n in ("theta", "phi", "g")])
            folded[f"{target}.attention.out_weight"] = normed(f"{layer}.o") * get(f"{layer}.gamma")
    folded["modulation_weight"], folded["modulation_bias"] = torch.cat(weights), torch.cat(biases)
    mean, inverse = statistics("output_layer.0")
    names = ("bn.weight", "bn.bias") if config.statistics == "cross_replica" else ("gain", "bias")
    gain, bias = (get(f"output_layer.0.{name}") for name in names)
    folded["output_scale"] = (gain * inverse)[:, None, None]
    folded["output_shift"] = (bias - mean * gain * inverse)[:, None, None]
    folded["output_weight"], folded["output_bias"] = normed("output_layer.2"), get("output_layer.2.bias")
    return {name: tensor.to(dtype).contiguous() for name, tensor in folded.items()}
