"""The commands of the fair experiment: those of its README, with as much as possible at a time."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_parts.images import Images

RECIPE = Path(__file__).parents[2] / "examples" / "ssl"
CONFIGS = RECIPE / "configs" / "cifar10-fair"
VARIANTS, AMONG, SHARDS = 5, 10, 4
# Settings that a resumed run may change, so that the runs are those of the README.
OFTEN = ["trainer.checkpoint_every=250", "trainer.log_every=50"]
MINIATURE = [
    "backbone.widths=[8,16]", "backbone.blocks=[1,1]", "trainer.epochs=2", "trainer.batch_size=4", "optimizer.warmup_epochs=0",
    "method.hidden=16", "method.out=8", "probe.k=3", "probe.every=1",
]  # fmt: skip


@dataclass(frozen=True)
class Commands:
    """Commands to be run in the folder of all parts: the banks lie there, where the configurations say."""

    images: Images
    device: str
    quick: bool

    @property
    def shards(self) -> int:
        """How many processes make a generated bank."""
        return 2 if self.quick else SHARDS

    def real(self, kind: str, generator: Path | None = None) -> list[object]:
        """Return the command that makes a bank of real images: the oracle's, or that of neighbours by a generator's encoder."""
        command: list[object] = [sys.executable, RECIPE / "real_variants.py", "--kind", kind, "--variants", VARIANTS]
        command += [] if generator is None else ["--generator", generator, "--among", AMONG]
        return [*command, "--config", self.config(kind), *self.common()]

    def generated(self, arm: str, generator: str | Path) -> list[list[object]]:
        """Return the commands that make one bank together."""
        program: list[object] = [sys.executable, "-m", "benchmarks.gpu_parts.fair_bank", self.config(arm), generator]
        return [[*program, i, self.shards, VARIANTS, self.device, *self.common()] for i in range(self.shards)]

    def run(self, arm: str, seed: int, out: Path) -> list[object]:
        """Return the command of a run."""
        accelerator = "gpu" if self.device == "cuda" else "cpu"
        settings = [f"seed={seed}", f"data.test={self.images.test}", f"trainer.accelerator={accelerator}", *OFTEN, *self.common()]
        program: list[object] = [sys.executable, "-m", "benchmarks.gpu_parts.fair_run", self.config(arm), out]
        return [*program, *settings, *(MINIATURE if self.quick else [])]

    def config(self, arm: str) -> Path:
        """Return the configuration of an arm."""
        return CONFIGS / f"simclr-{arm}.yaml"

    def common(self) -> list[str]:
        """Return the settings of all banks and runs."""
        return [f"data.train={self.images.all}", f"data.holdout={self.images.holdout}"]
