"""Measuring features: intervals, k-NN, linear probes, segmentation and similarity, against closed forms and NumPy."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from ssl_example import FOLDER, call, ssl, tiny, write_photos
from torch import Tensor
from torchvision.models import resnet18

from gentransforms.testing import FakeGenerator

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:::pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run, with its photos in ``train`` and ``test``."""
    root = tmp_path_factory.mktemp("run")
    write_photos(root / "train", 24)
    write_photos(root / "test", 12, seed=1)
    chosen = tiny("simclr", f"data.train={root / 'train'}", f"data.test={root / 'test'}", "trainer.epochs=2", "probe.every=1")
    ssl("train").train(chosen, root / "run", quiet=True)
    return root


class TestIntervals:
    @pytest.mark.parametrize(("right", "count"), [(9012, 10000), (5, 10), (1, 3)])
    def test_wilson_solves_its_equation(self, right: int, count: int) -> None:
        """The ends are the shares from which the observed one is 1.96 standard errors away."""
        for end in ssl("probes").wilson(right, count):
            assert abs(right / count - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), rel=1e-6)

    def test_wilson_at_the_ends(self) -> None:
        low, high = ssl("probes").wilson(0, 20)
        assert low == 0.0
        assert high == pytest.approx(1.959964**2 / (20 + 1.959964**2))
        assert ssl("probes").wilson(20, 20)[1] == 1.0

    def test_mean_over_seeds(self) -> None:
        mean, half = ssl("probes").mean_interval([0.90, 0.92, 0.91])
        assert mean == pytest.approx(0.91)
        assert half == pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=1e-6)
        assert ssl("probes").mean_interval([0.5]) == (0.5, None)
        assert ssl("probes").mean_interval([0.4, 0.6])[1] == pytest.approx(12.706 * 0.1, rel=1e-6)

    def test_students_t_covers(self) -> None:
        """In 95 of 100 experiments of so many seeds the interval holds the truth."""
        rng = np.random.default_rng(0)
        for seeds in (2, 3, 5, 11):
            hits = 0
            for _ in range(2000):
                mean, half = ssl("probes").mean_interval(rng.normal(size=seeds).tolist())
                hits += abs(mean) <= half
            assert abs(hits / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


class TestKNN:
    def reference(self, query: np.ndarray, bank: np.ndarray, labels: np.ndarray, classes: int, k: int, temperature: float) -> int:
        """Wu et al. (CVPR 2018), section 3.4: votes exp(cosine / temperature) of the k nearest."""
        cosine = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        votes = np.zeros(classes)
        for i in np.argsort(-cosine)[:k]:
            votes[labels[i]] += np.exp(cosine[i] / temperature)
        return int(votes.argmax())

    @pytest.mark.parametrize("k", [1, 5, 40, 200])
    def test_against_numpy(self, k: int) -> None:
        rng = np.random.default_rng(k)
        bank, queries, labels = rng.normal(size=(60, 4)), rng.normal(size=(30, 4)), rng.integers(0, 3, 60)
        found = ssl("probes").knn(torch.tensor(queries), torch.tensor(bank), torch.tensor(labels), 3, k, 0.1)
        assert found.tolist() == [self.reference(q, bank, labels, 3, min(k, 60), 0.1) for q in queries]


class TestOnlineProbe:
    def test_is_what_the_checkpoint_gives(self, run: Path) -> None:
        """The values logged after the last epoch, computed again from the saved networks."""
        backbone, settings = ssl("frozen").load_backbone(run / "run")
        head = torch.load(run / "run" / "last.ckpt", weights_only=True)["state_dict"]
        sets = [ssl("data").open_images(str(run / name)) for name in ("train", "test")]
        (bank, labels), (queries, expected) = (
            ssl("frozen").extract_features(backbone, [self.batch(source, settings)]) for source in sets
        )  # fmt: skip
        guesses = ssl("probes").knn(queries, bank, labels, 2, settings.probe.k, settings.probe.temperature)
        logged = ssl("learning_curves").scalars(run / "run", "probe/knn")
        assert list(logged.values())[-1] == pytest.approx((guesses == expected).float().mean().item())
        linear = (queries @ head["probe.weight"].T + head["probe.bias"]).argmax(1)
        logged = ssl("learning_curves").scalars(run / "run", "probe/linear")
        assert list(logged.values())[-1] == pytest.approx((linear == expected).float().mean().item())

    def batch(self, source: Any, settings: Any) -> dict[str, Tensor]:
        dataset, rows = ssl("loading").load_into_memory(source, torch.arange(len(source)), settings.data.image_size)
        return dataset.__getitems__(rows.tolist())

    def test_nothing_of_the_labels_reaches_the_backbone(self) -> None:
        module = ssl("methods").METHODS["simclr"](tiny("simclr"), 2)
        module.log = lambda *args, **kwargs: None
        features = module.backbone(torch.rand(4, 3, 16, 16))
        module._watch(features, torch.tensor([0, 1, 0, 1])).backward()
        assert module.probe.weight.grad.abs().sum() > 0
        assert all(p.grad is None for p in module.backbone.parameters())


class TestBackbones:
    @pytest.mark.parametrize(("stem", "side"), [("imagenet", 1), ("cifar", 4)])
    def test_resnet18(self, stem: str, side: int) -> None:
        backbone = ssl("backbones").build_backbone(ssl("config").BackboneSettings(name="resnet18", stem=stem))
        assert backbone.maps(torch.rand(2, 3, 32, 32)).shape == (2, 512, side, side)
        assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, 512)

    @pytest.mark.parametrize("suffix", [".pth", pytest.param(".safetensors", marks=pytest.mark.slow)])
    def test_weights_under_torchvisions_names(self, suffix: str, tmp_path: Path) -> None:
        torch.manual_seed(0)
        theirs = resnet18().eval()
        path = tmp_path / f"w{suffix}"
        save_file(theirs.state_dict(), path) if suffix == ".safetensors" else torch.save(theirs.state_dict(), path)
        images = torch.rand(2, 3, 64, 64)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        expected = {}
        theirs.avgpool.register_forward_hook(lambda module, inputs, output: expected.update(features=output.flatten(1)))
        theirs((images - mean) / std)
        ours, settings = ssl("frozen").load_backbone(path, ssl("config").BackboneSettings(name="resnet18"))
        assert settings is None
        torch.testing.assert_close(ours(images), expected["features"], atol=1e-4, rtol=1e-4)
        with pytest.raises(SystemExit, match="give --backbone"):
            ssl("frozen").load_backbone(path)
        with pytest.raises(SystemExit, match="does not hold the weights of resnet50"):
            ssl("frozen").load_backbone(path, ssl("config").BackboneSettings(name="resnet50"))
        with pytest.raises(SystemExit, match=r"does not come from train\.py"):
            ssl("frozen").load_run(path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(SystemExit, match="cannot be read: it is truncated"):
            ssl("frozen").load_backbone(path)

    def test_missing_or_no_weights(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="no checkpoint"):
            ssl("frozen").load_backbone(tmp_path)
        torch.save([1, 2], tmp_path / "x.pth")
        with pytest.raises(SystemExit, match="holds a list: expected a dictionary"):
            ssl("frozen").load_backbone(tmp_path / "x.pth")
        (tmp_path / "x.ckpt").write_bytes((run / "run" / "last.ckpt").read_bytes()[:5000])
        with pytest.raises(SystemExit, match="cannot be read"):
            ssl("frozen").load_run(tmp_path / "x.ckpt")


class Colours:
    """A stand-in for a backbone: the mean colour, which tells the classes of `write_photos` apart."""

    width = 3

    def __new__(cls) -> Any:
        backbone = ssl("backbones").build_backbone(ssl("config").BackboneSettings(name="small", widths=[4], blocks=[1]))
        backbone.trunk, backbone.width = torch.nn.Identity(), 3
        return backbone.eval().requires_grad_(False)


class TestEvaluate:
    def sources(self, run: Path) -> list[tuple[Any, Tensor]]:
        return [(source, torch.arange(len(source))) for source in (ssl("data").open_images(str(run / n)) for n in ("train", "test"))]

    def options(self, **values: Any) -> Any:
        defaults = {"image_size": 16, "in_memory": True, "workers": 0, "accelerator": "cpu", "batch_size": 8, "epochs": 30, "k": 5}
        return ssl("evaluate").ProbeOptions(**defaults | values)

    @pytest.mark.parametrize(
        "options",
        [
            {"cached": True, "optimizer": "sgd"},
            pytest.param({"optimizer": "sgd", "base_lr": 3.0}, marks=pytest.mark.slow),
            {"optimizer": "sgd", "base_lr": 3.0, "in_memory": False},
            {"base_lr": 300.0},
        ],
        ids=["cached", "memory", "files", "lars"],
    )
    def test_separable_classes(self, options: dict[str, Any], run: Path) -> None:
        found = ssl("evaluate").evaluate(Colours(), *self.sources(run), self.options(**options))
        assert found["linear"]["accuracy"] == found["knn"]["accuracy"] == 1.0
        assert found["linear"]["images"] == 12
        assert found["linear"]["interval"] == [round(1 / (1 + 1.959964**2 / 12), 5), 1.0]

    def test_cached_probe_is_logistic_regression(self) -> None:
        """On noisy features the trained layer comes near the optimum that Newton's method finds."""
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(2000, 3, generator=rng) * torch.tensor([1.0, 5.0, 0.2]) + 3
        y = ((x - 3) @ torch.tensor([1.0, -0.3, 4.0]) + torch.randn(2000, generator=rng) > 0).long()
        evaluate = ssl("evaluate")
        parts = evaluate._standardised([(x, y), (x, y)])
        backbone = Colours()
        accuracy, count = evaluate.linear_probe(
            backbone,
            evaluate.Features(*parts[0]),
            evaluate.Features(*parts[1]),
            2,
            self.options(cached=True, optimizer="sgd", batch_size=256),
        )
        layer = torch.nn.Linear(3, 2)
        solver = torch.optim.LBFGS(layer.parameters(), max_iter=200)

        def loss() -> Tensor:
            solver.zero_grad()
            value = torch.nn.functional.cross_entropy(layer(parts[0][0]), y)
            value.backward()
            return value

        solver.step(loss)
        best = (layer(parts[0][0]).argmax(1) == y).float().mean().item()
        assert count == 2000
        assert accuracy == pytest.approx(best, abs=0.01)

    def test_backbone_stays_as_it_is(self, run: Path) -> None:
        backbone, _ = ssl("frozen").load_backbone(run / "run")
        before = {name: w.clone() for name, w in backbone.state_dict().items()}
        ssl("evaluate").evaluate(backbone, *self.sources(run), self.options(epochs=2))
        assert all(torch.equal(w, before[name]) for name, w in backbone.state_dict().items())
        assert not backbone.training

    def test_same_seed_same_result(self, run: Path) -> None:
        backbone, _ = ssl("frozen").load_backbone(run / "run")
        results = [ssl("evaluate").evaluate(backbone, *self.sources(run), self.options(epochs=3)) for _ in range(2)]
        assert results[0] == results[1]

    @pytest.mark.parametrize("in_memory", [pytest.param(True, marks=pytest.mark.slow), False])
    def test_killed_probe_goes_on(self, in_memory: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Killed in the third of five epochs, it starts again with that one, and its layer is that of an uninterrupted probe."""
        probe, options = ssl("linear_probe"), self.options(epochs=5, in_memory=in_memory)
        (train, rows), (test, test_rows) = self.sources(run)
        whole = [ssl("evaluate")._whole(source, r, options) for source, r in ((train, rows), (test, test_rows))]
        sets = [whole[0] if in_memory else probe.ProbeCrops(train, rows, 16, 0), whole[1]]
        layers, steps, step = [], [], probe.LinearProbe.training_step

        def watched(module: Any, batch: Any, batch_idx: int) -> Tensor:
            if module.batches_done == kill:
                raise RuntimeError("killed")
            steps.append(module.batches_done)
            return step(module, batch, batch_idx)

        monkeypatch.setattr(probe.LinearProbe, "training_step", watched)
        monkeypatch.setattr(
            probe.LinearProbe, "on_test_epoch_end", lambda module: (module.log("accuracy", 0.0), layers.append(module.layer.state_dict()))
        )
        per_epoch, kill = len(train) // 8, None
        probe.linear_probe(Colours(), *sets, 2, options)
        kill, steps = 2 * per_epoch + 1, []
        with pytest.raises(RuntimeError, match="killed"):
            probe.linear_probe(Colours(), *sets, 2, options, (tmp_path / "probe", ""))
        kill, steps = None, []
        probe.linear_probe(Colours(), *sets, 2, options, (tmp_path / "probe", ""))
        assert steps == list(range(2 * per_epoch, 5 * per_epoch))
        assert all(torch.equal(w, layers[1][name]) for name, w in layers[0].items())
        assert per_epoch > 1

        # a finished one has nothing left to do; another backbone, other images or other options begin anew
        other = Colours()
        other.register_buffer("more", torch.ones(1))
        for backbone, images, changed, count in (
            (Colours(), "", {}, 0), (other, "", {}, 5), (other, "", {}, 0), (other, "more", {}, 5), (other, "more", {"base_lr": 0.2}, 5),
        ):  # fmt: skip
            steps = []
            probe.linear_probe(backbone, *sets, 2, replace(options, **changed), (tmp_path / "probe", images))
            assert len(steps) == count * per_epoch

    def test_script_deletes_a_probe_that_is_done_and_no_other(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = ["--train", str(run / "train"), "--test", str(run / "test"), "--epochs", "1", "--accelerator", "cpu", "--out", "x.json"]
        probe = tmp_path / "x-linear" / "last.ckpt"
        probe.parent.mkdir()
        probe.write_bytes(b"half")
        for extra in (["--methods", "knn"], ["--cached"]):
            call(monkeypatch, tmp_path, "evaluate", str(run / "run"), *data, *extra)
            assert probe.exists()
        (tmp_path / "x.json").unlink()  # of another linear probe, which would be lost
        monkeypatch.setattr(ssl("evaluate"), "knn", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(monkeypatch, tmp_path, "evaluate", str(run / "run"), *data)
        assert set(json.loads((tmp_path / "x.json").read_text())) >= {"linear", "train_images"}  # what was found so far
        assert torch.load(probe, weights_only=True)["batches_done"] > 0
        call(monkeypatch, tmp_path, "evaluate", str(run / "run"), *data, "--methods", "linear")
        assert not probe.parent.exists()

    def test_learning_rate_of_the_paper(self) -> None:
        """0.1 per 256 images, 512 on each of 4 devices: 0.8, along a cosine to 0, by LARS without decay."""
        probe = ssl("linear_probe").LinearProbe(Colours(), 10, ssl("linear_probe").ProbeOptions(devices=4))

        class Trainer:
            estimated_stepping_batches = 101

        probe._trainer = Trainer()
        optimizer = probe.configure_optimizers()["optimizer"]
        assert type(optimizer).__name__ == "LARS"
        rates = []
        schedule = probe.configure_optimizers()["lr_scheduler"]["scheduler"]
        for _ in range(101):
            rates.append(schedule.optimizer.param_groups[0]["lr"])
            schedule.optimizer.step()
            schedule.step()
        assert [rates[0], rates[50], rates[100]] == pytest.approx([0.8, 0.4, 0.0], abs=1e-9)
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}
        assert optimizer.param_groups[0].get("scaled", True)

    def test_few_images(self, tmp_path: Path) -> None:
        """A batch is of all images then, and the learning rate is that of its size. The checkpoint is written whole."""
        probe = ssl("linear_probe")
        few = probe.Features(torch.randn(12, 3), torch.arange(12) % 2)
        module, trainer = probe.fit_linear(Colours(), few, 2, self.options(batch_size=512, epochs=2), (tmp_path, ""))
        assert trainer.optimizers[0].param_groups[0]["initial_lr"] == pytest.approx(0.1 * 12 / 256)
        assert module.batches_done == 2
        assert isinstance(trainer.strategy.checkpoint_io, ssl("saving").WholeFiles)

    def test_that_diverges(self) -> None:
        """It gave the accuracy of chance."""
        probe = ssl("linear_probe")
        few = probe.Features(1e20 * torch.randn(12, 3), torch.arange(12) % 2)
        options = self.options(batch_size=12, epochs=9, base_lr=1e38, optimizer="sgd")
        with pytest.raises(
            SystemExit, match=r"the linear probe has diverged, .* lower --base-lr than 1e\+38, or another --optimizer than sgd$"
        ):
            probe.fit_linear(Colours(), few, 2, options)

    def test_crops_depend_on_seed_epoch_and_place_alone(self, run: Path) -> None:
        source, rows = self.sources(run)[0]
        a, b, again = (ssl("linear_probe").ProbeCrops(source, rows, 16, seed)[0, 0]["images"] for seed in (0, 1, 0))
        assert torch.equal(a, again)
        assert not torch.equal(a, b)

    def test_other_classes(self, run: Path, tmp_path: Path) -> None:
        other = ssl("data").open_images(str(write_photos(tmp_path, 6, classes=3)))
        with pytest.raises(SystemExit, match="expected the same, in the same order"):
            ssl("evaluate").evaluate(Colours(), self.sources(run)[0], (other, torch.arange(6)), self.options())

    @pytest.mark.parametrize("extra", [["--cached", "--optimizer", "sgd"], ["--methods", "knn"]])
    def test_script(self, extra: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        data = ["--train", str(run / "train"), "--test", str(run / "test"), "--limit", "20"]
        call(monkeypatch, tmp_path, "evaluate", str(run / "run"), *data, "--epochs", "2", "--out", "x.json", *extra)
        found = json.loads((tmp_path / "x.json").read_text())
        assert found["train_images"] == 20
        assert found["options"]["epochs"] == 2
        assert found["knn"]["images"] == 12
        assert ("linear" in found) == ("knn" not in extra)
        assert "95%" in capsys.readouterr().out

    @pytest.mark.parametrize("wrong", [["--epochs", "0"], ["--k", "x"], ["--batch-size", "-1"], ["--optimizer", "sdg"], ["--limit", "0"]])
    def test_options_of_no_use(
        self, wrong: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            call(monkeypatch, tmp_path, "evaluate", str(run / "run"), "--train", "x", "--test", "x", "--out", "x.json", *wrong)
        assert ended.value.code == 2
        assert f"argument {wrong[0]}" in capsys.readouterr().err
        assert not (tmp_path / "x.json").exists()

    @pytest.mark.parametrize(("train", "epochs"), [("torchvision:Places365:x", 45), ("torchvision:Food101:x", 100), ("photos", 100)])
    def test_epochs_of_the_paper(self, train: str, epochs: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Any] = []
        monkeypatch.setattr(ssl("evaluate"), "open_images", lambda *args: ssl("data").open_images(str(run / "test")))
        monkeypatch.setattr(ssl("evaluate"), "evaluate", lambda backbone, train, test, options, *rest: seen.append(options) or {})
        call(monkeypatch, tmp_path, "evaluate", str(run / "run"), "--train", train, "--test", "x", "--out", "x.json")
        assert [options.epochs for options in seen] == [epochs]


class TestEncoder:
    """A generator's encoder, measured as a backbone is."""

    def test_features_are_the_generators(self) -> None:
        generator = FakeGenerator()
        encoder = ssl("frozen").GeneratorsEncoder(generator)
        images = torch.rand(5, 3, encoder.size, encoder.size)
        expected = next(iter(generator.encode(images).values())).flatten(1).float()
        assert torch.equal(encoder(images), expected)
        assert encoder.width == expected.shape[1]
        assert not any(p.requires_grad for p in encoder.parameters())

    def test_script(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = ["--train", str(run / "train"), "--test", str(run / "test"), "--cached", "--epochs", "1", "--accelerator", "cpu"]
        call(monkeypatch, tmp_path, "evaluate", "encoder:icgan-cifar10-32", *data, "--out", "encoder.json")
        report = json.loads((tmp_path / "encoder.json").read_text())
        assert report["checkpoint"] == "encoder:icgan-cifar10-32"
        assert report["knn"]["accuracy"] == 1.0  # the classes of these photos are two shades of grey
        assert report["knn"]["images"] == report["linear"]["images"] == 12
        with pytest.raises(SystemExit, match="'encoder:nothing'"):
            call(monkeypatch, tmp_path, "evaluate", "encoder:nothing", *data)


@pytest.mark.slow
class TestTwoDevices:
    """On ImageNet the features of all neighbours take minutes: they are made once, and not while other processes wait."""

    def test_linear_probe(self, run: Path, tmp_path: Path) -> None:
        """DDP in two processes on the CPU; the accuracy counts every test image once, and one process writes the report."""
        data = ["--train", str(run / "train"), "--test", str(run / "test")]
        options = "--devices 2 --accelerator cpu --batch-size 2 --epochs 30 --base-lr 1 --optimizer sgd --workers 0 --out two.json"
        command = [sys.executable, str(FOLDER / "evaluate.py"), str(run / "run"), *data, *options.split()]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False, timeout=300)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        assert done.stdout.count("wrote two.json") == 1
        report = json.loads((tmp_path / "two.json").read_text())
        assert report["linear"]["images"] == report["knn"]["images"] == 12
        assert report["linear"]["accuracy"] == 1.0


class TestSimilarity:
    def features(self, *shape: int, seed: int = 0) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def rotation(self, width: int) -> Tensor:
        return torch.linalg.qr(self.features(width, width, seed=9))[0]

    def test_rotations_shifts_and_scales_change_nothing(self) -> None:
        x = self.features(50, 6)
        y = 3 * x @ self.rotation(6) + 5
        assert ssl("similarity").linear_cka(x, y) == pytest.approx(1)
        assert ssl("similarity").procrustes_distance(x, y) == pytest.approx(0, abs=1e-9)

    def test_features_that_have_nothing_in_common(self) -> None:
        """Two columns of a Hadamard matrix each: centred and orthogonal."""
        h = torch.tensor([[1, 1, 1, 1], [-1, 1, -1, 1], [1, -1, -1, 1], [1, 1, -1, -1]], dtype=torch.float64)
        columns = torch.kron(h, torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
        x, y = columns[:, :2], columns[:, 2:]
        assert torch.allclose(x.T @ y, torch.zeros(2, 2, dtype=torch.float64))
        assert ssl("similarity").linear_cka(x, y) == pytest.approx(0, abs=1e-12)
        assert ssl("similarity").procrustes_distance(x, y) == pytest.approx(2)

    def test_one_column_is_the_correlation(self) -> None:
        x, y = self.features(40, 1), self.features(40, 1, seed=1) + self.features(40, 1)
        r = np.corrcoef(x[:, 0], y[:, 0])[0, 1]
        assert ssl("similarity").linear_cka(x, y) == pytest.approx(r**2)
        assert ssl("similarity").procrustes_distance(x, y) == pytest.approx(2 - 2 * abs(r))

    def test_shared_part(self) -> None:
        """Y has half of X's uncorrelated, equally strong columns: CKA 1/sqrt 2, distance 2 - sqrt 2."""
        h = torch.linalg.qr(self.features(64, 9))[0]
        x = (h - h.mean(0))[:, :8]
        x = torch.linalg.qr(x)[0]
        assert ssl("similarity").linear_cka(x, x[:, :4]) == pytest.approx(1 / math.sqrt(2), abs=0.02)
        assert ssl("similarity").procrustes_distance(x, x[:, :4]) == pytest.approx(2 - math.sqrt(2), abs=0.03)

    def test_against_kernels(self) -> None:
        """Kornblith et al. (2019), equations 2 and 3, with the N x N kernels."""
        x, y = self.features(30, 5), self.features(30, 7, seed=1)
        centre = torch.eye(30) - 1 / 30
        k, m = centre.double() @ (x @ x.T) @ centre.double(), centre.double() @ (y @ y.T) @ centre.double()
        expected = (k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()
        assert ssl("similarity").linear_cka(x, y) == pytest.approx(expected.item())

    def test_distance_is_that_of_the_best_rotation(self) -> None:
        x, y = (z - z.mean(0) for z in (self.features(30, 4), self.features(30, 4, seed=1)))
        x, y = x / x.norm(), y / y.norm()
        u, _, v = torch.linalg.svd(y.T @ x)
        assert ssl("similarity").procrustes_distance(x, y) == pytest.approx(((x - y @ u @ v) ** 2).sum().item())
        others = [((x - y @ torch.linalg.qr(self.features(4, 4, seed=s))[0]) ** 2).sum().item() for s in range(50)]
        assert min(others) >= ssl("similarity").procrustes_distance(x, y)

    def test_with_a_generators_encoder(self, run: Path) -> None:
        found = ssl("similarity").compare([run / "run"], FakeGenerator(), ssl("data").open_images(str(run / "test")), 10)
        assert set(found) == {"untrained", str(run / "run")}
        assert all(0 <= v["linear_cka"] <= 1 and 0 <= v["procrustes_distance"] <= 2 for v in found.values())
        with pytest.raises(SystemExit, match="'depth': the encoder gives"):
            ssl("similarity").compare([run / "run"], FakeGenerator(), ssl("data").open_images(str(run / "test")), 10, "depth")

    def test_of_some_images(self, run: Path) -> None:
        """Of these rows, evenly spaced, whatever else there is."""
        compare, rows = ssl("similarity").compare, torch.tensor([0, 1, 2, 3, 4, 6, 8, 9])
        source = ssl("data").open_images(str(run / "test"))
        found = compare([run / "run"], FakeGenerator(), source, 4, rows=rows)
        own, theirs = ssl("similarity").read_features([run / "run"], FakeGenerator(), source, torch.tensor([0, 2, 4, 8]))
        expected = ssl("similarity").linear_cka(own["untrained"], theirs["untrained"])
        assert found["untrained"]["linear_cka"] == pytest.approx(expected, abs=1e-4)
        assert found != compare([run / "run"], FakeGenerator(), source, 4)

    def test_pairs_over_subsets(self) -> None:
        """One column each, so that CKA is the squared correlation: mean and standard deviation over random thirds of the images."""
        names = ("a", "b", "untrained")
        own = {name: self.features(60, 1, seed=i) + self.features(60, 1, seed=9) for i, name in enumerate(names)}
        theirs = dict.fromkeys(names, self.features(60, 1, seed=5) + self.features(60, 1, seed=9))
        pairs = ssl("similarity").compare_pairs(own, theirs, 3)
        order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
        expected = [("a", "b"), ("a", "encoder"), ("b", "encoder"), ("untrained", "encoder")]
        assert [(pair["first"], pair["second"]) for pair in pairs] == expected
        for pair, (first, second) in zip(pairs, expected, strict=True):
            y = own[second] if second in own else theirs[first]
            r = np.array([np.corrcoef(own[first][order[i::3], 0], y[order[i::3], 0])[0, 1] for i in range(3)])
            for measure, values in (("linear_cka", r**2), ("one_minus_cka", 1 - r**2), ("procrustes_distance", 2 - 2 * abs(r))):
                assert pair[measure]["mean"] == pytest.approx(values.mean(), abs=1e-4)
                assert pair[measure]["spread"] == pytest.approx(values.std(ddof=1), abs=1e-4)
        (alone, *_) = ssl("similarity").compare_pairs(own, theirs, 1)
        assert alone["linear_cka"]["spread"] is None
        assert "± " not in ssl("similarity").table([alone])

    def test_subsets_are_of_all_classes_whatever_the_order_of_the_images(self) -> None:
        """Classes in turn, as many as subsets, and two networks that agree on the classes alone."""
        centres = 8 * self.features(4, 6, seed=8).repeat(50, 1)
        own = {name: centres + self.features(200, 6, seed=i) for i, name in enumerate(("a", "b"))}
        ((whole, *_), (parts, *_)) = (ssl("similarity").compare_pairs(own, own, n) for n in (1, 4))
        assert whole["linear_cka"]["mean"] > 0.9
        for measure in ("linear_cka", "debiased_cka"):
            assert parts[measure]["mean"] == pytest.approx(whole[measure]["mean"], abs=0.02)

    def test_debiased_against_kernels(self) -> None:
        """The unbiased HSIC of Song et al. (2012) with the N x N kernels without their diagonals."""
        x, y = self.features(20, 5) + 3, self.features(20, 7, seed=1) + self.features(20, 1)

        def hsic(k: Tensor, m: Tensor) -> Tensor:
            k, m, one, n = k - k.diag().diag(), m - m.diag().diag(), torch.ones(20, dtype=torch.float64), 20
            return (k @ m).trace() + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)

        k, m = x @ x.T, y @ y.T
        assert ssl("similarity").debiased_cka(x, y) == pytest.approx((hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()).item())
        assert ssl("similarity").debiased_cka(x, 3 * x @ self.rotation(5) - 1) == pytest.approx(1)

    def test_few_images_of_unrelated_features(self) -> None:
        pairs = [(self.features(40, 60, seed=i), self.features(40, 60, seed=100 + i)) for i in range(20)]
        plain, debiased = (np.mean([ssl("similarity").__dict__[name](*pair) for pair in pairs]) for name in ("linear_cka", "debiased_cka"))
        assert plain > 0.5
        assert abs(debiased) < 0.02

    def test_script_compares_runs_with_each_other(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(run / "run", tmp_path / "same")
        monkeypatch.setattr(ssl("similarity"), "load_generator", lambda *args: FakeGenerator())
        command = [str(run / "run"), "same", "--generator", "fake", "--data", str(run / "test"), "--out", "x.json", "--subsets"]
        call(monkeypatch, tmp_path, "similarity", *command, "2")
        report = json.loads((tmp_path / "x.json").read_text())
        assert (report["images"], report["subsets"], len(report["pairs"])) == (12, 2, 4)
        same = report["pairs"][0]
        assert (same["first"], same["second"]) == (str(run / "run"), "same")
        assert (same["linear_cka"]["mean"], same["one_minus_cka"]["mean"], same["procrustes_distance"]["mean"]) == (1, 0, 0)
        assert "| 1.000 ± 0.000 | 1.000 ± 0.000 | 0.000 ± 0.000 | 0.000 ± 0.000 |" in capsys.readouterr().out
        with pytest.raises(SystemExit, match="--subsets 4: expected at most 3"):
            call(monkeypatch, tmp_path, "similarity", *command, "4")


class TestSegmentation:
    def test_shapes_are_where_the_masks_say(self) -> None:
        images, masks = ssl("segment").shapes(40, 64, seed=0)
        assert images.shape == (40, 3, 64, 64)
        assert set(masks.unique().tolist()) == {0, 1, 2, 3}
        for image, mask in zip(images.float(), masks, strict=True):
            for kind in mask.unique().tolist():
                # of one colour, but for the noise of 0.1 that is cut off at black and white
                assert image[:, mask == kind].std(dim=1).max() < 0.15 * 255
        discs = (masks == 1).flatten(1).sum(1)
        assert discs.max() < math.pi * (0.25 * 64) ** 2 * 1.05

    def test_mean_iou(self) -> None:
        confusion = torch.tensor([[8, 2, 0], [1, 4, 0], [0, 0, 0]])
        assert ssl("segment").mean_iou(confusion) == pytest.approx((8 / 11 + 4 / 7) / 2)

    def test_a_head_learns_on_frozen_maps(self) -> None:
        """Bright squares on dark ground, seen through a random layer: nearly all of it is found; the layer stays."""
        segment, backbone = ssl("segment"), Colours()
        torch.manual_seed(0)
        backbone.trunk, backbone.width = torch.nn.Conv2d(3, 16, 1).requires_grad_(False), 16
        before = [p.clone() for p in backbone.parameters()]
        images, masks = torch.randint(0, 90, (60, 3, 16, 16), dtype=torch.uint8), torch.zeros(60, 16, 16, dtype=torch.int64)
        for i, (y, x) in enumerate(torch.randint(0, 8, (60, 2)).tolist()):
            images[i, :, y : y + 8, x : x + 8] += 160
            masks[i, y : y + 8, x : x + 8] = 1
        head = segment.train_head(backbone, images[:40], masks[:40], 2, 80, seed=0)
        found = segment.measure(backbone, head, images[40:], masks[40:], 2)
        assert found["mean_iou"] > 0.9
        assert found["interval"][0] <= found["mean_iou"] <= found["interval"][1]
        assert found["images"] == 20
        assert all(torch.equal(a, b) for a, b in zip(before, backbone.parameters(), strict=True))

    def test_ignored_pixels_do_not_count(self) -> None:
        segment = ssl("segment")

        class Always(torch.nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(len(x), 2, *x.shape[2:])

        backbone = Colours()
        masks = torch.ones(2, 8, 8, dtype=torch.int64)
        masks[:, 0] = segment.IGNORED
        found = segment.measure(backbone, Always(), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), masks, 2)
        assert (found["mean_iou"], found["pixel_accuracy"]) == (1.0, 1.0)

    def test_script(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        size = ["--images", "32", "--image-size", "32", "--epochs", "1"]
        call(monkeypatch, tmp_path, "segment", str(run / "run"), *size, "--out", "x.json")
        assert set(json.loads((tmp_path / "x.json").read_text())) == {"pretrained", "untrained"}

    @pytest.mark.parametrize(
        ("data", "said"),
        [("photos", "expected torchvision:VOCSegmentation:ROOT"), ("torchvision:VOCSegmentation:none", "not found or corrupted")],
    )
    def test_no_such_data(self, data: str, said: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(SystemExit, match=said):
            call(monkeypatch, tmp_path, "segment", str(run / "run"), "--data", data)

    def test_real_images(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class VOC(list[Any]):
            def __init__(self, root: str, image_set: str) -> None:
                assert (root, image_set) == ("/data", "val")
                mask = Image.new("L", (30, 20), 0)
                mask.paste(15, (0, 0, 15, 20))
                mask.putpixel((0, 0), 255)
                super().__init__([(Image.new("RGB", (30, 20)), mask)])

        monkeypatch.setattr(ssl("segment").datasets, "VOCSegmentation", VOC)
        images, masks = ssl("segment").voc("torchvision:VOCSegmentation:/data", "val", 60)
        assert images.shape == (1, 3, 60, 60)
        assert set(masks.unique().tolist()) == {0, 15, 255}
        assert (masks[0, :, 29] == 15).all()
        assert (masks[0, :, 30] == 0).all()
