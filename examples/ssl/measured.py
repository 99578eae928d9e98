"""What a result was measured with: which images and which checkpoint, so that it is not taken for the result of others."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from data import Source, spaced
from frozen import find_checkpoint
from shared import name_changes

_READ = 64  # images that are hashed


def describe_images(source: Source, what: str) -> dict[str, Any]:
    """Return ``{what: name, what_images: number, what_sha256: hash}`` of images; the hash is of all labels and 64 images.

    A name that is a path is made absolute. The images are evenly spaced; those that cannot be read are left out.
    """
    digest = hashlib.sha256(b"" if source.labels is None else source.labels.numpy().tobytes())
    for row in spaced(len(source), _READ).tolist():
        try:
            image = source.read(row)
        except OSError:
            continue
        digest.update(f"{row} {image.size}".encode() + image.tobytes())
    name = str(Path(source.name).resolve()) if Path(source.name).exists() else source.name
    return {what: name, f"{what}_images": len(source), f"{what}_sha256": digest.hexdigest()}


def hash_checkpoint(run: Path) -> str:
    """Return the SHA-256 of the checkpoint of a run, given its folder or ``.ckpt``."""
    with find_checkpoint(run).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def name_differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the entries in which two descriptions differ, with both values unless these are hashes; empty if they are equal."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(name_changes(names, before, now))
