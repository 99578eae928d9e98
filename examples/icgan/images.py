"""Images as one uint8 tensor: from a folder, a Parquet file or a torchvision data set. Training reads no labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from shared import number_labels, open_torchvision, spaced
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import gentransforms as gt
from gentransforms.sources import ImageSource
from gentransforms.sources.folder import ImageFolderSource


def load_images(source: str, size: int, limit: int | None = None, first: bool = False) -> Tensor:
    """Return every image of `source` as uint8 (N, 3, size, size): centre square, then resized.

    `source` is whatever `gentransforms.open_source` takes, such as a folder or a ``.parquet`` file, or
    ``torchvision:NAME:ROOT``, for example ``torchvision:CIFAR10:/data``; its test images are ``torchvision:CIFAR10:/data:test``.
    With `limit` there are at most so many, evenly spaced, or the `first` ones.
    """
    return torch.cat(list(iterate_images(source, size, limit, first)))


def iterate_images(source: str, size: int, limit: int | None = None, first: bool = False, batch_size: int = 500) -> Iterator[Tensor]:
    """Yield the images that `load_images` returns in batches (B, 3, size, size), for data that do not fit into memory."""
    opened = open_images(source).select([])
    count = len(opened) if limit is None else min(limit, len(opened))
    rows = range(count) if first or count == len(opened) else spaced(len(opened), limit).tolist()
    samples = opened.read_range(0, count) if isinstance(rows, range) else (next(iter(opened.read_range(row, row + 1))) for row in rows)
    batch: list[Tensor] = []
    for row, sample in zip(rows, samples, strict=True):
        if isinstance(sample, gt.GentransformsError):
            raise SystemExit(f"image {opened.keys[row]!r} of {source!r} cannot be read: {sample}")
        batch.append(_square(sample.image, size))
        if len(batch) == batch_size or row == rows[-1]:
            yield torch.stack(batch)
            batch = []


def open_images(source: str) -> ImageSource:
    """Open `source`: its keys are in the order of `load_images`, and are those that a bank of it has."""
    try:
        return gt.open_source(open_torchvision(source) if source.startswith("torchvision:") else source)
    except gt.GentransformsError as error:
        raise SystemExit(f"{source!r}: {error}") from error


def load_labels(source: str) -> tuple[Tensor, list[str]]:
    """Return the labels (N,) int64 of `source` in the order of `load_images`, and the names of the classes.

    For measuring, never for training a generator. `source` is a ``.parquet`` file with a column ``label`` (the names are
    those that Hugging Face ``datasets`` left in its metadata, else the numbers), a folder with a subfolder per class
    (numbered by name), or ``torchvision:NAME:ROOT``.
    """
    if source.startswith("torchvision:"):
        dataset = open_torchvision(source)
        names = getattr(dataset, "classes", None)
        return _numbered(source, [dataset[i][1] for i in range(len(dataset))], None if names is None else list(names))
    if source.endswith(".parquet"):
        import pyarrow.parquet as pq

        table = pq.read_table(source, columns=["label"])
        about = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        names = about.get("info", {}).get("features", {}).get("label", {}).get("names")
        return _numbered(source, table.column(0).to_pylist(), names)
    opened = open_images(source)
    if not isinstance(opened, ImageFolderSource) or not opened.classes:
        raise SystemExit(f"{source!r} has images outside a class folder: expected one subfolder per class")
    return torch.tensor(opened.labels), opened.classes


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
