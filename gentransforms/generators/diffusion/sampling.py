"""The sampling loop shared by all diffusion generators: noise from seeds, denoising steps, decoding.

Image by image, it gives what the pipelines of diffusers give when each image has its own rng, but for any number of images with
any conditions, in one UNet call per step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gentransforms.generators.diffusion.brownian import set_noise
from gentransforms.generators.diffusion.faster.steps import Step

__all__ = ["decode", "denoise", "draw", "make_rngs", "scale_latents", "to_latents"]


def make_rngs(seeds: Tensor) -> list[torch.Generator]:
    """Return one CPU rng for each of seeds (B,): draws are made in the order of the diffusers pipelines."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds.tolist()]


def draw(rngs: Sequence[torch.Generator], shape: Sequence[int], like: Tensor) -> Tensor:
    """Return (B, *shape) standard normal noise, row i from rng i: drawn in float32 on the CPU, then moved to where `like` is."""
    noise = torch.empty((len(rngs), *shape), dtype=torch.float32, device="cpu")
    for row, rng in zip(noise, rngs, strict=True):
        torch.randn(tuple(shape), generator=rng, out=row, dtype=torch.float32, device="cpu")
    return noise.to(like.device, like.dtype, non_blocking=True)


def denoise(
    predict: Callable[[Tensor, Tensor, Step], Tensor],
    scheduler: Any,
    latents: Tensor,
    rngs: Sequence[torch.Generator],
    steps: Sequence[Step],
    *,
    guidance_scale: float = 1.0,
    eta: float = 0.0,
) -> Tensor:
    """Return latents (B, C, h, w) after the scheduler's last steps.

    Args:
        predict: from noisy latents (B or 2 B, C, h, w), a timestep (0-dim, on their device) and the step to the network's
            prediction of the same shape. In a guided step the first B rows are unconditional, the last B conditional.
        scheduler: set to its timesteps, on the CPU.
        latents: (B, C, h, w), at the noise level of the first of `steps`.
        rngs: one for each image, for schedulers that add noise at each step.
        steps: what each step does; these are the last timesteps of the scheduler, and all of them unless images start from less than
            full noise.
        guidance_scale: of classifier-free guidance (Ho and Salimans, 2022).
        eta: noise of DDIM (Song et al., ICLR 2021), from 0 to 1; other schedulers have none.
    """
    accepted = inspect.signature(scheduler.step).parameters
    extra = {name: value for name, value in {"eta": eta, "generator": list(rngs)}.items() if name in accepted}
    set_noise(scheduler, latents, rngs)
    timesteps = scheduler.timesteps[len(scheduler.timesteps) - len(steps) :]
    # The network reads its timestep on the device, the scheduler on the CPU, so that neither waits for the other.
    on_device = timesteps.to(latents.device, non_blocking=True)
    for t, t_device, step in zip(timesteps, on_device, steps, strict=True):
        noisy = scheduler.scale_model_input(latents, t)
        if step.guided:
            without, with_condition = predict(torch.cat([noisy, noisy]), t_device, step).chunk(2)
            predicted = without + guidance_scale * (with_condition - without)
        else:
            predicted = predict(noisy, t_device, step)
        # Some schedulers compute in float32 whatever they are given.
        latents = scheduler.step(predicted, t, latents, **extra, return_dict=False)[0].to(latents.dtype)
    return latents


def decode(vae: Any, latents: Tensor, rngs: Sequence[torch.Generator], slice_size: int | None = None) -> Tensor:
    """Return images (B, 3, H, W) float32 in [0, 1] of latents (B, C, h, w), `slice_size` at once; NaN stays NaN.

    A decoder that is itself a diffusion model (the consistency decoder) draws the noise of image i from rng i.
    """
    mean, std = _statistics(vae, latents)
    latents = (latents / vae.config.scaling_factor * std + mean).to(vae.dtype)
    size = slice_size or max(1, len(latents))
    drawing = getattr(vae, "decoder_scheduler", None) is not None
    parts = []
    for i, part in enumerate(torch.split(latents, size)):
        options = {"generator": list(rngs[i * size : (i + 1) * size])} if drawing else {}
        parts.append(vae.decode(part, **options, return_dict=False)[0].float())
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def to_latents(vae: Any, images: Tensor) -> dict[str, Tensor]:
    """Return what the latents of images (B, 3, H, W) in [0, 1] are drawn from: ``latents``, and ``latents_std`` where they are drawn.

    Both (B, C, h, w), in the units of the VAE.
    """
    encoded = vae.encode((2 * images - 1).to(vae.dtype))
    if hasattr(encoded, "latent_dist"):
        return {"latents": encoded.latent_dist.mean, "latents_std": encoded.latent_dist.std}
    return {"latents": encoded.latents}


def scale_latents(vae: Any, latents: Tensor) -> Tensor:
    """Return latents in the units of the UNet."""
    mean, std = _statistics(vae, latents)
    scaled: Tensor = (latents - mean) / std * vae.config.scaling_factor
    return scaled


def _statistics(vae: Any, like: Tensor) -> tuple[Any, Any]:
    """Return the mean and standard deviation to normalise a VAE's latents by, each (1, C, 1, 1); 0 and 1 if it specifies none."""
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        return 0.0, 1.0
    return tuple(torch.tensor(v, dtype=like.dtype).view(1, -1, 1, 1).to(like.device, non_blocking=True) for v in (mean, std))  # type: ignore[return-value]
