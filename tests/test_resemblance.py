"""Marks of images, and whether images are those that a bank was made from."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from bank_sources import structured_photos
from torch import Tensor
from torchvision.transforms import v2

from gentransforms.sources.resemblance import MARK_SIZE, Resemblance, compare_marks, mark

Change = Callable[[Tensor], Tensor]

SIMCLR = v2.Compose([
    v2.RandomResizedCrop(32, (0.2, 1.0)), v2.RandomHorizontalFlip(), v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
    v2.RandomGrayscale(0.2), v2.RandomApply([v2.GaussianBlur(3)], 0.5),
])  # fmt: skip
CHANGES: dict[str, Change] = {
    "crop": v2.Compose([v2.RandomCrop(32, 4), v2.RandomHorizontalFlip()]),
    "resized crop": v2.RandomResizedCrop(24, (0.25, 1.0)),
    "colour": v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    "grey": v2.Grayscale(3),
    "simclr": SIMCLR,
}

UNUSUAL: dict[str, Change] = {
    "invert": v2.RandomInvert(1.0),
    "solarise": v2.RandomSolarize(0, 1.0),
    "red only": lambda image: image[:1].expand(3, -1, -1),
    "channels swapped": lambda image: image.flip(0),
    "equalise": v2.RandomEqualize(1.0),
    "pad": v2.Pad(16),
}


def draw_edges(image: Tensor) -> Tensor:
    return (v2.functional.rgb_to_grayscale(image).float().diff(dim=-1).abs() * 4).clamp(0, 255).to(torch.uint8)


def draw_plain(channels: int) -> list[Tensor]:
    colours = torch.randint(0, 256, (60, channels, 1, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return [colour.expand(3, 32, 32) for colour in colours]


def draw_strokes() -> list[Tensor]:
    """White strokes on black, as digits are."""
    rng = np.random.default_rng(0)
    images = np.zeros((60, 3, 32, 32), np.uint8)
    for image in images:
        for _ in range(3):
            top, left = rng.integers(4, 24, 2)
            image[:, top : top + (2, 10)[rng.integers(2)], left : left + (10, 2)[rng.integers(2)]] = 255
    return list(torch.from_numpy(images))


def draw_pan() -> list[Tensor]:
    """Neighbouring views of one scene, as the frames of a film are."""
    scene = v2.functional.resize(structured_photos(1)[0], [64, 256])
    return [scene[:, 16:48, left : left + 32] for left in range(0, 180, 3)]


def draw_inspected() -> list[Tensor]:
    """One scene and a camera that does not move; every second image has a dark spot, as a defect is."""
    rng = np.random.default_rng(0)
    scene = rng.integers(40, 200, (3, 8, 8)).repeat(8, 1).repeat(8, 2)
    images = []
    for i in range(60):
        image = scene + rng.normal(0, 3, scene.shape)
        if i % 2:
            top, left = rng.integers(0, 52, 2)
            image[:, top : top + 12, left : left + 12] -= 60
        images.append(torch.from_numpy(image.clip(0, 255).astype(np.uint8)))
    return images


def draw_alike() -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    photo = structured_photos(1)[0].float()
    return [(photo + 6 * torch.randn(3, 1, 1, generator=rng)).clamp(0, 255).to(torch.uint8) for _ in range(60)]


ALIKE: dict[str, Callable[[], list[Tensor]]] = {
    "plain colours": lambda: draw_plain(3),
    "plain greys": lambda: draw_plain(1),
    "strokes": draw_strokes,
    "pan": draw_pan,
    "all alike": draw_alike,
    "inspected": draw_inspected,
    "mirrored pairs": lambda: [image for photo in structured_photos(30) for image in (photo, photo.flip(-1))],
    "inverted pairs": lambda: [image for photo in structured_photos(30) for image in (photo, 255 - photo)],
}


@cache
def alike(kind: str) -> tuple[list[Tensor], Any]:
    """Images of a kind and their marks."""
    images = ALIKE[kind]()
    return images, np.stack([mark(image) for image in images])


FEW_SEEDS = pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 12), marks=pytest.mark.slow)], ids=["few", "more"])


@pytest.fixture(scope="module")
def photos() -> list[Tensor]:
    return structured_photos(120)


@pytest.fixture(scope="module")
def bank(photos: list[Tensor]) -> Any:
    return np.stack([mark(photo) for photo in photos])


def compare(bank: Any, photos: list[Tensor], change: Change, count: int, shift: int, seed: int) -> Resemblance:
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

    @FEW_SEEDS
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_changed_copies_of_the_right_ones(self, bank: Any, photos: list[Tensor], change: Change, seeds: range) -> None:
        for seed in seeds:
            assert compare(bank, photos, change, 8, 0, seed).verdict != "wrong"
        for seed in seeds[:1]:
            assert compare(bank, photos, change, 64, 0, seed).verdict == "right"

    @FEW_SEEDS
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_changed_copies_of_other_ones(self, bank: Any, photos: list[Tensor], change: Change, seeds: range) -> None:
        for seed in seeds:
            assert compare(bank, photos, change, 8, 20, seed).verdict != "right"
        for seed in seeds[:1]:
            assert compare(bank, photos, change, 64, 20, seed).verdict == "wrong"

    @FEW_SEEDS
    @pytest.mark.parametrize("change", UNUSUAL.values(), ids=UNUSUAL)
    def test_right_ones_that_no_longer_look_like_their_rows(self, bank: Any, photos: list[Tensor], change: Change, seeds: range) -> None:
        for seed in seeds:
            assert compare(bank, photos, change, 8, 0, seed).verdict != "wrong"
        assert compare(bank, photos, change, 64, 0, seeds[0]).verdict == "right"

    def test_right_ones_changed_beyond_recognition(self, bank: Any, photos: list[Tensor]) -> None:
        noise = [mark(torch.randint_like(photo, 256)) for photo in photos]
        assert compare_marks(np.stack(noise[:8]), np.arange(8), bank).verdict == "unsure"
        assert compare_marks(np.stack(noise[:64]), np.arange(64), bank).verdict == "unlike"

    def test_another_data_set(self, bank: Any) -> None:
        others = np.stack([mark(photo) for photo in structured_photos(240)[120:]])
        for change in (0, 30):
            assert compare_marks(others[change : change + 8], np.arange(8), bank).verdict == "unsure"
            assert compare_marks(others[change : change + 64], np.arange(64), bank).verdict == "unlike"

    def test_in_another_order(self, bank: Any) -> None:
        order = np.random.default_rng(0).permutation(len(bank))
        assert compare_marks(bank[order[:8]], np.arange(8), bank) == Resemblance("wrong", (0, int(order[0])))

    @pytest.mark.parametrize(
        ("kind", "change"),
        [
            pytest.param(kind, change, id=f"{kind}-{name}", marks=() if (i + j) % 3 == 0 else pytest.mark.slow)
            for i, kind in enumerate(ALIKE)
            for j, (name, change) in enumerate((CHANGES | UNUSUAL | {"edges": draw_edges}).items())
        ],
    )
    def test_right_ones_that_look_like_each_other(self, kind: str, change: Change) -> None:
        images, marks = alike(kind)
        torch.manual_seed(0)
        own = np.linspace(0, len(images) - 1, 16).astype(int)[np.random.default_rng(0).permutation(16)]
        seen = np.stack([mark(change(images[i])) for i in own])
        for count in (8, 16):
            assert compare_marks(seen[:count], own[:count], marks).verdict != "wrong"

    @pytest.mark.parametrize("count", [8, 16])
    @pytest.mark.parametrize("kind", ["inspected", "noise alone"])
    def test_of_a_camera_that_does_not_move(self, kind: str, count: int) -> None:
        """Each image is close to every row; wrong ones are other rows, shifted or in another order."""
        marks = alike("inspected")[1][:: 1 if kind == "inspected" else 2]
        own = np.random.default_rng(0).choice(len(marks) - 1, count, replace=False)
        assert compare_marks(marks[own], own, marks).verdict == "right"
        assert compare_marks(marks[own + 1], own, marks).verdict == "wrong"
        by_defect = np.argsort(np.arange(len(marks)) % 2, kind="stable")
        others = [by_defect, np.random.default_rng(1).permutation(len(marks))][kind == "noise alone"]
        assert compare_marks(marks[others[own]], own, marks).verdict != "right"

    @pytest.mark.parametrize(
        ("count", "wrong", "verdict"), [(8, 0, "right"), (8, 1, "right"), (8, 2, "wrong"), (4, 1, "right"), (4, 2, "wrong")]
    )
    def test_two_clear_matches_suffice_and_one_does_not(self, count: int, wrong: int, verdict: str) -> None:
        """The others are exactly those of their rows: a quarter that matches other rows exactly still tells."""
        rows = np.random.default_rng(0).integers(0, 256, (40, 48), np.uint8)
        seen = rows[:count].copy()
        seen[:wrong] = rows[20 : 20 + wrong]
        assert compare_marks(seen, np.arange(count), rows).verdict == verdict

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize(("way", "verdict"), [(0.45, "right"), (0.55, "wrong")])
    def test_on_the_way_to_another_row(self, way: float, verdict: str, seed: int) -> None:
        """Every image lies between its own row and a twin of it: a match has to be clearly nearer, since a change may lead anywhere."""
        rng = np.random.default_rng(seed)
        rows = rng.integers(60, 196, (24, 48)).astype(float)
        twins = rows + rng.choice([-40.0, 40.0], rows.shape)
        seen = (rows + way * (twins - rows))[:12].round().astype(np.uint8)
        assert compare_marks(seen, np.arange(12), np.concatenate([rows, twins]).astype(np.uint8)).verdict == verdict

    def test_few_rows(self, bank: Any) -> None:
        few = bank[:10]
        assert compare_marks(few[5:], np.arange(5), few) == Resemblance("wrong", (0, 5))
        assert compare_marks(few[5:], np.arange(5, 10), few).verdict == "right"
        assert compare_marks(few[:1], np.array([0]), few[:1]).verdict == "unsure"

    def test_plain_images(self) -> None:
        greys = np.stack([np.full(48, 20 * i, np.uint8) for i in range(10)])
        assert compare_marks(greys[5:], np.arange(5), greys) == Resemblance("wrong", (0, 5))
        assert compare_marks(greys[5:], np.arange(5, 10), greys).verdict == "right"
        for changed in (255 - greys, greys + 30, greys // 2, np.roll(greys, 1, 1) // 3, greys[::-1]):  # inverted, brighter, darker
            assert compare_marks(changed[:8], np.arange(8), greys).verdict != "wrong"
        assert compare_marks(greys[1:2], np.array([0]), greys).verdict != "wrong"  # it may be a brighter one

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
