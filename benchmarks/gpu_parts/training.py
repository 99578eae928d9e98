"""Part 4: training of the bundled generator with examples/icgan/cifar10-gpu.yaml, its weights and its evaluation.

First the judge, a classifier of real images, then encoder and generator, then the evaluation. If the time is too short for all
steps, the last snapshot is evaluated.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_parts.context import Context, run
from benchmarks.gpu_parts.images import labelled_images

RECIPE = Path(__file__).parents[2] / "examples" / "icgan"
# Seconds that are kept for the evaluation and for packing.
EVALUATION = 45.0
MINIATURE = [
    "encoder.widths=[4,8]", "encoder.blocks=[1,1]", "encoder.epochs=1", "encoder.batch_size=8", "encoder.projection=4",
    "generator.G_ch=4", "generator.dim_z=8", "generator.shared_dim_feat=6", "generator.D_ch=4", "generator.steps=2",
    "generator.batch_size=4", "generator.finish_from=null", "sample_every=1", "checkpoint_every=1", "compile=false",
]  # fmt: skip
FIGURES = ("label_agreement", "diversity", "distance_from_source", "frechet_distance", "recall", "classifier_accuracy")


def main(context: Context) -> None:
    """Train the judge and the generator, and evaluate."""
    train, test = labelled_images(context)
    judge, folder, report = context.work / "judge", context.work / "generator", context.out / "evaluation"
    device = context.device.type
    epochs = ["--epochs", "1", "--width", "16"] if context.quick else []
    reserve = 0 if context.quick else EVALUATION
    sets = ("--train", train, "--test", test)
    judged = call(context, "classifier", 0.25 * context.left(), *sets, "--out", judge, "--device", device, *epochs)
    settings = [f"device={device}", *(MINIATURE if context.quick else [])]
    trained = call(
        context, "train", context.left() - reserve, "--config", RECIPE / "cifar10-gpu.yaml", "--data", train, "--out", folder,
        "--card", RECIPE / "cifar10_card.yaml", *settings,
    )  # fmt: skip
    snapshots = sorted(path.parent for path in folder.glob("snapshots/*/training.json"))
    finished = (folder / "pretrained").is_dir() and trained == "done"
    result = folder / "pretrained" if finished else snapshots[-1] if snapshots else None
    context.write(judge=judged, training=trained, evaluated=str(result), summary={"training": trained, "snapshots": len(snapshots)})
    if result is None:
        sys.exit("no snapshot: there was no time for a single one")
    shutil.copytree(result, context.out / "pretrained", dirs_exist_ok=True)
    shutil.copytree(result, context.work / "pretrained", dirs_exist_ok=True)  # for the parts behind this one
    for grid in sorted((folder / "samples").glob("*.png"))[-1:]:
        shutil.copy(grid, context.out / grid.name)
    limit = ["--limit", "16", "--variants", "2"] if context.quick else []
    evaluated = call(
        context, "evaluate", context.left() - (0 if context.quick else 5), "--generator", result, "--judge", judge,
        *sets, "--out", report, "--device", device, *limit,
    )  # fmt: skip
    figures = json.loads((report / "evaluation.json").read_text()) if evaluated == "done" else {}
    steps = json.loads((snapshots[-1] / "training.json").read_text())["step"] if snapshots else None
    found = {name: figures[name] for name in FIGURES if name in figures}
    context.write(evaluation=evaluated, summary={"training": trained, "steps": steps, **found})
    if "done" not in (trained, evaluated) or judged != "done":
        sys.exit(1)


def call(context: Context, script: str, seconds: float, *arguments: object) -> str:
    """Run a script of examples/icgan for at most so many seconds, with its output in SCRIPT.txt; return how it ended."""
    if seconds <= 0:
        return "no time"
    start = time.monotonic()
    with (context.out / f"{script}.txt").open("w") as log:
        command = [sys.executable, str(RECIPE / f"{script}.py"), *map(str, arguments)]
        try:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, check=False).returncode
        except subprocess.TimeoutExpired:
            return f"cut off after {seconds:.0f} s"
    print(f"{script}: exit code {code} after {time.monotonic() - start:.0f} s", flush=True)
    return "done" if code == 0 else f"failed with exit code {code}"


if __name__ == "__main__":
    run(main, __doc__)
