"""Part 5: SimCLR with ResNet-18 on CIFAR-10: seconds per step with two real views, a bank, the online generator, and compiled.

``profile-step.txt`` says where the time of a step of two real views goes. Then as many epochs of the baseline and of generated views
(online) as there is time for, each with its k-NN accuracy. The generator is that of part 4 if it left one, else the bundled one.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.context import Context, profiling, run
from benchmarks.gpu_parts.images import labelled_images

RECIPE = Path(__file__).parents[2] / "examples" / "ssl"
sys.path.insert(0, str(RECIPE))

MINIATURE = [
    "backbone.name=small", "backbone.widths=[8,16]", "backbone.blocks=[1,1]", "method.hidden=16", "method.out=8", "trainer.batch_size=4",
    "probe.k=3",
]  # fmt: skip
START = 25.0  # seconds that two runs take beside their steps: decoding the images, and the probes
COMPILING = 60.0  # seconds that compiling the backbone may take


def main(context: Context) -> None:
    """Time the arms, then train."""
    from config import load_settings
    from learning_curves import scalars
    from make_bank import make_bank
    from speed import WARMUP, ours
    from train import train

    images, test = labelled_images(context)
    made = context.work / "pretrained"
    generator = str(made) if (made / "config.json").exists() else "icgan-cifar10-32"
    steps = 3 if context.quick else 30
    common = [
        f"data.train={images}", f"data.test={test}", "data.holdout=0", "data.limit=null", "trainer.log_every=1000000",
        "trainer.accelerator=" + ("gpu" if context.device.type == "cuda" else "cpu"), *(MINIATURE if context.quick else []),
    ]  # fmt: skip
    batch = load_settings(RECIPE / "configs" / "cifar10" / "simclr-baseline.yaml", common).trainer.batch_size
    timed = [*common, "data.test=null", f"data.limit={batch * (steps + WARMUP)}", "trainer.epochs=1", "optimizer.warmup_epochs=0"]
    bank = [f"generative.bank={context.work / 'ssl-bank'}"]
    arms = {
        "two real views": ("baseline", []),
        "bank": ("icgan", bank),
        "online": ("online", [f"generative.generator={generator}"]),
        "two real views, compiled": ("baseline", ["trainer.compile=true"]),
    }

    def load(arm: str, *settings: str) -> Any:
        config, own = arms[arm]
        return load_settings(RECIPE / "configs" / "cifar10" / f"simclr-{config}.yaml", [*settings, *own])

    make_bank(load("bank", *timed), generator, variants=2, progress=False)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        train(load("two real views", *timed), Path(folder) / "run", [profiler(context, WARMUP)], quiet=True)
    for arm in arms:
        if arm.endswith("compiled") and (context.quick or context.left() < COMPILING):
            print(f"no time for {arm}: {COMPILING:.0f} s of {context.left():.0f} s", flush=True)
            continue
        seconds[arm] = seconds_of_a_step(ours(load(arm, *timed)))
        context.write(generator=generator, batch_size=batch, seconds_per_step=seconds, summary=seconds)
    count = load("two real views", *common).data.limit or _rows(images)
    epoch = (seconds["two real views"] + seconds["online"]) * (count // batch)
    epochs = 1 if context.quick else int((0.9 * context.left() - START) / epoch)
    context.write(epochs=epochs)
    if epochs < 1:
        print(f"{context.left():.0f} s left, an epoch of both arms takes {epoch:.0f} s", flush=True)
        return
    accuracies = {}
    for arm in ("two real views", "online"):
        out = context.work / f"ssl-{arm.replace(' ', '-')}"
        shutil.rmtree(out, ignore_errors=True)  # of an earlier call, with other epochs
        train(
            load(arm, *common, f"trainer.epochs={epochs}", f"probe.every={epochs}", f"optimizer.warmup_epochs={min(10, epochs // 10)}"),
            out, quiet=True,
        )  # fmt: skip
        accuracies[f"{arm}, k-NN"] = round(list(scalars(out, "probe/knn").values())[-1], 4)
        context.write(accuracies=accuracies, summary=seconds | {"epochs": epochs} | accuracies)


def seconds_of_a_step(steps: Iterable[tuple[float, float]]) -> float:
    """Return the median on the clock, from what speed.py measures of each step: seconds on the clock, and of the processor."""
    return round(statistics.median(clock for clock, _ in steps), 5)


def profiler(context: Context, step: int) -> Any:
    """Return a callback that profiles a step: from the end of the one before to its own end, so that loading is included."""
    import lightning as L

    class Profiler(L.Callback):
        def __init__(self) -> None:
            self.stack = contextlib.ExitStack()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
            if number == step - 1:
                self.stack.enter_context(profiling(context, "step"))
            elif number == step:
                self.stack.close()

    return Profiler()


def _rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


if __name__ == "__main__":
    run(main, __doc__)
