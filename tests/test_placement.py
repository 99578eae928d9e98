"""Names of devices: one without an index and one with the index of the current device are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import GeneratorError
from gentransforms.generators.pipelines.execution import offloading
from gentransforms.generators.placement import with_index
from gentransforms.testing import FakeGenerator, check_generator


@pytest.fixture
def second_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with GPUs, of which the second is the current one; nothing can be computed on them."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)


class TestWithIndex:
    @pytest.mark.usefixtures("second_card")
    @pytest.mark.parametrize(
        ("name", "full"),
        [("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu"), ("cpu:0", "cpu"), ("meta", "meta"), ("mps", "mps")],
    )
    def test_the_current_device_is_meant(self, name: str, full: str) -> None:
        assert with_index(torch.device(name)) == torch.device(full)

    def test_without_an_accelerator(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
        assert with_index(torch.device("cuda")) == torch.device("cuda")

    @pytest.mark.usefixtures("second_card")
    def test_networks_are_offloaded_to_the_current_card(self) -> None:
        assert offloading.find_accelerator() == torch.device("cuda", 1)


class Named(FakeGenerator):
    """Calls its device by another name than its tensors do; what is made elsewhere is not on it."""

    named = torch.device("cpu", 0)

    @property
    def device(self) -> torch.device:
        return self.named


class TestGeneratorsWithAnotherNameOfTheirDevice:
    def test_in_a_transform_a_bank_and_the_checks(self, tmp_path: Path) -> None:
        assert torch.device("cpu", 0) != torch.device("cpu"), "as cuda:0 and cuda are two names of one device"
        images: Tensor = torch.rand(3, 3, 16, 16)
        assert gt.GenerativeAugment(Named(), p=1.0)(images).shape == images.shape
        assert gt.generate_bank(list(images), tmp_path / "bank", Named(), variants=1, progress=False).images == 3
        check_generator(Named())

    def test_another_device_is_still_an_error(self) -> None:
        class Lost(FakeGenerator):
            def sample(self, condition: Any, seeds: Tensor) -> Tensor:
                return super().sample(condition, seeds).to("meta")

        with pytest.raises(GeneratorError, match=r"on meta: expected cpu"):
            gt.GenerativeAugment(Lost(), p=1.0)(torch.rand(1, 3, 16, 16))
