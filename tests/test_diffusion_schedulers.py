"""Schedulers: what was set in them past their configuration, and where their noise comes from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_diffusion as tiny
import tiny_pipelines
import torch
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.schedulers import check_scheduler

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")]
SEEDS = torch.tensor([3, 4])
KINDS = [
    "CMStochasticIterativeScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EDMEulerScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler", "IPNDMScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler",
]  # fmt: skip


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
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_run_changes_nothing_that_counts(self, kind: str) -> None:
        scheduler = getattr(diffusers, kind)()
        check_scheduler("scheduler", scheduler)
        check_scheduler("scheduler", used(scheduler))

    @pytest.mark.parametrize("kind", KINDS)
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
