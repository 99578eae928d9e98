"""Options of a pipeline's call as it takes them: tuples that came as lists, and a strength that leaves steps to run."""

from __future__ import annotations

import copy
import inspect
import typing
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_pipelines
import torch
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.generators.pipelines.calls import _takes_tuple
from gentransforms.generators.pipelines.strength import check_strength

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = torch.tensor([3, 4])


def photos() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(9))


def parameter(annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


class TestTuples:
    @pytest.mark.parametrize(
        "annotation",
        [
            tuple[int, int], "tuple[int, int]", tuple[int, int] | None, "tuple[int, int] | None", tuple, "Tuple", typing.Tuple[int, int],  # noqa: UP006
            typing.Optional[typing.Tuple[int, int]], "Optional[Tuple[int, int]]", "Union[int, Tuple[int, ...]]", "int | tuple[list[int]]",  # noqa: UP006, UP045
            "typing.Optional[typing.Tuple[int]]",
        ],
    )  # fmt: skip
    def test_are_what_an_annotation_says(self, annotation: Any) -> None:
        assert _takes_tuple(parameter(annotation))

    @pytest.mark.parametrize(
        "annotation",
        [list[int], "list[tuple[int, int]]", "Optional[List[int]]", "int | tuple[int, int] | list[int]", int, "not (", "float"],
    )
    def test_are_not_where_lists_are_taken_or_nothing_says_so(self, annotation: Any) -> None:
        assert not _takes_tuple(parameter(annotation))

    def test_are_what_a_default_is(self) -> None:
        assert _takes_tuple(parameter(inspect.Parameter.empty, (1, 2)))
        assert _takes_tuple(parameter("not (", (1, 2)))
        assert not _takes_tuple(parameter("list[int] | tuple[int, int]", (1, 2)))
        assert not _takes_tuple(parameter(inspect.Parameter.empty, [1]))

    def test_of_a_saved_generator_and_of_lists(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"num_inference_steps": 2, "strength": 0.5, "original_size": (64, 48), "crops_coords_top_left": (8, 0)}
        generator = gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img_xl(), **options)
        generator.save_pretrained(tmp_path)
        made, expected = generator.options, generator(photos(), SEEDS)
        as_json = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        for again in (gt.load_generator(tmp_path), gt.PipelineVariation.from_pipeline(generator.pipe, **as_json)):
            assert again.options == made == options
            assert again.fingerprint() == generator.fingerprint()
            assert (again(photos(), SEEDS) - expected).abs().max() <= 1e-5


def img2img(scheduler: str = "DDIMScheduler", **settings: Any) -> Any:
    pipe = tiny_pipelines.img2img()
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **settings)
    return pipe


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    names = ("img2img", "img2img_xl", "lcm", "flux", "stable_diffusion_3", "z_image")
    return {name: getattr(tiny_pipelines, name)() for name in names}


