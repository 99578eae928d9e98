"""Sources and their variants, read together: from a bank, or made by a generator in memory."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from gentransforms.audit.reading import Read, read_images, read_inputs, read_samples
from gentransforms.bank.absence import was_hidden
from gentransforms.bank.format.unit import list_units, read_sidecar
from gentransforms.bank.reader import Bank
from gentransforms.errors import BankError, ConfigError, SourceError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.generate import generate
from gentransforms.images import to_rows
from gentransforms.seeding import derive_seeds
from gentransforms.sources import ImageSource
from gentransforms.sources.keys import tell_other_root
from gentransforms.sources.resemblance import compare_marks, mark

__all__ = ["BankPairs", "GeneratorPairs", "Pairs", "mark_some", "space_evenly"]

_COMPARED = 64  # sources whose marks are compared with those that a bank keeps
_OF_IMAGES = ("image_column", "white_level", "split", "config", "revision")  # what says which images of a source are read, and how
_OTHER = 10.0  # grey levels by which the mark of another image differs; decoders and encodings differ by far less


class Pairs(ABC):
    """Sources that have variants, in order.

    Attributes:
        source: where the sources are read.
        places: of each source that is audited, in `source`.
        variants: how many each source has, at most.
        size: (h, w) of every image compared, that of the variants.
        preserves_geometry: whether variants show the whole image, or its centre.
    """

    source: ImageSource
    places: Sequence[int]
    variants: int
    size: tuple[int, int]
    preserves_geometry: bool

    @property
    def keys(self) -> list[str | int]:
        """The keys of the sources that are audited."""
        return [self.source.keys[place] for place in self.places]

    def without(self, places: Collection[int]) -> Self:
        """Return all but the sources at these places, such as those that cannot be read."""
        fewer = copy.copy(self)
        fewer.places = [place for place in self.places if place not in places]
        return fewer

    def read_sources(self, start: int, stop: int) -> Read:
        """Return those of the sources from `start` up to `stop` that can be read."""
        return read_images(self.source, self.places[start:stop], self.size, self.preserves_geometry, start)

    def read_inputs(self, rows: Sequence[int]) -> list[dict[str, Any] | SourceError]:
        """Return the inputs of some of the sources, as they are now; images are decoded only where there is no other way."""
        return read_inputs(self.source, [self.places[row] for row in rows])

    @abstractmethod
    def read_variants(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the variants of these sources, ordered by source; those that are made need sources that can be read.

        Returns:
            images (M, 3, *size) float32 in [0, 1], the source of each (M,) int64 counted from 0 at the first of all, and
            which variant of it each is (M,) int64.
        """

    @property
    @abstractmethod
    def identity(self) -> str:
        """What decides the images, for the cache of features; empty if nothing names it.

        Inputs such as labels are not part of it, since they are read again each time, unless the images are made with them.
        """


