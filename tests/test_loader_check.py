"""A folder whose loader reads its files otherwise than the bank did is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from gentransforms.bank.generate.run import generate_bank
from gentransforms.errors import ImageError
from gentransforms.images import to_rows
from gentransforms.sources.decode import rgb_image
from gentransforms.sources.keyed import with_keys
from gentransforms.testing import FakeGenerator
from gentransforms.transforms.bank import BankAugment

COUNT = 10


def photo(i: int) -> PIL.Image.Image:
    rng = np.random.default_rng(i)
    return PIL.Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(5, 0).repeat(5, 1))


def transparent(i: int, mode: str = "RGBA", alpha: int = 0) -> PIL.Image.Image:
    """A photo whose upper half is transparent, and black below that."""
    image = photo(i).convert("RGBA")
    image.paste((0, 0, 0, alpha), (0, 0, 20, 10))
    return image.quantize(32) if mode == "P" else image.convert(mode)


def deep(i: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.asarray(photo(i).convert("L")).astype(np.uint16) * 257)


def turned(i: int) -> PIL.Image.Image:
    image = photo(i)
    image.getexif()[0x0112] = 6
    return image


KINDS: dict[str, tuple[Callable[[int], PIL.Image.Image], str]] = {
    "RGBA": (transparent, "has transparent parts"),
    "LA": (lambda i: transparent(i, "LA"), "has transparent parts"),
    "P": (lambda i: transparent(i, "P"), "has transparent parts"),
    "16 bits": (deep, "has more than 8 bits"),
    "turned": (turned, "has an EXIF orientation"),
}


def bank_of(folder: Path, source: Any) -> BankAugment:
    generate_bank(source, folder, FakeGenerator(), variants=1, progress=False)
    return BankAugment(folder, p=1.0)


def fill(root: Path, make: Callable[[int], PIL.Image.Image]) -> Path:
    (root / "photos" / "a").mkdir(parents=True)
    for i in range(COUNT):
        image = make(i)
        image.save(root / "photos" / "a" / f"{i}.png", exif=image.getexif())
    return root / "photos"


class TestWithKeys:
    """It compares files that a loader may read otherwise."""

    @pytest.mark.parametrize(("make", "how"), KINDS.values(), ids=KINDS)
    def test_another_reading_is_named_and_the_advice_is_right(self, make: Callable[[int], Any], how: str, tmp_path: Path) -> None:
        photos = fill(tmp_path, make)
        augment = bank_of(tmp_path / "bank", photos)
        for dataset in (ImageFolder(photos), Subset(ImageFolder(photos, transform=v2.RandomCrop(10)), [7, 3])):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                with_keys(dataset, transform=augment)
            (ours,) = [str(warning.message) for warning in said if "reads it otherwise" in str(warning.message)]
            assert f"png {how}, and this ImageFolder" in ours
            assert "loader=gentransforms.sources.decode.rgb_image" in ours
        with_keys(ImageFolder(photos, loader=rgb_image), transform=augment)

    def test_an_alpha_channel_that_hides_nothing(self, tmp_path: Path) -> None:
        photos = fill(tmp_path, lambda i: transparent(i, alpha=255))
        with_keys(ImageFolder(photos), transform=bank_of(tmp_path / "bank", photos))

    def test_a_bank_that_was_made_with_the_loader(self, tmp_path: Path) -> None:
        photos = ImageFolder(fill(tmp_path, transparent))
        with_keys(photos, transform=bank_of(tmp_path / "bank", photos))

    def test_a_data_set_that_turns_its_images_itself(self, tmp_path: Path) -> None:
        photos = fill(tmp_path, turned)
        augment = bank_of(tmp_path / "bank", photos)

        class Upright(ImageFolder):
            def __getitem__(self, index: int) -> tuple[Any, int]:
                image, label = super().__getitem__(index)
                return PIL.ImageOps.exif_transpose(image), label

        for dataset in (ImageFolder(photos, transform=PIL.ImageOps.exif_transpose), Upright(photos)):
            with_keys(dataset, transform=augment)

    def test_a_loader_whose_errors_the_data_set_handles_and_that_draws(self, tmp_path: Path) -> None:
        photos = fill(tmp_path, transparent)
        augment = bank_of(tmp_path / "bank", photos)

        def loader(path: str) -> PIL.Image.Image:
            torch.rand(1)
            if path.endswith("0.png"):
                raise RuntimeError("decoder")
            return rgb_image(path)

        class Another(ImageFolder):
            def __getitem__(self, index: int) -> tuple[Any, int]:
                try:
                    return super().__getitem__(index)
                except RuntimeError:
                    return super().__getitem__(index + 1)

        before = torch.get_rng_state()
        with_keys(Another(photos, loader=loader), transform=augment)
        assert torch.equal(torch.get_rng_state(), before)

    def test_ordinary_photos_are_not_decoded_for_it(self, tmp_path: Path) -> None:
        photos = fill(tmp_path, photo)
        read: list[str] = []

        def loader(path: str) -> PIL.Image.Image:
            read.append(path)
            return PIL.Image.open(path).convert("RGB")

        with_keys(ImageFolder(photos, loader=loader), transform=bank_of(tmp_path / "bank", photos))
        assert len(read) == 8  # by the comparison with the sources


class TestAdvice:
    """What is said of a PIL image with transparent parts."""

    @pytest.mark.parametrize("image", [transparent(0), transparent(0, "LA"), transparent(0, "P"), transparent(0).convert("RGBa")])
    def test_names_the_conversion_that_banks_use(self, image: PIL.Image.Image) -> None:
        with pytest.raises(ImageError, match=r"use gentransforms\.sources\.decode\.rgb_image\(image\), which puts it on white"):
            to_rows(image)
        assert rgb_image(image).getpixel((0, 0)) == (255, 255, 255)

    @pytest.mark.parametrize("mode", ["P", "CMYK", "1"])
    def test_of_other_modes_is_as_before(self, mode: str) -> None:
        with pytest.raises(ImageError, match=r"use image\.convert\('RGB'\)$"):
            to_rows(photo(0).convert(mode))
