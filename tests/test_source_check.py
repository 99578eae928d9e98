"""Images that ask a bank for variants under the keys of others are refused, wherever they come from."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank_sources import OneByOne, structured_photos
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset, default_collate, random_split
from torchvision import tv_tensors
from torchvision.transforms import v2

from gentransforms.bank.generate.run import generate_bank
from gentransforms.bank.reader import Bank
from gentransforms.errors import ConfigError, SourceError
from gentransforms.sources import open_source
from gentransforms.sources.base import SourceSample
from gentransforms.sources.keyed import with_keys
from gentransforms.sources.resemblance import mark
from gentransforms.sources.sample_keys import KeyOrigin, find_keys, key_origins, mark_key
from gentransforms.testing import FakeGenerator
from gentransforms.transforms.bank import BankAugment
from gentransforms.transforms.source_check import MOST

COUNT = 100
PHOTOS = structured_photos(COUNT)
HEAVY = v2.Compose([
    v2.RandomResizedCrop(32, (0.25, 1.0)), v2.RandomHorizontalFlip(), v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
    v2.RandomGrayscale(0.2),
])  # fmt: skip
CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "none": lambda image: image,
    "size": v2.Resize(50),
    "crop": v2.Compose([v2.RandomCrop(32, 4), v2.RandomHorizontalFlip()]),
    "heavy": HEAVY,
    "PIL": v2.ToPILImage(),
    "float": v2.ToDtype(torch.float32, scale=True),
    "tv_tensor": tv_tensors.Image,
}


class Photos(torch.utils.data.Dataset[Any]):
    """Photos as a user's data set has them, with its own transform; counts how many are read."""

    def __init__(self, photos: list[Tensor], change: Callable[[Tensor], Any] = lambda image: image) -> None:
        self.photos, self.change, self.read = photos, change, 0

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Any:
        self.read += 1
        return self.change(self.photos[index]), index % 7


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    folder = tmp_path_factory.mktemp("bank")
    generate_bank(Photos(PHOTOS), folder, FakeGenerator(), variants=1, unit_size=30, batch_size=16, progress=False)
    return Bank.open(folder)


class TestMarks:
    """A bank keeps a mark of each source that has images."""

    def test_are_those_of_the_sources(self, bank: Bank) -> None:
        assert bank.marks is not None
        assert (bank.marks == np.stack([mark(photo) for photo in PHOTOS])).all()
        assert bank.source_count == COUNT

    def test_where_sources_failed(self, tmp_path: Path) -> None:
        class Gaps(OneByOne):
            def read(self, index: int) -> SourceSample:
                if index in (0, 5, 6):
                    raise SourceError("damaged")
                return SourceSample(PHOTOS[index])

        generate_bank(
            Gaps([f"{i:02}" for i in range(12)]), tmp_path, FakeGenerator(), variants=2, unit_size=4, batch_size=3, progress=False
        )
        opened = Bank.open(tmp_path)
        assert opened.marks is not None
        assert (opened.marks == np.stack([mark(PHOTOS[int(key)]) for key in opened.keys])).all()
        assert (len(opened.keys), opened.source_count) == (9, 12)


