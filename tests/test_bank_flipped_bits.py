"""Flipped bits in the images of a bank: an error names the image, and the process lives. Each test runs in a process of its own."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from bank_process import start
from small_banks import KEYS, encoded, make_bank

import gentransforms as gt
from gentransforms.bank.format.images import decode_rgb
from gentransforms.bank.format.png import find_png_damage, is_png
from gentransforms.bank.format.unit import Unit
from gentransforms.bank.importing import import_bank
from gentransforms.bank.verify.checker import verify_bank
from gentransforms.errors import BankError

SIZE = (32, 32)
FORMATS = {"PNG": {}, "JPEG": {"quality": 90}, "WEBP": {"quality": 90}}


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, *SIZE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def png(position: int = 0, variant: int = 0) -> bytes:
    return encoded(noise(10 * position + variant), "PNG")


def encoded_image(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The parts of a PNG, as (kind, contents)."""
    found, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def join(parts: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these parts, with right checksums."""
    packed = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def flips(data: bytes, step: int) -> Iterator[bytearray]:
    for bit in range(0, 8 * len(data), step):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield flipped


def in_a_process(target: Callable[..., None], *args: Any) -> str:
    """Run a function that writes to the file that is its first argument; return what it wrote."""
    folder = Path(args[0])
    process = start(target, *map(str, args))
    process.join()
    assert process.exitcode == 0, "a negative code is a signal: the process crashed"
    return (folder / "found").read_text()


def decode_flips(folder: str, image_format: str, step: str) -> None:
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the decoders' warnings
    counts = {"decoded": 0, "refused": 0}
    count = 0
    for count, data in enumerate(flips(encoded(noise(), image_format, **FORMATS[image_format]), int(step)), 1):  # noqa: B007
        try:
            counts["decoded"] += decode_rgb(data).shape[0] == 3
        except BankError as error:
            counts["refused"] += len(str(error).splitlines()) == 1
    (Path(folder) / "found").write_text(f"{counts['decoded']} {counts['refused']} {count}")


def read_each(folder: str, path: str) -> None:
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    bank = gt.Bank.open(path)
    with (Path(folder) / "found").open("w") as file:
        for key in KEYS:
            try:
                bank.read([key], [1])
            except BankError as error:
                print(error, file=file)


def verify(folder: str, path: str) -> None:
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    (Path(folder) / "found").write_text(str(verify_bank(path, threads=1)))


def rewrite_images(path: Path, unit: Unit, change: Callable[[bytes], bytes]) -> None:
    """Change the images of variant 1 in a unit, in place."""
    data = (path / unit.file).read_bytes()
    for i in range(unit.start, unit.stop):
        assert png(i, 1) in data
        changed = change(png(i, 1))
        assert len(changed) == len(png(i, 1))
        data = data.replace(png(i, 1), changed)
    (path / unit.file).write_bytes(data)


def flip_pixels(data: bytes) -> bytes:
    at = data.index(b"IDAT") + 700
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_bank(tmp_path / "bank", size=SIZE, image=png)


class TestDecodeRgb:
    @pytest.mark.parametrize(("image_format", "step"), [("PNG", 13), ("JPEG", 29), ("WEBP", 29)])
    def test_no_flipped_bit_ends_the_process(self, tmp_path: Path, image_format: str, step: int) -> None:
        decoded, refused, count = map(int, in_a_process(decode_flips, tmp_path, image_format, step).split())
        assert decoded + refused == count
        assert refused
        if image_format == "PNG":
            assert decoded == 0, "each part of it has a checksum"
            assert refused > 1500

    @pytest.mark.parametrize("image_format", FORMATS)
    def test_thorough_returns_the_same_pixels(self, image_format: str) -> None:
        data = bytearray(encoded(noise(), image_format, **FORMATS[image_format]))
        assert torch.equal(decode_rgb(data, thorough=True), decode_rgb(data))

    def test_thorough_refuses_a_png_that_was_made_up(self) -> None:
        """With right checksums around wrong pixels, at which torchvision's decoder ends the process."""
        head, (_, pixels), end = chunks(png())
        raw = zlib.decompress(pixels)
        for wrong in (pixels[:-1] + b"?", pixels[:50], b"", zlib.compress(b"\7" + raw[1:]), zlib.compress(raw[:-5]), b"text"):
            data = bytearray(join([head, (b"IDAT", wrong), end]))
            assert not find_png_damage(data)
            with pytest.raises(BankError):
                decode_rgb(data, thorough=True)


class TestFindPngDamage:
    def test_none_in_any_kind(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 4), dtype=np.uint8)
        image = PIL.Image.fromarray(pixels)
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
            kind = image.convert(mode) if mode != "P" else image.convert("RGB").quantize(9)
            buffer = encoded_image(kind)
            assert is_png(buffer)
            assert find_png_damage(buffer) == ""
            assert find_png_damage(bytearray(buffer + b"what follows is not read")) == ""

    def test_every_bit_counts(self) -> None:
        data = png()
        assert all(find_png_damage(flipped) for flipped in flips(data, 7) if is_png(flipped))

    def test_cut_off_anywhere(self) -> None:
        data = png()
        assert {find_png_damage(data[:stop]) for stop in range(8, len(data))} == {"the PNG is cut off"}

    def test_names_the_part(self) -> None:
        assert find_png_damage(flip_pixels(png())) == "the PNG is damaged: the checksum of its part 'IDAT' is wrong"

    def test_other_formats_are_not_looked_at(self) -> None:
        assert not is_png(encoded(noise(), "JPEG"))
        assert not is_png(b"")


