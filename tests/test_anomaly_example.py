"""examples/anomaly.py: its scores against closed forms and scikit-learn, and the script in miniature."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audited import NoisyForAudits, Pool, photos
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

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


class TestScript:
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
            for name in ("class 0", "class 1")
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
