"""The command for nine minutes on a GPU, rehearsed on the CPU: time limits, packing, failing and hanging parts, all parts in small."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from ssl_example import ssl

from benchmarks import gpu_all, leftovers, packing, running
from benchmarks.gpu_parts import bank, correctness, diffusion, fair, icgan, scripts, training, weak
from benchmarks.gpu_parts import context as context_module
from benchmarks.gpu_parts import images as gpu_images
from benchmarks.gpu_parts.context import Context
from benchmarks.gpu_parts.fair_commands import MINIATURE
from benchmarks.packing import pack
from gentransforms.generators.diffusion.conditions import canny_edges, canny_magnitude
from gentransforms.testing import FakeGenerator

ROOT = Path(__file__).parents[1]
# Stand-ins for parts: what they write before they end, fail or hang.
WRITE = (
    "import json, pathlib, sys; out = pathlib.Path(sys.argv[1]); (out / 'result.json').write_text(json.dumps({'summary': {'rate': 7}})); "
)
CODE = {
    "good": WRITE,
    "failing": WRITE + "print('the reason', flush=True); sys.exit(3)",
    "slow": WRITE + "import time; time.sleep(1.5)",
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
    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_results_are_packed_while_a_part_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        packed: list[str] = []
        monkeypatch.setattr(running.Running, "pack", lambda one: packed.append(one.folder.name) or [])
        parts = [
            running.Running.begin(["sleep", "300"], tmp_path / name, tmp_path / f"{name}.zip", 1, seconds, tmp_path, dict(os.environ))
            for name, seconds in (("short", 0.5), ("long", 1.5))
        ]
        assert [one.folder.name for one in running.wait(parts, tick=0.3)] == ["short", "long"]
        assert {one.outcome for one in parts} == {"cut off at its time limit"}
        assert packed.count("long") > packed.count("short") >= 1
        assert all(one.process.returncode is not None for one in parts)

    def test_a_packing_that_fails_costs_nothing_else(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        failed: list[Path] = []

        def fail(folder: Path, *_: Any, **__: Any) -> list[str]:
            failed.append(folder)
            raise FileNotFoundError(2, "moved", "pretrained-part")

        monkeypatch.setattr(running, "pack", fail)
        one = running.Running.begin(["sleep", "0.5"], tmp_path / "a", tmp_path / "a.zip", 1, 30, tmp_path, dict(os.environ))
        assert [ended.outcome for ended in running.wait([one], tick=0.1)] == ["done"]
        assert failed
        (left_out,) = one.report()["not_packed"]
        assert left_out.startswith("whatever is newer than a.zip: ")
        assert "pretrained-part" in left_out

    def test_an_earlier_generator_is_forgotten_before_a_new_one(
        self, rehearse: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        work = tmp_path / "work"
        arms = [arm for arm in fair.ARMS if arm != "baseline"]
        folders = [f"banks/cifar10-fair-{arm}" for arm in arms]
        folders += [f"{place}/{fair.run_name(arm, 1)}" for place in ("runs", "part7-fair/runs") for arm in fair.ARMS]
        for name in folders:
            (work / name).mkdir(parents=True)
        for name in ("trained.json", "weak.json", "banks/cifar10-fair-neighbours.json"):
            (work / name).write_text("{}")
        before = {path.relative_to(work).as_posix() for path in work.rglob("*")}

        def present() -> set[str]:
            return before & {path.relative_to(work).as_posix() for path in work.rglob("*")}

        rehearse([part(7, "good")])
        rehearse([part(4, "good", least=500), part(7, "good")], "--minutes", "1")  # part 4 is skipped
        assert present() == before
        capsys.readouterr()
        rehearse([part(4, "good"), dataclasses.replace(part(7, "good"), beside=4)])
        gone = {name for name in folders if any(f"-{arm}" in name for arm in ("generated", "weak-1", "weak-2"))}
        assert len(gone) == 9
        assert present() == before - gone - {"trained.json", "weak.json"}
        (said,) = re.findall("removed, of an earlier generator: (.*)", capsys.readouterr().out)
        assert set(said.split(", ")) == gone
        assert {*leftovers.ARMS, *fair.REAL, "baseline"} == set(fair.ARMS)

    def test_no_part_is_left_running(self, tmp_path: Path) -> None:
        parts = [
            running.Running.begin(["sleep", "300"], tmp_path / name, tmp_path / f"{name}.zip", 1, seconds, tmp_path, dict(os.environ))
            for name, seconds in (("short", 0), ("long", 300))
        ]
        waiting = running.wait(parts)
        assert next(waiting) is parts[0]
        waiting.close()  # as an exception does
        assert parts[1].process.poll() is not None

    @pytest.mark.slow
    def test_a_part_that_runs_beside_another(self, rehearse: Any) -> None:
        beside = dataclasses.replace(part(7, "good", limit=None), beside=4, leaves=0)
        start = time.monotonic()
        code, rows = rehearse([part(4, "slow"), beside, part(3, "good")])
        assert (code, [row["part"] for row in rows]) == (0, [4, 7, 3])
        assert [row["outcome"] for row in rows] == ["done"] * 3
        assert rows[1]["seconds"] < rows[0]["seconds"] < time.monotonic() - start < 60
        assert rows[0]["seconds"] >= 1.5
        # behind another part it runs alone
        assert [[one.number for one in group] for group, _ in gpu_all.grouped([beside, part(4, "good"), part(3, "good")])] == [
            [7],
            [4],
            [3],
        ]

    @pytest.mark.slow
    def test_seconds_of_a_part_without_a_limit(self, rehearse: Any, capsys: pytest.CaptureFixture[str]) -> None:
        for leaves, expected in ((0.0, 120), (25.0, 70)):
            rehearse([dataclasses.replace(part(5, "good", limit=None), leaves=leaves), part(1, "good"), part(2, "good")], "--minutes", "2")
            (seconds,) = re.findall(r"part 5, a good part: at most (\d+) s", capsys.readouterr().out)
            assert expected - 10 < int(seconds) <= expected

    def test_time_of_the_parts(self) -> None:
        assert [part.limit for part in gpu_all.PARTS] == [60, 60, 150, 375, None, None, None]
        assert [part.number for part in gpu_all.PARTS] == [1, 2, 3, 4, 5, 6, 7]
        assert [(part.number, part.beside) for part in gpu_all.PARTS if part.beside] == [(7, 4)]

    @pytest.mark.parametrize("options", [["--parts", "1,9"], ["--data", "no/where.parquet"], ["--wheels", "no/where"]])
    def test_wrong_calls(self, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert gpu_all.main(["--out", str(tmp_path / "out"), *options]) == 2
        assert options[0] in capsys.readouterr().err

    @pytest.mark.slow
    def test_wheels(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("pip", reason="an environment that uv made has no pip; the lent machine has")
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

    def test_a_file_that_is_gone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        gone = tmp_path / "gone.json"
        monkeypatch.setattr(Path, "exists", lambda _: True)  # a moment ago
        assert packing._rank(gone) == (0, 0, gone.as_posix())

    @pytest.mark.slow
    def test_sixteen_megabytes(self, tmp_path: Path) -> None:
        (tmp_path / "part").mkdir()
        for i in range(4):
            (tmp_path / "part" / f"{i}.bin").write_bytes(os.urandom(5_000_000))
        assert pack(tmp_path / "part", tmp_path / "x.zip") == ["3.bin"]
        assert 15_000_000 < (tmp_path / "x.zip").stat().st_size < 16_000_000

    def test_several_files(self, tmp_path: Path) -> None:
        folder = tmp_path / "part"
        folder.mkdir()
        for i in range(6):
            (folder / f"{i}.ckpt").write_bytes(os.urandom(10_000))
        (folder / "events.0").write_bytes(os.urandom(9000))  # small and of another kind: before weights
        assert pack(folder, tmp_path / "x.zip", limit=24_000, files=3) == ["5.ckpt"]
        names = [zipfile.ZipFile(tmp_path / name).namelist() for name in ("x.zip", "x-2.zip", "x-3.zip")]
        assert names == [["events.0", "0.ckpt"], ["1.ckpt", "2.ckpt"], ["3.ckpt", "4.ckpt", "left_out.txt"]]
        for i in range(1, 6):
            (folder / f"{i}.ckpt").unlink()
        assert pack(folder, tmp_path / "x.zip", limit=24_000, files=3) == []
        assert sorted(path.name for path in tmp_path.glob("*.zip")) == ["x.zip"]


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

    @pytest.mark.slow
    def test_correctness(self, context: Context) -> None:
        correctness.main(context)
        found = json.loads((context.out / "result.json").read_text())
        assert found["summary"] == {"passed": 10, "failed": 0, "skipped": 3}
        assert {name for name, one in found["checks"].items() if one["outcome"] == "skipped"} == {
            "no sync in the transform", "fork in a worker", "out of memory",
        }  # fmt: skip

    def test_a_check_that_fails_does_not_stop_the_others(self, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in (
            "check_bfloat16",
            "check_tensor_float",
            "check_diffusion",
            "check_compile",
            "check_training_step",
            "check_two_devices",
        ):
            monkeypatch.setattr(correctness, name, lambda *_: {})
        monkeypatch.setattr(correctness, "check_autocast", lambda _: next(iter(())))
        monkeypatch.setattr(correctness, "check", lambda _: {})
        with pytest.raises(SystemExit):
            correctness.main(context)
        summary = json.loads((context.out / "result.json").read_text())["summary"]
        assert summary == {"passed": 10, "failed": 1, "skipped": 3, "which failed": "autocast"}

    def test_differences_are_bounded(self) -> None:
        images, seeds = correctness.photos(3), torch.arange(3)
        generator = FakeGenerator(size=32)
        reference = generator(images, seeds)
        assert max(correctness.compare(generator, reference, images, seeds, 1e-4).values()) <= 1e-4
        for wrong in (reference + 0.01, reference * torch.nan):
            with pytest.raises(AssertionError, match=r"device_vs_cpu: .*expected at most"):
                correctness.compare(generator, wrong, images, seeds, 1e-4)

    @pytest.mark.slow
    def test_icgan(self, context: Context) -> None:
        icgan.main(context)
        found = json.loads((context.out / "result.json").read_text())
        assert [row["batch"] for row in found["rows"]] == [1, 2, 4]
        assert all(row["images_per_second"] > 0 and row["share_of_ceiling"] >= 0 for row in found["rows"])
        assert "images_per_second" in found["missed"]  # no CPU makes 3,000 a second
        assert "conv" in (context.out / "profile-icgan256.txt").read_text()

    @pytest.mark.slow
    def test_diffusion(self, context: Context) -> None:
        diffusion.main(context)
        found = json.loads((context.out / "result.json").read_text())
        assert [(row["what"], row["batch"]) for row in found["rows"]] == [
            ("ours, contiguous", 2), ("ours", 2), ("stock", 2), ("ours, tiny VAE", 2), ("ours", 1), ("stock", 1),
        ]  # fmt: skip
        assert found["left_out"] == ["ours, compiled, 10 guided, batch 2"]
        assert found["summary"]["ours, contiguous, batch 2"] > 0
        assert found["summary"]["times_stock"] > 0
        assert (context.out / "profile-unclip.txt").exists()

    @pytest.mark.slow
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
        assert gpu_images.split_images(context) == gpu_images.Images(data, data, data, data)  # no images of the fair experiment

    def test_images_of_the_fair_experiment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of CIFAR-10, which is known by its size, some are held out whether there are test images or not."""
        monkeypatch.setattr(gpu_images, "HELD_OUT", 4)
        monkeypatch.setattr(gpu_images, "CIFAR", 22)
        data = gpu_images.toy_images(tmp_path / "data.parquet", 22, 0)
        context = Context(torch.device("cpu"), False, data, tmp_path / "test.parquet", tmp_path, tmp_path, time.monotonic() + 60)
        images = gpu_images.split_images(context)
        kept, held = ssl("data").split_rows(22, None, 4)
        assert pq.read_table(images.kept).equals(pq.read_table(data).take(kept.numpy()))
        assert pq.read_table(images.held).equals(pq.read_table(data).take(held.numpy()))
        assert (images.all, images.test, images.holdout) == (data, context.test, 4)
        assert gpu_images.labelled_images(context) == (data, context.test)
        context.test = None
        assert gpu_images.split_images(context) == dataclasses.replace(images, test=images.held)
        assert gpu_images.labelled_images(context) == (images.kept, images.held)
        assert not list(tmp_path.glob("*.[0-9]*"))


