"""A folder of images as a source: keys are the paths in it, labels its class folders, more in a metadata file."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from gentransforms.errors import ConfigError, SourceError
from gentransforms.sources.base import ImageSource, SourceSample
from gentransforms.sources.decode import SUFFIXES, check_folder, decode_image, one_line
from gentransforms.sources.inputs import choose_columns, input_value, integer

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ImageFolderSource"]

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class ImageFolderSource(ImageSource):
    """All images in a folder and its subfolders, in the order of torchvision's ImageFolder; hidden ones are skipped.

    If every image is in a subfolder, each sample carries ``labels``: the place of its first subfolder among those that hold
    images, in order of their names.
    With a file ``metadata.jsonl``, ``metadata.csv`` or ``metadata.parquet`` of Hugging Face's convention (a column
    ``file_name``), that file alone says which images there are and what they carry: labels, prompts, and masks as paths.

    Args:
        root: the folder.
        image_column: the column of the metadata file that names the images.
        columns: columns of the metadata file that hold inputs, ``{"prompts": "caption"}``; usual names are found.

    Raises:
        ConfigError: if there is no such folder, it holds no images, or the metadata file does not fit.

    Example:
        >>> from pathlib import Path
        >>> import gentransforms
        >>> source = ImageFolderSource(Path(gentransforms.__file__).parent / "samples")
        >>> source.keys[:2], source.read(0).image.shape
        (['airplane.png', 'automobile.png'], torch.Size([3, 32, 32]))
    """

    def __init__(self, root: str | Path, *, image_column: str | None = None, columns: Mapping[str, str] | None = None) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise ConfigError(f"{self.root}: no such folder: expected a folder of images")
        self._labels: dict[str, int] = {}
        self._carried: dict[str, list[Any]] = {}
        description: dict[str, Any] = {"kind": "image folder", "path": str(root)}
        metadata = _metadata_file(self.root, image_column or "file_name")
        if metadata is not None:
            keys, self._carried, chosen = _carried(metadata, image_column or "file_name", columns)
            decides = {"kind": "image folder", "image_column": image_column or "file_name", "columns": chosen}
            super().__init__(keys, inputs=self._carried, description=description | {"metadata": metadata.name, "decides": decides})
            return
        if columns or image_column:
            name, value = ("columns", columns) if columns else ("image_column", image_column)
            raise ConfigError(f"{name}={value!r}: {self.root} has no {' or '.join(_METADATA)} with such a column")
        keys = _images_in(self.root)
        if not keys:
            raise ConfigError(f"{self.root}: no images in this folder or its subfolders (looked for {', '.join(sorted(SUFFIXES))})")
        in_classes = all("/" in key for key in keys)
        decides = {"kind": "image folder"}
        if in_classes:
            # Not all subfolders: one without images, such as a bank that is put there, must not change the labels.
            self._labels = {name: i for i, name in enumerate(sorted({key.partition("/")[0] for key in keys}))}
            decides["folders"] = hashlib.blake2b(json.dumps(self._labels).encode(), digest_size=8).hexdigest()
        super().__init__(keys, inputs=("labels",) if in_classes else (), description=description | {"decides": decides})

    def read(self, index: int) -> SourceSample:
        try:
            return self._read(index)
        except SourceError as error:
            check_folder(self.root, error)
            raise

    def _read(self, index: int) -> SourceSample:
        key = str(self.keys[index])
        image = decode_image(self.root / key)
        inputs: dict[str, Any] = {}
        for name in self.inputs:
            value = self._carried[name][index] if name in self._carried else self._labels[key.partition("/")[0]]
            inputs[name] = input_value(name, value, self.root)
        return SourceSample(image, inputs)

    def select(self, names: Collection[str]) -> Self:
        fewer = super().select(names)
        if "labels" not in names:
            fewer.description["decides"].pop("folders", None)
        return fewer


def _images_in(root: Path) -> list[str]:
    """Return the paths of all images below a folder, sorted.

    What an entry is comes from the listing itself, so that millions of files are not looked at one by one.
    """
    names_in: dict[str, list[str]] = {}
    stack: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]
    while stack:
        folder, above = stack.pop()
        names: list[str] = []
        try:
            entries = os.scandir(root / folder)
        except OSError as error:
            raise ConfigError(f"{root / folder}: cannot be listed: {one_line(error)}") from error
        with entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if not _is_folder(entry):
                    if name[name.rfind(".") :].lower() in SUFFIXES:
                        names.append(name)
                    continue
                real = os.path.realpath(entry.path) if entry.is_symlink() else f"{above[-1]}{os.sep}{name}"
                if real in above:
                    continue  # a link to a folder that holds it: without end
                stack.append((f"{folder}/{name}" if folder else name, (*above, real)))
        if names:
            names_in[folder] = sorted(names)
    folders = sorted(names_in, key=_order)
    return [f"{folder}/{name}" if folder else name for folder in folders for name in names_in[folder]]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _order(folder: str) -> tuple[str, str]:
    """As torchvision goes through folders: class by class, then by the whole path."""
    return folder.partition("/")[0], folder


def _metadata_file(root: Path, image_column: str) -> Path | None:
    """The metadata file, if there is one that names images; data sets come with others of this name."""
    for path in (root / name for name in _METADATA):
        if path.is_file() and image_column in next(_records(path), {}):
            return path
    return None


def _carried(path: Path, image_column: str, columns: Mapping[str, str] | None) -> tuple[list[str], dict[str, list[Any]], dict[str, str]]:
    """Return the keys that a metadata file names, a list of values for each input it holds, and the column of each."""
    rows = [(_key(path, row.get(image_column)), row) for row in _records(path)]
    rows.sort(key=lambda pair: (_order(pair[0].rpartition("/")[0]), pair[0]))
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
    key = PurePosixPath(name)
    if key.is_absolute() or ".." in key.parts:
        raise ConfigError(f"{path}: names {name!r}: expected a path inside the folder")
    return str(key)


def _numbers(texts: list[Any]) -> list[int | None] | None:
    """A column of a CSV file as integers, where empty ones are missing; None if some are not."""
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
