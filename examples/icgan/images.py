"""Images as one uint8 tensor: from a folder, a Parquet file or a torchvision data set. Training reads no labels."""

from __future__ import annotations

import json

import torch
from shared import open_torchvision
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import gentransforms as gt
from gentransforms.sources import ImageSource
from gentransforms.sources.folder import ImageFolderSource


def load_images(source: str, size: int, limit: int | None = None) -> Tensor:
    """Return every image of `source`, or the first `limit`, as uint8 (N, 3, size, size): centre square, then resized.

    `source` is whatever `gentransforms.open_source` takes, such as a folder or a ``.parquet`` file, or
    ``torchvision:NAME:ROOT``, for example ``torchvision:CIFAR10:/data``; its test images are ``torchvision:CIFAR10:/data:test``.
    """
    opened = open_images(source).select([])
    rows = []
    for key, sample in zip(opened.keys, opened.read_range(0, len(opened) if limit is None else min(limit, len(opened))), strict=False):
        if isinstance(sample, gt.GentransformsError):
            raise SystemExit(f"image {key!r} of {source!r} cannot be read: {sample}")
        rows.append(_square(sample.image, size))
    return torch.stack(rows)


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
        labels = torch.tensor([int(dataset[i][1]) for i in range(len(dataset))])
        return labels, list(getattr(dataset, "classes", map(str, labels.unique().tolist())))
    if source.endswith(".parquet"):
        import pyarrow.parquet as pq

        table = pq.read_table(source, columns=["label"])
        labels = torch.tensor(table.column(0).to_pylist())
        about = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        names = about.get("info", {}).get("features", {}).get("label", {}).get("names")
        return labels, names or [str(i) for i in range(int(labels.max()) + 1)]
    opened = open_images(source)
    if not isinstance(opened, ImageFolderSource) or not opened.classes:
        raise SystemExit(f"{source!r} has images outside a class folder: expected one subfolder per class")
    return torch.tensor(opened.labels), opened.classes


def _square(image: Tensor, size: int) -> Tensor:
    image = F.to_dtype(image.expand(3, -1, -1), torch.uint8, scale=True)
    if image.shape[-2:] == (size, size):
        return image
    image = F.center_crop(image, [min(image.shape[-2:])])
    return F.resize(image, [size, size], v2.InterpolationMode.BICUBIC, antialias=True)
