"""Parquet files as sources, and reading their rows."""

from __future__ import annotations

import io
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
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
from bank_sources import read
from source_files import CIFAR, fill, mask_array, mask_png, parquet, png, tensor

from gentransforms.errors import ConfigError, SourceError
from gentransforms.sources import open_source, parquet_rows


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
