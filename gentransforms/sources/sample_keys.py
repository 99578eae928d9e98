"""Keys in samples: marked when they are added, so that no label is ever taken for a key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data._utils.collate import default_collate_fn_map

from gentransforms.errors import ConfigError
from gentransforms.wording import name_type

__all__ = ["KeyOrigin", "KeyTensor", "NameKey", "RowKey", "find_keys", "key_origins", "mark_key"]


class KeyOrigin(NamedTuple):
    """The data set that a key was added to, because one key may name an image in each of two: a random number, and its size."""

    token: int
    size: int


class RowKey(int):
    """A number that is marked as a key. It equals the number and is collated to a `KeyTensor`."""

    origin: KeyOrigin | None = None


class NameKey(str):
    """A string that is marked as a key. It equals the string and is collated like one, to a list."""

    origin: KeyOrigin | None = None


class KeyTensor(Tensor):
    """A batch of numeric keys, int64. Moving, copying and indexing keep the class and the origins; arithmetic returns a plain tensor.

    Example:
        >>> import torch
        >>> keys = torch.tensor([4, 5]).as_subclass(KeyTensor)
        >>> type(keys[:1]).__name__, type(torch.zeros(9)[keys]).__name__
        ('KeyTensor', 'Tensor')
    """

    _origins: tuple[KeyOrigin | None, ...] = (None,)
    _which: npt.NDArray[np.int64] | None = None  # of these, for each key; None if there is only one

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            if func in _KEPT and args and isinstance(args[0], cls) and isinstance(result, Tensor):
                result = result.as_subclass(cls)
                result._origins = args[0]._origins
                result._which = _rearrange(args[0]._which, func, args[1:], kwargs or {})
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.clone()


_REARRANGE = {Tensor.__getitem__, Tensor.reshape, Tensor.view, Tensor.flatten}
_KEPT = _REARRANGE | {Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.pin_memory, Tensor.clone, Tensor.detach, Tensor.contiguous}


def mark_key(key: str | int, origin: KeyOrigin | None = None) -> NameKey | RowKey:
    """Mark a key so that `find_keys` finds it in a sample.

    Args:
        key: the key.
        origin: the data set that it belongs to.

    Example:
        >>> mark_key("cats/1.jpg"), mark_key(7)
        ('cats/1.jpg', 7)
    """
    marked = NameKey(key) if isinstance(key, str) else RowKey(key)
    if origin is not None:
        marked.origin = origin
    return marked


def find_keys(sample: Any) -> Any:
    """Return the key or keys of a sample or batch: the dict entry ``"key"``, or whatever `mark_key` marked.

    Raises:
        ConfigError: if there is none. An unmarked number or string may be a label.

    Example:
        >>> find_keys(("image", 3, mark_key("cats/1.jpg")))
        ['cats/1.jpg']
    """
    if isinstance(sample, Mapping) and "key" in sample:
        return sample["key"]
    found: list[str | int] = []
    for leaf in tree_leaves(sample):
        if isinstance(leaf, RowKey | NameKey):
            found.append(leaf)
        elif isinstance(leaf, KeyTensor):
            found.extend(map(mark_key, leaf.flatten().tolist(), key_origins(leaf)))
    if not found:
        has = f"has entries {list(sample)}" if isinstance(sample, Mapping) else f"is {name_type(sample)}"
        raise ConfigError(
            f"the sample {has} and no key is marked as one in it: wrap the data set in gentransforms.with_keys and give it the "
            'transform, with_keys(dataset, transform=…), put the key into a dict entry "key", or pass keys_getter=, such as '
            'keys_getter="last" for (image, …, key)'
        )
    return found


def key_origins(keys: Any) -> list[KeyOrigin | None]:
    """Return the data set of each of some keys, as far as it is known: a marked key, a batch or a list of them, or anything else.

    Example:
        >>> key_origins([mark_key(3, KeyOrigin(1, 10)), 4])
        [KeyOrigin(token=1, size=10), None]
    """
    if isinstance(keys, KeyTensor):
        which = np.zeros(keys.numel(), np.int64) if keys._which is None else keys._which.ravel()
        return [keys._origins[i] for i in which.tolist()]
    return [getattr(key, "origin", None) for key in (keys if isinstance(keys, list | tuple) else [keys])]


def _rearrange(
    which: npt.NDArray[np.int64] | None, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> npt.NDArray[np.int64] | None:
    """Do to the origins of keys what `func` does to the keys."""
    if which is None or func not in _REARRANGE:
        return which
    args, kwargs = tree_map(lambda value: value.cpu() if isinstance(value, Tensor) else value, (args, kwargs))
    rearranged: npt.NDArray[np.int64] = func(torch.from_numpy(which), *args, **kwargs).numpy()
    return rearranged


def _collate(batch: list[RowKey], *, collate_fn_map: Any = None) -> Tensor:
    keys = torch.tensor(batch, dtype=torch.int64, device="cpu").as_subclass(KeyTensor)
    origins = {origin: number for number, origin in enumerate(dict.fromkeys(key.origin for key in batch))}
    keys._origins = tuple(origins)
    if len(origins) > 1:
        keys._which = np.array([origins[key.origin] for key in batch])
    return keys


# This is how torch lets a type define its collation.
default_collate_fn_map[RowKey] = _collate
