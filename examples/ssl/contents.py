"""Which images a run has, whatever their path: it is continued with the same ones alone, and its result is not taken for that of others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data import Cells, Files, Source, spaced
from torch import Tensor
from torchvision.datasets import DatasetFolder

from gentransforms.sources.folder import ImageFolderSource

# What `describe_contents` may return. Runs of earlier versions lack them, and a source has one hash of its images: where one of two
# descriptions lacks a name, nothing is known, and nothing is compared.
CONTENTS = ("labels_sha256", "files_sha256", "cells_sha256", "pixels_sha256")
_READ = 64  # images of which everything is hashed, where reading all of them would take hours


def describe_contents(source: Source, rows: Tensor) -> dict[str, str]:
    """Return ``labels_sha256``, and a hash of the images in these rows, whose name says what it is of.

    ``files_sha256``: the names and sizes of all image files, and the contents of 64, evenly spaced. ``cells_sha256``: all encoded
    images of a Parquet file. ``pixels_sha256``: all pixels of a data set in memory, as torchvision's CIFAR10; those of 64 images of any
    other.
    """
    labels = b"" if source.labels is None else source.labels[rows].numpy().tobytes()
    found = {"labels_sha256": hashlib.sha256(labels).hexdigest()}
    origin = source.origin
    if isinstance(origin, Cells):
        return found | {"cells_sha256": _hash_parts(origin.encoded(row) for row in rows.tolist())}
    if (files := _files(source)) is not None:
        root, names = files
        return found | {"files_sha256": _hash_files(root, [names[row] for row in rows.tolist()])}
    pixels = getattr(origin, "data", None)
    if isinstance(pixels, np.ndarray | Tensor) and len(pixels) == len(source):
        return found | {"pixels_sha256": _hash_parts(np.ascontiguousarray(pixels[row]) for row in rows.tolist())}
    return found | {"pixels_sha256": _hash_parts(_pixels(source, rows[spaced(len(rows), _READ)]))}


def hash_keys(keys: Sequence[Any]) -> str:
    """Return a hash of the keys of images, in order."""
    return hashlib.sha256("\n".join(map(repr, keys)).encode()).hexdigest()


def name_other_contents(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the names of `CONTENTS`, each after `prefix`, that both descriptions have and that differ."""
    names = [prefix + name for name in CONTENTS]
    return [name for name in names if name in before and name in now and before[name] != now[name]]


def _files(source: Source) -> tuple[Path, list[str]] | None:
    """Return the folder of the images and their names below it, if they are files."""
    origin = source.origin
    if isinstance(origin, ImageFolderSource):
        return origin.root, [str(key) for key in origin.keys]
    if isinstance(origin, Files):
        return origin.root, origin.files
    if isinstance(origin, DatasetFolder):
        return Path(origin.root), [os.path.relpath(path, origin.root) for path, _ in origin.samples]
    return None


def _hash_files(root: Path, names: list[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {_size(root / name)}\n".encode())
    for place in spaced(len(names), _READ).tolist():
        try:
            digest.update((root / names[place]).read_bytes())
        except OSError:
            continue  # its size says that it is not there
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _hash_parts(parts: Iterable[bytes | np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        content = memoryview(part).cast("B")
        digest.update(f"{len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def _pixels(source: Source, rows: Tensor) -> Iterator[bytes]:
    for row in rows.tolist():
        try:
            image = source.read(row)
        except OSError:
            yield b""
        else:
            yield f"{image.size} ".encode() + image.tobytes()
