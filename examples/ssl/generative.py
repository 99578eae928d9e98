"""Where the generated image of a view comes from: a bank, or a generator on the device.

Both are transforms of the library. A batch ``{"images": …, "rows": …}`` comes back with each image replaced, with the p of
the epoch, by one of its variants; ``return_mask=True`` says which. Selection and variant are drawn anew at each step.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

from config import GenerativeSettings, Settings
from data import spaced
from torch import Tensor, nn

import gentransforms as gt
from gentransforms.bank.format.manifest import hash_manifest
from gentransforms.bank.reader import Bank
from gentransforms.sources.keys import tell_other_root


def bank_augment(
    bank: Bank, keys: Sequence[str | int], processes: int = 1, memory: int | None = None, **options: Any
) -> gt.BankAugment:  # fmt: skip
    """Return the transform of batches that reads a bank, decoded into memory where it fits.

    Args:
        bank: holds all the keys.
        keys: of the training images, by place.
        processes: that share the machine's memory.
        memory: bytes that the decoded variants may take; by default a quarter of the machine's, shared by its `processes`.
        options: of `BankAugment`.
    """
    needed = len(bank) * 3 * math.prod(bank.image_size)
    memory = memory if memory is not None else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 // processes
    return gt.BankAugment(bank, keys_getter=KeysOfRows(keys), in_memory=needed <= memory, **options)


def choose_variants(bank: Bank, s: GenerativeSettings) -> tuple[Bank, dict[str, Any]]:
    """Return the bank with the variants that the settings choose, and the options of `BankAugment` that say how they are drawn."""
    if s.select is None and s.weights is None:
        return bank, {}
    try:
        if s.select is not None and s.select.endswith(".json"):
            bank = Bank.open(str(s.bank), revision=s.revision, selection=s.select)
        elif s.select is not None:
            bank = bank.select(str(s.scores), s.select)
        if s.weights is not None:
            bank.weigh(s.weights, s.scores)  # refused here, with the name of the setting, and before anything is decoded
    except gt.GentransformsError as error:
        raise SystemExit(f"generative.select={s.select!r}, generative.weights={s.weights!r}: {error}") from error
    # An image of which no variant is left stays as it is.
    options: dict[str, Any] = {"missing": "source"}
    return bank, options if s.weights is None else options | {"weights": s.weights, "scores": s.scores}


def describe_variants(bank: Bank, s: GenerativeSettings) -> dict[str, str]:
    """Return what a run records of its bank, whose path does not say what is in it: another one may have taken its place since.

    ``bank_sha256`` is a hash of the manifest and of up to 64 variants, ``bank_generator`` the fingerprint of the generator. Where the
    settings choose variants, ``variants_sha256`` is a hash of which are drawn and how often: they name a file and a column alone.
    """
    digest = hashlib.sha256(hash_manifest(bank.manifest).encode())
    keys = [bank.keys[place] for place in spaced(len(bank.keys), 64).tolist()]
    pairs = [(key, variants[0]) for key in keys if (variants := bank.variants_of(key))]
    if pairs:
        digest.update(bank.read(*map(list, zip(*pairs, strict=True))).numpy().tobytes())
    found = {"bank_sha256": digest.hexdigest(), "bank_generator": str(bank.manifest["generator"]["fingerprint"])}
    if s.select is None and s.weights is None:
        return found
    digest = hashlib.sha256(hash_manifest(bank.manifest).encode())
    if bank.selection is not None:
        digest.update(bank.selection.kept.tobytes())
    if s.weights is not None:
        digest.update(bank.weigh(s.weights, s.scores).tobytes())
    return found | {"variants_sha256": digest.hexdigest()}


def describe_generator(generator: gt.ImageGenerator) -> dict[str, str]:
    """Return what a run records of a generator on the device, whose name or folder does not say what is in it."""
    return {"generator_fingerprint": generator.fingerprint()}


def count_without_variants(bank: Bank, keys: list[Any], s: GenerativeSettings) -> int:
    """Return of how many images nothing can be drawn: no variant was selected, or all of them weigh 0. They stay as they are."""
    draws = bank.draws(None if s.weights is None else bank.weigh(s.weights, s.scores))
    return int((draws.find(keys)[1] == 0).sum())


class KeysOfRows:
    """The keys of a batch ``{"images": …, "rows": …}``, by its places in the training set."""

    def __init__(self, keys: Sequence[str | int]) -> None:
        self.keys = list(keys)

    def __call__(self, sample: dict[str, Tensor]) -> list[str | int]:
        return [self.keys[row] for row in sample["rows"].tolist()]


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
        f"{len(unreadable):,} of them could not be read when it was generated: fix them and run generate with --retry-failed"
        if len(unreadable) == len(absent)
        else tell_other_root(absent[0], bank.keys, absent[1:64])
        or "it belongs to another data set, or to fewer of its images; make one of the images that data.train names"
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