class TestWithKeys:
    """The data set is compared when it is built."""

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_the_right_rows(self, change: Callable[[Tensor], Any], bank: Bank) -> None:
        torch.manual_seed(0)
        keyed = with_keys(Photos(PHOTOS, change), transform=BankAugment(bank, p=1.0))
        assert keyed[3][-1] == 3

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    @pytest.mark.parametrize("shift", [1, 50])
    def test_other_rows(self, change: Callable[[Tensor], Any], shift: int, bank: Bank) -> None:
        torch.manual_seed(0)
        rolled = Photos(PHOTOS[shift:] + PHOTOS[:shift], change)
        with pytest.raises(ConfigError, match=r"the key \d+ looks like the bank's source \d+.*give with_keys\(\)"):
            with_keys(rolled, transform=BankAugment(bank, p=1.0))

    def test_the_example_is_right(self, bank: Bank) -> None:
        with pytest.raises(ConfigError, match="the image with the key 0 looks like the bank's source 40"):
            with_keys(Photos(PHOTOS[40:]), transform=BankAugment(bank))

    def test_rows_left_out_in_the_middle(self, bank: Bank) -> None:
        with pytest.raises(ConfigError, match="looks like the bank's source"):
            with_keys(Photos(PHOTOS[:60] + PHOTOS[61:]), transform=BankAugment(bank))

    def test_few_images(self, bank: Bank) -> None:
        with pytest.raises(ConfigError, match="the key 0 looks like the bank's source 70"):
            with_keys(Photos(PHOTOS[70:73]), transform=BankAugment(bank))

    def test_keys_of_the_whole(self, bank: Bank) -> None:
        part = Subset(Photos(PHOTOS), range(40, 70))
        assert with_keys(part, transform=BankAugment(bank, p=1.0))[0][-1] == 40
        assert with_keys(Photos(PHOTOS[40:]), key=list(range(40, COUNT)), transform=BankAugment(bank, p=1.0))[0][-1] == 40

    def test_a_differing_length_warns(self, bank: Bank) -> None:
        with pytest.warns(UserWarning, match="made from 100 images, and the data set has 60, whose keys are row numbers"):
            with_keys(Photos(PHOTOS[:60]), transform=BankAugment(bank))

    @pytest.mark.parametrize("count", [COUNT, 40])
    def test_another_data_set_warns(self, count: int, bank: Bank) -> None:
        others = Photos(structured_photos(2 * COUNT)[COUNT : COUNT + count])
        expected = f"{min(count, MOST)} images resemble the bank's sources with the same keys no more than other sources"
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with_keys(others, transform=BankAugment(bank))
        assert [expected in str(warning.message) for warning in said] == [True] + [False] * (count < COUNT)

    def test_right_images_that_are_inverted_or_have_one_channel(self, bank: Bank) -> None:
        for change in (v2.RandomInvert(1.0), v2.RandomSolarize(0.0, 1.0), lambda image: image[:1]):
            with_keys(Photos(PHOTOS, change), transform=BankAugment(bank))

    def test_within_other_transforms(self, bank: Bank) -> None:
        for transform in (
            v2.Compose([v2.Resize(16), BankAugment(bank)]),
            v2.Compose([v2.RandomApply([BankAugment(bank)]), v2.Resize(16)]),
        ):
            with pytest.raises(ConfigError, match="looks like the bank's source"):
                with_keys(Photos(PHOTOS[40:]), transform=transform)

    def test_it_can_be_left_out(self, bank: Bank) -> None:
        data = Photos(PHOTOS[40:])
        with_keys(data, transform=BankAugment(bank, check_sources=False))
        with_keys(data, transform=len)
        assert data.read == 0

    def test_eight_are_read_where_they_tell(self, bank: Bank) -> None:
        data = Photos(PHOTOS)
        with_keys(data, transform=BankAugment(bank))
        assert data.read == 8

    def test_random_states_stay(self, bank: Bank) -> None:
        def change(image: Tensor) -> Tensor:
            random.random()
            np.random.random()  # noqa: NPY002
            return HEAVY(image)

        def drawn() -> tuple[Any, ...]:
            return torch.rand(1).item(), np.random.random(), random.random()  # noqa: NPY002

        draws = []
        for transform in (None, BankAugment(bank)):
            torch.manual_seed(3)
            np.random.seed(3)  # noqa: NPY002
            random.seed(3)
            with_keys(Photos(PHOTOS, change), transform=transform)
            draws.append(drawn())
        assert draws[0] == draws[1]

    def test_samples_that_cannot_be_read_are_for_later(self, bank: Bank) -> None:
        def fail(image: Tensor) -> Tensor:
            raise OSError("damaged")

        with_keys(Photos(PHOTOS, fail), transform=BankAugment(bank))
        with_keys([("no image", 1)] * COUNT, transform=BankAugment(bank))


