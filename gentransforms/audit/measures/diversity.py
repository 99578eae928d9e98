"""Do the variants of one source differ?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gentransforms.audit.evidence import Evidence, Measure, mean_per_source
from gentransforms.audit.intervals import Jackknife, Resamples
from gentransforms.audit.measures.left_out import LeftOut, two_groups_of_neighbours
from gentransforms.audit.measures.needs import ONE_VARIANT, VARIED
from gentransforms.audit.neighbours import RealNeighbours

__all__ = ["distances_within_classes", "distances_within_groups", "duplicate_distances", "measure_diversity", "vendi_score"]

_PART = "diversity"
_ELEMENTS = 16_000_000
_MOST = 2000  # images of a class whose pairs are measured
_SEED = 0


def measure_diversity(e: Evidence, real: RealNeighbours, near: float | None, resamples: Resamples) -> dict[str, Measure | str]:
    """Return measures of how the variants of a source differ, or why one is left out.

    Args:
        e: the features.
        real: neighbours of the real images.
        near: distance below which two images are taken for duplicates; None if it is not defined.
        resamples: for the intervals.
    """
    if int(e.counts.max()) < 2:
        return dict.fromkeys(VARIED, ONE_VARIANT)
    spread, vendi = _within_sources(e)
    found: dict[str, Measure | str] = {}
    jackknife = resamples.jackknife
    apart = two_groups_of_neighbours(e.real, e.real, real.indices, jackknife.groups, device=e.device)
    scales, among = _real_spread(e, real, apart, jackknife)
    ratios = torch.where(scales(None) > 0, spread / scales(None), torch.nan)
    if bool(ratios.isfinite().any()):

        def ratio(g: int) -> Tensor:
            scale, kept = scales(g), jackknife.groups != g
            return torch.where(scale > 0, spread / scale, torch.nan)[kept].nanmean()

        value = float(ratios.nanmean())
        interval = jackknife.interval(value, ratio, 0.0)
        meaning = (
            f"mean distance between two variants of a source, over that {among}; good is 0.5 to 1.1; 0 means the same image again and again"
        )
        found["variant_distance"] = Measure(_PART, value, interval, 1.0, meaning)
    else:
        found["variant_distance"] = f"the distance {among} is 0: the encoder does not tell them apart"
    size = int(e.counts.mode().values)
    if size > 1:
        value, interval = resamples.mean(torch.where(e.counts > 1, vendi, torch.nan))
        meaning = (
            f"Vendi score within a source (Friedman and Dieng, 2023): the number of different images that its variants amount to, "
            f"1 to {int(e.counts.max())}; the reference is that of {size} real images"
        )
        found["vendi"] = Measure(_PART, value, interval, _real_vendi(e, real, size), meaning)
    else:
        found["vendi"] = "most sources have one variant: nothing to compare"
    if near is None:
        found["duplicate_variants"] = "half of the real images have an exact duplicate: nothing says what a near duplicate is"
    else:
        repeats = duplicate_distances(e)

        def share(below: float) -> Tensor:
            return mean_per_source((repeats < below).double(), e.owner, len(e.real))

        def share_without(g: int) -> Tensor:
            kept = jackknife.groups != g
            scale = apart.without(g)[0][kept].median()
            return share(float(scale) / 10)[kept].nanmean() if bool(scale.isfinite()) else scale * torch.nan

        value = float(share(near).nanmean())
        interval = jackknife.interval(value, share_without, 0.0, 1.0)
        reference = float((real.distances[:, 0] < near).double().mean())
        meaning = (
            "share of variants nearer to another variant of their source than a tenth of the median distance of real images "
            "to their nearest; 0 is best"
        )
        found["duplicate_variants"] = Measure(_PART, value, interval, reference, meaning)
    return found


def distances_within_groups(features: Tensor, there: Tensor | None = None) -> Tensor:
    """Return the mean distance between two images of each group: (B,) float64, NaN where there are not two.

    Args:
        features: (B, V, D), B groups of images.
        there: (B, V) bool, which of them count; all by default.

    Example:
        >>> import torch
        >>> distances_within_groups(torch.tensor([[[0.0], [3.0], [6.0]]])).tolist()
        [4.0]
    """
    there = torch.ones(features.shape[:2], dtype=torch.bool) if there is None else there
    distances = _pairwise(features) * (there[:, :, None] & there[:, None, :])
    count = there.sum(dim=1)
    pairs = count * (count - 1)
    return torch.where(pairs > 0, distances.double().sum(dim=(1, 2)) / pairs, torch.nan)


def distances_within_classes(features: Tensor, labels: Tensor) -> Tensor:
    """Return for each image the mean distance between two images of its class: (N,) float64, NaN for a class of one image.

    Of a class with more than 2,000 images that many are measured.

    Args:
        features: (N, D).
        labels: (N,) int64.

    Example:
        >>> import torch
        >>> distances_within_classes(torch.tensor([[0.0], [3.0], [6.0], [9.0]]), torch.tensor([0, 0, 0, 1])).tolist()
        [4.0, 4.0, 4.0, nan]
    """
    return _class_distances(features, labels, torch.zeros_like(labels), 1)[0][labels]


def _class_distances(features: Tensor, labels: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the mean distance between two images of each class: (C,) float64 of all, and (C, count) without each group (N,)."""
    rng = torch.Generator("cpu").manual_seed(_SEED)
    classes = int(labels.max()) + 1
    whole = torch.full((classes,), torch.nan, dtype=torch.float64)
    without = torch.full((classes, count), torch.nan, dtype=torch.float64)
    for label in range(classes):
        rows = (labels == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=rng)[:_MOST]]
        if len(rows) < 2:
            continue
        distances = torch.cdist(features[rows], features[rows]).fill_diagonal_(0).double()
        member = F.one_hot(groups[rows], count).double()
        between = member.T @ distances @ member  # sums over the pairs of two groups
        left = len(rows) - member.sum(dim=0)
        sums = between.sum() - 2 * between.sum(dim=1) + between.diagonal()
        whole[label] = distances.sum() / (len(rows) * (len(rows) - 1))
        without[label] = torch.where(left > 1, sums / (left * (left - 1)), torch.nan)
    return whole, without


