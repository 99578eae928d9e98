"""Pairwise coverage: of a full factorial, the few cases that hold each pair of values; the others are slow tests."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest


def pairs(case: tuple[Any, ...]) -> set[tuple[Any, ...]]:
    """The pairs of values that a case holds, as (axis, axis, value, value)."""
    return {(i, j, case[i], case[j]) for i, j in combinations(range(len(case)), 2)}


def covering(*axes: list[Any]) -> list[tuple[Any, ...]]:
    """Cases of the factorial that hold every pair of values of two axes at least once: greedily, always the case with most new ones."""
    cases = list(product(*axes))
    missing, chosen = set().union(*map(pairs, cases)), []
    while missing:
        chosen.append(max(cases, key=lambda case: len(pairs(case) & missing)))  # the first of equally good ones
        missing -= pairs(chosen[-1])
    return chosen


def pairwise(**axes: list[Any]) -> pytest.MarkDecorator:
    """Parametrise a test by all combinations: those of `covering` in the default suite, the others marked slow."""
    chosen = covering(*axes.values())
    cases = [
        pytest.param(*case, id="-".join(map(_text, case)), marks=[] if case in chosen else [pytest.mark.slow])
        for case in product(*axes.values())
    ]
    return pytest.mark.parametrize(list(axes), cases)


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
