"""The measures of an audit: known answers, and independent references in NumPy, SciPy, scikit-learn and torchmetrics."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from scipy.spatial import distance
from sklearn.metrics import cohen_kappa_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from gentransforms.audit.analyse import _judge, measure_all
from gentransforms.audit.evidence import Evidence, Measure
from gentransforms.audit.intervals import Resamples, subsampling_interval
from gentransforms.audit.judge import choose_neighbours, judge_by_neighbours, vote
from gentransforms.audit.measures import copies, diversity, drift, faithfulness, likeness
from gentransforms.audit.neighbours import nearest, neighbours_of_real, neighbours_of_variants
from gentransforms.audit.pixels import STATISTICS, describe_pixels
from gentransforms.audit.verdicts import give_verdicts
from gentransforms.errors import ConfigError, GeneratorError

N, V, D, CLASSES = 120, 4, 6, 4
LABELS = torch.arange(N) % CLASSES


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


REAL = random(N, D) + 6 * torch.eye(CLASSES, D)[LABELS]
HOLDOUT = random(N, D, seed=9) + 6 * torch.eye(CLASSES, D)[LABELS]


def evidence(variants: Tensor, *, labels: Tensor | None = LABELS, holdout: Tensor | None = HOLDOUT, real: Tensor = REAL) -> Evidence:
    """Of variants (N, V, D)."""
    count, width = variants.shape[:2]
    pixels = random(count, len(STATISTICS), seed=3)
    return Evidence(
        keys=list(range(count)), real=real, variants=variants.flatten(0, 1), owner=torch.arange(count).repeat_interleave(width),
        number=torch.arange(width).repeat(count), labels=labels, classes=[f"class {i}" for i in range(CLASSES)], holdout=holdout,
        statistics=pixels, variant_statistics=pixels.repeat_interleave(width, dim=0),
    )  # fmt: skip


def measured(e: Evidence) -> dict[str, Measure]:
    real = neighbours_of_real(e.real, 10, e.device)
    placed = neighbours_of_variants(e, real.distances[:, 2], 10)
    judgement = None if e.labels is None else judge_by_neighbours(e.labels, real, placed, choose_neighbours(e.labels))
    found = measure_all(e, real, placed, judgement, Resamples(len(e.real), 200))
    return {name: value for name, value in found.items() if isinstance(value, Measure)}


def value(found: dict[str, Measure], name: str) -> float:
    return found[name].value


COPIES = REAL[:, None].expand(N, V, D).clone()
HEALTHY = COPIES + 0.35 * random(N, V, D, seed=1)


@pytest.fixture(scope="module")
def healthy() -> dict[str, Measure]:
    return measured(evidence(HEALTHY))


class TestKnownAnswers:
    """What each kind of bank must show, and what it must not."""

    def test_every_figure_has_an_interval_a_reference_and_a_meaning(self, healthy: dict[str, Measure]) -> None:
        for name, measure in healthy.items():
            assert measure.interval is not None, name
            low, high = measure.interval
            assert low <= measure.value <= high, name
            assert measure.reference is not None, name
            assert len(measure.meaning) > 40, name

    def test_exact_copies(self) -> None:
        found = measured(evidence(COPIES))
        assert value(found, "source_similarity") == pytest.approx(1, abs=1e-6)
        for name, expected in {
            "source_retrieval": 1, "mean_reciprocal_rank": 1, "source_copies": 1, "duplicate_variants": 1, "variant_distance": 0,
            "vendi": 1, "authpct": 0, "training_share": 1, "real_or_generated": 0.5,
        }.items():  # fmt: skip
            assert value(found, name) == pytest.approx(expected, abs=1e-6), name
        # As sets they are the real images themselves.
        for name in ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"):
            assert value(found, name) == pytest.approx(found[name].reference, abs=1e-9), name
        assert value(found, "c_t") < -5
        assert value(found, "nearest_ratio") == pytest.approx(1, abs=1e-5)
        assert value(found, "training_share_others") == pytest.approx(0.5, abs=0.15)
        assert value(found, "label_agreement") == pytest.approx(found["label_agreement"].reference, abs=1e-9)

    def test_copies_with_noise_differ_and_keep_their_source(self, healthy: dict[str, Measure]) -> None:
        assert value(healthy, "source_retrieval") > 0.9
        assert value(healthy, "source_copies") == 0
        assert value(healthy, "duplicate_variants") == 0
        assert value(healthy, "label_agreement") > 0.95
        assert value(healthy, "near_copies") <= 0.05
        assert 0.1 < value(healthy, "variant_distance") < 1
        assert value(healthy, "vendi") > 1.001

    def test_another_image_of_the_same_class_is_a_near_copy(self, healthy: dict[str, Measure]) -> None:
        other = torch.arange(N).roll(-CLASSES)  # the next of the class
        found = measured(evidence(REAL[other][:, None] + 1e-4 * random(N, V, D, seed=2)))
        assert value(found, "near_copies") == 1
        assert value(found, "label_agreement") == pytest.approx(value(healthy, "label_agreement"), abs=0.05)
        assert value(found, "source_retrieval") == 0
        assert value(found, "source_copies") == 0
        assert value(found, "nearest_ratio") < 0.01
        assert value(found, "training_share_others") == 1

    def test_another_class(self, healthy: dict[str, Measure]) -> None:
        other = torch.arange(N).roll(-1)
        found = measured(evidence(REAL[other][:, None] + 0.35 * random(N, V, D, seed=2)))
        assert value(found, "label_agreement") < 0.05
        assert value(found, "source_similarity") < value(healthy, "source_similarity") - 0.3
        assert value(found, "drift/classes") < 0.1  # all classes move alike, so that their frequencies stay
        assert value(found, "variant_distance") == pytest.approx(value(healthy, "variant_distance"), rel=0.2)

    def test_one_variant_repeated(self, healthy: dict[str, Measure]) -> None:
        found = measured(evidence(HEALTHY[:, :1].expand(N, V, D)))
        assert value(found, "variant_distance") == 0
        assert value(found, "vendi") == pytest.approx(1, abs=1e-6)
        assert value(found, "duplicate_variants") == 1
        assert value(found, "source_copies") == 0
        assert value(found, "source_retrieval") == pytest.approx(value(healthy, "source_retrieval"), abs=0.1)

    @pytest.mark.parametrize("rare", [30, 6])
    def test_agreement_beyond_chance(self, rare: int) -> None:
        """Noise is taken for the class that most sources have, whatever its own source shows."""
        labels = (torch.arange(N) < rare).long()
        real = random(N, D) + 6 * torch.eye(2, D)[labels]
        noise = (
            random(N, V, D, seed=4) + 6 * torch.eye(2, D)[labels[torch.randperm(N, generator=torch.Generator().manual_seed(1))]][:, None]
        )
        e = evidence(noise, labels=labels, real=real)
        near = neighbours_of_real(e.real, 10, e.device)
        judgement = judge_by_neighbours(labels, near, neighbours_of_variants(e, near.distances[:, 2], 10), choose_neighbours(labels))
        found = measured(e)
        assert value(found, "label_agreement") > 0.6
        expected = cohen_kappa_score(labels[e.owner].numpy(), judgement.variants.numpy())
        assert value(found, "label_kappa") == pytest.approx(expected, abs=1e-6)
        assert found["label_kappa"].reference == pytest.approx(cohen_kappa_score(labels.numpy(), judgement.sources.numpy()), abs=1e-6)
        assert found["label_kappa"].interval is not None
        assert found["label_kappa"].interval[0] < 0.1 < 0.9 < (found["label_kappa"].reference or 0)
        (verdict,) = [verdict for verdict in give_verdicts(found) if verdict.title == "Faithfulness."]
        assert verdict.level == "bad"
        assert "Beyond chance (Cohen's kappa)" in verdict.text

    def test_one_class_has_nothing_to_agree_on(self) -> None:
        e = evidence(40 * random(N, V, D, seed=4), labels=torch.zeros(N, dtype=torch.int64))
        found = measured(e)
        assert not {"label_agreement", "label_kappa", "drift/classes"} & found.keys()
        (verdict,) = [verdict for verdict in give_verdicts(found) if verdict.title == "Faithfulness."]
        assert verdict.level == "bad"

    def test_noise_far_from_everything(self, healthy: dict[str, Measure]) -> None:
        found = measured(evidence(40 * random(N, V, D, seed=4)))
        assert value(found, "precision") == 0
        assert value(found, "density") == 0
        assert value(found, "coverage") < 0.2
        assert value(found, "frechet_distance") > 100 * value(healthy, "frechet_distance")
        assert value(found, "source_retrieval") < 0.1
        assert value(found, "label_agreement") < 0.5
        assert value(found, "authpct") > 95
        assert value(found, "near_copies") == 0
        assert value(found, "variant_distance") > 5

    def test_one_class_only(self, healthy: dict[str, Measure]) -> None:
        one = (LABELS == 0).nonzero()[:, 0]
        found = measured(evidence(REAL[one[torch.arange(N) % len(one)]][:, None] + 0.5 * random(N, V, D, seed=5)))
        assert value(found, "drift/classes") == pytest.approx(0.75, abs=0.02)
        assert value(found, "recall") < 0.6 * value(healthy, "recall")
        assert value(found, "coverage") < 0.6 * value(healthy, "coverage")
        assert value(found, "precision") == pytest.approx(value(healthy, "precision"), abs=0.15)
        assert value(found, "label_agreement") == pytest.approx(0.25, abs=0.03)

    def test_a_holdout_that_equals_the_training_set(self) -> None:
        found = measured(evidence(HEALTHY, holdout=REAL))
        # Ties count half: every variant is as near to one as to the other.
        assert value(found, "training_share") == 0.5
        assert value(found, "c_t") > 5
        assert value(found, "training_share_others") < 0.2  # the own source stays among the held-out ones

    def test_without_labels_or_holdout_the_rest_stays(self, healthy: dict[str, Measure]) -> None:
        found = measured(evidence(HEALTHY, labels=None, holdout=None))
        absent = {"label_agreement", "label_kappa", "drift/classes", "training_share", "training_share_others", "c_t"}
        assert absent == healthy.keys() - found.keys()
        for name in ("source_similarity", "source_retrieval", "near_copies", "frechet_distance"):
            assert value(found, name) == value(healthy, name)

    def test_duplicates_among_the_real_images_hide_no_copies(self) -> None:
        real = REAL.clone()
        real[1:6:2] = real[0:6:2]  # three pairs of the same image: the 1% quantile of the distances is 0
        other = torch.arange(N).roll(-CLASSES)
        copied = measured(evidence(real[other][:, None].expand(N, V, D).clone(), real=real))
        assert value(copied, "near_copies") == 1
        assert copied["near_copies"].reference == pytest.approx(6 / N, abs=0.02)
        noisy = measured(evidence(real[:, None] + 0.35 * random(N, V, D, seed=1), real=real))
        assert value(noisy, "near_copies") < 0.1

    def test_an_encoder_that_tells_nothing_apart(self) -> None:
        found = _measure_all(evidence(torch.ones(N, V, D), real=torch.ones(N, D), labels=None, holdout=None))
        for name in ("source_retrieval", "mean_reciprocal_rank", "variant_distance", "source_copies", "near_copies", "nearest_ratio"):
            assert isinstance(found[name], str), name
        assert np.isfinite([one.value for one in found.values() if isinstance(one, Measure)]).all()


class TestDrift:
    def test_a_shift_is_seen_where_it_is_and_nowhere_else(self) -> None:
        e = evidence(HEALTHY)
        assert e.statistics is not None
        assert e.variant_statistics is not None
        column = list(STATISTICS).index("brightness")
        moved = e.variant_statistics.clone()
        moved[:, column] += 0.5 * e.statistics[:, column].std()
        found = drift.measure_drift(dataclasses.replace(e, variant_statistics=moved), Resamples(N, 200))
        for name, measure in found.items():
            assert isinstance(measure, Measure)
            assert measure.value == pytest.approx(0.5 if name == "drift/brightness" else 0, abs=1e-5), name

    def test_images_that_are_all_alike_have_no_scale(self) -> None:
        e = evidence(HEALTHY)
        same = dataclasses.replace(e, statistics=torch.ones(N, len(STATISTICS)))
        assert all("no scale" in str(value) for value in drift.measure_drift(same, Resamples(N, 50)).values())


class TestReferences:
    """Against other people's code."""

    def test_nearest_neighbours(self) -> None:
        expected = distance.cdist(REAL.numpy(), REAL.numpy())
        np.fill_diagonal(expected, np.inf)
        found = neighbours_of_real(REAL, 3)
        np.testing.assert_allclose(found.distances.numpy(), np.sort(expected)[:, :3], rtol=1e-5)
        np.testing.assert_array_equal(found.indices[:, 0].numpy(), expected.argmin(1))

    def test_ranks_and_other_sources(self) -> None:
        e = evidence(COPIES + 2.0 * random(N, V, D, seed=6))
        d = distance.cdist(e.variants.double().numpy(), e.real.double().numpy())
        own = d[np.arange(len(d)), e.owner]
        placed = neighbours_of_variants(e, neighbours_of_real(e.real, 3).distances[:, 2], 5)
        np.testing.assert_array_equal(placed.rank.numpy(), 1 + (d < own[:, None]).sum(1))
        radius = np.sort(distance.cdist(e.real.double().numpy(), e.real.double().numpy()))[:, 3]
        np.testing.assert_allclose(placed.realism.numpy(), (radius / d).max(1), rtol=1e-3)
        d[np.arange(len(d)), e.owner] = np.inf
        np.testing.assert_array_equal(placed.other_index.numpy(), d.argmin(1))
        np.testing.assert_allclose(placed.other.numpy(), d.min(1), rtol=1e-5)

    @pytest.mark.gpu
    def test_a_device_changes_nothing(self) -> None:
        e = evidence(HEALTHY)
        found, there = (measured(dataclasses.replace(e, device=torch.device(name))) for name in ("cpu", "cuda"))
        for name, measure in found.items():
            assert there[name].value == pytest.approx(measure.value, rel=1e-4, abs=1e-6), name

    def test_chunks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from gentransforms.audit import neighbours

        whole = neighbours_of_real(REAL, 4), nearest(HOLDOUT, REAL)
        monkeypatch.setattr(neighbours, "_ELEMENTS", 7 * N)
        parts = neighbours_of_real(REAL, 4), nearest(HOLDOUT, REAL)
        torch.testing.assert_close(whole[0].distances, parts[0].distances)
        assert torch.equal(whole[0].indices, parts[0].indices)
        assert torch.equal(whole[1][1], parts[1][1])

    def test_frechet_distance(self) -> None:
        a, b = REAL.double().numpy(), (1.3 * HOLDOUT).double().numpy()
        root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real)
        assert likeness.frechet_distance(REAL, 1.3 * HOLDOUT) == pytest.approx(expected, rel=1e-6)

    def test_frechet_distance_of_two_gaussians_has_the_closed_form(self) -> None:
        a = random(40_000, 3, seed=1) * torch.tensor([1.0, 2.0, 3.0])
        b = random(40_000, 3, seed=2) * torch.tensor([2.0, 2.0, 1.0]) + torch.tensor([1.0, 0.0, 2.0])
        assert likeness.frechet_distance(a, b) == pytest.approx(5 + 1 + 0 + 4, rel=0.03)  # |m|^2 + sum of (s - t)^2

    def test_frechet_distance_with_fewer_images_than_features(self) -> None:
        assert likeness.frechet_distance(random(5, 32), random(5, 32)) == pytest.approx(0, abs=1e-9)

    def test_frechet_distance_of_few_images_is_that_of_their_gaussians(self) -> None:
        a, b = random(20, 32, seed=1), 2 * random(25, 32, seed=2) + 1
        A, B = np.cov(a.double().numpy().T), np.cov(b.double().numpy().T)
        values = np.linalg.eigvals(A @ B).real.clip(0)
        expected = float((a.mean(0) - b.mean(0)).double().square().sum()) + np.trace(A) + np.trace(B) - 2 * np.sqrt(values).sum()
        assert likeness.frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)

    def test_kernel_distance(self) -> None:
        from torchmetrics.image.kid import poly_mmd

        n = len(REAL)
        gamma = 1.0 / D
        kernels = [(x.double() @ y.double().T * gamma + 1) ** 3 for x, y in ((REAL, REAL), (REAL, HOLDOUT), (HOLDOUT, HOLDOUT))]
        expected = (kernels[0].sum() - kernels[0].trace() + kernels[2].sum() - kernels[2].trace()) / (n * (n - 1)) - 2 * kernels[1].mean()
        assert likeness.kernel_distance(REAL, HOLDOUT) == pytest.approx(float(expected), rel=1e-6)
        assert likeness.kernel_distance(REAL, HOLDOUT) == pytest.approx(float(poly_mmd(REAL.double(), HOLDOUT.double())), rel=1e-4)

    def test_precision_recall_density_coverage(self) -> None:
        made, k = HEALTHY[:, 0].double().numpy(), 3
        real = HOLDOUT.double().numpy()
        radius = np.sort(distance.cdist(real, real))[:, k]
        made_radius = np.sort(distance.cdist(made, made))[:, k]
        d = distance.cdist(real, made)
        expected = (
            (d < radius[:, None]).any(0).mean(), (d < made_radius[None]).any(1).mean(),
            (d < radius[:, None]).sum(0).mean() / k, (d.min(1) < radius).mean(),
        )  # fmt: skip
        found = likeness.precision_recall_density_coverage(HEALTHY[:, 0].contiguous(), HOLDOUT, k)
        assert found == pytest.approx(expected, abs=1e-9)

    def test_vendi_score(self) -> None:
        features = random(3, 5, 7, seed=8)
        unit = (features / features.norm(dim=2, keepdim=True)).double().numpy()
        for one, found in zip(unit, diversity.vendi_score(features).tolist(), strict=True):
            eigenvalues = np.linalg.eigvalsh(one @ one.T / 5)
            assert found == pytest.approx(np.exp(stats.entropy(eigenvalues[eigenvalues > 0])), rel=1e-6)

    def test_vendi_score_counts_only_what_is_there(self) -> None:
        features = random(1, 5, 7, seed=8)
        there = torch.tensor([[True, True, True, False, False]])
        assert diversity.vendi_score(features, there).item() == pytest.approx(diversity.vendi_score(features[:, :3]).item(), rel=1e-9)

    def test_mann_whitney_with_ties(self) -> None:
        p, q = torch.tensor([1.0, 2.0, 2.0, 5.0, 3.0]), torch.tensor([2.0, 4.0, 4.0, 7.0])
        u = stats.mannwhitneyu(q.numpy(), p.numpy()).statistic
        expected = (u - 10) / np.sqrt(5 * 4 * 10 / 12)
        assert copies._mann_whitney(p, q) == pytest.approx(expected)

    def test_votes(self) -> None:
        model = KNeighborsClassifier(7).fit(REAL.numpy(), LABELS.numpy())
        _, index = model.kneighbors(HOLDOUT.numpy())
        ours = vote(LABELS[torch.from_numpy(index)], CLASSES)
        # Where the majority is clear; ties go to the nearer, there to the smaller number.
        counts = np.stack([np.bincount(LABELS[torch.from_numpy(row)], minlength=CLASSES) for row in index])
        clear = np.sort(counts)[:, -1] > np.sort(counts)[:, -2]
        np.testing.assert_array_equal(ours.numpy()[clear], model.predict(HOLDOUT.numpy())[clear])

    def test_similarities(self) -> None:
        e = evidence(HEALTHY)
        cosine = 1 - distance.cdist(e.variants.double().numpy(), e.real.double().numpy(), "cosine")
        own, others = faithfulness.similarities(e)
        rows = np.arange(len(cosine))
        np.testing.assert_allclose(own.numpy(), cosine[rows, e.owner], rtol=1e-4)
        np.testing.assert_allclose(others.numpy(), (cosine.sum(1) - cosine[rows, e.owner]) / (N - 1), rtol=1e-3, atol=1e-5)

    def test_variant_distance(self) -> None:
        e = evidence(HEALTHY, labels=None)
        expected = np.mean([distance.pdist(one.double().numpy()).mean() for one in HEALTHY])
        expected /= float(neighbours_of_real(REAL, 1).distances.double().mean())
        assert measured(e)["variant_distance"].value == pytest.approx(expected, rel=1e-5)

    def test_a_classifier_tells_means_apart_and_not_more(self) -> None:
        assert likeness.real_or_generated(REAL, REAL + 20).mean() == 1
        assert likeness.real_or_generated(REAL, REAL).mean() == 0.5
        assert likeness.real_or_generated(random(400, 4), random(400, 4, seed=1)).mean() == pytest.approx(0.5, abs=0.06)


