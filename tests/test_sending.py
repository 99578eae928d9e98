"""How multiprocessing sends a held generator: one block of shared memory. In workers, see test_transforms_workers.py."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import sys
import weakref
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from small_generators import Flat, Many
from torch import Tensor, nn
from torchvision.transforms import v2

import gentransforms as gt
from gentransforms.errors import WeightsError
from gentransforms.generators import sending
from gentransforms.kornia import RandomGenerative
from gentransforms.testing import FakeGenerator

PHOTO = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["file_descriptor", "file_system"])
def strategy(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each way of torch to share memory that there is here."""
    if request.param not in torch.multiprocessing.get_all_sharing_strategies():
        pytest.skip(f"no {request.param} here")
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy(request.param)
    yield request.param
    torch.multiprocessing.set_sharing_strategy(before)


def sent(thing: Any) -> Any:
    """What another process gets."""
    return ForkingPickler.loads(ForkingPickler.dumps(thing))


def block_of(generator: nn.Module) -> Tensor:
    block = sending._blocks[generator]
    assert block is not None
    return block.memory


def in_block(tensor: Tensor, generator: nn.Module) -> bool:
    memory = block_of(generator)
    return 0 <= tensor.data_ptr() - memory.data_ptr() < len(memory)


class Knows(FakeGenerator):
    """Knows the transform that holds it, and an epoch that every process is to see."""

    def __init__(self) -> None:
        super().__init__()
        self.owner: Any = None
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()


