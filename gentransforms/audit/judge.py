"""Who says what class a variant shows: the real images nearest to it, or a classifier of the user's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gentransforms.audit.evidence import Evidence
from gentransforms.audit.neighbours import RealNeighbours, VariantNeighbours
from gentransforms.errors import ConfigError

__all__ = ["Judgement", "choose_neighbours", "class_shares", "judge_by_neighbours", "judge_by_scores", "vote"]

_MOST = 10


@dataclass(frozen=True)
class Judgement:
    """What a judge says, and how far it can be trusted.

    Attributes:
        variants: (M,) int64, the class that each variant shows.
        sources: (N,) int64, the class of each source, judged without its own label.
        right: (N,) bool, where that is its label: the judge's accuracy on real images it was not told of.
        classes: how many it can tell apart.
        name: of the judge, for the report.
    """

    variants: Tensor
    sources: Tensor
    right: Tensor
    classes: int
    name: str


def choose_neighbours(labels: Tensor) -> int:
    """Return how many neighbours vote: 10, or fewer where the smallest class of two or more images has fewer others.

    Example:
        >>> import torch
        >>> choose_neighbours(torch.tensor([0, 0, 0, 1, 1, 1, 2]))
        2
    """
    sizes = labels.bincount()
    sizes = sizes[sizes > 1]
    return min(_MOST, int(sizes.min()) - 1) if len(sizes) else 1


def judge_by_neighbours(labels: Tensor, real: RealNeighbours, variants: VariantNeighbours, k: int) -> Judgement:
    """Let the k nearest real images vote; an image never votes on itself, a source never on its variants.

    Args:
        labels: (N,) int64 of the sources.
        real: neighbours of the sources among each other.
        variants: neighbours of the variants among the other sources.
        k: how many vote.
    """
    classes = int(labels.max()) + 1
    sources = vote(labels[real.indices[:, :k]], classes)
    made, distinct = vote(labels[variants.indices[:, :k]], classes), int((labels.bincount() > 0).sum())
    return Judgement(made, sources, sources == labels, distinct, f"{k} nearest real images")


def judge_by_scores(labels: Tensor, classes: int, sources: Tensor, variants: Tensor, name: str) -> Judgement:
    """Take the class with the highest score of a classifier.

    Args:
        labels: (N,) int64 of the sources.
        classes: how many there are.
        sources: (N, classes) scores.
        variants: (M, classes) scores.
        name: of the classifier.

    Raises:
        ConfigError: if it does not give one score for each class.
    """
    if sources.shape[1] != classes:
        raise ConfigError(
            f"classifier: {name} returned {sources.shape[1]} scores for an image, and there are {classes} classes: expected one for "
            "each class of the source, in the order of the sorted labels or of the source's class names; if a limit leaves out classes, "
            "give the labels as a list"
        )
    judged = sources.argmax(dim=1)
    return Judgement(variants.argmax(dim=1), judged, judged == labels, classes, name)


def class_shares(e: Evidence, judgement: Judgement, count: int) -> Tensor:
    """Return the shares of each of `count` classes among the variants of each source: (N, count) float64, NaN without variants."""
    cells = (e.owner * count + judgement.variants).bincount(minlength=len(e.real) * count).view(len(e.real), count)
    return cells.double() / e.counts[:, None]


def vote(neighbours: Tensor, classes: int) -> Tensor:
    """Return the class that most of the neighbours (M, k) have; of equally many, the one with nearer neighbours.

    Example:
        >>> import torch
        >>> vote(torch.tensor([[2, 1, 1], [0, 1, 2]]), 3).tolist()
        [1, 0]
    """
    k = neighbours.shape[1]
    # Nearer neighbours weigh a little more, by less than a vote in all: ties are broken, majorities are not.
    weights = 1 + torch.linspace(1, 0, k) / (2 * k)
    votes = torch.zeros(len(neighbours), classes)
    for i in range(k):  # over the neighbours, not over the images: memory is (M, classes)
        votes.add_(F.one_hot(neighbours[:, i], classes) * weights[i])
    return votes.argmax(dim=1)
