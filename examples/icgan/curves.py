"""Plot quality over training time, measured on the snapshots of train.py, with one line per run.

    python examples/icgan/curves.py --run "G_ch 24=runs/cifar10" --run "G_ch 12=runs/narrow" \
        --judge runs/judge --test test.parquet --x steps --out capacity

Every snapshot makes `--variants` images of each of `--limit` test images, with the same seeds, and the classifier of
classifier.py evaluates them. Writes OUT.json after each snapshot, OUT.png, and with --losses also the training losses of the first run.
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
from shared import refuse_unwritable, write_whole
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
    name = args.out.name.removesuffix(".json").removesuffix(".png")
    if not name:
        raise SystemExit(f"--out {args.out}: expected a path without suffix, such as {args.out.parent / 'quality'}")
    out = args.out.with_name(name)
    refuse_unwritable(out.parent, f"--out {args.out}: folder")
    snapshots = {name: find_snapshots(folder) for name, folder in runs.items()}
    losses = read_losses(next(iter(runs.values()))) if args.losses else {}
    judge = load_judge(args.judge)
    labels, names = load_labels(args.test)
    if names != judge.names:
        raise SystemExit(f"--test has the classes {names}, the classifier {judge.names}: expected the same")
    expected = choose_labels(labels, args.limit)
    sources = load_images(args.test, judge.arguments["size"], args.limit)
    load = functools.cache(lambda size: load_images(args.test, size, args.limit))  # all snapshots of a run have one size
    _, real = predict(judge, sources)
    spread = spread_of_classes(real, expected)
    out.parent.mkdir(parents=True, exist_ok=True)
    table: dict[str, list[dict[str, Any]]] = {}
    for name, folder in runs.items():
        encoder_seconds = torch.load(folder / "encoder.pt", map_location="cpu", weights_only=True)["seconds"]
        for snapshot in snapshots[name]:
            record = measure(snapshot, judge, sources, expected, real, spread, args.variants, load)
            training = json.loads((snapshot / "training.json").read_text())
            hours = round((encoder_seconds + training["seconds"]) / 3600, 3)
            table.setdefault(name, []).append({"steps": training["step"], "hours": hours} | record)
            print(folder, table[name][-1], flush=True)
            with write_whole(_beside(out, ".json")) as partial:
                partial.write_text(json.dumps(table, indent=2) + "\n")
    draw(table, args.x, _beside(out, ".png"))
    if args.losses:
        draw_losses(losses, _beside(out, "-losses.png"))


def find_snapshots(run: Path) -> list[Path]:
    """Return the folders of a run's snapshots, in the order of training; exit if it has none, or is no run."""
    found = sorted(path.parent for path in run.glob("snapshots/*/training.json"))
    for path, there in ((run, run.is_dir()), (run / "encoder.pt", (run / "encoder.pt").is_file()), (run / "snapshots", found)):
        if not there:
            raise SystemExit(f"--run {run}: {path} {'is empty' if path.is_dir() else 'does not exist'}: expected a run of train.py")
    return found


def measure(
    snapshot: Path, judge: Judge, sources: Tensor, expected: Tensor, real: Tensor, spread: Tensor, variants: int,
    load: Callable[[int], Tensor],
) -> dict[str, Any]:  # fmt: skip
    """Return the figures of one snapshot.

    `sources` (N, 3, S, S) are of the classifier's size, `real` (N, D) their features in it and `spread` (N,) those of their classes;
    `load` returns the sources in another size, for larger generators.
    """
    generator = gt.load_generator(snapshot)
    made = generate(generator, load_sources(load, generator, sources), expected, variants, seed=0, size=sources.shape[-1])
    predicted, features = predict(judge, made.flatten(0, 1))
    features = features.unflatten(0, made.shape[:2])
    return {
        "label_agreement": round(agreement(predicted.view(made.shape[:2]), expected)[0], 4),
        "distance_from_source": round(distance_from_source(features, real, spread), 4),
        "diversity": round(diversity(features, spread), 4),
    }


def _beside(out: Path, ending: str) -> Path:
    """Return `out` with something behind it; with_suffix would take the 5 of ``lr0.5`` for a suffix."""
    return out.with_name(out.name + ending)


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


def read_losses(run: Path) -> dict[str, dict[int, float]]:
    """Return the curves that train.py wrote for TensorBoard, by step; exit if one is missing."""
    names = ["encoder/loss", "generator/D", "generator/G", "generator/feature_distance"]
    folders = {name: run / "tensorboard" / name.partition("/")[0] for name in names}
    try:
        if absent := next((folder for folder in folders.values() if not folder.is_dir()), None):
            raise FileNotFoundError(f"no {absent}")
        return {name: scalars(folder, name) for name, folder in folders.items()}
    except (KeyError, OSError) as error:
        raise SystemExit(f"--losses: {run / 'tensorboard'} lacks curves ({error}): leave --losses out") from error


def draw_losses(losses: dict[str, dict[int, float]], path: Path) -> None:
    """Draw one panel per curve."""
    figure, axes = plt.subplots(1, len(losses), figsize=(13, 2.8), layout="constrained")
    for ax, (name, points) in zip(axes, losses.items(), strict=True):
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
