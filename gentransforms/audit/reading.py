"""Read images with their inputs; inputs alone without decoding images, where a source keeps them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentransforms.errors import SourceError
from gentransforms.images import as_seen, to_rows
from gentransforms.paths import local_path
from gentransforms.sources import ImageSource, SourceSample
from gentransforms.sources.folder import ImageFolderSource
from gentransforms.sources.metadata import read_metadata
from gentransforms.sources.parquet import ParquetSource
from gentransforms.sources.split_files import find_files

__all__ = ["read_column", "read_images", "read_inputs"]


def read_images(
    source: ImageSource, places: Sequence[int], size: tuple[int, int], preserves_geometry: bool
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Return images (B, 3, *size) float32 in [0, 1], as a generator of that size sees them, and their inputs.

    Raises:
        SourceError: if one cannot be read.
    """
    images, inputs = torch.empty(len(places), 3, *size), []
    for row, sample in enumerate(_read(source, places)):
        images[row] = as_seen(to_rows(sample.image), size, preserves_geometry)[0]
        inputs.append(sample.inputs)
    return images, inputs


def read_inputs(source: ImageSource, places: Sequence[int]) -> list[dict[str, Any]]:
    """Return the inputs of some images as they are now.

    Raises:
        SourceError: if an image cannot be read, where that takes reading it.

    Example:
        >>> import torch
        >>> from gentransforms.sources import open_source
        >>> read_inputs(open_source([(torch.zeros(3, 8, 8), label) for label in (5, 6, 7)]), [0, 2])
        [{'labels': 5}, {'labels': 7}]
    """
    columns = {name: read_column(source, name) for name in source.inputs}
    if any(column is None for column in columns.values()):
        return [sample.inputs for sample in _read(source, places)]
    return [{name: column[place] for name, column in columns.items() if column is not None} for place in places]


def read_column(source: ImageSource, name: str) -> list[Any] | None:
    """Return an input of every image as it is stored now; None if only reading the images tells.

    Example:
        >>> import torch
        >>> from gentransforms.sources import open_source
        >>> print(read_column(open_source([(torch.zeros(3, 8, 8), 5)]), "labels"))
        None
    """
    # Of these classes themselves: a subclass may read something else.
    found: list[Any] | None = None
    if type(source) is ParquetSource:
        found = _of_parquet(source, name)
    elif type(source) is ImageFolderSource:
        found = _of_metadata(source, name) if "metadata" in source.description else source.labels
    return found if found is not None and len(found) == len(source.keys) else None


def _of_parquet(source: ParquetSource, name: str) -> list[Any]:
    import pyarrow.parquet

    decides, column = source.description["decides"], source.description["decides"]["columns"][name]
    values: list[Any] = []
    for path in find_files(local_path(source.description["path"]), decides.get("split"), decides.get("config")):
        with pyarrow.parquet.ParquetFile(path) as file:
            values += file.read(columns=[column], use_threads=False)[column].to_pylist()  # Arrow's threads do not survive a fork
    return values


def _of_metadata(source: ImageFolderSource, name: str) -> list[Any] | None:
    decides = source.description["decides"]
    keys, values, _ = read_metadata(Path(source.root, source.description["metadata"]), decides["image_column"], decides["columns"])
    return values[name] if keys == list(source.keys) else None


def _read(source: ImageSource, places: Sequence[int]) -> Iterator[SourceSample]:
    """Yield the samples at some places, neighbours read together."""
    start = 0
    for row in range(1, len(places) + 1):
        if row < len(places) and places[row] == places[row - 1] + 1:
            continue
        first = places[start]
        for i, sample in enumerate(source.read_range(first, first + row - start)):
            if isinstance(sample, SourceError):
                raise SourceError(f"the source {source.keys[first + i]!r} cannot be read: {sample}")
            yield sample
        start = row
