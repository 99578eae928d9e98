"""A run of examples/ssl/train.py that says how far it is: ``CONFIG OUT name=value…``. A program of its own (part 7).

OUT/progress holds the time, the step and the number of steps, every two seconds.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "ssl"))

import lightning as L

EVERY = 2.0  # seconds


class Progress(L.Callback):
    """Writes a run's progress into a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.last = path, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if time.time() - self.last >= EVERY:
            self.last = time.time()
            part = self.path.with_suffix(".partial")
            part.write_text(f"{self.last:.3f} {trainer.global_step} {trainer.estimated_stepping_batches}\n")
            part.replace(self.path)


def main() -> None:
    """Train."""
    from config import load_settings
    from quiet import hush
    from train import train

    config, out, *overrides = sys.argv[1:]
    hush()
    print(train(load_settings(config, overrides), Path(out), [Progress(Path(out) / "progress")], quiet=True))


if __name__ == "__main__":
    main()
