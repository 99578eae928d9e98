"""The contents of a bank's manifest: written when the bank is started, and read, with checks, by everything else."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gentransforms.bank.config import BankConfig
from gentransforms.bank.format.manifest import FORMAT, FORMAT_VERSION, hash_keys, hash_manifest
from gentransforms.bank.format.unit import Unit, plan_units
from gentransforms.errors import BankError
from gentransforms.generators.base import ImageGenerator
from gentransforms.sources.base import ImageSource

__all__ = ["Before", "Facts", "describe_bank", "describe_generator", "describe_source"]


@dataclass(frozen=True)
class Before:
    """What a bank was before it was extended: variants and sources, and the digest that its units had."""

    variants: int
    count: int
    digest: str


@dataclass(frozen=True)
class Facts:
    """The entries of a manifest that a reader needs.

    Attributes:
        count: number of sources.
        unit_size: number of sources in a unit.
        variants: requested number of variants of each source.
        key_type: ``"str"`` or ``"int"``.
        base_seed: base of all seeds; None for imported images, because their seeds are not known.
        image_size: (h, w) of every image.
        keys_digest: digest of the list of sources.
        generator: name of the class that generated the images.
        preserves_geometry: whether it keeps the layout of an image.
        digest: digest of everything that must agree between runs; each sidecar repeats it.
        history: earlier states of a bank that was extended, oldest first.

    """

    count: int
    unit_size: int
    variants: int
    key_type: str
    base_seed: int | None
    image_size: tuple[int, int]
    keys_digest: str
    generator: str
    preserves_geometry: bool
    digest: str
    history: tuple[Before, ...] = ()

    @classmethod
    def read(cls, manifest: Mapping[str, Any], where: str) -> Facts:
        """Return the facts of a manifest; `where` names it in errors.

        Raises:
            BankError: naming the entry that is missing or of another type.
        """

        def get(section: str, name: str, kind: type, least: float = 0) -> Any:
            entries = manifest.get(section)
            value = entries.get(name) if isinstance(entries, Mapping) else None
            if type(value) is not kind or (type(value) is int and value < least):
                raise BankError(f"{where}: {section} {name} is {value!r}: the file was edited by hand; put the original back")
            return value

        size, key_type = get("generator", "image_size", list), get("source", "key_type", str)
        if len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
            raise BankError(f"{where}: generator image_size is {size!r}: expected [height, width]; put the original file back")
        if key_type not in ("str", "int"):
            raise BankError(f"{where}: source key_type is {key_type!r}: expected 'str' or 'int'; put the original file back")
        seeded = manifest["settings"].get("base_seed", 0) is not None
        return cls(
            count=get("source", "count", int),
            unit_size=get("settings", "unit_size", int, least=1),
            variants=get("settings", "variants", int, least=1),
            key_type=key_type,
            base_seed=get("settings", "base_seed", int, least=-math.inf) if seeded else None,
            image_size=(size[0], size[1]),
            keys_digest=get("source", "keys", str),
            generator=get("generator", "class", str),
            preserves_geometry=get("generator", "preserves_geometry", bool),
            digest=hash_manifest(manifest),
            history=_read_history(manifest.get("history", []), where),
        )

    def units(self) -> list[Unit]:
        """Return the units of the finished bank. Sources that were added later begin a unit of their own."""
        counts = sorted({before.count for before in self.history} | {self.count})
        return [
            Unit(start + unit.start, start + unit.stop)
            for start, stop in itertools.pairwise((0, *counts))
            for unit in plan_units(stop - start, self.unit_size)
        ]

    def stages(self) -> tuple[int, ...]:
        """Return the numbers of variants that the bank has had, the present one last; one only unless variants were added."""
        return tuple(sorted({before.variants for before in self.history} | {self.variants}))

    def variants_at(self, digest: object) -> int:
        """Return how many variants the bank had when its digest was this one, now or earlier; 0 if the digest is not the bank's."""
        digests = {before.digest: before.variants for before in self.history} | {self.digest: self.variants}
        return digests.get(str(digest), 0)

    def seed_number(self, variant: int, attempt: int) -> int:
        """Return from which number, besides base seed and key, the seed of an attempt at a variant is derived.

        It is variant + attempt * variants, with as many variants as the bank had when the variant was added.
        """
        return variant + attempt * next((stage for stage in self.stages() if variant < stage), self.variants)


def _read_history(history: Any, where: str) -> tuple[Before, ...]:
    try:
        return tuple(Before(int(entry["variants"]), int(entry["count"]), str(entry["digest"])) for entry in history)
    except (TypeError, KeyError, ValueError) as error:
        raise BankError(f"{where}: history is {history!r}: the file was edited by hand; put the original back") from error


def describe_bank(
    config: BankConfig | Mapping[str, Any],
    generator: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    device: str | None,
    encoder: str | None,
    info: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the manifest of a bank, JSON-able.

    Args:
        config: resolved settings.
        generator: the result of `describe_generator`.
        source: the result of `describe_source`.
        device: type of the device on which the generator runs, such as ``"cuda"``.
        encoder: the library that encodes the images, such as ``"torchvision"``.
        info: further information, which need not agree between runs.
    """
    settings = dataclasses.asdict(config) if isinstance(config, BankConfig) else dict(config)
    manifest = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "settings": settings, "generator": generator, "source": source,
        "device": device, "encoder": encoder, "info": info,
    }  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps(manifest))  # tuples become lists, as in the file with which it is compared
    return plain


def describe_generator(generator: ImageGenerator) -> dict[str, Any]:
    """Return what a manifest says of a generator. Hashes all of its weights: call it once in a run.

    Options that change images by rounding alone are left out: two runs with and without ``compile`` work on one bank.
    """
    return {
        "class": type(generator).__name__,
        "fingerprint": generator.fingerprint(),
        "config": {name: value for name, value in generator.config.items() if name not in generator.execution_options},
        "preserves_geometry": generator.preserves_geometry,
        "image_size": list(generator.image_size),
    }


def describe_source(source: ImageSource) -> dict[str, Any]:
    """Return a manifest's description of a source, as far as it determines the images."""
    return {
        "count": len(source.keys),
        "keys": hash_keys(source.keys),
        "key_type": source.key_type,
        "inputs": list(source.inputs),
        "decides": source.description.get("decides", {}),
    }
