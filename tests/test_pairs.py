"""The cases that stand for a full factorial in the default suite."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest
from pairs import covering, each_value, pairwise

AXES = [
    [[1, 2], [1, 2]],
    [[None, "ddim", "dpm++"], [1.0, 10.0], [0, 100], [(32, 32), (32, 48)], [1, 5]],
    [["a", "b", "c", "d", "e", "f"], [1, 2], [1, 2], [1, 2]],
    [["a"], [1, 2, 3], [True]],
]


@pytest.mark.parametrize("axes", AXES, ids=lambda axes: "x".join(str(len(values)) for values in axes))
class TestPairwise:
    def test_each_pair_of_values_is_in_a_case(self, axes: list[list[Any]]) -> None:
        cases = covering(*axes)
        for i, j in combinations(range(len(axes)), 2):
            assert {(case[i], case[j]) for case in cases} == set(product(axes[i], axes[j]))

    def test_no_case_more_than_needed(self, axes: list[list[Any]]) -> None:
        """At most two more than the two largest axes ask for."""
        cases = covering(*axes)
        largest, second = sorted(map(len, axes), reverse=True)[:2]
        assert len(set(cases)) == len(cases) <= largest * second + 2

    def test_each_value_is_in_a_case_that_is_not_slow(self, axes: list[list[Any]]) -> None:
        cases = each_value(**{f"axis{n}": values for n, values in enumerate(axes)}).mark.args[1]
        assert [case.values for case in cases] == list(product(*axes))
        quick = [case.values for case in cases if not case.marks]
        assert all({case[n] for case in quick} == set(values) for n, values in enumerate(axes))
        assert len(quick) == max(map(len, axes))
        assert {mark.name for case in cases for mark in case.marks} <= {"slow"}

    def test_the_others_are_slow(self, axes: list[list[Any]]) -> None:
        names = [f"axis{n}" for n in range(len(axes))]
        mark = pairwise(**dict(zip(names, axes, strict=True))).mark
        assert mark.args[0] == names
        assert [case.values for case in mark.args[1]] == list(product(*axes))
        assert [case.values for case in mark.args[1] if not case.marks] == [case for case in product(*axes) if case in covering(*axes)]
        assert {mark.name for case in mark.args[1] for mark in case.marks} <= {"slow"}