class Chain(FakeGenerator):
    """Asks a held generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = gt.GenerativeAugment(Many(3), 1.0)


class WithRule(FakeGenerator):
    """Is made anew by `__reduce__`, without its weights."""

    def __reduce__(self) -> Any:
        return WithRule, ()


class TestSendAsBlock:
    def test_weights_of_every_sort_arrive(self, strategy: str) -> None:
        augment = gt.GenerativeAugment(Many(), 1.0)
        got = sent(augment).generator
        tensors, expected = got.tensors(), augment.generator.tensors()
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            assert tensors[name].equal(tensor), name
            assert (tensors[name].dtype, tensors[name].stride()) == (tensor.dtype, tensor.stride()), name
            assert type(tensors[name]) is type(tensor), name
            assert not tensors[name].requires_grad
            assert in_block(tensors[name], augment.generator) or not tensor.numel(), name
        assert got.layers[300] is got.layers[0]
        got.whole.fill_(2.0)  # views of it see that
        assert (got.view == 2).all()
        assert (got.bits == torch.tensor(2.0).view(torch.int32)).all()
        assert not (augment.generator.whole == 2).any()

    def test_images_are_equal(self, strategy: str) -> None:
        augment = gt.GenerativeAugment(Many(), 1.0, seeds_getter=len)
        torch.manual_seed(0)
        expected = gt.GenerativeAugment(Many(), 1.0)(PHOTO)
        torch.manual_seed(0)
        assert sent(gt.GenerativeAugment(augment.generator, 1.0))(PHOTO).equal(expected)

    @pytest.mark.skipif(sys.platform != "linux", reason="counts open files as Linux tells them")
    def test_the_weights_here_stay_where_they_are_and_open_one_file(self) -> None:
        augment = gt.GenerativeAugment(Many(), 1.0)
        sent(gt.GenerativeAugment(Flat(), 1.0))  # what multiprocessing itself keeps open
        places, files = [t.data_ptr() for t in augment.generator.tensors().values()], len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for _ in range(3):
            data = ForkingPickler.dumps(augment)
            ForkingPickler.loads(data)
        assert len(os.listdir("/proc/self/fd")) <= files + 1  # noqa: PTH208
        assert [t.data_ptr() for t in augment.generator.tensors().values()] == places
        assert not any(t.is_shared() for t in augment.generator.tensors().values())
        assert len(data) < 200_000  # no weights in it

    def test_processes_share_one_block_until_weights_change(self, strategy: str) -> None:
        augment = gt.GenerativeAugment(Many(), 1.0)
        first = sent(augment).generator
        block = block_of(augment.generator)
        second = sent(augment).generator
        assert block_of(augment.generator) is block
        assert first.whole.data_ptr() == second.whole.data_ptr()
        for change in (lambda t: t.mul_(0.5), lambda t: t.data.add_(1), lambda t: t.numpy().fill(3), lambda t: t.fill_(torch.nan)):
            change(augment.generator.whole)  # `data` and NumPy go behind the back of torch's own count
            third = sent(augment).generator
            assert block_of(augment.generator) is not block
            assert third.bits.equal(augment.generator.bits)
            block = block_of(augment.generator)
        sent(augment)  # NaN is equal to itself here
        assert block_of(augment.generator) is block
        assert not first.bits.equal(augment.generator.bits)  # who started earlier keeps what was sent
        augment.generator.register_buffer("more", torch.rand(5))
        assert sent(augment).generator.more.equal(augment.generator.more)

    def test_what_a_process_got_it_sends_on_in_the_same_block(self, strategy: str) -> None:
        got = sent(gt.GenerativeAugment(Many(), 1.0))
        block = block_of(got.generator)
        assert sent(got).generator.whole.data_ptr() == got.generator.whole.data_ptr()
        assert block_of(got.generator) is block

    def test_another_sharing_strategy_makes_another_block(self) -> None:
        strategies = sorted(torch.multiprocessing.get_all_sharing_strategies())
        if len(strategies) < 2:
            pytest.skip(f"only {strategies} here")
        before = torch.multiprocessing.get_sharing_strategy()
        augment = gt.GenerativeAugment(Many(), 1.0)
        try:
            torch.multiprocessing.set_sharing_strategy(strategies[0])
            first = sent(augment).generator
            torch.multiprocessing.set_sharing_strategy(strategies[1])
            second = sent(augment).generator
            again = sent(gt.GenerativeAugment(first, 1.0)).generator
        finally:
            torch.multiprocessing.set_sharing_strategy(before)
        for got in (first, second, again):
            assert got.bits.equal(augment.generator.bits)

    def test_transforms_that_hold_the_same_generator_send_it_once(self) -> None:
        generator = Many()
        both = v2.Compose([gt.GenerativeAugment(generator, 0.5), gt.GenerativeAugment(generator, 0.25)])
        one = len(ForkingPickler.dumps(both.transforms[0]))
        assert len(ForkingPickler.dumps(both)) < 1.2 * one
        for got in (sent(both).transforms, sent([gt.GenerativeAugment(generator, 0.5), RandomGenerative(generator)])):
            assert got[0].generator is got[1].generator
        got = sent({"generator": generator, "encode": generator.encode, "augment": both.transforms[0]})  # outside of a transform, too
        assert got["augment"].generator is got["generator"] is got["encode"].__self__

    @pytest.mark.parametrize("hold", [RandomGenerative, lambda g: gt.TwoViews(gt.GenerativeAugment(g, 1.0), nn.Identity(), nn.Identity())])
    def test_every_holder_sends_it_so(self, hold: Any) -> None:
        generator = Many()
        sent(hold(generator))
        assert not generator.whole.is_shared()
        assert len(block_of(generator)) > 300 * 24

    def test_memory_is_freed_with_the_generator_and_when_it_moves(self) -> None:
        augment = gt.GenerativeAugment(Many(), 1.0)
        sent(augment)
        gc.collect()
        memory = weakref.ref(block_of(augment.generator))
        augment._held.follow(lambda tensor: _Elsewhere())  # type: ignore[arg-type, return-value]
        assert memory() is None
        sent(augment)
        gc.collect()
        memory = weakref.ref(block_of(augment.generator))
        del augment
        gc.collect()
        assert memory() is None

    def test_pickle_and_copies_are_as_before(self) -> None:
        augment = gt.GenerativeAugment(Many(), 1.0)
        before = pickle.dumps(augment)
        sent(augment)
        assert pickle.dumps(augment) == before
        other = copy.deepcopy(augment)
        assert other.generator.whole.data_ptr() == augment.generator.whole.data_ptr()
        assert sent(other).generator.bits.equal(augment.generator.bits)
        assert not other.generator.whole.is_shared()

    def test_a_generator_that_is_not_held_goes_as_torch_sends_it(self) -> None:
        gt.GenerativeAugment(FakeGenerator(), 1.0)
        trained = FakeGenerator()
        got = sent(trained)
        assert trained.strength.is_shared()
        assert got.strength.requires_grad
        with torch.no_grad():
            trained.strength.fill_(0.75)
        assert got.strength == 0.75

    def test_what_is_in_shared_memory_already_stays_live(self) -> None:
        augment = gt.GenerativeAugment(Knows(), 1.0)
        got = sent(augment).generator
        augment.generator.epoch.fill_(5)
        assert got.epoch == 5
        augment.share_memory()
        got = sent(augment).generator
        augment.generator.strength.fill_(0.5)
        assert got.strength == 0.5

    def test_a_generator_that_knows_its_transform(self) -> None:
        augment = gt.GenerativeAugment(Knows(), 1.0)
        augment.generator.owner = [augment]
        got = sent(augment)
        assert got.generator.owner[0].generator is got.generator

    def test_a_generator_with_a_generator_inside(self) -> None:
        got = sent(gt.GenerativeAugment(Chain(), 1.0)).generator
        assert got.inner.generator.bits.equal(Many(3).bits)
        assert in_block(got.inner.generator.whole, got)

    def test_a_rule_of_its_own_is_followed(self) -> None:
        generator = WithRule()
        generator.strength.data.fill_(0.9)
        assert sent(gt.GenerativeAugment(generator, 1.0)).generator.strength == WithRule().strength

    def test_without_values_there_is_no_block(self) -> None:
        augment = gt.GenerativeAugment(FakeGenerator().to("meta"), 1.0)
        assert sent(augment).generator.strength.is_meta
        assert sending._blocks[augment.generator] is None

    def test_what_surrounds_it_does_not_matter(self) -> None:
        augment = gt.GenerativeAugment(Many(), 1.0)
        with torch.device("meta"), torch.inference_mode():
            data = ForkingPickler.dumps(augment)
        got = ForkingPickler.loads(data).generator
        assert got.bits.equal(augment.generator.bits)
        assert not got.whole.is_inference()

    def test_what_cannot_be_pickled_raises_as_before(self) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(), 1.0)
        augment.generator.function = lambda: None
        with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
            ForkingPickler.dumps(augment)

    @pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="asks Linux how much shared memory there is")
    def test_too_little_shared_memory_raises_the_explaining_error(self, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
        total, augment = os.statvfs("/dev/shm"), gt.GenerativeAugment(FakeGenerator(), 1.0)
        with monkeypatch.context() as patch:
            patch.setattr(sending, "_padded", lambda size: 2 * total.f_blocks * total.f_frsize)
            with pytest.raises(WeightsError) as caught:
                ForkingPickler.dumps(augment)
        for part in ("FakeGenerator cannot be sent", "MiB of shared memory", "No space left", "--shm-size", "main process"):
            assert part in str(caught.value)
        assert sent(augment).generator.strength == augment.generator.strength


class _Elsewhere:
    """What a function makes of a tensor, as far as a generator that follows is concerned: the CPU under another name."""

    is_meta, device = False, torch.device("cpu", 0)
