"""Choosing variants by their scores: the expression, and the file that holds a choice."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_banks import KEYS, make_bank, pixels
from typer.testing import CliRunner

from gentransforms.bank.reader import Bank
from gentransforms.bank.selection import Selection, evaluate_expression, parse_comparison
from gentransforms.cli.main import app
from gentransforms.errors import BankError, ConfigError, MissingKeyError

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


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten sources of three variants; the third source has lost its second variant."""
    return make_bank(tmp_path_factory.mktemp("banks") / "bank", rejected={(KEYS[2], 1): "not finite"})


def scores(bank: Bank) -> pa.Table:
    """Each image's score is the number of its row; variant 0 of every source is a near copy."""
    keys = [key for key in bank.keys for _ in bank.variants_of(key)]
    variants = [variant for key in bank.keys for variant in bank.variants_of(key)]
    return pa.table(
        {"key": keys, "variant": variants, "score": [float(i) for i in range(len(keys))], "near_copy": [v == 0 for v in variants]}
    )


class TestSelect:
    def test_length_keys_and_reads_are_those_of_the_chosen(self, path: Path) -> None:
        bank = Bank.open(path)
        chosen = bank.select(scores(bank), "score >= 4 and not near_copy")
        assert len(bank) == 29
        assert len(chosen) == 29 - 4 - 9 + 1  # rows 0 to 3 hold variant 0 of two sources
        assert chosen.keys == KEYS[1:]
        assert chosen.variants_of(KEYS[0]) == []
        assert chosen.variants_of(KEYS[1]) == [1, 2]
        assert chosen.variants_of(KEYS[2]) == [2]
        assert KEYS[0] not in chosen
        assert chosen.find_keys([KEYS[0], KEYS[1], KEYS[9], "x"]).tolist() == [-1, 0, 8, -1]
        assert KEYS[1] in chosen
        assert torch.equal(chosen.read([KEYS[5], KEYS[1]], [2, 1]), torch.stack([pixels(5, 2), pixels(1, 1)]))
        rows = [row for batch in chosen.batches() for row in batch.select(["key", "variant"]).to_pylist()]
        assert [(row["key"], row["variant"]) for row in rows] == [(key, v) for key in chosen.keys for v in chosen.variants_of(key)]

    def test_what_is_left_out_says_why(self, path: Path) -> None:
        bank = Bank.open(path)
        chosen = bank.select(scores(bank), "not near_copy")
        with pytest.raises(MissingKeyError, match=r"variant 0 .* left out by the selection 'not near_copy': the key has \[1, 2\]"):
            chosen.read([KEYS[1]], [0])
        with pytest.raises(MissingKeyError, match="rejected"):
            chosen.read([KEYS[2]], [1])

    def test_the_whole_bank_stays_as_it_is(self, path: Path) -> None:
        bank = Bank.open(path)
        bank.select(scores(bank), "near_copy")
        assert (len(bank), bank.variants_of(KEYS[0])) == (29, [0, 1, 2])

    def test_a_selection_of_a_selection(self, path: Path) -> None:
        bank = Bank.open(path)
        twice = bank.select(scores(bank), "not near_copy").select(scores(bank), "score < 9")
        assert len(twice) == len(bank.select(scores(bank), "score < 9 and not near_copy")) == 5

    def test_a_mask(self, path: Path) -> None:
        bank = Bank.open(path)
        mask = np.arange(29) % 2 == 0
        chosen = bank.select(mask)
        assert len(chosen) == 15
        assert len(chosen.select(np.ones(15, dtype=bool))) == 15
        for wrong in (mask[:-1], mask.astype(int), "score > 1"):
            with pytest.raises(ConfigError, match="mask"):
                bank.select(wrong)

    def test_nothing_left_is_refused(self, path: Path) -> None:
        bank = Bank.open(path)
        with pytest.raises(ConfigError, match="none of the 29"):
            bank.select(scores(bank), "score > 100")

    def test_scores_in_another_order(self, path: Path) -> None:
        bank = Bank.open(path)
        table = scores(bank)
        turned = table.take(list(range(len(table)))[::-1])
        assert bank.select(turned, "score < 7").keys == bank.select(table, "score < 7").keys

    def test_another_banks_scores_are_refused(self, path: Path) -> None:
        bank = Bank.open(path)
        table = scores(bank)
        with pytest.raises(BankError, match="28 of its 29"):
            bank.select(table.slice(1), "score < 7")
        with pytest.raises(BankError, match="another bank"):
            bank.select(table.set_column(0, "key", pa.array([f"x{i}" for i in range(29)])), "score < 7")
        with pytest.raises(ConfigError, match="'variant'"):
            bank.select(table.drop_columns(["variant"]), "score < 7")

    def test_a_file_opens_the_selection_and_no_other_bank(self, path: Path, tmp_path: Path) -> None:
        bank = Bank.open(path)
        pq.write_table(scores(bank), tmp_path / "scores.parquet")
        chosen = bank.select(tmp_path / "scores.parquet", "score >= 4")
        assert chosen.selection is not None
        chosen.selection.save(tmp_path / "best.json")
        opened = Bank.open(path, selection=tmp_path / "best.json")
        assert opened.keys == chosen.keys
        assert len(opened) == len(chosen) == 25
        other = make_bank(tmp_path / "other", variants=4)
        with pytest.raises(BankError, match="another bank"):
            Bank.open(other, selection=tmp_path / "best.json")

    def test_a_state_of_the_bank_with_as_many_other_rows_is_refused(self, tmp_path: Path) -> None:
        """As after a retry in which one source could be read again, and the variants of another one were lost."""
        before = Bank.open(make_bank(tmp_path / "before", failed={KEYS[0]: "empty"}))
        before.select(np.arange(27) % 2 == 0).selection.save(tmp_path / "half.json")  # type: ignore[union-attr]
        changed = {
            "other keys": {"failed": {KEYS[5]: "empty"}},
            "other variants": {"rejected": {(KEYS[0], 1): "blurred", (KEYS[1], 1): "blurred", (KEYS[2], 1): "blurred"}},
        }
        for name, lacking in changed.items():
            after = Bank.open(make_bank(tmp_path / name, **lacking))  # type: ignore[arg-type]
            assert (len(after), after.manifest) == (len(before), before.manifest)
            with pytest.raises(BankError, match=r"an earlier state of this one \(27 rows, the bank has 27 others\): write a new one with"):
                Bank.open(after.path, selection=tmp_path / "half.json")
        assert len(Bank.open(before.path, selection=tmp_path / "half.json")) == 14

    @pytest.mark.parametrize("keys", [KEYS, list(range(7, 17))], ids=["names", "numbers"])
    def test_an_export_takes_the_file_of_its_bank(self, tmp_path: Path, keys: list[str | int]) -> None:
        from gentransforms.bank.format.index import write_index
        from gentransforms.bank.share.export import export_bank

        path = make_bank(tmp_path / "bank", keys=keys, failed={keys[0]: "empty"}, marked=True)
        write_index(path)
        chosen = Bank.open(path).select(np.arange(27) % 2 == 0)
        chosen.selection.save(tmp_path / "half.json")  # type: ignore[union-attr]
        (path / "index.arrow").unlink()
        assert Bank.open(path, selection=tmp_path / "half.json").keys == chosen.keys
        export_bank(Bank.open(path), tmp_path / "export")
        assert Bank.open(tmp_path / "export", selection=tmp_path / "half.json").keys == chosen.keys

    def test_a_file_without_the_hash_of_the_rows_is_read(self, path: Path, tmp_path: Path) -> None:
        bank = Bank.open(path)
        bank.select(np.arange(len(bank)) < 6).selection.save(tmp_path / "old.json")  # type: ignore[union-attr]
        content = json.loads((tmp_path / "old.json").read_text())
        del content["rows_hash"]
        (tmp_path / "old.json").write_text(json.dumps(content))
        assert Bank.open(path, selection=tmp_path / "old.json").keys == KEYS[:2]

    def test_the_command_replaces_no_file_unless_asked(self, path: Path, tmp_path: Path) -> None:
        pq.write_table(scores(Bank.open(path)), tmp_path / "scores.parquet")
        call = ["bank", "select", str(path), "--scores", str(tmp_path / "scores.parquet"), "-o", str(tmp_path / "best.json"), "--where"]
        assert CliRunner().invoke(app, [*call, "score >= 4"]).exit_code == 0
        before = (tmp_path / "best.json").read_bytes()
        refused = CliRunner().invoke(app, [*call, "score < 7"])
        assert refused.exit_code == 2
        assert "best.json: already exists: give another name, or --overwrite" in refused.stderr
        assert (tmp_path / "best.json").read_bytes() == before
        assert CliRunner().invoke(app, [*call, "score < 7", "--overwrite"]).exit_code == 0
        assert Selection.load(tmp_path / "best.json").where == "score < 7"

    def test_goes_to_other_processes(self, path: Path) -> None:
        bank = Bank.open(path)
        chosen = pickle.loads(pickle.dumps(bank.select(scores(bank), "score < 7")))
        assert (len(chosen), chosen.keys) == (7, KEYS[:3])
        assert chosen.selection.where == "score < 7"

    def test_is_not_exported_for_the_whole(self, path: Path, tmp_path: Path) -> None:
        from gentransforms.bank.share.export import export_bank

        bank = Bank.open(path)
        with pytest.raises(BankError, match="selection"):
            export_bank(bank.select(scores(bank), "score < 7"), tmp_path / "export")
