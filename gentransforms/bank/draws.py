"""Draw among the variants of each source, uniformly or in proportion to weights, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gentransforms.bank.format.lookup import Lookup, Numbers

__all__ = ["Draws"]

Floats = npt.NDArray[np.float64]


class Draws:
    """The variants of each source that can be drawn, with their weights.

    Args:
        lookup: of a bank; rows that are not in use are never drawn.
        weights: (rows,) finite numbers of 0 or more; rows of weight 0 are never drawn. None: all are equal.
    """

    def __init__(self, lookup: Lookup, weights: Floats | None = None) -> None:
        self._lookup = lookup
        self._rows: Numbers | None = None  # None: all of them
        self._starts = lookup.starts
        self._ends: Floats | None = None
        self._totals: Floats = np.diff(lookup.starts).astype(np.float64)
        if lookup.kept is None and weights is None:
            return
        used = np.ones(len(lookup.variants), dtype=bool) if lookup.kept is None else lookup.kept
        self._rows = np.flatnonzero(used if weights is None else used & (weights > 0))
        self._starts = np.searchsorted(self._rows, lookup.starts)
        counts = np.diff(self._starts)
        self._totals = counts.astype(np.float64)
        if weights is not None:
            own = weights[self._rows]
            owners = np.repeat(np.arange(len(counts)), counts)
            self._totals = np.bincount(owners, own, minlength=len(counts)).astype(np.float64)
            # Of each source the weights add up to 1: small weights of one would be lost beside large ones of another.
            scaled = own / self._totals[owners]
            self._ends = np.concatenate([[0.0], np.cumsum(scaled)])

    def unreachable(self) -> list[str | int]:
        """Return the keys of which nothing can be drawn although they have variants in use."""
        return [self._lookup.key(place) for place in np.flatnonzero((np.diff(self._starts) == 0) & self._lookup.used).tolist()]

    def find(self, keys: Sequence[Any]) -> tuple[Numbers, Floats]:
        """Return the place of each key, and the sum of its variants' weights, or their number; 0 where nothing can be drawn."""
        places = self._lookup.find_keys(keys)
        if not len(self._totals):
            return places, np.zeros(len(places))
        return places, np.where(places >= 0, self._totals[places], 0.0)

    def pick(self, places: Numbers, uniforms: Floats) -> npt.NDArray[np.int32]:
        """Return a variant of each place.

        Args:
            places: of keys of which something can be drawn.
            uniforms: a number in [0, 1) for each.
        """
        first, stop = self._starts[places], self._starts[places + 1]
        if self._ends is None:
            picked = first + (uniforms * (stop - first)).astype(np.int64)
        else:
            below, above = self._ends[first], self._ends[stop]
            picked = np.searchsorted(self._ends, below + uniforms * (above - below), side="right") - 1
        picked = np.clip(picked, first, stop - 1)  # of numbers that were rounded up to the end
        return self._lookup.variants[picked if self._rows is None else self._rows[picked]]
