"""Schedulers: what was set in them past their configuration, and where their noise comes from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import stock
import tiny_diffusion as tiny
import tiny_pipelines
import torch
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.faster.steps import plan_steps
from gentransforms.generators.diffusion.sampling import denoise, make_rngs
from gentransforms.generators.diffusion.schedulers import check_scheduler, fresh

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")]
SEEDS = torch.tensor([3, 4])
KINDS = [
    "CMStochasticIterativeScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EDMEulerScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler", "IPNDMScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler",
]  # fmt: skip


# One of two alike, whose loops over a thousand timesteps are slow.
EACH = [pytest.param(kind, marks=pytest.mark.slow) if kind == "KDPM2DiscreteScheduler" else kind for kind in KINDS]


def photos() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def used(scheduler: Any) -> Any:
    """The same scheduler, after a run that began in the middle."""
    scheduler.set_timesteps(5)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(2)
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps[2:5]:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, t)
        sample = scheduler.step(sample, t, sample, return_dict=False)[0]
    return scheduler


class Halving(diffusers.DDIMScheduler):  # type: ignore[misc]
    """A user's own, with state of its own."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self.calls = getattr(self, "calls", 0) + 1

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.calls = 0


class TestCheckScheduler:
    @pytest.mark.parametrize("kind", EACH)
    def test_a_run_changes_nothing_that_counts(self, kind: str) -> None:
        scheduler = getattr(diffusers, kind)()
        check_scheduler("scheduler", scheduler)
        check_scheduler("scheduler", used(scheduler))

    @pytest.mark.parametrize("kind", EACH)
    def test_every_number_that_stays_from_run_to_run_counts(self, kind: str) -> None:
        """Independently of the list of what passes: what a run and new timesteps leave alone is a setting."""
        scheduler = getattr(diffusers, kind)()
        before, after = vars(scheduler), vars(used(copy.deepcopy(scheduler)))
        numbers = [name for name, value in before.items() if isinstance(value, int | float) and after[name] is value]
        numbers = [name for name in numbers if name not in ("is_scale_input_called", "custom_timesteps")]
        for name in numbers:
            changed = copy.deepcopy(scheduler)
            changed.set_timesteps(10)
            if vars(changed)[name] != before[name]:
                continue  # set anew by every call
            setattr(changed, name, not before[name] if isinstance(before[name], bool) else before[name] + 2)
            changed.set_timesteps(10)
            if vars(changed)[name] == before[name]:
                continue
            with pytest.raises(ConfigError, match=rf"scheduler\.{name} of the {kind} is"):
                check_scheduler("scheduler", changed)

    def test_the_shift_of_flow_matching(self) -> None:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_shift(6.0)
        with pytest.raises(
            ConfigError, match=r"scheduler\._shift .* is 6\.0, .* 3\.0.*EulerDiscreteScheduler\.from_config\(.*shift=6\.0\)"
        ):
            check_scheduler("scheduler", scheduler)
        check_scheduler("scheduler", type(scheduler).from_config(scheduler.config, shift=6.0))

    @pytest.mark.parametrize(
        ("kind", "name", "value"),
        [
            ("DDIMScheduler", "final_alpha_cumprod", torch.tensor(0.5)), ("UniPCMultistepScheduler", "predict_x0", False),
            ("UniPCMultistepScheduler", "disable_corrector", [0]), ("UniPCMultistepScheduler", "solver_p", diffusers.DDIMScheduler()),
            ("EulerDiscreteScheduler", "use_karras_sigmas", True), ("DDPMScheduler", "variance_type", "fixed_large"),
            ("DPMSolverMultistepScheduler", "lambda_t", torch.zeros(1000)), ("PNDMScheduler", "order", 2),
            ("FlowMatchEulerDiscreteScheduler", "sigma_min", 0.3),
        ],
    )  # fmt: skip
    def test_settings_of_other_kinds(self, kind: str, name: str, value: Any) -> None:
        scheduler = getattr(diffusers, kind)()
        setattr(scheduler, name, value)
        with pytest.raises(ConfigError, match=rf"scheduler\.{name} of the {kind} "):
            check_scheduler("scheduler", scheduler)

    def test_a_method_that_was_replaced(self) -> None:
        scheduler = diffusers.DDIMScheduler()
        scheduler.step = lambda *args, **kwargs: (args[2],)
        with pytest.raises(ConfigError, match=r"scheduler\.step of the DDIMScheduler was replaced"):
            check_scheduler("scheduler", scheduler)

    def test_state_of_a_users_class_is_its_own(self) -> None:
        scheduler = Halving()
        scheduler.set_timesteps(3)
        check_scheduler("scheduler", scheduler)
        scheduler.betas = scheduler.betas * 2
        with pytest.raises(ConfigError, match=r"betas of the Halving.*trained_betas"):
            check_scheduler("scheduler", scheduler)

    def test_one_that_is_given_counts_too(self) -> None:
        scheduler = diffusers.EulerDiscreteScheduler()
        scheduler.use_karras_sigmas = True
        with pytest.raises(ConfigError, match=r"use_karras_sigmas.*from_config\(pipe\.scheduler\.config, use_karras_sigmas=True\)"):
            gt.StableDiffusionVariation.from_pipeline(tiny.variation(), scheduler=scheduler)


