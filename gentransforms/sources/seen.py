"""What the samples tried of a data set show: which inputs each of their columns may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import PIL.Image
from torch import Tensor

from gentransforms.sources.inputs import choose_columns, integer
from gentransforms.sources.sample_images import entries, is_stored
from gentransforms.sources.sample_keys import KeyTensor, RowKey

__all__ = ["SeenColumns", "is_label"]

_CHECKED = ("labels", "prompts", "masks")


class SeenColumns:
    """The columns of dicts, or places of tuples, each judged by its first value that is not None.

    So it does not matter whether the first sample of a data set is one without a caption or label.

    Example:
        >>> seen = SeenColumns()
        >>> for sample in ({"caption": None, "n": 1}, {"caption": "a cat", "n": 2}):
        ...     seen.add(sample)
        >>> seen.choose(None)
        {'prompts': 'caption'}
    """

    def __init__(self) -> None:
        self._fits: dict[Any, frozenset[str] | None] = {}  # None of a column that had no value yet

    def add(self, sample: Any) -> None:
        for column, value in entries(sample):
            if self._fits.get(column) is None:
                self._fits[column] = None if value is None else frozenset(name for name in _CHECKED if _usable(name, value))

    def fits(self, name: str, column: Any) -> bool:
        """Return whether a column may hold an input; False if it has no value in any sample."""
        fits = self._fits.get(column)
        return fits is not None and (name in fits or name not in _CHECKED)

    def choose(self, columns: Mapping[str, str] | None) -> dict[str, str]:
        """Return which column holds each input, as `choose_columns` does. Columns of the user's choice may have no values."""

        def usable(name: str, column: str) -> bool:
            asked = isinstance(columns, Mapping) and columns.get(name) == column
            return self.fits(name, column) or (asked and self._fits[column] is None)

        return choose_columns([name for name in self._fits if isinstance(name, str)], columns, usable, "the samples")


def is_label(value: Any) -> bool:
    """Return whether a value is an integer, and not a key that `gentransforms.with_keys` added.

    Example:
        >>> is_label(3), is_label(RowKey(3)), is_label("3")
        (True, False, False)
    """
    return integer(value) is not None and not isinstance(value, RowKey | KeyTensor)


def _usable(name: str, value: Any) -> bool:
    if name == "labels":
        return is_label(value)
    if name == "prompts":
        return isinstance(value, str)
    return isinstance(value, Tensor | PIL.Image.Image | bytes) or is_stored(value) or hasattr(value, "__array__")
