"""BankAugment(weights="realism"): variants drawn in proportion to a score."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats
from small_banks import KEYS, SIZE, encoded, make_bank
from torch import Tensor

from gentransforms.bank.format.manifest import hash_manifest
from gentransforms.bank.reader import Bank
from gentransforms.bank.scores import Draws, mark_scores
from gentransforms.errors import BankError, ConfigError, MissingKeyError
from gentransforms.transforms.bank import BankAugment


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten sources of five variants; the third source has lost its second variant."""
    return make_bank(tmp_path_factory.mktemp("banks") / "bank", variants=5, rejected={(KEYS[2], 1): "not finite"})


def rows_of(bank: Bank) -> list[tuple[Any, int]]:
    return [(key, variant) for key in bank.keys for variant in bank.variants_of(key)]


def table(bank: Bank, values: Any = None, name: str = "realism") -> pa.Table:
    """Scores of a bank; by default those of variant v of the k-th source are (k + 1) (v + 1) ** 2, all different."""
    rows = rows_of(bank)
    found = [(KEYS.index(key) + 1) * (v + 1.0) ** 2 for key, v in rows] if values is None else values
    return pa.table({"key": [key for key, _ in rows], "variant": [v for _, v in rows], name: found})


def draw(augment: BankAugment, key: Any, count: int, seed: int = 0) -> Tensor:
    """The variants that were drawn of a key: green says which."""
    torch.manual_seed(seed)
    images = augment({"image": torch.full((count, 3, *SIZE), 200, dtype=torch.uint8), "key": [key] * count})["image"]
    return images[:, 1, 0, 0].long()


def chi_square(found: Tensor, expected: Any) -> float:
    """The probability of frequencies at least as far from the expected ones; nothing else may have been drawn."""
    shares = np.asarray(expected, dtype=float)
    observed = np.bincount(found.numpy(), minlength=len(shares))
    assert len(observed) == len(shares)
    assert not observed[shares == 0].any(), "a variant of weight 0 was drawn"
    kept = shares > 0
    return float(stats.chisquare(observed[kept], shares[kept] / shares.sum() * len(found)).pvalue)


class TestFrequencies:
    @pytest.mark.parametrize("in_memory", [False, True])
    def test_go_with_the_score_within_each_source(self, path: Path, in_memory: bool) -> None:
        bank = Bank.open(path)
        augment = BankAugment(bank, 1.0, weights="realism", scores=table(bank), in_memory=in_memory)
        assert chi_square(draw(augment, KEYS[0], 5000), [1, 4, 9, 16, 25]) > 1e-4
        assert chi_square(draw(augment, KEYS[9], 5000), [1, 4, 9, 16, 25]) > 1e-4
        assert chi_square(draw(augment, KEYS[2], 5000), [1, 0, 9, 16, 25]) > 1e-4

    def test_uniform_draws_fail_the_same_check(self, path: Path) -> None:
        assert chi_square(draw(BankAugment(path, 1.0), KEYS[0], 5000), [1, 4, 9, 16, 25]) < 1e-10

    def test_equal_scores_draw_what_no_scores_draw(self, path: Path) -> None:
        bank = Bank.open(path)
        weighted = BankAugment(bank, 0.7, weights="realism", scores=table(bank, [0.3] * 49))
        for key in (KEYS[0], KEYS[2]):
            assert draw(weighted, key, 500).equal(draw(BankAugment(bank, 0.7), key, 500))

    def test_variants_of_score_zero_are_never_drawn(self, path: Path) -> None:
        bank = Bank.open(path)
        augment = BankAugment(bank, 1.0, weights="realism", scores=table(bank, [float(v in (1, 3, 4)) for _, v in rows_of(bank)]))
        assert chi_square(draw(augment, KEYS[5], 3000), [0, 1, 0, 1, 1]) > 1e-4
        assert set(draw(augment, KEYS[2], 300).tolist()) == {3, 4}

    def test_scores_of_very_different_size(self, path: Path) -> None:
        # Sums over all sources would lose those of the small ones.
        bank = Bank.open(path)
        size = {key: 10.0 ** (12 - 4 * i) for i, key in enumerate(KEYS)}
        augment = BankAugment(bank, 1.0, weights="realism", scores=table(bank, [size[key] * (v + 1) for key, v in rows_of(bank)]))
        for key in (KEYS[0], KEYS[5], KEYS[9]):
            assert chi_square(draw(augment, key, 3000), [1, 2, 3, 4, 5]) > 1e-4

    def test_rows_in_another_order_and_from_a_file(self, path: Path, tmp_path: Path) -> None:
        bank = Bank.open(path)
        scores = table(bank)
        expected = draw(BankAugment(bank, 1.0, weights="realism", scores=scores), KEYS[1], 200)
        turned = scores.take(list(range(49))[::-1])
        pq.write_table(turned, tmp_path / "scores.parquet")
        for given in (turned, tmp_path / "scores.parquet", str(tmp_path / "scores.parquet")):
            assert draw(BankAugment(path, 1.0, weights="realism", scores=given), KEYS[1], 200).equal(expected)

    def test_whole_numbers_are_scores_too(self, path: Path) -> None:
        bank = Bank.open(path)
        augment = BankAugment(bank, 1.0, weights="votes", scores=table(bank, [v for _, v in rows_of(bank)], "votes"))
        assert chi_square(draw(augment, KEYS[3], 3000), [0, 1, 2, 3, 4]) > 1e-4


