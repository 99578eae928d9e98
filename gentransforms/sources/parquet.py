"""Parquet files with an image column as a source."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentransforms.errors import ConfigError, SourceError
from gentransforms.paths import local_path
from gentransforms.sources.arrow import arrow
from gentransforms.sources.base import ImageSource, SourceSample
from gentransforms.sources.decode import DOWNLOAD, decode_oriented, find_file
from gentransforms.sources.image_column import features_of, holds_images, holds_lists, image_columns, only_image, refuse_lists
from gentransforms.sources.inputs import choose_columns, input_value, names_in_feature
from gentransforms.sources.keys import Keys
from gentransforms.sources.parquet_rows import RowReader
from gentransforms.sources.split_files import find_files
from gentransforms.sources.white import WhiteLevel
from gentransforms.wording import one_line

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ParquetSource"]

_ADDRESSES = ("image_url", "img_url", "url", "uri", "image_uri")
_ARE_ADDRESSES = f"seems to hold addresses, and images are not downloaded here: {DOWNLOAD}"


class ParquetSource(ImageSource):
    """The rows of a Parquet file, or of the files of one split in a folder, sorted by name; read on demand.

    The image column is the one marked as such for Hugging Face `datasets`, or else a struct with ``bytes``, or else a column
    of bytes. Labels, prompts and masks come from columns with these names.

    Args:
        path: a ``.parquet`` file, or a folder of them.
        key: column with the keys; the row number by default.
        image_column: column with the images, if it cannot be inferred.
        columns: columns with inputs: ``{"prompts": "caption"}``; common names are recognised.
        split: split of a folder, as found by `datasets`; by default ``"train"``, or the only one.
        config: configuration, for a folder with a README.md that lists several.
        white_level: value of white in grey images with more than 8 bits, if not 65535.

    Raises:
        ConfigError: if there are no such files or columns, several columns may be the image, or keys are not unique.

    Example:
        >>> import tempfile, pyarrow, pyarrow.parquet
        >>> import gentransforms
        >>> photo = Path(gentransforms.__file__).parent / "samples" / "cat.png"
        >>> table = pyarrow.table({"photo": [photo.read_bytes()], "label": [3], "name": ["cat"]})
        >>> pyarrow.parquet.write_table(table, Path(tempfile.gettempdir()) / "cats.parquet")
        >>> source = ParquetSource(Path(tempfile.gettempdir()) / "cats.parquet", key="name")
        >>> source.keys, source.inputs, next(source.read_range(0, 1)).image.shape
        (['cat'], ('labels',), torch.Size([3, 32, 32]))
    """

    def __init__(
        self,
        path: str | Path,
        *,
        key: str | None = None,
        image_column: str | None = None,
        columns: Mapping[str, str] | None = None,
        split: str | None = None,
        config: str | None = None,
        white_level: float | None = None,
    ) -> None:
        self._white_level = WhiteLevel(white_level)
        self._files = find_files(local_path(path), split, config)
        parts = [_open(file) for file in self._files]
        schema = parts[0].schema_arrow
        for name, column in (("key", key), ("image_column", image_column)):
            if column is not None and (not isinstance(column, str) or column not in schema.names):
                raise ConfigError(f"{name}={column!r}: expected a column of {self._files[0]}: {', '.join(map(repr, schema.names))}")
        images = image_columns(schema)
        self._features = features_of(schema)
        self._columns = choose_columns(schema.names, columns, lambda name, column: _usable(name, schema, column), str(path))
        self._image = image_column or _the_image(images, {*self._columns.values(), key}, self._files[0], parts[0])
        self._columns = {name: column for name, column in self._columns.items() if column not in (self._image, key)}
        if image_column is not None and holds_lists(schema.field(image_column).type):
            refuse_lists(image_column, str(path))
        if image_column is not None and not holds_images(schema.field(image_column).type):
            raise ConfigError(
                f"image_column={image_column!r}: of type {schema.field(image_column).type}: expected bytes, or a struct with bytes"
                f"{f'; it {_ARE_ADDRESSES}' if image_column.lower() in _ADDRESSES else ''}"
            )
        for file, part in zip(self._files, parts, strict=True):
            _check_alike(file, part.schema_arrow, schema, (self._image, *self._columns.values(), *([key] if key else [])))
        self._counts = [[part.metadata.row_group(i).num_rows for i in range(part.num_row_groups)] for part in parts]
        keys = range(sum(map(sum, self._counts))) if key is None else _keys(parts, key, path)
        for part in parts:
            part.close()
        description = {"kind": "parquet", "path": str(path), "files": len(parts), "image_column": self._image, "key": key}
        decides: dict[str, Any] = {
            "kind": "parquet",
            "key": key,
            "image_column": self._image,
            "columns": dict(self._columns),
            "split": split,
        }
        decides |= {name: value for name, value in {"config": config, "white_level": white_level}.items() if value is not None}
        super().__init__(keys, inputs=self._columns, description=description | ({"split": split} if split else {}) | {"decides": decides})
        self._rows = self._reader()

    def read_range(self, start: int, stop: int) -> Iterator[SourceSample | SourceError]:
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} of {len(self)}")
        for row in self._rows.read_range(start, stop):
            try:
                yield row if isinstance(row, SourceError) else self._sample(row)
            except SourceError as error:
                yield error

    def _sample(self, row: Mapping[str, Any]) -> SourceSample:
        folder = self._files[0].parent
        value = row[self._image]
        if isinstance(value, Mapping):
            path = value.get("path")
            value = value.get("bytes")
            value = find_file(path, folder) if value is None and path else value
        if value is None:
            raise SourceError("no image in this row")
        image, stored = decode_oriented(value, self._white_level)
        return SourceSample(image, {name: input_value(name, row[self._columns[name]], stored, folder) for name in self.inputs})

    def class_names(self, name: str) -> list[str] | None:
        return names_in_feature(self._features.get(self._columns.get(name, "")))

    def select(self, names: Collection[str]) -> Self:
        fewer = super().select(names)
        fewer._rows = fewer._reader()
        return fewer

    def _reader(self) -> RowReader:
        return RowReader(list(zip(self._files, self._counts, strict=True)), [self._image, *(self._columns[name] for name in self.inputs)])


def _open(path: Path) -> Any:
    arrow()
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a Parquet file: {one_line(error)}") from error


def _keys(parts: Iterable[Any], key: str, path: str | Path) -> Keys:
    keys: list[Any] = []
    for part in parts:
        keys += part.read(columns=[key])[key].to_pylist()
    if None in keys:
        raise ConfigError(f"key={key!r}: row {keys.index(None)} of {path} has none")
    return keys


def _the_image(kinds: Sequence[Sequence[str]], taken: Collection[Any], file: Path, part: Any) -> str:
    for kind in kinds:
        if (found := only_image(kind, taken, str(file))) is not None:
            return found
    names = part.schema_arrow.names
    for name in names:
        if name not in taken and holds_lists(part.schema_arrow.field(name).type):
            refuse_lists(name, str(file))
    first = next(part.iter_batches(batch_size=1), None)
    row = first.to_pylist()[0] if first is not None and len(first) else {}
    addresses = [name for name in names if name.lower() in _ADDRESSES]
    addresses += [name for name, value in row.items() if isinstance(value, str) and re.match(r"\w+://", value)]
    if addresses:
        raise ConfigError(f"{file}: no column of images, and {addresses[0]!r} {_ARE_ADDRESSES}")
    raise ConfigError(
        f"{file}: no column of images among {', '.join(map(repr, names))}: expected one of bytes; say which with image_column="
    )


def _usable(name: str, schema: Any, column: str) -> bool:
    import pyarrow as pa

    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if name == "labels":
        return bool(pa.types.is_integer(kind))
    text = bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
    if name == "prompts":
        return text
    return text or holds_images(kind) if name == "masks" else True


def _check_alike(file: Path, schema: Any, first: Any, columns: Iterable[str]) -> None:
    for column in columns:
        if column not in schema.names:
            raise ConfigError(f"{file}: has no column {column!r}, which the first file has: expected files of one data set")
        if schema.field(column).type != first.field(column).type:
            raise ConfigError(
                f"{file}: column {column!r} is of type {schema.field(column).type}, in the first file {first.field(column).type}: "
                "expected files of one data set"
            )
