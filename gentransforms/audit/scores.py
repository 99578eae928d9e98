"""Scores of the single variants, by which they are chosen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gentransforms.audit.evidence import Evidence
from gentransforms.audit.judge import Judgement
from gentransforms.audit.measures.diversity import duplicate_distances
from gentransforms.audit.measures.near_copies import near_copy_distance
from gentransforms.audit.neighbours import RealNeighbours, VariantNeighbours
from gentransforms.sources.arrow import arrow

__all__ = ["COLUMNS", "score_variants"]

# What each column says, for the documentation and the report.
COLUMNS = {
    "key": "of its source",
    "variant": "which of the source's variants",
    "similarity": "cosine with its source",
    "distance": "Euclidean distance from its source",
    "place": "by similarity among the variants of its source; 1 is the most similar",
    "rank": "of its source among all sources by distance; 1 is nearest",
    "nearest_key": "key of the nearest other source",
    "nearest_similarity": "cosine with that",
    "near_copy": "whether it is nearer to another source than 99% of real images are to their nearest",
    "source_copy": "whether it is nearer to its own source than a tenth of the median distance of real images to their nearest",
    "duplicate": "whether another variant of its source is as near",
    "realism": "largest ratio of a real image's neighbourhood radius to its distance (Kynkäänniemi et al., 2019); 1 or more looks real",
    "label": "the class that the judge takes it for; empty without labels",
    "agrees": "whether that is its source's; empty without labels",
}


def score_variants(e: Evidence, real: RealNeighbours, variants: VariantNeighbours, near: float | None, judgement: Judgement | None) -> Any:
    """Return an Arrow table with a row for each variant and the columns of `COLUMNS`."""
    pa = arrow()
    owner = e.owner.tolist()
    threshold = -1.0 if near is None else near
    similarity = F.cosine_similarity(e.variants, e.real[e.owner])
    limit = near_copy_distance(real)
    columns: dict[str, Any] = {
        "key": pa.array([e.keys[i] for i in owner], pa.string() if isinstance(e.keys[0], str) else pa.int64()),
        "variant": pa.array(e.number.numpy(), pa.int32()),
        "similarity": pa.array(similarity.numpy()),
        "distance": pa.array(variants.own.numpy()),
        "place": pa.array(_places(similarity, e.owner).numpy(), pa.int32()),
        "rank": pa.array(variants.rank.numpy(), pa.int32()),
        "nearest_key": pa.array([e.keys[i] for i in variants.other_index.tolist()]),
        "nearest_similarity": pa.array(F.cosine_similarity(e.variants, e.real[variants.other_index]).numpy()),
        "near_copy": _flags(variants.other < (-1.0 if limit is None else limit)),
        "source_copy": _flags(variants.own < threshold),
        "duplicate": _flags(duplicate_distances(e) < threshold),
        "realism": pa.array(variants.realism.numpy()),
    }
    if judgement is None or e.labels is None:
        columns |= {"label": pa.nulls(len(owner), pa.string()), "agrees": pa.nulls(len(owner), pa.bool_())}
    else:
        columns["label"] = pa.array([e.classes[i] for i in judgement.variants.tolist()], pa.string())
        columns["agrees"] = _flags(judgement.variants == e.labels[e.owner])
    return pa.table(columns)


def _places(values: Tensor, owner: Tensor) -> Tensor:
    """Return the place of each value among those of its owner, from 1 for the largest; of equal ones the first is before."""
    order = torch.argsort(values, descending=True, stable=True)
    order = order[torch.argsort(owner[order], stable=True)]
    counts = torch.bincount(owner)
    places = torch.empty(len(values), dtype=torch.int64)
    places[order] = torch.arange(len(values)) - (counts.cumsum(0) - counts)[owner[order]] + 1
    return places


def _flags(values: Tensor) -> Any:
    return arrow().array(values.to(torch.bool).numpy())
