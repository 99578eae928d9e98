"""What changed that should not have: classes, groups of people, colours?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gentransforms.audit.evidence import Evidence, Measure, mean_per_source
from gentransforms.audit.intervals import Resamples
from gentransforms.audit.judge import Judgement, class_shares
from gentransforms.audit.pixels import STATISTICS

__all__ = ["describe_classes", "measure_drift", "measure_shift"]

_PART = "drift"
_SEED = 0


def measure_drift(e: Evidence, resamples: Resamples) -> dict[str, Measure | str]:
    """Return the shift of each figure of the pixels, in standard deviations of the real images."""
    assert e.statistics is not None
    assert e.variant_statistics is not None
    jackknife = resamples.jackknife
    order = torch.randperm(len(e.real), generator=torch.Generator("cpu").manual_seed(_SEED))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    found: dict[str, Measure | str] = {}
    for column, (name, what) in enumerate(STATISTICS.items()):
        real, made = e.statistics[:, column].double(), e.variant_statistics[:, column].double()
        spread = float(real.std())
        if not spread > 1e-9:
            found[f"drift/{name}"] = f"{name} is the same in all real images: there is no scale for a shift"
            continue
        shifts = mean_per_source(made - real[e.owner], e.owner, len(e.real))

        def without(g: int, real: Tensor = real, shifts: Tensor = shifts) -> Tensor:
            kept = jackknife.groups != g
            return shifts[kept].nanmean() / real[kept].std() if int(kept.sum()) > 1 else torch.tensor(torch.nan)

        value = float(shifts.nanmean()) / spread
        reference = float((real[halves[0]].mean() - real[halves[1]].mean()).abs()) / spread
        meaning = (
            f"shift of {what} from source to variant, in standard deviations of the real images; good is near 0; the reference is the "
            "difference between two random halves of the real images"
        )
        found[f"drift/{name}"] = Measure(_PART, value, jackknife.interval(value, without), reference, meaning)
    return found


def measure_shift(name: str, e: Evidence, labels: Tensor, judgement: Judgement, resamples: Resamples) -> Measure:
    """Return how far the frequencies of classes, or of the values of an attribute, move: their total variation distance.

    Args:
        name: ``"classes"``, or of the attribute.
        e: the features.
        labels: (N,) int64 of the sources.
        judgement: of the same labels.
        resamples: for the interval.
    """
    count = 1 + int(torch.cat([labels, judgement.sources, judgement.variants]).max())  # a judge may see classes that no source has
    groups = resamples.jackknife.groups

    def shares(classes: Tensor) -> Tensor:
        return classes.bincount(minlength=count).double() / len(classes)

    def shift(judged: Tensor, kept: Tensor) -> float:
        # Half the sum of the differences is the sum of the positive ones, with fewer roundings.
        return float((class_shares(e, judged, kept, count) - shares(labels[kept])).clamp(min=0).sum())

    value = shift(judgement.variants, torch.ones_like(groups, dtype=torch.bool))
    interval = resamples.jackknife.interval(value, lambda g: shift(judgement.without(groups == g), groups != g), 0.0, 1.0)
    reference = float((shares(judgement.sources) - shares(labels)).abs().sum() / 2)
    meaning = (
        f"how far the frequencies of {name} move from sources to variants, by the judge ({judgement.name}): half the sum of the "
        "differences, from 0 to 1; the reference is the judge's own error on real images"
    )
    return Measure(_PART, value, interval, reference, meaning)


def describe_classes(e: Evidence, labels: Tensor, names: Sequence[str], judgement: Judgement, resamples: Resamples) -> list[dict[str, Any]]:
    """Return a row for each class: sources, agreement with its interval and reference, frequency before and after.

    A class of one image has no agreement, since nothing else of its class can vote.
    """
    count = len(names)
    sizes = labels.bincount(minlength=count)
    before = (sizes.double() / len(labels)).tolist()
    after = class_shares(e, judgement.variants, torch.ones(len(labels), dtype=torch.bool), count).tolist()
    jackknife = resamples.jackknife

    def agreement(judged: Tensor) -> Tensor:
        return mean_per_source((judged == labels[e.owner]).double(), e.owner, len(labels))

    agrees = agreement(judgement.variants)
    left = torch.stack([agreement(judgement.without(jackknife.groups == g)) for g in range(jackknife.count)])
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        own = labels == i
        row: dict[str, Any] = {"name": name, "sources": int(sizes[i]), "before": before[i], "after": after[i]}
        if int(sizes[i]) > 1 and bool(agrees[own].isfinite().any()):
            value, (low, high) = resamples.mean(torch.where(own, agrees, torch.nan))

            members = own.nonzero()[:, 0]

            def without(g: int, members: Tensor = members) -> Tensor:
                return left[g, members[jackknife.groups[members] != g]].nanmean()

            # The wider of both: few sources may lie in one or two groups, and the bootstrap knows nothing of the judge.
            wide = jackknife.interval(value, without, 0.0, 1.0) or (0.0, 1.0)
            interval = min(low, wide[0]), max(high, wide[1])
            row |= {"agreement": value, "interval": interval, "reference": float(judgement.right[own].double().mean())}
        elif int(sizes[i]) < 2:
            row["reason"] = "one image: no other of its class can vote" if int(sizes[i]) else "no image of this class was audited"
        rows.append(row)
    return rows


def confusion(e: Evidence, labels: Tensor, judgement: Judgement, count: int) -> list[list[int]]:
    """Return how many variants of sources of class i (row) are taken for class j (column)."""
    cells = labels[e.owner] * count + judgement.variants
    return cells.bincount(minlength=count * count).view(count, count).tolist()
