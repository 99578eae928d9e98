"""The manifest of a bank, ``bank.json``: written when the bank is started, and read, with checks, by everything else.

Nothing else says what the units of a bank that was extended belong to, so there is always a copy, ``bank.json.bak``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gentransforms.bank.format.exported import is_export
from gentransforms.bank.format.locking import create_json, explain_write_error, locked, write_json
from gentransforms.bank.format.seal import SEAL, open_seal, seal
from gentransforms.bank.format.unit import FORMER, Unit, find_command, list_units, plan_units, read_sidecar
from gentransforms.errors import BankError

__all__ = [
    "AGREED", "COPY", "FORMAT", "FORMAT_VERSION", "MANIFEST", "Before", "Facts", "check_copy", "check_manifest", "create_manifest",
    "find_manifest", "has_manifest", "hash_json", "hash_keys", "hash_manifest", "read_manifest", "repair_manifest", "replace_manifest",
]  # fmt: skip

FORMAT, FORMAT_VERSION, MANIFEST = "gentransforms-bank", 1, "bank.json"
COPY = "bank.json.bak"
# What determines the bytes of a bank and must agree between runs. The rest of a manifest, "info", need not agree.
AGREED = ("settings", "generator", "source", "device", "encoder")
# Of a manifest that nothing can take the place of; the damage may be in what is there for information alone.
_CHANGED = "has changed since it was written"
_CHANGED_ALONE = f"{_CHANGED}, and there is no intact copy: put one back; or, if you edited it, remove {SEAL} from it"
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

    @property
    def earlier(self) -> tuple[str, ...]:
        """The digests that the bank had before it was extended."""
        return tuple(before.digest for before in self.history)

    def seed_number(self, variant: int, attempt: int) -> int:
        """Return the number from which, with base seed and key, the seed of an attempt at a variant is derived.

        It is variant + attempt * variants, where `variants` is the number that the bank had when the variant was added.
        """
        return variant + attempt * next((stage for stage in self.stages() if variant < stage), self.variants)


def has_manifest(directory: Path) -> bool:
    """Return whether a directory has the manifest of a bank, or units and the copy of a manifest that was lost."""
    return (directory / MANIFEST).exists() or (_has_units(directory) and _read_copy(directory) is not None)


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a bank; if the file is missing or damaged, its copy, with a warning. One that has changed since it was
    written, and of which there is no copy, is returned with a warning, too.

    Raises:
        BankError: if there is none, or this version of the library does not read it.
    """
    manifest, damage, changed = _find(directory)
    if changed:
        warnings.warn(f"{directory / MANIFEST}: {_CHANGED_ALONE}", stacklevel=3)
    if damage:
        edited = f"; if you edited it, remove {SEAL} from it" if damage == _CHANGED else ""
        warnings.warn(
            f"{directory / MANIFEST}: {damage}: its copy {COPY} is used, and the next run of "
            f"{Facts.read(manifest, str(directory / COPY)).command}, or `gentransforms bank verify --repair`, puts it in its place{edited}",
            stacklevel=3,
        )
    return manifest


def find_manifest(directory: Path) -> tuple[dict[str, Any], str]:
    """Return the manifest of a bank, and if that is its copy, what is wrong with the file itself; errors as in `read_manifest`."""
    return _find(directory)[:2]


def _find(directory: Path) -> tuple[dict[str, Any], str, bool]:
    """Return what `find_manifest` does, and whether it is the file itself, which has changed since it was written."""
    path, damage = directory / MANIFEST, ""
    try:
        manifest, intact = open_seal(json.loads(path.read_bytes()))
    except FileNotFoundError:
        if not _has_units(directory):
            raise BankError(_explain_absence(directory)) from None
        damage = "is missing, but there are units"
    except OSError as error:
        raise BankError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        damage = f"not JSON ({error})"
    else:
        damage = _find_damage(manifest)
    if not damage:
        checked = check_manifest(manifest, str(path))
        try:
            Facts.read(checked, str(path))
        except BankError as error:
            copy = _read_copy(directory)
            return (checked, "", not intact) if copy is None else (copy, str(error).removeprefix(f"{path}: "), False)
        if not intact and (copy := _read_copy(directory)) is not None:
            return copy, _CHANGED, False
        return checked, "", not intact
    if (copy := _read_copy(directory)) is not None:
        return copy, damage, False
    if is_export(directory):
        raise BankError(f"{path}: {damage}: download it again, or export the bank again")
    again = f"run {find_command(directory)} with the settings of this bank again, which writes it anew unless the bank was extended"
    if not path.exists():
        raise BankError(f"{path}: {damage}: put a copy of it back, or {again}")
    raise BankError(f"{path}: {damage}: put a copy of it back, or repair it by hand; or move it away and {again}")


