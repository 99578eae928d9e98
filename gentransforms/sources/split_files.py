"""Which Parquet files or tar shards of a folder are those of a split, by the rules of Hugging Face `datasets`."""

from __future__ import annotations

import glob
import itertools
import os
import re
import shutil
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gentransforms.errors import ConfigError
from gentransforms.sources.hugging_face import import_datasets
from gentransforms.sources.image_column import may_hold_images
from gentransforms.wording import one_line

__all__ = ["choose_shards", "find_files", "names_parquet"]

# The words of `datasets` for each split; a word ends where the name does, or with one of `_BETWEEN`.
_WORDS = {
    "train": "train|training", "validation": "validation|valid|dev|val", "test": "test|testing|eval|evaluation",
}  # fmt: skip
_BETWEEN = r"[-._ 0-9/]"
_SHOWN = 3


def names_parquet(readme: Path) -> bool:
    """Return whether the ``configs`` at the top of a README.md name Parquet files, by the convention of `datasets`.

    Example:
        >>> names_parquet(Path("no/such/README.md"))
        False
    """
    return re.search(r"(?<!\bmetadata)\.parquet\b", _configs(readme)) is not None


def find_files(path: Path, split: str | None = None, config: str | None = None) -> list[Path]:
    """Return the Parquet files of a split, sorted by path; if `path` is a file, only that file.

    Splits follow from the names of files and folders, or from the ``configs`` of a README.md, by the rules of `datasets`.

    Args:
        path: a file or folder.
        split: name of the split; by default ``"train"``, or the only one.
        config: name of one of the configurations in README.md, or without one, of the folders that hold them.

    Raises:
        ConfigError: if there are no Parquet files, no such split or configuration, or several and none was chosen; if none was
            chosen and other files with images are in no split; if files named after another split would be mixed in, such as
            ``Test.parquet``, which `datasets` does not recognise; or if one of the files of a split is missing, such as
            ``train-00000-of-00003.parquet``.

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
    folder = path
    if config is not None and (path / config).is_dir() and not names_parquet(path / "README.md"):
        folder, config = path / config, None
    splits = _splits(folder, config)
    if not splits:
        raise ConfigError(f"{path}: expected a .parquet file, or a folder that holds some")
    taken = _choose(path, splits, split)
    if mixed := _configurations(path, taken, splits[taken]):
        raise ConfigError(f"{path}: holds the configurations {', '.join(map(repr, mixed))}: choose one with config=")
    chosen = any(re.search(r"\bdata_(files|dir)\b", _configs(place / "README.md")) for place in (path, folder))
    if not chosen:
        _refuse_other_case(path, taken, splits[taken])
    if split is None and not chosen:
        known = set(itertools.chain(*splits.values()))
        rest = (file for file in _parquet_in(folder.resolve()) if file not in known and file.name != "metadata.parquet")
        # Beside `train`, what is named after another split is no surprise; beside another split alone, train is.
        rest = (file for file in rest if taken != "train" or _named_split(_relative(file, path)) in ("", "train"))
        _refuse_others(path, taken, (_relative(file, path) for file in rest if may_hold_images(file)))
    if not chosen and (missing := _find_missing(splits[taken])):
        raise ConfigError(missing)
    return splits[taken]


def choose_shards(folder: Path, shards: Sequence[Path], split: str | None = None) -> list[Path]:
    """Return the tar files of a split among those of a folder, by the words for splits in their names; all if none has one.

    Raises:
        ConfigError: if there is no such split, or several and none was chosen; or other files are in none, and none was chosen.

    Warns:
        UserWarning: if one of N files is missing whose names end in ``-of-N``.

    Example:
        >>> names = ["cars-train-0.tar", "cars-train-1.tar", "cars-val-0.tar"]
        >>> [path.name for path in choose_shards(Path("cars"), [Path("cars", name) for name in names])]
        ['cars-train-0.tar', 'cars-train-1.tar']
    """
    splits: dict[str, list[Path]] = defaultdict(list)
    for path in shards:
        splits[_named_split(path.name)].append(path)
    others = splits.pop("", [])
    if not splits:
        splits, others = {"train": others}, []
    taken = _choose(folder, splits, split)
    if split is None:
        _refuse_others(folder, taken, (path.name for path in others))
    if missing := _find_missing(splits[taken]):  # keys are the names inside the shards, so a part of them keeps its keys
        warnings.warn(missing, stacklevel=4)
    return splits[taken]


def _choose(path: Path, splits: Mapping[str, Sequence[Path]], split: str | None) -> str:
    """Return which split is taken: the one asked for, ``"train"``, or the only one."""
    names = ", ".join(map(repr, splits))
    if split is None:
        split = next(iter(splits)) if len(splits) == 1 else "train"
        if split not in splits:
            raise ConfigError(f"{path}: holds the splits {names}: choose one with split=")
    if split not in splits:
        raise ConfigError(f"split={split!r}: {path} holds {names}")
    return split


def _refuse_others(path: Path, taken: str, others: Iterable[str]) -> None:
    """Raise if there are files of no split, which would be left out in silence."""
    found = list(itertools.islice(others, _SHOWN + 1))
    if found:
        shown = ", ".join(map(repr, found[:_SHOWN])) + (", …" if len(found) > _SHOWN else "")
        raise ConfigError(
            f"{path}: holds the split {taken!r}, and files in no split, which would be left out: {shown}: for the split alone, choose "
            f"split={taken!r}; for the others, give one of them, or move them out to a folder of their own"
        )


def _refuse_other_case(path: Path, taken: str, files: Sequence[Path]) -> None:
    """Raise for files named after another split in capitals or in one word with "set", which `datasets` takes for those of this one."""
    named = {name: _named_split(name) for name in (_relative(file, path) for file in files)}
    others = sorted(name for name, split in named.items() if split not in ("", taken))
    if others and len(set(named.values())) > 1:
        raise ConfigError(
            f"{path}: {others[0]!r} is named after a split, but counts as {taken!r}, as datasets knows words such as 'train' and 'test' in "
            "lower case and by themselves only: rename the files, or give one of them"
        )


def _find_missing(files: Sequence[Path]) -> str:
    """Return which of N files is missing whose names end in ``-of-N``; empty if none is. Rows have other numbers once it is there."""
    groups: dict[tuple[str, str], list[tuple[Path, str]]] = defaultdict(list)
    for file in files:
        if parts := re.match(r"(.*-)(\d+)-of-(\d+)(?!\d)", file.name):
            groups[parts[1], parts[3]].append((file, parts[2]))
    for (start, count), members in groups.items():
        sets = [members]
        if len({int(number) for _, number in members}) < len(members):  # those of several data sets, in folders
            sets = [[member for member in members if member[0].parent == folder] for folder in sorted({file.parent for file, _ in members})]
        for found in sets:
            numbers = {int(number) for _, number in found}
            first = 1 if int(count) in numbers else 0
            missing = next((i for i in range(first, first + int(count)) if i not in numbers), None)
            if missing is not None:
                example, number = found[0]
                name = f"{start}{missing:0{len(number)}}-of-{count}{example.suffix}"
                return (
                    f"{example.parent}: {name!r} is missing: {len(numbers)} of {int(count)} such files are there: download the others, or, "
                    f"for those alone, rename them without '-of-{count}'"
                )
    return ""


def _named_split(name: str) -> str:
    """Return the split that a relative path names; empty if none or several do."""
    found = [split for split, words in _WORDS.items() if re.search(rf"(?:^|{_BETWEEN})(?:{words})(?:set)?(?:{_BETWEEN}|$)", name, re.I)]
    return found[0] if len(found) == 1 else ""


def _configs(readme: Path) -> str:
    """Return the ``configs`` at the top of a README.md, by which `datasets` chooses files; empty if there are none."""
    try:
        text = readme.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        return ""
    top = re.match(r"\ufeff?\s*---\s*\n(.*?)\n---", text, re.DOTALL)
    configs = re.search(r"^configs:(.*?)(?=^[^\s#-]|\Z)", top[1], re.DOTALL | re.MULTILINE) if top else None
    return configs[1] if configs is not None else ""


def _configurations(path: Path, split: str, files: Sequence[Path]) -> list[str]:
    """Return the folders that each hold the same part of a split, as the Hub's configurations do; `datasets` would mix them."""
    folders: dict[str, set[str]] = {}
    for file in [] if names_parquet(path / "README.md") else files:
        folder, _, inside = _relative(file, path).partition("/")
        if re.match(rf"{re.escape(split)}\b", inside):
            folders.setdefault(re.sub(r"-of-\d+", "", inside), set()).add(folder)
    return sorted(set().union(*(names for names in folders.values() if len(names) > 1)))


