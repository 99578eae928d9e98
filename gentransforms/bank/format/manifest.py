"""The manifest of a bank, ``bank.json``: written when the bank is started, and read, with checks, by everything else."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gentransforms.bank.config import BankConfig
from gentransforms.bank.format.locking import create_json, explain_write_error
from gentransforms.bank.format.unit import Unit, list_units, plan_units
from gentransforms.errors import BankError
from gentransforms.generators.base import ImageGenerator
from gentransforms.sources.base import ImageSource

__all__ = [
    "AGREED", "FORMAT", "FORMAT_VERSION", "MANIFEST", "Before", "Facts", "check_manifest", "create_manifest", "describe_bank",
    "describe_generator", "describe_source", "hash_json", "hash_keys", "hash_manifest", "is_export", "list_exported_files",
    "name_marks", "read_manifest",
]  # fmt: skip

FORMAT, FORMAT_VERSION, MANIFEST = "gentransforms-bank", 1, "bank.json"
# What determines the bytes of a bank and must agree between runs. The rest of a manifest, "info", need not agree.
AGREED = ("settings", "generator", "source", "device", "encoder")
_SECTIONS = ("settings", "generator", "source", "info")


@dataclass(frozen=True)
class Before:
    """The state of a bank before it was extended: numbers of variants and sources, and the digest that its units had."""

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
                raise BankError(f"{where}: {section} {name} is {value!r}: the file was edited by hand; restore the original")
            return value

        size, key_type = get("generator", "image_size", list), get("source", "key_type", str)
        if len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
            raise BankError(f"{where}: generator image_size is {size!r}: expected [height, width]; restore the original file")
        if key_type not in ("str", "int"):
            raise BankError(f"{where}: source key_type is {key_type!r}: expected 'str' or 'int'; restore the original file")
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

    @property
    def command(self) -> str:
        """The command that makes its units: ``generate``, or ``bank import`` for imported images."""
        return "generate" if self.base_seed is not None else "bank import"

    def units(self) -> list[Unit]:
        """Return the units of the finished bank. Sources that were added later begin a new unit."""
        counts = sorted({before.count for before in self.history} | {self.count})
        return [
            Unit(start + unit.start, start + unit.stop)
            for start, stop in itertools.pairwise((0, *counts))
            for unit in plan_units(stop - start, self.unit_size)
        ]

    def stages(self) -> tuple[int, ...]:
        """Return the numbers of variants that the bank has had, the current one last."""
        return tuple(sorted({before.variants for before in self.history} | {self.variants}))

    def variants_at(self, digest: object) -> int:
        """Return how many variants the bank had when its digest was this one, now or earlier; 0 if the digest is not the bank's."""
        digests = {before.digest: before.variants for before in self.history} | {self.digest: self.variants}
        return digests.get(str(digest), 0)

    def seed_number(self, variant: int, attempt: int) -> int:
        """Return the number from which, with base seed and key, the seed of an attempt at a variant is derived.

        It is variant + attempt * variants, where `variants` is the number that the bank had when the variant was added.
        """
        return variant + attempt * next((stage for stage in self.stages() if variant < stage), self.variants)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a bank.

    Raises:
        BankError: if there is none, or this version of the library does not read it.
    """
    path = directory / MANIFEST
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise BankError(_absent(directory)) from None
    except OSError as error:
        raise BankError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise BankError(
            f"{path}: not JSON ({error}): delete it and run generate with the settings of this bank again, which writes it anew"
        ) from error
    return check_manifest(manifest, str(path))


def check_manifest(manifest: Any, where: str) -> dict[str, Any]:
    """Return a parsed manifest after checking that this version of the library reads it; `where` names it in errors.

    Raises:
        BankError: if it does not.
    """
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BankError(f"{where}: not the manifest of a gentransforms bank")
    version = manifest.get("format_version")
    if type(version) is not int or version < 1:
        raise BankError(f"{where}: format version {version!r}: expected {FORMAT_VERSION}; use the version of gentransforms that wrote it")
    if version > FORMAT_VERSION:
        raise BankError(f"{where}: format version {version} is newer than this library reads ({FORMAT_VERSION}): upgrade gentransforms")
    lacking = [name for name in _SECTIONS if not isinstance(manifest.get(name), dict)]
    if lacking:
        raise BankError(
            f"{where}: lacks {', '.join(lacking)}: delete it and run generate with the settings of this bank again, which writes it anew"
        )
    return manifest


def create_manifest(directory: Path, manifest: Mapping[str, Any]) -> bool:
    """Write ``bank.json`` unless it exists; return whether it was written. If two processes try at once, one wins.

    Raises:
        BankError: if the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return create_json(directory / MANIFEST, manifest)
    except OSError as error:
        raise explain_write_error(error, directory) from error


