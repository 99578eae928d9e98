"""Record what a few sources of a bank look like, so that another data set with the same keys is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gentransforms.bank.generate.reading import read_samples
from gentransforms.errors import SourceError
from gentransforms.sources.base import ImageSource

__all__ = ["changed_sample", "sample_marks"]

# Other decoder versions differ by a grey level here and there; the mean colour of another image differs by more.
_TOLERANCE = 2.0


def sample_marks(source: ImageSource) -> list[dict[str, Any]]:
    """Return JSON-able descriptions of the first, the middle and the last source, of those that can be read.

    Example:
        >>> import torch
        >>> from gentransforms.sources.map_style import MapStyleSource
        >>> sample_marks(MapStyleSource([torch.full((3, 4, 6), 7, dtype=torch.uint8)]))[0]["mean"]
        [7.0, 7.0, 7.0]
    """
    places = sorted({0, len(source.keys) // 2, len(source.keys) - 1})
    return [mark for mark in (_mark(source, place) for place in places) if mark is not None]


def changed_sample(source: ImageSource, marks: Sequence[Mapping[str, Any]]) -> str:
    """Return how a source differs from the marks of an earlier run, as a sentence; empty if it does not."""
    for old in marks:
        new = _mark(source, old["index"])
        if new is None:
            continue
        if new["size"] != old["size"] or any(abs(a - b) > _TOLERANCE for a, b in zip(new["mean"], old["mean"], strict=False)):
            found, expected = (f"{mark['size']} pixels of mean colour {mark['mean']}" for mark in (new, old))
            return f"the image of {old['key']!r} is a different one: {found}, not {expected}"
        if new["inputs"] != old["inputs"]:
            return f"the labels, masks or prompts of {old['key']!r} are different"
    return ""


def _mark(source: ImageSource, place: int) -> dict[str, Any] | None:
    (sample,) = read_samples(source, range(place, place + 1))
    if isinstance(sample, SourceError):
        return None
    image = sample.image.float() * (1 if not sample.image.is_floating_point() else 255)
    mean = [round(value, 1) for value in image.flatten(1).mean(1).tolist()]
    inputs = json.dumps({name: _plain(value) for name, value in sorted(sample.inputs.items())}, default=repr)
    digest = hashlib.blake2b(inputs.encode(), digest_size=8).hexdigest()
    return {"index": place, "key": source.keys[place], "size": list(image.shape[1:]), "mean": mean, "inputs": digest}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
