"""The folded network against the plain one of examples/icgan, against the authors' output, and by its cost."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from icgan_example import example
from released import FOLDERS, SHARED, random_state
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from gentransforms.errors import ConfigError
from gentransforms.generators.icgan.architecture import BigGANConfig, released_shapes
from gentransforms.generators.icgan.folding import fold, merge_upsampling, spectral_norm
from gentransforms.generators.icgan.generator import ICGAN
from gentransforms.generators.icgan.network import BigGANNetwork
from gentransforms.generators.icgan.released import read_released

IMAGENET_256 = BigGANConfig(resolution=256, G_ch=96, dim_z=120, n_classes=1000)


def small(**fields: object) -> BigGANConfig:
    """An architecture small enough for a test."""
    values = {"resolution": 64, "G_ch": 4, "dim_z": 21, "G_attn": "16_32", "shared_dim": 6, "shared_dim_feat": 8, "feature_dim": 12}
    return BigGANConfig(**(values | fields))  # type: ignore[arg-type]


def folded(config: BigGANConfig, dtype: torch.dtype, seed: int = 0) -> BigGANNetwork:
    network = BigGANNetwork(config).to(dtype)
    network.load_state_dict(fold(random_state(config, seed), config, dtype))
    return network


def given(config: BigGANConfig, count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    rng = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % config.n_classes if config.class_cond else None
    features = torch.nn.functional.normalize(torch.randn(count, config.feature_dim, generator=rng))
    return torch.randn(count, config.z_dim, generator=rng), features, labels


class TestFolding:
    """Every variant equals the plain network, which knows no fold."""

    @pytest.mark.parametrize("hier", [True, False])
    @pytest.mark.parametrize("class_cond", [True, False])
    @pytest.mark.parametrize("g_param", ["SN", "plain"])
    def test_equals_the_plain_network(self, hier: bool, class_cond: bool, g_param: str) -> None:
        config = small(hier=hier, class_cond=class_cond, n_classes=5 if class_cond else 0, G_param=g_param)
        state = {name: t.double() * (0.2 if g_param == "plain" else 1) for name, t in random_state(config).items()}
        plain = example("networks").Generator(config, merged=False).double().eval()
        plain.load_state_dict(state, strict=True)
        network = BigGANNetwork(config).double()
        network.load_state_dict(fold(state, config, torch.float64))
        inputs = [t.double() if t is not None and t.is_floating_point() else t for t in given(config)]
        with torch.no_grad():
            expected, found = plain(*inputs), network(*inputs)
        assert expected.std() > 0.1  # a reference that says nothing would agree with anything
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)

    @pytest.mark.parametrize("resolution", [32, 64, 128, 256, 512])
    def test_every_resolution(self, resolution: int) -> None:
        config = small(resolution=resolution, G_ch=2 if resolution > 128 else 4, G_attn="16")
        plain = example("networks").Generator(config, merged=False).double().eval()
        plain.load_state_dict({name: t.double() for name, t in random_state(config).items()}, strict=True)
        inputs = [t.double() for t in given(config, 1)[:2]]
        with torch.no_grad():
            found = folded(config, torch.float64)(*inputs)
            torch.testing.assert_close(found, plain(*inputs), atol=1e-9, rtol=0)
        assert found.shape == (1, 3, resolution, resolution)

    @pytest.mark.parametrize("statistics", ["mybn", "cross_replica"])
    def test_statistics_differ_in_names_alone(self, statistics: str) -> None:
        plain, named = small(), small(statistics=statistics)
        state = random_state(plain)
        prefix = {"mybn": "bn.stored_", "cross_replica": "bn.running_"}[statistics]
        renamed = {name.replace("stored_", prefix): tensor for name, tensor in state.items()}
        if statistics == "cross_replica":
            renamed["output_layer.0.bn.weight"] = renamed.pop("output_layer.0.gain")
            renamed["output_layer.0.bn.bias"] = renamed.pop("output_layer.0.bias")
        expected = fold(state, plain, torch.float64)
        for name, tensor in fold(renamed, named, torch.float64).items():
            assert torch.equal(tensor, expected[name]), name

    def test_spectral_norm_of_a_known_matrix(self) -> None:
        # One iteration from the leading left vector gives the largest singular value itself.
        matrix = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        u, s, _ = torch.linalg.svd(matrix)
        torch.testing.assert_close(spectral_norm(matrix, u[:, :1].T, 1e-12), s[0])

    def test_merged_upsampling_at_the_border(self) -> None:
        x, weight = torch.randn(2, 3, 1, 4).double(), torch.randn(5, 3, 3, 3).double()
        plain = torch.nn.functional.conv2d(torch.nn.functional.interpolate(x, scale_factor=2.0), weight, padding=1)
        merged = torch.nn.functional.conv_transpose2d(x, merge_upsampling(weight), stride=2, padding=1)
        torch.testing.assert_close(merged, plain, atol=1e-12, rtol=0)


class TestParity:
    """What the authors' code computed; skipped where ../shared is absent."""

    @pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/parity/icgan is absent")
    @pytest.mark.parametrize("name", FOLDERS)
    @pytest.mark.parametrize(("dtype", "key", "bound"), [(torch.float32, "output", 1e-5), (torch.float64, "output_float64", 1e-9)])
    def test_output(self, name: str, dtype: torch.dtype, key: str, bound: float) -> None:
        state, config = read_released(SHARED / name)
        expected = load_file(SHARED / name / "expected.safetensors")
        generator = ICGAN.from_released(state, config, dtype=dtype)
        with torch.no_grad():
            found = generator.network(expected["z"], expected["instance_features"], expected.get("labels"))
        assert found.dtype == dtype
        assert (found - expected[key]).abs().max().item() <= bound

    @pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/parity/icgan is absent")
    def test_manifest_of_the_released_256_model(self) -> None:
        manifest = json.loads((SHARED / "icgan_biggan_imagenet_res256.shapes.json").read_text())
        assert released_shapes(IMAGENET_256) == {name: tuple(shape) for name, shape in manifest.items()}
        state = {name: torch.empty(shape, device="meta") for name, shape in manifest.items()}
        with torch.device("meta"):
            network = BigGANNetwork(IMAGENET_256)
        weights = fold(state, IMAGENET_256, torch.float32)
        assert {n: t.shape for n, t in weights.items()} == {n: t.shape for n, t in network.state_dict().items()}


