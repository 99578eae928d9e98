"""Feature extractors, and the preprocessing of ICGAN.md against PIL and NumPy."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch.nn import functional as F

from gentransforms.errors import ConfigError
from gentransforms.generators.icgan.features import ResNet50Features, SmallResNet, build_extractor


def cubic(t: numpy.ndarray) -> numpy.ndarray:
    """Keys' cubic convolution kernel with a = -0.75, which torch uses (Keys, 1981)."""
    a, t = -0.75, numpy.abs(t)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return numpy.where(t <= 1, near, numpy.where(t < 2, far, 0.0))


def resize_matrix(inputs: int, outputs: int) -> numpy.ndarray:
    """The (outputs, inputs) matrix of bicubic resizing with aligned corners and repeated borders."""
    matrix = numpy.zeros((outputs, inputs))
    for o in range(outputs):
        x = o * (inputs - 1) / (outputs - 1)
        for tap in range(int(numpy.floor(x)) - 1, int(numpy.floor(x)) + 3):
            matrix[o, min(max(tap, 0), inputs - 1)] += cubic(numpy.array(x - tap))
    return matrix


class TestResNet50Features:
    """The released models' extractor."""

    def test_preprocessing_equals_numpy(self) -> None:
        images = torch.rand(2, 3, 20, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        mean, std = (numpy.array(v).reshape(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        rows, columns = resize_matrix(20, 224), resize_matrix(31, 224)
        expected = rows @ ((images.numpy() - mean) / std) @ columns.T
        found = ResNet50Features().double().preprocess(images)
        # float32 constants of mean and standard deviation bound the agreement
        numpy.testing.assert_allclose(found.numpy(), expected, atol=2e-6)

    def test_average_pooled_and_of_length_one(self) -> None:
        torch.manual_seed(0)
        extractor = ResNet50Features().eval()
        images = torch.rand(2, 3, 64, 64)
        maps = {}
        extractor.backbone.layer4.register_forward_hook(lambda _m, _i, out: maps.update(last=out))
        with torch.no_grad():
            found = extractor(images)
        assert found.shape == (2, 2048)
        torch.testing.assert_close(found, F.normalize(maps["last"].mean((2, 3))))

    @pytest.mark.slow
    def test_batch_invariance(self) -> None:
        torch.manual_seed(0)
        extractor, images = ResNet50Features().eval(), torch.rand(3, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(extractor(images)[1:2], extractor(images[1:2]), atol=1e-5, rtol=0)


class TestSmallResNet:
    """The light extractor of 32-pixel models."""

    @pytest.mark.parametrize("size", [(32, 32), (48, 40)])
    def test_shape_and_length(self, size: tuple[int, int]) -> None:
        extractor = SmallResNet((8, 16, 24), (1, 2, 1)).eval()
        with torch.no_grad():
            features = extractor(torch.rand(3, 3, *size))
        assert features.shape == (3, extractor.width) == (3, 24)
        torch.testing.assert_close(features.norm(dim=1), torch.ones(3))

    def test_maps_halve(self) -> None:
        maps = SmallResNet((8, 16, 24), (1, 1, 1)).eval().maps(torch.rand(1, 3, 32, 32))
        assert [tuple(m.shape[1:]) for m in maps] == [(8, 16, 16), (16, 8, 8), (24, 4, 4)]

    def test_config_builds_it_again(self) -> None:
        extractor = SmallResNet((8, 16), (2, 1))
        twin = build_extractor(extractor.config)
        twin.load_state_dict(extractor.state_dict(), strict=True)
        assert twin.config == extractor.config

    def test_features_of_two_stages(self) -> None:
        extractor = SmallResNet((8, 16, 24), (1, 1, 1), feature_stages=2).eval()
        images = torch.rand(3, 3, 32, 32)
        with torch.no_grad():
            features, maps = extractor(images), [m.double().numpy() for m in extractor.maps(images)]
        assert features.shape == (3, extractor.width) == (3, 40)
        pooled = [m.mean((2, 3)) for m in maps[1:]]
        expected = numpy.concatenate([p / numpy.linalg.norm(p, axis=1, keepdims=True) for p in pooled], axis=1) / numpy.sqrt(2)
        numpy.testing.assert_allclose(features.numpy(), expected, atol=1e-6)
        assert build_extractor(extractor.config).config == extractor.config

    def test_one_stage_is_the_default_and_unsaid(self) -> None:
        assert SmallResNet((8, 16), (1, 1), feature_stages=1).config == SmallResNet((8, 16), (1, 1)).config
        assert "feature_stages" not in SmallResNet((8, 16), (1, 1)).config

    @pytest.mark.parametrize("stages", [0, 3, True, 1.0, "1"])
    def test_stages_that_are_not_there(self, stages: object) -> None:
        with pytest.raises(ConfigError, match="feature_stages"):
            build_extractor({"kind": "small-resnet", "widths": [8, 16], "blocks": [1, 1], "feature_stages": stages})

    def test_lengths_that_differ(self) -> None:
        with pytest.raises(ConfigError, match="feature_extractor"):
            build_extractor({"kind": "small-resnet", "widths": [8, 16], "blocks": [1]})
