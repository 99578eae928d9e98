"""Read the metadata file of an image folder, following Hugging Face's convention: which images there are, and their inputs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from gentransforms.errors import ConfigError
from gentransforms.sources.decode import DOWNLOAD
from gentransforms.sources.inputs import choose_columns, integer
from gentransforms.wording import one_line

__all__ = ["METADATA_NAMES", "find_metadata", "folder_order", "read_metadata"]

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def folder_order(folder: str) -> tuple[str, str]:
    """Return the sort key of a folder, in torchvision's order: by class, then by the whole path."""
    return folder.partition("/")[0], folder


def find_metadata(root: Path, image_column: str) -> Path | None:
    """Return the metadata file of a folder, if there is one with an image column; data sets may have other files of this name."""
    for path in (root / name for name in METADATA_NAMES):
        if path.is_file() and image_column in next(_records(path), {}):
            return path
    return None


def read_metadata(
    path: Path, image_column: str, columns: Mapping[str, str] | None
) -> tuple[list[str], dict[str, list[Any]], dict[str, str]]:
    """Return the keys that a metadata file names, a list of values for each input it holds, and the column of each.

    Raises:
        ConfigError: if it cannot be read, names no images or images outside the folder, or lacks a column.
    """
    rows = [(_key(path, row.get(image_column)), row) for row in _records(path)]
    rows.sort(key=lambda pair: (folder_order(pair[0].rpartition("/")[0]), pair[0]))
    names = dict.fromkeys(name for _, row in rows for name in row if isinstance(name, str) and name != image_column)
    values = {column: [row.get(column) for _, row in rows] for column in names}
    if path.suffix == ".csv":
        values |= {column: numbers for column, texts in values.items() if (numbers := _numbers(texts)) is not None}
    chosen = choose_columns(values, columns, lambda name, column: _usable(name, values[column]), path.name)
    return [key for key, _ in rows], {name: values[column] for name, column in chosen.items()}, chosen


def _records(path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from _parsed(path)
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: cannot be read: {one_line(error)}") from error


def _parsed(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
            return
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(record, dict):
                raise ConfigError(f"{path}, line {number}: expected a JSON object with the name of an image")
            yield record


def _key(path: Path, name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{path}: a row names no image: found {name!r}")
    if "://" in name:
        raise ConfigError(f"{path}: names {name!r}, an address: images are not downloaded here: {DOWNLOAD}")
    key = PurePosixPath(name)
    if key.is_absolute() or ".." in key.parts:
        raise ConfigError(f"{path}: names {name!r}: expected a path inside the folder")
    return str(key)


def _numbers(texts: list[Any]) -> list[int | None] | None:
    """Return a column of a CSV file as integers, with None for empty cells; None if some cells are not integers."""
    try:
        return [int(text) if text else None for text in texts]
    except (TypeError, ValueError):
        return None


def _usable(name: str, values: list[Any]) -> bool:
    there = [value for value in values if value is not None]
    if not there:
        return False
    return all(integer(v) is not None if name == "labels" else isinstance(v, str) for v in there) or name not in _CHECKED


_CHECKED = ("labels", "prompts", "masks")