class TestRandomStream:
    def test_is_that_of_a_uniform_draw(self, path: Path) -> None:
        bank = Bank.open(path)
        states = []
        for options in ({}, {"weights": "realism", "scores": table(bank)}):
            draw(BankAugment(bank, 0.5, **options), KEYS[0], 31)
            states.append(torch.get_rng_state())
        assert states[0].equal(states[1])

    def test_the_same_images_are_replaced(self, path: Path) -> None:
        bank = Bank.open(path)
        found = [
            draw(BankAugment(bank, 0.5, **options), KEYS[0], 60) == 200 for options in ({}, {"weights": "realism", "scores": table(bank)})
        ]
        assert found[0].equal(found[1])
        assert 0 < found[0].sum() < 60

    def test_an_image_does_not_depend_on_its_batch(self, path: Path) -> None:
        bank = Bank.open(path)
        augment = BankAugment(bank, 1.0, weights="realism", scores=table(bank))
        images = torch.zeros(40, 3, *SIZE, dtype=torch.uint8)
        params = augment.make_params([images]) | {"keys": (KEYS * 4)[:40]}
        whole = augment.transform(images, params)
        for i in (0, 7, 39):
            one = {"chosen": params["chosen"][i : i + 1], "uniforms": params["uniforms"][i : i + 1], "keys": [params["keys"][i]]}
            assert augment.transform(images[:1], one)[0].equal(whole[i])

    def test_the_largest_number_below_one_draws_the_last(self, path: Path) -> None:
        bank = Bank.open(path)
        augment = BankAugment(bank, 1.0, weights="realism", scores=table(bank, [0.1 * (v != 4) for _, v in rows_of(bank)]))
        params = {"chosen": torch.ones(10, dtype=torch.bool), "uniforms": torch.full((10,), 1 - 2**-53, dtype=torch.float64), "keys": KEYS}
        assert augment.transform(torch.zeros(10, 3, *SIZE, dtype=torch.uint8), params)[:, 1, 0, 0].tolist() == [3] * 10


