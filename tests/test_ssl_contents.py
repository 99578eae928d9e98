"""Which images a run has: what is hashed of every kind of source, and what refuses others of the same names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from ssl_example import call, ssl, tiny, write_photos
from torchvision import datasets

import gentransforms as gt

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:::pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


def describe(name: str, rows: list[int] | None = None) -> dict[str, str]:
    source = ssl("data").open_images(name)
    found: dict[str, str] = ssl("contents").describe_contents(source, torch.arange(len(source)) if rows is None else torch.tensor(rows))
    return found


def write_parquet(path: Path, photos: Path, change: int | None = None, labels: list[int] | None = None, where: str = "") -> str:
    """Write a folder of photos as Parquet, one of them with a pixel changed."""
    cells = []
    for i, file in enumerate(sorted(photos.rglob("*.png"))):
        if i == change:
            with Image.open(file) as image:
                image.putpixel((0, 0), (1, 2, 3))
                image.save(photos.parent / "changed.png")
            file = photos.parent / "changed.png"
        cells.append({"bytes": file.read_bytes(), "path": f"{where}{i}.png"})
    pq.write_table(pa.table({"image": cells, "label": labels or [i % 2 for i in range(len(cells))]}), path)
    return str(path)


class TestDescribeContents:
    def test_folder(self, tmp_path: Path) -> None:
        """Names, sizes and some contents, wherever it is; the path above it and the times of the files say nothing."""
        one, same, other = (str(write_photos(tmp_path / name, 8, seed=seed)) for name, seed in (("a", 0), ("b/c", 0), ("d", 1)))
        os.utime(Path(same) / "class0" / "000.png", (1, 1))
        assert describe(one).keys() == {"labels_sha256", "files_sha256"}
        assert describe(one) == describe(same)
        assert describe(one)["labels_sha256"] == describe(other)["labels_sha256"]
        assert describe(one)["files_sha256"] != describe(other)["files_sha256"]
        assert describe(one, [0, 1]) == describe(same, [0, 1]) != describe(one)
        (Path(same) / "class1" / "001.png").rename(Path(same) / "class1" / "002.png")
        assert describe(one)["files_sha256"] != describe(same)["files_sha256"]

    def test_files_of_one_size(self, tmp_path: Path) -> None:
        """Uncompressed images: their contents tell."""
        for name, value in (("a", 1), ("b", 2)):
            (tmp_path / name).mkdir()
            Image.new("RGB", (8, 8), (value, 0, 0)).save(tmp_path / name / "x.bmp")
        assert describe(str(tmp_path / "a"))["files_sha256"] != describe(str(tmp_path / "b"))["files_sha256"]

    def test_size_of_any_file_among_many(self, tmp_path: Path) -> None:
        """Not all are read, but all sizes are compared."""
        write_photos(tmp_path, 130, size=4)
        before = describe(str(tmp_path))
        with (tmp_path / "class0" / "002.png").open("ab") as file:  # row 1: 64 of 130 are rows 0, 2, 4, …
            file.write(b"x")
        assert describe(str(tmp_path)) != before

    def test_file_that_is_gone(self, tmp_path: Path) -> None:
        source = ssl("data").open_images(str(write_photos(tmp_path, 4)))
        before = ssl("contents").describe_contents(source, torch.arange(4))
        (tmp_path / "class0" / "000.png").unlink()
        assert ssl("contents").describe_contents(source, torch.arange(4)) != before

    def test_parquet(self, tmp_path: Path) -> None:
        """Every image, whatever path stands beside it."""
        photos = write_photos(tmp_path / "photos", 130, size=4)
        one, same, other = (
            write_parquet(tmp_path / f"{i}.parquet", photos, change, where=where)
            for i, (change, where) in enumerate([(None, ""), (None, "/home/"), (77, "")])
        )
        assert describe(one).keys() == {"labels_sha256", "cells_sha256"}
        assert describe(one) == describe(same)
        assert describe(one)["cells_sha256"] != describe(other)["cells_sha256"]
        assert describe(one, [0, 5]) == describe(other, [0, 5])
        labels = write_parquet(tmp_path / "l.parquet", photos, labels=[1] * 130)
        assert {name for name, value in describe(labels).items() if value != describe(one)[name]} == {"labels_sha256"}

    def test_bare_cells(self, tmp_path: Path) -> None:
        photo = next(write_photos(tmp_path / "photos", 1, classes=1).rglob("*.png")).read_bytes()
        pq.write_table(pa.table({"image": [{"bytes": photo, "path": None}], "label": [0]}), tmp_path / "struct.parquet")
        pq.write_table(pa.table({"image": [photo], "label": [0]}), tmp_path / "bare.parquet")
        assert describe(str(tmp_path / "struct.parquet")) == describe(str(tmp_path / "bare.parquet"))

    @pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
    def test_data_set_in_memory(self, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every pixel of torchvision's CIFAR10 and MNIST."""
        pixels = np.zeros((130, 8, 8, 3), "uint8")

        class CIFAR10:
            classes = ("a", "b")
            targets = (0, 1) * 65

            def __init__(self, root: str, train: bool) -> None:
                self.data = kind(pixels.copy())

            def __len__(self) -> int:
                return 130

            def __getitem__(self, i: int) -> Any:
                return Image.fromarray(np.asarray(self.data[i])), self.targets[i]

        monkeypatch.setattr(datasets, "CIFAR10", CIFAR10)
        before = describe("torchvision:CIFAR10:x")
        assert before.keys() == {"labels_sha256", "pixels_sha256"}
        pixels[77, 0, 0, 0] = 1
        assert describe("torchvision:CIFAR10:elsewhere")["pixels_sha256"] != before["pixels_sha256"]

    def test_other_data_sets(self, tmp_path: Path) -> None:
        """Some of their pixels; ImageFolder's and its like's files."""
        images = [[Image.new("RGB", (4, 4), (value, 0, 0)) for value in values] for values in ((1, 2), (1, 3))]
        hashes = [
            ssl("contents").describe_contents(ssl("data").Source("x", gt.open_source(each), None, [], each), torch.arange(2))
            for each in images
        ]
        assert hashes[0].keys() == {"labels_sha256", "pixels_sha256"}
        assert hashes[0]["pixels_sha256"] != hashes[1]["pixels_sha256"]
        dataset = datasets.ImageFolder(str(write_photos(tmp_path, 4)))
        source = ssl("data").Source("x", gt.open_source(dataset), dataset.targets, dataset.classes, dataset)
        assert ssl("contents").describe_contents(source, torch.arange(4)) == describe(str(tmp_path))
        dataset.root = str(tmp_path / "class0")  # a subclass may name another folder than that of its images
        assert "files_sha256" in ssl("contents").describe_contents(source, torch.arange(4))


