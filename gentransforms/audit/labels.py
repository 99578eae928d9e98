"""Labels and attributes of the sources: a column, a list, or class folders."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from gentransforms.audit.pairs import Pairs
from gentransforms.audit.reading import read_column
from gentransforms.errors import ConfigError
from gentransforms.sources import ImageSource, open_source
from gentransforms.sources.inputs import integer

__all__ = ["find_labels", "list_labels", "names_column", "open_labelled", "plain_label"]

FOLDERS = "folders"


def names_column(labels: Any) -> bool:
    """Return whether labels are read with the images, since a column or an input is named."""
    return isinstance(labels, str) and labels != FOLDERS


def open_labelled(source: Any, labels: Mapping[str, Any], needed: Collection[str] = (), **options: Any) -> ImageSource:
    """Open a source that carries the columns that are named as labels or attributes, and nothing else that is not needed.

    Args:
        source: whatever `open_source` takes, or a tensor (N, 3, H, W).
        labels: as for `find_labels`, by the name of the argument; only those that name a column count.
        needed: inputs that it has to carry besides.
        options: of `open_source`.

    Raises:
        ConfigError: if there is no such column.
    """
    source = list(source) if isinstance(source, Tensor) else source
    opened = open_source(source, **options)
    columns = {name: column for name, column in labels.items() if names_column(column)}
    absent = {name: column for name, column in columns.items() if _find_input(opened, column) is None}
    for name, column in absent.items() if isinstance(source, ImageSource) else ():
        known = ", ".join(map(repr, opened.inputs)) or "none"
        raise ConfigError(
            f"{name}={column!r}: this source carries no such column (its inputs: {known}): open it with "
            f'gentransforms.open_source(source, columns={{"labels": {column!r}}}), or give a list with a label for each image'
        )
    if absent:
        # Under names that mean nothing else: the input "labels" has to be whole numbers, and a column of labels may be text.
        try:
            named = {**(options.get("columns") or {}), **{f"column {column}": column for column in absent.values()}}
            opened = open_source(source, **{**options, "columns": named})
        except ConfigError as error:
            raise ConfigError(f"{', '.join(f'{name}={column!r}' for name, column in absent.items())}: cannot be read: {error}") from error
    return opened.select({*needed, *(found for column in columns.values() if (found := _find_input(opened, column)) is not None)})


def find_labels(
    name: str, labels: Any, pairs: Pairs, inputs: Sequence[dict[str, Any]] = (), scores: int | None = None
) -> tuple[Tensor, list[str]]:
    """Return the class of each source that is audited, (N,) int64, and the names of the classes.

    The classes are those of the sources that are audited. For a classifier they are those of the whole source, as far as that can be
    known without reading images that are not audited: a limit must not change what its scores mean.

    Args:
        name: of the argument, for errors.
        labels: ``"folders"`` for the first folder of each key; the name of a column, or of one of the source's inputs; or a
            list, array or tensor with one label (number or text) for each image of the source, in order.
        pairs: the sources.
        inputs: of the sources that are audited, where a column is named.
        scores: how many a classifier gives each image, 0 if that is not known yet; None without one. Of a source that names its
            classes, it may score all of these, or those that there are images of.

    Raises:
        ConfigError: if there are no such labels, or not one for each image.
    """
    if isinstance(labels, str):
        own, everywhere, known = _named(name, labels, pairs, inputs, whole=scores is not None)
    else:
        everywhere, known = list_labels(name, labels, len(pairs.source.keys)), None
        own = [everywhere[place] for place in pairs.places]
    numbers = _check(name, own)
    kind = type(numbers[0])
    present = set(numbers)
    if known is not None and not (kind is int and present <= set(range(len(known)))):
        known = None
    if scores is not None:
        # Of images that are not audited, such as those that could not be read, some may have no label, or -1.
        others = {label for value in everywhere if type(label := plain_label(value)) is kind}
        present |= others if known is None else others & set(range(len(known)))
    classes = list(range(len(known))) if known is not None and scores == len(known) else sorted(present)
    place_of = {value: i for i, value in enumerate(classes)}
    return torch.tensor([place_of[number] for number in numbers]), [str(value) if known is None else known[value] for value in classes]


def plain_label(value: Any) -> int | str | None:
    """Return text as str, and a whole number of any type, a bool too, as int; None of what is no label.

    Example:
        >>> import torch
        >>> plain_label(torch.tensor(3)), plain_label(True), plain_label(2.0), plain_label("cat"), plain_label(0.5)
        (3, 1, 2, 'cat', None)
    """
    if getattr(value, "shape", None) == ():  # a number or text of NumPy, or a tensor without dimensions
        value = value.item()
    if isinstance(value, str):
        return str(value)
    return int(value) if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()) else integer(value)


def _find_input(source: ImageSource, name: str) -> str | None:
    """Return the input of that name, or the one that is read from the column of that name; None if there is none."""
    if name in source.inputs:
        return name
    columns = source.description["decides"].get("columns", {})
    return next((given for given, column in columns.items() if column == name and given in source.inputs), None)


def _named(
    name: str, labels: str, pairs: Pairs, inputs: Sequence[dict[str, Any]], whole: bool
) -> tuple[list[Any], list[Any], list[str] | None]:
    """Return the labels of the sources that are audited, those of the whole source where they are wanted, and the names of the classes."""
    if labels == FOLDERS:
        flat = next((key for key in pairs.keys if not isinstance(key, str) or "/" not in key), None)
        if flat is not None:
            raise ConfigError(f'{name}="folders": the key {flat!r} names no folder: expected keys such as "cat/001.jpg"')
        own, everywhere = ([str(key).partition("/")[0] for key in keys if "/" in str(key)] for keys in (pairs.keys, pairs.source.keys))
        return own, everywhere, None
    found = _find_input(pairs.source, labels)
    assert found is not None, "open_labelled refuses other names"
    bare = next((key for key, one in zip(pairs.keys, inputs, strict=True) if found not in one), None)
    if bare is not None:
        raise ConfigError(
            f"{name}={labels!r}: that of the image {bare!r} is neither a whole number nor text: expected one of these for each"
        )
    # A folder of class folders numbers them; their names say more.
    if found == "labels" and "folders" in pairs.source.description["decides"]:
        return _named(name, FOLDERS, pairs, inputs, whole)
    column = read_column(pairs.source, found) if whole else None
    return [one[found] for one in inputs], column or [], pairs.source.class_names(found)


def list_labels(name: str, labels: Any, count: int) -> list[Any]:
    """Return the labels of a list, an array, a tensor or the like.

    Raises:
        ConfigError: if they are not one for each image.
    """
    together = next((method for method in ("tolist", "to_pylist") if hasattr(labels, method)), None)
    values = labels if together is None else getattr(labels, together)()
    if isinstance(values, Mapping | Set) or not isinstance(values, Iterable):
        raise ConfigError(
            f"{name}={reprlib.repr(labels)}: expected a list with a label for each image of the source, in order, the name of a column, "
            f"or {FOLDERS!r}"
        )
    values = list(values)
    if len(values) != count:
        raise ConfigError(f"{name}: {len(values)} labels for {count} images of the source: expected one for each, in order")
    return values


def _check(name: str, values: list[Any]) -> list[Any]:
    """Return labels as numbers or text.

    Raises:
        ConfigError: if one is neither, or some are numbers and some text.
    """
    plain: list[Any] = [plain_label(value) for value in values]
    wrong = [value for value, label in zip(values, plain, strict=True) if label is None or type(label) is not type(plain[0])]
    if wrong:
        raise ConfigError(f"{name}: the label {wrong[0]!r}: expected whole numbers, or text, one kind for all")
    return plain
