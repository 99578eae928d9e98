"""The public batteries: ours pass them, and each clause catches who breaks it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from small_generators import Flat, NotFinite, Returning, tiny_icgan
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

import gentransforms as gt
from gentransforms.errors import GeneratorError
from gentransforms.seeding import sample_noise
from gentransforms.testing import FakeGenerator, check_generator, check_transform

pytestmark = pytest.mark.usefixtures("one_thread")


class TestFakeGenerator:
    def test_counts_what_it_does(self) -> None:
        generator = FakeGenerator(size=8)
        condition = generator.encode(torch.rand(3, 3, 8, 8))
        assert (generator.encoded, generator.calls, generator.rows) == (3, 0, 0)
        generator.sample(condition, torch.arange(3))
        generator.sample(condition, torch.arange(3))
        assert (generator.encoded, generator.calls, generator.rows) == (3, 2, 6)

    def test_is_the_mean_colour_with_a_tenth_of_noise(self) -> None:
        images, seeds = torch.rand(2, 3, 16, 16), torch.tensor([5, 6])
        made = FakeGenerator()(images, seeds)
        for row, image, seed in zip(made, images, seeds.tolist(), strict=True):
            noise = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(row, (image.mean((1, 2), keepdim=True) + 0.1 * noise).clamp(0, 1))

    @pytest.mark.parametrize("keeps", [True, False])
    def test_claims_what_it_is_told(self, keeps: bool) -> None:
        generator = FakeGenerator(size=9, preserves_geometry=keeps)
        assert generator.preserves_geometry is keeps
        assert generator.image_size == (9, 9)
        assert generator.config == {"size": 9, "preserves_geometry": keeps}


class ReadsGlobalState(FakeGenerator):
    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        return (condition["mean"] + 0.1 * torch.randn(len(seeds), 3, *self.image_size)).clamp(0, 1)


class SeedsGlobalState(FakeGenerator):
    """Sets the global seed to that of each image: repeatable, and it wrecks the random stream of the training."""

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        rows = []
        for seed in seeds.tolist():
            torch.manual_seed(seed)
            rows.append(torch.randn(3, *self.image_size))
        noise = torch.stack(rows) if rows else torch.zeros(0, 3, *self.image_size)
        return (condition["mean"] + 0.1 * noise).clamp(0, 1)


class OneRngForTheBatch(FakeGenerator):
    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(int(seeds[0]) if len(seeds) else 0)
        return (condition["mean"] + 0.1 * torch.randn(len(seeds), 3, *self.image_size, generator=rng)).clamp(0, 1)


class BatchStatistics(FakeGenerator):
    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        images = super().sample(condition, seeds)
        return (images - images.mean(0, keepdim=True) + 0.5).clamp(0, 1) if len(images) else images


class BatchNormInTraining(FakeGenerator):
    """`eval()` does nothing to it: it normalises by the statistics of the batch."""

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        images = super().sample(condition, seeds)
        return nn.functional.batch_norm(images, None, None, training=True).sigmoid() if len(images) else images


class PlaceInTheBatch(FakeGenerator):
    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        return (super().sample(condition, seeds) * torch.linspace(1, 0.5, len(seeds)).view(-1, 1, 1, 1)).clamp(0, 1)


class OrderOfTheBatch(FakeGenerator):
    """The first image is right, alone and in a batch; the others depend on the one before."""

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        images = super().sample(condition, seeds)
        images[1:] = (images[1:] + 0.1 * (seeds[:-1] % 7).view(-1, 1, 1, 1)).clamp(0, 1)
        return images


class IgnoresSeeds(FakeGenerator):
    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        return super().sample(condition, torch.zeros_like(seeds))


class Counts(FakeGenerator):
    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        return (super().sample(condition, seeds) + 0.01 * self.calls).clamp(0, 1)


class WritesToItsInput(FakeGenerator):
    def encode(self, images: Tensor, **inputs: Any) -> dict[str, Tensor]:
        return super().encode(images.mul_(0.5))


class WritesToItsSeeds(FakeGenerator):
    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        return super().sample(condition, seeds.add_(1))


class WritesToItsCondition(FakeGenerator):
    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        images = super().sample(condition, seeds)
        condition["mean"].mul_(0.9)
        return images


class EncodesToOneRow(FakeGenerator):
    def encode(self, images: Tensor, **inputs: Any) -> dict[str, Tensor]:
        return super().encode(images) | {"text": torch.zeros(1, 7)}


class EncodesToATensor(FakeGenerator):
    def encode(self, images: Tensor, **inputs: Any) -> Any:
        return super().encode(images)["mean"]

    def sample(self, condition: Any, seeds: Tensor) -> Tensor:
        return super().sample({"mean": condition}, seeds)


class EncodesAScalar(FakeGenerator):
    def encode(self, images: Tensor, **inputs: Any) -> dict[str, Tensor]:
        return super().encode(images) | {"scale": torch.tensor(1.0)}


class CopiesWrongly(FakeGenerator):
    """Keeps a weight where neither deepcopy nor pickle finds it."""

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state["shift"] = 0.3
        return state

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        return (super().sample(condition, seeds) + getattr(self, "shift", 0)).clamp(0, 1)


class NeedsAnImage(FakeGenerator):
    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        return super().sample(condition, seeds) if len(seeds) else torch.zeros(0)


BROKEN: dict[str, tuple[Callable[[], gt.ImageGenerator], str]] = {
    "type": (lambda: Returning(list), "returned a list"),
    "count": (lambda: Returning(lambda images: images[:1]), "shape"),
    "size": (lambda: Returning(lambda images: images[..., 1:]), "shape"),
    "dtype": (lambda: Returning(Tensor.half), "dtype torch.float16"),
    "device": (lambda: Returning(lambda images: images.to("meta")), "on meta"),
    "finite": (lambda: NotFinite(bad=(2,)), "NaN or infinity"),
    "range": (lambda: Returning(lambda images: images * 2 - 1), r"values from .* expected \[0, 1\]"),
    "images": (WritesToItsInput, "the input images were modified"),
    "seeds": (WritesToItsSeeds, "the input seeds were modified"),
    "global state": (ReadsGlobalState, "global random state"),
    "global seed": (SeedsGlobalState, "global random state"),
    "same seeds": (Counts, "the same seeds gave other images"),
    "condition": (WritesToItsCondition, "sample changed its condition"),
    "condition's length": (EncodesToOneRow, "leading sizes"),
    "condition's type": (EncodesToATensor, "mapping of tensors"),
    "condition's values": (EncodesAScalar, "mapping of tensors"),
    "other seeds": (IgnoresSeeds, "different seeds gave the same image"),
    "one rng": (OneRngForTheBatch, "in a batch|order of the batch"),
    "batch statistics": (BatchStatistics, "an image alone differs"),
    "batch norm": (BatchNormInTraining, "an image alone differs"),
    "place": (PlaceInTheBatch, "order of the batch"),
    "order": (OrderOfTheBatch, "order of the batch"),
    "copies": (CopiesWrongly, "deep copy"),
    "empty": (NeedsAnImage, "empty batch"),
}


class TestCheckGenerator:
    @pytest.mark.parametrize(
        "generator",
        [FakeGenerator(), FakeGenerator(size=5, preserves_geometry=True), FakeGenerator().double()],
        ids=["fake", "layout", "float64"],
    )
    def test_the_fake_passes(self, generator: gt.ImageGenerator) -> None:
        check_generator(generator)

    def test_icgan_passes(self) -> None:
        check_generator(tiny_icgan())
        check_generator(tiny_icgan(), images=torch.rand(3, 3, 40, 28))

    def test_one_written_by_a_user_passes(self) -> None:
        class Noisy(gt.ImageGenerator):
            image_size, preserves_geometry, inputs = (8, 6), False, ("labels", "prompts")

            def encode(self, images: Tensor, labels: Tensor, prompts: list[str]) -> dict[str, Tensor]:  # type: ignore[override]
                lengths = torch.tensor([len(prompt) for prompt in prompts]).view(-1, 1, 1, 1)
                return {"shift": 0.01 * labels.view(-1, 1, 1, 1), "lengths": 0.01 * lengths}

            def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
                noise = sample_noise(seeds, (3, 8, 6))
                return (0.5 + condition["shift"] + condition["lengths"] + 0.1 * noise).clamp(0, 1)

        globals()["Noisy"] = Noisy  # where pickle looks for it
        Noisy.__qualname__ = "Noisy"
        check_generator(Noisy(), labels=torch.tensor([1, 2, 3, 4]), prompts=["a", "bb", "ccc", ""])
        with pytest.raises(TypeError, match="labels"):
            check_generator(Noisy())

    @pytest.mark.parametrize("clause", BROKEN)
    def test_names_the_clause_that_is_broken(self, clause: str) -> None:
        make, message = BROKEN[clause]
        with pytest.raises(GeneratorError, match=message):
            check_generator(make())

    def test_puts_the_generator_into_eval_mode_and_leaves_the_random_state(self) -> None:
        generator = FakeGenerator().train()
        state = torch.get_rng_state()
        check_generator(generator)
        assert not generator.training
        assert torch.get_rng_state().equal(state)

    def test_needs_three_images(self) -> None:
        with pytest.raises(GeneratorError, match="2 rows: expected at least 3"):
            check_generator(FakeGenerator(), images=torch.rand(2, 3, 16, 16))

    def test_the_tolerance_is_the_users(self) -> None:
        class Drifts(FakeGenerator):
            def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
                return (0.5 * super().sample(condition, seeds) + 1e-3 * self.calls).clamp(0, 1)

        globals()["Drifts"] = Drifts
        Drifts.__qualname__ = "Drifts"
        with pytest.raises(GeneratorError, match="the same seeds"):
            check_generator(Drifts())
        check_generator(Drifts(), atol=0.05)


class Plain:
    """A correct transform that uses no class of ours: each image is mirrored by its own random choice."""

    def __call__(self, *inputs: Any) -> Any:
        return v2.RandomHorizontalFlip(0.5)(*inputs)


def of_images(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """A transform that makes of every image in a sample what `change` does."""

    class Changed(v2.Transform):
        def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
            if isinstance(inpt, Tensor | PIL.Image.Image):
                return change(inpt)
            return inpt

    return Changed()


def _modified(image: Any) -> Any:
    return image.mul_(0) if isinstance(image, Tensor) else image


def _only(kind: type, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda image: change(image) if isinstance(image, kind) else image


_COUNTER = itertools.count()

BROKEN_TRANSFORMS: dict[str, tuple[Callable[..., Any], str]] = {
    "shape": (of_images(_only(Tensor, lambda image: image[..., :4, :])), "came back with shape"),
    "dtype": (of_images(_only(Tensor, lambda image: image.double())), "came back with dtype"),
    "device": (of_images(_only(Tensor, lambda image: image.to("meta"))), "came back with device"),
    "channels": (of_images(_only(Tensor, lambda image: image[..., :1, :, :].expand(*image.shape[:-3], 3, -1, -1))), "came back with shape"),
    "type": (of_images(_only(tv_tensors.Image, lambda image: image.as_subclass(Tensor))), "came back as Tensor"),
    "in place": (of_images(_modified), "modified in place"),
    "no seed": (of_images(_only(Tensor, lambda image: torch.full_like(image, next(_COUNTER)))), "manual_seed does not reproduce"),
    "channels_last": (
        of_images(_only(Tensor, lambda image: image if image.is_contiguous() else torch.zeros_like(image))),
        "channels_last input changes",
    ),
    "memory layout": (
        of_images(lambda image: image if not isinstance(image, Tensor) or image.is_contiguous() else image.contiguous()),
        "memory layout",
    ),
    "picture's type": (of_images(_only(PIL.Image.Image, np.asarray)), "PIL RGB gave|PIL L gave"),
    "picture's mode": (of_images(_only(PIL.Image.Image, lambda image: image.convert("RGB"))), "PIL L gave"),
    "picture's size": (of_images(_only(PIL.Image.Image, lambda image: image.resize((5, 5)))), "PIL image of size"),
    "structure": (lambda *sample: next(iter(sample[0].values())) if isinstance(sample[0], dict) else Plain()(*sample), "another structure"),
    "labels": (lambda *sample: Plain()(sample[0]) if len(sample) > 1 else Plain()(*sample), "did not come back as such"),
}


class TestCheckTransform:
    @pytest.mark.parametrize("p", [0.5, pytest.param(1.0, marks=pytest.mark.slow)])
    def test_ours_pass(self, p: float) -> None:
        check_transform(gt.GenerativeAugment(FakeGenerator(), p))
        check_transform(gt.GenerativeAugment(Flat(preserves_geometry=True), p), size=(9, 5))

    @pytest.mark.slow
    def test_icgan_passes(self) -> None:
        check_transform(gt.GenerativeAugment(tiny_icgan(), 1.0))

    def test_torchvisions_own_pass(self) -> None:
        check_transform(v2.RandomHorizontalFlip(0.5))
        check_transform(Plain())

    @pytest.mark.parametrize("clause", BROKEN_TRANSFORMS)
    def test_names_the_clause_that_is_broken(self, clause: str) -> None:
        transform, message = BROKEN_TRANSFORMS[clause]
        with pytest.raises(GeneratorError, match=message):
            check_transform(transform)

    def test_leaves_the_random_state(self) -> None:
        state = torch.get_rng_state()
        check_transform(gt.GenerativeAugment(FakeGenerator()))
        assert torch.get_rng_state().equal(state)

    def test_seeds_no_gpu_that_is_not_in_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seeds: list[int] = []
        monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
        check_generator(FakeGenerator())
        check_transform(gt.GenerativeAugment(FakeGenerator()))
        assert seeds == []
