"""The choice of a source for what a user names, and the contract of all sources."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from bank_sources import OneByOne, read
from source_files import fill, parquet, picture, png
from torch.utils.data import IterableDataset

from gentransforms.bank.generate.run import generate_bank
from gentransforms.bank.reader import Bank
from gentransforms.errors import ConfigError, SourceError
from gentransforms.sources import open_source
from gentransforms.sources.base import ImageSource, SourceSample
from gentransforms.sources.folder import ImageFolderSource
from gentransforms.sources.map_style import MapStyleSource
from gentransforms.sources.parquet import ParquetSource
from gentransforms.testing import FakeGenerator


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
