"""Any image file becomes upright RGB pixels in bounded memory, or one line on what is wrong with it."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gentransforms.errors import SourceError
from gentransforms.sources import decode as decoding
from gentransforms.sources.decode import (
    NOT_AN_IMAGE,
    SUFFIXES,
    check_folder,
    decode_image,
    decode_mask,
    is_of_the_machine,
    one_line,
    rgb_image,
)

ORIENTATION = 0x0112


def encoded(image: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int = 24, width: int = 32, channels: int = 3, seed: int = 0) -> numpy.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return numpy.random.default_rng(seed).integers(0, 256, shape, numpy.uint8)


def chw(array: numpy.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


def grey(values: numpy.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(numpy.uint8)).expand(3, *values.shape)


def smooth(height: int = 40, width: int = 56) -> numpy.ndarray:
    """A photo-like picture, which lossy formats keep nearly."""
    y, x = numpy.mgrid[:height, :width]
    return numpy.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (height + width)], -1).astype(numpy.uint8)


class TestDecodeImage:
    """What the pixels are."""

    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "TGA", "PCX"])
    def test_lossless_formats_exactly(self, kind: str) -> None:
        pixels = noise()
        found = decode_image(encoded(PIL.Image.fromarray(pixels), kind))
        assert found.dtype == torch.uint8
        assert found.is_contiguous()
        assert torch.equal(found, chw(pixels))

    @pytest.mark.parametrize(("kind", "options"), [("WEBP", {"lossless": True}), ("JPEG2000", {}), ("QOI", {})])
    def test_other_lossless_formats(self, kind: str, options: dict[str, Any]) -> None:
        pixels = noise(64, 64)
        assert torch.equal(decode_image(encoded(PIL.Image.fromarray(pixels), kind, **options)), chw(pixels))

    @pytest.mark.parametrize(("kind", "off"), [("JPEG", 6), ("WEBP", 12), ("AVIF", 12)])
    def test_lossy_formats_nearly(self, kind: str, off: int) -> None:
        pixels = smooth()
        found = decode_image(encoded(PIL.Image.fromarray(pixels), kind, quality=95))
        assert (found.int() - chw(pixels).int()).abs().max() <= off

    def test_gif_first_frame(self) -> None:
        frames = [PIL.Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
        found = decode_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
        assert found.amax((1, 2)).tolist() == [255, 0, 0]
        assert found.amin((1, 2)).tolist() == [255, 0, 0]

    @pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
    def test_kinds_of_bytes(self, make: Any) -> None:
        data = encoded(PIL.Image.fromarray(noise()), "PNG")
        assert torch.equal(decode_image(make(data)), decode_image(data))

    @pytest.mark.parametrize("make", [str, Path])
    def test_paths(self, make: Any, tmp_path: Path) -> None:
        PIL.Image.fromarray(noise()).save(tmp_path / "a.png")
        assert torch.equal(decode_image(make(tmp_path / "a.png")), chw(noise()))

    def test_suffix_is_no_matter(self, tmp_path: Path) -> None:
        PIL.Image.fromarray(noise()).save(tmp_path / "a.jpg", "PNG")
        assert torch.equal(decode_image(tmp_path / "a.jpg"), chw(noise()))

    def test_one_pixel(self) -> None:
        assert decode_image(encoded(PIL.Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).tolist() == [[[1]], [[2]], [[3]]]

    def test_rgb_image_is_the_same(self) -> None:
        data = encoded(PIL.Image.fromarray(noise(channels=4)), "PNG")
        image = rgb_image(data)
        assert image.mode == "RGB"
        assert torch.equal(chw(numpy.array(image)), decode_image(data))


class TestModes:
    """Every mode of Pillow."""

    def test_grey(self) -> None:
        pixels = noise(channels=1)
        assert torch.equal(decode_image(encoded(PIL.Image.fromarray(pixels), "PNG")), grey(pixels))

    def test_one_bit(self) -> None:
        bits = noise(channels=1) > 127
        assert torch.equal(decode_image(encoded(PIL.Image.fromarray(bits), "PNG")), grey(bits * 255))

    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
    def test_sixteen_bits_are_scaled(self, kind: str) -> None:
        values = numpy.random.default_rng(0).integers(0, 65536, (24, 32), numpy.uint16)
        values[0, :3] = 0, 65535, 32768
        data = encoded(PIL.Image.fromarray(values), kind)
        assert torch.equal(decode_image(data), grey(numpy.rint(values.astype(float) * 255 / 65535)))

    def test_big_endian_tiff_of_sixteen_bits(self) -> None:
        values = numpy.arange(0, 65536, 97, numpy.uint16)[:600].reshape(20, 30)
        data = bytearray(encoded(PIL.Image.fromarray(values), "TIFF"))
        big = PIL.Image.frombytes("I;16B", (30, 20), values.astype(">u2").tobytes())
        assert torch.equal(decode_image(encoded(big, "TIFF")), decode_image(bytes(data)))
        assert torch.equal(decode_image(bytes(data)), grey(numpy.rint(values.astype(float) * 255 / 65535)))

    def test_sixteen_bits_with_a_transparent_value(self) -> None:
        values = numpy.full((4, 4), 1000, numpy.uint16)
        values[0] = 2000
        found = decode_image(encoded(PIL.Image.fromarray(values), "PNG", transparency=1000))
        assert found[0].tolist() == [[8] * 4, *[[255] * 4] * 3]

    @pytest.mark.parametrize("top", [1.0, 255.0, 65535.0])
    def test_float_tiff(self, top: float) -> None:
        values = numpy.linspace(0, 1, 600, dtype=numpy.float32).reshape(20, 30)
        found = decode_image(encoded(PIL.Image.fromarray(values * numpy.float32(top)), "TIFF"))
        assert (found.double() / 255 - torch.from_numpy(values).double()).abs().max() <= 0.5 / 255 + 1e-4

    @pytest.mark.parametrize(
        ("value", "words"),
        [(-3.0, "pixels from -3 to 0"), (1e6, "pixels from 0 to 1e"), (float("nan"), "NaN"), (float("inf"), "pixels from 0 to inf")],
    )
    def test_float_tiff_of_another_range(self, value: float, words: str) -> None:
        values = numpy.zeros((4, 4), numpy.float32)
        values[1, 1] = value
        with pytest.raises(SourceError, match=words):
            decode_image(encoded(PIL.Image.fromarray(values), "TIFF"))

    def test_integers_of_32_bits(self) -> None:
        values = numpy.array([[0, 257, 65535]], numpy.int32)
        assert decode_image(encoded(PIL.Image.fromarray(values), "TIFF"))[0].tolist() == [[0, 1, 255]]
        with pytest.raises(SourceError, match="pixels from 0 to 65700: expected 0 to 65535"):
            decode_image(encoded(PIL.Image.fromarray(numpy.array([[0, 65700]], numpy.int32)), "TIFF"))

    @given(st.integers(0, 2**32 - 1))
    def test_alpha_is_on_white(self, seed: int) -> None:
        pixels = noise(5, 7, 4, seed=seed)
        alpha = pixels[..., 3:].astype(float) / 255
        expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
        found = decode_image(encoded(PIL.Image.fromarray(pixels), "PNG"))
        assert numpy.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 1

    def test_grey_with_alpha_is_on_white(self) -> None:
        pixels = noise(5, 7, 2)
        alpha = pixels[..., 1] / 255
        found = decode_image(encoded(PIL.Image.fromarray(pixels, "LA"), "PNG"))
        assert numpy.abs(found[0].numpy() - (pixels[..., 0] * alpha + 255 * (1 - alpha))).max() <= 1

    def test_palette(self) -> None:
        image = PIL.Image.new("P", (3, 1))
        image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        image.putdata([2, 0, 1])
        assert decode_image(encoded(image, "PNG")).permute(1, 2, 0).tolist() == [[[70, 80, 90], [10, 20, 30], [40, 50, 60]]]
        assert decode_image(encoded(image, "GIF")).permute(1, 2, 0).tolist() == [[[70, 80, 90], [10, 20, 30], [40, 50, 60]]]

    @pytest.mark.parametrize("transparency", [1, bytes([255, 0, 51])])
    def test_palette_with_transparency(self, transparency: Any) -> None:
        image = PIL.Image.new("P", (3, 1))
        image.putpalette([10, 20, 30, 40, 50, 60, 0, 0, 0])
        image.putdata([0, 1, 2])
        third = [0, 0, 0] if transparency == 1 else [204, 204, 204]
        found = decode_image(encoded(image, "PNG", transparency=transparency))
        assert found.permute(1, 2, 0).tolist() == [[[10, 20, 30], [255, 255, 255], third]]

    def test_gif_with_transparency(self) -> None:
        image = PIL.Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putdata([0, 1])
        assert decode_image(encoded(image, "GIF", transparency=1)).permute(1, 2, 0).tolist() == [[[10, 20, 30], [255, 255, 255]]]

    def test_colour_key_of_rgb(self) -> None:
        image = PIL.Image.new("RGB", (2, 1), (9, 8, 7))
        image.putpixel((1, 0), (1, 2, 3))
        assert decode_image(encoded(image, "PNG", transparency=(9, 8, 7))).permute(1, 2, 0).tolist() == [[[255, 255, 255], [1, 2, 3]]]

    def test_cmyk_tiff(self) -> None:
        pixels = noise(channels=4)
        inks = pixels.astype(float) / 255
        expected = 255 * (1 - inks[..., :3]) * (1 - inks[..., 3:])
        found = decode_image(encoded(PIL.Image.frombytes("CMYK", (32, 24), pixels.tobytes()), "TIFF"))
        assert numpy.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 2

    def test_cmyk_jpeg_of_adobe_is_inverted(self) -> None:
        data = encoded(PIL.Image.fromarray(smooth()).convert("CMYK"), "JPEG", quality=95)
        assert b"Adobe" in data[:100]
        found = decode_image(data)
        assert (found.int() - chw(smooth()).int()).abs().max() <= 8

    @pytest.mark.parametrize(
        "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"]
    )
    def test_pil_images_of_any_mode(self, mode: str) -> None:
        white = {"CMYK": 0, "YCbCr": (255, 128, 128), "HSV": (0, 0, 255), "I": 65535, "I;16": 65535, "F": 1.0}
        if mode in ("P", "PA", "La", "RGBa"):
            image = PIL.Image.new({"P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}[mode], (6, 4), "white").convert(mode)
        else:
            image = PIL.Image.new(mode, (6, 4), white.get(mode, "white"))
        found = decode_image(image)
        assert found.shape == (3, 4, 6)
        assert found.min() >= 254
        assert image.mode == mode

    def test_lab(self) -> None:
        data = encoded(PIL.Image.new("LAB", (2, 2), (255, 128, 128)), "TIFF")
        assert decode_image(data).min() >= 254


class TestOrientation:
    """EXIF orientation is applied, however the file keeps it."""

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
    def test_agrees_with_pil(self, orientation: int, kind: str) -> None:
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = orientation
        data = encoded(PIL.Image.fromarray(noise()), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        image = PIL.Image.open(io.BytesIO(data))
        image.load()
        expected = numpy.array(PIL.ImageOps.exif_transpose(image).convert("RGB"))
        assert expected.shape[:2] == ((32, 24) if orientation > 4 else (24, 32))
        assert torch.equal(decode_image(data), chw(expected))

    def test_of_a_jpeg(self) -> None:
        picture = PIL.Image.new("RGB", (40, 20), "red")
        picture.paste("blue", (20, 0, 40, 20))
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = 6  # shown turned by 90 degrees, clockwise
        found = decode_image(encoded(picture, "JPEG", exif=exif))
        assert found.shape == (3, 40, 20)
        assert found[0, 5, 10] > 200
        assert found[2, 35, 10] > 200

    def test_pil_images_are_turned_and_left_alone(self) -> None:
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = 8
        image = PIL.Image.open(io.BytesIO(encoded(PIL.Image.fromarray(noise()), "PNG", exif=exif)))
        loaded = image.convert("RGB")  # as torchvision's loader does: the note of the orientation stays
        assert torch.equal(decode_image(loaded), chw(numpy.rot90(noise()).copy()))
        assert loaded.size == (32, 24)
        assert loaded.getexif()[ORIENTATION] == 8

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    def test_damaged_exif_is_no_damage(self) -> None:
        data = encoded(PIL.Image.fromarray(smooth()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
        assert decode_image(data).shape == (3, 40, 56)


class TestDamage:
    """What cannot be read is a SourceError with a reason of one line."""

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "the file is empty"),
            (b"not an image", NOT_AN_IMAGE),
            (b"\0" * 1000, NOT_AN_IMAGE),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", NOT_AN_IMAGE),
            (b"\xff\xd8\xff", "damaged: "),
            (b"\x89PNG\r\n\x1a\n", NOT_AN_IMAGE),
        ],
    )
    def test_no_image(self, data: bytes, reason: str, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(data)
        for given_ in (data, tmp_path / "a.jpg"):
            with pytest.raises(SourceError) as raised:
                decode_image(given_)
            assert str(raised.value).startswith(reason)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "PPM"])
    @pytest.mark.parametrize("share", [0.5, 0.95])
    def test_truncated(self, kind: str, share: float) -> None:
        data = encoded(PIL.Image.fromarray(noise(64, 64)), kind)
        with pytest.raises(SourceError, match=r"^truncated: "):
            decode_image(data[: int(len(data) * share)])

    @pytest.mark.parametrize("kind", ["WEBP", "TIFF", "AVIF", "JPEG2000"])
    def test_truncated_of_another_kind(self, kind: str) -> None:
        data = encoded(PIL.Image.fromarray(noise(64, 64)), kind)
        with pytest.raises(SourceError):
            decode_image(data[: len(data) // 2])

    @pytest.mark.filterwarnings("ignore")  # of Pillow, on what it meets in metadata
    @given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
    def test_flipped_and_cut_bytes_never_raise_anything_else(self, kind: str, draw: Any) -> None:
        data = bytearray(encoded(PIL.Image.fromarray(noise(16, 16)), kind))
        for place in draw.draw(st.lists(st.integers(0, len(data) - 1), max_size=20)):
            data[place] ^= draw.draw(st.integers(1, 255))
        data = data[: draw.draw(st.integers(0, len(data)))]
        reason = "none"
        try:
            assert decode_image(bytes(data)).shape[0] == 3
        except SourceError as error:
            reason = str(error)
        assert 0 < len(reason) < 300
        assert "\n" not in reason

    @pytest.mark.parametrize("error", [ValueError("a\nb"), SyntaxError("x"), OverflowError(), IndexError("y"), RuntimeError("z" * 999)])
    def test_whatever_a_decoder_raises(self, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_file: Any) -> None:
            raise error

        monkeypatch.setattr(PIL.Image, "open", refuse)
        with pytest.raises(SourceError, match=r"^damaged: .+$") as raised:
            decode_image(b"anything")
        assert raised.value.__cause__ is error
        assert len(str(raised.value)) < 300

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(), KeyboardInterrupt(), OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENFILE, ""),
            OSError(errno.ENOMEM, ""), OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle"),
            OSError(errno.ETIMEDOUT, "timed out"), OSError(errno.ENOTCONN, "Transport endpoint is not connected"),
        ],
        ids=repr,
    )  # fmt: skip
    def test_errors_of_the_machine_pass(self, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_file: Any) -> None:
            raise error

        monkeypatch.setattr(PIL.Image, "open", refuse)
        with pytest.raises(type(error)) as raised:
            decode_image(b"anything")
        assert raised.value is error

    def test_paths(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"^No such file or directory$"):
            decode_image(tmp_path / "no.png")
        with pytest.raises(SourceError, match=r"^a folder, not a file$"):
            decode_image(tmp_path)

    def test_a_pipe_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.png")
        with pytest.raises(SourceError, match=r"^not a regular file$"):
            decode_image(tmp_path / "a.png")

    def test_a_file_that_is_too_long(self, tmp_path: Path) -> None:
        with (tmp_path / "a.png").open("wb") as file:
            file.truncate(1 << 40)  # a hole: it takes no space
        with pytest.raises(SourceError, match=r"^too large: 1099511627776 bytes"):
            decode_image(tmp_path / "a.png")

    def test_pil_image_without_pixels(self) -> None:
        with pytest.raises(SourceError, match="0 x 5 pixels"):
            decode_image(PIL.Image.new("RGB", (0, 5)))

    def test_pil_image_of_a_truncated_file(self) -> None:
        data = encoded(PIL.Image.fromarray(noise(64, 64)), "PNG")
        image = PIL.Image.open(io.BytesIO(data[: len(data) // 2]))
        with pytest.raises(SourceError, match=r"^truncated: "):
            decode_image(image)


# Not getrusage, whose peak a process has from the one that started it.
MEASURE = """
import sys, warnings
import torch
from pathlib import Path
from gentransforms.sources.decode import decode_image
warnings.simplefilter("error")
peak = lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
before = peak()
image = decode_image(Path(sys.argv[1]))
print(*image.shape, int(image.min()), int(image.max()), peak() - before)
"""


def measured(path: Path) -> tuple[list[int], list[int], int]:
    """The shape and range of a decoded file, and the megabytes by which that raised the peak of a fresh process."""
    printed = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    assert printed.stderr == ""
    *shape, low, high, peak = map(int, printed.stdout.split())
    return shape, [low, high], peak


class TestLargeImages:
    """Memory is bounded, whatever the size."""

    def test_a_jpeg_of_20000_pixels(self, tmp_path: Path) -> None:
        with PIL.Image.new("L", (20_000, 20_000), 77) as image:
            image.save(tmp_path / "a.jpg")
        shape, values, peak = measured(tmp_path / "a.jpg")
        assert shape == [3, 5000, 5000]
        assert values == [77, 77]
        assert peak < 500  # its 4 x 10^8 grey pixels would take 400 MB, and 1,600 more as RGB

    def test_a_png_within_the_limit(self, tmp_path: Path) -> None:
        assert PIL.Image.MAX_IMAGE_PIXELS < 9500**2 < 2 * PIL.Image.MAX_IMAGE_PIXELS  # where Pillow warns
        with PIL.Image.new("P", (9500, 9500), 1) as image:
            image.putpalette([0, 0, 0, 9, 9, 9])
            image.save(tmp_path / "a.png", compress_level=1)
        shape, values, peak = measured(tmp_path / "a.png")
        assert shape == [3, 4750, 4750]
        assert values == [9, 9]
        assert peak < 400  # 90 MB of pixels, and three of the 22.6 x 10^6 that are left; whole as RGB they would take 360 more

    def test_a_png_of_20000_pixels_is_refused(self, tmp_path: Path) -> None:
        with PIL.Image.new("1", (20_000, 20_000)) as image:
            image.save(tmp_path / "a.png")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(SourceError, match=r"^too large: Image size \(400000000 pixels\) exceeds limit of 178956970 pixels$"):
                decode_image(tmp_path / "a.png")
            with pytest.raises(SourceError, match=r"^too large: "):
                decode_mask(tmp_path / "a.png")

    def test_a_progressive_jpeg_beyond_the_limit_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        picture = PIL.Image.fromarray(smooth())
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
        assert decode_image(encoded(picture, "JPEG")).shape == (3, 40, 56)
        with pytest.raises(SourceError, match="too large: a progressive JPEG of 56 x 40 pixels"):
            decode_image(encoded(picture, "JPEG", progressive=True))
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
        assert decode_image(encoded(picture, "JPEG", progressive=True)).shape == (3, 40, 56)

    @pytest.mark.parametrize(("limit", "factor"), [(24 * 32 // 4, 2), (24 * 32 // 4 - 1, 3), (100, 3), (24 * 32, 1)])
    def test_reduced_by_whole_blocks(self, limit: int, factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
        pixels = noise()
        monkeypatch.setattr(decoding, "_LARGE", limit)
        monkeypatch.setattr(decoding, "_STRIP", 64)
        found = decode_image(encoded(PIL.Image.fromarray(pixels), "PNG")).permute(1, 2, 0).numpy()
        height, width = -(-24 // factor), -(-32 // factor)
        assert found.shape == (height, width, 3)
        for y in range(height):
            for x in range(width):
                block = pixels[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor].astype(float)
                assert numpy.abs(found[y, x] - block.mean((0, 1))).max() <= 0.6  # Pillow's own rounding

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I", "I;16", "F"])
    def test_reduced_in_any_mode(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        if mode in ("I", "I;16", "F"):
            values = noise(channels=1).astype({"I": numpy.int32, "I;16": numpy.uint16, "F": numpy.float32}[mode])
            image = PIL.Image.fromarray(values * (1 if mode == "F" else 257))
        else:
            image = PIL.Image.fromarray(noise(channels=4)).convert(mode)
        assert image.mode == mode
        whole = decode_image(image).float()
        expected = torch.nn.functional.avg_pool2d(whole, 2)
        monkeypatch.setattr(decoding, "_LARGE", 24 * 32 // 4)
        monkeypatch.setattr(decoding, "_STRIP", 64)
        found = decode_image(image)
        assert found.shape == (3, 12, 16)
        assert (found - expected).abs().max() <= 0.51

    def test_turned_and_reduced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = 6
        data = encoded(PIL.Image.fromarray(noise()), "PNG", exif=exif)
        expected = torch.nn.functional.avg_pool2d(decode_image(data).float(), 2)
        monkeypatch.setattr(decoding, "_LARGE", 24 * 32 // 4)
        assert (decode_image(data) - expected).abs().max() <= 0.51

    @pytest.mark.parametrize(("limit", "size"), [(320 * 480, (320, 480)), (320 * 480 - 1, (160, 240)), (8000, (40, 60)), (600, (20, 30))])
    def test_jpeg_by_its_own_scale(self, limit: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        data = encoded(PIL.Image.fromarray(smooth(320, 480)), "JPEG", quality=95)
        monkeypatch.setattr(decoding, "_LARGE", limit)
        found = decode_image(data)
        assert found.shape == (3, *size)
        expected = torch.nn.functional.adaptive_avg_pool2d(chw(smooth(320, 480)).float(), size)
        assert (found - expected).abs().max() <= 6

    def test_wide_jpeg(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decoding, "_LARGE", 1000)
        assert decode_image(encoded(PIL.Image.new("RGB", (60_000, 1), "red"), "JPEG")).shape[1] == 1

    def test_one_large_image_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decoding, "_LARGE", 100)
        inside, most, lock = 0, 0, threading.Lock()
        original = decoding._reduced

        def counted(*args: Any) -> Any:
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            try:
                return original(*args)
            finally:
                with lock:
                    inside -= 1

        monkeypatch.setattr(decoding, "_reduced", counted)
        data = encoded(PIL.Image.fromarray(noise(200, 200)), "PNG")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(decode_image, [data] * 40))
        assert most == 1
        assert all(torch.equal(image, found[0]) for image in found)

    def test_no_warning_among_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 24 * 32 - 1)
        data = encoded(PIL.Image.fromarray(noise()), "PNG")
        with pytest.warns(PIL.Image.DecompressionBombWarning):
            PIL.Image.open(io.BytesIO(data))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(decode_image, [data] * 64))
        assert caught == []
        assert all(torch.equal(image, chw(noise())) for image in found)

    def test_the_users_limit_stays(self) -> None:
        before = PIL.Image.MAX_IMAGE_PIXELS
        decode_image(encoded(PIL.Image.fromarray(noise()), "PNG"))
        assert before == PIL.Image.MAX_IMAGE_PIXELS


class TestDecodeMask:
    """Masks keep their numbers."""

    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
    def test_grey(self, kind: str) -> None:
        classes = noise(channels=1)
        found = decode_mask(encoded(PIL.Image.fromarray(classes), kind))
        assert found.dtype == torch.int32
        assert torch.equal(found, torch.from_numpy(classes).int())

    def test_palette_gives_numbers_not_colours(self) -> None:
        classes = noise(channels=1) % 21
        image = PIL.Image.fromarray(classes, "P")
        image.putpalette(list(noise(21, 1).reshape(-1)))
        assert torch.equal(decode_mask(encoded(image, "PNG")), torch.from_numpy(classes).int())

    def test_sixteen_bits(self) -> None:
        classes = numpy.random.default_rng(0).integers(0, 65536, (8, 9), numpy.uint16)
        assert decode_mask(encoded(PIL.Image.fromarray(classes), "PNG")).tolist() == classes.tolist()

    def test_one_bit(self) -> None:
        bits = noise(channels=1) > 127
        assert decode_mask(encoded(PIL.Image.fromarray(bits), "PNG")).tolist() == bits.astype(int).tolist()

    def test_path_and_pil(self, tmp_path: Path) -> None:
        image = PIL.Image.fromarray(noise(channels=1))
        image.save(tmp_path / "a.png")
        assert torch.equal(decode_mask(tmp_path / "a.png"), decode_mask(image))

    def test_orientation(self) -> None:
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = 3
        found = decode_mask(encoded(PIL.Image.fromarray(noise(channels=1)), "PNG", exif=exif))
        assert torch.equal(found, torch.from_numpy(noise(channels=1)).rot90(2).int())

    def test_large_ones_keep_every_other_pixel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decoding, "_LARGE", 24 * 32 // 4)
        found = decode_mask(encoded(PIL.Image.fromarray(noise(channels=1)), "PNG"))
        assert torch.equal(found, torch.from_numpy(noise(channels=1)[::2, ::2].copy()).int())

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
    def test_colours_are_refused(self, mode: str) -> None:
        with pytest.raises(SourceError, match=f"a mask in mode {mode}: expected one channel"):
            decode_mask(encoded(PIL.Image.new(mode, (4, 4)), "PNG"))

    def test_damage(self) -> None:
        with pytest.raises(SourceError, match="the file is empty"):
            decode_mask(b"")
        with pytest.raises(SourceError, match="truncated"):
            decode_mask(encoded(PIL.Image.fromarray(noise(64, 64, 1)), "PNG")[:2000])


class TestOneLine:
    """Reasons fit in a line."""

    def test_lines_are_joined_and_cut(self) -> None:
        assert one_line(ValueError("a\n  b\t c")) == "a b c"
        assert len(one_line(ValueError("x" * 1000))) == 200
        assert one_line(FileNotFoundError(2, "No such file or directory", "/secret")) == "No such file or directory"

    @pytest.mark.parametrize(
        ("error", "machine"),
        [
            (MemoryError(), True),
            (OSError(errno.ENFILE, ""), True),
            (OSError(errno.EIO, ""), True),
            (OSError(errno.ESTALE, ""), True),
            (FileNotFoundError(errno.ENOENT, ""), False),
            (PermissionError(errno.EACCES, ""), False),
            (OSError("truncated"), False),
        ],
    )
    def test_what_is_of_the_machine(self, error: BaseException, machine: bool) -> None:
        assert is_of_the_machine(error) is machine


class TestCheckFolder:
    """A file that is missing, and a folder that is."""

    MISSING = FileNotFoundError(errno.ENOENT, "No such file")

    def test_gone_or_empty(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").touch()
        for name in ("none", "empty", "file"):
            with pytest.raises(FileNotFoundError, match=f"the folder of the images is gone, or nothing is in it: '.*{name}'"):
                check_folder(tmp_path / name, self.MISSING)
        check_folder(tmp_path, self.MISSING)

    def test_only_for_missing_files(self, tmp_path: Path) -> None:
        wrapped = SourceError("masks: No such file")
        wrapped.__cause__ = self.MISSING
        with pytest.raises(FileNotFoundError) as raised:
            check_folder(tmp_path / "none", wrapped)
        assert raised.value.__cause__ is wrapped
        check_folder(tmp_path / "none", SourceError("truncated"))
        check_folder(tmp_path / "none", PermissionError(errno.EACCES, ""))

    def test_another_failure_of_the_folder_passes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def stale(_path: Any) -> None:
            raise OSError(errno.ESTALE, "Stale file handle")

        monkeypatch.setattr(os, "scandir", stale)
        with pytest.raises(OSError, match="Stale") as raised:
            check_folder(tmp_path, self.MISSING)
        assert raised.value.errno == errno.ESTALE


class TestSuffixes:
    """What names an image file."""

    def test_torchvisions_and_only_what_pillow_opens(self) -> None:
        from torchvision.datasets.folder import IMG_EXTENSIONS

        PIL.Image.init()
        opened = {suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.OPEN}
        assert set(IMG_EXTENSIONS) <= SUFFIXES <= opened
