"""Encode all images once, chunk by chunk; a killed audit goes on from the chunks that are on disk.

Only what encoders and pixels say of the images is kept on disk. Labels and other inputs are those that the source has now.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentransforms.audit.encoders import Encoder
from gentransforms.audit.labels import plain_label
from gentransforms.audit.measures.integrity import refuse_unreadable
from gentransforms.audit.pairs import Pairs, mark_some, space_evenly
from gentransforms.audit.pixels import describe_pixels
from gentransforms.audit.reading import read_images, read_samples
from gentransforms.errors import GeneratorError, SourceError
from gentransforms.sources import ImageSource

__all__ = ["Collected", "collect_features", "collect_holdout", "make_probe"]

_LAYOUT = "4"  # of the cached files
_CHUNK = 256  # sources read, encoded and cached together
_BATCH = 256  # images encoded at once
# Numbers of pixels that bound both for large images: 128 MB and 512 MB.
_MOST_IN_BATCH, _MOST_IN_CHUNK = 2**25, 2**27


@dataclass(frozen=True)
class Collected:
    """Features and pixel figures of all images; see `Evidence` for the shapes.

    Attributes:
        inputs: numbers and texts that the source carries of each image.
        failed: why each of the sources that are left out cannot be read, by its place.
        scores: (N, C) float32, what a classifier of the user's gives each class of each source; None without one.
        variant_scores: (M, C) float32, the same of the variants.
    """

    real: Tensor
    statistics: Tensor
    variants: Tensor
    variant_statistics: Tensor
    owner: Tensor
    number: Tensor
    inputs: list[dict[str, Any]]
    failed: dict[int, SourceError]
    scores: Tensor | None = None
    variant_scores: Tensor | None = None


def collect_features(
    pairs: Pairs,
    encoder: Encoder,
    cache: Path | None,
    on_progress: Callable[[int, int], None] | None = None,
    classifier: Encoder | None = None,
) -> Collected:
    """Return the features of sources and variants, numbered without the sources that cannot be read.

    Args:
        pairs: the images.
        encoder: makes the features.
        cache: folder for the chunks; None for none.
        on_progress: called with the number of sources done, and of all.
        classifier: of the user's, that judges the images.

    Raises:
        GeneratorError: if features of different images have different lengths.
        SourceError: if no source can be read.
    """
    folder = _folder(cache, (encoder, classifier), pairs, pairs.identity, str(list(pairs.places)))
    count = len(pairs.places)
    height, width = pairs.size
    step = max(1, min(_CHUNK, _MOST_IN_CHUNK // (3 * height * width * (1 + pairs.variants))))
    chunks: list[dict[str, Tensor]] = []
    inputs: dict[int, dict[str, Any]] = {}
    failed: dict[int, SourceError] = {}
    for start in range(0, count, step):
        stop = min(start + step, count)
        chunk = _load(folder, f"pairs-{start:09d}")
        errors = {} if chunk is None else _find_failed(pairs.source, chunk["failed"].tolist())
        if chunk is None or len(errors) != len(chunk["failed"]):  # made again with those that can be read now
            read = pairs.read_sources(start, stop)
            made, owner, number = pairs.read_variants(start, stop)
            inputs |= zip(read.rows, map(_plain, read.inputs), strict=True)
            errors = read.failed
            there = torch.isin(owner, _numbers(read.rows))
            made, owner, number = made[there], owner[there], number[there]
            chunk = {"rows": _numbers(read.rows), "failed": _numbers(errors), "owner": owner, "number": number}
            for prefix, batch in (("", read.images), ("variant_", made)):
                chunk[f"{prefix}features"] = _in_batches(encoder, batch)
                chunk[f"{prefix}statistics"] = _in_batches(describe_pixels, batch)
                if classifier is not None:
                    chunk[f"{prefix}scores"] = _in_batches(classifier, batch)
            _save(folder, f"pairs-{start:09d}", chunk)
        chunks.append(chunk)
        failed |= errors
        if on_progress is not None:
            on_progress(stop, count)
    unread = [row for row in range(count) if row not in inputs and pairs.places[row] not in failed]  # of chunks that were on disk
    for row, one in zip(unread, pairs.read_inputs(unread), strict=True):
        if isinstance(one, SourceError):
            failed[pairs.places[row]] = one
        else:
            inputs[row] = _plain(one)
    if len(failed) == count:
        raise refuse_unreadable("source", pairs.source, failed)
    here = torch.tensor([place not in failed for place in pairs.places])

    def join(name: str) -> Tensor:
        of = "rows" if name in ("features", "statistics", "scores") else "owner"
        parts = [chunk[name][here[chunk[of]]] if len(chunk[of]) else chunk[name] for chunk in chunks]
        return _join(parts, encoder if name.endswith("features") else classifier)

    return Collected(
        real=join("features"), statistics=join("statistics"), variants=join("variant_features"),
        variant_statistics=join("variant_statistics"), owner=(here.cumsum(0) - 1)[join("owner")], number=join("number"),
        inputs=[inputs[row] for row in here.nonzero()[:, 0].tolist()], failed=failed,
        scores=None if classifier is None else join("scores"), variant_scores=None if classifier is None else join("variant_scores"),
    )  # fmt: skip


def collect_holdout(
    source: ImageSource, count: int, pairs: Pairs, encoder: Encoder, cache: Path | None
) -> tuple[Tensor, dict[int, SourceError]]:
    """Return the features of at most `count` images of a source, evenly spaced: (H, D) float32, and why others cannot be read.

    Another image stands in for each that cannot be read, as long as there are any.

    Raises:
        SourceError: if none can be read.
    """
    places = space_evenly(range(len(source.keys)), count)
    identity = f"{source.description!r} {len(source.keys)} {_digest(mark_some(source, places))}" if cache is not None else ""
    folder = _folder(cache, (encoder,), pairs, identity, str(places))
    found: list[Tensor] = []
    failed: dict[int, SourceError] = {}
    height, width = pairs.size
    step = max(1, min(_CHUNK, _MOST_IN_CHUNK // (3 * height * width)))
    chosen = set(places)
    spare = [place for place in range(len(source.keys)) if place not in chosen]
    tried = 0
    while places:
        lost: dict[int, SourceError] = {}
        for start in range(0, len(places), step):
            part, name = places[start : start + step], f"holdout-{tried:09d}"
            tried += len(part)
            chunk = _load(folder, name)
            errors = {} if chunk is None else _find_failed(source, chunk["failed"].tolist())
            if chunk is None or chunk["places"].tolist() != part or len(errors) != len(chunk["failed"]):
                read = read_images(source, part, pairs.size, pairs.preserves_geometry)
                errors = read.failed
                chunk = {"features": _in_batches(encoder, read.images), "places": _numbers(part), "failed": _numbers(errors)}
                _save(folder, name, chunk)
            found.append(chunk["features"])
            lost |= errors
        failed |= lost
        places = _stand_in(lost, spare)
    if len(failed) == tried:
        raise refuse_unreadable("holdout", source, failed)
    return _join(found, encoder), failed


def _stand_in(places: Iterable[int], spare: list[int]) -> list[int]:
    """Take for each place the nearest of those to spare, ascending, out of them: a set sorted by class keeps its classes."""
    found = []
    for place in places:
        if spare:
            at = bisect.bisect(spare, place)
            before = at == len(spare) or (at > 0 and place - spare[at - 1] <= spare[at] - place)
            found.append(spare.pop(at - before))
    return sorted(found)


def _find_failed(source: ImageSource, places: Sequence[int]) -> dict[int, SourceError]:
    """Return why images cannot be read, those that can left out."""
    samples = zip(places, read_samples(source, places), strict=True)
    return {place: sample for place, sample in samples if isinstance(sample, SourceError)}


def _numbers(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)


def _in_batches(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    if not len(images):
        return torch.zeros(0, 0)
    size = max(1, min(_BATCH, _MOST_IN_BATCH // images[0].numel()))
    return _join([function(batch) for batch in torch.split(images, size)], function)


def _join(parts: Sequence[Tensor], made_by: Any) -> Tensor:
    """Return the rows of all parts; those without rows do not count."""
    parts = [part for part in parts if len(part)] or list(parts[:1])
    widths = {part.shape[1] for part in parts if part.ndim == 2}
    if len(widths) > 1:
        raise GeneratorError(
            f"the encoder {getattr(made_by, 'name', made_by)} returned {' and '.join(map(str, sorted(widths)))} features for images of one "
            "size: expected (B, D) with the same D for all"
        )
    return torch.cat(list(parts))


def _plain(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return those inputs that may be labels."""
    return {name: label for name, value in inputs.items() if (label := plain_label(value)) is not None}


