"""Threads that share a generator, as the replicas of DataParallel and a thread that prefetches do: they take turns."""

from __future__ import annotations

import contextlib
import copy
import gc
import multiprocessing
import pickle
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from torch import Tensor, nn

import gentransforms as gt
from gentransforms.generators import turns
from gentransforms.generators.turns import take_turn
from gentransforms.kornia import RandomGenerative
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SEEDS = torch.tensor([1, 2])


class Busy(FakeGenerator):
    """Keeps state while it makes images, as a pipeline does; another thread that comes in meanwhile is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.met = 0, 0

    def encode(self, images: Tensor, **inputs: Any) -> dict[str, Tensor]:
        with self._busy():
            return super().encode(images)

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        with self._busy():
            return super().sample(condition, seeds)

    @contextlib.contextmanager
    def _busy(self) -> Any:
        self.inside += 1
        self.met += self.inside > 1
        time.sleep(0.005)
        yield
        self.inside -= 1


def together(*works: Callable[[], Any]) -> list[Any]:
    """Return what functions return, each in a thread of its own, all at once."""
    found: list[Any] = [None] * len(works)
    start = threading.Barrier(len(works))

    def run(i: int) -> None:
        start.wait()
        found[i] = works[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


class TestThreads:
    def test_whatever_calls_the_generator(self, tmp_path: Path) -> None:
        generator = Busy()
        augment, other, kornia = (
            gt.GenerativeAugment(generator, 1.0),
            gt.GenerativeAugment(generator, 1.0),
            RandomGenerative(generator, 1.0),
        )
        replica = augment._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        photos = list(IMAGES)
        together(
            lambda: [augment(IMAGES) for _ in range(3)],
            lambda: [replica(IMAGES) for _ in range(3)],
            lambda: [other(IMAGES) for _ in range(3)],
            lambda: [kornia(IMAGES) for _ in range(3)],
            lambda: [generator(IMAGES, SEEDS) for _ in range(3)],
            lambda: gt.generate_bank(photos, tmp_path / "bank", generator, variants=3, batch_size=2, progress=False),
            lambda: [copy.deepcopy(augment) for _ in range(3)],
        )
        assert (generator.met, generator.inside) == (0, 0)
        assert generator.calls == 5 * 3 + 3

    def test_every_image_that_is_not_finite_is_counted(self) -> None:
        class Broken(Busy):
            def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
                return super().sample(condition, seeds) * float("nan")

        augment = gt.GenerativeAugment(Broken(), 1.0)
        with pytest.warns(UserWarning, match="NaN"):
            augment(IMAGES)
        together(*[lambda: [augment(IMAGES) for _ in range(5)]] * 4)
        assert augment.nonfinite_count == 2 + 4 * 5 * 2

    def test_an_error_ends_a_turn(self) -> None:
        class Fails(FakeGenerator):
            def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
                raise ValueError("no")

        augment = gt.GenerativeAugment(Fails(), 1.0)

        def fail() -> str:
            with pytest.raises(ValueError, match="no"):
                augment(IMAGES)
            return "done"

        assert together(fail, fail) == ["done", "done"]

    @pytest.mark.parametrize("kind", ["pipeline", pytest.param("controlnet", marks=pytest.mark.slow)])
    def test_the_same_images_as_alone(self, kind: str) -> None:
        generator: gt.ImageGenerator
        if kind == "pipeline":
            pipe = tiny_pipelines.img2img()
            generator = gt.PipelineVariation.from_pipeline(pipe, strength=0.9, num_inference_steps=4, image_size=32)
        else:
            pipe = tiny_diffusion.stable_diffusion()
            net = tiny_diffusion.controlnet(pipe.unet)
            generator = gt.ControlNetVariation(pipe, controlnet=net, condition="canny", num_inference_steps=4, image_size=32)
        augment = gt.GenerativeAugment(generator, 1.0, seeds_getter=lambda sample: torch.arange(len(sample)))
        parts = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        expected = [augment(part) for part in parts]
        for _ in range(2):
            found = together(*[lambda part=part: augment(part) for part in parts])  # type: ignore[misc]
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert torch.equal(augment(parts[0]), expected[0])


class TestTakeTurn:
    def test_each_generator_has_its_own_and_so_has_a_copy(self) -> None:
        one = FakeGenerator()
        locks = {id(take_turn(generator)) for generator in (one, one, copy.deepcopy(one), pickle.loads(pickle.dumps(one)))}
        del one
        assert len(locks) >= 2
        first, second = FakeGenerator(), FakeGenerator()
        assert take_turn(first) is take_turn(first) is not take_turn(second)

    def test_it_is_in_no_pickle_and_no_state(self) -> None:
        generator = FakeGenerator()
        before = (pickle.dumps(generator), generator.fingerprint(), set(vars(generator)))
        with take_turn(generator):
            assert (pickle.dumps(generator), generator.fingerprint(), set(vars(generator))) == before
            assert pickle.loads(pickle.dumps(gt.GenerativeAugment(generator))).generator.calls == 0
            assert copy.deepcopy(gt.GenerativeAugment(generator)).generator is not generator

    def test_it_keeps_no_generator_alive(self) -> None:
        gc.collect()
        count = len(turns._locks)
        generator = FakeGenerator()
        take_turn(generator)
        assert len(turns._locks) == count + 1
        del generator
        gc.collect()
        assert len(turns._locks) == count

    @pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_forked_process_waits_for_no_thread_of_its_parent(self) -> None:
        generator, inside, leave = FakeGenerator(), threading.Event(), threading.Event()

        def stay() -> None:
            with take_turn(generator):
                inside.set()
                leave.wait(60)

        thread = threading.Thread(target=stay)
        thread.start()
        inside.wait(60)
        child = multiprocessing.get_context("fork").Process(target=_enter, args=(generator,))
        child.start()
        child.join(30)
        alive = child.is_alive()
        child.kill()
        leave.set()
        thread.join(60)
        assert not alive
        assert child.exitcode == 0

    def test_a_generator_of_ones_own_can_be_compiled_whole(self) -> None:
        class Plain(gt.ImageGenerator):
            image_size, preserves_geometry = (8, 8), True

            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Conv2d(3, 3, 1)

            def encode(self, images: Tensor, **inputs: Any) -> dict[str, Tensor]:
                return {"images": images}

            def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
                return self.body(condition["images"]).sigmoid()  # type: ignore[no-any-return]

        generator, images = Plain().eval(), torch.rand(2, 3, 8, 8)
        compiled = torch.compile(generator, backend="eager", fullgraph=True)
        assert torch.equal(compiled(images, SEEDS), generator(images, SEEDS))
        torch._dynamo.reset()


def _enter(generator: nn.Module) -> None:
    with take_turn(generator):
        pass
