"""`compile=` of PipelineVariation: the compiled network is what runs, images stay the same, banks record it separately."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from captured import compiled_by
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.generators.pipelines.execution import compiling

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS: dict[str, Any] = {"strength": 0.9, "num_inference_steps": 2, "image_size": 32}
SEEDS = torch.tensor([3])


def photo() -> Tensor:
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def generator_of(pipe: Any, **options: Any) -> gt.PipelineVariation:
    return gt.PipelineVariation.from_pipeline(pipe, **(OPTIONS | options))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What is compiled, and how; it runs as it is, through what stands for the compiled code."""
    calls: list[tuple[Any, dict[str, Any]]] = []

    def compile(module: Any, **options: Any) -> None:
        calls.append((module, options))
        module._compiled_call_impl = functools.partial(type(module)._call_impl, module)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    return calls


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The graphs that torch captured, one entry for each time that one ran; they run without code for them, which takes long to make."""
    found: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            found.append(graph)
            return graph.forward(*args)

        return run

    with compiled_by(backend, monkeypatch):
        yield found


class TestRuns:
    @pytest.mark.parametrize(
        ("family", "mode", "graphs"),
        [
            ("flux", "regional", 2),
            # Of the UNet one block down, one in the middle, two up.
            pytest.param("img2img", "regional", 4, marks=pytest.mark.slow),
            pytest.param("img2img", "full", 1, marks=pytest.mark.slow),
            pytest.param("flux", "reduce-overhead", 1, marks=pytest.mark.slow),
            pytest.param("kandinsky", "full", 1, marks=pytest.mark.slow),
        ],
    )
    def test_what_is_compiled(self, runs: list[Any], family: str, mode: Any, graphs: int) -> None:
        made = getattr(tiny_pipelines, family)()
        pipe, prior = made if isinstance(made, tuple) else (made, None)
        given = {name: value for name, value in OPTIONS.items() if family != "kandinsky" or name != "strength"}
        plain = gt.PipelineVariation.from_pipeline(pipe, prior=prior, **given)
        steps: list[Any] = []
        hook = plain._denoising_networks()[0].register_forward_hook(lambda *_: steps.append(1))
        plain._repeatable = True  # without a second image that tries the pipeline
        expected = plain(photo(), SEEDS)
        hook.remove()
        generator = gt.PipelineVariation.from_pipeline(pipe, prior=prior, compile=mode, **given)
        generator._repeatable = True
        assert not runs
        compiled = generator(photo(), SEEDS)
        assert len(runs) == len(steps) * graphs > 0
        assert compiled.std() > 0.05
        assert (compiled - expected).abs().max() <= 1e-5

    def test_what_cuda_graphs_overwrite_is_copied(self, asked: list[Any]) -> None:
        """A network whose next call overwrites what the last returned, as CUDA graphs do: pipelines keep it."""
        pipe = tiny_pipelines.flux()
        generator_of(pipe, compile="reduce-overhead")
        memory: list[Tensor] = []
        own = pipe.transformer.forward

        def overwrite(*args: Any, **kwargs: Any) -> Any:
            output = own(*args, **kwargs)
            memory[:] = memory or [torch.empty_like(output[0])]
            return (memory[0].copy_(output[0]),)

        pipe.transformer.forward = overwrite
        inputs = {
            "hidden_states": torch.rand(1, 4, 8), "encoder_hidden_states": torch.rand(1, 3, 32), "pooled_projections": torch.rand(1, 32),
            "img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(3, 3), "return_dict": False,
        }  # fmt: skip
        with torch.no_grad():
            first = pipe.transformer(timestep=torch.tensor([0.9]), **inputs)[0]
            kept = first.clone()
            second = pipe.transformer(timestep=torch.tensor([0.1]), **inputs)[0]
        assert torch.equal(first, kept)
        assert not torch.equal(first, second)


class TestNetworks:
    def test_whole_ones(self, asked: list[Any]) -> None:
        for mode, arguments in ((True, {}), ("full", {}), ("max-autotune", {"mode": "max-autotune"})):
            pipe = tiny_pipelines.flux()
            generator_of(pipe, compile=mode)
            assert asked.pop() == (pipe.transformer, arguments)
        assert not asked

    def test_regional_is_the_repeated_blocks(self, asked: list[Any]) -> None:
        pipe = tiny_pipelines.flux()
        generator_of(pipe, compile="regional")
        assert [module for module, _ in asked] == [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]

    def test_copies_and_replaced_ones_are_compiled_too(self, asked: list[Any]) -> None:
        generator = generator_of(tiny_pipelines.img2img(), compile="full")
        for copied in (copy.deepcopy, lambda original: pickle.loads(pickle.dumps(original))):
            other: Any = copied(generator)
            assert asked[-1] == (other.unet, {})
            assert other.pipe.unet is other.unet
            assert other.config["compile"] == "full"
        generator.unet = tiny_diffusion.unet()
        assert asked[-1] == (generator.unet, {})
        assert len(asked) == 4
        with pytest.raises(ConfigError, match=r"unet went through torch\.compile already"):
            generator.unet = SimpleOptimized(generator.unet)
        assert not isinstance(generator.pipe.unet, SimpleOptimized)


class SimpleOptimized(torch.nn.Module):
    """As torch.compile wraps a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


