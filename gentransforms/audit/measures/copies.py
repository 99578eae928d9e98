"""Are the variants copies: of their source, or of an image that they should know nothing of?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gentransforms.audit.evidence import CPU, Evidence, Measure, mean_per_source
from gentransforms.audit.intervals import Resamples
from gentransforms.audit.neighbours import RealNeighbours, VariantNeighbours, nearest, radii

__all__ = ["c_t_score", "measure_copies", "near_copy_distance", "near_distance"]

_PART = "copies"
_SEED = 0
_NO_SCALE = "half of the real images have an exact duplicate: nothing says what a copy is"


def near_distance(real: RealNeighbours) -> float | None:
    """Return a tenth of the median distance of real images to their nearest; None if most of them have an exact duplicate."""
    median = float(real.distances[:, 0].median())
    return median / 10 if median > 0 else None


def near_copy_distance(real: RealNeighbours) -> float | None:
    """Return the 1% quantile of the distances of real images to their nearest; None if all have an exact duplicate.

    Where 1% or more of them have one, the quantile is that of the others: nothing is nearer than 0.
    """
    distances = real.distances[:, 0].double()
    limit = float(distances.quantile(0.01))
    if limit > 0:
        return limit
    apart = distances[distances > 0]
    return float(apart.quantile(0.01)) if len(apart) else None


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
    among_real = real.distances[:, 0].double()
    found: dict[str, Measure | str] = {}

    def add(name: str, values: Tensor, reference: float | None, meaning: str) -> None:
        found[name] = Measure(_PART, *resamples.mean(mean_per_source(values, e.owner, len(e.real))), reference, meaning)

    if near is None:
        found["source_copies"] = _NO_SCALE
    else:
        add(
            "source_copies", (variants.own < near).double(), float((among_real < near).double().mean()),
            "share of variants nearer to their own source than a tenth of the median distance of real images to their nearest; good is 0",
        )  # fmt: skip
    limit = near_copy_distance(real)
    scale = float(among_real.mean())
    if limit is None:
        found["near_copies"] = found["nearest_ratio"] = "every real image has an exact duplicate: there is no distance to compare with"
    else:
        add(
            "near_copies", (variants.other < limit).double(), float((among_real < limit).double().mean()),
            "share of variants nearer to another real image, their own source left out, than 99% of real images are to their nearest; "
            "good is 0.01 or less",
        )  # fmt: skip
        add(
            "nearest_ratio", variants.other.double() / scale, 1.0,
            "mean distance of variants to the nearest real image, own source left out, over that of real images; good is 1; "
            "less means that they repeat other images",
        )  # fmt: skip
    authentic = _authentic(e, real, variants)
    add(
        "authpct", 100 * authentic, 100 * _authentic_real(e, real),
        "percentage of variants that are farther from their nearest real image than that image is from its own nearest (Alaa et al., "
        "2022); far below the reference means copies",
    )  # fmt: skip
    if e.holdout is None:
        return found | dict.fromkeys(("training_share", "training_share_others", "c_t"), "no holdout was given")
    return found | _against_holdout(e, variants, resamples)


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
    cells = max(1, min(5, len(training) // 200)) if cells is None else cells
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


def _authentic(e: Evidence, real: RealNeighbours, variants: VariantNeighbours) -> Tensor:
    """Return whether each variant is farther from its nearest real image, own source included, than that from its own nearest."""
    from_own = variants.own < variants.other
    closest = torch.where(from_own, e.owner, variants.other_index)
    return (torch.minimum(variants.own, variants.other) > real.distances[closest, 0]).double()


def _authentic_real(e: Evidence, real: RealNeighbours) -> float:
    """Return the share of real images that are authentic among the others: of a held-out half against the other half."""
    order = torch.randperm(len(e.real), generator=torch.Generator("cpu").manual_seed(_SEED))
    half, rest = e.real[order[: len(order) // 2]], e.real[order[len(order) // 2 :]]
    distances, indices = nearest(half, rest, e.device)
    own = radii(rest, 1, e.device) if len(rest) > 1 else torch.full((len(rest),), torch.inf)
    return float((distances > own[indices]).double().mean())


def _against_holdout(e: Evidence, variants: VariantNeighbours, resamples: Resamples) -> dict[str, Measure | str]:
    """Compare distances to the training images with distances to as many held-out ones."""
    assert e.holdout is not None
    if len(e.holdout) < len(e.real):
        few = (
            f"{len(e.holdout)} held-out images for {len(e.real)} sources: as many are needed, or distances cannot be compared; "
            f"give more, or limit={len(e.holdout)}"
        )
        return dict.fromkeys(("training_share", "training_share_others", "c_t"), few)
    # Evenly spaced, so that a set sorted by class keeps its classes.
    holdout = e.holdout[torch.arange(len(e.real)) * len(e.holdout) // len(e.real)]
    held_out, _ = nearest(e.variants, holdout, e.device)
    found: dict[str, Measure | str] = {}
    for name, to_training, meaning in (
        ("training_share", torch.minimum(variants.own, variants.other),
         "share of variants whose nearest training image, own source included, is nearer than their nearest held-out one; "
         "a variant belongs near its source, so read it beside training_share_others"),
        ("training_share_others", variants.other,
         "the same with the own source left out; good is about 0.5, more means that the generator remembers its training images"),
    ):  # fmt: skip
        nearer = (to_training < held_out).double() + 0.5 * (to_training == held_out).double()
        found[name] = Measure(_PART, *resamples.mean(mean_per_source(nearer, e.owner, len(e.real))), 0.5, meaning)
    first = (e.counts.cumsum(0) - e.counts)[e.counts > 0]
    score = c_t_score(e.real, holdout, e.variants[first], device=e.device)
    meaning = (
        "data-copying statistic C_T (Meehan et al., 2020), a z-score, of one variant of each source, its own source among the training "
        "images; negative means that variants lie nearer to training images than held-out images do, which a variant does by its "
        "source: read it beside training_share_others"
    )
    found["c_t"] = Measure(_PART, score, (score - 1.96, score + 1.96), 0.0, meaning)
    return found
