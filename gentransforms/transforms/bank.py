"""`BankAugment`: pre-generated variants as a torchvision v2 transform."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gentransforms.bank.reader import Bank
from gentransforms.errors import ConfigError, MissingKeyError
from gentransforms.images import Image, count_images
from gentransforms.sources.keyed import KeyedDataset
from gentransforms.sources.sample_keys import KeyOrigin, find_keys, key_origins
from gentransforms.transforms.drawing import asked_of, draw_params
from gentransforms.transforms.getters import per_image_keys
from gentransforms.transforms.loader_check import check_loader
from gentransforms.transforms.mixture import Mixture
from gentransforms.transforms.replace import Origin, ReplaceImages, draw_selection
from gentransforms.transforms.source_check import SourceCheck, check_dataset
from gentransforms.wording import name_type

__all__ = ["BankAugment"]

KeysGetter = Callable[[Any], Any]
_MISSING = ("error", "source")


class BankAugment(ReplaceImages):
    """Replace each image, with probability `p`, with one of its variants from a bank.

    Accepts and returns what `GenerativeAugment` does: tensors (…, C, H, W), C 1 or 3, uint8 or floating in [0, 1], PIL
    images (RGB or L) and `tv_tensors.Image`, alone or nested, on any device, in a data set or on batches. Selection and
    variants are drawn from torch's default CPU RNG. The amount of random numbers does not depend on `p`, the selection or the
    weights. A variant is drawn from those that its source has: uniformly, or in proportion to a score.

    Args:
        bank: an open `Bank` or the path of one, or a list of them: for each image a bank is drawn by weight, among those that
            have variants of its key, and then one of its variants.
        p: probability of replacement, for each image.
        keys_getter: maps the sample to the key of each image: one str or int, or a list, tuple, array or integer tensor;
            ``"last"`` for the last element of a tuple or list. By default the entry ``"key"`` of a dict, or the key that
            `with_keys` added to the sample. Nothing else is taken for a key, because it might be a label.
        missing: what to do with an image without variants: ``"error"``, or ``"source"`` to leave it unchanged.
        output_size: ``"input"``, ``"generator"`` (the bank's) or (h, w), as for `GenerativeAugment`; ``"native"`` returns
            variants at the bank's size and leaves all other images at their own, for a crop or resize that follows.
        check_sources: compare the first images, eight or more, with what the bank keeps of its sources. Images that match other
            sources are refused, as after a data set whose keys are row numbers was filtered or cut; a warning says if they
            resemble their own sources no more than any others. Augmented images of the right rows pass. Images of each data set
            that `with_keys` wrapped are compared by themselves.
        weights: of several banks, positive numbers; equal by default. Or the name of a score, such as ``"realism"``: an image's
            variants are drawn in proportion to it, those of several banks together. Scores are numbers of 0 or more; variants of
            score 0 are never drawn.
        scores: with the name of a score, the table or the path of the scores of an audit; of several banks, a list of them. By
            default those that the bank was chosen by, with `Bank.select`.
        in_memory: decode every image of the bank once, now, into memory (rows x 3 x h x w bytes): for small images, in a
            training step that would wait for the decoding.

    Attributes:
        banks: the open banks.
        missing_count: how many images in this process were selected but had no variants.

    Raises:
        ConfigError: if an argument, or what the getter returns, is not as described; if keys belong to other images.
        MissingKeyError: if the bank has no variants of a key, whether it is selected or not, so that it is noticed at once.
        ImageError: if an image has an unsupported type or range, or comes with a video, or with `tv_tensors` boxes, masks or
            key points that the bank's images would invalidate; plain ones give a warning.
        BankError: if an image of the bank cannot be decoded.

    Example:
        >>> import tempfile, torch
        >>> from torchvision.transforms import v2
        >>> from gentransforms.bank.generate.run import generate_bank
        >>> from gentransforms.testing import FakeGenerator
        >>> photos = [torch.full((3, 16, 16), 50 * i, dtype=torch.uint8) for i in range(4)]
        >>> folder = tempfile.TemporaryDirectory()
        >>> _ = generate_bank(photos, folder.name, FakeGenerator(), variants=2, progress=False)
        >>> view = v2.Compose([BankAugment(folder.name, p=0.5, keys_getter="last"), v2.RandomHorizontalFlip()])
        >>> images, keys = view(torch.stack(photos), torch.arange(4))
        >>> images.shape, keys
        (torch.Size([4, 3, 16, 16]), tensor([0, 1, 2, 3]))
        >>> folder.cleanup()

    Source: Ayromlou et al., "Can Generative Models Improve Self-Supervised Representation Learning?" (AAAI 2025).
    """

    _sizes = ("input", "generator", "native")

    def __init__(
        self,
        bank: Bank | str | Path | Sequence[Bank | str | Path],
        p: float = 0.5,
        *,
        keys_getter: KeysGetter | Literal["last"] | None = None,
        missing: str = "error",
        output_size: str | tuple[int, int] = "input",
        check_sources: bool = True,
        weights: Sequence[float] | str | None = None,
        scores: Any = None,
        in_memory: bool = False,
    ) -> None:
        self.check_sources = check_sources
        super().__init__(p, output_size)
        if keys_getter not in (None, "last") and not callable(keys_getter):
            raise ConfigError(f'keys_getter={keys_getter!r}: expected a function of the sample, "last", or None')
        if missing not in _MISSING:
            raise ConfigError(f'missing={missing!r}: expected "error" or "source"')
        self.keys_getter, self.missing = keys_getter, missing
        self._mixture = Mixture(bank, weights, scores, in_memory)
        self.banks = self._mixture.banks
        if missing == "error":
            self._mixture.refuse_unreachable()
        if len(self._mixture.sizes) > 1 and self.output_size in ("generator", "native"):
            shown = " and ".join(f"{height} x {width}" for height, width in sorted(self._mixture.sizes))
            raise ConfigError(f'output_size={self.output_size!r}: the banks have images of {shown}: use "input" or a size (h, w)')

    @property
    def origin(self) -> Origin:
        """The generators that made the banks: their names, the (h, w), and whether all keep the layout of an image."""
        names = " and ".join(dict.fromkeys(bank.generator_name for bank in self.banks))
        what = f"{names}, which made {'this bank' if len(self.banks) == 1 else 'these banks'},"
        return Origin(what, self.banks[0].image_size, all(bank.preserves_geometry for bank in self.banks))

    def make_params(self, flat_inputs: list[Any], p: float | None = None) -> dict[str, Any]:
        """Draw the selection and, for every image, the number that picks its variant.

        A subclass may override this, with or without the argument `p`, and change what ``super().make_params`` returns.

        Returns:
            ``chosen`` (N,) bool and ``uniforms`` (N,) float64 in [0, 1), both on the CPU.
        """
        count = count_images(flat_inputs)
        # As many numbers as GenerativeAugment draws, so that replacing a generator with a bank does not shift the random stream.
        chosen = draw_selection(count, asked_of(self, p)[0])
        return {"chosen": chosen, "uniforms": torch.rand(count, dtype=torch.float64, device=torch.device("cpu"))}

    def __repr__(self) -> str:
        banks = repr(self.banks[0]) if len(self.banks) == 1 else f"{list(self.banks)!r}"
        if len(self.banks) > 1 or isinstance(self._mixture.weights, str):
            banks += f", weights={self._mixture.weights!r}"
        return f"{type(self).__name__}({banks}, p={self.p}, output_size={self.output_size!r}, missing={self.missing!r})"

    def _draw(self, sample: Any, images: list[Image], p: float) -> dict[str, Any]:
        if self.keys_getter is None:
            keys = find_keys(sample)
        elif self.keys_getter == "last":
            keys = _last(sample)
        else:
            keys = self.keys_getter(sample)
        if self.output_size == "native" and 0 < p < 1:  # whatever this batch's selection is, so that the error is raised at once
            for image in images:
                self._check_mixture(image.shape if isinstance(image, Tensor) else ())
        return draw_params(self, images, p) | {"keys": per_image_keys(keys, images), "origins": key_origins(keys)}

    def _make_images(self, rows: list[Tensor], params: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.check_sources:
            self._check_images(rows, params["keys"], params.get("origins", ()))
        keys = params["keys"]
        # By way of lists, because inside torch.func.grad a drawn tensor is wrapped, and has no memory that NumPy could share.
        chosen = np.array(params["chosen"].tolist(), np.bool_)
        numbers, variants = self._mixture.draw(keys, np.array(params["uniforms"].tolist(), np.float64))
        absent = np.flatnonzero(numbers < 0)
        if len(absent) and self.missing == "error":
            self._raise_missing(keys[absent[0]])
        self.missing_count += int(chosen[absent].sum())
        replaced = torch.from_numpy(chosen & (numbers >= 0))
        drawn = np.flatnonzero(chosen & (numbers >= 0))
        if self.output_size == "native":
            for row, part in zip(rows, torch.split(replaced, [len(row) for row in rows]), strict=True):
                if part.any() and not part.all():
                    self._check_mixture(row.shape)
        made = self._mixture.read(numbers[drawn], variants[drawn], [keys[i] for i in drawn.tolist()], self._common_size(rows))
        return replaced, made, None

    def _check_images(self, rows: list[Tensor], keys: list[str | int], origins: Sequence[KeyOrigin | None]) -> None:
        """Compare images with the bank's sources, those of each data set by themselves: of two, one may have the right keys."""
        if len(origins) != len(keys):  # one array of keys, of which nothing is known
            origins = [None] * len(keys)
        for origin in dict.fromkeys(origins):
            for number, bank in enumerate(self.banks):
                check = self._checks.setdefault((number, origin), SourceCheck(size=None if origin is None else origin.size))
                if not check.done:
                    images = (image[None] for batch in rows for image in batch)
                    own = [(key, image) for key, image, of in zip(keys, images, origins, strict=True) if of == origin]
                    check.add(bank, [key for key, _ in own], [image for _, image in own])

    def _common_size(self, rows: Sequence[Tensor]) -> tuple[int, int]:
        """Return the size to which images of banks of several sizes are brought: what comes out, if that is one size."""
        if isinstance(self.output_size, tuple):
            return self.output_size
        sizes = {(row.shape[-2], row.shape[-1]) for row in rows}
        return sizes.pop() if len(sizes) == 1 else max(self._mixture.sizes, key=math.prod)

    def _raise_missing(self, key: str | int) -> None:
        bank = self.banks[0]
        advice = "" if "BankAugment" in (why := bank.why_absent(key, 0)) else '; or use missing="source" in BankAugment'
        others = "" if len(self.banks) == 1 else f" (and {len(self.banks) - 1} more banks have no variants of it either)"
        raise MissingKeyError(f"{bank.path}: {why}{advice}{others}")

    def _frame(self, rows: Tensor, replaced: bool) -> tuple[Tensor, tuple[int, int]]:
        if self.output_size != "native":
            return super()._frame(rows, replaced)
        return rows, self.banks[0].image_size if replaced else (rows.shape[-2], rows.shape[-1])

    def _check_mixture(self, shape: Sequence[int]) -> None:
        """Raise if images of this shape (…, C, H, W) cannot be in one batch with variants."""
        if math.prod(shape[:-3]) < 2 or tuple(shape[-2:]) == self.banks[0].image_size:
            return
        (height, width), (own_height, own_width) = self.banks[0].image_size, shape[-2:]
        raise ConfigError(
            f'output_size="native" would mix {height} x {width} variants with {own_height} x {own_width} images in one batch: '
            f'use output_size="generator" or a size (h, w), or apply it to single images, before a crop or resize'
        )

    def check_dataset(self, dataset: KeyedDataset) -> None:
        """Compare eight samples, spread over a data set, with what the bank keeps of its sources; `with_keys` does it.

        Raises:
            ConfigError: if its keys belong to other images.

        Warns:
            UserWarning: if its keys are row numbers, and its length is not that of the data set the bank was made from; if it is an
                `ImageFolder` whose loader leaves photos lying on their side, or shows what is under transparent parts.
        """
        if self.check_sources:
            for bank in self.banks:
                check_loader(bank, dataset)
                check_dataset(bank, dataset)

    def _forget(self) -> None:
        super()._forget()
        self.missing_count = 0
        self._checks: dict[tuple[int, KeyOrigin | None], SourceCheck] = {}

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["missing_count"], state["_checks"]
        return state


def _last(sample: Any) -> Any:
    if isinstance(sample, tuple | list) and len(sample) > 1:
        return sample[-1]
    raise ConfigError(f'keys_getter="last": the sample is {name_type(sample)}: expected a tuple or list of an image and its key')
