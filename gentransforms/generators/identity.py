"""Decide whether two generators are the same: by configuration and weights, whatever the way of computing."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gentransforms.errors import ConfigError, WeightsError

__all__ = ["describe_argument", "fingerprint", "hash_state", "hash_weights", "named_weights", "to_json", "uncompiled", "unsaved_state"]


def fingerprint(kind: str, config: Mapping[str, Any], dtype: torch.dtype, weights: Mapping[str, Tensor]) -> str:
    """Return 32 hexadecimal digits: a hash of class, configuration, dtype and every weight.

    Args:
        kind: name of the class.
        config: what determines the images besides the weights; JSON-able.
        dtype: dtype of the arithmetic.
        weights: weights by name, on any device.

    Raises:
        ConfigError: if `config` is not JSON-able.
        WeightsError: if a weight is on the meta device and has no values.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{kind} {to_json(config)} {dtype}".encode())
    hash_weights(digest, weights)
    return digest.hexdigest()


def hash_state(config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> str:
    """Return digests of weights and options, 16 hexadecimal digits each, which a card names as what its figures are about.

    Weights are compared in float16, so that a generator that was saved in half the bytes has the digest of its files.

    Args:
        config: what determines the images besides the weights; JSON-able.
        weights: weights by name, on any device.
        dtype: dtype of the floating weights in the files; None leaves them as they are.
    """

    def coarse(tensor: Tensor) -> Tensor:
        if is_traceable_wrapper_subclass(tensor) or not tensor.is_floating_point():
            return tensor
        return tensor.detach().to(dtype or tensor.dtype).to(torch.float16)

    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(weights.items()):  # one at a time: a copy of all would not fit into memory
        hash_weights(digest, {name: coarse(tensor)})
    return f"{digest.hexdigest()}_{hashlib.blake2b(to_json(config).encode(), digest_size=8).hexdigest()}"


def hash_weights(digest: Any, weights: Mapping[str, Tensor]) -> None:
    """Update a hashlib object with names, dtypes, shapes and values, in the order of the names.

    Raises:
        WeightsError: if a weight is on the meta device.
    """
    for name, weight in sorted(weights.items()):
        for part, tensor in _plain_tensors(name, weight):
            if tensor.is_meta:
                raise WeightsError(
                    f"the weight {part!r} is on the meta device, without values: load it before use "
                    "(after accelerate's offloading: pipe.remove_all_hooks(), then move the pipeline to its device)"
                )
            digest.update(f"{part} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _plain_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a tensor, or the plain tensors that a quantised one (torchao's) consists of."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    names, context = tensor.__tensor_flatten__()
    yield f"{name} {type(tensor).__name__} {_without_addresses(repr(context))}", torch.empty(0)
    for inner in names:
        yield from _plain_tensors(f"{name}.{inner}", getattr(tensor, inner))


def to_json(config: Mapping[str, Any]) -> str:
    """Return a configuration as JSON, sorted by name.

    Raises:
        ConfigError: if a value cannot be written as JSON.
    """
    try:
        return json.dumps(config, sort_keys=True)
    except TypeError as error:
        raise ConfigError(f"config {dict(config)!r} cannot be written as JSON ({error}): use numbers, strings, lists, dicts") from error


def uncompiled(module: Any) -> Any:
    """Return the module that ``torch.compile(module)`` wraps; other modules unchanged."""
    return getattr(module, "_orig_mod", module)


def named_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module's state dict, with the names that it has without ``torch.compile``."""
    return {name.replace("_orig_mod.", ""): value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def unsaved_state(module: nn.Module) -> dict[str, Tensor]:
    """Return what decides a module's results besides `named_weights`: buffers that are not saved, and extra state, pickled."""
    state = module.state_dict()
    buffers = {name: tensor for name, tensor in module.named_buffers() if name not in state}
    extra = {
        name: torch.tensor(list(pickle.dumps(value)), dtype=torch.uint8) for name, value in state.items() if not isinstance(value, Tensor)
    }
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in (buffers | extra).items()}


def describe_argument(value: Any) -> Any:
    """Return a constructor argument in JSON-able form: a module as its class and structure, anything else unchanged.

    Example:
        >>> describe_argument(nn.Linear(2, 3))["module"]
        'torch.nn.modules.linear.Linear'
        >>> describe_argument(0.5)
        0.5
    """
    if not isinstance(value, nn.Module):
        return value
    module = uncompiled(value)
    structure = hashlib.blake2b("\n".join(_structure(module)).encode(), digest_size=16).hexdigest()
    return {"module": _name_module(module), "structure": structure}


def _structure(module: nn.Module) -> Iterator[str]:
    """Yield what determines a module's function besides its weights: class, settings and plain attributes of each submodule."""
    for name, inner in module.named_modules():
        if uncompiled(inner) is not inner:
            continue  # a wrapper; what it wraps comes next
        plain = {
            key: value
            for key, value in vars(inner).items()
            if not key.startswith("_") and key != "training" and isinstance(value, bool | int | float | str | tuple | None)
        }
        settings = _without_addresses(f"{inner.extra_repr()} {sorted(plain.items())}")
        name = f"{name}.".replace("._orig_mod.", ".").removeprefix("_orig_mod.")
        yield f"{name} {_name_module(inner)} {settings}"


def _name_module(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)
