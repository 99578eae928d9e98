"""Labels and attributes of the sources: a column, a list, or class folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gentransforms.audit.pairs import Pairs
from gentransforms.errors import ConfigError

__all__ = ["find_labels"]

FOLDERS = "folders"


def find_labels(name: str, labels: Any, pairs: Pairs, inputs: Sequence[dict[str, Any]]) -> tuple[Tensor, list[str]]:
    """Return the class of each source that is audited, (N,) int64, and the names of the classes.

    Args:
        name: of the argument, for errors.
        labels: ``"folders"`` for the first folder of each key; the name of one of the source's inputs; or a list, array or
            tensor with one label (number or text) for each image of the source, in order.
        pairs: the sources.
        inputs: of the sources that are audited.

    Raises:
        ConfigError: if there are no such labels, or not one for each image.
    """
    if isinstance(labels, str):
        return _number(name, _named(name, labels, pairs, inputs))
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if len(values) != len(pairs.source.keys):
        raise ConfigError(
            f"{name}: {len(values)} labels for {len(pairs.source.keys)} images of the source: expected one for each, in order"
        )
    return _number(name, [values[place] for place in pairs.places])


def _named(name: str, labels: str, pairs: Pairs, inputs: Sequence[dict[str, Any]]) -> list[Any]:
    if labels == FOLDERS:
        keys = pairs.keys
        flat = next((key for key in keys if not isinstance(key, str) or "/" not in key), None)
        if flat is not None:
            raise ConfigError(f'{name}="folders": the key {flat!r} names no folder: expected keys such as "cat/001.jpg"')
        return [str(key).partition("/")[0] for key in keys]
    if not all(labels in one for one in inputs):
        known = ", ".join(map(repr, pairs.source.inputs)) or "none"
        raise ConfigError(
            f"{name}={labels!r}: the source carries no such column of numbers or text (its inputs: {known}): open it with "
            f'gentransforms.open_source(source, columns={{"labels": {labels!r}}}) and give {name}="labels"'
        )
    # A folder of class folders numbers them; their names say more.
    if labels == "labels" and "folders" in pairs.source.description.get("decides", {}):
        return _named(name, FOLDERS, pairs, inputs)
    return [one[labels] for one in inputs]


def _number(name: str, values: list[Any]) -> tuple[Tensor, list[str]]:
    plain = [int(v) if isinstance(v, int) or (isinstance(v, float) and v == int(v)) else v for v in values]
    kinds = {type(v) for v in plain}
    if len(kinds) > 1 or not kinds <= {int, str}:
        raise ConfigError(f"{name}: labels such as {values[0]!r}: expected whole numbers, or text, one kind for all")
    names = sorted(set(plain))
    number = {value: i for i, value in enumerate(names)}
    return torch.tensor([number[v] for v in plain]), [str(value) for value in names]
