"""GenerativeAugment at the edge: what it takes, what it returns, what it refuses."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections import namedtuple
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from small_generators import Flat, NotFinite, grey_of
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

import gentransforms as gt
from gentransforms.errors import ConfigError, ImageError
from gentransforms.images import centre, check_range, fit, from_float, resize, to_float, to_size
from gentransforms.kornia import RandomGenerative
from gentransforms.testing import FakeGenerator, check_transform

DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
BOXES = tv_tensors.BoundingBoxes(torch.tensor([[1, 2, 5, 6]]), format="XYXY", canvas_size=(10, 14))
MASK = tv_tensors.Mask(torch.ones(1, 10, 14, dtype=torch.uint8))
POINTS = tv_tensors.KeyPoints(torch.tensor([[3, 4]]), canvas_size=(10, 14))


def seeded(*seeds: int) -> Any:
    return lambda sample: list(seeds)


def always(seed: int = 100, count: int = 1, **options: Any) -> gt.GenerativeAugment:
    """Replace every image by the flat grey of seeds `seed`, `seed` + 1 …"""
    return gt.GenerativeAugment(Flat(**options), p=1.0, seeds_getter=seeded(*range(seed, seed + count)))


def pixels(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    unit = torch.rand(*shape, generator=torch.Generator().manual_seed(1))
    return (unit * 255).round().to(dtype) if dtype == torch.uint8 else unit.to(dtype)


def picture(mode: str = "RGB", width: int = 14, height: int = 10) -> PIL.Image.Image:
    shape = (height, width) if mode == "L" else (height, width, 3)
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def labelled(mode: str) -> PIL.Image.Image:
    """A mask of three classes (for mode 1: two) in a PIL mode, 14 x 10; a palette as in Pascal VOC."""
    classes = np.arange(140).reshape(10, 14) % 3
    if mode == "1":
        return PIL.Image.fromarray(classes > 0)
    mask = PIL.Image.fromarray(classes.astype({"P": "uint8", "I": "int32", "I;16": "uint16", "F": "float32"}[mode]))
    if mode == "P":
        mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    assert mask.mode == mode
    return mask


class TestTensors:
    @pytest.mark.parametrize("kind", [torch.Tensor, tv_tensors.Image])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("lead", [(), (4,), (2, 2), (1, 2, 2)])
    def test_come_back_as_they_were_with_new_content(self, lead: tuple[int, ...], channels: int, dtype: torch.dtype, kind: Any) -> None:
        image = pixels(*lead, channels, 10, 14, dtype=dtype)
        image = tv_tensors.Image(image) if kind is tv_tensors.Image else image
        count = int(np.prod(lead))
        result = always(count=count)(image)
        assert type(result) is kind
        assert result.shape == image.shape
        assert result.dtype == dtype
        greys = np.array([grey_of(seed) for seed in range(100, 100 + count)])
        expected = np.rint(greys * 255) if dtype == torch.uint8 else greys
        found = result.double().numpy().reshape(count, -1)
        # bfloat16 keeps 8 bits, float16 11; luma weights add up to one within a rounding error.
        np.testing.assert_allclose(found, np.broadcast_to(expected[:, None], found.shape), atol=2e-3 if dtype == torch.bfloat16 else 5e-4)

    @pytest.mark.parametrize("lead", [(0,), (0, 3), (2, 0)])
    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    def test_an_empty_batch_comes_back(self, lead: tuple[int, ...], p: float) -> None:
        generator = Flat()
        image = torch.zeros(*lead, 3, 10, 14)
        assert gt.GenerativeAugment(generator, p)(image).shape == image.shape
        sized = gt.GenerativeAugment(generator, p, output_size=(5, 6))
        assert sized(image).shape == (*lead, 3, 5, 6)
        assert generator.calls == 0

    @pytest.mark.parametrize("p", [0.5, 1.0])
    def test_memory_layout_does_not_matter(self, p: float) -> None:
        batch = pixels(6, 3, 10, 14)
        augment = gt.GenerativeAugment(FakeGenerator(), p=p, seeds_getter=seeded(*range(6)))
        expected = augment(batch)
        wide = pixels(12, 3, 10, 28)
        wide[::2, :, :, ::2] = batch
        views = {
            "channels_last": batch.to(memory_format=torch.channels_last),
            "strided": wide[::2, :, :, ::2],
            "transposed": batch.transpose(-1, -2).contiguous().transpose(-1, -2),
        }
        for name, view in views.items():
            assert not view.is_contiguous()
            torch.testing.assert_close(augment(view), expected, atol=1e-5, rtol=0, msg=name)
        grid = batch.view(2, 3, 3, 10, 14)
        torch.testing.assert_close(augment(grid.transpose(0, 1).contiguous().transpose(0, 1)), expected.view_as(grid), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("output_size", ["input", "generator", (6, 5)])
    def test_the_input_is_never_modified(self, output_size: Any, dtype: torch.dtype, p: float) -> None:
        class Scribbler(FakeGenerator):
            def encode(self, images: Tensor, **inputs: Any) -> dict[str, Tensor]:
                condition = super().encode(images)
                if images.is_contiguous():  # a grey image is repeated without a copy
                    images.zero_()
                return condition

        for image in (pixels(4, 3, 16, 16, dtype=dtype), pixels(4, 1, 16, 16, dtype=dtype), pixels(3, 16, 16, dtype=dtype)):
            before = image.clone()
            result = gt.GenerativeAugment(Scribbler(), p=p, output_size=output_size)(image)
            assert image.equal(before)
            if p == 1.0:
                assert result.untyped_storage().data_ptr() != image.untyped_storage().data_ptr()

    def test_the_generator_sees_the_pixels_as_unit_floats(self) -> None:
        augment = always(count=3)
        batch = pixels(3, 3, 8, 8, dtype=torch.uint8)
        augment(batch)
        (seen,) = augment.generator.images
        assert seen.dtype == torch.float32
        np.testing.assert_array_equal(seen.numpy(), batch.numpy().astype(np.float32) / np.float32(255))

    def test_the_generator_sees_grey_as_three_channels(self) -> None:
        augment = always(count=3)
        batch = pixels(3, 1, 8, 8)
        augment(batch)
        assert augment.generator.images[0].equal(torch.cat([batch] * 3, dim=1))


class TestPictures:
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_come_back_as_they_were(self, mode: str) -> None:
        image = picture(mode)
        before = np.asarray(image).copy()
        result = always()(image)
        assert isinstance(result, PIL.Image.Image)
        assert result.mode == mode
        assert result.size == (14, 10)
        assert set(np.asarray(result).flatten()) == {round(grey_of(100) * 255)}
        np.testing.assert_array_equal(np.asarray(image), before)

    def test_agree_with_tensors(self) -> None:
        image = picture()
        augment = gt.GenerativeAugment(FakeGenerator(), p=1.0, seeds_getter=seeded(5))
        assert v2.functional.pil_to_tensor(augment(image)).equal(augment(v2.functional.pil_to_tensor(image)))

    def test_a_list_of_several_sizes_goes_through_the_generator_at_once(self) -> None:
        augment = always(count=3)
        sample = [picture(width=14), picture("L", width=9, height=20), picture(width=8, height=8)]
        results = augment(sample)
        assert [(image.mode, image.size) for image in results] == [("RGB", (14, 10)), ("L", (9, 20)), ("RGB", (8, 8))]
        assert [int(np.asarray(image).flat[0]) for image in results] == [round(grey_of(seed) * 255) for seed in (100, 101, 102)]
        assert augment.generator.calls == 1
        assert augment.generator.rows == 3

    def test_pictures_and_tensors_of_several_kinds_at_once(self) -> None:
        augment = always(count=5)
        batch = tv_tensors.Image(pixels(2, 2, 1, 9, 9, dtype=torch.float64))
        result = augment({"a": picture(), "b": batch})
        assert isinstance(result["a"], PIL.Image.Image)
        assert np.asarray(result["a"]).max() == round(grey_of(100) * 255)
        assert result["b"].dtype == torch.float64
        torch.testing.assert_close(result["b"].flatten(0, 1).amax((1, 2, 3)).tolist(), [grey_of(seed) for seed in range(101, 105)])
        assert augment.generator.seeds == [[100, 101, 102, 103, 104]]


class TestSamples:
    def test_structure_and_everything_else_are_kept(self) -> None:
        Pair = namedtuple("Pair", ["image", "label"])
        extra, label, array = object(), torch.tensor([1, 2]), np.zeros(3)
        image = tv_tensors.Image(pixels(3, 10, 14))
        sample = {"pair": Pair(image, label), "rest": [extra, ("text", 7, None, 1.5)], "array": array, "nothing": {}}
        result = always()(sample)
        assert list(result) == ["pair", "rest", "array", "nothing"]
        assert type(result["pair"]) is Pair
        assert type(result["pair"].image) is tv_tensors.Image
        assert not result["pair"].image.equal(image)
        assert result["pair"].label is label
        assert result["rest"][0] is extra
        assert result["rest"][1] == ("text", 7, None, 1.5)
        assert result["array"] is array
        assert result["nothing"] == {}
        assert sample["pair"].image is image

    def test_several_arguments_come_back_as_a_tuple(self) -> None:
        image, label = pixels(3, 10, 14), torch.tensor(3)
        result = always()(image, label)
        assert isinstance(result, tuple)
        assert result[1] is label
        assert not result[0].equal(image)
        assert isinstance(always()((image, label)), tuple)
        assert isinstance(always()([image, label]), list)

    def test_only_the_first_plain_tensor_is_an_image(self) -> None:
        # As torchvision has it: the second may be a label of any shape.
        first, second = pixels(3, 10, 14), pixels(3, 10, 14)
        result = always()(first, second)
        assert not result[0].equal(first)
        assert result[1] is second

    def test_no_plain_tensor_is_an_image_beside_a_named_one(self) -> None:
        plain, named = pixels(3, 10, 14), tv_tensors.Image(pixels(3, 10, 14))
        result = always()(plain, named)
        assert result[0] is plain
        assert not result[1].equal(named)
        result = always()(plain, picture())
        assert result[0] is plain

    @pytest.mark.parametrize("sample", ["text", {"a": 1}, [], None])
    @pytest.mark.filterwarnings("ignore:.*found no image")
    def test_a_sample_without_images_passes(self, sample: Any) -> None:
        generator = Flat()
        state = torch.get_rng_state()
        augment = gt.GenerativeAugment(generator, p=1.0)
        assert augment(sample) == sample
        result, mask = augment(sample, return_mask=True)
        assert result == sample
        assert (mask.shape, mask.dtype) == ((0,), torch.bool)
        assert generator.calls == 0
        assert torch.get_rng_state().equal(state)

    @pytest.mark.parametrize("companion", [BOXES, MASK, POINTS], ids=lambda c: type(c).__name__)
    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_boxes_masks_and_points_are_refused_where_they_would_be_wrong(self, companion: Any, p: float) -> None:
        augment = gt.GenerativeAugment(Flat(), p=p)
        with pytest.raises(ImageError, match=rf"tv_tensors.{type(companion).__name__} and Flat does not keep the layout"):
            augment({"image": tv_tensors.Image(pixels(3, 10, 14)), "target": [companion]})
        assert augment.generator.calls == 0

    @pytest.mark.parametrize("companion", [BOXES, MASK, POINTS], ids=lambda c: type(c).__name__)
    def test_boxes_masks_and_points_pass_where_the_layout_is_kept(self, companion: Any) -> None:
        image = tv_tensors.Image(pixels(3, 10, 14))
        result = always(preserves_geometry=True)({"image": image, "target": companion})
        assert result["target"] is companion  # type, values and metadata
        assert not result["image"].equal(image)

    @pytest.mark.parametrize("companion", [BOXES, MASK, POINTS], ids=lambda c: type(c).__name__)
    @pytest.mark.parametrize("output_size", ["generator", (10, 14)])
    def test_another_size_would_make_them_wrong_too(self, companion: Any, output_size: Any) -> None:
        augment = gt.GenerativeAugment(Flat(preserves_geometry=True), output_size=output_size)
        with pytest.raises(ImageError, match=rf"tv_tensors.{type(companion).__name__}, which output_size="):
            augment(pixels(3, 10, 14), companion)

    @pytest.mark.parametrize("keeps", [True, False])
    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_video_is_refused(self, keeps: bool, p: float) -> None:
        augment = gt.GenerativeAugment(Flat(preserves_geometry=keeps), p=p)
        video = tv_tensors.Video(torch.zeros(5, 3, 10, 14))
        for sample in (video, [tv_tensors.Image(pixels(3, 10, 14)), video]):
            with pytest.raises(ImageError, match=r"tv_tensors\.Video"):
                augment(sample)

    def test_in_a_compose_with_torchvisions_own(self) -> None:
        view = v2.Compose([always(count=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])
        images, labels = view(pixels(4, 3, 10, 14, dtype=torch.uint8), torch.arange(4))
        assert images.shape == (4, 3, 10, 14)
        assert labels.tolist() == [0, 1, 2, 3]
        expected = torch.tensor([round(grey_of(seed) * 255) / 255 for seed in range(100, 104)]) * 2 - 1
        torch.testing.assert_close(images[:, 0, 0, 0], expected)


class Photo(torch.Tensor):
    """A tensor subclass with metadata, as MONAI's MetaTensor or fastai's TensorImage."""


class Named(tv_tensors.Image):
    """A subclass of torchvision's own, with an attribute."""


