"""Labelled images by row: folders, Parquet files, torchvision data sets and iNaturalist, each image under a stable key.

The keys are those that `gentransforms generate` gives to the same source, so that a bank made of it fits.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from shared import LABEL_COLUMNS, find_label_column, number_labels, open_torchvision, spaced
from torch import Tensor
from torchvision.transforms.v2 import functional as F

import gentransforms as gt
from gentransforms.sources import ImageSource
from gentransforms.sources.folder import ImageFolderSource


class Source:
    """Images by row number.

    Attributes:
        name: as the user wrote it.
        keys: one per image: the path below a folder, else the row number.
        labels: (N,) int64, or None where there are none.
        classes: names of the classes.
        origin: what holds the images: an `ImageFolderSource`, `Cells`, `Files`, or a data set.
    """

    def __init__(
        self, name: str, images: ImageSource, labels: Sequence[int] | None, classes: Sequence[str], origin: Any = None
    ) -> None:  # fmt: skip
        self.origin = origin
        self.name, self.images, self.keys, self.classes = name, images.select([]), images.keys, list(classes)
        self.labels = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, row: int) -> Image.Image:
        """Return the image as RGB, upright, as the bank's generator saw it.

        Raises:
            OSError: if it cannot be decoded.
        """
        (sample,) = self.images.read_range(row, row + 1)
        if isinstance(sample, gt.GentransformsError):
            raise OSError(f"image {self.keys[row]!r} of {self.name} cannot be read: {sample}") from sample
        image = F.to_dtype(sample.image.expand(3, -1, -1), torch.uint8, scale=True)
        return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def refuse_missing(name: str) -> None:
    """Exit if `name` is a path and nothing is there."""
    if not name.startswith(("torchvision:", "inaturalist:")) and not Path(name).exists():
        raise SystemExit(f"{name!r} does not exist: expected an image folder, a .parquet file or torchvision:NAME:ROOT")


def open_images(name: str, image_column: str | None = None, label_column: str | None = None) -> Source:
    """Open ``photos/`` (a subfolder per class, or none), ``x.parquet``, ``torchvision:NAME:ROOT[:SPLIT]``, ``inaturalist:ROOT:SPLIT``."""
    refuse_missing(name)
    try:
        if name.startswith("torchvision:"):
            return _torchvision(name)
        if name.startswith("inaturalist:"):
            return _inaturalist(name)
        return _parquet(name, image_column, label_column) if name.endswith(".parquet") else _folder(name)
    except gt.GentransformsError as error:
        raise SystemExit(f"{name!r}: {error}") from error


def refuse_other_classes(train: Source, test: Source) -> None:
    """Exit unless both have labels, and the same classes; where these have no names, images of the last ones may be missing."""
    for source in (train, test):
        if source.labels is None:
            raise SystemExit(
                f"{source.name!r} has no labels: expected a subfolder for each class, or a column named {', '.join(LABEL_COLUMNS)}, or as "
                "data.label_column says"
            )
    numbers = [str(i) for i in range(max(len(train.classes), len(test.classes)))]
    unnamed = train.classes == numbers and test.classes == numbers[: len(test.classes)]
    if train.classes != test.classes and not unnamed:
        only = [sorted(set(a.classes) - set(b.classes))[:5] for a, b in ((train, test), (test, train))]
        raise SystemExit(
            f"{train.name!r} has {len(train.classes)} classes, {test.name!r} {len(test.classes)}: expected the same, in the same order; "
            f"only in the first: {only[0]}, only in the second: {only[1]}"
        )


def refuse_unlabelled(source: Source, test: str | None, holdout: bool) -> None:
    """Exit if there are images to test the features on, and training images without labels, with which the probes could not work."""
    if source.labels is None and (holdout or test is not None):
        asked = "data.test_on_holdout=true" if holdout else f"data.test={test!r}"
        without = "data.test_on_holdout=false" if holdout else "data.test=null"
        raise SystemExit(
            f"{source.name!r} has no labels, which the probes of {asked} need: expected a subfolder for each class, or a column named "
            f"{', '.join(LABEL_COLUMNS)}, or as data.label_column says; to train without probes, give {without}"
        )


def split_rows(count: int, limit: int | None, holdout: int) -> tuple[Tensor, Tensor]:
    """Return the rows to train on and those held out; the latter do not depend on `limit`."""
    if holdout >= count:
        raise SystemExit(f"data.holdout={holdout}: expected fewer than the {count} images")
    held = spaced(count, holdout)
    kept = torch.ones(count, dtype=torch.bool)
    kept[held] = False
    rest = kept.nonzero().flatten()
    return rest[spaced(len(rest), limit)], held


def _folder(name: str) -> Source:
    images = gt.open_source(name)
    if not isinstance(images, ImageFolderSource):
        raise SystemExit(f"{name!r}: expected a folder of images; of Parquet files, name one")
    labels = images.labels
    if labels is None and (inside := sum("/" in str(key) for key in images.keys)):
        stray = next(key for key in images.keys if "/" not in str(key))
        warnings.warn(
            f"{name!r}: {len(images) - inside} of {len(images)} images lie in no subfolder, for example {stray!r}, so none has a label: "
            "move them away, or into the folder of their class",
            stacklevel=2,
        )
    return Source(name, images, *_numbered(name, labels, images.classes or None, images.keys), images)


def _parquet(name: str, image_column: str | None, label_column: str | None) -> Source:
    import pyarrow.parquet as pq

    schema = pq.read_schema(name)
    image = image_column or next((column for column in ("image", "img") if column in schema.names), None)
    label = label_column or find_label_column(schema)
    for option, column in {"data.image_column": image, "data.label_column": label}.items():
        if column not in schema.names and (column is not None or option == "data.image_column"):
            raise SystemExit(f"{name}: no column {column!r} ({option}), only {schema.names}")
    # In memory: training reads the rows in any order, for which Parquet is no format.
    table = pq.read_table(name, columns=[image] if label is None else [image, label])
    labels = None if label is None else table.column(label).to_pylist()
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = about.get("info", {}).get("features", {}).get(label, {}).get("names")
    cells = Cells(table.column(image))
    return Source(name, gt.open_source(cells), *_numbered(name, labels, names), cells)


def _torchvision(name: str) -> Source:
    dataset = open_torchvision(name)
    labels = next((getattr(dataset, field) for field in ("targets", "_labels", "labels", "y") if hasattr(dataset, field)), None)
    if labels is None:
        labels = [dataset[i][1] for i in range(len(dataset))]
    classes = [", ".join(c) if isinstance(c, tuple) else str(c) for c in getattr(dataset, "classes", None) or []]
    return Source(name, gt.open_source(dataset), *_numbered(name, labels, classes or None), dataset)


def _inaturalist(name: str) -> Source:
    """iNaturalist 2018 as its authors distribute it: the images and ``train2018.json`` or ``val2018.json`` in ROOT."""
    try:
        _, root, split = name.split(":")
    except ValueError:
        raise SystemExit(f"{name!r}: expected inaturalist:ROOT:SPLIT") from None
    path = Path(root) / f"{split}2018.json"
    if not path.is_file():
        raise SystemExit(f"{name!r}: no {path}: expected the annotations of iNaturalist 2018 beside the folder train_val2018")
    content = json.loads(path.read_text())
    category = {entry["image_id"]: entry["category_id"] for entry in content["annotations"]}
    files = [entry["file_name"] for entry in content["images"]]
    labels = [category[entry["id"]] for entry in content["images"]]
    names = {entry["id"]: entry["name"] for entry in content.get("categories", [])}
    classes = [names.get(i, str(i)) for i in range(max(labels, default=-1) + 1)]
    origin = Files(Path(root), files)
    return Source(name, gt.open_source(origin, key=files), labels, classes, origin)


def _numbered(name: str, labels: Any, names: list[str] | None, keys: Sequence[Any] | None = None) -> tuple[Tensor | None, list[str]]:
    """Return labels and names of classes as a `Source` has them; none where the data set has no labels at all."""
    return (None, []) if labels is None else number_labels(name, labels, names, keys)


class Cells:
    """The encoded images of an Arrow column, as a data set."""

    def __init__(self, cells: Any) -> None:
        self.cells = cells

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, row: int) -> Any:
        return self.cells[row].as_py()

    def encoded(self, row: int) -> bytes:
        """Return the bytes of a cell, without the path that may be beside them."""
        cell = self[row]
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        return content if isinstance(content, bytes) else repr(cell).encode()


class Files:
    """Image files of a list, as a data set."""

    def __init__(self, root: Path, files: list[str]) -> None:
        self.root, self.files = root, files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> bytes:
        return (self.root / self.files[row]).read_bytes()
