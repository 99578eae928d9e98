"""Who says what class a variant shows: the real images nearest to it, or a classifier of the user's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gentransforms.audit.evidence import Evidence
from gentransforms.audit.neighbours import RealNeighbours, VariantNeighbours
from gentransforms.errors import ConfigError

__all__ = ["Judgement", "check_scores", "choose_neighbours", "class_shares", "judge_by_neighbours", "judge_by_scores", "vote"]

_MOST = 10
_ROWS = 65_536  # judged again at once


@dataclass(frozen=True)
class Judgement:
    """What a judge says, and how far it can be trusted.

    Attributes:
        variants: (M,) int64, the class that each variant shows.
        sources: (N,) int64, the class of each source, judged without its own label.
        right: (N,) bool, where that is its label: the judge's accuracy on real images it was not told of.
        classes: how many it can tell apart.
        name: of the judge, for the report.
        voters: (M, K) int64, the classes of the nearest other sources of each variant; None if they do not vote.
        voters_rows: (M, K) int64, which sources these are.
        votes: how many of them vote.
    """

    variants: Tensor
    sources: Tensor
    right: Tensor
    classes: int
    name: str
    voters: Tensor | None = None
    voters_rows: Tensor | None = None
    votes: int = 0

    def without(self, out: Tensor) -> Tensor:
        """Return the class that each variant shows, (M,) int64, if the sources in `out` (N,) bool have no vote.

        The next nearest vote in their place, as far as these are known.
        """
        if self.voters is None or self.voters_rows is None:
            return self.variants
        judged = self.variants.clone()
        for start in range(0, len(judged), _ROWS):
            rows = torch.arange(start, min(start + _ROWS, len(judged)))
            gone = out[self.voters_rows[rows]]
            changed = gone[:, : self.votes].any(dim=1)
            rows, gone = rows[changed], gone[changed]
            order = gone.to(torch.uint8).argsort(dim=1, stable=True)[:, : self.votes]
            classes, present = self.voters[rows].gather(1, order), ~gone.gather(1, order)
            # A vote among the voters themselves: memory does not grow with the classes.
            same = (classes[:, :, None] == classes[:, None, :]) & present[:, :, None]
            counted = (same * _weights(self.votes)[None, :, None]).sum(dim=1) * present
            judged[rows] = classes.gather(1, counted.argmax(dim=1, keepdim=True))[:, 0]
        return judged


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
    right, name = sources == labels, f"{k} nearest real images"
    return Judgement(made, sources, right, distinct, name, labels[variants.indices], variants.indices, k)


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
    check_scores(name, sources.shape[1], classes)
    judged = sources.argmax(dim=1)
    return Judgement(variants.argmax(dim=1), judged, judged == labels, classes, name)


def check_scores(name: str, scores: int, classes: int) -> None:
    """Raise unless a classifier gives an image one score for each class.

    Raises:
        ConfigError: if it gives more or fewer.
    """
    if scores != classes:
        raise ConfigError(
            f"classifier: {name} returned {scores} scores for an image, and there are {classes} classes: expected one for "
            "each class of the source, in the order of the sorted labels or of the source's class names; if a limit leaves out classes, "
            "give the labels as a list"
        )


def class_shares(e: Evidence, judged: Tensor, kept: Tensor, count: int) -> Tensor:
    """Return the mean over sources of the shares of each of `count` classes among their variants: (count,) float64.

    Args:
        e: the features.
        judged: (M,) int64, the class of each variant.
        kept: (N,) bool, which sources count; those without variants never do.
        count: of the classes.
    """
    known = kept & (e.counts > 0)
    cells = (e.owner * count + judged).bincount(minlength=len(e.real) * count).view(len(e.real), count)
    shares: Tensor = (cells[known].double() / e.counts[known, None]).mean(dim=0)
    return shares


def vote(neighbours: Tensor, classes: int) -> Tensor:
    """Return the class that most of the neighbours (M, k) have; of equally many, the one with nearer neighbours.

    Example:
        >>> import torch
        >>> vote(torch.tensor([[2, 1, 1], [0, 1, 2]]), 3).tolist()
        [1, 0]
    """
    k = neighbours.shape[1]
    weights = _weights(k)
    votes = torch.zeros(len(neighbours), classes)
    for i in range(k):  # over the neighbours, not over the images: memory is (M, classes)
        votes.add_(F.one_hot(neighbours[:, i], classes) * weights[i])
    return votes.argmax(dim=1)


def _weights(k: int) -> Tensor:
    # Nearer neighbours weigh a little more, by less than a vote in all: ties are broken, majorities are not.
    return 1 + torch.linspace(1, 0, k) / (2 * k)
