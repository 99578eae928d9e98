"""The exact ways to a faster loop: compiled networks, fused projections, memory format. Images change by rounding alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion as tiny
import torch
from captured import compiled_by
from test_diffusion_state import load_lora, write_lora
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.faster import execution

pytestmark = pytest.mark.usefixtures("one_thread")
FAST: dict[str, Any] = {"num_inference_steps": 3, "scheduler": "ddim", "guidance_scale": 3.0}
ALL: dict[str, Any] = {"cache_interval": 2, "guidance_interval": (0.25, 0.75), "channels_last": True}
MODES = ["regional", "full", "max-autotune", "reduce-overhead"]
TRACED = [pytest.param(mode, marks=pytest.mark.slow) for mode in ("full", "reduce-overhead")]  # tracing a whole network takes 20 s


def batch(count: int = 2) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(11)
    return torch.rand(count, 3, 32, 32, generator=rng), torch.tensor([3, 2**40 + 5, 0])[:count]


def variation(pipe: Any = None, **options: Any) -> gt.StableDiffusionVariation:
    return gt.StableDiffusionVariation.from_pipeline(pipe or tiny.unclip(), **(FAST | options))


def controlled(**options: Any) -> gt.ControlNetVariation:
    pipe = tiny.stable_diffusion()
    return gt.ControlNetVariation.from_pipeline(pipe, controlnet=tiny.controlnet(pipe.unet), prompt="a", **(FAST | options))


def agree(made: Tensor, expected: Tensor) -> None:
    assert made.std() > 0.05
    assert (made - expected).abs().max() <= 1e-4


def deepcopied() -> None:
    """A part of a network, as far as this test goes."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What is compiled, and how; nothing is."""
    calls: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: calls.append((module, options)))
    return calls


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The graphs that torch captures; they run as they are, because code for them takes long to make."""
    found: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        found.append(graph)
        return graph.forward

    with compiled_by(backend, monkeypatch):
        yield found


class TestCompile:
    @pytest.mark.parametrize(("mode", "arguments"), [
        (True, {}), ("full", {}), ("max-autotune", {"mode": "max-autotune"}), ("reduce-overhead", {"mode": "reduce-overhead"}),
    ])  # fmt: skip
    def test_whole_networks(self, asked: list[Any], mode: Any, arguments: dict[str, Any]) -> None:
        generator = controlled(compile=mode)
        assert asked == [(generator.unet, arguments), (generator.controlnets[0], arguments)]

    def test_regional_is_the_repeated_blocks(self, asked: list[Any]) -> None:
        generator = controlled(compile="regional")
        blocks = {m for net in (generator.unet, generator.controlnets[0]) for m in net.modules() if "TransformerBlock" in type(m).__name__}
        assert {module for module, _ in asked} == blocks
        assert (
            len(asked) == len(blocks) == 6
        )  # of the UNet one down, one in the middle, two up; of the ControlNet one down, one in the middle

    def test_off(self, asked: list[Any]) -> None:
        variation(compile=False)
        assert asked == []

    def test_networks_that_are_compiled_already(self, tmp_path: Path) -> None:
        pipe = tiny.unclip()
        plain = variation(pipe)
        assert "compile" not in plain.config
        before = plain.fingerprint()
        next(m for m in pipe.unet.modules() if type(m).__name__ == "BasicTransformerBlock").compile(backend="eager")
        assert plain.config["compile"] == "elsewhere"
        assert plain.fingerprint() == before
        with pytest.raises(ConfigError, match=r"compile='regional': unet went through torch\.compile already.*deepcopy\(unet\)"):
            variation(pipe, compile="regional")
        plain.save_pretrained(tmp_path)
        assert "compile" not in gt.load_generator(tmp_path).config

    @pytest.mark.parametrize("value", ["regionally", "default", 1, 2.0, ["full"]])
    def test_other_modes_are_refused(self, value: Any) -> None:
        with pytest.raises(ConfigError, match=r"compile=.*'regional', 'full', 'max-autotune', 'reduce-overhead', True.*False"):
            variation(compile=value)

    @pytest.mark.parametrize("mode", ["regional", *TRACED])
    def test_agreement_and_few_graphs(self, graphs: list[Any], mode: str) -> None:
        """Not a graph for each step or call."""
        expected = controlled()(*batch())
        generator = controlled(compile=mode)
        agree(generator(*batch()), expected)
        count = len(graphs)
        assert count == (2 if mode != "regional" else 1), "the UNet's and the ControlNet's, or that of the blocks, here all of one width"
        generator(*batch())
        assert len(graphs) == count

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["regional", "full", "reduce-overhead"])
    def test_with_guidance_in_an_interval_and_cached_features(self, graphs: list[Any], mode: str) -> None:
        options = {"guidance_interval": (0.25, 0.75), "cache_interval": 2, "cache_branch": 1, "num_inference_steps": 6}
        agree(controlled(compile=mode, **options)(*batch()), controlled(**options)(*batch()))
        assert graphs

    @pytest.mark.parametrize("mode", [pytest.param("full", marks=pytest.mark.slow), "regional"])
    def test_copies_are_compiled_too(self, asked: list[Any], mode: str) -> None:
        generator = variation(compile=mode, cache_interval=2)
        count = len(asked)
        generator._part(deepcopied)
        for copied in (copy.deepcopy, lambda original: pickle.loads(pickle.dumps(original))):
            other: Any = copied(generator)
            own = {id(module) for module in other.modules()}
            assert [id(module) in own for module, _ in asked[count:]] == [True] * count
            del asked[count:]
            assert "_compiled_parts" not in vars(other), "compiled functions cannot be pickled"
            assert other.config["compile"] == mode

    def test_what_cuda_graphs_overwrite_is_copied(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A network whose next call overwrites what the last returned, as CUDA graphs do: multistep schedulers keep predictions."""
        monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: None)
        generator = variation(compile="reduce-overhead", scheduler="dpm++", num_inference_steps=5)
        expected = variation(scheduler="dpm++", num_inference_steps=5)(*batch())
        memory: dict[Any, Tensor] = {}

        def overwrite(_module: Any, _args: Any, output: Any) -> Any:
            kept = memory.setdefault(output[0].shape, torch.empty_like(output[0]))
            return (kept.copy_(output[0]),)

        hook = generator.unet.register_forward_hook(overwrite)
        agree(generator(*batch()), expected)
        hook.remove()

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", MODES)
    def test_agreement_as_torch_compiles_it(self, mode: str) -> None:
        options = {"fuse_qkv": True, "guidance_interval": (0.25, 0.75), "cache_interval": 2, "num_inference_steps": 4}
        try:
            agree(controlled(compile=mode, **options)(*batch()), controlled(**options)(*batch()))
            agree(variation(compile=mode)(*batch()), variation()(*batch()))
        finally:
            torch.compiler.reset()


