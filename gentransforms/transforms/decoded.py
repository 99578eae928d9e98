"""The images of a bank, decoded once into memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gentransforms.bank.reader import Bank

__all__ = ["DecodedBank"]

_ROWS_AT_ONCE = 1000


class DecodedBank:
    """Reads as a `Bank` does, from one uint8 tensor of all its images.

    Args:
        bank: its images, of one size, are decoded here and now.

    Attributes:
        images: (rows, 3, h, w) uint8.

    Example:
        >>> import tempfile, torch
        >>> from gentransforms import Bank, generate_bank
        >>> from gentransforms.testing import FakeGenerator
        >>> folder = tempfile.TemporaryDirectory()
        >>> _ = generate_bank([torch.zeros(3, 8, 8)] * 2, folder.name, FakeGenerator(8), variants=3, progress=False)
        >>> bank = Bank.open(folder.name)
        >>> torch.equal(DecodedBank(bank).read([1, 0], [2, 0]), bank.read([1, 0], [2, 0]))
        True
        >>> folder.cleanup()
    """

    def __init__(self, bank: Bank) -> None:
        rows = [(key, variant) for key in bank.keys for variant in bank.variants_of(key)]
        self.places = {row: place for place, row in enumerate(rows)}
        self.images = torch.empty(len(rows), 3, *bank.image_size, dtype=torch.uint8, device="cpu")
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            self.images[start : start + len(part)] = bank.read([key for key, _ in part], [variant for _, variant in part])

    def read(self, keys: Sequence[str | int], variants: Sequence[int]) -> Tensor:
        """Return the images of paired keys and variants: (N, 3, h, w) uint8."""
        places = [self.places[row] for row in zip(keys, variants, strict=True)]
        return self.images[torch.tensor(places, dtype=torch.int64, device="cpu")]