def is_export(directory: Path) -> bool:
    """Return whether a directory is an export of a bank, or what is left of one."""
    data = directory / "data"
    return any(data.glob("train-*.parquet")) or (data.is_dir() and not list_units(directory))


def list_exported_files(manifest: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the entries about Parquet files in the manifest of an export: ``file``, ``rows``, ``bytes`` and ``sha256`` of each.

    Raises:
        BankError: if there are none.
    """
    files = manifest["info"].get("files")
    kinds = {"file": str, "rows": int, "bytes": int, "sha256": str}
    whole = isinstance(files, list) and all(isinstance(f, dict) and all(type(f.get(n)) is k for n, k in kinds.items()) for f in files)
    if not files or not whole:
        raise BankError(f"{where}: lists no Parquet files, so it is not the manifest of an exported bank: export or push the bank again")
    return list(files)


def name_marks(manifest: dict[str, Any], where: str) -> dict[str, Any] | None:
    """Return the entry about the marks in the manifest of an export: ``file``, ``bytes`` and ``sha256``; None if it has none.

    Raises:
        BankError: if the entry is damaged.
    """
    entry = manifest["info"].get("marks")
    kinds = {"file": str, "bytes": int, "sha256": str}
    if entry is not None and not (isinstance(entry, dict) and all(type(entry.get(name)) is kind for name, kind in kinds.items())):
        raise BankError(f"{where}: info marks is {entry!r}: the file was edited by hand; export or push the bank again")
    return entry


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
    """Return a manifest's description of a generator. All its weights are hashed, so call this once in a run.

    Options that change images only by rounding are left out, so that runs with and without ``compile`` can work on one bank.
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


def hash_manifest(manifest: Mapping[str, Any]) -> str:
    """Return the hash, 32 hexadecimal digits, of everything in a manifest that must agree between runs; each sidecar repeats it."""
    history = {"history": manifest["history"]} if manifest.get("history") else {}
    return hash_json({name: manifest.get(name) for name in AGREED} | history)


def hash_json(value: Any) -> str:
    """Return the BLAKE2b hash of a JSON-able value in 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def hash_keys(keys: Sequence[str | int]) -> str:
    """Return the BLAKE2b hash of a list of keys, in order, in hexadecimal; ``"1"`` and ``1`` differ."""
    digest = hashlib.blake2b(digest_size=16)
    for key in keys:
        digest.update(json.dumps(key).encode() + b"\n")
    return digest.hexdigest()


def _read_history(history: Any, where: str) -> tuple[Before, ...]:
    try:
        return tuple(Before(int(entry["variants"]), int(entry["count"]), str(entry["digest"])) for entry in history)
    except (TypeError, KeyError, ValueError) as error:
        raise BankError(f"{where}: history is {history!r}: the file was edited by hand; restore the original") from error


def _absent(directory: Path) -> str:
    if not directory.is_dir():
        return f"{directory}: no such directory: expected a bank made by generate_bank or `gentransforms generate`"
    if list_units(directory):
        return f"{directory}: {MANIFEST} is missing, but there are units: run generate with their settings again, which writes it anew"
    return f"{directory}: no {MANIFEST} in this directory: expected a bank made by generate_bank or `gentransforms generate`"
