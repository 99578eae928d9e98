"""Keys of a data set's images: one rule for the source of a bank and for the data set that the bank is used with."""

from __future__ import annotations

import operator
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from gentransforms.errors import ConfigError
from gentransforms.sources.inputs import integer
from gentransforms.wording import name_type

__all__ = ["Key", "Keyed", "Keys", "as_keys", "check_keys", "list_keys", "tell_other_root"]

Keys = Sequence[str] | Sequence[int]
# How a user may specify the keys: a function of the index, the column that holds them, or a list of all.
Key = Callable[[int], str | int] | str | Sequence[str | int]

_SHOWN = 3


class Keyed:
    """A data set that knows the keys of its samples, in order."""

    keys: Keys


def list_keys(dataset: Any, key: Key | None = None) -> Keys:
    """Return the key of each sample of a map-style data set, in order, without reading the samples.

    By default a torchvision ImageFolder has the paths relative to its root; a `Subset`, the keys that its samples have in the
    whole data set; a `ConcatDataset`, the keys of its parts if all of them have keys of their own; a data set returned by
    `with_keys`, its own keys; and any other, row numbers. A Hugging Face data set that was shuffled, filtered or selected
    from keeps the row numbers of the whole; but after `select` of a range, `take`, `skip` and `shard`, rows count from 0
    again: pass a ``key`` for these.

    Args:
        dataset: a data set with ``__len__`` and ``__getitem__``.
        key: a function from index to key, the column of a Hugging Face data set, or the list of all keys.

    Raises:
        ConfigError: if two keys are equal, they are not all str or all int, or there are none; or if a `ConcatDataset` joins row
            numbers of different data sets.

    Example:
        >>> from torch.utils.data import Subset
        >>> list_keys(Subset(["a", "b", "c"], [2, 0])), list_keys(["a", "b"], key="image-{}".format)
        ([2, 0], ['image-0', 'image-1'])
    """
    count = _length(dataset)
    if key is None:
        keys: Iterable[Any] = _own_keys(dataset) or range(count)
    elif isinstance(key, str):
        keys = _column(dataset, key)
    elif callable(key):
        keys = map(key, range(count))
    elif isinstance(key, Sequence) or (hasattr(key, "__len__") and hasattr(key, "__getitem__")):
        keys = key
    else:
        raise ConfigError(f"key={key!r}: expected a function from the index to the key, a column name, or a list of keys")
    checked, _ = check_keys(keys, type(dataset).__name__)
    if len(checked) != count:
        raise ConfigError(f"key: {len(checked)} keys for {count} samples: expected one for each, in order")
    return checked


def check_keys(keys: Iterable[Any], where: str) -> tuple[Keys, str]:
    """Return the keys as plain str or int, and their type: ``"str"`` or ``"int"``.

    Args:
        keys: the keys to check.
        where: name of their data set, for errors.

    Raises:
        ConfigError: if two are equal, they are not all str or all int, or there are none.

    Example:
        >>> check_keys(["a", "b"], "my photos")
        (['a', 'b'], 'str')
        >>> check_keys(["a", "b", "a"], "my photos")
        Traceback (most recent call last):
        ...
        gentransforms.errors.ConfigError: my photos: 1 key names several images: 'a' (2 images); give each its own, ...
    """
    if isinstance(keys, range):
        if not keys:
            raise ConfigError(f"{where}: holds no images")
        return keys, "int"
    found = list(keys)
    if not found:
        raise ConfigError(f"{where}: holds no images")
    plain = [str(k) if isinstance(k, str) else integer(k) for k in found]
    if None in plain:
        wrong = found[plain.index(None)]
        raise ConfigError(f"{where}: the key {wrong!r} is {name_type(wrong)}: expected str or int")
    kinds = {type(k) for k in plain}
    if len(kinds) > 1:
        text, number = (next(k for k in plain if type(k) is kind) for kind in (str, int))
        raise ConfigError(f"{where}: some keys are str and some int, such as {text!r} and {number!r}: expected all of one type")
    if kinds == {str}:
        _check_text(plain, where)
    elif max(plain) >= 1 << 63 or min(plain) < -(1 << 63):  # type: ignore[type-var, operator]
        raise ConfigError(f"{where}: a key is outside the range of 64-bit integers")
    if len(set(plain)) < len(plain):
        repeated = [(k, n) for k, n in Counter(plain).most_common() if n > 1]
        shown = ", ".join(f"{k!r} ({n} images)" for k, n in repeated[:_SHOWN]) + (", …" if len(repeated) > _SHOWN else "")
        names = "1 key names" if len(repeated) == 1 else f"{len(repeated)} keys name"
        raise ConfigError(f"{where}: {names} several images: {shown}; give each its own, with key=")
    return plain, kinds.pop().__name__  # type: ignore[return-value]


