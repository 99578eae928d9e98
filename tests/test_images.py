"""The image contract at the edge, against NumPy, PIL and torchvision."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

import gentransforms as gt
from gentransforms.errors import ImageError
from gentransforms.images import centre, check_range, count_images, fit, from_float, resize, restore, to_float, to_rows

DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOATS = DTYPES[1:]
LEADS = st.lists(st.integers(0, 3), max_size=3).map(tuple)
SIDES = st.integers(1, 6)


def picture(mode: str = "RGB", width: int = 7, height: int = 5) -> PIL.Image.Image:
    channels = {"L": (), "RGB": (3,)}[mode]
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8))


def pixels(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    unit = torch.rand(*shape, generator=torch.Generator().manual_seed(1))
    return (unit * 255).round().to(dtype) if dtype == torch.uint8 else unit.to(dtype)


def refusal(image: Any) -> str:
    with pytest.raises(ImageError) as caught:
        check_range(to_rows(image))
    return str(caught.value)


def advised(image: Any) -> Any:
    """What an image becomes by the code that the message of its refusal names."""
    message = refusal(image)
    code = re.search(r"use ((?:image|PIL\.Image|gentransforms\.).*?(?:\)|\]|\* 255|/ 255|/ 65535))(?:$|[;,]| after| where)", message)
    assert code, message
    return eval(code[1], {"image": image, "torch": torch, "numpy": np, "PIL": PIL, "gentransforms": gt})


class TestToRows:
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_a_pil_image_is_one_row(self, mode: str) -> None:
        image = picture(mode)
        rows = to_rows(image)
        array = np.asarray(image).reshape(5, 7, -1).transpose(2, 0, 1)
        assert rows.dtype == torch.uint8
        np.testing.assert_array_equal(rows.numpy(), array[None])

    @pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "1", "LA", "YCbCr", "HSV", "LAB", "RGBX", "PA", "La", "RGBa"])
    def test_other_pil_modes_are_refused_with_the_conversion(self, mode: str) -> None:
        image = PIL.Image.new(mode, (4, 4))
        assert to_rows(advised(image)).shape == (1, 3, 4, 4)

    @pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
    def test_sixteen_bits_keep_their_brightness(self, mode: str) -> None:
        values = np.linspace(0, 65535, 64).reshape(8, 8)
        image = PIL.Image.fromarray(values.astype({"I;16": "<u2", "I;16B": ">u2", "I": "i4"}[mode]))
        assert image.mode == mode
        np.testing.assert_allclose(to_rows(advised(image))[0, 0], values / 257, atol=1)

    def test_floats_keep_their_brightness(self) -> None:
        values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
        image = PIL.Image.fromarray(values)
        np.testing.assert_allclose(to_rows(advised(image))[0, 0], values * 255, atol=1)

    @pytest.mark.parametrize("size", [(0, 4), (4, 0), (0, 0)])
    def test_an_empty_pil_image_is_refused(self, size: tuple[int, int]) -> None:
        with pytest.raises(ImageError, match="at least 1 x 1"):
            to_rows(PIL.Image.new("RGB", size))

    @given(LEADS, st.sampled_from([1, 3]), SIDES, SIDES, st.sampled_from(DTYPES), st.sampled_from([Tensor, tv_tensors.Image]))
    def test_leading_dimensions_are_flattened_and_restored(
        self, lead: tuple[int, ...], channels: int, height: int, width: int, dtype: torch.dtype, kind: Any
    ) -> None:
        image = pixels(*lead, channels, height, width, dtype=dtype)
        image = tv_tensors.Image(image) if kind is tv_tensors.Image else image
        rows = to_rows(image)
        assert type(rows) is Tensor
        assert rows.dtype == dtype
        np.testing.assert_array_equal(rows.double(), image.double().numpy().reshape(-1, channels, height, width))
        assert len(rows) == count_images([image])
        back = restore(rows, image)
        assert type(back) is kind
        assert back.shape == image.shape
        assert torch.equal(back, image)

    @pytest.mark.parametrize("lead", [(), (4,), (2, 2)])
    def test_is_a_view(self, lead: tuple[int, ...]) -> None:
        image = pixels(*lead, 3, 4, 4)
        assert to_rows(image).untyped_storage().data_ptr() == image.untyped_storage().data_ptr()

    def test_other_memory_layouts_hold_the_same_rows(self) -> None:
        image = pixels(4, 3, 6, 8)
        assert to_rows(image.to(memory_format=torch.channels_last)).equal(image)
        assert to_rows(image.transpose(-1, -2)).equal(image.transpose(-1, -2).contiguous())
        assert to_rows(image.view(2, 2, 3, 6, 8).transpose(0, 1)).equal(image[[0, 2, 1, 3]])

    @pytest.mark.parametrize("shape", [(), (4,), (4, 4)])
    def test_too_few_dimensions_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ImageError, match=r"expected \(…, C, H, W\)"):
            to_rows(torch.zeros(shape))

    @pytest.mark.parametrize("shape", [(0, 8, 8), (2, 5, 8, 8)])
    def test_other_channel_counts_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ImageError, match="1 or 3 channels"):
            to_rows(torch.zeros(shape))

    @pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8, 1), (2, 8, 8, 3)])
    def test_channels_last_dimensions_are_recognised(self, shape: tuple[int, ...]) -> None:
        image = pixels(*shape)
        np.testing.assert_array_equal(advised(image), np.moveaxis(image.numpy(), -1, -3))

    @pytest.mark.parametrize("shape", [(2, 8, 8), (4, 8, 8), (5, 4, 8, 8), (5, 2, 8, 8)])
    def test_an_alpha_channel_is_left_out(self, shape: tuple[int, ...]) -> None:
        image = pixels(*shape)
        assert to_rows(advised(image)).shape[1] == shape[-3] - 1

    def test_grey_images_without_a_channel(self) -> None:
        images = pixels(60, 28, 28)
        assert to_rows(advised(images)).shape == (60, 1, 28, 28)
        assert "for grey images (N, H, W) use image.unsqueeze(-3)" in refusal(pixels(4, 28, 28))
        assert to_rows(advised(images[0])).shape == (1, 1, 28, 28)

    @pytest.mark.parametrize("shape", [(3, 0, 4), (3, 4, 0), (2, 3, 0, 0)])
    def test_images_without_pixels_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ImageError, match="at least 1 x 1"):
            to_rows(torch.zeros(shape))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint16, torch.bool, torch.complex64])
    def test_other_dtypes_are_refused_by_name(self, dtype: torch.dtype) -> None:
        assert str(dtype) in refusal(torch.zeros(3, 4, 4, dtype=dtype))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint16])
    def test_the_advice_for_integers_keeps_their_brightness(self, dtype: torch.dtype) -> None:
        small = torch.arange(64).reshape(1, 8, 8) * 4
        assert advised(small.to(dtype)).equal(small.to(torch.uint8))
        large = torch.linspace(0, 32767, 64).reshape(1, 8, 8).to(dtype)
        assert "for 16-bit values image / 65535" in refusal(large)
        torch.testing.assert_close(large / 65535, large.double().div(65535).float())
        check_range(to_rows(large / 65535))

    def test_the_advice_for_bools_and_complex_numbers(self) -> None:
        mask = torch.rand(1, 8, 8) > 0.5
        assert advised(mask).equal(torch.where(mask, 255, 0).to(torch.uint8))
        assert "image.abs()" in refusal(torch.zeros(3, 4, 4, dtype=torch.complex64))


class TestCountImages:
    @given(st.lists(LEADS, max_size=4))
    def test_counts_as_rows_do(self, leads: list[tuple[int, ...]]) -> None:
        images = [torch.zeros(*lead, 3, 2, 2) for lead in leads]
        assert count_images([*images, picture()]) == sum(len(to_rows(image)) for image in images) + 1


class TestCheckRange:
    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("value", [0.0, 0.5, 1.0, -0.0])
    def test_the_unit_interval_passes(self, dtype: torch.dtype, value: float) -> None:
        check_range(torch.full((1, 3, 2, 2), value, dtype=dtype))

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("value", [-0.5, 1.5, 255.0, float("inf"), float("-inf"), float("nan")])
    def test_one_bad_pixel_is_found(self, dtype: torch.dtype, value: float) -> None:
        rows = torch.full((2, 3, 4, 4), 0.5, dtype=dtype)
        rows[1, 2, 3, 3] = value
        with pytest.raises(ImageError, match=r"\[0, 1\]"):
            check_range(rows)

    def test_the_message_names_the_range(self) -> None:
        with pytest.raises(ImageError, match=r"values from -1.5 to 2: expected the range \[0, 1\]"):
            check_range(torch.tensor([-1.5, 2.0]).expand(1, 3, 4, 2))

    def test_a_resampling_filters_overshoot_passes(self) -> None:
        check_range(torch.tensor([-5e-4, 1.0005]).expand(1, 3, 4, 2))

    @pytest.mark.parametrize("filtering", ["BICUBIC", "LANCZOS"])
    def test_the_advice_for_overshoot(self, filtering: str) -> None:
        image = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (1, 28, 28)).astype(np.float32))
        if filtering == "BICUBIC":
            image = TF.resize(image, [32, 32], TF.InterpolationMode.BICUBIC)
        else:
            image = TF.to_image(PIL.Image.fromarray(image[0].numpy()).resize((32, 32), PIL.Image.Resampling.LANCZOS))
        assert image.min() < -0.05
        assert image.max() > 1.05
        check_range(to_rows(advised(image)))

    def test_the_advice_for_bytes_as_floats(self) -> None:
        image = pixels(3, 8, 8) * 255
        check_range(to_rows(advised(image)))

    def test_the_advice_for_overshoot_of_values_up_to_255(self) -> None:
        image = torch.tensor([-7.6, 40.0, 260.2]).expand(1, 3, 4, 3)
        with pytest.raises(ImageError, match=r"\(image / 255\)\.clamp\(0, 1\)"):
            check_range(image)
        check_range((image / 255).clamp(0, 1))

    @pytest.mark.parametrize("shape", [(8, 8, 4), (2, 8, 8, 4), (5, 8, 8, 2)])
    def test_the_advice_for_an_alpha_channel_at_the_end(self, shape: tuple[int, ...]) -> None:
        image = torch.rand(shape)
        with pytest.raises(ImageError) as error:
            to_rows(image)
        advice = str(error.value).rpartition("use ")[2]
        advised = eval(advice, {"image": image})
        assert to_rows(advised).shape[-2:] == (8, 8)
        assert advised.shape[-3] == shape[-1] - 1

    def test_a_normalised_image_is_told_from_overshoot(self) -> None:
        for mean, std in ((0.5, 0.5), (0.45, 0.225)):
            assert "v2.Normalize belongs after this transform" in refusal((pixels(3, 8, 8) - mean) / std)

    @pytest.mark.parametrize(("value", "named"), [("nan", "NaN"), ("inf", "infinite"), ("-inf", "infinite")])
    def test_what_is_not_finite_is_not_scaled(self, value: str, named: str) -> None:
        image = pixels(3, 8, 8)
        image[1, 2, 3] = float(value)
        assert refusal(image).endswith(f"with {named} values: expected finite values in [0, 1]; fix or drop it before this transform")

    def test_sixteen_bits(self) -> None:
        assert "65535" in refusal(pixels(3, 8, 8) * 65535)

    def test_integers_and_nothing_pass(self) -> None:
        check_range(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
        check_range(torch.zeros(0, 3, 4, 4))

    def test_an_image_that_needs_a_gradient_passes(self) -> None:
        check_range(torch.zeros(1, 3, 4, 4, requires_grad=True))

    def test_reads_a_device_once(self) -> None:
        class Reads(torch.utils._python_dispatch.TorchDispatchMode):
            count = 0

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.aminmax.default)
                return func(*args, **(kwargs or {}))

        with Reads() as reads:
            check_range(torch.zeros(2, 3, 4, 4))
        assert reads.count <= 2  # one pass over the pixels, at most one number-by-number read


class TestToFloat:
    def test_uint8_is_divided_by_255(self) -> None:
        rows = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
        np.testing.assert_array_equal(to_float(rows).numpy(), (rows.numpy() / np.float32(255)).astype(np.float32))

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_floats_keep_their_values(self, dtype: torch.dtype) -> None:
        rows = pixels(2, 3, 4, 5, dtype=dtype)
        unit = to_float(rows)
        assert unit.dtype == torch.float32
        assert unit.equal(rows.float())

    def test_grey_is_repeated(self) -> None:
        rows = pixels(2, 1, 4, 5)
        assert to_float(rows).equal(torch.cat([rows] * 3, dim=1))

    def test_is_no_view_of_the_input(self) -> None:
        rows = pixels(2, 3, 4, 5)
        before = rows.clone()
        to_float(rows).fill_(7)
        assert rows.equal(before)

    def test_what_the_tolerance_let_through_is_clamped(self) -> None:
        unit = to_float(torch.tensor([-5e-4, 1.0005]).expand(1, 3, 4, 2))
        assert unit.min() == 0
        assert unit.max() == 1


class TestFromFloat:
    def test_uint8_is_rounded_to_the_nearest(self) -> None:
        unit = torch.linspace(0, 1, 1000).view(1, 1, 10, 100).expand(1, 3, 10, 100)
        expected = np.rint(unit.numpy() * np.float32(255)).astype(np.uint8)
        np.testing.assert_array_equal(from_float(unit, torch.zeros(3, 1, 1, dtype=torch.uint8)).numpy(), expected)

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_round_trip(self, channels: int, dtype: torch.dtype) -> None:
        rows = pixels(2, channels, 4, 5, dtype=dtype)
        back = from_float(to_float(rows), like=rows)
        assert back.dtype == dtype
        assert back.shape == rows.shape
        if dtype == torch.uint8 or channels == 3:
            assert back.equal(rows)
        else:
            torch.testing.assert_close(back, rows)

    def test_grey_is_the_luma_of_pil(self) -> None:
        image = picture(width=64, height=64)
        ours = from_float(to_float(to_rows(image)), like=torch.zeros(1, 1, 1, dtype=torch.uint8))
        pil = torch.from_numpy(np.array(image.convert("L"))).int()
        assert (ours[0, 0].int() - pil).abs().max() <= 1

    def test_grey_is_the_luma_of_torchvision(self) -> None:
        unit = pixels(2, 3, 8, 8)
        ours = from_float(unit, like=torch.zeros(1, 1, 1))
        torch.testing.assert_close(ours, TF.rgb_to_grayscale(unit), atol=2e-4, rtol=0)  # its last weight is 0.1140 as well

    def test_every_byte_survives_a_grey_round_trip(self) -> None:
        rows = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
        assert from_float(to_float(rows), like=rows).equal(rows)


class TestResize:
    @pytest.mark.parametrize(
        ("source", "target"), [((16, 16), (8, 8)), ((7, 12), (20, 9)), ((5, 5), (5, 11)), ((33, 20), (4, 4)), ((1, 1), (3, 2))]
    )
    def test_is_the_antialiased_bilinear_filter_of_pil(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        plane = pixels(1, 1, *source)
        pil = PIL.Image.fromarray(plane[0, 0].numpy()).resize(target[::-1], PIL.Image.Resampling.BILINEAR)
        np.testing.assert_allclose(resize(plane, target)[0, 0].numpy(), np.asarray(pil), atol=1e-5)

    def test_returns_the_input_where_it_fits(self) -> None:
        images = pixels(2, 3, 6, 4)
        assert resize(images, (6, 4)) is images
        assert resize(images, [6, 4]) is images

    def test_of_nothing(self) -> None:
        assert resize(torch.zeros(0, 3, 8, 8), (4, 5)).shape == (0, 3, 4, 5)

    def test_does_not_overshoot(self) -> None:
        resized = resize((pixels(1, 3, 9, 9) > 0.5).float(), (31, 30))
        assert resized.min() >= -1e-6
        assert resized.max() <= 1 + 1e-6


class TestFit:
    @pytest.mark.parametrize("source", [(8, 8), (8, 12), (13, 8), (9, 4), (64, 48)])
    def test_without_geometry_the_centre_square_is_seen(self, source: tuple[int, int]) -> None:
        images, side = pixels(1, 3, *source), min(source)
        top, left = (source[0] - side) // 2, (source[1] - side) // 2
        for channel in range(3):
            plane = PIL.Image.fromarray(images[0, channel].numpy()).crop((left, top, left + side, top + side))
            expected = np.asarray(plane.resize((8, 8), PIL.Image.Resampling.BILINEAR))
            np.testing.assert_allclose(fit(images, (8, 8), preserves_geometry=False)[0, channel].numpy(), expected, atol=1e-5)

    @pytest.mark.parametrize("source", [(8, 8), (8, 12), (13, 8), (64, 48)])
    def test_with_geometry_the_whole_image_is_seen(self, source: tuple[int, int]) -> None:
        images = pixels(1, 3, *source)
        for channel in range(3):
            plane = PIL.Image.fromarray(images[0, channel].numpy()).resize((8, 8), PIL.Image.Resampling.BILINEAR)
            np.testing.assert_allclose(fit(images, (8, 8), preserves_geometry=True)[0, channel].numpy(), np.asarray(plane), atol=1e-5)

    def test_the_border_is_cut_or_seen(self) -> None:
        images = torch.zeros(1, 3, 8, 16)
        images[..., :4] = images[..., 12:] = 1
        assert fit(images, (8, 8), preserves_geometry=False).max() == 0
        assert fit(images, (8, 8), preserves_geometry=True).max() == 1

    @given(SIDES, SIDES, SIDES, SIDES, st.booleans())
    def test_any_image_fits_any_generator(self, height: int, width: int, h: int, w: int, keeps: bool) -> None:
        assert fit(pixels(2, 3, height, width), (h, w), keeps).shape == (2, 3, h, w)

    def test_a_generator_that_is_not_square_sees_its_own_aspect_ratio(self) -> None:
        images = torch.zeros(1, 3, 12, 12)
        images[..., :3, :] = images[..., 9:, :] = 1  # what a 6 x 12 window in the middle leaves out
        assert fit(images, (4, 8), preserves_geometry=False).max() == 0


class TestCentre:
    @given(SIDES, SIDES, SIDES, SIDES)
    def test_is_the_largest_rectangle_of_that_shape_in_the_middle(self, height: int, width: int, h: int, w: int) -> None:
        images = torch.arange(height * width).view(1, 1, height, width)
        cut = centre(images, (h, w))
        assert cut.untyped_storage().data_ptr() == images.untyped_storage().data_ptr()
        rows, columns = cut.shape[-2:]
        assert rows == height or columns == width
        # Another pixel of height or width would leave the aspect ratio by more than rounding does.
        assert abs(rows - min(height, width * h / w)) <= 0.5 or rows == 1
        assert abs(columns - min(width, height * w / h)) <= 0.5 or columns == 1
        top, left = divmod(int(cut.flatten()[0]), width)
        assert 0 <= (height - rows) - 2 * top <= 1
        assert 0 <= (width - columns) - 2 * left <= 1


class TestRestore:
    @pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
    def test_pil_stays_pil(self, mode: str, channels: int) -> None:
        rows = pixels(1, channels, 4, 6, dtype=torch.uint8)
        image = restore(rows, picture(mode))
        assert isinstance(image, PIL.Image.Image)
        assert image.mode == mode
        assert image.size == (6, 4)
        np.testing.assert_array_equal(np.asarray(image).reshape(4, 6, -1), rows[0].permute(1, 2, 0).numpy())

    @pytest.mark.parametrize("lead", [(), (4,), (2, 2), (0,)])
    def test_another_size_keeps_the_leading_dimensions(self, lead: tuple[int, ...]) -> None:
        like = tv_tensors.Image(torch.zeros(*lead, 3, 8, 8))
        back = restore(torch.zeros(int(np.prod(lead)), 3, 5, 6), like)
        assert type(back) is tv_tensors.Image
        assert back.shape == (*lead, 3, 5, 6)
