"""A folder as users have them: images of every kind, some of which cannot be read."""

from __future__ import annotations

import io
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.transforms.v2.functional import pil_to_tensor

import gentransforms as gt
from gentransforms.bank.format.unit import Unit
from gentransforms.bank.generate.run import Summary
from gentransforms.bank.verify.checker import verify_bank
from gentransforms.sources.decode import rgb_image
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")

# What the generator should see of each: its mean colour.
COLOUR = (200, 100, 50)
READABLE = {
    "plain.png": COLOUR, "one-pixel.png": COLOUR, "cmyk.jpg": COLOUR, "grey-16-bit.png": (128, 128, 128), "palette.png": (255, 255, 255),
    "rotated.jpg": None, "grey.jpg": (90, 90, 90),
}  # fmt: skip
BROKEN = {"truncated.jpg": "truncated", "empty.jpg": "empty", "text.jpg": "not an image"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One image of each kind."""
    folder = tmp_path / "photos"
    folder.mkdir()
    plain = PIL.Image.new("RGB", (40, 30), COLOUR)
    plain.save(folder / "plain.png")
    PIL.Image.new("RGB", (1, 1), COLOUR).save(folder / "one-pixel.png")
    plain.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    PIL.Image.fromarray(np.full((30, 30), 32896, np.uint16)).save(folder / "grey-16-bit.png")
    palette = PIL.Image.new("P", (30, 30), 0)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(folder / "palette.png", transparency=0)
    PIL.Image.new("L", (30, 30), 90).save(folder / "grey.jpg", quality=95)
    # The right half is red where the file is turned as its EXIF orientation says, and the lower half in the file.
    turned = PIL.Image.new("RGB", (64, 64), "blue")
    turned.paste("red", (0, 0, 64, 32))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "rotated.jpg", exif=exif, quality=95)
    whole = io.BytesIO()
    PIL.Image.effect_noise((64, 64), 80).save(whole, "JPEG")
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("this is a letter, not a photo")
    return folder


class Seen(FakeGenerator):
    """Returns its source: what a bank holds is what a generator saw."""

    image_size = (16, 16)

    def encode(self, images: Any, **inputs: Any) -> Any:
        return {"source": images}

    def sample(self, condition: Any, seeds: Any) -> Any:
        return condition["source"].clone()


def fill(folder: Path, path: Path) -> Summary:
    return gt.generate_bank(folder, path, Seen(16), variants=2, image_format="png", unit_size=4, progress=False)


class TestOddImages:
    def test_those_that_can_be_read_are_made_and_the_others_reported(self, folder: Path, tmp_path: Path) -> None:
        summary = fill(folder, tmp_path / "bank")
        assert {entry["key"] for entry in summary.failed} == set(BROKEN)
        for entry in summary.failed:
            assert BROKEN[entry["key"]] in entry["reason"]
        bank = gt.Bank.open(tmp_path / "bank")
        assert sorted(bank.keys) == sorted(READABLE)
        for key, colour in READABLE.items():
            image = bank.read([key], [1])[0]
            if colour is not None:
                assert (image.float().mean((1, 2)) - torch.tensor(colour)).abs().max() <= 4, key
        assert bank.verify().ok

    def test_each_is_reproduced_online_as_the_guide_says(self, folder: Path, tmp_path: Path) -> None:
        """Whatever its mode, size and orientation: docs/banks.md, "Reproduce one image"."""
        PIL.Image.new("RGBA", (40, 30), (0, 0, 0, 0)).save(folder / "cut-out.png")
        fill(folder, tmp_path / "bank")
        bank = gt.Bank.open(tmp_path / "bank")
        assert sorted(bank.keys) == sorted([*READABLE, "cut-out.png"])
        augment = gt.GenerativeAugment(Seen(16), p=1.0, seeds_getter=itemgetter("seed"), output_size="generator")
        for key in bank.keys:
            again = augment({"image": rgb_image(folder / str(key)), "seed": gt.derive_seeds(0, [key], [1])})["image"]
            assert (pil_to_tensor(again).float() - bank.read([key], [1])[0].float()).abs().max() <= 1, key

    def test_exif_orientation_is_applied(self, folder: Path, tmp_path: Path) -> None:
        fill(folder, tmp_path / "bank")
        red = gt.Bank.open(tmp_path / "bank").read(["rotated.jpg"], [0])[0, 0].float()
        # Orientation 6: the file's upper edge is the right side of the picture.
        assert red[:, 9:].mean() > 200
        assert red[:, :7].mean() < 50

    def test_a_unit_cut_in_half_is_named_and_made_again(self, folder: Path, tmp_path: Path) -> None:
        fill(folder, tmp_path / "bank")
        file = tmp_path / "bank" / Unit(4, 8).file
        before = file.read_bytes()
        file.write_bytes(before[: len(before) // 2])
        report = verify_bank(tmp_path / "bank")
        assert {problem.unit for problem in report.problems} == {Unit(4, 8).name}
        fill(folder, tmp_path / "bank")
        assert file.read_bytes() == before
        assert verify_bank(tmp_path / "bank").ok

    def test_a_flipped_byte_is_named_removed_and_made_again(self, folder: Path, tmp_path: Path) -> None:
        fill(folder, tmp_path / "bank")
        file = tmp_path / "bank" / Unit(4, 8).file
        before = file.read_bytes()
        file.write_bytes(before[:-500] + bytes([before[-500] ^ 1]) + before[-499:])
        assert {problem.unit for problem in verify_bank(tmp_path / "bank").problems} == {Unit(4, 8).name}
        verify_bank(tmp_path / "bank", repair=True)
        fill(folder, tmp_path / "bank")
        assert file.read_bytes() == before
