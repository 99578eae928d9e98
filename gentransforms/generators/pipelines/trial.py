"""Whether the images of a pipeline are functions of their source and seed alone: tried out, before a batch is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gentransforms.errors import GeneratorError

__all__ = ["find_dependence"]


def find_dependence(make: Callable[[Sequence[int]], Tensor], what: str, pipeline: str, dtype: torch.dtype) -> str | None:
    """Return why two images cannot be made in one call; None if they are the same alone and together, in both orders.

    Args:
        make: returns the images (N, 3, h, w) float32 of these rows, 0 and 1, in one call.
        what: what the rows are, for the reason: ``"sources"`` or ``"variants"``.
        pipeline: its name, for the error.
        dtype: in which it computes.

    Raises:
        GeneratorError: if an image differs from one call to the next, so that no way of calling can help.
    """
    alone = [make([0]), make([1])]
    reason = None
    for order in ([0, 1], [1, 0]):
        try:
            found = make(order)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a pipeline raises where it takes no batch
            reason = f"it takes no batch of {what} ({next(iter(str(error).splitlines()), type(error).__name__)})"
            break
        if not all(_agree(found[row : row + 1], alone[i], dtype) for row, i in enumerate(order)):
            reason = "its images depend on what else is in the batch"
            break
    if reason is not None and not _agree(make([0]), alone[0], dtype):
        raise GeneratorError(
            f"{pipeline} makes another image of the same source and rng with each call: something in it draws from torch's global random "
            "state, or remembers earlier calls; build the generator from a pipeline without it"
        )
    return reason


def _agree(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Whether images are equal but for rounding: small in float32, while many steps amplify that of types with fewer bits."""
    if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return False
    difference = (a - b).abs().nan_to_num()
    if torch.finfo(dtype).bits >= 32:
        return bool(difference.max() <= (1e-4 if a.device.type == "cpu" else 1e-3))  # GPUs may multiply in TF32
    return bool(difference.mean() <= 1e-2)
