"""The pictures of evaluate.py: grids with one row per source."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import save_image


def variants_picture(sources: Tensor, labels: Tensor, made: Tensor, path: Path, per_class: int = 2) -> None:
    """Write, for the first sources of each class, a row with the source and its variants. They are not selected by quality."""
    rows = _first_of_each(labels, per_class)
    _write(torch.cat([sources[rows, None], made[rows]], dim=1), path)


def nearest_picture(sources: Tensor, labels: Tensor, made: Tensor, train: Tensor, closest: Tensor, path: Path, per_class: int = 2) -> None:
    """Write rows with the source, a variant, and the training images nearest to the variant in features and in pixels."""
    rows = _first_of_each(labels, per_class)
    pixels = train.flatten(1).float()
    in_pixels = torch.stack([_closest(pixels, image) for image in made[rows, 0]])
    _write(torch.stack([sources[rows], made[rows, 0], train[closest[rows]], train[in_pixels]], dim=1), path)


def classes_picture(classes: dict[str, dict[str, float]], path: Path) -> None:
    """Write label agreement over the encoder's k-NN accuracy, one point per class."""
    figure, ax = plt.subplots(figsize=(4.8, 4.2), layout="constrained")
    for name, values in classes.items():
        x, y = values["encoder_knn_accuracy"], values["label_agreement"]
        ax.scatter(x, y, color="tab:blue", s=16)
        ax.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=8)
    ax.axline((0.5, 0.5), slope=1, color="grey", linewidth=0.8, linestyle="--")
    ax.margins(0.15)
    ax.set(xlabel="20-NN accuracy of the generator's encoder", ylabel="label agreement of its variants")
    ax.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _closest(pixels: Tensor, image: Tensor) -> Tensor:
    """Return the row of pixels (N, 3 * H * W) nearest to image (3, H, W) or to its mirror image, since training flips images."""
    distances = [(pixels - x.flatten().float()).square().mean(1) for x in (image, image.flip(2))]
    return torch.minimum(*distances).argmin()


def _first_of_each(labels: Tensor, count: int) -> Tensor:
    return torch.cat([(labels == label).nonzero().flatten()[:count] for label in labels.unique()])


def _write(rows: Tensor, path: Path, scale: int = 2) -> None:
    """Save uint8 (rows, columns, 3, H, W), the rows folded into two halves side by side."""
    half = (len(rows) + 1) // 2
    rows = torch.cat([rows, rows.new_full((2 * half - len(rows), *rows.shape[1:]), 255)])
    gap = rows.new_full((half, 1, *rows.shape[2:]), 255)
    both = torch.cat([rows[:half], gap, rows[half:]], dim=1)
    images = F.interpolate(both.flatten(0, 1).float() / 255, scale_factor=scale)
    save_image(images, path, nrow=both.shape[1], padding=2, pad_value=1.0)
