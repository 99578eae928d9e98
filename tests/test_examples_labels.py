"""What both recipes share about labelled images: labels of every kind, and rows that are evenly spaced."""

from __future__ import annotations

import importlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from icgan_example import example
from PIL import Image
from ssl_example import call, ssl, tiny
from torchvision import datasets

pytestmark = [pytest.mark.filterwarnings("ignore:::lightning"), pytest.mark.filterwarnings("ignore:::pytorch_lightning")]


def common(name: str) -> Any:
    ssl("shared")  # puts examples/ on the path
    return importlib.import_module(f"common.{name}")


def write_labels(path: Path, labels: list[Any], names: list[str] | None = None) -> str:
    """Write a Parquet file of small images, a grey of its own for each."""
    cells = []
    for i in range(len(labels)):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (7 * i % 256,) * 3).save(buffer, "png")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    table = pa.table({"image": cells, "label": labels})
    if names is not None:
        about = {"info": {"features": {"label": {"names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, path)
    return str(path)


class TestNumberLabels:
    @pytest.mark.parametrize(
        ("labels", "names", "expected", "classes"),
        [
            ([1, 0, 1], None, [1, 0, 1], ["0", "1"]),
            ([1, 0], ["a", "b", "c"], [1, 0], ["a", "b", "c"]),
            (["dog", "cat", "dog"], None, [1, 0, 1], ["cat", "dog"]),
            ([1.0, 0.0], None, [1, 0], ["0", "1"]),
            ([True, False], None, [1, 0], ["0", "1"]),
            (np.array([2, 0], "uint8"), None, [2, 0], ["0", "1", "2"]),
            (torch.tensor([1, 1]), ["a", "b"], [1, 1], ["a", "b"]),
            ([torch.tensor(1), np.int64(0)], None, [1, 0], ["0", "1"]),
        ],
    )
    def test_kinds(self, labels: Any, names: list[str] | None, expected: list[int], classes: list[str]) -> None:
        found, found_classes = common("labels").number_labels("x", labels, names)
        assert (found.tolist(), found.dtype, found_classes) == (expected, torch.int64, classes)

    @pytest.mark.parametrize("labels", [[-1, -1], [None, None], [float("nan")], [-1.0, None], np.array([-1, -1]), []])
    def test_none_at_all(self, labels: Any) -> None:
        """Names of classes, such as those of STL10's unlabelled images, say nothing then."""
        assert common("labels").number_labels("x", labels, ["a", "b"]) == (None, [])

    @pytest.mark.parametrize(
        ("labels", "names", "said"),
        [
            ([0, None, -1], None, r"'x': row 1 has no label, and so 2 of the 3 images: give each of them one, or leave them out"),
            (["cat", None], None, "'x': row 1 has no label"),
            ([0, -2], None, "'x': row 1 has the label -2: expected a class for each image: a whole number from 0 on, or its name"),
            ([0, 0.5], None, "row 1 has the label 0.5"),
            (["cat", 1], None, "row 0 has the label 'cat'"),
            ([[1, 2]], None, r"row 0 has the label \[1, 2\]"),
            ([0, 2], ["a", "b"], "row 1 has the label 2, and there are names for 2 classes"),
        ],
    )
    def test_refused(self, labels: Any, names: list[str] | None, said: str) -> None:
        with pytest.raises(SystemExit, match=said):
            common("labels").number_labels("x", labels, names)

    def test_images_with_names(self) -> None:
        with pytest.raises(SystemExit, match=r"'x': image 'b\.png' has no label"):
            common("labels").number_labels("x", [0, None], None, ["a.png", "b.png"])


class TestFindLabelColumn:
    @pytest.mark.parametrize(
        ("columns", "expected"),
        [
            ({"label": pa.int64(), "labels": pa.list_(pa.string())}, "label"), ({"labels": pa.list_(pa.int64()), "cls": pa.int64()}, "cls"),
            ({"fine_label": pa.int64(), "cls": pa.string()}, "fine_label"), ({"labels": pa.string()}, "labels"),
            ({"class": pa.int64()}, None),
        ],
    )  # fmt: skip
    def test_first_those_of_earlier_versions(self, columns: dict[str, Any], expected: str | None) -> None:
        """A run that has begun would go on with other labels otherwise; several labels of an image are no class."""
        assert common("labels").find_label_column(pa.schema(columns.items())) == expected


class TestSourcesWithOrdinaryLabels:
    """Which used to end in a traceback, some of them at the first step of training."""

    def test_parquet(self, tmp_path: Path) -> None:
        opened, path = ssl("data").open_images, tmp_path / "x.parquet"
        text = opened(write_labels(path, ["cat", "dog"] * 2))
        assert (text.labels.tolist(), text.classes) == ([0, 1, 0, 1], ["cat", "dog"])
        for labels, names in (([-1] * 3, ["a", "b"]), ([-1] * 3, None), ([None] * 3, None)):
            source = opened(write_labels(path, labels, names))
            assert (source.labels, source.classes) == (None, [])
        with pytest.raises(SystemExit, match=r"x\.parquet': row 2 has no label"):
            opened(write_labels(path, [0, 1, None]))

    def test_split_without_labels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class STL10(list[Any]):
            classes, labels = ("airplane", "bird"), np.array([-1, -1])

            def __init__(self, root: str, split: str) -> None:
                super().__init__([(Image.new("RGB", (8, 8)), -1)] * 2)

        monkeypatch.setattr(datasets, "STL10", STL10)
        source = ssl("data").open_images("torchvision:STL10:x:unlabeled")
        assert (source.labels, source.classes) == (None, [])
        assert ssl("loading").read_labels(source).tolist() == [-1, -1]
        with pytest.raises(SystemExit, match="'torchvision:STL10:x:unlabeled' has no labels"):
            ssl("data").refuse_other_classes(source, source)
        with pytest.raises(SystemExit, match="has no labels: expected the class of each image"):
            example("images").load_labels("torchvision:STL10:x:unlabeled")

    def test_data_set_whose_targets_are_no_classes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets, "CelebA", lambda root: [(Image.new("RGB", (8, 8)), [0, 1])] * 2)
        with pytest.raises(SystemExit, match=r"row 0 has the label \[0, 1\]: expected a class for each image"):
            ssl("data").open_images("torchvision:CelebA:x")

    def test_icgan(self, tmp_path: Path) -> None:
        load, path = example("images").load_labels, tmp_path / "x.parquet"
        labels, names = load(write_labels(path, ["dog", "cat"]))
        assert (labels.tolist(), names) == ([1, 0], ["cat", "dog"])
        with pytest.raises(SystemExit, match=r"x\.parquet' has no labels: expected the class of each image"):
            load(write_labels(path, [-1, -1]))
        with pytest.raises(SystemExit, match="row 0 has no label"):
            load(write_labels(path, [None, 1]))


class TestWarnOfAbsentClasses:
    turns = torch.arange(10).repeat(500)

    def warn(self, labels: Any, wanted: int) -> None:
        rows = common("rows")
        rows.warn_of_absent_classes(labels, "data.limit", wanted, lambda n: rows.spaced(len(labels), n))

    @pytest.mark.parametrize("wanted", [500, 1000, 20])
    def test_classes_that_take_turns(self, wanted: int) -> None:
        """The number that is named has them all."""
        with pytest.warns(
            UserWarning, match=rf"data\.limit={wanted} has images of only [12] of the 10 classes: .*, has images of all"
        ) as caught:
            self.warn(self.turns, wanted)
        other = int(str(caught[0].message).rpartition("; ")[2].partition(",")[0])
        assert len(self.turns[common("rows").spaced(5000, other)].unique()) == 10
        self.warn(self.turns, other)

    def test_no_number_helps(self) -> None:
        labels = torch.zeros(400, dtype=torch.int64)
        labels[1] = 1
        with pytest.warns(UserWarning, match="only 1 of the 2 classes: .*or some are rare; shuffle the data, of which a bank"):
            self.warn(labels, 100)

    @pytest.mark.parametrize(("labels", "wanted"), [(None, 500), (turns.sort()[0], 500), (turns, 9), (turns, 5000), (turns, 499)])
    def test_nothing_to_say(self, labels: Any, wanted: int) -> None:
        """No labels, a folder sorted by class, fewer images than classes, all of them, a number without a common divisor."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.warn(labels, wanted) if labels is not None else common("rows").warn_of_absent_classes(None, "x", wanted, lambda n: 1 / 0)

    def test_runs(self, tmp_path: Path) -> None:
        """What is trained on, and what is held out; the splits themselves stay as they are."""
        source = ssl("data").open_images(write_labels(tmp_path / "x.parquet", [i % 2 for i in range(40)]))
        warn = ssl("loading").warn_of_lost_classes
        with pytest.warns(UserWarning, match=r"data\.holdout=10 has images of only 1 of the 2 classes"):
            warn(source, tiny("simclr", "data.holdout=10"))
        with pytest.warns(UserWarning, match=r"data\.limit=10 has images of only 1 of the 2 classes"):
            warn(source, tiny("simclr", "data.limit=10"))
        for settings in ([], ["data.holdout=9"], ["data.limit=9"]):
            warn(source, tiny("simclr", *settings))
        assert ssl("data").split_rows(40, None, 10)[1].tolist() == list(range(0, 40, 4))

    def test_scripts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        labels = torch.arange(2).repeat(20)
        with pytest.warns(UserWarning, match="--limit=10 has images of only 1 of the 2 classes"):
            assert example("evaluate").choose_labels(labels, 10).tolist() == [0] * 10
        assert torch.equal(example("evaluate").choose_labels(labels, None), labels)
        photos = write_labels(tmp_path / "x.parquet", labels.tolist())
        monkeypatch.setattr(ssl("evaluate"), "load_backbone", lambda *args: (None, None))
        monkeypatch.setattr(ssl("evaluate"), "hash_checkpoint", lambda path: "c")
        monkeypatch.setattr(ssl("evaluate"), "evaluate", lambda *args: {})
        with pytest.warns(UserWarning, match="--limit=10 has images of only 1"):
            call(monkeypatch, tmp_path, "evaluate", "weights.pth", "--train", photos, "--test", photos, "--limit", "10", "--out", "x.json")


class TestSpaced:
    def test_over_all_rows(self) -> None:
        assert common("rows").spaced(10, 4).tolist() == [0, 2, 5, 7]
        assert common("rows").spaced(3, 4).tolist() == common("rows").spaced(3, None).tolist() == [0, 1, 2]
