"""Is everything there? Images that cannot be read are left out of an audit, which says how many and which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gentransforms.audit.evidence import Measure
from gentransforms.bank.reader import Bank
from gentransforms.errors import SourceError
from gentransforms.sources import ImageSource

__all__ = ["describe_failed", "measure_integrity", "refuse_unreadable", "tell_failed"]

_PART = "integrity"
_KEPT = 20  # keys in the description
_NAMED = 3  # of these, in a sentence
_THINGS = {"sources": ("source", "sources"), "holdout": ("held-out image", "held-out images")}


def describe_failed(source: ImageSource, failed: Mapping[int, SourceError], tried: int) -> dict[str, Any]:
    """Return how many of the images that an audit tried could not be read, the keys of the first 20, and why the first could not.

    Args:
        source: of the images.
        failed: the error of each, by its place in the source.
        tried: how many images were tried.

    Example:
        >>> import torch
        >>> from gentransforms.sources import open_source
        >>> describe_failed(open_source([torch.zeros(3, 8, 8)] * 9), {4: SourceError("is empty")}, 9)
        {'count': 1, 'of': 9, 'keys': [4], 'reason': 'is empty'}
    """
    places = sorted(failed)
    keys = [source.keys[place] for place in places[:_KEPT]]
    return {"count": len(places), "of": tried, "keys": keys, "reason": str(failed[places[0]]) if places else None}


def tell_failed(failed: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Return a sentence for each kind of images of which some could not be read.

    Args:
        failed: by ``"sources"`` and ``"holdout"``, what `describe_failed` returns; None for no such images.

    Example:
        >>> tell_failed({"sources": {"count": 1, "of": 9, "keys": ["b.jpg"], "reason": "is empty"}, "holdout": None})
        ["1 of 9 sources could not be read and is left out: 'b.jpg' (is empty)"]
    """
    found = []
    for kind, one in failed.items():
        if one is None or not one["count"]:
            continue
        count, named = one["count"], ", ".join(map(repr, one["keys"][:_NAMED]))
        such = "" if count <= _NAMED else "such as "
        verb = "is" if count == 1 else "are"
        thing = _THINGS[kind][one["of"] > 1]
        found.append(f"{count:,} of {one['of']:,} {thing} could not be read and {verb} left out: {such}{named} ({one['reason']})")
    return found


def refuse_unreadable(what: str, source: ImageSource, failed: Mapping[int, SourceError]) -> SourceError:
    """Return the error for images of which none can be read."""
    first = min(failed)
    return SourceError(f"{what}: none of the {len(failed):,} images can be read, such as {source.keys[first]!r}: {failed[first]}")


def measure_integrity(failed: int, bank: Bank | None = None) -> dict[str, Measure]:
    """Count what is there of a bank and what is not; what a selection leaves out is there.

    Args:
        failed: sources that could not be read now.
        bank: that is audited; None for a generator, of which the sources alone are there before.
    """
    if bank is None:
        return {"failed": Measure(_PART, failed, None, 0, "sources that could not be read, left out of the audit; good is 0")}
    there = len(bank) if bank.selection is None else len(bank.selection.kept)
    expected = (bank.source_count - len(bank.failed)) * bank.variants
    return {
        "rows": Measure(_PART, len(bank), None, expected, "images in the bank; the reference is how many its sources were to have"),
        "missing": Measure(
            _PART, expected - there - len(bank.rejected), None, 0, "images that are neither there nor recorded as rejected; good is 0"
        ),
        "rejected": Measure(_PART, len(bank.rejected), None, 0, "variants of which every attempt was refused, recorded by the bank"),
        "failed": Measure(
            _PART, len(bank.failed) + failed, None, 0,
            "sources that could not be read, when the bank was made, which records them, or now; they are left out of the audit",
        ),
        "unpaired": Measure(_PART, 0, None, 0, "variants without a source; a bank that has any is not audited"),
    }  # fmt: skip
