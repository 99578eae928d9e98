"""The checksum of a whole manifest, by which a changed bit in it is found, also where nothing else depends on the value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["SEAL", "open_seal", "seal"]

SEAL = "checksum"


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest as it is written: with the checksum of all else in it.

    Example:
        >>> open_seal(seal({"format": "bank"}))
        ({'format': 'bank'}, True)
        >>> open_seal({**seal({"format": "bank"}), "format": "bunk"})
        ({'format': 'bunk'}, False)
    """
    return {**manifest, SEAL: _hash(manifest)}


def open_seal(manifest: Any) -> tuple[Any, bool]:
    """Return a parsed manifest without its checksum, and whether that was right. One without, of an earlier version, is taken as right."""
    if not isinstance(manifest, dict) or SEAL not in manifest:
        return manifest, True
    rest = {name: value for name, value in manifest.items() if name != SEAL}
    return rest, manifest[SEAL] == _hash(rest)


def _hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=16).hexdigest()