class BankPairs(Pairs):
    """The variants of a bank and the sources they were made of.

    Raises:
        BankError: if the source is not the bank's.
    """

    def __init__(self, bank: Bank, source: ImageSource, limit: int | None = None) -> None:
        if not bank.keys:
            raise ConfigError(f"{bank.path}: holds no images: there is nothing to audit")
        self.bank, self.source, self.variants = bank, source, bank.variants
        self.size, self.preserves_geometry = bank.image_size, bank.preserves_geometry
        place_of = dict(zip(cast(Sequence[str | int], source.keys), range(len(source.keys)), strict=True))
        absent = [key for key in bank.keys if key not in place_of]
        if absent:
            first = source.keys[0]
            root = tell_other_root(first, bank.keys, source.keys[1:_COMPARED]) if first not in bank.keys else ""
            advice = f"{first!r} is not in the bank, but {root}" if root else _advise(bank, source)
            raise BankError(
                f"{bank.path}: {len(absent):,} of its {len(bank.keys):,} keys are not in this source, such as {absent[0]!r} (the source's "
                f"keys look like {first!r}): {advice}"
            )
        gone = {entry["key"] for entry in bank.failed} - place_of.keys()  # what could not be read may be deleted
        if bank.source_count - len(gone) != len(source.keys):
            without = f", {len(gone):,} of which could not be read and {'is' if len(gone) == 1 else 'are'} gone" if gone else ""
            raise BankError(
                f"{bank.path}: was made of {bank.source_count:,} sources{without}, and this source has "
                f"{len(source.keys):,}{_tell_strangers(bank, source, place_of)}"
            )
        self._seen = _compare_marks(bank, source, place_of)
        self.places = space_evenly([place_of[key] for key in bank.keys], limit)

    def read_variants(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        keys, numbers, owners = [], [], []
        for i in range(start, stop):
            key = self.source.keys[self.places[i]]
            there = self.bank.variants_of(key)
            keys += [key] * len(there)
            numbers += there
            owners += [i] * len(there)
        owner, number = (torch.tensor(values, dtype=torch.int64) for values in (owners, numbers))
        return self.bank.read(keys, numbers).float() / 255, owner, number

    @property
    def identity(self) -> str:
        selection = self.bank.selection
        kept = "" if selection is None else hashlib.blake2b(selection.kept.tobytes(), digest_size=16).hexdigest()
        # The units themselves: the manifest is the same if they were made again with other prompts or labels.
        units = [(unit.name, (read_sidecar(self.bank.path, unit) or {}).get("sha256")) for unit in list_units(self.bank.path)]
        decides = {name: value for name, value in self.source.description["decides"].items() if name in _OF_IMAGES}
        return f"{self.bank.path} {sorted(self.bank.manifest.items())!r} {units} {len(self.bank)} {kept} {decides} {self._seen}"


class GeneratorPairs(Pairs):
    """Variants that a generator makes in memory, with the seeds that a bank would use.

    Args:
        generator: makes them.
        source: the images.
        variants: of each.
        base_seed: of `gentransforms.derive_seeds`.
        limit: only so many sources, evenly spaced.
    """

    def __init__(self, generator: ImageGenerator, source: ImageSource, variants: int, base_seed: int, limit: int | None = None) -> None:
        if type(variants) is not int or variants < 1:
            raise ConfigError(f"variants={variants!r}: expected a positive integer")
        self.generator, self.source, self.variants, self.base_seed = generator.eval(), source, variants, base_seed
        height, width = generator.image_size
        self.size, self.preserves_geometry = (height, width), generator.preserves_geometry
        self.places = space_evenly(list(range(len(source.keys))), limit)

    def read_variants(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        read = self.read_sources(start, stop)
        names = [name for name in self.generator.inputs if read.inputs and name in read.inputs[0]]
        rows = torch.arange(len(read.rows)).repeat_interleave(self.variants)
        owners = torch.tensor(read.rows, dtype=torch.int64)[rows]
        numbers = torch.arange(self.variants).repeat(len(read.rows))
        seeds = derive_seeds(self.base_seed, [self.source.keys[self.places[int(i)]] for i in owners], numbers.tolist())
        given = {name: _gather([one[name] for one in read.inputs], rows) for name in names}
        made, finite, _ = generate(self.generator, read.images[rows], seeds, given)
        kept = finite.cpu()
        return made.cpu()[kept], owners[kept], numbers[kept]

    @property
    def identity(self) -> str:
        return ""  # made in memory with the inputs of the source, for which a cache would need a name too


def space_evenly(items: Sequence[int], limit: int | None) -> list[int]:
    """Return at most `limit` of the items, evenly spaced, so that a set sorted by class keeps its classes.

    Raises:
        ConfigError: if `limit` is not a positive integer.

    Example:
        >>> space_evenly(range(10), 3)
        [0, 3, 6]
    """
    if limit is None or (type(limit) is int and limit >= len(items) > 0):
        return list(items)
    if type(limit) is not int or limit < 1:
        raise ConfigError(f"limit={limit!r}: expected a positive integer, or None for all")
    return [items[i * len(items) // limit] for i in range(limit)]


def mark_some(source: ImageSource, places: Sequence[int]) -> list[bytes]:
    """Return the marks of the sources at up to 64 of the places, evenly spaced; empty for one that cannot be read.

    Together they tell data sets apart that have the same keys and description.
    """
    samples = read_samples(source, space_evenly(places, min(_COMPARED, len(places))))
    return [b"" if isinstance(sample, SourceError) else mark(to_rows(sample.image)[0]).tobytes() for sample in samples]


def _compare_marks(bank: Bank, source: ImageSource, place_of: Mapping[str | int, int]) -> str:
    """Return a digest of some sources, unless they are other images than the bank was made of.

    Raises:
        BankError: if they are.
    """
    keys = [bank.keys[i] for i in space_evenly(range(len(bank.keys)), min(_COMPARED, len(bank.keys)))]
    seen = mark_some(source, [place_of[key] for key in keys])
    if bank.marks is not None:
        own = bank.marks[bank.find_keys(keys)].astype(np.int16)
        rows = zip(keys, seen, own, strict=True)
        differ = [key for key, one, kept in rows if one and np.abs(np.frombuffer(one, np.uint8) - kept).mean() > _OTHER]
        together = np.stack([np.frombuffer(one or kept.astype(np.uint8), np.uint8) for one, kept in zip(seen, own, strict=True)])
        if len(differ) > len(keys) // 8 or compare_marks(together, bank.find_keys(keys), bank.marks).verdict == "wrong":
            raise BankError(
                f"{bank.path}: images of this source were compared with what the bank was made of, and are other images, such as the "
                f"one with the key {(differ or keys)[0]!r}: {_advise(bank, source)}"
            )
    return hashlib.blake2b(b"".join(seen), digest_size=16).hexdigest()


def _tell_strangers(bank: Bank, source: ImageSource, place_of: Mapping[str | int, int]) -> str:
    """Return what a source has that the bank was not made of, or the other way round, as the end of a message."""
    recorded = {entry["key"] for entry in (*bank.failed, *bank.rejected)}
    known = recorded.union(bank.keys)
    strange = [] if bank.missing_units or bank.selection is not None else [key for key in place_of if key not in known]
    gone = [entry["key"] for entry in bank.rejected if entry["key"] not in place_of]
    more = "".join(f", {what} {', '.join(map(repr, keys[:3]))}" for what, keys in {"such as": strange, "without": gone}.items() if keys)
    if strange and all(was_hidden(bank, key) for key in strange):
        return f"{more}: hidden files are left out of a bank of a folder: give the folder itself as the source"
    return f"{more}: {_advise(bank, source)}"


def _advise(bank: Bank, source: ImageSource) -> str:
    """Return what to do about a source that is not the bank's: of one data set, read in another way, how the bank's was read."""
    made, given = bank.manifest["source"].get("decides") or {}, source.description["decides"]
    differ = [f"{name}={made.get(name)!r}, not {given.get(name)!r}" for name in _OF_IMAGES if made.get(name) != given.get(name)]
    if not differ or made.get("kind") != given.get("kind"):
        return "give the source that the bank was made of"
    return f"the bank was made with {' and '.join(differ)}: open the source that it was made of in the same way"


def _gather(values: list[Any], rows: Tensor) -> Any:
    chosen = [values[int(i)] for i in rows]
    if all(isinstance(v, Tensor) and v.shape == chosen[0].shape for v in chosen):
        return torch.stack(chosen)
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in chosen):
        return torch.tensor(chosen)
    return chosen
