"""Noise levels from the share of an image that is foreground (unCLIP)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tiny_diffusion as tiny
import torch
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.foreground import BOUNDS, check_bounds, foreground_share, mask_share, to_levels
from gentransforms.testing import check_generator

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 16
FAST: dict[str, Any] = {"num_inference_steps": 2, "scheduler": "ddim"}


@pytest.fixture(scope="module")
def unclip() -> Any:
    return tiny.unclip()


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(11)
    return torch.rand(count, 3, 32, 32, generator=rng), torch.arange(count)


def patches(*boxes: tuple[int, int, int, int], seed: int = 0) -> tuple[Tensor, list[float]]:
    """Features of images whose subject is a box (top, left, bottom, right) of patches, and the box's share of each."""
    rng = torch.Generator().manual_seed(seed)
    found, shares = [], []
    for top, left, bottom, right in boxes:
        inside = torch.zeros(SIDE, SIDE)
        inside[top:bottom, left:right] = 1
        subject, background = torch.randn(2, 32, generator=rng)
        noise = 0.3 * torch.randn(SIDE * SIDE, 32, generator=rng)
        found.append(background + inside.flatten()[:, None] * (subject - background) + noise)
        shares.append(float(inside.mean()))
    return torch.stack(found), shares


class TestForegroundShare:
    BOXES = ((6, 6, 9, 9), (4, 4, 12, 12), (2, 2, 14, 14), (1, 1, 15, 15), (3, 0, 16, 13))

    @pytest.mark.parametrize("seed", range(4))
    def test_is_that_of_the_subject(self, seed: int) -> None:
        """Whatever the directions of subject and background are: the border tells which is which."""
        features, expected = patches(*self.BOXES, seed=seed)
        assert foreground_share(features).tolist() == pytest.approx(expected, abs=0.02)

    def test_is_where_the_first_principal_component_splits_best(self) -> None:
        """Of all splits of the scores, sorted, that with the most variance between its parts."""
        features = torch.randn(6, SIDE * SIDE, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 1, 8)
        centred = (features - features.mean(1, keepdim=True)).double()
        for row, share in zip(centred, foreground_share(features), strict=True):
            scores = torch.linalg.svd(row, full_matrices=False)[0][:, 0].view(SIDE, SIDE)
            inside = torch.zeros(SIDE, SIDE)
            inside[1:-1, 1:-1] = 1
            if scores[inside == 1].mean() < scores[inside == 0].mean():
                scores = -scores
            falling = sorted(scores.flatten().tolist(), reverse=True)
            spread = {}
            for k in range(1, len(falling)):
                high, low = falling[:k], falling[k:]
                spread[k] = len(high) * len(low) * (sum(high) / len(high) - sum(low) / len(low)) ** 2
            assert float(share) == pytest.approx(max(spread, key=lambda k: spread[k]) / len(falling), abs=0.03)

    def test_does_not_depend_on_the_batch(self) -> None:
        features, _ = patches(*self.BOXES)
        together = foreground_share(features)
        assert torch.equal(together.flip(0), foreground_share(features.flip(0)))
        assert [float(foreground_share(row[None])) for row in features] == together.tolist()

    def test_of_an_image_without_a_subject_is_none(self) -> None:
        assert foreground_share(torch.full((2, 16, 8), 3.0)).tolist() == [0, 0]
        assert foreground_share(torch.zeros(1, 16, 8)).tolist() == [0]
        assert foreground_share(torch.zeros(0, 16, 8)).shape == (0,)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_takes_other_dtypes(self, dtype: torch.dtype) -> None:
        features, expected = patches(*self.BOXES)
        assert foreground_share(features.to(dtype)).tolist() == pytest.approx(expected, abs=0.03)


