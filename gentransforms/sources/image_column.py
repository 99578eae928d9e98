"""Which column of a data set holds the images: one, and one image in each row."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NoReturn

from gentransforms.errors import ConfigError
from gentransforms.sources.arrow import arrow

__all__ = [
    "INPUT_COLUMNS", "features_of", "holds_images", "holds_lists", "image_columns", "may_hold_images", "only_image", "refuse_lists",
]  # fmt: skip

# Columns of images that are inputs of a generator by their name, as `gentransforms.sources.inputs` recognises them.
INPUT_COLUMNS = ("masks", "mask", "control_maps", "control_map")


def only_image(columns: Iterable[str], taken: Collection[str | None], where: str) -> str | None:
    """Return the one column that may hold the images; None if there is none.

    Args:
        columns: all columns of images.
        taken: those with another use.
        where: what has these columns, for errors.

    Raises:
        ConfigError: if there are several, whatever their names: a wrong guess would make a bank of other images.

    Example:
        >>> only_image(["photo", "mask"], (), "data set")
        'photo'
    """
    free = [name for name in columns if name not in taken and name not in INPUT_COLUMNS]
    if len(free) > 1:
        first, other = ("image", next(name for name in free if name != "image")) if "image" in free else free[:2]
        raise ConfigError(
            f"{where}: any of the columns {', '.join(map(repr, free))} may be the image: say which with image_column={first!r}, or what "
            f"the others are with columns=, such as columns={{'masks': {other!r}}}"
        )
    return free[0] if free else None


def refuse_lists(column: str, where: str) -> NoReturn:
    """Raise for a column of lists of images, of which none is the image more than another.

    Raises:
        ConfigError: always, with what to do.

    Example:
        >>> refuse_lists("views", "this Dataset")
        Traceback (most recent call last):
        ...
        gentransforms.errors.ConfigError: this Dataset: 'views' holds lists of images: expected one image a row, such as the first: ...
    """
    raise ConfigError(
        f"{where}: {column!r} holds lists of images: expected one image a row, such as the first: load it with datasets, and give "
        f"dataset.map(lambda row: {{'image': row[{column!r}][0]}}, remove_columns={column!r})"
    )


def may_hold_images(path: Path) -> bool:
    """Return whether a Parquet file has a column that may hold images; True also if the file cannot be read.

    Example:
        >>> import tempfile, pyarrow, pyarrow.parquet
        >>> path = Path(tempfile.mkdtemp()) / "scores.parquet"
        >>> pyarrow.parquet.write_table(pyarrow.table({"file": ["cat.png"], "score": [0.5]}), path)
        >>> may_hold_images(path)
        False
    """
    arrow()
    import pyarrow.parquet

    try:
        return any(image_columns(pyarrow.parquet.read_schema(path)))
    except (OSError, ValueError):
        return True


def features_of(schema: Any) -> dict[str, dict[str, Any]]:
    """Return the features that Hugging Face `datasets` left in the metadata, by column; none if there are none to be read.

    Example:
        >>> import pyarrow as pa
        >>> features_of(pa.schema([("image", pa.binary())]))
        {}
    """
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (TypeError, KeyError, ValueError, AttributeError):
        return {}


def image_columns(schema: Any) -> list[list[str]]:
    """Return the columns that may hold the images, the most certain kind first: marked, structs, bytes.

    Example:
        >>> import pyarrow as pa
        >>> image_columns(pa.schema([("photo", pa.binary()), ("caption", pa.string())]))
        [[], [], ['photo']]
    """
    import pyarrow as pa

    features = features_of(schema)
    marked = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
    structs = [name for name in schema.names if pa.types.is_struct(schema.field(name).type) and holds_images(schema.field(name).type)]
    plain = [name for name in schema.names if _is_bytes(schema.field(name).type)]
    return [marked, structs, plain]


def holds_images(kind: Any) -> bool:
    """Return whether values of an Arrow type may be encoded images: bytes, or a struct with ``bytes``.

    Example:
        >>> import pyarrow as pa
        >>> holds_images(pa.binary()), holds_images(pa.string())
        (True, False)
    """
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return bool(place >= 0 and _is_bytes(kind.field(place).type))
    return _is_bytes(kind)


def holds_lists(kind: Any) -> bool:
    """Return whether values of an Arrow type may be lists of encoded images, however deep.

    Example:
        >>> import pyarrow as pa
        >>> holds_lists(pa.list_(pa.binary())), holds_lists(pa.binary())
        (True, False)
    """
    import pyarrow as pa

    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and (holds_images(kind.value_type) or holds_lists(kind.value_type)))


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