class TestScoresOfASelection:
    def test_are_kept_by_select(self, path: Path) -> None:
        bank = Bank.open(path)
        chosen = bank.select(table(bank), "realism >= 3 and realism < 1000")
        augment = BankAugment(chosen, 1.0, weights="realism", missing="source")
        assert chi_square(draw(augment, KEYS[0], 3000), [0, 4, 9, 16, 25]) > 1e-4
        again = chosen.select(np.arange(len(chosen)) > 1)  # a mask has no scores; those of before are kept
        assert chi_square(draw(BankAugment(again, 1.0, weights="realism", missing="source"), KEYS[0], 3000), [0, 0, 0, 16, 25]) > 1e-4

    def test_of_what_was_left_out_do_not_matter(self, path: Path) -> None:
        bank = Bank.open(path)
        scores = table(bank, [-1.0 if v == 0 else float("nan") if v == 1 else 1.0 + v for _, v in rows_of(bank)])
        augment = BankAugment(bank.select(scores, "realism > 0"), 1.0, weights="realism")
        assert chi_square(draw(augment, KEYS[0], 3000), [0, 0, 3, 4, 5]) > 1e-4

    def test_with_a_selection_file(self, path: Path, tmp_path: Path) -> None:
        bank = Bank.open(path)
        bank.select(table(bank), "realism >= 3").selection.save(tmp_path / "s.json")
        opened = Bank.open(path, selection=tmp_path / "s.json")
        with pytest.raises(ConfigError, match=r"weights='realism'.*has no scores: give scores="):
            BankAugment(opened, weights="realism")
        augment = BankAugment(opened, 1.0, weights="realism", scores=table(bank))
        assert chi_square(draw(augment, KEYS[0], 3000), [0, 4, 9, 16, 25]) > 1e-4

    def test_a_source_that_was_left_out_is_missing(self, path: Path) -> None:
        bank = Bank.open(path)
        chosen = bank.select(table(bank), "realism > 30")
        with pytest.raises(MissingKeyError, match="left out"):
            draw(BankAugment(chosen, weights="realism"), KEYS[0], 1)
        augment = BankAugment(chosen, 1.0, weights="realism", missing="source")
        assert draw(augment, KEYS[0], 5).tolist() == [200] * 5
        assert augment.missing_count == 5


class TestSeveralBanks:
    def banks(self, folder: Path) -> list[Bank]:
        """Variants 0 and 1 of one bank, and 2 to 4 of another, as the green of their images says."""

        def paint(first: int) -> Any:
            return lambda _position, variant: encoded(torch.full((3, *SIZE), first + variant, dtype=torch.uint8), "PNG")

        return [
            Bank.open(make_bank(folder / "1", variants=2, image=paint(0))),
            Bank.open(make_bank(folder / "2", variants=3, image=paint(2), failed={KEYS[1]: "truncated"})),
        ]

    def test_variants_of_all_are_drawn_together(self, tmp_path: Path) -> None:
        banks = self.banks(tmp_path)
        augment = BankAugment(banks, 1.0, weights="realism", scores=[table(banks[0]), table(banks[1])])
        assert chi_square(draw(augment, KEYS[0], 5000), [1, 4, 1, 4, 9]) > 1e-4
        assert chi_square(draw(augment, KEYS[9], 5000), [1, 4, 1, 4, 9]) > 1e-4
        augment = BankAugment(banks, 1.0, weights="realism", scores=[table(banks[0]), table(banks[1])], missing="source")
        assert chi_square(draw(augment, KEYS[1], 5000), [1, 4, 0, 0, 0]) > 1e-4

    def test_weights_of_banks_go_with_a_selection(self, tmp_path: Path) -> None:
        banks = self.banks(tmp_path)
        chosen = banks[1].select(table(banks[1]), "variant >= 1")
        assert chi_square(draw(BankAugment([banks[0], chosen], 1.0, weights=[1, 3]), KEYS[0], 5000), [1 / 8, 1 / 8, 0, 3 / 8, 3 / 8]) > 1e-4

    def test_scores_of_each_are_needed(self, tmp_path: Path) -> None:
        banks = self.banks(tmp_path)
        for given, count in ((table(banks[0]), 1), ([table(banks[0])], 1), ([None] * 3, 3)):
            with pytest.raises(ConfigError, match=f"scores: {count} given for 2 banks"):
                BankAugment(banks, weights="realism", scores=given)
        with pytest.raises(ConfigError, match=r"2 has no scores"):
            BankAugment(banks, weights="realism", scores=[table(banks[0]), None])
        chosen = banks[1].select(table(banks[1]), "variant >= 1")
        augment = BankAugment([banks[0], chosen], 1.0, weights="realism", scores=[table(banks[0]), None])
        assert chi_square(draw(augment, KEYS[0], 5000), [1, 4, 0, 4, 9]) > 1e-4

    def test_a_source_that_one_of_them_can_serve_is_no_error(self, tmp_path: Path) -> None:
        banks = self.banks(tmp_path)
        nothing = table(banks[0], [float(key != KEYS[0]) for key, _ in rows_of(banks[0])])
        augment = BankAugment(banks, 1.0, weights="realism", scores=[nothing, table(banks[1])])
        assert chi_square(draw(augment, KEYS[0], 5000), [0, 0, 1, 4, 9]) > 1e-4


