"""Variants that others made as files, in the layout of the paper's authors, become a bank."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from bank_process import killed_at
from small_banks import encoded, pixels
from torchvision.transforms.v2 import functional as TF

import gentransforms as gt
from gentransforms.bank import importing as authors
from gentransforms.bank.format.unit import Unit, list_units
from gentransforms.bank.importing import Imported, import_bank
from gentransforms.bank.share.export import export_bank
from gentransforms.bank.verify.checker import verify_bank
from gentransforms.errors import BankError, ConfigError, MissingKeyError
from gentransforms.sources.decode import decode_image

SIZE = (12, 16)
# As in ImageNet: classes of digits, names with underscores and digits, of which one is another one's with a number more.
SOURCES = ["n01440764/n01440764_10026.JPEG", "n01440764/n01440764_1.JPEG", "n02102040/n02102040_1_2.JPEG", "n02102040/a photo.v2.png"]
ORDER = sorted(SOURCES)


def jpeg(position: int, variant: int, size: tuple[int, int] = SIZE) -> bytes:
    return encoded(pixels(40 * position, 10 * variant, size), "JPEG", quality=95)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def noise() -> bytes:
    """A JPEG of which most are pixels, not header."""
    rng = torch.Generator().manual_seed(0)
    return encoded(torch.randint(256, (3, *SIZE), dtype=torch.uint8, generator=rng), "JPEG", quality=95)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """The images that the variants were made of."""
    for position, name in enumerate(SOURCES):
        write(tmp_path / "photos" / name, encoded(pixels(position, 0, (20, 30)), "PNG" if name.endswith("png") else "JPEG"))
    return tmp_path / "photos"


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    """Their variants, 10 of each."""
    for position, name in enumerate(SOURCES):
        for variant in range(10):
            write(tmp_path / "generated" / f"{name.rpartition('.')[0]}_{variant}.JPEG", jpeg(position, variant))
    return tmp_path / "generated"


def refused(folder: Path, photos: Path, message: str, **options: Any) -> str:
    """An import that fails: in one sentence, and leaves no unit behind."""
    bank = folder.parent / "bank"
    with pytest.raises(BankError, match=message) as caught:
        import_bank(folder, photos, bank, **options)
    assert "\n" not in str(caught.value)
    assert list_units(bank) == []
    return str(caught.value)


def import_named(tmp_path: Path, keys: list[str]) -> Imported:
    """Import two variants of each of these sources, whose names are not those of files."""
    source = gt.open_source([torch.zeros(3, 4, 6)] * len(keys), key=keys)
    return import_bank(tmp_path / "made", source, tmp_path / "bank", variants=2)


class TestImportBank:
    """What the bank holds."""

    def test_keys_and_bytes(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        done = import_bank(folder, photos, tmp_path / "bank")
        assert done == Imported(str(tmp_path / "bank"), sources=4, images=40, missing=0, examples=())
        bank = gt.Bank.open(tmp_path / "bank")
        assert bank.keys == ORDER
        assert (len(bank), bank.variants, bank.image_size, bank.preserves_geometry) == (40, 10, SIZE, False)
        for position, key in enumerate(SOURCES):
            assert bank.read([key] * 10, list(range(10)), decode=False) == [jpeg(position, v) for v in range(10)]
        rows = [row for batch in bank.batches() for row in batch.select(["variant", "seed", "attempt"]).to_pylist()]
        assert {(row["seed"], row["attempt"]) for row in rows} == {(-1, 0)}
        assert [row["variant"] for row in rows] == [*range(10)] * 4

    def test_the_manifest_claims_no_generator_and_no_seed(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        import_bank(folder, photos, tmp_path / "bank")
        bank = gt.Bank.open(tmp_path / "bank")
        assert bank.manifest["generator"]["class"] == "imported"
        assert bank.settings["base_seed"] is None
        assert bank.settings["image_format"] == "jpeg"
        assert bank.manifest["info"]["imported_from"] == str(folder)

    def test_verifies(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        import_bank(folder, photos, tmp_path / "bank", unit_size=3)
        report = verify_bank(tmp_path / "bank")
        assert report.ok, report
        assert (report.units, report.rows, report.images) == (2, 40, 40)

    def test_feeds_the_transform(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        from torchvision.datasets import ImageFolder

        import_bank(folder, photos, tmp_path / "bank")
        bank = gt.Bank.open(tmp_path / "bank")
        augment = gt.BankAugment(bank, p=1.0, output_size="generator")
        dataset = gt.with_keys(ImageFolder(photos), transform=augment)
        assert len(dataset) == 4
        for image, _label, key in dataset:
            assert image.size == SIZE[::-1]
            red = int(PIL.Image.Image.getpixel(image, (8, 6))[0])
            assert abs(red - 40 * SOURCES.index(key)) < 6

    def test_a_small_memory_of_names(self, folder: Path) -> None:
        found = authors._find_files(folder)
        assert len({id(tail) for tails in found.values() for tail in tails}) == 10

    def test_names_without_classes(self, tmp_path: Path) -> None:
        for name in ("a.png", "a_1.png"):  # the second is also what variant 1 of the first would be called, but in another folder
            write(tmp_path / "photos" / name, encoded(pixels(0, 0), "PNG"))
            for variant in range(2):
                write(tmp_path / "made" / f"{name[:-4]}_{variant}.webp", encoded(pixels(9, variant), "WEBP"))
        done = import_bank(tmp_path / "made", tmp_path / "photos", tmp_path / "bank", variants=2)
        assert done.images == 4
        assert gt.Bank.open(tmp_path / "bank").keys == ["a.png", "a_1.png"]
        assert gt.Bank.open(tmp_path / "bank").settings["image_format"] == "webp"

    @pytest.mark.parametrize(
        ("keys", "stems"),
        [
            (["photo.v1", "photo.v2"], ["photo.v1", "photo.v2"]), (["photo.v1"], ["photo.v1"]), (["photo.v1"], ["photo"]),
            (["a.npy", "b.pt"], ["a", "b"]), (["a.b.png", "a.c.png"], ["a.b", "a.c"]), (["a.png", "b"], ["a.png", "b"]),
            (["c/photo.v1", "c/photo"], ["c/photo.v1", "c/photo"]),
        ],
    )  # fmt: skip
    def test_what_follows_a_dot_need_not_be_a_suffix(self, tmp_path: Path, keys: list[str], stems: list[str]) -> None:
        for position, stem in enumerate(stems):
            for variant in range(2):
                write(tmp_path / "made" / f"{stem}_{variant}.png", encoded(pixels(position, variant), "PNG"))
        assert import_named(tmp_path, keys).images == 2 * len(keys)
        bank = gt.Bank.open(tmp_path / "bank")
        assert torch.equal(bank.read(keys, [1] * len(keys)), torch.stack([pixels(i, 1) for i in range(len(keys))]))
        assert bank.keys == keys

    def test_files_of_a_source_are_not_those_of_a_version_of_it(self, tmp_path: Path) -> None:
        write(tmp_path / "made" / "photo_0.png", encoded(pixels(0, 0), "PNG"))
        done = import_named(tmp_path, ["photo.v1", "photo"])
        assert (done.images, done.missing) == (1, 3)
        assert gt.Bank.open(tmp_path / "bank").keys == ["photo"]
        write(tmp_path / "made" / "photo.v1_1.png", encoded(pixels(0, 1), "PNG"))
        assert import_named(tmp_path, ["photo.v1", "photo"]).images == 2
        assert gt.Bank.open(tmp_path / "bank").keys == ["photo.v1", "photo"]

    def test_files_of_two_versions_by_the_name_of_both(self, tmp_path: Path) -> None:
        write(tmp_path / "made" / "photo_0.png", encoded(pixels(0, 0), "PNG"))
        with pytest.raises(BankError, match=r"photo\.v1 and photo\.v2 differ only in their suffix"):
            import_named(tmp_path, ["photo.v1", "photo.v2"])

    def test_other_files_are_none_of_its_business(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        for name in ("log_1.txt", "n01440764/.hidden_1.JPEG", ".cache/x_1.JPEG", "README"):
            write(folder / name, b"x")
        assert import_bank(folder, photos, tmp_path / "bank").images == 40

    def test_classes_that_are_links(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (folder / "n01440764").rename(tmp_path / "elsewhere" / "a")
        (folder / "n01440764").symlink_to(tmp_path / "elsewhere" / "a")
        (folder / "n02102040" / "loop").symlink_to(folder)
        assert import_bank(folder, photos, tmp_path / "bank").images == 40

    def test_rows_by_number_as_sources(self, tmp_path: Path) -> None:
        for number in range(3):
            for variant in range(2):
                write(tmp_path / "made" / f"{number}_{variant}.png", encoded(pixels(number, variant), "PNG"))
        done = import_bank(tmp_path / "made", [torch.zeros(3, 4, 6)] * 3, tmp_path / "bank", variants=2)
        assert done.images == 6
        assert gt.Bank.open(tmp_path / "bank").keys == [0, 1, 2]


class TestOddImages:
    """Files whose pixels a bank would not read as they are seen are refused with the conversion, which works."""

    @pytest.mark.parametrize("first", [True, False])
    @pytest.mark.parametrize(
        ("name", "reason"),
        [("16 bits", "16 bits"), ("16 bits, colours", "16 bits"), ("transparent", "transparent"), ("grey and transparent", "transparent"),
         ("a transparent colour", "transparent"), ("turned", "EXIF orientation 6")],
    )  # fmt: skip
    def test_are_refused(self, folder: Path, photos: Path, tmp_path: Path, name: str, reason: str, first: bool) -> None:
        key, variant = (SOURCES[0], 0) if first else (ORDER[-1], 3)
        file = folder / key.replace(".JPEG", f"_{variant}.JPEG")
        file.write_bytes(odd(name))
        message = refused(folder, photos, rf"{file.name}:? .*{reason}")
        (command,) = re.findall(r'\((gentransforms.* "PNG"\)) converts it\): fix or remove it, then import again$', message)
        exec(f"import gentransforms.sources.decode; {command}", {"path": file})
        assert import_bank(folder, photos, tmp_path / "new").images == 40
        seen = gt.Bank.open(tmp_path / "new").read([key], [variant])[0]
        assert torch.equal(seen, decode_image(odd(name)))

    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA"])
    def test_modes_with_the_same_pixels_are_taken(self, folder: Path, photos: Path, tmp_path: Path, mode: str) -> None:
        data = encoded_image(TF.to_pil_image(pixels(3, 5, SIZE)).convert(mode))
        (folder / ORDER[0].replace(".JPEG", "_0.JPEG")).write_bytes(data)
        import_bank(folder, photos, tmp_path / "bank")
        assert torch.equal(gt.Bank.open(tmp_path / "bank").read([ORDER[0]], [0])[0], decode_image(data))

    @pytest.mark.parametrize("name", ["16 bits", "16 bits, colours"])
    def test_that_an_earlier_version_imported_are_found(
        self, folder: Path, photos: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = folder / ORDER[0].replace(".JPEG", "_0.JPEG")
        file.write_bytes(odd(name))
        monkeypatch.setattr(authors, "_find_oddity", lambda *_: "")
        import_bank(folder, photos, tmp_path / "bank")
        monkeypatch.undo()
        with pytest.raises(BankError, match=f"{ORDER[0]}.*more than 8 bits"):
            gt.Bank.open(tmp_path / "bank").read([ORDER[0]], [0])
        report = verify_bank(tmp_path / "bank", repair=True)
        assert [(problem.kind, "more than 8 bits" in problem.text) for problem in report.problems] == [("image", True)]
        with pytest.raises(BankError, match=f"{file.name} has 16 bits"):
            import_bank(folder, photos, tmp_path / "bank")


def odd(name: str) -> bytes:
    """An image of size `SIZE` as it is seen, whose stored pixels are others."""
    height, width = SIZE
    noise = np.random.default_rng(0).integers(0, 2**16, (height, width), dtype=np.uint16)
    grey, image = PIL.Image.fromarray((noise >> 8).astype(np.uint8)), TF.to_pil_image(pixels(3, 5, SIZE))
    if name == "16 bits":
        return encoded_image(PIL.Image.fromarray(noise))
    if name == "16 bits, colours":
        return png_of_16_bits(noise)
    if name == "transparent":
        image.putalpha(grey)
        return encoded_image(image)
    if name == "grey and transparent":
        return encoded_image(PIL.Image.merge("LA", [grey, grey]))
    if name == "a transparent colour":
        return encoded_image(image, transparency=image.getpixel((0, 0)))
    exif = PIL.Image.Exif()
    exif[0x112] = 6
    return encoded_image(image.transpose(PIL.Image.Transpose.ROTATE_90), exif=exif)


def encoded_image(image: PIL.Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def png_of_16_bits(channel: Any) -> bytes:
    """A PNG of colours with 16 bits a channel, which Pillow reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = channel.shape
    lines = b"".join(b"\0" + np.stack([line] * 3, -1).astype(">u2").tobytes() for line in channel)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


