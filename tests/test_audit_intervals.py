"""Intervals of figures that compare with other real images: whole recomputation without a group, and coverage in simulations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial import distance
from torch import Tensor

from gentransforms.audit.evidence import Evidence, Measure
from gentransforms.audit.intervals import Jackknife, Resamples, student_t
from gentransforms.audit.judge import choose_neighbours, judge_by_neighbours
from gentransforms.audit.measures import copies, diversity, drift, faithfulness
from gentransforms.audit.measures.left_out import nearest_in_two_groups, two_groups_of_neighbours
from gentransforms.audit.measures.near_copies import limit_range
from gentransforms.audit.neighbours import neighbours_of_real, neighbours_of_variants
from gentransforms.audit.pixels import STATISTICS
from gentransforms.audit.verdicts import give_verdicts


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian(count: int, width: int, seed: int, *, dimensions: int = 6, classes: int = 3, spread: float = 0.6) -> Evidence:
    """A bank whose variants are around their sources, `width` of each of `count`."""
    labels = torch.arange(count) % classes
    centres = 2 * torch.eye(classes, dimensions)
    owner = torch.arange(count).repeat_interleave(width)
    real = centres[labels] + random(count, dimensions, seed=3 * seed)
    return Evidence(
        keys=list(range(count)), real=real, owner=owner, number=torch.arange(width).repeat(count),
        variants=centres[labels[owner]] + spread * (real - centres[labels])[owner]
        + math.sqrt(1 - spread**2) * random(count * width, dimensions, seed=3 * seed + 1),
        labels=labels, classes=[str(i) for i in range(classes)], holdout=centres[labels] + random(count, dimensions, seed=3 * seed + 2),
        statistics=random(count, len(STATISTICS), seed=seed), variant_statistics=random(count * width, len(STATISTICS), seed=seed + 1),
    )  # fmt: skip


def measured(e: Evidence, resamples: Resamples, k: int) -> dict[str, Measure]:
    """The figures with such intervals; those of sets are left out, which take longer."""
    real = neighbours_of_real(e.real, k)
    placed = neighbours_of_variants(e, real.distances[:, 2], k)
    near = copies.near_distance(real)
    found = faithfulness.measure_faithfulness(e, real, placed, resamples) | diversity.measure_diversity(e, real, near, resamples)
    found |= copies.measure_copies(e, real, placed, near, resamples) | drift.measure_drift(e, resamples)
    if e.labels is not None:
        judgement = judge_by_neighbours(e.labels, real, placed, choose_neighbours(e.labels))
        for measure in (faithfulness.label_agreement, faithfulness.label_kappa):
            found[measure.__name__] = measure(e, judgement, resamples)
        found["drift/classes"] = drift.measure_shift("classes", e, e.labels, judgement, resamples)
    return {name: value for name, value in found.items() if isinstance(value, Measure)}


def measured_copies(e: Evidence) -> dict[str, Measure]:
    real = neighbours_of_real(e.real, 10)
    placed = neighbours_of_variants(e, real.distances[:, 2], 10)
    found = copies.measure_copies(e, real, placed, copies.near_distance(real), Resamples(len(e.real), 5))
    return {name: value for name, value in found.items() if isinstance(value, Measure)}


class TestJackknife:
    def test_a_mean_is_as_uncertain_as_theory_says(self) -> None:
        """With one value in a group it is the standard error itself."""
        values, jackknife = random(20).double(), Jackknife(20)
        half = jackknife.error(lambda g: values[jackknife.groups != g].mean())
        assert half == pytest.approx(stats.t.ppf(0.975, 19) * float(values.std()) / math.sqrt(20), rel=1e-4)

    def test_groups_are_equal_and_the_same_for_the_same_seed(self) -> None:
        found = Jackknife(103)
        for groups in (found.groups, found.held_out):
            assert sorted(groups.bincount().tolist()) == [5] * 17 + [6] * 3
        assert torch.equal(found.groups, Jackknife(103).groups)
        assert not torch.equal(found.groups, Jackknife(103, seed=1).groups)
        assert Jackknife(5).count == 5

    def test_stays_within_the_range_and_around_the_value(self) -> None:
        values, jackknife = torch.tensor([0.0] * 35 + [1.0] * 5), Jackknife(40)
        low, high = jackknife.interval(0.125, lambda g: values[jackknife.groups != g].mean(), 0.1, 1.0) or (0, 0)
        assert low == 0.1
        assert 0.125 < high < 0.5

    def test_what_cannot_be_taken_without_a_group_has_no_interval_or_the_whole_range(self) -> None:
        assert Jackknife(2).interval(0.5, lambda g: math.nan) is None
        assert Jackknife(2).interval(0.5, lambda g: math.nan, 0.0, 1.0) == (0.0, 1.0)

    @pytest.mark.parametrize("freedom", [1, 2, 3, 5, 19, 100])
    def test_quantiles_of_student(self, freedom: int) -> None:
        assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)


class TestLeftOut:
    """Against all pairs, each group taken out of them."""

    @pytest.mark.parametrize("k", [1, 4, 30])
    def test_among_known_neighbours(self, k: int) -> None:
        """With one known neighbour, or with groups that are clusters, the rest is searched."""
        e, groups = gaussian(40, 3, seed=1), torch.arange(40) // 10
        neighbours = neighbours_of_variants(e, torch.ones(40), k).indices
        pairs = distance.cdist(e.variants.double().numpy(), e.real.double().numpy())
        pairs[np.arange(len(pairs)), e.owner] = np.inf
        self.compare(two_groups_of_neighbours(e.variants, e.real, neighbours, groups, e.owner).without, pairs, groups)

    def test_among_the_real_images(self) -> None:
        real, groups = random(40, 5), torch.arange(40) % 4
        pairs = distance.cdist(real.double().numpy(), real.double().numpy())
        np.fill_diagonal(pairs, np.inf)
        self.compare(two_groups_of_neighbours(real, real, neighbours_of_real(real, 3).indices, groups).without, pairs, groups)

    def test_in_a_support(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from gentransforms.audit import neighbours

        monkeypatch.setattr(neighbours, "_ELEMENTS", 7 * 40)
        points, support, groups = random(90, 5, seed=1), random(40, 5), torch.arange(40) % 4
        pairs = distance.cdist(points.double().numpy(), support.double().numpy())
        self.compare(nearest_in_two_groups(points, support, groups).without, pairs, groups)

    def test_one_group_leaves_nothing(self) -> None:
        groups = torch.zeros(3, dtype=torch.int64)
        for found in (
            nearest_in_two_groups(random(2, 4), random(3, 4), groups),
            two_groups_of_neighbours(random(3, 4), random(3, 4), torch.tensor([[1], [2], [0]]), groups),
        ):
            assert bool(found.without(0)[0].isinf().all())

    @staticmethod
    def compare(without: Callable[[int], tuple[Tensor, Tensor]], pairs: np.ndarray, groups: Tensor) -> None:
        for group in range(4):
            left = np.where((groups == group).numpy()[None], np.inf, pairs)
            distances, indices = without(group)
            np.testing.assert_allclose(distances.numpy(), left.min(1), rtol=1e-5)
            np.testing.assert_array_equal(indices.numpy(), left.argmin(1))


class TestFigures:
    @pytest.mark.parametrize("labelled", [True, False])
    def test_are_those_of_the_bank_without_the_group(self, labelled: bool) -> None:
        """Each group is really taken away, and the whole audit made again."""
        e = gaussian(100, 3, seed=5, spread=0.95)
        if not labelled:
            e = dataclasses.replace(e, labels=None)
        resamples = Resamples(100, 5)
        found = measured(e, resamples, k=40)
        names = ["source_copies", "nearest_ratio", "authpct", "training_share", "training_share_others", "variant_distance",
                 "duplicate_variants", "other_similarity", "drift/brightness"]  # fmt: skip
        names += ["label_agreement", "label_kappa", "drift/classes"] if labelled else []
        again: dict[str, list[float]] = {name: [] for name in names}
        for group in range(20):
            smaller = measured(without(e, resamples.jackknife, group), Resamples(95, 5), k=40)
            for name in names:
                again[name].append(smaller[name].value)
        for name, values in again.items():
            half = stats.t.ppf(0.975, 19) * math.sqrt(19 / 20 * np.square(np.array(values) - np.mean(values)).sum())
            least, most = (-1, 1) if "similarity" in name else (-9, 9) if "bright" in name else (0, {"authpct": 100}.get(name, 1))
            if name in ("nearest_ratio", "variant_distance"):
                most = 9
            value, interval = found[name].value, found[name].interval
            assert interval == pytest.approx((max(least, value - half), min(most, value + half)), rel=2e-3, abs=2e-5), name


def without(e: Evidence, jackknife: Jackknife, group: int) -> Evidence:
    kept = jackknife.groups != group
    rows = kept[e.owner]
    assert e.holdout is not None
    assert e.statistics is not None
    assert e.variant_statistics is not None
    return dataclasses.replace(
        e, keys=list(range(int(kept.sum()))), real=e.real[kept], variants=e.variants[rows], owner=(kept.cumsum(0) - 1)[e.owner[rows]],
        number=e.number[rows], labels=None if e.labels is None else e.labels[kept], holdout=e.holdout[jackknife.held_out != group],
        statistics=e.statistics[kept], variant_statistics=e.variant_statistics[rows],
    )  # fmt: skip


class TestLimitOfNearCopies:
    @pytest.mark.parametrize("count", [100, 300, 1000])
    def test_the_range_covers_the_quantile_it_estimates(self, count: int) -> None:
        """Pairs whose ranks in the population are uniform, at distances of a power law."""
        covered = 0
        for seed in range(400):
            ranks = torch.rand(count // 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).repeat_interleave(2)
            distances = ranks ** (1 / 5)
            limit = float(distances.quantile(0.01))
            pair = 1 + int((distances < limit).sum()) // 2
            low, high = limit_range(distances, limit)
            assert low < limit < high
            covered += low <= (2 * pair / count) ** (1 / 5) <= high
        assert 0.92 < covered / 400 < 0.99

    def test_few_images_say_nothing(self) -> None:
        assert limit_range(torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0], dtype=torch.float64), 1.0) == (0.0, math.inf)

    def test_the_reference_counts_the_images_at_the_limit(self) -> None:
        """Of few images the 1% quantile is the least distance, that of a pair."""
        assert measured_copies(gaussian(60, 2, seed=1))["near_copies"].reference == pytest.approx(2 / 60)


NAMES = ("near_copies", "nearest_ratio", "authpct", "training_share_others")


def simulate(kind: str, count: int, width: int, runs: int) -> tuple[dict[str, float], float]:
    """Return how often the intervals of `NAMES` cover the mean of the figure, and the share of verdicts that are not "good"."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in NAMES}
    accused = 0
    for seed in range(runs):
        e = gaussian(count, width, seed, spread=0.0)  # variants that are nothing but other images of the class
        if kind != "innocent":
            rng = torch.Generator().manual_seed(seed)
            other = torch.randint(count, (len(e.variants),), generator=rng)
            repeated = torch.rand(len(other), generator=rng) < (0.2 if kind == "copier" else 0.6)
            noise = (0.02 if kind == "copier" else 0.3) * random(*e.variants.shape, seed=seed + 7)
            e = dataclasses.replace(e, variants=torch.where(repeated[:, None], e.real[other] + noise, e.variants))
        measures = measured_copies(e)
        (verdict,) = give_verdicts(measures)
        accused += verdict.level != "good"
        for name in NAMES:
            found[name].append((measures[name].value, *(measures[name].interval or (math.nan, math.nan))))
    covered = {}
    for name, rows in found.items():
        value, low, high = np.array(rows).T
        covered[name] = float(((low <= value.mean()) & (value.mean() <= high)).mean())
    return covered, accused / runs


