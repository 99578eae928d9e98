"""Data sets of torchvision by name, with the split that is asked for or none at all."""

from __future__ import annotations

import inspect
from typing import Any

from torchvision import datasets


def open_torchvision(source: str) -> Any:
    """Return the data set that ``torchvision:NAME:ROOT`` or ``torchvision:NAME:ROOT:SPLIT`` names; by default its training images.

    Exits if there is no such data set or split: a misspelt "train" must not become the test images, nor a split all of them.
    """
    _, name, root, split = (*source.split(":"), "", "")[:4]
    if not root:
        raise SystemExit(f"{source!r}: expected torchvision:NAME:ROOT or torchvision:NAME:ROOT:SPLIT")
    kind = getattr(datasets, name, None)
    if kind is None:
        raise SystemExit(f"{source!r}: torchvision has no data set {name!r}")
    parameters = inspect.signature(kind).parameters
    splits: dict[str, dict[str, Any]] | None = None
    if name == "Places365":
        small = {"small": True}
        splits = {"train": {"split": "train-standard"} | small, "train-standard": {"split": "train-standard"} | small,
                  "val": {"split": "val"} | small}  # fmt: skip
    elif "train" in parameters:
        splits = {"train": {"train": True}, "test": {"train": False}}
    if splits is not None and (split or "train") not in splits:
        raise SystemExit(f"{source!r}: no split {split!r}, expected one of {', '.join(splits)}")
    if splits is None and split and "split" not in parameters:
        raise SystemExit(f"{source!r}: {name} of torchvision has no splits: expected torchvision:{name}:{root}")
    options = splits[split or "train"] if splits is not None else {"split": split or "train"} if "split" in parameters else {}
    try:
        return kind(root, **options)
    except (RuntimeError, FileNotFoundError, ValueError) as error:
        raise SystemExit(f"{source!r}: {error}") from error
