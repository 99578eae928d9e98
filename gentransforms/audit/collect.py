"""Encode all images once, chunk by chunk; a killed audit goes on from the chunks that are on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentransforms.audit.encoders import Encoder
from gentransforms.audit.pairs import Pairs, read_images, space_evenly
from gentransforms.audit.pixels import describe_pixels
from gentransforms.sources import ImageSource

__all__ = ["Collected", "collect_features", "collect_holdout"]

_CHUNK = 256  # sources read, encoded and cached together
_BATCH = 256  # images encoded at once
_SAVED = ("real", "statistics", "variants", "variant_statistics", "owner", "number")


@dataclass(frozen=True)
class Collected:
    """Features and pixel figures of all images; see `Evidence` for the shapes. `inputs` has those of each source."""

    real: Tensor
    statistics: Tensor
    variants: Tensor
    variant_statistics: Tensor
    owner: Tensor
    number: Tensor
    inputs: list[dict[str, Any]]


def collect_features(
    pairs: Pairs, encoder: Encoder, cache: Path | None, on_progress: Callable[[int, int], None] | None = None
) -> Collected:
    """Return the features of sources and variants.

    Args:
        pairs: the images.
        encoder: makes the features.
        cache: folder for the chunks; None for none.
        on_progress: called with the number of sources done, and of all.
    """
    folder = _folder(cache, encoder, pairs.identity, str(list(pairs.places)))
    count = len(pairs.places)
    parts: dict[str, list[Tensor]] = {name: [] for name in _SAVED}
    inputs: list[dict[str, Any]] = []
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        chunk = _load(folder, f"pairs-{start:09d}")
        if chunk is None:
            images, given = pairs.read_sources(start, stop)
            made, owner, number = pairs.read_variants(start, stop)
            tensors = {
                "real": _encode(encoder, images), "statistics": describe_pixels(images),
                "variants": _encode(encoder, made), "variant_statistics": describe_pixels(made), "owner": owner, "number": number,
            }  # fmt: skip
            chunk = tensors, [{name: value for name, value in one.items() if isinstance(value, int | str)} for one in given]
            _save(folder, f"pairs-{start:09d}", *chunk)
        for name in _SAVED:
            if len(chunk[0][name]):
                parts[name].append(chunk[0][name])
        inputs += chunk[1]
        if on_progress is not None:
            on_progress(stop, count)
    empty = {"owner": torch.zeros(0, dtype=torch.int64), "number": torch.zeros(0, dtype=torch.int64)}
    width = parts["real"][0].shape[1]
    joined = {name: torch.cat(found) if found else empty.get(name, torch.zeros(0, width)) for name, found in parts.items()}
    return Collected(**joined, inputs=inputs)


def collect_holdout(source: ImageSource, count: int, pairs: Pairs, encoder: Encoder, cache: Path | None) -> Tensor:
    """Return the features of at most `count` images of a source, evenly spaced: (H, D) float32."""
    places = space_evenly(range(len(source.keys)), count)
    folder = _folder(cache, encoder, f"{source.description!r} {len(source.keys)} {pairs.size}", str(places))
    found = []
    for start in range(0, len(places), _CHUNK):
        chunk = _load(folder, f"holdout-{start:09d}")
        if chunk is None:
            images, _ = read_images(source, places[start : start + _CHUNK], pairs.size, pairs.preserves_geometry)
            chunk = {"real": _encode(encoder, images)}, []
            _save(folder, f"holdout-{start:09d}", *chunk)
        found.append(chunk[0]["real"])
    return torch.cat(found)


def _encode(encoder: Encoder, images: Tensor) -> Tensor:
    return torch.cat([encoder(batch) for batch in torch.split(images, _BATCH)]) if len(images) else torch.zeros(0, 0)


def _folder(cache: Path | None, encoder: Encoder, *identity: str) -> Path | None:
    """Return the folder for what these decide; None if something has no name, such as a function."""
    if cache is None or not encoder.digest or not identity[0]:
        return None
    digest = hashlib.blake2b("\n".join([encoder.digest, *identity]).encode(), digest_size=16).hexdigest()
    folder = cache / digest
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _load(folder: Path | None, name: str) -> tuple[dict[str, Tensor], list[dict[str, Any]]] | None:
    from safetensors import SafetensorError, safe_open

    path = None if folder is None else folder / f"{name}.safetensors"
    if path is None or not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["inputs"])  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError, OSError):
        return None  # half written, by a full disk: made again


def _save(folder: Path | None, name: str, tensors: dict[str, Tensor], inputs: Sequence[dict[str, Any]]) -> None:
    from safetensors.torch import save_file

    if folder is None:
        return
    partial = folder / f".{name}.partial"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial, metadata={"inputs": json.dumps(list(inputs))})
    partial.replace(folder / f"{name}.safetensors")