class TestRefused:
    @pytest.mark.parametrize("value", [-0.001, float("nan"), float("inf"), -float("inf"), None])
    def test_a_score_that_is_no_weight_is_named(self, path: Path, value: float | None) -> None:
        bank = Bank.open(path)
        scores = table(bank, [value if i in (23, 30) else 1.0 for i in range(49)])
        key, variant = rows_of(bank)[23]
        with pytest.raises(ConfigError, match=rf"variant {variant} of key '{key}' is .*1 more .*Bank\.select"):
            BankAugment(bank, weights="realism", scores=scores)

    def test_nothing_but_zeros(self, path: Path) -> None:
        bank = Bank.open(path)
        with pytest.raises(ConfigError, match=r"all scores .* are 0"):
            BankAugment(bank, weights="realism", scores=table(bank, [0.0] * 49), missing="source")

    def test_a_source_with_nothing_but_zeros(self, path: Path) -> None:
        bank = Bank.open(path)
        scores = table(bank, [float(key not in KEYS[3:5]) for key, _ in rows_of(bank)])
        with pytest.raises(ConfigError, match=rf"2 sources have the score 0, such as those of '{KEYS[3]}': .*missing=\"source\""):
            BankAugment(bank, weights="realism", scores=scores)
        augment = BankAugment(bank, 1.0, weights="realism", scores=scores, missing="source")
        assert draw(augment, KEYS[3], 4).tolist() == [200] * 4
        assert augment.missing_count == 4

    def test_another_banks_scores_or_a_part(self, path: Path, tmp_path: Path) -> None:
        bank = Bank.open(path)
        other = Bank.open(make_bank(tmp_path, variants=6))
        with pytest.raises(BankError, match="another bank's scores"):
            BankAugment(bank, weights="realism", scores=table(other))
        with pytest.raises(BankError, match="48 of its 49 images"):
            BankAugment(bank, weights="realism", scores=table(bank).slice(1))
        with pytest.raises(BankError, match="more than one score"):
            BankAugment(bank, weights="realism", scores=pa.concat_tables([table(bank), table(bank).slice(0, 1)]))

    def test_another_bank_of_the_same_keys(self, path: Path, tmp_path: Path) -> None:
        bank = Bank.open(path)
        other = Bank.open(make_bank(tmp_path / "other", variants=5, preserves_geometry=True, rejected={(KEYS[2], 1): "not finite"}))
        own, others = (mark_scores(table(b), hash_manifest(b.manifest)) for b in (bank, other))
        pq.write_table(own.filter(pa.array([True] * 49)).sort_by("realism"), tmp_path / "own.parquet")
        BankAugment(bank, weights="realism", scores=tmp_path / "own.parquet")
        for call in (
            lambda: BankAugment(bank, weights="realism", scores=others),
            lambda: BankAugment([bank, other], weights="realism", scores=[others, own]),
            lambda: bank.select(others, "realism > 1"),
            lambda: bank.weigh("realism", others),
        ):
            with pytest.raises(BankError, match=r"those of another bank \(with 49 images\)"):
                call()
        BankAugment([bank, other], weights="realism", scores=[own, others])
        bank.select(others.replace_schema_metadata(None), "realism > 1")  # a table of the user's own names no bank

    def test_an_earlier_state_of_the_bank(self, path: Path) -> None:
        bank = Bank.open(path)
        before = mark_scores(table(bank), "0" * 32)
        bank.manifest = dict(bank.manifest) | {"history": [{"variants": 4, "count": 10, "digest": "0" * 32}]}
        with pytest.raises(BankError, match="before the bank was extended: audit it again"):
            bank.weigh("realism", before)

    @pytest.mark.parametrize("column", ["place", "rank", "distance", "nearest_similarity"])
    def test_columns_of_which_less_is_better(self, path: Path, column: str) -> None:
        bank = Bank.open(path)
        with pytest.raises(ConfigError, match=rf"weights='{column}': .* the largest {column}.*'realism', 'similarity'"):
            BankAugment(bank, weights=column, scores=table(bank, name=column))

    def test_the_folder_of_an_audit(self, path: Path, tmp_path: Path) -> None:
        bank = Bank.open(path)
        with pytest.raises(BankError, match=r"scores\.parquet: no such file: expected scores\.parquet, which `gentransforms bank audit`"):
            BankAugment(bank, weights="realism", scores=tmp_path)
        pq.write_table(table(bank), tmp_path / "scores.parquet")
        BankAugment(bank, weights="realism", scores=tmp_path)

    def test_whole_numbers_of_any_size(self, path: Path) -> None:
        bank = Bank.open(path)
        assert bank.weigh("realism", table(bank, [2**53 + 1] * 49))[0] == 2.0**53

    def test_a_column_that_is_none(self, path: Path) -> None:
        bank = Bank.open(path)
        with pytest.raises(ConfigError, match=r"weights='similarity': .* no such column, but key, variant, realism"):
            BankAugment(bank, weights="similarity", scores=table(bank))
        with pytest.raises(ConfigError, match=r"weights='key': the column is string"):
            BankAugment(bank, weights="key", scores=table(bank))
        with pytest.raises(ConfigError, match=r"weights='near_copy': the column is bool.*Bank\.select"):
            BankAugment(bank, weights="near_copy", scores=table(bank, [True] * 49, "near_copy"))

    def test_scores_without_the_name_of_one(self, path: Path) -> None:
        bank = Bank.open(path)
        for weights in (None, [2]):
            with pytest.raises(ConfigError, match=r'scores: given with weights=.*weights="realism"'):
                BankAugment(bank, weights=weights, scores=table(bank))

    def test_no_file_and_no_table(self, path: Path, tmp_path: Path) -> None:
        with pytest.raises(BankError, match=r"absent\.parquet"):
            BankAugment(path, weights="realism", scores=tmp_path / "absent.parquet")
        with pytest.raises(ConfigError, match="expected an Arrow table"):
            BankAugment(path, weights="realism", scores={"key": 1})