def as_keys(keys: Any, name: str) -> list[str | int]:
    """Return a list of keys, each str or int, from any sequence, array or integer tensor of them.

    Raises:
        ConfigError: naming the argument, if an entry is neither.

    Example:
        >>> import torch
        >>> as_keys(torch.tensor([3, 1]), "keys")
        [3, 1]
    """
    if isinstance(keys, str | bytes):
        raise ConfigError(f"{name}={keys!r}: expected a list of keys; a lone one is [{keys!r}]")
    if isinstance(keys, Tensor | np.ndarray):
        keys = keys.tolist()
    try:
        found = list(keys)
    except TypeError:
        raise ConfigError(f"{name}={keys!r}: expected a list of keys, each str or int") from None
    return [key if type(key) is str or type(key) is int else _key(key, name) for key in found]


def _key(key: Any, name: str) -> str | int:
    if isinstance(key, str):
        return str(key)
    # A bool passes as an index, and so do torch's and, in older versions, NumPy's.
    is_bool = isinstance(key, bool | np.bool_) or (isinstance(key, Tensor) and key.dtype == torch.bool)
    try:
        if not is_bool:
            return operator.index(key)
    except TypeError:
        pass
    raise ConfigError(f"{name}: {key!r} is {name_type(key)}, expected keys that are str or int")


def tell_other_root(key: str | int, known: Collection[str | int], others: Iterable[str | int] = ()) -> str:
    """Return which root folder would turn a key into a known one, as part of a message; empty unless exactly one folder does.

    Args:
        key: a key that is not among `known`.
        known: the keys of a bank.
        others: further keys of the same data set; a few are enough. None may be among `known`, as the root is right then, or fit
            another folder only, and at least one has to fit the same folder.

    Example:
        >>> tell_other_root("1.jpg", ["cat/1.jpg"])
        "'cat/1.jpg' is: keys are paths below the root of the data set, so give the folder that contains 'cat' as the root"
        >>> tell_other_root("train/cat/1.jpg", ["cat/1.jpg"])
        "'cat/1.jpg' is: keys are paths below the root of the data set, so give the folder 'train' in it as the root"
        >>> tell_other_root("1.jpg", ["cat/1.jpg", "dog/1.jpg"])
        ''
        >>> tell_other_root("1.jpg", ["cat/1.jpg", "dog/1.jpg", "cat/2.jpg"], ["2.jpg"])
        "'cat/1.jpg' is: keys are paths below the root of the data set, so give the folder that contains 'cat' as the root"
    """
    keys, names = list(dict.fromkeys((key, *others))), set(known)
    if not names.isdisjoint(keys):
        return ""
    own, *rest = _other_roots(keys, names)
    fitting = [roots for roots in rest if roots]
    found = [(root, name) for root, name in own.items() if all(root in roots for roots in fitting)]
    if len(found) != 1 or (rest and not fitting):
        return ""
    root, name = found[0]
    return f"{name!r} is: keys are paths below the root of the data set, so give {root} as the root"


def _other_roots(keys: Sequence[str | int], names: Collection[str | int]) -> list[dict[str, str]]:
    """Return, for each key, the folders that could be the root instead, and the known name that each turns the key into."""
    # Only paths of files have a root: "owner/name" and "name" have nothing to do with each other.
    paths = [key if isinstance(key, str) and PurePath(key).suffix else "" for key in keys]
    ends = {path.rpartition("/")[2] for path in paths if path}
    alike = [name for name in names if isinstance(name, str) and name.rpartition("/")[2] in ends]
    found = []
    for path in paths:
        parts = path.split("/")
        below = (("/".join(parts[:i]), "/".join(parts[i:])) for i in range(1, len(parts)))
        roots = {f"the folder {folder!r} in it": name for folder, name in below if name in names}
        longer = (name for name in alike if path and name.endswith(f"/{path}"))
        found.append(roots | {f"the folder that contains {name.removesuffix(f'/{path}')!r}": name for name in longer})
    return found


