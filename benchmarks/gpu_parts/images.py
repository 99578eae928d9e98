"""The labelled images of parts 4 to 6: CIFAR-10 from the Parquet files that were brought, or toy images."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image

from benchmarks.gpu_parts.context import Context

HELD_OUT = 5000


def labelled_images(context: Context) -> tuple[Path, Path]:
    """Return Parquet files of images to train and to measure on.

    Without test images, 5,000 evenly spaced training images are measured on and the others trained on; of CIFAR-10 these are
    the 45,000 of ``split_rows(50000, 45000, 5000)`` in examples/ssl/data.py.
    """
    if context.quick or context.data is None:
        count = 24 if context.quick else 2000
        return toy_images(context.work / "toy-train.parquet", count, 0), toy_images(context.work / "toy-test.parquet", count, 1)
    if context.test is not None:
        return context.data, context.test
    import pyarrow.parquet as pq

    train, test = context.work / "train.parquet", context.work / "held-out.parquet"
    if not test.exists():
        table = pq.read_table(context.data)
        held = torch.arange(HELD_OUT) * len(table) // HELD_OUT
        kept = torch.ones(len(table), dtype=torch.bool)
        kept[held] = False
        pq.write_table(table.take(kept.nonzero().flatten().numpy()), train)
        pq.write_table(table.take(held.numpy()), test)
    return train, test


def toy_images(path: Path, count: int, seed: int, classes: int = 4, size: int = 32) -> Path:
    """Write noisy images of a few classes, each of a colour of its own, in the layout of `datasets`."""
    if path.exists():
        return path
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = torch.Generator().manual_seed(seed)
    cells, labels = [], [i % classes for i in range(count)]
    colours = torch.rand(classes, 3, 1, 1, generator=torch.Generator().manual_seed(9)) * 160 + 40
    for label in labels:
        pixels = (colours[label] + 30 * torch.randn(3, size, size, generator=rng)).clamp(0, 255).to(torch.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "png")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": cells, "label": labels}), path)
    return path
