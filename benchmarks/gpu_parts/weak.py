"""Two weak snapshots of the generator's training, for arms of the fair experiment between no generator and the trained one.

A program of its own, which part 4 starts while the generator trains: it measures the label agreement of every snapshot on held-out
images and writes ``{"weak-1": step, "weak-2": step, "found": {step: agreement}}``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.context import Context
from benchmarks.gpu_parts.scripts import finish, replace, started

AIMS = {"weak-1": 0.45, "weak-2": 0.58}  # label agreements: examples/ssl/configs/cifar10-fair/README.md
BATCH = 500
COMMAND = [sys.executable, "-m", "benchmarks.gpu_parts.weak"]


def choose(found: Mapping[int, float]) -> dict[str, int]:
    """Return for each weak arm the step of the snapshot whose label agreement is nearest to its aim, two different ones."""
    chosen: dict[str, int] = {}
    for arm, aim in AIMS.items():
        left = {step: value for step, value in found.items() if step not in chosen.values()}
        if left:
            chosen[arm] = min(left, key=lambda step: abs(left[step] - aim))
    return chosen


def choose_unmeasured(steps: Sequence[int]) -> dict[str, int]:
    """Return early snapshots where nobody could judge them: the first and the third, or the last there is."""
    ordered = sorted(steps)
    return {arm: ordered[min(place, len(ordered) - 1)] for arm, place in zip(AIMS, (0, 2), strict=True)} if len(ordered) > 1 else {}


def steps_of(snapshots: Path) -> list[int]:
    """Return the steps of the complete snapshots in a folder."""
    return sorted(int(path.parent.name) for path in snapshots.glob("*/training.json"))


def measure(snapshots: Path, judge: Path, images: Path, device: str, limit: int) -> dict[int, float]:
    """Return the label agreement of each snapshot: the share of variants, one an image, that the judge gives the image's label."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "icgan"))
    from classifier import load_judge, predict  # type: ignore[import-not-found]
    from images import load_images, load_labels  # type: ignore[import-not-found]

    import gentransforms as gt

    classifier = load_judge(judge).to(device)
    photos, labels = load_images(str(images), 32)[:limit], load_labels(str(images))[0][:limit]
    found: dict[int, float] = {}
    for step in steps_of(snapshots):
        generator, made = gt.load_generator(str(snapshots / f"{step:07d}")).to(device), []
        for start in range(0, len(photos), BATCH):
            batch = photos[start : start + BATCH].to(device).float() / 255
            with torch.no_grad():
                made.append((generator(batch, torch.arange(start, start + len(batch))) * 255).round().to(torch.uint8))
        guesses, _ = predict(classifier, torch.cat(made))
        found[step] = round((guesses.cpu() == labels).float().mean().item(), 4)
        print(step, found[step], flush=True)
    return found


def write(path: Path, **found: Any) -> None:
    """Write a JSON file whole or not at all, because others look for it."""
    part = path.with_suffix(".partial")
    part.write_text(json.dumps(found, indent=2) + "\n")
    part.replace(path)


class Choice:
    """Which snapshots are the weak ones: ``weak.json`` in the folder of all parts, and copies of both where they come back."""

    def __init__(self, context: Context, snapshots: Path, judge: Path, images: Path, stack: contextlib.ExitStack) -> None:
        self.context, self.snapshots, self.stack = context, snapshots, stack
        self.path = context.work / "weak.json"
        limit = 16 if context.quick else 2000
        self.command = [*COMMAND, "--snapshots", snapshots, "--judge", judge, "--images", images, "--out", self.path]
        self.command += ["--device", context.device.type, "--limit", limit]
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start the measurement, once."""
        if self.process is None:
            self.process = self.stack.enter_context(started(self.context, "weak", self.command))

    def end(self, judged: bool, seconds: float) -> None:
        """Wait for it, at most so many seconds, and copy the snapshots. Without a judge, or if it fails, two early ones are taken."""
        if judged and steps_of(self.snapshots):
            self.begin()
        outcome = "nothing to judge by" if self.process is None else finish("weak", self.process, max(1.0, seconds))
        if outcome != "done" and not self.path.exists():  # it may have been cut off after its last word, which part 7 has read
            write(self.path, **choose_unmeasured(steps_of(self.snapshots)), outcome=outcome)
        found = json.loads(self.path.read_text())
        self.context.write(weak=found)
        for arm in AIMS:
            if arm in found:
                replace(self.snapshots / f"{found[arm]:07d}", self.context.out / arm)


def main() -> None:
    """Measure and choose."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("snapshots", "judge", "images", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=int, default=2000)
    args = parser.parse_args()
    found = measure(args.snapshots, args.judge, args.images, args.device, args.limit)
    write(args.out, **choose(found), found=found)


if __name__ == "__main__":
    main()
