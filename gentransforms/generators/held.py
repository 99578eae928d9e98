"""Run a generator on a batch as the transforms need it: in micro-batches, checked, whatever surrounds the call."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gentransforms.errors import GeneratorError, MissingInputError
from gentransforms.generators.base import ImageGenerator
from gentransforms.seeding import check_seeds

__all__ = ["check_inputs", "check_output", "generate", "is_out_of_memory", "no_autocast"]


def generate(
    generator: ImageGenerator, images: Tensor, seeds: Tensor, inputs: Mapping[str, Any], max_batch_size: int | None = None
) -> tuple[Tensor, Tensor, int | None]:
    """Return generated images, which of them are finite, and the micro-batch that fitted into memory.

    Args:
        generator: in eval mode.
        images: (B, 3, H, W) float32 in [0, 1], any device.
        seeds: (B,) int64 on the CPU.
        inputs: one value per image for each name of ``generator.inputs`` that is given: tensors or lists of length B.
        max_batch_size: largest micro-batch; None for all at once.

    Returns:
        images (B, 3, *image_size) float32 in [0, 1] on the generator's device, finite (B,) bool, the micro-batch.

    Raises:
        GeneratorError: if the generator returns another shape, dtype, device or count.

    Example:
        >>> import torch
        >>> from gentransforms.testing import FakeGenerator
        >>> made, finite, _ = generate(FakeGenerator(), torch.rand(2, 3, 16, 16), torch.tensor([1, 2]), {})
        >>> made.shape, finite.tolist()
        (torch.Size([2, 3, 16, 16]), [True, True])
    """
    check_seeds(seeds, len(images))
    check_inputs(generator, inputs)
    images = images.to(generator.device, non_blocking=True)
    inputs = {name: v.to(generator.device, non_blocking=True) if isinstance(v, Tensor) else v for name, v in inputs.items()}
    parts: list[Tensor] = []
    start, size, too_many = 0, max_batch_size or len(images), 0
    while start < len(images):
        stop = min(start + size, len(images))
        rows = slice(start, stop)
        try:
            with torch.no_grad(), no_autocast(generator.device):
                made = generator(images[rows], seeds[rows], **{name: value[rows] for name, value in inputs.items()})
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or stop - start == 1:
                raise
            too_many = max(too_many, stop - start)
        else:
            check_output(generator, made, stop - start)
            parts.append(made)
            start = stop
            continue
        # Out of the except clause, so that the traceback no longer holds the tensors of the attempt.
        size = max_batch_size = (stop - start + 1) // 2
        if generator.device.type == "cuda":
            torch.cuda.empty_cache()
    if too_many:
        warnings.warn(
            f"out of memory at a batch of {too_many} in {type(generator).__name__}: going on with at most {size}; "
            f"set max_batch_size={size} to start there",
            stacklevel=2,
        )
    parts = parts or [torch.empty(0, 3, *generator.image_size, device=generator.device)]
    made = parts[0] if len(parts) == 1 else torch.cat(parts)
    finite = made.isfinite().flatten(1).all(dim=1)
    return made.clamp(0, 1), finite, max_batch_size


def no_autocast(device: torch.device) -> contextlib.ExitStack:
    """Disable autocast for the CPU and for `device`: a surrounding one would change the generator's arithmetic."""
    stack = contextlib.ExitStack()
    for kind in {"cpu", device.type}:
        if torch.amp.is_autocast_available(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator and some backends raise a plain RuntimeError.
    text = str(error).lower()
    return any(sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed"))


def check_inputs(generator: ImageGenerator, inputs: Mapping[str, Any]) -> None:
    """Raise unless everything is there that the generator needs beside the images.

    Raises:
        MissingInputError: naming what is missing.
    """
    for name in generator.required_inputs:
        if name not in inputs:
            raise MissingInputError(
                f"{name} are missing: {type(generator).__name__}.encode needs them; give the transform "
                f"inputs_getter=lambda sample: {{{name!r}: …}} with one value per image"
            )


def check_output(generator: ImageGenerator, made: object, count: int) -> None:
    """Raise unless `made` is what a generator's `sample` has to return for `count` seeds.

    Raises:
        GeneratorError: naming what it is instead.
    """
    name, expected = type(generator).__name__, (count, 3, *generator.image_size)
    if not isinstance(made, Tensor):
        raise GeneratorError(f"{name}.sample returned a {type(made).__name__}: expected a tensor of shape {expected}")
    if tuple(made.shape) != expected:
        raise GeneratorError(f"{name}.sample returned shape {tuple(made.shape)}: expected {expected} (B, 3, *image_size)")
    if made.dtype != torch.float32:
        raise GeneratorError(f"{name}.sample returned dtype {made.dtype}: expected torch.float32, whatever the weights' dtype")
    if made.device != generator.device:
        raise GeneratorError(f"{name}.sample returned a tensor on {made.device}: expected {generator.device}, where its weights are")
