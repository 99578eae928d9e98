"""Where the images of a bank come from: one interface, and the source that fits what the user has."""

from __future__ import annotations

import copy
import importlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gentransforms.errors import ConfigError
from gentransforms.sources.decode import one_line
from gentransforms.sources.keys import Key, Keys, check_keys

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BankSource", "SourceSample", "open_source"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class SourceSample:
    """One image, uint8 or floating (C, H, W) with C 1 or 3, and what stands beside it: ``{"labels": 3}``."""

    image: Tensor
    inputs: dict[str, Any] = field(default_factory=dict)


class BankSource(ABC):
    """Images with unique keys, in a fixed order; what `gentransforms.generate_bank` reads. A subclass implements `read`.

    It is read by several threads at once, and pickled to other processes.

    Args:
        keys: one for each image, in order: all str or all int.
        inputs: what each sample carries beside its image, such as ``("labels",)``.
        description: what it is, JSON-able, for the bank's manifest. Its entry ``"decides"``, ``{}`` unless given, holds what
            the samples follow from and never a path: a bank is resumed only from a source where it is the same.

    Raises:
        ConfigError: if two keys are equal, they are not all str or all int, or there are none.

    Example:
        >>> import torch
        >>> class Grey(BankSource):
        ...     def read(self, index):
        ...         return SourceSample(torch.full((3, 8, 8), index / 10))
        >>> source = Grey(["dark", "bright"])
        >>> len(source), source.key_type
        (2, 'str')
    """

    keys: Keys
    key_type: str
    inputs: tuple[str, ...]
    description: dict[str, Any]

    def __init__(self, keys: Iterable[Any], *, inputs: Iterable[str] = (), description: Mapping[str, Any] | None = None) -> None:
        self.description = {"decides": {}, **(description or {"kind": type(self).__name__})}
        self.keys, self.key_type = check_keys(keys, str(self.description.get("path", type(self).__name__)))
        self.inputs = tuple(inputs)

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def read(self, index: int) -> SourceSample:
        """Return the sample at a place from 0 to ``len - 1``, with every one of `inputs`.

        Raises:
            SourceError: for anything that is wrong with this one sample.
            OSError: if it is not this sample: a disk that went away, no file handles left. A run stops.
        """

    def select(self, names: Collection[str]) -> Self:
        """Return this source with only those of its inputs that are named: the others are not read.

        Example:
            >>> from gentransforms.sources.map_style import MapStyleSource
            >>> import torch
            >>> MapStyleSource([(torch.zeros(3, 8, 8), 5)]).select(["prompts"]).inputs
            ()
        """
        fewer = copy.copy(self)
        fewer.inputs = tuple(name for name in self.inputs if name in names)
        decides = dict(self.description["decides"])
        if "columns" in decides:
            decides["columns"] = {name: column for name, column in decides["columns"].items() if name in names}
        fewer.description = {**self.description, "decides": decides}
        return fewer


def open_source(
    source: Any,
    *,
    key: Key | None = None,
    image_column: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    inputs_getter: Callable[[Any], Mapping[str, Any]] | None = None,
) -> BankSource:
    """Return the source that fits: of a folder of images, Parquet files, a Hugging Face data set or any map-style data set.

    Args:
        source: a folder of images; a ``.parquet`` file or a folder of such; a folder that `datasets` wrote with
            ``save_to_disk``; the name of a data set on the Hub, ``"org/name"``; an object with ``len`` and an index, as
            the data sets of torchvision and `datasets` are; or a `BankSource`, which is returned.
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
    if isinstance(source, BankSource):
        _only(options, (), "a BankSource")
        return source
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source), options)
    return _open_object(source, options)


def _open_path(source: str, options: Mapping[str, Any]) -> BankSource:
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


def _open_parquet(path: Path, options: Mapping[str, Any]) -> BankSource:
    from gentransforms.sources.parquet import ParquetSource

    return ParquetSource(path, **_only(options, ("key", "image_column", "columns", "split"), "Parquet files"))


def _open_object(source: Any, options: Mapping[str, Any], name: str | None = None) -> BankSource:
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
