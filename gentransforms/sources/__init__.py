"""Images of any kind of data set, read in one way: `open_source` and `ImageSource`."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from gentransforms.errors import ConfigError
from gentransforms.sources.base import ImageSource, SourceSample
from gentransforms.sources.decode import one_line
from gentransforms.sources.keys import Key

__all__ = ["ImageSource", "SourceSample", "open_source"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def open_source(
    source: Any,
    *,
    key: Key | None = None,
    image_column: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    inputs_getter: Callable[[Any], Mapping[str, Any]] | None = None,
) -> ImageSource:
    """Return the source that fits: of a folder of images, Parquet files, a Hugging Face data set or any map-style data set.

    Args:
        source: a folder of images; a ``.parquet`` file or a folder of such; a folder that `datasets` wrote with
            ``save_to_disk``; the name of a data set on the Hub, ``"org/name"``; an object with ``len`` and an index, as
            the data sets of torchvision and `datasets` are; or an `ImageSource`, which is returned.
        key: the column that holds the keys; for objects also a function from the index to the key, or a list of keys.
            By default relative paths for a folder of images, else row numbers.
        image_column: where the image stands, if it cannot be found.
        columns: where inputs of the generator stand: ``{"prompts": "caption"}``.
        split: of a Hugging Face data set; ``"train"`` by default.
        inputs_getter: for objects, a function from a sample to its inputs: ``lambda sample: {"labels": sample[1]}``.

    Raises:
        ConfigError: if nothing that can be read is there, it holds no images, keys are not unique, or an option does not
            apply to it.

    Example:
        >>> import torch
        >>> source = open_source([(torch.zeros(3, 8, 8), 5), (torch.ones(3, 8, 8), 6)])
        >>> source.keys, source.inputs, source.read(1).inputs
        (range(0, 2), ('labels',), {'labels': 6})
    """
    options = {"key": key, "image_column": image_column, "columns": columns, "split": split, "inputs_getter": inputs_getter}
    if isinstance(source, ImageSource):
        _only(options, (), "an ImageSource")
        return source
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source), options)
    return _open_object(source, options)


def _open_path(source: str, options: Mapping[str, Any]) -> ImageSource:
    path = Path(source).expanduser()
    if not source or not path.exists():
        if _HUB_NAME.fullmatch(source):
            return _open_object(_load_dataset(source, options["split"] or "train"), {**options, "split": None}, name=source)
        raise ConfigError(
            f"source={source!r}: no such file or folder: expected a folder of images, a .parquet file or a folder of them, a folder that "
            "datasets' save_to_disk wrote, or the name of a Hugging Face data set, 'org/name'"
        )
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise ConfigError(f"source={source!r}: expected a folder of images or a .parquet file")
        return _open_parquet(path, options)
    if (path / "bank.json").exists():
        raise ConfigError(f"source={source!r}: is a bank: expected what banks are made from, such as a folder of images")
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return _open_object(_load_from_disk(path), options, name=source)
    if any(file.name != "metadata.parquet" for folder in (path, path / "data") for file in folder.glob("*.parquet")):
        return _open_parquet(path, options)
    from gentransforms.sources.folder import ImageFolderSource

    if options["key"] is not None:
        raise ConfigError(f"key={options['key']!r}: the keys of an image folder are its paths; for others, pass a data set object")
    return ImageFolderSource(path, **_only(options, ("image_column", "columns"), "a folder of images"))


def _open_parquet(path: Path, options: Mapping[str, Any]) -> ImageSource:
    from gentransforms.sources.parquet import ParquetSource

    return ParquetSource(path, **_only(options, ("key", "image_column", "columns", "split"), "Parquet files"))


def _open_object(source: Any, options: Mapping[str, Any], name: str | None = None) -> ImageSource:
    from gentransforms.sources.map_style import MapStyleSource

    if isinstance(source, Mapping):  # a DatasetDict too
        splits = ", ".join(map(repr, source))
        split = options["split"] or "train"
        if split not in source:
            raise ConfigError(f"split={split!r}: expected one of {splits}")
        source = source[split]
    elif options["split"] is not None:
        raise ConfigError(f"split={options['split']!r}: this data set has no splits: leave it out")
    return MapStyleSource(source, name=name, **_only({**options, "split": None}, ("key", "image_column", "columns", "inputs_getter"), ""))


def _only(options: Mapping[str, Any], allowed: Collection[str], what: str) -> dict[str, Any]:
    for name, value in options.items():
        if value is not None and name not in allowed:
            raise ConfigError(f"{name}={value!r}: does not apply to {what}: leave it out")
    return {name: options[name] for name in allowed}


def _load_dataset(name: str, split: str) -> Any:
    datasets = _datasets()
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # of the client, the network or the data set's own files
        raise ConfigError(
            f"source={name!r}: no such folder, and as a Hugging Face data set it cannot be loaded: {one_line(error)}"
        ) from error


def _load_from_disk(path: Path) -> Any:
    datasets = _datasets()
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:
        raise ConfigError(f"source={str(path)!r}: a data set of save_to_disk that cannot be loaded: {one_line(error)}") from error


def _datasets() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigError(f"Hugging Face data sets need datasets ({error}): install it with pip install 'gentransforms[bank]'") from error
