"""Pre-generated variants as a torchvision v2 transform."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torchvision import tv_tensors
from torchvision.transforms import v2

from gentransforms.bank.reader import Bank
from gentransforms.errors import ConfigError, MissingKeyError
from gentransforms.images import Image, check_range, count_of, from_unit, resize, restore, rows_of, to_unit
from gentransforms.sources.inputs import integer
from gentransforms.sources.keys import RowKey
from gentransforms.transforms.getters import per_image_keys
from gentransforms.transforms.replace import check_companions, framed, images_in, output_size_of, probability, scatter

__all__ = ["BankAugment"]

KeysGetter = Callable[[Any], Any]
_SIZES = ("input", "generator", "native")
_MISSING = ("error", "source")


class BankAugment(v2.Transform):  # type: ignore[misc]  # torchvision has no annotations
    """Replace each image, with probability `p`, by one of its variants in a bank.

    Takes and returns what `GenerativeAugment` does: tensors (…, C, H, W), C 1 or 3, uint8 or floating in [0, 1], PIL
    images (RGB or L) and `tv_tensors.Image`, alone or nested, on any device, in a data set or on batches. Coins and
    variants come from torch's default CPU RNG, as many numbers for each image whatever `p` and the coins are; a variant
    is drawn uniformly from those that its source has.

    Args:
        bank: an open `Bank`, or the path of one.
        p: probability, for each image.
        keys_getter: from the sample to the key of each image: one str or int, or a list, tuple, array or integer tensor.
            By default entry ``"key"`` of a dict, or the last element of a tuple or list, as `with_keys` makes them. If the
            bank's keys are numbers, ``(image, 3)`` is refused unless the number comes from `with_keys`, as it may be a label.
            A batch ``(images, numbers)`` or a sample of three elements does not show whether it ends in keys or in labels:
            there the last element is taken for the key.
        missing: for an image whose key has no variants: ``"error"``, or ``"source"`` to leave it as it is.
        output_size: ``"input"``, ``"generator"`` (the bank's) or (h, w), as for `GenerativeAugment`; ``"native"`` gives a
            variant at the bank's size and leaves every other image at its own, for a crop or resize that follows.

    Attributes:
        missing_count: how many images were to be replaced and had no variants, in this process.

    Raises:
        ConfigError: if an argument, or what the getter returns, is not as described.
        MissingKeyError: if the bank has no variants of a key; whatever its coin says, so that it is noticed at once.
        ImageError: if an image is of another kind or range, or stands beside a video, or beside boxes, masks or key
            points that the bank's images would make wrong.
        BankError: if an image of the bank does not decode.

    Example:
        >>> import tempfile, torch
        >>> from torchvision.transforms import v2
        >>> from gentransforms.bank.generate.run import generate_bank
        >>> from gentransforms.testing import FakeGenerator
        >>> photos = [torch.full((3, 16, 16), 50 * i, dtype=torch.uint8) for i in range(4)]
        >>> folder = tempfile.TemporaryDirectory()
        >>> _ = generate_bank(photos, folder.name, FakeGenerator(), variants=2, progress=False)
        >>> view = v2.Compose([BankAugment(folder.name, p=0.5), v2.RandomHorizontalFlip()])
        >>> images, keys = view(torch.stack(photos), torch.arange(4))
        >>> images.shape, keys
        (torch.Size([4, 3, 16, 16]), tensor([0, 1, 2, 3]))
        >>> folder.cleanup()

    Source: Ayromlou et al., "Can Generative Models Improve Self-Supervised Representation Learning?" (AAAI 2025).
    """

    _needs_transform_list: Callable[[list[Any]], list[bool]]
    _transformed_types = (tv_tensors.Image, v2._utils.is_pure_tensor, PIL.Image.Image)

    def __init__(
        self,
        bank: Bank | str | Path,
        p: float = 0.5,
        *,
        keys_getter: KeysGetter | None = None,
        missing: str = "error",
        output_size: str | tuple[int, int] = "input",
    ) -> None:
        super().__init__()
        self.p = probability(p)
        if keys_getter is not None and not callable(keys_getter):
            raise ConfigError(f"keys_getter={keys_getter!r}: expected a function of the sample, or None")
        if missing not in _MISSING:
            raise ConfigError(f'missing={missing!r}: expected "error" or "source"')
        self.keys_getter, self.missing = keys_getter, missing
        self.output_size = output_size_of(output_size, _SIZES)
        if not isinstance(bank, Bank | str | Path):
            raise ConfigError(f"bank={bank!r}: expected a Bank, or the path of one")
        self.bank = bank if isinstance(bank, Bank) else Bank.open(bank)
        self._numbered = isinstance(next(iter(self.bank.keys), None), int)
        self.missing_count = 0
        self._checked_devices: set[str] = set()

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Refuse, by name, what would become wrong."""
        check_companions(flat_inputs, f"{self.bank.generator_name}, which made this bank,", self.bank.preserves_geometry, self.output_size)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a coin and a number for every image: ``chosen`` (N,) bool and ``uniforms`` (N,) float64 in [0, 1), on the CPU."""
        count = count_of(flat_inputs)
        # As many draws per image whatever p and the coins are, and as many as GenerativeAugment's: neither p nor the choice
        # between bank and generator shifts the random stream.
        kind: dict[str, Any] = {"device": torch.device("cpu")}  # also where torch.set_default_device says otherwise
        coins, uniforms = torch.rand(count, **kind), torch.rand(count, dtype=torch.float64, **kind)
        return {"chosen": coins < self.p, "uniforms": uniforms}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply drawn parameters, with the ``keys`` of its images, to one image or batch."""
        return self._apply_params([inpt], [rows_of(inpt)], params)[0]

    def forward(self, *inputs: Any) -> Any:
        """Transform a sample."""
        sample = inputs if len(inputs) > 1 else inputs[0]
        flat, spec = tree_flatten(sample)
        self.check_inputs(flat)
        places, images, rows = images_in(flat, self._needs_transform_list(flat))
        if not images:
            return sample
        keys = _key_in(sample, images, self._numbered) if self.keys_getter is None else self.keys_getter(sample)
        params = self.make_params(images) | {"keys": per_image_keys(keys, images)}
        for i, output in zip(places, self._apply_params(images, rows, params), strict=True):
            flat[i] = output
        return tree_unflatten(flat, spec)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.bank!r}, p={self.p}, output_size={self.output_size!r}, missing={self.missing!r})"

    def _apply_params(self, images: list[Image], rows: list[Tensor], params: dict[str, Any]) -> list[Image]:
        self._check_range(rows)
        chosen, keys, variants = self._drawn(params)
        made = self.bank.read(keys, variants)
        coins = torch.split(chosen, [len(row) for row in rows])
        pieces = torch.split(made, [int(coin.sum()) for coin in coins])
        return [self._replace(*piece) for piece in zip(images, rows, coins, pieces, strict=True)]

    def _drawn(self, params: dict[str, Any]) -> tuple[Tensor, list[str | int], list[int]]:
        """Return which images are replaced, their keys, and the variant of each."""
        flags, keys, variants = [], [], []
        for chosen, uniform, key in zip(params["chosen"].tolist(), params["uniforms"].tolist(), params["keys"], strict=True):
            there = self.bank.variants_of(key)
            if not there and self.missing == "error":
                advice = "" if "BankAugment" in (why := self.bank.why_absent(key, 0)) else '; or use missing="source" in BankAugment'
                raise MissingKeyError(f"{self.bank.path}: {why}{advice}")
            self.missing_count += chosen and not there
            flags.append(chosen and bool(there))
            if flags[-1]:
                keys.append(key)
                variants.append(there[int(uniform * len(there))])
        return torch.tensor(flags, dtype=torch.bool, device=torch.device("cpu")), keys, variants

    def _replace(self, image: Image, rows: Tensor, chosen: Tensor, made: Tensor) -> Image:
        """Return `image` with its chosen rows replaced by `made`, uint8 (M, 3, h, w)."""
        if self.output_size == "native":
            self._check_mixture(rows, len(made))
        base = rows
        if self.output_size == "generator" or isinstance(self.output_size, tuple):
            size = self.bank.image_size if isinstance(self.output_size, str) else self.output_size
            base = framed(rows, size, self.bank.image_size, self.bank.preserves_geometry)
        if not len(made):
            return image if base is rows else restore(base, image)
        height, width = self.bank.image_size if self.output_size == "native" else base.shape[-2:]
        made = made.to(rows.device, non_blocking=True)  # as uint8: the fewest bytes
        if rows.dtype == torch.uint8 and rows.shape[1] == 3 and tuple(made.shape[-2:]) == (height, width):
            new = made
        else:
            new = from_unit(resize(to_unit(made), (height, width)), like=rows)
        return scatter(base, image, chosen, new)

    def _check_mixture(self, rows: Tensor, count: int) -> None:
        if len(rows) < 2 or tuple(rows.shape[-2:]) == self.bank.image_size:
            return
        # Refused whatever the coins of this batch are, so that it is noticed at once.
        if 0 < self.p < 1 or 0 < count < len(rows):
            (height, width), (own_height, own_width) = self.bank.image_size, rows.shape[-2:]
            raise ConfigError(
                f'output_size="native" would mix {height} x {width} variants with {own_height} x {own_width} images in one batch: '
                f'use output_size="generator" or a size (h, w), or apply it to single images, before a crop or resize'
            )

    def _check_range(self, rows: list[Tensor]) -> None:
        """As `GenerativeAugment`: on the CPU always, on another device at its first call only, for the sync."""
        devices = {str(row.device) for row in rows if row.is_floating_point() and len(row) and row.device.type != "cpu"}
        for row in rows:
            if str(row.device) not in self._checked_devices:
                check_range(row)
        self._checked_devices |= devices


