"""Some of the rows of a data set, evenly spaced."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor


def spaced(count: int, wanted: int | None) -> Tensor:
    """Return `wanted` row numbers of `count`, evenly spaced, so that a folder sorted by class gives all its classes."""
    return torch.arange(count) if wanted is None or wanted >= count else torch.arange(wanted) * count // wanted


def warn_of_absent_classes(labels: Tensor | None, option: str, wanted: int, choose: Callable[[int], Tensor]) -> None:
    """Warn if the rows that an option chooses lack classes though there are enough of them, and name a number that has all.

    Where the classes take turns in the data, as they often do in generated files, evenly spaced rows may all be of one class.

    Args:
        labels: of all images (N,), if there are any.
        option: that chooses rows, as the user wrote it.
        wanted: its value.
        choose: returns the rows that a value chooses.
    """
    if labels is None:
        return
    classes = len(labels.unique())

    def absent(number: int) -> int:
        return classes - len(labels[choose(number)].unique())

    if wanted < classes or not (lost := absent(wanted)):
        return
    near = (wanted + sign * step for step, sign in itertools.product(range(1, min(100, wanted // 4) + 1), (1, -1)))
    other = next((number for number in near if number < len(labels) and not absent(number)), None)
    advice = "shuffle the data, of which a bank has to be made again" if other is None else f"{other}, for example, has images of all"
    warnings.warn(
        f"{option}={wanted} has images of only {classes - lost} of the {classes} classes: its rows are evenly spaced, and in these data "
        f"classes take turns, or some are rare; {advice}",
        stacklevel=3,
    )
