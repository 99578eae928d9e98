"""Plot quality over training time, measured on the snapshots of train.py, with one line per run.

    python examples/icgan/curves.py --run "G_ch 24=runs/cifar10" --run "G_ch 12=runs/narrow" \
        --judge runs/judge --test test.parquet --x steps --out capacity

Every snapshot makes `--variants` images of each of `--limit` test images, with the same seeds, and the classifier of
classifier.py evaluates them. Writes OUT.json and OUT.png, and with --losses also the training losses of the first run.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from classifier import Judge, load_judge, predict
from evaluate import choose_labels, generate, load_sources
from images import load_images, load_labels
from measures import agreement, distance_from_source, diversity, spread_of_classes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import gentransforms as gt

LABELS = {
    "label_agreement": "label agreement (share)",
    "distance_from_source": "distance from source (same class = 1)",
    "diversity": "diversity (same class = 1)",
}


def main() -> None:
    """Measure the snapshots of every run and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", required=True, metavar="NAME=FOLDER", help="a run of train.py; may be repeated")
    parser.add_argument("--judge", required=True, help="folder written by classifier.py")
    parser.add_argument("--test", required=True, help="labelled images to generate from")
    parser.add_argument("--out", required=True, type=Path, help="path of the figures, without suffix")
    parser.add_argument("--x", choices=["hours", "steps"], default="hours", help="time since the start, or generator steps")
    parser.add_argument("--limit", type=int, default=1000, help="test images")
    parser.add_argument("--variants", type=int, default=2, help="generated images of each")
    parser.add_argument("--losses", action="store_true", help="also draw the losses of the first run, as OUT-losses.png")
    args = parser.parse_args()
    runs = {name: Path(folder) for name, _, folder in (item.rpartition("=") for item in args.run)}
    if "" in runs or len(runs) < len(args.run):
        raise SystemExit(f"--run {' --run '.join(args.run)}: expected NAME=FOLDER each, with different names")
    judge = load_judge(args.judge)
    labels, names = load_labels(args.test)
    if names != judge.names:
        raise SystemExit(f"--test has the classes {names}, the classifier {judge.names}: expected the same")
    expected = choose_labels(labels, args.limit)
    sources = load_images(args.test, judge.arguments["size"], args.limit)
    load = functools.cache(lambda size: load_images(args.test, size, args.limit))  # all snapshots of a run have one size
    table = {name: measure_run(folder, judge, sources, expected, args.variants, load) for name, folder in runs.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(table, indent=2) + "\n")
    draw(table, args.x, args.out.with_suffix(".png"))
    if args.losses:
        draw_losses(next(iter(runs.values())), args.out.with_name(f"{args.out.name}-losses.png"))


def measure_run(
    run: Path, judge: Judge, sources: Tensor, expected: Tensor, variants: int, load: Callable[[int], Tensor]
) -> list[dict[str, Any]]:  # fmt: skip
    """Return one record per snapshot of `run`, in the order of training.

    `sources` (N, 3, S, S) are of the classifier's size; `load` returns them in another, for larger generators.
    """
    _, real = predict(judge, sources)
    spread = spread_of_classes(real, expected)
    encoder_seconds = torch.load(run / "encoder.pt", map_location="cpu", weights_only=True)["seconds"]
    records = []
    for folder in sorted(path.parent for path in run.glob("snapshots/*/training.json")):
        generator = gt.load_generator(folder)
        made = generate(generator, load_sources(load, generator, sources), expected, variants, seed=0, size=sources.shape[-1])
        predicted, features = predict(judge, made.flatten(0, 1))
        features = features.unflatten(0, made.shape[:2])
        training = json.loads((folder / "training.json").read_text())
        records.append({
            "steps": training["step"],
            "hours": round((encoder_seconds + training["seconds"]) / 3600, 3),
            "label_agreement": round(agreement(predicted.view(made.shape[:2]), expected)[0], 4),
            "distance_from_source": round(distance_from_source(features, real, spread), 4),
            "diversity": round(diversity(features, spread), 4),
        })  # fmt: skip
        print(run, records[-1], flush=True)
    return records


def draw(table: dict[str, list[dict[str, Any]]], x: str, path: Path) -> None:
    """Draw one panel per measure, one line per run."""
    figure, axes = plt.subplots(1, len(LABELS), figsize=(11, 3.2), layout="constrained")
    for ax, (measure, label) in zip(axes, LABELS.items(), strict=True):
        for name, records in table.items():
            ax.plot([r[x] for r in records], [r[measure] for r in records], marker="o", markersize=3, label=name)
        ax.set(xlabel="hours of training, encoder included" if x == "hours" else "generator steps", title=label)
        ax.grid(alpha=0.3)
    if len(table) > 1:
        axes[0].legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_losses(run: Path, path: Path) -> None:
    """Draw the curves that train.py wrote for TensorBoard."""
    names = ["encoder/loss", "generator/D", "generator/G", "generator/feature_distance"]
    figure, axes = plt.subplots(1, len(names), figsize=(13, 2.8), layout="constrained")
    for ax, name in zip(axes, names, strict=True):
        points = scalars(run / "tensorboard" / name.partition("/")[0], name)
        ax.plot(points.keys(), points.values(), linewidth=0.8)
        ax.set(title=name, xlabel="step")
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def scalars(folder: Path, name: str) -> dict[int, float]:
    """Return the values of one curve by step; if a resumed run repeated a step, the later value."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    return {p.step: p.value for p in sorted(events.Scalars(name), key=lambda p: (p.step, p.wall_time))}


if __name__ == "__main__":
    main()
