"""Corrupted test images against NumPy and PIL, and the table of a run's accuracies on them."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ssl_example import FOLDER, call, ssl, tiny, write_photos
from torch import Tensor

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:::pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]
NAMES = ("noise", "blur", "contrast", "brightness", "JPEG", "pixelate")


class TestCorrupt:
    def images(self, count: int = 4, size: int = 32) -> Tensor:
        """Smooth photos with some texture, away from black and white."""
        rng = torch.Generator().manual_seed(0)
        coarse = torch.rand(count, 3, 4, 4, generator=rng)
        smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
        return ((0.25 + 0.4 * smooth + 0.1 * torch.rand(count, 3, size, size, generator=rng)) * 255).clamp(20, 200).to(torch.uint8)

    def corrupt(self, images: Tensor, name: str, strength: int, **options: Any) -> np.ndarray:
        out = ssl("corrupted_images").corrupt(images, name, strength, **options)
        assert (out.shape, out.dtype) == (images.shape, torch.uint8)
        return out.numpy().astype(float)

    @pytest.mark.parametrize("name", NAMES)
    def test_stronger_is_further_away(self, name: str) -> None:
        images = self.images()
        away = [((self.corrupt(images, name, s) - images.numpy()) ** 2).mean() for s in (1, 2, 3, 4, 5)]
        assert away[0] > 0
        assert away == sorted(away)
        assert set(ssl("corrupted_images").CORRUPTIONS) == set(NAMES)

    def test_noise(self) -> None:
        grey = torch.full((3, 3, 64, 64), 128, dtype=torch.uint8)
        out = self.corrupt(grey, "noise", 4, rows=torch.tensor([5, 9, 2])) - 128
        assert out.std() == pytest.approx(math.sqrt((0.08 * 255) ** 2 + 1 / 12), rel=0.03)
        assert abs(out.mean()) < 0.6
        # An image's own, wherever it stands in whatever batch; another seed, strength or row has other noise.
        assert np.array_equal(self.corrupt(grey[:1], "noise", 4, rows=torch.tensor([2])) - 128, out[2:])
        others = [{"seed": 1, "rows": torch.tensor([2])}, {"rows": torch.tensor([3])}]
        for other in (*(self.corrupt(grey[:1], "noise", 4, **o) - 128 for o in others), self.corrupt(grey[:1], "noise", 5) - 128):
            assert abs(np.corrcoef(other.ravel(), out[2].ravel())[0, 1]) < 0.05

    @pytest.mark.parametrize("size", [32, 64])
    def test_blur_spreads_a_point(self, size: int) -> None:
        point = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        point[..., size // 2, :] = 255
        line = self.corrupt(point, "blur", 5)[0, 0, :, 0]
        variance = (line * (np.arange(size) - size // 2) ** 2).sum() / line.sum()
        assert math.sqrt(variance) == pytest.approx(1.2 * size / 32, rel=0.03)

    def test_contrast_and_brightness(self) -> None:
        images = self.images()
        x = images.numpy().astype(float)
        mean = x.mean(axis=(1, 2, 3), keepdims=True)
        assert abs(self.corrupt(images, "contrast", 2) - (mean + 0.5 * (x - mean))).max() <= 0.51
        assert abs(self.corrupt(images, "brightness", 5) - np.minimum(x + 0.3 * 255, 255)).max() <= 0.51

    def test_jpeg(self) -> None:
        images = self.images(2)
        for image, out in zip(images, self.corrupt(images, "JPEG", 5), strict=True):
            file = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=20)
            expected = np.asarray(Image.open(file)).transpose(2, 0, 1)
            assert np.array_equal(out, expected)

    def test_pixelate(self) -> None:
        images = self.images(2)
        blocks = images.numpy().reshape(2, 3, 16, 2, 16, 2).mean(axis=(3, 5))
        assert abs(self.corrupt(images, "pixelate", 4) - blocks.repeat(2, axis=2).repeat(2, axis=3)).max() <= 0.51

    @pytest.mark.parametrize(("name", "strength"), [("snow", 1), ("blur", 0), ("blur", 6)])
    def test_unknown(self, name: str, strength: int) -> None:
        with pytest.raises(ValueError, match=rf"name='{name}', strength={strength}: expected one of noise, .* and a strength of 1 to 5"):
            self.corrupt(self.images(1), name, strength)


class TestReadme:
    def test_strengths_are_those_of_the_page(self) -> None:
        text = (FOLDER / "README.md").read_text(encoding="utf-8")
        for name, strengths in ssl("corrupted_images").CORRUPTIONS.items():
            (row,) = re.findall(rf"^\| {name} \|(.*)\|$", text, re.MULTILINE)
            assert [float(number) for number in re.findall(r"\d+(?:\.\d+)?", row)][:5] == strengths


def record(arm: str, seed: int, linear: float, drop: float = 0.1) -> dict[str, Any]:
    accuracy: dict[str, Any] = {name: {p: [linear - drop] * 4 + [linear - 2 * drop] for p in ("linear", "knn")} for name in NAMES}
    accuracy["clean"] = {"linear": linear, "knn": linear}
    return {"method": "simclr", "arm": arm, "seed": seed, "accuracy": accuracy, "measure": {"test_images": 100}}


class TestTable:
    def rows(self, runs: list[dict[str, Any]]) -> list[list[str]]:
        text = ssl("corruptions").table(runs)
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]

    def test_means_intervals_and_paired_gains(self) -> None:
        runs = [record("icgan", 1, 0.84), record("baseline", 0, 0.80), record("icgan", 0, 0.83), record("baseline", 1, 0.70)]
        rows = self.rows(runs)
        assert len(rows) == 2 * 4  # linear layer and k-NN
        head, _, baseline, icgan = rows[:4]
        assert head == ["method", "arm", "seeds", "clean", *NAMES, "all corruptions", "gain"]
        # two seeds: Student's t of one degree of freedom, 12.706, times half the difference of two values
        assert baseline == ["SimCLR", "baseline", "2", "75.00 ± 63.53", *["63.00 ± 63.53"] * 7, ""]
        assert icgan[3:5] == ["83.50 ± 6.35", "71.50 ± 6.35"]
        assert icgan[-1] == "+8.50 ± 69.88"

    def test_gain_of_a_single_seed_has_the_interval_of_two_independent_runs(self) -> None:
        rows = self.rows([record("baseline", 0, 0.5, drop=0.0), record("icgan", 0, 0.6, drop=0.0)])
        halves = [np.diff(ssl("probes").wilson(right, 100))[0] / 2 for right in (50, 60)]
        assert rows[3][-1] == f"+10.00 ± {100 * np.hypot(*halves):.2f}"

    def test_single_seed_has_the_interval_of_the_test_images(self) -> None:
        (row,) = self.rows([record("baseline", 0, 0.5, drop=0.0)])[2:3]
        assert row[3:11] == [f"50.00 ± {100 * 1.959964 / 2 / math.sqrt(100 + 1.959964**2):.2f}"] * 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run and a copy of it, as if it were the other arm's."""
    root = tmp_path_factory.mktemp("place")
    write_photos(root / "train", 12)
    write_photos(root / "test", 8, seed=1)
    chosen = tiny("simclr", f"data.train={root / 'train'}", f"data.test={root / 'test'}", "trainer.epochs=1", "probe.every=100")
    ssl("train").train(chosen, root / "simclr-baseline-seed0", quiet=True)
    shutil.copytree(root / "simclr-baseline-seed0", root / "simclr-icgan-seed0")
    return root