class TestFuse:
    @pytest.mark.parametrize(
        ("make", "options"),
        [
            pytest.param(variation, {}, id="variation"),
            pytest.param(controlled, ALL, id="controlled-all"),
            pytest.param(variation, ALL, id="variation-all", marks=pytest.mark.slow),
            pytest.param(controlled, {}, id="controlled", marks=pytest.mark.slow),
        ],
    )
    def test_agreement(self, make: Any, options: dict[str, Any]) -> None:
        agree(make(fuse_qkv=True, **options)(*batch()), make(**options)(*batch()))

    def test_every_attention_of_each_step_is_fused(self) -> None:
        generator = controlled(fuse_qkv=True)
        attentions = [m for net in (generator.unet, *generator.controlnets) for m in net.modules() if hasattr(m, "to_q")]
        assert len(attentions) == 12
        used: list[Any] = []
        for module in attentions:
            for name in ("to_q", "to_k", "to_v", "to_qkv", "to_kv"):
                if (part := getattr(module, name, None)) is not None:
                    part.register_forward_hook(lambda *_, name=name: used.append(name))
        with torch.no_grad():
            generator.sample(generator.encode(batch(1)[0]), batch(1)[1])
        assert {name: used.count(name) for name in sorted(set(used))} == {"to_kv": 18, "to_q": 18, "to_qkv": 18}  # six of each, three steps

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_follows_the_dtype(self, dtype: torch.dtype) -> None:
        made = variation(fuse_qkv=True).to(dtype)(*batch())
        assert (made - variation().to(dtype)(*batch())).abs().max() < (1e-4 if dtype == torch.float64 else 0.1)

    def test_an_ip_adapter_is_refused(self) -> None:
        pipe = tiny.stable_diffusion()
        pipe.register_modules(image_encoder=tiny.image_encoder(), feature_extractor=tiny.image_processor())
        pipe.load_ip_adapter(tiny.ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
        with pytest.raises(ConfigError, match=r"fuse_qkv=True.*unet.*IP-Adapter.*leave fuse_qkv out"):
            variation(pipe, fuse_qkv=True)

    def test_a_lora_beside_the_weights_is_refused(self, tmp_path: Path) -> None:
        pipe = tiny.stable_diffusion()
        load_lora(pipe, write_lora(tmp_path), "one")
        with pytest.raises(ConfigError, match=r"fuse_qkv=True.*unet.*LoRA.*merge it first.*fuse_lora"):
            gt.ControlNetVariation.from_pipeline(pipe, controlnet=tiny.controlnet(tiny.unet()), fuse_qkv=True, **FAST)

    @pytest.mark.parametrize("layer", ["attn1", "attn2"])
    def test_weights_that_changed_afterwards_are_refused(self, layer: str) -> None:
        generator = variation(fuse_qkv=True)
        block = generator.unet.down_blocks[1].attentions[0].transformer_blocks[0]
        with torch.no_grad():
            getattr(block, layer).to_v.weight.add_(0.1)
        with pytest.raises(ConfigError, match=rf"unet\..*{layer}\.to_.*kv differs.*unfuse_qkv_projections"):
            generator.fingerprint()


class TestRecorded:
    @pytest.mark.parametrize(
        "options",
        [
            {"fuse_qkv": True},
            pytest.param({"compile": "regional"}, marks=pytest.mark.slow),
            pytest.param({"compile": "full", "channels_last": True}, marks=pytest.mark.slow),
        ],
    )
    def test_beside_the_fingerprint(self, options: dict[str, Any], tmp_path: Path) -> None:
        plain, generator = variation(), variation(**options)
        assert generator.fingerprint() == plain.fingerprint()
        assert options.items() <= generator.config.items()
        assert options.keys() <= set(generator.execution_options)
        generator.save_pretrained(tmp_path / "saved")
        again: Any = gt.load_generator(tmp_path / "saved")
        assert options.items() <= again.config.items()
        assert again.fingerprint() == plain.fingerprint()
        off = gt.load_generator(tmp_path / "saved", **dict.fromkeys(options, False))
        assert not options.keys() & off.config.keys()

    def test_from_the_command_line(self, tmp_path: Path) -> None:
        from gentransforms.cli.options import parse_options

        tiny.unclip().save_pretrained(tmp_path / "pipe")
        loaded = gt.load_generator(tmp_path / "pipe", **parse_options(["compile=regional", "fuse_qkv=true", "channels_last=true"]))
        assert loaded.config.items() >= {"compile": "regional", "fuse_qkv": True, "channels_last": True}.items()

    def test_older_torch_compiles_without_the_limit(self, monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
        monkeypatch.setattr(torch, "compile", lambda model=None, *, mode=None: model)
        variation(compile="regional")
        assert all(options == {} for _, options in asked)
        assert execution.compile_function(len, "full") is len
