"""The transform in DataLoader workers: forked and spawned."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from small_generators import Flat, Many, OnCuda, tiny_icgan
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import gentransforms as gt
from gentransforms.errors import DeviceError
from gentransforms.generators import sending
from gentransforms.testing import FakeGenerator

pytestmark = [
    # Python 3.12 and newer warn of every fork of a process with threads, as DataLoader makes them.
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    # And DataLoader of more workers than cores.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

PHOTOS = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Photos(Dataset[Any]):
    """Transformed photos with their number; `same` gives the same photo each time."""

    def __init__(self, transform: Any, same: bool = False) -> None:
        self.transform, self.same = transform, same

    def __len__(self) -> int:
        return len(PHOTOS)

    def __getitem__(self, index: int) -> Any:
        return self.transform((PHOTOS[0 if self.same else index], index))


class Marked(Photos):
    """As `Photos`, and marks a weight in the memory of the process that reads the last one."""

    def __getitem__(self, index: int) -> Any:
        sample = super().__getitem__(index)
        if index == len(self) - 1:
            self.transform.generator.number.fill_(123_456_789)
        return sample


def number_of(sample: Any) -> int:
    return int(sample[1])


def epoch(dataset: Dataset[Any], workers: int = 2, context: str = "fork") -> Tensor:
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, multiprocessing_context=context if workers else None)
    images: Tensor = torch.cat([images for images, _ in loader])
    return images


def refuses(augment: gt.GenerativeAugment) -> bool:
    """Whether the explaining error is raised; PyTorch's own, where there is no CUDA device, is another matter."""
    try:
        augment(PHOTOS)
    except Exception as error:
        return isinstance(error, DeviceError)
    return False


class TestForkedWorkers:
    def test_a_cpu_generator_works(self) -> None:
        with_seeds = gt.GenerativeAugment(FakeGenerator(), 1.0, seeds_getter=number_of)
        assert epoch(Photos(with_seeds)).equal(epoch(Photos(with_seeds), workers=0))

    def test_a_real_generator_works(self) -> None:
        with_seeds = gt.GenerativeAugment(tiny_icgan(), 1.0, seeds_getter=number_of)
        with_seeds((PHOTOS[0], 0))  # used in the parent first, as in a notebook
        torch.testing.assert_close(epoch(Photos(with_seeds)), epoch(Photos(with_seeds), workers=0), atol=1e-4, rtol=0)

    def test_workers_and_epochs_differ_and_manual_seed_reproduces(self) -> None:
        dataset = Photos(gt.GenerativeAugment(FakeGenerator(), 1.0), same=True)
        torch.manual_seed(1)
        first, second = epoch(dataset), epoch(dataset)
        assert len({image.numpy().tobytes() for image in torch.cat([first, second])}) == 16  # one source, 16 images
        torch.manual_seed(1)
        assert epoch(dataset).equal(first)
        assert epoch(dataset).equal(second)
        torch.manual_seed(2)
        assert not epoch(dataset).equal(first)

    def test_a_seed_of_the_sample_makes_the_number_of_workers_irrelevant(self) -> None:
        dataset = Photos(gt.GenerativeAugment(FakeGenerator(), 0.5, seeds_getter=number_of))
        expected = torch.stack([dataset[i][0] for i in range(8)])
        assert 0 < sum(not a.equal(b) for a, b in zip(expected, PHOTOS, strict=True)) < 8
        for workers in (1, 3):
            assert epoch(dataset, workers).equal(expected)

    def test_a_cuda_generator_raises_the_explaining_error(self) -> None:
        augment = gt.GenerativeAugment(OnCuda(), 1.0)
        augment.generator.reported = torch.device("cuda:0")
        with pytest.raises(DeviceError) as caught:
            epoch(Photos(augment), workers=1)
        for part in ("the generator is on cuda:0", "forked process", "batches in the main process", "bank"):
            assert part in str(caught.value)

    def test_in_the_process_that_made_it_there_is_no_such_error(self) -> None:
        for augment in (gt.GenerativeAugment(OnCuda(), 1.0), copy.deepcopy(gt.GenerativeAugment(OnCuda(), 1.0))):
            augment.generator.reported = torch.device("cuda:0")
            assert not refuses(augment)

    def test_what_was_unpickled_in_another_process_belongs_there(self) -> None:
        # As in a spawned worker, where CUDA works: the process is noted anew.
        augment = gt.GenerativeAugment(OnCuda(), 1.0)
        augment._held._process = -1
        augment.generator.reported = torch.device("cuda:0")
        assert refuses(augment)
        assert not refuses(pickle.loads(pickle.dumps(augment)))

    @pytest.mark.gpu
    def test_a_real_cuda_generator_in_a_forked_worker(self) -> None:
        with pytest.raises(DeviceError, match="forked process"):
            epoch(Photos(gt.GenerativeAugment(FakeGenerator().cuda(), 1.0)), workers=1)


class TestOtherWorkers:
    @pytest.mark.parametrize("context", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
    def test_a_cpu_generator_works(self, context: str) -> None:
        # One worker and one epoch: each spawned process imports torch anew; the server has it (conftest.py).
        with_seeds = gt.GenerativeAugment(Flat(), 0.5, seeds_getter=number_of)
        expected = epoch(Photos(with_seeds), workers=0)
        assert epoch(Photos(with_seeds), workers=1, context=context).equal(expected)

    @pytest.mark.parametrize("context", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
    @pytest.mark.parametrize("strategy", sorted(torch.multiprocessing.get_all_sharing_strategies()))
    def test_more_tensors_than_files_that_a_process_can_be_passed(self, context: str, strategy: str) -> None:
        with_seeds = gt.GenerativeAugment(Many(), 0.5, seeds_getter=number_of)
        expected = epoch(Photos(with_seeds), workers=0)
        before = torch.multiprocessing.get_sharing_strategy()
        torch.multiprocessing.set_sharing_strategy(strategy)
        try:
            images = epoch(Marked(with_seeds), workers=1, context=context)
        finally:
            torch.multiprocessing.set_sharing_strategy(before)
        assert images.equal(expected)
        # The worker used the block that others would get, too, and no weight of this process.
        block = sending._blocks[with_seeds.generator]
        assert block is not None
        assert (block.memory.view(torch.int64) == 123_456_789).any()
        assert with_seeds.generator.number == 3
        assert not any(t.is_shared() for t in with_seeds.generator.tensors().values())