class TestScript:
    def test_runs_of_two_arms(self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        runs, options = ["simclr-baseline-seed0", "simclr-icgan-seed0"], ["--probe-epochs", "2", "--out", "report"]
        call(monkeypatch, place, "corruptions", *runs, *options)
        report = json.loads((place / "report" / "corruptions.json").read_text())
        assert [(run["run"], run["method"], run["arm"], run["seed"]) for run in report] == [
            (str(place / name), "simclr", arm, 0) for name, arm in zip(runs, ("baseline", "icgan"), strict=True)
        ]
        assert report[0]["accuracy"] == report[1]["accuracy"]
        assert {len(report[0]["accuracy"][name][probe]) for name in NAMES for probe in ("linear", "knn")} == {5}
        assert "| SimCLR | icgan | 1 |" in capsys.readouterr().out
        assert "+0.00 ± " in (place / "report" / "corruptions.md").read_text()

        # on clean images it is what evaluate.py finds
        backbone, settings = ssl("frozen").load_run(place / runs[0])
        sets = [(source, torch.arange(len(source))) for source in (ssl("data").open_images(str(place / n)) for n in ("train", "test"))]
        options_of_probe = ssl("linear_probe").ProbeOptions(
            epochs=2, cached=True, optimizer="sgd", image_size=16, in_memory=True, workers=0, accelerator="cpu", k=settings.probe.k
        )
        expected = ssl("evaluate").evaluate(backbone, *sets, options_of_probe)
        assert report[0]["accuracy"]["clean"] == {probe: expected[probe]["accuracy"] for probe in ("linear", "knn")}

        # what is done is not done again, and what was measured otherwise is not mixed with it
        monkeypatch.setattr(ssl("corruptions"), "evaluate_run", lambda *args: 1 / 0)
        call(monkeypatch, place, "corruptions", *runs, *options)
        with pytest.raises(SystemExit, match=r"measured otherwise .* probe_epochs \(2, now 3\): choose another --out"):
            call(monkeypatch, place, "corruptions", *runs, "--probe-epochs", "3", "--out", "report")

    def test_other_images_and_other_runs_are_not_taken_for_those_evaluated(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        evaluated: list[str] = []
        accuracy = record("baseline", 0, 0.5)["accuracy"]
        monkeypatch.setattr(ssl("corruptions"), "evaluate_run", lambda folder, *rest: evaluated.append(str(folder)) or accuracy)
        run = "simclr-baseline-seed0"
        for folder in ("again", "other"):
            shutil.copytree(place / run, place / folder / run)
        write_photos(place / "like-train", 12, seed=2)  # the same names and labels, other images
        write_photos(place / "like-test", 8, seed=3)
        call(monkeypatch, place, "corruptions", f"again/{run}", "--out", "own")
        for what, word in (("train", "training"), ("test", "test")):
            with pytest.raises(SystemExit, match=rf"otherwise than again/{run} would be, {what} \('[^(]*, {word} images: choose another"):
                call(monkeypatch, place, "corruptions", f"again/{run}", "--out", "own", f"--{what}", f"like-{what}")
        call(monkeypatch, place, "corruptions", f"other/{run}", "--out", "own")  # a copy is the same
        assert evaluated == [f"again/{run}"]

        content = torch.load(place / run / "last.ckpt", weights_only=True)
        content["state_dict"]["probe.bias"] += 1
        torch.save(content, place / "other" / run / "last.ckpt")
        with pytest.raises(SystemExit, match=rf"has {run} from another folder, .*again/{run}: choose another --out for other/{run}"):
            call(monkeypatch, place, "corruptions", f"other/{run}", "--out", "own")
        torch.save(content, place / "again" / run / "last.ckpt")
        call(monkeypatch, place, "corruptions", f"again/{run}", "--out", "own")
        assert evaluated == [f"again/{run}"] * 2
        assert "trained again since" in capsys.readouterr().out
        assert len(json.loads((place / "own" / "corruptions.json").read_text())) == 1

    def test_runs_that_are_not_trained_to_the_end_are_left_out(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        evaluated: list[str] = []
        accuracy = record("baseline", 0, 0.5)["accuracy"]
        monkeypatch.setattr(ssl("corruptions"), "evaluate_run", lambda folder, *rest: evaluated.append(folder.name) or accuracy)
        half = place / "simclr-half-seed0"
        shutil.copytree(place / "simclr-baseline-seed0", half)
        (half / "training.json").unlink()
        call(monkeypatch, place, "corruptions", half.name, "simclr-baseline-seed0", "--out", "some")
        assert evaluated == ["simclr-baseline-seed0"]
        assert "left out, since not trained to the end: simclr-half-seed0" in capsys.readouterr().out
        with pytest.raises(SystemExit, match="none of the runs is trained to its end"):
            call(monkeypatch, place, "corruptions", half.name, "--out", "some")
        unlike = ["--generator", "icgan-cifar10-32", "--data", "test", "--out", "similarity.json"]
        with pytest.raises(SystemExit, match=r"simclr-half-seed0 is not trained to its end: give its \.ckpt"):
            call(monkeypatch, place, "similarity", half.name, *unlike)

    def test_what_another_command_adds_meanwhile_stays(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        options = ["--probe-epochs", "2", "--out", "both"]
        accuracy = record("baseline", 0, 0.5)["accuracy"]
        inner: list[list[str]] = [["simclr-icgan-seed0", *options], ["simclr-icgan-seed0", "--probe-epochs", "3", "--out", "mixed"]]

        def evaluate(folder: Path, *rest: Any) -> Any:
            if folder.name == "simclr-baseline-seed0":
                call(monkeypatch, place, "corruptions", *inner.pop(0))
            return accuracy

        monkeypatch.setattr(ssl("corruptions"), "evaluate_run", evaluate)
        call(monkeypatch, place, "corruptions", "simclr-baseline-seed0", *options)
        arms = [run["arm"] for run in json.loads((place / "both" / "corruptions.json").read_text())]
        assert sorted(arms) == ["baseline", "icgan"]
        assert "| SimCLR | icgan | 1 |" in (place / "both" / "corruptions.md").read_text()
        with pytest.raises(SystemExit, match=r"was given runs meanwhile that were measured otherwise .*probe_epochs \(3, now 2\)"):
            call(monkeypatch, place, "corruptions", "simclr-baseline-seed0", "--probe-epochs", "2", "--out", "mixed")
        assert [run["arm"] for run in json.loads((place / "mixed" / "corruptions.json").read_text())] == ["icgan"]
