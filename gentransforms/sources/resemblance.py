"""Check whether images are those that a bank was made from, by comparing a small mark of each image.

Row numbers are keys that fit any data set. After ``dataset.select(range(5, 10))`` they refer to other images, and each would get
variants of the wrong source. So a bank keeps a `mark` of each source, with which the images that request variants are compared.

An image may be changed before it is compared, in ways that nobody can list. So if it looks unlike its own row, that proves
nothing; what proves that keys are wrong is that images match *other* rows, far better than by chance.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MARK_SIZE", "Resemblance", "compare_marks", "mark"]

_CELLS = 4
MARK_SIZE = 3 * _CELLS * _CELLS

_EXACT, _FEW = 0.5, 4  # differences up to this are rounding; at least this many images must all be so close to other rows
_SAME = 2.5  # mean difference in grey levels; the same image, resized or encoded again, is closer
_LIKE_MOST = 1 / 4  # a row that more than this share of the others are closer than is not the image's own: all look alike
_CANDIDATES = 512  # rows that are nearest in a first comparison; a match is searched for among these
_NEIGHBOURS = 64  # of those; their distances tell how close a chance match would be
# An upper bound for the probability of a chance match, and the share and the number of images that must be below it.
_CLEAR, _SOME = (1e-3, 1 / 4, 2), (5e-2, 1 / 8, 4)
_CLOSER = 0.7  # a match is at most at this fraction of the distance to the image's own row, however the image was changed
_FLOOR = 0.01  # distances below are rounding
_DIMENSION = 16.0  # largest number of dimensions that marks are assumed to spread over, as for natural images

_RANKED = 256  # rows of a bank among which a source's own row is ranked
_SHIFTS = 1 << 16  # largest number of rows among which a shift is searched for
_SHIFTED = 24  # smallest number of images that are compared with them; more for a small bank
_COMPARED = 1 << 17
_SURE = 7.0  # required log likelihood ratio of the ranks
_SHAPE = 0.3  # of Beta(0.3, 1): about the ranks of random crops with colour jitter of the right image; others have uniform ranks


def mark(image: Tensor) -> npt.NDArray[np.uint8]:
    """Return the mean colours of an image in 4 x 4 cells, (48,) uint8: row by row, and red, green and blue of each.

    Args:
        image: (C, H, W) with C 1 or 3; uint8, or floating in [0, 1].

    Example:
        >>> mark(torch.full((1, 32, 32), 7, dtype=torch.uint8))[:6]
        array([7, 7, 7, 7, 7, 7], dtype=uint8)
    """
    scale = 255 if image.is_floating_point() else 1
    means = F.adaptive_avg_pool2d(image.detach().float(), _CELLS).cpu().nan_to_num() * scale
    rows = means.expand(3, -1, -1).permute(1, 2, 0).reshape(MARK_SIZE)
    return rows.round().clamp(0, 255).to(torch.uint8).numpy()


@dataclass(frozen=True)
class Resemblance:
    """The result of a comparison.

    Attributes:
        verdict: ``"right"``; ``"wrong"``, if images match other rows; ``"unlike"``, if many images resemble their own rows no
            more than any others, but match no others either; or ``"unsure"``, if more images have to be compared.
        example: for a wrong one: the index of an image among those compared, and the row of the bank that it matches.
    """

    verdict: str
    example: tuple[int, int] | None = None


def compare_marks(seen: npt.NDArray[np.uint8], own: npt.NDArray[np.integer], marks: npt.NDArray[np.uint8]) -> Resemblance:
    """Decide whether images fit their own rows of a bank, or match other rows.

    Args:
        seen: marks of the images (N, 48); with fewer than eight there is little evidence.
        own: the row (N,) that each image's key names.
        marks: of all rows of the bank (R, 48).

    Example:
        >>> rows = np.random.default_rng(0).integers(0, 256, (20, 48), np.uint8)
        >>> compare_marks(rows[:8], np.arange(8), rows).verdict
        'right'
        >>> compare_marks(rows[5:13], np.arange(8), rows)
        Resemblance(verdict='wrong', example=(0, 5))
    """
    # Images that look alike under different keys, such as black ones, say nothing.
    _, first, counts = np.unique(seen, axis=0, return_index=True, return_counts=True)
    telling = np.sort(first[counts == 1])
    if not len(telling) or len(marks) < 2:
        return Resemblance("unsure")
    seen, own = seen[telling], own[telling]
    same = _are_same(seen, own, marks)
    if same.all():
        return Resemblance("right")
    if len(telling) >= _FEW and (moved := _find_exact_shift(seen, own, marks)) is not None:
        return Resemblance("wrong", (int(telling[0]), moved))
    away = np.flatnonzero(~same)
    matches = _find_matches(seen[away], own[away], marks)
    for chance, share, fewest in (_CLEAR, _SOME):
        found = {place: row for place, (row, by_chance) in zip(away.tolist(), matches, strict=True) if by_chance < chance}
        if len(set(found.values())) >= max(min(fewest, len(telling)), share * len(telling)):
            place = min(found)
            return Resemblance("wrong", (int(telling[place]), found[place]))
    if 4 * same.sum() >= 3 * len(telling):
        return Resemblance("right")
    evidence = _compare_ranks(seen, own, marks)
    if evidence > -_SURE:
        return Resemblance("right" if evidence > _SURE else "unsure")
    example = _find_shift(seen, own, marks)
    return Resemblance("unlike") if example is None else Resemblance("wrong", (int(telling[example[0]]), example[1]))


def _are_same(seen: npt.NDArray[np.uint8], own: npt.NDArray[np.integer], marks: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return whether each image is as close to its own row as the same image is, and closer than to most others.

    Where a camera does not move, all rows are as close to each other as that, and being close says nothing.
    """
    to_own = np.abs(seen.astype(np.int16) - marks[own]).mean(1)
    others = marks[_some_rows(marks)].astype(np.int16)
    closer = np.stack([np.abs(others - image).mean(1) < distance for image, distance in zip(seen, to_own, strict=True)])
    same: npt.NDArray[np.bool_] = (to_own < _SAME) & (closer.mean(1) <= _LIKE_MOST)
    return same


