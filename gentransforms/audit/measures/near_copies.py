"""Which variants repeat another real image, and how far that share can be trusted.

The limit is the 1% quantile of the distances between real images: of a few hundred, that of the closest pair or two. How
common images so near to each other are is known to a factor only, and what is nearer than the limit is off by the same factor.
A jackknife does not see that, as most groups hold none of these pairs; order statistics do.
"""

from __future__ import annotations

import math

from torch import Tensor

from gentransforms.audit.evidence import Evidence, Measure, mean_per_source
from gentransforms.audit.intervals import Jackknife
from gentransforms.audit.measures.left_out import LeftOut
from gentransforms.audit.neighbours import RealNeighbours, VariantNeighbours

__all__ = ["limit_range", "measure_near_copies", "near_copy_distance"]

_SHARE = 0.01
_NORMAL = 1.959964  # the 97.5% quantile
_TAIL = 0.2  # of the distances, from which the power law is read
_LEAST = 8  # of these


def near_copy_distance(real: RealNeighbours) -> float | None:
    """Return the 1% quantile of the distances of real images to their nearest; None if all have an exact duplicate.

    Where 1% or more of them have one, the quantile is that of the others: nothing is nearer than 0.
    """
    distances = real.distances[:, 0].double()
    limit = float(distances.quantile(_SHARE))
    if limit > 0:
        return limit
    apart = distances[distances > 0]
    return float(apart.quantile(_SHARE)) if len(apart) else None


def measure_near_copies(
    e: Evidence, real: RealNeighbours, variants: VariantNeighbours, others: LeftOut, jackknife: Jackknife
) -> Measure | None:
    """Return the share of variants nearer to another real image than 99% of these are to their nearest; None without a limit.

    Args:
        e: the features.
        real: neighbours of the real images.
        variants: where the variants lie among them.
        others: the nearest other source of each variant in two groups.
        jackknife: for the interval.
    """
    limit = near_copy_distance(real)
    if limit is None:
        return None

    def share(distances: Tensor, below: float, kept: Tensor | None = None) -> float:
        values = mean_per_source((distances < below).double(), e.owner, len(e.real))
        return float((values if kept is None else values[kept]).nanmean())

    among_real = real.distances[:, 0].double()
    value = share(variants.other, limit)
    error = jackknife.error(lambda g: share(others.without(g)[0], limit, jackknife.groups != g))
    low, high = (share(variants.other, bound) for bound in limit_range(among_real, limit))
    # Errors of two causes: their squares add up on each side (Zou and Donner, "Construction of confidence limits about effect
    # measures: a general approach", 2008).
    interval = max(0.0, value - math.hypot(value - low, error)), min(1.0, value + math.hypot(high - value, error))
    return Measure(
        "copies", value, interval, float((among_real <= limit).double().mean()),
        "share of variants nearer to another real image, their own source left out, than 99% of real images are to their nearest; "
        "good is 0.01 or less",
    )  # fmt: skip


def limit_range(distances: Tensor, limit: float) -> tuple[float, float]:
    """Return the 95% interval of a limit that is a low quantile of distances of images to their nearest.

    The shortest distances come in pairs, of two images that are each other's nearest. How many images in a population are as near as
    the m-th closest pair has a gamma distribution of shape m. Above, a pair farther on is the end. Below, where there may be no pair,
    the power law of short distances says how much nearer an image would have to be to be as rare as that.

    Args:
        distances: (N,) float64; those that are 0 are left out if the limit is that of the others.
        limit: the quantile.

    Returns:
        the ends; 0 and infinity where the distances are too few to tell.

    Source: Hill, "A Simple General Approach to Inference About the Tail of a Distribution" (1975), for the power.
    """
    ordered = distances[distances > 0].sort().values
    count = len(ordered)
    pair = 1 + int((ordered < limit).sum()) // 2
    last = pair
    while _gamma_quantile(last, -_NORMAL) < pair:
        last += 1
    high = float(ordered[2 * last - 1]) if 2 * last <= count else math.inf
    tail = ordered[: max(_LEAST, 2 * pair, math.ceil(_TAIL * count))]
    if len(tail) < _LEAST:
        return 0.0, high
    logarithm = float((tail[-1] / tail).log().sum()) / (len(tail) - 1)  # 1 / power
    logarithm *= 1 + 1 / math.sqrt(len(tail) / 2 - 1)  # and its standard error, as it is read from few pairs
    return limit * (pair / _gamma_quantile(pair, _NORMAL)) ** logarithm, high


def _gamma_quantile(shape: int, normal: float) -> float:
    """Return a quantile of the gamma distribution, given that of the normal one (Wilson and Hilferty, 1931).

    Within 2% for 2.5% and 97.5%, where it is used: for low quantiles from shape 4 on; below, they are under 1 as they ought to be.
    """
    return float(shape * max(0.0, 1 - 1 / (9 * shape) + normal / (3 * math.sqrt(shape))) ** 3)