class TestIntervals:
    def test_a_bootstrap_is_as_wide_as_theory_says(self) -> None:
        values = random(400)
        mean, (low, high) = Resamples(400, 2000).mean(values)
        assert mean == pytest.approx(float(values.mean()), abs=1e-6)
        assert (high - low) / 2 == pytest.approx(1.96 * float(values.std()) / 20, rel=0.1)

    def test_sources_without_a_value_are_left_out(self) -> None:
        values = torch.cat([torch.ones(50), torch.full((50,), torch.nan)])
        assert Resamples(100, 100).mean(values) == (1.0, (1.0, 1.0))

    def test_the_same_seed_gives_the_same(self) -> None:
        values = random(100)
        assert Resamples(100, 50, seed=1).mean(values) == Resamples(100, 50, seed=1).mean(values)
        assert Resamples(100, 50, seed=1).mean(values) != Resamples(100, 50, seed=2).mean(values)

    def test_subsampling_of_a_mean_is_as_wide_as_theory_says(self) -> None:
        population, rng = random(400), torch.Generator().manual_seed(0)
        means = [float(population[torch.randperm(400, generator=rng)[:100]].mean()) for _ in range(2000)]
        _, (low, high) = subsampling_interval(means, 100, 400)
        assert (high - low) / 2 == pytest.approx(1.96 * float(population.std()) / 20, rel=0.1)

    @pytest.mark.parametrize(("taken", "count"), [(24, 96), (24, 4000)])
    def test_a_few_small_subsamples_cover_what_they_estimate(self, taken: int, count: int) -> None:
        """As in a bank of a million images, of which 20 times 3,000 are compared."""
        rng, covered = torch.Generator().manual_seed(0), 0
        for _ in range(300):
            population = torch.randn(count, generator=rng)
            means = [float(population[torch.randperm(count, generator=rng)[:taken]].mean()) for _ in range(20)]
            _, (low, high) = subsampling_interval(means, taken, count)
            covered += low <= 0 <= high
        assert 0.9 < covered / 300 < 0.98


