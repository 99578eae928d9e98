"""Schedulers by name: the settings that decide which noise levels a sampler visits, and how it steps between them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentransforms.errors import ConfigError

__all__ = ["NAMES", "build_scheduler", "check_scheduler", "fresh"]

# Class in diffusers, and what the name changes in the repository's own configuration.
_BY_NAME: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
NAMES = tuple(_BY_NAME)

# What setting timesteps and stepping leaves behind in diffusers' schedulers, and the next call sets anew.
_OF_A_RUN = {
    "custom_timesteps", "counter", "cur_model_output", "cur_sample", "derivatives", "dt", "ets", "is_scale_input_called", "last_noise",
    "last_sample", "lower_order_nums", "mid_point_sigma", "model_outputs", "noise_sampler", "noisiest_timestep", "num_inference_steps",
    "order_list", "plms_timesteps", "prev_derivative", "prk_timesteps", "sample", "sigma_data", "sigmas", "sigmas_down",
    "sigmas_interpol", "sigmas_up", "this_corrector_order", "this_order", "this_predictor_order", "timestep_list", "timesteps",
    "_begin_index", "_init_size", "_internal_dict", "_piflow_raw_timesteps", "_step_index", "_timesteps", "_transfer_schedule",
}  # fmt: skip
_OF_A_RUN_OF = {"IPNDMScheduler": {"alphas", "betas"}, "RePaintScheduler": {"eta"}}
_NOISE_LEVELS = {"betas", "alphas", "alphas_cumprod", "final_alpha_cumprod"}


def build_scheduler(choice: Any, own: Any) -> Any:
    """Return a scheduler that nothing else steps.

    Args:
        choice: one of `NAMES`, taking over the noise schedule and prediction type of `own`; a diffusers scheduler, or its
            class and configuration as saved; or None for `own` as it is.
        own: the repository's scheduler.

    Raises:
        ConfigError: if the choice is none of these, or cannot step as Stable Diffusion's networks predict.

    Example:
        >>> from diffusers import PNDMScheduler
        >>> own = PNDMScheduler(prediction_type="v_prediction")
        >>> scheduler = build_scheduler("ddim", own)
        >>> type(scheduler).__name__, scheduler.config.timestep_spacing, scheduler.config.rescale_betas_zero_snr
        ('DDIMScheduler', 'trailing', True)
    """
    scheduler = _choose(choice, own)
    if not all(hasattr(scheduler, name) for name in ("set_timesteps", "scale_model_input", "init_noise_sigma", "step")):
        raise ConfigError(
            f"scheduler={type(scheduler).__name__}: expected one that steps as Stable Diffusion's networks predict, such as "
            f"{', '.join(map(repr, NAMES))}; those of flow matching belong to the pipelines of SD 3 and FLUX, for PipelineVariation"
        )
    return scheduler


def _choose(choice: Any, own: Any) -> Any:
    import diffusers

    if choice is None:
        return copy.deepcopy(own)
    if isinstance(choice, str) and choice in _BY_NAME:
        name, changes = _BY_NAME[choice]
        if choice == "ddim" and own.config.get("prediction_type") == "v_prediction":
            # Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (WACV 2024), with the paper's settings.
            # The noise in pure noise says nothing of an image, so only networks that predict v can use zero terminal SNR.
            changes = changes | {"rescale_betas_zero_snr": True}
        return getattr(diffusers, name).from_config(own.config, **changes)
    if isinstance(choice, diffusers.SchedulerMixin):
        return copy.deepcopy(choice)
    if isinstance(choice, dict) and isinstance(getattr(diffusers, str(choice.get("_class_name")), None), type):
        return getattr(diffusers, choice["_class_name"]).from_config({n: v for n, v in choice.items() if n != "_class_name"})
    raise ConfigError(f"scheduler={choice!r}: expected one of {', '.join(NAMES)}, a diffusers scheduler, or None for the repository's own")


def fresh(scheduler: Any, steps: int) -> Any:
    """Return a copy set to `steps` steps: schedulers count their steps, and each call to `sample` needs its own count.

    Its timesteps stay on the CPU, where schedulers read them without waiting for the accelerator.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps, device="cpu")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return scheduler


def check_scheduler(name: str, scheduler: Any) -> None:
    """Raise if a scheduler was changed after its configuration built it, such as by ``set_shift``.

    The configuration alone is saved and in the fingerprint. Of a class that is not diffusers' own, only the noise levels and the
    scale of the first noise are compared.

    Args:
        name: of the scheduler, for the message.
        scheduler: before or after its use; what a run leaves behind is not compared.

    Raises:
        ConfigError: naming the attribute, and how to set it so that it is saved.

    Example:
        >>> from diffusers import FlowMatchEulerDiscreteScheduler
        >>> check_scheduler("scheduler", FlowMatchEulerDiscreteScheduler(shift=6.0))
    """
    kind = type(scheduler)
    rebuilt = kind.from_config(scheduler.config)
    passing = _OF_A_RUN | _OF_A_RUN_OF.get(kind.__name__, set())
    compared = vars(scheduler).keys() - passing
    if not kind.__module__.startswith("diffusers."):
        compared &= {*_NOISE_LEVELS, "init_noise_sigma"}
    for attribute in sorted(compared):
        own = vars(scheduler)[attribute]
        if hasattr(rebuilt, attribute) and _differs(own, getattr(rebuilt, attribute)):
            raise ConfigError(_changed(name, scheduler, attribute, own, getattr(rebuilt, attribute)))


def _changed(name: str, scheduler: Any, attribute: str, own: Any, expected: Any) -> str:
    kind = type(scheduler).__name__
    if attribute in _NOISE_LEVELS and isinstance(own, Tensor):
        return (
            f"{name}.{attribute} of the {kind} was changed after it was built: give the noise levels to its "
            "constructor (trained_betas=…), whose arguments are saved"
        )
    if callable(own):
        return f"{name}.{attribute} of the {kind} was replaced, and a fingerprint cannot tell what it does: build the scheduler without it"
    values = "is not what" if isinstance(own, Tensor | np.ndarray) else f"is {own!r}, where"
    expects = "" if isinstance(own, Tensor | np.ndarray) else f" {expected!r}"
    setting = attribute.lstrip("_")
    advice = f"{kind}.from_config(pipe.scheduler.config, {setting}={own!r}) is one whose configuration holds it"
    if setting not in scheduler.config or isinstance(own, Tensor | np.ndarray):
        advice = "set it back"
    return (
        f"{name}.{attribute} of the {kind} {values} its configuration gives{expects}, and what was set afterwards is neither saved nor in "
        f"the fingerprint: {advice}"
    )


def _differs(own: Any, expected: Any) -> bool:
    if isinstance(own, Tensor | np.ndarray) and isinstance(expected, Tensor | np.ndarray):
        a, b = (torch.as_tensor(value).cpu() for value in (own, expected))
        return a.shape != b.shape or not torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-7, equal_nan=True)
    if isinstance(own, list | tuple) and isinstance(expected, list | tuple):
        return len(own) != len(expected) or any(map(_differs, own, expected))
    plain = bool | int | float | str | None
    if isinstance(own, Tensor) or isinstance(expected, Tensor):  # one of a single value
        return bool(float(own) != float(expected))
    if isinstance(own, plain) or isinstance(expected, plain):
        return bool(own != expected)
    # A method that was replaced on the object; functions that the constructor makes differ by their identity alone.
    return callable(own) and getattr(expected, "__func__", None) is not None and getattr(own, "__func__", None) is not expected.__func__
