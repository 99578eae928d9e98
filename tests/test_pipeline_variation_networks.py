"""The networks of a generator and those of its pipeline are the same: replaced, compiled or with fused projections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS: dict[str, Any] = {"strength": 0.9, "num_inference_steps": 2, "image_size": 32}
SEEDS = torch.tensor([3])


def photo() -> Tensor:
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class TestReplacing:
    def test_changes_images_and_fingerprint(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), **OPTIONS)
        before, made = generator.fingerprint(), generator(photo(), SEEDS)
        other = tiny_diffusion.unet()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(0.9)
        generator.unet = other
        assert generator.pipe.unet is other
        expected = tiny_pipelines.img2img()
        expected.unet = other
        built = gt.PipelineVariation.from_pipeline(expected, **OPTIONS)
        assert generator.fingerprint() == built.fingerprint() != before
        changed = generator(photo(), SEEDS)
        assert torch.equal(changed, built(photo(), SEEDS))
        assert not torch.equal(changed, made)

    def test_of_the_vae_clears_what_was_encoded(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), **OPTIONS)
        made = generator(photo(), SEEDS)
        other = tiny_diffusion.vae()
        with torch.no_grad():
            for parameter in other.encoder.parameters():
                parameter.mul_(0.5)
        generator.vae = other
        assert not torch.equal(generator(photo(), SEEDS), made)

    def test_of_the_prior(self) -> None:
        pipe, prior = tiny_pipelines.kandinsky()
        generator = gt.PipelineVariation.from_pipeline(pipe, prior=prior, num_inference_steps=2, image_size=32)
        generator.prior_image_encoder = other = tiny_diffusion.image_encoder()
        assert prior.image_encoder is other
        generator.fingerprint()

    @pytest.mark.parametrize("compiled", [False, True])
    def test_in_the_pipeline_alone_is_refused(self, compiled: bool) -> None:
        generator = gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), **OPTIONS)
        before = generator.fingerprint()
        if compiled:  # the same network
            generator.pipe.unet = torch.compile(generator.pipe.unet)
            assert generator.fingerprint() == before
            return
        generator.pipe.unet = tiny_diffusion.unet()
        with pytest.raises(ConfigError, match=r"unet of the .* was replaced .* generator\.unet = …"):
            generator.fingerprint()

    def test_what_is_no_network(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), **OPTIONS)
        with pytest.raises(ConfigError, match=r"scheduler is no network: set it in the pipeline, generator\.pipe\.scheduler"):
            generator.scheduler = generator.pipe.scheduler

    @pytest.mark.slow  # tracing a whole network; a replaced one runs, and a compiled one is the same, in the tests above
    def test_compiled_it_runs_in_the_pipeline(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(tiny_pipelines.flux(), **OPTIONS)
        before, made, calls = generator.fingerprint(), generator(photo(), SEEDS), []

        def count(graph: Any, _: Any) -> Any:
            calls.append(graph)
            return graph.forward

        generator.transformer = torch.compile(generator.transformer, backend=count)
        assert (generator(photo(), SEEDS) - made).abs().max() <= 1e-5
        assert calls
        assert generator.fingerprint() == before


class TestFusedProjections:
    @pytest.mark.parametrize(
        ("family", "name"),
        [("img2img", "unet"), ("flux", "transformer"), pytest.param("stable_diffusion_3", "transformer", marks=pytest.mark.slow)],
    )
    def test_are_not_in_the_fingerprint(self, family: str, name: str, tmp_path: Path) -> None:
        pipe = getattr(tiny_pipelines, family)()
        generator = gt.PipelineVariation.from_pipeline(pipe, **OPTIONS)
        before, made = generator.fingerprint(), generator(photo(), SEEDS)
        getattr(pipe, name).fuse_qkv_projections()
        assert any("to_qkv" in key for key in pipe.components[name].state_dict())
        assert (generator(photo(), SEEDS) - made).abs().max() <= 1e-4
        assert generator.fingerprint() == before
        generator.save_pretrained(tmp_path)
        again = gt.PipelineVariation.from_pretrained(tmp_path)
        assert again.fingerprint() == before

    @pytest.mark.parametrize(
        ("family", "name", "layer", "part"),
        [
            ("img2img", "unet", "to_qkv", "to_k"),
            ("flux", "transformer", "to_qkv", "to_v"),
            ("flux", "transformer", "to_added_qkv", "add_k_proj"),
        ],
    )
    def test_that_are_stale_are_refused(self, family: str, name: str, layer: str, part: str) -> None:
        pipe = getattr(tiny_pipelines, family)()
        generator = gt.PipelineVariation.from_pipeline(pipe, **OPTIONS)
        network = getattr(pipe, name)
        network.fuse_qkv_projections()
        module = next(m for m in network.modules() if hasattr(m, layer) and getattr(m, layer) is not None)
        with torch.no_grad():
            getattr(module, part).bias.add_(1) if getattr(module, part).bias is not None else getattr(module, part).weight.add_(1)
        with pytest.raises(ConfigError, match=rf"{name}\..*{layer} differs from the weights that were fused into it"):
            generator.fingerprint()
