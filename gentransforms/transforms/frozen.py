"""What every transform that holds a generator shares: the generator is frozen, and stays out of checkpoints."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gentransforms.errors import ConfigError, DeviceError, GeneratorError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.held import generate
from gentransforms.images import check_range

__all__ = ["FrozenGenerator"]


class FrozenGenerator(nn.Module):
    """A module whose `generator` moves and copies with it, but never trains and is never saved with it.

    A mixin: call `_freeze` at the end of the constructor.
    """

    generator: ImageGenerator
    _nonfinite: Tensor

    def _freeze(self, generator: ImageGenerator, max_batch_size: int | None) -> None:
        if not isinstance(generator, ImageGenerator):
            hint = "; GenerativeAugment.from_pretrained takes a name" if isinstance(generator, str) else ""
            found = type(generator).__name__ if isinstance(generator, nn.Module) else repr(generator)
            raise ConfigError(f"generator={found}: expected an ImageGenerator{hint}")
        size, keeps = getattr(generator, "image_size", None), getattr(generator, "preserves_geometry", None)
        if not (isinstance(size, tuple | list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
            raise GeneratorError(f"{type(generator).__name__}.image_size is {size!r}: expected (height, width) in pixels")
        if not isinstance(keeps, bool):
            raise GeneratorError(f"{type(generator).__name__}.preserves_geometry is {keeps!r}: expected True or False")
        if max_batch_size is not None and not (type(max_batch_size) is int and max_batch_size > 0):
            raise ConfigError(f"max_batch_size={max_batch_size!r}: expected a positive integer or None")
        self.generator = generator.eval().requires_grad_(False)
        self.max_batch_size = max_batch_size
        # On the generator's device, so that counting costs no device sync; not persistent, so not saved.
        self.register_buffer("_nonfinite", torch.zeros((), dtype=torch.int64, device=generator.device), persistent=False)
        self._process = os.getpid()
        self._checked_devices: set[str] = set()

    @property
    def nonfinite_count(self) -> int:
        """How many generated images held NaN or infinity and were replaced by their source, so far."""
        return int(self._nonfinite)

    def _check_range(self, rows: Sequence[Tensor]) -> None:
        """Raise if floating images leave [0, 1]: on the CPU always, on another device at its first call only, for the sync."""
        devices = {row.device for row in rows if row.is_floating_point() and len(row)}
        for row in rows:
            if row.device.type == "cpu" or str(row.device) not in self._checked_devices:
                check_range(row)
        self._checked_devices |= {str(device) for device in devices if device.type != "cpu"}

    def _check_process(self) -> None:
        """Raise if this is a forked process and the generator is on a CUDA device."""
        device = self.generator.device
        if device.type == "cuda" and os.getpid() != self._process:
            raise DeviceError(
                f"the generator is on {device} and this is a forked process (a DataLoader worker?), where CUDA does not work: "
                "apply the transform to batches in the main process, or read pre-generated variants from a bank"
            )

    def _generate(self, images: Tensor, seeds: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return (B, 3, *image_size) float32 images on the generator's device and (B,) bool: which are finite."""
        # The transform may itself sit in a model that trains: whatever set the mode and the gradients, the generator's stay.
        self.generator.eval().requires_grad_(False)
        made, finite, size = generate(self.generator, images, seeds, inputs, self.max_batch_size)
        self.max_batch_size = size
        if self._nonfinite.device != finite.device:  # the generator was moved by itself
            self._nonfinite = self._nonfinite.to(finite.device)
        self._nonfinite += (~finite).sum()
        return made, finite

    def train(self, mode: bool = True) -> FrozenGenerator:
        """Set the mode of this module; the generator stays in eval mode."""
        super().train(mode)
        self.generator.eval()
        return self

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Return an empty state: the generator's weights belong to whoever made them, not to the model that holds this."""
        return OrderedDict() if destination is None else destination

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # Strict loading would report the generator's weights as missing, and an old checkpoint could overwrite them:
        # it is handed the weights it has.
        for name in [key for key in state_dict if key.startswith(f"{prefix}generator.")]:
            del state_dict[name]
        state_dict.update({f"{prefix}generator.{k}": v for k, v in self.generator.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._process = os.getpid()  # moved in this process, so usable in it
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._process = os.getpid()  # unpickled (spawn, forkserver) rather than forked
