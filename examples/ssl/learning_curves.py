"""The curves of runs, read from TensorBoard's files and drawn with a panel per method, a line per arm and a band over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TITLES = {"simclr": "SimCLR", "simsiam": "SimSiam", "byol": "BYOL", "mocov2plus": "MoCo v2+", "barlowtwins": "Barlow Twins"}


def scalars(run: Path, name: str) -> dict[int, float]:
    """Return the values of one curve by step; if a resumed run repeated a step, the later value."""
    points = []
    # File by file: TensorBoard reads a folder in the order of names and drops events with earlier steps.
    for file in (run / "tensorboard").glob("events.out.tfevents.*"):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}, purge_orphaned_data=False)
        events.Reload()
        if name in events.Tags()["scalars"]:
            points += events.Scalars(name)
    return {p.step: p.value for p in sorted(points, key=lambda p: (p.step, p.wall_time))}


def draw_curves(runs: list[dict[str, Any]], path: Path, name: str = "probe/knn", label: str = "weighted k-NN accuracy") -> None:
    """Draw `name` over optimiser steps; each run has ``method``, ``generator``, ``seed`` and ``folder``."""
    methods = list(dict.fromkeys(run["method"] for run in runs))
    colours = {arm: f"C{i}" for i, arm in enumerate(dict.fromkeys(run["generator"] for run in runs))}  # the same in all panels
    figure, axes = plt.subplots(1, len(methods), figsize=(3.4 * len(methods) + 0.6, 3.2), layout="constrained", squeeze=False, sharey=True)
    for ax, method in zip(axes[0], methods, strict=True):
        own = [run for run in runs if run["method"] == method]
        for generator in dict.fromkeys(run["generator"] for run in own):
            curves = [scalars(Path(run["folder"]), name) for run in own if run["generator"] == generator]
            steps = sorted(set.intersection(*(set(curve) for curve in curves)))
            if not steps:
                continue
            values = [[curve[step] for curve in curves] for step in steps]
            colour, name_and_seeds = colours[generator], f"{generator} ({len(curves)})"
            ax.plot(steps, [sum(v) / len(v) for v in values], color=colour, label=name_and_seeds, marker="o", markersize=3)
            ax.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.2, linewidth=0)
        ax.set(title=TITLES.get(method, method), xlabel="step")
        ax.grid(alpha=0.3)
        if ax.lines:  # a run that is too short for a probe has no curve
            ax.legend(title="arm (seeds)")
    axes[0][0].set(ylabel=label)
    figure.savefig(path, dpi=80)
    plt.close(figure)
