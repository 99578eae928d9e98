"""Keys in samples: marked when they are added, so that no label is ever taken for a key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data._utils.collate import default_collate_fn_map

from gentransforms.errors import ConfigError
from gentransforms.wording import name_type

__all__ = ["KeyTensor", "NameKey", "RowKey", "find_keys", "mark_key"]


class RowKey(int):
    """A number that is marked as a key. It equals the number and is collated to a `KeyTensor`."""


class NameKey(str):
    """A string that is marked as a key. It equals the string and is collated like one, to a list."""

    __slots__ = ()


class KeyTensor(Tensor):
    """A batch of numeric keys, int64. Moving, copying and indexing keep the class; arithmetic returns a plain tensor.

    Example:
        >>> import torch
        >>> keys = torch.tensor([4, 5]).as_subclass(KeyTensor)
        >>> type(keys[:1]).__name__, type(torch.zeros(9)[keys]).__name__
        ('KeyTensor', 'Tensor')
    """

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            if func in _KEPT and args and isinstance(args[0], cls) and isinstance(result, Tensor):
                result = result.as_subclass(cls)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.clone()


_KEPT = {
    Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.pin_memory, Tensor.clone, Tensor.detach, Tensor.contiguous,
    Tensor.__getitem__, Tensor.reshape, Tensor.view, Tensor.flatten,
}  # fmt: skip


def mark_key(key: str | int) -> NameKey | RowKey:
    """Mark a key so that `find_keys` finds it in a sample.

    Example:
        >>> mark_key("cats/1.jpg"), mark_key(7)
        ('cats/1.jpg', 7)
    """
    return NameKey(key) if isinstance(key, str) else RowKey(key)


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
            found.append(str(leaf) if isinstance(leaf, str) else int(leaf))
        elif isinstance(leaf, KeyTensor):
            found.extend(leaf.flatten().tolist())
    if not found:
        has = f"has entries {list(sample)}" if isinstance(sample, Mapping) else f"is {name_type(sample)}"
        raise ConfigError(
            f"the sample {has} and no key is marked as one in it: wrap the data set in gentransforms.with_keys, put the key into a "
            'dict entry "key", or pass keys_getter=, such as keys_getter="last" for (image, …, key)'
        )
    return found


def _collate(batch: list[RowKey], *, collate_fn_map: Any = None) -> Tensor:
    return torch.tensor(batch, dtype=torch.int64, device="cpu").as_subclass(KeyTensor)


# This is how torch lets a type define its collation.
default_collate_fn_map[RowKey] = _collate
