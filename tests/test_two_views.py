"""TwoViews: a real and a generated view of one image."""

from __future__ import annotations

from typing import Any

import PIL.Image
import pytest
import torch
from small_generators import Flat, grey_of
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.testing import FakeGenerator

BATCH = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def flat(p: float = 1.0) -> gt.GenerativeAugment:
    return gt.GenerativeAugment(Flat(), p, seeds_getter=lambda sample: [1, 2, 3, 4])


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
        assert views(BATCH)[1] is BATCH
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
            assert two is label

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