class TestBankAugment:
    """Elsewhere the first images are compared."""

    @staticmethod
    def feed(augment: BankAugment, photos: list[Tensor], size: int, start: int = 0) -> int:
        """Give images with the keys 0, 1, … in batches; return how many were taken before they were refused."""
        for first in range(0, len(photos), size):
            images = torch.stack(photos[first : first + size])
            try:
                augment({"image": images if size > 1 else images[0], "key": list(range(first, first + len(images)))})
            except ConfigError:
                return first + size
        return len(photos)

    @pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("size", [1, 5, 40])
    def test_other_images_are_refused_once_there_are_eight(self, size: int, p: float, bank: Bank) -> None:
        taken = self.feed(BankAugment(bank, p=p), PHOTOS[50:], size)
        assert taken == -(-8 // size) * size

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_the_right_ones_are_not(self, change: Callable[[Tensor], Any], bank: Bank) -> None:
        torch.manual_seed(0)
        augment = BankAugment(bank, p=0.5)
        for i, photo in enumerate(PHOTOS):
            augment({"image": change(photo), "key": i})

    def test_heavily_changed_others_are_refused_before_long(self, bank: Bank) -> None:
        torch.manual_seed(0)
        assert self.feed(BankAugment(bank), [HEAVY(photo) for photo in PHOTOS[30:]], 10) < MOST

    def test_another_data_set_warns_once(self, bank: Bank) -> None:
        augment = BankAugment(bank)
        with pytest.warns(UserWarning, match="64 images resemble the bank's sources with the same keys no more than other") as said:
            self.feed(augment, structured_photos(2 * COUNT)[COUNT:], 10)
        assert len(said) == 1

    def test_no_more_is_compared_once_it_is_sure(self, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
        augment = BankAugment(bank)
        self.feed(augment, PHOTOS[:10], 5)
        monkeypatch.setattr("gentransforms.transforms.source_check.mark", lambda image: pytest.fail("compared again"))
        self.feed(augment, PHOTOS, 10)

    def test_what_never_tells_is_left(self, bank: Bank) -> None:
        augment = BankAugment(bank)
        self.feed(augment, [torch.zeros(3, 8, 8, dtype=torch.uint8)] * COUNT, 10)
        assert all(check.done for check in augment._checks.values())

    def test_a_key_counts_once(self, bank: Bank) -> None:
        augment = BankAugment(bank)
        for _ in range(20):
            augment({"image": PHOTOS[50], "key": 0})

    def test_it_can_be_switched_off(self, bank: Bank) -> None:
        assert self.feed(BankAugment(bank, check_sources=False), PHOTOS[50:], 10) == 50

    def test_a_copy_begins_anew(self, bank: Bank) -> None:
        augment = BankAugment(bank)
        self.feed(augment, PHOTOS[:20], 10)
        assert all(check.done for check in augment._checks.values())
        assert self.feed(pickle.loads(pickle.dumps(augment)), PHOTOS[50:], 10) == 10

    def test_each_worker_compares(self, bank: Bank) -> None:
        augment = BankAugment(bank)
        keyed = with_keys(Photos(PHOTOS[50:]), transform=lambda sample: augment(sample))  # hidden from with_keys
        with pytest.raises(ConfigError, match="looks like the bank's source"):
            list(DataLoader(keyed, batch_size=10, num_workers=1, multiprocessing_context="fork"))


class TestSeveralDataSets:
    """A key may name an image in each of two data sets, so each is compared by itself."""

    @staticmethod
    def parts(*cuts: int, change: Callable[[Tensor], Any] = lambda image: image) -> list[Photos]:
        bounds = [0, *cuts, COUNT]
        return [Photos(PHOTOS[start:stop], change) for start, stop in itertools.pairwise(bounds)]

    @staticmethod
    def epoch(dataset: Any, augment: BankAugment, epochs: int = 1, **options: Any) -> None:
        torch.manual_seed(0)
        for _ in range(epochs):
            for batch in DataLoader(dataset, batch_size=16, shuffle=True, **options):
                augment(batch)

    @pytest.mark.parametrize("cut", [50, 80, 90, 96])
    def test_a_small_second_one_is_refused(self, cut: int, bank: Bank) -> None:
        joined: Any = ConcatDataset([with_keys(part) for part in self.parts(cut)])
        with pytest.raises(ConfigError, match=r"looks like the bank's source [5-9]\d\..*wrap the ConcatDataset and not its parts"):
            self.epoch(joined, BankAugment(bank, p=1.0))

    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_of_heavily_changed_images(self, p: float, bank: Bank) -> None:
        joined: Any = ConcatDataset([with_keys(part) for part in self.parts(70, change=HEAVY)])
        with pytest.raises(ConfigError, match="looks like the bank's source"):
            self.epoch(joined, BankAugment(bank, p=p), epochs=2)

    def test_in_a_part_of_them(self, bank: Bank) -> None:
        joined: Any = ConcatDataset([with_keys(part) for part in self.parts(80)])
        part, _ = random_split(joined, [90, 10], torch.Generator().manual_seed(0))
        with pytest.raises(ConfigError, match="looks like the bank's source"):
            self.epoch(part, BankAugment(bank))
        with pytest.raises(ConfigError, match="row numbers of different data sets"):
            with_keys(part)

    def test_sample_by_sample(self, bank: Bank) -> None:
        augment = BankAugment(bank)
        first, second = (with_keys(part) for part in self.parts(80))
        for sample in first:
            augment(sample)
        with pytest.raises(ConfigError, match="looks like the bank's source 8"):
            list(map(augment, second))

    def test_with_the_same_names(self, bank: Bank, tmp_path: Path) -> None:
        names = [f"{i}.png" for i in range(COUNT)]
        source = open_source(Photos(PHOTOS), key=names)
        generate_bank(source, tmp_path, FakeGenerator(), variants=1, unit_size=50, progress=False)
        joined: Any = ConcatDataset([with_keys(part, key=names[: len(part)]) for part in self.parts(80)])
        with pytest.raises(ConfigError, match="looks like the bank's source"):
            self.epoch(joined, BankAugment(tmp_path))

    def test_another_data_set_beside_the_right_one_warns(self, bank: Bank) -> None:
        others = Photos(structured_photos(2 * COUNT)[COUNT : COUNT + 40])
        joined: Any = ConcatDataset([with_keys(Photos(PHOTOS)), with_keys(others)])
        with pytest.warns(UserWarning, match="40 images resemble the bank's sources with the same keys no more than other") as said:
            self.epoch(joined, BankAugment(bank))
        assert len(said) == 1

    def test_from_a_worker(self, bank: Bank) -> None:
        joined: Any = ConcatDataset([with_keys(part) for part in self.parts(85)])
        with pytest.raises(ConfigError, match="looks like the bank's source"):
            self.epoch(joined, BankAugment(bank), num_workers=1, multiprocessing_context="fork")

    def test_of_pickled_copies(self, bank: Bank) -> None:
        joined: Any = ConcatDataset([with_keys(part) for part in self.parts(85, change=v2.Identity())])
        with pytest.raises(ConfigError, match="looks like the bank's source"):
            self.epoch(pickle.loads(pickle.dumps(joined)), BankAugment(bank))

    @pytest.mark.parametrize("change", [CHANGES["none"], CHANGES["crop"], HEAVY], ids=["none", "crop", "heavy"])
    def test_one_data_set_wrapped_twice_passes(self, change: Callable[[Tensor], Any], bank: Bank) -> None:
        whole, again = Photos(PHOTOS, change), Photos(PHOTOS, change)
        joined: Any = ConcatDataset([with_keys(whole), with_keys(Subset(again, range(60, 100)))])
        self.epoch(joined, BankAugment(bank))

    def test_joined_as_the_bank_was_they_pass(self, bank: Bank) -> None:
        self.epoch(with_keys(ConcatDataset(self.parts(30, 90))), BankAugment(bank, p=1.0))


class TestKeyOrigins:
    """Keys carry the data set that they belong to, alone and in batches."""

    ONE, OTHER = KeyOrigin(1, 9), KeyOrigin(2, 5)

    def batch(self) -> Tensor:
        return default_collate([mark_key(4, self.ONE), mark_key(4, self.OTHER), mark_key(7), mark_key(5, self.ONE)])  # type: ignore[no-any-return]

    def test_of_a_batch(self) -> None:
        assert key_origins(self.batch()) == [self.ONE, self.OTHER, None, self.ONE]
        assert key_origins(default_collate([mark_key(4, self.ONE), mark_key(5, self.ONE)])) == [self.ONE] * 2
        assert key_origins(default_collate([mark_key("a", self.ONE), mark_key("b", self.OTHER)])) == [self.ONE, self.OTHER]

    def test_of_anything_else(self) -> None:
        for keys, count in ((3, 1), ("a", 1), ([3, 4], 2), (np.arange(3), 1)):
            assert key_origins(keys) == [None] * count

    @pytest.mark.parametrize(
        ("change", "places"),
        [
            (lambda keys: keys.clone().to(torch.int32).contiguous(), [0, 1, 2, 3]),
            (lambda keys: keys[1:3], [1, 2]),
            (lambda keys: keys[torch.tensor([3, 0])], [3, 0]),
            (lambda keys: keys[keys == 4], [0, 1]),
            (lambda keys: keys[-1], [3]),
            (lambda keys: keys.view(2, 2)[:, 1], [1, 3]),
            (lambda keys: keys.reshape(2, -1).flatten(), [0, 1, 2, 3]),
            (copy.deepcopy, [0, 1, 2, 3]),
            (lambda keys: pickle.loads(pickle.dumps(keys)), [0, 1, 2, 3]),
        ],
    )
    def test_follow_the_keys(self, change: Callable[[Tensor], Tensor], places: list[int]) -> None:
        expected = [self.ONE, self.OTHER, None, self.ONE]
        assert key_origins(change(self.batch())) == [expected[place] for place in places]

    @pytest.mark.parametrize("key", [3, "a"])
    def test_of_one_key(self, key: str | int) -> None:
        marked = mark_key(key, self.ONE)
        assert marked == key
        assert [pickle.loads(pickle.dumps(marked)).origin, copy.copy(marked).origin, mark_key(key).origin] == [self.ONE, self.ONE, None]

    def test_are_found_in_a_sample(self) -> None:
        found = find_keys((torch.zeros(4, 3, 8, 8), self.batch()))
        assert (found, key_origins(found)) == ([4, 4, 7, 5], key_origins(self.batch()))
