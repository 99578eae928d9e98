"""From features to an audit: every measure, the scores of the variants, and the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gentransforms.audit.evidence import Evidence, Measure
from gentransforms.audit.intervals import Resamples
from gentransforms.audit.judge import Judgement, choose_neighbours, judge_by_neighbours, judge_by_scores
from gentransforms.audit.measures import copies, diversity, drift, faithfulness, likeness
from gentransforms.audit.measures.needs import LABELLED, NO_LABELS
from gentransforms.audit.neighbours import RealNeighbours, VariantNeighbours, neighbours_of_real, neighbours_of_variants
from gentransforms.audit.pairs import Pairs
from gentransforms.audit.pictures import choose_pictures
from gentransforms.audit.result import Audit
from gentransforms.audit.scores import score_variants

__all__ = ["analyse", "measure_all"]

_NEIGHBOURS = 10  # at least, of each image
_REALISM_K = 3  # neighbours, as in Kynkäänniemi et al. (2019)


def analyse(
    e: Evidence,
    pairs: Pairs,
    about: Mapping[str, Any],
    attributes: Mapping[str, tuple[Tensor, Sequence[str]]],
    scores: tuple[str, Tensor | None, Tensor | None] | None,
    seed: int,
) -> Audit:
    """Measure everything.

    Args:
        e: the features.
        pairs: where the images are, for the pictures.
        about: what was audited, and by what.
        attributes: by name, the value of each source (N,) int64 and what the values are called.
        scores: name of a classifier of the user's, and its scores of sources and variants; None without one.
        seed: of the resamples.
    """
    resamples = Resamples(len(e.real), seed=seed)
    k = max([_NEIGHBOURS, *(choose_neighbours(numbers) for numbers, _ in attributes.values())])
    real = neighbours_of_real(e.real, k, e.device)
    radius = real.distances[:, min(_REALISM_K, real.distances.shape[1]) - 1]
    variants = neighbours_of_variants(e, radius, k)
    judgement = _judge(e, real, variants, scores)
    found = measure_all(e, real, variants, judgement, resamples)
    tables = {}
    for name, (numbers, names) in attributes.items():
        if int(numbers.bincount().max()) < 2:  # such a judge would be wrong of every image
            found[f"drift/{name}"] = _alone("value")
            continue
        judged = judge_by_neighbours(numbers, real, variants, choose_neighbours(numbers))
        found[f"drift/{name}"] = drift.measure_shift(name, e, numbers, judged, resamples)
        tables[name] = drift.describe_classes(e, numbers, names, judged, resamples)
    classes, confusion = [], []
    if judgement is not None and e.labels is not None:
        classes = drift.describe_classes(e, e.labels, e.classes, judgement, resamples)
        confusion = drift.confusion(e, e.labels, judgement, len(e.classes))
    own, _ = faithfulness.similarities(e)
    described = {
        **about, "features": e.real.shape[1], "sources": len(e.real), "variants": len(e.variants),
        "holdout": None if e.holdout is None else len(e.holdout), "judge": None if judgement is None else judgement.name,
        "judge_accuracy": None if judgement is None else float(judgement.right.double().mean()),
    }  # fmt: skip
    return Audit(
        measures={name: value for name, value in found.items() if isinstance(value, Measure)},
        omitted={name: value for name, value in found.items() if isinstance(value, str)},
        scores=score_variants(e, real, variants, copies.near_distance(real), judgement),
        classes=classes, confusion=confusion, attributes=tables, about=described,
        pictures=choose_pictures(e, pairs, own, real, variants, judgement),
    )  # fmt: skip


def measure_all(
    e: Evidence, real: RealNeighbours, variants: VariantNeighbours, judgement: Judgement | None, resamples: Resamples
) -> dict[str, Measure | str]:
    """Return every measure of the features and pixels, or why it is left out, in the order of the report."""
    near = copies.near_distance(real)
    found: dict[str, Measure | str] = dict(faithfulness.measure_faithfulness(e, real, variants, resamples))
    if judgement is None:
        found |= dict.fromkeys(LABELLED, NO_LABELS if e.labels is None else _alone("class"))
    elif judgement.classes == 1:
        found |= dict.fromkeys(LABELLED, "there is one class, so nothing to tell apart")
    else:
        assert e.labels is not None
        found["label_agreement"] = faithfulness.label_agreement(e, judgement, resamples)
        if bool((e.labels == e.labels[0]).all()):
            found["label_kappa"] = "the sources are of one class, so that their label says nothing of a variant's"
        else:
            found["label_kappa"] = faithfulness.label_kappa(e, judgement, resamples)
        found["drift/classes"] = drift.measure_shift("classes", e, e.labels, judgement, resamples)
    found |= diversity.measure_diversity(e, real, near, resamples)
    found |= likeness.measure_likeness(e, resamples)
    found |= copies.measure_copies(e, real, variants, near, resamples)
    return found | drift.measure_drift(e, resamples)


def _alone(thing: str) -> str:
    return f"every {thing} has one source: no real image of it is left to vote"


def _judge(
    e: Evidence, real: RealNeighbours, variants: VariantNeighbours, scores: tuple[str, Tensor | None, Tensor | None] | None
) -> Judgement | None:
    if e.labels is None:
        return None
    if scores is None:
        if int(e.labels.bincount().max()) < 2:  # such a judge would be wrong of every image
            return None
        return judge_by_neighbours(e.labels, real, variants, choose_neighbours(e.labels))
    name, of_sources, of_variants = scores
    assert of_sources is not None
    assert of_variants is not None
    return judge_by_scores(e.labels, len(e.classes), of_sources, of_variants, name)
