"""Load Hugging Face data sets from the Hub, from disk or from tar shards; `datasets` is imported only when needed."""

from __future__ import annotations

import glob
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gentransforms.errors import ConfigError
from gentransforms.wording import one_line

__all__ = ["import_datasets", "load_from_disk", "load_from_hub", "load_shards"]


def import_datasets() -> Any:
    """Import and return the module `datasets`.

    Raises:
        ConfigError: if it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigError(f"Hugging Face data sets need datasets ({error}): install it with pip install 'gentransforms[bank]'") from error


def load_from_hub(name: str, split: str, *, config: str | None = None, revision: str | None = None, token: str | None = None) -> Any:
    """Load a split of a data set on the Hub.

    Args:
        name: ``"org/name"``.
        split: name of the split, such as ``"train"``.
        config: name of one of its configurations.
        revision: a branch, tag or commit.
        token: token for a private data set; by default the one that ``hf auth login`` stored.

    Raises:
        ConfigError: if it cannot be loaded, with the reason.
    """
    datasets = import_datasets()
    options = {"name": config, "revision": revision, "token": token}
    try:
        return datasets.load_dataset(name, split=split, **{option: value for option, value in options.items() if value is not None})
    except Exception as error:  # of the client, the network or the data set's own files
        advice = "; choose a configuration with config=" if config is None and "config" in str(error).lower() else ""
        raise ConfigError(
            f"source={name!r}: no such folder, and as a Hugging Face data set it cannot be loaded: {one_line(error)}{advice}"
        ) from error


def load_from_disk(path: Path) -> Any:
    """Load a data set that ``save_to_disk`` wrote.

    Raises:
        ConfigError: if it cannot be loaded, with the reason.
    """
    datasets = import_datasets()
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:
        raise ConfigError(f"source={str(path)!r}: this data set, written by save_to_disk, cannot be loaded: {one_line(error)}") from error


def load_shards(paths: Sequence[Path], split: str = "train") -> Any:
    """Load tar files in WebDataset format as one data set, the split of this name; `datasets` keeps a copy in its cache.

    Raises:
        ConfigError: if they cannot be loaded, with the reason.
    """
    datasets = import_datasets()
    try:
        return datasets.load_dataset("webdataset", data_files={split: [glob.escape(str(path)) for path in paths]}, split=split)
    except Exception as error:
        raise ConfigError(f"source={str(paths[0])!r}: cannot be loaded as tar shards of WebDataset: {one_line(error)}") from error
