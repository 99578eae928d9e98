"""A generator inside a model that trains, is saved, loaded, moved, copied; and what happens when it misbehaves."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets.fingerprint import Hasher
from small_generators import Flat, Hungry, NotFinite, Returning, tiny_icgan
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

import gentransforms as gt
from gentransforms.errors import ConfigError, GeneratorError, WeightsError
from gentransforms.testing import FakeGenerator

BATCH = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))
KEYS = [11, 12, 13, 14, 15, 16]


def fixed_seeds(sample: Any) -> list[int]:
    return KEYS


class _Elsewhere:
    """What a function makes of a tensor, as far as a generator that follows is concerned."""

    is_meta = False

    def __init__(self, device: torch.device, tensor: Tensor) -> None:
        assert tensor.numel() == 0
        self.device = device


def tensors_of(augment: gt.GenerativeAugment) -> list[Tensor]:
    return [*augment.generator.parameters(), *augment.generator.buffers()]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


pytestmark = pytest.mark.usefixtures("one_thread")


class Holder(nn.Module):
    """A model that augments in its training step, as a LightningModule would."""

    def __init__(self, generator: gt.ImageGenerator | None = None, p: float = 1.0) -> None:
        super().__init__()
        self.augment = gt.GenerativeAugment(generator or tiny_icgan(), p, seeds_getter=fixed_seeds)
        self.nested = nn.ModuleDict({"views": gt.TwoViews(gt.GenerativeAugment(FakeGenerator(), p))})
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    def training_step(self, images: Tensor) -> Tensor:
        loss: Tensor = self.encoder(self.augment(images)).square().mean()
        return loss


def held_weights(augment: gt.GenerativeAugment) -> dict[str, Tensor]:
    return weights_of(augment.generator)


class TestTraining:
    @pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
    def test_the_model_learns_and_the_generator_does_not(self, optimizer: type[torch.optim.Optimizer]) -> None:
        holder = Holder()
        steps = optimizer(holder.parameters(), lr=0.1, weight_decay=0.1)
        frozen, learning = held_weights(holder.augment), weights_of(holder.encoder)
        holder.train()
        for _ in range(2):
            steps.zero_grad()
            holder.training_step(BATCH).backward()
            steps.step()
        assert same(held_weights(holder.augment), frozen)
        assert not any(new.equal(learning[name]) for name, new in holder.encoder.named_parameters() if name != "0.bias")
        assert all(parameter.grad is None for parameter in holder.augment.generator.parameters())

    def test_nothing_that_walks_the_model_sees_it(self) -> None:
        holder = Holder()
        assert len(list(holder.augment.generator.parameters())) > 0
        assert not any(parameter.requires_grad for parameter in holder.augment.generator.parameters())
        for found in (holder.augment.parameters(), holder.augment.buffers(), holder.augment.children()):
            assert list(found) == []
        assert all(name.startswith("encoder.") for name, _ in (*holder.named_parameters(), *holder.named_buffers()))
        inside = set(holder.augment.generator.modules())
        assert not inside & set(holder.modules())
        seen: list[nn.Module] = []
        holder.apply(seen.append)
        assert not inside & set(seen)

    def test_another_may_be_assigned(self) -> None:
        augment, other = gt.GenerativeAugment(tiny_icgan()), FakeGenerator().train()
        augment.generator = other
        assert augment.generator is other
        assert not other.training
        assert list(augment.children()) == []
        with pytest.raises(ConfigError, match="expected an ImageGenerator"):
            augment.generator = nn.Identity()

    def test_freezing_changes_the_generator_passed_in(self) -> None:
        generator = tiny_icgan().train().requires_grad_(True)
        mine = copy.deepcopy(generator)
        augment = gt.GenerativeAugment(generator)
        assert augment.generator is generator
        assert not generator.training
        assert not any(parameter.requires_grad for parameter in generator.parameters())
        assert mine.training
        assert all(parameter.requires_grad for parameter in mine.parameters())

    def test_it_stays_in_eval_mode(self) -> None:
        holder = Holder()
        expected = holder.augment(BATCH)
        for change in (holder.train, holder.augment.train, holder.augment.generator.train, lambda: holder.train(False).train(True)):
            change()
            assert holder.augment(BATCH).equal(expected)
            assert not any(module.training for module in holder.augment.generator.modules())
        holder.train()
        assert holder.augment.training
        assert holder.encoder.training
        assert not any(module.training for module in holder.augment.generator.modules())
        assert holder.augment.train() is holder.augment
        assert holder.augment.eval() is holder.augment
        assert not holder.augment.training

    def test_batch_statistics_are_not_updated(self) -> None:
        holder = Holder()
        before = weights_of(holder.augment.generator)
        assert any("running" in name for name in before)
        holder.train()
        holder.augment.generator.train()
        holder.training_step(BATCH)
        assert same(weights_of(holder.augment.generator), before)

    def test_results_can_be_trained_on(self) -> None:
        augment = gt.GenerativeAugment(tiny_icgan(), 1.0)
        result = augment(BATCH)
        assert not result.is_inference()
        assert not result.requires_grad
        result.requires_grad_(True)
        nn.Conv2d(3, 1, 3)(result).sum().backward()
        assert result.grad is not None
        result.detach().mul_(2)  # and changed in place

    @pytest.mark.parametrize("output_size", ["input", (20, 24)])
    def test_a_gradient_flows_to_the_unchosen_images(self, output_size: Any) -> None:
        images = BATCH.clone().requires_grad_(True)
        augment = gt.GenerativeAugment(Flat(), 0.5, output_size=output_size, seeds_getter=fixed_seeds)
        result = augment(images)
        chosen = {seed for batch in augment.generator.seeds for seed in batch}
        assert 0 < len(chosen) < 6
        result.sum().backward()
        assert images.grad is not None
        for seed, gradient in zip(KEYS, images.grad, strict=True):
            if seed in chosen:
                assert gradient.abs().max() == 0
            elif output_size == "input":
                assert gradient.eq(1).all()
            else:
                assert gradient.sum().item() == pytest.approx(3 * 20 * 24, rel=1e-3)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_surrounding_autocast_changes_nothing(self, dtype: torch.dtype) -> None:
        holder = Holder()
        holder.train()
        sizes: list[Any] = ["input", (20, 24)]
        expected = [
            gt.GenerativeAugment(holder.augment.generator, 0.5, seeds_getter=fixed_seeds, output_size=size)(BATCH) for size in sizes
        ]
        with torch.autocast("cpu", dtype=dtype):
            within = [
                gt.GenerativeAugment(holder.augment.generator, 0.5, seeds_getter=fixed_seeds, output_size=size)(BATCH) for size in sizes
            ]
            assert holder.encoder(BATCH).dtype == dtype  # the model's own arithmetic is the user's choice
        for a, b in zip(within, expected, strict=True):
            assert a.dtype == torch.float32
            assert a.equal(b)


class TestCheckpoints:
    def test_the_generators_weights_stay_out(self) -> None:
        holder = Holder()
        state = holder.state_dict()
        assert state
        assert all(name.startswith("encoder.") for name in state)
        assert holder.augment.state_dict() == {}
        assert holder.nested.state_dict() == {}
        assert all(name.startswith("top.encoder.") for name in nn.ModuleDict({"top": holder}).state_dict())

    def test_save_and_strict_load(self, tmp_path: Path) -> None:
        saved, other = Holder(), Holder(tiny_icgan())
        with torch.no_grad():
            for parameter in saved.encoder.parameters():
                parameter.add_(1)
        path = tmp_path / "model.pt"
        torch.save(saved.state_dict(), path)
        before = held_weights(other.augment)
        result = other.load_state_dict(torch.load(path, weights_only=True), strict=True)
        assert (result.missing_keys, result.unexpected_keys) == ([], [])
        assert same(weights_of(other.encoder), weights_of(saved.encoder))
        assert same(held_weights(other.augment), before)
        assert other.augment.load_state_dict({}, strict=True) == ([], [])

    def test_what_the_model_itself_misses_still_fails(self) -> None:
        holder = Holder()
        state = holder.state_dict()
        del state["encoder.0.weight"]
        with pytest.raises(RuntimeError, match=r"encoder\.0\.weight"):
            holder.load_state_dict(state)
        state = holder.state_dict() | {"augment.other": torch.zeros(1)}
        with pytest.raises(RuntimeError, match=r"augment\.other"):
            holder.load_state_dict(state)

    def test_loading_by_assignment(self) -> None:
        holder = Holder()
        before = held_weights(holder.augment)
        holder.load_state_dict(Holder().state_dict(), strict=True, assign=True)
        assert same(held_weights(holder.augment), before)
        assert not any(parameter.requires_grad for parameter in holder.augment.generator.parameters())

    def test_the_generator_itself_can_still_be_saved(self, tmp_path: Path) -> None:
        holder = Holder()
        assert len(holder.augment.generator.state_dict()) > 0
        holder.augment.generator.save_pretrained(tmp_path)
        again = gt.GenerativeAugment.from_pretrained(tmp_path, 1.0, seeds_getter=fixed_seeds)
        torch.testing.assert_close(again(BATCH), holder.augment(BATCH), atol=1e-5, rtol=0)


class TestMovingAndCopying:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_to_a_dtype(self, dtype: torch.dtype) -> None:
        holder = Holder()
        expected = holder.augment(BATCH)
        holder.to(dtype)
        assert holder.encoder[0].weight.dtype == dtype
        assert holder.augment.generator.dtype == torch.float32
        for image in (BATCH, BATCH.half(), (BATCH * 255).byte()):
            result = holder.augment(image)
            assert result.dtype == image.dtype
        assert holder.augment(BATCH).equal(expected)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_the_generator_itself_in_another_dtype(self, dtype: torch.dtype) -> None:
        augment = gt.GenerativeAugment(tiny_icgan(), 1.0, seeds_getter=fixed_seeds)
        expected = augment(BATCH)
        augment.generator.to(dtype)
        torch.testing.assert_close(augment(BATCH), expected, atol=1e-4 if dtype == torch.float64 else 0.1, rtol=0)
        assert augment.nonfinite_count == 0

    @pytest.mark.parametrize("move", [lambda m: m.to("meta"), lambda m: m.to_empty(device="meta"), lambda m: m.to_empty(device="cpu")])
    def test_it_does_not_go_where_its_values_would_be_lost(self, move: Any) -> None:
        holder = Holder()
        expected = holder.augment(BATCH)
        move(holder)
        assert holder.augment.generator.device.type == "cpu"
        assert holder.augment(BATCH).equal(expected)
        assert holder.augment.nonfinite_count == 0

    @pytest.mark.parametrize(
        "change",
        [lambda m: m.half(), lambda m: m.double(), lambda m: m.bfloat16(), lambda m: m.cpu(), lambda m: m.type(torch.float64)],
        ids=["half", "double", "bfloat16", "cpu", "type"],
    )
    def test_every_way_to_cast_leaves_it_alone(self, change: Any) -> None:
        holder = Holder()
        before = held_weights(holder.augment)
        change(holder)
        assert same(held_weights(holder.augment), before)

    def test_it_follows_to_another_device(self) -> None:
        # No second device with data is at hand: the probe says where it would go, and `to` is asked for just that.
        moved: list[Any] = []

        class Elsewhere(FakeGenerator):
            def to(self, *args: Any, **options: Any) -> Any:
                moved.append((args, options))
                return self

        augment = gt.GenerativeAugment(Elsewhere())
        there = torch.device("cuda:7")
        augment._held.follow(lambda tensor: _Elsewhere(there, tensor))
        assert moved == [((there,), {})]

    @pytest.mark.gpu
    @pytest.mark.parametrize("move", [lambda m: m.cuda(), lambda m: m.to("cuda", torch.bfloat16), lambda m: m.to_empty(device="cuda")])
    def test_it_follows_to_cuda_and_back(self, move: Any) -> None:
        augment = gt.GenerativeAugment(tiny_icgan(), 1.0, seeds_getter=fixed_seeds)
        expected = augment(BATCH)
        move(augment)
        assert (augment.generator.device.type, augment.generator.dtype) == ("cuda", torch.float32)
        torch.testing.assert_close(augment(BATCH), expected, atol=1e-3, rtol=0)
        assert augment._held.nonfinite.is_cuda
        augment.cpu()
        assert augment(BATCH).equal(expected)

    def test_share_memory(self) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(), 1.0)
        nn.ModuleList([augment]).share_memory()
        assert augment.generator.strength.is_shared()

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"])
    def test_copies_are_whole_and_their_own(self, copied: Any) -> None:
        holder = Holder(p=0.5)
        holder.augment.output_size, holder.augment.max_batch_size = (20, 24), 2
        other = copied(holder)
        assert other.augment.generator is not holder.augment.generator
        assert (other.augment.p, other.augment.output_size, other.augment.max_batch_size) == (0.5, (20, 24), 2)
        assert other.augment.seeds_getter is fixed_seeds
        assert other.augment(BATCH).equal(holder.augment(BATCH))
        assert other.state_dict().keys() == holder.state_dict().keys()
        assert not any(parameter.requires_grad for parameter in other.augment.generator.parameters())
        other.train()
        assert not other.augment.generator.training

    def test_a_deep_copy_shares_the_weights_until_one_is_moved(self) -> None:
        holder = Holder()
        other, expected = copy.deepcopy(holder), holder.augment(BATCH)
        pairs = list(zip(tensors_of(holder.augment), tensors_of(other.augment), strict=True))
        assert pairs
        assert all(a is not b and a.data_ptr() == b.data_ptr() for a, b in pairs)
        other.augment.generator.double()  # does to the tensors what moving does
        pairs = list(zip(tensors_of(holder.augment), tensors_of(other.augment), strict=True))
        assert not any(a.data_ptr() == b.data_ptr() for a, b in pairs if a.is_floating_point())
        assert (holder.augment.generator.dtype, other.augment.generator.dtype) == (torch.float32, torch.float64)
        assert holder.augment(BATCH).equal(expected)
        with torch.no_grad():
            for parameter in other.augment.generator.parameters():
                parameter.zero_()
        assert holder.augment(BATCH).equal(expected)

    @pytest.mark.parametrize("first", ["generative", "backbone"])
    def test_a_network_that_the_generator_uses_is_copied_in_the_rest_of_the_model(self, first: str) -> None:
        """An averaged copy must not follow the model that it averages."""

        class Encoded(FakeGenerator):
            def __init__(self, network: nn.Module) -> None:
                super().__init__()
                self.network = network

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                backbone = nn.Conv2d(3, 4, 3)
                augment = gt.GenerativeAugment(Encoded(backbone), 1.0, seeds_getter=fixed_seeds)
                parts = {"generative": augment, "backbone": backbone}
                for name in sorted(parts, key=lambda name: name != first):
                    setattr(self, name, parts[name])
                self.backbone.requires_grad_(True)

        model = Model()
        copied = copy.deepcopy(model)
        expected = copied.backbone.weight.detach().clone()
        with torch.no_grad():
            model.backbone.weight.add_(1.0)
        assert copied.backbone.weight.equal(expected)
        assert copied.generative(BATCH).equal(model.generative(BATCH))

    def test_transforms_with_one_generator_have_one_in_a_copy(self) -> None:
        generator = FakeGenerator()
        both = copy.deepcopy(nn.ModuleList([gt.GenerativeAugment(generator, 1.0), gt.GenerativeAugment(generator, 0.5)]))
        assert both[0].generator is both[1].generator is not generator

    def test_tied_weights_stay_tied_in_a_copy(self) -> None:
        generator = FakeGenerator()
        generator.other = generator.strength
        copied = copy.deepcopy(gt.GenerativeAugment(generator)).generator
        assert copied.other is copied.strength is not generator.strength

    def test_a_pickle_has_weights_of_its_own_and_nothing_of_this_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(), 0.5)
        # What `datasets.Dataset.map` finds its cache by.
        fresh = Hasher.hash(augment)
        monkeypatch.setattr("os.getpid", lambda: 12345)
        other = gt.GenerativeAugment(FakeGenerator(), 0.5)
        with pytest.warns(UserWarning, match="no image"):
            other("text")
        assert Hasher.hash(other) == fresh
        assert Hasher.hash(gt.GenerativeAugment(FakeGenerator(), 0.6)) != fresh
        again = pickle.loads(pickle.dumps(augment))
        assert again.generator.strength.data_ptr() != augment.generator.strength.data_ptr()
        assert again.nonfinite_count == 0

    @pytest.mark.filterwarnings("ignore:.*NaN or infinity")
    def test_a_copy_counts_for_itself(self) -> None:
        augment = gt.GenerativeAugment(NotFinite(bad=(12,)), 1.0, seeds_getter=fixed_seeds)
        augment(BATCH)
        other = copy.deepcopy(augment)
        other(BATCH)
        assert (augment.nonfinite_count, other.nonfinite_count) == (1, 2)

    def test_a_copy_learns_its_own_batch_size(self) -> None:
        augment = gt.GenerativeAugment(Hungry(fits=2), 1.0)
        other = copy.deepcopy(augment)
        with pytest.warns(UserWarning, match="out of memory"):
            augment(BATCH)
        assert (augment.max_batch_size, other.max_batch_size) == (2, None)
        assert copy.deepcopy(augment).max_batch_size == 2

    def test_two_transforms_may_share_a_generator(self) -> None:
        generator = FakeGenerator()
        both = nn.ModuleList([gt.GenerativeAugment(generator, 1.0), gt.GenerativeAugment(generator, 0.0)])
        assert both[0].generator is both[1].generator
        assert both.state_dict() == {}
        assert both.load_state_dict({}, strict=True) == ([], [])

    def test_a_pickle_counts_from_zero(self) -> None:
        augment = gt.GenerativeAugment(NotFinite(bad=(12,)), 1.0, seeds_getter=fixed_seeds)
        with pytest.warns(UserWarning, match="NaN or infinity"):
            augment(BATCH)
        assert pickle.loads(pickle.dumps(augment)).nonfinite_count == 0


class TestDevices:
    """Reading a number from a meta tensor fails, where reading one from an accelerator would wait for it."""

    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("output_size", ["input", "generator", (20, 24)])
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
    def test_no_pixel_is_read(self, dtype: torch.dtype, output_size: Any, p: float) -> None:
        augment = gt.GenerativeAugment(
            Flat(inputs=("labels",)).to("meta"), p, output_size=output_size, max_batch_size=4,
            inputs_getter=lambda sample: {"labels": sample["labels"]},
        )  # fmt: skip
        labels = torch.arange(6, device="meta")
        for batch in (BATCH, BATCH[:, :1], tv_tensors.Image(BATCH[:, None])):
            images = batch.to("meta", dtype)
            result = augment({"images": images, "labels": labels})["images"]
            assert result.device.type == "meta"
            assert result.dtype == dtype
            expected = {"input": (32, 32), "generator": (8, 8)}.get(output_size, (20, 24))
            assert result.shape == (*images.shape[:-2], *expected)
            assert type(result) is type(images)

    def test_the_non_finite_are_counted_without_reading(self) -> None:
        augment = gt.GenerativeAugment(FakeGenerator().to("meta"), 1.0)
        augment(BATCH.to("meta"))
        assert augment._held.nonfinite.is_meta

    def test_a_generator_built_without_data_is_refused_by_name(self) -> None:
        with torch.device("meta"):
            generator = FakeGenerator()
        with pytest.raises(WeightsError, match=r"FakeGenerator are on the meta device.*outside of"):
            gt.GenerativeAugment(generator, 1.0)(BATCH)

    def test_images_without_data_give_the_shape_of_the_result(self) -> None:
        augment = gt.GenerativeAugment(tiny_icgan(), 1.0, output_size=(20, 24))
        result = augment(BATCH.to("meta"))
        assert result.is_meta
        assert result.shape == (6, 3, 20, 24)
        assert augment.nonfinite_count == 0

    @pytest.mark.gpu
    @pytest.mark.parametrize("where", ["cpu", "cuda"])
    def test_results_return_to_the_images_device(self, where: str) -> None:
        augment = gt.GenerativeAugment(tiny_icgan(), 0.5, seeds_getter=fixed_seeds)
        expected = augment(BATCH)
        augment.to("cuda")
        for _ in range(3):
            torch.cuda._sleep(100_000_000)  # what was queued has not arrived when the host goes on
            result = augment(BATCH.to(where))
            assert result.device.type == where
            torch.testing.assert_close(result.cpu(), expected, atol=1e-3, rtol=0)
        assert augment((BATCH * 255).byte().to(where)).device.type == where

    @pytest.mark.gpu
    def test_no_sync_on_cuda(self) -> None:
        augment = gt.GenerativeAugment(tiny_icgan().cuda(), 0.5)
        images = BATCH.cuda()
        augment(images)
        torch.cuda.set_sync_debug_mode("error")
        try:
            augment(images)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.gpu
    def test_the_same_noise_on_every_device(self) -> None:
        seeds = torch.arange(6)
        torch.testing.assert_close(
            FakeGenerator().cuda()(BATCH.cuda(), seeds).cpu(), FakeGenerator()(BATCH, seeds), atol=1e-5, rtol=0
        )  # fmt: skip


class TestFunctional:
    """What torch.func and inference mode ask of a module."""

    def test_gradients_of_a_model_that_holds_a_transform(self) -> None:
        model = nn.ModuleDict({"augment": gt.GenerativeAugment(FakeGenerator(), 1.0), "head": nn.Conv2d(3, 1, 1)})

        def loss(parameters: dict[str, Tensor]) -> Tensor:
            made = model["augment"](BATCH)
            return torch.func.functional_call(model["head"], parameters, (made,)).sum()

        found = torch.func.grad(loss)(dict(model["head"].named_parameters()))
        assert found["bias"].item() == BATCH[:, 0].numel()
        model["augment"](BATCH)
        assert copy.deepcopy(model["augment"]).nonfinite_count == 0

    def test_a_copy_made_in_inference_mode_can_be_used_and_moved(self) -> None:
        augment = gt.GenerativeAugment(tiny_icgan(), 1.0, seeds_getter=fixed_seeds)
        with torch.inference_mode():
            best = copy.deepcopy(augment)
        assert best(BATCH).equal(augment(BATCH))
        assert not best._held.nonfinite.is_inference()
        assert best.generator.double()(BATCH[:1].double(), torch.arange(1)).isfinite().all()


class TestOutOfMemory:
    @pytest.mark.parametrize("kind", ["cuda", "cudnn", "cpu"])
    def test_halves_says_so_once_and_remembers(self, kind: str) -> None:
        augment = gt.GenerativeAugment(Hungry(fits=2, kind=kind), 1.0, seeds_getter=fixed_seeds)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results = [augment(BATCH) for _ in range(3)]
        assert len(caught) == 1
        assert "max_batch_size=2" in str(caught[0].message)
        assert augment.max_batch_size == 2
        assert augment.generator.tried == [6, 3, 2, 2, 2] + [2, 2, 2] * 2
        expected = gt.GenerativeAugment(FakeGenerator(), 1.0, seeds_getter=fixed_seeds)(BATCH)
        for result in results:
            torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)

    def test_one_image_too_large_is_an_error(self) -> None:
        with pytest.raises(torch.OutOfMemoryError):
            gt.GenerativeAugment(Hungry(fits=0), 1.0)(BATCH)

    def test_another_error_of_the_generator_is_the_users_to_see(self) -> None:
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            gt.GenerativeAugment(Hungry(fits=0, kind="other"), 1.0)(BATCH)

    def test_a_broken_generator_is_named(self) -> None:
        with pytest.raises(GeneratorError, match="Returning"):
            gt.GenerativeAugment(Returning(lambda images: images[:, :1]), 1.0)(BATCH)


@pytest.mark.filterwarnings("ignore:.*NaN or infinity")
class TestNonFinite:
    def test_is_warned_of_once(self) -> None:
        augment = gt.GenerativeAugment(NotFinite(bad=(12, 16)), 1.0, seeds_getter=fixed_seeds)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                augment(BATCH)
        assert len(caught) == 1
        for part in ("2 of 6 images", "NotFinite", "their source is kept", "nonfinite_count"):
            assert part in str(caught[0].message)

    def test_half_precision_is_told_of_bfloat16(self) -> None:
        augment = gt.GenerativeAugment(NotFinite(bad=(12,)).half(), 1.0, seeds_getter=fixed_seeds)
        with pytest.warns(UserWarning, match="bfloat16"):
            augment(BATCH)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_that_image_keeps_its_source_exactly(self, channels: int, dtype: torch.dtype, value: float) -> None:
        batch = BATCH[:, :channels]
        batch = (batch * 255).byte() if dtype == torch.uint8 else batch.to(dtype)
        augment = gt.GenerativeAugment(NotFinite(bad=(12, 16), value=value), 1.0, seeds_getter=fixed_seeds)
        result = augment(batch)
        good = [0, 2, 3, 4]
        assert result[[1, 5]].equal(batch[[1, 5]])
        expected = gt.GenerativeAugment(FakeGenerator(), 1.0, seeds_getter=fixed_seeds)(batch)
        assert result[good].equal(expected[good])
        assert augment.nonfinite_count == 2
        augment(batch)
        assert augment.nonfinite_count == 4

    def test_of_pictures(self) -> None:
        sample = [v2.functional.to_pil_image(image) for image in BATCH]
        augment = gt.GenerativeAugment(NotFinite(bad=(12,)), 1.0, seeds_getter=fixed_seeds)
        result = augment(sample)
        assert [a.tobytes() == b.tobytes() for a, b in zip(result, sample, strict=True)] == [False, True, False, False, False, False]

    @pytest.mark.parametrize("output_size", ["generator", (20, 24)])
    @pytest.mark.parametrize("p", [0.5, 1.0])
    def test_at_another_size_the_source_is_resized(self, output_size: Any, p: float) -> None:
        broken = gt.GenerativeAugment(NotFinite(bad=tuple(KEYS)), p, output_size=output_size, seeds_getter=fixed_seeds)
        never = gt.GenerativeAugment(FakeGenerator(), 0.0, output_size=output_size)
        assert broken(BATCH).equal(never(BATCH))
        assert broken.nonfinite_count > 0

    def test_only_the_chosen_are_counted(self) -> None:
        broken = gt.GenerativeAugment(NotFinite(bad=tuple(KEYS)), 0.5, seeds_getter=fixed_seeds)
        assert broken(BATCH).equal(BATCH)
        assert 0 < broken.nonfinite_count < 6
        assert broken.nonfinite_count == broken.generator.rows

    def test_starts_at_zero_and_is_not_saved(self) -> None:
        augment = gt.GenerativeAugment(NotFinite(bad=(12,)), 1.0, seeds_getter=fixed_seeds)
        assert augment.nonfinite_count == 0
        assert isinstance(augment.nonfinite_count, int)
        augment(BATCH)
        assert augment.nonfinite_count == 1
        assert nn.ModuleList([augment]).state_dict() == {}

    def test_a_gradient_flows_to_a_source_that_was_kept(self) -> None:
        images = BATCH.clone().requires_grad_(True)
        gt.GenerativeAugment(NotFinite(bad=(12,)), 1.0, seeds_getter=fixed_seeds)(images).sum().backward()
        assert [bool(gradient.eq(1).all()) for gradient in images.grad] == [False, True, False, False, False, False]