class TestMaskShare:
    @pytest.mark.parametrize(
        "masks",
        [
            torch.tensor([[[True, False], [False, False]], [[True, True], [False, True]]]),
            torch.tensor([[[[255, 0], [0, 0]]], [[[7, 1], [0, 2]]]], dtype=torch.uint8),
            [torch.tensor([[0.25]]), torch.tensor([[0.5, 1.0, 0.75]])],
            [np.array([[0.25]]), np.array([[[0.5, 1.0, 0.75]]])],
            [PIL.Image.fromarray(np.array(m, np.uint8)) for m in ([[255, 0], [0, 0]], [[7, 1], [0, 2]])],
        ],
    )
    def test_is_the_mean(self, masks: Any) -> None:
        assert mask_share(masks, 2, torch.device("cpu")).tolist() == [0.25, 0.75]

    @pytest.mark.parametrize(
        ("masks", "message"),
        [
            (torch.zeros(3, 4, 4), r"foreground has 3 entries.*\b2\b"),
            (torch.zeros(2, 3, 4, 4), r"foreground.*\(3, 4, 4\).*\(H, W\)"),
            (torch.full((2, 4, 4), 2.0), r"foreground.*from 2 to 2.*\[0, 1\]"),
            (torch.full((2, 4, 4), float("nan")), r"foreground.*nan.*\[0, 1\]"),
            (torch.zeros(2, 0, 4), r"foreground.*\(0, 4\)"),
            (["a.png", "b.png"], r"foreground holds a str: expected tensors, arrays or PIL images"),
            (PIL.Image.new("L", (4, 4)), r"foreground is an Image: expected"),
        ],
    )
    def test_other_masks_are_refused(self, masks: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            mask_share(masks, 2, torch.device("cpu"))


class TestLevels:
    def test_five_equal_bins(self) -> None:
        shares = torch.tensor([0.0, 0.19, 0.2, 0.39, 0.41, 0.6, 0.79, 0.8, 1.0])
        assert to_levels(shares, BOUNDS).tolist() == [0, 0, 100, 100, 200, 300, 300, 400, 400]

    def test_other_bounds(self) -> None:
        assert to_levels(torch.tensor([0.0, 0.5, 1.0]), (0.5,)).tolist() == [0, 100, 100]

    @pytest.mark.parametrize("value", [(), 0.5, "0.5", (0.5, 0.5), (0.6, 0.4), (0, 0.5), (0.5, 1), (True,), (float("nan"),)])
    def test_wrong_bounds_are_refused(self, value: Any) -> None:
        with pytest.raises(ConfigError, match=r"foreground_bounds=.*rising numbers between 0 and 1"):
            check_bounds(value, 999)

    def test_more_bounds_than_levels_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"10 bounds, expected at most 9"):
            check_bounds([i / 11 for i in range(1, 11)], 999)


