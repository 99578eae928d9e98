"""Which leaves share memory, told of every kind that a sample may hold."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torchvision import tv_tensors
from torchvision.transforms import v2

from gentransforms.transforms.memory import copy_shared, find_changed, note_versions

BASE = torch.arange(24.0).reshape(2, 3, 4)
ARRAY = np.arange(24).reshape(4, 6)


def is_copied(leaf: Any, beside: Any) -> bool:
    return copy_shared(leaf, beside) is not leaf


class TestCopyShared:
    @pytest.mark.parametrize(
        ("leaf", "beside"),
        [
            (BASE, BASE),
            (BASE[1], BASE),
            (BASE, BASE[1, :1]),
            (BASE.permute(2, 0, 1), BASE),
            (BASE.detach(), BASE),
            (BASE[:1].expand(5, -1, -1), BASE),
            (tv_tensors.Image(BASE), BASE),
            (BASE.view(torch.int32), BASE),
            (ARRAY[1:], ARRAY),
            (ARRAY[::-1, ::2], ARRAY[:1]),
            (ARRAY.T, ARRAY[2:, 5:]),
            (torch.from_numpy(ARRAY), ARRAY),
            (torch.from_numpy(ARRAY[1:]), torch.from_numpy(ARRAY[:3])),
            (BASE.numpy(), BASE[0]),
            (v2.functional.to_image(np.zeros((4, 6, 1), np.uint8)), None),
        ],
        ids=["same", "part", "whole", "permuted", "detached", "expanded", "named", "viewed", "array", "reversed", "transposed",
             "from array", "two storages", "to array", "ToImage"],
    )  # fmt: skip
    def test_of_shared_memory(self, leaf: Any, beside: Any) -> None:
        beside = leaf.numpy()[0] if beside is None else beside
        result = copy_shared({"a": [leaf]}, (3, ["text", beside, np.zeros(3)]))["a"][0]
        assert result is not leaf
        assert type(result) is type(leaf)
        assert result.shape == leaf.shape
        assert (result == leaf).all()
        assert not np.may_share_memory(np.asarray(result), np.asarray(leaf))

    @pytest.mark.parametrize(
        ("leaf", "beside"),
        [
            (BASE, BASE.clone()),
            (ARRAY[:2], ARRAY[2:]),
            (ARRAY[2:], ARRAY[:2]),
            (torch.zeros(0, 3), torch.zeros(0, 3)),
            (BASE[:0], BASE),
            (BASE, BASE[:0]),
            (np.zeros(0), np.zeros(0)),
            (BASE, torch.zeros(2, device="meta")),
            (3, 3),
            ("text", "text"),
            (None, BASE),
        ],
        ids=["equal", "before", "after", "empty", "none of it", "beside none", "empty arrays", "meta", "numbers", "texts", "nothing"],
    )
    def test_of_no_shared_memory(self, leaf: Any, beside: Any) -> None:
        assert not is_copied(leaf, beside)

    def test_against_every_leaf_of_a_sample(self) -> None:
        """The search is by halves, and spans may contain others."""
        rng = np.random.default_rng(0)
        memory = np.zeros(200, np.uint8)
        for _ in range(200):
            bounds = np.sort(rng.integers(0, 200, (rng.integers(1, 6), 2)))
            parts = [memory[low:high] for low, high in bounds]
            low, high = np.sort(rng.integers(0, 200, 2))
            one = memory[low:high]
            assert is_copied(one, parts) == any(np.shares_memory(one, part) for part in parts)

    def test_without_an_address(self) -> None:
        meta = torch.zeros(3, 4, device="meta")
        assert is_copied(meta[1:], meta)
        sparse = torch.eye(3).to_sparse()
        assert is_copied(sparse, sparse)
        with FakeTensorMode(), warnings.catch_warnings():
            warnings.simplefilter("error")  # asking for the address of a fake tensor warns
            fake = torch.zeros(3, 4)
            assert is_copied(fake[1:], fake)

    @pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap], ids=["grad", "vmap"])
    def test_within_torch_func(self, transform: Any) -> None:
        def function(x: Tensor) -> Tensor:
            assert is_copied(x.view(-1), x)
            return copy_shared(x.view(-1), x).square().sum()

        x = torch.ones(3) if transform is torch.func.grad else torch.ones(2, 3)
        expected = torch.full((3,), 2.0) if transform is torch.func.grad else torch.full((2,), 3.0)
        assert transform(function)(x).equal(expected)


class TestFindChanged:
    def test_through_a_view(self) -> None:
        tensors = {"a": torch.zeros(2), "b": torch.zeros(3, 4), "c": 3}
        versions = note_versions(tensors)
        assert find_changed(versions) is None
        tensors["b"].T[1].add_(1)
        assert find_changed(versions) is tensors["b"]

    def test_tensors_of_inference_mode_do_not_count(self) -> None:
        with torch.inference_mode():
            tensor = torch.zeros(2)
            versions = note_versions(tensor)
            tensor.add_(1)
            assert find_changed(versions) is None
