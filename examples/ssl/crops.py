"""Random resized crops: of whole batches on the training device, or of single images in the loader's workers."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from config import ViewSettings
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2


class DeviceCrop(nn.Module):
    """Random resized crops of images (B, 3, H, W), resampled to (B, 3, size, size) all at once; of larger images with antialias.

    The boxes are those of kornia's RandomResizedCrop. It resamples by a perspective transform, in 155 operations; a box needs none.
    """

    def __init__(self, size: int, scale: tuple[float, float], interpolation: str) -> None:
        super().__init__()
        self.boxes = K.RandomResizedCrop((size, size), scale=scale, cropping_mode="resample")
        self.size, self.interpolation = size, interpolation

    def forward_parameters(self, shape: torch.Size) -> dict[str, Tensor]:
        """Draw a box for each of B images."""
        return self.boxes.forward_parameters(shape)

    def forward(self, images: Tensor, params: dict[str, Tensor] | None = None) -> Tensor:
        corners = (self.forward_parameters(images.shape) if params is None else params)["src"]  # (B, 4, 2): x and y, clockwise
        sides = torch.tensor([images.shape[-1], images.shape[-2]]) - 1
        if self.interpolation in _KERNELS and max(images.shape[-2:]) > self.size:
            return self._antialiased(images, corners.to(images.device, non_blocking=True))
        first, last = (2 * corners[:, i] / sides - 1 for i in (0, 2))  # centres of the corner pixels, in -1 to 1
        # From the output's coordinates, -1 to 1, to the box: x' = (last - first) / 2 x + (first + last) / 2.
        transform = torch.stack([*(last - first).diag_embed().unbind(2), first + last], dim=2) / 2
        shape = [len(images), images.shape[1], self.size, self.size]
        grid = F.affine_grid(transform.to(images.device, images.dtype, non_blocking=True), shape, align_corners=True)
        return F.grid_sample(images, grid, self.interpolation, align_corners=True)

    def _antialiased(self, images: Tensor, corners: Tensor) -> Tensor:
        """Return the boxes of larger images, antialiased where they are reduced, as torchvision's crop and resize does for each."""
        across, down = (
            resampling(corners[:, 0, i], corners[:, 2, i] - corners[:, 0, i] + 1, images.shape[-1 - i], self.size, self.interpolation)
            for i in (0, 1)
        )
        return down.to(images.dtype).unsqueeze(1) @ images @ across.to(images.dtype).unsqueeze(1).mT


def resampling(start: Tensor, length: Tensor, pixels: int, size: int, interpolation: str) -> Tensor:
    """Return weights (B, size, pixels) that resample stretches of a row of so many pixels to `size`, with antialias.

    A stretch begins at pixel `start` (B,), and has `length` (B,) of them; what is beside it has no weight. The kernels are those of
    torchvision and Pillow, as wide as an output's pixel where that is wider than one of the input's.
    """
    kernel, reach = _KERNELS[interpolation]
    scale = (length / size)[:, None, None]
    wide = scale.clamp(min=1)
    places = torch.arange(pixels, dtype=torch.float32, device=start.device).add(0.5)[None, None]
    start, length = start[:, None, None], length[:, None, None]
    centres = start + scale * torch.arange(size, dtype=torch.float32, device=start.device).add(0.5)[None, :, None]
    away = (places - centres) / wide
    inside = (places > start) & (places < start + length) & (away.abs() < reach)
    weights = torch.where(inside, kernel(away.abs()), 0.0)
    return weights / weights.sum(dim=2, keepdim=True)


def _bicubic(x: Tensor) -> Tensor:
    """Keys's cubic kernel with a = -1/2, at distances of 0 to 2."""
    return torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)


_KERNELS = {"bicubic": (_bicubic, 2.0), "bilinear": (lambda x: 1 - x, 1.0)}


def device_crop(s: ViewSettings, size: int, interpolation: str) -> nn.Module:
    """Return a random resized crop for batches; `whole` if the settings leave nothing to crop."""
    if list(s.crop_scale) == [1.0, 1.0]:
        return whole(size, interpolation)
    return DeviceCrop(size, (s.crop_scale[0], s.crop_scale[1]), interpolation)


def worker_crop(s: ViewSettings, size: int, interpolation: str) -> v2.Transform:
    """Return the same crop, antialiased, for single images of any size in the workers."""
    if list(s.crop_scale) == [1.0, 1.0]:
        return whole(size, interpolation)
    return v2.RandomResizedCrop(size, scale=tuple(s.crop_scale), interpolation=v2.InterpolationMode(interpolation), antialias=True)


def whole(size: int, interpolation: str) -> v2.Transform:
    """Return what stands for a crop where there is none: the shorter side is resized to `size`, and the centre square taken."""
    return v2.Compose([v2.Resize(size, v2.InterpolationMode(interpolation), antialias=True), v2.CenterCrop(size)])
