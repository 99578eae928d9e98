"""95% intervals over sources.

The variants of one source are not independent of each other, so what is drawn again is always a source with all that
belongs to it. Means of what concerns a source alone take the bootstrap (Efron, 1979); figures that compare with other real
images leave groups out, see `jackknife`. Distances between sets and supports, whose nearest neighbours
duplicates would spoil, take subsampling without replacement (Politis and Romano, 1994).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gentransforms.audit.jackknife import Jackknife

__all__ = ["Resamples", "subsampling_interval"]


class Resamples:
    """The same bootstrap resamples of N sources for every mean.

    Args:
        count: N.
        resamples: how many.
        seed: of the resamples.

    Attributes:
        jackknife: of the same sources, for figures that compare with other real images.

    Example:
        >>> import torch
        >>> value, (low, high) = Resamples(100).mean(torch.arange(100.0))
        >>> value, low < value < high
        (49.5, True)
    """

    def __init__(self, count: int, resamples: int = 1000, seed: int = 0) -> None:
        self.jackknife = Jackknife(count, seed)
        rng = torch.Generator("cpu").manual_seed(seed)
        self.weights = torch.zeros(resamples, count)
        chunk = max(1, 10_000_000 // count)
        for start in range(0, resamples, chunk):
            rows = self.weights[start : start + chunk]
            drawn = torch.randint(count, rows.shape, generator=rng)
            rows.scatter_add_(1, drawn, torch.ones(rows.shape))

    def mean(self, values: Tensor) -> tuple[float, tuple[float, float]]:
        """Return the mean of `values` (N,) and its interval; sources whose value is NaN have none and are left out."""
        known = values.isfinite()
        mean = values[known].double().mean()
        # Deviations from the mean, since float32 would lose a small spread around a large mean.
        deviations = torch.where(known, values.double() - mean, 0.0).float()
        counts = self.weights @ known.float()
        means = (self.weights @ deviations)[counts > 0] / counts[counts > 0]
        low, high = values[known].double().amin(), values[known].double().amax()  # which a mean cannot leave, but by rounding
        quantiles = (mean + means.quantile(q) for q in (0.025, 0.975))
        first, last = (float(bound.clamp(low, high)) for bound in quantiles)
        return float(mean), (first, last)


def subsampling_interval(values: Sequence[float], taken: int, count: int) -> tuple[float, tuple[float, float]]:
    """Return the mean of a figure over subsamples of `taken` of `count` sources, and its interval.

    A subsample without replacement varies by sigma^2 (1/taken - 1/count), the figure of all sources by sigma^2 / count. The mean
    over a few subsamples has an error of its own, which is larger where they are a small part of the sources. Where they are
    halves that are compared with each other, as in small banks, the interval is too wide: what one half has the other lacks.

    Example:
        >>> subsampling_interval([1.0, 3.0], taken=50, count=100)[0]
        2.0
    """
    numbers = torch.tensor(values, dtype=torch.float64)
    mean = float(numbers.mean())
    if len(numbers) < 2 or taken >= count:
        return mean, (mean, mean)
    half = 1.96 * float(numbers.std()) * math.sqrt(taken / (count - taken) + 1 / len(numbers))
    return mean, (mean - half, mean + half)
