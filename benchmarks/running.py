"""Parts of benchmarks/gpu_all.py as processes: started, packed again and again while they run, and ended at their limits."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.packing import pack

POLL = 0.2  # seconds


@dataclass
class Running:
    """A part that runs.

    Attributes:
        process: in a session of its own, so that its workers end with it.
        folder: what it writes, packed into `packed` and, where that is too small, into further files, `files` in all.
        start, until: when it began and when it is cut off, by ``time.monotonic``.
        outcome: how it ended; None while it runs.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    packed: Path
    files: int
    start: float
    until: float
    outcome: str | None = None

    @classmethod
    def begin(
        cls, command: Sequence[str], folder: Path, packed: Path, files: int, seconds: float, cwd: Path, environment: dict[str, str]
    ) -> Running:
        """Start a command for at most so many seconds, with its output in ``log.txt`` of its folder."""
        start = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        return cls(process, folder, packed, files, start, start + seconds)

    def look(self) -> bool:
        """Return whether it has ended, after cutting it off if its time is over."""
        if self.outcome is None:
            code = self.process.poll()
            if code is not None:
                self.outcome = "done" if code == 0 else f"failed with exit code {code}, see log.txt in its file"
            elif time.monotonic() >= self.until:
                self.outcome = "cut off at its time limit"
            if self.outcome is not None:
                self.end()
        return self.outcome is not None

    def end(self) -> None:
        """End it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def pack(self) -> list[str]:
        """Pack what it has written; return the names of what is left out."""
        return pack(self.folder, self.packed, files=self.files)

    def report(self) -> dict[str, Any]:
        """Pack a last time; return outcome, seconds and figures."""
        seconds, result = round(time.monotonic() - self.start, 1), self.folder / "result.json"
        try:
            left_out = self.pack()
        except OSError as error:
            left_out = [f"whatever is newer than {self.packed.name}: {error}"]
        figures = json.loads(result.read_text()).get("summary", {}) if result.exists() else {}
        row = {"outcome": self.outcome, "seconds": seconds, "figures": figures, "packed": self.packed.name}
        return row | ({"not_packed": left_out} if left_out else {})


def wait(running: Sequence[Running], tick: float = 10.0) -> Generator[Running, None, None]:
    """Return each part as it ends. All are packed every `tick` seconds, and ended whatever happens."""
    left, packed = list(running), time.monotonic()
    try:
        while left:
            for one in [one for one in left if one.look()]:
                left.remove(one)
                yield one
            if time.monotonic() >= packed + tick:
                for one in left:
                    # The part may move a folder just now; it is packed again soon.
                    with contextlib.suppress(OSError):
                        one.pack()
                packed = time.monotonic()
            if left:
                time.sleep(POLL)
    finally:
        for one in left:
            one.end()
