"""The report: one HTML file that a person reads from top to bottom."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image
from torch import Tensor

from gentransforms.audit.evidence import Measure
from gentransforms.audit.measures.integrity import tell_failed
from gentransforms.audit.pictures import Pictures, Row
from gentransforms.audit.verdicts import give_verdicts
from gentransforms.errors import ConfigError

if TYPE_CHECKING:
    from gentransforms.audit.result import Audit

__all__ = ["find_jinja", "render"]

_PARTS = {
    "integrity": "Integrity",
    "faithfulness": "Faithfulness: is it still the same thing?",
    "diversity": "Diversity: do the variants differ?",
    "likeness": "Likeness: are they like real images, as a set?",
    "copies": "Copies",
    "drift": "Drift and bias: what changed?",
}
# Which part a measure belongs to that could not be taken.
_OMITTED = {
    "label_agreement": "faithfulness", "label_kappa": "faithfulness",
    "variant_distance": "diversity", "vendi": "diversity", "duplicate_variants": "diversity",
    "frechet_distance": "likeness", "kernel_distance": "likeness", "precision": "likeness", "recall": "likeness", "density": "likeness",
    "coverage": "likeness", "real_or_generated": "likeness",
}  # fmt: skip


def render(audit: Audit) -> str:
    """Return the report of an audit as HTML, pictures inside; it loads nothing from elsewhere.

    Raises:
        ConfigError: if jinja2 is not installed.
    """
    jinja2 = find_jinja()
    template = (Path(__file__).parent / "report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page: str = environment.from_string(template).render(
        title=audit.about["bank"] or f"what {audit.about['generator']} makes",
        about={**audit.about, **{name: f"{audit.about[name]:,}" for name in ("sources", "variants", "holdout") if audit.about[name]}},
        failed=tell_failed(audit.about.get("failed", {})),
        verdicts=give_verdicts(audit.measures),
        parts=[_part(name, title, audit) for name, title in _PARTS.items()],
        tables=_tables(audit),
        pictures=_pictures(audit.pictures),
        small=max(audit.about["image_size"]) <= 96,
        histograms=[_histogram(name, *shares) for name, shares in audit.pictures.histograms.items()],
        percent=lambda share: f"{100 * share:.1f}%",
    )
    return page


def find_jinja() -> Any:
    """Return the module jinja2.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ConfigError(f"reports need jinja2 ({error}): install it with pip install 'gentransforms[audit]'") from error
    return jinja2


def _part(name: str, title: str, audit: Audit) -> dict[str, Any]:
    figures = [_figure(key, measure) for key, measure in audit.measures.items() if measure.part == name]
    omitted = [{"name": key, "reason": reason} for key, reason in audit.omitted.items() if _part_of_omitted(key) == name]
    return {"title": title, "figures": figures, "omitted": omitted}


def _part_of_omitted(name: str) -> str:
    return "drift" if name.startswith("drift/") else _OMITTED.get(name, "copies")


def _figure(name: str, measure: Measure) -> dict[str, Any]:
    interval = measure.interval
    return {
        "name": name,
        "value": _number(measure.value),
        "interval": None if interval is None else f"{_number(interval[0])} to {_number(interval[1])}",
        "reference": None if measure.reference is None else _number(measure.reference),
        "meaning": f"{measure.meaning[0].upper()}{measure.meaning[1:]}.",
        "bar": None if interval is None else _bar(measure.value, interval, measure.reference),
    }


def _bar(value: float, interval: tuple[float, float], reference: float | None) -> dict[str, Any]:
    """Return places on a line of 400 units that holds 0, the value, its interval and the reference."""
    points = [0.0, value, *interval, *([] if reference is None else [reference])]
    low, high = min(points), max(points)
    width = (high - low) or 1.0

    def place(x: float) -> float:
        return round(6 + 388 * (x - low) / width, 1)

    left, right = place(interval[0]), place(interval[1])
    return {
        "value": place(value),
        "low": left,
        "width": round(max(1.0, right - left), 1),
        "reference": None if reference is None else place(reference),
        "zero": place(0.0) if low < 0 < high else None,
    }


def _tables(audit: Audit) -> list[dict[str, Any]]:
    tables = [{"title": f"Attribute {name}", "what": name, "rows": _sorted(rows)} for name, rows in audit.attributes.items()]
    if audit.classes:
        tables.insert(0, {"title": "Classes, the worst first", "what": "class", "rows": _sorted(audit.classes)})
    return tables


def _sorted(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return sorted(({"reason": None, **row} for row in rows), key=lambda row: row.get("agreement", 2))


def _pictures(pictures: Pictures) -> list[dict[str, Any]]:
    groups: list[tuple[str, Sequence[Row], str]] = [
        ("Nearest to their source", pictures.best, ""),
        ("Typical", pictures.typical, ""),
        ("Farthest from their source", pictures.worst, ""),
        ("Near copies of another real image: source, variant, the image it repeats", pictures.near_copies, "There are none."),
        (f"The class kept least often: {pictures.worst_class_name}", pictures.worst_class, ""),
    ]
    return [
        {"title": title, "none": none, "rows": [{"caption": row.caption, "images": [_png(image) for image in row.images]} for row in rows]}
        for title, rows, none in groups
    ]


def _png(image: Tensor) -> str:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _histogram(name: str, real: Sequence[float], made: Sequence[float]) -> dict[str, Any]:
    top, width = max(*real, *made), 200 / len(real)
    bars = [
        {"x": round(i * width, 1), "y": round(78 - 74 * share / top, 1), "width": round(width - 1, 1), "height": round(74 * share / top, 1)}
        for i, share in enumerate(real)
    ]
    line = " ".join(f"{(i + 0.5) * width:.1f},{78 - 74 * share / top:.1f}" for i, share in enumerate(made))
    return {"name": name, "bars": bars, "line": line}


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.3f}" if 0.01 <= abs(value) < 100 else f"{value:.3g}"