def _some_rows(marks: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the rows that an image's own row is ranked among, evenly spaced."""
    return np.unique(np.linspace(0, len(marks) - 1, min(_RANKED, len(marks))).astype(np.int64))


def _find_exact_shift(seen: npt.NDArray[np.uint8], own: npt.NDArray[np.integer], marks: npt.NDArray[np.uint8]) -> int | None:
    """Return the row of the first image if every image equals the row at one distance from its own, and differs from its own.

    That tells cut data sets even of plain images, which are so much alike that another brightness may look like another row, and
    of a camera that does not move, where an image differs little from its own row, but not at all from that other one.
    """
    rows = np.arange(len(marks))
    shifts = rows - own[0]
    for image, row in zip(seen.astype(np.int16), own, strict=True):
        targets = shifts + row
        inside = (targets >= 0) & (targets < len(marks))
        shifts, targets = shifts[inside], targets[inside]
        to_own = np.abs(image - marks[row]).mean()
        shifts = shifts[np.abs(marks[targets] - image).mean(1) < min(_EXACT, to_own / 4)]
        if not len(shifts):
            return None
    return int(own[0] + shifts[0])


def _find_matches(seen: npt.NDArray[np.uint8], own: npt.NDArray[np.integer], marks: npt.NDArray[np.uint8]) -> list[tuple[int, float]]:
    """Return for each image the other row that it matches best, and how probable that is by chance; 1 if its own is as good."""
    rows = _first_sight(_grid(seen), marks)
    images = _features(_grid(seen))
    to_own = (_features(_changes(_grid(marks[own]))) - images[:, None]).abs().mean(-1).amin(1)
    small = _features(_parts(_grid(marks))) if len(marks) <= _CANDIDATES else None
    found = []
    for number, (image, candidates) in enumerate(zip(images, rows, strict=True)):
        others = candidates[(marks[candidates] != marks[own[number]]).any(1)]
        if not len(others):
            found.append((-1, 1.0))
            continue
        parts = _features(_parts(_grid(marks[others]))) if small is None else small[torch.from_numpy(others)]
        distances = (parts - image).abs().mean(-1).amin(1).clamp(min=_FLOOR)
        nearest = int(distances.argmin())
        closer = distances[nearest] < _CLOSER * to_own[number]
        found.append((int(others[nearest]), _chance(distances.sort().values[:_NEIGHBOURS]) if closer else 1.0))
    return found


def _chance(distances: Tensor) -> float:
    """Return the probability that the first of K ascending distances is as small as it is, were it a neighbour like the others.

    Within a distance r are about r^D of the rows, where the dimension D follows from the distances of the further neighbours.
    Twins of the first are no evidence against it.
    """
    count = len(distances)
    start = count // 4
    if start < 1:
        return 1.0
    first, inner, outer = (float(distances[i]) for i in (0, start, -1))
    if outer <= first:
        return 1.0
    dimension = min(math.log(count / (start + 1)) / max(math.log(outer / inner), 1e-6), _DIMENSION)
    return float(count * (first / outer) ** dimension)


def _first_sight(images: Tensor, marks: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.intp]]:
    """Return for each image (N, 3, 4, 4) the rows whose marks are nearest, whatever the brightness, as they are or mirrored."""
    centred = torch.cat([_centre(images), _centre(images.flip(-1))]).flatten(1)
    nearest = torch.empty(len(images), 0)
    places = torch.empty(len(images), 0, dtype=torch.int64)
    step = 1 << 16  # bounds the memory that a bank of millions of rows takes here
    for start in range(0, len(marks), step):
        grids = _centre(_grid(marks[start : start + step])).flatten(1)
        distances = torch.cdist(centred, grids, p=1).view(2, len(images), -1).amin(0)
        nearest = torch.cat([nearest, distances], 1)
        places = torch.cat([places, torch.arange(start, start + len(grids)).expand(len(images), -1)], 1)
        nearest, kept = nearest.topk(min(_CANDIDATES, nearest.shape[1]), largest=False)
        places = places.gather(1, kept)
    return list(places.numpy())


