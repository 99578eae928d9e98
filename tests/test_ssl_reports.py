"""The report of evaluate.py keeps what was found before, and no run is measured that is not trained to its end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ssl_example import call, ssl, tiny, write_photos

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:::pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]

OPTIONS = {"epochs": 100, "cached": False, "k": 200, "temperature": 0.1, "image_size": 32, "in_memory": True, "workers": 8}


def about(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "checkpoint": "runs/a", "checkpoint_sha256": "c", "train": "train", "test": "test", "train_images": 9, "train_files_sha256": "f",
        "test_files_sha256": "g", "test_labels_sha256": "l", "options": dict(OPTIONS),
    }  # fmt: skip
    options = {name: changes.pop(name) for name in list(changes) if name in OPTIONS}
    return found | {"options": OPTIONS | options} | changes


class TestStartReport:
    def start(self, out: Path, before: dict[str, Any], now: dict[str, Any], *methods: str) -> dict[str, Any]:
        out.write_text(json.dumps(before))
        found: dict[str, Any] = ssl("reports").start_report(out, now, methods)
        return found

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert ssl("reports").start_report(tmp_path / "x.json", about(), ("knn",)) == about()
        assert self.start(tmp_path / "x.json", {"checkpoint": "other"}, about(), "knn") == about()  # no results in it

    def test_results_stay(self, tmp_path: Path) -> None:
        """With the options that they were found with; how fast that was does not matter."""
        now = about(epochs=1, cached=True, workers=0, checkpoint="/home/runs/a", train="elsewhere/train")
        found = self.start(tmp_path / "x.json", about(linear={"accuracy": 0.5}), now, "knn")
        assert found["linear"] == {"accuracy": 0.5}
        assert found["options"] == OPTIONS | {"workers": 0}
        assert found["checkpoint"] == "/home/runs/a"
        assert self.start(tmp_path / "x.json", about(knn={}), about(epochs=1), "linear")["options"]["epochs"] == 1
        assert self.start(tmp_path / "x.json", about(knn={}, linear={}), about(), "linear", "knn") == about(knn={}, linear={})

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"checkpoint_sha256": "d"}, r"x\.json has results \(linear\) of other checkpoint, which would be lost"),
            ({"train_files_sha256": "h"}, "of other training images, "),
            ({"test_labels_sha256": "h"}, "of other test labels, "),
            ({"train_images": 8}, r"of other train_images \(9, now 8\)"),
            ({"image_size": 64}, r"of other image_size \(32, now 64\), which would be lost: give another --out, or delete it"),
        ],
    )
    def test_others_are_not_lost(self, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
        before = about(linear={"accuracy": 0.5})
        with pytest.raises(SystemExit, match=said):
            self.start(tmp_path / "x.json", before, about(**changes), "knn")
        assert json.loads((tmp_path / "x.json").read_text()) == before

    def test_other_options_of_the_same_result(self, tmp_path: Path) -> None:
        """Days of a probe are not replaced by a quick look; those of the other method do not matter."""
        self.start(tmp_path / "x.json", about(linear={}), about(k=20), "linear")
        with pytest.raises(SystemExit, match=r"epochs \(100, now 1\), cached \(False, now True\)"):
            self.start(tmp_path / "x.json", about(linear={}), about(epochs=1, cached=True), "linear", "knn")

    def test_of_an_earlier_version(self, tmp_path: Path) -> None:
        """It has no hashes: what the user wrote is compared."""
        old = {name: value for name, value in about(linear={}).items() if not name.endswith("_sha256")}
        assert "linear" in self.start(tmp_path / "x.json", old, about(), "knn")
        with pytest.raises(SystemExit, match=r"other test \('test', now 'val'\)"):
            self.start(tmp_path / "x.json", old, about(test="val"), "knn")
        del old["options"]["image_size"]
        assert "linear" in self.start(tmp_path / "x.json", old, about(image_size=64), "knn")

    def test_a_file_that_is_no_report(self, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text("{")
        with pytest.raises(SystemExit, match="is no JSON: give another --out, or delete it"):
            ssl("reports").start_report(tmp_path / "x.json", about(), ("knn",))


class TestWriteReport:
    def test_whole_or_not_at_all(self, tmp_path: Path) -> None:
        ssl("reports").write_report(tmp_path / "x.json", {"knn": 1})
        with pytest.raises(TypeError):
            ssl("reports").write_report(tmp_path / "x.json", {"knn": object()})
        assert json.loads((tmp_path / "x.json").read_text()) == {"knn": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run, with its photos in ``train`` and ``test``."""
    root = tmp_path_factory.mktemp("run")
    write_photos(root / "train", 8)
    write_photos(root / "test", 4, seed=1)
    data = (f"data.train={root / 'train'}", f"data.test={root / 'test'}")
    chosen = tiny("simclr", *data, "trainer.epochs=1", "trainer.checkpoint_every=1")
    ssl("train").train(chosen, root / "run", quiet=True)
    return root


