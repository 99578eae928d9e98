"""Is it still the same thing?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gentransforms.audit.evidence import Evidence, Measure, mean_per_source
from gentransforms.audit.intervals import Jackknife, Resamples
from gentransforms.audit.judge import Judgement, class_shares
from gentransforms.audit.neighbours import RealNeighbours, VariantNeighbours

__all__ = ["label_agreement", "label_kappa", "measure_faithfulness", "similarities"]

_PART = "faithfulness"
_ROWS = 8192  # summed at once


def similarities(e: Evidence) -> tuple[Tensor, Tensor]:
    """Return the cosine of each variant with its own source, and its mean cosine with all others: (M,) float32 each."""
    real, variants = F.normalize(e.real, dim=1), F.normalize(e.variants, dim=1)
    own = (variants * real[e.owner]).sum(dim=1)
    # The mean over the others is a product with their sum: no matrix of pairs.
    others = (variants.double() @ real.double().sum(dim=0) - own.double()) / (len(real) - 1)
    return own, others.float()


def measure_faithfulness(e: Evidence, real: RealNeighbours, variants: VariantNeighbours, resamples: Resamples) -> dict[str, Measure | str]:
    """Return how near the variants are to their own sources, by similarity and by rank, or why a measure is left out."""
    own, others = similarities(e)
    count = len(e.real)

    def figure(values: Tensor, reference: float, meaning: str) -> Measure:
        return Measure(_PART, *resamples.mean(mean_per_source(values, e.owner, count)), reference, meaning)

    nearer, among_others = _real_similarities(e, real)
    chance = sum(1 / rank for rank in range(1, count + 1)) / count
    found: dict[str, Measure | str] = {
        "source_similarity": figure(
            own, nearer,
            "mean cosine between a variant and its own source; good is above other_similarity, and near the reference, "
            + ("two real images of one class" if e.labels is not None else "a real image and its nearest other"),
        ),
        "other_similarity": Measure(
            _PART, *_mean_of_others(e, own, others, resamples.jackknife), among_others,
            "mean cosine between a variant and other sources; good is near the reference, that of two real images",
        ),
    }  # fmt: skip
    if bool((e.real == e.real[0]).all()):
        alike = "all real images have the same features: the encoder does not tell them apart"
        return found | {"source_retrieval": alike, "mean_reciprocal_rank": alike}
    found["source_retrieval"] = figure(
        (variants.rank == 1).double(), 1 / count,
        "share of variants whose nearest source is their own; good is far above the reference, which is chance",
    )  # fmt: skip
    found["mean_reciprocal_rank"] = figure(
        1 / variants.rank.double(), chance, "mean of 1 / the rank of a variant's own source; 1 is best; the reference is chance"
    )
    return found


def label_agreement(e: Evidence, judgement: Judgement, resamples: Resamples) -> Measure:
    """Return the share of variants that show the class of their source, in the judge's eyes."""
    assert e.labels is not None
    labels, groups = e.labels, resamples.jackknife.groups

    def agreement(judged: Tensor) -> Tensor:
        return mean_per_source((judged == labels[e.owner]).double(), e.owner, len(e.real))

    value = float(agreement(judgement.variants).nanmean())
    interval = resamples.jackknife.interval(value, lambda g: agreement(judgement.without(groups == g))[groups != g].nanmean(), 0.0, 1.0)
    return Measure(
        _PART, value, interval, float(judgement.right.double().mean()),
        f"share of variants that the judge ({judgement.name}) takes for their source's class; good is near the reference, "
        "its accuracy on real images it was not told of",
    )  # fmt: skip


def label_kappa(e: Evidence, judgement: Judgement, resamples: Resamples) -> Measure:
    """Return the agreement beyond chance: what is left where one class is frequent, and to be taken for it says little.

    Source: Cohen, "A Coefficient of Agreement for Nominal Scales" (1960).
    """
    assert e.labels is not None
    count = 1 + int(torch.cat([e.labels, judgement.sources, judgement.variants]).max())  # a judge may see classes that no source has
    labels, groups = e.labels, resamples.jackknife.groups

    def kappa(judged: Tensor, kept: Tensor) -> float:
        agrees = mean_per_source((judged == labels[e.owner]).double(), e.owner, len(e.real))
        before = labels[kept & (e.counts > 0)].bincount(minlength=count).double()
        chance = float(before @ class_shares(e, judged, kept, count) / before.sum())
        return _kappa(float(agrees[kept].nanmean()), chance)

    value = kappa(judgement.variants, torch.ones_like(groups, dtype=torch.bool))
    interval = resamples.jackknife.interval(value, lambda g: kappa(judgement.without(groups == g), groups != g), most=1.0)
    before, after = (classes.bincount(minlength=count).double() / len(labels) for classes in (labels, judgement.sources))
    return Measure(
        _PART, value, interval, _kappa(float(judgement.right.double().mean()), float(before @ after)),
        "the label agreement beyond chance (Cohen's kappa): 0 if the variants' classes had nothing to do with their sources', 1 is best; "
        "good is near the reference, that of real images",
    )  # fmt: skip


def _kappa(agreement: float, chance: float) -> float:
    return (agreement - chance) / max(1 - chance, 1e-9)


def _mean_of_others(e: Evidence, own: Tensor, others: Tensor, jackknife: Jackknife) -> tuple[float, tuple[float, float] | None]:
    """Return the mean cosine with other sources and its interval, from sums over the groups: no cosine is taken again."""
    real, made = (torch.zeros(jackknife.count, e.real.shape[1], dtype=torch.float64) for _ in range(2))
    real.index_add_(0, jackknife.groups, F.normalize(e.real, dim=1).double())
    for start in range(0, len(e.variants), _ROWS):
        rows = slice(start, start + _ROWS)
        owner = e.owner[rows]
        made.index_add_(0, jackknife.groups[owner], F.normalize(e.variants[rows], dim=1).double() / e.counts[owner, None])
    products = made @ real.T
    to_own = mean_per_source(own, e.owner, len(e.real))

    def without(g: int) -> Tensor:
        kept = jackknife.groups != g
        total = products.sum() - products[g].sum() - products[:, g].sum() + products[g, g]
        return (total - to_own[kept].nansum()) / (kept.sum() - 1) / to_own[kept].isfinite().sum()

    value = float(mean_per_source(others, e.owner, len(e.real)).nanmean())
    return value, jackknife.interval(value, without, -1.0, 1.0)


def _real_similarities(e: Evidence, neighbours: RealNeighbours) -> tuple[float, float]:
    """Return the mean cosine between a real image and one like it, and between any two."""
    real = F.normalize(e.real, dim=1).double()
    count = len(real)
    total = real.sum(dim=0)
    among_all = float((total @ total - count) / (count * (count - 1)))
    if e.labels is None:
        return float((real * real[neighbours.indices[:, 0]]).sum(dim=1).mean()), among_all
    sums = torch.zeros(int(e.labels.max()) + 1, real.shape[1], dtype=torch.float64).index_add_(0, e.labels, real)
    sizes = e.labels.bincount()[e.labels]
    paired = sizes > 1
    if not bool(paired.any()):
        return among_all, among_all
    within = ((real * sums[e.labels]).sum(dim=1) - 1)[paired] / (sizes[paired] - 1)
    return float(within.mean()), among_all
