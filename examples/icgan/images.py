"""Training images as one uint8 tensor: from a folder, a Parquet file or a torchvision data set. Labels are not read."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def load_images(source: str, size: int, limit: int | None = None) -> Tensor:
    """Return every image of `source` as uint8 (N, 3, size, size): centre square, then resized.

    `source` is a folder (read recursively, sorted by path), a ``.parquet`` file with an ``image`` column (bytes, or a
    struct with ``bytes``), or ``torchvision:NAME:ROOT``, for example ``torchvision:CIFAR10:/data``.
    """
    rows = [_square(image, size) for image in _first(_decode(source), limit)]
    if not rows:
        raise SystemExit(f"no images found in {source!r}: expected files ending in {', '.join(sorted(SUFFIXES))}")
    return torch.stack(rows)


def load_labels(source: str) -> Tensor:
    """Return the labels (N,) int64 of `source`, in the order of `load_images`; for measuring, never for training a generator.

    `source` is a ``.parquet`` file with a ``label`` column, a folder with a subfolder per class (numbered by name), or
    ``torchvision:NAME:ROOT``.
    """
    if source.startswith("torchvision:"):
        _, name, root = source.split(":", 2)
        dataset = getattr(datasets, name)(root)
        return torch.tensor([int(dataset[i][1]) for i in range(len(dataset))])
    if source.endswith(".parquet"):
        import pyarrow.parquet as pq

        return torch.tensor(pq.read_table(source, columns=["label"]).column(0).to_pylist())
    root_folder = Path(source)
    names = [path.relative_to(root_folder).parts[0] for path in _files(source)]
    if any((root_folder / name).is_file() for name in names):
        raise SystemExit(f"{source!r} has images outside a class folder: expected one subfolder per class")
    classes = {name: i for i, name in enumerate(sorted(set(names)))}
    return torch.tensor([classes[name] for name in names])


def _files(folder: str) -> list[Path]:
    return sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)


def _first(images: Iterable[Image.Image], limit: int | None) -> Iterator[Image.Image]:
    for i, image in enumerate(images):
        if limit is not None and i >= limit:
            return
        yield image


def _decode(source: str) -> Iterator[Image.Image]:
    if source.startswith("torchvision:"):
        _, name, root = source.split(":", 2)
        dataset = getattr(datasets, name)(root)
        yield from (dataset[i][0] for i in range(len(dataset)))
    elif source.endswith(".parquet"):
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(source).iter_batches(columns=["image"]):
            for cell in batch.column(0).to_pylist():
                yield Image.open(io.BytesIO(cell["bytes"] if isinstance(cell, dict) else cell))
    else:
        for path in _files(source):
            yield Image.open(path)


def _square(image: Image.Image, size: int) -> Tensor:
    tensor = F.pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB"))
    if tensor.shape[-2:] == (size, size):
        return tensor
    tensor = F.center_crop(tensor, [min(tensor.shape[-2:])])
    return F.resize(tensor, [size, size], v2.InterpolationMode.BICUBIC, antialias=True)
