"""Find a pipeline's output size, and what it must be a multiple of."""

from __future__ import annotations

from typing import Any

__all__ = ["multiple_of", "own_size"]


def own_size(pipe: Any) -> tuple[int, int]:
    """Return the (height, width) of a pipeline's images by default."""
    network: Any = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    side: Any = getattr(getattr(network, "config", None), "sample_size", None) or getattr(pipe, "default_sample_size", 128)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return int(height * _shrinks(pipe)), int(width * _shrinks(pipe))


def multiple_of(pipe: Any) -> int:
    """Return what height and width must be multiples of: the pixels of a latent, or of a patch of latents."""
    if getattr(pipe, "movq", None) is not None:  # Kandinsky's latents come in squares
        return _shrinks(pipe) ** 2
    patches = getattr(pipe, "transformer", None) is not None and not type(pipe).__name__.startswith("Sana")  # whose patches are 1 x 1
    return _shrinks(pipe) * (2 if patches else 1)


def _shrinks(pipe: Any) -> int:
    found: Any = getattr(pipe, "vae_scale_factor", None) or getattr(pipe, "movq_scale_factor", None)
    if found is None and (movq := getattr(pipe, "movq", None)) is not None:
        found = 2 ** (len(movq.config.block_out_channels) - 1)
    return int(found or 8)