def _folder(cache: Path | None, encoders: Sequence[Encoder | None], pairs: Pairs, *identity: str) -> Path | None:
    """Return the folder for what these decide; None if something has no name, such as variants made in memory."""
    if cache is None or not identity[0]:
        return None
    used = [encoder for encoder in encoders if encoder is not None]
    names = [f"{encoder.name} {encoder.digest}" for encoder in used]
    digest = _digest([part.encode() for part in (_LAYOUT, *names, f"{pairs.size} {pairs.preserves_geometry}", *identity)])
    probed = {str(i): encoder(make_probe(pairs.size)) for i, encoder in enumerate(used) if not encoder.digest}
    # No digest covers the code of a user's function: what it returns for some images tells it from others of its name.
    for number in itertools.count():
        folder = cache / (f"{digest}-{number}" if number else digest)
        if not folder.exists():
            folder.mkdir(parents=True)
            _save(folder, "probe", probed)
            return folder
        kept = _load(folder, "probe")
        if kept is None:  # killed before it was written
            for file in folder.glob("*.safetensors"):
                file.unlink()
            _save(folder, "probe", probed)
            return folder
        if all(_alike(kept.get(name), new) for name, new in probed.items()):
            return folder
    raise AssertionError("itertools.count ends")


def _alike(old: Tensor | None, new: Tensor) -> bool:
    return old is not None and old.shape == new.shape and torch.allclose(old, new, rtol=1e-4, atol=1e-5)


def make_probe(size: tuple[int, int]) -> Tensor:
    """Return four images of noise and slopes, the same at each call: (4, 3, *size)."""
    noise = torch.rand(4, 3, *size, generator=torch.Generator("cpu").manual_seed(0))
    slopes = torch.linspace(0, 1, size[1]).expand(4, 3, *size)
    return (noise + torch.arange(4).view(4, 1, 1, 1) * slopes) / (1 + torch.arange(4).view(4, 1, 1, 1))


def _digest(parts: Sequence[bytes]) -> str:
    return hashlib.blake2b(b"\n".join(parts), digest_size=16).hexdigest()


def _load(folder: Path | None, name: str) -> dict[str, Tensor] | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = None if folder is None else folder / f"{name}.safetensors"
    if path is None or not path.exists():
        return None
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError):
        return None  # half written, by a full disk: made again


def _save(folder: Path | None, name: str, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    if folder is None:
        return
    partial = folder / f".{name}.partial"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial)
    partial.replace(folder / f"{name}.safetensors")
