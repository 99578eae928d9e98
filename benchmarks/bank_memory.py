"""The memory of banks: ``python -m benchmarks.bank_memory``.

Peak resident memory of filling a bank with 10,000 and with 100,000 images of 224 pixels, and of opening one of 1,000,000 rows; each
in a process of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDE = 224


def main() -> None:
    """Measure and print."""
    if len(sys.argv) == 3:
        _alone(sys.argv[1], int(sys.argv[2]))
        return
    for what, count in (("fill", 0), ("fill", 10_000), ("fill", 100_000), ("open", 0), ("open", 1_000_000)):
        subprocess.run([sys.executable, "-m", "benchmarks.bank_memory", what, str(count)], check=True)


def _alone(what: str, count: int) -> None:
    import gentransforms as gt
    from benchmarks.bank_generators import Free, Same
    from benchmarks.test_bank import fake_bank

    with tempfile.TemporaryDirectory() as folder:
        path, begun = Path(folder) / "bank", time.perf_counter()
        if what == "fill":
            # 10 images too for "nothing": what torch, the generator and the buffers take anyway.
            gt.generate_bank(Same(max(count, 10) // 10, SIDE), path, Free(SIDE), variants=10, progress=False)
        elif count:
            subprocess.run(
                [sys.executable, "-c", f"from benchmarks.test_bank import *; fake_bank(Path({str(path)!r}), {count // 10}, 10)"], check=True
            )
            begun = time.perf_counter()
            assert len(gt.Bank.open(path)) == count
        else:
            assert callable(fake_bank)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{what} {count:>9,}: peak {peak:,.0f} MiB, {time.perf_counter() - begun:.2f} s", flush=True)


if __name__ == "__main__":
    main()
