"""Images, folders and Parquet files that the tests of the sources write."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
import pyarrow.parquet as pq
import torch

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10" / "train.parquet"


def shard(path: Path, start: int, count: int) -> Path:
    with tarfile.open(path, "w") as file:
        for i in range(start, start + count):
            for suffix, data in (("png", png(i)), ("cls", str(i % 3).encode()), ("txt", f"photo {i}".encode())):
                info = tarfile.TarInfo(f"{i:03}.{suffix}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return path


def hugging_face(*, damaged: bool = False) -> datasets.Dataset:
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["a", "b", "c"]),
            "picture": datasets.Image(),
            "mask": datasets.Image(),
        }
    )
    second, third = (png(1)[:60], None) if damaged else (png(1), png(2))
    rows = {
        "id": ["x", "y", "z"],
        "label": [2, 1, 0],
        "picture": [data and {"bytes": data, "path": None} for data in (png(0), second, third)],
        "mask": [{"bytes": mask_png([[i]]), "path": None} for i in range(3)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def pixels(seed: int, height: int = 6, width: int = 8) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), numpy.uint8)


def picture(seed: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels(seed))


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


def tensor(seed: int) -> torch.Tensor:
    return torch.from_numpy(pixels(seed)).permute(2, 0, 1)


def mask_array(classes: list[list[int]], dtype: Any = numpy.uint8) -> Any:
    """The classes again and again, in the size of the pictures."""
    return numpy.resize(numpy.array(classes, dtype), (6, 8))


def mask_png(classes: list[list[int]]) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(mask_array(classes)).save(file, "PNG")
    return file.getvalue()


def fill(root: Path, *names: str) -> Path:
    """Images whose seeds are their places in `names`."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(seed))
    return root


def parquet(path: Path, rows_per_group: int = 1 << 20, metadata: Any = None, **columns: Any) -> Path:
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": metadata}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


class Listed:
    """A map-style data set of given samples; an exception among them is raised."""

    def __init__(self, *samples: Any) -> None:
        self.samples_ = samples

    def __len__(self) -> int:
        return len(self.samples_)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.samples_[index], BaseException):
            raise self.samples_[index]
        return self.samples_[index]
