"""Hold a frozen generator in a module without registering it."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gentransforms.errors import ConfigError, DeviceError, GeneratorError, WeightsError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.expected import check_is_generator
from gentransforms.generators.generate import check_inputs, generate
from gentransforms.generators.sending import drop_block, send_as_block
from gentransforms.generators.turns import take_turn
from gentransforms.surroundings import isolate, isolate_thread

__all__ = ["HeldGenerator", "HoldsGenerator"]


class HeldGenerator:
    """A permanently frozen generator that is not part of the module that holds it.

    It is not an `nn.Module`, so it hides the generator from everything that walks a model: ``apply``, ``parameters``,
    ``state_dict``, optimisers, averaged copies, distributed wrappers. The generator is put into eval mode and its gradients
    are disabled.

    A deep copy holds its own generator, with weights that share memory until one of the two is moved. A pickle contains the
    generator, but nothing that was recorded in this process. Processes that are started with it share one copy of its weights.

    Args:
        generator: the generator to hold.

    Attributes:
        nonfinite: how many images held NaN or infinity: a tensor on the generator's device, so that counting costs no sync.

    Raises:
        ConfigError: if `generator` is not an `ImageGenerator`.
        GeneratorError: if it lacks a valid `image_size` or `preserves_geometry`.

    Example:
        >>> import copy, torch
        >>> from gentransforms.testing import FakeGenerator
        >>> held = HeldGenerator(FakeGenerator())
        >>> held.generator.training
        False
        >>> copy.deepcopy(held).generator.strength.data_ptr() == held.generator.strength.data_ptr()
        True
    """

    nonfinite: Tensor

    def __init__(self, generator: ImageGenerator) -> None:
        _check_generator(generator)
        with isolate():
            _leave_inference_mode(generator)
            self.generator = generator.eval().requires_grad_(False)
        send_as_block(self.generator)
        self._forget()

    def run(
        self, images: Tensor, seeds: Tensor, inputs: Mapping[str, Any], max_batch_size: int | None
    ) -> tuple[Tensor, Tensor, int | None]:
        """Return what `generate` does, in eval mode; count images that are not finite, and warn about them once.

        Raises:
            DeviceError: with a CUDA generator in a forked process.
            WeightsError: if the generator's weights have no values, and the images have.
        """
        generator, device = self.generator, self.generator.device
        if device.type == "cuda" and os.getpid() != self._process:
            raise DeviceError(
                f"the generator is on {device} and this is a forked process (a DataLoader worker?), where CUDA does not work: "
                "apply the transform to batches in the main process, or read pre-generated variants from a bank"
            )
        if device.type == "meta" and not images.is_meta:
            raise WeightsError(
                f"generator: the weights of {type(generator).__name__} are on the meta device, without values: build or load it outside of "
                "torch.device('meta') and of empty-weights contexts"
            )
        if images.is_meta and device.type != "meta":  # no pixels, so only the shape of the result is known
            made = torch.empty(len(images), 3, *generator.image_size, dtype=torch.float32, device="meta")
            return made, torch.empty(len(images), dtype=torch.bool, device="meta"), max_batch_size
        if device.type == "cpu" != images.device.type:
            self._warn_of_device(images.device)
        with take_turn(generator):
            made, finite, size, bad = self._count(images, seeds, inputs, max_batch_size)
        self._warn_of_nonfinite(bad, len(images))
        return made, finite, size

    def _count(
        self, images: Tensor, seeds: Tensor, inputs: Mapping[str, Any], max_batch_size: int | None
    ) -> tuple[Tensor, Tensor, int | None, Tensor]:
        """Return what `generate` does, and how many images are not finite, which are added to the count."""
        generator, device = self.generator, self.generator.device
        if _any_training(generator):  # someone with a reference to the generator called its train()
            generator.eval()
        if device.type != "cpu" and not self._called:  # as for the range of images: later calls do not wait for the device
            check_inputs(generator, {name: _on_cpu(value) for name, value in inputs.items()}, len(images))
        made, finite, size = generate(generator, images, seeds, inputs, max_batch_size)
        with isolate_thread():
            bad = (~finite).sum()
            if self.nonfinite.device != bad.device:  # the first call, or the generator was moved
                self.nonfinite = self.nonfinite.to(bad.device)
            self.nonfinite = self.nonfinite + bad  # not in place: torch.func refuses that for what a function did not make
        return made, finite, size, bad

    def follow(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move the generator to the device to which `fn`, the argument of `nn.Module._apply`, moves tensors; keep its dtype.

        It does not follow to the ``meta`` device, and ``to_empty`` moves the weights with their values. A generator whose pipeline came
        offloaded, by hooks of the user's, stays where it computes.
        """
        here = self.generator.device
        if here.type == "meta":
            return
        with isolate_thread(), torch.no_grad():
            there = fn(torch.empty(0, dtype=torch.float32, device=here))
        if there.is_meta:
            return
        if there.device != here:
            if self.generator._is_held_in_place:
                return
            self.generator.to(there.device)
            drop_block(self.generator)
            self._process = os.getpid()  # moved in this process, so usable in it
        elif here.type == "cpu" and there.is_shared():  # type: ignore[no-untyped-call]
            self.generator.share_memory()

    def __deepcopy__(self, memo: dict[int, Any]) -> HeldGenerator:
        other = HeldGenerator.__new__(HeldGenerator)
        other.__dict__.update(self.__dict__)
        with take_turn(self.generator), isolate():  # under inference mode too, ordinary tensors
            other.generator, other.nonfinite = self._copy_generator(memo), self.nonfinite.clone()
        send_as_block(other.generator)
        return other

    def _copy_generator(self, memo: dict[Any, Any]) -> ImageGenerator:
        """Return a copy whose weights share memory with this one's; modules that hold the same generator get the same copy."""
        key = ("gentransforms.held", id(self.generator))
        if key not in memo:
            # Kept until the copy is made, because ids come again: a generator that takes its hooks off to be copied frees the
            # placeholders (on the meta device) of the weights that it copies.
            tensors = [*self.generator.parameters(), *self.generator.buffers()]
            shared = (t for t in tensors if id(t) not in memo and type(t) in (Tensor, nn.Parameter) and not t.is_meta)
            shares = {id(t): _share(t) for t in shared}
            # In a memo of its own: what else the copied model has of these tensors, such as a backbone that the generator uses, it
            # trains, so they must not share memory with those of the model that is copied.
            memo[key] = copy.deepcopy(self.generator, {**memo, **shares})
            memo.setdefault(id(memo), []).append(self.generator)  # as `copy` does: it must live on, because ids come again
        copied: ImageGenerator = memo[key]
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {"generator": self.generator}  # without the process and its counts, so that equal transforms have equal pickles

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.generator = state["generator"]
        send_as_block(self.generator)
        self._forget()  # unpickled (spawn, forkserver) rather than forked

    def _forget(self) -> None:
        self._process, self._called, self._warned, self._warned_of_device = os.getpid(), False, False, False
        with isolate_thread():
            self.nonfinite = torch.zeros((), dtype=torch.int64)  # moved to the device of the first images

    def _warn_of_device(self, device: torch.device) -> None:
        if not self._warned_of_device:
            self._warned_of_device = True
            warnings.warn(
                f"the images are on {device} and {type(self.generator).__name__} is on the CPU, where it is slow: call "
                f".to({str(device)!r}) of the transform itself; v2.Compose and FSDP do not move what they hold with the model",
                stacklevel=2,
            )

    def _warn_of_nonfinite(self, bad: Tensor, count: int) -> None:
        # On an accelerator only in the first call, because reading the number waits for the device.
        look = not self._warned and not bad.is_meta and (bad.device.type == "cpu" or not self._called)
        self._called = True
        if not look or not (found := int(bad)):
            return
        self._warned = True
        half = "; float16 overflows where bfloat16 does not" if self.generator.dtype == torch.float16 else ""
        warnings.warn(
            f"{found} of {count} images that {type(self.generator).__name__} generated hold NaN or infinity: their source is kept; "
            f"nonfinite_count counts them{half}",
            stacklevel=2,
        )


