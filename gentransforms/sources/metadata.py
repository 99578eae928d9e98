"""Read the metadata file of an image folder, following Hugging Face's convention: which images there are, and their inputs."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
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


def find_metadata(root: Path, image_column: str | None) -> Path | None:
    """Return the metadata file of a folder, if there is one with an image column, by default ``file_name``.

    Raises:
        ConfigError: if there are only files without this column, and one of them describes images all the same: by the names of its
            columns, or as it names a file in the folder. Also if `image_column` is given.

    Warns:
        UserWarning: of other files, which are left aside.
    """
    others = {}
    for path in (root / name for name in METADATA_NAMES):
        if path.is_file():
            columns, values = _begin(path)
            if (image_column or "file_name") in columns:
                return path
            others[path] = columns, values
    for path, (columns, values) in others.items():
        _tell_other(path, image_column, columns, values)
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
        values = {column: _cells(texts) for column, texts in values.items()}
    chosen = choose_columns(values, columns, lambda name, column: _usable(name, values[column]), path.name)
    return [key for key, _ in rows], {name: values[column] for name, column in chosen.items()}, chosen


def _tell_other(path: Path, image_column: str | None, columns: Sequence[str], values: Sequence[Any]) -> None:
    """Raise for a metadata file without the image column, or warn if it seems to be about something else."""
    has = f"has {', '.join(map(repr, columns))}" if columns else "is empty"
    if image_column is not None:
        raise ConfigError(f"image_column={image_column!r}: {path} {has}")
    words = [word for name in columns for word in re.split("[;\t|]", name)]
    cells = [cell for value in values if isinstance(value, str) for cell in re.split("[;\t|]", value)]
    if not any(map(_is_known, words)) and not any(_names_file(path.parent, cell) for cell in cells):  # such as a list of classes
        warnings.warn(f"{path}: {has}, and no column 'file_name' with the names of images: this file is not used", stacklevel=5)
        return
    advice = "add that column"
    if len(words) > len(columns):
        advice = "save it with commas between the columns"
    else:
        named = [name for name, value in zip(columns, values, strict=False) if _names_file(path.parent, value)]
        named += [name for name in columns if _is_known(name)]
        if named:
            advice = f"rename {named[0]!r}, or give image_column={named[0]!r}"
    raise ConfigError(
        f"{path}: {has}, and no column 'file_name' with the names of the images: {advice}; or rename this file if it is about "
        "something else"
    )


def _is_known(column: str) -> bool:
    return column.strip().lower().replace(" ", "_") in _NAME_FILES


def _names_file(folder: Path, value: Any) -> bool:
    try:
        return isinstance(value, str) and "." in value and (folder / value).is_file()
    except (OSError, ValueError):  # text that is no path
        return False


def _begin(path: Path) -> tuple[Sequence[str], Sequence[Any]]:
    """Return the columns of a metadata file, and the values of the first row; none of an empty file."""
    if path.suffix != ".csv":
        row = next(_records(path), {})
        return list(row), list(row.values())
    with _reasons(path), path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        return next(rows, []), next(rows, [])


@contextlib.contextmanager
def _reasons(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: cannot be read: {one_line(error)}") from error


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with _reasons(path):
        yield from _parsed(path)


def _parsed(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            yield from _rows(path, csv.DictReader(file))
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


def _rows(path: Path, reader: csv.DictReader[str]) -> Iterator[dict[str, Any]]:
    for row in reader:
        if any(further := row.pop(None, ())):
            count = len(reader.fieldnames or ())
            raise ConfigError(
                f"{path}, line {reader.line_num}: {count + len(further)} cells, and the header names {count}: put double quotes around "
                "text with commas"
            )
        yield row


def _key(path: Path, name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{path}: a row names no image: found {name!r}")
    if "://" in name:
        raise ConfigError(f"{path}: names {name!r}, an address: images are not downloaded here: {DOWNLOAD}")
    key = PurePosixPath(name)
    if key.is_absolute() or ".." in key.parts:
        raise ConfigError(f"{path}: names {name!r}: expected a path inside the folder")
    return str(key)


def _cells(texts: list[Any]) -> list[Any]:
    """Return a column of a CSV file with None for empty cells, as integers if all others are."""
    there = [text or None for text in texts]
    try:
        return [None if text is None else int(text) for text in there]
    except ValueError:
        return there


def _usable(name: str, values: list[Any]) -> bool:
    there = [value for value in values if value is not None]
    if not there:
        return False
    return all(integer(v) is not None if name == "labels" else isinstance(v, str) for v in there) or name not in _CHECKED


_CHECKED = ("labels", "prompts", "masks")
# Columns that name the images of a folder, whatever the file in them.
_NAME_FILES = ("file", "filename", "file_name", "filenames", "file_names", "filepath", "file_path")
