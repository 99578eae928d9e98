"""Encode each source once, however many variants are generated from it."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["EncodeOnce"]

# Autoencoders have fewer elements, and every one is looked at. Of the largest text encoders that would cost more than encoding again.
_EVERY = 2**28
_SOME = 2**12  # of each tensor
_BLOCK = 2**18  # elements at a time, which bounds the memory


class EncodeOnce:
    """A bounded cache of encoder outputs for single sources, keyed by content.

    Each image is encoded alone, so that the result does not depend on which others are in the batch, or in the store. What a
    network made before its weights or its tiling changed is not used again. Changes that torch counts are seen, and those past
    it (``.data``) by a checksum: of all values, or beyond 270 million of some in each tensor.

    Args:
        size: largest number of results kept.
    """

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self.kept: OrderedDict[tuple[Any, bytes], Any] = OrderedDict()

    def clear(self) -> None:
        """Empty the cache, after a change of the networks' dtype or device."""
        self.kept.clear()

    def get(self, network: Any, content: bytes, make: Callable[[], Any], state: bytes | None = None) -> Any:
        """Return what `make` returned for this content and state of a network, or make it.

        Args:
            network: on which the result depends.
            content: and on what else.
            make: makes it.
            state: of the network, if it was read already.
        """
        key = (state or _state_of(network), hashlib.blake2b(content, digest_size=16).digest())
        if key not in self.kept:
            self.kept[key] = make()
        self.kept.move_to_end(key)
        while len(self.kept) > self.size:
            self.kept.popitem(last=False)
        return self.kept[key]

    @contextlib.contextmanager
    def around(self, pipe: Any) -> Iterator[None]:
        """Route a pipeline's encoding of images through the cache inside the context.

        That is its autoencoder's ``encode``, and ``encode_prompt`` where it reads the image together with the text.
        """
        coder: Any = getattr(pipe, "vae", None) or getattr(pipe, "movq", None)
        with contextlib.ExitStack() as stack:
            if hasattr(coder, "encode"):
                stack.enter_context(_replaced(coder, "encode", self._encode_images(coder)))
            if hasattr(pipe, "encode_prompt") and {"image", "prompt_embeds"} <= inspect.signature(pipe.encode_prompt).parameters.keys():
                stack.enter_context(_replaced(pipe, "encode_prompt", self._encode_prompt(pipe)))
            yield

    def _encode_images(self, coder: nn.Module) -> Callable[..., Any]:
        own: Any = coder.encode

        def encode(images: Tensor, *args: Any, **kwargs: Any) -> Any:
            if args or kwargs.keys() - {"return_dict"} or not len(images):
                return own(images, *args, **kwargs)
            how = f"encode {kwargs.get('return_dict')}"
            state = _state_of(coder)
            rows = torch.split(images, 1)
            return _joined([self.get(coder, _content(how, row), partial(own, row, **kwargs), state) for row in rows])

        return encode

    def _encode_prompt(self, pipe: Any) -> Callable[..., Any]:
        own: Any = pipe.encode_prompt

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            if args or kwargs.get("image") is None or kwargs.get("prompt_embeds") is not None:
                return own(*args, **kwargs)
            once = kwargs | {"num_images_per_prompt": 1}
            made = self.get(pipe.text_encoder, _content(*once.items()), partial(own, **once))
            named = dict(zip(("prompt_embeds", "prompt_embeds_mask"), made, strict=False))
            return own(**kwargs | named)  # repeats them for each image

        return encode_prompt


@contextlib.contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Let an object have another method, inside the context."""
    vars(owner)[name] = function
    try:
        yield
    finally:
        del vars(owner)[name]


def _state_of(network: Any) -> bytes:
    """Return a hash that changes when weights are replaced or changed in place, or an autoencoder's tiles are set."""
    # accelerate makes new parameters on the meta device with each call.
    known = [tensor for tensor in itertools.chain(network.parameters(), network.buffers()) if not tensor.is_meta]
    counted = [(id(tensor), None if tensor.is_inference() else tensor._version) for tensor in known]
    tiles = {name: value for name, value in vars(network).items() if name.startswith(("use_", "tile_"))}
    return hashlib.blake2b(repr((id(network), counted, _checksum(known), sorted(tiles.items()))).encode(), digest_size=16).digest()


@torch.no_grad()
def _checksum(tensors: list[Tensor]) -> tuple[list[Any], list[list[int]]]:
    """Return dtypes, shapes and a number for the bits of each tensor; the devices are waited for once."""
    plain = [part for tensor in tensors for part in _plain(tensor)]
    every = sum(part.numel() for part in plain) <= _EVERY
    sums: dict[torch.device, list[Tensor]] = {}
    for part in plain:
        flat = part.detach().contiguous().view(-1)
        if not every:
            flat = flat[:: max(1, flat.numel() // _SOME)]
        sums.setdefault(part.device, []).append(_sum_of_bits(flat))
    kinds = [(part.dtype, tuple(part.shape)) for part in plain]
    return kinds, [torch.stack(numbers).tolist() for numbers in sums.values()]


def _sum_of_bits(flat: Tensor) -> Tensor:
    """Return a sum in int64 of the bits of each element times an odd number of its place, modulo 2^32: no single change leaves it."""
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten()
    bits = flat.view({1: torch.uint8, 2: torch.int16}.get(flat.element_size(), torch.int32))
    odd = torch.arange(min(len(bits), _BLOCK), dtype=torch.int32, device=flat.device) * 0x1E3779BA + 1
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for block in torch.split(bits, _BLOCK):
        total = total * 31 + (block.int() * odd[: len(block)]).sum()
    return total


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor, or those that a quantised one (torchao's) consists of."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor.detach().as_subclass(Tensor)
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain(getattr(tensor, name))


def _content(*parts: Any) -> bytes:
    """Return bytes that differ where texts, numbers, tensors or PIL images differ."""
    found = []
    for part in parts:
        if isinstance(part, Tensor):
            raw = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            found.append(f"{tuple(part.shape)} {part.dtype}".encode() + raw)
        elif hasattr(part, "tobytes") and hasattr(part, "mode"):  # a PIL image
            found.append(f"{part.mode} {part.size}".encode() + part.tobytes())
        elif isinstance(part, tuple | list):
            found.append(_content(*part))
        else:
            found.append(repr(part).encode())
    return b"".join(len(part).to_bytes(8, "little") + part for part in found)


def _joined(outputs: list[Any]) -> Any:
    """Return one output of a batch from those of its images."""
    first = outputs[0]
    if len(outputs) == 1:
        return first
    if isinstance(first, tuple) and not hasattr(first, "keys"):
        return tuple(_joined(list(parts)) for parts in zip(*outputs, strict=True))
    if isinstance(first, Tensor):
        return torch.cat(outputs)
    if hasattr(first, "parameters") and hasattr(first, "mode"):  # a diagonal Gaussian
        return type(first)(torch.cat([output.parameters for output in outputs]), deterministic=first.deterministic)
    return type(first)(**{name: _joined([output[name] for output in outputs]) for name in first.keys()})  # noqa: SIM118
