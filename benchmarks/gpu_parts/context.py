"""What a part is given, and where it writes."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Context:
    """Device, data, folders and time of a part.

    Attributes:
        device: ``cuda``, or ``cpu`` for a rehearsal.
        quick: everything in miniature.
        data, test: Parquet files of labelled images, or None.
        out: the part's folder, which is packed.
        work: the folder of all parts; what one leaves for another is found there.
        end: when the part is cut off, by ``time.monotonic``.
        result: what has been found; `write` adds to it and saves it.
    """

    device: torch.device
    quick: bool
    data: Path | None
    test: Path | None
    out: Path
    work: Path
    end: float
    result: dict[str, Any] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    def write(self, **found: Any) -> None:
        """Add to the result and save it, so that it is there if the part is cut off. ``summary`` goes into the table."""
        self.result |= found
        part = self.out / "result.partial"
        part.write_text(json.dumps(self.result, indent=2) + "\n")
        part.replace(self.out / "result.json")


def run(part: Callable[[Context], None], description: str | None) -> None:
    """Parse the command line of a part and run it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--since", type=float, default=time.time(), help="when the seconds began, by time.time: imports count, too")
    args = parser.parse_args()
    end = time.monotonic() + args.seconds - (time.time() - args.since)
    context = Context(torch.device(args.device), args.quick, args.data, args.test, args.out, args.work, end)
    context.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else "cpu"
    context.write(device=name, torch=torch.__version__, seconds=args.seconds, left_after_imports=round(context.left(), 1))
    part(context)


def profile(context: Context, name: str, call: Callable[[], Any]) -> None:
    """Write the operations that take most of the time of a call to ``profile-NAME.txt``."""
    with profiling(context, name):
        call()


@contextlib.contextmanager
def profiling(context: Context, name: str) -> Iterator[None]:
    """Write the operations that take most of the time of the block to ``profile-NAME.txt``."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if context.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        yield
        if context.device.type == "cuda":
            torch.cuda.synchronize()
    order = "self_cuda_time_total" if context.device.type == "cuda" else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=90)
    (context.out / f"profile-{name}.txt").write_text(table + "\n")
