"""Simple figures of the pixels of an image: what shifts when a generator has a taste of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["STATISTICS", "describe_pixels"]

# In the order of the columns; what each is called in a sentence.
STATISTICS = {
    "brightness": "mean luma",
    "contrast": "standard deviation of luma",
    "saturation": "mean saturation, (max - min) / max of a pixel's channels",
    "colourfulness": "colourfulness (Hasler and Süsstrunk, 2003)",
    "sharpness": "variance of the Laplacian",
    "edges": "mean gradient (Sobel)",
    "entropy": "entropy of the grey levels, in bits",
}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_LEVELS = 64


def describe_pixels(images: Tensor) -> Tensor:
    """Return the figures of `STATISTICS` for each image: (B, 7) float32.

    Args:
        images: (B, 3, H, W) float32 in [0, 1], 3 x 3 pixels or more.

    Example:
        >>> import torch
        >>> grey = describe_pixels(torch.full((1, 3, 8, 8), 0.5))
        >>> dict(zip(STATISTICS, (round(x, 3) for x in grey[0].tolist())))["brightness"]
        0.5
    """
    red, green, blue = images.unbind(dim=1)
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    flat = luma.flatten(1)
    high, low = images.amax(dim=1), images.amin(dim=1)
    saturation = ((high - low) / high.clamp(min=1e-6)).flatten(1).mean(dim=1)
    first, second = (red - green).flatten(1), ((red + green) / 2 - blue).flatten(1)
    spread = (first.var(dim=1, correction=0) + second.var(dim=1, correction=0)).sqrt()
    colourfulness = spread + 0.3 * (first.mean(dim=1).square() + second.mean(dim=1).square()).sqrt()
    laplace = images.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    sobel = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
    filtered = F.conv2d(luma[:, None], torch.stack([laplace, sobel, sobel.T])[:, None])
    sharpness = filtered[:, 0].flatten(1).var(dim=1, correction=0)
    edges = (filtered[:, 1].square() + filtered[:, 2].square()).sqrt().flatten(1).mean(dim=1)
    levels = (flat * _LEVELS).long().clamp(0, _LEVELS - 1) + torch.arange(len(flat), device=flat.device)[:, None] * _LEVELS
    shares = levels.flatten().bincount(minlength=len(flat) * _LEVELS).view(len(flat), _LEVELS) / flat.shape[1]
    entropy = torch.special.entr(shares).sum(dim=1) / torch.log(torch.tensor(2.0))
    columns = (flat.mean(dim=1), flat.std(dim=1, correction=0), saturation, colourfulness, sharpness, edges, entropy)
    return torch.stack([column.float() for column in columns], dim=1)