def _compare_ranks(seen: npt.NDArray[np.uint8], own: npt.NDArray[np.integer], marks: npt.NDArray[np.uint8]) -> float:
    """Return log p(ranks | the right rows) - log p(ranks | others), by the features that favour the right ones most.

    Each image's own row is ranked among other rows. Whatever was done to the images, ranks of the right rows are low for some
    features; those of wrong rows are uniform for all.
    """
    rows = _some_rows(marks)
    others, mine, images = _grid(marks[rows]), _grid(marks[own]), _grid(seen)
    apart = torch.from_numpy((marks[rows][None] != marks[own][:, None]).any(-1))
    best = -math.inf
    for compare in (_compare_colours, _compare_structure, _compare_zoomed):
        closer = ((compare(images, others) < compare(images, mine).diagonal()[:, None]) & apart).sum(1)
        best = max(best, float(_weigh((closer + 0.5) / (apart.sum(1) + 1)).sum()))
    return best


def _weigh(ranks: Tensor) -> Tensor:
    """Return log p(rank | the right row) - log p(rank | another row), of ranks in (0, 1)."""
    return math.log(_SHAPE) + (_SHAPE - 1) * ranks.log()


def _find_shift(seen: npt.NDArray[np.uint8], own: npt.NDArray[np.integer], marks: npt.NDArray[np.uint8]) -> tuple[int, int] | None:
    """Return an image and its row if all images, however changed, fit rows that are equally far from their own ones.

    That is the effect of slicing a data set, or of leaving out rows.
    """
    low, high = max(0, int(own.min()) - _SHIFTS // 2), min(len(marks), int(own.max()) + _SHIFTS // 2)
    used = max(_SHIFTED, _COMPARED // (high - low))
    images, places = _grid(seen[:used]), torch.from_numpy(own[:used].astype(np.int64)) - low
    step = 1 << 10
    pieces = [_compare_colours(images, _grid(marks[start : min(start + step, high)])) for start in range(low, high, step)]
    distances = torch.cat(pieces, 1)
    count = distances.shape[1]
    ranks = torch.empty_like(distances)
    ranks.scatter_(1, distances.argsort(1), ((torch.arange(count) + 0.5) / count).expand_as(distances))
    shifts = torch.arange(1 - count, count)
    targets = places[:, None] + shifts
    inside = (targets >= 0) & (targets < count) & (shifts != 0)
    weights = _weigh(ranks).gather(1, targets.clamp(0, count - 1)) * inside
    total = weights.sum(0).masked_fill(2 * inside.sum(0) < len(images), -math.inf)
    best = int(total.argmax())
    others = torch.cat([total[:best], total[best + 1 :]])
    # Where neighbouring rows are alike, as in a film, neighbouring shifts fit equally well, and the best one is no evidence.
    if total[best] < _SURE + math.log(len(shifts)) or total[best] - others.max() < _SURE:
        return None
    image = int(weights[:, best].argmax())
    return image, int(own[image]) + int(shifts[best])


def _compare_colours(images: Tensor, rows: Tensor) -> Tensor:
    """Return the distances (N, R) of images to the most similar part of each row, by colours and structure."""
    parts = _features(_parts(rows))
    return torch.cdist(_features(images), parts.flatten(0, 1), p=1).view(len(images), len(rows), -1).amin(-1)


def _compare_zoomed(images: Tensor, rows: Tensor) -> Tensor:
    """Return the distances (N, R) of the most similar part of images to each row, as for images that were padded."""
    parts = _features(_parts(images, fine=True))
    return torch.cdist(parts.flatten(0, 1), _features(rows), p=1).view(len(images), -1, len(rows)).amin(1)


def _compare_structure(images: Tensor, rows: Tensor) -> Tensor:
    """Return the distances (N, R) of images to parts of each row, turned or not, by structure up to its sign."""
    light = rows.mean(1, keepdim=True)
    parts = torch.cat([_parts(light), _turned(light)], 1)
    return 1 - torch.einsum("npf,mf->mnp", _unit(parts), _unit(images.mean(1, keepdim=True))).abs().amax(-1)


def _turned(grids: Tensor) -> Tensor:
    return torch.stack([grids.rot90(k, (-2, -1)) for k in (1, 2, 3)], 1)


def _changes(grids: Tensor) -> Tensor:
    """Return what usual augmentations might make of rows (N, 3, 4, 4): (N, K, 3, 4, 4)."""
    turned = torch.cat([_parts(grids), _turned(grids)], 1)
    grey = turned.mean(2, keepdim=True).expand_as(turned)
    channels = [turned[:, :, i : i + 1].expand_as(turned) for i in range(3)]
    return torch.cat([turned, 255 - turned, grey, 255 - grey, turned.flip(2), *channels], 1)


def _grid(marks: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(marks.astype(np.float32)).view(-1, _CELLS, _CELLS, 3).permute(0, 3, 1, 2)


def _centre(grids: Tensor) -> Tensor:
    return grids - grids.mean((-3, -2, -1), keepdim=True)


def _unit(grids: Tensor) -> Tensor:
    """Return grids (…, C, 4, 4) as vectors of length one, centred; nearly plain ones are shorter."""
    centred = _centre(grids).flatten(-3)
    unit: Tensor = centred / (centred.norm(dim=-1, keepdim=True) + 4)
    return unit


def _parts(grids: Tensor, *, fine: bool = False) -> Tensor:
    """Return what crops of images (N, C, 4, 4) would look like, mirrored too, the images first: (N, K, C, 4, 4)."""
    parts: Tensor = grids.flatten(-2) @ _crops(fine)  # (N, C, K * 16)
    return parts.view(len(grids), grids.shape[1], -1, _CELLS, _CELLS).transpose(1, 2)


@functools.cache
def _crops(fine: bool) -> Tensor:
    """Return the matrix (16, K * 16) from cells of an image to those of its parts."""
    basis = torch.eye(_CELLS * _CELLS).view(-1, 1, _CELLS, _CELLS)
    large = F.interpolate(basis, 4 * _CELLS, mode="bilinear")
    sizes, step = ((12, 10, 8, 6), 2) if fine else ((12, 8), 4)
    crops = [
        F.adaptive_avg_pool2d(large[..., top : top + size, left : left + size], _CELLS)
        for size in sizes
        for top in range(0, 17 - size, step)
        for left in range(0, 17 - size, step)
    ]
    parts = torch.cat([basis, *crops], 1)
    return torch.cat([parts, parts.flip(-1)], 1).flatten(1)


def _features(grids: Tensor) -> Tensor:
    """Return grids (…, 3, 4, 4) as vectors: the colours, and the structure whatever the brightness and contrast."""
    centred = _centre(grids)
    structure = centred / (centred.square().mean((-3, -2, -1), keepdim=True).sqrt() + 4)
    return torch.cat([structure.flatten(-3), grids.flatten(-3) / 128], -1)