class TestScripts:
    def test_k_nn_after_the_linear_probe(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        options = [
            "--train",
            str(run / "train"),
            "--cached",
            "--optimizer",
            "sgd",
            "--epochs",
            "1",
            "--workers",
            "0",
            "--accelerator",
            "cpu",
        ]

        def evaluate(*more: str) -> Any:
            call(monkeypatch, tmp_path, "evaluate", str(run / "run"), *options, "--out", "x.json", *more)
            return json.loads((tmp_path / "x.json").read_text())

        linear = evaluate("--test", str(run / "test"), "--methods", "linear")
        both = evaluate("--test", str(run / "test"), "--methods", "knn")
        assert both == linear | {"knn": both["knn"]}
        with pytest.raises(SystemExit, match="of other test labels, test images"):
            evaluate("--test", str(run / "train"), "--methods", "knn")
        with pytest.raises(SystemExit, match=r"other k \(200, now 3\)"):
            evaluate("--test", str(run / "test"), "--methods", "knn", "--k", "3")
        assert json.loads((tmp_path / "x.json").read_text()) == both

    def test_a_run_that_is_not_trained_to_its_end(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its folder is refused; its checkpoint, by name, is measured."""
        half = tmp_path / "half"
        shutil.copytree(run / "run", half)
        record = json.loads((half / "training.json").read_text())
        data = [
            "--train",
            str(run / "train"),
            "--test",
            str(run / "test"),
            "--methods",
            "knn",
            "--k",
            "3",
            "--workers",
            "0",
            "--accelerator",
            "cpu",
        ]
        for change in (None, record | {"steps": record["steps"] + 1}):
            (half / "training.json").unlink()
            if change is not None:
                (half / "training.json").write_text(json.dumps(change))
            for script, purpose, options in (("evaluate", "evaluate", data), ("segment", "measure", [])):
                said = rf"half is not trained to its end: train it further, or give .*half/last\.ckpt to {purpose} it all the same"
                with pytest.raises(SystemExit, match=said):
                    call(monkeypatch, tmp_path, script, str(half), *options)
            (half / "training.json").touch()
        call(monkeypatch, tmp_path, "evaluate", str(half / "last.ckpt"), *data)
        assert "knn" in json.loads((half / "evaluation.json").read_text())

    def test_truncated_checkpoint_is_called_so(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "last.ckpt").write_bytes((run / "run" / "last.ckpt").read_bytes()[:-500])
        ssl("trained").refuse_untrained(tmp_path, "evaluate")
        with pytest.raises(SystemExit, match="cannot be read: it is truncated"):
            ssl("frozen").load_backbone(tmp_path)

    def test_a_trained_run_of_today(self, run: Path) -> None:
        assert ssl("trained").is_trained(run / "run")
        ssl("trained").refuse_untrained(run / "run", "evaluate")
        assert torch.load(run / "run" / "last.ckpt", weights_only=True)["global_step"] == 2