class TestStrength:
    SCHEDULERS = ("DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler")

    @pytest.mark.parametrize("scheduler", SCHEDULERS)
    @pytest.mark.parametrize(("steps", "strength"), [(4, 0.2), (4, 0.25), (1, 0.8), (3, 0.0), (1, 1.0)])
    def test_is_refused_where_the_call_would_fail(self, scheduler: str, steps: int, strength: float) -> None:
        """PNDM has one timestep more, if it has two steps or more."""
        pipe = img2img(scheduler)
        options = {"num_inference_steps": steps, "strength": strength}
        if (scheduler == "PNDMScheduler" and steps > 1) or int(steps * strength) > 0:
            made = gt.PipelineVariation.from_pipeline(pipe, **options)(photos()[:1], SEEDS[:1])
            assert made.isfinite().all()
            return
        advice = "raise it, or num_inference_steps$" if strength else "raise it$"
        with pytest.raises(ConfigError, match=rf"strength={strength}: no step is left of num_inference_steps={steps}; {advice}"):
            gt.PipelineVariation.from_pipeline(pipe, **options)

    def test_the_advice_holds(self) -> None:
        for options in ({"num_inference_steps": 4, "strength": 0.25}, {"num_inference_steps": 5, "strength": 0.2}):
            assert gt.PipelineVariation.from_pipeline(img2img(), **options)(photos()[:1], SEEDS[:1]).isfinite().all()

    @pytest.mark.parametrize("value", [1.5, -0.1, "0.5", float("nan"), None])
    @pytest.mark.parametrize("name", ["img2img", "img2img_xl", "lcm", "flux", "stable_diffusion_3", "z_image"])
    def test_out_of_range(self, name: str, value: Any, pipes: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"strength=.*: expected a number from 0 to 1"):
            gt.PipelineVariation.from_pipeline(pipes[name], strength=value)

    def test_its_default_with_too_few_steps(self, pipes: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"strength=0.3: no step is left of num_inference_steps=2"):
            gt.PipelineVariation.from_pipeline(pipes["img2img_xl"], num_inference_steps=2)

    @pytest.mark.parametrize("name", ["flux", "stable_diffusion_3", "z_image"])
    def test_of_those_that_round_up(self, name: str, pipes: dict[str, Any]) -> None:
        options: dict[str, Any] = {"num_inference_steps": 4, "image_size": 32, "max_sequence_length": 16}
        generator = gt.PipelineVariation.from_pipeline(pipes[name], strength=0.1, **options)
        assert generator(photos()[:1], SEEDS[:1]).isfinite().all()
        with pytest.raises(ConfigError, match=r"strength=0.0: no step is left of num_inference_steps=4; raise it$"):
            gt.PipelineVariation.from_pipeline(pipes[name], strength=0.0, **options)

    def test_with_shifted_noise_levels(self, pipes: dict[str, Any]) -> None:
        """As FLUX dev has them, whose scheduler needs the shift."""
        pipe = copy.copy(pipes["flux"])
        vars(pipe)["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        check_strength(pipe, {"num_inference_steps": 4, "strength": 0.1})
        with pytest.raises(ConfigError, match="no step is left"):
            check_strength(pipe, {"num_inference_steps": 4, "strength": 0.0})

    def test_of_a_latent_consistency_model(self, pipes: dict[str, Any]) -> None:
        """It is a share of the 50 steps of its training there."""
        generator = gt.PipelineVariation.from_pipeline(pipes["lcm"], num_inference_steps=4, strength=0.2)
        assert generator(photos()[:1], SEEDS[:1]).isfinite().all()
        with pytest.raises(ConfigError, match=r"strength=0.2, num_inference_steps=20: .*original_steps x strength"):
            gt.PipelineVariation.from_pipeline(pipes["lcm"], num_inference_steps=20, strength=0.2)
        gt.PipelineVariation.from_pipeline(pipes["lcm"], num_inference_steps=20, strength=0.2, original_inference_steps=100)

    @pytest.mark.parametrize("other", [{"timesteps": [900, 600, 300]}, {"denoising_start": 0.5}])
    def test_says_nothing_where_steps_are_chosen_otherwise(self, other: dict[str, Any], pipes: dict[str, Any]) -> None:
        gt.PipelineVariation.from_pipeline(pipes["img2img_xl"], num_inference_steps=2, strength=0.4, **other)

    def test_of_the_decoder_inside_a_combined_pipeline(self) -> None:
        decoder, prior = tiny_pipelines.kandinsky()
        parts = decoder.components | {f"prior_{name}": part for name, part in prior.components.items()}
        pipe = diffusers.KandinskyV22Img2ImgCombinedPipeline(**parts)
        with pytest.raises(ConfigError, match=r"strength=0.2: no step is left of num_inference_steps=4"):
            check_strength(pipe, {"num_inference_steps": 4, "strength": 0.2})
        check_strength(pipe, {"num_inference_steps": 4, "strength": 0.3})

    def test_leaves_the_pipeline_as_it_is(self) -> None:
        pipe = img2img()
        parts, config, scheduler = dict(vars(pipe)), dict(pipe.config), repr(vars(pipe.scheduler))
        check_strength(pipe, {"num_inference_steps": 4, "strength": 0.5})
        assert vars(pipe) == parts
        assert (dict(pipe.config), repr(vars(pipe.scheduler))) == (config, scheduler)

    def test_of_pipelines_without_it(self) -> None:
        check_strength(tiny_pipelines.flux2_klein(), {"num_inference_steps": 1})