class TestTypes:
    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("output_size", ["input", (6, 5)])
    @pytest.mark.parametrize("kind", [Photo, Named, tv_tensors.Image])
    @pytest.mark.parametrize("lead", [(), (6,)])
    def test_a_subclass_comes_back_with_its_metadata(self, lead: tuple[int, ...], kind: Any, output_size: Any, p: float) -> None:
        image = pixels(*lead, 3, 16, 16).as_subclass(kind)
        image.spacing = (0.5, 0.5)
        result = gt.GenerativeAugment(FakeGenerator(), p=p, output_size=output_size)(image)
        assert type(result) is kind
        assert result.spacing == (0.5, 0.5)
        assert image.spacing == (0.5, 0.5)

    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_a_parameter_comes_back_as_a_plain_tensor(self, p: float) -> None:
        image = torch.nn.Parameter(pixels(4, 3, 16, 16))
        result = gt.GenerativeAugment(FakeGenerator(), p=p)(image)
        assert type(result) is Tensor

    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("output_size", ["input", "generator", (6, 5)])
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
    def test_channels_last_stays_channels_last(self, dtype: torch.dtype, output_size: Any, p: float) -> None:
        batch = pixels(8, 3, 10, 14, dtype=dtype).to(memory_format=torch.channels_last)
        augment = gt.GenerativeAugment(FakeGenerator(), p=p, output_size=output_size)
        assert augment(batch).is_contiguous(memory_format=torch.channels_last)
        one = batch[0]  # as v2.functional.pil_to_tensor makes them
        assert augment(one)[None].is_contiguous(memory_format=torch.channels_last)
        grid = augment(batch.view(2, 4, 3, 10, 14))
        assert grid.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert augment(batch.contiguous()).is_contiguous()


