"""Labels as data sets have them: numbers, text, or none at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# In which labels are looked for unless the user names a column; `fine_label` is that of CIFAR-100 on the Hub.
LABEL_COLUMNS = ("label", "fine_label", "labels", "cls")
_WHAT = "expected a class for each image: a whole number from 0 on, or its name"


def find_label_column(schema: Any) -> str | None:
    """Return which column of an Arrow schema holds labels, by its name; lists of them, of images with several, do not count."""
    import pyarrow as pa

    columns = (name for name in LABEL_COLUMNS if name in schema.names)
    return next((name for name in columns if not pa.types.is_nested(schema.field(name).type)), None)


def number_labels(
    source: str, labels: Iterable[Any], names: Sequence[str] | None = None, keys: Sequence[Any] | None = None
) -> tuple[Tensor | None, list[str]]:  # fmt: skip
    """Return the labels (N,) int64 and the names of their classes; None and no names if no image has a label.

    Missing labels are null, NaN or -1, as in torchvision's and the Hugging Face Hub's splits without labels. Text is numbered in the
    order of the sorted names. Without `names`, numbers are the names.

    Raises:
        SystemExit: if some images have no label, or a label is of another kind, or beyond the names; `source` is named, and the row, or
            the image's entry of `keys`.
    """
    values = [_plain(label) for label in (labels.tolist() if hasattr(labels, "tolist") else labels)]
    absent = [row for row, value in enumerate(values) if value is None]
    if len(absent) == len(values):
        return None, []
    if absent:
        raise SystemExit(
            f"{source!r}: {_place(keys, absent[0])} has no label, and so {len(absent)} of the {len(values)} images: give each of them one, "
            "or leave them out"
        )
    if all(isinstance(value, str) for value in values):
        names = sorted(set(values))
        number = {name: i for i, name in enumerate(names)}
        values = [number[value] for value in values]
    classes = [str(i) for i in range(max((v for v in values if isinstance(v, int)), default=-1) + 1)] if names is None else list(names)
    for row, value in enumerate(values):
        if not isinstance(value, int) or value < 0:
            raise SystemExit(f"{source!r}: {_place(keys, row)} has the label {value!r}: {_WHAT}")
        if value >= len(classes):
            raise SystemExit(
                f"{source!r}: {_place(keys, row)} has the label {value}, and there are names for {len(classes)} classes: {_WHAT}"
            )
    return torch.tensor(values, dtype=torch.int64), classes


def _place(keys: Sequence[Any] | None, row: int) -> str:
    return f"row {row}" if keys is None else f"image {keys[row]!r}"


def _plain(label: Any) -> Any:
    """Return a label as int or str where it is one, and None for what stands for no label."""
    label = label.item() if hasattr(label, "item") and getattr(label, "ndim", 0) == 0 else label
    if isinstance(label, float):
        label = None if math.isnan(label) else int(label) if label.is_integer() else label
    return None if isinstance(label, int) and label == -1 else int(label) if isinstance(label, bool) else label
