"""Variants from several banks, such as those of two generators, chosen by weight."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentransforms.bank.reader import Bank
from gentransforms.errors import ConfigError
from gentransforms.images import from_float, resize, to_float
from gentransforms.transforms.decoded import DecodedBank

__all__ = ["Mixture"]


class Mixture:
    """One bank, or several from which variants are drawn by weight.

    Args:
        banks: open banks or their paths, one alone or a sequence of them.
        weights: a positive number for each; None for equal ones.
        in_memory: decode all their images now.

    Raises:
        ConfigError: if they are something else.
        BankError: if one cannot be opened.
    """

    def __init__(self, banks: Any, weights: Sequence[float] | None, in_memory: bool = False) -> None:
        given = [banks] if isinstance(banks, Bank | str | Path) else banks
        if not isinstance(given, list | tuple) or not given or not all(isinstance(bank, Bank | str | Path) for bank in given):
            raise ConfigError(f"bank={banks!r}: expected a Bank or the path of one, or a list of them")
        self.weights = [1.0] * len(given) if weights is None else _check_weights(weights, len(given))
        self.banks = tuple(bank if isinstance(bank, Bank) else Bank.open(bank) for bank in given)
        kinds = {"int" if bank.integer_keys else "str": bank for bank in self.banks}
        if len(kinds) > 1:
            raise ConfigError(
                f"bank: the keys of {kinds['int'].path} are int and those of {kinds['str'].path} are str: expected banks of one data set"
            )
        self._variants = [DecodedBank(bank) if in_memory else bank for bank in self.banks]

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """The different (h, w) of their images."""
        return {bank.image_size for bank in self.banks}

    def draw(self, key: str | int, uniform: float) -> tuple[int, int] | None:
        """Return the number of a bank and one of its variants of a key; None if no bank has any.

        Banks without variants of the key are left out.

        Args:
            key: of the source.
            uniform: in [0, 1), which decides both.
        """
        there = {number: variants for number, bank in enumerate(self._variants) if (variants := bank.variants_of(key))}
        if not there:
            return None
        numbers = list(there)
        ends = list(itertools.accumulate(self.weights[number] for number in numbers))
        place = uniform * ends[-1]
        chosen = min(bisect.bisect_right(ends, place), len(numbers) - 1)
        rest = (place - (ends[chosen - 1] if chosen else 0.0)) / self.weights[numbers[chosen]]
        variants = there[numbers[chosen]]
        return numbers[chosen], variants[min(int(rest * len(variants)), len(variants) - 1)]

    def read(self, drawn: Sequence[tuple[int, int]], keys: Sequence[str | int], size: tuple[int, int]) -> Tensor:
        """Return the images that were drawn, uint8 (N, 3, h, w).

        Args:
            drawn: of each, the number of its bank and its variant.
            keys: of each.
            size: (h, w) to which they are resized if banks have images of several sizes.
        """
        if len(self.banks) == 1:
            return self._variants[0].read(keys, [variant for _, variant in drawn])
        one_size = len(self.sizes) == 1
        images = torch.empty((len(drawn), 3, *(self.banks[0].image_size if one_size else size)), dtype=torch.uint8)
        for number, bank in enumerate(self._variants):
            places = [i for i, (own, _) in enumerate(drawn) if own == number]
            if places:
                made = bank.read([keys[i] for i in places], [drawn[i][1] for i in places])
                images[places] = made if one_size else from_float(resize(to_float(made), size), like=made)
        return images


def _check_weights(weights: Any, count: int) -> list[float]:
    found = list(weights) if isinstance(weights, list | tuple) else []
    good = all(isinstance(w, int | float) and not isinstance(w, bool) and math.isfinite(w) and w > 0 for w in found)
    if len(found) != count or not good:
        raise ConfigError(f"weights={weights!r}: expected a list of {count} positive numbers, one for each bank")
    return [float(weight) for weight in found]
