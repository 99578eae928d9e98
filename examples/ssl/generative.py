"""Where the generated image of a view comes from: a bank, or a generator on the device, behind one interface.

`Generative.forward(images, rows, p)` takes the images a view would start from and returns those it does start from, each
replaced with probability p by one of its variants, and which they are. Coin and variant are drawn for each image at each step.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from config import GenerativeSettings, Settings
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import gentransforms as gt
from gentransforms.bank.reader import Bank


class Generative(nn.Module, ABC):
    """Replace images by variants.

    Shape: images (B, 3, S, S) float in [0, 1] on the device; rows (B,) int64 on the CPU, places in the training set;
    returns the images on the device and (B,) bool on the CPU, where it is read without waiting for the device.
    """

    @abstractmethod
    def forward(self, images: Tensor, rows: Tensor, p: float) -> tuple[Tensor, Tensor]: ...


class FromBank(Generative):
    """Variants of a bank, decoded once into memory where they fit, else read at each step.

    Args:
        bank: holds all the keys.
        keys: of the training images, by place.
        size: side of the images.
        memory: bytes that the decoded variants may take; by default a quarter of the machine's, shared by its `processes`.
    """

    def __init__(self, bank: Bank, keys: Sequence[str | int], size: int, memory: int | None = None, processes: int = 1) -> None:
        super().__init__()
        self.bank, self.keys, self.size = bank, list(keys), size
        self.numbers = [bank.variants_of(key) for key in self.keys]
        self.counts = torch.tensor([len(numbers) for numbers in self.numbers])
        self.starts = self.counts.cumsum(0) - self.counts
        needed = int(self.counts.sum()) * 3 * size * size
        memory = memory if memory is not None else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 // processes
        self.decoded = self._decode() if needed <= memory else None

    def forward(self, images: Tensor, rows: Tensor, p: float) -> tuple[Tensor, Tensor]:
        chosen = torch.rand(len(rows)) < p
        # As many draws whatever the coins are, so that p does not shift the random stream.
        which = (torch.rand(len(rows), dtype=torch.float64) * self.counts[rows]).long()
        if not chosen.any():
            return images, chosen
        variants = self.read(rows[chosen], which[chosen]).to(images.device, non_blocking=True).to(images.dtype) / 255
        return put(images, chosen, variants), chosen

    def read(self, rows: Tensor, which: Tensor) -> Tensor:
        """Return uint8 (N, 3, size, size): of each row its which-th variant."""
        if self.decoded is not None:
            return self.decoded[self.starts[rows] + which]
        pairs = list(zip(rows.tolist(), which.tolist(), strict=True))
        return _sized(self.bank.read([self.keys[row] for row, _ in pairs], [self.numbers[row][i] for row, i in pairs]), self.size)

    def _decode(self) -> Tensor:
        decoded = torch.empty(int(self.counts.sum()), 3, self.size, self.size, dtype=torch.uint8)
        for first in range(0, len(self.keys), 1000):
            part = slice(first, first + 1000)
            keys = [key for key, numbers in zip(self.keys[part], self.numbers[part], strict=True) for _ in numbers]
            images = self.bank.read(keys, [number for numbers in self.numbers[part] for number in numbers])
            start = int(self.starts[first])
            decoded[start : start + len(images)] = _sized(images, self.size)
        return decoded


class Online(Generative):
    """Variants made inside the step, where the generator is."""

    def __init__(self, generator: gt.ImageGenerator, output_size: Any = "input") -> None:
        super().__init__()
        self.augment = gt.GenerativeAugment(generator, output_size=output_size)

    def forward(self, images: Tensor, rows: Tensor, p: float) -> tuple[Tensor, Tensor]:
        self.augment.p = p
        params = self.augment.make_params([images])
        return self.augment.transform(images, params), params["chosen"]


class RowVariants:
    """A bank for workers that read files: one variant, uint8 (3, h, w), of a row by a uniform number. Goes to other processes."""

    def __init__(self, bank: Bank, keys: Sequence[str | int]) -> None:
        self.bank, self.keys = bank, list(keys)

    def __call__(self, row: int, uniform: float) -> Tensor:
        key = self.keys[row]
        numbers = self.bank.variants_of(key)
        return self.bank.read([key], [numbers[min(int(uniform * len(numbers)), len(numbers) - 1)]])[0]


def put(images: Tensor, chosen: Tensor, new: Tensor) -> Tensor:
    """Return images (B, …) with the rows that `chosen` (B,) bool marks replaced by `new`."""
    if len(new) == len(images):
        return new
    return images.index_copy(0, chosen.nonzero().squeeze(1).to(images.device, non_blocking=True), new.to(images.dtype))


def p_at(s: GenerativeSettings, epochs: int, epoch: int) -> float:
    """Return p in an epoch: constant, or from p in the first to p_end in the last."""
    if s.p_end is None or epochs < 2:
        return s.p
    return s.p + (s.p_end - s.p) * min(epoch, epochs - 1) / (epochs - 1)


def open_bank(settings: Settings, keys: Sequence[str | int]) -> Bank:
    """Open the bank and make sure, before anything is trained, that it is one of these images."""
    name = settings.generative.bank
    assert name is not None, "config.py asks for it"
    try:
        bank = Bank.open(name, revision=settings.generative.revision)
    except gt.GentransformsError as error:
        raise SystemExit(f"generative.bank={name!r}: {error}") from error
    refuse_foreign(bank, keys, name)
    return bank


def refuse_foreign(bank: Bank, keys: Sequence[str | int], name: str) -> None:
    """Exit if the bank has no images for some of the keys, with counts and examples."""
    absent = [key for key in keys if not bank.variants_of(key)]
    if not absent:
        return
    failed = {entry["key"] for entry in bank.failed}
    unreadable = [key for key in absent if key in failed]
    advice = (
        f"{len(unreadable):,} of them could not be read when it was made: mend them and run generate with --retry-failed"
        if len(unreadable) == len(absent)
        else "it belongs to another data set, or to fewer of its images; make one of the images that data.train names"
    )
    raise SystemExit(
        f"generative.bank={name!r} has no images for {len(absent):,} of the {len(keys):,} training images, for example "
        f"{', '.join(map(repr, absent[:3]))}; its {len(bank.keys):,} keys are like {', '.join(map(repr, bank.keys[:3]))}: {advice}"
    )


def warn_of_strangers(bank: Bank, keys: Sequence[str | int], images: Tensor) -> None:
    """Warn if the variants are no more like their own images (N, 3, S, S) uint8 than like each other's.

    Row numbers fit any data set of the same size. In small thumbnails most variants resemble their source, so that a bank
    of other images, or in another order, shows; too few images say nothing.
    """
    if len(keys) < 32:
        return
    variants = bank.read(keys, [bank.variants_of(key)[0] for key in keys])
    own, made = (nn.functional.adaptive_avg_pool2d(x.float(), 4).flatten(1) for x in (images, variants))
    nearer = (own - made.roll(1, 0)).square().mean(1) - (own - made).square().mean(1)
    if nearer.mean() < 3 * nearer.std() / len(keys) ** 0.5:
        warnings.warn(
            f"{bank.path}: on {len(keys)} images, variants look no more like their own source than like another: does the bank "
            "belong to this data set, in this order? Keys cannot tell. If it does not, make it again from data.train",
            stacklevel=2,
        )


def load_online(s: GenerativeSettings) -> gt.ImageGenerator:
    """Load the online generator."""
    assert s.generator is not None, "config.py asks for it"
    options = {} if s.truncation is None else {"truncation": s.truncation}
    try:
        return gt.load_generator(s.generator, **options)
    except gt.GentransformsError as error:
        raise SystemExit(f"generative.generator={s.generator!r}: {error}") from error


def _sized(images: Tensor, size: int) -> Tensor:
    """Return uint8 (N, 3, size, size); the variants of a generator without geometry are square."""
    if images.shape[-2:] == (size, size):
        return images
    images = F.center_crop(images, [min(images.shape[-2:])])
    return F.resize(images, [size, size], v2.InterpolationMode.BICUBIC, antialias=True)
