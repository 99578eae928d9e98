"""The benchmark scripts run; their timings gate nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class TestGpuScript:
    """benchmarks/gpu.py in miniature, on the CPU: what a lent GPU will run is tried before."""

    @pytest.mark.slow  # gpu_all's default tests run the same code in one process
    def test_runs_and_writes(self, tmp_path: Path) -> None:
        out = tmp_path / "results.json"
        run("benchmarks/gpu.py", "--device", "cpu", "--quick", "--out", str(out))
        results = json.loads(out.read_text())
        assert max(results["checks"].values()) <= 1e-4
        assert results["ceiling_tflops"] > 0
        assert [row["batch"] for row in results["rows"]] == [1, 1, 2, 4]
        for row in results["rows"]:
            assert row["images_per_second"] > 0


class TestGpuDiffusionScript:
    """benchmarks/gpu_diffusion.py in miniature, on the CPU."""

    @pytest.mark.slow  # gpu_all's default tests run the same code in one process
    def test_runs_and_writes(self, tmp_path: Path) -> None:
        out = tmp_path / "results.json"
        run("-m", "benchmarks.gpu_diffusion", "--device", "cpu", "--quick", "--out", str(out))
        results = json.loads(out.read_text())
        assert results["left_out"] == []
        assert [(row["family"], row["stock"]) for row in results["rows"]] == [
            ("unclip-small", True), ("unclip-small", False), ("controlnet", False),
        ]  # fmt: skip
        for row in results["rows"]:
            assert row["images_per_second"] > 0
            assert row["tflops"] > 0

    def test_lists_what_there_was_no_time_for(self, tmp_path: Path) -> None:
        out = tmp_path / "results.json"
        run("-m", "benchmarks.gpu_diffusion", "--device", "cpu", "--quick", "--minutes", "0", "--out", str(out))
        results = json.loads(out.read_text())
        assert (len(results["rows"]), len(results["left_out"])) == (0, 3)


class TestFigures:
    """No figure is left out of what is published."""

    @pytest.mark.parametrize(
        "name",
        [
            "benchmarks/RESULTS.md",
            "examples/icgan/cifar10_card.yaml",
            "README.md",
            "docs/training.md",
            "gentransforms/weights/icgan-cifar10-32/README.md",
        ],
    )
    def test_no_placeholder(self, name: str) -> None:
        assert not re.findall(r"@[A-Z0-9_]+@", (ROOT / name).read_text())


@pytest.mark.slow
class TestReport:
    """`make bench` prints the table of ratios."""

    def test_table(self) -> None:
        printed = run("-m", "benchmarks.report")
        for row in ("transform over the bare generator", "p = 0.25 over p = 1", "encode over", "plain network over rewritten"):
            assert f"| {row}" in printed


class TestBankRun:
    """benchmarks/bank_run.py with a few images: killed twice, resumed, verified, read."""

    @pytest.mark.slow
    def test_runs_to_the_end(self, tmp_path: Path) -> None:
        image = (ROOT / "gentransforms" / "samples" / "frog.png").read_bytes()
        table = pa.table({"image": pa.array([{"bytes": image, "path": None}] * 350)})
        pq.write_table(table, tmp_path / "images.parquet")
        printed = run("-m", "benchmarks.bank_run", "--data", str(tmp_path / "images.parquet"), "--out", str(tmp_path), "--images", "320")
        assert printed.count("(exit -9, ") == 2
        assert "no problem" in printed
        assert '"keys": 320, "rows": 3200, "pairs read by a DataLoader": 320' in printed
