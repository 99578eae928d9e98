"""Data sets of Hugging Face, and shards of tar files, as sources."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from bank_sources import read
from source_files import fill, hugging_face, mask_array, mask_png, png, shard, tensor

from gentransforms.errors import ConfigError, SourceError
from gentransforms.sources import open_source
from gentransforms.sources.split_files import choose_shards


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

    def test_images_keys_and_inputs(self) -> None:
        source = open_source(hugging_face(), key="id")
        assert source.keys == ["x", "y", "z"]
        assert set(source.inputs) == {"labels", "masks"}
        sample = read(source, 1)
        assert torch.equal(sample.image, tensor(1))
        assert sample.inputs["labels"] == 1
        assert sample.inputs["masks"].tolist() == mask_array([[1]]).tolist()
        assert open_source(hugging_face()).keys == range(3)

    def test_the_users_data_set_is_left_alone(self) -> None:
        data = hugging_face()
        read(open_source(data), 0)
        assert isinstance(data[0]["picture"], PIL.Image.Image)

    def test_damaged_images(self) -> None:
        source = open_source(hugging_face(damaged=True))
        assert torch.equal(read(source, 0).image, tensor(0))
        with pytest.raises(SourceError, match="truncated"):
            read(source, 1)
        with pytest.raises(SourceError, match="no image"):
            read(source, 2)

    def test_first_image_missing(self) -> None:
        source = open_source(hugging_face(damaged=True).select([2, 0]))
        assert torch.equal(read(source, 1).image, tensor(0))
        with pytest.raises(SourceError, match="no image"):
            read(source, 0)

    def test_images_by_path(self, tmp_path: Path) -> None:
        fill(tmp_path, "a.png")
        source = open_source(datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).cast_column("image", datasets.Image()))
        assert torch.equal(read(source, 0).image, tensor(0))

    @pytest.mark.parametrize("kind", ["torch", "numpy"])
    def test_formats_do_not_matter(self, kind: str) -> None:
        source = open_source(hugging_face().with_format(kind), key="id")
        assert source.keys == ["x", "y", "z"]
        assert torch.equal(read(source, 1).image, tensor(1))
        assert read(source, 1).inputs["labels"] == 1

    def test_a_transform_of_the_users_is_applied(self) -> None:
        data = hugging_face().with_transform(
            lambda batch: {"image": [picture.transpose(0) for picture in batch["picture"]], "label": batch["label"]}
        )
        source = open_source(data)
        assert torch.equal(read(source, 0).image, tensor(0).flip(2))
        assert read(source, 0).inputs == {"labels": 2}

    def test_columns(self) -> None:
        source = open_source(hugging_face(), columns={"prompts": "id"}, image_column="mask")
        assert source.inputs == ("prompts", "labels")
        assert read(source, 2).image.shape == (3, 6, 8)
        with pytest.raises(ConfigError, match="does not hold strings"):
            open_source(hugging_face(), columns={"prompts": "label"})
        with pytest.raises(ConfigError, match="key='no': no such column: the data set has 'id', 'label'"):
            open_source(hugging_face(), key="no")

    def test_pickles(self) -> None:
        source = pickle.loads(pickle.dumps(open_source(hugging_face(), key="id")))
        assert torch.equal(read(source, 2).image, tensor(2))

    def test_saved_to_disk(self, tmp_path: Path) -> None:
        hugging_face().save_to_disk(tmp_path / "one")
        source = open_source(tmp_path / "one", key="id")
        assert source.keys == ["x", "y", "z"]
        assert torch.equal(read(source, 1).image, tensor(1))
        assert source.description["name"] == str(tmp_path / "one")
        with pytest.raises(ConfigError, match="split='train': this data set has no splits"):
            open_source(tmp_path / "one", split="train")

    def test_saved_splits(self, tmp_path: Path) -> None:
        datasets.DatasetDict({"train": hugging_face(), "test": hugging_face().select([2])}).save_to_disk(str(tmp_path / "all"))
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
            return hugging_face()

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
        assert len(open_source(datasets.DatasetDict({"test": hugging_face()}))) == 3
        with pytest.raises(ConfigError, match="split='train': expected one of 'a', 'b'"):
            open_source({"a": hugging_face(), "b": hugging_face()})

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


class TestShards:
    """Tar files in the format of WebDataset."""

    def test_folder_and_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "shards").mkdir()
        paths = [shard(tmp_path / "shards" / f"{i}.tar", 3 * i, 3) for i in range(2)]
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
        paths = [shard(tmp_path / "shards [x]" / f"{name}.tar", i, 1) for i, name in enumerate(names)]
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
