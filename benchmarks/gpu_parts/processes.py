"""Several processes at once, each with a name and a log."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


class Processes:
    """Processes that run in one folder, each with its output in LOGS/NAME.txt. Those that still run end with `stop_all`."""

    def __init__(self, logs: Path, folder: Path) -> None:
        self.logs, self.folder = logs, folder
        self._all: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        logs.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[object], threads: int = 1) -> None:
        """Start a command that computes with so many threads."""
        environment = os.environ | {f"{kind}_NUM_THREADS": str(threads) for kind in ("OMP", "MKL", "OPENBLAS")}
        with (self.logs / f"{name}.txt").open("w") as log:
            process = subprocess.Popen(
                [str(word) for word in command], cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._all[name] = process, time.monotonic()

    def state(self, name: str) -> str:
        """Return ``"absent"``, ``"running"``, ``"done"`` or ``"failed"``."""
        if name not in self._all:
            return "absent"
        code = self._all[name][0].poll()
        return "running" if code is None else "done" if code == 0 else "failed"

    def age(self, name: str) -> float:
        """Return the seconds since a process began."""
        return time.monotonic() - self._all[name][1]

    def stop(self, name: str) -> None:
        """End a process; the next call of `state` says ``"failed"``."""
        process, _ = self._all[name]
        process.kill()
        process.wait()

    def stop_all(self) -> None:
        """End all that still run."""
        for name in self._all:
            self.stop(name)
