"""Test, before the first batch, whether a pipeline's images depend on their source and seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gentransforms.errors import GeneratorError
from gentransforms.generators.diffusion.describe import describe_part
from gentransforms.generators.generate import is_out_of_memory
from gentransforms.generators.identity import uncompiled

__all__ = ["Undecided", "check_repeatable", "describe_setup", "find_dependence", "reads_alike"]

# In types with fewer bits than float32, where rounding grows from step to step. It has no direction, so that it changes the mean of an
# image far less than its pixels: no more than half a step of 8 bits.
_ROUNDING, _SHIFT = 1e-2, 0.5 / 255
# In float32, between an image made of a tensor and of a picture: a tensor may be resized without steps of 8 bits.
_READ = 2e-3


class Undecided(Exception):
    """An image of a trial is not finite, so that nothing can be told from it: NaN equals NaN, whatever else is in the batch."""


def describe_setup(pipe: Any) -> tuple[str, ...]:
    """Return what the results of a trial depend on beside weights and options, to see whether it has to be repeated.

    These are the classes of the parts of a pipeline, the settings of its scheduler, and the attention processors of its networks, as
    those of an IP-Adapter. A LoRA is none of it: it changes weights, and images see no more of each other than before.

    Args:
        pipe: a diffusers pipeline.
    """
    found = []
    for name, part in sorted(vars(pipe).items()):
        if name not in pipe.config or part is None:
            continue
        part = uncompiled(part)
        settings = describe_part(part) if hasattr(part, "set_timesteps") else ""
        processors = sorted({_kind(processor) for processor in getattr(part, "attn_processors", {}).values()})
        found.append(f"{name}: {_kind(part)} {settings} {processors}")
    return tuple(found)


def _kind(part: Any) -> str:
    return f"{type(part).__module__}.{type(part).__qualname__}"


def find_dependence(make: Callable[[Sequence[int]], Tensor], what: str, pipeline: str, dtype: torch.dtype) -> str | None:
    """Return why two images cannot be made in one call; None if they are the same alone and together, in both orders.

    In types with fewer bits than float32, where a batch of another size is rounded in another way, a batch of the same size shows more:
    an image must not change when the other one is replaced.

    Args:
        make: returns the images (N, 3, h, w) float32 of these rows, 0 and 1, in one call.
        what: what the rows are, for the reason: ``"sources"`` or ``"variants"``.
        pipeline: its name, for the error.
        dtype: in which it computes.

    Raises:
        GeneratorError: if an image differs from one call to the next, so that no way of calling can help.
        Undecided: if an image is not finite.
    """
    alone = [make([0]), make([1])]
    if not all(image.isfinite().all() for image in alone):
        raise Undecided
    orders = [(0, 1), (1, 0)] if torch.finfo(dtype).bits >= 32 else [(0, 1), (1, 0), (0, 0), (1, 1)]
    together: dict[tuple[int, ...], Tensor] = {}
    reason = None
    for order in orders:
        try:
            found = make(order)
        except Exception as error:  # whatever a pipeline raises where it takes no batch
            if is_out_of_memory(error):
                raise
            reason = f"it takes no batch of {what} ({next(iter(str(error).splitlines()), type(error).__name__)})"
            break
        together[order] = found
        others = [(alone[i], dtype) for i in order]
        if order[0] == order[1]:  # the rest of the same call but for one row: rounded alike
            others = [(together[order[0], 1 - order[0]][:1], torch.float32), (together[1 - order[0], order[0]][1:], torch.float32)]
        if not all(_agree(found[row : row + 1], other, bits) for row, (other, bits) in enumerate(others)):
            reason = "its images depend on what else is in the batch"
            break
    if reason is not None:
        check_repeatable(lambda: make([0]), alone[0], pipeline, dtype)
    return reason


def check_repeatable(make: Callable[[], Tensor], expected: Tensor, pipeline: str, dtype: torch.dtype) -> None:
    """Check that a pipeline reproduces an image.

    Args:
        make: returns it, in another call with the same source and rng.
        expected: what an earlier call made.
        pipeline: its name, for the error.
        dtype: in which it computes.

    Raises:
        GeneratorError: if the image differs from one call to the next.
    """
    if not _agree(make(), expected, dtype):
        raise GeneratorError(
            f"{pipeline} makes another image of the same source and rng with each call: something in it draws from torch's global random "
            "state, or remembers earlier calls; build the generator from a pipeline without it"
        )


def reads_alike(by_tensor: Tensor, by_picture: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a pipeline made the same image of a tensor and of the PIL image of the same pixels, but for rounding.

    One that takes tensors for something else than pixels in [0, 1], such as normalised ones, makes another image.
    """
    if torch.finfo(dtype).bits >= 32:
        return bool((by_tensor - by_picture).nan_to_num().abs().max() <= _READ)
    return _agree(by_tensor, by_picture, dtype)


def _agree(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Whether images are equal but for rounding: small in float32, while many steps amplify that of types with fewer bits."""
    if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return False
    difference = (a - b).nan_to_num()
    if torch.finfo(dtype).bits >= 32:
        return bool(difference.abs().max() <= (1e-4 if a.device.type == "cpu" else 1e-3))  # GPUs may multiply in TF32
    shift = difference.mean((-2, -1)).abs().max()
    return bool(difference.abs().mean() <= _ROUNDING and shift <= _SHIFT)