class TestPixels:
    def test_each_figure_follows_what_it_is_called(self) -> None:
        ramp = torch.linspace(0.2, 0.8, 16).expand(3, 16, 16)
        pure = torch.stack([ramp[0], ramp[0] * 0.2, ramp[0] * 0.2])
        noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
        flat = torch.full((3, 16, 16), 0.5)
        names = list(STATISTICS)

        def figure(image: Tensor, name: str) -> float:
            return describe_pixels(image[None])[0, names.index(name)].item()

        assert figure(ramp + 0.1, "brightness") == pytest.approx(figure(ramp, "brightness") + 0.1, abs=1e-6)
        assert figure(ramp * 0.5, "contrast") == pytest.approx(figure(ramp, "contrast") / 2, rel=1e-5)
        assert figure(ramp, "saturation") == 0
        assert figure(pure, "saturation") == pytest.approx(0.8, abs=1e-5)
        assert figure(pure, "colourfulness") > 0.1 > figure(ramp, "colourfulness")
        assert figure(noise, "sharpness") > 100 * figure(ramp, "sharpness")
        assert figure(ramp, "edges") == pytest.approx(2 * 0.6 / 15, rel=1e-4)  # a Sobel difference spans two pixels
        assert figure(flat, "entropy") == 0
        assert figure(ramp, "entropy") == pytest.approx(4, abs=0.01)  # 16 grey levels, equally often

    def test_images_do_not_depend_on_their_batch(self) -> None:
        images = torch.rand(5, 3, 9, 7, generator=torch.Generator().manual_seed(0))
        alone = torch.cat([describe_pixels(image[None]) for image in images])
        torch.testing.assert_close(describe_pixels(images), alone)


