"""Where the images of a bank come from: folders, Parquet files, map-style data sets, and the choice among them."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from bank_sources import OneByOne, read
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset, default_collate
from torchvision import tv_tensors
from torchvision.datasets import CIFAR10, FakeData, ImageFolder
from torchvision.transforms import v2

from gentransforms.bank.generate.run import generate_bank
from gentransforms.bank.reader import Bank
from gentransforms.errors import ConfigError, SourceError
from gentransforms.sources import contents, map_style, open_source, parquet_rows
from gentransforms.sources.base import ImageSource, SourceSample
from gentransforms.sources.folder import ImageFolderSource
from gentransforms.sources.keyed import with_keys
from gentransforms.sources.map_style import MapStyleSource
from gentransforms.sources.parquet import ParquetSource
from gentransforms.sources.split_files import choose_shards
from gentransforms.testing import FakeGenerator

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10" / "train.parquet"


def pixels(seed: int, height: int = 6, width: int = 8) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), numpy.uint8)


def picture(seed: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels(seed))


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


def tensor(seed: int) -> torch.Tensor:
    return torch.from_numpy(pixels(seed)).permute(2, 0, 1)


def mask_array(classes: list[list[int]], dtype: Any = numpy.uint8) -> Any:
    """The classes again and again, in the size of the pictures."""
    return numpy.resize(numpy.array(classes, dtype), (6, 8))


def mask_png(classes: list[list[int]]) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(mask_array(classes)).save(file, "PNG")
    return file.getvalue()


def fill(root: Path, *names: str) -> Path:
    """Images whose seeds are their places in `names`."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(seed))
    return root


def parquet(path: Path, rows_per_group: int = 1 << 20, metadata: Any = None, **columns: Any) -> Path:
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": metadata}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


