"""A verdict in plain words for each part of an audit, with the figures that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gentransforms.audit.evidence import Measure
from gentransforms.audit.pixels import STATISTICS

__all__ = ["Verdict", "give_verdicts"]


class Verdict(NamedTuple):
    """What is said of a part.

    Attributes:
        level: ``"good"``, ``"check"`` or ``"bad"``.
        mark: the same for people.
        title: of the part.
        text: in words, with the figures it rests on.
    """

    level: str
    mark: str
    title: str
    text: str


_MARKS = {"good": "Good", "check": "Check", "bad": "Problem"}


def give_verdicts(measures: Mapping[str, Measure]) -> list[Verdict]:
    """Return a verdict for each part that was measured.

    The limits are rules of thumb, relative to the reference of each figure; they are stated in the documentation.

    Example:
        >>> measure = Measure("copies", 0.2, (0.1, 0.3), 0.01, "share of near copies")
        >>> give_verdicts({"near_copies": measure})[0].level
        'bad'
    """
    rules = (_integrity, _faithfulness, _diversity, _likeness, _copies, _drift)
    return [verdict for rule in rules if (verdict := rule(measures)) is not None]


def _verdict(level: str, title: str, text: str) -> Verdict:
    return Verdict(level, _MARKS[level], title, text)


def _integrity(m: Mapping[str, Measure]) -> Verdict | None:
    if "failed" not in m:
        return None
    if "missing" not in m:  # of a generator, whose sources alone there are
        failed = int(m["failed"].value)
        return _verdict("check" if failed else "good", "Integrity.", f"{failed:,} source{'' if failed == 1 else 's'} could not be read.")
    missing, failed, rejected = (int(m[name].value) for name in ("missing", "failed", "rejected"))
    level = "bad" if missing else "check" if failed or rejected else "good"
    text = f"{int(m['rows'].value):,} images; {missing:,} missing, {rejected:,} rejected, {failed:,} sources could not be read."
    return _verdict(level, "Integrity.", text)


def _faithfulness(m: Mapping[str, Measure]) -> Verdict | None:
    if "label_agreement" in m:
        agreement, kappa = m["label_agreement"], m.get("label_kappa", m["label_agreement"])
        # Beyond chance: where nearly all sources are of one class, noise that is taken for it agrees nearly always.
        ratio = kappa.value / max(kappa.reference or 0, 1e-9)
        level = "good" if ratio >= 0.9 else "check" if ratio >= 0.7 else "bad"
        if (agreement.reference or 0) < 0.5 or (kappa.reference or 0) < 0.4:
            level = "check"  # whoever errs on most real images, or says the same of all, is no judge of generated ones
        text = (
            f"{agreement.value:.0%} of the variants are taken for their source's class; of real images the same judge gets "
            f"{agreement.reference:.0%} right. "
        )
        if kappa is not agreement:
            text += f"Beyond chance (Cohen's kappa), that is {kappa.value:.2f} and {kappa.reference:.2f}. "
    elif "source_similarity" in m:
        own, other = m["source_similarity"], m["other_similarity"]
        gap = (own.value - other.value) / max((own.reference or 1) - other.value, 1e-9)
        level = "good" if gap >= 0.8 else "check" if gap >= 0.4 else "bad"
        text = f"A variant is as similar to its source as {own.value:.2f}, to other sources as {other.value:.2f} (cosine). "
    else:
        return None
    if "source_retrieval" in m:
        text += f"{m['source_retrieval'].value:.0%} have their own source as the nearest."
    return _verdict(level, "Faithfulness.", text)


def _diversity(m: Mapping[str, Measure]) -> Verdict | None:
    if "variant_distance" not in m:
        return None
    spread, duplicates = m["variant_distance"].value, m["duplicate_variants"].value if "duplicate_variants" in m else 0.0
    level = "bad" if spread < 0.2 or duplicates > 0.2 else "good" if 0.5 <= spread <= 1.1 and duplicates < 0.02 else "check"
    text = f"Variants of a source differ {spread:.2f} times as much as comparable real images; {duplicates:.1%} repeat another."
    return _verdict(level, "Diversity.", text)


def _likeness(m: Mapping[str, Measure]) -> Verdict | None:
    if "recall" not in m:
        return None
    shares = {name: m[name].value / max(m[name].reference or 0, 1e-9) for name in ("precision", "recall", "coverage")}
    worst = min(shares.values())
    level = "good" if worst >= 0.8 else "check" if worst >= 0.5 else "bad"
    told = m["real_or_generated"].value
    text = (
        f"Precision {m['precision'].value:.2f} (real images {m['precision'].reference:.2f}), recall {m['recall'].value:.2f} "
        f"({m['recall'].reference:.2f}); a linear classifier tells a variant from its source in {told:.0%} of cases, 50% is chance."
    )
    return _verdict("check" if level == "good" and told > 0.9 else level, "Likeness to real images.", text)


def _copies(m: Mapping[str, Measure]) -> Verdict | None:
    if "near_copies" not in m:
        return None
    near, expected = m["near_copies"].value, m["near_copies"].reference or 0.0
    # By the lower ends of the intervals: nobody is accused by what chance alone would show.
    surely = _low(m["near_copies"])
    level = "bad" if surely > max(0.05, 3 * expected) else "check" if surely > max(0.02, 2 * expected) else "good"
    text = f"{near:.1%} are nearer to another real image than 99% of the real images are to their nearest (real images: {expected:.1%})."
    if level == "good" and near > max(0.02, 2 * expected):
        text += f" With more sources that may prove to be as few as {surely:.1%}: too few of them to speak of copies."
    if "source_copies" in m and m["source_copies"].value > 0.02:
        level = "check" if level == "good" and _low(m["source_copies"]) > 0.02 else level
        text += f" {m['source_copies'].value:.1%} are practically copies of their own source."
    if "training_share_others" in m:
        share = m["training_share_others"]
        if _low(share) > 0.55:
            level = "bad" if _low(share) > 0.65 or level == "bad" else "check"
        text += f" {share.value:.0%} are nearer to other training images than to held-out ones; without memorisation it is about 50%."
    return _verdict(level, "Copies.", text)


def _low(measure: Measure) -> float:
    """Return the lower end of the interval; without one, nothing is sure."""
    return 0.0 if measure.interval is None else measure.interval[0]


def _drift(m: Mapping[str, Measure]) -> Verdict | None:
    shifts = {name: measure.value for name, measure in m.items() if name.startswith("drift/") and measure.part == "drift"}
    pixels = {name: value for name, value in shifts.items() if name.removeprefix("drift/") in STATISTICS}
    if not pixels:
        return None
    name, value = max(pixels.items(), key=lambda item: abs(item[1]))
    level = "good" if abs(value) < 0.2 else "check" if abs(value) < 0.5 else "bad"
    text = f"The largest shift of the pixels is that of {name.removeprefix('drift/')}: {value:+.2f} standard deviations."
    if "drift/classes" in m:
        moved, error = m["drift/classes"].value, m["drift/classes"].reference or 0.0
        level = "check" if level == "good" and moved > error + 0.05 else level
        text += f" The class frequencies shift by {moved:.1%}; the judge's errors alone shift those of real images by {error:.1%}."
    return _verdict(level, "Drift and bias.", text)
