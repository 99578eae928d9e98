"""Digests of the inputs of a source, such as labels and prompts, which are the same in every process and on every machine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import PIL.Image
from torch import Tensor

__all__ = ["digest_inputs"]

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def digest_inputs(inputs: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return a digest of the inputs of a source, and those that are not in it: the class by the name of the input.

    Tensors, arrays and PIL images are compared by their contents, other objects by their `repr`. An object whose `repr` shows its
    address in memory is left out, because it would never be the same again.

    Args:
        inputs: values by name.

    Example:
        >>> import PIL.Image
        >>> a, b = (digest_inputs({"style": PIL.Image.new("RGB", (4, 4), colour)}) for colour in ("red", "red"))
        >>> a == b
        True
        >>> digest_inputs({"style": object()})[1]
        {'style': 'object'}
    """
    left_out: dict[str, str] = {}
    forms = {name: _Form(name, left_out).of(value) for name, value in sorted(inputs.items())}
    return hashlib.blake2b(json.dumps(forms).encode(), digest_size=8).hexdigest(), left_out


class _Form:
    """The JSON-able form of the values of one input; what has none is noted in `left_out`."""

    def __init__(self, name: str, left_out: dict[str, str]) -> None:
        self.name, self.left_out = name, left_out

    def of(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return value.tolist()
        if isinstance(value, np.generic):
            return self.of(value.tolist()) if not isinstance(value, np.longdouble) else str(value)
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                return self.of(value.tolist())
            return {"dtype": value.dtype.str, "shape": value.shape, "data": _hash(np.ascontiguousarray(value).tobytes())}
        if isinstance(value, PIL.Image.Image):
            return {"mode": value.mode, "size": value.size, "palette": value.getpalette(), "data": _hash(value.tobytes())}
        if isinstance(value, Mapping):
            return {"entries": sorted(([self.of(key), self.of(one)] for key, one in value.items()), key=json.dumps)}
        if isinstance(value, list | tuple):
            return [self.of(one) for one in value]
        if isinstance(value, Set):
            return {"members": sorted((self.of(one) for one in value), key=json.dumps)}
        text = repr(value)
        if _ADDRESS.search(text):
            self.left_out[self.name] = type(value).__qualname__
            return {"class": type(value).__qualname__}
        return text


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