class TestImageFolder:
    """Keys are the relative paths, labels the class folders."""

    NAMES = ("b/2.png", "b/10.png", "a/x.jpg", "a-b/y.webp", "a/sub/z.png", "a/sub-2/z.png")

    def test_order_keys_and_labels_are_torchvisions(self, tmp_path: Path) -> None:
        reference = ImageFolder(fill(tmp_path, *self.NAMES))
        source = ImageFolderSource(tmp_path)
        assert source.keys == [os.path.relpath(path, tmp_path) for path, _ in reference.samples]
        assert source.key_type == "str"
        assert source.inputs == ("labels",)
        for i, (image, label) in enumerate(reference):
            sample = read(source, i)
            assert sample.inputs == {"labels": label}
            assert torch.equal(sample.image, torch.from_numpy(numpy.array(image)).permute(2, 0, 1))

    def test_labels_without_reading(self, tmp_path: Path) -> None:
        source = ImageFolderSource(fill(tmp_path / "classes", *self.NAMES))
        assert source.labels == [sample.inputs["labels"] for sample in source.read_range(0, 6)]  # type: ignore[union-attr]
        assert source.classes == ["a", "a-b", "b"]
        assert (ImageFolderSource(fill(tmp_path / "flat", "x.png")).labels, source.select([]).labels) == (None, source.labels)
        (fill(tmp_path / "file", "a.png", "b.png") / "metadata.csv").write_text("file_name,label\na.png,7\nb.png,\n")
        source = ImageFolderSource(tmp_path / "file")
        assert (source.labels, source.classes) == ([7, None], [])

    def test_labels_count_only_folders_with_images(self, tmp_path: Path) -> None:
        reference = ImageFolder(fill(tmp_path, "b/x.png", "d/x.png"))
        before = ImageFolderSource(tmp_path)
        (tmp_path / "a-bank" / "data").mkdir(parents=True)
        (tmp_path / "a-bank" / "bank.json").touch()
        (tmp_path / "c").mkdir()
        source = ImageFolderSource(tmp_path)
        assert [read(source, i).inputs["labels"] for i in range(2)] == reference.targets == [0, 1]
        assert source.description == before.description

    def test_decides_tells_one_numbering_from_another(self, tmp_path: Path) -> None:
        def decides(*names: str) -> Any:
            folder = tmp_path / "-".join(names).replace("/", "_")
            return ImageFolderSource(fill(folder, *names)).description["decides"]

        assert decides("a/x.png", "b/x.png") == {"kind": "image folder", "folders": "418ec209b0f4719b"}
        assert decides("b/x.png", "a/x.png", "a/y.png") == decides("a/x.png", "b/x.png") != decides("a/x.png", "c/x.png")
        source = ImageFolderSource(tmp_path / "a_x.png-b_x.png")
        assert source.select(["prompts"]).description["decides"] == {"kind": "image folder"}
        assert "folders" in source.select(["labels"]).description["decides"]
        assert "folders" in source.description["decides"]
        assert decides("x.png") == {"kind": "image folder"}

    def test_no_labels_where_an_image_is_in_no_class(self, tmp_path: Path) -> None:
        source = ImageFolderSource(fill(tmp_path, "a/x.png", "y.png"))
        assert source.keys == ["y.png", "a/x.png"]
        assert source.inputs == ()
        assert read(source, 0).inputs == {}

    def test_a_stray_image_beside_class_folders_is_told(self, tmp_path: Path) -> None:
        fill(tmp_path, *(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(5)), "preview.png")
        with pytest.warns(UserWarning, match=r"1 of 11 images are in no class folder, such as 'preview\.png', so no image has a label"):
            assert ImageFolderSource(tmp_path).inputs == ()
        (tmp_path / "preview.png").rename(tmp_path / "other.png")
        fill(tmp_path, "second.png")  # too many to be strays
        assert ImageFolderSource(tmp_path).inputs == ()

    def test_what_is_skipped(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.png", ".hidden.png", ".git/b.png", "c.PNG", "png", "d.png.txt", "e.jpg/f.tiff")
        fill(tmp_path, ".DS_Store", "__MACOSX/._a.png", "__MACOSX/a.png", "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "e.jpg/@eaDir/x.jpg")
        assert ImageFolderSource(tmp_path).keys == ["a.png", "c.PNG", "e.jpg/f.tiff"]

    def test_links(self, tmp_path: Path) -> None:
        fill(tmp_path / "images", "a/x.png", "b/y.png")
        fill(tmp_path / "elsewhere", "z.png")
        (tmp_path / "images" / "a" / "above").symlink_to(tmp_path / "images")
        (tmp_path / "images" / "a" / "beside").symlink_to(tmp_path / "images" / "b")
        (tmp_path / "images" / "b" / "beside").symlink_to(tmp_path / "images" / "a")
        (tmp_path / "images" / "c").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "images" / "d.png").symlink_to(tmp_path / "nowhere")
        (tmp_path / "images" / "e").symlink_to("e")
        source = ImageFolderSource(tmp_path / "images")
        assert source.keys == ["d.png", "a/x.png", "a/beside/y.png", "b/y.png", "b/beside/x.png", "c/z.png"]
        with pytest.raises(SourceError, match="No such file"):
            read(source, 0)

    def test_damaged_files_are_found_when_read(self, tmp_path: Path) -> None:
        fill(tmp_path, "good.png")
        (tmp_path / "cut.png").write_bytes(png(0)[:60])
        (tmp_path / "text.jpg").write_text("text")
        (tmp_path / "zero.jpg").touch()
        source = ImageFolderSource(tmp_path)
        reasons = {}
        for i in (0, 2, 3):
            with pytest.raises(SourceError) as raised:
                read(source, i)
            reasons[source.keys[i]] = str(raised.value).partition(":")[0]
        assert torch.equal(read(source, 1).image, tensor(0))
        assert reasons == {
            "cut.png": "truncated",
            "text.jpg": "not an image, or of a kind that cannot be read",
            "zero.jpg": "the file is empty",
        }

    @pytest.mark.parametrize("open_it", [ImageFolderSource, lambda root: open_source(ImageFolder(root))], ids=["folder", "object"])
    def test_a_folder_that_is_gone_is_no_failed_source(self, open_it: Any, tmp_path: Path) -> None:
        root = fill(tmp_path / "photos", "a/x.png", "a/y.png", "b/z.png")
        source = open_it(root)
        (root / "a" / "x.png").unlink()
        with pytest.raises(SourceError, match="No such file or directory"):
            read(source, 0)
        for change in (lambda: root.rename(tmp_path / "away"), root.mkdir):  # gone, and unmounted
            change()
            with pytest.raises(FileNotFoundError, match="the folder of the images is gone, or nothing is in it"):
                read(source, 1)

    def test_a_disk_that_fails_is_no_failed_source(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_path: Path) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        source = ImageFolderSource(fill(tmp_path, "a.png"))
        monkeypatch.setattr(Path, "read_bytes", fail)
        with pytest.raises(OSError, match="Input/output error"):
            read(source, 0)

    def test_names_in_any_script(self, tmp_path: Path) -> None:
        assert ImageFolderSource(fill(tmp_path, "é/猫.png", "a b/#1.png")).keys == ["a b/#1.png", "é/猫.png"]

    def test_names_that_are_no_text(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.png")
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(png(0))
        with pytest.raises(ConfigError, match="is not Unicode text: rename the file"):
            ImageFolderSource(tmp_path)

    def test_no_images(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").touch()
        with pytest.raises(ConfigError, match=r"no images in this folder or its subfolders \(looked for .*\.webp\)"):
            ImageFolderSource(tmp_path)

    def test_formats_that_cannot_be_read_are_told(self, tmp_path: Path) -> None:
        fill(tmp_path, "a/x.png", "a/y.HEIC", "b/z.heic", "b/z.cr2", "notes.txt", ".hidden/q.heic")
        with pytest.warns(UserWarning, match=r"2 \.heic, 1 \.cr2 cannot be read .*'a/y\.HEIC': convert to JPEG or PNG"):
            source = open_source(tmp_path)
        assert source.keys == ["a/x.png"]
        (tmp_path / "a" / "x.png").unlink()
        with pytest.raises(ConfigError, match=r"no images in this folder .*: 2 \.heic, 1 \.cr2 cannot be read"):
            open_source(tmp_path)

    def test_a_folder_of_splits_is_refused(self, tmp_path: Path) -> None:
        fill(tmp_path, "train/cat/x.png", "val/cat/y.png")
        with pytest.raises(ConfigError, match=r"holds the splits 'train', 'val': give the folder of one of them, such as .*train"):
            open_source(tmp_path)
        assert open_source(tmp_path / "train").keys == ["cat/x.png"]
        fill(tmp_path, "car/z.png")
        assert len(open_source(tmp_path)) == 3  # classes, one of which is called train

    @pytest.mark.parametrize(
        "names",
        [
            ("Train", "Test"), ("training_set", "test_set"), ("train", "val", "extra"), ("TRAIN", "VALID"), ("train2017", "val2017"),
            ("trainset", "testset"), ("TrainingSet", "TestSet"), ("images-train", "images-test"), ("train", "unlabeled"),
            ("train", "val", "new"), ("test_images", "train_images"), ("1_train", "2_test"), ("train_val", "test"),
            ("seg_train", "seg_test"), ("seg_train", "seg_test", "seg_pred"), ("asl_alphabet_train", "asl_alphabet_test"),
            ("imagenette2-train", "imagenette2-val"), ("DIV2K_train_HR", "DIV2K_valid_HR"), ("trainA", "trainB", "testA", "testB"),
            ("cars_train_val", "cars_test2012"), ("CarsTrain", "CarsTest", "CarsExtra"), ("x-train", "x-dev", "other"),
        ],
        ids="-".join,
    )  # fmt: skip
    @pytest.mark.parametrize("wrapper", ["", "data/", "a/train/"])
    def test_folders_of_splits_by_many_names(self, wrapper: str, names: tuple[str, ...], tmp_path: Path) -> None:
        root = fill(tmp_path, *(f"{wrapper}{name}/{kind}/x.png" for name in names for kind in ("cat", "dog")))
        shown = ", ".join(f"'{name}'" for name in sorted(names))
        with pytest.raises(
            ConfigError, match=rf"{wrapper.rstrip('/')}: holds the splits {shown}: give the folder of one of them, such as "
        ):
            open_source(root)

    @pytest.mark.parametrize(
        "keys",
        [
            ("bus/front/x.png", "train/front/x.png"), ("car/x.png", "train/cat/x.png", "val/cat/y.png"),
            ("evaluate/x.png", "testify/y.png"),
            ("1/x.png", "train/y.png"), ("data/x.png", "train/y.png"),
            ("bus/train/x.png", "car/test/y.png"), ("1/a.png", "2/b.png"), ("extra/x.png", "new/x.png"), ("data/x.png", "images/y.png"),
            ("test tube/x.png", "train/y.png"), ("train/x.png",),
            ("dev_board/x.png", "test_tube/y.png", "train_station/z.png"), ("freight_train/x.png", "passenger_train/y.png"),
            ("bus/x.png", "test_track/y.png", "train_track/z.png"), ("old_train/x.png", "train/y.png"), ("Dev_A/x.png", "Val_B/y.png"),
            ("seg_pred/x.png", "seg_train/y.png"),
        ],
        ids=str,
    )  # fmt: skip
    def test_classes_that_look_like_splits(self, keys: tuple[str, ...], tmp_path: Path) -> None:
        source = open_source(fill(tmp_path, *keys))
        assert source.keys == list(keys)
        assert source.inputs == ("labels",)

    def test_splits_in_class_folders_are_refused(self, tmp_path: Path) -> None:
        fill(tmp_path, *(f"{kind}/{part}/0.png" for kind in ("bottle", "cable") for part in ("train/good", "test/broken", "ground_truth")))
        with pytest.raises(
            ConfigError, match=r"each folder in it holds splits, such as 'test' and 'train' in 'bottle': .* list the images"
        ):
            open_source(tmp_path)

    def test_splits_by_longer_names_in_class_folders_are_refused(self, tmp_path: Path) -> None:
        fill(tmp_path, *(f"{kind}/{kind}_{part}/0.png" for kind in ("cat", "dog") for part in ("train", "test")))
        with pytest.raises(ConfigError, match=r"each folder in it holds splits, such as 'cat_test' and 'cat_train' in 'cat': "):
            open_source(tmp_path)

    @pytest.mark.parametrize("name", ["Train", "seg_train", "imagenette2-train"])
    def test_the_folder_of_one_split_around_classes_is_told(self, name: str, tmp_path: Path) -> None:
        fill(tmp_path, f"{name}/cat/x.png", f"{name}/dog/y.png")
        with pytest.warns(UserWarning, match=rf"all images are in the folder '{name}', and so have the same label: .*, give .*{name}'$"):
            source = open_source(tmp_path)
        assert (
            source.keys
            == [f"{name}/cat/x.png", f"{name}/dog/y.png"]
            == [os.path.relpath(path, tmp_path) for path, _ in ImageFolder(tmp_path).samples]
        )
        assert open_source(tmp_path / name).class_names("labels") == ["cat", "dog"]

    def test_white_level(self, tmp_path: Path) -> None:
        PIL.Image.fromarray(numpy.full((4, 4), 4095, numpy.uint16)).save(tmp_path / "a.png")
        source = open_source(tmp_path, white_level=4095)
        assert read(source, 0).image.unique().tolist() == [255]
        assert source.description["decides"] == {"kind": "image folder", "white_level": 4095}
        for wrong in (0, -1, "255", True):
            with pytest.raises(ConfigError, match=r"white_level=.*: expected a positive number"):
                open_source(tmp_path, white_level=wrong)  # type: ignore[arg-type]

    def test_different_ranges_of_floats_in_one_folder(self, tmp_path: Path) -> None:
        """The scale of an image of floats is chosen by its values; that two images got different ones is told, once."""
        for name, top in (("a", 1.0), ("b", 1.01), ("c", 200.0), ("d", 210.0)):
            PIL.Image.fromarray(numpy.linspace(0, top, 20, dtype=numpy.float32).reshape(4, 5)).save(tmp_path / f"{name}.tif")
        source = open_source(tmp_path)
        assert (read(source, 0).image.int() - read(source, 1).image.int()).abs().max() <= 2
        with pytest.warns(UserWarning, match="of one source are scaled from different ranges, 0 to 1 and 0 to 255, .*pass white_level="):
            read(source, 2)
        read(source, 3)
        named = open_source(tmp_path, white_level=255)
        assert [read(named, i).image.max().item() for i in range(4)] == [1, 1, 200, 210]
        assert [read(open_source(tmp_path), 2 * i).image.max().item() for i in range(2)] == [255, 200]

    def test_listing_looks_at_no_single_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(tmp_path, *(f"{i % 3}/{i}.png" for i in range(60)))
        looked = []
        originals = os.stat, os.lstat
        monkeypatch.setattr(os, "stat", lambda *a, **k: (looked.append(a), originals[0](*a, **k))[1])
        monkeypatch.setattr(os, "lstat", lambda *a, **k: (looked.append(a), originals[1](*a, **k))[1])
        assert len(ImageFolderSource(tmp_path)) == 60
        assert not [path for (path, *_) in looked if str(path).endswith(".png")]

    def test_pickles(self, tmp_path: Path) -> None:
        source = pickle.loads(pickle.dumps(ImageFolderSource(fill(tmp_path, "a/x.png", "b/y.png"))))
        assert source.keys == ["a/x.png", "b/y.png"]
        assert read(source, 1).inputs == {"labels": 1}

    def test_description_is_json(self, tmp_path: Path) -> None:
        described = ImageFolderSource(str(fill(tmp_path, "a.png"))).description
        assert json.loads(json.dumps(described)) == {"kind": "image folder", "path": str(tmp_path), "decides": {"kind": "image folder"}}


class TestMetadataFile:
    """The file of Hugging Face's imagefolder convention."""

    ROWS = (
        {"file_name": "images/b.png", "label": 7, "text": "a bird", "mask": "masks/b.png"},
        {"file_name": "./images/a.png", "label": 3, "text": "an ape", "mask": "masks/a.png"},
    )

    def folder(self, root: Path, kind: str, rows: Any = ROWS) -> Path:
        fill(root, "images/a.png", "images/b.png", "images/unlisted.png")
        (root / "masks").mkdir()
        (root / "masks" / "a.png").write_bytes(mask_png([[1, 2]]))
        (root / "masks" / "b.png").write_bytes(mask_png([[3, 4]]))
        path = root / f"metadata.{kind}"
        if kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
        elif kind == "csv":
            path.write_text("\n".join(",".join(map(str, values)) for values in (rows[0], *(row.values() for row in rows))) + "\n")
        else:
            pq.write_table(pa.Table.from_pylist(list(rows)), path)
        return root

    @pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
    def test_images_and_inputs(self, kind: str, tmp_path: Path) -> None:
        source = open_source(self.folder(tmp_path, kind))
        assert source.keys == ["images/a.png", "images/b.png"]
        assert set(source.inputs) == {"labels", "prompts", "masks"}
        sample = read(source, 1)
        assert torch.equal(sample.image, tensor(1))
        assert {**sample.inputs, "masks": sample.inputs["masks"][:1, :2].tolist()} == {"labels": 7, "prompts": "a bird", "masks": [[3, 4]]}
        assert source.description["metadata"] == f"metadata.{kind}"

    @pytest.mark.parametrize("kind", ["jsonl", "csv"])
    def test_columns(self, kind: str, tmp_path: Path) -> None:
        rows = [{"path": "images/a.png", "title": "an ape", "class": 5}]
        source = open_source(self.folder(tmp_path, kind, rows), image_column="path", columns={"prompts": "title", "labels": "class"})
        assert read(source, 0).inputs == {"prompts": "an ape", "labels": 5}
        columns = {"prompts": "title", "labels": "class"}
        assert source.description["decides"] == {"kind": "image folder", "image_column": "path", "columns": columns}
        assert source.select(["labels"]).description["decides"]["columns"] == {"labels": "class"}
        assert source.description["decides"]["columns"] == columns

    @pytest.mark.parametrize("text", ["file_name,text\na.png,\xe9\n", '{"file_name": "a.png", "text": "\xe9"}\n'])
    def test_byte_order_mark_and_accents(self, text: str, tmp_path: Path) -> None:
        fill(tmp_path, "a.png")
        (tmp_path / ("metadata.jsonl" if text.startswith("{") else "metadata.csv")).write_text(text, encoding="utf-8-sig")
        assert read(open_source(tmp_path), 0).inputs == {"prompts": "\xe9"}

    def test_values_that_are_missing_or_of_another_kind(self, tmp_path: Path) -> None:
        rows = [{"file_name": "images/a.png", "label": "ape", "text": "an ape"}, {"file_name": "images/b.png", "label": "bird"}]
        source = open_source(self.folder(tmp_path, "jsonl", rows))
        assert source.inputs == ("prompts",)  # labels are integers
        assert read(source, 0).inputs == {"prompts": "an ape"}
        with pytest.raises(SourceError, match="prompts: missing for this image"):
            read(source, 1)
        assert read(source.select([]), 1).inputs == {}

    def test_mask_that_cannot_be_read(self, tmp_path: Path) -> None:
        source = open_source(self.folder(tmp_path, "csv"))
        (tmp_path / "masks" / "a.png").unlink()
        with pytest.raises(SourceError, match="masks: No such file"):
            read(source, 0)
        assert read(source, 1).inputs["labels"] == 7

    @pytest.mark.parametrize(
        ("name", "text", "columns"),
        [
            ("csv", "camera,date\nX,2020\n", "has 'camera', 'date', and"),
            ("csv", "camera;date\nX;2020\n", "has 'camera;date', and"),
            ("csv", "", "is empty, and"),
            ("jsonl", '{"camera": "X", "places": ["a.png"]}\n{"file_name": "a.png"}\n', "has 'camera', 'places', and"),
        ],
    )
    def test_a_file_without_names_is_another(self, name: str, text: str, columns: str, tmp_path: Path) -> None:
        fill(tmp_path, "a.png")
        (tmp_path / f"metadata.{name}").write_text(text)
        with pytest.warns(UserWarning, match=rf"metadata\.{name}: {columns} no column 'file_name' .*: this file is not used"):
            assert open_source(tmp_path).keys == ["a.png"]
        with pytest.raises(ConfigError, match=r"image_column='file_name': .*metadata\..* (has|is) "):
            open_source(tmp_path, image_column="file_name")

    @pytest.mark.parametrize(
        ("kind", "text", "words"),
        [
            (
                "csv",
                "file_name;labels\na.png;7\n",
                "has 'file_name;labels', .*: save it with commas between the columns; or",
            ),
            ("csv", "bild\tklasse\na.png\t7\n", "save it with commas"),
            ("csv", "filename,labels\na.png,7\n", "has 'filename', 'labels', .*: rename 'filename', or give image_column='filename'; or"),
            ("csv", "FileName,n\nb.png,7\n", "image_column='FileName'"),
            ("csv", "id,path\n1,a.png\n", "image_column='path'"),
            ("csv", "id,path\n1,a.png,x\n", "image_column='path'"),
            ("jsonl", '{"image": "a.png", "label": 7}\n', "image_column='image'"),
            ("parquet", "image_file", "has 'image_file', .*image_column='image_file'"),
        ],
    )
    def test_images_in_a_column_of_another_name(self, kind: str, text: str, words: str, tmp_path: Path) -> None:
        path = fill(tmp_path, "a.png") / f"metadata.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table({text: ["a.png"]}), path)
        else:
            path.write_text(text)
        with pytest.raises(ConfigError, match=rf"metadata\.{kind}: {words if words.startswith('has') else f'.*{words}'}"):
            open_source(tmp_path)
        column = re.search("image_column='(.*)'", words)
        if column is not None and "b.png" not in text and ",x" not in text:  # as the error advises
            assert open_source(tmp_path, image_column=column[1]).keys == ["a.png"]
        path.rename(tmp_path / "notes")
        assert open_source(tmp_path).keys == ["a.png"]

    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            ("csv", "label,description\na,A small feline\n"),
            ("csv", "file_id;x\n1;2\n"),
            ("jsonl", '{"name": "photos", "text": "about"}\n'),
        ],
    )
    def test_one_about_something_else_is_not_used(self, kind: str, text: str, tmp_path: Path) -> None:
        """A list of the classes, or a card of the data set."""
        (fill(tmp_path, "a/x.png", "b/y.png") / f"metadata.{kind}").write_text(text)
        with pytest.warns(UserWarning, match=r"no column 'file_name' with the names of images: this file is not used"):
            assert len(open_source(tmp_path)) == 2

    def test_one_file_of_several_fits(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.png")
        (tmp_path / "metadata.jsonl").write_text('{"caption": "of another folder"}\n')
        (tmp_path / "metadata.csv").write_text("file_name,caption\na.png,a cat\n")
        assert read(open_source(tmp_path), 0).inputs == {"prompts": "a cat"}

    def test_rows_with_more_cells_than_columns(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.png", "b.png")
        path = tmp_path / "metadata.csv"
        path.write_text('file_name,caption\na.png,"a cat,\nasleep"\nb.png,a dog, running\n')
        with pytest.raises(ConfigError, match=r"metadata\.csv, line 4: 3 cells, and the header names 2: put double quotes around text"):
            open_source(tmp_path)
        path.write_text('file_name,caption\na.png,"a cat,\nasleep"\nb.png,"a dog, running",\n')  # a comma at the end does no harm
        assert [read(open_source(tmp_path), i).inputs["prompts"] for i in range(2)] == ["a cat,\nasleep", "a dog, running"]

    def test_empty_cells_are_no_input(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.png", "b.png", "c.png")
        (tmp_path / "metadata.csv").write_text("file_name,caption\na.png,\nb.png,a dog\nc.png\n")
        none, there, short = open_source(tmp_path).read_range(0, 3)
        assert isinstance(there, SourceSample)
        assert there.inputs == {"prompts": "a dog"}
        for missing in (none, short):
            assert isinstance(missing, SourceError)
            assert "prompts: missing for this image" in str(missing)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('{"file_name": "a.png"}\n{"file_name": "a.png"}\n', r"1 key names several images: 'a.png' \(2 images\)"),
            ('{"file_name": "a.png"}\n{"file_name": "./a.png"}\n', "1 key names several images"),
            ('{"file_name": "a.png"}\n{oops\n', "line 2: not JSON"),
            ('{"file_name": "a.png"}\n3\n', "line 2: expected a JSON object"),
            ('{"file_name": "a.png"}\n{"label": 3}\n', "a row names no image: found None"),
            ('{"file_name": "../a.png"}\n', "expected a path inside the folder"),
            ('{"file_name": "/etc/a.png"}\n', "expected a path inside the folder"),
            ('{"file_name": "https://example.org/a.png"}\n', "'https://example.org/a.png', an address: .*download them first"),
        ],
    )
    def test_what_is_refused(self, text: str, words: str, tmp_path: Path) -> None:
        fill(tmp_path, "a.png")
        (tmp_path / "metadata.jsonl").write_text(text)
        with pytest.raises(ConfigError, match=words):
            open_source(tmp_path)

    def test_undecodable_text(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.png")
        (tmp_path / "metadata.csv").write_bytes(b"file_name,text\na.png,\xff\xfe\n")
        with pytest.raises(ConfigError, match=r"metadata\.csv: cannot be read: "):
            open_source(tmp_path)

    def test_columns_that_do_not_fit(self, tmp_path: Path) -> None:
        self.folder(tmp_path, "jsonl")
        with pytest.raises(ConfigError, match=r"columns=\{'prompts': 'title'\}: no such column in metadata.jsonl, which has 'label'"):
            open_source(tmp_path, columns={"prompts": "title"})
        with pytest.raises(ConfigError, match=r"columns=\{'labels': 'text'\}: this column of metadata.jsonl does not hold integers"):
            open_source(tmp_path, columns={"labels": "text"})
        with pytest.raises(ConfigError, match=r"columns='text': expected a dict"):
            open_source(tmp_path, columns="text")  # type: ignore[arg-type]

    def test_columns_without_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"columns=\{'prompts': 'text'\}: .* has no metadata.jsonl or"):
            open_source(fill(tmp_path, "a.png"), columns={"prompts": "text"})


class TestParquet:
    """Rows of Parquet files."""

    def test_keys_images_and_inputs(self, tmp_path: Path) -> None:
        masks = [mask_png([[i, i + 1]]) for i in range(3)]
        source = open_source(
            parquet(tmp_path / "a.parquet", image=[png(i) for i in range(3)], label=[5, 6, 7], caption=list("abc"), mask=masks)
        )
        assert source.keys == range(3)
        assert source.key_type == "int"
        assert set(source.inputs) == {"labels", "prompts", "masks"}
        sample = read(source, 2)
        assert torch.equal(sample.image, tensor(2))
        assert sample.inputs["labels"] == 7
        assert sample.inputs["prompts"] == "c"
        assert sample.inputs["masks"].tolist() == mask_array([[2, 3]]).tolist()

    def test_no_inputs(self, tmp_path: Path) -> None:
        source = open_source(parquet(tmp_path / "a.parquet", image=[png(0)]))
        assert source.inputs == ()
        assert read(source, 0).inputs == {}

    def test_key_column(self, tmp_path: Path) -> None:
        path = parquet(tmp_path / "a.parquet", image=[png(0), png(1)], id=["x", "y"], number=[11, 22])
        assert (open_source(path, key="id").keys, open_source(path, key="id").key_type) == (["x", "y"], "str")
        assert (open_source(path, key="number").keys, open_source(path, key="number").key_type) == ([11, 22], "int")

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            (["x", "x"], r"1 key names several images: 'x' \(2 images\)"),
            (["x", None], "row 1 of .* has none"),
            ([1.5, 2.5], "the key 1.5 is a float: expected str or int"),
            ([True, False], "the key True is a bool"),
        ],
    )
    def test_keys_that_are_refused(self, values: list[Any], words: str, tmp_path: Path) -> None:
        path = parquet(tmp_path / "a.parquet", image=[png(0), png(1)], id=values)
        with pytest.raises(ConfigError, match=words):
            open_source(path, key="id")

    def test_only_the_keys_are_read_up_front(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        read = []
        original = pq.ParquetFile.read
        monkeypatch.setattr(pq.ParquetFile, "read", lambda self, columns=None: (read.append(columns), original(self, columns=columns))[1])
        monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("rows were read"))
        open_source(parquet(tmp_path / "a.parquet", image=[png(0)], id=["x"]), key="id")
        assert read == [["id"]]

    def test_files_of_a_folder_in_order(self, tmp_path: Path) -> None:
        for i, name in enumerate(["b-1", "a", "b-0"]):
            parquet(tmp_path / f"{name}.parquet", image=[png(10 * i), png(10 * i + 1)], label=[10 * i, 10 * i + 1])
        source = open_source(tmp_path)
        assert [read(source, i).inputs["labels"] for i in range(6)] == [10, 11, 20, 21, 0, 1]
        assert torch.equal(read(source, 5).image, tensor(1))
        assert source.description["files"] == 3

    def test_hub_layout_and_split(self, tmp_path: Path) -> None:
        for i, name in enumerate(["test-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"]):
            parquet(tmp_path / "data" / f"{name}.parquet", image=[png(i)], label=[i])
        for source in (open_source(tmp_path), open_source(tmp_path, split="train")):
            assert [read(source, i).inputs["labels"] for i in range(len(source))] == [1, 2]
        assert read(open_source(tmp_path, split="test"), 0).inputs == {"labels": 0}
        with pytest.raises(ConfigError, match=r"split='valid': .* holds 'train', 'test'"):
            open_source(tmp_path, split="valid")

    @pytest.mark.parametrize(
        "names",
        [
            ("train.parquet", "test.parquet"),
            ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "validation-00000-of-00001.parquet"),
            ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
            ("train/b.parquet", "train/a.parquet", "test/a.parquet"),
            ("my_training_set.parquet", "my-dev-set.parquet", "eval.parquet"),
            ("b-1.parquet", "a.parquet", "b-0.parquet"),
            ("default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"),  # of refs/convert/parquet
            ("default/partial-train/0000.parquet", "default/partial-test/0000.parquet"),
            ("data/small-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"),
            ("train/a.parquet", "val.parquet"),
        ],
    )
    def test_splits_are_those_of_datasets(self, names: tuple[str, ...], tmp_path: Path) -> None:
        for i, name in enumerate(names):
            parquet(tmp_path / "d" / name, image=[png(i), png(i)], label=[10 * i, 10 * i + 1])
        reference = datasets.load_dataset(str(tmp_path / "d"), cache_dir=str(tmp_path / "cache"))
        for split, rows in reference.items():
            source = open_source(tmp_path / "d", split=str(split))
            assert [sample.inputs["labels"] for sample in source.read_range(0, len(source))] == rows["label"]  # type: ignore[union-attr]
        assert open_source(tmp_path / "d").keys == range(len(reference["train"]))

    @pytest.mark.parametrize(
        ("names", "split", "others"),
        [
            (("part-0.parquet", "part-1.parquet", "val.parquet"), "validation", "'part-0.parquet', 'part-1.parquet'"),
            (("photos.parquet", "photos_test.parquet"), "test", "'photos.parquet'"),
            (("train_a.parquet", "extra.parquet"), "train", "'extra.parquet'"),
            (("2024-01/x.parquet", "dev/x.parquet"), "validation", "'2024-01/x.parquet'"),
            (("test/a.parquet", "train.parquet"), "test", "'train.parquet'"),
            (("a.parquet", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"), "train", "'a.parquet'"),
            (("1.parquet", "2.parquet", "3.parquet", "4.parquet", "5-eval.parquet"), "test", "'1.parquet', '2.parquet', '3.parquet', …"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    @pytest.mark.parametrize("linked", [False, True])
    def test_files_in_no_split_are_told(self, names: tuple[str, ...], split: str, others: str, linked: bool, tmp_path: Path) -> None:
        root = tmp_path / "d"
        for i, name in enumerate(names):
            parquet(root / name, image=[png(i)], label=[i])
        if linked:
            root = tmp_path / "link"
            root.symlink_to(tmp_path / "d")
        with pytest.raises(ConfigError, match=f"holds the split '{split}', and files in no split, .*: {others}: .* split='{split}'; for"):
            open_source(root)
        labels = datasets.load_dataset(str(root), split=split, cache_dir=str(tmp_path / "cache"))["label"]
        source = open_source(root, split=split)
        assert [sample.inputs["labels"] for sample in source.read_range(0, len(source))] == list(labels)  # type: ignore[union-attr]
        configs = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: {split}\n    path: {names[0][:-8]}*\n---\n"
        (root / "README.md").write_text(configs)
        assert read(open_source(root), 0).inputs == {"labels": 0}  # its author chose

    @pytest.mark.parametrize(
        ("names", "told"),
        [
            (("Train.parquet", "Test.parquet"), "Test.parquet"),
            (("part-0.parquet", "data/VAL.parquet"), "data/VAL.parquet"),
            (("trainset.parquet", "testset.parquet"), "testset.parquet"),
            (("Train/0.parquet", "Test/0.parquet"), "Test/0.parquet"),
            (("Test-0.parquet", "Test-1.parquet"), None),  # all that there is
            (("a.parquet", "latest.parquet", "Evaluated.parquet"), None),
        ],
        ids=str,
    )
    def test_splits_that_datasets_does_not_recognise(self, names: tuple[str, ...], told: str | None, tmp_path: Path) -> None:
        for name in names:
            parquet(tmp_path / name, image=[png(0)])
        for split in (None, "train"):
            if told is None:
                assert len(open_source(tmp_path, split=split)) == len(names)
            else:
                with pytest.raises(ConfigError, match=f"'{told}' is named after a split, but counts as 'train', .*: rename the files, or"):
                    open_source(tmp_path, split=split)
        if told is None:
            return
        (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: '**/*.parquet'\n---\n")
        assert len(open_source(tmp_path)) == len(names)  # its author chose
        (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  drop_labels: true\n---\n")
        with pytest.raises(ConfigError, match="is named after a split"):
            open_source(tmp_path)

    def test_files_in_no_split_that_are_no_images(self, tmp_path: Path) -> None:
        parquet(tmp_path / "val.parquet", image=[png(0)])
        for name in ("scores.parquet", "metadata.parquet", ".old/a.parquet"):
            parquet(tmp_path / name, score=[1.0])
        assert len(open_source(tmp_path)) == 1

    @pytest.mark.parametrize(
        ("names", "missing"),
        [
            (("data/train-00001-of-00003.parquet",), r"'train-00000-of-00003\.parquet' is missing: 1 of 3 such files"),
            (("data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"), r"'train-00001-of-00002\.parquet' is missing"),
            (("a-1-of-3.parquet", "a-3-of-3.parquet"), r"'a-2-of-3\.parquet' is missing: 2 of 3"),
            (("x/a-0-of-2.parquet", "x/a-1-of-2.parquet", "y/a-1-of-2.parquet"), r"y: 'a-0-of-2\.parquet' is missing"),
            (("train-00000-of-00002-0a1b.parquet",), r"'train-00001-of-00002\.parquet' is missing"),
            (("a/train-0-of-2.parquet", "b/train-1-of-2.parquet"), None),
            (("a-1-of-2.parquet", "a-2-of-2.parquet", "b-0-of-1.parquet"), None),
            (("data/train-00000-of-00001.parquet", "data/test-00001-of-00002.parquet"), None),
            (("three-of-5.parquet", "a-1-of-many.parquet"), None),
        ],
        ids=str,
    )
    def test_files_that_are_missing(self, names: tuple[str, ...], missing: str | None, tmp_path: Path) -> None:
        for name in names:
            parquet(tmp_path / name, image=[png(0)])
        if missing is None:
            open_source(tmp_path)
            return
        with pytest.raises(ConfigError, match=missing):
            open_source(tmp_path)
        (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: a\n  data_files: {json.dumps(names)}\n---\n")
        open_source(tmp_path)  # its author chose these
        (tmp_path / "README.md").unlink()
        for name in names:  # as the error advises
            (tmp_path / name).rename(tmp_path / re.sub(r"-of-\d+", "", name))
        open_source(tmp_path)

    @pytest.mark.parametrize("name", ["photos [2024]", "a*b", "[x]", "what?"])
    def test_a_path_that_looks_like_a_pattern(self, name: str, tmp_path: Path) -> None:
        for i, part in enumerate(("data/train-00000-of-00001", "data/test-00000-of-00001")):
            parquet(tmp_path / name / "in [here]" / f"{part}.parquet", image=[png(i)], label=[i])
        for root in (tmp_path / name, tmp_path / name / "in [here]"):
            assert [read(open_source(root, split=split), 0).inputs["labels"] for split in (None, "test")] == [0, 1]
        parquet(tmp_path / name / "extra.parquet", image=[png(0)])
        with pytest.raises(ConfigError, match=r"in no split, which would be left out: 'extra.parquet'"):
            open_source(tmp_path / name)
        configs = "".join(f"- config_name: {c}\n  data_files: 'in ?here?/*/{c}-*'\n" for c in ("train", "test"))
        (tmp_path / name / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
        assert read(open_source(tmp_path / name, config="test"), 0).inputs == {"labels": 1}
        with pytest.raises(ConfigError, match=r"choose one with config="):
            open_source(tmp_path / name)

    def test_several_splits_and_none_is_train(self, tmp_path: Path) -> None:
        for name in ("small", "big"):
            parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet", image=[png(0)])
        with pytest.raises(ConfigError, match=r"holds the splits 'big', 'small': choose one with split="):
            open_source(tmp_path)
        (tmp_path / "data" / "small-00000-of-00001.parquet").unlink()
        assert len(open_source(tmp_path)) == 1  # the only one

    @pytest.mark.parametrize("name", ["train-00000-of-{}.parquet", "train/0000.parquet"])
    def test_folders_of_configurations_without_a_readme(self, name: str, tmp_path: Path) -> None:
        for label, folder in enumerate(("large", "small")):
            (tmp_path / folder / name).parent.mkdir(parents=True)
            parquet(tmp_path / folder / name.format(f"0000{label}"), image=[png(label)], label=[label])
        with pytest.raises(ConfigError, match="holds the configurations 'large', 'small': choose one with config="):
            open_source(tmp_path)
        assert [read(open_source(tmp_path, config=c), 0).inputs["labels"] for c in ("large", "small")] == [0, 1]
        with pytest.raises(ConfigError, match="config='none'"):
            open_source(tmp_path, config="none")

    @pytest.mark.parametrize("names", [("0/train-00000.parquet", "1/train-00001.parquet"), ("a=0/part.parquet", "a=1/part.parquet")])
    def test_parts_of_one_data_set_in_folders(self, names: tuple[str, str], tmp_path: Path) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir()
            parquet(tmp_path / name, image=[png(0)])
        assert len(open_source(tmp_path)) == 2

    def test_configurations(self, tmp_path: Path) -> None:
        for i, name in enumerate(("x", "y")):
            parquet(tmp_path / name / "1.parquet", image=[png(0)], label=[i])
        configs = "".join(f"- config_name: {name}\n  data_files: {folder}/*.parquet\n" for name, folder in (("one", "x"), ("two", "y")))
        (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
        assert read(open_source(tmp_path, config="two"), 0).inputs == {"labels": 1}
        assert open_source(tmp_path, config="two").description["decides"]["config"] == "two"
        with pytest.raises(ConfigError, match=r"\['one', 'two'\].*choose one with config="):
            open_source(tmp_path)
        with pytest.raises(ConfigError, match="config='three'"):
            open_source(tmp_path, config="three")

    @pytest.mark.parametrize("folder", ["x/a", "x/y/z/a"])
    def test_deep_folders_of_configurations(self, folder: str, tmp_path: Path) -> None:
        for i, name in enumerate(("a", "b")):
            parquet(tmp_path / folder.replace("a", name) / "1.parquet", image=[png(0)], label=[i])
        configs = "".join(f"- config_name: {n}\n  data_files: {folder.replace('a', n)}/*.parquet\n" for n in ("a", "b"))
        (tmp_path / "README.md").write_text(f"---\nlicense: mit\nconfigs:\n{configs}---\n# Data\n")
        assert [read(open_source(tmp_path, config=name), 0).inputs["labels"] for name in ("a", "b")] == [0, 1]

    @pytest.mark.parametrize(
        "readme", ["Made by a.parquet", "---\nlicense: mit\n---\n", "---\nconfigs:\n- data_files: metadata.parquet\n---"]
    )
    def test_no_parquet_of_an_image_folder(self, readme: str, tmp_path: Path) -> None:
        keys = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(5)]
        fill(tmp_path, *keys)
        (tmp_path / "README.md").write_text(readme)
        for name in ("features/clip/a.parquet", ".cache/a.parquet"):
            parquet(tmp_path / name, x=[1])
        assert list(open_source(tmp_path).keys) == keys

    def test_pictures_of_a_readme(self, tmp_path: Path) -> None:
        fill(tmp_path, "logo.png", "assets/a.png")
        parquet(tmp_path / "default" / "train" / "0000.parquet", image=[png(0)], label=[7])
        with pytest.warns(UserWarning, match=r"the Parquet files are read, and not the images beside them: 'assets/a\.png', 'logo\.png'$"):
            assert read(open_source(tmp_path), 0).inputs == {"labels": 7}
        (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: default/train/*.parquet\n---\n")
        assert read(open_source(tmp_path), 0).inputs == {"labels": 7}

    def test_one_file_has_no_splits(self, tmp_path: Path) -> None:
        path = parquet(tmp_path / "train.parquet", image=[png(0)])
        for option in ("split", "config"):
            with pytest.raises(ConfigError, match=f"{option}='train': .* is one file"):
                open_source(path, **{option: "train"})  # type: ignore[arg-type]

    def test_nothing_is_left_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        open_source(parquet(tmp_path / "d" / "train.parquet", image=[png(0)]).parent)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]

    def test_a_column_of_addresses(self, tmp_path: Path) -> None:
        path = parquet(tmp_path / "a.parquet", url=["https://example.org/a.jpg"], caption=["x"])
        with pytest.raises(ConfigError, match=r"'url' .*addresses.*download them first"):
            open_source(path)
        other = parquet(tmp_path / "b.parquet", image=["https://example.org/1.jpg"], caption=["x"])
        with pytest.raises(ConfigError, match=r"'image' seems to hold addresses.*download them first"):
            open_source(other)
        with pytest.raises(ConfigError, match=r"image_column='url': .*addresses.*download them first"):
            open_source(path, image_column="url")
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        values = [{"bytes": None, "path": "https://example.org/a.jpg"}, {"bytes": png(1), "path": "https://example.org/b.jpg"}]
        source = open_source(parquet(tmp_path / "b.parquet", image=pa.array(values, kind)))
        with pytest.raises(SourceError, match=r"'https://example.org/a.jpg' is an address.*download them first"):
            read(source, 0)
        assert torch.equal(read(source, 1).image, tensor(1))

    def test_white_level(self, tmp_path: Path) -> None:
        file = io.BytesIO()
        PIL.Image.fromarray(numpy.full((4, 4), 1023, numpy.uint16)).save(file, "PNG")
        path = parquet(tmp_path / "a.parquet", image=[file.getvalue()])
        source = open_source(path, white_level=1023)
        assert read(source, 0).image.unique().tolist() == [255]
        assert source.description["decides"]["white_level"] == 1023
        with pytest.warns(UserWarning, match="pass white_level=1023"):
            assert read(open_source(path), 0).image.unique().tolist() == [4]

    @pytest.mark.parametrize("rows_per_group", [1, 3, 1 << 20])
    def test_row_groups(self, rows_per_group: int, tmp_path: Path) -> None:
        source = open_source(parquet(tmp_path / "a.parquet", rows_per_group, image=[png(i) for i in range(10)], label=list(range(10))))
        for i in (9, 0, 5, 4, 3, 9, 1):
            assert read(source, i).inputs["labels"] == i
            assert torch.equal(read(source, i).image, tensor(i))

    def test_an_empty_row_group_and_file(self, tmp_path: Path) -> None:
        schema = pa.schema({"image": pa.binary(), "label": pa.int64()})
        pq.write_table(schema.empty_table(), tmp_path / "a.parquet")
        with pq.ParquetWriter(tmp_path / "b.parquet", schema) as writer:
            for rows in ([], [{"image": png(3), "label": 3}], [], [{"image": png(4), "label": 4}]):
                writer.write_table(pa.Table.from_pylist(rows, schema))
        source = open_source(tmp_path)
        assert [read(source, i).inputs["labels"] for i in range(2)] == [3, 4]
        (tmp_path / "b.parquet").unlink()
        with pytest.raises(ConfigError, match="holds no images"):
            open_source(tmp_path)

    @pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.struct({"bytes": pa.binary(), "path": pa.string()})])
    def test_kinds_of_image_columns(self, kind: pa.DataType, tmp_path: Path) -> None:
        value: Any = {"bytes": png(3), "path": "x.png"} if pa.types.is_struct(kind) else png(3)
        assert torch.equal(read(open_source(parquet(tmp_path / "a.parquet", thing=pa.array([value], kind))), 0).image, tensor(3))

    def test_marked_column_goes_first(self, tmp_path: Path) -> None:
        struct = [{"bytes": b"", "path": ""}]
        columns = {"a": [b"x"], "b": struct, "photo": [{"bytes": png(1), "path": ""}]}
        assert torch.equal(
            read(open_source(parquet(tmp_path / "a.parquet", metadata={"photo": {"_type": "Image"}}, **columns)), 0).image, tensor(1)
        )
        columns = {"a": [b"x"], "photo": [{"bytes": png(1), "path": ""}]}
        assert torch.equal(read(open_source(parquet(tmp_path / "b.parquet", **columns)), 0).image, tensor(1))

    def test_several_columns(self, tmp_path: Path) -> None:
        path = parquet(tmp_path / "a.parquet", left=[png(0)], right=[png(1)])
        with pytest.raises(ConfigError, match="any of the columns 'left', 'right' may be the image: say which with image_column="):
            open_source(path)
        assert torch.equal(read(open_source(path, image_column="right"), 0).image, tensor(1))

    @pytest.mark.parametrize("other", ["depth", "image2", "mask_image"])
    def test_another_column_beside_image(self, other: str, tmp_path: Path) -> None:
        path = parquet(tmp_path / "b.parquet", **{other: [mask_png([[1, 1], [1, 1]])], "image": [png(1)]})
        with pytest.raises(ConfigError, match=rf"'{other}', 'image' may be the image: .*image_column='image', .*{{'masks': '{other}'}}"):
            open_source(path)
        assert torch.equal(read(open_source(path, image_column="image"), 0).image, tensor(1))
        assert open_source(path, columns={"masks": other}).inputs == ("masks",)

    def test_a_mask_beside_image(self, tmp_path: Path) -> None:
        for name in ("mask", "masks", "control_map"):
            path = parquet(tmp_path / f"{name}.parquet", **{name: [png(0)], "photo": [png(1)]})
            source = open_source(path)
            assert source.description["decides"]["image_column"] == "photo"
            assert source.inputs == (("masks",) if "mask" in name else ("control_maps",))

    def test_columns_that_do_not_fit(self, tmp_path: Path) -> None:
        path = parquet(tmp_path / "a.parquet", image=[png(0)], label=["cat"], title=["t"])
        assert open_source(path).inputs == ()
        assert read(open_source(path, columns={"prompts": "title"}), 0).inputs == {"prompts": "t"}
        for options, words in (
            ({"key": "no"}, "key='no': expected a column of .*: 'image', 'label', 'title'"),
            ({"key": len}, "key=.*: expected a column"),
            ({"image_column": "no"}, "image_column='no': expected a column"),
            ({"image_column": "title"}, "image_column='title': of type string: expected bytes"),
            ({"columns": {"labels": "label"}}, "does not hold integers"),
            ({"columns": {"labels": "no"}}, "no such column"),
        ):
            with pytest.raises(ConfigError, match=words):
                open_source(path, **options)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="no column of images among 'label'"):
            open_source(parquet(tmp_path / "b.parquet", label=[1]))

    def test_images_that_are_paths(self, tmp_path: Path) -> None:
        fill(tmp_path, "images/x.png")
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        source = open_source(parquet(tmp_path / "a.parquet", image=pa.array([{"bytes": None, "path": "images/x.png"}], kind)))
        assert torch.equal(read(source, 0).image, tensor(0))

    def test_one_damaged_row_does_not_harm_the_others(self, tmp_path: Path) -> None:
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        values = [
            {"bytes": png(0), "path": None},
            None,
            {"bytes": None, "path": None},
            {"bytes": b"", "path": None},
            {"bytes": png(4)[:70], "path": ""},
        ]
        source = open_source(parquet(tmp_path / "a.parquet", image=pa.array(values, kind), label=[0, 1, 2, 3, 4]))
        for i, words in ((1, "no image"), (2, "no image"), (3, "empty"), (4, "truncated")):
            with pytest.raises(SourceError, match=words):
                read(source, i)
        assert torch.equal(read(source, 0).image, tensor(0))

    def test_a_null_label(self, tmp_path: Path) -> None:
        source = open_source(parquet(tmp_path / "a.parquet", image=[png(0), png(1)], label=[None, 3]))
        with pytest.raises(SourceError, match="labels: missing"):
            read(source, 0)
        assert read(source, 1).inputs == {"labels": 3}

    def test_files_that_differ(self, tmp_path: Path) -> None:
        parquet(tmp_path / "a.parquet", image=[png(0)], label=[0])
        parquet(tmp_path / "b.parquet", image=[png(0)])
        with pytest.raises(ConfigError, match=r"b\.parquet: has no column 'label', which the first file has"):
            open_source(tmp_path)
        parquet(tmp_path / "b.parquet", image=[png(0)], label=["x"])
        with pytest.raises(ConfigError, match=r"b\.parquet: column 'label' is of type string, in the first file int64"):
            open_source(tmp_path)

    def test_no_parquet_at_all(self, tmp_path: Path) -> None:
        (tmp_path / "a.parquet").write_bytes(b"nothing of the kind")
        with pytest.raises(ConfigError, match=r"a\.parquet: cannot be read as a Parquet file"):
            open_source(tmp_path / "a.parquet")

    def test_damage_after_opening(self, tmp_path: Path) -> None:
        path = parquet(tmp_path / "a.parquet", 2, image=[png(i) for i in range(6)])
        source = open_source(path)
        start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
        data = bytearray(path.read_bytes())
        data[start : start + 40] = b"\xff" * 40
        path.write_bytes(bytes(data))
        with pytest.raises(SourceError, match=r"row group 1 of a\.parquet cannot be read"):
            read(source, 2)
        assert torch.equal(read(source, 5).image, tensor(5))
        path.unlink()
        (tmp_path / "another").touch()
        with pytest.raises(SourceError, match=r"row group 0 of a\.parquet cannot be read"):
            read(source, 0)
        (tmp_path / "another").unlink()
        with pytest.raises(FileNotFoundError, match="the folder of the images is gone, or nothing is in it"):
            read(source, 0)

    def test_pickles_after_reading(self, tmp_path: Path) -> None:
        source = open_source(parquet(tmp_path / "a.parquet", image=[png(0), png(1)], label=[3, 4]))
        read(source, 0)
        copy = pickle.loads(pickle.dumps(source))
        assert torch.equal(read(copy, 1).image, tensor(1))
        assert read(copy, 1).inputs == {"labels": 4}

    def test_what_decides(self, tmp_path: Path) -> None:
        content = {"image": [png(0)], "label": [3], "caption": ["x"], "other": ["y"], "id": ["a"]}
        for name in ("one", "two"):
            parquet(tmp_path / name / "train.parquet", **content)
        one, two, other = (
            open_source(tmp_path / name, key="id", split="train", columns=columns)
            for name, columns in (("one", None), ("two", {"prompts": "caption"}), ("one", {"prompts": "other"}))
        )
        columns = {"labels": "label", "prompts": "caption"}
        expected = {"kind": "parquet", "key": "id", "image_column": "image", "columns": columns, "split": "train"}
        assert json.loads(json.dumps(one.description["decides"])) == expected == two.description["decides"]
        assert other.description["decides"] == {**expected, "columns": {**columns, "prompts": "other"}}
        assert other.select(["labels"]).description["decides"] == one.select(["labels"]).description["decides"]

    def test_row_out_of_range(self, tmp_path: Path) -> None:
        source = open_source(parquet(tmp_path / "a.parquet", image=[png(0)]))
        for index in (-1, 1):
            with pytest.raises(IndexError):
                read(source, index)

    def test_cifar10(self) -> None:
        if not CIFAR.exists():
            pytest.skip(f"{CIFAR} is not here")
        source = open_source(CIFAR)
        assert len(source) == 50_000
        assert source.inputs == ("labels",)
        table = pq.read_table(CIFAR).slice(40_000, 5)
        for i in range(5):
            image = PIL.Image.open(io.BytesIO(table["image"][i].as_py()["bytes"])).convert("RGB")
            sample = read(source, 40_000 + i)
            assert torch.equal(sample.image, torch.from_numpy(numpy.array(image)).permute(2, 0, 1))
            assert sample.inputs == {"labels": table["label"][i].as_py()}


def numbers(reader: parquet_rows.RowReader, places: Iterable[int]) -> list[int]:
    """The numbers of single rows."""
    found = [row for place in places for row in reader.read_range(place, place + 1)]
    return [row["number"] for row in found if isinstance(row, dict)]


class TestRowReader:
    """Rows in order are read once, and few are held."""

    @pytest.fixture
    def begun(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The row groups that were begun to be read."""
        groups: list[int] = []
        original = pq.ParquetFile.iter_batches

        def counted(self: Any, *args: Any, row_groups: list[int], **kwargs: Any) -> Iterator[Any]:
            groups.extend(row_groups)
            return original(self, *args, row_groups=row_groups, **kwargs)

        monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
        return groups

    @staticmethod
    def reader(tmp_path: Path, rows: int, size: int, rows_per_group: int) -> parquet_rows.RowReader:
        values = [numpy.random.default_rng(i).bytes(size) for i in range(rows)]
        path = parquet(tmp_path / "a.parquet", rows_per_group, image=values, number=list(range(rows)))
        counts = [min(rows_per_group, rows - start) for start in range(0, rows, rows_per_group)]
        return parquet_rows.RowReader([(path, counts)], ["image", "number"])

    def test_each_row_group_is_begun_once(self, tmp_path: Path, begun: list[int]) -> None:
        reader = self.reader(tmp_path, 1000, 100, 300)
        assert numbers(reader, range(1000)) == list(range(1000))
        assert begun == [0, 1, 2, 3]

    def test_memory_is_bounded_within_a_row_group(self, tmp_path: Path, begun: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parquet_rows, "_BATCH_BYTES", 40_000)
        monkeypatch.setattr(parquet_rows, "_KEPT_BYTES", 800_000)
        reader = self.reader(tmp_path, 1000, 10_000, 1 << 20)  # 10 MB in one row group
        most = 0
        for i in range(1000):
            assert numbers(reader, [i]) == [i]
            most = max(most, sum(batch.nbytes for _, batch in reader._kept))
        assert begun == [0]
        assert 300_000 < most <= 900_000

    @pytest.mark.slow
    def test_peak_of_memory(self, tmp_path: Path) -> None:
        noise = numpy.random.default_rng(0).bytes(150_000_000)
        values = [noise[i : i + 10_000] for i in range(0, len(noise), 10_000)]
        parquet(tmp_path / "a.parquet", image=values, number=list(range(15_000)))
        code = """
import sys
from pathlib import Path
import pyarrow.parquet
from gentransforms.sources import parquet_rows
parquet_rows._KEPT_BYTES = 10_000_000
peak = lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
before = peak()
reader = parquet_rows.RowReader([(Path(sys.argv[1]), [15_000])], ["image", "number"])
assert [row["number"] for row in reader.read_range(0, 15_000)] == list(range(15_000))
print(peak() - before)
"""
        command = [sys.executable, "-c", code, str(tmp_path / "a.parquet")]
        assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 110  # MB, of 150 in one row group

    def test_threads_out_of_step(self, tmp_path: Path, begun: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parquet_rows, "_BATCH_BYTES", 1)  # a row a batch
        monkeypatch.setattr(parquet_rows, "_KEPT_BYTES", 70_000)
        reader = self.reader(tmp_path, 500, 1000, 100)
        with ThreadPoolExecutor(8) as pool:
            for start in range(0, 500, 30):  # across the ends of row groups too
                places = numpy.random.default_rng(start).permutation(range(start, min(500, start + 30))).tolist()
                assert [number for found in pool.map(lambda place: numbers(reader, [place]), places) for number in found] == places
        assert begun == [0, 1, 2, 3, 4]

    def test_going_back_begins_again(self, tmp_path: Path, begun: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parquet_rows, "_BATCH_BYTES", 1)
        monkeypatch.setattr(parquet_rows, "_KEPT_BYTES", 1)
        reader = self.reader(tmp_path, 200, 1000, 200)
        assert numbers(reader, (199, 150, 199, 0)) == [199, 150, 199, 0]
        assert begun == [0, 0, 0]

    def test_few_files_are_open(self, tmp_path: Path) -> None:
        for i in range(20):
            parquet(tmp_path / f"{i:02}.parquet", number=[i])
        reader = parquet_rows.RowReader([(path, [1]) for path in sorted(tmp_path.iterdir())], ["number"])
        assert numbers(reader, range(20)) == list(range(20))
        held = [handle.readlink() for handle in Path("/proc/self/fd").iterdir() if handle.is_symlink()]
        assert 1 <= len([path for path in held if path.parent == tmp_path]) <= 4


class Listed:
    """A map-style data set of given samples; an exception among them is raised."""

    def __init__(self, *samples: Any) -> None:
        self.samples_ = samples

    def __len__(self) -> int:
        return len(self.samples_)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.samples_[index], BaseException):
            raise self.samples_[index]
        return self.samples_[index]


class TestMapStyle:
    """Any data set with a length and an index."""

    @pytest.mark.parametrize(
        "sample",
        [
            picture(5), (picture(5), 3), [picture(5), 3], {"image": picture(5)}, {"mask": mask_png([[1]]), "img": picture(5)},
            {"x": png(5)}, {"x": {"bytes": png(5), "path": None}}, png(5), tensor(5), (tensor(5),),
            (torch.zeros(1, 2, 2), tv_tensors.Image(tensor(5))), (3, {"deep": [picture(5)]}), (torch.tensor(3), tensor(5)),
            {"first": tensor(5), "second": tensor(6)},
        ],
        ids=range(14),
    )  # fmt: skip
    def test_which_is_the_image(self, sample: Any) -> None:
        image = read(open_source([sample]), 0).image
        assert type(image) is torch.Tensor
        assert torch.equal(image, tensor(5))

    def test_floating_and_grey_tensors(self) -> None:
        for image in (torch.rand(3, 4, 5), torch.rand(1, 4, 5), torch.zeros(1, 4, 5, dtype=torch.uint8)):
            assert torch.equal(read(open_source([image]), 0).image, image)
        assert not read(open_source([torch.rand(3, 4, 5, requires_grad=True)]), 0).image.requires_grad

    def test_pil_images_of_any_mode(self) -> None:
        source = open_source([PIL.Image.new("RGBA", (4, 2)), PIL.Image.new("I;16", (4, 2), 65535), PIL.Image.new("CMYK", (4, 2))])
        assert all(torch.equal(read(source, i).image, torch.full((3, 2, 4), 255, dtype=torch.uint8)) for i in range(3))

    @pytest.mark.parametrize("label", [3, numpy.int64(3), torch.tensor(3), numpy.uint8(3)])
    def test_labels(self, label: Any) -> None:
        for sample in ((picture(0), label), {"image": picture(0), "label": label}, {"image": picture(0), "labels": label}):
            found = read(open_source([sample]), 0).inputs
            assert found == {"labels": 3}
            assert type(found["labels"]) is int

    @pytest.mark.parametrize(
        "target", [True, 1.5, "cat", {"boxes": 1}, (1, 2), None, torch.tensor(1.0), torch.tensor(True), numpy.bool_(True)]
    )
    def test_targets_that_are_no_labels(self, target: Any) -> None:
        assert open_source([(picture(0), target)]).inputs == ()

    def test_inputs_of_dicts(self) -> None:
        sample = {
            "image": picture(0),
            "caption": "a cat",
            "text": "other",
            "mask": PIL.Image.fromarray(mask_array([[1, 2]])),
            "n": 1,
        }
        source = open_source([sample])
        assert set(source.inputs) == {"prompts", "masks"}
        assert read(source, 0).inputs["prompts"] == "a cat"
        assert read(source, 0).inputs["masks"].tolist() == mask_array([[1, 2]]).tolist()
        assert read(open_source([sample], columns={"prompts": "text", "labels": "n"}), 0).inputs["prompts"] == "text".replace(
            "text", "other"
        )

    @pytest.mark.parametrize(
        "mask",
        [
            torch.from_numpy(mask_array([[1, 2]])),
            torch.from_numpy(mask_array([[1, 2]]))[None],
            tv_tensors.Mask(torch.from_numpy(mask_array([[1, 2]]))),
            mask_array([[1, 2]], numpy.int64),
        ],
    )
    def test_masks(self, mask: Any) -> None:
        for image in (picture(0), tensor(0)):
            found = read(open_source([{"image": image, "masks": mask}]), 0).inputs["masks"]
            assert type(found) is torch.Tensor
            assert found.tolist() == mask_array([[1, 2]]).tolist()

    def test_image_column(self) -> None:
        source = open_source([{"image": picture(0), "other": picture(1)}], image_column="other")
        assert torch.equal(read(source, 0).image, tensor(1))
        with pytest.raises(ConfigError, match="image_column='no': the samples have 'image'"):
            open_source([{"image": picture(0)}], image_column="no")
        with pytest.raises(ConfigError, match="image_column='no': a sample is a tuple: expected a dict"):
            open_source([(picture(0), 1)], image_column="no")

    def test_inputs_getter(self) -> None:
        samples = [(picture(0), "x", PIL.Image.fromarray(mask_array([[4]]))), (picture(0), None, None)]
        source = open_source(samples, inputs_getter=lambda sample: {"prompts": sample[1], "masks": sample[2], "depth": 0.5})
        assert source.inputs == ("prompts", "masks", "depth")
        found = read(source, 0).inputs
        assert (found["prompts"], found["masks"].unique().tolist(), found["depth"]) == ("x", [4], 0.5)
        with pytest.raises(SourceError, match="prompts: missing"):
            read(source, 1)
        with pytest.raises(ConfigError, match=r"columns=.*: inputs_getter says what the inputs are"):
            open_source(samples, inputs_getter=lambda sample: {}, columns={"prompts": "x"})
        with pytest.raises(ConfigError, match="inputs_getter returned an int: expected a dict"):
            open_source(samples, inputs_getter=lambda sample: 3)  # type: ignore[arg-type, return-value]

    def test_inputs_getter_that_raises(self) -> None:
        source = open_source([(picture(0), {"a": "x"}), (picture(0), {})], inputs_getter=lambda sample: {"prompts": sample[1]["a"]})
        with pytest.raises(SourceError, match="inputs_getter raised KeyError: 'a'"):
            read(source, 1)

    def test_a_sample_that_raises(self) -> None:
        source = open_source(Listed((picture(0), 1), ValueError("two\nlines"), (picture(2), 3)))
        with pytest.raises(SourceError, match=r"^ValueError: two lines$"):
            read(source, 1)
        assert read(source, 2).inputs == {"labels": 3}

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), OSError(24, "Too many open files")])
    def test_what_passes(self, error: BaseException) -> None:
        source = open_source(Listed(*[picture(0)] * 8, error, *[picture(0)] * 9))  # which are not all tried
        with pytest.raises(type(error)) as raised:
            read(source, 8)
        assert raised.value is error
        with pytest.raises(type(error)):
            open_source(Listed(picture(0), error))

    @pytest.mark.parametrize(
        ("sample", "words"),
        [
            ((torch.zeros(3, 4, 4, dtype=torch.int64), 1), "an image of dtype torch.int64: expected uint8 or floating"),
            ((torch.zeros(4, 4, 3), 1), r"an image of shape \(4, 4, 3\): expected \(C, H, W\)"),
            ((torch.zeros(2, 3, 4, 4), 1), r"an image of shape \(2, 3, 4, 4\)"),
            (("text", 1), "no image in the sample: found a tuple of str, int"),
            (PIL.Image.new("RGB", (0, 3)), "0 x 3 pixels"),
            (b"text", "not an image"),
            ((picture(0), "cat"), "labels: missing"),
        ],
    )
    def test_samples_of_another_kind(self, sample: Any, words: str) -> None:
        source = open_source([(picture(0), 1), sample])
        with pytest.raises(SourceError, match=words):
            read(source, 1)

    def test_what_decides(self) -> None:
        def number(index: int) -> int:
            return index + 5

        sample = {"image": picture(0), "label": 3, "caption": "x"}
        source = open_source([sample], key=number)
        expected = {
            "kind": "data set", "key": number.__qualname__, "image_column": "image", "columns": {"labels": "label", "prompts": "caption"},
            "split": None, "inputs_getter": None,
        }  # fmt: skip
        assert json.loads(json.dumps(source.description["decides"])) == expected
        assert open_source([sample], key=number, image_column="image").description["decides"] == expected
        assert open_source([sample], key=[5]).description["decides"] == {**expected, "key": None}
        getter = MapStyleSource([sample], inputs_getter=dict).description["decides"]
        assert (getter["inputs_getter"], getter["columns"]) == ("dict", {})

    def test_first_samples_may_be_damaged(self) -> None:
        source = open_source(Listed(ValueError("x"), ValueError("y"), (picture(0), 3)))
        assert source.inputs == ("labels",)
        with pytest.raises(ConfigError, match="none of the samples tried of this Listed can be read: ValueError: x"):
            open_source(Listed(ValueError("x"), ValueError("y")))

    @pytest.mark.parametrize("change", ["pixels", "size", "keyed", "folder"])
    def test_random_transforms_are_refused(self, change: str, tmp_path: Path) -> None:
        torch.manual_seed(0)
        crop = v2.RandomCrop(3) if change != "size" else lambda image: image[..., : 1 + next(widths)]
        widths = iter(range(5))

        class Training(Listed):
            def __getitem__(self, index: int) -> Any:
                image, label = super().__getitem__(index)
                return crop(image), label

        data: Any = Training((tensor(0), 3), (tensor(1), 4))
        if change == "keyed":
            data = with_keys([(tensor(0), 3)], transform=lambda sample: (crop(sample[0]), *sample[1:]))
        if change == "folder":
            data = ImageFolder(fill(tmp_path, "a/x.png"), transform=crop)
        with pytest.raises(ConfigError, match=r"sample 0 of this \w+ has another image each time .* without random transforms"):
            open_source(data)

    @pytest.mark.parametrize(
        "change", [v2.RandomHorizontalFlip(), v2.RandomGrayscale(0.2), v2.RandomErasing(0.25)], ids=["flip", "grey", "erasing"]
    )
    @pytest.mark.parametrize("kind", ["object", "datasets"])
    def test_rare_random_transforms_are_refused(self, kind: str, change: Any) -> None:
        """One sample read twice shows a flip in half of the runs only; sixteen miss random grey in one run of 480."""

        class Training(Listed):
            def __getitem__(self, index: int) -> Any:
                return change(super().__getitem__(index))

        data: Any = Training(*map(tensor, range(40)))
        if kind == "datasets":
            rows = datasets.Dataset.from_dict({"n": list(range(40))})
            data = rows.with_transform(lambda batch: {"image": [change(tensor(n)) for n in batch["n"]]})
        for seed in range(20):
            torch.manual_seed(seed)
            with pytest.raises(ConfigError, match=r"has another image each time it is read: give the data set without random transforms"):
                open_source(data)

    @pytest.mark.parametrize("count", [1, 5, 16, 31, 1000])
    @pytest.mark.parametrize("seconds", [0, 100])
    def test_reads_when_opened(self, count: int, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sixteen samples at most, each twice; of a slow data set only the first twice, which changes no inputs."""

        class Counting(Listed):
            read: list[int] = []  # noqa: RUF012

            def __getitem__(self, index: int) -> Any:
                self.read.append(index)
                return super().__getitem__(index)

        data = Counting(*((tensor(0), None if i < count - 1 else 3) for i in range(count)))
        data.read.clear()
        monkeypatch.setattr(map_style.time, "monotonic", lambda: seconds * len(data.read))
        source = open_source(data)
        tried = set(data.read)
        assert len(tried) == min(count, 16)
        assert {data.read.count(index) for index in tried - {0}} <= ({1} if seconds else {2})
        assert data.read.count(0) == 2
        assert max(tried) >= count * 15 // 16 - 1  # spread
        assert source.inputs == (("labels",) if count <= 16 else ())

    def test_random_inputs_are_refused_where_they_are_used(self) -> None:
        class Captioned(Listed):
            reads = 0

            def __getitem__(self, index: int) -> Any:
                self.reads += 1
                label, views = super().__getitem__(index)
                return {"image": tensor(index), "caption": views[self.reads % len(views)], "label": label, "extra": object()}

        source = open_source(Captioned((0, ["x", "x"]), (1, ["a cat", "one cat"])))
        assert source.select(["labels"]).inputs == ("labels",)
        with pytest.raises(
            ConfigError, match="sample 1 of this Captioned has other prompts each time it is read: give the data set without"
        ):
            source.select(["prompts", "labels"])
        assert open_source(Captioned((0, ["x"]), (1, ["y"]))).select(["prompts"]).inputs == ("prompts",)
        source = open_source(Captioned((0, [None, "x"])))  # left out at random
        with pytest.raises(ConfigError, match="has other prompts each time"):
            source.select(["prompts"])

    @pytest.mark.parametrize("order", [1, -1])
    def test_a_first_sample_without_inputs(self, order: int, tmp_path: Path) -> None:
        """The inputs are the same in any order; an image without one fails if the generator takes it, and else does not."""
        grey = PIL.Image.fromarray(mask_array([[1]]))
        rows: Any = [{"image": picture(i), "caption": f"photo {i}", "label": i, "mask": grey, "control_map": picture(i)} for i in range(5)]
        rows[0] = {"image": picture(0), **dict.fromkeys(("caption", "label", "mask", "control_map"))}
        source = open_source(Listed(*rows[::order]), key=[f"{row['image'].getpixel((0, 0))}" for row in rows[::order]])
        assert set(source.inputs) == {"prompts", "labels", "masks", "control_maps"}
        assert source.description["decides"]["columns"]["prompts"] == "caption"
        without = source.keys[0 if order == 1 else -1]
        for name in source.inputs:
            with pytest.raises(SourceError, match=f"^{name}: missing for this image$"):
                read(source.select([name]), list(source.keys).index(without))
        done = generate_bank(source, tmp_path, FakeGenerator(), variants=1, progress=False)
        assert (done.images, len(done.failed)) == (5, 0)

        class Prompted(FakeGenerator):
            inputs = ("prompts",)

        done = generate_bank(source, tmp_path / "prompted", Prompted(), variants=1, progress=False)
        assert [(failed["key"], failed["reason"]) for failed in done.failed] == [(without, "prompts: missing for this image")]

    @pytest.mark.parametrize("order", [1, -1])
    def test_other_first_samples(self, order: int) -> None:
        def opened(*samples: Any, **options: Any) -> ImageSource:
            return open_source(Listed(*samples[::order]), **options)

        assert opened((picture(0), None), (picture(1), 3)).inputs == ("labels",)
        assert opened({"image": picture(0)}, {"image": picture(1), "text": "x"}).inputs == ("prompts",)
        assert opened({"image": None}, {"image": picture(1)}).description["decides"]["image_column"] == "image"
        assert opened({"image": picture(0), "t": None}, {"image": picture(1), "t": "x"}, columns={"prompts": "t"}).inputs == ("prompts",)
        assert opened({"image": picture(0), "t": None}, columns={"prompts": "t"}).inputs == ("prompts",)
        assert opened({"image": picture(0), "text": None, "mask": None}).inputs == ()
        assert opened({"image": picture(0)}, {"image": picture(1), "t": "x"}, columns={"prompts": "t"}).inputs == ("prompts",)
        with pytest.raises(ConfigError, match=r"columns=\{'prompts': 'u'\}: no such column in the samples, which has 'image', 't'"):
            opened({"image": picture(0), "t": None}, {"image": picture(1), "t": "x"}, columns={"prompts": "u"})
        getter = lambda sample: {} if sample[1] is None else {"prompts": sample[1]}  # noqa: E731
        assert opened((picture(0), None), (picture(1), "x"), inputs_getter=getter).inputs == ("prompts",)
        getter = lambda sample: {"prompts": sample[1]["a"]}  # noqa: E731
        assert opened((picture(0), {}), (picture(1), {"a": "x"}), inputs_getter=getter).inputs == ("prompts",)
        with pytest.raises(ConfigError, match="'image', 'depth' may be the image"):
            opened({"image": picture(0), "depth": None}, {"image": picture(1), "depth": picture(2)})
        with pytest.raises(ConfigError, match=r"none of the samples tried .*: inputs_getter raised KeyError: 'b'"):
            opened((picture(0), {}), inputs_getter=lambda sample: {"prompts": sample[1]["b"]})

    def test_only_images_that_can_be_read_are_compared(self) -> None:
        class Failing(Listed):
            reads = 0

            def __getitem__(self, index: int) -> Any:
                self.reads += 1
                if self.reads == 2:
                    raise ValueError("gone")
                return super().__getitem__(index)

        assert open_source(Failing((picture(0), 3))).inputs == ("labels",)
        assert open_source([(b"damaged", 3)]).inputs == ("labels",)
        assert open_source([torch.full((3, 2, 2), float("nan"))]).keys == range(1)
        assert open_source([torch.rand(3, 2, 2, dtype=torch.bfloat16)]).keys == range(1)

    def test_no_image(self) -> None:
        with pytest.raises(
            ConfigError, match="no image in the samples of this list: found a tuple of int, str; say where with image_column="
        ):
            open_source([(1, "a")])
        with pytest.raises(ConfigError, match="found a dict of 'a': int"):
            open_source([{"a": 1}])

    def test_torchvision(self, tmp_path: Path) -> None:
        source = open_source(FakeData(size=5, image_size=(3, 8, 8)))
        assert source.keys == range(5)
        reference, label = FakeData(size=5, image_size=(3, 8, 8))[4]
        assert torch.equal(read(source, 4).image, torch.from_numpy(numpy.array(reference)).permute(2, 0, 1))
        assert read(source, 4).inputs == {"labels": int(label)}
        decides = source.description.pop("decides")
        assert source.description == {"kind": "data set", "class": "torchvision.datasets.fakedata.FakeData"}
        empty = dict.fromkeys(("key", "image_column", "split", "inputs_getter"))
        assert decides == {"kind": "data set", "columns": {}, **empty}
        cifar = CIFAR10.__new__(CIFAR10)
        cifar.data, cifar.targets, cifar.transform, cifar.target_transform = numpy.stack([pixels(0), pixels(1)]), [4, 5], None, None
        assert read(open_source(cifar), 1).inputs == {"labels": 5}

    def test_tensor_dataset_and_subset(self) -> None:
        data = TensorDataset(torch.stack([tensor(i) for i in range(4)]), torch.tensor([5, 6, 7, 8]))
        source = open_source(Subset(data, [3, 1]))
        assert source.keys == [3, 1]
        assert read(source, 0).inputs == {"labels": 8}
        assert torch.equal(read(source, 1).image, tensor(1))

    def test_image_folder_object_is_as_the_folder(self, tmp_path: Path) -> None:
        fill(tmp_path, "a/x.png", "b/y.png")
        folder, objects = open_source(tmp_path), open_source(ImageFolder(tmp_path))
        assert folder.keys == objects.keys
        for i in range(2):
            assert torch.equal(read(folder, i).image, read(objects, i).image)
            assert read(folder, i).inputs == read(objects, i).inputs

    def test_orientation_of_an_image_folder_object(self, tmp_path: Path) -> None:
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        (tmp_path / "a").mkdir()
        picture(0).save(tmp_path / "a" / "x.png", exif=exif)
        source = open_source(ImageFolder(tmp_path))
        assert torch.equal(read(source, 0).image, read(open_source(tmp_path), 0).image)
        advised = ImageFolder(tmp_path, loader=lambda path: PIL.ImageOps.exif_transpose(PIL.Image.open(path)).convert("RGB"))
        assert torch.equal(read(open_source(advised), 0).image, read(source, 0).image)
        assert torch.equal(read(source, 0).image, v2.functional.pil_to_tensor(advised[0][0]))

    @pytest.mark.parametrize(("code", "back"), [(3, 180), (6, 270), (8, 90)])
    def test_a_data_set_that_rotates_photos_itself_is_told(self, code: int, back: int) -> None:
        exif, file = PIL.Image.Exif(), io.BytesIO()
        exif[0x0112] = code
        picture(0).save(file, "PNG", exif=exif)
        photos = [picture(i) for i in range(40)]  # of which sixteen are tried when the source is opened
        photos[1] = PIL.Image.open(file).rotate(back, expand=True)
        source = open_source(photos)
        with pytest.warns(UserWarning, match=f"sample 1 of this list .* EXIF orientation {code}: .* rotated itself is rotated again"):
            read(source, 1)
        read(source, 1)  # told once
        photos[1] = PIL.ImageOps.exif_transpose(PIL.Image.open(file))  # as the warning advises
        assert torch.equal(read(open_source(photos), 1).image, v2.functional.pil_to_tensor(photos[1]))

    def test_photos_that_pillow_rotates_itself(self) -> None:
        exif, file = PIL.Image.Exif(), io.BytesIO()
        exif[0x0112] = 6
        picture(0).save(file, "TIFF", exif=exif)
        for change in (lambda image: image, lambda image: image.convert("RGB")):
            data = [change(PIL.Image.open(file))]
            assert torch.equal(read(open_source(data), 0).image, v2.functional.pil_to_tensor(PIL.Image.open(file).convert("RGB")))

    @pytest.mark.parametrize("transform", [None, tuple])
    def test_keyed_data_set(self, transform: Callable[[Any], Any] | None) -> None:
        keyed = with_keys([(picture(0), 3), (picture(1), 4)], key=[70, 71], transform=transform)
        source = open_source(keyed)
        assert source.keys == [70, 71]
        assert read(source, 1).inputs == {"labels": 4}
        bare = open_source(with_keys([picture(0)], key=[70], transform=transform))
        assert bare.inputs == ()  # the key is no label

    @pytest.mark.parametrize("wrap", [lambda data: Subset(data, [3, 1]), lambda data: ConcatDataset([data, data])], ids=["part", "twice"])
    def test_keys_inside_another_data_set_are_no_labels(self, wrap: Callable[[Any], Any]) -> None:
        bare = with_keys([picture(i) for i in range(4)])
        keys = [7 + i for i in range(len(wrap(bare)))]
        assert open_source(wrap(bare), key=keys).inputs == ()
        assert open_source(wrap(with_keys([picture(i) for i in range(4)], key="image-{}".format)), key=keys).inputs == ()
        labelled = open_source(wrap(with_keys([(picture(i), i + 5) for i in range(4)])), key=keys)
        assert read(labelled, 0).inputs == {"labels": wrap(range(5, 9))[0]}
        batches = DataLoader(bare, batch_size=1, collate_fn=lambda batch: (batch[0][0], default_collate([batch[0][1]])))
        assert open_source(list(batches)).inputs == ()

    def test_one_thread_at_a_time(self) -> None:
        class Fragile(Listed):
            inside = 0

            def __getitem__(self, index: int) -> Any:
                self.inside += 1
                assert self.inside == 1
                sum(range(20_000))
                sample = super().__getitem__(index)
                self.inside -= 1
                return sample

        source = open_source(Fragile(*((picture(i), i) for i in range(40))))
        sys.setswitchinterval(1e-5)
        try:
            with ThreadPoolExecutor(8) as pool:
                assert [s.inputs["labels"] for s in pool.map(lambda i: read(source, i), range(40))] == list(range(40))
        finally:
            sys.setswitchinterval(0.005)

    def test_pickles(self) -> None:
        source = pickle.loads(pickle.dumps(open_source(Listed((picture(0), 3)))))
        assert read(source, 0).inputs == {"labels": 3}
        with ThreadPoolExecutor(2) as pool:
            assert len(list(pool.map(lambda i: read(source, i), [0] * 8))) == 8


class TestHuggingFace:
    """Data sets of `datasets`, in memory, on disk and by name."""

    def test_shuffled_rows_keep_their_numbers(self) -> None:
        whole = datasets.Dataset.from_dict({"image": [png(i) for i in range(6)], "label": list(range(6))}, split="train")
        source = open_source(whole.shuffle(seed=1))
        assert sorted(source.keys) == list(range(6)) != source.keys
        for i, key in enumerate(source.keys):
            assert torch.equal(read(source, i).image, tensor(int(key)))
            assert read(source, i).inputs == {"labels": key}
        assert source.description["decides"] == open_source(whole).description["decides"]
        assert source.description["decides"]["split"] == "train"
        assert source.description["decides"]["image_column"] == "image"

    @staticmethod
    def data(*, damaged: bool = False) -> datasets.Dataset:
        features = datasets.Features(
            {
                "id": datasets.Value("string"),
                "label": datasets.ClassLabel(names=["a", "b", "c"]),
                "picture": datasets.Image(),
                "mask": datasets.Image(),
            }
        )
        second, third = (png(1)[:60], None) if damaged else (png(1), png(2))
        rows = {
            "id": ["x", "y", "z"],
            "label": [2, 1, 0],
            "picture": [data and {"bytes": data, "path": None} for data in (png(0), second, third)],
            "mask": [{"bytes": mask_png([[i]]), "path": None} for i in range(3)],
        }
        return datasets.Dataset.from_dict(rows, features=features)

    def test_images_keys_and_inputs(self) -> None:
        source = open_source(self.data(), key="id")
        assert source.keys == ["x", "y", "z"]
        assert set(source.inputs) == {"labels", "masks"}
        sample = read(source, 1)
        assert torch.equal(sample.image, tensor(1))
        assert sample.inputs["labels"] == 1
        assert sample.inputs["masks"].tolist() == mask_array([[1]]).tolist()
        assert open_source(self.data()).keys == range(3)

    def test_the_users_data_set_is_left_alone(self) -> None:
        data = self.data()
        read(open_source(data), 0)
        assert isinstance(data[0]["picture"], PIL.Image.Image)

    def test_damaged_images(self) -> None:
        source = open_source(self.data(damaged=True))
        assert torch.equal(read(source, 0).image, tensor(0))
        with pytest.raises(SourceError, match="truncated"):
            read(source, 1)
        with pytest.raises(SourceError, match="no image"):
            read(source, 2)

    def test_first_image_missing(self) -> None:
        source = open_source(self.data(damaged=True).select([2, 0]))
        assert torch.equal(read(source, 1).image, tensor(0))
        with pytest.raises(SourceError, match="no image"):
            read(source, 0)

    def test_images_by_path(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.png")
        source = open_source(datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).cast_column("image", datasets.Image()))
        assert torch.equal(read(source, 0).image, tensor(0))

    @pytest.mark.parametrize("kind", ["torch", "numpy"])
    def test_formats_do_not_matter(self, kind: str) -> None:
        source = open_source(self.data().with_format(kind), key="id")
        assert source.keys == ["x", "y", "z"]
        assert torch.equal(read(source, 1).image, tensor(1))
        assert read(source, 1).inputs["labels"] == 1

    def test_a_transform_of_the_users_is_applied(self) -> None:
        data = self.data().with_transform(
            lambda batch: {"image": [picture.transpose(0) for picture in batch["picture"]], "label": batch["label"]}
        )
        source = open_source(data)
        assert torch.equal(read(source, 0).image, tensor(0).flip(2))
        assert read(source, 0).inputs == {"labels": 2}

    def test_columns(self) -> None:
        source = open_source(self.data(), columns={"prompts": "id"}, image_column="mask")
        assert source.inputs == ("prompts", "labels")
        assert read(source, 2).image.shape == (3, 6, 8)
        with pytest.raises(ConfigError, match="does not hold strings"):
            open_source(self.data(), columns={"prompts": "label"})
        with pytest.raises(ConfigError, match="key='no': no such column: the data set has 'id', 'label'"):
            open_source(self.data(), key="no")

    def test_pickles(self) -> None:
        source = pickle.loads(pickle.dumps(open_source(self.data(), key="id")))
        assert torch.equal(read(source, 2).image, tensor(2))

    def test_saved_to_disk(self, tmp_path: Path) -> None:
        self.data().save_to_disk(tmp_path / "one")
        source = open_source(tmp_path / "one", key="id")
        assert source.keys == ["x", "y", "z"]
        assert torch.equal(read(source, 1).image, tensor(1))
        assert source.description["name"] == str(tmp_path / "one")
        with pytest.raises(ConfigError, match="split='train': this data set has no splits"):
            open_source(tmp_path / "one", split="train")

    def test_saved_splits(self, tmp_path: Path) -> None:
        datasets.DatasetDict({"train": self.data(), "test": self.data().select([2])}).save_to_disk(str(tmp_path / "all"))
        assert len(open_source(tmp_path / "all")) == 3
        assert len(open_source(str(tmp_path / "all"), split="test")) == 1
        with pytest.raises(ConfigError, match="split='valid': expected one of 'train', 'test'"):
            open_source(tmp_path / "all", split="valid")

    def test_what_datasets_cannot_load(self, tmp_path: Path) -> None:
        (tmp_path / "state.json").write_text("{}")
        (tmp_path / "dataset_info.json").write_text("{}")
        with pytest.raises(ConfigError, match="this data set, written by save_to_disk, cannot be loaded"):
            open_source(tmp_path)

    def test_by_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []

        def load(path: str, /, split: str, **options: Any) -> Any:
            asked.append((path, split, options))
            return self.data()

        monkeypatch.setattr(datasets, "load_dataset", load)
        source = open_source("org/name", key="id")
        assert source.keys == ["x", "y", "z"]
        assert source.description["name"] == "org/name"
        open_source("org/name", split="test")
        options = {"config": "large", "revision": "v2", "token": "hf_secret"}
        source = open_source("org/name", **options)  # type: ignore[arg-type]
        expected = {"name": "large", "revision": "v2", "token": "hf_secret"}
        assert asked == [("org/name", "train", {}), ("org/name", "test", {}), ("org/name", "train", expected)]
        assert (source.description["decides"]["config"], source.description["decides"]["revision"]) == ("large", "v2")
        assert "hf_secret" not in json.dumps(source.description)

    def test_several_image_columns(self) -> None:
        features = {name: datasets.Image() for name in ("left", "right", "mask")}
        rows = {name: [{"bytes": mask_png([[1]]) if name == "mask" else png(i), "path": None}] for i, name in enumerate(features)}
        data = datasets.Dataset.from_dict(rows, datasets.Features(features))
        with pytest.raises(ConfigError, match=r"'left', 'right' may be the image: say which with image_column="):
            open_source(data)
        assert torch.equal(read(open_source(data, image_column="right"), 0).image, tensor(1))

    @pytest.mark.parametrize("other", ["depth", "image2", "mask_image"])
    def test_another_column_beside_image(self, other: str) -> None:
        rows = {"image": [{"bytes": png(0), "path": None}], other: [{"bytes": mask_png([[1]]), "path": None}]}
        data = datasets.Dataset.from_dict(rows, datasets.Features(dict.fromkeys(rows, datasets.Image())))
        for source in (data, [{"image": PIL.Image.new("RGB", (4, 4)), other: PIL.Image.new("L", (4, 4))}]):
            with pytest.raises(ConfigError, match=rf"'image', '{other}' may be the image: say which with image_column='image'"):
                open_source(source)
            assert open_source(source, image_column="image").inputs == ()
            assert open_source(source, columns={"masks": other}).inputs == ("masks",)
            declared = open_source(source, inputs_getter=lambda sample: {"masks": sample[other]})
            assert (declared.inputs, declared.description["decides"]["image_column"]) == (("masks",), "image")

    def test_a_column_of_addresses(self) -> None:
        data = datasets.Dataset.from_dict({"image_url": ["https://example.org/a.jpg"], "n": [1]})
        with pytest.raises(ConfigError, match=r"'image_url' holds addresses, such as 'https://example.org/a.jpg': .*download them first"):
            open_source(data)

    def test_a_lone_split(self) -> None:
        assert len(open_source(datasets.DatasetDict({"test": self.data()}))) == 3
        with pytest.raises(ConfigError, match="split='train': expected one of 'a', 'b'"):
            open_source({"a": self.data(), "b": self.data()})

    def test_by_a_name_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(name: str, split: str) -> None:
            raise datasets.exceptions.DatasetNotFoundError(f"{name} does not exist\non the Hub")

        monkeypatch.setattr(datasets, "load_dataset", refuse)
        with pytest.raises(
            ConfigError, match="source='org/name': no such folder, and as a Hugging Face data set it cannot be loaded: org/name does not"
        ):
            open_source("org/name")

    def test_without_datasets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ConfigError, match=r"need datasets .*pip install 'gentransforms\[bank\]'"):
            open_source("org/name")


class TestListsOfImages:
    """A sample with several images in a list is refused: the first need not be the image."""

    @pytest.mark.parametrize(
        "sample",
        [
            {"images": [picture(0), picture(1)]}, ([picture(0), picture(1)], 3), ((tensor(0), tensor(1)), 3),
            {"x": {"y": (png(0), png(1))}},
            {"pages": [{"scan": picture(0)}, {"scan": picture(1)}]}, ({"left": picture(0), "right": picture(1)}, 3),
            {"images": [{"bytes": png(0), "path": None}] * 3},
        ],
        ids=range(7),
    )  # fmt: skip
    def test_in_samples(self, sample: Any) -> None:
        words = "holds [23] images, any of which may be the image: give a data set with one image a sample"
        with pytest.raises(ConfigError, match=r"sample 0 of this list: a (list|tuple|dict) in it " + words):
            open_source([sample])
        with pytest.raises(ConfigError, match="sample 1 of this list: .*" + words):
            open_source([picture(5), sample])
        other = (picture(5), sample)
        assert torch.equal(read(open_source([other]), 0).image, tensor(5))

    def test_one_image_in_a_list(self) -> None:
        for sample in ({"images": [picture(5)]}, {"data": {"mask": picture(1), "image": picture(5)}}, ([tensor(5)], 3)):
            assert torch.equal(read(open_source([sample]), 0).image, tensor(5))

    def test_a_mask_after_the_image_is_no_second_image(self) -> None:
        assert torch.equal(read(open_source([(picture(5), picture(1))]), 0).image, tensor(5))

    def test_named_beside_a_list(self) -> None:
        sample = {"crops": [picture(0), picture(1)], "photo": picture(5)}
        with pytest.raises(ConfigError, match="or name its entry with image_column="):
            open_source([sample])
        assert torch.equal(read(open_source([sample], image_column="photo"), 0).image, tensor(5))

    def test_in_a_sample_that_was_not_tried(self) -> None:
        source = open_source(Listed(*[([picture(0)], 3)] * 8, ([picture(0), picture(1)], 3), *[([picture(0)], 3)] * 9))
        with pytest.raises(SourceError, match="a list in it holds 2 images"):
            read(source, 8)

    @pytest.mark.parametrize("count", [1, 2])
    @pytest.mark.parametrize("kind", ["list", "large list", "of dicts", "of lists"])
    def test_column_of_a_hugging_face_data_set(self, kind: str, count: int, tmp_path: Path) -> None:
        images: Any = [{"bytes": png(i), "path": None} for i in range(count)]
        feature: Any = {
            "list": [datasets.Image()], "large list": datasets.LargeList(datasets.Image()), "of dicts": [{"scan": datasets.Image()}],
            "of lists": [[datasets.Image()]],
        }[kind]  # fmt: skip
        rows = {"of dicts": [{"scan": image} for image in images], "of lists": [images]}.get(kind, images)
        data = datasets.Dataset.from_dict({"views": [rows] * 2, "n": [0, 1]}, datasets.Features(views=feature, n=datasets.Value("int64")))
        words = r"'views' holds lists of images: expected one image a row, .* dataset\.map\(lambda row: \{'image': row\['views'\]\[0\]\}"
        for options in ({}, {"image_column": "views"}, {"inputs_getter": lambda row: {}}):
            with pytest.raises(ConfigError, match="this Dataset: " + words):
                open_source(data, **options)
        if kind in ("list", "large list"):  # what Parquet holds of the others depends on the version of datasets
            data.to_parquet(tmp_path / "a.parquet")
            for options in ({}, {"image_column": "views"}):
                with pytest.raises(ConfigError, match=r"a\.parquet: " + words):
                    open_source(tmp_path / "a.parquet", **options)
            mapped = data.map(lambda row: {"image": row["views"][0]}, remove_columns="views")  # as the error says
            assert torch.equal(read(open_source(mapped), 1).image, tensor(0))

    def test_a_column_of_images_beside_lists(self) -> None:
        images = [{"bytes": png(i), "path": None} for i in range(2)]
        features = datasets.Features(views=[datasets.Image()], photo=datasets.Image())
        data = datasets.Dataset.from_dict({"views": [images], "photo": [{"bytes": png(5), "path": None}]}, features)
        assert torch.equal(read(open_source(data), 0).image, tensor(5))


class TestShards:
    """Tar files in the format of WebDataset."""

    @staticmethod
    def shard(path: Path, start: int, count: int) -> Path:
        with tarfile.open(path, "w") as file:
            for i in range(start, start + count):
                for suffix, data in (("png", png(i)), ("cls", str(i % 3).encode()), ("txt", f"photo {i}".encode())):
                    info = tarfile.TarInfo(f"{i:03}.{suffix}")
                    info.size = len(data)
                    file.addfile(info, io.BytesIO(data))
        return path

    def test_folder_and_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "shards").mkdir()
        paths = [self.shard(tmp_path / "shards" / f"{i}.tar", 3 * i, 3) for i in range(2)]
        source = open_source(tmp_path / "shards")
        assert source.keys == [f"{i:03}" for i in range(6)]
        sample = read(source, 4)
        assert torch.equal(sample.image, tensor(4))
        assert sample.inputs == {"labels": 1, "prompts": "photo 4"}
        assert open_source(paths[1]).keys == ["003", "004", "005"]
        assert open_source(tmp_path / "shards", split="train").keys == source.keys
        with pytest.raises(ConfigError, match=r"split='test': .*shards holds 'train'"):
            open_source(tmp_path / "shards", split="test")
        with pytest.raises(ConfigError, match=r"split='train': .*1\.tar is one file: leave it out, or give the folder"):
            open_source(paths[1], split="train")

    def test_splits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        names = ("i1k-train-0000", "i1k-train-0001", "i1k-validation-00")
        (tmp_path / "shards [x]").mkdir()  # which is no pattern
        paths = [self.shard(tmp_path / "shards [x]" / f"{name}.tar", i, 1) for i, name in enumerate(names)]
        keys = {split: open_source(tmp_path / "shards [x]", split=split).keys for split in (None, "train", "validation")}
        assert keys == {None: ["000", "001"], "train": ["000", "001"], "validation": ["002"]}
        assert open_source(tmp_path / "shards [x]", split="validation").description["decides"]["split"] == "validation"
        for path in paths[:2]:
            path.unlink()
        lone = open_source(tmp_path / "shards [x]")
        assert (lone.keys, lone.description["decides"]["split"]) == (["002"], "train")  # as in banks that were begun before

    @pytest.mark.parametrize(
        ("names", "split", "chosen"),
        [
            (("a-0", "a-1"), None, ("a-0", "a-1")),
            (("a-0", "a-1"), "train", ("a-0", "a-1")),
            (("train2017", "val2017"), None, ("train2017",)),
            (("train2017", "val2017"), "validation", ("val2017",)),
            (("Train-0", "TEST-0", "valset"), "validation", ("valset",)),
            (("Train-0", "TEST-0", "valset"), None, ("Train-0",)),
            (("x_test", "x_dev"), None, "holds the splits 'test', 'validation': choose one with split="),
            (("x_test", "x_dev"), "val", "split='val': .* holds 'test', 'validation'"),
            (
                ("a-0", "a-1", "val"),
                None,
                r"'validation', and files in no split, .*: 'a-0\.tar', 'a-1\.tar': .*split='validation'",
            ),
            (("a-0", "a-1", "val"), "validation", ("val",)),
            (("train-val-0", "train-0"), None, r"in no split, .*: 'train-val-0\.tar'"),
            (("train-00000-of-00002", "test-00000-of-00001"), "test", ("test-00000-of-00001",)),
            (("trainer", "latest", "evaluate"), None, ("trainer", "latest", "evaluate")),
        ],
        ids=str,
    )
    def test_which_are_chosen(self, names: tuple[str, ...], split: str | None, chosen: Any, tmp_path: Path) -> None:
        paths = [tmp_path / f"{name}.tar" for name in names]
        if isinstance(chosen, tuple):
            assert choose_shards(tmp_path, paths, split) == [tmp_path / f"{name}.tar" for name in chosen]
        else:
            with pytest.raises(ConfigError, match=chosen):
                choose_shards(tmp_path, paths, split)

    def test_a_part_of_the_shards_is_told(self, tmp_path: Path) -> None:
        """The names inside them are the keys, whichever shards are there."""
        paths = [tmp_path / f"{name}-of-00002.tar" for name in ("train-00000", "test-00000", "test-00001")]
        with pytest.warns(UserWarning, match=r"'train-00001-of-00002\.tar' is missing: 1 of 2"):
            assert choose_shards(tmp_path, paths) == paths[:1]
        assert choose_shards(tmp_path, paths, "test") == paths[1:]

    def test_damage(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "a.tar").write_bytes(b"no tar")
        with pytest.raises(ConfigError, match="cannot be loaded as tar shards"):
            open_source(tmp_path / "a.tar")


class TestMasks:
    """A mask has the size of its image as stored, and is turned with it."""

    @pytest.fixture
    def stored(self) -> Any:
        return numpy.random.default_rng(0).integers(0, 256, (6, 8), numpy.uint8)

    @staticmethod
    def photo(values: Any, code: int, kind: str = "PNG") -> bytes:
        """A grey image whose pixels are its mask's."""
        exif, file = PIL.Image.Exif(), io.BytesIO()
        exif[0x0112] = code
        PIL.Image.fromarray(values).save(file, kind, exif=exif)
        return file.getvalue()

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    @pytest.mark.parametrize("code", range(1, 9))
    def test_turned_with_its_image(self, code: int, kind: str, stored: Any, tmp_path: Path) -> None:
        photo = self.photo(stored, code, kind)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "x.png").write_bytes(photo)
        (tmp_path / "folder" / "m.png").write_bytes(mask_png(stored))
        (tmp_path / "folder" / "metadata.csv").write_text("file_name,mask\nx.png,m.png\n")
        for source in (
            open_source(tmp_path / "folder"),
            open_source(parquet(tmp_path / "a.parquet", image=[photo], mask=[mask_png(stored)])),
            open_source([{"image": PIL.Image.open(io.BytesIO(photo)) if kind == "PNG" else photo, "mask": torch.from_numpy(stored)}]),
            open_source([(photo, stored)], inputs_getter=lambda sample: {"masks": sample[1]}),
        ):
            sample = read(source, 0)
            assert torch.equal(sample.image[0].int(), sample.inputs["masks"].int())

    @pytest.mark.parametrize("code", [1, 3, 6, 8])
    def test_a_mask_with_an_orientation_of_its_own(self, code: int, stored: Any) -> None:
        source = open_source([{"image": self.photo(stored, code), "mask": self.photo(stored, code)}])
        sample = read(source, 0)
        assert torch.equal(sample.image[0].int(), sample.inputs["masks"])
        turned = self.photo(numpy.rot90(stored, 1 if code == 6 else 0).copy(), 6 if code == 6 else 3)
        if code == 1:  # the same size, and a tag that turns it
            assert torch.equal(
                read(open_source([{"image": self.photo(stored, 1), "mask": turned}]), 0).inputs["masks"],
                torch.from_numpy(stored).rot90(2).int(),
            )

    @pytest.mark.parametrize("size", [(8, 6), (3, 4), (6, 7), (1, 1)])
    def test_another_size_is_a_failed_source(self, size: tuple[int, int], stored: Any) -> None:
        mask = PIL.Image.fromarray(numpy.zeros(size, numpy.uint8))
        for value in (mask, torch.zeros(size, dtype=torch.int64)):
            for photo in (self.photo(stored, 6), self.photo(stored, 1), tensor(0)):
                with pytest.raises(SourceError, match=f"masks: {size[1]} x {size[0]} pixels, and its image is .*8 x 6"):
                    read(open_source([{"image": photo, "mask": value}]), 0)


class TestControlMaps:
    """A control map has the aspect ratio of its image as stored, at any resolution, and is turned with it."""

    stored = numpy.random.default_rng(0).integers(0, 256, (6, 8), numpy.uint8)

    @pytest.mark.parametrize("code", range(1, 9))
    def test_turned_with_its_image(self, code: int, tmp_path: Path) -> None:
        photo = TestMasks.photo(self.stored, code)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "x.png").write_bytes(photo)
        (tmp_path / "folder" / "m.dat").write_bytes(mask_png(self.stored))
        (tmp_path / "folder" / "metadata.csv").write_text("file_name,control_map\nx.png,m.dat\n")
        grey = torch.from_numpy(self.stored).expand(3, -1, -1)
        for source in (
            open_source(tmp_path / "folder"),
            open_source(parquet(tmp_path / "a.parquet", image=[photo], control_map=[mask_png(self.stored)])),
            open_source([{"image": photo, "control_map": PIL.Image.fromarray(self.stored)}]),
            open_source([(photo, grey)], inputs_getter=lambda sample: {"control_maps": sample[1]}),
        ):
            sample = read(source, 0)
            assert torch.equal(sample.image, sample.inputs["control_maps"])

    @pytest.mark.parametrize("code", [3, 6])
    def test_with_an_orientation_of_its_own(self, code: int) -> None:
        photo = TestMasks.photo(self.stored, code)
        sample = read(open_source([{"image": photo, "control_map": photo}]), 0)
        assert torch.equal(sample.image, sample.inputs["control_maps"])

    @pytest.mark.parametrize("size", [(3, 4), (12, 16), (512, 704)])
    def test_of_another_resolution(self, size: tuple[int, int]) -> None:
        control_map = PIL.Image.fromarray(numpy.zeros(size, numpy.uint8))
        for code, shape in ((1, size), (6, size[::-1])):
            source = open_source([{"image": TestMasks.photo(self.stored, code), "control_map": control_map}])
            assert read(source, 0).inputs["control_maps"].shape == (3, *shape)

    @pytest.mark.parametrize("size", [(8, 6), (6, 7), (6, 6), (512, 512)])
    def test_another_aspect_ratio_is_a_failed_source(self, size: tuple[int, int]) -> None:
        for value in (PIL.Image.fromarray(numpy.zeros(size, numpy.uint8)), torch.zeros(3, *size)):
            for photo in (TestMasks.photo(self.stored, 6), TestMasks.photo(self.stored, 1), tensor(0)):
                with pytest.raises(SourceError, match=f"control_maps: {size[1]} x {size[0]} pixels, and its image is .*8 x 6"):
                    read(open_source([{"image": photo, "control_map": value}]), 0)


class TestOpenSource:
    """The source that fits."""

    class Grey(OneByOne):
        def read(self, index: int) -> SourceSample:
            return SourceSample(torch.zeros(3, 2, 2), {"labels": index, "prompts": "x"})

    def test_kinds(self, tmp_path: Path) -> None:
        fill(tmp_path / "folder", "a.png")
        parquet(tmp_path / "files" / "a.parquet", image=[png(0)])
        assert type(open_source(tmp_path / "folder")) is ImageFolderSource
        assert type(open_source(str(tmp_path / "folder"))) is ImageFolderSource
        assert type(open_source(tmp_path / "files")) is ParquetSource
        assert type(open_source(tmp_path / "files" / "a.parquet")) is ParquetSource
        assert type(open_source([picture(0)])) is MapStyleSource
        own = self.Grey(["a"])
        assert open_source(own) is own

    def test_home_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(fill(tmp_path, "photos/a.png")))
        assert open_source("~/photos").keys == ["a.png"]

    @pytest.mark.parametrize("name", ["no/such/folder", "nothing", "./org/name", "/no", ""])
    def test_a_path_that_is_not_there(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match=r"no such file or folder: expected a folder of images, a \.parquet file"):
            open_source(name)

    def test_other_files_and_banks(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.png")
        with pytest.raises(ConfigError, match=r"a\.png': expected a folder of images, a \.parquet file"):
            open_source(tmp_path / "a.png")
        (tmp_path / "bank.json").touch()
        with pytest.raises(ConfigError, match="is a bank"):
            open_source(tmp_path)

    @pytest.mark.parametrize("source", [3, None, iter([1]), len])
    def test_other_objects(self, source: Any) -> None:
        with pytest.raises(ConfigError, match="has no length and no index: expected a map-style data set"):
            open_source(source)

    def test_iterable_data_sets(self) -> None:
        class Stream(IterableDataset):  # type: ignore[type-arg]
            def __iter__(self) -> Any:
                return iter([])

        with pytest.raises(ConfigError, match="a Stream has no length and no index"):
            open_source(Stream())

    def test_empty(self) -> None:
        with pytest.raises(ConfigError, match="holds no images"):
            open_source([])

    def test_options_that_do_not_apply(self, tmp_path: Path) -> None:
        folder = fill(tmp_path / "folder", "a.png")
        files = parquet(tmp_path / "a.parquet", image=[png(0)])
        for source, options, words in (
            (folder, {"key": "id"}, "key='id': the keys of an image folder are its paths"),
            (folder, {"split": "train"}, "split='train': does not apply to a folder of images"),
            (files, {"inputs_getter": dict}, "does not apply to Parquet files"),
            (self.Grey(["a"]), {"key": "id"}, "key='id': does not apply to an ImageSource"),
            ([picture(0)], {"split": "train"}, "this data set has no splits"),
            ([picture(0)], {"columns": {"labels": "x"}}, "not a dict: give inputs_getter"),
            ([picture(0)], {"key": "id"}, "key='id': a list has no columns"),
        ):
            with pytest.raises(ConfigError, match=words):
                open_source(source, **options)  # type: ignore[arg-type]


class TestFolderOfSeveralKinds:
    """A folder that could be read in several ways is refused, unless what lies beside the images is no data set of images."""

    KEYS = ("cat/0.png", "cat/1.png", "dog/0.png", *(f"dog/deep/{i}.png" for i in range(7)))

    @pytest.mark.parametrize("images", [KEYS, ("cat/0.png",), ("0.png",), ("a/b/c/d/0.png",)], ids=["many", "one", "top", "deep"])
    def test_tar_files_beside_images(self, images: tuple[str, ...], tmp_path: Path) -> None:
        TestShards.shard(fill(tmp_path, *images) / "cat.tar", 0, 2)
        words = rf"holds images, such as '{images[0]}', and tar files, such as 'cat\.tar', which are different data sets: "
        with pytest.raises(ConfigError, match=words + "for the images, move the other files .*; for the tar files .*, give one of them"):
            open_source(tmp_path)
        (tmp_path / "cat.tar").rename(tmp_path / "._cat.tar")  # hidden, as macOS leaves them
        (tmp_path / "folder.tar").mkdir()
        assert open_source(tmp_path).keys == list(images)

    @pytest.mark.parametrize("name", ["annotations.parquet", "audit/scores.parquet", "cat/boxes.parquet", "train.parquet", "._x.parquet"])
    @pytest.mark.parametrize("images", [KEYS, KEYS[:3]], ids=["many", "few"])
    def test_parquet_without_images_is_left_aside(self, images: tuple[str, ...], name: str, tmp_path: Path) -> None:
        parquet(fill(tmp_path, *images) / name, key=["cat/0.png"], similarity=[0.5])
        assert open_source(tmp_path).keys == list(images)
        assert open_source(tmp_path).inputs == ("labels",)

    @pytest.mark.parametrize("name", ["all.parquet", "data/train-00000-of-00001.parquet"])
    def test_parquet_with_images_beside_many_images(self, name: str, tmp_path: Path) -> None:
        parquet(fill(tmp_path, *self.KEYS) / "other.parquet", file=["cat/0.png"])
        parquet(tmp_path / name, image=[png(0)])
        words = rf"holds images, such as 'cat/0\.png', and Parquet files with images, such as '{name}', which are different data sets"
        with pytest.raises(ConfigError, match=words + ".*; for the Parquet files, give one of them"):
            open_source(tmp_path)

    def test_damaged_parquet_beside_images(self, tmp_path: Path) -> None:
        (fill(tmp_path, *self.KEYS) / "train.parquet").write_bytes(b"PAR1")  # who knows what it held
        with pytest.raises(ConfigError, match=r"and Parquet files with images, such as 'train\.parquet'"):
            open_source(tmp_path)

    @pytest.mark.parametrize("name", ["test.parquet", "x.parquet"])
    def test_parquet_with_images_beside_few_images(self, name: str, tmp_path: Path) -> None:
        """`datasets` takes the kind of which there are more files."""
        parquet(fill(tmp_path, "a.png", "b.png") / name, image=[png(0)], label=[7])
        with pytest.warns(UserWarning, match=r"the Parquet files are read, and not the images beside them: 'a\.png', 'b\.png'"):
            assert read(open_source(tmp_path), 0).inputs == {"labels": 7}

    def test_tar_files_beside_parquet(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        TestShards.shard(tmp_path / "00000.tar", 0, 2)
        parquet(tmp_path / "00000.parquet", url=["https://example.org/a.jpg"], caption=["x"])  # as img2dataset writes them
        assert open_source(tmp_path).keys == ["000", "001"]
        parquet(tmp_path / "a.parquet", image=[png(0)])
        with pytest.raises(ConfigError, match=r"Parquet files with images, such as 'a\.parquet', and tar files, such as '00000\.tar'"):
            open_source(tmp_path)

    def test_a_folder_with_the_name_of_a_kind(self, tmp_path: Path) -> None:
        keys = [f"{name}/{i}.png" for name in ("parquet", "tar", "x.parquet", "x.tar") for i in range(5)]
        assert open_source(fill(tmp_path, *keys)).keys == keys

    @pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
    def test_a_file_of_save_to_disk_alone(self, name: str, tmp_path: Path) -> None:
        (fill(tmp_path, "a.png") / name).write_text("{}")
        assert open_source(tmp_path).keys == ["a.png"]

    def test_save_to_disk_beside_images(self, tmp_path: Path) -> None:
        TestHuggingFace.data().save_to_disk(fill(tmp_path, *self.KEYS))
        with pytest.raises(ConfigError, match=r"holds images, .* and what save_to_disk wrote, such as 'state\.json', which are different"):
            open_source(tmp_path)

    def test_looks_are_bounded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contents, "_ENTRIES", 20)
        fill(tmp_path, *(f"text/{i}.txt" for i in range(40)), "text/deep/a.png")
        parquet(tmp_path / "a.parquet", image=[png(0)])
        assert type(open_source(tmp_path)) is ParquetSource


class TestImageSource:
    """What every source has."""

    Grey = TestOpenSource.Grey

    def test_attributes(self) -> None:
        source = self.Grey(["a", "b"], inputs=["labels"], description={"kind": "test"})
        assert (len(source), source.keys, source.key_type, source.inputs) == (2, ["a", "b"], "str", ("labels",))
        assert source.description == {"kind": "test", "decides": {}}
        assert source.select([]).description == source.description
        assert self.Grey(["a"]).description["decides"] == {}

    def test_select(self, tmp_path: Path) -> None:
        source = self.Grey([1, 2], inputs=("labels", "prompts"))
        assert source.select(["prompts", "masks"]).inputs == ("prompts",)
        assert source.inputs == ("labels", "prompts")
        rows = open_source(parquet(tmp_path / "a.parquet", image=[png(0)], label=pa.array([None], pa.int64()), text=["x"]))
        assert read(rows.select(["prompts"]), 0).inputs == {"prompts": "x"}
        with pytest.raises(SourceError, match="labels: missing"):
            read(rows, 0)
        assert read(open_source([(picture(0), 3)]).select([]), 0).inputs == {}

    def test_what_is_not_selected_is_not_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        columns = []
        original = pq.ParquetFile.iter_batches
        monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda self, **k: (columns.append(k["columns"]), original(self, **k))[1])
        source = open_source(parquet(tmp_path / "a.parquet", image=[png(0)], label=[1], text=["x"], other=[1.5]))
        read(source.select(["labels"]), 0)
        assert columns == [["image", "label"]]

    def test_read_range(self) -> None:
        class Gaps(OneByOne):
            def read(self, index: int) -> SourceSample:
                if index == 2:
                    raise SourceError("damaged")
                if index == 4:
                    raise OSError(errno.EIO, "gone")
                return SourceSample(torch.full((3, 2, 2), index), {"labels": index})

        source = Gaps("abcde")
        first, second, third = source.read_range(1, 4)
        assert isinstance(first, SourceSample)
        assert isinstance(third, SourceSample)
        assert (first.inputs["labels"], third.inputs["labels"]) == (1, 3)
        assert isinstance(second, SourceError)
        assert str(second) == "damaged"
        assert list(source.read_range(3, 3)) == []
        with pytest.raises(OSError, match="gone"):
            list(source.read_range(3, 5))

    def test_a_users_own_fills_a_bank(self, tmp_path: Path) -> None:
        """As the page on sources shows it: `keys` and `read_range` are all there is to write."""

        class Ramp(ImageSource):
            def read_range(self, start: int, stop: int) -> Iterator[SourceSample | SourceError]:
                for index in range(start, stop):
                    yield SourceError("lost") if index == 2 else SourceSample(torch.full((3, 8, 8), index / 10), {"labels": index})

        source = Ramp("abcd", inputs=["labels"])
        assert open_source(source) is source
        done = generate_bank(source, tmp_path, FakeGenerator(), variants=2, unit_size=3, batch_size=2, progress=False)
        assert (done.images, [failed["key"] for failed in done.failed]) == (6, ["c"])
        assert Bank.open(tmp_path).keys == ["a", "b", "d"]

    def test_is_abstract(self) -> None:
        with pytest.raises(TypeError, match="abstract"):
            ImageSource(["a"])  # type: ignore[abstract]

    @pytest.mark.parametrize(
        ("keys", "words"),
        [
            (["a", "b", "a"], r"Grey: 1 key names several images: 'a' \(2 images\); give each its own, with key="),
            ([3, 3, 3, 4, 4], r"2 keys name several images: 3 \(3 images\), 4 \(2 images\)"),
            (list("aabbccddee"), r"5 keys name several images: .*, …"),
            (["a", 1], "some keys are str and some int, such as 'a' and 1"),
            (["a", None], "the key None is a NoneType"),
            ([1.0], "the key 1.0 is a float"),
            ([True], "the key True is a bool"),
            ([b"a"], "the key b'a' is a bytes"),
            ([1 << 63], "outside the range of 64-bit integers"),
            (["\ud800"], "is not Unicode text"),
            ([], "holds no images"),
            (range(0), "holds no images"),
        ],
    )
    def test_keys_that_are_refused(self, keys: Any, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            self.Grey(keys)

    def test_keys_become_plain(self) -> None:
        numbers = self.Grey(numpy.array([3, 4])).keys
        assert list(map(type, numbers)) == [int, int]
        texts = self.Grey(numpy.array(["a", "b"])).keys
        assert list(map(type, texts)) == [str, str]
        assert self.Grey([-(1 << 63), (1 << 63) - 1]).key_type == "int"
