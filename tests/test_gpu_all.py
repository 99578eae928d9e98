"""The command for nine minutes on a GPU, rehearsed on the CPU: time limits, packing, failing and hanging parts, all parts in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from ssl_example import ssl

from benchmarks import gpu_all
from benchmarks.gpu_parts import bank, correctness, diffusion, icgan
from benchmarks.gpu_parts import images as gpu_images
from benchmarks.gpu_parts.context import Context
from benchmarks.packing import pack
from gentransforms.testing import FakeGenerator

ROOT = Path(__file__).parents[1]
# Stand-ins for parts: what they write before they end, fail or hang.
WRITE = (
    "import json, pathlib, sys; out = pathlib.Path(sys.argv[1]); (out / 'result.json').write_text(json.dumps({'summary': {'rate': 7}})); "
)
CODE = {
    "good": WRITE,
    "failing": WRITE + "print('the reason', flush=True); sys.exit(3)",
    "hanging": WRITE + "import subprocess, time; subprocess.Popen(['sleep', '300']); time.sleep(300)",
}


def part(number: int, name: str, limit: float | None = 30, least: float = 1, modules: tuple[str, ...] = ()) -> gpu_all.Part:
    return gpu_all.Part(number, name, f"a {name} part", limit, least, modules)


@pytest.fixture
def rehearse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run main with stand-ins for the parts; returns exit code and rows."""
    monkeypatch.setattr(gpu_all, "part_command", lambda part, args, folder, *_: [sys.executable, "-c", CODE[part.name], str(folder)])

    def run(parts: list[gpu_all.Part], *options: str) -> tuple[int, list[dict[str, Any]]]:
        monkeypatch.setattr(gpu_all, "PARTS", tuple(parts))
        numbers = ",".join(str(part.number) for part in parts)
        code = gpu_all.main(["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--parts", numbers, *options])
        return code, json.loads((tmp_path / "out" / "summary.json").read_text())["parts"]

    return run


