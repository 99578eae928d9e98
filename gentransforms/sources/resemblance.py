"""Check whether images are those that a bank was made from, by comparing a small mark of each image.

Row numbers are keys that fit any data set. After ``dataset.select(range(5, 10))`` they refer to other images, and each would get
variants of the wrong source. So a bank keeps a `mark` of each source, with which the images that request variants are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MARK_SIZE", "Resemblance", "compare_marks", "mark"]

_CELLS = 4
MARK_SIZE = 3 * _CELLS * _CELLS

# Mean difference of two marks, in grey levels. The same image, resized or encoded again, is closer than the first; an image that
# is further than the second from its source is not that source in its original form.
_SAME, _OTHER = 2.5, 10.0
_ROWS = 256  # rows of a bank among which a source's own row is ranked
# Likelihood ratio of the ranks, in nats, that is required for a verdict.
_SURE = 7.0
_SHAPE = 0.3  # of Beta(0.3, 1), about the ranks that random crops and colour jitter of the right image have; uniform if it is another


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
        verdict: ``"right"``, ``"wrong"``, or ``"unsure"``, if more images have to be compared.
        example: for a wrong one: the index of an image among those compared, and the row of the bank that it fits.
    """

    verdict: str
    example: tuple[int, int] | None = None


def compare_marks(seen: npt.NDArray[np.uint8], own: npt.NDArray[np.integer], marks: npt.NDArray[np.uint8]) -> Resemblance:
    """Decide whether images fit their own rows of a bank, or other rows better.

    The right images may have been resized, cropped, flipped or recoloured. If several of them match the unchanged image of
    another row, the keys are wrong. Otherwise each image's own row is ranked among other rows of the bank, using marks of
    parts of each row: the ranks of the right rows are low, whatever was done to the images, and those of wrong rows uniform.

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
    near = [(int(i), *_nearest(seen[i], int(own[i]), marks)) for i in telling]
    elsewhere = [(i, row) for i, to_own, row, to_row in near if to_row < _SAME and to_own > max(_OTHER, 4 * to_row)]
    if len(elsewhere) >= max(min(2, len(telling)), len(telling) // 4):
        return Resemblance("wrong", elsewhere[0])
    if 4 * sum(to_own < _SAME for _, to_own, _, _ in near) >= 3 * len(telling):
        return Resemblance("right")
    evidence = sum(_evidence(rank) for rank in _ranks(seen[telling], own[telling], marks))
    if evidence > _SURE:
        return Resemblance("right")
    if evidence < -_SURE:
        i, _, row, _ = max(near, key=lambda found: found[1] - found[3])
        return Resemblance("wrong", (i, row))
    return Resemblance("unsure")


def _nearest(seen: npt.NDArray[np.uint8], own: int, marks: npt.NDArray[np.uint8]) -> tuple[float, int, float]:
    """Return the distance of a mark to its own row, and the nearest other row with its distance."""
    best, row = np.inf, -1
    step = 1 << 16  # bounds the memory that a bank of millions of rows takes here
    for start in range(0, len(marks), step):
        distances = np.abs(marks[start : start + step].astype(np.int16) - seen).mean(1, dtype=np.float32)
        if start <= own < start + step:
            to_own = float(distances[own - start])
            distances[own - start] = np.inf
        if distances.min() < best:
            best, row = float(distances.min()), start + int(distances.argmin())
    return to_own, row, best


def _evidence(rank: float) -> float:
    """Return log p(rank | the right row) - log p(rank | another row)."""
    return float(np.log(_SHAPE) + (_SHAPE - 1) * np.log(rank))


def _ranks(seen: npt.NDArray[np.uint8], own: npt.NDArray[np.integer], marks: npt.NDArray[np.uint8]) -> list[float]:
    """Return the share, between 0 and 1, of other rows that look more like an image than its own row does."""
    rows = np.unique(np.linspace(0, len(marks) - 1, min(_ROWS, len(marks))).astype(np.int64))
    others = _features(_parts(marks[rows]))
    mine = _features(_parts(marks[own]))
    images = _features(_grid(seen)[:, None])
    ranks = []
    for image, row, parts in zip(images, own.tolist(), mine, strict=True):
        distances = (others[torch.from_numpy(rows != row)] - image).abs().mean(-1).amin(1)
        closer = (distances < (parts - image).abs().mean(-1).min()).sum().item()
        ranks.append((closer + 0.5) / (len(distances) + 1))
    return ranks


def _grid(marks: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(marks.astype(np.float32)).view(-1, _CELLS, _CELLS, 3).permute(0, 3, 1, 2)


def _parts(marks: npt.NDArray[np.uint8]) -> Tensor:
    """Return what crops of the marked images would look like, mirrored too: (N, K, 3, 4, 4)."""
    large = F.interpolate(_grid(marks), 4 * _CELLS, mode="bilinear")
    crops = [
        F.adaptive_avg_pool2d(large[..., top : top + size, left : left + size], _CELLS)
        for size in (16, 12, 8)
        for top in range(0, 17 - size, 4)
        for left in range(0, 17 - size, 4)
    ]
    parts = torch.stack(crops, 1)
    return torch.cat([parts, parts.flip(-1)], 1)


def _features(grids: Tensor) -> Tensor:
    """Return grids (…, 3, 4, 4) as vectors: the colours, and the structure whatever the brightness and contrast."""
    centred = grids - grids.mean((-3, -2, -1), keepdim=True)
    structure = centred / (centred.square().mean((-3, -2, -1), keepdim=True).sqrt() + 4)
    return torch.cat([structure.flatten(-3), grids.flatten(-3) / 128], -1)
