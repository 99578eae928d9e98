"""Read images with their inputs; inputs alone without decoding images, where a source keeps them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gentransforms.bank.generate.reading import read_samples as read_range
from gentransforms.errors import SourceError
from gentransforms.images import as_seen, check_range, to_rows
from gentransforms.paths import local_path
from gentransforms.sources import ImageSource, SourceSample
from gentransforms.sources.folder import ImageFolderSource
from gentransforms.sources.metadata import read_metadata
from gentransforms.sources.parquet import ParquetSource
from gentransforms.sources.split_files import find_files

__all__ = ["Read", "read_column", "read_images", "read_inputs", "read_samples"]


class Read(NamedTuple):
    """Images of a source, without those that cannot be read.

    Attributes:
        images: (B, 3, h, w) float32 in [0, 1], as a generator of that size sees them.
        inputs: of each of them.
        rows: which of those that were asked for they are.
        failed: why each of the others cannot be read, by its place.
    """

    images: Tensor
    inputs: list[dict[str, Any]]
    rows: list[int]
    failed: dict[int, SourceError]


def read_images(source: ImageSource, places: Sequence[int], size: tuple[int, int], preserves_geometry: bool, first: int = 0) -> Read:
    """Read images with their inputs; `first` is the number of the row of the first place.

    Example:
        >>> import torch
        >>> from gentransforms.sources import open_source
        >>> found = read_images(open_source([torch.zeros(3, 9, 9), torch.full((3, 9, 9), torch.nan)]), [0, 1], (8, 8), True)
        >>> found.images.shape, found.rows, list(found.failed)
        (torch.Size([1, 3, 8, 8]), [0], [1])
    """
    images = torch.empty(len(places), 3, *size)
    found = Read(images, [], [], {})
    for row, sample in enumerate(read_samples(source, places), first):
        if isinstance(sample, SourceError):
            found.failed[places[row - first]] = sample
            continue
        images[len(found.rows)] = as_seen(to_rows(sample.image), size, preserves_geometry)[0]
        found.inputs.append(sample.inputs)
        found.rows.append(row)
    return found._replace(images=images[: len(found.rows)])


def read_inputs(source: ImageSource, places: Sequence[int]) -> list[dict[str, Any] | SourceError]:
    """Return the inputs of some images as they are now; the error in their place where that takes an image that cannot be read.

    Example:
        >>> import torch
        >>> from gentransforms.sources import open_source
        >>> read_inputs(open_source([(torch.zeros(3, 8, 8), label) for label in (5, 6, 7)]), [0, 2])
        [{'labels': 5}, {'labels': 7}]
    """
    columns = {name: read_column(source, name) for name in source.inputs}
    if any(column is None for column in columns.values()):
        return [sample if isinstance(sample, SourceError) else sample.inputs for sample in read_samples(source, places)]
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


def read_samples(source: ImageSource, places: Sequence[int]) -> Iterator[SourceSample | SourceError]:
    """Yield the samples at some places, neighbours read together; the error in place of one that cannot be read or is no image.

    Raises:
        BankError: if the source cannot be reached at all.
    """
    start = 0
    for row in range(1, len(places) + 1):
        if row < len(places) and places[row] == places[row - 1] + 1:
            continue
        for sample in read_range(source, range(places[start], places[row - 1] + 1)):
            yield sample if isinstance(sample, SourceError) else _refuse(sample) or sample
        start = row


def _refuse(sample: SourceSample) -> SourceError | None:
    """Return what is wrong with an image, by the rules of a bank that is made of it."""
    try:
        rows = to_rows(sample.image)
        if len(rows) != 1:
            return SourceError(f"{len(rows)} images of shape {tuple(sample.image.shape)}: expected one, (C, H, W)")
        check_range(rows)
    except ValueError as error:
        return SourceError(str(error))
    return None
