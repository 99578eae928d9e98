"""Part 4: training of the bundled generator with examples/icgan/cifar10-gpu.yaml, its weights and its evaluation.

The judge, a classifier of real images, trains beside encoder and generator, which are given seconds (pace.py), so that they
end in time with what they have learned; then the evaluation. If the training is cut off or fails all the same, its last
snapshot comes back and is evaluated.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.context import Context, run
from benchmarks.gpu_parts.images import labelled_images

RECIPE = Path(__file__).parents[2] / "examples" / "icgan"
# Seconds that are kept for starting and reading the images, and for the evaluation and packing.
START, EVALUATION = 30.0, 75.0
SHARES = {"encoder": 0.36, "generator": 0.56}  # of what is left for training; the rest is for features, snapshots and the end
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
    device, sets = context.device.type, ("--train", train, "--test", test)
    until = context.left() - (0 if context.quick else EVALUATION)
    epochs = ["--epochs", "1", "--width", "16"] if context.quick else []
    settings = [f"device={device}", *([] if context.quick else limits(until)), *(MINIATURE if context.quick else [])]
    with started(context, "classifier", *sets, "--out", judge, "--device", device, *epochs) as classifier:
        arguments = ("--config", RECIPE / "cifar10-gpu.yaml", "--data", train, "--out", folder, "--card", RECIPE / "cifar10_card.yaml")
        with started(context, "train", *arguments, *settings) as trainer:
            trained = finish("train", trainer, until, lambda: keep_newest(context, folder))
        judged = finish("classifier", classifier, max(1.0, context.left() - (0 if context.quick else EVALUATION)))
    finished = trained == "done"
    result = folder / "pretrained" if finished else keep_newest(context, folder)
    context.write(judge=judged, training=trained, evaluated=str(result), summary={"training": trained, "steps": steps_of(folder)})
    if result is None:
        sys.exit("no snapshot: there was no time for a single one")
    if finished:
        replace(result, context.out / "pretrained")
        replace(result, context.work / "pretrained")
    if judged != "done":
        sys.exit(f"the classifier {judged}: the generator is there, but nobody judges it")
    limit = ["--limit", "16", "--variants", "2"] if context.quick else []
    arguments = ("--generator", result, "--judge", judge, *sets, "--out", report, "--device", device, *limit)
    with started(context, "evaluate", *arguments) as evaluation:
        evaluated = finish("evaluate", evaluation, context.left() - 3)
    figures = json.loads((report / "evaluation.json").read_text()) if (report / "evaluation.json").exists() else {}
    found = {name: figures[name] for name in FIGURES if name in figures}
    context.write(evaluation=evaluated, summary={"training": trained, "steps": steps_of(folder), **found})
    if not trained == evaluated == "done":
        sys.exit(1)


def limits(seconds: float) -> list[str]:
    """Return the settings that divide the time between the stages."""
    left = max(1.0, seconds - START)
    return [f"{stage}.seconds={share * left:.0f}" for stage, share in SHARES.items()]


@contextlib.contextmanager
def started(context: Context, script: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """Start a script of examples/icgan, with its output in SCRIPT.txt; it is ended with the block."""
    command = [sys.executable, str(RECIPE / f"{script}.py"), *map(str, arguments)]
    with (context.out / f"{script}.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def finish(script: str, process: subprocess.Popen[bytes], seconds: float, on_tick: Callable[[], Any] = lambda: None) -> str:
    """Wait at most so many seconds for a process, with a call of `on_tick` every so often; return how it ended."""
    start, until = time.monotonic(), time.monotonic() + seconds
    code = None
    while code is None and time.monotonic() < until:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout=max(0.0, min(5.0, until - time.monotonic())))
        on_tick()
    print(f"{script}: waited for {time.monotonic() - start:.0f} s", flush=True)
    if code is None:
        return f"cut off after {seconds:.0f} s"
    return "done" if code == 0 else f"failed with exit code {code}"


def keep_newest(context: Context, folder: Path) -> Path | None:
    """Copy the newest snapshot to where it comes back, and to where the parts behind this one look; return it."""
    newest = max((path.parent for path in folder.glob("snapshots/*/training.json")), default=None)
    if newest is not None:
        replace(newest, context.out / "pretrained")
        replace(newest, context.work / "pretrained")
    for grid in sorted((folder / "samples").glob("*.png"))[-1:]:
        shutil.copy(grid, context.out / "samples.png")
    return newest


def replace(source: Path, target: Path) -> None:
    """Copy a folder in the place of another."""
    part = target.with_name(f"{target.name}-part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def steps_of(folder: Path) -> int:
    """Return the steps of the newest snapshot."""
    return max((json.loads(path.read_text())["step"] for path in folder.glob("snapshots/*/training.json")), default=0)


if __name__ == "__main__":
    run(main, __doc__)