class Recorded(TorchDispatchMode):
    """Remembers each operation with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.calls.append((str(func), args))
        return func(*args, **(kwargs or {}))


class TestPasses:
    """Of what a GPU does besides convolutions, each pass over all pixels takes about as long as one of them."""

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_no_bias_and_no_upsampling_over_all_pixels(self, memory_format: torch.memory_format) -> None:
        config = small(n_classes=0, class_cond=False, G_attn="0")
        network = folded(config, torch.float32).to(memory_format=memory_format)
        with Recorded() as recorded, torch.no_grad():
            made = network(*given(config, 2)[:2])
        assert made.shape == (2, 3, 64, 64)
        names = [name for name, _ in recorded.calls]
        assert not any("upsample" in name for name in names)
        # Only the skips, at the resolution that goes in, and the last layer have a bias.
        biased = [args[0].shape[-1] for name, args in recorded.calls if name == "aten.convolution.default" and args[2] is not None]
        assert biased == [4, 8, 16, 32, 64]
        copied = [args[0].shape[-1] for name, args in recorded.calls if "clone" in name or "copy" in name]
        assert copied == ([4] if memory_format == torch.channels_last else []), "copies between memory formats, but for the first"

    def test_gradients_of_the_condition(self) -> None:
        """The sums in place do not harm them."""
        config = small(n_classes=0, class_cond=False)
        network = folded(config, torch.float64)
        z, features = (t.double().requires_grad_() for t in given(config, 1)[:2])
        assert torch.autograd.gradcheck(lambda z, f: network(z, f)[..., ::16, ::16], (z, features), fast_mode=True)


class TestCost:
    """The exact rewrites save what ICGAN.md says."""

    def test_operations_at_256(self) -> None:
        with torch.device("meta"):
            network = BigGANNetwork(IMAGENET_256)
            z, features = torch.empty(1, IMAGENET_256.z_dim), torch.empty(1, 2048)
        with FlopCounterMode(display=False) as counter:
            network(z, features)
        assert counter.get_total_flops() <= 0.66 * 147.0e9

    def test_plain_network_costs_what_the_authors_does(self) -> None:
        """The yardstick: 147.0 GFLOP were counted for the authors' code."""
        with torch.device("meta"):
            plain = example("networks").Generator(IMAGENET_256, merged=False).eval()
            z, features = torch.empty(1, IMAGENET_256.z_dim), torch.empty(1, 2048)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            plain(z, features)
        assert counter.get_total_flops() == pytest.approx(147.0e9, rel=0.01)

    def test_modulations_are_one_product(self) -> None:
        config = small()
        network = folded(config, torch.float32)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
            network(*given(config))
        linears = sum(e.count for e in profile.key_averages() if e.key == "aten::linear")
        # feature, first layer, modulation of y, and one slice of z a block: not two norms x two products x blocks
        assert linears == 3 + len(config.widths) - 1


