"""From a block of source images to their variants: the part of a bank's making that decides its pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gentransforms.errors import BankError, ConfigError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.held import check_inputs, check_output, is_out_of_memory, no_autocast
from gentransforms.seeding import derive_seeds

__all__ = ["Made", "Recipe", "make_block"]


@dataclass(frozen=True)
class Recipe:
    """What decides the variants of a source, beside the generator.

    Args:
        base_seed: of `gentransforms.derive_seeds`.
        variants: of each source.
        batch_size: largest number of images that the generator makes at once.
        max_attempts: how often a variant is tried before it is given up.
        min_similarity: smallest cosine between a variant's instance feature and its source's; None for any.

    Raises:
        ConfigError: if one is not as described.
    """

    base_seed: int = 0
    variants: int = 10
    batch_size: int = 64
    max_attempts: int = 5
    min_similarity: float | None = None

    def __post_init__(self) -> None:
        for name in ("variants", "batch_size", "max_attempts"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected a positive integer")
        if type(self.base_seed) is not int:
            raise ConfigError(f"base_seed={self.base_seed!r}: expected an integer")
        least = self.min_similarity
        if least is not None and (isinstance(least, bool) or not isinstance(least, int | float) or not -1 <= least <= 1):
            raise ConfigError(f"min_similarity={least!r}: expected a cosine from -1 to 1, or None for no gate")


@dataclass(frozen=True)
class Made:
    """One variant: which source of the block, which variant, the seed and attempt that made it; or why there is none.

    `image` is (3, h, w) on the CPU, floating in [0, 1] or uint8; None if every attempt was refused, for `reason`.
    """

    source: int
    variant: int
    seed: int
    attempt: int
    image: Tensor | None
    reason: str = ""


def make_block(
    generator: ImageGenerator, recipe: Recipe, keys: Sequence[str | int], images: Tensor, inputs: Mapping[str, Any]
) -> Iterator[list[Made]]:
    """Make all variants of some sources; yields them batch by batch, in order of source, then variant.

    Each source is encoded once, all sources together. A variant that holds NaN or infinity, or is too far from its source,
    is tried again with the seed of variant + attempt * variants.

    Args:
        generator: in eval mode.
        recipe: the settings.
        keys: of the sources.
        images: (B, 3, H, W) float32 in [0, 1] on the CPU, at the generator's size.
        inputs: one value per source for each name of ``generator.inputs`` that is given.

    Raises:
        BankError: if memory runs out: a smaller batch would give other bytes, so that is for the user to decide.
        GeneratorError: if the generator breaks its contract.

    Example:
        >>> import torch
        >>> from gentransforms.testing import FakeGenerator
        >>> batches = make_block(FakeGenerator(8), Recipe(variants=3, batch_size=4), ["a", "b"], torch.rand(2, 3, 8, 8), {})
        >>> [[(made.source, made.variant) for made in batch] for batch in batches]
        [[(0, 0), (0, 1), (0, 2), (1, 0)], [(1, 1), (1, 2)]]
    """
    check_inputs(generator, inputs)
    block = _Block(generator, recipe, keys, inputs)
    with torch.no_grad(), no_autocast(generator.device), _advice(recipe.batch_size):
        block.encode(images)
    rows = len(keys) * recipe.variants
    for start in range(0, rows, recipe.batch_size):
        with torch.no_grad(), no_autocast(generator.device), _advice(recipe.batch_size):
            batch = block.make(range(start, min(start + recipe.batch_size, rows)))
        yield batch


class _Block:
    """The sources of a block, encoded, and what is drawn from them."""

    def __init__(self, generator: ImageGenerator, recipe: Recipe, keys: Sequence[str | int], inputs: Mapping[str, Any]) -> None:
        self.generator, self.recipe, self.keys = generator, recipe, keys
        self.inputs = {name: v.to(generator.device) if isinstance(v, Tensor) else v for name, v in inputs.items()}
        self.condition: Mapping[str, Tensor] = {}

    def encode(self, images: Tensor) -> None:
        self.condition = self.generator.encode(images.to(self.generator.device), **self.inputs)
        if self.recipe.min_similarity is not None:
            self.features = self._features(self.condition)

    def make(self, rows: range) -> list[Made]:
        """Return the variants of these rows, row = source * variants + variant."""
        sources, variants = [row // self.recipe.variants for row in rows], [row % self.recipe.variants for row in rows]
        made: list[Made | None] = [None] * len(rows)
        reasons = [""] * len(rows)
        left = list(range(len(rows)))
        for attempt in range(self.recipe.max_attempts):
            numbers = [variants[i] + attempt * self.recipe.variants for i in left]
            places = [sources[i] for i in left]
            seeds = derive_seeds(self.recipe.base_seed, [self.keys[s] for s in places], numbers)
            pixels, refused = self._sample(places, seeds)
            for i, seed, image, reason in zip(left, seeds.tolist(), pixels, refused, strict=True):
                reasons[i] = reason
                if not reason:
                    made[i] = Made(sources[i], variants[i], seed, attempt, image)
            left = [i for i in left if made[i] is None]
            if not left:
                break
        return [m or Made(s, v, -1, self.recipe.max_attempts, None, r) for m, s, v, r in zip(made, sources, variants, reasons, strict=True)]

    def _sample(self, places: Sequence[int], seeds: Tensor) -> tuple[Tensor, list[str]]:
        """Return images on the CPU, one for each place and seed, and why each is refused: empty where it is not."""
        generator, index = self.generator, torch.tensor(places, device=self.generator.device)
        images = generator.sample({name: value[index] for name, value in self.condition.items()}, seeds)
        check_output(generator, images, len(seeds))
        finite = _finite(images)
        reasons = ["" if ok else "the generator made NaN or infinity" for ok in finite.tolist()]
        least = self.recipe.min_similarity
        if least is not None:
            clean = torch.where(finite[:, None, None, None], images, 0.0)
            given = {name: v[index] if isinstance(v, Tensor) else [v[i] for i in places] for name, v in self.inputs.items()}
            cosine = F.cosine_similarity(self._features(generator.encode(clean, **given)), self.features[index])
            pairs = zip(reasons, cosine.tolist(), strict=True)
            reasons = [reason or ("" if c >= least else f"similarity {c:.3f}, below min_similarity={least}") for reason, c in pairs]
        if images.device.type != "cpu":  # on the device, so that a quarter of the bytes travel; on the CPU the encoder's threads do it
            images = (images * 255).round_().clamp_(0, 255).to(torch.uint8).cpu()
        return images, reasons

    def _features(self, condition: Mapping[str, Tensor]) -> Tensor:
        name = self.generator.instance_feature
        assert name is not None
        return condition[name].flatten(1).float()


def _finite(images: Tensor) -> Tensor:
    """Return which images hold no NaN or infinity: (B,) bool. One pass, because the sum of finite pixels is finite."""
    if images.device.type != "cpu":
        return images.flatten(1).sum(1).isfinite()
    # NumPy on the CPU: torch's threads go on spinning for a while after each sum, and take the cores from the encoder.
    with np.errstate(invalid="ignore", over="ignore"):
        return torch.from_numpy(np.isfinite(images.flatten(1).numpy().sum(1)))


class _advice:
    """Turn running out of memory into an error that says what to do."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and is_out_of_memory(error):
            raise BankError(
                f"out of memory at batch_size={self.batch_size}: it is a setting of the bank, so start a new one with a smaller batch_size "
                "in another directory (what is made here stays good for this one, on a machine with more memory)"
            ) from error
