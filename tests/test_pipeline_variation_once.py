"""What a pipeline encoded is used again only while its encoder is the same, however the weights were changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_pipelines
import torch
from torch import Tensor, nn

import gentransforms as gt
from gentransforms.generators.pipelines import once
from gentransforms.generators.pipelines.once import EncodeOnce

pytestmark = pytest.mark.usefixtures("one_thread")


class Coder(nn.Module):
    """An affine map of pixels, with a buffer as a batch norm has it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 9000).to(dtype))
        self.register_buffer("mean", torch.zeros(3))


def negate(coder: Any) -> None:
    coder.weight.data.neg_()


def swap(coder: Any) -> None:
    coder.weight.data[[3, 70]] = coder.weight.data[[70, 3]]


def change_one(coder: Any) -> None:
    coder.weight.data[4567] += 0.25


def reverse(coder: Any) -> None:
    coder.weight.data = coder.weight.data.flip(0)


def change_buffer(coder: Any) -> None:
    coder.mean.data.add_(1)


def replace(coder: Any) -> None:
    coder.weight = nn.Parameter(coder.weight.detach() * 2)


CHANGES = [negate, swap, change_one, reverse, change_buffer, replace]


def made_again(coder: nn.Module, change: Callable[[Any], None] | None) -> bool:
    kept, count = EncodeOnce(), [0]

    def make() -> int:
        count[0] += 1
        return count[0]

    kept.get(coder, b"content", make)
    if change is not None:
        change(coder)
    return bool(kept.get(coder, b"content", make) == 2)


class TestEncodeOnce:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
    @pytest.mark.parametrize("change", CHANGES)
    def test_changes_past_the_counters_of_torch(self, change: Callable[[Any], None], dtype: torch.dtype) -> None:
        assert made_again(Coder(dtype), change)

    def test_without_a_change_once(self) -> None:
        assert not made_again(Coder(torch.float32), None)
        assert not made_again(Coder(torch.float32), lambda coder: coder.to("cpu").requires_grad_(False))

    def test_in_inference_mode(self) -> None:
        with torch.inference_mode():
            assert not made_again(Coder(torch.float32), None)
            assert made_again(Coder(torch.float32), change_one)

    def test_large_networks_by_some_values_of_each_tensor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(once, "_EVERY", 100)
        assert not made_again(Coder(torch.float32), None)
        for change in (negate, reverse, change_buffer, replace):
            assert made_again(Coder(torch.float32), change)

    def test_in_blocks_of_values(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(once, "_BLOCK", 1000)
        for change in CHANGES:
            assert made_again(Coder(torch.float32), change)

    def test_images_of_a_changed_autoencoder(self) -> None:
        def images_of(pipe: Any) -> Tensor:
            made: Tensor = gt.PipelineVariation.from_pipeline(pipe, strength=0.5, num_inference_steps=2)(photos, seeds)
            return made

        photos, seeds, pipe = (
            torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
            torch.tensor([1]),
            tiny_pipelines.img2img(),
        )
        generator = gt.PipelineVariation.from_pipeline(pipe, strength=0.5, num_inference_steps=2)
        before = generator(photos, seeds)
        for parameter in pipe.vae.encoder.parameters():
            parameter.data.mul_(0.5)
        after = generator(photos, seeds)
        assert not torch.equal(after, before)
        assert torch.equal(after, images_of(pipe))