class TestBadInput:
    @pytest.mark.parametrize("where", ["real", "variants", "holdout"])
    def test_features_that_are_not_finite_are_refused_by_name(self, where: str) -> None:
        e = evidence(HEALTHY)
        spoilt = getattr(e, where).clone()
        spoilt[7, 0] = torch.nan
        with pytest.raises(GeneratorError, match=r"NaN or infinity"):
            dataclasses.replace(e, **{where: spoilt})

    def test_labels_of_another_length(self) -> None:
        with pytest.raises(ConfigError, match="3 for 120"):
            evidence(HEALTHY, labels=LABELS[:3])

    def test_one_source(self) -> None:
        with pytest.raises(ConfigError, match="1 source"):
            evidence(HEALTHY[:1], labels=None, holdout=None, real=REAL[:1])

    def test_no_variants(self) -> None:
        empty = torch.zeros(0, dtype=torch.int64)
        with pytest.raises(ConfigError, match="no variants"):
            Evidence(keys=[1, 2], real=REAL[:2], variants=torch.zeros(0, D), owner=empty, number=empty)

    def test_one_variant_leaves_diversity_out_with_the_reason(self) -> None:
        e = evidence(HEALTHY[:, :1])
        found = diversity.measure_diversity(e, neighbours_of_real(e.real, 3), 0.1, Resamples(N, 50))
        assert all(isinstance(value, str) and "one variant" in value for value in found.values())

    def test_few_sources_leave_sets_out_with_the_reason(self) -> None:
        e = evidence(HEALTHY[:6], labels=None, holdout=None, real=REAL[:6])
        assert all("6 sources" in str(value) for value in likeness.measure_likeness(e, Resamples(6, 50)).values())

    def test_a_class_with_one_image_says_why_it_has_no_agreement(self) -> None:
        labels = LABELS.clone()
        labels[labels == 3] = 0
        labels[5] = 3
        e = evidence(HEALTHY, labels=labels)
        real = neighbours_of_real(e.real, 10)
        placed = neighbours_of_variants(e, real.distances[:, 2], 10)
        judgement = judge_by_neighbours(labels, real, placed, choose_neighbours(labels))
        rows = drift.describe_classes(e, labels, e.classes, judgement, Resamples(N, 50))
        assert "one image" in rows[3]["reason"]
        assert "agreement" not in rows[3]
        assert all("agreement" in row for row in rows[:3])

    def test_classes_of_one_source_each_leave_a_reason(self) -> None:
        """A judge that has no other image of the class is wrong of every variant, whatever it shows."""
        e = dataclasses.replace(evidence(HEALTHY[:CLASSES], real=REAL[:CLASSES], labels=torch.arange(CLASSES), holdout=None))
        real = neighbours_of_real(e.real, 10)
        placed = neighbours_of_variants(e, real.distances[:, -1], 10)
        assert _judge(e, real, placed, None) is None
        found = measure_all(e, real, placed, None, Resamples(CLASSES, 50))
        for name in ("label_agreement", "label_kappa", "drift/classes"):
            assert found[name] == "every class has one source: no real image of it is left to vote"
        scores = torch.eye(CLASSES)
        assert _judge(e, real, placed, ("a classifier", scores, scores[e.owner])) is not None  # which needs no neighbours

    def test_images_that_are_all_duplicates_leave_a_reason_and_no_nan(self) -> None:
        real = REAL[:1].expand(N, D).clone()
        found = _measure_all(evidence(HEALTHY, real=real, labels=None, holdout=None))
        assert "exact duplicate" in str(found["source_copies"])
        assert "exact duplicate" in str(found["nearest_ratio"])
        figures = [value.value for value in found.values() if isinstance(value, Measure)]
        assert np.isfinite(figures).all()

    def test_uneven_numbers_of_variants(self) -> None:
        e = evidence(HEALTHY)
        kept = torch.ones(N * V, dtype=torch.bool)
        kept[: V - 1] = False  # the first source keeps one
        kept[V : 2 * V] = False  # the second none
        uneven = dataclasses.replace(e, variants=e.variants[kept], owner=e.owner[kept], number=e.number[kept],
                                     variant_statistics=e.variant_statistics[kept])  # fmt: skip
        found = measured(uneven)
        assert np.isfinite([measure.value for measure in found.values()]).all()
        # The sources that have two variants or more count, each beside the real images of its class.
        of_class = [distance.pdist(REAL[c == LABELS].double().numpy()).mean() for c in range(CLASSES)]
        ratios = [distance.pdist(one.double().numpy()).mean() / of_class[c] for one, c in zip(HEALTHY, LABELS.tolist(), strict=True)]
        assert found["variant_distance"].value == pytest.approx(np.mean(ratios[2:]), rel=1e-5)
        assert measured(e)["variant_distance"].value == pytest.approx(np.mean(ratios), rel=1e-5)


def _measure_all(e: Evidence) -> dict[str, Measure | str]:
    real = neighbours_of_real(e.real, 10)
    placed = neighbours_of_variants(e, real.distances[:, 2], 10)
    return measure_all(e, real, placed, None, Resamples(len(e.real), 50))
