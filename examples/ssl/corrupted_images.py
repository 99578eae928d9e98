"""Six corruptions of images at five strengths each. Kinds, strengths and random numbers are ours, and fixed.

Lengths are in pixels of an image of 32, and grow with the image. The strengths were chosen before anything was measured with them.
"""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

STRENGTHS = (1, 2, 3, 4, 5)
CORRUPTIONS: dict[str, list[float]] = {
    "noise": [0.02, 0.04, 0.06, 0.08, 0.10],  # standard deviation of Gaussian noise; white is 1
    "blur": [0.4, 0.6, 0.8, 1.0, 1.2],  # sigma of a Gaussian
    "contrast": [0.75, 0.5, 0.4, 0.3, 0.2],  # what is left of the difference from the image's mean
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],  # added; white is 1
    "JPEG": [80, 65, 50, 35, 20],  # quality
    "pixelate": [28, 24, 20, 16, 12],  # side of what the image is shrunk to
}


def corrupt(images: Tensor, name: str, strength: int, rows: Tensor | None = None, seed: int = 0) -> Tensor:
    """Return corrupted images, rounded as a file would have them.

    Noise depends on the seed, the strength and the row of an image alone, so that all runs see the same images, whatever the batch.

    Args:
        images: (B, 3, S, S) uint8.
        name: of `CORRUPTIONS`.
        strength: 1 to 5.
        rows: (B,) the images' rows; by default their places in the batch.
        seed: of the noise.

    Shape: (B, 3, S, S) uint8.

    Example:
        >>> corrupt(torch.full((1, 3, 32, 32), 100, dtype=torch.uint8), "brightness", 1)[0, 0, 0, 0].item()
        113
    """
    if name not in CORRUPTIONS or strength not in STRENGTHS:
        raise ValueError(f"name={name!r}, strength={strength!r}: expected one of {', '.join(CORRUPTIONS)}, and a strength of 1 to 5")
    amount, size = CORRUPTIONS[name][strength - 1], images.shape[-1]
    if name == "JPEG":
        return torch.stack([_through_jpeg(image, int(amount)) for image in images.cpu()]).to(images.device)
    x = images.float() / 255
    if name == "noise":
        numbers = range(len(images)) if rows is None else rows.tolist()
        x = x + amount * torch.stack([_noise(x.shape[1:], seed, strength, row) for row in numbers]).to(x.device)
    elif name == "blur":
        sigma = amount * size / 32
        kernel = 2 * int(3 * sigma + 1) + 1  # three sigma to either side
        x = F.gaussian_blur(x, [kernel, kernel], [sigma, sigma])
    elif name == "contrast":
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = mean + amount * (x - mean)
    elif name == "brightness":
        x = x + amount
    elif name == "pixelate":
        side = max(1, round(amount * size / 32))
        small = torch.nn.functional.adaptive_avg_pool2d(x, side)
        x = F.resize(small, [size, size], InterpolationMode.NEAREST_EXACT)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    F.to_pil_image(image).save(file, "JPEG", quality=quality)  # torchvision's own encoder is to be removed
    return F.pil_to_tensor(Image.open(file))


def _noise(shape: torch.Size, seed: int, strength: int, row: int) -> Tensor:
    rng = torch.Generator().manual_seed((seed * 10 + strength) * 1_000_003 + row)
    return torch.randn(shape, generator=rng)
