"""Any image file becomes upright RGB pixels, or one line on what is wrong with it."""

from __future__ import annotations

import errno
import io
import os
import warnings
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
from gentransforms.sources.decode import (
    NOT_AN_IMAGE,
    SUFFIXES,
    Orientation,
    check_folder,
    decode_image,
    decode_mask,
    decode_oriented,
    is_of_the_machine,
    rgb_image,
    turn_mask,
)
from gentransforms.wording import one_line

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
        found = decode_image(encoded(PIL.Image.fromarray(values), "PNG", transparency=1000), white_level=65535)
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
            (b"\xff\xd8\xff", NOT_AN_IMAGE),
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
class TestLargeImages:
    """Images of more pixels than Pillow's limit are refused; nothing of the process is changed."""

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
    def test_the_limit_is_pillows(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encoded(PIL.Image.fromarray(smooth()), kind)
        whole = decode_image(data)
        assert whole.shape == (3, 40, 56)
        for limit in (40 * 56, None):
            monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
            assert torch.equal(decode_image(data), whole)

    @pytest.mark.parametrize("limit", [40 * 56 - 1, 40 * 56 // 2 - 1])  # where Pillow warns, and where it refuses
    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    def test_more_is_refused(self, kind: str, limit: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(encoded(PIL.Image.fromarray(smooth()).convert("L"), kind))
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
        for decode in (decode_image, decode_mask):
            for action in ("error", "ignore"):
                with warnings.catch_warnings():
                    warnings.simplefilter(action, PIL.Image.DecompressionBombWarning)  # type: ignore[arg-type]
                    with pytest.raises(SourceError, match=r"^too large: .*(2240|56 x 40) pixels.* limit of") as raised:
                        decode(path)
                assert "save a smaller copy, or raise PIL.Image.MAX_IMAGE_PIXELS" in str(raised.value)

    def test_an_image_in_memory_has_no_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
        assert torch.equal(decode_image(PIL.Image.fromarray(noise())), chw(noise()))

    def test_settings_of_the_process_stay(self) -> None:
        before = PIL.Image.MAX_IMAGE_PIXELS, list(warnings.filters)
        decode_image(encoded(PIL.Image.fromarray(noise()), "PNG"))
        with pytest.raises(SourceError):
            decode_image(b"damaged")
        assert before == (PIL.Image.MAX_IMAGE_PIXELS, list(warnings.filters))


class TestWhiteLevel:
    """Grey images of 10 to 14 bits in 16."""

    @pytest.mark.parametrize("bits", [10, 12, 14])
    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_a_level_that_is_given(self, kind: str, bits: int) -> None:
        white = (1 << bits) - 1
        values = numpy.linspace(0, white, 256).round().astype(numpy.uint16).reshape(16, 16)
        data = encoded(PIL.Image.fromarray(values), kind)
        found = decode_image(data, white_level=white)
        assert (found[0].numpy() == numpy.rint(values * (255 / white))).all()
        with pytest.warns(UserWarning, match=rf"no more than {bits} of them .*if white is {white}, pass white_level={white}"):
            assert decode_image(data).max() == round(white * 255 / 65535)

    def test_no_warning_where_nothing_is_odd(self) -> None:
        for values in (numpy.array([[0, 1 << 14]], numpy.uint16), numpy.zeros((2, 2), numpy.uint16), numpy.array([[255]], numpy.uint8)):
            decode_image(encoded(PIL.Image.fromarray(values), "PNG"))
        dark = encoded(PIL.Image.fromarray(numpy.array([[5, 900]], numpy.uint16)), "PNG")
        assert decode_image(dark, white_level=65535)[0].tolist() == [[0, 4]]

    def test_values_above_are_white(self) -> None:
        data = encoded(PIL.Image.fromarray(numpy.array([[512, 2000]], numpy.uint16)), "PNG")
        assert decode_image(data, white_level=1023)[0].tolist() == [[128, 255]]
        floats = encoded(PIL.Image.fromarray(numpy.array([[0.0, 2.0]], numpy.float32)), "TIFF")
        assert decode_image(floats, white_level=2.0)[0].tolist() == [[0, 255]]


class TestWhiteOfFloats:
    """Grey images of floats: the scale that fits, with doubts told."""

    @staticmethod
    def ramp(low: float, high: float) -> PIL.Image.Image:
        return PIL.Image.fromarray(numpy.linspace(low, high, 600, dtype=numpy.float32).reshape(20, 30))

    @pytest.mark.parametrize("white", [1, 255, 65535])
    @pytest.mark.parametrize(("low", "high"), [(0, 1.0005), (0, 1.01), (-0.05, 1.08), (-0.1, 0.9), (0, 0.3)])
    def test_what_overshoots_keeps_its_scale(self, low: float, high: float, white: int) -> None:
        expected = numpy.rint(numpy.linspace(low, high, 600).clip(0, 1) * 255).reshape(20, 30)
        found = decode_image(encoded(self.ramp(low * white, high * white), "TIFF"))
        assert abs(found[0].numpy() - expected).max() <= 1

    @pytest.mark.parametrize("white", [1, 255])
    def test_what_overshoots_far_is_told(self, white: int) -> None:
        with pytest.warns(UserWarning, match=rf"values far above {white}, which become white: if white is another .* pass white_level="):
            assert decode_image(self.ramp(0, 1.4 * white)).max() == 255

    @pytest.mark.parametrize(
        ("high", "white", "bound"), [(3.0, 255, 3), (60.0, 255, 63), (3000.0, 65535, 4095), (16000.0, 65535, 16383), (0.1, 1, 0.125)]
    )
    def test_dark_images_are_told(self, high: float, white: int, bound: float) -> None:
        words = (
            rf"no values above {bound} and will be dark, as white is taken to be {white}: if white is {bound}, pass white_level={bound} "
            r"\(--white-level\); "
        )
        with pytest.warns(UserWarning, match=words + rf"if it is {white}, pass white_level={white}$"):
            assert decode_image(self.ramp(0, high)).max() == round(255 * high / white)
        assert decode_image(self.ramp(0, high), white_level=bound).max() == round(255 * high / bound)

    @pytest.mark.parametrize(("low", "high"), [(-1, 1), (-2, 2.6), (-3, 0), (-200, 200), (0, 80_000), (-1e-2, 0)])
    def test_what_fits_no_scale_is_refused(self, low: float, high: float) -> None:
        with pytest.raises(SourceError, match=r"pixels from .*: expected 0 to 1, 0 to 255 or 0 to 65535"):
            decode_image(self.ramp(low, high))

    def test_black_is_no_doubt(self) -> None:
        assert decode_image(self.ramp(0, 0)).max() == 0


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

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    @pytest.mark.parametrize("code", range(1, 9))
    def test_turned_with_its_image(self, code: int, kind: str) -> None:
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = code
        pixels = noise(channels=1)
        image, orientation = decode_oriented(encoded(PIL.Image.fromarray(pixels), kind, exif=exif))
        assert orientation == Orientation((24, 32), code)
        assert torch.equal(decode_mask(encoded(PIL.Image.fromarray(pixels), "PNG"), orientation), image[0].int())
        assert torch.equal(turn_mask(torch.from_numpy(pixels), orientation), image[0])
        # A mask with the same tag was turned by it, and is not turned twice.
        assert torch.equal(decode_mask(encoded(PIL.Image.fromarray(pixels), kind, exif=exif), orientation), image[0].int())

    def test_another_size_names_both(self) -> None:
        mask = PIL.Image.fromarray(noise(channels=1))
        for orientation in (Orientation((32, 24), 1), Orientation((32, 24), 6), Orientation((1, 1), 3)):
            with pytest.raises(SourceError, match=f"32 x 24 pixels, and its image is .*{orientation.size[1]} x {orientation.size[0]}"):
                decode_mask(mask, orientation)

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