class HoldsGenerator(nn.Module):
    """A mixin for modules that hold a generator as an attribute that is not a submodule.

    The generator follows the module to another device. Call `_hold` in the constructor.
    """

    _held: HeldGenerator
    max_batch_size: int | None

    def _hold(self, generator: ImageGenerator, max_batch_size: int | None) -> None:
        if max_batch_size is not None and not (type(max_batch_size) is int and max_batch_size > 0):
            raise ConfigError(f"max_batch_size={max_batch_size!r}: expected a positive integer or None")
        self.__dict__["_held"] = HeldGenerator(generator)
        self.max_batch_size = max_batch_size

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module would register a module before it looks for a property.
        if name == "generator":
            self.__dict__["_held"] = HeldGenerator(value)
        else:
            super().__setattr__(name, value)

    @property
    def generator(self) -> ImageGenerator:
        """The generator: frozen, in eval mode, and not among this module's parameters or state."""
        return self._held.generator

    @property
    def nonfinite_count(self) -> int:
        """How many images generated in this process held NaN or infinity, so that their source was kept."""
        return int(self._held.nonfinite)

    def _generate(self, images: Tensor, seeds: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return (B, 3, *image_size) float32 images on the generator's device, and which are finite, (B,) bool."""
        made, finite, self.max_batch_size = self._held.run(images, seeds, inputs, self.max_batch_size)
        return made, finite

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._held.follow(fn)
        return self


def _check_generator(generator: ImageGenerator) -> None:
    check_is_generator(generator)
    size, keeps = getattr(generator, "image_size", None), getattr(generator, "preserves_geometry", None)
    if not (isinstance(size, tuple | list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise GeneratorError(f"{type(generator).__name__}.image_size is {size!r}: expected (height, width) in pixels")
    if not isinstance(keeps, bool):
        raise GeneratorError(f"{type(generator).__name__}.preserves_geometry is {keeps!r}: expected True or False")


def _any_training(module: nn.Module) -> bool:
    """Whether a module or a part of it is in training mode; a bare walk, because this is asked in every call."""
    found: list[Any] = [module]
    for part in found:  # which grows as it goes
        if part.training:
            return True
        if part._modules:
            found.extend(child for child in part._modules.values() if child is not None)
    return False


def _leave_inference_mode(module: nn.Module) -> None:
    """Replace weights that were created in inference mode, and cannot be moved or changed outside it, with copies."""
    copies: dict[int, Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_inference():
                    if id(tensor) not in copies:
                        new = tensor.detach().clone()
                        copies[id(tensor)] = nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new
                    tensors[name] = copies[id(tensor)]  # type: ignore[assignment]


def _on_cpu(value: Any) -> Any:
    """Return an input with its tensors on the CPU; what is there, or has no values, is returned itself."""
    if isinstance(value, Tensor):
        return value if value.is_meta else value.cpu()
    return [_on_cpu(v) for v in value] if isinstance(value, list | tuple) else value


def _share(tensor: Tensor) -> Tensor:
    """Return another tensor, or parameter, that shares the same memory."""
    shared = tensor.detach()
    if isinstance(tensor, nn.Parameter):
        shared = nn.Parameter(shared, requires_grad=tensor.requires_grad)
    shared.__dict__.update(tensor.__dict__)
    return shared
