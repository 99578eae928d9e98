"""Find the Parquet files of a split in a folder: those that Hugging Face `datasets` would load."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from gentransforms.errors import ConfigError
from gentransforms.sources.decode import one_line
from gentransforms.sources.hugging_face import import_datasets

__all__ = ["find_files", "holds_parquet"]

_LOOKED_AT = 8  # entries of each subfolder that are checked: a folder of images may hold millions


def holds_parquet(folder: Path) -> bool:
    """Return whether a folder, or a direct subfolder, holds Parquet files other than the metadata of an image folder."""
    subfolders = (entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = itertools.chain(folder.glob("*.parquet"), *(itertools.islice(sub.iterdir(), _LOOKED_AT) for sub in subfolders))
    return any(path.suffix == ".parquet" and path.name != "metadata.parquet" for path in found)


def find_files(path: Path, split: str | None = None, config: str | None = None) -> list[Path]:
    """Return the Parquet files of a split, sorted by path; if `path` is a file, only that file.

    Splits follow from the names of files and folders, or from the ``configs`` of a README.md, by the rules of `datasets`.

    Args:
        path: a file or folder.
        split: name of the split; by default ``"train"``, or the only one.
        config: name of one of the configurations in README.md.

    Raises:
        ConfigError: if there are no Parquet files, no such split or configuration, or several and none was chosen.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"):
        ...     _ = (folder / name).write_bytes(b"PAR1")
        >>> [file.name for file in find_files(folder, "test")]
        ['test-00000-of-00001.parquet']
    """
    if path.is_file():
        for name, value in (("split", split), ("config", config)):
            if value is not None:
                raise ConfigError(f"{name}={value!r}: {path} is one file: leave it out, or give the folder")
        return [path]
    splits = _splits(path, config)
    if not splits:
        raise ConfigError(f"{path}: expected a .parquet file, or a folder that holds some")
    names = ", ".join(map(repr, splits))
    if split is None:
        split = next(iter(splits)) if len(splits) == 1 else "train"
        if split not in splits:
            raise ConfigError(f"{path}: holds the splits {names}: choose one with split=")
    if split not in splits:
        raise ConfigError(f"split={split!r}: {path} holds {names}")
    return splits[split]


def _splits(path: Path, config: str | None) -> dict[str, list[Path]]:
    datasets = import_datasets()
    try:
        # Otherwise `datasets` would leave an empty cache folder behind.
        with tempfile.TemporaryDirectory() as cache:
            found = datasets.load_dataset_builder(str(path), config, cache_dir=cache).config.data_files or {}
    except Exception as error:  # of its many kinds; a ValueError lists the configurations
        given = f"config={config!r}: " if config is not None else ""
        advice = "; choose one with config=" if config is None and "config" in str(error).lower() else ""
        raise ConfigError(f"{given}{path}: datasets cannot tell which Parquet files to load: {one_line(error)}{advice}") from error
    files = {str(split): sorted(Path(file) for file in names if file.endswith(".parquet")) for split, names in found.items()}
    return {split: names for split, names in files.items() if names}