class TestBuildScheduler:
    @pytest.mark.parametrize("kind", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "VQDiffusionScheduler"])
    def test_one_that_cannot_step_these_networks(self, kind: str) -> None:
        other = getattr(diffusers, kind)(**({"num_vec_classes": 8} if kind.startswith("VQ") else {}))
        advice = rf"scheduler={kind}: .*'ddim', 'dpm\+\+', .*PipelineVariation"
        for choice in (other, {"_class_name": kind, **other.config}):
            with pytest.raises(ConfigError, match=advice):
                gt.StableDiffusionVariation.from_pipeline(tiny.unclip(), scheduler=choice)
        pipe = tiny.unclip()
        pipe.scheduler = other
        with pytest.raises(ConfigError, match=advice):
            gt.StableDiffusionVariation.from_pipeline(pipe)


class TestOfAnyPipeline:
    def test_a_shift_has_no_fingerprint_and_is_not_saved(self, tmp_path: Path) -> None:
        pipe = tiny_pipelines.stable_diffusion_3()
        options: dict[str, Any] = {"strength": 0.5, "num_inference_steps": 4, "max_sequence_length": 16}
        generator = gt.PipelineVariation.from_pipeline(pipe, **options)
        before = generator.fingerprint()
        generator(photos(), SEEDS)
        assert generator.fingerprint() == before
        pipe.scheduler.set_shift(6.0)
        with pytest.raises(ConfigError, match=r"scheduler\._shift .* is 6\.0"):
            generator.fingerprint()
        with pytest.raises(ConfigError, match=r"scheduler\._shift .* is 6\.0"):
            generator.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()


SDE = ["DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"]  # they take their noise from Brownian paths


def scheduler_of(kind: str, **options: Any) -> Any:
    if kind in SDE:
        pytest.importorskip("torchsde")
        options.setdefault("solver_order", 2) if kind.startswith("Cosine") else options.setdefault("use_karras_sigmas", True)
    return getattr(diffusers, kind)(**options)


def sampled(scheduler: Any, seeds: Tensor, latents: Tensor) -> Tensor:
    scheduler = fresh(scheduler, 5)
    steps = plan_steps(len(scheduler.timesteps), first=0, guided=False, interval=None, cache_interval=1)
    return denoise(lambda noisy, t, step: 0.7 * noisy.roll(1, -1), scheduler, latents, make_rngs(seeds), steps)


class TestNoise:
    """The noise of an image follows from its seed alone, whatever scheduler draws it."""

    @pytest.mark.parametrize("kind", [*(kind for kind in KINDS if "FlowMatch" not in kind), *SDE])
    def test_of_steps(self, kind: str) -> None:
        scheduler, seeds = scheduler_of(kind), torch.tensor([3, 2**62, 3])
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).expand(3, 4, 8, 8)
        torch.manual_seed(1)
        made = sampled(scheduler, seeds, latents)
        torch.manual_seed(2)
        again = sampled(scheduler, seeds, latents)
        assert torch.equal(made, again)
        scale = made.abs().max()
        for i in range(3):
            assert (sampled(scheduler, seeds[i : i + 1], latents[:1]) - made[i : i + 1]).abs().max() <= 1e-5 * scale
        assert (made[0] - made[2]).abs().max() <= 1e-5 * scale
        if kind in SDE:
            assert (made[0] - made[1]).abs().max() > 1e-2 * scale, "another seed, other noise"
            inside = sampled(scheduler, seeds, latents.bfloat16())
            assert inside.dtype == torch.bfloat16
            assert (inside.float() - made).abs().max() < 0.1 * scale, "the same noise in another dtype"

    def test_one_path_for_all_where_the_scheduler_says_so(self) -> None:
        scheduler = scheduler_of(SDE[0], noise_sampler_seed=5)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).expand(2, 4, 8, 8)
        made = sampled(scheduler, torch.tensor([1, 2]), latents)
        assert (made[0] - made[1]).abs().max() <= 1e-5 * made.abs().max()

    @pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning")  # torchsde rounds the ends of an interval
    def test_agrees_with_the_stock_pipeline_of_one_image(self) -> None:
        pytest.importorskip("torchsde")
        generator = gt.StableDiffusionVariation.from_pipeline(
            tiny.variation(), num_inference_steps=4, scheduler=scheduler_of(SDE[0], beta_schedule="scaled_linear")
        )
        made = generator(photos(), SEEDS)
        for i, seed in enumerate(SEEDS.tolist()):
            generator.scheduler = type(generator.scheduler).from_config(generator.scheduler.config, noise_sampler_seed=seed)
            image = stock.normalised(generator, photos())[i : i + 1]
            stock_made = stock.run(diffusers.StableDiffusionImageVariationPipeline, generator, SEEDS[i : i + 1], image=image)
            assert stock_made.std() > 0.05
            assert (made[i] - stock_made[0]).abs().max() <= 1e-4
