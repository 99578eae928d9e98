"""How good must a generator be? Draw the gain of each arm over the label agreement of its second views, and write a table.

    python examples/ssl/gain_over_agreement.py runs/cifar10-fair --arm generated=runs/agreement/generated \
        --arm neighbours=runs/agreement/neighbours --arm oracle=runs/agreement/oracle --out docs/assets/gain-over-agreement.png

The folder is the OUT of reproduce.py, whose results.json has the accuracies. For each arm, NAME=FOLDER is the OUT of
examples/icgan/evaluate.py, whose evaluation.json has the label agreement of its generator or bank, on the same test images for all
arms. Gains are paired by seed, with 95% intervals (Student's t); those of agreements are over test images. Where an arm has one seed
in common with the baseline, its intervals are over test images too, and it is drawn hollow. Writes the figure OUT, and
gain-over-agreement.md, a table of the same, into the runs' folder.

The classifier was trained on the real images that neighbours and oracle show, and knows their labels better than it would those of
new images. From these points a dotted line leads to the agreement times the classifier's accuracy on test images: about what one
that had not seen them would read.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from learning_curves import TITLES
from matplotlib.figure import Figure
from probes import mean_accuracy, mean_gain

# Arms whose second views are no generator's; all others are drawn as generated.
REAL = {"neighbours": ("real images, the nearest", "s", "C1"), "oracle": ("real images of the class: a ceiling, by labels", "*", "C2")}
GENERATED = ("generated images", "o", "C0")
MEASURES = {"linear": "linear accuracy", "knn": "k-NN accuracy"}


@dataclass(frozen=True)
class Point:
    """An arm: accuracy, gain and agreement in percent, each with half its 95% interval."""

    arm: str
    seeds: int
    accuracy: tuple[float, float]
    gain: tuple[float, float]
    agreement: tuple[float, float]
    diversity: float | None
    unseen: float | None  # of real images: about what a classifier that was not trained on them would read, in percent


def read_runs(out: Path, method: str) -> list[dict[str, Any]]:
    """Return the runs of a method in the results.json that reproduce.py wrote."""
    runs = _read_json(out / "results.json", "the OUT of reproduce.py")
    own = [run for run in runs if run["method"] == method]
    if not own:
        raise SystemExit(f"{out / 'results.json'} has no run of --method {method}, only of {sorted({run['method'] for run in runs})}")
    return own


def read_evaluations(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the evaluation.json of each ``NAME=FOLDER``; exit unless all were measured on the same images by the same classifier."""
    found: dict[str, dict[str, Any]] = {}
    for item in arms:
        name, equals, folder = item.partition("=")
        if not (name and equals and folder):
            raise SystemExit(f"--arm {item}: expected NAME=FOLDER")
        if name in found:
            raise SystemExit(f"--arm {name} is given twice: expected one folder for each arm")
        found[name] = _read_json(Path(folder) / "evaluation.json", "the OUT of examples/icgan/evaluate.py")
        absent = [key for key in ("label_agreement", "label_agreement_interval", "images", "classifier_accuracy") if key not in found[name]]
        if absent:
            raise SystemExit(f"{Path(folder) / 'evaluation.json'} has no {absent[0]}: write it again with examples/icgan/evaluate.py")
    first, *others = found.items()
    for name, values in others:
        # The accuracy on the same real images; another processor may round a decision otherwise.
        near = abs(values["classifier_accuracy"] - first[1]["classifier_accuracy"]) < 0.002
        if not near or values["images"] != first[1]["images"]:
            raise SystemExit(
                f"{first[0]} and {name} were evaluated differently (images {first[1]['images']} and {values['images']}, accuracy of the "
                f"classifier {first[1]['classifier_accuracy']} and {values['classifier_accuracy']}): expected the same test images, "
                "--variants and --judge"
            )
    return found


def make_points(runs: list[dict[str, Any]], evaluations: dict[str, dict[str, Any]], measure: str, over: str) -> list[Point]:
    """Return a point for each evaluated arm, by agreement; exit if one cannot be compared with the arm `over`."""
    arms: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        before = arms.setdefault(run["generator"], {}).setdefault(run["seed"], run)
        if before is not run:
            raise SystemExit(
                f"results.json has two runs of {run['generator']} with seed {run['seed']} ({before.get('folder')} and "
                f"{run.get('folder')}): expected one; move the other's folder away and run reproduce.py again"
            )
    if over not in arms:
        raise SystemExit(f"--over {over}: there is no such arm, only {', '.join(arms)}")
    points = []
    for name, values in evaluations.items():
        if name not in arms or name == over:
            expected = ", ".join(arm for arm in arms if arm != over) or "nothing"
            raise SystemExit(f"--arm {name}: expected an arm with runs beside {over}, there is {expected}")
        seeds = sorted(arms[name].keys() & arms[over].keys())
        if not seeds:
            raise SystemExit(f"{name} has no seed in common with {over}: gains are paired by seed")
        own, base = ([arms[arm][seed] for seed in seeds] for arm in (name, over))
        measured = values.get("fingerprint")
        made = {run.get(which) for run in own for which in ("bank_generator", "generator_fingerprint")} - {None, "unknown", measured}
        if measured is not None and made:
            raise SystemExit(f"--arm {name}: its runs had images of the generator {made.pop()}, and {measured} was evaluated")
        steps = {run["training"]["steps"] for run in (*own, *base)}
        if len(steps) > 1:
            raise SystemExit(f"{name} and {over} were trained for different numbers of steps {sorted(steps)}: expected the same")
        if len(seeds) == 1:
            print(f"{name} has one seed in common with {over}: the intervals of accuracy and gain are over images alone")
        measures = [[(run[measure]["accuracy"], run[measure]["interval"]) for run in arm] for arm in (own, base)]
        accuracy, gain = mean_accuracy(measures[0]), mean_gain(list(zip(*measures, strict=True)))
        agreement = values["label_agreement"], values["label_agreement_interval"]
        unseen = 100 * agreement[0] * values["classifier_accuracy"] if name in REAL else None
        figures = ((100 * mean, 100 * half) for mean, half in (accuracy, gain, agreement))
        points.append(Point(name, len(seeds), *figures, values.get("diversity"), unseen))
    return sorted(points, key=lambda point: point.agreement)