class TestGenerator:
    def test_the_level_of_each_image_follows_from_its_mask(self, unclip: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(unclip, noise_level="foreground", **FAST)
        assert generator.inputs == ("prompts", "noise_levels", "foreground")
        images, seeds = batch()
        masks = torch.zeros(4, 10, 10)
        for i, rows in enumerate([0, 3, 6, 10]):
            masks[i, :rows] = 1
        made = generator(images, seeds, foreground=masks)
        for i, level in enumerate([0, 100, 300, 400]):
            alone = gt.StableDiffusionVariation.from_pipeline(unclip, noise_level=level, **FAST)
            assert (made[i : i + 1] - alone(images[i : i + 1], seeds[i : i + 1])).abs().max() <= 1e-4

    def test_without_masks_the_encoders_patches_decide(self, unclip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """They are the encoder's last features, without the token of the whole image, from the one pass that makes the embedding."""
        generator = gt.StableDiffusionVariation.from_pipeline(unclip, noise_level="foreground", foreground_bounds=(0.3, 0.5), **FAST)
        outputs: list[Any] = []
        hook = generator.image_encoder.register_forward_hook(lambda *args: outputs.append(args[-1]))
        images, _ = batch()
        condition = generator.encode(images)
        hook.remove()
        assert len(outputs) == 1
        features = outputs[0].last_hidden_state[:, 1:]
        assert features.shape == (4, 16, 32)
        assert torch.equal(condition["noise_levels"], to_levels(foreground_share(features), (0.3, 0.5)))
        assert generator.encode(images[:0])["noise_levels"].shape == (0,)

    @pytest.mark.slow
    def test_the_contract_holds(self, unclip: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(unclip, noise_level="foreground", **FAST)
        check_generator(generator)
        check_generator(generator, foreground=[torch.ones(5, 4), torch.zeros(3, 3), torch.ones(1, 2, 2), torch.zeros(4, 4)])

    def test_in_a_transform(self, unclip: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(unclip, noise_level="foreground", **FAST)
        augment = gt.GenerativeAugment(generator, p=1.0, inputs_getter=lambda sample: {"foreground": sample[1]})
        images, _ = batch(2)
        made, _ = augment((images, torch.ones(2, 32, 32, dtype=torch.bool)))
        assert made.shape == images.shape

    def test_with_a_controlnet(self, unclip: Any) -> None:
        net = tiny.controlnet(unclip.unet)
        generator = gt.ControlNetVariation.from_pipeline(unclip, controlnet=net, noise_level="foreground", **FAST)
        condition = generator.encode(batch(2)[0], foreground=torch.ones(2, 4, 4))
        assert condition["noise_levels"].tolist() == [400, 400]

    def test_is_in_the_fingerprint_and_saved(self, unclip: Any, tmp_path: Path) -> None:
        make = gt.StableDiffusionVariation.from_pipeline
        generator = make(unclip, noise_level="foreground", **FAST)
        other = make(unclip, noise_level="foreground", foreground_bounds=(0.5,), **FAST)
        assert len({generator.fingerprint(), other.fingerprint(), make(unclip, **FAST).fingerprint()}) == 3
        assert make(unclip, noise_level="foreground", foreground_bounds=list(BOUNDS), **FAST).fingerprint() == generator.fingerprint()
        other.save_pretrained(tmp_path / "saved")
        again: Any = gt.load_generator(tmp_path / "saved")
        assert (again.noise_level, again.foreground_bounds) == ("foreground", (0.5,))
        assert again.fingerprint() == other.fingerprint()
        fixed: Any = gt.load_generator(tmp_path / "saved", noise_level=100)  # the bounds that were saved say nothing then
        assert (fixed.noise_level, fixed.fingerprint()) == (100, make(unclip, noise_level=100, **FAST).fingerprint())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"noise_level": "background"}, r"noise_level='background'.*\b0\b.*\b999\b.*'foreground'"),
            ({"foreground_bounds": (0.5,)}, r"foreground_bounds=\(0.5,\) has no effect with noise_level=0\b.*'foreground'"),
            ({"noise_level": "foreground", "foreground_bounds": (0.5, 0.1)}, r"foreground_bounds=\(0.5, 0.1\).*rising"),
        ],
    )
    def test_wrong_options(self, unclip: Any, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            gt.StableDiffusionVariation.from_pipeline(unclip, **options)

    def test_other_kinds_refuse_it(self) -> None:
        with pytest.raises(ConfigError, match=r"noise_level='foreground': only unCLIP"):
            gt.StableDiffusionVariation.from_pipeline(tiny.variation(), noise_level="foreground")

    def test_masks_without_it_are_refused(self, unclip: Any) -> None:
        images, _ = batch(1)
        with pytest.raises(ConfigError, match=r"noise_level=0: masks count with noise_level='foreground'"):
            gt.StableDiffusionVariation.from_pipeline(unclip).encode(images, foreground=torch.ones(1, 4, 4))
        generator = gt.StableDiffusionVariation.from_pipeline(unclip, noise_level="foreground")
        with pytest.raises(ConfigError, match="both given"):
            generator.encode(images, noise_levels=torch.tensor([5]), foreground=torch.ones(1, 4, 4))
        with pytest.raises(ConfigError, match=r"noise_levels=\['high'\]: expected 1 integers"):
            generator.encode(images, noise_levels=["high"])
        assert generator.encode(images, noise_levels=torch.tensor([5]))["noise_levels"].tolist() == [5]
