"""Variants from several banks, such as those of two generators, chosen by weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gentransforms.bank.reader import Bank
from gentransforms.containers import as_plain
from gentransforms.errors import ConfigError
from gentransforms.images import from_float, resize, to_float
from gentransforms.transforms.decoded import DecodedBank

__all__ = ["Mixture"]


class Mixture:
    """One bank, or several from which variants are drawn by weight.

    Args:
        banks: open banks or their paths, one alone or a sequence of them.
        weights: a positive number for each bank, None for equal ones; or the name of a score, in proportion to which variants are
            drawn, whichever bank they are of.
        scores: where the scores are, of each bank: an Arrow table or a path; None for those that a bank was selected by.
        in_memory: decode all their images now.

    Raises:
        ConfigError: if they are something else.
        BankError: if one cannot be opened, or scores are another bank's.
    """

    def __init__(self, banks: Any, weights: Sequence[float] | str | None, scores: Any = None, in_memory: bool = False) -> None:
        banks, weights, scores = as_plain(banks), as_plain(weights), as_plain(scores)
        given = [banks] if isinstance(banks, Bank | str | Path) else banks
        if not isinstance(given, list | tuple) or not given or not all(isinstance(bank, Bank | str | Path) for bank in given):
            raise ConfigError(f"bank={banks!r}: expected a Bank or the path of one, or a list of them")
        self.weights = weights if isinstance(weights, str) else _check_weights(weights, len(given))
        tables = _check_scores(scores, weights, len(given))
        self.banks = tuple(bank if isinstance(bank, Bank) else Bank.open(bank) for bank in given)
        kinds = {"int" if bank.integer_keys else "str": bank for bank in self.banks}
        if len(kinds) > 1:
            raise ConfigError(
                f"bank: the keys of {kinds['int'].path} are int and those of {kinds['str'].path} are str: expected banks of one data set"
            )
        self._scores = [_weigh(bank, weights, own, len(given)) for bank, own in zip(self.banks, tables, strict=True)]
        self._prepare()
        self._variants = [DecodedBank(bank) if in_memory else bank for bank in self.banks]

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """The different (h, w) of their images."""
        return {bank.image_size for bank in self.banks}

    def draw(self, keys: Sequence[str | int], uniforms: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the number of a bank and one of its variants for each key; -1 where no bank has any.

        Banks without variants of a key are left out.

        Args:
            keys: N keys of sources.
            uniforms: (N,) in [0, 1), which decide both.
        """
        found = [draws.find(keys) for draws in self._draws]
        places = np.stack([own for own, _ in found])
        shares = np.stack([totals for _, totals in found])
        if not isinstance(self.weights, str):
            shares = np.where(shares > 0, np.asarray(self.weights)[:, None], 0.0)
        ends = np.cumsum(shares, axis=0)
        there = ends[-1] > 0
        target = uniforms * ends[-1]
        last = len(shares) - 1 - np.argmax(shares[::-1] > 0, axis=0)
        numbers = np.where(there, np.minimum((ends <= target).sum(axis=0), last), -1)
        variants = np.full(len(numbers), -1, dtype=np.int64)
        for number, draws in enumerate(self._draws):
            own = np.flatnonzero(numbers == number)
            before = ends[number - 1, own] if number else 0.0
            variants[own] = draws.pick(places[number, own], (target[own] - before) / shares[number, own])
        return numbers, variants

    def read(self, numbers: npt.NDArray[np.int64], variants: npt.NDArray[np.int64], keys: Sequence[Any], size: tuple[int, int]) -> Tensor:
        """Return the images that were drawn, uint8 (N, 3, h, w).

        Args:
            numbers: of the bank of each.
            variants: of each.
            keys: of each.
            size: (h, w) to which they are resized if banks have images of several sizes.
        """
        if len(self.banks) == 1:
            return self._variants[0].read(keys, variants.tolist())
        one_size = len(self.sizes) == 1
        images = torch.empty((len(keys), 3, *(self.banks[0].image_size if one_size else size)), dtype=torch.uint8)
        for number, bank in enumerate(self._variants):
            places = np.flatnonzero(numbers == number).tolist()
            if places:
                made = bank.read([keys[i] for i in places], variants[places].tolist())
                images[places] = made if one_size else from_float(resize(to_float(made), size), like=made)
        return images

    def refuse_unreachable(self) -> None:
        """Refuse scores with which no variant of some source can ever be drawn.

        Raises:
            ConfigError: naming one of these sources.
        """
        lost = {key for draws in self._draws for key in draws.unreachable()}
        for draws in self._draws:
            keys = list(lost)
            lost -= {key for key, total in zip(keys, draws.find(keys)[1].tolist(), strict=True) if total > 0}
        if lost:
            example = next(key for draws in self._draws for key in draws.unreachable() if key in lost)
            raise ConfigError(
                f"weights={self.weights!r}: all variants of {len(lost):,} sources have the score 0, such as those of {example!r}: use "
                'missing="source" to leave such images unchanged, or weigh by another column'
            )

    def _prepare(self) -> None:
        self._draws = [bank.draws(weights) for bank, weights in zip(self.banks, self._scores, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_draws"}  # they hold the banks' files

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()


def _check_weights(weights: Any, count: int) -> list[float]:
    if weights is None:
        return [1.0] * count
    found = list(weights) if isinstance(weights, list | tuple) else []
    good = all(isinstance(w, int | float) and not isinstance(w, bool) and math.isfinite(w) and w > 0 for w in found)
    if len(found) != count or not good:
        raise ConfigError(
            f"weights={weights!r}: expected a list of {count} positive numbers, one for each bank, or the name of a score of the variants"
        )
    return [float(weight) for weight in found]


def _weigh(bank: Bank, weights: Any, scores: Any, count: int) -> npt.NDArray[np.float64] | None:
    if not isinstance(weights, str):
        return None
    if scores is None and bank.scores is None:
        others = "" if count == 1 else f"; to weigh the banks, expected a list of {count} positive numbers, one for each"
        raise ConfigError(f"weights={weights!r}: {bank.path} has no scores: give scores=, the table of an audit or its path{others}")
    return bank.weigh(weights, scores)


def _check_scores(scores: Any, weights: Any, count: int) -> list[Any]:
    if scores is not None and not isinstance(weights, str):
        raise ConfigError(f'scores: given with weights={weights!r}: expected the name of one of them too, such as weights="realism"')
    found = list(scores) if isinstance(scores, list | tuple) else [scores] * (count if scores is None else 1)
    if len(found) != count:
        raise ConfigError(f"scores: {len(found)} given for {count} banks: expected a list with those of each bank")
    return found
