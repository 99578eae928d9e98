"""Samples that carry the key of their image: the keys of the bank made from the same data."""

from __future__ import annotations

import pickle
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, random_split
from torchvision.datasets import FakeData, ImageFolder, ImageNet

import gentransforms as gt
from gentransforms.errors import BankError, ConfigError
from gentransforms.sources import open_source
from gentransforms.sources.folder import ImageFolderSource
from gentransforms.sources.keyed import KeyedDataset, with_keys
from gentransforms.sources.keys import list_keys, tell_other_root
from gentransforms.testing import FakeGenerator

NAMES = ("b/2.png", "b/10.png", "a/x.png", "a-b/y.png", "a/sub/z.png", "a/sub-2/z.png", "é/猫.png")


def fill(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (4, 4), (seed, 0, 0)).save(root / name)
    return root


class Doubled(Dataset[Any]):
    """The numbers 0, 10, 20, …; says which it was asked for together."""

    def __init__(self, count: int = 5) -> None:
        self.count, self.together = count, []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        assert type(index) is int
        assert 0 <= index < self.count
        return 10 * index, "label"


class Together(Doubled):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.together.append(indices)
        return [self[index] for index in indices]


class TestWithKeys:
    """What becomes of a sample."""

    @pytest.mark.parametrize(
        ("sample", "expected"),
        [
            (("image", 3), ("image", 3, "k0")),
            (["image", 3], ["image", 3, "k0"]),
            ({"image": "image", "label": 3}, {"image": "image", "label": 3, "key": "k0"}),
            ("image", ("image", "k0")),
            (("image",), ("image", "k0")),
            (namedtuple("Sample", "image label")("image", 3), ("image", 3, "k0")),
        ],
    )
    def test_kinds_of_samples(self, sample: Any, expected: Any) -> None:
        found = with_keys([sample], key="k{}".format)[0]
        assert type(found) is type(expected)
        assert found == expected

    def test_the_sample_itself_is_left_alone(self) -> None:
        samples: list[Any] = [{"image": 1}, [1, 2]]
        list(map(with_keys(samples, key=["a", "b"]).__getitem__, range(2)))
        assert samples == [{"image": 1}, [1, 2]]

    def test_bare_images(self) -> None:
        image = torch.zeros(3, 4, 4)
        found, key = with_keys([image])[0]
        assert found is image
        assert key == 0

    def test_transform_sees_the_key(self) -> None:
        data = with_keys([("image", 3)], key=["k"], transform=lambda sample: f"seen {sample}")
        assert data[0] == "seen ('image', 3, 'k')"
        assert data.__getitems__([0]) == ["seen ('image', 3, 'k')"]

    def test_entry_of_that_name(self) -> None:
        with pytest.raises(ConfigError, match="the samples have an entry 'key' already, here 'x', and the key is 0"):
            with_keys([{"image": 1, "key": "x"}])[0]
        assert with_keys([{"image": 1, "key": "x"}], key=["x"])[0]["key"] == "x"

    @pytest.mark.parametrize("index", [-1, -5, 0, 4, numpy.int64(3), numpy.int8(-2), torch.tensor(2)])
    def test_indices(self, index: Any) -> None:
        place = range(5)[int(index)]
        assert with_keys(Doubled(), key="k{}".format)[index] == (10 * place, "label", f"k{place}")

    @pytest.mark.parametrize("index", [5, -6])
    def test_indices_out_of_range(self, index: int) -> None:
        with pytest.raises(IndexError, match=f"index {index} of a data set of 5 samples"):
            with_keys(Doubled())[index]

    def test_indices_of_another_type(self) -> None:
        with pytest.raises(TypeError):
            with_keys(Doubled())["1"]  # type: ignore[index]

    def test_can_be_gone_through(self) -> None:
        assert [key for *_, key in with_keys(Doubled())] == [0, 1, 2, 3, 4]  # type: ignore[attr-defined]

    def test_several_at_once(self) -> None:
        base = Together()
        assert with_keys(base).__getitems__([3, numpy.int64(-1)]) == [(30, "label", 3), (40, "label", 4)]
        assert base.together == [[3, 4]]
        assert with_keys(Doubled()).__getitems__([3, -1]) == [(30, "label", 3), (40, "label", 4)]

    @pytest.mark.parametrize("base", [Doubled, Together])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_in_a_loader(self, base: type[Doubled], workers: int) -> None:
        loader = DataLoader(with_keys(base(6), key="k{}".format), batch_size=4, num_workers=workers)
        numbers, keys = [], []
        for number, _, key in loader:
            numbers += number.tolist()
            keys += key
        assert numbers == [0, 10, 20, 30, 40, 50]
        assert keys == ["k0", "k1", "k2", "k3", "k4", "k5"]

    def test_int_keys_are_collated(self) -> None:
        (_, _, keys) = next(iter(DataLoader(with_keys(Doubled()), batch_size=3)))
        assert keys.tolist() == [0, 1, 2]
        assert keys.dtype == torch.int64

    def test_pickles(self) -> None:
        data = pickle.loads(pickle.dumps(with_keys(Doubled(), key=list("abcde"))))
        assert isinstance(data, KeyedDataset)
        assert data[2] == (20, "label", "c")

    def test_hugging_face(self) -> None:
        data = datasets.Dataset.from_dict({"id": ["x", "y"], "label": [3, 4]})
        keyed = with_keys(data, key="id")
        assert keyed[1] == {"id": "y", "label": 4, "key": "y"}
        assert keyed.__getitems__([1, 0])[1] == {"id": "x", "label": 3, "key": "x"}
        assert next(iter(DataLoader(keyed, batch_size=2)))["key"] == ["x", "y"]

    def test_duplicates_are_found_up_front(self) -> None:
        with pytest.raises(ConfigError, match=r"Doubled: 1 key names several images: 'k' \(5 images\); give each its own, with key="):
            with_keys(Doubled(), key=lambda index: "k")

    def test_streams(self) -> None:
        class Stream(IterableDataset[int]):
            def __iter__(self) -> Iterator[int]:
                return iter([1])

        with pytest.raises(ConfigError, match="a Stream has no length and no index: expected a map-style data set"):
            with_keys(Stream())


