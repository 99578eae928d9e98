"""The scripts of examples/icgan say what is known to fail before they train or measure, and keep what is done."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from icgan_example import FOLDER, example
from PIL import Image
from small_generators import tiny_icgan
from torch.utils.tensorboard import SummaryWriter


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (value, value, 255 - value)).save(buffer, "png")
    return buffer.getvalue()


def write_folder(folder: Path, broken: tuple[int, ...] = (), count: int = 12) -> None:
    for i in range(count):
        (folder / str(i % 2)).mkdir(parents=True, exist_ok=True)
        (folder / str(i % 2) / f"{i:02d}.png").write_bytes(b"no image" if i in broken else picture(20 * i))


def call(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
    example(script).main()


def never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("the work began")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images, some of them broken, a judge, and a file called ``file``."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos")
    write_folder(tmp_path / "bad", broken=(3, 8))
    (tmp_path / "file").touch()
    judge = example("classifier").Judge(2, 32, 8, "float32")
    (tmp_path / "judge").mkdir()
    torch.save({"arguments": judge.arguments, "names": ["0", "1"], "weights": judge.state_dict()}, tmp_path / "judge" / "classifier.pt")
    return tmp_path


def test_recipes_share_the_same_names() -> None:
    """In one process, as here, both get the module ``shared`` that was imported first."""
    assert len({(FOLDER.parent / recipe / "shared.py").read_text() for recipe in ("icgan", "ssl")}) == 1


class TestUselessOut:
    """``refuse_unwritable``, and the scripts that ask it first."""

    def test_what_may_become_a_folder(self, tmp_path: Path) -> None:
        refuse, file = example("shared").refuse_unwritable, tmp_path / "file"
        file.touch()
        for fine in (tmp_path, tmp_path / "a" / "b", Path("a/b"), Path()):
            refuse(fine, "--out")
        assert not (tmp_path / "a").exists()
        for wrong in (file, file / "a"):
            with pytest.raises(SystemExit, match=rf"--out {wrong}: {file} is not a folder"):
                refuse(wrong, "--out")
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        with pytest.raises(SystemExit, match="link is not a folder"):
            refuse(tmp_path / "link", "--out")

    @pytest.mark.parametrize(
        ("script", "arguments"),
        [
            ("train", ["--data", "photos"]),
            ("classifier", ["--train", "photos", "--test", "photos"]),
            ("evaluate", ["--judge", "judge", "--train", "photos", "--test", "photos"]),
        ],
    )
    def test_scripts(self, script: str, arguments: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(example(script), "load_images", never)
        with pytest.raises(SystemExit, match="--out file: file is not a folder"):
            call(monkeypatch, script, *arguments, "--out", "file")


class TestClassifier:
    def test_broken_test_images_are_found_before_training(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(example("classifier"), "train_judge", never)
        with pytest.raises(SystemExit, match=r"2 of the 12 images of 'bad' cannot be read: '0/08\.png' \(.*, '1/03\.png' \("):
            call(monkeypatch, "classifier", "--train", "photos", "--test", "bad", "--out", "new")
        assert not (place / "new").exists()

    def test_weights_are_kept_if_the_test_fails(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (place / "judge" / "classifier.json").write_text("{}")  # of the earlier one
        monkeypatch.setattr(example("classifier"), "predict", never)
        with pytest.raises(AssertionError):
            call(monkeypatch, "classifier", "--train", "photos", "--test", "photos", "--out", "judge", "--epochs", "1", "--width", "16")
        assert example("classifier").load_judge("judge").arguments["width"] == 16
        assert not (place / "judge" / "classifier.json").exists()


class TestCurves:
    """Runs of two snapshots each."""

    @pytest.fixture
    def runs(self, place: Path) -> list[str]:
        generator = tiny_icgan()
        for name in ("a", "b"):
            for step in (1, 2):
                folder = place / name / "snapshots" / f"{step:07d}"
                generator.save_pretrained(folder)
                (folder / "training.json").write_text(json.dumps({"step": step, "seconds": 36}))
            torch.save({"seconds": 36.0}, place / name / "encoder.pt")
        return ["--judge", "judge", "--test", "photos", "--variants", "2", "--run", "a=a"]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--run", "c=nosuch", "--out", "x"], "--run nosuch: nosuch does not exist: expected a run"),
            (["--run", "c=photos", "--out", "x"], "--run photos: photos/encoder.pt does not exist: expected a run"),
            (["--out", "file/x"], "--out file/x: folder file: file is not a folder"),
            (["--out", "."], "--out .: expected a path without suffix, such as quality"),
            (["--out", "x", "--losses"], "--losses: a/tensorboard lacks curves"),
        ],
    )
    def test_refused_before_measuring(self, arguments: list[str], said: str, runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(example("curves"), "load_judge", never)
        with pytest.raises(SystemExit) as caught:
            call(monkeypatch, "curves", *runs, *arguments)
        assert said in str(caught.value)

    def test_run_without_snapshots(self, runs: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (place / "c" / "snapshots").mkdir(parents=True)
        (place / "c" / "encoder.pt").touch()
        with pytest.raises(SystemExit, match="c/snapshots is empty: expected a run"):
            call(monkeypatch, "curves", *runs, "--run", "c=c", "--out", "x")

    def test_what_is_measured_is_kept(self, runs: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (place / "b" / "snapshots" / "0000002" / "model.safetensors").write_bytes(b"")
        with pytest.raises(Exception, match=r"model\.safetensors"):
            call(monkeypatch, "curves", *runs, "--run", "b=b", "--out", "figures/x")
        table = json.loads((place / "figures" / "x.json").read_text())
        assert {name: [record["steps"] for record in records] for name, records in table.items()} == {"a": [1, 2], "b": [1]}

    def test_names_with_dots(self, runs: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("encoder/loss", "generator/D", "generator/G", "generator/feature_distance"):
            with SummaryWriter(str(place / "a" / "tensorboard" / name.partition("/")[0])) as writer:
                writer.add_scalar(name, 1.0, 1)
        monkeypatch.setattr(example("curves"), "measure", lambda *args: dict.fromkeys(example("curves").LABELS, 1.0))
        for name in ("draw", "draw_losses"):
            monkeypatch.setattr(example("curves"), name, lambda *args: args[-1].touch())
        for out in ("cv/lr0.3", "cv/lr0.5", "cv/lr1.json"):
            call(monkeypatch, "curves", *runs, "--out", out, "--losses")
        names = {f"{stem}{ending}" for stem in ("lr0.3", "lr0.5", "lr1") for ending in (".json", ".png", "-losses.png")}
        assert {path.name for path in (place / "cv").iterdir()} == names


class TestBrokenImages:
    @pytest.mark.parametrize(("broken", "more"), [((5,), ""), (tuple(range(1, 12)), ", and 6 more")])
    def test_all_are_counted(self, broken: tuple[int, ...], more: str, tmp_path: Path) -> None:
        write_folder(tmp_path, broken)
        with pytest.raises(SystemExit) as caught:
            example("images").load_images(str(tmp_path), 32)
        said = str(caught.value)
        assert said.startswith(f"{len(broken)} of the 12 images of '{tmp_path}' cannot be read: ")
        assert said.count(".png' (") == min(5, len(broken))
        assert said.endswith(f"){more}; repair them, or leave them out")

    def test_limit_counts_what_it_takes(self, tmp_path: Path) -> None:
        write_folder(tmp_path, broken=(0, 1, 2))
        with pytest.raises(SystemExit, match="2 of the 6 images"):  # of 0/00, 0/04, 0/08, 1/01, 1/05, 1/09
            example("images").load_images(str(tmp_path), 32, limit=6)


class TestLabelColumns:
    @pytest.mark.parametrize("column", ["label", "labels", "cls"])
    def test_names_of_the_library(self, column: str, tmp_path: Path) -> None:
        pq.write_table(pa.table({"image": [picture(i) for i in range(3)], column: [1, 0, 1]}), tmp_path / "x.parquet")
        assert example("images").load_labels(str(tmp_path / "x.parquet"))[0].tolist() == [1, 0, 1]

    def test_no_such_column(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"image": [picture(0)], "class": [1], "label": [{"a": 1}]}), tmp_path / "x.parquet")
        said = r"x\.parquet' has no labels among its columns 'image', 'class', 'label': expected one called label, fine_label, labels, cls;"
        with pytest.raises(SystemExit, match=said):
            example("images").load_labels(str(tmp_path / "x.parquet"))

    def test_no_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "x.parquet").write_bytes(b"text")
        with pytest.raises(SystemExit, match=r"x\.parquet: cannot be read as a Parquet file"):
            example("images").load_labels(str(tmp_path / "x.parquet"))

    def test_folder_of_parquet_files(self, tmp_path: Path) -> None:
        for i in range(2):
            table = pa.table({"image": [picture(10 * i), picture(100 + i)], "label": [i, 1]})
            pq.write_table(table, tmp_path / f"train-{i:05d}-of-00002.parquet")
        images = example("images")
        assert images.load_labels(str(tmp_path))[0].tolist() == [0, 1, 1, 1]
        assert images.load_images(str(tmp_path), 32)[:, 0, 0, 0].tolist() == [0, 100, 10, 101]
        pq.write_table(table, tmp_path / "test-00000-of-00001.parquet")
        with pytest.raises(SystemExit, match=r"several splits, such as train-00000-of-00002\.parquet and test-00000-of-00001\.parquet"):
            images.load_labels(str(tmp_path))

    def test_folder_with_a_metadata_file(self, tmp_path: Path) -> None:
        for i in range(2):
            (tmp_path / f"{i}.png").write_bytes(picture(i))
        (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,1\n1.png,0\n")
        assert example("images").load_labels(str(tmp_path))[0].tolist() == [1, 0]
