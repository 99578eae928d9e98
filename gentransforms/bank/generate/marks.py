"""Record what some sources of a bank look like, so that another data set with the same keys is noticed."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from gentransforms.bank.generate.reading import read_samples
from gentransforms.errors import ImageError, SourceError
from gentransforms.images import check_range, to_rows
from gentransforms.sources.base import ImageSource
from gentransforms.sources.resemblance import mark

__all__ = ["changed_sample", "is_same_image", "sample_marks", "sample_more"]

# How many sources are read when a run begins, and compared with those of earlier runs.
_SAMPLES = 64
# Other decoder versions differ by a grey level here and there; some cell of another image differs by more.
_TOLERANCE = 3


def sample_marks(source: ImageSource) -> list[dict[str, Any]]:
    """Return JSON-able descriptions of up to 64 sources, spread evenly, of those that can be read.

    Example:
        >>> import torch
        >>> from gentransforms.sources.map_style import MapStyleSource
        >>> samples = sample_marks(MapStyleSource([torch.full((3, 4, 6), 7, dtype=torch.uint8)] * 1000))
        >>> len(samples), samples[1]["index"], samples[1]["size"]
        (64, 15, [4, 6])
    """
    return _describe(source, _spread(len(source.keys)))


def sample_more(source: ImageSource, samples: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the samples of a bank of `count` sources that now has more: up to 64 again, the new sources among them."""
    new = _describe(source, [place for place in _spread(len(source.keys)) if place >= count])
    kept = _spread(len(samples), _SAMPLES - len(new))
    return [*(dict(samples[i]) for i in kept), *new]


def changed_sample(source: ImageSource, samples: Sequence[Mapping[str, Any]]) -> str:
    """Return how a source differs from the samples of an earlier run, as a sentence; empty if it does not."""
    for old in samples:
        for new in _describe(source, [old["index"]]):
            if new["size"] != old["size"]:
                return f"the image of {old['key']!r} is a different one: {new['size']} pixels, not {old['size']}"
            seen, expected = (base64.b64decode(sample["mark"]) for sample in (new, old))
            if not is_same_image(seen, expected):
                return f"the image of {old['key']!r} is a different one: its colours differ by up to {_distance(seen, expected)} levels"
            if new["inputs"] != old["inputs"]:
                return f"the labels, masks or prompts of {old['key']!r} are different"
    return ""


def is_same_image(seen: bytes, expected: bytes) -> bool:
    """Whether two marks (48 bytes each) are those of one image, perhaps read by another version of a decoder.

    Example:
        >>> is_same_image(bytes([7] * 48), bytes([8] * 48)), is_same_image(bytes([7] * 48), bytes([7] * 47 + [20]))
        (True, False)
    """
    return _distance(seen, expected) <= _TOLERANCE


def _distance(seen: bytes, expected: bytes) -> int:
    """Return the largest difference of two marks in any cell, in grey levels."""
    a, b = (np.frombuffer(one, np.uint8).astype(np.int16) for one in (seen, expected))
    return int(np.abs(a - b).max())


def _spread(count: int, most: int = _SAMPLES) -> list[int]:
    """Return up to `most` of the places 0 to count - 1, spread evenly; the first and the last among them."""
    if count <= most or most < 2:
        return list(range(min(count, most)))
    return [i * (count - 1) // (most - 1) for i in range(most)]


def _describe(source: ImageSource, places: Sequence[int]) -> list[dict[str, Any]]:
    """Describe the sources at these places, without those that cannot be read: the run says why."""
    return [sample for sample in (_describe_one(source, place) for place in places) if sample is not None]


def _describe_one(source: ImageSource, place: int) -> dict[str, Any] | None:
    (sample,) = read_samples(source, range(place, place + 1))
    if isinstance(sample, SourceError):
        return None
    try:
        rows = to_rows(sample.image)
        check_range(rows)
    except ImageError:
        return None
    if len(rows) != 1:
        return None
    inputs = json.dumps({name: _plain(value) for name, value in sorted(sample.inputs.items())}, default=repr)
    digest = hashlib.blake2b(inputs.encode(), digest_size=8).hexdigest()
    seen = base64.b64encode(mark(rows[0]).tobytes()).decode()
    return {"index": place, "key": source.keys[place], "size": list(rows.shape[-2:]), "mark": seen, "inputs": digest}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
