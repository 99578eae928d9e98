"""Run the benchmarks and print the ratios that matter, each of two medians of the same run: ``python -m benchmarks.report``."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.test_bank import FILLED, READ


def main() -> None:
    """Run pytest-benchmark, then print a Markdown table."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "benchmarks",
            "-q",
            "--benchmark-enable",
            "--benchmark-only",
            f"--benchmark-json={result}",
        ]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
        medians = {b["name"]: b["stats"]["median"] for b in json.loads(result.read_text())["benchmarks"]}
    bare, whole, quarter = (medians[f"test_{name}"] for name in ("bare_generator", "transform[1.0]", "transform[0.25]"))
    encode, plain, folded = (medians[f"test_{name}"] for name in ("encode_alone", "network[plain]", "network[folded]"))
    stock = {n: medians[f"test_diffusion_stock[{n}]"] for n in (1, 8)}
    ours = {(kind, n): medians[f"test_diffusion_ours[{kind}-{n}]"] for kind in ("plain", "compiled") for n in (1, 8)}
    overhead = f"{100 * (whole / bare - 1):.1f}%"
    bare_encoder, filled = medians["test_bank_bare_encoder"], medians["test_bank_generate"]
    loaders = {kind: medians[f"test_bank_loader[{kind}]"] for kind in ("bank", "files")}
    rows = [
        ("transform over the bare generator, batch 64 (extra time)", overhead, "at most 2%", f"{bare * 1e3:.0f} ms bare"),
        ("p = 0.25 over p = 1", f"{quarter / whole:.2f}", "at most 0.30", f"{whole * 1e3:.0f} ms at p = 1"),
        ("encode over encode and sample", f"{encode / bare:.2f}", "-", f"{encode * 1e3:.0f} ms"),
        ("plain network over rewritten, 128 pixels, batch 8", f"{plain / folded:.2f}", "at least 1.4", f"{folded:.2f} s rewritten"),
        ("images per second, icgan-cifar10-32, batch 64", f"{64 / whole:.0f}", "-", f"{whole * 1e3:.0f} ms a batch"),
        *(
            (
                f"stock diffusers pipeline over ours{', compiled' if kind == 'compiled' else ''}: reduced SD 2.1 unCLIP, 256 pixels, "
                f"4 steps, guidance, {16 // n} sources x {n}",
                f"{stock[n] / seconds:.2f}",
                "at least 1.15" if n == 8 else "at least 1",
                f"{seconds:.1f} s ours, {stock[n]:.1f} s stock",
            )
            for (kind, n), seconds in ours.items()
        ),
        (
            "filling a bank over the bare encoder: 224 pixels, JPEG 90, a generator that costs nothing",
            f"{bare_encoder / filled:.2f}",
            "at least 0.70",
            f"{FILLED / filled:.0f} images/s",
        ),
        (
            "ImageFolder over bank, the same JPEGs of 224 pixels, DataLoader with 2 workers",
            f"{loaders['files'] / loaders['bank']:.2f}",
            "at least 1",
            f"{READ / loaders['bank']:.0f} images/s from the bank",
        ),
        ("256 random rows of 100,000, not decoded", f"{1e3 * medians['test_bank_rows']:.2f} ms", "at most 10 ms", "-"),
        ("opening 1,000,000 rows: 100,000 keys x 10", f"{medians['test_bank_open[10]']:.2f} s", "at most 2 s", "-"),
        ("opening 1,000,000 rows: 1,000,000 keys x 1", f"{medians['test_bank_open[1]']:.2f} s", "at most 2 s", "-"),
        ("opening 1,280,000 rows in 12,800 units", f"{medians['test_bank_open[12800]']:.2f} s", "at most 0.2 s", "-"),
    ]
    print(f"\n{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| what | measured | aim | in full |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