class TestTraining:
    """Part 4 with stand-ins for the scripts: whatever happens to the training, what it has learned comes back."""

    TRAIN = """
        import json, pathlib, sys, time
        out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
        (out / "samples").mkdir(parents=True)
        for step in (10, 20):
            (out / "samples" / f"{step:07d}.png").write_text(str(step))
            snapshot = out / "snapshots" / f"{step:07d}"
            snapshot.mkdir(parents=True)
            (snapshot / "model.safetensors").write_text(str(step))
            (snapshot / "training.json").write_text(json.dumps({"step": step}))
        (out / "snapshots" / "0000030").mkdir()  # half of one
        print(sys.argv[1:], flush=True)
    """
    EVALUATE = """
        import json, pathlib, sys
        out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
        out.mkdir()
        evaluated = pathlib.Path(sys.argv[sys.argv.index("--generator") + 1]) / "model.safetensors"
        (out / "evaluation.json").write_text(json.dumps({"label_agreement": 0.5, "recall": int(evaluated.read_text())}))
    """

    CLASSIFIER = """
        import pathlib, sys
        out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
        out.mkdir()
        (out / "classifier.pt").touch()
    """
    WEAK = """
        import pathlib, sys
        pathlib.Path(sys.argv[sys.argv.index("--out") + 1]).write_text('{"weak-1": 20, "weak-2": 10, "found": {"10": 0.5}}')
    """

    @pytest.fixture
    def part(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        scripts, work, out = (tmp_path / name for name in ("scripts", "work", "out"))
        for folder in (scripts, work, out):
            folder.mkdir()
        monkeypatch.setattr(training, "RECIPE", scripts)
        monkeypatch.setattr(weak, "COMMAND", [sys.executable, scripts / "weak.py"])
        images = gpu_images.Images(*(tmp_path / f"{name}.parquet" for name in ("all", "kept", "held", "test")))
        monkeypatch.setattr(training, "split_images", lambda _: images)

        def run_part(ending: str, judge: str = self.CLASSIFIER, seconds: float = 300.0) -> tuple[dict[str, Any], Path]:
            codes = {"train": self.TRAIN + ending, "classifier": judge, "evaluate": self.EVALUATE, "weak": self.WEAK}
            for name, text in codes.items():
                (scripts / f"{name}.py").write_text(textwrap.dedent(text))
            context = Context(torch.device("cpu"), False, None, None, out, work, time.monotonic() + seconds)
            with pytest.raises(SystemExit):
                training.main(context)
            return json.loads((context.out / "result.json").read_text()), context.out

        return run_part

    @pytest.mark.slow
    def test_cut_off(self, part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(training, "EVALUATION", 297.0)
        trainers: list[Any] = []
        told: list[Any] = []
        given: list[float] = []
        started, write, end = training.started, weak.write, weak.Choice.end

        @contextlib.contextmanager
        def noted(context: Context, name: str, command: list[Any]) -> Any:
            with started(context, name, command) as process:
                trainers.extend([process] if name == "train" else [])
                yield process

        monkeypatch.setattr(training, "started", noted)
        monkeypatch.setattr(weak, "write", lambda path, **found: (told.append((path.name, trainers[0].poll())), write(path, **found)))
        monkeypatch.setattr(weak.Choice, "end", lambda one, judged, seconds: (given.append(seconds), end(one, judged, seconds)))
        found, out = part("    time.sleep(300)\n    ")
        assert found["training"].startswith("cut off after")
        assert found["summary"] == {"training": found["training"], "steps": 20, "label_agreement": 0.5, "recall": 20}
        assert (out / "pretrained" / "model.safetensors").read_text() == (out / "samples.png").read_text() == "20"
        trained = json.loads((out.parent / "work" / "trained.json").read_text())  # for part 7
        assert trained == {"training": found["training"], "generator": str(out.parent / "work" / "generator" / "snapshots" / "0000020")}
        assert told == [("trained.json", -signal.SIGKILL)], "the trainer must have left the device when part 7 begins"
        assert 30 < given[0] <= 40  # of what is kept for the evaluation

    def test_failed(self, part: Any) -> None:
        found, out = part("    sys.exit(7)\n    ", seconds=345.0)
        assert found["summary"] == {"training": "failed with exit code 7", "steps": 20, "label_agreement": 0.5, "recall": 20}
        # START and EVALUATION are kept of the 345 s, and the rest is divided
        assert re.findall(r"(\w+)\.seconds=(\d+)", (out / "train.txt").read_text()) == [("encoder", "76"), ("generator", "106")]
        # of the images, the generator sees those that are not held out
        assert f"'--data', '{out.parent / 'kept.parquet'}'" in (out / "train.txt").read_text()

    def test_the_weak_snapshots_and_the_judge_come_back(self, part: Any) -> None:
        found, out = part("    sys.exit(7)\n    ")
        assert [(out / arm / "model.safetensors").read_text() for arm in ("weak-1", "weak-2")] == ["20", "10"]
        assert found["weak"] == {"weak-1": 20, "weak-2": 10, "found": {"10": 0.5}}
        assert (out / "judge" / "classifier.pt").exists()

    def test_without_a_judge_the_weights_come_back(self, part: Any) -> None:
        found, out = part("    sys.exit(7)\n    ", judge="import sys; sys.exit(2)")
        assert found["judge"] == "failed with exit code 2"
        assert (out / "pretrained" / "model.safetensors").exists()
        assert not (out / "evaluation").exists()
        assert found["weak"] == {"weak-1": 10, "weak-2": 20, "outcome": "nothing to judge by"}
        assert (out / "weak-1" / "model.safetensors").read_text() == "10"


class TestFinish:
    def test_what_is_cut_off_writes_nothing_later(self, tmp_path: Path) -> None:
        context = Context(torch.device("cpu"), False, None, None, tmp_path, tmp_path, time.monotonic() + 60)
        with scripts.started(context, "weak", ["sleep", "300"]) as process:
            assert scripts.finish("weak", process, 0.1).startswith("cut off after")
            assert process.poll() is not None


class TestInstructions:
    """GPU.md: its commands are calls that the program takes, and its list of wheels holds what the parts import."""

    def commands(self) -> list[str]:
        blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "benchmarks" / "GPU.md").read_text(), re.DOTALL)
        return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]

    def test_commands(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = [shlex.split(line)[3:] for line in self.commands() if line.startswith("python3 -m benchmarks.gpu_all")]
        assert len(calls) == 2
        (tmp_path / ".gpu" / "wheels").mkdir(parents=True)
        for name in ("train.parquet", "test.parquet"):
            (tmp_path / ".gpu" / name).touch()
        monkeypatch.chdir(tmp_path)
        ran: list[Any] = []
        monkeypatch.setattr(gpu_all, "run_parts", lambda parts, args, *_: ran.append((parts, args)) or [])
        monkeypatch.setattr(gpu_all, "install", lambda wheels, site, environment: ran.append(wheels))
        monkeypatch.setattr(gpu_all, "reading_ahead", lambda _: contextlib.nullcontext())
        for call in calls:
            options = [word.replace("$OUT", "out").replace("/tmp/gpu_all", "work") for word in call]
            gpu_all.main(options)
        (first, first_args), (second, second_args) = ran[1], ran[3]
        assert ran[0] == ran[2] == Path(".gpu/wheels")
        assert [part.number for part in first] == [4, 7, 3]
        assert [part.number for part in second][:2] == [3, 1]
        assert {part.number for part in [*first, *second]} == {part.number for part in gpu_all.PARTS}
        for parts in (first, second):  # eight files at most come back
            assert sum(part.files for part in parts) + len(["summary.md", "summary.json"]) <= 8
        assert first_args.work == second_args.work  # with which the second goes on
        assert (first_args.device, first_args.quick) == ("cuda", False)
        assert first_args.minutes + second_args.minutes < 13  # of the fifteen that a machine may be had for, less its start
        assert first_args.minutes < 9.5  # of the ten that a command may take: packing comes after it
        assert sum(part.limit for part in second[:2]) <= 60 * second_args.minutes

    def test_wheels_are_those_of_the_constraints(self) -> None:
        wheels = dict(re.findall(r"([\w-]+)==([\w.]+)", " ".join(self.commands())))
        constraints = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
        assert len(wheels) == 13
        assert {name: constraints[name] for name in wheels} == wheels

    @pytest.mark.parametrize("part", gpu_all.PARTS, ids=lambda part: part.name)
    def test_parts_name_what_they_import(self, part: gpu_all.Part) -> None:
        wanted = {"diffusers": "importlib_metadata", "omegaconf": "antlr4", "datasets": "dill", "lightly": "hydra", "kornia": "kornia_rs"}
        assert {needed for name, needed in wanted.items() if name in part.modules} <= set(part.modules)

    def test_what_is_read_ahead_exists(self) -> None:
        assert all(importlib.util.find_spec(name.partition(".")[0]) is not None for name in gpu_all.AHEAD)

    def test_limits_in_the_table(self) -> None:
        text = (ROOT / "benchmarks" / "GPU.md").read_text()
        for part in gpu_all.PARTS:
            assert f"| {part.number} | {'what is left' if part.limit is None else f'{part.limit:.0f} s'} |" in text


class TestContext:
    def test_imports_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ["part", "--device", "cpu", "--out", str(tmp_path / "out"), "--work", str(tmp_path), "--seconds", "60"]
        monkeypatch.setattr(sys, "argv", [*arguments, "--since", str(time.time() - 25)])
        left: list[float] = []
        context_module.run(lambda context: left.append(context.left()), None)
        assert 30 < left[0] <= 35

    def test_edges_that_no_rounding_moves(self) -> None:
        """The images of the ControlNet checks have edges, and float64 finds the same ones; smooth ones have ties everywhere."""
        images = correctness.discs(3)
        low, high = (torch.full((3,), value / 255) for value in (100, 200))
        edges = [canny_edges(canny_magnitude(x).float(), low, high) for x in (images, images.double())]
        assert torch.equal(*edges)
        assert (edges[0].mean(dim=(1, 2, 3)) > 0.02).all()
        assert images.min() >= 0
        assert images.max() <= 1


class TestRehearsal:
    """All parts, in miniature, on the CPU, in processes of their own."""

    @pytest.mark.slow
    def test_all_but_the_training(self, tmp_path: Path) -> None:
        correctness, icgan, diffusion, filled = run(tmp_path, "1,2,3,6", "--minutes", "15")
        assert (correctness["figures"]["passed"], correctness["figures"]["failed"], correctness["figures"]["skipped"]) == (10, 0, 3)
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
            assert {"weak-1/model.safetensors", "weak-2/model.safetensors", "judge/classifier.pt"} <= set(packed.namelist())
            measured = json.loads(packed.read("result.json"))["weak"]
            assert set(measured["found"]) == {"1", "2", "4"}  # its snapshots
        with zipfile.ZipFile(tmp_path / "part5-ssl.zip") as packed:
            assert json.loads(packed.read("result.json"))["generator"].endswith("pretrained")  # that of part 4
            assert "conv" in packed.read("profile-step.txt").decode()
        assert {"two real views", "bank", "online", "online, k-NN", "two real views, k-NN"} <= set(ssl["figures"])
        assert "two real views, compiled" not in ssl["figures"]  # on a CPU it would take minutes

    @pytest.mark.slow
    def test_the_fair_experiment(self, tmp_path: Path) -> None:
        """Beside the training; what comes back is evaluated on a machine that has no banks."""
        training, fair = run(tmp_path / "out", "4,7", "--minutes", "15", "--work", str(tmp_path / "work"))
        assert training["outcome"] == fair["outcome"] == "done"
        assert fair["figures"] == {"runs": 6, "of": 6, "whole seeds": 1}
        with zipfile.ZipFile(tmp_path / "out" / "part7-fair.zip") as packed:
            packed.extractall(tmp_path / "fair")
        with zipfile.ZipFile(tmp_path / "out" / "part4-training.zip") as packed:
            packed.extractall(tmp_path / "generator")
        for arm, among in (("oracle", None), ("neighbours", 10)):
            made = json.loads((tmp_path / "fair" / "banks" / f"cifar10-fair-{arm}.json").read_text())
            assert (made["variants"], made["among"], made["sources"]) == (5, among, 24)
        shutil.rmtree(tmp_path / "work" / "banks")
        data = [f"data.{part}={tmp_path / 'work' / f'toy-{part}.parquet'}" for part in ("train", "test")]
        (command,) = [line for line in TestInstructions().commands() if "reproduce.py" in line]
        command = command.replace("gpu/", "").replace("--seeds 0 1 2", "--seeds 0 1 --probe-epochs 2")
        words = [word for word in shlex.split(command)[2:] if not word.startswith("data.")]
        words = [str(ROOT / word) if word.startswith("examples/") else word for word in words]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "ssl" / "reproduce.py"), *words, *data, "data.holdout=0", *MINIATURE],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout, done.stderr)
        assert "not trained to the end: simclr-baseline-seed1, simclr-generated-seed1" in done.stdout
        results = json.loads((tmp_path / "fair" / "runs" / "results.json").read_text())
        assert {run["generator"] for run in results} == {"baseline", "generated", "oracle", "weak-1", "weak-2", "neighbours"}
        assert {run["training"]["images"] for run in results} == {24}
