"""Instance features: the description of the source image that the generator receives.

A feature extractor takes photos (B, 3, H, W) float in [0, 1] and returns one L2-normalised vector per image.
`ResNet50Features` is the released models' extractor (torchvision's layout, usually with SwAV weights); `SmallResNet`
is a light one for small images, trained by ``examples/icgan/train.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentransforms.errors import ConfigError

__all__ = ["ResNet50Features", "SmallResNet", "build_extractor"]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class ResNet50Features(nn.Module):
    """Average-pooled ResNet-50 features with the preprocessing of IC-GAN (Casanova et al., NeurIPS 2021, section 3).

    Shape: images (B, 3, H, W) floating, in [0, 1], any size; returns (B, 2048), each row of length 1.
    Preprocessing is tensor arithmetic on the whole batch: ImageNet mean and standard deviation, then bicubic to
    224 x 224 with aligned corners.

    Example:
        >>> import torch
        >>> extractor = ResNet50Features().eval()
        >>> extractor(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 2048])
    """

    kind = "resnet50"
    size = 224
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        from torchvision.models import resnet50

        super().__init__()
        self.backbone = resnet50(weights=None)
        self.backbone.fc = nn.Identity()
        self.width = 2048
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(3, 1, 1), persistent=False)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build this extractor again, with its kind."""
        return {"kind": self.kind}

    def preprocess(self, images: Tensor) -> Tensor:
        """Return (B, 3, 224, 224): normalised, then resized (bicubic, aligned corners)."""
        x = (images - self.mean) / self.std
        return F.interpolate(x, size=(self.size, self.size), mode="bicubic", align_corners=True)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(self.preprocess(images))
        return F.normalize(features, dim=1)


class _Block(nn.Module):
    """Two 3x3 convolutions and a skip: the basic block of He et al. (CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.skip(x))


class SmallResNet(nn.Module):
    """A light ResNet for images of 32 to 64 pixels: a stride-2 stem, then one stage per width, halving each time.

    Shape: images (B, 3, H, W) floating, in [0, 1]; returns (B, D), each row of length 1, where D is the sum of the last
    `feature_stages` widths: the stages' average-pooled maps, each normalised, then joined.

    Args:
        widths: channels of each stage.
        blocks: residual blocks in each stage.
        feature_stages: how many of the last stages contribute to the features. The last one describes the content; the one
            before it adds colour and texture.

    Example:
        >>> import torch
        >>> SmallResNet(widths=(8, 16), blocks=(1, 1)).eval()(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 16])
    """

    kind = "small-resnet"

    def __init__(self, widths: Sequence[int] = (64, 128, 256), blocks: Sequence[int] = (1, 1, 1), feature_stages: int = 1) -> None:
        super().__init__()
        for name, values in {"widths": widths, "blocks": blocks}.items():
            if not isinstance(values, Sequence) or not values or not all(type(n) is int and n > 0 for n in values):
                raise ValueError(f"{name}={values!r}: expected a list of positive integers, one for each stage")
        if type(feature_stages) is not int or not 1 <= feature_stages <= len(widths):
            raise ValueError(f"feature_stages={feature_stages!r}: expected an integer from 1 to {len(widths)}, the number of stages")
        self.widths, self.blocks, self.feature_stages = tuple(widths), tuple(blocks), feature_stages
        self.width = sum(widths[-feature_stages:])
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        stages, inputs = [], widths[0]
        for i, (outputs, depth) in enumerate(zip(widths, blocks, strict=True)):
            strides = [1 if i == 0 else 2] + [1] * (depth - 1)
            stages.append(nn.Sequential(*(_Block(inputs if j == 0 else outputs, outputs, s) for j, s in enumerate(strides))))
            inputs = outputs
        self.stages = nn.ModuleList(stages)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build this extractor again, with its kind."""
        stages = {"feature_stages": self.feature_stages} if self.feature_stages != 1 else {}
        return {"kind": self.kind, "widths": list(self.widths), "blocks": list(self.blocks)} | stages

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the stages' outputs, finest first: (B, widths[i], H / 2^(i+1), W / 2^(i+1))."""
        x = self.stem(images * 2 - 1)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

    def join(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the features (B, D) of an image's maps, as `maps` returns them."""
        pooled = [F.normalize(x.mean(dim=(2, 3)), dim=1) for x in maps[-self.feature_stages :]]
        return F.normalize(torch.cat(pooled, dim=1), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.join(self.maps(images))


_KINDS: dict[str, type[ResNet50Features | SmallResNet]] = {c.kind: c for c in (ResNet50Features, SmallResNet)}


def build_extractor(config: Mapping[str, Any]) -> ResNet50Features | SmallResNet:
    """Return a new, untrained extractor from its ``kind`` and arguments.

    Raises:
        ConfigError: if the kind or an argument is unknown.

    Example:
        >>> build_extractor({"kind": "small-resnet", "widths": [8, 16], "blocks": [1, 1]}).width
        16
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"feature_extractor={config!r}: expected a dict with its kind and arguments, or None")
    arguments = dict(config)
    kind = arguments.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"feature_extractor kind={kind!r}: expected one of {sorted(_KINDS)}")
    try:
        return _KINDS[kind](**arguments).eval().requires_grad_(False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"feature_extractor={dict(config)}: {error}") from error