def _relative(file: Path, folder: Path) -> str:
    return Path(os.path.relpath(file, folder.resolve())).as_posix()  # `datasets` follows links to the folder


def _parquet_in(folder: Path) -> list[Path]:
    """Return the Parquet files below a folder, without those that `datasets` skips."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        found += [Path(place, name) for name in names if name.endswith(".parquet") and not name.startswith(".")]
    return sorted(found)


def _splits(path: Path, config: str | None) -> dict[str, list[Path]]:
    datasets = import_datasets()
    try:
        # Otherwise `datasets` would leave an empty cache folder behind.
        with tempfile.TemporaryDirectory() as cache:
            names = _names_alone(path, Path(cache, "names")) if glob.has_magic(str(path.resolve())) else path
            found = _parquet_only(datasets.load_dataset_builder(str(names), config, cache_dir=cache))
            if not found:  # more files of another kind lie beside them
                found = _parquet_only(datasets.load_dataset_builder("parquet", data_dir=str(names), cache_dir=cache))
            if names != path:
                found = {split: [path.resolve() / _relative(file, names) for file in files] for split, files in found.items()}
    except Exception as error:  # of its many kinds; a ValueError lists the configurations
        given = f"config={config!r}: " if config is not None else ""
        advice = "; choose one with config=" if config is None and "config" in str(error).lower() else ""
        raise ConfigError(f"{given}{path}: datasets cannot tell which Parquet files to load: {one_line(error)}{advice}") from error
    return found


def _names_alone(path: Path, copy: Path) -> Path:
    """Return a folder with empty files of the same names: `datasets` takes a path with brackets for a pattern."""
    copy.mkdir()
    root = path.resolve()
    for file in _parquet_in(root):
        (copy / _relative(file, root)).parent.mkdir(parents=True, exist_ok=True)
        (copy / _relative(file, root)).touch()
    if (root / "README.md").is_file():
        shutil.copyfile(root / "README.md", copy / "README.md")
    return copy


def _parquet_only(builder: Any) -> dict[str, list[Path]]:
    """Return the Parquet files among the data files of a builder of `datasets`, by split."""
    found = builder.config.data_files or {}
    files = {str(split): sorted(Path(file) for file in names if file.endswith(".parquet")) for split, names in found.items()}
    return {split: names for split, names in files.items() if names}
