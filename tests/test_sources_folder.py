"""Folders of images as sources, with and without a metadata file."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
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
from bank_sources import read
from source_files import fill, hugging_face, mask_png, parquet, png, shard, tensor
from torchvision.datasets import ImageFolder

from gentransforms.errors import ConfigError, SourceError
from gentransforms.sources import contents, open_source
from gentransforms.sources.base import SourceSample
from gentransforms.sources.folder import ImageFolderSource
from gentransforms.sources.parquet import ParquetSource


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


class TestFolderOfSeveralKinds:
    """A folder that could be read in several ways is refused, unless what lies beside the images is no data set of images."""

    KEYS = ("cat/0.png", "cat/1.png", "dog/0.png", *(f"dog/deep/{i}.png" for i in range(7)))

    @pytest.mark.parametrize("images", [KEYS, ("cat/0.png",), ("0.png",), ("a/b/c/d/0.png",)], ids=["many", "one", "top", "deep"])
    def test_tar_files_beside_images(self, images: tuple[str, ...], tmp_path: Path) -> None:
        shard(fill(tmp_path, *images) / "cat.tar", 0, 2)
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
        shard(tmp_path / "00000.tar", 0, 2)
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
        hugging_face().save_to_disk(fill(tmp_path, *self.KEYS))
        with pytest.raises(ConfigError, match=r"holds images, .* and what save_to_disk wrote, such as 'state\.json', which are different"):
            open_source(tmp_path)

    def test_looks_are_bounded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contents, "_ENTRIES", 20)
        fill(tmp_path, *(f"text/{i}.txt" for i in range(40)), "text/deep/a.png")
        parquet(tmp_path / "a.parquet", image=[png(0)])
        assert type(open_source(tmp_path)) is ParquetSource
