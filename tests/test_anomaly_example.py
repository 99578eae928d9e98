"""examples/anomaly.py: its scores against closed forms and scikit-learn, and the script in miniature."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from audited import NoisyForAudits, Pool, photos
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

import gentransforms as gt
from gentransforms.audit.encoders import load_encoder

SCRIPT = Path(__file__).parents[1] / "examples" / "anomaly.py"


@pytest.fixture(scope="module")
def anomaly() -> Any:
    spec = importlib.util.spec_from_file_location("anomaly_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save(folder: Path, images: list[tuple[Tensor, int]]) -> None:
    folder.mkdir(parents=True)
    for i, (image, _) in enumerate(images):
        to_pil_image(image).save(folder / f"{i:03d}.png")


class KnowsOnlyRed(NoisyForAudits):
    """Whatever it sees, its variants are as little blue as a red image is."""

    def sample(self, condition: Any, seeds: Tensor) -> Tensor:
        made = super().sample(condition, seeds)
        return torch.cat([made[:, :2], made[:, 2:].clamp(max=0.6)], dim=1)


class TestScores:
    def test_an_image_that_the_generator_cannot_make_is_far_from_its_variants(self, anomaly: Any) -> None:
        images = torch.stack([image for image, _ in photos()]).float() / 255
        blue = torch.tensor([label == 1 for _, label in photos()])
        scores = anomaly.distances_to_variants(KnowsOnlyRed(noise=0.01), load_encoder(Pool(), lambda: None), images, 3, 0)
        assert scores.shape == (len(images),)
        assert scores[blue].min() > scores[~blue].max()
        assert anomaly.auroc(scores, blue) == (1.0, (1.0, 1.0))

    def test_nearest_references(self, anomaly: Any) -> None:
        references = torch.tensor([[0.0], [1.0], [5.0]])
        assert anomaly.distances_to_nearest(torch.tensor([[0.0], [4.0]]), references, 2).tolist() == [0.5, 2.0]

    def test_auroc_and_its_interval(self, anomaly: Any) -> None:
        rng = np.random.default_rng(0)
        is_anomaly = np.arange(400) % 2 == 1
        scores = rng.normal(size=400) + is_anomaly
        area, (low, high) = anomaly.auroc(torch.from_numpy(scores), torch.from_numpy(is_anomaly))
        assert area == pytest.approx(roc_auc_score(is_anomaly, scores))
        # Hanley and McNeil (1982)
        q1, q2, n = area / (2 - area), 2 * area**2 / (1 + area), 200
        error = ((area * (1 - area) + (n - 1) * (q1 - area**2) + (n - 1) * (q2 - area**2)) / n**2) ** 0.5
        assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)
        assert low < area < high

    @pytest.mark.parametrize("name", ["digits", "patches"])
    def test_images_that_scikit_learn_brings_along(self, anomaly: Any, name: str) -> None:
        images = anomaly.bring_along(name, 12, NoisyForAudits())
        assert images.shape == (12, 3, 8, 8)
        assert 0 <= images.min() < images.max() <= 1
        assert images.flatten(1).unique(dim=0).shape[0] == 12
        assert anomaly.bring_along("photos", 12, NoisyForAudits()) is None

    def test_distances_that_are_not_finite_are_refused(self, anomaly: Any) -> None:
        none = anomaly.distances_to_nearest(torch.rand(6, 4), torch.empty(0, 4), 5)
        one = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, float("inf")])
        for scores, count in ((none, 6), (one, 1)):
            with pytest.raises(SystemExit, match=f"{count} of 6 distances are not finite"):
                anomaly.auroc(scores, torch.arange(6) < 3)


class TestClasses:
    @pytest.mark.parametrize(
        ("known", "tested", "left_out", "expected"),
        [
            (["good"], ["broken", "good"], [], {"broken": {"broken"}}),
            (["good"], ["cut", "bent", "good"], [], {"bent": {"bent"}, "cut": {"cut"}, "all of these": {"bent", "cut"}}),
            (["cat", "ship"], ["bird", "cat", "ship"], [], {"bird": {"bird"}}),
            (["cat", "ship"], ["bird", "cat", "ship"], ["ship"], {"ship": {"ship"}}),
            (["2", "10", "9"], ["10", "2"], [], {"2": {"2"}, "10": {"10"}}),
        ],
    )
    def test_anomalies_in_turn(
        self, anomaly: Any, known: list[str], tested: list[str], left_out: list[str], expected: dict[str, set[str]]
    ) -> None:
        turns = anomaly.anomalies_in_turn(known, tested, left_out)
        assert turns == expected
        assert list(turns) == list(expected)

    def test_nothing_normal_to_test_is_refused(self, anomaly: Any) -> None:
        with pytest.raises(SystemExit, match=r"'broken', 'fine', and --train 'good'.*--anomalies"):
            anomaly.anomalies_in_turn(["good"], ["broken", "fine"], [])

    def test_a_class_is_a_name_a_number_or_the_source(self, anomaly: Any, tmp_path: Path) -> None:
        for folder in ("photos/cat", "photos/dog"):
            save(tmp_path / folder, photos(1))
        rows = [{"image": (tmp_path / "photos/cat/000.png").read_bytes(), "label": label} for label in (3, 7)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
        for source, expected, names in (
            ("photos", ["cat", "dog"], ["cat", "dog"]), ("photos/dog", ["dog"], []), ("rows.parquet", ["3", "7"], []),
        ):  # fmt: skip
            images, *found = anomaly.load(str(tmp_path / source), 5, NoisyForAudits())
            assert (len(images), found) == (len(expected), [expected, names])
            assert anomaly.every_class(str(tmp_path / source)) == set(expected)


class TestScript:
    @pytest.fixture
    def run_here(self, anomaly: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(anomaly, "load_encoder", lambda *_: Pool())
        monkeypatch.setattr(anomaly, "distances_to_variants", lambda _, encoder, images, *__: encoder(images).mean(dim=1))
        monkeypatch.setattr(gt, "load_generator", lambda _: NoisyForAudits())
        monkeypatch.setattr(anomaly, "RESAMPLES", 5)

        def run(*arguments: str) -> Any:
            monkeypatch.setattr("sys.argv", ["anomaly.py", "--train", "train", "--test", "test", "--out", "out.json", *arguments])
            anomaly.main()
            return {row["anomaly"]: row for row in json.loads(Path("out.json").read_text())["rows"] if "-NN" in row["score"]}

        return run

    def test_one_normal_class_and_kinds_of_defects(self, run_here: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
        red, blue = photos(24)[::2], photos(24)[1::2]
        for folder, images in (("train/good", red[:8]), ("test/good", red[8:]), ("test/broken", blue[:3]), ("test/cut", blue[3:8])):
            save(Path(folder), images)
        found = run_here()
        assert {name: row["anomalies"] for name, row in found.items()} == {"broken": 3, "cut": 5, "all of these": 8}
        assert all(row["auroc"] == 1 for row in found.values())  # the other defects are not normal images
        assert "the anomalies are the classes that --train lacks: 'broken', 'cut'" in capsys.readouterr().out
        assert {name: row["auroc"] for name, row in run_here("--train", "train/good").items()} == dict.fromkeys(found, 1)
        with pytest.raises(SystemExit, match=r"'good' as the anomaly: 4 tested .* 0 are normal, and 0 references .*'cut', 'good', and"):
            run_here("--left-out", "good")

    def test_classes_are_matched_by_name(self, run_here: Callable[..., Any]) -> None:
        red, blue = photos(32)[::2], photos(32)[1::2]
        for folder, images in (
            ("train/red", red[:8]), ("train/zebra", blue[:8]), ("test/apple", blue[8:12]), ("test/red", red[8:]), ("test/zebra", blue[12:]),
        ):  # fmt: skip
            save(Path(folder), images)
        assert list(run_here()) == ["apple"]
        by_name, by_number = run_here("--left-out", "zebra"), run_here("--left-out", "2")
        assert by_name == by_number
        assert (by_name["zebra"]["anomalies"], by_name["zebra"]["auroc"]) == (4, 1)  # blue is no longer among the references
        with pytest.raises(SystemExit, match="'7' as the anomaly: 0 tested images are of it"):
            run_here("--left-out", "7")

    def test_references_of_some_of_the_classes_change_no_anomalies(self, run_here: Callable[..., Any], tmp_path: Path) -> None:
        """Every second row is of class 0 or 2, and --train has 1 and 3 nevertheless."""
        save(tmp_path / "photos", photos(16))
        files = [file.read_bytes() for file in sorted((tmp_path / "photos").iterdir())]
        pq.write_table(pa.table({"image": files, "label": [i % 4 for i in range(16)]}), tmp_path / "x.parquet")
        options = ["--train", "x.parquet", "--test", "x.parquet"]
        with pytest.warns(UserWarning, match="--references=8: none is of the classes '1', '3', which --train has"):
            found = run_here(*options, "--references", "8")
        assert list(found) == list(run_here(*options)) == ["0", "1", "2", "3"]

    @pytest.mark.slow
    def test_in_miniature(self, tmp_path: Path) -> None:
        for part, seed in (("train", 0), ("test", 1)):
            for i, (image, label) in enumerate(photos(16, seed)):
                folder = tmp_path / part / ("red", "blue")[label]
                folder.mkdir(parents=True, exist_ok=True)
                to_pil_image(image).resize((32, 32)).save(folder / f"{i:03d}.png")
        base = ["--train", "train", "--test", "test", "--variants", "2", "--neighbours", "3", "--out", "figures.json"]
        self.run(tmp_path, *base, "--seeds", "0", "1")
        rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
        assert [(row["anomaly"], row["score"]) for row in rows] == [
            (name, score)
            for name in ("blue", "red")
            for score in ("own variants, seed 0", "own variants, seed 1", "3-NN")
        ]  # fmt: skip
        assert all(0 <= row["low"] <= row["auroc"] <= row["high"] <= 1 for row in rows)
        assert all(row["auroc"] > 0.9 for row in rows if row["score"] == "3-NN")  # red and blue are told apart
        said = self.run(tmp_path, *base, "--anomalies", "digits", "--limit", "8")
        assert "digits" in said
        assert "5-NN" not in said

    def run(self, folder: Path, *arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *arguments], cwd=folder, capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
