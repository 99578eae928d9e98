"""`with_keys`: add the key of its image to each sample, so that a transform finds its variants in a bank."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

import torch.utils.data

from gentransforms.errors import ConfigError
from gentransforms.sources.keys import Key, Keyed, list_keys
from gentransforms.sources.sample_keys import KeyOrigin, mark_key

__all__ = ["KeyedDataset", "with_keys"]


def with_keys(dataset: Any, key: Key | None = None, transform: Callable[[Any], Any] | None = None) -> KeyedDataset:
    """Wrap `dataset` so that each sample includes the key of its image, which `gentransforms.BankAugment` looks up.

    A tuple ``(image, label)`` becomes ``(image, label, key)``, and a list likewise; a dict gets an entry ``"key"``; a bare
    image becomes ``(image, key)``. The keys are the same as in a bank made from this data set: for a torchvision ImageFolder
    the paths relative to its root, as `gentransforms.generate_bank` uses for the folder; for others the row numbers. They are
    instances of subclasses of str and int, and batches of numbers of a subclass of Tensor, so that
    `gentransforms.BankAugment` can tell them from labels.

    Args:
        dataset: any map-style data set, with ``__len__`` and ``__getitem__``.
        key: a function from index to key, the column of a Hugging Face data set, or the list of all keys.
        transform: called with each sample, key included. A `gentransforms.BankAugment` in it compares eight samples of
            `dataset` with its bank now, and refuses keys that belong to other images.

    Raises:
        ConfigError: if two keys are equal, they are not all str or all int, or `dataset` is not map-style.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.zeros(4, 3, 8, 8), torch.tensor([5, 6, 7, 8]))
        >>> image, label, key = with_keys(data, key="image-{}".format)[2]
        >>> label, key
        (tensor(7), 'image-2')
    """
    return KeyedDataset(dataset, list_keys(dataset, key), transform)


class KeyedDataset(Keyed, torch.utils.data.Dataset[Any]):
    """What `with_keys` returns: a map-style data set with ``keys``, the ``dataset`` it wraps, and a ``transform``.

    Example:
        >>> data = with_keys(["a photo", "another"])
        >>> len(data), data.keys, data[-1]
        (2, range(0, 2), ('another', 1))
    """

    _origin: KeyOrigin | None = None  # objects pickled by earlier versions have none

    def __init__(self, dataset: Any, keys: Sequence[str] | Sequence[int], transform: Callable[[Any], Any] | None = None) -> None:
        self.dataset, self.keys, self.transform = dataset, keys, transform
        self._origin = KeyOrigin(secrets.randbits(63), len(keys))
        for part in _parts(transform):
            check = getattr(part, "check_dataset", None)  # BankAugment has it, which this layer must not import
            if callable(check):
                check(self)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: SupportsIndex) -> Any:
        place = self._place(index)
        return self._keyed(self.dataset[place], place)

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[Any]:
        """Return several samples, fetched at once if the data set supports it, as a DataLoader does."""
        places = [self._place(index) for index in indices]
        together = getattr(self.dataset, "__getitems__", None)
        samples = together(places) if callable(together) else [self.dataset[place] for place in places]
        return [self._keyed(sample, place) for sample, place in zip(samples, places, strict=True)]

    def _place(self, index: SupportsIndex) -> int:
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"index {place} of a data set of {len(self)} samples")
        return place % len(self)

    def _keyed(self, sample: Any, place: int) -> Any:
        name = self.keys[place]
        key = mark_key(name, self._origin)
        if isinstance(sample, Mapping):
            if "key" in sample and sample["key"] != key:
                raise ConfigError(
                    f"the samples have an entry 'key' already, here {sample['key']!r}, and the key is {key!r}: "
                    "rename the entry, or give key='key'"
                )
            keyed: Any = {**sample, "key": key}
        elif isinstance(sample, tuple | list):
            keyed = [*sample, key] if isinstance(sample, list) else (*sample, key)
        else:
            keyed = (sample, key)
        return keyed if self.transform is None else self.transform(keyed)


def _parts(transform: Any) -> Iterator[Any]:
    """Yield a transform and all transforms inside it; torchvision's containers keep them in a list."""
    yield transform
    children = transform.children() if isinstance(transform, torch.nn.Module) else ()
    inside = getattr(transform, "transforms", ())
    for part in (*children, *(inside if isinstance(inside, list | tuple) else ())):
        yield from _parts(part)
