"""The labelled images of parts 4 to 7: CIFAR-10 from the Parquet files that were brought, or toy images."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.gpu_parts.context import Context

HELD_OUT, CIFAR = 5000, 50_000


@dataclass(frozen=True)
class Images:
    """Parquet files of labelled images.

    Attributes:
        all: every training image; `holdout` of them, evenly spaced, are those of `held`.
        kept: what a generator and the networks that use it train on.
        held: images for choices, of which nothing that is in `kept`.
        test: what is measured on in the end.
        holdout: how many of `all` the recipes of examples/ssl are told to hold out.
    """

    all: Path
    kept: Path
    held: Path
    test: Path
    holdout: int = 0


def split_images(context: Context) -> Images:
    """Return the images of the fair experiment (examples/ssl/configs/cifar10-fair).

    Of CIFAR-10's 50,000 training images 5,000 are held out, so that `kept` holds the 45,000 of ``split_rows(50000, None, 5000)``
    in examples/ssl/data.py. Of other images all are trained on where there are test images.
    """
    if context.quick or context.data is None:
        count = 24 if context.quick else 2000
        train, test = toy_images(context.work / "toy-train.parquet", count, 0), toy_images(context.work / "toy-test.parquet", count, 1)
        return Images(train, train, test, test)
    import pyarrow.parquet as pq

    rows = pq.read_metadata(context.data).num_rows
    if rows != CIFAR and context.test is not None:
        return Images(context.data, context.data, context.test, context.test)
    kept, held = context.work / "train.parquet", context.work / "held-out.parquet"
    if not (kept.exists() and held.exists()):
        table = pq.read_table(context.data)
        places = torch.arange(HELD_OUT) * rows // HELD_OUT
        others = torch.ones(rows, dtype=torch.bool)
        others[places] = False
        _write(table.take(others.nonzero().flatten().numpy()), kept)
        _write(table.take(places.numpy()), held)
    if rows != CIFAR:
        return Images(kept, kept, held, held)
    return Images(context.data, kept, held, context.test or held, HELD_OUT)


def labelled_images(context: Context) -> tuple[Path, Path]:
    """Return Parquet files of images to train and to measure on: all where there are test images, else those not held out."""
    if context.quick or context.data is None or context.test is None:
        images = split_images(context)
        return images.kept, images.held
    return context.data, context.test


def toy_images(path: Path, count: int, seed: int, classes: int = 4, size: int = 32) -> Path:
    """Write noisy images of a few classes, each of a colour of its own, in the layout of `datasets`."""
    if path.exists():
        return path
    import pyarrow as pa

    rng = torch.Generator().manual_seed(seed)
    cells, labels = [], [i % classes for i in range(count)]
    colours = torch.rand(classes, 3, 1, 1, generator=torch.Generator().manual_seed(9)) * 160 + 40
    for label in labels:
        pixels = (colours[label] + 30 * torch.randn(3, size, size, generator=rng)).clamp(0, 255).to(torch.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "png")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(pa.table({"image": cells, "label": labels}), path)
    return path


def _write(table: Any, path: Path) -> None:
    """Write a file whole or not at all: two parts may do so at once."""
    import pyarrow.parquet as pq

    part = path.with_suffix(f".{os.getpid()}")
    pq.write_table(table, part)
    part.replace(path)
