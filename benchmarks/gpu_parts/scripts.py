"""Scripts that a part starts beside itself, and what it copies of their results."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.context import Context


@contextlib.contextmanager
def started(context: Context, name: str, command: list[Any]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command, with its output in NAME.txt; it is ended with the block."""
    with (context.out / f"{name}.txt").open("w") as log:
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def finish(name: str, process: subprocess.Popen[bytes], seconds: float, on_tick: Callable[[], Any] = lambda: None) -> str:
    """Wait at most so many seconds for a process, with a call of `on_tick` every so often; return how it ended.

    One that still runs then is ended, so that it neither keeps the device nor writes anything later.
    """
    start, until = time.monotonic(), time.monotonic() + seconds
    code = None
    while code is None and time.monotonic() < until:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout=max(0.0, min(5.0, until - time.monotonic())))
        on_tick()
    print(f"{name}: waited for {time.monotonic() - start:.0f} s", flush=True)
    if code is None:
        process.kill()
        process.wait()
        return f"cut off after {seconds:.0f} s"
    return "done" if code == 0 else f"failed with exit code {code}"


def replace(source: Path, target: Path, leave_out: Sequence[str] = (), add: Callable[[Path], Any] = lambda _part: None) -> None:
    """Copy a folder in the place of another, without files of these patterns, and with what `add` writes into the copy."""
    part = target.with_name(f"{target.name}-part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, ignore=shutil.ignore_patterns(*leave_out))
    add(part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
