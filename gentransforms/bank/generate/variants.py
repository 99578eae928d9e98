"""Generate the variants of a block of sources: the part of generating a bank that determines its pixels."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gentransforms.bank.config import BankConfig
from gentransforms.errors import BankError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.generate import check_inputs, check_output, is_out_of_memory
from gentransforms.generators.turns import take_turn
from gentransforms.seeding import derive_seeds
from gentransforms.surroundings import isolate

__all__ = ["NOT_FINITE", "Made", "make_block"]

NOT_FINITE = "the generator made NaN or infinity"


@dataclass(frozen=True)
class Made:
    """One variant: its source in the block, its number, and the seed and attempt that generated it.

    `image` is (3, h, w) on the CPU, floating in [0, 1] or uint8; None if every attempt was rejected, the last one for `reason`.
    """

    source: int
    variant: int
    seed: int
    attempt: int
    image: Tensor | None
    reason: str = ""


def make_block(
    generator: ImageGenerator,
    config: BankConfig,
    keys: Sequence[str | int],
    images: Tensor,
    inputs: Mapping[str, Any],
    *,
    stages: Sequence[int] | None = None,
    known: Mapping[int, tuple[int, Collection[int]]] | None = None,
) -> Iterator[list[Made]]:
    """Generate all variants of some sources; yields them batch by batch, sorted by source, then variant.

    Each source is encoded once, all sources together. A variant that holds NaN or infinity, or is too far from its source,
    is tried again with the seed of variant + attempt * variants.

    Args:
        generator: the generator, in eval mode.
        config: settings of the bank.
        keys: keys of the sources.
        images: (B, 3, H, W) float32 in [0, 1] on the CPU, at the generator's size.
        inputs: one value per source for each available name in ``generator.inputs``.
        stages: the numbers of variants that the bank has had, if it was extended; the variants of each stage are generated one
            stage after the other, never with a seed that was tried in an earlier stage.
        known: for each source that already has variants, how many, and the seed numbers tried for them.

    Raises:
        BankError: if memory runs out. A smaller batch would give other bytes, so the user has to decide.
        GeneratorError: if the generator breaks its contract.
        MissingInputError: if inputs are missing.
        ConfigError: if inputs are out of range.

    Example:
        >>> import torch
        >>> from gentransforms.testing import FakeGenerator
        >>> batches = make_block(FakeGenerator(8), BankConfig(variants=3, batch_size=4), ["a", "b"], torch.rand(2, 3, 8, 8), {})
        >>> [[(made.source, made.variant) for made in batch] for batch in batches]
        [[(0, 0), (0, 1), (0, 2), (1, 0)], [(1, 1), (1, 2)]]
    """
    check_inputs(generator, inputs, len(keys))
    block = _Block(generator, config, keys, inputs)
    with take_turn(generator), isolate(generator.device), torch.no_grad(), _explain_out_of_memory(config.batch_size):
        block.encode(images)
    known = known or {}
    block.tried |= {(source, number) for source, (_, numbers) in known.items() for number in numbers}
    for first, stop in itertools.pairwise((0, *(stages or [config.variants]))):
        sources = [s for s in range(len(keys)) if s not in known or known[s][0] <= first]
        rows = [(s, variant) for s in sources for variant in range(first, stop)]
        for start in range(0, len(rows), config.batch_size):
            with take_turn(generator), isolate(generator.device), torch.no_grad(), _explain_out_of_memory(config.batch_size):
                batch = block.make(rows[start : start + config.batch_size], stop)
            block.tried |= {(m.source, m.variant + a * stop) for m in batch for a in range(1, min(m.attempt + 1, config.max_attempts))}
            yield batch


class _Block:
    """The encoded sources of a block, from which variants are sampled."""

    def __init__(self, generator: ImageGenerator, config: BankConfig, keys: Sequence[str | int], inputs: Mapping[str, Any]) -> None:
        self.generator, self.config, self.keys = generator, config, keys
        self.inputs = {name: v.to(generator.device) if isinstance(v, Tensor) else v for name, v in inputs.items()}
        self.condition: Mapping[str, Tensor] = {}
        self.tried: set[tuple[int, int]] = set()  # (source, seed number) of second and later attempts

    def encode(self, images: Tensor) -> None:
        self.condition = self.generator.encode(images.to(self.generator.device), **self.inputs)
        if self.config.min_similarity is not None:
            self.features = self._features(self.condition)

    def make(self, rows: Sequence[tuple[int, int]], step: int) -> list[Made]:
        """Return variants, given as (source, variant); attempts are `step` seed numbers apart."""
        sources, variants = [source for source, _ in rows], [variant for _, variant in rows]
        made: list[Made | None] = [None] * len(rows)
        reasons = ["every seed was already tried for an earlier variant"] * len(rows)
        for attempt in range(self.config.max_attempts):
            left = [i for i in range(len(rows)) if made[i] is None and (sources[i], variants[i] + attempt * step) not in self.tried]
            if not left:
                continue
            places = [sources[i] for i in left]
            seeds = derive_seeds(self.config.base_seed, [self.keys[s] for s in places], [variants[i] + attempt * step for i in left])
            pixels, rejections = self._sample(places, seeds)
            for i, seed, image, reason in zip(left, seeds.tolist(), pixels, rejections, strict=True):
                reasons[i] = reason
                if not reason:
                    made[i] = Made(sources[i], variants[i], seed, attempt, image)
        return [m or Made(s, v, -1, self.config.max_attempts, None, r) for m, s, v, r in zip(made, sources, variants, reasons, strict=True)]

    def _sample(self, places: Sequence[int], seeds: Tensor) -> tuple[Tensor, list[str]]:
        """Return images on the CPU, one for each place and seed, and the reason why each is rejected, or ""."""
        generator, index = self.generator, torch.tensor(places, device=self.generator.device)
        images = generator.sample({name: value[index] for name, value in self.condition.items()}, seeds)
        check_output(generator, images, len(seeds))
        finite = _finite(images)
        reasons = ["" if ok else NOT_FINITE for ok in finite.tolist()]
        least = self.config.min_similarity
        if least is not None:
            clean = torch.where(finite[:, None, None, None], images, 0.0)
            given = {name: v[index] if isinstance(v, Tensor) else [v[i] for i in places] for name, v in self.inputs.items()}
            cosine = F.cosine_similarity(self._features(generator.encode(clean, **given)), self.features[index])
            pairs = zip(reasons, cosine.tolist(), strict=True)
            reasons = [reason or ("" if c >= least else f"similarity {c:.3f}, below min_similarity={least}") for reason, c in pairs]
        if images.device.type != "cpu":  # converted on the device, to transfer a quarter of the bytes; on the CPU the encoders do it
            images = (images * 255).round_().clamp_(0, 255).to(torch.uint8).cpu()
        return images, reasons

    def _features(self, condition: Mapping[str, Tensor]) -> Tensor:
        name = self.generator.instance_feature
        assert name is not None
        return condition[name].flatten(1).float()


def _finite(images: Tensor) -> Tensor:
    """Return which images hold no NaN or infinity, (B,) bool, in one pass: the sum of finite pixels is finite."""
    if images.device.type != "cpu":
        return images.flatten(1).sum(1).isfinite()
    # NumPy on the CPU, because torch's threads keep spinning for a while after each sum, which takes cores from the encoders.
    with np.errstate(invalid="ignore", over="ignore"):
        return torch.from_numpy(np.isfinite(images.flatten(1).numpy().sum(1)))


@contextlib.contextmanager
def _explain_out_of_memory(batch_size: int) -> Iterator[None]:
    """Turn an out-of-memory error into one that says what to do."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise BankError(
            f"out of memory at batch_size={batch_size}, which is a setting of the bank: start a new bank with a smaller one in another "
            "directory, or resume this one on a machine with more memory"
        ) from error
