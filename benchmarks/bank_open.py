"""Processor time of opening large banks and of reading random rows: ``python -m benchmarks.bank_open``, two minutes.

Unlike wall-clock time it says something on a busy machine, too. Banks are written without waiting for the disk.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import gentransforms as gt
from benchmarks.test_bank import fake_bank
from gentransforms.bank.format import locking
from gentransforms.bank.format.index import INDEX

CASES = ((10_000, 10, 100), (100_000, 10, 1000), (1_000_000, 1, 1000), (1_280_000, 1, 100))


def main() -> None:
    """Measure, and print a Markdown table."""
    locking._sync = lambda file: file.flush()
    print("| keys | variants | units | opening, s | without index, s | 256 random rows, ms | one random row, ms |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for sources, variants, unit_size in CASES:
        path = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        fake_bank(path, sources, variants, unit_size)
        opening = _spent(lambda path=path: gt.Bank.open(path), 5)  # type: ignore[misc]
        bank = gt.Bank.open(path)
        keys = bank.keys
        places = iter(torch.randint(sources, (20_000,), generator=torch.Generator().manual_seed(0)).tolist())

        def read(count: int, bank: gt.Bank = bank, keys: list[str | int] = keys, places: object = places) -> None:
            bank.read([keys[next(places)] for _ in range(count)], [0] * count, decode=False)  # type: ignore[call-overload]

        rows, row = _spent(lambda read=read: read(256), 15), _spent(lambda read=read: read(1), 1000)  # type: ignore[misc]
        (path / INDEX).unlink()
        without = _spent(lambda path=path: gt.Bank.open(path), 1)  # type: ignore[misc]
        print(
            f"| {sources:,} | {variants} | {sources // unit_size:,} | {opening:.3f} | {without:.2f} | {rows * 1e3:.1f} | {row * 1e3:.2f} |"
        )
        shutil.rmtree(path)


def _spent(call: Callable[[], object], rounds: int) -> float:
    """The median of the processor time of a call, in seconds."""
    times = []
    for _ in range(rounds):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return statistics.median(times)


if __name__ == "__main__":
    main()
