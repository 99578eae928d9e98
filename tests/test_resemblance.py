"""Marks of images, and whether images are those that a bank was made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from bank_sources import structured_photos
from torch import Tensor
from torchvision.transforms import v2

from gentransforms.sources.resemblance import MARK_SIZE, Resemblance, compare_marks, mark

SIMCLR = v2.Compose([
    v2.RandomResizedCrop(32, (0.2, 1.0)), v2.RandomHorizontalFlip(), v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
    v2.RandomGrayscale(0.2), v2.RandomApply([v2.GaussianBlur(3)], 0.5),
])  # fmt: skip
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "crop": v2.Compose([v2.RandomCrop(32, 4), v2.RandomHorizontalFlip()]),
    "resized crop": v2.RandomResizedCrop(24, (0.25, 1.0)),
    "colour": v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    "grey": v2.Grayscale(3),
    "simclr": SIMCLR,
}


@pytest.fixture(scope="module")
def photos() -> list[Tensor]:
    return structured_photos(120)


@pytest.fixture(scope="module")
def bank(photos: list[Tensor]) -> Any:
    return np.stack([mark(photo) for photo in photos])


def compare(bank: Any, photos: list[Tensor], change: Callable[[Tensor], Tensor], count: int, shift: int, seed: int) -> Resemblance:
    torch.manual_seed(seed)
    own = np.random.default_rng(seed).choice(len(photos) - 20, count, replace=False)
    return compare_marks(np.stack([mark(change(photos[i + shift])) for i in own]), own, bank)


class TestMark:
    def test_is_the_mean_of_each_cell(self) -> None:
        image = torch.randint(0, 256, (3, 12, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        cells = image.numpy().reshape(3, 4, 3, 4, 5).mean((2, 4)).transpose(1, 2, 0)
        found = mark(image)
        assert (found.dtype, found.shape) == (np.uint8, (MARK_SIZE,))
        assert np.abs(found.reshape(4, 4, 3) - cells).max() <= 0.51

    def test_of_every_kind_of_image(self) -> None:
        image = torch.randint(0, 256, (1, 7, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        expected = mark(image)
        assert (mark(image.expand(3, -1, -1)) == expected).all()
        assert (mark(image.float() / 255) == expected).all()
        assert (mark((image.double() / 255).requires_grad_()) == expected).all()
        assert mark(torch.full((3, 1, 1), 9, dtype=torch.uint8)).tolist() == [9] * 48
        assert mark(torch.full((3, 8, 8), float("nan"))).tolist() == [0] * 48

    def test_survives_another_size(self, photos: list[Tensor]) -> None:
        for photo in photos[:10]:
            large = v2.functional.resize(photo, [100, 100], v2.InterpolationMode.BICUBIC)
            assert np.abs(mark(large).astype(int) - mark(photo).astype(int)).mean() < 1


class TestCompareMarks:
    @pytest.mark.parametrize("count", [8, 20])
    def test_the_same_images(self, bank: Any, photos: list[Tensor], count: int) -> None:
        for size in (32, 64, 20):
            found = compare(bank, photos, v2.Resize(size), count, 0, seed=size)
            assert found == Resemblance("right")

    @pytest.mark.parametrize("shift", [1, 20])
    def test_the_images_of_other_rows(self, bank: Any, photos: list[Tensor], shift: int) -> None:
        for seed in range(5):
            found = compare(bank, photos, v2.Resize(48), 8, shift, seed)
            assert found.verdict == "wrong"
            assert found.example is not None
            place, row = found.example
            assert row == np.random.default_rng(seed).choice(len(photos) - 20, 8, replace=False)[place] + shift

    def test_some_of_them(self, bank: Any) -> None:
        """As after an image in the middle was left out."""
        own = np.arange(8)
        assert compare_marks(bank[[0, 1, 2, 3, 4, 5, 50, 51]], own, bank) == Resemblance("wrong", (6, 50))
        assert compare_marks(bank[own], own, bank).verdict == "right"

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_changed_copies_of_the_right_ones(self, bank: Any, photos: list[Tensor], change: Callable[[Tensor], Tensor]) -> None:
        for seed in range(12):
            assert compare(bank, photos, change, 8, 0, seed).verdict != "wrong"
        for seed in range(2):
            assert compare(bank, photos, change, 64, 0, seed).verdict == "right"

    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_changed_copies_of_other_ones(self, bank: Any, photos: list[Tensor], change: Callable[[Tensor], Tensor]) -> None:
        for seed in range(6):
            assert compare(bank, photos, change, 8, 20, seed).verdict != "right"
        for seed in range(2):
            assert compare(bank, photos, change, 64, 20, seed).verdict == "wrong"

    def test_few_rows(self) -> None:
        greys = np.stack([np.full(48, 20 * i, np.uint8) for i in range(10)])
        assert compare_marks(greys[5:], np.arange(5), greys) == Resemblance("wrong", (0, 5))
        assert compare_marks(greys[5:], np.arange(5, 10), greys).verdict == "right"
        assert compare_marks(greys[1:2], np.array([0]), greys) == Resemblance("wrong", (0, 1))
        assert compare_marks(greys[:1], np.array([0]), greys[:1]).verdict == "unsure"

    def test_images_that_look_alike_say_nothing(self, bank: Any) -> None:
        black = np.zeros((8, 48), np.uint8)
        assert compare_marks(black, np.arange(8), np.concatenate([bank, black[:1]])).verdict == "unsure"

    def test_the_same_image_twice_in_a_bank(self, bank: Any) -> None:
        twice = np.concatenate([bank, bank])
        for own in (np.arange(8), np.arange(120, 128)):
            assert compare_marks(bank[:8], own, twice).verdict == "right"

    def test_a_large_bank_goes_in_pieces(self, bank: Any) -> None:
        many = np.random.default_rng(0).integers(0, 256, (70_000, 48), np.uint8)
        assert compare_marks(many[60_000:60_008], np.arange(69_000, 69_008), many) == Resemblance("wrong", (0, 60_000))
        assert compare_marks(many[69_000:69_008], np.arange(69_000, 69_008), many).verdict == "right"
