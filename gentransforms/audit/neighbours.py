"""Nearest neighbours in chunks: no matrix of all pairs is ever held.

Distances are Euclidean. The search uses |a|^2 + |b|^2 - 2 a.b, which rounds; what is found is measured again by the
difference itself, so that a copy has the distance zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gentransforms.audit.evidence import CPU, Evidence

__all__ = [
    "RealNeighbours", "VariantNeighbours", "distances_between", "nearest", "neighbours_of_real", "neighbours_of_variants", "radii",
    "squared_distances",
]  # fmt: skip

_ELEMENTS = 32_000_000  # of a chunk of distances: 128 MB
# Squared distances that differ by less than this share of the squared norms are taken for equal.
_ROUNDING = 1e-6
_LEAST = 1e-12  # keeps a ratio finite where an image is a copy
_ROWS = 8192  # subtracted at once


@dataclass(frozen=True)
class RealNeighbours:
    """The nearest other real images of each real image.

    Attributes:
        distances: (N, k) float32, ascending.
        indices: (N, k) int64.
    """

    distances: Tensor
    indices: Tensor


@dataclass(frozen=True)
class VariantNeighbours:
    """Where each variant lies among the real images.

    Attributes:
        own: (M,) float32, distance to its own source.
        rank: (M,) int64, of its own source among all by distance; 1 is nearest.
        other: (M,) float32, distance to the nearest other source.
        other_index: (M,) int64, which that is.
        indices: (M, k) int64, the k nearest other sources.
        realism: (M,) float32, the largest ratio of a real image's neighbourhood radius to its distance.
    """

    own: Tensor
    rank: Tensor
    other: Tensor
    other_index: Tensor
    indices: Tensor
    realism: Tensor


def neighbours_of_real(real: Tensor, k: int, device: torch.device = CPU) -> RealNeighbours:
    """Find the k nearest other rows of each row of `real` (N, D), with the distances computed on `device`.

    Example:
        >>> import torch
        >>> found = neighbours_of_real(torch.tensor([[0.0], [1.0], [3.0]]), 1)
        >>> found.distances.flatten().tolist(), found.indices.flatten().tolist()
        ([1.0, 1.0, 2.0], [1, 0, 1])
    """
    k = min(k, len(real) - 1)
    centred = real - real.mean(dim=0)
    distances, indices = [], []
    for start, squares in squared_distances(centred, centred, device):
        squares.diagonal(offset=start).fill_(torch.inf)
        found = squares.topk(k, dim=1, largest=False).indices.cpu()
        nearest_first = _sort(real[start : start + len(squares)], real, found)
        distances.append(nearest_first[0])
        indices.append(nearest_first[1])
    return RealNeighbours(torch.cat(distances), torch.cat(indices))


def neighbours_of_variants(e: Evidence, radius: Tensor, k: int) -> VariantNeighbours:
    """Place each variant among the real images.

    Args:
        e: the features.
        radius: (N,) float32, the neighbourhood of each real image, for `VariantNeighbours.realism`.
        k: how many of the nearest other sources to return.
    """
    k = min(k, len(e.real) - 1)
    mean = e.real.mean(dim=0)
    real, variants = e.real - mean, e.variants - mean
    own = distances_between(e.variants, e.real, e.owner)
    slack = _ROUNDING * (variants.square().sum(dim=1) + real.square().sum(dim=1)[e.owner])
    square_radius = radius.square()
    to_own = square_radius[e.owner] / own.square().clamp(min=_LEAST)
    square_radius = square_radius.to(e.device)
    parts: list[tuple[Tensor, ...]] = []
    for start, squares in squared_distances(variants, real, e.device):
        stop = start + len(squares)
        owner = e.owner[start:stop, None].to(e.device)
        bound = squares.gather(1, owner) - slack[start:stop, None].to(e.device)
        rank = 1 + (squares < bound).sum(dim=1).cpu()
        squares.scatter_(1, owner, torch.inf)
        found = squares.topk(k, dim=1, largest=False).indices.cpu()
        exact, found = _sort(e.variants[start:stop], e.real, found)
        ratio = (square_radius / squares.clamp_(min=_LEAST)).amax(dim=1).cpu()
        parts.append((rank, exact[:, 0], found, torch.maximum(ratio, to_own[start:stop]).sqrt()))
    rank, other, indices, realism = (torch.cat(column) for column in zip(*parts, strict=True))
    return VariantNeighbours(own, rank, other, indices[:, 0], indices, realism)


def nearest(points: Tensor, support: Tensor, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """Return for each row of `points` (M, D) the distance to the nearest row of `support` (N, D), and which it is.

    Example:
        >>> import torch
        >>> nearest(torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [7.0]]))
        (tensor([1., 2.]), tensor([0, 1]))
    """
    mean = support.mean(dim=0)
    indices = torch.cat([squares.argmin(dim=1).cpu() for _, squares in squared_distances(points - mean, support - mean, device)])
    return distances_between(points, support, indices), indices


def squared_distances(points: Tensor, support: Tensor, device: torch.device = CPU) -> Iterator[tuple[int, Tensor]]:
    """Yield the first row, and (rows, N) squared distances on `device`, chunk by chunk."""
    support = support.to(device)
    norms = support.square().sum(dim=1)
    size = max(1, _ELEMENTS // len(support))
    for start in range(0, len(points), size):
        rows = points[start : start + size].to(device)
        squares = torch.addmm(norms[None], rows, support.T, alpha=-2).add_(rows.square().sum(dim=1, keepdim=True))
        yield start, squares.clamp_(min=0)


def radii(points: Tensor, k: int, device: torch.device = CPU) -> Tensor:
    """Return the distance of each point (N, D) to its k-th nearest other point: (N,) float32."""
    return neighbours_of_real(points, k, device).distances[:, -1]


def _sort(points: Tensor, support: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distances of points (B, D) from rows `indices` (B, k) of the support, ascending, and the indices in that order."""
    exact = torch.stack([distances_between(points, support, indices[:, i]) for i in range(indices.shape[1])], dim=1)
    order = exact.argsort(dim=1, stable=True)
    return exact.gather(1, order), indices.gather(1, order)


def distances_between(points: Tensor, support: Tensor, indices: Tensor) -> Tensor:
    """Return the distance of each point (M, D) from the row of the support that `indices` (M,) names, by the difference itself."""
    starts = range(0, max(1, len(points)), _ROWS)  # of no points: no distances, not an empty list
    return torch.cat([(points[i : i + _ROWS] - support[indices[i : i + _ROWS]]).norm(dim=1) for i in starts])
