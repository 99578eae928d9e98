"""Instance features of the training images: the generator is conditioned on them, and their neighbours are its real images."""

from __future__ import annotations

import torch
from torch import Tensor

from gentransforms.generators.icgan.features import SmallResNet


@torch.no_grad()
def instance_features(images: Tensor, encoder: SmallResNet, batch_size: int = 500) -> Tensor:
    """Return (N, D) features, each of length 1, of uint8 images (N, 3, R, R)."""
    return torch.cat([encoder(batch.float() / 255) for batch in images.split(batch_size)])


def nearest_neighbours(features: Tensor, k: int, batch_size: int = 1000) -> Tensor:
    """Return (N, k) indices of each row's nearest rows by cosine similarity, itself included."""
    k = min(k, len(features))
    return torch.cat([(rows @ features.T).topk(k, dim=1).indices for rows in features.split(batch_size)])


def whiten(features: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and the PCA whitening matrix (width, D) of features (N, D): (f - mean) @ W.T is white."""
    mean = features.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov((features - mean).double().T))
    order = values.argsort(descending=True)[:width]
    return mean, (vectors[:, order] / (values[order] + 1e-3 * values.mean()).sqrt()).T.float()
