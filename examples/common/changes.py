"""What two records differ in, in words: settings with both values, images and networks, which are known by hashes, without them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_HASH = re.compile("[0-9a-f]{16,64}")
# Of images, a record has one of these hashes; other keys are other images.
_WORDS = {
    "files": "images", "cells": "images", "pixels": "images", "keys": "images", "train": "training images", "test": "test images",
    "variants": "choice of variants", "generator_fingerprint": "generator", "bank_generator": "generator of the bank",
}  # fmt: skip
_PARTS = {"train_": "training ", "test_": "test "}


def name_changes(names: Iterable[str], before: dict[str, Any], now: dict[str, Any], then: str = ", now") -> list[str]:
    """Return the entries with their values in both records, such as ``seed (0, now 1)``; of a hash, ``images``, each once."""
    return list(dict.fromkeys(_name(name, before.get(name), now.get(name), then) for name in names))


def name_hash(name: str) -> str:
    """Return what an entry such as ``test_files_sha256`` is a hash of: ``test images``."""
    name = name.removesuffix("_sha256")
    for prefix, word in _PARTS.items():
        if name.startswith(prefix):
            return word + name_hash(name.removeprefix(prefix))
    return _WORDS.get(name, name.replace("_", " "))


def _name(name: str, before: Any, now: Any, then: str) -> str:
    hashes = [isinstance(value, str) and _HASH.fullmatch(value) for value in (before, now)]
    if name.endswith("_sha256") or name in ("bank_generator", "generator_fingerprint") or all(hashes):
        return name_hash(name)
    return f"{name} ({before!r}{then} {now!r})"
