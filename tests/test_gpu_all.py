"""The command for nine minutes on a GPU, rehearsed on the CPU: time limits, packing, failing and hanging parts, all parts in small."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
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

from benchmarks import gpu_all
from benchmarks.gpu_parts import bank, correctness, diffusion, icgan, training
from benchmarks.gpu_parts import context as context_module
from benchmarks.gpu_parts import images as gpu_images
from benchmarks.gpu_parts.context import Context
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
        assert [part.limit for part in gpu_all.PARTS] == [60, 60, 90, 300, None, None]
        assert [part.number for part in gpu_all.PARTS] == [1, 2, 3, 4, 5, 6]

    @pytest.mark.parametrize("options", [["--parts", "1,9"], ["--data", "no/where.parquet"], ["--wheels", "no/where"]])
    def test_wrong_calls(self, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert gpu_all.main(["--out", str(tmp_path / "out"), *options]) == 2
        assert options[0] in capsys.readouterr().err

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

    @pytest.mark.slow
    def test_correctness(self, context: Context) -> None:
        correctness.main(context)
        found = json.loads((context.out / "result.json").read_text())
        assert found["summary"] == {"passed": 10, "failed": 0, "skipped": 3}
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
        assert summary == {"passed": 9, "failed": 1, "skipped": 3, "which failed": "autocast"}

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
            ("ours", 1), ("stock", 1), ("ours", 2), ("ours, tiny VAE", 2), ("stock", 2),
        ]  # fmt: skip
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

    @pytest.fixture
    def part(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        scripts = tmp_path / "scripts"
        scripts.mkdir()
        monkeypatch.setattr(training, "RECIPE", scripts)

        def run_part(ending: str, judge: str = "", seconds: float = 300.0) -> tuple[dict[str, Any], Path]:
            for name, text in {"train": self.TRAIN + ending, "classifier": judge, "evaluate": self.EVALUATE}.items():
                (scripts / f"{name}.py").write_text(textwrap.dedent(text))
            data, test, out = (tmp_path / name for name in ("train.parquet", "test.parquet", "out"))
            context = Context(torch.device("cpu"), False, data, test, out, tmp_path / "work", time.monotonic() + seconds)
            out.mkdir()
            with pytest.raises(SystemExit):
                training.main(context)
            return json.loads((context.out / "result.json").read_text()), context.out

        return run_part

    def test_cut_off(self, part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(training, "EVALUATION", 295.0)
        found, out = part("    time.sleep(300)\n    ")
        assert found["training"].startswith("cut off after")
        assert found["summary"] == {"training": found["training"], "steps": 20, "label_agreement": 0.5, "recall": 20}
        assert (out / "pretrained" / "model.safetensors").read_text() == (out / "samples.png").read_text() == "20"

    def test_failed(self, part: Any) -> None:
        found, out = part("    sys.exit(7)\n    ")
        assert found["summary"] == {"training": "failed with exit code 7", "steps": 20, "label_agreement": 0.5, "recall": 20}
        # START and EVALUATION are kept of the 300 s, and the rest is divided
        assert re.findall(r"(\w+)\.seconds=(\d+)", (out / "train.txt").read_text()) == [("encoder", "70"), ("generator", "109")]

    def test_without_a_judge_the_weights_come_back(self, part: Any) -> None:
        found, out = part("    sys.exit(7)\n    ", judge="import sys; sys.exit(2)")
        assert found["judge"] == "failed with exit code 2"
        assert (out / "pretrained" / "model.safetensors").exists()
        assert not (out / "evaluation").exists()


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
        assert [part.number for part in first] == [1, 2, 3, 4, 5, 6]
        assert [part.number for part in second] == [5, 6]
        assert first_args.work == second_args.work  # with which the second goes on
        assert (first_args.device, first_args.quick) == ("cuda", False)
        assert first_args.minutes + second_args.minutes < 13  # of the fifteen that a machine may be had for, less its start

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
        with zipfile.ZipFile(tmp_path / "part5-ssl.zip") as packed:
            assert json.loads(packed.read("result.json"))["generator"].endswith("pretrained")  # that of part 4
        assert {"two real views", "bank", "online", "online, k-NN", "two real views, k-NN"} <= set(ssl["figures"])
