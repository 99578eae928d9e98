"""Whether the images that ask a bank for variants are those that it was made from."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torchvision import tv_tensors
from torchvision.transforms import v2

from gentransforms.bank.reader import Bank
from gentransforms.errors import ConfigError, GentransformsError
from gentransforms.images import to_rows
from gentransforms.sources.keyed import KeyedDataset
from gentransforms.sources.resemblance import compare_marks, mark
from gentransforms.transforms.samples import find_images

__all__ = ["FEWEST", "MOST", "SourceCheck", "check_dataset", "image_in", "random_state_kept"]

FEWEST, MOST = 8, 64  # images compared at first, and at most

_WHY = "Row numbers change when a data set is filtered, shuffled, cut or joined to another"


class SourceCheck:
    """Compares the first images of a data set with the marks that a bank keeps of its sources, until they tell right from wrong keys.

    Args:
        size: of the data set, if it is known: no more images than that will come.

    Attributes:
        done: nothing more is compared: the images are the right ones, or the first 64 did not tell, or there are no marks.
    """

    def __init__(self, size: int | None = None) -> None:
        self.done = False
        self._most = MOST if size is None else min(MOST, size)
        self._next = min(FEWEST, self._most)
        self._seen: dict[str | int, npt.NDArray[np.uint8]] = {}

    def add(self, bank: Bank, keys: Sequence[str | int], rows: Sequence[Tensor], *, last: bool = False) -> None:
        """Compare more images (n, C, H, W), N in all, with the sources of their N keys.

        Args:
            bank: the bank.
            keys: of the images.
            rows: the images.
            last: whether no more images will follow.

        Raises:
            ConfigError: if they match other sources of the bank, with an example.

        Warns:
            UserWarning: if 64 images, or all there are, resemble their own sources no more than any others.
        """
        if self.done:
            return
        if bank.marks is None:
            self.done = True
            return
        images = (image for batch in rows for image in batch)
        for key, image in zip(keys, images, strict=True):
            if key not in self._seen and len(self._seen) < self._most:
                self._seen[key] = mark(image)
        if len(self._seen) >= self._next or last:
            self._next = min(2 * self._next, self._most)
            self._compare(bank, bank.marks, last or len(self._seen) >= self._most)
        if self.done:
            self._seen.clear()

    def _compare(self, bank: Bank, marks: npt.NDArray[np.uint8], last: bool) -> None:
        names = list(self._seen)
        places = bank.find_keys(names)
        known = np.flatnonzero(places >= 0)
        verdict = ""
        if len(known):
            found = compare_marks(np.stack([self._seen[names[i]] for i in known]), places[known], marks)
            verdict = found.verdict
        if verdict == "wrong":
            assert found.example is not None
            number, row = found.example
            raise ConfigError(
                f"{bank.path}: the images are not those of the bank: the image with the key {names[known[number]]!r} looks like the "
                f"bank's source {bank.keys[row]!r}. {_WHY}: give with_keys() the keys that the rows had when the bank was made (key=), "
                "or, where data sets were joined, wrap the ConcatDataset and not its parts, or make a bank of this data set; if the images "
                "are to look different, use BankAugment(check_sources=False)"
            )
        self.done = last or verdict == "right"
        if last and verdict == "unlike":
            warnings.warn(
                f"{bank.path}: {len(known)} images resemble the bank's sources with the same keys no more than other sources: they may be "
                f"another data set. {_WHY}. If the keys are right, and the images were changed beyond recognition, use "
                "BankAugment(check_sources=False)",
                stacklevel=4,
            )


def check_dataset(bank: Bank, dataset: KeyedDataset) -> None:
    """Compare eight samples, spread over a data set, with the bank's sources; up to 64 where eight do not tell.

    Raises:
        ConfigError: if they match other sources of the bank, with an example.

    Warns:
        UserWarning: if the keys are row numbers, and the bank was made from another number of images; if the images resemble their
            own sources no more than any others.
    """
    check = SourceCheck(len(dataset))
    tried: set[int] = set()
    with random_state_kept():
        for size in (FEWEST, 2 * FEWEST, 4 * FEWEST, MOST):
            places = np.unique(np.linspace(0, len(dataset) - 1, min(size, len(dataset))).astype(int)).tolist()
            fresh = [place for place in places if place not in tried]
            tried |= set(fresh)
            found = [(dataset.keys[place], rows) for place in fresh if (rows := image_in(dataset, place)) is not None]
            last = size == MOST or len(tried) == len(dataset)
            check.add(bank, [key for key, _ in found], [rows for _, rows in found], last=last)
            if check.done:
                break
    count = bank.source_count
    if dataset.keys == range(len(dataset)) and len(dataset) != count:
        warnings.warn(
            f"{bank.path}: the bank was made from {count:,} images, and the data set has {len(dataset):,}, whose keys are row numbers: "
            "if it is a part of the other, its rows may have other numbers there; give with_keys() their keys",
            stacklevel=4,
        )


def image_in(dataset: KeyedDataset, place: int) -> Tensor | None:
    """Return the first image (1, C, H, W) of a sample; None if it has none, or cannot be read, which is reported when it is used."""
    try:
        sample = dataset.dataset[place]
        flat = tree_leaves(sample)
        wanted = [isinstance(leaf, PIL.Image.Image | tv_tensors.Image) or v2._utils.is_pure_tensor(leaf) for leaf in flat]
        rows = to_rows(find_images(sample, flat, wanted)[1][0])
    except (GentransformsError, ValueError, OSError, IndexError):
        return None
    return rows if len(rows) == 1 else None


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Samples that are read here must not change what a seeded training draws."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
