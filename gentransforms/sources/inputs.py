"""Inputs that come with an image in a source: labels, prompts, masks and control maps, found by name and checked one by one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from gentransforms.errors import ConfigError, SourceError
from gentransforms.sources.decode import Orientation, decode_mask, decode_oriented, find_file, turn_map, turn_mask
from gentransforms.sources.sample_images import entries, is_stored
from gentransforms.sources.sample_keys import KeyTensor, RowKey
from gentransforms.wording import name_type

__all__ = ["SeenColumns", "choose_columns", "input_value", "integer", "is_label", "names_in_feature"]

_CHECKED = ("labels", "prompts", "masks")

# Columns in which each input is looked for, unless the user names one.
_COLUMNS = {
    "labels": ("labels", "label", "cls"),
    "prompts": ("prompts", "prompt", "caption", "text", "txt"),
    "masks": ("masks", "mask"),
    "control_maps": ("control_maps", "control_map"),
}


def choose_columns(
    names: Collection[str], columns: Mapping[str, str] | None, usable: Callable[[str, str], bool], where: str
) -> dict[str, str]:
    """Return which column holds each input: ``{"prompts": "caption"}``.

    Args:
        names: of all columns.
        columns: the user's choice, which goes first.
        usable: whether an input, the first argument, may stand in a column, the second.
        where: what has these columns, for errors.

    Raises:
        ConfigError: if a column of the user's choice is not there, or holds something else.

    Example:
        >>> choose_columns(["image", "label", "title"], {"prompts": "title"}, lambda name, column: True, "data set")
        {'prompts': 'title', 'labels': 'label'}
    """
    if columns is not None and not isinstance(columns, Mapping):
        raise ConfigError(f"columns={columns!r}: expected a dict from inputs to columns, such as {{'prompts': 'caption'}}")
    chosen = dict(columns or {})
    for name, column in chosen.items():
        if column not in names:
            raise ConfigError(f"columns={{{name!r}: {column!r}}}: no such column in {where}, which has {', '.join(map(repr, names))}")
        if not usable(name, column):
            raise ConfigError(f"columns={{{name!r}: {column!r}}}: this column of {where} does not hold {_KINDS.get(name, name)}")
    for name, candidates in _COLUMNS.items():
        fits = next((column for column in candidates if column in names and usable(name, column)), None)
        if fits is not None:
            chosen.setdefault(name, fits)
    return chosen


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

    def has(self, column: Any) -> bool:
        """Return whether a column is in any of the samples."""
        return column in self._fits

    def fits(self, name: str, column: Any) -> bool:
        """Return whether a column may hold an input; False if it has no value in any sample."""
        fits = self._fits.get(column)
        return fits is not None and (name in fits or name not in _CHECKED)

    def choose(self, columns: Mapping[str, str] | None) -> dict[str, str]:
        """Return which column holds each input, as `choose_columns` does. Columns of the user's choice may have no values.

        Raises:
            ConfigError: if a column of the user's choice is in no sample, or holds something else.
        """

        def usable(name: str, column: str) -> bool:
            asked = isinstance(columns, Mapping) and columns.get(name) == column
            return self.fits(name, column) or (asked and self._fits[column] is None)

        return choose_columns([name for name in self._fits if isinstance(name, str)], columns, usable, "the samples")


def input_value(name: str, value: Any, image: Orientation, folder: Path | None = None) -> Any:
    """Return an input of one image: a label as int, a prompt as str, a mask as an integer tensor (H, W), a control map
    as uint8 (3, H, W); others as they are.

    Args:
        name: of the input.
        value: as it was found; of a mask or a control map also a PIL image, an encoded one, or its path.
        image: how its image was stored: a mask must have that size, a control map that aspect ratio, and both are turned upright
            with it.
        folder: to which paths of masks are relative.

    Raises:
        SourceError: if there is none, it is something else, or a mask has another size than its image, or a control map another
            aspect ratio.

    Example:
        >>> import numpy as np
        >>> input_value("labels", np.int64(3), Orientation((32, 32)))
        3
    """
    if value is None:
        raise SourceError(f"{name}: missing for this image")
    if name == "labels":
        label = integer(value)
        if label is None:
            raise SourceError(f"labels: {value!r}: expected an integer")
        return label
    if name == "prompts" and not isinstance(value, str):
        raise SourceError(f"prompts: {value!r}: expected a string")
    if name == "masks":
        try:
            return _mask(value, image, folder)
        except SourceError as error:
            raise SourceError(f"masks: {error}") from error
    if name == "control_maps":
        try:
            return _control_map(value, image, folder)
        except SourceError as error:
            raise SourceError(f"control_maps: {error}") from error
    return value


def names_in_feature(feature: Any) -> list[str] | None:
    """Return the names of a ``ClassLabel`` of Hugging Face `datasets`, as an object or as stored in a file; None of anything else.

    Example:
        >>> names_in_feature({"_type": "ClassLabel", "names": ["cat", "dog"]}), names_in_feature({"_type": "Value"})
        (['cat', 'dog'], None)
    """
    names = feature.get("names") if isinstance(feature, Mapping) else getattr(feature, "names", None)
    return list(names) if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names) else None


def integer(value: Any) -> int | None:
    """Return an int, NumPy integer or integer tensor of one element as int; None of anything else, bool included.

    Example:
        >>> import torch
        >>> integer(torch.tensor(3)), integer(True), integer("3")
        (3, None, None)
    """
    if isinstance(value, bool | np.bool_) or (isinstance(value, Tensor) and (value.dtype.is_floating_point or value.dtype == torch.bool)):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def is_label(value: Any) -> bool:
    """Return whether a value is an integer, and not a key that `gentransforms.with_keys` added.

    Example:
        >>> is_label(3), is_label(RowKey(3)), is_label("3")
        (True, False, False)
    """
    return integer(value) is not None and not isinstance(value, RowKey | KeyTensor)


_KINDS = {"labels": "integers", "prompts": "strings", "masks": "images", "control_maps": "images"}


def _mask(value: Any, image: Orientation, folder: Path | None) -> Tensor:
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        mask = value.as_subclass(Tensor)
        mask = mask[0] if mask.ndim == 3 and mask.shape[0] == 1 else mask
        if mask.ndim != 2 or mask.is_floating_point() or mask.is_complex():
            raise SourceError(f"shape {tuple(value.shape)}, dtype {value.dtype}: expected (H, W), integers")
        return turn_mask(mask, image)
    return decode_mask(_stored(value, folder), image)


def _control_map(value: Any, image: Orientation, folder: Path | None) -> Tensor:
    if isinstance(value, Tensor):
        value = value.as_subclass(Tensor)
        return turn_map(value, image) if value.ndim >= 2 else value  # the generator refuses what is no map
    pixels, own = decode_oriented(_stored(value, folder))
    return turn_map(pixels, image if own.code == 1 else image.upright())


def _stored(value: Any, folder: Path | None) -> bytes | Path | PIL.Image.Image:
    """Return a picture as it is stored, from what `datasets` and metadata files make of it."""
    if isinstance(value, Mapping):  # as `datasets` keeps images
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str | Path):
        value = find_file(value, folder)
    if not isinstance(value, bytes | Path | PIL.Image.Image):
        raise SourceError(f"{name_type(value)}: expected an image")
    return value


def _usable(name: str, value: Any) -> bool:
    if name == "labels":
        return is_label(value)
    if name == "prompts":
        return isinstance(value, str)
    return isinstance(value, Tensor | PIL.Image.Image | bytes) or is_stored(value) or hasattr(value, "__array__")