class TestNetwork:
    """The network alone."""

    def test_autocast_bfloat16(self) -> None:
        config = small()
        network = folded(config, torch.float32)
        with torch.no_grad():
            exact = network(*given(config))
            with torch.autocast("cpu", torch.bfloat16):
                rounded = network(*given(config))
        assert rounded.isfinite().all()
        assert (rounded.float() - exact).abs().mean() < 0.05

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_low_precision_weights(self, dtype: torch.dtype) -> None:
        config = small()
        with torch.no_grad():
            exact, rounded = (folded(config, d)(*given(config)) for d in (torch.float32, dtype))
        assert rounded.dtype == dtype
        assert (rounded.float() - exact).abs().mean() < 0.05

    def test_memory_format_changes_nothing(self) -> None:
        config = small()
        network = folded(config, torch.float64)
        inputs = [t.double() for t in given(config)[:2]]
        with torch.no_grad():
            last = network(*inputs)
            first = network.to(memory_format=torch.contiguous_format)(*inputs)
        torch.testing.assert_close(first, last, atol=1e-12, rtol=0)

    def test_weights_are_frozen(self) -> None:
        assert not any(p.requires_grad for p in folded(small(), torch.float32).parameters())

    @pytest.mark.parametrize(("z_dim", "f_dim", "name"), [(3, 12, "z"), (20, 3, "features")])
    def test_wrong_widths(self, z_dim: int, f_dim: int, name: str) -> None:
        config = small()
        with pytest.raises(ValueError, match=f"^{name} has shape"):
            folded(config, torch.float32)(torch.zeros(1, z_dim), torch.zeros(1, f_dim))

    def test_labels_missing(self) -> None:
        config = small(class_cond=True, n_classes=3)
        z, features, _ = given(config)
        with pytest.raises(ValueError, match="labels=None"):
            folded(config, torch.float32)(z, features)


class TestBigGANConfig:
    """What the configuration says and refuses."""

    def test_z_is_rounded_down_to_slots(self) -> None:
        assert (IMAGENET_256.slots, IMAGENET_256.slot_dim, IMAGENET_256.z_dim) == (7, 17, 119)

    def test_attention_follows_the_output_resolution(self) -> None:
        assert IMAGENET_256.attention == (False, False, False, True, False, False)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"resolution": 48}, "resolution=48: expected one of"),
            ({"G_ch": 0}, "G_ch=0: expected a positive integer"),
            ({"G_ch": 1.5}, "G_ch=1.5"),
            ({"dim_z": 2}, "dim_z=2: expected at least"),
            ({"G_attn": "a"}, "G_attn='a'"),
            ({"statistics": "other"}, "statistics='other'"),
            ({"class_cond": True}, "n_classes=0"),
            ({"G_param": "WN"}, "G_param='WN'"),
        ],
    )
    def test_refused(self, fields: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            small(**fields)
