"""Which column of a data set holds the images: one, and one image in each row."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NoReturn

from gentransforms.errors import ConfigError

__all__ = ["INPUT_COLUMNS", "only_image", "refuse_lists"]

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