def duplicate_distances(e: Evidence) -> Tensor:
    """Return the distance of each variant to the nearest other variant of its source: (M,) float32, infinite for a lone one."""
    rows, there = e.grouped()
    result = torch.full((len(e.variants),), torch.inf)
    for part in _chunks(e, rows.shape[1]):
        distances = _pairwise(e.variants[rows[part]])
        distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        distances.masked_fill_(~there[part][:, None, :], torch.inf)
        nearest = distances.amin(dim=2)
        result[rows[part][there[part]]] = nearest[there[part]]
    return result


def vendi_score(features: Tensor, there: Tensor | None = None) -> Tensor:
    """Return the exponential of the entropy of the eigenvalues of the cosine kernel: (B,) float64, from 1 to V.

    Args:
        features: (B, V, D), B groups of images.
        there: (B, V) bool, which of them count; all by default.

    Source: Friedman and Dieng, "The Vendi Score" (TMLR 2023), equation 3.

    Example:
        >>> import torch
        >>> vendi_score(torch.eye(4)[None]).item(), vendi_score(torch.ones(1, 4, 2)).item()  # doctest: +ELLIPSIS
        (4.0..., 1.0...)
    """
    there = torch.ones(features.shape[:2], dtype=torch.bool) if there is None else there
    unit = F.normalize(features.double(), dim=2) * there[..., None]
    kernel = unit @ unit.mT
    kernel.diagonal(dim1=1, dim2=2).copy_(there.double())  # of a zero vector too
    values = torch.linalg.eigvalsh(kernel / there.sum(dim=1).clamp(min=1)[:, None, None]).clamp(min=0)
    entropy: Tensor = torch.special.entr(values).sum(dim=1)
    return entropy.exp()


def _within_sources(e: Evidence) -> tuple[Tensor, Tensor]:
    """Return the mean distance between two variants of each source, NaN where there are not two, and its Vendi score."""
    rows, there = e.grouped()
    distances, scores = [], []
    for part in _chunks(e, rows.shape[1]):
        groups = e.variants[rows[part]], there[part]
        distances.append(distances_within_groups(*groups))
        scores.append(vendi_score(*groups))
    return torch.cat(distances), torch.cat(scores)


def _pairwise(features: Tensor) -> Tensor:
    # The difference itself, so that equal images have the distance zero.
    return torch.stack([(features - features[:, i : i + 1]).norm(dim=2) for i in range(features.shape[1])], dim=1)


def _chunks(e: Evidence, width: int) -> list[slice]:
    size = max(1, _ELEMENTS // (width * e.variants.shape[1]))
    return [slice(start, start + size) for start in range(0, len(e.real), size)]


def _real_spread(e: Evidence, real: RealNeighbours, apart: LeftOut, jackknife: Jackknife) -> tuple[Callable[[int | None], Tensor], str]:
    """Return what gives each source the mean distance between real images that ought to differ as its variants do: (N,) float64.

    It is called with the group to leave out, or None. The text says which images these are.
    """
    without = ""
    if e.labels is not None:
        labels = e.labels
        whole, left = _class_distances(e.real, labels, jackknife.groups, jackknife.count)
        if bool(whole.isfinite().any()):
            return lambda g: (whole if g is None else left[:, g])[labels], "between two real images of its class"
        without = ", as every class has one image"

    def to_nearest(g: int | None) -> Tensor:
        distances = real.distances[:, 0] if g is None else apart.without(g)[0][jackknife.groups != g]
        return distances.double().where(distances.isfinite(), torch.nan).mean().expand(len(e.real))  # of two images, none is left

    return to_nearest, f"between a real image and its nearest other{without}"


def _real_vendi(e: Evidence, real: RealNeighbours, size: int) -> float | None:
    """Return the mean Vendi score of groups of `size` real images: of a class with labels, else an image and its nearest."""
    if e.labels is None:
        if real.indices.shape[1] < size - 1:
            return None
        groups = torch.cat([torch.arange(len(e.real))[:, None], real.indices[:, : size - 1]], dim=1)
    else:
        rng = torch.Generator("cpu").manual_seed(_SEED)
        parts = [
            rows[torch.randperm(len(rows), generator=rng)]
            for c in range(int(e.labels.max()) + 1)
            if len(rows := (e.labels == c).nonzero()[:, 0])
        ]
        whole = [part[: len(part) // size * size].view(-1, size) for part in parts if len(part) >= size]
        if not whole:
            return None
        groups = torch.cat(whole)
    scores = [vendi_score(e.real[part]) for part in torch.split(groups, max(1, _ELEMENTS // (size * e.real.shape[1])))]
    return float(torch.cat(scores).mean())