class TestViews:
    def test_a_list_of_plain_tensors_is_one_batch_of_views(self) -> None:
        views = [pixels(4, 3, 16, 16), pixels(4, 3, 16, 16), *(pixels(4, 3, 8, 8) for _ in range(6))]
        generator = FakeGenerator()
        result, mask = gt.GenerativeAugment(generator, p=1.0)(views, return_mask=True)
        assert isinstance(result, list)
        assert [view.shape for view in result] == [view.shape for view in views]
        assert not any(new.equal(old) for new, old in zip(result, views, strict=True))
        assert mask.tolist() == [True] * 32
        assert generator.calls == 1

    @pytest.mark.parametrize(
        "other",
        [
            torch.arange(4),  # labels
            torch.zeros(4, 10),  # scores
            torch.zeros(4, 16, 16, dtype=torch.int64),  # masks
            torch.zeros(4, 1, 16, 16),  # another number of channels
            torch.zeros(4, 3, 16, 16, dtype=torch.uint8),
            torch.zeros(3, 16, 16),
            "text",
        ],
        ids=lambda other: f"{other.dtype}-{tuple(other.shape)}" if isinstance(other, Tensor) else other,
    )
    def test_a_list_of_anything_else_holds_one_image(self, other: Any) -> None:
        image = pixels(4, 3, 16, 16)
        maybe_a_mask = isinstance(other, Tensor) and other.shape[0] == 4 and other.shape[-2:] == image.shape[-2:]
        with pytest.warns(UserWarning, match="mark masks") if maybe_a_mask else contextlib.nullcontext():
            result = always(count=4)([image, other])
        assert not result[0].equal(image)
        assert result[1] is other

    def test_an_image_named_as_one_leaves_the_others_alone(self) -> None:
        image, target = tv_tensors.Image(pixels(4, 3, 16, 16)), pixels(4, 3, 16, 16)
        result = always(count=4)([image, target])
        assert not result[0].equal(image)
        assert result[1] is target


