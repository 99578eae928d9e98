"""Audit a bank, or a generator without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentransforms.audit.collect import Collected, collect_features, collect_holdout
from gentransforms.audit.encoders import Encoder, load_encoder
from gentransforms.audit.evidence import Evidence, Measure
from gentransforms.audit.intervals import Resamples
from gentransforms.audit.judge import Judgement, choose_neighbours, judge_by_neighbours
from gentransforms.audit.labels import find_labels
from gentransforms.audit.measures import copies, diversity, drift, faithfulness, likeness
from gentransforms.audit.neighbours import RealNeighbours, VariantNeighbours, neighbours_of_real, neighbours_of_variants
from gentransforms.audit.pairs import BankPairs, GeneratorPairs, Pairs
from gentransforms.audit.pictures import choose_pictures
from gentransforms.audit.progress import show_progress
from gentransforms.audit.result import Audit
from gentransforms.audit.scores import score_variants
from gentransforms.bank.reader import Bank
from gentransforms.errors import ConfigError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.registry import load_generator
from gentransforms.paths import local_path
from gentransforms.sources import ImageSource, open_source
from gentransforms.surroundings import isolate

__all__ = ["audit_bank", "audit_generator"]

_REALISM_K = 3  # neighbours, as in Kynkäänniemi et al. (2019)


@isolate()
def audit_bank(
    bank: Bank | str | Path,
    source: Any,
    *,
    encoder: Any = "auto",
    labels: Any = None,
    holdout: Any = None,
    limit: int | None = None,
    attributes: Mapping[str, Any] | None = None,
    classifier: Callable[[Tensor], Tensor] | None = None,
    cache: str | Path | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Audit:
    """Measure the variants of a bank against the sources they were made of.

    Args:
        bank: an open `Bank`, or the path of one.
        source: what the bank was made of: whatever `generate_bank` takes.
        encoder: what images are compared by: ``"auto"`` (DINOv2-small if it is in the cache of the Hub, never the network, else
            the generator's own), ``"generator"`` (its `instance_feature`, which flatters it), ``"torchvision:resnet50"``,
            ``"timm:NAME"``, a transformers vision model by repository or folder, or a module or function from
            (B, 3, H, W) float32 in [0, 1] to (B, D).
        labels: ``"folders"`` for class folders, the name of one of the source's inputs, a column of a source that is given by
            name, or a list with one label for each image of the source; None for none.
        holdout: real images that the generator was not trained on, at least as many as there are sources.
        limit: only so many sources, evenly spaced.
        attributes: more labels by name, such as ``{"age": [...]}``, whose frequencies before and after are compared.
        classifier: judges the class instead of the nearest real images: from (B, 3, H, W) float32 in [0, 1] to (B, classes)
            scores, in the order of the sorted labels.
        cache: folder for the features, so that a killed audit goes on; None for none.
        device: of the encoder; CUDA where there is one, by default.
        seed: of the resamples behind the intervals.
        progress: show progress on stderr, on a terminal.

    Returns:
        the figures, a score for each variant, and the pictures of the report.

    Raises:
        ConfigError: if an argument is not as described.
        BankError: if the source is not the bank's.
        GeneratorError: if features are not finite, or of another shape than (B, D).

    Example:
        >>> import tempfile, torch
        >>> import gentransforms as gt
        >>> from gentransforms.testing import FakeGenerator
        >>> photos = [torch.rand(3, 16, 16) for _ in range(20)]
        >>> import gentransforms as gt
        >>> folder = tempfile.TemporaryDirectory()
        >>> _ = gt.generate_bank(photos, folder.name, FakeGenerator(), variants=2, progress=False)
        >>> audit = gt.audit_bank(folder.name, photos, encoder=lambda images: images.flatten(1), progress=False)
        >>> audit.measures["rows"].value, audit.failed(["missing > 0"])
        (40, [])
        >>> folder.cleanup()
    """
    opened = bank if isinstance(bank, Bank) else Bank.open(bank)
    source, labels = _open_labelled(source, labels)
    pairs = BankPairs(opened, source, limit)
    chosen = load_encoder(encoder, lambda: _load_generator(opened), device)
    about = {"bank": str(opened.path), "generator": opened.generator_name, "rows": len(opened)}
    audit = _audit(pairs, chosen, about, labels, holdout, attributes, classifier, cache, seed, progress)
    return _with_integrity(audit, opened)


@isolate()
def audit_generator(
    generator: ImageGenerator | str | Path,
    images: Any,
    *,
    variants: int = 4,
    base_seed: int = 0,
    encoder: Any = "auto",
    labels: Any = None,
    holdout: Any = None,
    limit: int | None = None,
    attributes: Mapping[str, Any] | None = None,
    classifier: Callable[[Tensor], Tensor] | None = None,
    cache: str | Path | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Audit:
    """Measure what a generator makes of some images, in memory.

    Args:
        generator: or its name, folder or repository.
        images: a tensor (N, 3, H, W), or whatever `generate_bank` takes.
        variants: of each image.
        base_seed: of `gentransforms.derive_seeds`, as for a bank.
        encoder, labels, holdout, limit, attributes, classifier, cache, device, seed, progress: as for `audit_bank`; variants
            are not cached.

    Raises:
        ConfigError, GeneratorError: as `audit_bank`.

    Example:
        >>> import torch
        >>> import gentransforms as gt
        >>> from gentransforms.testing import FakeGenerator
        >>> photos = torch.rand(20, 3, 16, 16)
        >>> import gentransforms as gt
        >>> audit = gt.audit_generator(FakeGenerator(), photos, encoder=lambda images: images.flatten(1), progress=False)
        >>> len(audit.scores)
        80
    """
    loaded = generator if isinstance(generator, ImageGenerator) else load_generator(generator)
    source, labels = _open_labelled(images, labels)
    pairs = GeneratorPairs(loaded, source, variants, base_seed, limit)
    chosen = load_encoder(encoder, lambda: loaded, device)
    about = {"bank": None, "generator": type(loaded).__name__, "fingerprint": loaded.fingerprint()}
    return _audit(pairs, chosen, about, labels, holdout, attributes, classifier, cache, seed, progress)


def _audit(
    pairs: Pairs,
    encoder: Encoder,
    about: Mapping[str, Any],
    labels: Any,
    holdout: Any,
    attributes: Mapping[str, Any] | None,
    classifier: Callable[[Tensor], Tensor] | None,
    cache: str | Path | None,
    seed: int,
    progress: bool,
) -> Audit:
    folder = None if cache is None else local_path(cache, "cache")
    if classifier is not None and labels is None:
        raise ConfigError("classifier: judges labels, and there are none: give labels=")
    with show_progress(progress) as on_progress:
        collected = collect_features(pairs, encoder, folder, on_progress)
        evidence, held_out = _gather(pairs, encoder, collected, labels, holdout, folder)
    resamples = Resamples(len(evidence.real), seed=seed)
    given = {name: find_labels(f"attributes[{name!r}]", values, pairs, collected.inputs) for name, values in (attributes or {}).items()}
    k = max([10, *(choose_neighbours(numbers) for numbers, _ in given.values())])
    real = neighbours_of_real(evidence.real, k)
    radius = real.distances[:, min(_REALISM_K, real.distances.shape[1]) - 1]
    variants = neighbours_of_variants(evidence, radius, k)
    judgement = None
    if evidence.labels is not None:
        judgement = _judge(pairs, evidence, real, variants, classifier, encoder.device)
    found = _measure(evidence, real, variants, judgement, resamples)
    tables = {}
    for name, (numbers, names) in given.items():
        judged = judge_by_neighbours(numbers, real, variants, choose_neighbours(numbers))
        found[f"drift/{name}"] = drift.measure_shift(name, evidence, numbers, judged, resamples)
        tables[name] = drift.describe_classes(evidence, numbers, names, judged, resamples)
    classes, confusion = [], []
    if judgement is not None and evidence.labels is not None:
        classes = drift.describe_classes(evidence, evidence.labels, evidence.classes, judgement, resamples)
        confusion = drift.confusion(evidence, evidence.labels, judgement, len(evidence.classes))
    own, _ = faithfulness.similarities(evidence)
    described = {
        **about, "encoder": encoder.name, "own_encoder": encoder.own, "features": evidence.real.shape[1], "sources": len(evidence.real),
        "variants": len(evidence.variants), "image_size": list(pairs.size), "holdout": held_out, "seed": seed,
        "judge": None if judgement is None else judgement.name,
        "judge_accuracy": None if judgement is None else float(judgement.right.double().mean()),
    }  # fmt: skip
    return Audit(
        measures={name: value for name, value in found.items() if isinstance(value, Measure)},
        omitted={name: value for name, value in found.items() if isinstance(value, str)},
        scores=score_variants(evidence, real, variants, copies.near_distance(real), judgement),
        classes=classes, confusion=confusion, attributes=tables, about=described,
        pictures=choose_pictures(evidence, pairs, own, real, variants, judgement),
    )  # fmt: skip


def _gather(
    pairs: Pairs, encoder: Encoder, collected: Collected, labels: Any, holdout: Any, folder: Path | None
) -> tuple[Evidence, int | None]:
    numbers, names = (None, []) if labels is None else find_labels("labels", labels, pairs, collected.inputs)
    held_out = None if holdout is None else collect_holdout(open_source(holdout), len(collected.real), pairs, encoder, folder)
    evidence = Evidence(
        keys=pairs.keys, real=collected.real, variants=collected.variants, owner=collected.owner, number=collected.number,
        labels=numbers, classes=names, holdout=held_out, statistics=collected.statistics, variant_statistics=collected.variant_statistics,
    )  # fmt: skip
    return evidence, None if held_out is None else len(held_out)


def _measure(
    e: Evidence, real: RealNeighbours, variants: VariantNeighbours, judgement: Judgement | None, resamples: Resamples
) -> dict[str, Measure | str]:
    near = copies.near_distance(real)
    found: dict[str, Measure | str] = dict(faithfulness.measure_faithfulness(e, real, variants, resamples))
    if judgement is None:
        found["label_agreement"] = found["drift/classes"] = "no labels were given"
    else:
        assert e.labels is not None
        found["label_agreement"] = faithfulness.label_agreement(e, judgement, resamples)
        found["drift/classes"] = drift.measure_shift("classes", e, e.labels, judgement, resamples)
    found |= diversity.measure_diversity(e, real, near, resamples)
    found |= likeness.measure_likeness(e, resamples)
    found |= copies.measure_copies(e, real, variants, near, resamples)
    return found | drift.measure_drift(e, resamples)


def _judge(
    pairs: Pairs,
    e: Evidence,
    real: RealNeighbours,
    variants: VariantNeighbours,
    classifier: Callable[[Tensor], Tensor] | None,
    device: torch.device,
) -> Judgement:
    assert e.labels is not None
    if classifier is None:
        return judge_by_neighbours(e.labels, real, variants, choose_neighbours(e.labels))
    scores = Encoder("classifier", classifier, device)
    sources, made = [], []
    for start in range(0, len(e.real), 256):
        stop = min(start + 256, len(e.real))
        sources.append(scores(pairs.read_sources(start, stop)[0]))
        images = pairs.read_variants(start, stop)[0]
        if len(images):
            made.append(torch.cat([scores(batch) for batch in torch.split(images, 256)]))
    if sources[0].shape[1] != len(e.classes):
        raise ConfigError(f"classifier: returned {sources[0].shape[1]} scores for an image and there are {len(e.classes)} classes")
    judged = torch.cat(sources).argmax(dim=1)
    return Judgement(torch.cat(made).argmax(dim=1), judged, judged == e.labels, getattr(classifier, "__name__", type(classifier).__name__))


def _open_labelled(source: Any, labels: Any) -> tuple[ImageSource, Any]:
    """Open a source; a column that is named as labels of a source given by name is read as its input ``labels``."""
    if isinstance(source, Tensor):
        source = list(source)
    if isinstance(source, ImageSource) or not isinstance(labels, str) or labels in ("folders", "labels"):
        return open_source(source), labels
    return open_source(source, columns={"labels": labels}), "labels"


def _load_generator(bank: Bank) -> ImageGenerator | None:
    """Load the generator that made a bank, if its manifest says where it is and it is still the same."""
    described = bank.manifest["generator"]
    name = bank.manifest["info"].get("generator_name")
    if not name:
        return None
    generator = load_generator(name)
    if generator.fingerprint() != described.get("fingerprint"):
        raise ConfigError(
            f'encoder="generator": {name!r} is no longer the generator that made {bank.path} (its fingerprint differs): '
            'give another encoder, such as "torchvision:resnet50", or the generator\'s own as a function'
        )
    return generator


def _with_integrity(audit: Audit, bank: Bank) -> Audit:
    import dataclasses

    expected = (len(bank.keys) + len({entry["key"] for entry in bank.rejected} - set(bank.keys))) * bank.variants
    missing = expected - len(bank) - len(bank.rejected)
    part = "integrity"
    figures = {
        "rows": Measure(part, len(bank), None, expected, "images in the bank; the reference is as many as its sources were to have"),
        "missing": Measure(part, missing, None, 0, "images that are neither there nor recorded as rejected; good is 0"),
        "rejected": Measure(part, len(bank.rejected), None, 0, "variants of which every attempt was refused, recorded by the bank"),
        "failed": Measure(part, len(bank.failed), None, 0, "sources that could not be read when the bank was made, recorded by it"),
        "unpaired": Measure(part, 0, None, 0, "variants without a source; an audit with any is refused"),
    }
    return dataclasses.replace(audit, measures={**figures, **audit.measures})
