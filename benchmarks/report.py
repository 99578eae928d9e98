"""Run the benchmarks and print the ratios that matter, each of two medians of the same run: ``python -m benchmarks.report``."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch


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
    ]
    print(f"\n{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| what | measured | aim | in full |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
