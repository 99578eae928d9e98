"""Check how much of a source a pipeline is asked to redraw: in range, and with a step left to do it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.options import check_number
from gentransforms.generators.pipelines.calls import inner_pipelines, source_of_call

__all__ = ["check_strength"]

# Other ways to say which steps are run.
_OTHER = ("timesteps", "sigmas", "denoising_start")


def check_strength(pipe: Any, options: Mapping[str, Any]) -> None:
    """Check the option `strength` of pipelines in which it is the share of the steps that are run, and its default with few steps.

    Args:
        pipe: a diffusers pipeline; it, or one inside it, does the steps that its ``get_timesteps`` returns.
        options: those of its call that were given.

    Raises:
        ConfigError: if `strength` is not from 0 to 1, or leaves no step.
    """
    taken = inspect.signature(type(pipe).__call__).parameters
    stepping = next((each for each in (pipe, *inner_pipelines(pipe)) if "strength" in _parameters(each, "get_timesteps")), None)
    if stepping is None or not {"strength", "num_inference_steps"} <= taken.keys():
        return
    strength, steps = (options.get(name, taken[name].default) for name in ("strength", "num_inference_steps"))
    if "strength" in options:
        check_number("strength", strength, 0, 1)
    if type(steps) is not int or any(options.get(name) is not None for name in _OTHER):
        return
    if _count_left(stepping, steps, strength, options) == 0:
        advice = "raise it, or num_inference_steps" if strength else "raise it"
        raise ConfigError(f"strength={strength!r}: no step is left of num_inference_steps={steps}; {advice}")


def _count_left(pipe: Any, steps: int, strength: Any, options: Mapping[str, Any]) -> int | None:
    """Return how many timesteps a pipeline would run; None if only its call can tell.

    The pipeline itself says so, on copies of it and of its scheduler: some round up, some down, and PNDM has a timestep more.
    """
    trial = copy.copy(pipe)
    scheduler = vars(trial)["scheduler"] = copy.deepcopy(pipe.scheduler)  # past diffusers' __setattr__, which would note it
    if "self.get_timesteps(" not in source_of_call(pipe):
        if "strength" not in _parameters(scheduler, "set_timesteps"):
            return None
        given = {name: options[name] for name in ("original_inference_steps",) if options.get(name) is not None}
        try:  # latent consistency models, whose scheduler takes the strength
            scheduler.set_timesteps(steps, strength=strength, **given)
        except ValueError as error:
            raise ConfigError(f"strength={strength!r}, num_inference_steps={steps}: {error}") from error
        return None
    for shift in ({}, {"mu": 1.0}):  # that of the noise levels, which some schedulers need; how many there are does not depend on it
        try:
            scheduler.set_timesteps(steps, **shift)
            return len(trial.get_timesteps(steps, strength, "cpu")[0])
        except Exception:  # whatever a scheduler raises that needs more: the call gives it, and raises itself
            continue
    return None


def _parameters(owner: Any, method: str) -> Mapping[str, inspect.Parameter]:
    function = getattr(type(owner), method, None)
    return inspect.signature(function).parameters if callable(function) else {}
