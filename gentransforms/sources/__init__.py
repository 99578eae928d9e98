"""Read the images of any kind of data set through one interface: `open_source` and `ImageSource`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from gentransforms.errors import ConfigError
from gentransforms.paths import local_path
from gentransforms.sources.base import ImageSource, SourceSample
from gentransforms.sources.hugging_face import load_from_disk, load_from_hub, load_shards
from gentransforms.sources.keys import Key

__all__ = ["ImageSource", "SourceSample", "open_source"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_OF_THE_HUB = ("config", "revision", "token")


def open_source(
    source: Any,
    *,
    split: str | None = None,
    image_column: str | None = None,
    columns: Mapping[str, str] | None = None,
    key: Key | None = None,
    inputs_getter: Callable[[Any], Mapping[str, Any]] | None = None,
    white_level: float | None = None,
    config: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> ImageSource:
    """Open a folder of images, Parquet files, tar shards, a Hugging Face data set or a map-style data set as an `ImageSource`.

    Args:
        source: a folder of images; a ``.parquet`` file or a folder of them; a ``.tar`` file or a folder of them, in WebDataset
            format; a folder that `datasets` wrote with ``save_to_disk``; the name of a data set on the Hub, ``"org/name"``; an
            object with ``__len__`` and ``__getitem__``, such as the data sets of torchvision and `datasets`; or an
            `ImageSource`, which is returned unchanged.
        split: split of a Hugging Face data set, or of a folder of Parquet files or tar shards; by default ``"train"``, or the only
            one in a folder.
        image_column: column with the images, if it cannot be inferred.
        columns: columns with further inputs of the generator: ``{"prompts": "caption"}``.
        key: column with the keys; for objects also a function from index to key, or a list of keys. By default relative paths
            for a folder of images, the names in tar shards, and otherwise row numbers.
        inputs_getter: for objects, a function from a sample to its inputs: ``lambda sample: {"labels": sample[1]}``.
        white_level: the value of white in grey images with more than 8 bits, such as 1023 for 10 bits; 65535 by default.
        config: configuration of a data set that has several.
        revision: branch, tag or commit of a data set on the Hub.
        token: token for a private data set on the Hub; by default the one that ``hf auth login`` stored.

    Raises:
        ConfigError: if the source cannot be read or holds no images, keys are not unique, or an option does not apply.

    Example:
        >>> import torch
        >>> source = open_source([(torch.zeros(3, 8, 8), 5), (torch.ones(3, 8, 8), 6)])
        >>> source.keys, source.inputs, next(source.read_range(1, 2)).inputs
        (range(0, 2), ('labels',), {'labels': 6})
    """
    options = {
        "split": split, "image_column": image_column, "columns": columns, "key": key, "inputs_getter": inputs_getter,
        "white_level": white_level, "config": config, "revision": revision, "token": token,
    }  # fmt: skip
    if white_level is not None and (isinstance(white_level, bool) or not isinstance(white_level, int | float) or not white_level > 0):
        raise ConfigError(f"white_level={white_level!r}: expected a positive number, such as 1023 for 10 bits")
    if isinstance(source, ImageSource):
        _only(options, (), "an ImageSource")
        return source
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source), options)
    return _open_object(source, options)


def _open_path(source: str, options: Mapping[str, Any]) -> ImageSource:
    path = local_path(source, "source") if source else Path()
    if not source or not path.exists():
        if _HUB_NAME.fullmatch(source):
            loaded = load_from_hub(source, options["split"] or "train", **{name: options[name] for name in _OF_THE_HUB})
            return _open_object(loaded, _without(options, "split", *_OF_THE_HUB), name=source, fixed=_given(options, "config", "revision"))
        raise ConfigError(
            f"source={source!r}: no such file or folder: expected a folder of images, a .parquet file or a folder of them, tar shards, a "
            "folder that datasets' save_to_disk wrote, or the name of a Hugging Face data set, 'org/name'"
        )
    if path.is_file():
        if path.suffix.lower() == ".parquet":
            return _open_parquet(path, options)
        if path.suffix.lower() == ".tar":
            if options["split"] is not None:
                raise ConfigError(f"split={options['split']!r}: {path} is one file: leave it out, or give the folder")
            return _open_shards([path], options, source)
        raise ConfigError(f"source={source!r}: expected a folder of images, a .parquet file, or a .tar file in WebDataset format")
    if (path / "bank.json").exists():
        raise ConfigError(f"source={source!r}: this is a bank: expected what banks are made from, such as a folder of images")
    from gentransforms.sources.contents import kind_of_folder, shards_in
    from gentransforms.sources.folder import ImageFolderSource
    from gentransforms.sources.split_files import choose_shards

    kind = kind_of_folder(path)
    if kind == "saved":
        return _open_object(load_from_disk(path), options, name=source)
    if kind == "parquet":
        return _open_parquet(path, options)
    if kind == "shards":
        return _open_shards(choose_shards(path, shards_in(path), options["split"]), options, source)

    if options["key"] is not None:
        raise ConfigError(f"key={options['key']!r}: the keys of an image folder are its paths; for others, pass a data set object")
    return ImageFolderSource(path, **_only(options, ("image_column", "columns", "white_level"), "a folder of images"))


def _open_parquet(path: Path, options: Mapping[str, Any]) -> ImageSource:
    from gentransforms.sources.parquet import ParquetSource

    allowed = ("key", "image_column", "columns", "split", "white_level", "config")
    return ParquetSource(path, **_only(options, allowed, "Parquet files"))


def _open_shards(paths: Sequence[Path], options: Mapping[str, Any], name: str) -> ImageSource:
    # Not the split that is taken by default: a bank may have been begun when all were called "train".
    loaded = load_shards(paths, options["split"] or "train")
    key = "__key__" if options["key"] is None else options["key"]
    return _open_object(loaded, {**_without(options, "split"), "key": key}, name=name)


def _open_object(source: Any, options: Mapping[str, Any], name: str | None = None, fixed: Mapping[str, Any] | None = None) -> ImageSource:
    from gentransforms.sources.map_style import MapStyleSource

    if isinstance(source, Mapping):  # a DatasetDict too
        splits = ", ".join(map(repr, source))
        split = options["split"] or (next(iter(source)) if len(source) == 1 else "train")
        if split not in source:
            raise ConfigError(f"split={split!r}: expected one of {splits}")
        source = source[split]
    elif options["split"] is not None:
        raise ConfigError(f"split={options['split']!r}: this data set has no splits: leave it out")
    allowed = ("key", "image_column", "columns", "inputs_getter", "white_level")
    opened = MapStyleSource(source, name=name, **_only(_without(options, "split"), allowed, "a data set object"))
    opened.description["decides"] |= fixed or {}
    return opened


def _only(options: Mapping[str, Any], allowed: Collection[str], what: str) -> dict[str, Any]:
    for name, value in options.items():
        if value is not None and name not in allowed:
            raise ConfigError(f"{name}={value!r}: does not apply to {what}: leave it out")
    return {name: options[name] for name in allowed}


def _without(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: None if name in names else value for name, value in options.items()}


def _given(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if options[name] is not None}
