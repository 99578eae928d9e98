"""Choosing variants by their scores: the expression, and the file that holds a choice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentransforms.bank.selection import Selection, evaluate_expression, parse_comparison
from gentransforms.errors import BankError, ConfigError

COLUMNS = {
    "similarity": np.array([0.1, 0.5, 0.9, np.nan]),
    "rank": np.array([1, 2, 3, 4]),
    "near_copy": np.array([True, False, False, True]),
    "label": np.array(["cat", "dog", "cat", None], dtype=object),
}


class TestEvaluateExpression:
    @pytest.mark.parametrize(
        ("expression", "expected"),
        [
            ("similarity >= 0.5", [0, 1, 1, 0]),
            ("similarity<.5", [1, 0, 0, 0]),
            ("similarity != 0.5", [1, 0, 1, 1]),
            ("rank == 2", [0, 1, 0, 0]),
            ("rank > -1e0", [1, 1, 1, 1]),
            ("near_copy", [1, 0, 0, 1]),
            ("not near_copy", [0, 1, 1, 0]),
            ("not not near_copy", [1, 0, 0, 1]),
            ("near_copy == true", [1, 0, 0, 1]),
            ("near_copy != true", [0, 1, 1, 0]),
            ("near_copy == false", [0, 1, 1, 0]),
            ("similarity >= 0.5 and not near_copy", [0, 1, 1, 0]),
            ("rank == 1 or rank == 4 and near_copy", [1, 0, 0, 1]),
            ("(rank == 1 or rank == 2) and near_copy", [1, 0, 0, 0]),
            ("not (rank == 1 or rank == 2)", [0, 0, 1, 1]),
            ("not near_copy and rank > 2", [0, 0, 1, 0]),
            ('label == "cat"', [1, 0, 1, 0]),
            ("label != 'cat'", [0, 1, 0, 1]),
        ],
    )
    def test_says_where_it_holds(self, expression: str, expected: list[int]) -> None:
        assert evaluate_expression(expression, COLUMNS).astype(int).tolist() == expected

    @pytest.mark.parametrize(
        ("expression", "named"),
        [
            ("quality > 1", ["quality", "similarity, rank, near_copy, label"]),
            ("similarity", ["similarity", "compare"]),
            ("similarity >= cat", ["similarity", "number"]),
            ("similarity >= true", ["similarity", "number"]),
            ("near_copy == 1", ["near_copy", "true or false"]),
            ("label == 3", ["label", "text"]),
            ("rank > 1 and", ["too early"]),
            ("and rank > 1", ["'and'"]),
            ("(rank > 1", ["bracket"]),
            ("rank > 1)", ["')'"]),
            ("rank > 1 rank < 3", ["'rank'"]),
            ("", ["too early"]),
            ("rank >", ["rank", "nothing"]),
            ("rank = 1", ["= 1"]),
            ("__import__('os').system('true')", ["__import__"]),
            ("rank > 1; import os", ["; import os"]),
            ("1 < rank", ["'1'"]),
        ],
    )
    def test_what_cannot_be_read_is_named(self, expression: str, named: list[str]) -> None:
        with pytest.raises(ConfigError) as error:
            evaluate_expression(expression, COLUMNS)
        for text in named:
            assert text in str(error.value)

    @given(st.text(alphabet="rank similarty_()<>=!&|~.0123456789andort'\"[]{}+-*/\\;: ", max_size=40))
    def test_any_text_is_a_mask_or_a_sentence(self, expression: str) -> None:
        try:
            mask = evaluate_expression(expression, COLUMNS)
        except ConfigError:
            return
        assert mask.dtype == bool
        assert mask.shape == (4,)

    @given(st.recursive(st.sampled_from(["near_copy", "rank > 2", "similarity <= 0.5"]), lambda inner: st.one_of(
        inner.map("not ({})".format), st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda p: f"({p[0]}) {p[1]} ({p[2]})")
    ), max_leaves=8))  # fmt: skip
    def test_agrees_with_numpy(self, expression: str) -> None:
        python = expression.replace("near_copy", "(a)").replace("rank > 2", "(b)").replace("similarity <= 0.5", "(c)")
        python = python.replace("not ", "~").replace(" and ", " & ").replace(" or ", " | ")
        names = {"a": COLUMNS["near_copy"], "b": COLUMNS["rank"] > 2, "c": COLUMNS["similarity"] <= 0.5}
        expected = eval(python, {"__builtins__": {}}, names)
        assert evaluate_expression(expression, COLUMNS).tolist() == expected.tolist()


class TestParseComparison:
    def test_name_operator_number(self) -> None:
        name, compare, number = parse_comparison("drift/brightness >= -0.5")
        assert (name, number) == ("drift/brightness", -0.5)
        assert compare(-0.5, number)
        assert not compare(-0.6, number)

    @pytest.mark.parametrize("text", ["near_copies", "near_copies > cat", "0.1 < near_copies", "a > 1 and b > 2", "", "near_copies => 1"])
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError):
            parse_comparison(text)


class TestSelection:
    def test_comes_back_as_it_was_saved(self, tmp_path: Path) -> None:
        kept = np.random.default_rng(0).random(1003) < 0.3
        Selection("digest", kept, "similarity > 0.6").save(tmp_path / "best.json")
        loaded = Selection.load(tmp_path / "best.json")
        assert loaded.kept.tolist() == kept.tolist()
        assert (loaded.bank, loaded.where) == ("digest", "similarity > 0.6")

    def test_is_small(self, tmp_path: Path) -> None:
        Selection("digest", np.arange(100_000) % 3 == 0, "rank == 1").save(tmp_path / "s.json")
        assert (tmp_path / "s.json").stat().st_size < 2000

    @pytest.mark.parametrize(
        "change", [{"format": "other"}, {"mask": "AAAA"}, {"kept": 1}, {"rows": "x"}, {"mask": None}, {"format_version": 2}]
    )
    def test_a_damaged_file_is_refused_by_name(self, tmp_path: Path, change: dict[str, object]) -> None:
        path = tmp_path / "s.json"
        Selection("digest", np.ones(9, dtype=bool)).save(path)
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(BankError, match=r"s\.json"):
            Selection.load(path)

    def test_what_is_no_json_or_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "s.json").write_text("[1, 2")
        for name in ("s.json", "absent.json"):
            with pytest.raises(BankError, match=name):
                Selection.load(tmp_path / name)
