"""Of a full factorial, the few cases that hold each pair of values, or each value; the others are slow tests."""

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
    return _parametrised(axes, covering(*axes.values()))


def each_value(**axes: list[Any]) -> pytest.MarkDecorator:
    """Parametrise a test by all combinations: as few as hold each value, of pairs as different as can be; the others marked slow."""
    cases = list(product(*axes.values()))
    values, seen, chosen = {item for case in cases for item in enumerate(case)}, set[tuple[Any, ...]](), []
    while values:
        chosen.append(max(cases, key=lambda case: (len(values & set(enumerate(case))), len(pairs(case) - seen))))
        values -= set(enumerate(chosen[-1]))
        seen |= pairs(chosen[-1])
    return _parametrised(axes, chosen)


def _parametrised(axes: dict[str, list[Any]], chosen: list[tuple[Any, ...]]) -> pytest.MarkDecorator:
    cases = [
        pytest.param(*case, id="-".join(map(_text, case)), marks=[] if case in chosen else [pytest.mark.slow])
        for case in product(*axes.values())
    ]
    return pytest.mark.parametrize(list(axes), cases)


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
