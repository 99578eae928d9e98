"""Pipelines whose class diffusers does not have: they run, and are not saved as what could not be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_pipelines
import torch

import gentransforms as gt
from gentransforms.errors import ConfigError, WeightsError

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS: dict[str, Any] = {"prompt": "a cat", "strength": 0.6, "num_inference_steps": 4}


class OwnPipeline(diffusers.StableDiffusionImg2ImgPipeline):  # type: ignore[misc]
    """A class of the user."""


def own(name: str = "OwnPipeline") -> Any:
    pipe = tiny_pipelines.img2img()
    pipe.__class__ = OwnPipeline if name == "OwnPipeline" else type(name, (OwnPipeline,), {})
    return pipe


class TestSaving:
    @pytest.mark.parametrize("name", ["OwnPipeline", "StableDiffusionImg2ImgPipeline"])
    def test_is_refused_with_what_keeps_the_options(self, name: str, tmp_path: Path) -> None:
        """A name of diffusers does not help: its class would be loaded in place of this one."""
        generator = gt.PipelineVariation.from_pipeline(own(name), **OPTIONS)
        message = rf"{name} of .* is no class of diffusers.*generator\.pipe\.save_pretrained.*prompt='a cat'.*strength=0\.6"
        with pytest.raises(ConfigError, match=message):
            generator.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
        with pytest.raises(ConfigError, match=message):
            generator.push_to_hub("organisation/name")

    def test_the_way_that_the_message_names(self, tmp_path: Path) -> None:
        generator = gt.PipelineVariation.from_pipeline(own(), **OPTIONS)
        generator.pipe.save_pretrained(tmp_path)
        again = gt.PipelineVariation.from_pipeline(OwnPipeline.from_pretrained(tmp_path), **OPTIONS)
        assert again.fingerprint() == generator.fingerprint()

    @pytest.mark.slow
    def test_a_community_pipeline(self, tmp_path: Path) -> None:
        tiny_pipelines.img2img().save_pretrained(tmp_path / "pipe")
        code = "from diffusers import StableDiffusionImg2ImgPipeline\nclass MyPipe(StableDiffusionImg2ImgPipeline):\n    pass\n"
        (tmp_path / "pipe" / "pipeline.py").write_text(code)
        where: dict[str, Any] = {"custom_pipeline": str(tmp_path / "pipe"), "trust_remote_code": True}
        pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "pipe", **where)
        generator = gt.PipelineVariation.from_pipeline(pipe, **OPTIONS)
        with pytest.raises(ConfigError, match=r"MyPipe of diffusers_modules.* is no class of diffusers.*custom_pipeline="):
            generator.save_pretrained(tmp_path / "saved")
        generator.pipe.save_pretrained(tmp_path / "again")
        again = gt.PipelineVariation.from_pipeline(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "again", **where), **OPTIONS)
        photos, seeds = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([3])
        assert torch.equal(again(photos, seeds), generator(photos, seeds))


class TestLoading:
    @pytest.mark.parametrize("name", ["MyPipe", ["pipeline", "StableDiffusionImg2ImgPipeline"]])
    def test_says_what_opens_it(self, name: Any, tmp_path: Path) -> None:
        """A class with its module is code of the repository, even under a name that diffusers has."""
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        for load in (gt.load_generator, gt.PipelineVariation.from_pretrained):
            with pytest.raises(WeightsError, match=r"community pipeline .*custom_pipeline=.*PipelineVariation\.from_pipeline"):
                load(tmp_path)