def draw(points: list[Point], measure: str, title: str) -> Figure:
    """Return the figure: one point with both intervals and its name for each arm, and a line at no gain."""
    figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    ax.axhline(0, color="grey", linewidth=0.8)
    labelled = set()
    for point in points:
        label, marker, colour = REAL.get(point.arm, GENERATED)
        (x, dx), (y, dy) = point.agreement, point.gain
        ax.errorbar(
            x, y, xerr=dx, yerr=dy, fmt=marker, color=colour, capsize=3, markersize=11 if marker == "*" else 6,
            label=None if label in labelled else label, fillstyle="full" if point.seeds > 1 else "none",
        )  # fmt: skip
        if point.unseen is not None:
            ax.plot([point.unseen, x], [y, y], ":|", color=colour, linewidth=1, markersize=6)
        # Real and generated images of like agreement stand close together: the names of the former above, of the latter below.
        ax.annotate(point.arm, (x, y), xytext=(6, 5 if point.arm in REAL else -13), textcoords="offset points", fontsize=9)
        labelled.add(label)
    ax.margins(0.15)
    ax.set(xlabel="label agreement of variants of test images (%)", ylabel=f"gain in {MEASURES[measure]} (points)", title=title)
    ax.grid(alpha=0.3)
    title = "second view" + ("\n(hollow: one seed, interval over images)" if any(point.seeds == 1 for point in points) else "")
    ax.legend(loc="best", fontsize=8, title=title, title_fontsize=8)
    return figure


def table(points: list[Point], measure: str, over: str) -> str:
    """Return the points as Markdown."""
    head = ["arm", "second view", "seeds", "label agreement", "diversity", MEASURES[measure], f"gain over {over}"]
    rows = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for p in points:
        diversity = "" if p.diversity is None else f"{p.diversity:.2f}"
        numbers = [_with_interval(p.agreement), diversity, _with_interval(p.accuracy), _with_interval(p.gain, "+")]
        rows.append([p.arm, REAL.get(p.arm, GENERATED)[0], str(p.seeds), *numbers])
    note = (
        "Agreement and accuracy in percent, gains in points. The classifier was trained on the real images of neighbours and oracle, so "
        "their agreement is nearly the share of true labels; one that had not seen them would read about its accuracy on test images "
        "times as much. Intervals are 95%: of the agreement over test images, of accuracy and gain "
        "over seeds (Student's t); gains are paired by seed. Diversity is relative to two real images of a class.\n"
    )
    if any(p.seeds == 1 for p in points):
        note += (
            "\nWith one seed, the intervals of accuracy and gain are over test images: they lack the variation between training runs. "
            "That of the gain takes the two runs as independent.\n"
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n\n" + note


def _with_interval(value: tuple[float, float], sign: str = "") -> str:
    return f"{value[0]:{sign}.2f} ± {value[1]:.2f}"


def _read_json(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise SystemExit(f"{path}: {error.strerror}: expected {what}") from error
    except ValueError as error:
        raise SystemExit(f"{path} is no JSON ({error}): expected {what}") from error


def main() -> None:
    """Parse the command line, draw the figure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="OUT of reproduce.py")
    parser.add_argument("--arm", action="append", required=True, metavar="NAME=FOLDER", help="OUT of evaluate.py for an arm; repeat it")
    parser.add_argument("--method", choices=list(TITLES), default="simclr")
    parser.add_argument("--measure", choices=list(MEASURES), default="linear")
    parser.add_argument("--over", metavar="ARM", default="baseline", help="the arm that gains are relative to")
    parser.add_argument("--out", type=Path, required=True, help="the figure, .png or .svg")
    args = parser.parse_args()
    runs, evaluations = read_runs(args.runs, args.method), read_evaluations(args.arm)
    points = make_points(runs, evaluations, args.measure, args.over)
    for arm in sorted({run["generator"] for run in runs} - evaluations.keys() - {args.over}):
        print(f"{arm} is not drawn: there is no --arm {arm}=FOLDER")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    images = "held-out" if runs[0]["measure"]["on_holdout"] else "test"
    figure = draw(points, args.measure, f"{TITLES[args.method]}, {images} images")
    figure.savefig(args.out, dpi=80)
    plt.close(figure)
    text = table(points, args.measure, args.over)
    (args.runs / "gain-over-agreement.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
