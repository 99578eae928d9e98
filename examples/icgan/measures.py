"""What evaluate.py and curves.py measure in the features of the classifier, by the measures of `gentransforms.audit`.

The library relates variants to their sources; here distances are relative to the mean distance between two real images of the
source's class, and the generator's own encoder is examined too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gentransforms.audit.intervals import Resamples
from gentransforms.audit.measures.diversity import distances_within_classes, distances_within_groups


def agreement(predicted: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the share of `predicted` (N, V) equal to `expected` (N,), and half its 95% interval over sources."""
    share, (low, high) = Resamples(len(expected)).mean((predicted == expected[:, None]).double().mean(dim=1))
    return share, (high - low) / 2


def spread_of_classes(features: Tensor, labels: Tensor) -> Tensor:
    """Return (N,) for each image (N, D) the mean distance between two different images of its class (N,)."""
    spread = distances_within_classes(features, labels)
    if spread.isnan().any():
        raise SystemExit(f"class {int(labels[spread.isnan()][0])} has 1 image: distances within a class need two or more")
    return spread


def diversity(variants: Tensor, spread: Tensor) -> float:
    """Return the mean distance between two variants (N, V, D) of one source, over `spread` (N,)."""
    return (distances_within_groups(variants) / spread).mean().item()


def distance_from_source(variants: Tensor, sources: Tensor, spread: Tensor) -> float:
    """Return the mean distance of the variants (N, V, D) from their sources (N, D), over `spread` (N,)."""
    return ((variants - sources[:, None]).norm(dim=2) / spread[:, None]).mean().item()


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