class TestCoverage:
    """The intervals were 35 to 75% ones, and up to 40% of generators that copy nothing were accused."""

    def test_of_a_few_small_banks(self) -> None:
        covered, accused = simulate("innocent", 80, 4, 30)
        assert min(covered.values()) >= 0.86, covered
        assert accused <= 0.07

    @pytest.mark.parametrize("kind", ["copier", "memoriser"])
    def test_copying_is_found(self, kind: str) -> None:
        assert simulate(kind, 100, 6, 5)[1] == 1

    @pytest.mark.slow
    @pytest.mark.parametrize(("count", "width"), [(60, 10), (100, 10), (300, 5), (1000, 2)])
    def test_of_many_banks(self, count: int, width: int) -> None:
        covered, accused = simulate("innocent", count, width, 150)
        assert min(covered.values()) >= 0.91, covered
        assert accused <= 0.05


class TestVerdictOnCopies:
    @pytest.mark.parametrize(
        ("figures", "level"),
        [
            ({"near_copies": (0.1, 0.01, 0.2)}, "good"),
            ({"near_copies": (0.1, 0.03, 0.2)}, "check"),
            ({"near_copies": (0.1, 0.06, 0.2)}, "bad"),
            ({"near_copies": (0.01, 0.0, 0.02), "source_copies": (0.05, 0.01, 0.1)}, "good"),
            ({"near_copies": (0.01, 0.0, 0.02), "source_copies": (0.05, 0.03, 0.1)}, "check"),
            ({"near_copies": (0.01, 0.0, 0.02), "training_share_others": (0.7, 0.5, 0.9)}, "good"),
            ({"near_copies": (0.01, 0.0, 0.02), "training_share_others": (0.7, 0.6, 0.8)}, "check"),
        ],
    )
    def test_rests_on_the_lower_ends(self, figures: dict[str, tuple[float, float, float]], level: str) -> None:
        measures = {name: Measure("copies", value, (low, high), 0.01, "a figure") for name, (value, low, high) in figures.items()}
        (verdict,) = give_verdicts(measures)
        assert verdict.level == level
        assert ("too few of them to speak of copies" in verdict.text) == (figures["near_copies"][1] < 0.02 < figures["near_copies"][0])

    def test_nothing_is_sure_without_an_interval(self) -> None:
        (verdict,) = give_verdicts({"near_copies": Measure("copies", 0.5, None, 0.01, "a figure")})
        assert verdict.level == "good"
