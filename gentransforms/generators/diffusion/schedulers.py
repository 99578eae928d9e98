"""Schedulers by name: the settings that decide which noise levels a sampler visits, and how it steps between them."""

from __future__ import annotations

import copy
from typing import Any

from gentransforms.errors import ConfigError

__all__ = ["NAMES", "build_scheduler", "fresh"]

# Class in diffusers, and what the name changes in the repository's own configuration.
_BY_NAME: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
NAMES = tuple(_BY_NAME)


def build_scheduler(choice: Any, own: Any) -> Any:
    """Return a scheduler that nothing else steps.

    Args:
        choice: one of `NAMES`, taking over the noise schedule and prediction type of `own`; a diffusers scheduler, or its
            class and configuration as saved; or None for `own` as it is.
        own: the repository's scheduler.

    Raises:
        ConfigError: if the choice is none of these.

    Example:
        >>> from diffusers import PNDMScheduler
        >>> own = PNDMScheduler(prediction_type="v_prediction")
        >>> scheduler = build_scheduler("ddim", own)
        >>> type(scheduler).__name__, scheduler.config.timestep_spacing, scheduler.config.rescale_betas_zero_snr
        ('DDIMScheduler', 'trailing', True)
    """
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