class TestRefused:
    def test_other_modes(self) -> None:
        with pytest.raises(ConfigError, match=r"compile='fast': expected 'regional', 'full'"):
            generator_of(tiny_pipelines.flux(), compile="fast")

    def test_networks_without_blocks_that_repeat(self) -> None:
        pipe, prior = tiny_pipelines.kandinsky()
        with pytest.raises(ConfigError, match=r"compile='regional': unet is a UNet2DConditionModel without blocks.*compile='full'"):
            gt.PipelineVariation.from_pipeline(pipe, prior=prior, compile="regional")

    def test_pipelines_without_a_denoiser(self) -> None:
        pipe = SimpleNamespace(components={"vae": tiny_diffusion.vae()})
        with pytest.raises(ConfigError, match=r"compile='full': a SimpleNamespace has no unet or transformer"):
            compiling.check_compiling(pipe, "full")

    def test_one_that_is_compiled_already(self) -> None:
        pipe = tiny_pipelines.flux()
        pipe.transformer = torch.compile(pipe.transformer)
        with pytest.raises(ConfigError, match=r"compile='full': transformer went through torch\.compile already"):
            generator_of(pipe, compile="full")

    @pytest.mark.parametrize("mode", ["regional", "full"])
    def test_one_that_another_generator_compiled(self, asked: list[Any], mode: str) -> None:
        pipe = tiny_pipelines.img2img()
        generator_of(pipe, compile=mode)
        with pytest.raises(ConfigError, match=r"compile='full': unet went through torch\.compile already.*deepcopy\(unet\)"):
            generator_of(pipe, compile="full")
        pipe.unet = copy.deepcopy(pipe.unet)
        assert generator_of(pipe, compile="full").config["compile"] == "full"

    def test_together_with_a_cache(self) -> None:
        with pytest.raises(ConfigError, match=r"compile='regional' and cache: .* leave one out"):
            generator_of(tiny_pipelines.flux(), compile="regional", cache="FirstBlockCache")

    @pytest.mark.parametrize(("mode", "offload"), [("full", "model"), ("regional", "sequential")])
    def test_hooks_in_what_is_compiled(self, mode: str, offload: str) -> None:
        with pytest.raises(ConfigError, match=rf"compile='{mode}' and offload='{offload}'.*compile='regional' and offload='model'"):
            compiling.check_compiling(tiny_pipelines.flux(), mode, offload=offload)


class TestRecorded:
    def test_beside_the_fingerprint(self, asked: list[Any], tmp_path: Path) -> None:
        pipe = tiny_pipelines.img2img()
        plain, generator = generator_of(pipe), generator_of(pipe, compile="regional")
        assert plain.config["compile"] == "elsewhere", "it shares what the other compiled"
        assert generator.config["compile"] == "regional"
        plain.save_pretrained(tmp_path / "plain")
        assert "compile" not in gt.load_generator(tmp_path / "plain").config
        assert "compile" not in copy.deepcopy(plain).config
        assert generator.fingerprint() == plain.fingerprint()
        generator.save_pretrained(tmp_path / "saved")
        again: Any = gt.load_generator(tmp_path / "saved")
        assert again.config["compile"] == "regional"
        assert again.fingerprint() == plain.fingerprint()
        assert "compile" not in gt.load_generator(tmp_path / "saved", compile=False).config

    def test_in_a_bank(self, asked: list[Any], tmp_path: Path) -> None:
        source = gt.open_source([{"image": photo()[0], "key": 0}])
        pipe = tiny_pipelines.img2img()
        manifest = gt.generate_bank(source, tmp_path / "bank", generator_of(pipe, compile="regional"), variants=1, progress=False)
        bank = gt.Bank.open(tmp_path / "bank")
        assert manifest is not None
        assert "compile" not in bank.manifest["generator"]["config"]
        assert bank.manifest["info"]["execution"] == {"compile": "regional"}
