"""The networks during training: a BigGAN generator with the parameter names of the released models, and its discriminator.

Source: Brock et al., "BigGAN" (ICLR 2019); Casanova et al., "Instance-Conditioned GAN" (NeurIPS 2021); Miyato and
Koyama, "cGANs with projection discriminator" (ICLR 2018). The library's own network is the folded form of `Generator`.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentransforms.generators.icgan.architecture import BigGANConfig
from gentransforms.generators.icgan.folding import merge_upsampling


class Weight(nn.Module):
    """A weight (and bias); under spectral norm its use divides by a running estimate of its largest singular value."""

    def __init__(self, shape: tuple[int, ...], bias: bool = True, spectral: bool = True, eps: float = 1e-12) -> None:
        super().__init__()
        self.spectral, self.eps = spectral, eps
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(shape)))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        if spectral:
            self.register_buffer("u0", torch.randn(1, shape[0]))
            self.register_buffer("sv0", torch.ones(1))

    def normed(self) -> Tensor:
        """Return weight / s after one power iteration; in training the iteration's result is kept."""
        if not self.spectral:
            return self.weight
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(self.u0 @ matrix, eps=self.eps)
            u = F.normalize(v @ matrix.T, eps=self.eps)
        s = (v @ matrix.T @ u.T).squeeze()
        if self.training:
            self.u0.copy_(u)
            self.sv0.copy_(s.detach())  # not fill_: that could read the number on the host
        return self.weight / s


