"""Noise of schedulers that solve stochastic differential equations: a Brownian path for each image, from its seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["set_noise"]


def set_noise(scheduler: Any, latents: Tensor, rngs: Sequence[torch.Generator]) -> None:
    """Give a scheduler that draws a Brownian path one for each image; others are left as they are.

    By themselves they draw one path for a whole batch, from torch's global state or on the device of the latents. Here row i follows
    from the seed of rng i alone, and is the same on every device. ``noise_sampler_seed`` of a scheduler's configuration gives
    all images the same path, as it does where the stock pipeline makes them one by one.

    Args:
        scheduler: set to its timesteps.
        latents: (B, C, h, w), where the noise goes.
        rngs: one for each image; only their seeds are read, and nothing is drawn from them.
    """
    bounds = _BOUNDS.get(type(scheduler).__name__)
    if bounds is None:
        return
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    fixed = scheduler.config.get("noise_sampler_seed")
    seeds = [rng.initial_seed() if fixed is None else fixed for rng in rngs]
    low, high = bounds(scheduler)
    like = torch.empty(latents.shape, dtype=torch.float32, device="cpu")
    paths = BrownianTreeNoiseSampler(like, low, high, seeds)

    def sample(*sigmas: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Should have t[ab]", UserWarning)  # torchsde rounds the ends of the path, and says so
            noise: Tensor = paths(*sigmas)
        return noise.to(latents.device, latents.dtype, non_blocking=True)

    scheduler.noise_sampler = sample


def _visited(scheduler: Any) -> tuple[float, float]:
    return scheduler.sigmas[scheduler.sigmas > 0].min().item(), scheduler.sigmas.max().item()


def _configured(scheduler: Any) -> tuple[float, float]:
    return scheduler.config.sigma_min, scheduler.config.sigma_max


# From which noise level to which the path goes, by the scheduler's class in diffusers.
_BOUNDS: dict[str, Callable[[Any], tuple[float, float]]] = {
    "DPMSolverSDEScheduler": _visited,
    "CosineDPMSolverMultistepScheduler": _configured,
}
