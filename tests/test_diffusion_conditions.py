"""Control maps against references of their own: NumPy, kornia's own hysteresis, closed forms."""

from __future__ import annotations

import kornia
import numpy as np
import pytest
import tiny_diffusion as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_diffusion_variation import HostReads
from torch import Tensor

from gentransforms.generators.diffusion import conditions
from gentransforms.seeding import seed_uniforms


def smooth(count: int = 3, size: int = 48) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    small = torch.rand(count, 3, size // 5, size // 5, generator=rng)
    return torch.nn.functional.interpolate(small, size=(size, size), mode="bicubic").clamp(0, 1)


def flood(magnitude: np.ndarray, low: float, high: float) -> np.ndarray:
    """Hysteresis pixel by pixel: what is above `low` and connected to what is above `high`."""
    edges, todo = magnitude > high, list(zip(*np.nonzero(magnitude > high), strict=True))
    while todo:
        y, x = todo.pop()
        for ny in range(max(0, y - 1), min(len(edges), y + 2)):
            for nx in range(max(0, x - 1), min(edges.shape[1], x + 2)):
                if magnitude[ny, nx] > low and not edges[ny, nx]:
                    edges[ny, nx] = True
                    todo.append((ny, nx))
    return edges


class TestCanny:
    @pytest.mark.parametrize(("low", "high"), [(0.05, 0.1), (0.1, 0.4), (0.3, 0.3)])
    def test_is_kornias(self, low: float, high: float) -> None:
        images = smooth()
        _, expected = kornia.filters.canny(images, low, high)
        found = conditions.canny_edges(conditions.canny_magnitude(images), torch.full((3,), low), torch.full((3,), high))
        assert 0 < found.mean() < 0.5
        assert torch.equal(found, expected)

    def test_each_image_has_thresholds_of_its_own(self) -> None:
        magnitude = conditions.canny_magnitude(smooth())
        low, high = torch.tensor([0.05, 0.1, 0.2]), torch.tensor([0.1, 0.5, 0.25])
        found = conditions.canny_edges(magnitude, low, high)
        for i in range(3):
            expected = flood(magnitude[i, 0].numpy(), float(low[i]), float(high[i]))
            assert (found[i, 0].numpy() == expected).all()

    @given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40), st.floats(0.1, 0.9))
    def test_any_pattern(self, seed: int, height: int, width: int, share: float) -> None:
        rng = torch.Generator().manual_seed(seed)
        weak = torch.rand(2, 1, height, width, generator=rng) < share
        magnitude = torch.where(torch.rand(weak.shape, generator=rng) < 0.05, 0.9, 0.2) * weak
        found = conditions.canny_edges(magnitude, torch.full((2,), 0.1), torch.full((2,), 0.5))
        for i in range(2):
            assert (found[i, 0].numpy() == flood(magnitude[i, 0].numpy(), 0.1, 0.5)).all()

    @pytest.mark.parametrize("turn", [(), (2,), (3,), (2, 3)])
    @pytest.mark.parametrize("sideways", [False, True])
    def test_one_look_at_the_device_however_long_the_edge(self, turn: tuple[int, ...], sideways: bool) -> None:
        """An edge that winds through the whole image, and is strong at one end only."""
        magnitude = torch.zeros(1, 1, 127, 127)
        magnitude[:, :, ::2] = 0.2
        for row in range(1, 127, 2):
            magnitude[..., row, 126 if row % 4 == 1 else 0] = 0.2
        magnitude[..., 0, 0] = 0.9
        magnitude = magnitude.flip(turn)
        magnitude = magnitude.mT.contiguous() if sideways else magnitude
        with HostReads() as mode:
            found = conditions.canny_edges(magnitude, torch.tensor([0.1]), torch.tensor([0.5]))
        assert torch.equal(found > 0, magnitude > 0)
        assert sum(mode.reads.values()) == 1

    def test_a_long_edge_is_followed_to_its_end(self) -> None:
        magnitude = torch.zeros(1, 1, 3, 400)
        magnitude[0, 0, 1], magnitude[0, 0, 1, 0] = 0.2, 0.9
        assert conditions.canny_edges(magnitude, torch.tensor([0.1]), torch.tensor([0.5]))[0, 0, 1].sum() == 400

    def test_a_step_gives_one_line(self) -> None:
        images = torch.zeros(1, 3, 20, 20)
        images[..., 10:] = 1
        edges = conditions.canny_edges(conditions.canny_magnitude(images), torch.tensor([0.4]), torch.tensor([0.8]))[0, 0]
        assert (edges[5:15].sum(1) == 1).all()
        assert edges[5:15, 9:11].sum() == 10

    def test_no_images(self) -> None:
        magnitude = conditions.canny_magnitude(torch.zeros(0, 3, 8, 8))
        assert conditions.canny_edges(magnitude, torch.zeros(0), torch.zeros(0)).shape == (0, 1, 8, 8)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_dtype(self, dtype: torch.dtype) -> None:
        magnitude = conditions.canny_magnitude(smooth(1).to(dtype))
        assert conditions.canny_edges(magnitude, torch.tensor([0.1]), torch.tensor([0.2])).dtype == dtype


