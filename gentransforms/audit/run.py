"""Audit a bank, or a generator without one."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentransforms.audit.analyse import analyse
from gentransforms.audit.collect import collect_features, collect_holdout, make_probe
from gentransforms.audit.encoders import Encoder, load_encoder
from gentransforms.audit.evidence import Evidence
from gentransforms.audit.judge import check_scores
from gentransforms.audit.labels import find_labels, list_labels, names_column, open_labelled
from gentransforms.audit.measures.integrity import describe_failed, measure_integrity, tell_failed
from gentransforms.audit.measures.needs import check_counts
from gentransforms.audit.options import AuditOptions, read_options
from gentransforms.audit.pairs import BankPairs, GeneratorPairs, Pairs
from gentransforms.audit.progress import show_progress
from gentransforms.audit.result import Audit
from gentransforms.bank.format.manifest import hash_manifest
from gentransforms.bank.reader import Bank
from gentransforms.bank.scores import mark_scores
from gentransforms.errors import ConfigError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.expected import check_is_generator
from gentransforms.generators.registry import load_generator
from gentransforms.paths import local_path
from gentransforms.sources.arrow import arrow
from gentransforms.surroundings import isolate

__all__ = ["audit_bank", "audit_generator"]


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
    device: torch.device | str | int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Audit:
    """Measure the variants of a bank against the sources they were made of.

    Args:
        bank: an open `Bank`, or the path of one.
        source: what the bank was made of: whatever `generate_bank` takes.
        encoder: what images are compared by: ``"auto"`` (DINOv2-small if the Hub's cache has it, never the network; otherwise
            the generator's own), ``"generator"`` (its `instance_feature`, which flatters it), ``"torchvision:resnet50"``,
            ``"timm:NAME"``, a transformers vision model by repository or folder, or a module or function from
            (B, 3, H, W) float32 in [0, 1] to (B, D).
        labels: ``"folders"`` for class folders, the name of a column or of one of the source's inputs, or a list with one
            label (a whole number or text) for each image of the source; None for none.
        holdout: real images that the generator was not trained on, at least as many as there are sources.
        limit: audit only this many sources, 2 or more, evenly spaced.
        attributes: more labels by name, such as ``{"age": "age_column"}``, whose frequencies before and after are compared.
        classifier: judges the class instead of the nearest real images: from (B, 3, H, W) float32 in [0, 1] to (B, classes)
            scores: one for each class of the whole source, in the order of the sorted labels, or of all classes that the source
            names.
        cache: folder for the features, from which an interrupted audit is resumed; None for none.
        device: where the encoder runs and distances are computed; by default CUDA where there is one, and a module's own
            device where the encoder is a module.
        seed: of the resamples behind the intervals.
        progress: show progress on stderr, if that is a terminal.

    Returns:
        The figures, a row of scores for each variant, and the pictures of the report.

    Raises:
        ConfigError: if an argument is not as described.
        BankError: if the bank was made of another source.
        SourceError: if no image of the source, or of the holdout, can be read. Single ones that cannot be read are left out, with a
            warning, and counted in ``measures["failed"]``; ``about["failed"]`` has their keys.
        GeneratorError: if features are not finite, or of another shape than (B, D).

    Example:
        >>> import tempfile, torch
        >>> import gentransforms as gt
        >>> from gentransforms.testing import FakeGenerator
        >>> photos = [torch.rand(3, 16, 16) for _ in range(20)]
        >>> folder = tempfile.TemporaryDirectory()
        >>> _ = gt.generate_bank(photos, folder.name, FakeGenerator(), variants=2, progress=False)
        >>> audit = gt.audit_bank(folder.name, photos, encoder=lambda images: images.flatten(1), progress=False)
        >>> audit.measures["rows"].value, audit.failed(["missing > 0"])
        (40, [])
        >>> folder.cleanup()
    """
    options = AuditOptions(encoder, labels, holdout, limit, attributes, classifier, cache, device, seed, progress)
    opened = bank if isinstance(bank, Bank) else Bank.open(bank)
    pairs = BankPairs(opened, open_labelled(source, options.given), limit)
    about = {
        "bank": str(opened.path), "bank_digest": hash_manifest(opened.manifest), "generator": opened.generator_name,
        "fingerprint": opened.manifest["generator"].get("fingerprint"),
        "rows": len(opened), "selection": None if opened.selection is None else opened.selection.where,
    }  # fmt: skip
    audit = _audit(pairs, lambda: _load_generator(opened, offline=encoder == "auto"), about, options)
    scores = mark_scores(audit.scores, hash_manifest(opened.manifest))
    failed = audit.about["failed"]["sources"]["count"]
    return dataclasses.replace(audit, measures={**measure_integrity(failed, opened), **audit.measures}, scores=scores)


@isolate()
def audit_generator(generator: ImageGenerator | str | Path, images: Any, *, variants: int = 4, base_seed: int = 0, **options: Any) -> Audit:
    """Measure what a generator makes of some images, in memory.

    Args:
        generator: or its name, folder or repository.
        images: a tensor (N, 3, H, W), or whatever `generate_bank` takes.
        variants: number of variants of each image.
        base_seed: of `gentransforms.derive_seeds`, as for a bank.
        options: those of `audit_bank`: ``encoder``, ``labels``, ``holdout``, ``limit``, ``attributes``, ``classifier``,
            ``cache`` (of the holdout alone: variants are made again), ``device``, ``seed`` and ``progress``.

    Raises:
        ConfigError, SourceError, GeneratorError: as `audit_bank`.

    Example:
        >>> import torch
        >>> import gentransforms as gt
        >>> from gentransforms.testing import FakeGenerator
        >>> photos = torch.rand(20, 3, 16, 16)
        >>> audit = gt.audit_generator(FakeGenerator(), photos, encoder=lambda images: images.flatten(1), progress=False)
        >>> len(audit.scores)
        80
    """
    chosen = read_options(options)
    check_is_generator(generator, or_name=True)
    loaded = generator if isinstance(generator, ImageGenerator) else load_generator(generator)
    pairs = GeneratorPairs(loaded, open_labelled(images, chosen.given, loaded.inputs), variants, base_seed, chosen.limit)
    about = {"bank": None, "selection": None, "generator": type(loaded).__name__, "fingerprint": loaded.fingerprint()}
    audit = _audit(pairs, lambda: loaded, about, chosen)
    failed = audit.about["failed"]["sources"]["count"]
    return dataclasses.replace(audit, measures={**measure_integrity(failed), **audit.measures})


def _audit(pairs: Pairs, generator: Callable[[], ImageGenerator | None], about: Mapping[str, Any], options: AuditOptions) -> Audit:
    arrow()  # of the scores, which come last
    holdout = None if options.holdout is None else open_labelled(options.holdout, {})
    check_counts(len(pairs.places), None if holdout is None else len(holdout))
    encoder = load_encoder(options.encoder, generator, options.device)
    classifier = None if options.classifier is None else Encoder(_name(options.classifier), options.classifier, encoder.device)
    folder = None if options.cache is None else local_path(options.cache, "cache")
    with show_progress(options.progress) as progress:
        columns = {name: given for name, given in options.given.items() if names_column(given)}
        listed = {
            name: given if isinstance(given, str) else list_labels(name, given, len(pairs.source))
            for name, given in options.given.items()
            if name not in columns
        }
        judged: dict[str, int] = {}  # how many scores; attributes are judged by neighbours alone
        if classifier is not None and "labels" in listed:
            judged["labels"] = classifier(make_probe(pairs.size)).shape[1]
        found = {name: find_labels(name, given, pairs, (), judged.get(name)) for name, given in listed.items()}
        if classifier is not None and "labels" in listed:
            check_scores(classifier.name, judged["labels"], len(found["labels"][1]))
        collected = collect_features(pairs, encoder, folder, progress, classifier)
        tried = len(pairs.places)
        if collected.failed:
            pairs = pairs.without(collected.failed)
            found = {name: find_labels(name, given, pairs, (), judged.get(name)) for name, given in listed.items()}
        judged = {} if collected.scores is None else {"labels": collected.scores.shape[1]}
        found |= {name: find_labels(name, given, pairs, collected.inputs, judged.get(name)) for name, given in columns.items()}
        labels, names = found.pop("labels", (None, []))
        failed: dict[str, Any] = {"sources": describe_failed(pairs.source, collected.failed, tried), "holdout": None}
        held_out = None
        if holdout is not None:
            held_out, lost = collect_holdout(holdout, len(collected.real), pairs, encoder, folder)
            failed["holdout"] = describe_failed(holdout, lost, len(held_out) + len(lost))
        if told := tell_failed(failed):
            warnings.warn("; ".join(told), stacklevel=4)  # in the call of the user
        evidence = Evidence(
            keys=pairs.keys, real=collected.real, variants=collected.variants, owner=collected.owner, number=collected.number,
            labels=labels, classes=names, statistics=collected.statistics, variant_statistics=collected.variant_statistics,
            holdout=held_out, device=encoder.device,
        )  # fmt: skip
        attributes = {name: found[f"attributes[{name!r}]"] for name in options.attributes or {}}
        scores = None if classifier is None else (classifier.name, collected.scores, collected.variant_scores)
        described = {**about, "encoder": encoder.name, "own_encoder": encoder.own, "image_size": list(pairs.size), "seed": options.seed}
        described["failed"] = failed
        return analyse(evidence, pairs, described, attributes, scores, options.seed)


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _load_generator(bank: Bank, offline: bool) -> ImageGenerator | None:
    """Load the generator that made a bank, if its manifest says where it is and it is still the same."""
    described = bank.manifest["generator"]
    name = bank.manifest["info"].get("generator_name")
    if not name:
        return None
    options: dict[str, Any] = {"local_files_only": True} if offline else {}
    generator = load_generator(name, **options)
    changed = {key: value for key, value in described.get("config", {}).items() if generator.config.get(key) != value}
    if changed:  # options that it was loaded with, such as truncation
        with contextlib.suppress(ConfigError):
            generator = load_generator(name, **options, **changed)
    if generator.fingerprint() != described.get("fingerprint"):
        raise ConfigError(
            f'encoder="generator": {name!r} is no longer the generator that made {bank.path} (its fingerprint differs): '
            'give another encoder, such as "torchvision:resnet50", or the generator\'s own as a function'
        )
    return generator
