"""95% intervals over sources.

The variants of one source are not independent of each other, so what is drawn again is always a source with all that
belongs to it. Means of what concerns a source alone take the bootstrap (Efron, 1979); figures that compare with other real
images leave groups out (`Jackknife`). Distances between sets and supports, whose nearest neighbours duplicates would spoil, take
subsampling without replacement (Politis and Romano, 1994).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Jackknife", "Resamples", "student_t", "subsampling_interval"]

_GROUPS = 20
_NORMAL = 1.959964  # the 97.5% quantile


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


class Jackknife:
    """The same random groups of N sources for every figure that compares with other real images.

    One real image may be the nearest of many variants, so that drawing sources again and leaving the images they are compared with
    as they are gives intervals far too narrow. Here a group is left out with all that belongs to it: its variants, its place among
    the real images, and as large a part of the held-out ones; then the figure is taken again, with its scale.

    Args:
        count: N.
        seed: of the groups.

    Attributes:
        groups: (N,) int64, the group of each source.
        count: how many groups there are: 20, or N if that is fewer.

    Example:
        >>> import torch
        >>> values, jackknife = torch.arange(100.0), Jackknife(100)
        >>> low, high = jackknife.interval(49.5, lambda g: values[jackknife.groups != g].mean())
        >>> low < 49.5 < high
        True
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count = min(_GROUPS, count)
        self._size = count
        self._rng = torch.Generator("cpu").manual_seed(seed)
        self.groups = self.draw()
        self.held_out = self.draw()
        """(N,) int64, the group of each of as many held-out images."""

    def draw(self) -> Tensor:
        """Return a random partition of N images into the groups, which differ by one in size at most: (N,) int64."""
        return torch.randperm(self._size, generator=self._rng) % self.count

    def error(self, without: Callable[[int], Tensor | float]) -> float:
        """Return the half-width of the interval, given the figure without a group; infinite where it cannot be taken.

        Source: Shao and Tu, "The Jackknife and Bootstrap" (1995), section 5.1.2.
        """
        figures = torch.tensor([float(without(g)) for g in range(self.count)], dtype=torch.float64)
        figures = figures[figures.isfinite()]
        count = len(figures)
        if count < 2:
            return math.inf
        square = (count - 1) / count * float((figures - figures.mean()).square().sum())
        return student_t(count - 1) * math.sqrt(square)

    def interval(
        self, value: float, without: Callable[[int], Tensor | float], least: float = -math.inf, most: float = math.inf
    ) -> tuple[float, float] | None:
        """Return the interval around `value`, which cannot leave `least` to `most`; None if it would have no end.

        Args:
            value: the figure of all sources.
            without: returns the figure without group g.
            least: what it cannot fall below.
            most: what it cannot exceed.
        """
        half = self.error(without)
        low, high = max(least, value - half), min(most, value + half)
        return (min(low, value), max(high, value)) if math.isfinite(low) and math.isfinite(high) else None


def student_t(freedom: int) -> float:
    """Return the 97.5% quantile of Student's t: the first terms of a series, within 1% from 3 degrees of freedom on.

    Not scipy's, which comes with the extra ``audit`` only: these figures need no extra.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.5.

    Example:
        >>> round(student_t(19), 3)
        2.093
    """
    exact = {1: 12.706, 2: 4.303}
    if freedom in exact:
        return exact[freedom]
    z, n = _NORMAL, freedom
    return (
        z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )  # fmt: skip