class TestThresholds:
    def test_a_number_is_a_range_of_one(self) -> None:
        ranges = conditions.check_thresholds((0.25, 0.5))
        low, high = conditions.draw_thresholds(ranges, torch.arange(5))
        assert low.tolist() == [0.25] * 5
        assert high.tolist() == [0.5] * 5

    @given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20))
    def test_they_stay_within_and_follow_from_the_seed_alone(self, seeds: list[int]) -> None:
        ranges = conditions.check_thresholds(((0.1, 0.3), (0.4, 0.9)))
        low, high = conditions.draw_thresholds(ranges, torch.tensor(seeds))
        assert ((low >= 0.1) & (low <= 0.3001) & (high >= 0.4) & (high <= 0.9001)).all()
        alone = [conditions.draw_thresholds(ranges, torch.tensor([seed])) for seed in seeds]
        assert torch.equal(low, torch.cat([pair[0] for pair in alone]))
        assert torch.equal(high, torch.cat([pair[1] for pair in alone]))

    def test_they_are_uniform_and_unrelated_to_each_other_and_to_the_selection(self) -> None:
        seeds = torch.arange(20_000)
        low, high = conditions.draw_thresholds(((0.0, 1.0), (0.0, 1.0)), seeds)
        uniform = seed_uniforms(seeds).float()
        values = torch.stack([low, high, uniform])
        assert torch.allclose(values.mean(1), torch.tensor(0.5), atol=0.01)
        assert torch.allclose(values.var(1), torch.tensor(1 / 12), atol=0.003)
        assert (torch.corrcoef(values) - torch.eye(3)).abs().max() < 0.03

    @pytest.mark.parametrize("value", [0.1, (0.1,), (0.2, 0.1), (0, 0.1), ((0.1, 0.5), (0.4, 0.9)), ((0.2, 0.1), 0.5), ("a", "b"), None])
    def test_others_are_refused(self, value: object) -> None:
        with pytest.raises(ValueError, match="canny_thresholds="):
            conditions.check_thresholds(value)


