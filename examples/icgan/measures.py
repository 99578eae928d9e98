"""The measures of evaluate.py, as functions of features (N, D) float and labels (N,) integer.

Sources: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (NeurIPS 2017) for the Fréchet distance;
Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models" (NeurIPS 2019).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def agreement(predicted: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the share of `predicted` (N, V) equal to `expected` (N,), and half its 95% interval.

    The variants of one source are not independent: the interval is over sources, 1.96 standard errors of their means.
    """
    right = (predicted == expected[:, None]).float().mean(dim=1)
    return right.mean().item(), 1.96 * right.std().item() / math.sqrt(len(right))


def spread_of_classes(features: Tensor, labels: Tensor) -> Tensor:
    """Return (N,) for each image the mean Euclidean distance between two different images of its class."""
    spread = torch.zeros(len(features))
    for label in labels.unique():
        rows = labels == label
        n = int(rows.sum())
        if n < 2:
            raise SystemExit(f"class {int(label)} has {n} image: distances within a class need two or more")
        spread[rows] = torch.cdist(features[rows], features[rows]).sum().item() / (n * (n - 1))
    return spread


def diversity(variants: Tensor, spread: Tensor) -> float:
    """Return the mean distance between two variants (N, V, D) of one source, over `spread` (N,)."""
    n = variants.shape[1]
    return (torch.cdist(variants, variants).sum(dim=(1, 2)) / (n * (n - 1)) / spread).mean().item()


def distance_from_source(variants: Tensor, sources: Tensor, spread: Tensor) -> float:
    """Return the mean distance of the variants (N, V, D) from their sources (N, D), over `spread` (N,)."""
    return ((variants - sources[:, None]).norm(dim=2) / spread[:, None]).mean().item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) of the Gaussians fitted to a and b (N, D)."""
    a, b = a.double(), b.double()
    A, B = torch.cov(a.T), torch.cov(b.T)
    # The eigenvalues of A B are those of the symmetric B^(1/2) A B^(1/2), real and not negative.
    values, vectors = torch.linalg.eigh(B)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ A @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + A.trace() + B.trace() - 2 * cross).item()


def precision_recall(real: Tensor, made: Tensor, k: int = 3) -> tuple[float, float]:
    """Return the shares of `made` within the support of `real` and of `real` within the support of `made`.

    The support of a set is the union of balls around its points that reach to their k-th nearest neighbour.
    """
    return _inside(made, real, k), _inside(real, made, k)


def _inside(points: Tensor, support: Tensor, k: int) -> float:
    radius = torch.cat([torch.cdist(rows, support).topk(k + 1, dim=1, largest=False).values[:, -1] for rows in support.split(1000)])
    return torch.cat([(torch.cdist(rows, support) <= radius).any(dim=1) for rows in points.split(1000)]).float().mean().item()


def nearest(points: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N,) distances to, and (N,) indices of, each point's nearest row of `bank`."""
    pairs = [torch.cdist(rows, bank).min(dim=1) for rows in points.split(500)]
    return torch.cat([p.values for p in pairs]), torch.cat([p.indices for p in pairs])


def knn_vote(queries: Tensor, expected: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float = 0.1) -> tuple[Tensor, Tensor]:
    """Return (N,) whether a weighted k-NN vote by cosine similarity is right, and (N,) the neighbours' share that is.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018).
    """
    bank = F.normalize(bank, dim=1)
    right, same = [], []
    for rows, wanted in zip(F.normalize(queries, dim=1).split(500), expected.split(500), strict=True):
        similarity, index = (rows @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = torch.zeros(len(rows), int(labels.max()) + 1)
        votes.scatter_add_(1, labels[index], (similarity / temperature).exp())
        right.append(votes.argmax(1) == wanted)
        same.append((labels[index] == wanted[:, None]).float().mean(dim=1))
    return torch.cat(right).float(), torch.cat(same)
