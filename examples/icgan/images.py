"""Images as one uint8 tensor: from a folder, a Parquet file or a torchvision data set. Training reads no labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from shared import LABEL_COLUMNS, find_label_column, number_labels, open_torchvision, spaced
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import gentransforms as gt
from gentransforms.paths import local_path
from gentransforms.sources import ImageSource
from gentransforms.sources.contents import is_litter
from gentransforms.sources.folder import ImageFolderSource
from gentransforms.sources.image_column import features_of
from gentransforms.sources.inputs import names_in_feature
from gentransforms.sources.parquet import ParquetSource
from gentransforms.sources.split_files import find_files

SHOWN = 5  # of the images that cannot be read, all of which are counted


def load_images(source: str, size: int, limit: int | None = None, first: bool = False) -> Tensor:
    """Return every image of `source` as uint8 (N, 3, size, size): centre square, then resized.

    `source` is whatever `gentransforms.open_source` takes, such as a folder or a ``.parquet`` file, or
    ``torchvision:NAME:ROOT``, for example ``torchvision:CIFAR10:/data``; its test images are ``torchvision:CIFAR10:/data:test``.
    With `limit` there are at most so many, evenly spaced, or the `first` ones.

    Raises:
        SystemExit: if there are none, or some cannot be read: with their number and the first of them.
    """
    return torch.cat(list(iterate_images(source, size, limit, first)))


def iterate_images(source: str, size: int, limit: int | None = None, first: bool = False, batch_size: int = 500) -> Iterator[Tensor]:
    """Yield the images that `load_images` returns in batches (B, 3, size, size), for data that do not fit into memory."""
    opened = open_images(source).select([])
    count = len(opened) if limit is None else min(limit, len(opened))
    rows = range(count) if first or count == len(opened) else spaced(len(opened), limit).tolist()
    samples = opened.read_range(0, count) if isinstance(rows, range) else (next(iter(opened.read_range(row, row + 1))) for row in rows)
    batch: list[Tensor] = []
    broken: list[str] = []
    for row, sample in zip(rows, samples, strict=True):
        if isinstance(sample, gt.GentransformsError):
            broken.append(f"{opened.keys[row]!r} ({sample})")
        if broken:  # no batch follows, but the other images are tried, so that all can be repaired at once
            continue
        batch.append(_square(sample.image, size))
        if len(batch) == batch_size or row == rows[-1]:
            yield torch.stack(batch)
            batch = []
    if broken:
        more = f", and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise SystemExit(
            f"{len(broken)} of the {count} images of {source!r} cannot be read: {', '.join(broken[:SHOWN])}{more}; "
            "repair them, or leave them out"
        )


def open_images(source: str) -> ImageSource:
    """Open `source`: its keys are in the order of `load_images`, and are those that a bank of it has."""
    try:
        return gt.open_source(open_torchvision(source) if source.startswith("torchvision:") else source)
    except gt.GentransformsError as error:
        raise SystemExit(f"{source!r}: {error}") from error


def load_labels(source: str) -> tuple[Tensor, list[str]]:
    """Return the labels (N,) int64 of `source` in the order of `load_images`, and the names of the classes.

    For measuring, never for training a generator. `source` is a ``.parquet`` file, or a folder of those of one split, with a column
    ``labels``, ``label``, ``cls`` or ``fine_label`` (the names are those that Hugging Face ``datasets`` left in its metadata, else the
    numbers), a folder with a subfolder per class (numbered by name), or ``torchvision:NAME:ROOT``.

    Raises:
        SystemExit: if there are no labels, or they are those of another kind of source.
    """
    if source.startswith("torchvision:"):
        dataset = open_torchvision(source)
        names = getattr(dataset, "classes", None)
        return _numbered(source, [dataset[i][1] for i in range(len(dataset))], None if names is None else list(names))
    if source.endswith(".parquet") and Path(source).is_file():
        return _of_columns(source)
    opened = open_images(source)
    if isinstance(opened, ParquetSource):
        return _of_columns(source)
    if not isinstance(opened, ImageFolderSource):
        raise SystemExit(f"{source!r}: its labels are not read: expected a folder with a subfolder per class, or Parquet files")
    if opened.labels is None:
        stray = next((f", such as {key!r}" for key in opened.keys if "/" not in str(key)), "")
        raise SystemExit(f"{source!r} has images outside a class folder{stray}: expected one subfolder per class")
    return _numbered(source, opened.labels, opened.classes or None)


def _of_columns(source: str) -> tuple[Tensor, list[str]]:
    """Return the labels of Parquet files, in the order in which `open_images` reads them."""
    import pyarrow.parquet as pq

    path = local_path(source, "source")
    files = find_files(path)
    others = sorted({file for file in path.rglob("*.parquet") if not is_litter(file.name)} - {*files})
    if others:  # of several splits the training images are read: they would be the test images, too
        raise SystemExit(
            f"{source!r} holds files of several splits, such as {files[0].name} and {others[0].name}: name one file, or move them apart"
        )
    try:
        schema = pq.read_schema(files[0])
    except (OSError, ValueError) as error:
        raise SystemExit(f"{files[0]}: cannot be read as a Parquet file: {error}") from error

    column = find_label_column(schema)
    if column is None:
        raise SystemExit(
            f"{source!r} has no labels among its columns {', '.join(map(repr, schema.names))}: "
            f"expected one called {', '.join(LABEL_COLUMNS)}; rename the column with the classes"
        )
    labels = [label for file in files for label in pq.read_table(file, columns=[column]).column(0).to_pylist()]
    return _numbered(source, labels, names_in_feature(features_of(schema).get(column)))


def _numbered(source: str, labels: Iterable[Any], names: list[str] | None) -> tuple[Tensor, list[str]]:
    found, classes = number_labels(source, labels, names)
    if found is None:
        raise SystemExit(f"{source!r} has no labels: expected the class of each image")
    return found, classes


def _square(image: Tensor, size: int) -> Tensor:
    image = F.to_dtype(image.expand(3, -1, -1), torch.uint8, scale=True)
    return image if image.shape[-2:] == (size, size) else resize(F.center_crop(image, [min(image.shape[-2:])]), size)


def resize(images: Tensor, size: int) -> Tensor:
    """Return square images (…, 3, S, S) uint8 as (…, 3, size, size)."""
    return images if images.shape[-1] == size else F.resize(images, [size, size], v2.InterpolationMode.BICUBIC, antialias=True)
