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
import yaml

import gentransforms as gt
from gentransforms.generators.card import model_card

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

    def test_lists_what_there_was_no_time_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from benchmarks import gpu_diffusion

        out = tmp_path / "results.json"
        arguments = ["--device", "cpu", "--quick", "--minutes", "0", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["gpu_diffusion.py", *arguments])
        gpu_diffusion.main()
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
            "docs/limits.md",
            "examples/ssl/README.md",
            "gentransforms/weights/icgan-cifar10-32/README.md",
        ],
    )
    def test_no_placeholder(self, name: str) -> None:
        assert not re.findall(r"@[A-Z0-9_]+@", (ROOT / name).read_text())

    def test_the_bundled_card_is_that_of_the_recipe(self) -> None:
        sections = yaml.safe_load((ROOT / "examples/icgan/cifar10_card.yaml").read_text())
        bundled = ROOT / "gentransforms/weights/icgan-cifar10-32"
        assert model_card(gt.load_generator(bundled), sections) == (bundled / "README.md").read_text()


class TestAuditBundled:
    """benchmarks/audit_bundled.py in miniature: the sources of a recipe's bank, its audit, and the pictures of the page."""

    def test_sources_are_those_that_the_recipe_trains_on(self, tmp_path: Path) -> None:
        from ssl_example import ssl

        from benchmarks.audit_bundled import NAMES, write_sources

        pq.write_table(
            pa.table({"image": [bytes([i]) for i in range(100)], "label": [i % 10 for i in range(100)]}), tmp_path / "train.parquet"
        )
        write_sources(str(tmp_path / "train.parquet"), tmp_path / "some.parquet", holdout=10, limit=40)
        rows = ssl("data").split_rows(100, 40, 10)[0].tolist()
        some = pq.read_table(tmp_path / "some.parquet").to_pydict()
        assert some["row"] == rows
        assert some["image"] == [bytes([i]) for i in rows]
        assert some["class"] == [NAMES[i % 10] for i in rows]

    def test_audit_and_pictures(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from PIL import Image

        import gentransforms as gt
        from benchmarks import audit_bundled

        photos = [(ROOT / "gentransforms" / "samples" / f"{name}.png").read_bytes() for name in audit_bundled.NAMES] * 2
        table = pa.table({"image": [{"bytes": b, "path": None} for b in photos], "label": list(range(10)) * 2})
        pq.write_table(table, tmp_path / "train.parquet")
        monkeypatch.setattr(audit_bundled.write_sources, "__defaults__", (1, 19))
        audit_bundled.write_sources(str(tmp_path / "train.parquet"), tmp_path / "sources.parquet")
        source = gt.open_source(tmp_path / "sources.parquet", key="row")
        gt.generate_bank(source, tmp_path / "bank", "icgan-cifar10-32", variants=2, progress=False)
        arguments = ["--train", tmp_path / "train.parquet", "--test", tmp_path / "train.parquet", "--bank", tmp_path / "bank"]
        arguments += ["--encoder", "generator", "--out", tmp_path / "out", "--pictures", tmp_path]
        monkeypatch.setattr(sys, "argv", ["audit_bundled", *map(str, arguments)])
        audit_bundled.main()
        assert "frog" in (tmp_path / "out" / "report.html").read_text()
        for name in ("audit-farthest", "audit-worst-class"):
            with Image.open(tmp_path / f"{name}.png") as picture:
                width, height = picture.size
            assert width == 3 * (32 * 3 + 2) + 6  # a source and two variants, three times as large
            assert (height + 6) % (32 * 3 + 6) == 0


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