def _own_keys(dataset: Any) -> list[Any] | None:
    """Return the keys that a data set has itself, other than row numbers; None if it has none."""
    if isinstance(dataset, Keyed):
        return list(dataset.keys)
    if isinstance(dataset, torch.utils.data.Subset):
        whole = _own_keys(dataset.dataset)
        return [int(i) if whole is None else whole[i] for i in dataset.indices]
    if isinstance(dataset, torch.utils.data.ConcatDataset):
        parts = [_own_keys(part) for part in dataset.datasets]
        if None in parts:
            return None
        keys = [k for part in parts for k in part or ()]
        if all(isinstance(k, int) for k in keys) and len(_numbered_by(dataset)) > 1:
            raise ConfigError(
                "ConcatDataset: its parts have row numbers of different data sets, so one number may mean several images: give each its "
                "own key with key=, a function or a list of all; if these are the same images, list(first.indices) + list(second.indices)"
            )
        return keys
    if hasattr(dataset, "samples") and hasattr(dataset, "root"):
        return _relative_paths(dataset)
    return _original_rows(dataset)


def _numbered_by(dataset: Any) -> set[Any]:
    """Return something for each data set whose rows the keys of this one number; what the user numbered counts as one."""
    if isinstance(dataset, Keyed):
        inside = getattr(dataset, "dataset", None)
        rows = inside is not None and list(dataset.keys) == (_own_keys(inside) or list(range(len(inside))))
        return _numbered_by(inside) if rows else {"the user"}
    if isinstance(dataset, torch.utils.data.Subset):
        return _numbered_by(dataset.dataset)
    if isinstance(dataset, torch.utils.data.ConcatDataset) and all(_own_keys(part) is not None for part in dataset.datasets):
        return set().union(*map(_numbered_by, dataset.datasets))
    return {_place_in_memory(dataset) or id(dataset)}


def _place_in_memory(dataset: Any) -> Any:
    """Return what a Hugging Face data set and a shuffled or formatted one of the same rows share; None of other data sets."""
    datasets = sys.modules.get("datasets")
    if datasets is None or not isinstance(dataset, datasets.Dataset):
        return None
    table = dataset.data.table
    for chunk in (column.chunk(0) for column in table.columns if column.num_chunks):
        if found := [buffer.address for buffer in chunk.buffers() if buffer is not None]:
            return (table.num_rows, chunk.offset, *found)
    return None


def _original_rows(dataset: Any) -> list[int] | None:
    """Return the row numbers of a Hugging Face data set before it was shuffled; None if it was not, and for other data sets."""
    datasets = sys.modules.get("datasets")
    if datasets is None or not isinstance(dataset, datasets.Dataset):
        return None
    # Private, but datasets offers no other way to get them.
    indices = getattr(dataset, "_indices", None)
    return None if indices is None else list(indices.column(0).to_pylist())


def _relative_paths(dataset: Any) -> list[str] | None:
    """Return the POSIX paths of the samples of torchvision's ImageFolder, or of something like it, relative to its folder."""
    samples = dataset.samples
    if not isinstance(samples, Sequence) or not all(isinstance(s, tuple) and isinstance(s[0], str | os.PathLike) for s in samples):
        return None
    # torchvision's ImageNet: its root is the folder above, and the keys should be those of the image folder.
    root = os.path.join(os.path.expanduser(getattr(dataset, "split_folder", dataset.root)), "")  # noqa: PTH111, PTH118
    keys = []
    for sample in samples:
        path = os.fspath(sample[0])
        relative = path[len(root) :] if path.startswith(root) else os.path.relpath(path, root)
        keys.append(relative if os.sep == "/" else PurePath(relative).as_posix())
    return keys


def _column(dataset: Any, key: str) -> list[Any]:
    names = getattr(dataset, "column_names", None)
    if not isinstance(names, list) or not hasattr(dataset, "with_format"):
        raise ConfigError(
            f"key={key!r}: {name_type(dataset)} has no columns: expected a function from the index to the key, or a list of keys"
        )
    if key not in names:
        raise ConfigError(f"key={key!r}: no such column: the data set has {', '.join(map(repr, names))}")
    return list(dataset.with_format(None)[key])


def _check_text(keys: Sequence[Any], where: str) -> None:
    try:
        "\n".join(keys).encode()
    except UnicodeEncodeError as error:
        wrong = next(k for k in keys if not _encodes(k))
        raise ConfigError(f"{where}: the key {wrong!r} is not Unicode text: rename the file, or give keys of your own") from error


def _encodes(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _length(dataset: Any) -> int:
    if isinstance(dataset, torch.utils.data.IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ConfigError(f"{name_type(dataset)} has no length and no index: expected a map-style data set")
    return len(dataset)