class TestNameOtherContents:
    def test_only_what_both_have(self) -> None:
        name = ssl("contents").name_other_contents
        assert name({"files_sha256": "a", "labels_sha256": "l"}, {"files_sha256": "b", "labels_sha256": "l"}) == ["files_sha256"]
        assert name({"files_sha256": "a"}, {"cells_sha256": "b"}) == []
        assert name({}, {"cells_sha256": "b"}) == []


class TestResume:
    """A run is continued with its own images."""

    def start(self, photos: str, out: Path, facts: dict[str, str] | None = None) -> None:
        settings = tiny("simclr", f"data.train={photos}")
        source = ssl("data").open_images(photos)
        contents = ssl("contents").describe_contents(source, torch.arange(len(source)))
        ssl("train").open_run(out, settings, source.keys, contents if facts is None else facts)
        (out / "last.ckpt").write_bytes(b"it has trained for some steps")

    def test_same_keys_other_images(self, tmp_path: Path) -> None:
        write_photos(tmp_path / "photos", 8)
        files = [write_parquet(tmp_path / f"{i}.parquet", tmp_path / "photos", change) for i, change in enumerate([None, 5])]
        labels = write_parquet(tmp_path / "labels.parquet", tmp_path / "photos", labels=[0] * 8)
        self.start(files[0], tmp_path / "run")
        for other, said in ((files[1], "images"), (labels, "labels")):
            with pytest.raises(SystemExit, match=f"holds a run with other {said}: choose"):
                self.start(other, tmp_path / "run")
        Path(files[0]).rename(tmp_path / "moved.parquet")
        self.start(str(tmp_path / "moved.parquet"), tmp_path / "run")

    def test_a_run_of_an_earlier_version(self, tmp_path: Path) -> None:
        """Nothing is known of its images; from now on it is."""
        photos = write_photos(tmp_path / "photos", 8)
        one, other = (write_parquet(tmp_path / f"{i}.parquet", photos, i) for i in (0, 1))
        self.start(one, tmp_path / "run", {})
        assert "cells_sha256" not in ssl("shared").read_record(tmp_path / "run")
        self.start(one, tmp_path / "run")
        with pytest.raises(SystemExit, match="holds a run with other images: choose"):
            self.start(other, tmp_path / "run")