class TestTravels:
    @pytest.mark.parametrize("in_memory", [False, True])
    def test_to_another_process_without_the_file_of_the_scores(self, path: Path, tmp_path: Path, in_memory: bool) -> None:
        bank = Bank.open(path)
        pq.write_table(table(bank), tmp_path / "scores.parquet")
        augment = BankAugment(path, 1.0, weights="realism", scores=tmp_path / "scores.parquet", in_memory=in_memory)
        expected = draw(augment, KEYS[0], 100)
        (tmp_path / "scores.parquet").unlink()
        for again in (copy.deepcopy(augment), pickle.loads(pickle.dumps(augment))):
            assert draw(again, KEYS[0], 100).equal(expected)
        assert "weights='realism'" in repr(augment)

    def test_a_selected_bank_takes_its_scores_along(self, path: Path) -> None:
        bank = Bank.open(path)
        chosen = pickle.loads(pickle.dumps(bank.select(table(bank), "realism > 5")))
        assert chosen.scores.equals(table(bank))
        BankAugment(chosen, weights="realism", missing="source")


class TestDraws:
    def test_of_a_bank_without_images(self, tmp_path: Path) -> None:
        bank = Bank.open(make_bank(tmp_path, keys=[0, 1], failed={0: "truncated", 1: "truncated"}))
        places, totals = Draws(bank._lookup).find([0, 1])
        assert (places.tolist(), totals.tolist()) == ([-1, -1], [0, 0])

    def test_of_many_sources_agrees_with_a_loop(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        bank = Bank.open(
            make_bank(tmp_path, keys=list(range(200)), variants=3, rejected={(int(k), 1): "far" for k in rng.integers(0, 200, 60)})
        )
        weights = rng.random(len(bank)) * (rng.random(len(bank)) < 0.7)
        draws, rows = bank.draws(weights), rows_of(bank)
        keys, uniforms = rng.integers(0, 200, 2000).tolist(), rng.random(2000)
        places, totals = draws.find(keys)
        assert set(np.asarray(keys)[totals == 0].tolist()) == set(draws.unreachable()) & set(keys)
        good = totals > 0
        found = draws.pick(places[good], uniforms[good])
        for key, uniform, variant in zip(np.asarray(keys)[good].tolist(), uniforms[good], found.tolist(), strict=True):
            own = [(v, weights[i]) for i, (k, v) in enumerate(rows) if k == key and weights[i] > 0]
            ends = np.cumsum([w for _, w in own]) / sum(w for _, w in own)
            assert variant == own[int(np.searchsorted(ends, uniform, side="right"))][0]
