"""Nearest neighbours in chunks: no matrix of all pairs is ever held.

Distances are Euclidean. The search uses |a|^2 + |b|^2 - 2 a.b, which rounds; what is found is measured again by the
difference itself, so that a copy has the distance zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gentransforms.audit.evidence import Evidence

__all__ = ["RealNeighbours", "VariantNeighbours", "nearest", "neighbours_of_real", "neighbours_of_variants", "radii", "squared_distances"]

_ELEMENTS = 32_000_000  # of a chunk of distances: 128 MB
# Squared distances that differ by less than this share of the squared norms are taken for equal.
_ROUNDING = 1e-6


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


def neighbours_of_real(real: Tensor, k: int) -> RealNeighbours:
    """Find the k nearest other rows of each row of `real` (N, D).

    Example:
        >>> import torch
        >>> found = neighbours_of_real(torch.tensor([[0.0], [1.0], [3.0]]), 1)
        >>> found.distances.flatten().tolist(), found.indices.flatten().tolist()
        ([1.0, 1.0, 2.0], [1, 0, 1])
    """
    k = min(k, len(real) - 1)
    centred = real - real.mean(dim=0)
    distances, indices = [], []
    for start, squares in squared_distances(centred, centred):
        rows = torch.arange(len(squares))
        squares[rows, rows + start] = torch.inf
        found = squares.topk(k, dim=1, largest=False).indices
        exact = _measure(real[start : start + len(squares)], real, found)
        order = exact.argsort(dim=1, stable=True)
        distances.append(exact.gather(1, order))
        indices.append(found.gather(1, order))
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
    norms = real.square().sum(dim=1)
    square_radius = radius.square()
    parts: list[tuple[Tensor, ...]] = []
    for start, squares in squared_distances(variants, real):
        stop = start + len(squares)
        rows, owner = torch.arange(len(squares)), e.owner[start:stop]
        own_square = squares[rows, owner]
        slack = _ROUNDING * (variants[start:stop].square().sum(dim=1) + norms[owner])
        rank = 1 + (squares < (own_square - slack)[:, None]).sum(dim=1)
        own = (e.variants[start:stop] - e.real[owner]).norm(dim=1)
        squares[rows, owner] = torch.inf
        ratio = (square_radius / squares.clamp(min=1e-12)).amax(dim=1)
        ratio = torch.maximum(ratio, square_radius[owner] / own.square().clamp(min=1e-12))
        found = squares.topk(k, dim=1, largest=False).indices
        exact = _measure(e.variants[start:stop], e.real, found)
        order = exact.argsort(dim=1, stable=True)
        exact, found = exact.gather(1, order), found.gather(1, order)
        parts.append((own, rank, exact[:, 0], found[:, 0], found, ratio.sqrt()))
    own, rank, other, other_index, indices, realism = (torch.cat(column) for column in zip(*parts, strict=True))
    return VariantNeighbours(own, rank, other, other_index, indices, realism)


def nearest(points: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row of `points` (M, D) the distance to the nearest row of `support` (N, D), and which it is.

    Example:
        >>> import torch
        >>> nearest(torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [7.0]]))
        (tensor([1., 2.]), tensor([0, 1]))
    """
    mean = support.mean(dim=0)
    indices = torch.cat([squares.argmin(dim=1) for _, squares in squared_distances(points - mean, support - mean)])
    return (points - support[indices]).norm(dim=1), indices


def squared_distances(points: Tensor, support: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the first row, and (rows, N) squared distances, chunk by chunk."""
    norms = support.square().sum(dim=1)
    size = max(1, _ELEMENTS // len(support))
    for start in range(0, len(points), size):
        rows = points[start : start + size]
        squares = torch.addmm(norms[None], rows, support.T, alpha=-2).add_(rows.square().sum(dim=1, keepdim=True))
        yield start, squares.clamp_(min=0)


def radii(points: Tensor, k: int) -> Tensor:
    """Return the distance of each point (N, D) to its k-th nearest other point: (N,) float32."""
    return neighbours_of_real(points, k).distances[:, -1]


def _measure(points: Tensor, support: Tensor, indices: Tensor) -> Tensor:
    """Return the distances of points (B, D) from rows `indices` (B, k) of the support, by the difference itself."""
    columns = [(points - support[indices[:, i]]).norm(dim=1) for i in range(indices.shape[1])]
    return torch.stack(columns, dim=1)
