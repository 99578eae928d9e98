"""Start, resume or extend a bank: its manifest is created once, and every later run is compared with it."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gentransforms.bank.format.exported import is_export
from gentransforms.bank.format.locking import explain_write_error, locked, sync_directory, write_json
from gentransforms.bank.format.manifest import (
    AGREED,
    COPY,
    MANIFEST,
    Facts,
    create_manifest,
    has_manifest,
    hash_keys,
    hash_manifest,
    read_manifest,
    repair_manifest,
    replace_manifest,
)
from gentransforms.bank.format.unit import INDEX, list_units, read_sidecar
from gentransforms.bank.generate.matching import KEYS, ArrangedSource, changed_sample, compare_keys, sample_more, sample_sources
from gentransforms.errors import BankError, OtherBankError
from gentransforms.sources.base import ImageSource

__all__ = ["begin_bank", "compare_bank", "differences"]

# Files that the directory of a new bank may hold.
_HARMLESS = ("lost+found", COPY)
_PACKAGES = ("gentransforms", "torch", "torchvision", "numpy", "pillow", "pyarrow", "diffusers", "transformers")

# A function that returns the manifest of a call; settings that the call leaves open are taken from those of the existing bank.
Describe = Callable[[Mapping[str, Any] | None], dict[str, Any]]


def begin_bank(directory: Path, describe: Describe, source: ImageSource, extend: bool | None = False) -> dict[str, Any]:
    """Return the manifest of the bank in `directory`, creating or extending the bank if necessary.

    Args:
        directory: directory of the bank.
        describe: returns the manifest of this call, given the settings of the existing bank, or None.
        source: up to 64 of its samples are compared with those of the source that the bank was started with.
        extend: whether a bank with fewer variants, or with only some of these sources, is extended; None if the caller has no
            such option, which is then not advised.

    Raises:
        OtherBankError: if there is a bank with other settings or sources, naming what differs, or the directory holds something else.
        BankError: if the bank is damaged or cannot be written.
    """
    if not has_manifest(directory):
        manifest = describe(None)
        try:
            _check_empty(directory, manifest)
        except BankError:
            if not (directory / MANIFEST).exists():  # else another process has begun the bank since
                raise
        else:
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            info = {"created": created, "versions": _versions(manifest["device"]), "samples": sample_sources(source)}
            manifest["info"] = info | manifest["info"]
            if create_manifest(directory, manifest):
                return manifest
    manifest, grown = compare_bank(directory, describe, source, extend)
    with contextlib.suppress(BankError):  # a bank that may only be read, where nothing is to be done
        repair_manifest(directory)
    return _extend(directory, manifest, source) if grown else manifest


def compare_bank(directory: Path, describe: Describe, source: ImageSource, extend: bool | None = False) -> tuple[dict[str, Any], bool]:
    """Return the manifest of the existing bank if it agrees with this call; arguments and errors as in `begin_bank`.

    If the bank is to be extended, return the manifest that it will have, and True.
    """
    if is_export(directory):
        raise OtherBankError(
            f"{directory}: is the export of a bank, to which nothing can be added: give the directory of the bank, or a new one"
        )
    manifest = read_manifest(directory)
    call = describe(manifest["settings"])
    found = differences(manifest, call)
    extendable = bool(found) and _can_extend(manifest, call, source.keys)
    if found and not (extendable and extend):
        raise OtherBankError(_explain(directory, manifest, call, found, source, extendable and extend is not None))
    changed = changed_sample(source, manifest["info"].get("samples", []), str(directory / MANIFEST))
    if changed:
        raise OtherBankError(
            f"{directory}: the source is not the one that this bank was started with: {changed}. "
            "Give the same images, or another directory for a new bank"
        )
    _compare_versions(directory, manifest["info"].get("versions", {}), _versions(manifest.get("device")))
    return (_add_to_history(manifest, call, source), True) if found else (manifest, False)


def differences(bank: Mapping[str, Any], call: Mapping[str, Any]) -> list[str]:
    """Return the differences between two manifests that must agree, each as ``name: the bank has A, this call B``.

    Example:
        >>> bank = {"settings": {"variants": 10}, "generator": {"class": "ICGAN"}}
        >>> differences(bank, {"settings": {"variants": 4}, "generator": {"class": "ICGAN"}})
        ['variants: the bank has 10, this call 4']
    """
    found = []
    for section in AGREED:
        old, new = bank.get(section), call.get(section)
        if section == "settings" and isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences("", old, new)
        else:
            found += _differences("", {section: old}, {section: new})
    return found


def _differences(prefix: str, bank: Mapping[str, Any], call: Mapping[str, Any]) -> list[str]:
    found = []
    for name in dict.fromkeys([*bank, *call]):
        old, new = bank.get(name), call.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(f"{prefix}{name} ", old, new)
        else:
            found.append(f"{prefix}{name}: the bank has {_short(old)}, this call {_short(new)}")
    return found


def _explain(
    directory: Path, manifest: Mapping[str, Any], call: Mapping[str, Any], found: Sequence[str], source: ImageSource, extendable: bool
) -> str:
    """Return the message about a bank with other settings."""
    advice = "give the bank's, or another directory for a new bank"
    if manifest["source"].get("keys") != call["source"]["keys"] and manifest["source"].get("key_type") == call["source"]["key_type"]:
        keys, missing = compare_keys(source, directory, Facts.read(manifest, str(directory / MANIFEST)))
        found = [keys if text.startswith("source keys: ") else text for text in found]
        if missing:
            advice = "put the missing sources back, or give another directory for a new bank"
    if extendable:
        advice += "; extend=True (--extend) adds what is lacking"
    return f"{directory}: this bank was made with other settings ({'; '.join(found)}): {advice}"


def _can_extend(old: Mapping[str, Any], new: Mapping[str, Any], keys: Sequence[str | int]) -> bool:
    """Return whether a bank differs from a call only in that the call wants more variants or has more sources."""
    count = old["source"]["count"]
    grown = {
        **old,
        "settings": {**old["settings"], "variants": new["settings"]["variants"]},
        "source": {**old["source"], "count": new["source"]["count"], "keys": new["source"]["keys"]},
    }
    fewer = new["settings"]["variants"] < old["settings"]["variants"] or new["source"]["count"] < count
    grown.pop("history", None)
    return not fewer and hash_manifest(grown) == hash_manifest(new) and hash_keys(keys[:count]) == old["source"]["keys"]


def _add_to_history(old: Mapping[str, Any], new: Mapping[str, Any], source: ImageSource) -> dict[str, Any]:
    """Return the manifest of an extended bank: the settings and source of `new`, and in its history what it was before."""
    info, count = dict(old["info"]), old["source"]["count"]
    if "samples" in info and len(source.keys) > count:
        info["samples"] = sample_more(source, info["samples"], count)
    before = {
        "variants": old["settings"]["variants"], "count": count, "keys": old["source"]["keys"],
        "digest": hash_manifest(old), "until": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    return {**old, "settings": new["settings"], "source": new["source"], "info": info, "history": [*old.get("history", []), before]}


def _extend(directory: Path, new: dict[str, Any], source: ImageSource) -> dict[str, Any]:
    """Put the manifest of the extended bank in the place of the old one; return it.

    Raises:
        BankError: if the directory cannot be written, or another process has extended the bank differently.
    """
    try:
        with locked(directory):
            old = read_manifest(directory)
            if all(old[name] == new[name] for name in ("settings", "source")):
                return old  # another process was faster
            if hash_manifest(old) != new["history"][-1]["digest"]:
                raise BankError(f"{directory}: another process has just extended the bank differently: run this command again")
            if isinstance(source, ArrangedSource) or (directory / KEYS).exists():
                write_json(directory / KEYS, list(source.keys))
            (directory / INDEX).unlink(missing_ok=True)
            replace_manifest(directory, new)
            sync_directory(directory)
    except OSError as error:
        raise explain_write_error(error, directory) from error
    return new


def _check_empty(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Check that a bank with this manifest may begin in a directory.

    Raises:
        OtherBankError: if the directory holds something else, or units with other settings.
        BankError: if a file of a bank is missing.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise OtherBankError(f"{directory}: is a file: expected a directory that is new, empty or a bank's")
    units = list_units(directory)
    for unit in units:  # the manifest was lost, but the sidecars have its digest
        sidecar = read_sidecar(directory, unit)
        if sidecar is None:
            raise BankError(f"{directory}: {MANIFEST} is missing, and so is {unit.sidecar}: put one of them back, or move {unit.file} away")
        if sidecar.get("settings") != hash_manifest(manifest):
            raise OtherBankError(
                f"{directory}: {MANIFEST} is missing, and {unit.file} was made with other settings than these: "
                f"give the bank's, or another directory for a new bank; if the bank was extended, put a copy of its {MANIFEST} back"
            )
    if units:
        return
    others = [path.name for path in directory.iterdir() if not path.name.startswith(".") and path.name not in _HARMLESS]
    if others:
        raise OtherBankError(
            f"{directory}: holds other files ({sorted(others)[0]}, …): expected a directory that is new, empty or a bank's"
        )


def _compare_versions(directory: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = [f"{name} {old[name]} -> {version}" for name, version in new.items() if name in old and old[name] != version]
    if changed:
        warnings.warn(
            f"{directory}: was started with other versions ({', '.join(changed)}): new images may differ from the old ones by rounding",
            stacklevel=4,
        )


def _versions(device: str | None) -> dict[str, str]:
    """Return what may change the rounding: versions of packages, and the kind of processor."""
    versions = {"python": platform.python_version()} | _package_versions()
    if device == "cpu":
        versions["cpu"] = torch.backends.cpu.get_cpu_capability()
    elif device == "cuda" and torch.cuda.is_available():
        versions["gpu"] = torch.cuda.get_device_name()
    return versions


@functools.cache
def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
