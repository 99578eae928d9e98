"""Images as one uint8 tensor: from a folder, a Parquet file or a torchvision data set. Training reads no labels."""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def load_images(source: str, size: int, limit: int | None = None) -> Tensor:
    """Return every image of `source`, or the first `limit`, as uint8 (N, 3, size, size): centre square, then resized.

    `source` is a folder (read recursively, sorted by path), a ``.parquet`` file with a column ``image`` or ``img`` (bytes, or
    a struct with ``bytes``), or ``torchvision:NAME:ROOT``, for example ``torchvision:CIFAR10:/data``; its test images are
    ``torchvision:CIFAR10:/data:test``.
    """
    rows = [_square(image, size) for image in _first(_decode(source), limit)]
    if not rows:
        raise SystemExit(f"no images found in {source!r}: expected files ending in {', '.join(sorted(SUFFIXES))}")
    return torch.stack(rows)


def load_labels(source: str) -> tuple[Tensor, list[str]]:
    """Return the labels (N,) int64 of `source` in the order of `load_images`, and the names of the classes.

    For measuring, never for training a generator. `source` is a ``.parquet`` file with a column ``label`` (the names are
    those that Hugging Face ``datasets`` left in its metadata, else the numbers), a folder with a subfolder per class
    (numbered by name), or ``torchvision:NAME:ROOT``.
    """
    if source.startswith("torchvision:"):
        dataset = _torchvision(source)
        labels = torch.tensor([int(dataset[i][1]) for i in range(len(dataset))])
        return labels, list(getattr(dataset, "classes", map(str, labels.unique().tolist())))
    if source.endswith(".parquet"):
        import pyarrow.parquet as pq

        table = pq.read_table(source, columns=["label"])
        labels = torch.tensor(table.column(0).to_pylist())
        about = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        names = about.get("info", {}).get("features", {}).get("label", {}).get("names")
        return labels, names or [str(i) for i in range(int(labels.max()) + 1)]
    folders = [path.relative_to(source).parts[:-1] for path in _files(source)]
    if not all(folders):
        raise SystemExit(f"{source!r} has images outside a class folder: expected one subfolder per class")
    names = sorted({folder[0] for folder in folders})
    return torch.tensor([names.index(folder[0]) for folder in folders]), names


def _files(folder: str) -> list[Path]:
    return sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)


def _torchvision(source: str) -> Any:
    _, name, root, *rest = source.split(":")
    split = rest[0] if rest else "train"
    kind = getattr(datasets, name)
    parameters = inspect.signature(kind).parameters
    return kind(root, train=split == "train") if "train" in parameters else kind(root, split=split) if "split" in parameters else kind(root)


def _first(images: Iterable[Image.Image], limit: int | None) -> Iterator[Image.Image]:
    for i, image in enumerate(images):
        if limit is not None and i >= limit:
            return
        yield image


def _decode(source: str) -> Iterator[Image.Image]:
    if source.startswith("torchvision:"):
        dataset = _torchvision(source)
        yield from (dataset[i][0] for i in range(len(dataset)))
    elif source.endswith(".parquet"):
        import pyarrow.parquet as pq

        file = pq.ParquetFile(source)
        column = next((name for name in ("image", "img") if name in file.schema_arrow.names), None)
        if column is None:
            raise SystemExit(f"{source}: no column 'image' or 'img', only {file.schema_arrow.names}")
        for batch in file.iter_batches(columns=[column]):
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
