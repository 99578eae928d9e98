"""The experiment as a whole: bank, arms, probes, table and figure in miniature; what is done is skipped."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ssl_example import CONFIGS, FOLDER, TINY, call, ssl, write_photos

from gentransforms.bank.reader import Bank

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:::pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


def record(method: str, generator: str, seed: int, linear: float, knn: float = 0.5, **more: Any) -> dict[str, Any]:
    probes = {
        name: {"accuracy": value, "interval": [value - 0.01, value + 0.01], "images": 100}
        for name, value in (("linear", linear), ("knn", knn))
    }
    return {"method": method, "generator": generator, "seed": seed, "folder": "x", "training": {"steps": 7}} | probes | more


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


class TestTable:
    def test_means_intervals_and_paired_gains(self) -> None:
        runs = [
            record("simclr", "baseline", 0, 0.80), record("simclr", "icgan", 0, 0.83), record("simclr", "baseline", 1, 0.70),
            record("simclr", "icgan", 1, 0.74), record("byol", "icgan", 0, 0.5),
        ]  # fmt: skip
        head, _, baseline, icgan, byol = rows(ssl("reproduce").table(runs))
        assert head == ["method", "generator", "seeds", "linear", "gain", "k-NN", "gain", "steps"]
        # two seeds: Student's t of one degree of freedom, 12.706, times half the difference of two values
        assert baseline[:5] == ["SimCLR", "baseline", "2", "75.00 ± 63.53", ""]
        assert icgan[:5] == ["SimCLR", "icgan", "2", "78.50 ± 57.18", "+3.50 ± 6.35"]
        # one seed: the interval of the test images; and no baseline to gain on
        assert byol[:5] == ["BYOL", "icgan", "1", "50.00 ± 1.00", ""]
        assert byol[7] == "7"

    def test_similarity_with_the_encoder(self) -> None:
        encoder = {"untrained": {"linear_cka": 0.1}, "x": {"linear_cka": 0.25}}
        table = rows(ssl("reproduce").table([record("simclr", "icgan", 0, 0.8, encoder=encoder)]))
        assert (table[0][-1], table[2][-1]) == ("CKA with the encoder", "0.250")


class TestMiniature:
    """The body of `make recipe`, smaller still."""

    def reproduce(self, monkeypatch: pytest.MonkeyPatch, place: Path, *extra: str, seeds: tuple[str, ...] = ("0",)) -> None:
        call(
            monkeypatch, place, "reproduce", "--configs", str(CONFIGS / "cifar10-small"), "--methods", "simclr", "--generators", "baseline",
            "icgan", "--seeds", *seeds, "--make-bank", "icgan-cifar10-32", "--variants", "2", "--encoder", "icgan-cifar10-32",
            "--probe-epochs", "2", "--out", "runs", *TINY, "data.image_size=32", "data.train=toy/train", "data.test=toy/test",
            "generative.bank=bank", "trainer.epochs=2", "optimizer.warmup_epochs=1", "probe.every=1", *extra,
        )  # fmt: skip

    def test_chain(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        place = tmp_path
        call(monkeypatch, place, "miniature", "toy", "--train", "3", "--test", "2")
        assert len(list((place / "toy" / "train").rglob("*.png"))) == 30
        assert len(list((place / "toy" / "test" / "cat").glob("*.png"))) == 2
        assert size_of(next((place / "toy").rglob("*.png"))) == (32, 32)

        self.reproduce(monkeypatch, place)
        results = json.loads((place / "runs" / "results.json").read_text())
        assert [(run["method"], run["generator"], run["seed"]) for run in results] == [("simclr", "baseline", 0), ("simclr", "icgan", 0)]
        assert [run["p"] for run in results] == [0.0, 1.0]
        assert {run["training"]["steps"] for run in results} == {2 * (30 // 4)}  # the same number in both arms
        assert all(run["linear"]["images"] == 20 for run in results)
        assert all(set(run["encoder"]) == {"untrained", run["folder"]} for run in results)
        assert (place / "runs" / "results.md").read_text().strip() in capsys.readouterr().out
        assert size_of(place / "runs" / "curves.png")[0] > 200
        assert len(Bank.open(place / "bank")) == 60

        # what is done is skipped, and a longer command adds to it
        times = {path: path.stat().st_mtime_ns for path in (place / "runs").glob("*/evaluation.json")}
        self.reproduce(monkeypatch, place, seeds=("0", "1"))
        printed = capsys.readouterr().out
        assert "simclr-baseline-seed0" not in printed
        assert "simclr-baseline-seed1" in printed
        assert all(path.stat().st_mtime_ns == time for path, time in times.items())
        assert len(json.loads((place / "runs" / "results.json").read_text())) == 4

        # other settings in the same folder are refused before anything runs
        with pytest.raises(SystemExit, match=r"holds a run with other optimizer\.base_lr"):
            self.reproduce(monkeypatch, place, "optimizer.base_lr=0.9")


class TestReadme:
    """The commands of examples/ssl/README.md."""

    def commands(self, language: str) -> list[list[str]]:
        fences = re.findall(rf"^```{language}\n(.*?)^```$", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        return [shlex.split(line) for block in fences for line in block.splitlines() if line]

    def test_an_hour_in_miniature(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every command for one's own photos, one after the other in one place."""
        write_photos(tmp_path / "photos", 8, size=32)
        write_photos(tmp_path / "photos-test", 4, size=32, seed=1)
        # In tests a command stands in another folder than the repository.
        found = [[str(CONFIGS.parents[2] / word) if word.startswith("examples/") else word for word in c] for c in self.commands("bash")]
        ran = []
        for command in found:
            if command[0] != "python":
                assert command == ["tensorboard", "--logdir", "runs"]
                continue
            script, *arguments = command[1:]
            name = Path(script).stem
            small = ["--epochs", "1"] if name == "evaluate" else [*TINY, "data.image_size=32", "trainer.epochs=1"]
            small += ["--variants", "1"] if name == "make_bank" else []
            call(monkeypatch, tmp_path, name, *arguments, *small)
            ran.append(name)
        assert ran == ["make_bank", "train", "train", "evaluate"]
        assert (tmp_path / "runs" / "icgan" / "evaluation.json").is_file()

    def test_large_commands_name_what_there_is(self) -> None:
        seen = 0
        for command in self.commands("text"):
            words = command[1:] if command[0] == "srun" else command
            if words[0] != "python":
                assert words[0] == "gentransforms"
                continue
            seen += 1
            script = CONFIGS.parents[2] / words[1]
            assert script.is_file()
            for word in words[2:]:
                assert (
                    not word.startswith("--") or f'"{word}"' in script.read_text() or word[2:].replace("-", "_") in ssl("evaluate").FREELY
                ), word
                assert not word.startswith("examples/") or (CONFIGS.parents[2] / word).exists(), word
            overrides = [word for word in words if "=" in word]
            if "--config" in words:
                ssl("config").load_settings(CONFIGS.parents[2] / words[words.index("--config") + 1], overrides)
        assert seen >= 13


class TestSpeed:
    def test_report(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_photos(tmp_path / "photos", 12, size=32)
        options = ["--batch-size", "4", "--steps", "1", "--rounds", "1", "--workers", "0", "--device", "cpu"]
        call(monkeypatch, tmp_path, "speed", "--data", "photos", *options, "--out", "speed.json")
        report = json.loads((tmp_path / "speed.json").read_text())
        assert set(report["seconds per step"]) == {"baseline", "bank", "online", "lightly", "lightly, 0 workers"}
        assert all(value > 0 for value in report["ratios"].values())


class TestCurves:
    def test_later_values_of_a_resumed_run_win(self, tmp_path: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for start, value in ((0, 1.0), (2, 5.0)):
            writer = SummaryWriter(str(tmp_path / "tensorboard"))
            for step in range(start, start + 3):
                writer.add_scalar("x", value + step, step)
            writer.close()
        assert ssl("learning_curves").scalars(tmp_path, "x") == {0: 1, 1: 2, 2: 7, 3: 8, 4: 9}
        assert ssl("learning_curves").scalars(tmp_path, "y") == {}
