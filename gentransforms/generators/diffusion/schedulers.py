"""Schedulers by name: the settings that decide which noise levels a sampler visits, and how it steps between them."""

from __future__ import annotations

import copy
from typing import Any

from gentransforms.errors import ConfigError

__all__ = ["NAMES", "build_scheduler", "fresh"]

# Class in diffusers, and what the name changes in the repository's own configuration.
_BY_NAME: dict[str, tuple[str, dict[str, Any]]] = {
    # Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (WACV 2024): the paper's settings.
    "ddim": ("DDIMScheduler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
NAMES = tuple(_BY_NAME)


def build_scheduler(choice: Any, own: Any) -> Any:
    """Return a scheduler that nobody else steps.

    Args:
        choice: one of `NAMES`, taking over the noise schedule and prediction type of `own`; a diffusers scheduler; or
            None for `own` as it is.
        own: the repository's scheduler.

    Raises:
        ConfigError: if the choice is neither.

    Example:
        >>> from diffusers import PNDMScheduler
        >>> own = PNDMScheduler(prediction_type="v_prediction")
        >>> scheduler = build_scheduler("ddim", own)
        >>> type(scheduler).__name__, scheduler.config.prediction_type, scheduler.config.timestep_spacing
        ('DDIMScheduler', 'v_prediction', 'trailing')
    """
    import diffusers

    if choice is None:
        return copy.deepcopy(own)
    if isinstance(choice, str) and choice in _BY_NAME:
        name, changes = _BY_NAME[choice]
        return getattr(diffusers, name).from_config(own.config, **changes)
    if isinstance(choice, diffusers.SchedulerMixin):
        return copy.deepcopy(choice)
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
