"""`ImageSource`: images with unique keys, in a fixed order."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gentransforms.errors import SourceError
from gentransforms.sources.keys import Keys, check_keys

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ImageSource", "SourceSample", "read_each"]


@dataclass(frozen=True)
class SourceSample:
    """One image of a source, (C, H, W) uint8 or floating with C 1 or 3, and its inputs, such as ``{"labels": 3}``."""

    image: Tensor
    inputs: dict[str, Any] = field(default_factory=dict)


class ImageSource(ABC):
    """Images with unique keys, in a fixed order. `gentransforms.generate_bank` reads them; subclasses implement `read_range`.

    Several threads read different ranges at the same time, and a source may be pickled to other processes.

    Args:
        keys: one key for each image, in order: all str or all int.
        inputs: names of the inputs that each sample has besides its image, such as ``("labels",)``.
        description: JSON-able description for the bank's manifest. Its entry ``"decides"``, by default ``{}``, holds whatever
            determines the samples, but no paths: a bank can only be resumed from a source with the same entry.

    Raises:
        ConfigError: if two keys are equal, they are not all str or all int, or there are none.

    Example:
        >>> import torch
        >>> class Grey(ImageSource):
        ...     def read_range(self, start, stop):
        ...         for index in range(start, stop):
        ...             yield SourceSample(torch.full((3, 8, 8), index / 10))
        >>> source = Grey(["dark", "bright"])
        >>> len(source), source.key_type, [sample.image.mean().item() for sample in source.read_range(0, 1)]
        (2, 'str', [0.0])
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
    def read_range(self, start: int, stop: int) -> Iterator[SourceSample | SourceError]:
        """Yield the samples from `start` up to `stop`, each with every one of `inputs`.

        For a sample that cannot be read, the `SourceError` that says why is yielded in its place.

        Raises:
            OSError: if the problem is not this sample alone, such as a lost disk or network, or no file handles left. A run
                then stops.
        """

    def class_names(self, name: str) -> list[str] | None:
        """Return the names of the classes that an input numbers, in order; None if the source does not name them.

        Example:
            >>> import torch
            >>> from gentransforms.sources.map_style import MapStyleSource
            >>> print(MapStyleSource([(torch.zeros(3, 8, 8), 5)]).class_names("labels"))
            None
        """
        return None

    def select(self, names: Collection[str]) -> Self:
        """Return this source with the named inputs only; the others are not read.

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


def read_each(read: Callable[[int], SourceSample], start: int, stop: int) -> Iterator[SourceSample | SourceError]:
    """Yield what `read` returns for each place, or the `SourceError` that it raises: `ImageSource.read_range` for single samples.

    Example:
        >>> import torch
        >>> [sample.inputs for sample in read_each(lambda place: SourceSample(torch.zeros(3, 8, 8), {"labels": place}), 3, 5)]
        [{'labels': 3}, {'labels': 4}]
    """
    for place in range(start, stop):
        sample: SourceSample | SourceError
        try:
            sample = read(place)
        except SourceError as error:
            sample = error
        yield sample