class Linear(Weight):
    """Linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normed(), self.bias)


class Conv(Weight):
    """3x3 or 1x1 convolution; `up` takes a nearest upsampling before it into its kernel."""

    def forward(self, x: Tensor, up: bool = False) -> Tensor:
        weight = self.normed()
        if up:
            return F.conv_transpose2d(x, merge_upsampling(weight), self.bias, stride=2, padding=1)
        return F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2)


class ConditionalNorm(nn.Module):
    """Batch norm whose gain and bias are linear in the condition."""

    def __init__(self, width: int, config: BigGANConfig) -> None:
        super().__init__()
        self.eps, self.momentum, spectral = config.BN_eps, 0.1, config.G_param == "SN"
        self.gain, self.bias = (Linear((width, config.condition_dim), bias=False, spectral=spectral) for _ in range(2))
        self.register_buffer("stored_mean", torch.zeros(width))
        self.register_buffer("stored_var", torch.ones(width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = F.batch_norm(x, self.stored_mean, self.stored_var, None, None, self.training, self.momentum, self.eps)
        return x * (1 + self.gain(condition))[:, :, None, None] + self.bias(condition)[:, :, None, None]


class OutputNorm(nn.Module):
    """Batch norm with a plain gain and bias, under the released names."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps, self.momentum = eps, 0.1
        self.gain, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("stored_mean", torch.zeros(width))
        self.register_buffer("stored_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.stored_mean, self.stored_var, self.gain, self.bias, self.training, self.momentum, self.eps)


class Block(nn.Module):
    """A residual block that doubles the resolution."""

    def __init__(self, inputs: int, outputs: int, config: BigGANConfig, merged: bool) -> None:
        super().__init__()
        self.merged = merged
        spectral = config.G_param == "SN"
        self.conv1, self.conv2 = (Conv((outputs, width, 3, 3), spectral=spectral) for width in (inputs, outputs))
        self.conv_sc = Conv((outputs, inputs, 1, 1), spectral=spectral)
        self.bn1 = ConditionalNorm(inputs, config)
        self.bn2 = ConditionalNorm(outputs, config)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = F.relu(self.bn1(x, condition))
        if self.merged:
            h, skip = self.conv1(h, up=True), F.interpolate(self.conv_sc(x), scale_factor=2)
        else:
            h, skip = self.conv1(F.interpolate(h, scale_factor=2)), self.conv_sc(F.interpolate(x, scale_factor=2))
        return self.conv2(F.relu(self.bn2(h, condition))) + skip


class Attention(nn.Module):
    """Self-attention over positions, keys and values pooled 2x2."""

    def __init__(self, width: int, config: BigGANConfig) -> None:
        super().__init__()
        shapes = {"theta": (width // 8, width), "phi": (width // 8, width), "g": (width // 2, width), "o": (width, width // 2)}
        for name, shape in shapes.items():
            setattr(self, name, Conv((*shape, 1, 1), bias=False, spectral=config.G_param == "SN"))
        self.gamma = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = self.theta(x), F.max_pool2d(self.phi(x), 2), F.max_pool2d(self.g(x), 2)
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", theta.flatten(2), phi.flatten(2)), dim=-1)
        h = torch.einsum("bck,bqk->bcq", g.flatten(2), weights).view(x.shape[0], -1, *x.shape[2:])
        return self.gamma * self.o(h) + x


class Generator(nn.Module):
    """(z, features, labels) -> (B, 3, R, R) in [-1, 1]; its state dict has the authors' names, plain statistics.

    Args:
        config: the architecture.
        merged: run upsampling and convolution as one operation. ``False`` is the network as published.
    """

    def __init__(self, config: BigGANConfig, merged: bool = True) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        if config.n_classes:
            self.shared = nn.Embedding(config.n_classes, config.shared_dim)
        spectral = config.G_param == "SN"
        self.shared_feat = Linear((config.shared_dim_feat, config.feature_dim), spectral=spectral)
        self.linear = Linear((widths[0] * 16, config.slot_dim), spectral=spectral)
        self.blocks = nn.ModuleList()
        for i, attention in enumerate(config.attention):
            block = [Block(widths[i], widths[i + 1], config, merged)]
            self.blocks.append(nn.ModuleList([*block, *([Attention(widths[i + 1], config)] if attention else [])]))
        output_norm = OutputNorm(widths[-1], config.BN_eps)
        self.output_layer = nn.Sequential(output_norm, nn.ReLU(), Conv((3, widths[-1], 3, 3), spectral=spectral))

    def forward(self, z: Tensor, features: Tensor, labels: Tensor | None = None) -> Tensor:
        y = self.shared_feat(features)
        if self.config.class_cond:
            y = torch.cat([self.shared(labels), y], dim=1)
        slots = z.split(self.config.slot_dim, dim=1)
        h = self.linear(slots[0]).view(len(z), -1, 4, 4).contiguous(memory_format=torch.channels_last)
        for i, layers in enumerate(self.blocks):
            condition = torch.cat([y, slots[i + 1]], dim=1) if self.config.hier else y
            h = layers[0](h, condition)
            for attention in layers[1:]:
                h = attention(h)
        return torch.tanh(self.output_layer(h))


class _DownBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, down: bool, first: bool = False) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.conv1, self.conv2 = Conv((outputs, inputs, 3, 3)), Conv((outputs, outputs, 3, 3))
        self.skip = Conv((outputs, inputs, 1, 1)) if down or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + (x if self.skip is None else self.skip(x))


class Discriminator(nn.Module):
    """Residual projection discriminator: (images in [-1, 1], features) -> (B,) logits."""

    def __init__(self, width: int, resolution: int, feature_dim: int) -> None:
        super().__init__()
        downs = max(2, resolution.bit_length() - 4)  # to 8 x 8, then two blocks that stay there
        widths = [width * min(4, 2**i) for i in range(downs)] if resolution > 32 else [width] * downs
        blocks = [_DownBlock(3, widths[0], True, first=True)]
        blocks += [_DownBlock(a, b, True) for a, b in itertools.pairwise(widths)]
        blocks += [_DownBlock(widths[-1], widths[-1], False) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.logit, self.projection = Linear((1, widths[-1])), Linear((widths[-1], feature_dim))

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        h = F.relu(self.blocks(images)).sum(dim=(2, 3))
        return (self.logit(h) + (self.projection(features) * h).sum(1, keepdim=True)).squeeze(1)


class FeatureHeads(nn.Module):
    """Small projection discriminators on the frozen encoder's maps (Sauer et al., "Projected GANs", NeurIPS 2021).

    maps: one (B, C_i, H_i, W_i) per stage; features (B, feature_dim); returns (B, heads) logits.
    """

    def __init__(self, widths: list[int], feature_dim: int, hidden: int = 64) -> None:
        super().__init__()
        self.stems = nn.ModuleList(Conv((hidden, width, 1, 1)) for width in widths)
        self.convs = nn.ModuleList(Conv((hidden, hidden, 3, 3)) for _ in widths)
        self.logits = nn.ModuleList(Conv((1, hidden, 1, 1)) for _ in widths)
        self.projections = nn.ModuleList(Linear((hidden, feature_dim)) for _ in widths)

    def forward(self, maps: list[Tensor], features: Tensor) -> Tensor:
        outputs = []
        for x, stem, conv, logit, projection in zip(maps, self.stems, self.convs, self.logits, self.projections, strict=True):
            h = F.leaky_relu(conv(F.leaky_relu(stem(x), 0.2)), 0.2)
            conditional = (h * projection(features)[:, :, None, None]).sum(1, keepdim=True)
            outputs.append((logit(h) + conditional).mean(dim=(1, 2, 3)))
        return torch.stack(outputs, dim=1)