class TestBank:
    def test_reading_names_the_image(self, path: Path, tmp_path: Path) -> None:
        rewrite_images(path, Unit(4, 8), flip_pixels)
        found = in_a_process(read_each, tmp_path, path).splitlines()
        assert len(found) == 4
        for key, line in zip(KEYS[4:8], found, strict=True):
            assert f"{Unit(4, 8).file}: variant 1 of key {key!r} cannot be decoded (the PNG is damaged: the checksum of its part" in line
            assert "verify --repair" in line

    @pytest.mark.parametrize("sidecar", [True, False])
    def test_verifying_names_it(self, path: Path, tmp_path: Path, sidecar: bool) -> None:
        rewrite_images(path, Unit(4, 8), flip_pixels)
        if sidecar:
            assert "checksum: " in in_a_process(verify, tmp_path, path)
            return
        (path / Unit(4, 8).sidecar).unlink()
        found = in_a_process(verify, tmp_path, path)
        assert found.count("cannot be decoded (the PNG is damaged") == 4
        assert f"variant 1 of key {KEYS[4]!r}" in found

    def test_verifying_finds_wrong_pixels_with_right_checksums(self, path: Path, tmp_path: Path) -> None:
        def swap(data: bytes) -> bytes:
            head, (_, pixels), end = chunks(data)
            return join([head, (b"IDAT", pixels[:-1] + bytes([pixels[-1] ^ 1])), end])

        rewrite_images(path, Unit(4, 8), swap)
        (path / Unit(4, 8).sidecar).unlink()
        assert in_a_process(verify, tmp_path, path).count("cannot be decoded") == 4

    @pytest.mark.parametrize("first", [True, False])
    def test_a_wrong_checksum_is_not_imported(self, tmp_path: Path, first: bool) -> None:
        for i in range(2):
            for folder, name in (("photos", f"{i}.png"), ("made", f"{i}_0.png")):
                (tmp_path / folder).mkdir(exist_ok=True)
                (tmp_path / folder / name).write_bytes(png(i))
        data = bytearray(png(0))
        data[data.rindex(b"IEND") - 5] ^= 1  # the last byte of the checksum of the pixels
        name = f"{0 if first else 1}_0.png"
        (tmp_path / "made" / name).write_bytes(data)
        with pytest.raises(BankError, match=rf"{name}:? cannot be read as an image \(the PNG is damaged: .*'IDAT'.* import again"):
            import_bank(tmp_path / "made", tmp_path / "photos", tmp_path / "bank", variants=1)
