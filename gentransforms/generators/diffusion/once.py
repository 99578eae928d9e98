"""Encode each source once, however many variants a pipeline makes of it: a small cache around an autoencoder's ``encode``."""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["EncodeOnce"]


class EncodeOnce:
    """A bounded cache of what an autoencoder makes of single images, by their content.

    Each image is encoded alone, so that the result does not depend on which others are in the batch, or in the cache.

    Args:
        size: largest number of images kept.
    """

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self.kept: OrderedDict[bytes, Any] = OrderedDict()

    def clear(self) -> None:
        """Forget everything: the network's weights, dtype or device changed."""
        self.kept.clear()

    @contextlib.contextmanager
    def around(self, network: nn.Module | None) -> Iterator[None]:
        """Let the network's ``encode`` go through the cache, inside the context."""
        if network is None or not hasattr(network, "encode"):
            yield
            return
        own: Any = network.encode

        def encode(images: Tensor, *args: Any, **kwargs: Any) -> Any:
            if args or kwargs.keys() - {"return_dict"} or not len(images):
                return own(images, *args, **kwargs)
            return _joined([self._encode_once(row, own, kwargs) for row in torch.split(images, 1)])

        network.__dict__["encode"] = encode
        try:
            yield
        finally:
            del network.__dict__["encode"]

    def _encode_once(self, image: Tensor, encode: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        content = image.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        key = hashlib.blake2b(content, digest_size=16, person=f"{tuple(image.shape)[1:]}"[:16].encode()).digest()
        if key not in self.kept:
            self.kept[key] = encode(image, **kwargs)
        self.kept.move_to_end(key)
        while len(self.kept) > self.size:
            self.kept.popitem(last=False)
        return self.kept[key]


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