class TestSegmentation:
    def test_the_palette_has_150_colours(self) -> None:
        assert conditions.ADE20K.shape == (150, 3)
        assert conditions.ADE20K.dtype == torch.uint8
        # wall, building, sky, floor, tree and the last, flag
        assert conditions.ADE20K[[0, 1, 2, 3, 4, 149]].tolist() == [
            [120, 120, 120], [180, 120, 120], [6, 230, 230], [80, 50, 50], [4, 200, 3], [92, 0, 255],
        ]  # fmt: skip

    @pytest.mark.parametrize("shape", [(2, 10, 14), (2, 1, 10, 14)])
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
    def test_against_numpy(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        masks = torch.randint(0, 150, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        masks.view(2, 10, 14)[0, 0, 0] = 255
        table = np.concatenate([conditions.ADE20K.numpy(), np.zeros((106, 3), np.uint8)])
        expected = table[masks.view(2, 10, 14).long().numpy()].transpose(0, 3, 1, 2) / 255
        found = conditions.colour_masks(masks, conditions.ADE20K, (10, 14), 2)
        assert found.dtype == torch.float32
        assert np.allclose(found.numpy(), expected, atol=1e-7)
        assert found[0, :, 0, 0].tolist() == [0, 0, 0]

    def test_resizing_makes_no_new_classes(self) -> None:
        masks = torch.randint(0, 3, (1, 33, 47), generator=torch.Generator().manual_seed(0)) * 50
        found = conditions.colour_masks(masks, conditions.ADE20K, (64, 20), 1)
        colours = {tuple(colour) for colour in (found[0].flatten(1).T * 255).round().int().tolist()}
        assert colours == {tuple(conditions.ADE20K[c].tolist()) for c in (0, 50, 100)}

    def test_masks_of_different_sizes(self) -> None:
        masks = [torch.full((5, 9), 1), torch.full((1, 30, 4), 2)]
        found = conditions.colour_masks(masks, conditions.ADE20K, (8, 8), 2)
        assert torch.equal((found * 255).round().to(torch.uint8)[:, :, 3, 3], conditions.ADE20K[1:3])


class TestDepth:
    def test_against_the_models_own_processor(self) -> None:
        model, processor = tiny.depth_estimator()
        images = smooth(2, 32)
        with torch.no_grad():
            pixels = processor(images, do_rescale=False, do_resize=False, return_tensors="pt").pixel_values
            depth = model(pixels).predicted_depth
            found = conditions.depth_maps(model, processor, images)
        depth = torch.nn.functional.interpolate(depth[:, None], (32, 32), mode="bilinear")[:, 0]
        flat = depth.flatten(1)
        expected = (depth - flat.amin(1)[:, None, None]) / (flat.amax(1) - flat.amin(1))[:, None, None]
        assert found.shape == (2, 3, 32, 32)
        assert (found[:, 0] - expected).abs().max() < 1e-4
        assert torch.equal(found[:, 0], found[:, 2])
        assert found.flatten(1).amin(1).tolist() == [0, 0]
        assert torch.allclose(found.flatten(1).amax(1), torch.ones(2))

    def test_metres_are_turned_round(self) -> None:
        """ControlNets were trained on nearness; a model that says it predicts metres is inverted."""

        class Metric(torch.nn.Module):
            config = type("Config", (), {"depth_estimation_type": "metric", "model_type": "depth_anything"})()

            def forward(self, pixels: Tensor) -> object:
                depth = torch.linspace(1, 10, pixels.shape[-1]).expand(len(pixels), *pixels.shape[-2:])
                return type("Out", (), {"predicted_depth": depth})()

        found = conditions.depth_maps(Metric(), tiny.depth_estimator()[1], torch.rand(1, 3, 32, 32))
        assert found[0, 0, 0, 0] > 0.99, "one metre is near, and bright"
        assert found[0, 0, 0, -1] < 0.01

    @pytest.mark.parametrize("kind", ["depth anything", "glpn"])
    def test_other_models(self, kind: str) -> None:
        """At a size that is no multiple of their patches."""
        model, processor = {"depth anything": tiny.depth_anything, "glpn": tiny.glpn}[kind]()
        images = smooth(2, 48)[..., :40]
        with torch.no_grad():
            found = conditions.depth_maps(model, processor, images)
        assert found.shape == images.shape
        assert found.flatten(1).amin(1).tolist() == [0, 0]
        assert torch.allclose(found.flatten(1).amax(1), torch.ones(2))

    @pytest.mark.parametrize(("size", "expected"), [((32, 64), (28, 56)), ((64, 32), (56, 28)), ((30, 30), (28, 28))])
    def test_sizes_follow_the_processor(self, size: tuple[int, int], expected: tuple[int, int]) -> None:
        """Depth Anything: the aspect ratio kept, as near to the wanted size as can be, in multiples of 14."""
        wanted = {"size": {"height": 28, "width": 28}, "keep_aspect_ratio": True, "ensure_multiple_of": 14}
        processor = type("Processor", (), wanted)()
        assert conditions._estimator_size(None, processor, size) == expected
