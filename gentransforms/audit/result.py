"""What an audit found: figures, scores, pictures; saved, and held against gates."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gentransforms.audit.evidence import Measure
from gentransforms.audit.measures.integrity import tell_failed
from gentransforms.audit.measures.needs import Given
from gentransforms.audit.pictures import Pictures
from gentransforms.audit.pixels import STATISTICS
from gentransforms.bank.selection import parse_comparison
from gentransforms.bank.share.card import AUDIT_FILE, AUDIT_FORMAT, AUDIT_VERSION
from gentransforms.errors import ConfigError
from gentransforms.paths import local_path

__all__ = ["Audit"]

NAMES = (
    "rows", "missing", "rejected", "failed", "unpaired", "source_similarity", "other_similarity", "source_retrieval",
    "mean_reciprocal_rank", "label_agreement", "label_kappa", "variant_distance", "vendi", "duplicate_variants", "frechet_distance",
    "kernel_distance", "precision", "recall", "density", "coverage", "real_or_generated", "source_copies", "near_copies",
    "nearest_ratio", "authpct", "training_share", "training_share_others", "c_t", "drift/classes",
    *(f"drift/{name}" for name in STATISTICS),
)  # fmt: skip


@dataclass(frozen=True)
class Audit:
    """What was measured of generated images against their sources.

    Attributes:
        measures: by name, each a `Measure` with ``value``, ``interval``, ``reference``, ``meaning`` and ``part``.
        omitted: measures that could not be taken, and why.
        scores: an Arrow table with a row for each variant; see `gentransforms.audit.scores.COLUMNS`.
        classes: a dict for each class: ``name``, ``sources``, ``agreement`` with ``interval`` and ``reference`` (the judge's
            accuracy on real images of the class), and its frequency ``before`` and ``after``. Empty without labels.
        confusion: how many variants of sources of class i (row) the judge takes for class j (column).
        attributes: the same as `classes` for each attribute.
        about: what was audited, and by what: bank, encoder, judge, numbers of images.
        pictures: what the report shows.
    """

    measures: Mapping[str, Measure]
    omitted: Mapping[str, str]
    scores: Any
    classes: Sequence[Mapping[str, Any]]
    confusion: Sequence[Sequence[int]]
    attributes: Mapping[str, Sequence[Mapping[str, Any]]]
    about: Mapping[str, Any]
    pictures: Pictures = field(repr=False)

    @staticmethod
    def check_gates(gates: Sequence[str], given: Given | None = None) -> None:
        """Raise unless each gate can be asked of an audit, before the work is done.

        Args:
            gates: conditions such as ``"near_copies > 0.01"``.
            given: what is known of the audit; None if nothing is.

        Raises:
            ConfigError: if a gate is no comparison, or names a measure that no audit has, or not this one.
        """
        for gate in gates:
            name = parse_comparison(gate)[0]
            if given is None and name.startswith("drift/"):  # attributes have measures of their own
                continue
            names = (*NAMES, *(f"drift/{attribute}" for attribute in (given.attributes if given else ())))
            if name not in names:
                raise ConfigError(f"{gate!r}: no measure {name!r}: expected one of {', '.join(names)}")
            reason = None if given is None else given.why_not(name)
            if reason is not None:
                raise ConfigError(f"{gate!r}: {name} cannot be measured: {reason}")

    def failed(self, gates: Sequence[str]) -> list[str]:
        """Return those of the gates that hold, each a condition that must not: ``"near_copies > 0.01"``.

        Raises:
            ConfigError: if a gate is no comparison, or names a measure that is unknown or was left out.
        """
        found = []
        for gate in gates:
            name, compare, number = parse_comparison(gate)
            if name in self.omitted:
                raise ConfigError(f"{gate!r}: {name} was not measured: {self.omitted[name]}")
            if name not in self.measures:
                raise ConfigError(f"{gate!r}: no measure {name!r}: expected one of {', '.join(self.measures)}")
            if compare(self.measures[name].value, number):
                found.append(gate)
        return found

    def save(self, folder: str | Path) -> Path:
        """Write ``report.html``, ``audit.json`` and ``scores.parquet`` into `folder`, made if absent; return the report's path."""
        import pyarrow.parquet as pq

        from gentransforms.audit.report import render

        path = local_path(folder, "folder")
        path.mkdir(parents=True, exist_ok=True)
        (path / AUDIT_FILE).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")
        pq.write_table(self.scores, path / "scores.parquet")
        (path / "report.html").write_text(render(self), encoding="utf-8")
        return path / "report.html"

    def to_dict(self) -> dict[str, Any]:
        """Return everything but scores and pictures as JSON-able values."""
        return {
            "format": AUDIT_FORMAT,
            "format_version": AUDIT_VERSION,
            "about": dict(self.about),
            "measures": {name: dataclasses.asdict(measure) for name, measure in self.measures.items()},
            "omitted": dict(self.omitted),
            "classes": [dict(row) for row in self.classes],
            "confusion": [list(row) for row in self.confusion],
            "attributes": {name: [dict(row) for row in rows] for name, rows in self.attributes.items()},
        }

    def __str__(self) -> str:
        own = ", the generator's own, which flatters it" if self.about.get("own_encoder") else ""
        lines = [f"compared by the encoder {self.about['encoder']}{own}"] if "encoder" in self.about else []
        lines += tell_failed(self.about.get("failed", {}))
        width = max(len(name) for name in self.measures)
        for name, measure in self.measures.items():
            low_high = "" if measure.interval is None else f"  [{measure.interval[0]:.4g}, {measure.interval[1]:.4g}]"
            reference = "" if measure.reference is None else f"  reference {measure.reference:.4g}"
            lines.append(f"{name:{width}}  {measure.value:.4g}{low_high}{reference}")
        return "\n".join([*lines, *(f"{name}: not measured: {reason}" for name, reason in self.omitted.items())])
