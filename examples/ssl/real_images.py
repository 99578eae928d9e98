"""Choose variants of an image among the real images of a data set: its nearest neighbours, or others of its class.

An image is known by its pixels: its own place among the others is left out whatever a distance says, and equal images count as one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from loading import MemoryImages
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Pool:
    """The images that variants are taken from, no two of which are equal.

    Attributes:
        images: the first of each group of equal images, uint8 (M, 3, S, S), with their labels.
        places: where an image stands in `images`, by a hash of its pixels.
    """

    images: MemoryImages
    places: dict[bytes, int]

    @classmethod
    def of(cls, data: MemoryImages) -> Pool:
        """Return the pool of images (N, 3, S, S) and labels (N,)."""
        first: dict[bytes, int] = {}
        for row, image in enumerate(data.images):
            first.setdefault(_hash(image), row)
        rows = torch.tensor(list(first.values()))
        return cls(MemoryImages(data.images[rows], data.labels[rows]), {key: place for place, key in enumerate(first)})

    def find(self, images: Tensor) -> Tensor:
        """Return (N,) the place in the pool of each image, or -1 if it is not there."""
        return torch.tensor([self.places.get(_hash(image), -1) for image in images])


def nearest_others(features: Tensor, pool: Tensor, own: Tensor, k: int) -> Tensor:
    """Return (N, k) the places of the k rows of `pool` (M, D) most similar to each row of `features` (N, D), but not `own` (N,)."""
    mean = pool.mean(dim=0)
    features, pool = (F.normalize(x - mean, dim=1) for x in (features, pool))
    found = []
    for rows, mine in zip(features.split(500), own.split(500), strict=True):
        similarity = rows @ pool.T
        there = (mine >= 0).nonzero().flatten()
        similarity[there, mine[there]] = -torch.inf
        found.append(similarity.topk(k, dim=1).indices)
    return torch.cat(found)


def draw_of_class(wanted: Tensor, labels: Tensor, own: Tensor, k: int, seeds: Tensor) -> Tensor:
    """Return (N, k) places of different rows with label `wanted` (N,) among `labels` (M,), but not `own` (N,); row i by seed i alone."""
    members = {label: (labels == label).nonzero().flatten() for label in wanted.unique().tolist()}
    rng = torch.Generator()
    drawn = []
    for label, mine, seed in zip(wanted.tolist(), own.tolist(), seeds.tolist(), strict=True):
        rows = members[label]
        order = rows[torch.randperm(len(rows), generator=rng.manual_seed(seed))[: k + 1]]
        drawn.append(order[order != mine][:k])
    return torch.stack(drawn)


def shuffle(places: Tensor, seeds: Tensor) -> Tensor:
    """Return places (N, k) with each row in an order of its own, by its seed alone."""
    rng = torch.Generator()
    orders = [torch.randperm(places.shape[1], generator=rng.manual_seed(seed)) for seed in seeds.tolist()]
    return places.gather(1, torch.stack(orders))


def _hash(image: Tensor) -> bytes:
    return hashlib.sha256(image.contiguous().numpy()).digest()
