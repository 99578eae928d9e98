"""What changed that should not have: classes, groups of people, colours?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
            return shifts[kept].nanmean() / real[kept].std()

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
    before = F.one_hot(labels, count).double().mean(dim=0)
    after = class_shares(e, judgement, count)
    known = after.isfinite().all(dim=1)
    totals = after[known].mean(dim=0)
    value = float((totals - before).abs().sum() / 2)
    spread = (resamples.shares(torch.where(known[:, None], after, 0.0)).double() - before).abs().sum(dim=1) / 2
    judged = F.one_hot(judgement.sources, count).double().mean(dim=0)
    reference = float((judged - before).abs().sum() / 2)
    meaning = (
        f"how far the frequencies of {name} move from sources to variants, by the judge ({judgement.name}): half the sum of the "
        "differences, from 0 to 1; the reference is the judge's own error on real images"
    )
    # A resample is farther from the sources than they are from themselves: the bias is taken off (the basic bootstrap).
    low, high = (min(1.0, max(0.0, 2 * value - float(spread.quantile(q)))) for q in (0.975, 0.025))
    return Measure(_PART, value, (min(low, value), max(high, value)), reference, meaning)


def describe_classes(e: Evidence, labels: Tensor, names: Sequence[str], judgement: Judgement, resamples: Resamples) -> list[dict[str, Any]]:
    """Return a row for each class: sources, agreement with its interval and reference, frequency before and after.

    A class of one image has no agreement, since nothing else of its class can vote.
    """
    count = len(names)
    sizes = labels.bincount(minlength=count)
    before = F.one_hot(labels, count).double().mean(dim=0).tolist()
    shares = class_shares(e, judgement, count)
    after = shares[shares.isfinite().all(dim=1)].mean(dim=0).tolist()
    agrees = mean_per_source((judgement.variants == labels[e.owner]).double(), e.owner, len(labels))
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        own = labels == i
        row: dict[str, Any] = {"name": name, "sources": int(sizes[i]), "before": before[i], "after": after[i]}
        if int(sizes[i]) > 1 and bool(agrees[own].isfinite().any()):
            value, interval = resamples.mean(torch.where(own, agrees, torch.nan))
            row |= {"agreement": value, "interval": interval, "reference": float(judgement.right[own].double().mean())}
        elif int(sizes[i]) < 2:
            row["reason"] = "one image: no other of its class can vote" if int(sizes[i]) else "no image of this class was audited"
        rows.append(row)
    return rows


def confusion(e: Evidence, labels: Tensor, judgement: Judgement, count: int) -> list[list[int]]:
    """Return how many variants of sources of class i (row) are taken for class j (column)."""
    cells = labels[e.owner] * count + judgement.variants
    return cells.bincount(minlength=count * count).view(count, count).tolist()