class TestResultsOfOthers:
    """reproduce.py neither shows nor averages results of other images."""

    options = ("data.image_size=20", "data.in_memory=true")

    def plan(self, photos: str, arm: str = "baseline", seed: int = 0, *more: str) -> Any:
        return ("simclr", arm, seed, tiny("simclr", f"data.train={photos}", *self.options, *more))

    def finish(self, out: Path, photos: str, arm: str = "baseline", seed: int = 0, old: bool = False) -> Path:
        """Write what a finished run leaves; an `old` one has a hash of the keys alone."""
        source = ssl("data").open_images(photos)
        folder = out / f"simclr-{arm}-seed{seed}"
        contents = {} if old else ssl("contents").describe_contents(source, torch.arange(len(source)))
        keys = ssl("contents").hash_keys(source.keys)
        settings = ssl("shared").flatten(self.plan(photos, arm, seed)[3])
        ssl("shared").write_record(folder, settings | {"keys_sha256": keys} | contents)
        (folder / "result.json").write_text("{}")
        return folder

    def refuse(self, plan: list[Any], out: Path) -> None:
        sources = [ssl("data").open_images(settings.data.train) for *_, settings in plan]
        ssl("comparable").refuse_other_images(plan, sources, out)

    @pytest.mark.parametrize(("arm", "seed"), [("baseline", 0), ("baseline", 1), ("icgan", 0)], ids=["itself", "a seed", "an arm"])
    @pytest.mark.parametrize("count", [8, 10], ids=["others", "more"])
    def test_finished_on_others(self, count: int, arm: str, seed: int, tmp_path: Path) -> None:
        one, other = (str(write_photos(tmp_path / name, n, seed=i)) for i, (name, n) in enumerate([("one", 8), ("other", count)]))
        self.finish(tmp_path / "out", one)
        self.refuse([self.plan(one, arm, seed)], tmp_path / "out")
        with pytest.raises(SystemExit, match=r"seed0 was trained on other (labels and )?images than those of '.*other': the"):
            self.refuse([self.plan(one, arm, seed), self.plan(other, arm, seed)], tmp_path / "out")

    def test_begun_on_others(self, tmp_path: Path) -> None:
        """Before anything runs; a folder without a checkpoint begins anew."""
        one, other = (str(write_photos(tmp_path / name, 8, seed=i)) for i, name in enumerate(["one", "other"]))
        folder = self.finish(tmp_path / "out", one)
        (folder / "result.json").unlink()
        self.refuse([self.plan(other)], tmp_path / "out")
        (folder / "last.ckpt").touch()
        with pytest.raises(SystemExit, match="was trained on other images than"):
            self.refuse([self.plan(other)], tmp_path / "out")

    def test_results_of_an_earlier_version(self, tmp_path: Path) -> None:
        """Their keys are compared, which do not tell others of the same names."""
        one, other, more = (str(write_photos(tmp_path / name, n, seed=i)) for i, (name, n) in enumerate([("a", 8), ("b", 8), ("c", 10)]))
        self.finish(tmp_path / "out", one, old=True)
        self.refuse([self.plan(one), self.plan(other, seed=1)], tmp_path / "out")
        with pytest.raises(SystemExit, match="was trained on other images than"):
            self.refuse([self.plan(more, seed=1)], tmp_path / "out")

    @pytest.mark.parametrize("old", [True, False])
    def test_an_image_that_cannot_be_read(self, old: bool, tmp_path: Path) -> None:
        """In memory the keys of a run are those of the images that can."""
        photos = write_photos(tmp_path / "photos", 8)
        (photos / "class0" / "002.png").write_bytes(b"no image")
        folder = self.finish(tmp_path / "out", str(photos), old=old)
        record = ssl("shared").read_record(folder)
        keys = [key for key in ssl("data").open_images(str(photos)).keys if key != "class0/002.png"]
        ssl("shared").write_record(folder, record | {"keys_sha256": ssl("contents").hash_keys(keys)})
        self.refuse([self.plan(str(photos))], tmp_path / "out")
        if old:
            with pytest.raises(SystemExit, match="was trained on other images than"):
                self.refuse([self.plan(str(photos), "baseline", 0, "data.in_memory=false")], tmp_path / "out")

    def test_other_test_images(self, tmp_path: Path) -> None:
        """Under the same names, with the same labels."""
        photos, held = (ssl("data").open_images(str(write_photos(tmp_path / f"{seed}", 8, seed=seed))) for seed in (0, 1))
        describe = ssl("reproduce").describe_test
        one, other = ({"test_images": 8} | describe(source) for source in (photos, held))
        assert describe(photos, 4) != describe(photos)
        out = tmp_path / "out" / "simclr-baseline-seed0"
        out.mkdir(parents=True)
        run = {"method": "simclr", "generator": "baseline", "seed": 0}

        def finish(measure: dict[str, Any]) -> None:
            (out / "result.json").write_text(json.dumps(run | {"measure": measure}))

        refuse = ssl("reproduce").refuse_other_measures
        finish(one)
        refuse([one], ["a"], out.parent)
        with pytest.raises(SystemExit, match="seed0 was evaluated with different test images: choose"):
            refuse([other], ["a"], out.parent)
        with pytest.raises(SystemExit, match="a and b would be evaluated with different test images: the runs"):
            refuse([one, other], ["a", "b"], out.parent)
        finish({"test_images": 8})  # of an earlier version: unknown
        refuse([other], ["a"], out.parent)
        finish({})
        with pytest.raises(SystemExit, match="different test_images"):
            refuse([other], ["a"], out.parent)

    def test_arms_on_others_are_named_below_the_table(self, tmp_path: Path) -> None:
        """Such results may have come into one folder before."""
        photos = [str(write_photos(tmp_path / f"{seed}", 8, seed=seed)) for seed in (0, 1)]
        runs = [
            {"method": "simclr", "generator": arm, "seed": 0, "folder": str(self.finish(tmp_path / "out", images, arm))}
            for arm, images in zip(("baseline", "icgan"), photos, strict=True)
        ]
        assert "icgan differs from baseline not in its views alone: images." in ssl("comparable").name_mixed_settings(runs, "baseline")

    def test_script(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The command that had a result is refused when its images have changed, and says what to do."""
        write_photos(tmp_path / "photos", 8)
        write_photos(tmp_path / "test", 4, seed=5)
        self.finish(tmp_path / "runs", str(tmp_path / "photos"))
        monkeypatch.chdir(tmp_path)
        write_photos(tmp_path / "photos", 8, seed=3)
        configs = tmp_path / "configs"
        configs.mkdir()
        record = ssl("shared").read_record(tmp_path / "runs" / "simclr-baseline-seed0")
        given = [f"{name}={json.dumps(value)}" for name, value in record.items() if not name.endswith("_sha256") and name != "seed"]
        (configs / "simclr-baseline.yaml").write_text("seed: 0\n")
        before = (tmp_path / "runs" / "simclr-baseline-seed0" / "result.json").read_bytes()
        monkeypatch.setattr(ssl("reproduce"), "finished", lambda out: [])
        with pytest.raises(SystemExit, match=r"was trained on other images .*choose another --out, or give data\.train the images that it"):
            call(
                monkeypatch, tmp_path, "reproduce", "--configs", "configs", "--methods", "simclr", "--generators", "baseline", "--out",
                "runs", *given, "data.test=test",
            )  # fmt: skip
        assert (tmp_path / "runs" / "simclr-baseline-seed0" / "result.json").read_bytes() == before


class TestOnlineGenerator:
    """An online run has one generator, though its name may come to stand for another."""

    def test_resume(self, tmp_path: Path) -> None:
        open_run, settings = ssl("train").open_run, tiny("simclr", "data.train=x", config="folder/simclr-online")
        open_run(tmp_path, settings, [1], {"generator_fingerprint": "a"})
        (tmp_path / "last.ckpt").touch()
        with pytest.raises(SystemExit, match="holds a run with other generator: choose"):
            open_run(tmp_path, settings, [1], {"generator_fingerprint": "b"})
        open_run(tmp_path, settings, [1], {"generator_fingerprint": "a"})
        ssl("shared").write_record(tmp_path, ssl("shared").flatten(settings) | {"keys_sha256": ssl("contents").hash_keys([1])})
        open_run(tmp_path, settings, [1], {"generator_fingerprint": "b"})  # of an earlier version
        assert ssl("shared").read_record(tmp_path)["generator_fingerprint"] == "b"

    def test_seeds_of_an_arm_have_the_same(self, tmp_path: Path) -> None:
        refuse = ssl("comparable").refuse_another_bank
        ssl("shared").write_record(tmp_path / "run", {"generator_fingerprint": "a"})
        ssl("shared").write_record(tmp_path / "old", {"seed": 1})
        refuse([tmp_path / "run", tmp_path / "old"], {"generator_fingerprint": "a"})
        with pytest.raises(SystemExit, match=r"another generator than that which is there now: .* name the generator that it had"):
            refuse([tmp_path / "old", tmp_path / "run"], {"generator_fingerprint": "b"})
