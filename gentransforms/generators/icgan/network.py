"""The BigGAN generator as it runs: spectral norm, batch norm and upsampling folded into its weights.

Source: Brock et al., "BigGAN" (ICLR 2019), appendix B; Casanova et al., "Instance-Conditioned GAN" (NeurIPS 2021).
`folding.py` computes these weights from a released state dict.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from gentransforms.generators.icgan.architecture import BigGANConfig

__all__ = ["BigGANNetwork"]


class BigGANNetwork(nn.Module):
    """Maps (z, features, labels) to images.

    Shape: z (B, z_dim), features (B, feature_dim), labels (B,) int64 or None; returns (B, 3, R, R) in [-1, 1], in the
    dtype of the weights. Weights are frozen parameters; a new network holds uninitialised ones.

    Raises:
        ValueError: if z or features have another width, or labels are absent from a class-conditional network.
    """

    def __init__(self, config: BigGANConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        if config.class_cond:
            self.classes = _empty(config.n_classes, config.shared_dim)
        self.feature_weight, self.feature_bias = _empty(config.shared_dim_feat, config.feature_dim), _empty(config.shared_dim_feat)
        self.linear_weight, self.linear_bias = _empty(widths[0] * 16, config.slot_dim), _empty(widths[0] * 16)
        blocks = [
            _Block(inputs, outputs, config.slot_dim if config.hier else 0, attention)
            for inputs, outputs, attention in zip(widths, widths[1:], config.attention, strict=False)
        ]
        self.blocks = nn.ModuleList(blocks)
        # One product gives the scale and shift of every conditional norm: they are affine in y.
        self.sizes = [block.modulation_dim for block in blocks]
        self.modulation_weight, self.modulation_bias = _empty(sum(self.sizes), config.y_dim), _empty(sum(self.sizes))
        self.output_scale, self.output_shift = _empty(widths[-1], 1, 1), _empty(widths[-1], 1, 1)
        self.output_weight, self.output_bias = _empty(3, widths[-1], 3, 3), _empty(3)
        # The faster layout for convolutions, on CPUs and on tensor cores alike.
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor, features: Tensor, labels: Tensor | None = None) -> Tensor:
        config, dtype = self.config, self.linear_weight.dtype
        _check_width("z", z, config.z_dim)
        _check_width("features", features, config.feature_dim)
        y = F.linear(features.to(dtype), self.feature_weight, self.feature_bias)
        if config.class_cond:
            if labels is None:
                raise ValueError("labels=None: this network is class-conditional, expected (B,) int64 class labels")
            # Not classes[labels], where -1 would be the last class, and no error.
            y = torch.cat([F.embedding(labels, self.classes).to(y.dtype), y], dim=1)
        z = z.to(dtype)
        slots = torch.split(z, config.slot_dim, dim=1) if config.hier else (z,)
        modulations = torch.split(F.linear(y, self.modulation_weight, self.modulation_bias), self.sizes, dim=1)
        x = F.linear(slots[0], self.linear_weight, self.linear_bias).view(len(z), config.widths[0], 4, 4)
        # Follow the weights' memory format, so that `network.to(memory_format=…)` suffices to change it.
        if self.output_weight.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        for i, (block, modulation) in enumerate(zip(self.blocks, modulations, strict=True)):
            x = block(x, modulation, slots[i + 1] if config.hier else None)
        x = F.relu(torch.addcmul(self.output_shift.to(x.dtype), x, self.output_scale.to(x.dtype)))
        return torch.tanh(F.conv2d(x, self.output_weight, self.output_bias, padding=1))


class _Block(nn.Module):
    """A residual block that doubles the resolution, (B, inputs, S, S) -> (B, outputs, 2S, 2S), then attention."""

    def __init__(self, inputs: int, outputs: int, slot_dim: int, attention: bool) -> None:
        super().__init__()
        self.widths = [inputs, inputs, outputs, outputs]  # scale 1, shift 1, scale 2, shift 2
        self.modulation_dim = sum(self.widths)
        if slot_dim:
            self.slot_weight = _empty(self.modulation_dim, slot_dim)
        # Nearest x2 then a 3x3 convolution, as one transposed convolution: 16 products per input pixel, not 36.
        self.up_weight, self.up_bias = _empty(inputs, outputs, 4, 4), _empty(outputs)
        self.conv_weight, self.conv_bias = _empty(outputs, outputs, 3, 3), _empty(outputs)
        self.skip_weight, self.skip_bias = _empty(outputs, inputs, 1, 1), _empty(outputs)
        self.attention = _Attention(outputs) if attention else None

    def forward(self, x: Tensor, modulation: Tensor, slot: Tensor | None) -> Tensor:
        if slot is not None:
            modulation = modulation + F.linear(slot, self.slot_weight)
        scale1, shift1, scale2, shift2 = torch.split(modulation[:, :, None, None], self.widths, dim=1)
        h = F.relu(torch.addcmul(shift1.to(x.dtype), x, scale1.to(x.dtype)))
        h = F.conv_transpose2d(h, self.up_weight, stride=2, padding=1)
        # On a GPU a bias is another pass over all pixels: this one goes into the shift, the next one into the skip's bias.
        scale2, shift2, bias = scale2.to(h.dtype), shift2.to(h.dtype), self.up_bias[:, None, None].to(h.dtype)
        h = F.relu(torch.addcmul(torch.addcmul(shift2, bias, scale2), h, scale2))
        h = F.conv2d(h, self.conv_weight, padding=1)
        # A 1x1 convolution commutes with nearest upsampling; before it, there are four times fewer pixels. Each is added to
        # its four, without a tensor of them all.
        skip = F.conv2d(x, self.skip_weight, self.skip_bias + self.conv_bias)
        rearrange(h, "b c (h i) (w j) -> b c h i w j", i=2, j=2).add_(skip[:, :, :, None, :, None])
        return h if self.attention is None else self.attention(h)


class _Attention(nn.Module):
    """Self-attention over positions, keys and values pooled 2x2 (Zhang et al., "SAGAN", ICML 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widths = [width // 8, width // 8, width // 2]
        self.in_weight, self.out_weight = _empty(sum(self.widths), width, 1, 1), _empty(width, width // 2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = torch.split(F.conv2d(x, self.in_weight), self.widths, dim=1)
        key, value = F.max_pool2d(key, 2), F.max_pool2d(value, 2)
        # As one head: torch's fused kernels want four dimensions, and with three it stores all weights of all positions.
        query, key, value = (rearrange(t, "b c h w -> b 1 (h w) c") for t in (query, key, value))
        h = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        h = rearrange(h, "b 1 (h w) c -> b c h w", h=x.shape[-2])
        return x + F.conv2d(h, self.out_weight)


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape), requires_grad=False)


def _check_width(name: str, value: Tensor, width: int) -> None:
    if value.ndim != 2 or value.shape[1] != width:
        raise ValueError(f"{name} has shape {tuple(value.shape)}: expected (B, {width})")