class TestKeysOf:
    """One rule for the bank's source and for the training loop's data set."""

    def test_image_folder(self, tmp_path: Path) -> None:
        data = ImageFolder(fill(tmp_path, *NAMES))
        keys = list_keys(data)
        assert keys == [Path(path).relative_to(tmp_path).as_posix() for path, _ in data.samples]
        assert keys == ImageFolderSource(tmp_path).keys
        assert keys == open_source(data).keys
        assert keys == with_keys(data).keys
        assert [with_keys(data)[i][2] for i in range(len(data))] == keys

    @pytest.mark.parametrize("root", ["images", "./images", "images/", "images//", "../here/images"])
    def test_image_folder_however_its_root_is_written(self, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(tmp_path / "here" / "images", *NAMES)
        monkeypatch.chdir(tmp_path / "here")
        expected = ImageFolderSource("images").keys
        assert list_keys(ImageFolder(root)) == expected
        assert list_keys(ImageFolder(Path(root))) == expected
        assert ImageFolderSource(root).keys == expected

    def test_image_folder_whose_samples_were_chosen(self, tmp_path: Path) -> None:
        data = ImageFolder(fill(tmp_path, *NAMES))
        data.samples = [sample for sample in data.samples if "sub" in sample[0]]
        assert list_keys(data) == ["a/sub/z.png", "a/sub-2/z.png"] == open_source(data).keys

    def test_imagenet_has_the_keys_of_its_image_folder(self, tmp_path: Path) -> None:
        fill(tmp_path / "train", "n01440764/x.JPEG", "n01443537/y.JPEG")
        data = ImageNet.__new__(ImageNet)
        ImageFolder.__init__(data, tmp_path / "train")
        data.root, data.split = str(tmp_path), "train"
        assert list_keys(data) == ["n01440764/x.JPEG", "n01443537/y.JPEG"] == ImageFolderSource(tmp_path / "train").keys

    def test_samples_of_another_kind(self) -> None:
        class Other(Doubled):
            samples, root = (1, 2, 3, 4, 5), "x"

        assert list_keys(Other()) == range(5)

    def test_row_numbers(self) -> None:
        assert list_keys(FakeData(size=3)) == range(3)
        assert list_keys(TensorDataset(torch.zeros(4))) == range(4)
        assert list_keys(datasets.Dataset.from_dict({"a": [1, 2]})) == range(2)

    @given(st.lists(st.integers(0, 99), min_size=1, unique=True))
    def test_subset(self, indices: list[int]) -> None:
        assert list_keys(Subset(Doubled(100), indices)) == indices
        named = with_keys(Doubled(100), key="k{}".format)
        assert list_keys(Subset(named, indices)) == [f"k{i}" for i in indices]
        assert list_keys(Subset(Subset(named, indices), range(len(indices)))) == [f"k{i}" for i in indices]

    def test_subset_of_an_image_folder(self, tmp_path: Path) -> None:
        data = ImageFolder(fill(tmp_path, *NAMES))
        first, second = random_split(data, [3, 4])
        assert sorted([*list_keys(first), *list_keys(second)]) == sorted(NAMES)
        assert [with_keys(first)[i][2] for i in range(3)] == list_keys(first)
        assert list_keys(Subset(data, numpy.array([2, 0]))) == [list_keys(data)[2], list_keys(data)[0]]

    def test_subset_with_repeats(self) -> None:
        with pytest.raises(ConfigError, match=r"Subset: 1 key names several images: 3 \(2 images\)"):
            list_keys(Subset(Doubled(), [3, 3]))

    def test_shuffled_hugging_face_data_set(self) -> None:
        whole = datasets.Dataset.from_dict({"label": list(range(100, 120))})
        changed = {
            "shuffled": whole.shuffle(seed=1),
            "filtered": whole.filter(lambda row: row["label"] % 3 == 0),
            "selected": whole.select([5, 2, 9]),
            "twice": whole.shuffle(seed=1).select([3, 0]),
            "split": whole.train_test_split(0.3, seed=0)["test"],
            "formatted": whole.shuffle(seed=2).with_format("torch"),
        }
        for name, data in changed.items():
            keyed = with_keys(data)
            assert all(int(sample["label"]) == 100 + sample["key"] for sample in map(keyed.__getitem__, range(len(keyed)))), name
            assert list(keyed.keys) != list(range(len(data))), name
            assert list_keys(Subset(data, [1, 0])) == [keyed.keys[1], keyed.keys[0]]
        assert list_keys(changed["selected"]) == [5, 2, 9]
        assert list_keys(changed["shuffled"], key="label") == changed["shuffled"]["label"][:]
        with pytest.raises(ConfigError, match=r"Dataset: 1 key names several images: 3 \(2 images\)"):
            list_keys(whole.select([3, 3, 1]))

    def test_concatenation(self, tmp_path: Path) -> None:
        parts = [with_keys(Doubled(2), key=[f"{name}0", f"{name}1"]) for name in "ab"]
        assert list_keys(ConcatDataset(parts)) == ["a0", "a1", "b0", "b1"]
        assert list_keys(ConcatDataset([Doubled(2), Doubled(3)])) == range(5)
        assert list_keys(ConcatDataset([parts[0], Doubled(3)])) == range(5)
        folders = [ImageFolder(fill(tmp_path / name, "c/x.png")) for name in "ab"]
        with pytest.raises(ConfigError, match=r"'c/x\.png' \(2 images\)"):
            list_keys(ConcatDataset(folders))
        assert list_keys(ConcatDataset(folders), key="{}".format) == ["0", "1"]

    def test_concatenation_of_parts_of_one_data_set(self) -> None:
        data, rows = Doubled(9), datasets.Dataset.from_dict({"label": list(range(9))})
        first, second = Subset(data, [4, 2]), Subset(data, [7, 0])
        nested = Subset(ConcatDataset([data, Doubled(2)]), [8, 10])
        for parts, keys in (
            ([first, second], [4, 2, 7, 0]),
            ([first, Subset(second, [1])], [4, 2, 0]),
            ([first, ConcatDataset([second])], [4, 2, 7, 0]),
            ([with_keys(first), second], [4, 2, 7, 0]),
            ([with_keys(Doubled(2), key=[50, 60]), with_keys(Doubled(2), key=[70, 80])], [50, 60, 70, 80]),
            ([rows.select([5, 2]), Subset(rows, [1]), rows.select([3, 0]).with_format("torch")], [5, 2, 1, 3, 0]),
            ([nested, Subset(nested.dataset, [3])], [8, 10, 3]),
        ):
            assert list_keys(ConcatDataset(parts)) == keys

    def test_concatenation_of_parts_of_different_data_sets(self) -> None:
        one, other = Doubled(9), Doubled(9)
        rows, others = (datasets.Dataset.from_dict({"label": list(range(i, i + 9))}) for i in range(2))
        for first, second in (
            (Subset(one, [0, 1]), Subset(other, [2, 3])),
            (Subset(Subset(one, [0, 1]), [1]), Subset(other, [2, 3])),
            (with_keys(Subset(one, [0, 1])), Subset(other, [2, 3])),
            (with_keys(one), Subset(with_keys(Doubled(20)), [11, 12])),
            (with_keys(Doubled(2), key=[50, 60]), Subset(other, [2, 3])),
            (rows.select([5, 2]), others.select([3, 1])),
            (rows.select(range(2)).select([1, 0]), rows.select([5, 2])),
            (Subset(one, [0, 1]), Subset(ConcatDataset([one, other]), [2, 3])),
            (ConcatDataset([Subset(one, [0])]), Subset(other, [2])),
        ):
            both: Any = ConcatDataset([first, second])
            with pytest.raises(ConfigError, match=r"ConcatDataset: .* row numbers of different data sets.*key=") as raised:
                list_keys(both)
            with pytest.raises(ConfigError, match="row numbers of different data sets"):
                with_keys(Subset(both, [0]))
            assert list_keys(both, range(len(both))) == range(len(both))
        assert "list(first.indices) + list(second.indices)" in str(raised.value)
        same = ConcatDataset([Subset(one, [0, 1]), Subset(other, [2, 3])])
        indices = [i for part in same.datasets for i in part.indices]  # type: ignore[attr-defined]
        assert list_keys(same, indices) == [0, 1, 2, 3]

    def test_with_keys_again(self) -> None:
        assert with_keys(with_keys(Doubled(2), key=["a", "b"])).keys == ["a", "b"]

    def test_function_column_and_list(self) -> None:
        data = datasets.Dataset.from_dict({"id": [7, 9]})
        assert list_keys(data, "id") == [7, 9]
        assert list_keys(data.with_format("torch"), "id") == [7, 9]
        assert list_keys(data, lambda index: f"n{index}") == ["n0", "n1"]
        for keys in (["x", "y"], ("x", "y"), numpy.array(["x", "y"])):
            assert list_keys(data, keys) == ["x", "y"]
        assert list_keys(data, range(5, 7)) == range(5, 7)
        assert list_keys(data, torch.tensor([4, 3])) == [4, 3]  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("key", "words"),
        [
            (["a"], "1 keys for 5 samples: expected one for each, in order"),
            ("id", "key='id': a Together has no columns"),
            (3, "key=3: expected a function from the index to the key, a column name, or a list of keys"),
            (lambda index: float(index), r"the key 0\.0 is a float: expected str or int"),
            (lambda index: index if index else "0", "some keys are str and some int, such as '0' and 1"),
        ],
    )
    def test_what_is_refused(self, key: Any, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            list_keys(Together(), key)

    def test_empty(self) -> None:
        with pytest.raises(ConfigError, match="list: holds no images"):
            with_keys([])

    def test_samples_are_not_read(self) -> None:
        class Unread(Doubled):
            def __getitem__(self, index: int) -> Any:
                pytest.fail("a sample was read")

        assert len(with_keys(Unread())) == 5
        assert with_keys(Unread(), key="k{}".format).keys[4] == "k4"


class TestOtherRoots:
    """A bank and a data set whose keys differ by the root folder alone."""

    @pytest.mark.parametrize("key", [3, "cat/2.jpg", "at/1.jpg", "1", "cat/1.jpg/x"])
    def test_of_other_images_nothing_is_told(self, key: Any) -> None:
        assert tell_other_root(key, ["cat/1.jpg", "dog/1.jpg"]) == tell_other_root(key, [0, 1]) == ""

    @pytest.mark.parametrize(
        ("key", "known", "others"),
        [
            ("0001.jpg", ["cat/0001.jpg", "dog/0001.jpg"], []),
            ("a/b/1.jpg", ["b/1.jpg", "1.jpg"], []),
            ("org/name", ["name"], []),
            ("name", ["org/name"], []),
            ("1.jpg", ["cat/1.jpg", "dog/2.jpg"], ["2.jpg"]),
            ("1.jpg", ["cat/1.jpg"], ["2.jpg", "3.jpg"]),
            ("1.jpg", ["cat/1.jpg", "2.jpg"], ["2.jpg"]),
        ],
        ids=["two above", "two below", "no file below", "no file above", "another folder each", "chance", "the root is right"],
    )
    def test_of_what_is_not_clear_nothing_is_told(self, key: str, known: list[str], others: list[str]) -> None:
        assert tell_other_root(key, known, others) == ""

    def test_other_keys_tell_which_of_two_folders(self) -> None:
        known = ["cat/1.jpg", "dog/1.jpg", "cat/2.jpg", "dog/3.jpg"]
        assert "'dog/1.jpg' is: keys are paths" in tell_other_root("1.jpg", known, ["1.jpg", "new.jpg", "3.jpg"])
        assert "the folder 'x' in it" in tell_other_root("x/cat/1.jpg", known, ["y/bird/1.jpg", "x/dog/3.jpg"])

    def test_a_run_and_an_audit_name_the_folder(self, tmp_path: Path) -> None:
        photos = fill(tmp_path / "photos", "cat/1.png", "cat/2.png")
        gt.generate_bank(photos, tmp_path / "bank", FakeGenerator(), variants=2, progress=False)
        told = r"'1\.png' is not in the bank, but 'cat/1\.png' is: .*the folder that contains 'cat' as the root"
        with pytest.raises(BankError, match=told):
            gt.generate_bank(photos / "cat", tmp_path / "bank", FakeGenerator(), variants=2, progress=False)
        with pytest.raises(BankError, match=told):
            gt.audit_bank(tmp_path / "bank", photos / "cat", encoder=lambda images: images.flatten(1), progress=False)
        above = r"'photos/cat/1\.png' is not in the bank, but 'cat/1\.png' is: .*the folder 'photos' in it as the root"
        (tmp_path / "above").mkdir()
        photos.rename(tmp_path / "above" / "photos")
        with pytest.raises(BankError, match=above):
            gt.generate_bank(tmp_path / "above", tmp_path / "bank", FakeGenerator(), variants=2, progress=False)
