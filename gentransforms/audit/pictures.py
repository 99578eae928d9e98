"""The pictures of a report: which sources and variants are shown, and their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gentransforms.audit.evidence import Evidence, mean_per_source
from gentransforms.audit.judge import Judgement
from gentransforms.audit.measures.near_copies import near_copy_distance
from gentransforms.audit.neighbours import RealNeighbours, VariantNeighbours
from gentransforms.audit.pairs import Pairs

__all__ = ["Pictures", "Row", "choose_pictures"]

_ROWS = 4  # of each kind
_VARIANTS = 6


@dataclass(frozen=True)
class Row:
    """Images side by side, (3, h, w) uint8 each, the source first, and what is said of them."""

    caption: str
    images: Sequence[Tensor]


@dataclass(frozen=True)
class Pictures:
    """Rows of images by kind.

    Attributes:
        best, typical, worst: sources with their variants, by similarity.
        near_copies: each a source, its variant, and the other real image that the variant repeats.
        worst_class: sources of the class that is kept least often, with their variants.
        worst_class_name: its name; empty without labels.
        histograms: for each figure of the pixels, shares of sources and of variants in 20 bins.
    """

    best: Sequence[Row] = ()
    typical: Sequence[Row] = ()
    worst: Sequence[Row] = ()
    near_copies: Sequence[Row] = ()
    worst_class: Sequence[Row] = ()
    worst_class_name: str = ""
    histograms: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)


def choose_pictures(
    e: Evidence, pairs: Pairs, similarity: Tensor, real: RealNeighbours, variants: VariantNeighbours, judgement: Judgement | None
) -> Pictures:
    """Choose by rank, so that nobody picks by eye: the best, the middle, the worst."""
    per_source = mean_per_source(similarity, e.owner, len(e.real))
    order = torch.where(per_source.isfinite(), per_source, torch.inf).argsort(descending=False)
    order = order[: int(per_source.isfinite().sum())]
    middle = max(0, len(order) // 2 - _ROWS // 2)

    def rows(sources: Tensor) -> list[Row]:
        found = (_row(pairs, int(i), f"{e.keys[int(i)]}: similarity {float(per_source[int(i)]):.2f}") for i in sources)
        return [row for row in found if row is not None]

    worst_class, name = _worst_class(e, judgement)
    return Pictures(
        best=rows(order.flip(0)[:_ROWS]),
        typical=rows(order[middle : middle + _ROWS]),
        worst=rows(order[:_ROWS]),
        near_copies=_near_copies(e, pairs, real, variants),
        worst_class=rows(worst_class),
        worst_class_name=name,
        histograms=_histograms(e),
    )


def _row(pairs: Pairs, source: int, caption: str) -> Row | None:
    """Return a source with its variants; None if it can no longer be read, such as one whose features were on disk."""
    images = pairs.read_sources(source, source + 1).images
    if not len(images):
        return None
    made, _, _ = pairs.read_variants(source, source + 1)
    return Row(caption, [_pixels(image) for image in (images[0], *made[:_VARIANTS])])


def _near_copies(e: Evidence, pairs: Pairs, real: RealNeighbours, variants: VariantNeighbours) -> list[Row]:
    limit = near_copy_distance(real)
    found = (variants.other < (-1.0 if limit is None else limit)).nonzero()[:, 0]
    found = found[variants.other[found].argsort(stable=True)]
    rows, seen = [], set()
    for place in found.tolist():
        owner, other = int(e.owner[place]), int(variants.other_index[place])
        if owner in seen:
            continue
        seen.add(owner)
        made, _, numbers = pairs.read_variants(owner, owner + 1)
        source, repeated = (pairs.read_sources(i, i + 1).images for i in (owner, other))
        variant = made[numbers == e.number[place]]
        if not len(source) or not len(repeated) or not len(variant):
            continue  # can no longer be read
        caption = f"{e.keys[owner]}, its variant {int(e.number[place])}, and {e.keys[other]}, unusually near to that variant"
        rows.append(Row(caption, [_pixels(image) for image in (source[0], variant[0], repeated[0])]))
        if len(rows) == _ROWS:
            break
    return rows


def _worst_class(e: Evidence, judgement: Judgement | None) -> tuple[Tensor, str]:
    if judgement is None or e.labels is None:
        return torch.zeros(0, dtype=torch.int64), ""
    agrees = mean_per_source((judgement.variants == e.labels[e.owner]).double(), e.owner, len(e.real))
    known = agrees.isfinite()
    sums = torch.zeros(len(e.classes), dtype=torch.float64).index_add_(0, e.labels[known], agrees[known])
    sizes = e.labels[known].bincount(minlength=len(e.classes))
    share = torch.where(sizes > 1, sums / sizes.clamp(min=1), torch.inf)
    worst = int(share.argmin())
    if not bool(share.isfinite().any()):
        return torch.zeros(0, dtype=torch.int64), ""
    return ((e.labels == worst) & known).nonzero()[:_ROWS, 0], e.classes[worst]


def _histograms(e: Evidence, bins: int = 20) -> dict[str, tuple[list[float], list[float]]]:
    from gentransforms.audit.pixels import STATISTICS

    assert e.statistics is not None
    assert e.variant_statistics is not None
    found = {}
    for column, name in enumerate(STATISTICS):
        real, made = e.statistics[:, column], e.variant_statistics[:, column]
        both = torch.cat([real, made])
        low, high = float(both.quantile(0.005)) if len(both) < 2**24 else float(both.amin()), float(both.amax())
        if high <= low:
            continue
        shares = [torch.histc(x.clamp(low, high), bins, low, high) / len(x) for x in (real, made)]
        found[name] = (shares[0].tolist(), shares[1].tolist())
    return found


def _pixels(image: Tensor) -> Tensor:
    return (image * 255).round().clamp(0, 255).to(torch.uint8)
