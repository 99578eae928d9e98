"""The networks to train: they map images (B, 3, H, W) in [0, 1] to features (B, width)."""

from __future__ import annotations

import torch
from config import BackboneSettings
from torch import Tensor, nn
from torchvision import models

from gentransforms.generators.icgan.features import SmallResNet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A ResNet without its classifier. It normalises its input, so that a checkpoint is self-contained.

    Shape: images (B, 3, H, W) floating in [0, 1]; returns (B, width). `maps` returns what is pooled: (B, width, h, w).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk, self.width = trunk, width
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def maps(self, images: Tensor) -> Tensor:
        """Return the last feature maps (B, width, h, w)."""
        return self.trunk(((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last))

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(images).mean(dim=(2, 3))


def build_backbone(s: BackboneSettings) -> Backbone:
    """Return an untrained backbone."""
    if s.name == "small":
        # The layers of the generator's encoder with new weights, without its scaling of the input.
        small = SmallResNet(s.widths, s.blocks)
        return Backbone(nn.Sequential(small.stem, *small.stages), s.widths[-1]).to(memory_format=torch.channels_last)
    resnet = {"resnet18": models.resnet18, "resnet50": models.resnet50}[s.name](zero_init_residual=True)
    if s.stem == "cifar":
        resnet.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
        resnet.maxpool = nn.Identity()
    width = resnet.fc.in_features
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    trunk = nn.Sequential()
    for name in names:  # with torchvision's names, so that weights can be exchanged
        trunk.add_module(name, getattr(resnet, name))
    return Backbone(trunk, width).to(memory_format=torch.channels_last)
