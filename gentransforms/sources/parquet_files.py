"""Find the Parquet files of a split in a folder: those that Hugging Face `datasets` would load."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gentransforms.errors import ConfigError
from gentransforms.sources.hugging_face import import_datasets
from gentransforms.wording import one_line

__all__ = ["find_files", "names_parquet"]


def names_parquet(readme: Path) -> bool:
    """Return whether the ``configs`` at the top of a README.md name Parquet files, by the convention of `datasets`.

    Example:
        >>> names_parquet(Path("no/such/README.md"))
        False
    """
    try:
        text = readme.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        return False
    top = re.match(r"\ufeff?\s*---\s*\n(.*?)\n---", text, re.DOTALL)
    configs = re.search(r"^configs:(.*?)(?=^[^\s#-]|\Z)", top[1], re.DOTALL | re.MULTILINE) if top else None
    return configs is not None and re.search(r"(?<!\bmetadata)\.parquet\b", configs[1]) is not None


def find_files(path: Path, split: str | None = None, config: str | None = None) -> list[Path]:
    """Return the Parquet files of a split, sorted by path; if `path` is a file, only that file.

    Splits follow from the names of files and folders, or from the ``configs`` of a README.md, by the rules of `datasets`.

    Args:
        path: a file or folder.
        split: name of the split; by default ``"train"``, or the only one.
        config: name of one of the configurations in README.md, or without one, of the folders that hold them.

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
    if mixed := _configurations(path, split, splits[split]):
        raise ConfigError(f"{path}: holds the configurations {', '.join(map(repr, mixed))}: choose one with config=")
    return splits[split]


def _configurations(path: Path, split: str, files: Sequence[Path]) -> list[str]:
    """Return the folders that each hold the same part of a split, as the Hub's configurations do; `datasets` would mix them."""
    folders: dict[str, set[str]] = {}
    for file in [] if names_parquet(path / "README.md") else files:
        folder, _, inside = Path(os.path.relpath(file, path)).as_posix().partition("/")
        if re.match(rf"{re.escape(split)}\b", inside):
            folders.setdefault(re.sub(r"-of-\d+", "", inside), set()).add(folder)
    return sorted(set().union(*(names for names in folders.values() if len(names) > 1)))


def _splits(path: Path, config: str | None) -> dict[str, list[Path]]:
    if config is not None and (path / config).is_dir() and not names_parquet(path / "README.md"):
        return _splits(path / config, None)
    datasets = import_datasets()
    try:
        # Otherwise `datasets` would leave an empty cache folder behind.
        with tempfile.TemporaryDirectory() as cache:
            found = _parquet_only(datasets.load_dataset_builder(str(path), config, cache_dir=cache))
            if not found:  # more files of another kind lie beside them
                found = _parquet_only(datasets.load_dataset_builder("parquet", data_dir=str(path), cache_dir=cache))
    except Exception as error:  # of its many kinds; a ValueError lists the configurations
        given = f"config={config!r}: " if config is not None else ""
        advice = "; choose one with config=" if config is None and "config" in str(error).lower() else ""
        raise ConfigError(f"{given}{path}: datasets cannot tell which Parquet files to load: {one_line(error)}{advice}") from error
    return found


def _parquet_only(builder: Any) -> dict[str, list[Path]]:
    """Return the Parquet files among the data files of a builder of `datasets`, by split."""
    found = builder.config.data_files or {}
    files = {str(split): sorted(Path(file) for file in names if file.endswith(".parquet")) for split, names in found.items()}
    return {split: names for split, names in files.items() if names}
