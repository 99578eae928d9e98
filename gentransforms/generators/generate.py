"""Run a generator on a batch, in micro-batches where memory asks for them, and check what goes in and comes out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import _set_fwd_grad_enabled  # `no_grad` is for reverse mode alone

from gentransforms.errors import GeneratorError, MissingInputError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.placement import with_index
from gentransforms.generators.turns import take_turn
from gentransforms.images import to_device
from gentransforms.seeding import check_seeds
from gentransforms.surroundings import isolate, isolate_thread
from gentransforms.wording import name_type

__all__ = ["check_inputs", "check_output", "generate", "is_out_of_memory"]


def generate(
    generator: ImageGenerator, images: Tensor, seeds: Tensor, inputs: Mapping[str, Any], max_batch_size: int | None = None
) -> tuple[Tensor, Tensor, int | None]:
    """Generate images; return them, which of them are finite, and the micro-batch size that fitted into memory.

    Args:
        generator: the generator, in eval mode.
        images: (B, 3, H, W) float32 in [0, 1], on any device.
        seeds: (B,) int64 on the CPU.
        inputs: one value per image for each available name in ``generator.inputs``: tensors or lists of length B.
        max_batch_size: largest micro-batch; None for all at once.

    Returns:
        images (B, 3, *image_size) float32 in [0, 1] on the generator's device, finite (B,) bool, the micro-batch.

    Raises:
        GeneratorError: if the generator returns another shape, dtype, device or count.
        MissingInputError: as in `check_inputs`.
        ConfigError: as there.

    Example:
        >>> import torch
        >>> from gentransforms.testing import FakeGenerator
        >>> made, finite, _ = generate(FakeGenerator(), torch.rand(2, 3, 16, 16), torch.tensor([1, 2]), {})
        >>> made.shape, finite.tolist()
        (torch.Size([2, 3, 16, 16]), [True, True])
    """
    check_seeds(seeds, len(images))
    check_inputs(generator, inputs, len(images))
    images = to_device(images, generator.device)
    inputs = {name: to_device(v, generator.device) if isinstance(v, Tensor) else v for name, v in inputs.items()}
    parts: list[Tensor] = []
    reads = generator._reads_default_dtype
    start, size, too_many = 0, max_batch_size or len(images), 0
    while start < len(images):
        stop = min(start + size, len(images))
        rows = slice(start, stop)
        try:
            surroundings = isolate(generator.device, default_dtype=reads)
            with take_turn(generator), surroundings, torch.no_grad(), _set_fwd_grad_enabled(False):
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
        # Outside the except clause, so that the traceback no longer holds the tensors of the failed batch.
        size = max_batch_size = (stop - start + 1) // 2
        if generator.device.type == "cuda":
            torch.cuda.empty_cache()
    if too_many:
        warnings.warn(
            f"out of memory at a batch of {too_many} in {type(generator).__name__}: continuing with at most {size}; "
            f"set max_batch_size={size} to start there",
            stacklevel=2,
        )
    parts = parts or [torch.empty(0, 3, *generator.image_size, dtype=torch.float32, device=generator.device)]
    with isolate_thread():  # results are ordinary tensors, under inference mode too
        made = parts[0] if len(parts) == 1 else torch.cat(parts)
        finite = made.isfinite().flatten(1).all(dim=1)
        return made.clamp(0, 1), finite, max_batch_size


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator and some backends raise a plain RuntimeError; cuDNN has "no engine" where none's workspace fits.
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "unable to find an engine")
    return any(sign in text for sign in signs)


def check_inputs(generator: ImageGenerator, inputs: Mapping[str, Any], count: int) -> None:
    """Raise unless all inputs are present that the generator needs besides the images, and those on the CPU are in range.

    To be called before they are moved to the generator's device.

    Raises:
        MissingInputError: naming what is missing.
        ConfigError: by the generator's own `ImageGenerator.check_encode_inputs`.
    """
    for name in generator.required_inputs:
        if name not in inputs:
            raise MissingInputError(
                f"{name} are missing: {type(generator).__name__}.encode needs them; give the transform "
                f"inputs_getter=lambda sample: {{{name!r}: …}} with one value per image"
            )
    order = type(generator).__mro__
    checked, encoded = (next(cls for cls in order if name in vars(cls)) for name in ("check_encode_inputs", "encode"))
    if order.index(checked) <= order.index(encoded):  # else a subclass has an `encode` of its own, which may take other inputs
        with isolate(default_dtype=generator._reads_default_dtype):
            generator.check_encode_inputs(inputs, count)


def check_output(generator: ImageGenerator, made: object, count: int) -> None:
    """Raise unless `made` is a valid result of a generator's `sample` for `count` seeds.

    Raises:
        GeneratorError: naming what was returned instead.
    """
    name, expected = type(generator).__name__, (count, 3, *generator.image_size)
    if not isinstance(made, Tensor):
        raise GeneratorError(f"{name}.sample returned {name_type(made)}: expected a tensor of shape {expected}")
    if tuple(made.shape) != expected:
        raise GeneratorError(f"{name}.sample returned shape {tuple(made.shape)}: expected {expected} (B, 3, *image_size)")
    if made.dtype != torch.float32:
        raise GeneratorError(f"{name}.sample returned dtype {made.dtype}: expected torch.float32, whatever the weights' dtype")
    if with_index(made.device) != with_index(generator.device):
        raise GeneratorError(f"{name}.sample returned a tensor on {made.device}: expected {generator.device}, where its weights are")
