"""TwoViews: a real and a generated view of one image."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from small_generators import Flat, grey_of
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchvision import tv_tensors
from torchvision.transforms import v2

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.kornia import RandomGenerative
from gentransforms.testing import FakeGenerator

BATCH = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def flat(p: float = 1.0) -> gt.GenerativeAugment:
    return gt.GenerativeAugment(Flat(), p, seeds_getter=lambda sample: [1, 2, 3, 4])


def kept(*others: Any) -> v2.Compose:
    """A generator that replaces nothing, and what follows it."""
    return v2.Compose([gt.GenerativeAugment(FakeGenerator(16), p=0.0), *others])


def pixels(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


class Named(Tensor):
    """An image with an attribute, as users have them."""

    title: str


class FromBank(nn.Module):
    """A stand-in for a transform that reads ready variants, and knows no generator."""

    def forward(self, sample: Tensor) -> Tensor:
        return 1 - sample


class TestTwoViews:
    def test_the_first_is_real_and_the_second_generated(self) -> None:
        real, generated = gt.TwoViews(flat())(BATCH)
        assert real is BATCH
        torch.testing.assert_close(generated[:, 0, 0, 0], torch.tensor([grey_of(seed) for seed in (1, 2, 3, 4)]))

    def test_the_generators_p_says_how_often(self) -> None:
        views = gt.TwoViews(flat(0.0))
        assert views(BATCH)[1].equal(BATCH)
        assert views.generative.generator.calls == 0

    def test_each_view_has_its_classic_augmentation(self) -> None:
        views = gt.TwoViews(flat(), lambda image: ("first", image), lambda image: ("second", image))
        (first, real), (second, generated) = views(BATCH)
        assert (first, second) == ("first", "second")
        assert real is BATCH
        assert generated[0, 0, 0, 0].item() == pytest.approx(grey_of(1))

    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize(
        "wrap", [lambda image: image, lambda image: {"image": tv_tensors.Image(image), "label": 3}], ids=["tensor", "dict"]
    )
    @pytest.mark.parametrize("which", [(True, True), (True, False), (False, True)], ids=["both", "first", "second"])
    def test_a_transform_in_place_changes_its_own_view_only(self, p: float, wrap: Any, which: tuple[bool, bool]) -> None:
        """A kept single image comes back as it is, so both views would be one object."""

        def image(sample: Any) -> Tensor:
            return sample["image"] if isinstance(sample, dict) else sample

        single, expected = BATCH[0].clone(), (BATCH[0] - 0.5) / 0.5
        norm = v2.Normalize([0.5] * 3, [0.5] * 3, inplace=True)
        real, generated = gt.TwoViews(gt.GenerativeAugment(Flat(), p), *(norm if on else None for on in which))(wrap(single))
        torch.testing.assert_close(image(real).as_subclass(Tensor), expected if which[0] else BATCH[0])
        if p == 0:
            torch.testing.assert_close(image(generated).as_subclass(Tensor), expected if which[1] else BATCH[0])

    @pytest.mark.parametrize(
        "generative",
        [
            kept(v2.CenterCrop(16)),
            gt.GenerativeAugment(FakeGenerator(16), p=0.0, output_size="generator"),
            kept(v2.ToPureTensor(), v2.CenterCrop(16)),
            RandomGenerative(FakeGenerator(16), p=0.0, keepdim=True),
        ],
        ids=["crop", "output_size", "pure", "kornia"],
    )
    def test_nor_where_the_generated_view_is_a_part_of_the_source(self, generative: Any) -> None:
        """It has other leaves then, and the same memory."""
        source = tv_tensors.Image(pixels(3, 16, 24))
        norm = v2.Normalize([0.5] * 3, [0.5] * 3, inplace=True)
        crop = v2.CenterCrop(16)  # a view
        real, generated = gt.TwoViews(generative, v2.Compose([crop, norm]), v2.Compose([crop, norm]))(source.clone())
        expected = (source[..., 4:20] - 0.5) / 0.5
        torch.testing.assert_close(real.as_subclass(Tensor), expected)
        torch.testing.assert_close(generated.as_subclass(Tensor), expected)

    def test_they_share_no_memory_without_classic_augmentation(self) -> None:
        """What follows, such as a model's own normalisation, may work in place too."""
        picture, array = PIL.Image.new("RGB", (9, 7)), np.arange(12).reshape(3, 4)
        sample = {"image": pixels(3, 16, 24), "more": [array, (picture, "text")], "label": torch.tensor(3)}
        before = copy.deepcopy(sample)
        real, generated = gt.TwoViews(
            lambda x: tree_map(lambda leaf: leaf[..., :8] if isinstance(leaf, Tensor) and leaf.ndim else leaf, x)
        )(sample)
        assert real is sample
        generated["image"].zero_()
        generated["label"].zero_()
        generated["more"][0][:] = 0
        generated["more"][1][0].paste((255, 255, 255), (0, 0, 9, 7))
        assert generated["more"][1][1] is sample["more"][1][1]
        assert real["image"].equal(before["image"])
        assert real["label"] == 3
        np.testing.assert_array_equal(array, before["more"][0])
        assert picture.getcolors() == [(63, (0, 0, 0))]

    def test_what_is_new_is_not_copied(self) -> None:
        new = [pixels(3, 4, 4), np.zeros(3), PIL.Image.new("RGB", (4, 4))]
        _, generated = gt.TwoViews(lambda sample: (new, 3))((pixels(3, 4, 4), np.zeros(3), PIL.Image.new("RGB", (4, 4))))
        assert all(one is other for one, other in zip(generated[0], new, strict=True))

    def test_a_copy_keeps_class_attributes_layout_and_gradients(self) -> None:
        source = pixels(2, 3, 8, 8).contiguous(memory_format=torch.channels_last).as_subclass(Named).requires_grad_()
        source.title = "photo"
        _, generated = gt.TwoViews(lambda sample: sample)(source)
        assert generated is not source
        assert (type(generated), generated.title) == (Named, "photo")
        assert generated.is_contiguous(memory_format=torch.channels_last)
        generated.sum().backward()
        assert source.grad is not None

    @pytest.mark.parametrize(
        "generative", [kept(v2.Normalize([0.5] * 3, [0.5] * 3, inplace=True)), lambda sample: sample[..., :4].zero_()], ids=["all", "part"]
    )
    def test_a_generative_that_works_in_place_is_refused(self, generative: Any) -> None:
        """The real view would be normalised too, whenever the image is kept."""
        with pytest.raises(ConfigError, match=r"generative.*changed a tensor \(3, 8, 8\) of the sample in place.*move .* to classic2"):
            gt.TwoViews(generative, v2.CenterCrop(8))(pixels(3, 8, 8))

    def test_under_inference_mode(self) -> None:
        with torch.inference_mode():
            source = pixels(3, 8, 8)
            real, generated = gt.TwoViews(kept())(source)
        assert real is source
        assert generated is not source
        assert generated.equal(source)

    def test_in_a_compiled_function(self) -> None:
        source = pixels(3, 16, 24)
        views = gt.TwoViews(kept(v2.CenterCrop(16)))
        real, generated = torch.compile(lambda image: [view * 2 for view in views(image)], backend="eager")(source)
        assert real.equal(source * 2)
        assert generated.equal(source[..., 4:20] * 2)

    def test_the_views_are_cropped_independently(self) -> None:
        crop = v2.RandomCrop(4)
        real, other = gt.TwoViews(flat(0.0), crop, crop)(BATCH)
        assert real.shape == other.shape == (4, 3, 4, 4)
        assert not real.equal(other)

    def test_classic_views_of_p_1_and_p_0_match(self) -> None:
        # The same random stream whatever p is: the real view does not change when the generator is switched off.
        torch.manual_seed(1)
        on, _ = gt.TwoViews(gt.GenerativeAugment(FakeGenerator(), 1.0), v2.RandomCrop(4))(BATCH)
        torch.manual_seed(1)
        off, _ = gt.TwoViews(gt.GenerativeAugment(FakeGenerator(), 0.0), v2.RandomCrop(4))(BATCH)
        assert on.equal(off)

    def test_reads_a_bank_alike(self) -> None:
        real, generated = gt.TwoViews(FromBank(), None, v2.CenterCrop(4))(BATCH)
        assert real is BATCH
        assert generated.equal(1 - BATCH[..., 6:10, 6:10])

    def test_of_samples_with_labels(self) -> None:
        label = torch.arange(4)
        views = gt.TwoViews(flat())
        for (first, one), (second, two) in (views(BATCH, label), views((BATCH, label))):
            assert first is BATCH
            assert not second.equal(BATCH)
            assert one is label
            assert two.equal(label)

    def test_of_one_picture_in_a_data_set(self) -> None:
        to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
        real, generated = gt.TwoViews(gt.GenerativeAugment(FakeGenerator(), 1.0), to_tensor, to_tensor)(PIL.Image.new("RGB", (9, 7)))
        assert real.shape == generated.shape == (3, 7, 9)
        assert not real.equal(generated)

    def test_the_input_is_not_modified(self) -> None:
        before = BATCH.clone()
        gt.TwoViews(flat(), v2.RandomHorizontalFlip(1.0), v2.RandomHorizontalFlip(1.0))(BATCH)
        assert BATCH.equal(before)

    def test_the_generator_is_a_frozen_part_of_it(self) -> None:
        views = gt.TwoViews(gt.GenerativeAugment(FakeGenerator()), v2.RandomCrop(4))
        assert views.state_dict() == {}
        assert views.load_state_dict({}, strict=True) == ([], [])
        assert list(views.parameters()) == []
        assert views.to(torch.float64).generative.generator.dtype == torch.float32
        views.train()
        assert not views.generative.generator.training

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [("generative", (None,)), ("generative", ("icgan",)), ("classic1", (flat(), 3)), ("classic2", (flat(), None, "crop"))],
    )
    def test_what_is_no_transform_is_refused_by_name(self, name: str, arguments: Any) -> None:
        with pytest.raises(ConfigError, match=f"{name}=.*expected a transform"):
            gt.TwoViews(*arguments)
