"""The kornia adapter, alone and in kornia's containers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import kornia
import pytest
import torch
from kornia.augmentation import AugmentationSequential, IntensityAugmentationBase2D, RandomBrightness, RandomHorizontalFlip
from kornia.augmentation.container import ImageSequential
from packaging.version import Version
from small_generators import Flat, Hungry, NotFinite, OnCuda, grey_of, tiny_icgan
from torch import Tensor, nn

import gentransforms as gt
from gentransforms.errors import ConfigError, DeviceError, ImageError
from gentransforms.kornia import RandomGenerative
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
# Older kornia refuses bfloat16 and meta tensors itself, and hides boxes from us.
OLD_KORNIA = Version(kornia.__version__) < Version("0.9")
needs_kornia_0_9 = pytest.mark.skipif(OLD_KORNIA, reason="kornia before 0.9")
FLOATS = (torch.float16, torch.float32, torch.float64) + (() if OLD_KORNIA else (torch.bfloat16,))
# What AugmentationSequential may carry beside the images, all of which would become wrong if the layout moved.
COMPANIONS = {
    "mask": torch.ones(8, 1, 16, 16),
    "bbox": torch.tensor([[[1.0, 1.0], [5.0, 1.0], [5.0, 6.0], [1.0, 6.0]]]).expand(8, 1, 4, 2),
    "bbox_xyxy": torch.tensor([[1.0, 2.0, 5.0, 6.0]]).expand(8, 1, 4),
    "bbox_xywh": torch.tensor([[1.0, 2.0, 5.0, 6.0]]).expand(8, 1, 4),
    "keypoints": torch.tensor([[3.0, 4.0], [5.0, 6.0]]).expand(8, 2, 2),
}


def changed(result: Tensor, batch: Tensor = BATCH) -> list[bool]:
    return [not a.equal(b) for a, b in zip(result, batch, strict=True)]


class TestArguments:
    def test_is_a_kornia_augmentation(self) -> None:
        assert isinstance(RandomGenerative(Flat()), IntensityAugmentationBase2D)
        assert RandomGenerative(Flat()).p == 0.5

    @pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), "0.5", None, True])
    def test_another_p_is_refused(self, p: Any) -> None:
        with pytest.raises(ConfigError, match=r"p=.*expected a number in \[0, 1\]"):
            RandomGenerative(Flat(), p)

    @pytest.mark.parametrize("size", [0, -1, 1.5, "a"])
    def test_another_max_batch_size_is_refused(self, size: Any) -> None:
        with pytest.raises(ConfigError, match="max_batch_size="):
            RandomGenerative(Flat(), max_batch_size=size)

    @pytest.mark.parametrize("generator", ["icgan-cifar10-32", None, torch.nn.Identity()])
    def test_a_generator_is_an_image_generator(self, generator: Any) -> None:
        with pytest.raises(ConfigError, match="generator="):
            RandomGenerative(generator)

    def test_a_generator_that_needs_more_than_images_is_refused_at_once(self) -> None:
        class Labelled(FakeGenerator):
            inputs = ("labels",)

            def encode(self, images: torch.Tensor, labels: torch.Tensor) -> Any:
                return super().encode(images)

        with pytest.raises(ConfigError, match=r"Labelled needs labels .*use GenerativeAugment\(generator, inputs_getter="):
            RandomGenerative(Labelled())


class TestAlone:
    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    def test_dtype_channels_and_size_are_kept(self, p: float, channels: int, dtype: torch.dtype) -> None:
        augment = RandomGenerative(Flat(), p)
        batch = torch.rand(8, channels, 10, 14).to(dtype)
        before = batch.clone()
        result = augment(batch)
        assert result.dtype == dtype
        assert result.shape == batch.shape
        assert batch.equal(before)
        assert sum(changed(result, batch)) == augment.generator.rows
        if p == 1.0:
            greys = torch.tensor([grey_of(seed) for seed in augment.generator.seeds[0]], dtype=torch.float64)
            torch.testing.assert_close(result[:, 0, 0, 0].double(), greys, atol=2e-3 if dtype == torch.bfloat16 else 5e-4, rtol=0)

    def test_runs_on_the_chosen_images_only(self) -> None:
        generator = Flat(size=(16, 16))
        augment = RandomGenerative(generator, 0.5)
        result = augment(BATCH)
        mask = changed(result)
        assert 0 < sum(mask) < 8
        assert (generator.calls, generator.rows) == (1, sum(mask))
        assert generator.images[0].equal(BATCH[mask])
        assert [bool(selected) for selected in augment._params["batch_prob"] > 0.5] == mask
        assert generator.seeds[0] == augment._params["seeds"][mask].tolist()
        assert result[[not selected for selected in mask]].equal(BATCH[[not selected for selected in mask]])

    def test_runs_nothing_at_p_0(self) -> None:
        generator = FakeGenerator()
        assert RandomGenerative(generator, 0.0)(BATCH).equal(BATCH)
        assert (generator.calls, generator.encoded) == (0, 0)

    @pytest.mark.parametrize(("size", "batches"), [(None, [8]), (3, [3, 3, 2])])
    def test_runs_once_per_micro_batch_at_p_1(self, size: int | None, batches: list[int]) -> None:
        generator = Flat()
        RandomGenerative(generator, 1.0, max_batch_size=size)(BATCH)
        assert list(map(len, generator.seeds)) == batches

    def test_coins_are_binomial(self) -> None:
        generator = Flat(size=(1, 1))
        RandomGenerative(generator, 0.3)(torch.zeros(10_000, 3, 1, 1))
        assert abs(generator.rows - 3_000) < 3 * (10_000 * 0.3 * 0.7) ** 0.5

    def test_manual_seed_reproduces(self) -> None:
        augment = RandomGenerative(FakeGenerator(), 0.5)
        torch.manual_seed(1)
        first, second = augment(BATCH), augment(BATCH)
        torch.manual_seed(1)
        assert augment(BATCH).equal(first)
        assert augment(BATCH).equal(second)
        assert not first.equal(second)

    def test_draws_alike_whatever_p_is(self) -> None:
        streams = []
        for p in (0.0, 0.3, 1.0):
            torch.manual_seed(1)
            RandomGenerative(FakeGenerator(), p)(BATCH)
            streams.append(torch.rand(3))
        assert streams[0].equal(streams[1])
        assert streams[0].equal(streams[2])

    def test_draws_as_the_transform_does(self) -> None:
        torch.manual_seed(1)
        expected = gt.GenerativeAugment(FakeGenerator(), 0.5)(BATCH)
        torch.manual_seed(1)
        assert RandomGenerative(FakeGenerator(), 0.5)(BATCH).equal(expected)

    def test_keepdim(self) -> None:
        assert RandomGenerative(Flat(), 1.0)(BATCH[0]).shape == (1, 3, 16, 16)
        assert RandomGenerative(Flat(), 1.0, keepdim=True)(BATCH[0]).shape == (3, 16, 16)
        assert RandomGenerative(Flat(), 1.0, keepdim=True)(BATCH).shape == BATCH.shape
        assert RandomGenerative(Flat(), 1.0)(BATCH[0, 0]).shape == (1, 1, 16, 16)

    def test_an_empty_batch(self) -> None:
        for p in (0.0, 0.5, 1.0):
            generator = Flat()
            assert RandomGenerative(generator, p)(BATCH[:0]).shape == (0, 3, 16, 16)
            assert generator.calls == 0

    def test_other_memory_layouts(self) -> None:
        augment = RandomGenerative(FakeGenerator(), 0.5)
        expected = augment(BATCH)
        assert augment(BATCH.to(memory_format=torch.channels_last), params=augment._params).allclose(expected, atol=1e-5)

    def test_the_batch_may_be_skipped_as_a_whole(self) -> None:
        # kornia's own p_batch: no constructor of theirs or ours shows it, but the base class has it.
        augment = RandomGenerative(Flat(), 1.0)
        augment.p_batch = 0.5
        rows = []
        for _ in range(20):
            augment.generator.seeds.clear()
            augment(BATCH)
            rows.append(augment.generator.rows)
        assert set(rows) == {0, 8}
        augment.p_batch = 0.0
        assert augment(BATCH).equal(BATCH)

    def test_a_gradient_flows_to_the_unchosen_images(self) -> None:
        images = BATCH.clone().requires_grad_(True)
        result = RandomGenerative(FakeGenerator(), 0.5)(images)
        mask = changed(result.detach())
        result.sum().backward()
        assert [bool(gradient.eq(0).all()) for gradient in images.grad] == mask
        assert images.grad[[not selected for selected in mask]].eq(1).all()

    def test_sees_the_image_as_the_transform_does(self) -> None:
        batch = torch.rand(2, 3, 10, 16)
        for keeps in (True, False):
            ours, other = Flat(preserves_geometry=keeps), Flat(preserves_geometry=keeps)
            RandomGenerative(ours, 1.0)(batch)
            gt.GenerativeAugment(other, 1.0)(batch)
            assert ours.images[0].equal(other.images[0])


class TestSameOnBatch:
    @pytest.mark.parametrize("way", ["argument", "container", "attribute"])
    def test_one_selection_and_one_seed(self, way: str) -> None:
        augment = RandomGenerative(Flat(size=(16, 16)), 0.5, same_on_batch=way == "argument")
        call: Any = augment
        if way == "container":
            call = AugmentationSequential(augment, data_keys=["input"], same_on_batch=True)
        if way == "attribute":
            augment.same_on_batch = True
        counts = []
        for _ in range(20):
            result = call(BATCH)
            counts.append(sum(changed(result)))
            if counts[-1]:
                assert len(set(augment.generator.seeds[-1])) == 1
        assert set(counts) == {0, 8}

    def test_not_unless_asked_for(self) -> None:
        augment = RandomGenerative(Flat(), 1.0)
        AugmentationSequential(augment, data_keys=["input"])(BATCH)
        assert len(set(augment.generator.seeds[0])) == 8

    def test_of_nothing_and_replayed(self) -> None:
        augment = RandomGenerative(FakeGenerator(), 1.0, same_on_batch=True)
        assert augment(BATCH[:0]).shape == (0, 3, 16, 16)
        expected = augment(BATCH)
        assert augment(BATCH, params=augment._params).equal(expected)


class TestReplay:
    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    def test_params_make_the_same_images_again(self, p: float) -> None:
        augment = RandomGenerative(FakeGenerator(), p)
        expected = augment(BATCH)
        params = copy.deepcopy(augment._params)
        augment(BATCH)  # something else in between
        state = torch.get_rng_state()
        assert augment(BATCH, params=params).equal(expected)
        assert torch.get_rng_state().equal(state)
        assert RandomGenerative(FakeGenerator(), 0.5)(BATCH, params=params).equal(expected)

    def test_params_of_another_batch_are_refused(self) -> None:
        augment = RandomGenerative(FakeGenerator(), 0.5)
        augment(BATCH[:4])
        with pytest.raises(ImageError, match="params are those of 4 images, and the batch has 8"):
            augment(BATCH, params=augment._params)

    def test_params_may_be_edited(self) -> None:
        augment = RandomGenerative(Flat(), 0.5)
        augment(BATCH)
        params = augment._params | {"batch_prob": torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 1.0]), "seeds": torch.arange(8)}
        result = augment(BATCH, params=params)
        assert changed(result) == [True] + [False] * 6 + [True]
        assert augment.generator.seeds[-1] == [0, 7]

    @needs_kornia_0_9
    def test_params_are_on_the_cpu(self) -> None:
        augment = RandomGenerative(FakeGenerator(), 0.5)
        augment.to("meta")
        result = augment(BATCH.to("meta"))
        assert result.is_meta  # and no number was read from it, which a meta tensor has not
        assert not augment._params["batch_prob"].is_meta
        assert not augment._params["seeds"].is_meta
        assert augment._params["seeds"].dtype == torch.int64

    def test_in_a_sequence(self) -> None:
        chain = AugmentationSequential(RandomGenerative(FakeGenerator(), 0.5), RandomHorizontalFlip(p=0.5), data_keys=["input"])
        expected = chain(BATCH)
        params = chain._params
        chain(BATCH)
        assert chain(BATCH, params=params).equal(expected)


class TestAugmentationSequential:
    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    def test_companions_pass_where_the_layout_is_kept(self, p: float) -> None:
        augment = RandomGenerative(FakeGenerator(preserves_geometry=True), p)
        chain = AugmentationSequential(augment, data_keys=["input", *COMPANIONS])
        images, *others = chain(BATCH, *COMPANIONS.values())
        assert sum(changed(images)) == augment.generator.rows
        for (name, before), after in zip(COMPANIONS.items(), others, strict=True):
            torch.testing.assert_close(after, before, msg=name)

    @needs_kornia_0_9
    @pytest.mark.parametrize("key", COMPANIONS)
    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_companions_are_refused_where_they_would_be_wrong(self, key: str, p: float) -> None:
        chain = AugmentationSequential(RandomGenerative(FakeGenerator(), p), data_keys=["input", key])
        with pytest.raises(ImageError, match="FakeGenerator does not keep the layout"):
            chain(BATCH, COMPANIONS[key])

    @needs_kornia_0_9
    @pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
    @pytest.mark.parametrize(("image", "mask"), [((4, 3), (4,)), ((4, 3), (4, 1)), ((3,), (1,)), ((3,), ()), ((4, 3), (4, 2))])
    def test_masks_have_the_shape_of_kornias_own(self, image: tuple[int, ...], mask: tuple[int, ...], dtype: torch.dtype) -> None:
        images, values = torch.rand(*image, 16, 16), torch.arange(torch.Size((*mask, 16, 16)).numel()).reshape(*mask, 16, 16) % 7
        own, theirs = (
            AugmentationSequential(each, data_keys=["input", "mask"])
            for each in (RandomGenerative(FakeGenerator(preserves_geometry=True), 1.0), RandomBrightness((0.5, 1.0), p=1.0))
        )
        expected = theirs(images, values.float())[1].shape
        result = own(images, values.to(dtype))[1]
        assert result.dtype == dtype
        assert result.shape == expected
        assert result.flatten().equal(values.to(dtype).flatten())

    def test_classes_pass_always(self) -> None:
        chain = AugmentationSequential(RandomGenerative(FakeGenerator(), 1.0), data_keys=["input", "class"])
        images, labels = chain(BATCH, torch.arange(8))
        assert all(changed(images))
        assert labels.tolist() == list(range(8))

    def test_among_other_augmentations(self) -> None:
        augment = RandomGenerative(Flat(preserves_geometry=True), 0.5)
        chain = AugmentationSequential(augment, RandomHorizontalFlip(p=1.0), data_keys=["input", "mask"])
        mask = torch.zeros(8, 1, 16, 16)
        mask[..., :8] = 1
        images, flipped = chain(BATCH, mask)
        assert flipped.equal(mask.flip(-1))
        replaced = changed(images, BATCH.flip(-1))
        assert 0 < sum(replaced) < 8
        assert augment.generator.rows == sum(replaced)

    def test_in_an_image_sequential(self) -> None:
        generator = Flat()
        assert ImageSequential(RandomGenerative(generator, 1.0), RandomHorizontalFlip())(BATCH).shape == BATCH.shape
        assert generator.rows == 8


class TestChecks:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, -0.5])
    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_a_pixel_out_of_range_is_refused(self, p: float, value: float) -> None:
        batch = BATCH.clone()
        batch[3, 1, 2, 2] = value
        augment = RandomGenerative(FakeGenerator(), p)
        augment(BATCH)
        with pytest.raises(ImageError, match=r"\[0, 1\]"):
            augment(batch)

    @needs_kornia_0_9
    def test_in_every_call_on_the_cpu_and_once_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        checked: list[str] = []
        monkeypatch.setattr("gentransforms.images.check_range", lambda rows: checked.append(rows.device.type))
        augment = RandomGenerative(FakeGenerator(), 0.5)
        for _ in range(3):
            augment(BATCH)
        assert checked == ["cpu"] * 3
        augment.to("meta")
        for _ in range(3):
            augment(BATCH.to("meta"))
        assert checked == ["cpu"] * 3 + ["meta"]

    @pytest.mark.parametrize("shape", [(8, 2, 16, 16), (8, 4, 16, 16), (8, 16, 16, 3), (8, 3, 0, 16)])
    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_another_shape_is_refused(self, shape: tuple[int, ...], p: float) -> None:
        with pytest.raises(ImageError):
            RandomGenerative(FakeGenerator(), p)(torch.zeros(shape))

    @needs_kornia_0_9
    def test_integers_are_refused_as_by_kornia(self) -> None:
        with pytest.raises(TypeError, match=r"torch.uint8"):
            RandomGenerative(FakeGenerator())((BATCH * 255).byte())


class TestFrozen:
    def test_in_a_model_that_trains_and_is_saved(self) -> None:
        generator = tiny_icgan().train().requires_grad_(True)
        model = nn.ModuleDict({"augment": AugmentationSequential(RandomGenerative(generator, 1.0)), "head": nn.Conv2d(3, 1, 3)})
        assert set(model.state_dict()) == {"head.weight", "head.bias"}
        assert not set(generator.modules()) & set(model.modules())
        before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
        assert model.load_state_dict(model.state_dict(), strict=True) == ([], [])
        model.train()
        assert not generator.training
        assert not any(parameter.requires_grad for parameter in generator.parameters())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        model["head"](model["augment"](torch.rand(3, 3, 32, 32))).mean().backward()
        optimizer.step()
        assert all(tensor.equal(before[name]) for name, tensor in generator.state_dict().items())

    def test_state_dict_is_empty(self) -> None:
        augment = RandomGenerative(FakeGenerator())
        augment(BATCH)
        assert augment.state_dict() == {}
        assert augment.load_state_dict({}, strict=True) == ([], [])

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"])
    def test_copies(self, copied: Any) -> None:
        augment = RandomGenerative(FakeGenerator(), 0.5)
        expected = augment(BATCH)
        assert copied(augment)(BATCH, params=augment._params).equal(expected)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_to_a_dtype(self, dtype: torch.dtype) -> None:
        augment = RandomGenerative(FakeGenerator(), 0.5)
        expected = augment(BATCH)
        params = augment._params
        augment.to(dtype)
        assert augment.generator.dtype == torch.float32
        assert augment(BATCH, params=params).equal(expected)
        augment(BATCH)
        assert augment._params["seeds"].dtype == torch.int64

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_surrounding_autocast_changes_nothing(self, dtype: torch.dtype) -> None:
        augment, batch = RandomGenerative(tiny_icgan(), 0.5), torch.rand(4, 3, 32, 32)
        expected = augment(batch)
        with torch.autocast("cpu", dtype=dtype):
            within = augment(batch, params=augment._params)
        assert within.dtype == torch.float32
        assert within.equal(expected)

    def test_the_non_finite_keep_their_source(self) -> None:
        augment = RandomGenerative(NotFinite(bad=(13,)), 1.0)
        augment(BATCH)
        augment.generator.bad = (augment._params["seeds"][2].item(),)
        with pytest.warns(UserWarning, match="NaN or infinity"):
            assert changed(augment(BATCH, params=augment._params)) == [True, True, False] + [True] * 5
        assert augment.nonfinite_count == 1

    def test_out_of_memory_halves(self) -> None:
        augment = RandomGenerative(Hungry(fits=2), 1.0)
        with pytest.warns(UserWarning, match="out of memory"):
            assert augment(BATCH).shape == BATCH.shape
        assert augment.max_batch_size == 2

    def test_a_cuda_generator_in_a_forked_process(self) -> None:
        augment = RandomGenerative(OnCuda(), 1.0)
        augment._held._process = -1
        augment.generator.reported = torch.device("cuda:0")
        with pytest.raises(DeviceError, match="forked process"):
            augment(BATCH)