def _key_in(sample: Any, images: list[Image], numbered: bool) -> Any:
    """Return the key of a sample as `with_keys` makes it."""
    if isinstance(sample, Mapping):
        if "key" in sample:
            return sample["key"]
        raise ConfigError(
            f'the sample has entries {list(sample)} and no "key": wrap the data set in gentransforms.with_keys, or pass keys_getter='
        )
    if isinstance(sample, tuple | list) and len(sample) > 1 and not isinstance(sample[-1], PIL.Image.Image):
        if numbered and len(sample) == 2 and _is_one(images) and _may_be_a_label(sample[1]):
            raise ConfigError(
                f"the sample ends in {sample[1]!r}, which may be a label as well as a key of this bank: wrap the data set in "
                'gentransforms.with_keys, put the key in a dict entry "key", or give keys_getter='
            )
        return sample[-1]
    raise ConfigError(
        f"the sample is a {type(sample).__name__} without a key: wrap the data set in gentransforms.with_keys, whose samples carry it as "
        "their last element, or pass keys_getter="
    )


def _is_one(images: list[Image]) -> bool:
    return len(images) == 1 and (isinstance(images[0], PIL.Image.Image) or images[0].ndim == 3)


def _may_be_a_label(value: Any) -> bool:
    """Whether it is one whole number, in whatever form, and not marked as a key by `with_keys`."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return not isinstance(value, RowKey) and integer(value) is not None
