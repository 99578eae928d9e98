"""Part 4: training of the bundled generator with examples/icgan/cifar10-gpu.yaml, its weights and its evaluation.

It trains on the images of the fair experiment (part 7), which runs beside it. The judge, a classifier of real images, trains beside
encoder and generator, which are given seconds (pace.py), so that they end in time with what they have learned; then the
evaluation. If the training is cut off or fails all the same, its last snapshot comes back and is evaluated. What comes back: the
generator in ``pretrained/``, two weak snapshots (weak.py) in ``weak-1/`` and ``weak-2/``, and the judge.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path

from benchmarks.gpu_parts import weak
from benchmarks.gpu_parts.context import Context, run
from benchmarks.gpu_parts.images import split_images
from benchmarks.gpu_parts.scripts import finish, replace, started

RECIPE = Path(__file__).parents[2] / "examples" / "icgan"
# Seconds that are kept for starting and reading the images, and for the evaluation and packing; of the latter, the choice of the weak
# snapshots may take so many.
START, EVALUATION, CHOICE = 30.0, 120.0, 40.0
SHARES = {"encoder": 0.39, "generator": 0.545}  # of what is left for training; the rest is for features, snapshots and the end
MINIATURE = [
    "encoder.widths=[4,8]", "encoder.blocks=[1,1]", "encoder.epochs=1", "encoder.batch_size=8", "encoder.projection=4",
    "encoder.seconds=null", "generator.G_ch=4", "generator.dim_z=8", "generator.shared_dim_feat=6", "generator.D_ch=4",
    "generator.steps=4", "generator.batch_size=4", "generator.finish_from=null", "generator.seconds=null", "sample_every=4",
    "checkpoint_every=4", "compile=false",
]  # fmt: skip
FIGURES = ("label_agreement", "diversity", "distance_from_source", "frechet_distance", "recall", "classifier_accuracy")
WEAK_FROM = 2000  # steps: the weak snapshots are among the first ones


def main(context: Context) -> None:
    """Train the judge and the generator, and evaluate."""
    images, device = split_images(context), context.device.type
    judge, folder, report = context.work / "judge", context.work / "generator", context.out / "evaluation"
    # The judge sees all training images, unless it is measured on some of them.
    sets = ("--train", images.kept if images.test == images.held else images.all, "--test", images.test)
    until = context.left() - (0 if context.quick else EVALUATION)
    epochs = ["--epochs", "1", "--width", "16"] if context.quick else []
    settings = [f"device={device}", *(MINIATURE if context.quick else limits(until))]
    with contextlib.ExitStack() as stack:
        command = script("classifier", *sets, "--out", judge, "--device", device, *epochs)
        classifier = stack.enter_context(started(context, "classifier", command))
        given = ("--config", RECIPE / "cifar10-gpu.yaml", "--card", RECIPE / "cifar10_card.yaml", "--data", images.kept, "--out", folder)
        trainer = stack.enter_context(started(context, "train", script("train", *given, *settings)))
        choice = weak.Choice(context, folder / "snapshots", judge, images.held, stack)

        def tick() -> None:
            keep_newest(context, folder)
            if classifier.poll() == 0 and max(weak.steps_of(folder / "snapshots"), default=0) >= WEAK_FROM:
                choice.begin()

        trained = finish("train", trainer, until, tick)
        finished = trained == "done"
        result = folder / "pretrained" if finished else keep_newest(context, folder)
        weak.write(context.work / "trained.json", training=trained, generator=None if result is None else str(result))
        judged = finish("classifier", classifier, max(1.0, context.left() - (0 if context.quick else EVALUATION)))
        choice.end(judged == "done", context.left() - (0 if context.quick else EVALUATION - CHOICE))
    keep_judge(context, judge)
    context.write(judge=judged, training=trained, evaluated=str(result), summary={"training": trained, "steps": steps_of(folder)})
    if result is None:
        sys.exit("no snapshot: there was no time for a single one")
    if finished:
        replace(result, context.out / "pretrained")
        replace(result, context.work / "pretrained")
    if judged != "done":
        sys.exit(f"the classifier {judged}: the generator is there, but nobody judges it")
    limit = ["--limit", "16", "--variants", "2"] if context.quick else []
    command = script("evaluate", "--generator", result, "--judge", judge, *sets, "--out", report, "--device", device, *limit)
    with started(context, "evaluate", command) as evaluation:
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


def script(name: str, *arguments: object) -> list[object]:
    """Return the command of a script of examples/icgan."""
    return [sys.executable, RECIPE / f"{name}.py", *arguments]


def keep_newest(context: Context, folder: Path) -> Path | None:
    """Copy the newest snapshot to where it comes back, and to where the parts behind this one look; return it."""
    newest = max((path.parent for path in folder.glob("snapshots/*/training.json")), default=None)
    if newest is not None:
        replace(newest, context.out / "pretrained")
        replace(newest, context.work / "pretrained")
    for grid in sorted((folder / "samples").glob("*.png"))[-1:]:
        shutil.copy(grid, context.out / "samples.png")
    return newest


def keep_judge(context: Context, judge: Path) -> None:
    """Copy the judge to where it comes back, if there is one."""
    if (judge / "classifier.pt").exists():
        replace(judge, context.out / "judge")


def steps_of(folder: Path) -> int:
    """Return the steps of the newest snapshot."""
    return max((json.loads(path.read_text())["step"] for path in folder.glob("snapshots/*/training.json")), default=0)


if __name__ == "__main__":
    run(main, __doc__)
