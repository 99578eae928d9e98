"""Running a generator on a batch: micro-batches, memory, autocast, and what a generator may return."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_generators import Flat, Hungry, NotFinite, Returning, grey_of, tiny_icgan
from torch import Tensor

from gentransforms.errors import ConfigError, GeneratorError, MissingInputError
from gentransforms.generators.generate import generate
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SEEDS = torch.tensor([10, 11, 12, 13, 14, 15, 16])


class TestGenerate:
    def test_one_image_for_each_pair_of_source_and_seed(self) -> None:
        made, finite, size = generate(Flat(), IMAGES, SEEDS, {})
        assert made.shape == (7, 3, 8, 8)
        assert made.dtype == torch.float32
        assert finite.tolist() == [True] * 7
        assert size is None
        expected = torch.tensor([grey_of(seed) for seed in SEEDS.tolist()])
        torch.testing.assert_close(made, expected.view(7, 1, 1, 1).expand(7, 3, 8, 8))

    @pytest.mark.parametrize(("size", "batches"), [(None, [7]), (7, [7]), (100, [7]), (3, [3, 3, 1]), (1, [1] * 7)])
    def test_once_per_micro_batch(self, size: int | None, batches: list[int]) -> None:
        generator = Flat(inputs=("labels", "prompts"))
        given = {"labels": torch.arange(7), "prompts": list("abcdefg")}
        made, _, learned = generate(generator, IMAGES, SEEDS, given, size)
        assert list(map(len, generator.seeds)) == batches
        assert [seed for batch in generator.seeds for seed in batch] == SEEDS.tolist()
        assert torch.cat(generator.images).equal(IMAGES)
        assert torch.cat([given["labels"] for given in generator.given]).tolist() == list(range(7))
        assert [prompt for given in generator.given for prompt in given["prompts"]] == list("abcdefg")
        assert learned == size
        assert made.equal(generate(Flat(), IMAGES, SEEDS, {})[0])

    def test_nothing_of_nothing(self) -> None:
        generator = Flat()
        made, finite, size = generate(generator, IMAGES[:0], SEEDS[:0], {}, 2)
        assert made.shape == (0, 3, 8, 8)
        assert finite.shape == (0,)
        assert size == 2
        assert generator.calls == 0

    def test_results_are_ordinary_tensors(self) -> None:
        made, _, _ = generate(tiny_icgan(), torch.rand(2, 3, 32, 32), SEEDS[:2], {})
        assert not made.requires_grad
        assert not made.is_inference()

    def test_values_are_clamped(self) -> None:
        made, finite, _ = generate(Returning(lambda images: images * 4 - 2), IMAGES, SEEDS, {})
        assert made.min() == 0
        assert made.max() == 1
        assert finite.all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_surrounding_autocast_changes_nothing(self, dtype: torch.dtype) -> None:
        generator, images = tiny_icgan(), torch.rand(3, 3, 32, 32)
        plain, _, _ = generate(generator, images, SEEDS[:3], {})
        with torch.autocast("cpu", dtype=dtype):
            within, _, _ = generate(generator, images, SEEDS[:3], {})
            assert torch.is_autocast_enabled("cpu")
            direct = generator(images, SEEDS[:3])
        assert within.equal(plain)
        assert not direct.equal(plain)  # so the test above can fail

    @pytest.mark.parametrize("seeds", [SEEDS[:3], SEEDS.int(), SEEDS.float(), SEEDS[None], SEEDS.tolist(), SEEDS.to("meta")], ids=repr)
    def test_other_seeds_are_refused(self, seeds: Any) -> None:
        with pytest.raises(ConfigError, match="seeds"):
            generate(Flat(), IMAGES, seeds, {})


class TestInputs:
    class Needs(FakeGenerator):
        inputs = ("labels", "prompts", "masks")

        def encode(self, images: Tensor, labels: Tensor, prompts: Any = None, **others: Any) -> dict[str, Tensor]:
            return super().encode(images)

    def test_what_encode_needs_and_nobody_gave_is_named_with_the_getter(self) -> None:
        with pytest.raises(MissingInputError, match=r"labels are missing: Needs.encode needs them; .*inputs_getter=lambda sample"):
            generate(self.Needs(), IMAGES, SEEDS, {"prompts": list("abcdefg")})

    def test_what_encode_can_do_without_may_be_absent(self) -> None:
        assert len(generate(self.Needs(), IMAGES, SEEDS, {"labels": torch.arange(7)})[0]) == 7


class TestOutOfMemory:
    @pytest.mark.parametrize("kind", ["cuda", "cpu", "python"])
    def test_halves_and_goes_on(self, kind: str) -> None:
        generator = Hungry(fits=2, kind=kind)
        with pytest.warns(UserWarning, match=r"out of memory at a batch of 7 in Hungry: .* at most 2; set max_batch_size=2"):
            made, finite, size = generate(generator, IMAGES, SEEDS, {})
        assert generator.tried == [7, 4, 2, 2, 2, 1]
        assert size == 2
        assert finite.all()
        expected, _, _ = generate(FakeGenerator(), IMAGES, SEEDS, {})
        torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)

    def test_says_so_once(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _, _, size = generate(Hungry(fits=1), IMAGES, SEEDS, {})
            assert len(caught) == 1  # though it halved three times
            generate(Hungry(fits=1), IMAGES, SEEDS, {}, size)
        assert len(caught) == 1

    def test_halves_what_failed_rather_than_what_was_allowed(self) -> None:
        generator = Hungry(fits=3)
        with pytest.warns(UserWarning, match="out of memory"):
            assert generate(generator, IMAGES, SEEDS, {}, 100)[2] == 2
        assert generator.tried == [7, 4, 2, 2, 2, 1]

    def test_inputs_stay_with_their_images(self) -> None:
        class Labelled(Hungry):
            inputs = ("labels",)

            def encode(self, images: Tensor, **inputs: Any) -> dict[str, Tensor]:
                assert inputs["labels"].tolist() == [IMAGES.tolist().index(image.tolist()) for image in images]
                return super().encode(images)

        with pytest.warns(UserWarning, match="out of memory"):
            generate(Labelled(fits=2), IMAGES, SEEDS, {"labels": torch.arange(7)})

    def test_one_image_that_does_not_fit_is_an_error(self) -> None:
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            generate(Hungry(fits=0), IMAGES, SEEDS, {})

    def test_another_runtime_error_passes(self) -> None:
        generator = Hungry(fits=2, kind="other")
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            generate(generator, IMAGES, SEEDS, {})
        assert generator.tried == [7]


class TestNotFinite:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("size", [None, 2])
    def test_the_images_that_are_not_are_told(self, value: float, size: int | None) -> None:
        made, finite, _ = generate(NotFinite(bad=(11, 16), value=value), IMAGES, SEEDS, {}, size)
        assert finite.tolist() == [True, False, True, True, True, True, False]
        expected, _, _ = generate(FakeGenerator(), IMAGES, SEEDS, {}, size)
        assert made[finite].equal(expected[finite])


BROKEN: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a row too few": (lambda images: images[1:], r"shape \(6, 3, 16, 16\): expected \(7, 3, 16, 16\)"),
    "a row too many": (lambda images: torch.cat([images, images[:1]]), r"shape \(8, 3, 16, 16\)"),
    "another size": (lambda images: images[..., :8, :8], r"shape \(7, 3, 8, 8\)"),
    "one channel": (lambda images: images[:, :1], r"shape \(7, 1, 16, 16\)"),
    "channels last": (lambda images: images.permute(0, 2, 3, 1), r"shape \(7, 16, 16, 3\)"),
    "half precision": (lambda images: images.half(), "dtype torch.float16: expected torch.float32"),
    "double precision": (lambda images: images.double(), "dtype torch.float64"),
    "bytes": (lambda images: (images * 255).byte(), "dtype torch.uint8"),
    "another device": (lambda images: images.to("meta"), "on meta: expected cpu"),
    "a list": (lambda images: list(images), "returned a list: expected a tensor"),
    "nothing": (lambda images: None, "returned a NoneType"),
    "an array": (lambda images: images.numpy(), "returned a ndarray"),
}


class TestContract:
    @pytest.mark.parametrize("case", BROKEN)
    def test_a_generator_that_breaks_it_is_named(self, case: str) -> None:
        change, message = BROKEN[case]
        with pytest.raises(GeneratorError, match=rf"Returning.sample returned .*{message.removeprefix('returned ')}"):
            generate(Returning(change), IMAGES, SEEDS, {})
