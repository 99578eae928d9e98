"""The nearest real image when a group of them is left out, for every group at once.

Whichever group is left out, the nearest is either the nearest of all or, if that is in the group, the nearest in another
group. So two images are kept for each point, not one for each group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentransforms.audit.evidence import CPU
from gentransforms.audit.neighbours import distances_between, squared_distances

__all__ = ["LeftOut", "nearest_in_two_groups", "two_groups_of_neighbours"]


@dataclass(frozen=True)
class LeftOut:
    """The nearest image of each point in two groups.

    Attributes:
        distances: (M, 2) float32, to the nearest image, and to the nearest in any other group; infinite where there is none.
        indices: (M, 2) int64, which these are.
        groups: (N,) int64, the group of each image.
    """

    distances: Tensor
    indices: Tensor
    groups: Tensor

    def without(self, group: int) -> tuple[Tensor, Tensor]:
        """Return distance (M,) and index (M,) of the nearest image that is not in `group`."""
        out = self.groups[self.indices[:, 0]] == group
        return tuple(torch.where(out, x[:, 1], x[:, 0]) for x in (self.distances, self.indices))  # type: ignore[return-value]


def two_groups_of_neighbours(
    points: Tensor, support: Tensor, neighbours: Tensor, groups: Tensor, owner: Tensor | None = None, device: torch.device = CPU
) -> LeftOut:
    """Find them among neighbours that are known, and search only where all of these are in one group.

    Args:
        points: (M, D).
        support: (N, D).
        neighbours: (M, k) int64, rows of `support`, the nearest first.
        groups: (N,) int64, the group of each row of `support`.
        owner: (M,) int64, the row of `support` that is no neighbour of each point; each point's own row by default.
        device: where distances are computed.
    """
    owner = torch.arange(len(points)) if owner is None else owner
    of_neighbours = groups[neighbours]
    other = of_neighbours != of_neighbours[:, :1]
    second = neighbours.gather(1, other.int().argmax(dim=1, keepdim=True))[:, 0]
    first = neighbours[:, 0]
    distances = torch.stack([distances_between(points, support, index) for index in (first, second)], dim=1)
    missing = (~other.any(dim=1)).nonzero()[:, 0]
    distances[missing, 1] = torch.inf
    for group in sorted(set(groups[first[missing]].tolist())):
        rows = missing[groups[first[missing]] == group]
        kept = (groups != group).nonzero()[:, 0]
        if not len(kept):
            continue
        mean = support.mean(dim=0)
        for start, squares in squared_distances(points[rows] - mean, support[kept] - mean, device):
            part = rows[start : start + len(squares)]
            squares[kept.to(device) == owner[part, None].to(device)] = torch.inf
            found = squares.min(dim=1)
            there = found.values.isfinite().cpu()
            part, indices = part[there], kept[found.indices.cpu()[there]]
            second[part] = indices
            distances[part, 1] = distances_between(points[part], support, indices)
    return LeftOut(distances, torch.stack([first, second], dim=1), groups)


def nearest_in_two_groups(points: Tensor, support: Tensor, groups: Tensor, device: torch.device = CPU) -> LeftOut:
    """Search the support (N, D), whose rows are in `groups` (N,), for the nearest of each point (M, D) in two groups.

    Example:
        >>> import torch
        >>> found = nearest_in_two_groups(torch.zeros(1, 1), torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1]))
        >>> [found.without(group)[0].item() for group in (0, 1)]
        [3.0, 1.0]
    """
    mean = support.mean(dim=0)
    there = groups.to(device)
    firsts, seconds, alone = [], [], []
    for _, squares in squared_distances(points - mean, support - mean, device):
        first = squares.argmin(dim=1)
        found = squares.masked_fill_(there == there[first][:, None], torch.inf).min(dim=1)
        firsts.append(first.cpu())
        seconds.append(found.indices.cpu())
        alone.append(found.values.isinf().cpu())
    indices = torch.stack([torch.cat(firsts), torch.cat(seconds)], dim=1)
    distances = torch.stack([distances_between(points, support, indices[:, i]) for i in range(2)], dim=1)
    distances[torch.cat(alone), 1] = torch.inf
    return LeftOut(distances, indices, groups)
