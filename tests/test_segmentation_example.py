"""examples/segmentation.py: its data set is right, and its checks find targets that are wrong."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "segmentation.py"))


@pytest.fixture
def sample() -> dict[str, Any]:
    chosen: dict[str, Any] = EXAMPLE["Shapes"]()[0]
    return chosen


class TestShapes:
    def test_samples(self) -> None:
        shapes = EXAMPLE["Shapes"]()
        for one in (shapes[i] for i in range(len(shapes))):
            assert one["image"].shape == (3, 96, 128)
            assert set(one["mask"].unique().tolist()) == {0, 1, 2}
            for label, (left, top, right, bottom) in enumerate(one["boxes"].long().tolist(), start=1):
                assert (one["mask"][top:bottom, left:right] == label).sum() == (one["mask"] == label).sum()
        assert torch.equal(shapes[3]["image"], shapes[3]["image"])
        assert not torch.equal(shapes[3]["image"], shapes[4]["image"])


class TestCheckTargets:
    def test_counts_what_is_right(self, sample: dict[str, Any]) -> None:
        assert EXAMPLE["check_targets"](sample) == 2
        assert EXAMPLE["check_targets"](v2.RandomHorizontalFlip(1.0)(sample)) == 2

    @pytest.mark.parametrize("part", ["boxes", "mask"])
    def test_finds_targets_left_behind_by_a_flip(self, sample: dict[str, Any], part: str) -> None:
        flipped = v2.RandomHorizontalFlip(1.0)(sample)
        with pytest.raises(SystemExit, match="the box of the crate is"):
            EXAMPLE["check_targets"](flipped | {part: sample[part]})

    def test_finds_a_box_that_is_off(self, sample: dict[str, Any]) -> None:
        moved = tv_tensors.wrap(sample["boxes"] + torch.tensor([3.0, 0, 3, 0]), like=sample["boxes"])
        with pytest.raises(SystemExit, match="crate"):
            EXAMPLE["check_targets"](sample | {"boxes": moved})


class TestCheckLayout:
    def test_finds_a_control_map_of_another_layout(self, sample: dict[str, Any]) -> None:
        mask = sample["mask"].as_subclass(torch.Tensor)
        colours = torch.tensor(EXAMPLE["PALETTE"])[mask.long()].permute(2, 0, 1) / 255
        assert EXAMPLE["check_layout"](colours, mask) == 1
        with pytest.raises(SystemExit, match="pixels"):
            EXAMPLE["check_layout"](colours.flip(-1), mask)
