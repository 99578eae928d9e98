"""Classic augmentation by kornia, on whole batches on the training device, with random parameters of its own for each image."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from config import AugmentationSettings, ViewSettings
from torch import Tensor, nn
from torchvision.transforms import v2


class View(nn.Module):
    """One view: images (B, 3, H, W) float in [0, 1] to (B, 3, size, size) float in [0, 1].

    `crop=False` leaves out the crop, for images that the workers have already cropped.
    """

    def __init__(self, s: ViewSettings, size: int, interpolation: str = "bicubic", crop: bool = True) -> None:
        super().__init__()
        self.crop = device_crop(s, size, interpolation) if crop else nn.Identity()
        # SimCLR's kernel: a tenth of the side, odd. At least 3, since images below 30 pixels would get a kernel of 1.
        kernel = max(3, size // 10 // 2 * 2 + 1)
        self.rest = nn.Sequential(
            K.ColorJitter(s.brightness, s.contrast, s.saturation, s.hue, p=s.jitter_p),
            K.RandomGrayscale(p=s.grey_p),
            *([K.RandomGaussianBlur((kernel, kernel), (s.blur_sigma[0], s.blur_sigma[1]), p=s.blur_p)] if s.blur_p else []),
            *([K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=s.solarise_p)] if s.solarise_p else []),
            K.RandomHorizontalFlip(p=s.flip_p),
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        # Bicubic interpolation overshoots, and kornia's colour transforms expect [0, 1].
        return self.rest(self.crop(images).clamp(0, 1)).clamp(0, 1)


def device_crop(s: ViewSettings, size: int, interpolation: str) -> nn.Module:
    """Return a random resized crop for batches, which resamples all images at once; `whole` if the settings leave nothing to crop."""
    if list(s.crop_scale) == [1.0, 1.0]:
        return whole(size, interpolation)
    return K.RandomResizedCrop(
        (size, size), scale=(s.crop_scale[0], s.crop_scale[1]), resample=interpolation.upper(), cropping_mode="resample"
    )


def worker_crop(s: ViewSettings, size: int, interpolation: str) -> v2.Transform:
    """Return the same crop, antialiased, for single images of any size in the workers."""
    if list(s.crop_scale) == [1.0, 1.0]:
        return whole(size, interpolation)
    return v2.RandomResizedCrop(size, scale=tuple(s.crop_scale), interpolation=v2.InterpolationMode(interpolation), antialias=True)


def whole(size: int, interpolation: str) -> v2.Transform:
    """Return what stands for a crop where there is none: the shorter side is resized to `size`, and the centre square taken."""
    return v2.Compose([v2.Resize(size, v2.InterpolationMode(interpolation), antialias=True), v2.CenterCrop(size)])


class TwoClassicViews(nn.Module):
    """Both views of a batch, with a separate augmentation of generated images if the settings have one."""

    def __init__(self, s: AugmentationSettings, size: int, crop: bool) -> None:
        super().__init__()
        self.view1, self.view2 = (View(view, size, s.interpolation, crop) for view in (s.view1, s.view2))
        self.generated = None if s.generated is None else View(s.generated, size, s.interpolation, crop)

    def forward(self, first: Tensor, second: Tensor, made1: Tensor, made2: Tensor) -> tuple[Tensor, Tensor]:
        """Return both views; made1 and made2 (B,) bool, on the CPU, tell which of the images are generated."""
        return self._one(self.view1, first, made1), self._one(self.view2, second, made2)

    def _one(self, view: nn.Module, images: Tensor, made: Tensor) -> Tensor:
        if self.generated is None or not made.any():
            return view(images)
        if made.all():
            return self.generated(images)
        places = torch.cat([(~made).nonzero(), made.nonzero()]).squeeze(1)
        real, generated = (images[rows.nonzero().squeeze(1).to(images.device, non_blocking=True)] for rows in (~made, made))
        out = torch.cat([view(real), self.generated(generated)])
        return torch.empty_like(out).index_copy(0, places.to(out.device, non_blocking=True), out)