class TestUnmarkedMasks:
    """Collating turns `tv_tensors.Mask` into a plain tensor: what may be one is said, once."""

    def batch(self, mask: Tensor, *, first: bool = False) -> dict[str, Tensor]:
        pair = {"image": pixels(4, 3, 16, 16), "mask": mask}
        return dict(reversed(pair.items())) if first else pair

    @pytest.mark.parametrize("mask", [torch.zeros(4, 1, 16, 16, dtype=torch.uint8), torch.zeros(4, 16, 16, dtype=torch.int64)], ids=str)
    def test_left_beside_an_image_of_another_layout(self, mask: Tensor) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(), p=1.0)
        assert not augment.generator.preserves_geometry
        with pytest.warns(UserWarning, match=r"GenerativeAugment: the plain tensor \(4, 3, 16, 16\).*left as it was; mark masks"):
            result = augment(self.batch(mask))
        assert result["mask"] is mask
        augment(self.batch(mask))  # without a word: once is enough

    def test_another_size_of_the_images(self) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(preserves_geometry=True), p=1.0, output_size="generator")
        with pytest.warns(UserWarning, match="mark masks"):
            augment(self.batch(torch.zeros(4, 1, 16, 16, dtype=torch.uint8)))

    def test_a_mask_taken_for_the_image(self) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(preserves_geometry=True), p=1.0)
        with pytest.warns(UserWarning, match=r"\(4, 1, 16, 16\) was taken for the image.*\(4, 3, 16, 16\), was left"):
            augment(self.batch(torch.zeros(4, 1, 16, 16, dtype=torch.uint8), first=True))

    @pytest.mark.parametrize(
        "beside",
        [
            {"mask": torch.zeros(4, 1, 16, 16, dtype=torch.uint8)},  # still right
            {"features": torch.zeros(4, 16)}, {"boxes": torch.zeros(4, 7, 4)}, {"depth": torch.zeros(4, 1, 8, 8)},
        ],
        ids=lambda beside: next(iter(beside)),
    )  # fmt: skip
    def test_nothing_is_said_of_what_stays_right(self, beside: dict[str, Tensor]) -> None:
        gt.GenerativeAugment(FakeGenerator(preserves_geometry=True), p=1.0)({"image": pixels(4, 3, 16, 16), **beside})

    def test_maps_that_the_generator_is_given(self) -> None:
        class Masked(FakeGenerator):
            inputs = ("masks",)

        sample = self.batch(torch.zeros(4, 16, 16, dtype=torch.int64))
        gt.GenerativeAugment(Masked(), p=1.0, inputs_getter=lambda sample: {"masks": sample["mask"]})(sample)
        with pytest.warns(UserWarning, match="mark masks"):
            gt.GenerativeAugment(Masked(), p=1.0)(sample)

    @pytest.mark.parametrize("name", ["masks", "control_maps", "foreground"])
    def test_maps_that_are_taken_for_images_all_the_same(self, name: str) -> None:
        """They are replaced, whatever the generator is given."""

        class Given(FakeGenerator):
            inputs = (name,)

        photo, mask = PIL.Image.new("RGB", (16, 16), "red"), PIL.Image.new("L", (16, 16), 2)
        batch = [pixels(4, 1, 16, 16), pixels(4, 1, 16, 16).round()]
        wrong_way = (torch.zeros(4, 1, 16, 16, dtype=torch.uint8), pixels(4, 3, 16, 16))
        for sample, count, words in (
            ((photo, mask), 2, "modes RGB and L"),
            (batch, 8, "two values only"),
            (wrong_way, 4, r"\(4, 1, 16, 16\) was"),
        ):
            augment = gt.GenerativeAugment(Given(), p=1.0, inputs_getter=lambda _, count=count: {name: torch.zeros(count, 1, 16, 16)})
            with pytest.warns(UserWarning, match=words):
                result = augment(sample)
            assert result[0] is not sample[0]
        augment = gt.GenerativeAugment(Given(), p=1.0, inputs_getter=lambda sample: {name: sample[1]})
        with pytest.warns(UserWarning, match="modes RGB and L"), pytest.raises(ConfigError, match=r"PIL RGB 16 x 16, PIL L 16 x 16"):
            augment(photo, mask)  # the warning comes before the error

    def test_named_images_leave_no_doubt_which_is_the_image(self) -> None:
        sample = self.batch(torch.zeros(4, 1, 16, 16, dtype=torch.uint8), first=True)
        sample["image"] = tv_tensors.Image(sample["image"])
        result = gt.GenerativeAugment(FakeGenerator(preserves_geometry=True), p=1.0)(sample)
        assert result["mask"] is sample["mask"]

    @pytest.mark.parametrize(
        ("image", "named"),
        [
            (PIL.Image.new("RGB", (16, 12)), "the PIL image of 16 x 12 pixels"),
            (PIL.Image.new("L", (16, 12)), "the PIL image of 16 x 12 pixels"),
            (tv_tensors.Image(pixels(3, 12, 16)), r"the Image \(3, 12, 16\)"),
            (pixels(3, 12, 16), r"the plain tensor \(3, 12, 16\)"),
            (pixels(1, 12, 16), r"the plain tensor \(1, 12, 16\)"),
        ],
        ids=["RGB", "L", "named", "plain", "grey"],
    )
    @pytest.mark.parametrize(
        "mask",
        [
            torch.zeros(12, 16, dtype=torch.int64),
            torch.zeros(1, 12, 16, dtype=torch.uint8),
            np.zeros((12, 16)),
            np.zeros((12, 16, 1), np.uint8),
        ],
        ids=["tensor", "channel", "array", "array-channel"],
    )
    def test_whatever_the_image_is(self, image: Any, named: str, mask: Any) -> None:
        with pytest.warns(UserWarning, match=rf"{named} was taken for the image, and an? \w+ of this height and width, .*left as it was"):
            assert gt.GenerativeAugment(FakeGenerator(), p=1.0)((image, mask))[1] is mask
        gt.GenerativeAugment(FakeGenerator(preserves_geometry=True), p=1.0)((image, mask))  # still right

    @pytest.mark.parametrize("count", [2, 5, 17])
    @pytest.mark.parametrize(
        "image", [picture("RGB"), pixels(3, 10, 14), tv_tensors.Image(pixels(3, 10, 14))], ids=["PIL", "plain", "named"]
    )
    @pytest.mark.parametrize(
        "stack", [lambda n: torch.zeros(n, 10, 14, dtype=torch.uint8), lambda n: np.zeros((n, 10, 14)), lambda n: np.zeros((10, 14, n))]
    )
    def test_any_number_of_maps_of_one_image(self, image: Any, count: int, stack: Any) -> None:
        """Masks of instances, of classes, heat maps."""
        with pytest.warns(UserWarning, match=r"taken for the image, and an? \w+ of this height and width, .*left as it was; mark masks"):
            gt.GenerativeAugment(FakeGenerator(), p=1.0)((image, {"masks": stack(count)}))
        gt.GenerativeAugment(FakeGenerator(preserves_geometry=True), p=1.0)((image, {"masks": stack(count)}))  # still right

    @pytest.mark.parametrize(
        "maps",
        [
            torch.zeros(4, 2, 10, 14),
            torch.zeros(4, 21, 10, 14),
            torch.zeros(4, 3, 10, 14, dtype=torch.bool),
            torch.zeros(4, 10, 14, 7, dtype=torch.int64),  # as torch.nn.functional.one_hot makes them
            torch.zeros(6, 10, 14, dtype=torch.uint8),  # of one image, in a list of targets
        ],
        ids=lambda maps: f"{maps.dtype}-{tuple(maps.shape)}",
    )
    @pytest.mark.parametrize("wrap", [lambda image: image, tv_tensors.Image], ids=["plain", "named"])
    def test_any_number_of_maps_of_a_batch(self, maps: Tensor, wrap: Any) -> None:
        with pytest.warns(UserWarning, match="of this height and width, .*left as it was; mark masks"):
            gt.GenerativeAugment(FakeGenerator(), p=1.0)({"image": wrap(pixels(4, 3, 10, 14)), "maps": maps})

    @pytest.mark.parametrize(
        ("image", "view"),
        [
            (picture("RGB"), pixels(3, 10, 14)),
            (picture("RGB"), np.zeros((10, 14, 3), np.uint8)),
            (pixels(3, 10, 14), np.zeros((10, 14, 3), np.uint8)),
            (pixels(4, 3, 10, 14), pixels(4, 3, 10, 14)),
            (pixels(4, 3, 10, 14), pixels(3, 10, 14)),  # such as the mean of all
            (pixels(4, 3, 10, 14), pixels(4, 10, 16)),
            (pixels(10, 3, 10, 14), pixels(10, 14, 8)),  # texts of 14 words
            (tv_tensors.Image(pixels(4, 3, 10, 14)), pixels(4, 3, 10, 14).half()),
        ],
        ids=["PIL", "array", "plain-array", "plain", "mean", "features", "texts", "named"],
    )  # fmt: skip
    def test_nothing_is_said_of_another_view(self, image: Any, view: Any) -> None:
        gt.GenerativeAugment(FakeGenerator(), p=1.0)({"image": image, "other": view})

    @pytest.mark.parametrize("image", [picture("RGB"), tv_tensors.Image(pixels(3, 10, 14))], ids=["PIL", "named"])
    def test_three_masks_look_like_another_view(self, image: Any) -> None:
        """Their values tell them apart."""
        masks = (pixels(3, 10, 14) > 0.5).to(torch.uint8)
        with pytest.warns(UserWarning, match="a tensor of its form, which has two values only, was left as it was; mark masks"):
            gt.GenerativeAugment(FakeGenerator(), p=1.0)((image, {"masks": masks}))
        gt.GenerativeAugment(FakeGenerator(preserves_geometry=True), p=1.0)((image, {"masks": masks}))

    def test_batches_of_named_images(self) -> None:
        sample = (tv_tensors.Image(pixels(4, 3, 16, 16)), torch.zeros(4, 16, 16, dtype=torch.int64))
        with pytest.warns(UserWarning, match="mark masks"):
            gt.GenerativeAugment(FakeGenerator(), p=1.0)(sample)

    @pytest.mark.parametrize("keeps", [True, False])
    def test_a_list_with_a_mask_among_its_images(self, keeps: bool) -> None:
        """What a loader makes of pairs of a grey image and a float mask."""
        augment = gt.GenerativeAugment(FakeGenerator(preserves_geometry=keeps), p=1.0)
        with pytest.warns(UserWarning, match=r"all plain tensors of a list.*\(4, 1, 16, 16\), has two values only; mark masks"):
            augment([pixels(4, 1, 16, 16), pixels(4, 1, 16, 16).round()])
        augment([pixels(4, 1, 16, 16), pixels(4, 1, 16, 16).round()])  # without a word

    def test_a_mask_of_the_form_of_its_image(self) -> None:
        sample = {"image": pixels(4, 1, 16, 16), "mask": pixels(4, 1, 16, 16).round()}
        with pytest.warns(UserWarning, match="another, which has two values only, was left as it was; mark masks"):
            gt.GenerativeAugment(FakeGenerator(), p=1.0)(dict(sample))
        gt.GenerativeAugment(FakeGenerator(preserves_geometry=True), p=1.0)(dict(sample))

    @pytest.mark.parametrize("values", [lambda image: image, torch.round], ids=["photos", "drawings"])
    def test_views_are_alike(self, values: Any) -> None:
        views = [values(pixels(4, 1, 16, 16)), values(pixels(4, 1, 16, 16).flip(0))]
        gt.GenerativeAugment(FakeGenerator(), p=1.0)(list(views))
        gt.GenerativeAugment(FakeGenerator(), p=1.0)(tuple(views))

    def test_values_are_read_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They cost a pass over the images, and a device sync."""
        augment = gt.GenerativeAugment(FakeGenerator(), p=1.0)
        views = [pixels(4, 1, 16, 16), 1 - pixels(4, 1, 16, 16)]
        augment(list(views))
        monkeypatch.setattr("gentransforms.transforms.replace.name_two_valued", None)
        augment(list(views))

    @pytest.mark.parametrize("mode", ["P", "1", "I", "I;16", "F"])
    @pytest.mark.parametrize(
        "image", [picture("RGB"), picture("L"), pixels(3, 10, 14), tv_tensors.Image(pixels(1, 10, 14))], ids=["RGB", "L", "plain", "named"]
    )
    def test_a_pil_mask_that_cannot_be_read(self, image: Any, mode: str) -> None:
        """Converted to RGB, as is right for an image of this mode, it would be taken for an image and replaced."""
        mask = labelled(mode)
        augment = gt.GenerativeAugment(FakeGenerator(preserves_geometry=True), p=1.0)
        named = rf"mode '{mode}' beside another image of its size: .* tv_tensors\.Mask\(mask\).*; if it is an image: expected 'RGB'"
        for sample in ((image, mask), {"mask": mask, "image": image}, ([image], {"target": mask})):
            with pytest.raises(ImageError, match=named):
                augment(sample)
        wrapped = tv_tensors.Mask(mask)  # as advised
        result = augment((image, wrapped))
        assert result[1] is wrapped
        assert np.array_equal(wrapped[0], np.asarray(mask))
        with pytest.raises(ImageError, match="does not keep the layout"):
            gt.GenerativeAugment(FakeGenerator(), p=1.0)((image, wrapped))

    @pytest.mark.parametrize("mode", ["P", "1", "I", "F"])
    def test_a_pil_image_of_such_a_mode_alone(self, mode: str) -> None:
        small = picture(width=7, height=5)
        for sample in (labelled(mode), (labelled(mode), 3), (labelled(mode), torch.tensor(3)), (labelled(mode), small)):
            with pytest.raises(ImageError, match=rf"PIL image in mode '{mode}': expected 'RGB' or 'L'; (use|for|scale)"):
                gt.GenerativeAugment(FakeGenerator(), p=1.0)(sample)

    def test_a_grey_picture_beside_a_coloured_one(self) -> None:
        photo = PIL.Image.new("RGB", (16, 16), "red")
        augment = gt.GenerativeAugment(FakeGenerator(), p=1.0)
        with pytest.warns(UserWarning, match="modes RGB and L"):
            augment(photo, photo.convert("L"))
        augment(photo, photo.convert("L").resize((8, 8)))


@dataclasses.dataclass
class Sample:
    image: Any


class TestWithoutImage:
    @pytest.mark.parametrize(
        ("sample", "parts"),
        [
            (np.zeros((8, 8, 3), np.uint8), ("NumPy array (8, 8, 3) of uint8", "v2.ToImage()")),
            ({"image": np.zeros((8, 8)), "label": 3}, ("NumPy array (8, 8) of float64", "an int")),
            (collections.UserDict(image=torch.zeros(3, 8, 8)), ("a UserDict", "dict(sample)")),
            (type("Batch", (dict,), {})(image=torch.zeros(3, 8, 8)), ("a Batch", "dict(sample)")),
            (Sample(torch.zeros(3, 8, 8)), ("a Sample", "not searched")),
            (("text", None), ("a str", "a NoneType")),
        ],
        ids=lambda value: type(value).__name__ if not isinstance(value, tuple) else "",
    )
    def test_is_told_once_with_what_was_there(self, sample: Any, parts: tuple[str, ...]) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(), p=1.0)
        with pytest.warns(UserWarning, match="GenerativeAugment found no image") as caught:
            assert [augment(sample) is sample for _ in range(3)] == [True] * 3
        assert len(caught) == 1
        for part in parts:
            assert part in str(caught[0].message)

    def test_an_empty_sample_is_none_of_our_business(self) -> None:
        assert gt.GenerativeAugment(FakeGenerator())([]) == []
        assert gt.GenerativeAugment(FakeGenerator())({}) == {}

    def test_as_advised_for_arrays(self) -> None:
        array = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        view = v2.Compose([v2.ToImage(), gt.GenerativeAugment(FakeGenerator(), p=0.0)])
        np.testing.assert_array_equal(view(array).permute(1, 2, 0).numpy(), array)
        view = v2.Compose([v2.ToImage(), gt.GenerativeAugment(FakeGenerator(), p=1.0)])
        assert (view({"image": array, "label": 3})["image"].permute(1, 2, 0).numpy() != array).any()


class TestSize:
    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize(("option", "size"), [("input", (10, 14)), ("generator", (8, 8)), ((5, 6), (5, 6)), ([20, 30], (20, 30))])
    def test_every_image_comes_out_at_the_size_asked_for(self, option: Any, size: tuple[int, int], p: float) -> None:
        augment = gt.GenerativeAugment(Flat(), p=p, output_size=option)
        assert augment(pixels(6, 3, 10, 14)).shape == (6, 3, *size)
        assert augment(tv_tensors.Image(pixels(2, 3, 1, 10, 14, dtype=torch.uint8))).shape == (2, 3, 1, *size)
        result = augment(picture("L"))
        assert result.size == size[::-1]
        assert result.mode == "L"

    @pytest.mark.parametrize("keeps", [True, False])
    def test_an_unchosen_image_is_cut_and_resized_as_the_generator_sees_it(self, keeps: bool) -> None:
        batch = pixels(3, 3, 10, 14)
        seen = batch if keeps else batch[..., 2:12]
        expected = torch.nn.functional.interpolate(seen, size=(8, 8), mode="bilinear", antialias=True)
        kept = gt.GenerativeAugment(Flat(preserves_geometry=keeps), p=0.0, output_size="generator")
        torch.testing.assert_close(kept(batch), expected)
        assert kept.generator.calls == 0
        shown = gt.GenerativeAugment(Flat(preserves_geometry=keeps), p=1.0, output_size="generator")
        shown(batch)
        torch.testing.assert_close(shown.generator.images[0], expected)

    def test_at_a_third_size_both_kinds_show_the_same_part_of_the_image(self) -> None:
        # White left and right of the generator's centre square: neither kind shows it, whatever the shape asked for.
        image = torch.zeros(3, 8, 16)
        image[..., :4] = image[..., 12:] = 1
        assert gt.GenerativeAugment(Flat(), p=0.0, output_size=(5, 20))(image).max() == 0
        whole = gt.GenerativeAugment(Flat(preserves_geometry=True), p=0.0, output_size=(5, 20))(image)
        assert whole[..., 0].min() == 1

    def test_images_of_that_size_already_show_the_same_part_too(self) -> None:
        small = torch.zeros(3, 8, 16)
        small[..., :4] = small[..., 12:] = 1
        large = small.repeat_interleave(2, -1).repeat_interleave(2, -2)
        augment = gt.GenerativeAugment(Flat(), p=0.0, output_size=(8, 16))
        for image in (small, large):
            result = augment(image)
            assert result.shape == (3, 8, 16)
            assert result.max() == 0
        whole = gt.GenerativeAugment(Flat(preserves_geometry=True), p=0.0, output_size=(8, 16))(small)
        assert whole.equal(small)

    def test_an_unchosen_image_of_that_size_is_bit_identical(self) -> None:
        for dtype in DTYPES:
            batch = pixels(4, 3, 8, 8, dtype=dtype)
            assert gt.GenerativeAugment(Flat(), p=0.0, output_size="generator")(batch).equal(batch)

    @pytest.mark.parametrize("keeps", [True, False])
    def test_the_whole_image_or_its_centre_square(self, keeps: bool) -> None:
        # The left and right quarters are white: a centre square does not see them.
        image = torch.zeros(3, 8, 16)
        image[..., :4] = image[..., 12:] = 1
        augment = always(preserves_geometry=keeps)
        augment(image)
        (seen,) = augment.generator.images
        assert seen.shape == (1, 3, 8, 8)
        assert seen.max() == (1 if keeps else 0)
        assert seen.mean() == pytest.approx(0.5 if keeps else 0, abs=0.02)

    def test_a_square_result_is_stretched_back(self) -> None:
        class Halves(Flat):
            def sample(self, condition: Any, seeds: Tensor) -> Tensor:
                images = torch.zeros(len(seeds), 3, *self.image_size)
                images[..., : self.image_size[1] // 2] = 1
                return images

        result = gt.GenerativeAugment(Halves(), p=1.0)(torch.zeros(3, 8, 24))
        assert result.shape == (3, 8, 24)
        assert result[..., :10].min() == 1  # the left half, as wide as half the image
        assert result[..., 14:].max() == 0

    def test_a_generator_that_is_not_square(self) -> None:
        augment = gt.GenerativeAugment(Flat(size=(6, 12)), p=1.0, output_size="generator")
        assert augment(pixels(2, 3, 10, 14)).shape == (2, 3, 6, 12)
        assert augment.generator.images[0].shape == (2, 3, 6, 12)


class TestNeedlessWork:
    """What is thrown away is not computed: sources that are replaced, and what is cut off."""

    @pytest.mark.parametrize("size", ["generator", (5, 6)])
    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    def test_only_kept_images_are_resized(self, monkeypatch: pytest.MonkeyPatch, p: float, size: Any) -> None:
        seen: list[int] = []
        monkeypatch.setattr("gentransforms.transforms.replace.to_size", lambda rows, size: seen.append(len(rows)) or to_size(rows, size))
        torch.manual_seed(0)
        _, chosen = gt.GenerativeAugment(FakeGenerator(), p=p, output_size=size)(pixels(8, 3, 20, 30), return_mask=True)
        assert 0 < chosen.sum() < 8 or p != 0.5
        assert sum(seen) == (~chosen).sum()

    @pytest.mark.parametrize("keeps", [True, False])
    @pytest.mark.parametrize("size", ["generator", (5, 6), (20, 20)])
    @pytest.mark.parametrize(
        "image",
        [
            pixels(8, 3, 20, 30), (pixels(8, 3, 20, 30) * 255).byte(), pixels(8, 1, 20, 30), pixels(8, 3, 20, 30).double(),
            pixels(8, 3, 20, 30).contiguous(memory_format=torch.channels_last), tv_tensors.Image(pixels(2, 4, 3, 20, 30)),
        ],
        ids=["float", "uint8", "grey", "double", "channels_last", "named"],
    )  # fmt: skip
    def test_the_results_are_the_same(self, image: Tensor, size: Any, keeps: bool) -> None:
        """Bit for bit as if every source were converted, cut, resized and then replaced."""
        torch.manual_seed(0)
        generator = FakeGenerator(preserves_geometry=keeps)
        result, chosen = gt.GenerativeAugment(generator, p=0.5, output_size=size)(image, return_mask=True)
        assert 0 < chosen.sum() < 8
        torch.manual_seed(0)
        seeds = gt.GenerativeAugment(generator, p=0.5).make_params([image])["seeds"]
        rows = image.as_subclass(Tensor).flatten(0, -4)
        size = generator.image_size if size == "generator" else size
        whole = to_float(rows)
        cut = rows if keeps else centre(rows, generator.image_size)
        base = cut.clone() if cut.shape[-2:] == size else from_float(resize(to_float(cut), size), like=rows)
        made = generator(fit(whole[chosen], generator.image_size, keeps), seeds[chosen])
        base[chosen] = from_float(resize(made, size), like=rows)
        assert type(result) is type(image)
        assert result.as_subclass(Tensor).flatten(0, -4).equal(base)
        last = not image.is_contiguous()
        assert result.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def test_a_source_that_is_kept_after_all(self) -> None:
        """Of an image that is not finite, the source is resized."""
        image = pixels(4, 3, 20, 30)
        with pytest.warns(UserWarning, match="NaN or infinity"):
            result = gt.GenerativeAugment(NotFinite((1, 3)), p=1.0, seeds_getter=seeded(1, 2, 3, 4), output_size=(8, 8))(image)
        kept = gt.GenerativeAugment(NotFinite(), p=0.0, seeds_getter=seeded(1, 2, 3, 4), output_size=(8, 8))(image)
        assert [result[i].equal(kept[i]) for i in range(4)] == [True, False, True, False]

    @pytest.mark.parametrize("size", ["input", "generator"])
    def test_gradients_see_replaced_sources(self, size: str) -> None:
        image = pixels(2, 3, 20, 30).requires_grad_()
        gt.GenerativeAugment(FakeGenerator(), p=1.0, output_size=size)(image).sum().backward()
        assert image.grad is not None
        assert not image.grad.any()

    @pytest.mark.parametrize("augment", [gt.GenerativeAugment, RandomGenerative])
    def test_what_is_cut_off_is_not_converted(self, monkeypatch: pytest.MonkeyPatch, augment: Any) -> None:
        shapes: list[tuple[int, ...]] = []
        monkeypatch.setattr("gentransforms.images.to_float", lambda rows: shapes.append(tuple(rows.shape)) or to_float(rows))
        augment(FakeGenerator(), p=1.0)(pixels(2, 3, 20, 60))
        assert shapes[0] == (2, 3, 20, 20)


class TestChecks:
    @pytest.mark.parametrize("p", [0.0, 1.0])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1.5, -0.5, 255.0])
    @pytest.mark.parametrize("dtype", DTYPES[1:])
    def test_one_pixel_out_of_range_is_refused_in_every_call(self, dtype: torch.dtype, value: float, p: float) -> None:
        augment = gt.GenerativeAugment(Flat(), p=p)
        batch = pixels(4, 3, 10, 14, dtype=dtype)
        augment(batch)
        batch[2, 1, 5, 5] = value
        for _ in range(2):
            with pytest.raises(ImageError, match=r"\[0, 1\]"):
                augment(batch)

    def test_each_cpu_tensor_of_a_sample_is_checked_in_every_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        checked: list[int] = []
        monkeypatch.setattr("gentransforms.images.check_range", lambda rows: (checked.append(len(rows)), check_range(rows)))
        augment = gt.GenerativeAugment(Flat(), p=0.5)
        for _ in range(3):
            augment([tv_tensors.Image(pixels(4, 3, 8, 8)), tv_tensors.Image(pixels(3, 8, 8))])
        assert checked == [4, 1] * 3

    def test_another_device_is_checked_at_its_first_call_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        checked: list[int] = []
        monkeypatch.setattr("gentransforms.images.check_range", lambda rows: checked.append(len(rows)))
        augment = gt.GenerativeAugment(FakeGenerator().to("meta"), p=1.0)
        batch = torch.zeros(4, 3, 8, 8, device="meta")
        augment(batch.byte())  # says nothing about floating images
        checked.clear()
        for _ in range(3):
            augment([tv_tensors.Image(batch), tv_tensors.Image(batch[0])])
        assert checked == [4, 1]

    @pytest.mark.parametrize(
        "image",
        [
            torch.zeros(10, 14),
            torch.tensor([1, 2, 3]),
            torch.zeros(2, 10, 14),
            torch.zeros(4, 10, 14),
            torch.zeros(10, 14, 3),
            torch.zeros(3, 0, 14),
            torch.zeros(3, 10, 0),
            torch.zeros(3, 10, 14, dtype=torch.int64),
            torch.zeros(3, 10, 14, dtype=torch.int16),
            torch.zeros(3, 10, 14, dtype=torch.bool),
            PIL.Image.new("RGBA", (4, 4)),
            PIL.Image.new("P", (4, 4)),
            PIL.Image.new("CMYK", (4, 4)),
            PIL.Image.new("I;16", (4, 4)),
            PIL.Image.new("1", (4, 4)),
            PIL.Image.new("RGB", (0, 4)),
        ],
        ids=lambda image: f"{image.mode}-{image.size}" if isinstance(image, PIL.Image.Image) else f"{tuple(image.shape)}-{image.dtype}",
    )
    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_what_is_no_image_is_refused_whatever_the_coins(self, image: Any, p: float) -> None:
        with pytest.raises(ImageError):
            gt.GenerativeAugment(Flat(), p=p)(image)


class TestBattery:
    @pytest.mark.parametrize("keeps", [True, False])
    @pytest.mark.parametrize("p", [0.0, 0.5, pytest.param(1.0, marks=pytest.mark.slow)])
    def test_goes_through_the_public_battery(self, p: float, keeps: bool) -> None:
        check_transform(gt.GenerativeAugment(FakeGenerator(preserves_geometry=keeps), p=p, max_batch_size=2))


class TestOverlookedImages:
    """Of plain tensors only the first is taken, which is one image of a whole list of samples."""

    FOUR = pixels(4, 3, 16, 16)
    SAMPLES: tuple[Any, ...] = (
        [(image, 7) for image in FOUR],
        [{"label": 7, "image": image} for image in FOUR],
        [[image, 7] for image in FOUR],
        [(image, [{"box": 1}] * i) for i, image in enumerate(FOUR)],
        [(FOUR[0], 7), (FOUR[1, :, :8], 7)],
        ([FOUR, torch.zeros(4)], [FOUR.flip(0), torch.zeros(4)]),  # a collated pair of samples
        tuple(zip(*[(image, {"boxes": torch.zeros(i, 4)}) for i, image in enumerate(FOUR)], strict=True)),
        {"label": [7] * 4, "image": list(FOUR)},
    )

    @pytest.mark.parametrize("sample", SAMPLES, ids=range(len(SAMPLES)))
    def test_are_told_once(self, sample: Any) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(preserves_geometry=True), p=1.0)  # or there would be a word on the boxes
        with pytest.warns(UserWarning, match=r"holds [24] plain tensors.*only the first.*default_collate.* a tv_tensors\.Image"):
            augment(sample)
        augment(sample)

    @pytest.mark.parametrize(
        "sample",
        [
            (FOUR[0], list(FOUR[1:])),
            [FOUR[0], list(FOUR[1:])],
            [[FOUR, FOUR.flip(0)], torch.arange(4)],
            ((FOUR[0], FOUR[1]), 7),
            [[FOUR, FOUR.flip(0)], [torch.arange(4), torch.arange(4)]],  # two views and two labels
            (FOUR[0], {"masks": torch.zeros(2, 32, 32)}),
            [{"image": FOUR[0]}, {"masks": torch.zeros(2, 32, 32)}],
            ({"x": FOUR[0]}, {"x": torch.zeros(1, 32, 32)}),
            [(FOUR[0], 7)],
            [(tv_tensors.Image(image), 7) for image in FOUR],
            [(picture(), 7), (picture(), 7)],
            list(FOUR),
            FOUR,
            {"image": FOUR[0], "label": 7},
        ],
        ids=range(14),
    )
    def test_nothing_is_said_of_other_samples(self, sample: Any) -> None:
        gt.GenerativeAugment(FakeGenerator(), p=1.0)(sample)

    def test_as_advised_all_are_taken(self) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(), p=1.0)
        for sample in (default_collate(self.SAMPLES[0]), [(tv_tensors.Image(image), label) for image, label in self.SAMPLES[0]]):
            assert augment(sample, return_mask=True)[1].tolist() == [True] * 4