class TestRunner:
    def test_a_part_costs_only_itself(self, rehearse: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        start = time.monotonic()
        code, rows = rehearse([part(1, "failing"), part(2, "hanging", limit=3), part(3, "good")])
        assert time.monotonic() - start < 60
        assert code == 1
        assert [row["outcome"] for row in rows] == [
            "failed with exit code 3, see log.txt in its file", "cut off at its time limit", "done",
        ]  # fmt: skip
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "part1-failing.zip", "part2-hanging.zip", "part3-good.zip", "summary.json", "summary.md",
        ]  # fmt: skip
        with zipfile.ZipFile(tmp_path / "out" / "part1-failing.zip") as packed:
            assert packed.read("log.txt") == b"the reason\n"
        with zipfile.ZipFile(tmp_path / "out" / "part2-hanging.zip") as packed:  # what it had found before
            assert json.loads(packed.read("result.json")) == {"summary": {"rate": 7}}
        assert all(row["figures"] == {"rate": 7} for row in rows)
        printed = capsys.readouterr().out
        assert "| 3. a good part | done |" in printed
        assert "rate: 7" in printed

    def test_parts_that_do_not_fit_are_skipped_by_name(self, rehearse: Any) -> None:
        code, rows = rehearse([part(1, "good"), part(2, "good", least=500), part(5, "good", limit=None, least=1)], "--minutes", "1")
        assert code == 0
        assert [row["outcome"].partition(":")[0] for row in rows] == ["done", "skipped", "done"]
        assert rows[1]["outcome"].endswith("run again with --parts 2")

    def test_missing_modules_are_named_at_once(self, rehearse: Any, capsys: pytest.CaptureFixture[str]) -> None:
        code, rows = rehearse([part(1, "good", modules=("json", "no_such_module")), part(2, "good")])
        assert (code, rows[0]["outcome"], rows[1]["outcome"]) == (0, "skipped: missing no_such_module", "done")
        assert capsys.readouterr().out.startswith("missing here: no_such_module;")
        assert rehearse([part(1, "good", modules=("no_such_module",))])[0] == 2

    def test_results_are_packed_while_a_part_runs(self, tmp_path: Path) -> None:
        packed: list[float] = []
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
        outcome = gpu_all.wait(process, time.monotonic() + 1, lambda: packed.append(time.monotonic()), tick=0.2)
        gpu_all.end_session(process)
        assert outcome == "cut off at its time limit"
        assert len(packed) >= 2
        assert process.returncode is not None

    def test_time_of_the_parts(self) -> None:
        assert [part.limit for part in gpu_all.PARTS] == [30, 60, 90, 300, None, None]
        assert [part.number for part in gpu_all.PARTS] == [1, 2, 3, 4, 5, 6]

    @pytest.mark.parametrize("options", [["--parts", "1,9"], ["--data", "no/where.parquet"], ["--wheels", "no/where"]])
    def test_wrong_calls(self, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert gpu_all.main(["--out", str(tmp_path / "out"), *options]) == 2
        assert options[0] in capsys.readouterr().err

    def test_wheels(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        with zipfile.ZipFile(tmp_path / "brought-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("brought_along.py", "value = 1\n")
            wheel.writestr("brought-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
            wheel.writestr("brought-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr("brought-1.0.dist-info/RECORD", "")
        environment = {"PYTHONPATH": str(ROOT)}
        assert gpu_all.find_missing(["brought_along"], environment) == ["brought_along"]
        gpu_all.install(tmp_path, tmp_path / "site", environment)
        assert environment["PYTHONPATH"].split(os.pathsep) == [str(ROOT), str(tmp_path / "site")]
        assert gpu_all.find_missing(["brought_along"], environment) == []
        gpu_all.install(tmp_path / "site", tmp_path / "other", environment)
        assert "could not be installed: there are none" in capsys.readouterr().out


class TestPacking:
    def test_small_and_telling_files_first(self, tmp_path: Path) -> None:
        folder = tmp_path / "part"
        (folder / "pretrained").mkdir(parents=True)
        (folder / "result.json").write_text("{}")
        (folder / "log.txt").write_text("said\n")
        (folder / "small.png").write_bytes(os.urandom(3000))
        (folder / "pretrained" / "model.safetensors").write_bytes(os.urandom(20_000))
        (folder / "huge.pt").write_bytes(os.urandom(50_000))
        assert pack(folder, tmp_path / "x.zip", limit=30_000) == ["huge.pt"]
        assert (tmp_path / "x.zip").stat().st_size < 30_000
        with zipfile.ZipFile(tmp_path / "x.zip") as packed:
            assert packed.testzip() is None
            assert packed.namelist() == ["result.json", "log.txt", "small.png", "pretrained/model.safetensors", "left_out.txt"]
        assert not list(tmp_path.glob("*.partial"))

    def test_sixteen_megabytes(self, tmp_path: Path) -> None:
        (tmp_path / "part").mkdir()
        for i in range(4):
            (tmp_path / "part" / f"{i}.bin").write_bytes(os.urandom(5_000_000))
        assert pack(tmp_path / "part", tmp_path / "x.zip") == ["3.bin"]
        assert 15_000_000 < (tmp_path / "x.zip").stat().st_size < 16_000_000


def run(out: Path, parts: str, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.gpu_all", "--device", "cpu", "--quick", "--out", str(out), "--parts", parts, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    rows: list[dict[str, Any]] = json.loads((out / "summary.json").read_text())["parts"]
    logs = {path.name: zipfile.ZipFile(path).read("log.txt").decode()[-2000:] for path in out.glob("*.zip")}
    assert done.returncode == 0, (done.stdout, done.stderr, logs)
    return rows


class TestParts:
    """Parts in miniature, in this process; those that start processes of their own are slow tests."""

    @pytest.fixture
    def context(self, tmp_path: Path, one_thread: None) -> Context:
        (tmp_path / "out").mkdir()
        return Context(torch.device("cpu"), True, None, None, tmp_path / "out", tmp_path / "work", time.monotonic() + 600)

    def test_correctness(self, context: Context) -> None:
        correctness.main(context)
        found = json.loads((context.out / "result.json").read_text())
        assert found["summary"] == {"passed": 9, "failed": 0, "skipped": 3}
        assert {name for name, one in found["checks"].items() if one["outcome"] == "skipped"} == {
            "no sync in the transform", "fork in a worker", "out of memory",
        }  # fmt: skip

    def test_a_check_that_fails_does_not_stop_the_others(self, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("check_bfloat16", "check_diffusion", "check_compile", "check_training_step"):
            monkeypatch.setattr(correctness, name, lambda *_: {})
        monkeypatch.setattr(correctness, "check_autocast", lambda _: next(iter(())))
        monkeypatch.setattr(correctness, "check", lambda _: {})
        with pytest.raises(SystemExit):
            correctness.main(context)
        summary = json.loads((context.out / "result.json").read_text())["summary"]
        assert summary == {"passed": 8, "failed": 1, "skipped": 3, "which failed": "autocast"}

    def test_differences_are_bounded(self) -> None:
        images, seeds = correctness.photos(3), torch.arange(3)
        generator = FakeGenerator(size=32)
        reference = generator(images, seeds)
        assert max(correctness.compare(generator, reference, images, seeds, 1e-4).values()) <= 1e-4
        for wrong in (reference + 0.01, reference * torch.nan):
            with pytest.raises(AssertionError, match=r"device_vs_cpu: .*expected at most"):
                correctness.compare(generator, wrong, images, seeds, 1e-4)

    def test_icgan(self, context: Context) -> None:
        icgan.main(context)
        found = json.loads((context.out / "result.json").read_text())
        assert [row["batch"] for row in found["rows"]] == [1, 2, 4]
        assert all(row["images_per_second"] > 0 and row["share_of_ceiling"] >= 0 for row in found["rows"])
        assert "images_per_second" in found["missed"]  # no CPU makes 3,000 a second
        assert "conv" in (context.out / "profile-icgan256.txt").read_text()

    def test_diffusion(self, context: Context) -> None:
        diffusion.main(context)
        found = json.loads((context.out / "result.json").read_text())
        assert [(row["what"], row["batch"]) for row in found["rows"]] == [
            ("ours", 2), ("stock", 2), ("ours", 1), ("stock", 1), ("ours, tiny VAE", 2),
        ]  # fmt: skip
        assert found["summary"]["times_stock"] > 0
        assert (context.out / "profile-unclip.txt").exists()

    def test_bank(self, context: Context) -> None:
        bank.main(context)
        found = json.loads((context.out / "result.json").read_text())
        assert found["images"] == 40
        assert found["summary"]["share_of_bare_generator"] > 0

    def test_held_out_images(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of one Parquet file those are held out that the SSL recipes hold out, and both have all classes."""
        monkeypatch.setattr(gpu_images, "HELD_OUT", 4)
        data = gpu_images.toy_images(tmp_path / "data.parquet", 22, 0)
        context = Context(torch.device("cpu"), False, data, None, tmp_path, tmp_path, time.monotonic() + 60)
        train, test = (pq.read_table(path) for path in gpu_images.labelled_images(context))
        kept, held = ssl("data").split_rows(22, None, 4)
        table = pq.read_table(data)
        assert train.equals(table.take(kept.numpy()))
        assert test.equals(table.take(held.numpy()))
        context.test = data
        assert gpu_images.labelled_images(context) == (data, data)


class TestRehearsal:
    """All parts, in miniature, on the CPU, in processes of their own."""

    @pytest.mark.slow
    def test_all_but_the_training(self, tmp_path: Path) -> None:
        correctness, icgan, diffusion, filled = run(tmp_path, "1,2,3,6", "--minutes", "15")
        assert (correctness["figures"]["passed"], correctness["figures"]["failed"], correctness["figures"]["skipped"]) == (9, 0, 3)
        assert icgan["figures"]["images_per_second"] > 0
        assert {"images_per_second", "times_stock", "draft_images_per_second"} <= set(diffusion["figures"])
        assert filled["figures"]["share_of_bare_generator"] > 0
        with zipfile.ZipFile(tmp_path / "part2-icgan.zip") as packed:
            assert {"result.json", "log.txt", "profile-icgan256.txt"} <= set(packed.namelist())

    @pytest.mark.slow
    def test_training_and_what_follows_it(self, tmp_path: Path) -> None:
        training, ssl = run(tmp_path, "4,5", "--minutes", "15")
        assert training["figures"]["training"] == "done"
        assert 0 <= training["figures"]["label_agreement"] <= 1
        with zipfile.ZipFile(tmp_path / "part4-training.zip") as packed:
            assert {"pretrained/config.json", "pretrained/model.safetensors", "evaluation/evaluation.json"} <= set(packed.namelist())
        with zipfile.ZipFile(tmp_path / "part5-ssl.zip") as packed:
            assert json.loads(packed.read("result.json"))["generator"].endswith("pretrained")  # that of part 4
        assert {"two real views", "bank", "online", "online, k-NN", "two real views, k-NN"} <= set(ssl["figures"])