class TestMissing:
    """Variants without a file."""

    def test_are_recorded_and_told(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        for name in ("n01440764/n01440764_10026_0.JPEG", "n01440764/n01440764_10026_9.JPEG", "n02102040/a photo.v2_4.JPEG"):
            (folder / name).unlink()
        done = import_bank(folder, photos, tmp_path / "bank")
        expected = [(SOURCES[0], 0), (SOURCES[0], 9), (SOURCES[3], 4)]
        assert (done.images, done.missing, sorted(done.examples)) == (37, 3, sorted(expected))
        bank = gt.Bank.open(tmp_path / "bank")
        assert {(entry["key"], entry["variant"]) for entry in bank.rejected} == set(expected)
        assert bank.variants_of(SOURCES[0]) == [1, 2, 3, 4, 5, 6, 7, 8]
        with pytest.raises(MissingKeyError, match="no file was imported"):
            bank.read([SOURCES[0]], [9])
        report = verify_bank(tmp_path / "bank")
        assert report.ok, report

    def test_a_source_without_any(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        for file in (folder / "n02102040").glob("n02102040_1_2_*"):
            file.unlink()
        done = import_bank(folder, photos, tmp_path / "bank")
        assert (done.images, done.missing) == (30, 10)
        assert done.examples == tuple(("n02102040/n02102040_1_2.JPEG", v) for v in range(3)), "no more than three are shown"
        assert "n02102040/n02102040_1_2.JPEG" not in gt.Bank.open(tmp_path / "bank").keys
        report = verify_bank(tmp_path / "bank")
        assert report.ok, report

    def test_fewer_were_asked_for(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        done = import_bank(folder, photos, tmp_path / "bank", variants=12)
        assert (done.images, done.missing) == (40, 8)


class TestRowNumbers:
    """Sources that are named by their row: what tells other rows from them is kept, as in a bank that was generated."""

    @pytest.fixture
    def images(self) -> list[torch.Tensor]:
        cells = torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return list(cells.repeat_interleave(4, 2).repeat_interleave(4, 3))

    def make(self, images: Any, tmp_path: Path, without: tuple[int, ...] = ()) -> gt.Bank:
        for number in range(40):
            if number not in without:
                write(tmp_path / "made" / f"{number}_0.png", encoded(pixels(number, 0), "PNG"))
        import_bank(tmp_path / "made", images, tmp_path / "bank", variants=1, unit_size=16)
        return gt.Bank.open(tmp_path / "bank")

    def test_other_rows_are_refused(self, images: list[torch.Tensor], tmp_path: Path) -> None:
        augment = gt.BankAugment(self.make(images, tmp_path), p=1.0)
        gt.with_keys(images, transform=augment)
        with pytest.raises(ConfigError, match=r"the image with the key 0 looks like the bank's source 15"):
            gt.with_keys(images[15:], transform=gt.BankAugment(tmp_path / "bank", p=1.0))

    def test_marks_are_those_of_the_sources_with_images(self, images: list[torch.Tensor], tmp_path: Path) -> None:
        bank = self.make(images, tmp_path, without=(3, 39))
        expected = [image[:, ::4, ::4].permute(1, 2, 0).flatten().tolist() for image in images]
        assert bank.marks is not None
        assert bank.marks.tolist() == [expected[key] for key in bank.keys]  # type: ignore[index]
        bank = self.make(images, tmp_path, without=(39,))
        assert bank.marks is not None
        assert (bank.keys, bank.marks.tolist()) == (list(range(39)), expected[:39])
        assert verify_bank(tmp_path / "bank").ok

    def test_a_source_that_cannot_be_read_stops_nothing(self, images: list[torch.Tensor], tmp_path: Path) -> None:
        images[20] = images[20].float() * 3  # out of range
        images[21] = torch.zeros(2, 3, 16, 16)
        bank = self.make(images, tmp_path)
        assert (len(bank), bank.marks) == (40, None)
        assert verify_bank(tmp_path / "bank").ok

    def test_names_are_not_read_for_it(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        import_bank(folder, photos, tmp_path / "bank")
        assert gt.Bank.open(tmp_path / "bank").marks is None


class TestAdvice:
    """What to do about an imported bank is to import again."""

    def test_unfinished_and_damaged(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        import_bank(folder, photos, tmp_path / "bank", unit_size=1)
        unit = list_units(tmp_path / "bank")[1]
        (tmp_path / "bank" / unit.file).write_bytes(b"cut")
        assert verify_bank(tmp_path / "bank").advice == "remove damaged units with --repair, then run bank import again"
        report = verify_bank(tmp_path / "bank", repair=True)
        assert "1 unit removed: run bank import with the settings of this bank again" in str(report)
        with pytest.raises(BankError, match=r"unfinished: .* run bank import with the settings"):
            gt.Bank.open(tmp_path / "bank")
        report = verify_bank(tmp_path / "bank")
        assert report.problems[0].text.endswith("does not exist: run bank import with the settings of this bank again")
        assert report.advice == "run bank import again, which makes the missing units"
        with pytest.raises(BankError, match="run bank import again, then export it"):
            export_bank(gt.Bank.open(tmp_path / "bank", partial=True), tmp_path / "export")
        import_bank(folder, photos, tmp_path / "bank", unit_size=1)
        assert verify_bank(tmp_path / "bank").ok


class TestAdded:
    """Files that were missing are added, and the import is run again."""

    LATE = ("n01440764/n01440764_10026_0.JPEG", "n01440764/n01440764_10026_9.JPEG", "n02102040/a photo.v2_4.JPEG")

    @staticmethod
    def take_away(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
        return {name: ((folder / name).read_bytes(), (folder / name).unlink())[0] for name in names}

    @pytest.mark.parametrize("unit_size", [1, 3, 100])
    def test_gives_the_bank_of_one_import(self, folder: Path, photos: Path, tmp_path: Path, unit_size: int) -> None:
        import_bank(folder, photos, tmp_path / "whole", unit_size=unit_size)
        late = self.take_away(folder, self.LATE)
        import_bank(folder, photos, tmp_path / "bank", unit_size=unit_size)
        for number, (name, data) in enumerate(late.items(), 1):
            write(folder / name, data)
            done = import_bank(folder, photos, tmp_path / "bank", unit_size=unit_size)
            assert (done.images, done.missing) == (37 + number, 3 - number)
            assert len(gt.Bank.open(tmp_path / "bank")) == done.images
        for unit in list_units(tmp_path / "whole"):
            for name in (unit.file, unit.sidecar):
                assert (tmp_path / "bank" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert verify_bank(tmp_path / "bank").ok

    def test_all_of_a_source(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        late = self.take_away(folder, tuple(f"n02102040/n02102040_1_2_{v}.JPEG" for v in range(10)))
        import_bank(folder, photos, tmp_path / "bank")
        for name, data in late.items():
            write(folder / name, data)
        assert import_bank(folder, photos, tmp_path / "bank").images == 40
        assert gt.Bank.open(tmp_path / "bank").variants_of("n02102040/n02102040_1_2.JPEG") == list(range(10))

    def test_what_the_bank_has_stays_if_its_files_are_gone(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        late = self.take_away(folder, self.LATE)
        import_bank(folder, photos, tmp_path / "bank")
        for name, data in late.items():  # a folder of the late files alone
            write(tmp_path / "more" / name, data)
        done = import_bank(tmp_path / "more", photos, tmp_path / "bank")
        assert (done.images, done.missing) == (40, 0)
        bank = gt.Bank.open(tmp_path / "bank")
        for position, key in enumerate(SOURCES):
            assert bank.read([key] * 10, list(range(10)), decode=False) == [jpeg(position, v) for v in range(10)]

    def test_only_units_with_new_files_are_written(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        late = self.take_away(folder, self.LATE)
        import_bank(folder, photos, tmp_path / "bank", unit_size=1)
        before = {unit: (tmp_path / "bank" / unit.file).stat().st_ino for unit in list_units(tmp_path / "bank")}
        write(folder / self.LATE[2], late[self.LATE[2]])
        done = import_bank(folder, photos, tmp_path / "bank", unit_size=1)
        assert (done.images, done.missing, done.examples) == (38, 2, ((SOURCES[0], 0), (SOURCES[0], 9)))
        changed = [unit for unit, inode in before.items() if (tmp_path / "bank" / unit.file).stat().st_ino != inode]
        assert changed == [Unit(ORDER.index(SOURCES[3]), ORDER.index(SOURCES[3]) + 1)]

    def test_a_late_file_that_is_damaged_changes_nothing(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        late = self.take_away(folder, self.LATE)
        import_bank(folder, photos, tmp_path / "bank")
        write(folder / self.LATE[0], late[self.LATE[0]][:50])
        with pytest.raises(BankError, match="cannot be read as an image"):
            import_bank(folder, photos, tmp_path / "bank")
        assert len(gt.Bank.open(tmp_path / "bank")) == 37
        write(folder / self.LATE[0], late[self.LATE[0]])
        assert import_bank(folder, photos, tmp_path / "bank").images == 38

    def test_a_late_file_of_another_format_that_comes_first(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        self.take_away(folder, self.LATE)
        import_bank(folder, photos, tmp_path / "bank")
        first = encoded(pixels(7, 7, SIZE), "PNG")
        write(folder / "n01440764/n01440764_10026_0.png", first)
        assert import_bank(folder, photos, tmp_path / "bank").images == 38
        assert gt.Bank.open(tmp_path / "bank").read([SOURCES[0]], [0], decode=False) == [first]


class TestRefused:
    """What is not as it should be."""

    def test_files_without_a_source(self, folder: Path, photos: Path) -> None:
        write(folder / "n01440764" / "n01440764_7_3.JPEG", jpeg(0, 0))
        write(folder / "n99" / "n01440764_1_0.JPEG", jpeg(0, 0))
        text = refused(
            folder, photos, "2 of 42 files have no source, such as n01440764/n01440764_7_3.JPEG, n99/n01440764_1_0.JPEG: expected"
        )
        assert "check that the source is the folder from which they were generated" in text

    def test_the_wrong_folder_of_sources(self, folder: Path, tmp_path: Path) -> None:
        write(tmp_path / "other" / "cats" / "tom.jpg", jpeg(0, 0))
        refused(
            folder,
            tmp_path / "other",
            "40 of 40 files have no source, such as .*, for sources such as cats/tom.jpg: check that the source is the folder",
        )

    def test_the_same_number_twice(self, folder: Path, photos: Path) -> None:
        write(folder / "n01440764" / "n01440764_1_00.JPEG", jpeg(0, 0))
        refused(folder, photos, "variant 0 of n01440764/n01440764_1 occurs twice, .*_1_0.JPEG and .*_1_00.JPEG: remove one")

    def test_the_same_number_in_two_formats(self, folder: Path, photos: Path) -> None:
        write(folder / "n01440764" / "n01440764_1_3.png", jpeg(0, 0))
        refused(folder, photos, "variant 3 of n01440764/n01440764_1 occurs twice")

    def test_variants_beyond(self, folder: Path, photos: Path) -> None:
        text = refused(folder, photos, "is not one of variants=8, which are counted from 0", variants=8)
        assert "(and 7 more): set variants to their true number" in text

    @pytest.mark.parametrize("size", [(12, 15), (16, 12)])
    def test_another_size(self, folder: Path, photos: Path, size: tuple[int, int]) -> None:
        write(folder / "n02102040" / "n02102040_1_2_7.JPEG", jpeg(2, 7, size))
        refused(
            folder, photos, rf"n02102040_1_2_7\.JPEG is {size[0]} x {size[1]} pixels, expected 12 x 16 like the first file: fix or remove"
        )

    @pytest.mark.parametrize(
        "damage",
        [lambda _: b"", lambda _: b"text, not an image", lambda _: noise()[: -len(noise()) // 4], lambda data: data[: len(data) // 2]],
        ids=["empty", "text", "cut in the pixels", "cut in the header"],
    )
    @pytest.mark.parametrize("name", ["n01440764/n01440764_10026_0.JPEG", "n02102040/n02102040_1_2_7.JPEG"])
    def test_damaged(self, folder: Path, photos: Path, name: str, damage: Any) -> None:
        write(folder / name, damage((folder / name).read_bytes()))
        refused(folder, photos, rf"{name}:? cannot be read as an image \(.*\): fix or remove it, then import again")

    def test_many_damaged_make_one_sentence(self, folder: Path, photos: Path) -> None:
        for variant in range(5):
            write(folder / "n02102040" / f"n02102040_1_2_{variant}.JPEG", b"x")
        refused(folder, photos, r"n02102040_1_2_0\.JPEG cannot be read as an image .* \(and 4 more files of this unit have problems\): fix")

    def test_another_format(self, folder: Path, photos: Path) -> None:
        write(folder / "n02102040" / "n02102040_1_2_7.JPEG", encoded(pixels(0, 0, SIZE), "BMP"))
        refused(folder, photos, r"n02102040_1_2_7\.JPEG is BMP, expected JPEG, WEBP, PNG")

    def test_sources_that_differ_in_their_suffix_only(self, folder: Path, photos: Path) -> None:
        write(photos / "n01440764" / "n01440764_1.png", encoded(pixels(0, 0), "PNG"))
        refused(
            folder, photos, "source: n01440764/n01440764_1.JPEG and n01440764/n01440764_1.png differ only in their suffix, .*: rename one"
        )

    def test_a_file_that_cannot_be_read(self, folder: Path, photos: Path) -> None:
        path = folder / "n01440764" / "n01440764_1_3.JPEG"
        path.unlink()
        path.symlink_to(folder / "nothing")
        refused(folder, photos, r"n01440764_1_3\.JPEG: cannot be read: No such file or directory")

    def test_no_such_files(self, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(ConfigError, match=r"variants_folder='.*': no files <class>/<name>_<i>"):
            import_bank(tmp_path / "empty", photos, tmp_path / "bank")
        with pytest.raises(ConfigError, match=r"variants_folder='.*': no such folder"):
            import_bank(tmp_path / "nothing", photos, tmp_path / "bank")
        with pytest.raises(ConfigError, match=r"source='.*': no such file or folder"):
            import_bank(photos, tmp_path / "nothing", tmp_path / "bank")
        assert not (tmp_path / "bank").exists()

    @pytest.mark.parametrize("wrong", [{"variants": 0}, {"unit_size": 0}, {"workers": 0}, {"variants": True}, {"unit_size": 1.5}])
    def test_wrong_numbers(self, folder: Path, photos: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}=.*: expected a positive integer"):
            import_bank(folder, photos, tmp_path / "bank", **wrong)

    def test_another_bank_is_there(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        import_bank(folder, photos, tmp_path / "bank")
        with pytest.raises(BankError, match=r"this bank was made with other settings .*variants: the bank has 10, this call 11") as more:
            import_bank(folder, photos, tmp_path / "bank", variants=11)
        write(photos / "n03000000" / "new.png", encoded(pixels(0, 0), "PNG"))
        with pytest.raises(BankError, match=r"source count: the bank has 4, this call 5") as new:
            import_bank(folder, photos, tmp_path / "bank")
        for caught in (more, new):
            assert "extend" not in str(caught.value), "an import has no such option"
            assert str(caught.value).endswith("give the bank's, or another directory for a new bank")


class TestResume:
    """A second call goes on where the first was."""

    def test_units_that_are_there_are_not_read_again(
        self, folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import_bank(folder, photos, tmp_path / "whole", unit_size=1)
        read: list[Path] = []
        original = authors._read

        def read_some(path: Path) -> bytes:
            read.append(path)
            if len(read) > 1 + 25:  # the first, for its size, and a half of the third unit
                raise KeyboardInterrupt
            return original(path)

        monkeypatch.setattr(authors, "_read", read_some)
        with pytest.raises(KeyboardInterrupt):
            import_bank(folder, photos, tmp_path / "bank", unit_size=1, workers=1)
        kept = {unit: (tmp_path / "bank" / unit.file).stat().st_mtime_ns for unit in list_units(tmp_path / "bank")}
        assert list(kept) == [Unit(0, 1), Unit(1, 2)]
        read.clear()
        monkeypatch.setattr(authors, "_read", lambda path: (read.append(path), original(path))[1])
        done = import_bank(folder, photos, tmp_path / "bank", unit_size=1)
        assert done.images == 40
        assert len(read) == 1 + 20
        assert all((tmp_path / "bank" / unit.file).stat().st_mtime_ns == stamp for unit, stamp in kept.items())
        for unit in list_units(tmp_path / "whole"):
            assert (tmp_path / "bank" / unit.file).read_bytes() == (tmp_path / "whole" / unit.file).read_bytes()

    def test_once_a_damaged_file_is_mended(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        bad = folder / "n02102040" / "n02102040_1_2_7.JPEG"
        good = bad.read_bytes()
        bad.write_bytes(good[:50])
        with pytest.raises(BankError, match="cannot be read as an image"):
            import_bank(folder, photos, tmp_path / "bank", unit_size=1)
        assert len(list_units(tmp_path / "bank")) == ORDER.index("n02102040/n02102040_1_2.JPEG")
        bad.write_bytes(good)
        import_bank(folder, photos, tmp_path / "bank", unit_size=1)
        assert verify_bank(tmp_path / "bank").ok

    def test_an_import_that_is_killed_while_it_replaces_a_unit_loses_nothing(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        """The files of what it has imported are gone by then."""
        late = folder / "n02102040" / "n02102040_1_2_7.JPEG"
        data = late.read_bytes()
        late.unlink()
        assert import_bank(folder, photos, tmp_path / "before").images == 39
        write(late, data)
        rest = tmp_path / "rest"
        write(rest / late.relative_to(folder), data)
        for step in range(8):
            bank = tmp_path / f"bank-{step}"
            shutil.copytree(tmp_path / "before", bank)
            with killed_at(step) as done:
                import_bank(rest, photos, bank)
            import_bank(rest, photos, bank)
            assert import_bank(rest, photos, bank).images == 40, done
            assert not list(bank.glob("former-*"))
            assert verify_bank(bank).ok

    def test_a_damaged_unit_is_not_added_to(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        """The files of its other images may be gone."""
        late = folder / "n02102040" / "n02102040_1_2_7.JPEG"
        data = late.read_bytes()
        late.unlink()
        import_bank(folder, photos, tmp_path / "bank")
        file = tmp_path / "bank" / list_units(tmp_path / "bank")[0].file
        damaged = file.read_bytes().replace(jpeg(0, 0)[-60:], bytes(60))
        assert damaged != file.read_bytes()
        file.write_bytes(damaged)
        write(late, data)
        with pytest.raises(BankError, match=r"has changed since it was written.* bank verify --repair"):
            import_bank(folder, photos, tmp_path / "bank")
        assert file.read_bytes() == damaged
        verify_bank(tmp_path / "bank", repair=True)
        assert import_bank(folder, photos, tmp_path / "bank").images == 40

    def test_leftovers_of_a_dead_process_go(self, folder: Path, photos: Path, tmp_path: Path) -> None:
        from gentransforms.bank.format import locking

        import_bank(folder, photos, tmp_path / "bank")
        left = tmp_path / "bank" / f".unit-1.arrow.{locking._host()}.4194999.partial"
        left.write_text("")
        assert not Path(f"/proc/{4194999}").exists()
        import_bank(folder, photos, tmp_path / "bank")
        assert not left.exists()

    def test_a_full_disk_is_told(self, folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from gentransforms.bank.format import locking

        def full(_file: Any) -> None:
            raise OSError(28, os.strerror(28))

        import_bank(folder, photos, tmp_path / "bank", unit_size=2)
        (tmp_path / "bank" / Unit(2, 4).file).unlink()
        monkeypatch.setattr(locking, "_sync", full)
        with pytest.raises(BankError, match="the disk is full"):
            import_bank(folder, photos, tmp_path / "bank", unit_size=2)
        monkeypatch.undo()
        import_bank(folder, photos, tmp_path / "bank", unit_size=2)
        assert verify_bank(tmp_path / "bank").ok
        assert json.loads((tmp_path / "bank" / "bank.json").read_text())["settings"]["unit_size"] == 2