def check_manifest(manifest: Any, where: str) -> dict[str, Any]:
    """Return a parsed manifest after checking that this version of the library reads it; `where` names it in errors.

    Raises:
        BankError: if it does not.
    """
    if damage := _find_damage(manifest):
        raise BankError(f"{where}: {damage}")
    checked: dict[str, Any] = manifest
    version = checked.get("format_version")
    if type(version) is not int or version < 1:
        raise BankError(f"{where}: format version {version!r}: expected {FORMAT_VERSION}; use the version of gentransforms that wrote it")
    if version > FORMAT_VERSION:
        raise BankError(f"{where}: format version {version} is newer than this library reads ({FORMAT_VERSION}): upgrade gentransforms")
    return checked


def create_manifest(directory: Path, manifest: Mapping[str, Any]) -> bool:
    """Write ``bank.json`` and its copy unless it exists; return whether it was written. If two processes try at once, one wins.

    Raises:
        BankError: if the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        created = create_json(directory / MANIFEST, seal(manifest))
        if created:
            write_json(directory / COPY, seal(manifest), indent=2)
        return created
    except OSError as error:
        raise explain_write_error(error, directory) from error


def replace_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``bank.json`` and its copy, with the bank's lock held; after a kill in between, the copy is of the state before.

    Raises:
        OSError: if the directory cannot be written.
    """
    write_json(directory / MANIFEST, seal(manifest), indent=2)
    write_json(directory / COPY, seal(manifest), indent=2)


def repair_manifest(directory: Path) -> None:
    """Put the copy of ``bank.json`` in its place if that is missing or damaged; otherwise write the copy anew if it is outdated.

    A copy that describes another bank stays: it may be the right one. So do both if neither is as it was written.

    Raises:
        BankError: if there is neither, or they cannot be written.
    """

    def outdated(manifest: Mapping[str, Any], changed: bool) -> bool:
        copy = _read_copy(directory)
        return not changed and (copy is None or (copy != manifest and _is_older(copy, manifest)))

    manifest, damage, changed = _find(directory)
    if not damage and not outdated(manifest, changed):
        return
    try:
        with locked(directory):
            manifest, damage, changed = _find(directory)
            if damage or outdated(manifest, changed):
                write_json(directory / (MANIFEST if damage else COPY), seal(manifest), indent=2)
    except OSError as error:
        raise explain_write_error(error, directory) from error


def check_copy(directory: Path) -> tuple[str, str]:
    """Return what is wrong with ``bank.json`` and its copy, as (kind, text); empty if nothing is. An old bank has no copy.

    The kind is ``"copy"`` if `repair_manifest` repairs it, and ``"manifest"`` if the two describe different banks.

    Raises:
        BankError: if neither is intact.
    """
    manifest, damage, changed = _find(directory)
    if damage:
        return "copy", f"{MANIFEST} {damage}; its copy {COPY} is intact"
    if changed:
        return "manifest", f"{MANIFEST} {_CHANGED_ALONE}"
    if not (directory / COPY).exists():
        return "", ""
    copy = _read_copy(directory)
    if copy is None:
        return "copy", f"{COPY}, the copy of {MANIFEST}, is damaged"
    if not _is_older(copy, manifest):
        right = next((name for name, one in ((MANIFEST, manifest), (COPY, copy)) if _fits(directory, one)), "the one that fits the units")
        return "manifest", f"{MANIFEST} and its copy {COPY} describe different banks: put {right} in the place of both"
    if hash_manifest(copy) != hash_manifest(manifest):
        return "copy", f"{COPY}, the copy of {MANIFEST}, is from before the bank was extended"
    if copy != manifest:
        return "copy", f"{COPY}, the copy of {MANIFEST}, differs from it"
    return "", ""


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


def _find_damage(manifest: Any) -> str:
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return "not the manifest of a gentransforms bank"
    lacking = [name for name in _SECTIONS if not isinstance(manifest.get(name), dict)]
    return f"lacks {', '.join(lacking)}" if lacking else ""


def _read_copy(directory: Path) -> dict[str, Any] | None:
    """Return the copy of a manifest; None if there is none, or it is damaged."""
    try:
        manifest, intact = open_seal(json.loads((directory / COPY).read_bytes()))
        copy = check_manifest(manifest, "")
        Facts.read(copy, "")
    except (OSError, ValueError, BankError):
        return None
    return copy if intact else None


def _is_older(copy: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Return whether a copy describes the same bank as a manifest, now or before it was extended."""
    return hash_manifest(copy) in {hash_manifest(manifest), *(before.digest for before in _read_history(manifest.get("history", []), ""))}


def _fits(directory: Path, manifest: Mapping[str, Any]) -> bool:
    """Return whether a manifest is that of all units which say whose they are, of which there are some."""
    own = {hash_manifest(manifest), *(before.digest for before in _read_history(manifest.get("history", []), ""))}
    sidecars = [read_sidecar(directory, unit, prefix) for prefix in ("", FORMER) for unit in list_units(directory, prefix)]
    found = {sidecar.get("settings") for sidecar in sidecars if sidecar is not None}
    return bool(found) and found <= own


def _has_units(directory: Path) -> bool:
    return bool(list_units(directory) or list_units(directory, FORMER))


def _explain_absence(directory: Path) -> str:
    what = f"no {MANIFEST} in this directory" if directory.is_dir() else "no such directory"
    return f"{directory}: {what}: expected a bank made by generate_bank or `gentransforms generate`"
