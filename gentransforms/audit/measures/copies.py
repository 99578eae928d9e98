"""Are the variants copies: of their source, or of an image that they should know nothing of?"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gentransforms.audit.evidence import CPU, Evidence, Measure, mean_per_source
from gentransforms.audit.intervals import Jackknife, Resamples
from gentransforms.audit.measures.left_out import LeftOut, nearest_in_two_groups, two_groups_of_neighbours
from gentransforms.audit.measures.near_copies import measure_near_copies
from gentransforms.audit.measures.needs import CELL, HELD_OUT, NO_HOLDOUT, few_held_out
from gentransforms.audit.neighbours import RealNeighbours, VariantNeighbours, nearest, radii

__all__ = ["c_t_score", "measure_copies", "near_distance"]

_PART = "copies"
_SEED = 0
_NO_SCALE = "half of the real images have an exact duplicate: nothing says what a copy is"


def near_distance(real: RealNeighbours) -> float | None:
    """Return a tenth of the median distance of real images to their nearest; None if most of them have an exact duplicate."""
    median = float(real.distances[:, 0].median())
    return median / 10 if median > 0 else None


def measure_copies(
    e: Evidence, real: RealNeighbours, variants: VariantNeighbours, near: float | None, resamples: Resamples
) -> dict[str, Measure | str]:
    """Return measures of copying, or why one is left out.

    Args:
        e: the features.
        real: neighbours of the real images.
        variants: where the variants lie among them.
        near: see `near_distance`.
        resamples: for the intervals.
    """
    jackknife = resamples.jackknife
    among = two_groups_of_neighbours(e.real, e.real, real.indices, jackknife.groups, device=e.device)
    others = two_groups_of_neighbours(e.variants, e.real, variants.indices, jackknife.groups, e.owner, e.device)
    found: dict[str, Measure | str] = {}

    def apart(g: int) -> Tensor:
        """Return the distances of the real images to their nearest without group g: (N',) float64."""
        return among.without(g)[0][jackknife.groups != g].double()

    if near is None:
        found["source_copies"] = _NO_SCALE
    else:
        found["source_copies"] = _figure(
            e, jackknife, (variants.own < near).double(), lambda g: _nearer_than(variants.own, apart(g).median() / 10),
            float((real.distances[:, 0] < near).double().mean()), 1,
            "share of variants nearer to their own source than a tenth of the median distance of real images to their nearest; good is 0",
        )  # fmt: skip
    near_copies = measure_near_copies(e, real, variants, others, jackknife)
    if near_copies is None:
        found["near_copies"] = found["nearest_ratio"] = "every real image has an exact duplicate: there is no distance to compare with"
    else:
        found["near_copies"] = near_copies
        scale = float(real.distances[:, 0].double().mean())
        found["nearest_ratio"] = _figure(
            e, jackknife, variants.other.double() / scale, lambda g: others.without(g)[0].double() / apart(g).mean(), 1.0, math.inf,
            "mean distance of variants to the nearest real image, own source left out, over that of real images; good is 1; "
            "less means that they repeat other images",
        )  # fmt: skip
    found["authpct"] = _figure(
        e, jackknife, _authentic(e, variants.own, variants.other, variants.other_index, real.distances[:, 0]),
        lambda g: _authentic(e, variants.own, *others.without(g), among.without(g)[0]), 100 * _authentic_real(e, real), 100,
        "percentage of variants that are farther from their nearest real image than that image is from its own nearest (Alaa et al., "
        "2022); far below the reference means copies",
    )  # fmt: skip
    if e.holdout is None:
        return found | dict.fromkeys(HELD_OUT, NO_HOLDOUT)
    return found | _against_holdout(e, variants, others, jackknife)


def c_t_score(training: Tensor, held_out: Tensor, made: Tensor, cells: int | None = None, device: torch.device = CPU) -> float:
    """Return the C_T statistic of data copying: negative where `made` lies nearer to `training` than `held_out` does.

    A Mann-Whitney test of the distances to the nearest training image in each cell of the space, as a z-score, averaged
    with the held-out images in each cell as weights.

    Args:
        training: (N, D) features.
        held_out: (H, D) features of real images that were not trained on.
        made: (M, D) features of generated images.
        cells: of k-means on the training images; one for each 200 of them, at most 5, by default.
        device: where distances are computed.

    Source: Meehan et al., "A Non-Parametric Test to Detect Data-Copying in Generative Models" (AISTATS 2020).
    """
    cells = max(1, min(5, len(training) // CELL)) if cells is None else cells
    of_held_out, of_made = (nearest(points, training, device)[0] for points in (held_out, made))
    if cells == 1:
        cell_of_held_out, cell_of_made = (torch.zeros(len(points), dtype=torch.int64) for points in (held_out, made))
    else:
        from sklearn.cluster import KMeans

        clusters = KMeans(cells, n_init=1, random_state=_SEED).fit(training.numpy())
        cell_of_held_out, cell_of_made = (torch.from_numpy(clusters.predict(points.numpy())).long() for points in (held_out, made))
    total, weight = 0.0, 0
    for cell in range(cells):
        p, q = of_held_out[cell_of_held_out == cell], of_made[cell_of_made == cell]
        if len(p) < 2 or len(q) < 2:
            continue  # too few to compare
        total += len(p) * _mann_whitney(p, q)
        weight += len(p)
    return total / weight if weight else 0.0


def _mann_whitney(p: Tensor, q: Tensor) -> float:
    """Return the z-score of U, the number of pairs in which q is larger than p, ties as halves."""
    ordered = p.sort().values
    below, up_to = torch.searchsorted(ordered, q, right=False), torch.searchsorted(ordered, q, right=True)
    u = float((below + up_to).double().sum()) / 2
    n, m = len(p), len(q)
    return (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)


def _figure(
    e: Evidence, jackknife: Jackknife, values: Tensor, without: Callable[[int], Tensor], reference: float, most: float, meaning: str
) -> Measure:
    """Return the mean over sources of a value of each variant (M,), from 0 to `most`; `without` returns the values without a group."""

    def left(g: int) -> Tensor:
        return mean_per_source(without(g), e.owner, len(e.real))[jackknife.groups != g].nanmean()

    value = float(mean_per_source(values, e.owner, len(e.real)).nanmean())
    return Measure(_PART, value, jackknife.interval(value, left, 0.0, most), reference, meaning)


def _nearer_than(distances: Tensor, limit: Tensor) -> Tensor:
    """Return where distances are below a limit, as numbers: NaN if there is none, as where a group leaves one real image."""
    return torch.where(limit.isfinite(), (distances < limit).double(), torch.nan)


def _authentic(e: Evidence, own: Tensor, other: Tensor, other_index: Tensor, among_real: Tensor) -> Tensor:
    """Return 100 for each variant that is farther from its nearest real image, own source included, than that from its own nearest."""
    closest = torch.where(own < other, e.owner, other_index)
    radius = among_real[closest]
    return torch.where(radius.isfinite(), 100 * (torch.minimum(own, other) > radius).double(), torch.nan)


def _authentic_real(e: Evidence, real: RealNeighbours) -> float:
    """Return the share of real images that are authentic among the others: of a held-out half against the other half."""
    order = torch.randperm(len(e.real), generator=torch.Generator("cpu").manual_seed(_SEED))
    half, rest = e.real[order[: len(order) // 2]], e.real[order[len(order) // 2 :]]
    distances, indices = nearest(half, rest, e.device)
    own = radii(rest, 1, e.device) if len(rest) > 1 else torch.full((len(rest),), torch.inf)
    return float((distances > own[indices]).double().mean())


def _against_holdout(e: Evidence, variants: VariantNeighbours, others: LeftOut, jackknife: Jackknife) -> dict[str, Measure | str]:
    """Compare distances to the training images with distances to as many held-out ones."""
    assert e.holdout is not None
    few = few_held_out(len(e.holdout), len(e.real))
    if few is not None:  # as some could not be read: fewer than that are refused before
        return dict.fromkeys(HELD_OUT, few)
    # Evenly spaced, so that a set sorted by class keeps its classes.
    holdout = e.holdout[torch.arange(len(e.real)) * len(e.holdout) // len(e.real)]
    held_out = nearest_in_two_groups(e.variants, holdout, jackknife.held_out, e.device)

    def nearer(to_training: Tensor, to_held_out: Tensor) -> Tensor:
        values = (to_training < to_held_out).double() + 0.5 * (to_training == to_held_out).double()
        return torch.where(to_training.isfinite(), values, torch.nan)  # of two sources, none is left to compare with

    found: dict[str, Measure | str] = {}
    for name, own, meaning in (
        ("training_share", variants.own,
         "share of variants whose nearest training image, own source included, is nearer than their nearest held-out one; "
         "a variant belongs near its source, so read it beside training_share_others"),
        ("training_share_others", torch.full_like(variants.own, torch.inf),
         "the same with the own source left out; good is about 0.5, more means that the generator remembers its training images"),
    ):  # fmt: skip

        def without(g: int, own: Tensor = own) -> Tensor:
            return nearer(torch.minimum(own, others.without(g)[0]), held_out.without(g)[0])

        values = nearer(torch.minimum(own, variants.other), held_out.distances[:, 0])
        found[name] = _figure(e, jackknife, values, without, 0.5, 1, meaning)
    first = (e.counts.cumsum(0) - e.counts)[e.counts > 0]
    score = c_t_score(e.real, holdout, e.variants[first], device=e.device)
    meaning = (
        "data-copying statistic C_T (Meehan et al., 2020), a z-score, of one variant of each source, its own source among the training "
        "images; negative means that variants lie nearer to training images than held-out images do, which a variant does by its "
        "source: read it beside training_share_others"
    )
    found["c_t"] = Measure(_PART, score, (score - 1.96, score + 1.96), 0.0, meaning)
    return found
