"""The fair experiment of the GPU's command: what begins when, what gives way, and what comes back; its processes are stand-ins."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from ssl_example import CONFIGS, TINY, call, ssl, write_photos

from benchmarks.gpu_parts import fair, weak
from benchmarks.gpu_parts.context import Context
from benchmarks.gpu_parts.fair_commands import Commands
from benchmarks.gpu_parts.finished import keep_run
from benchmarks.gpu_parts.images import Images
from benchmarks.gpu_parts.processes import Processes
from benchmarks.gpu_parts.schedule import Forecast, Look, who_gives_way
from benchmarks.packing import pack
from gentransforms.bank.generate.run import generate_bank
from gentransforms.testing import FakeGenerator

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:::pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


def forecast(**runs: tuple[float, float, float]) -> Forecast:
    """Return the forecast of runs that were looked at twice, 20 s apart: steps at both times, of how many."""
    made = Forecast()
    for name, (first, second, total) in runs.items():
        made.add(name, Look(100, first, total))
        made.add(name, Look(120, second, total))
    return made


class TestForecast:
    def test_rate_over_all_that_was_seen(self) -> None:
        made = forecast(a=(0, 100, 1000))
        assert (made.rate("a"), made.remaining("a")) == (5, 900)
        made.add("a", Look(140, 400, 1000))  # faster since
        assert (made.rate("a"), made.remaining("a")) == (10, 600)
        made.forget()
        assert (made.rate("a"), made.remaining("a")) == (None, 600)
        made.add("a", Look(141, 420, 1000))  # too soon after it
        assert made.rate("a") is None
        made.add("a", Look(160, 800, 1000))
        assert made.rate("a") == 20

    def test_unknown(self) -> None:
        assert Forecast().rate("a") is None


class TestWhoGivesWay:
    ages = dict.fromkeys("abcd", 30.0)

    def test_nobody_where_all_end(self) -> None:
        made = forecast(a=(0, 200, 1000), b=(0, 200, 1000))  # 20 a second, 1,600 left
        assert who_gives_way(["a", "b"], self.ages, made, 80) == []
        assert who_gives_way(["a", "b"], self.ages, made, 79) == ["b"]

    def test_the_last_ones_and_no_more_than_need_be(self) -> None:
        made = forecast(**dict.fromkeys("abcd", (0, 100, 1000)))  # 20 a second, 3,600 left: 180 s
        assert who_gives_way(list("abcd"), self.ages, made, 140) == ["d"]
        assert who_gives_way(list("abcd"), self.ages, made, 100) == ["d", "c"]
        assert who_gives_way(list("dcba"), self.ages, made, 140) == ["a"]

    @pytest.mark.parametrize("seconds", [1.0, 0.0, -5.0])
    def test_one_always_stays(self, seconds: float) -> None:
        made = forecast(**dict.fromkeys("abcd", (0, 100, 1000)))
        assert who_gives_way(list("abcd"), self.ages, made, seconds) == ["d", "c", "b"]
        assert who_gives_way(["a"], self.ages, made, seconds) == []
        assert who_gives_way([], {}, Forecast(), seconds) == []

    def test_waits_for_runs_that_have_just_begun_but_not_for_those_that_hang(self) -> None:
        made = forecast(a=(0, 100, 1000), b=(0, 100, 1000))
        assert who_gives_way(["a", "b", "c"], self.ages, made, 10) == []
        assert who_gives_way(["a", "b", "c"], self.ages | {"c": 61.0}, made, 10) == ["b"]
        made.forget()
        made.add("c", Look(120, 100, 1000))
        old = dict.fromkeys("abc", 300.0)
        for name in "ab":
            made.add(name, Look(140, 200, 1000))
        assert who_gives_way(list("abc"), old, made, 10) == [], "the third is looked at a moment later"
        made.add("c", Look(141, 200, 1000))
        assert who_gives_way(list("abc"), old, made, 10) == ["c", "b"]


class FakeProcesses:
    """Notes what is started; a test says how it ends."""

    def __init__(self) -> None:
        self.commands: dict[str, list[str]] = {}
        self.states: dict[str, str] = {}

    def start(self, name: str, command: list[object], threads: int = 1) -> None:
        assert name not in self.commands, "started twice"
        self.commands[name], self.states[name] = [str(word) for word in command], "running"

    def state(self, name: str) -> str:
        return self.states.get(name, "absent")

    def age(self, name: str) -> float:
        return 100.0

    def stop(self, name: str) -> None:
        self.states[name] = "failed"

    def stop_all(self) -> None:
        for name in self.running():
            self.stop(name)

    def end(self, start: str, state: str = "done") -> None:
        self.states |= {name: state for name in self.states if name.startswith(start)}

    def running(self) -> set[str]:
        return {name for name, state in self.states.items() if state == "running"}


class TestFair:
    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Return a function that makes a Fair with so many seconds left, with stand-ins for its processes."""
        monkeypatch.setattr(fair, "keep_run", lambda folder, target: (target / "kept").mkdir(parents=True))

        def make(seconds: float = 500.0) -> fair.Fair:
            out, work = tmp_path / "out", tmp_path / "work"
            out.mkdir(exist_ok=True)
            images = Images(*(tmp_path / f"{name}.parquet" for name in ("all", "kept", "held", "test")), holdout=5000)
            context = Context(torch.device("cuda"), False, None, None, out, work, time.monotonic() + seconds)
            return fair.Fair(context, images, FakeProcesses())  # type: ignore[arg-type]

        return make

    def snapshot(self, one: fair.Fair, step: int) -> None:
        folder = one.context.work / "generator" / "snapshots" / f"{step:07d}"
        folder.mkdir(parents=True)
        (folder / "training.json").write_text("{}")

    def progress(self, one: fair.Fair, at: float, steps: dict[str, float]) -> None:
        for name, step in steps.items():
            one.folder(name).mkdir(parents=True, exist_ok=True)
            (one.folder(name) / "progress").write_text(f"{at} {step} 3500\n")

    def test_in_order(self, place: Any) -> None:
        one = place()
        begun: Any = one.processes
        assert one.tick()
        assert begun.running() == {"bank-oracle"}  # needs no generator
        self.snapshot(one, 125)
        self.snapshot(one, 500)
        one.tick()
        assert begun.running() == {"bank-oracle", "bank-neighbours"}
        words = begun.commands["bank-neighbours"]
        assert [words[words.index(f"--{option}") + 1] for option in ("variants", "among")] == ["5", "10"]
        assert words[words.index("--generator") + 1].endswith("snapshots/0000125")
        begun.end("bank-oracle")
        one.tick()
        assert not any(name.startswith("simclr") for name in begun.commands), "the generator still trains"

        weak.write(one.context.work / "trained.json", training="done", generator="made")
        one.tick()
        assert {name for name in begun.running() if name.startswith("simclr")} == {
            f"simclr-{arm}-seed{seed}" for arm in ("baseline", "oracle") for seed in (0, 1, 2)
        }
        assert {name for name in begun.running() if name.startswith("bank")} == {
            "bank-neighbours", *(f"bank-generated-{i}" for i in range(4)),
        }  # fmt: skip
        weak.write(one.context.work / "weak.json", **{"weak-1": 125, "weak-2": 500}, found={"125": 0.4, "500": 0.6})
        one.tick()
        assert begun.commands["bank-weak-2-3"][4].endswith("snapshots/0000500")
        assert begun.commands["bank-weak-2-3"][5:9] == ["3", "4", "5", "cuda"]
        begun.end("bank-generated-0")
        one.tick()
        assert "simclr-generated-seed0" not in begun.commands, "three quarters of its bank are not there"
        for name in ("bank-generated", "bank-weak-1", "bank-neighbours"):
            begun.end(name)
        begun.end("bank-weak-2-1", "failed")
        one.tick()
        assert "simclr-generated-seed2" in begun.running()
        assert one.ended == {f"simclr-weak-2-seed{seed}": "no bank" for seed in (0, 1, 2)}

        begun.end("simclr")
        begun.end("simclr-weak-1-seed1", "failed")
        assert not one.tick(), "nothing is left to wait for"
        one.end()
        found = json.loads((one.context.out / "result.json").read_text())
        assert found["summary"] == {"runs": 14, "of": 18, "whole seeds": 0}
        assert found["runs"]["simclr-weak-1-seed1"] == "failed"
        assert found["banks"] == {"generated": "done", "oracle": "done", "weak-2": "failed", "weak-1": "done", "neighbours": "done"}
        assert len(list((one.context.out / "runs").glob("*/kept"))) == 14

    def test_without_a_generator(self, place: Any) -> None:
        """What needs none is run all the same: at once if part 4 says so, else when it has been waited for long enough."""
        for seconds, said in ((500.0, True), (fair.WITHOUT - 1, False)):
            one = place(seconds)
            if said:
                one.context.work.mkdir()
                weak.write(one.context.work / "trained.json", training="failed", generator=None)
            one.tick()
            assert "simclr-baseline-seed2" in one.processes.commands
            assert (
                one.ended["simclr-generated-seed0"] == one.ended["simclr-weak-1-seed0"] == one.ended["simclr-neighbours-seed0"] == "no bank"
            )
            assert "simclr-oracle-seed0" not in one.ended
            (one.context.work / "trained.json").unlink(missing_ok=True)

    def test_weak_snapshots_that_nobody_chose(self, place: Any) -> None:
        one = place()
        self.snapshot(one, 125)
        weak.write(one.context.work / "trained.json", training="done", generator="made")
        weak.write(one.context.work / "weak.json", outcome="nothing to judge by")
        one.tick()
        assert {name for name, state in one.ended.items() if state == "no bank"} == {
            f"simclr-weak-{i}-seed{seed}" for i in (1, 2) for seed in (0, 1, 2)
        }

    def test_the_last_of_the_plan_give_way(self, place: Any) -> None:
        one = place(300.0)
        one.context.work.mkdir()
        weak.write(one.context.work / "trained.json", training="done", generator="made")
        one.tick()
        one.processes.end("bank-oracle")
        one.tick()
        runs = [name for name in one.names if one.processes.state(name) == "running"]
        assert len(runs) == 6
        self.progress(one, 1000, dict.fromkeys(runs, 0))
        one.tick()
        # 20 s later each has made 200 steps: 60 a second, 19,800 left, 285 s: 17,100
        self.progress(one, 1020, dict.fromkeys(runs, 200))
        one.tick()
        assert one.ended == {"simclr-oracle-seed2": "gave way with 3300 steps left"}
        assert one.processes.state("simclr-oracle-seed2") == "failed"
        one.tick()
        assert len(one.ended) == 1, "the others are looked at anew"
        one.end()
        found = json.loads((one.context.out / "result.json").read_text())["runs"]
        assert found["simclr-oracle-seed1"] == "cut off"
        assert found["simclr-generated-seed0"] == "absent"

    def test_rates_are_measured_anew_when_a_run_begins(self, place: Any) -> None:
        one = place()
        one.context.work.mkdir()
        weak.write(one.context.work / "trained.json", training="done", generator="made")
        one.tick()
        runs = [name for name in one.names if one.processes.state(name) == "running"]
        for at, step in ((1000, 0), (1020, 200)):
            self.progress(one, at, dict.fromkeys(runs, step))
            one.tick()
        assert [one.forecast.rate(name) for name in runs] == [10.0] * 3
        one.processes.end("bank-oracle")
        one.tick()  # three more share the device
        assert [one.forecast.rate(name) for name in runs] == [None] * 3

    def test_an_earlier_call_is_continued(self, place: Any) -> None:
        one = place()
        (one.context.out / "runs" / "simclr-baseline-seed1").mkdir(parents=True)
        again = place()
        self.progress(again, 1000, {"simclr-baseline-seed0": 250})  # it gave way then
        weak.write(again.context.work / "trained.json", training="done", generator="made")
        again.tick()
        assert not again.forecast.looks, "the time between the calls is not its own"
        assert {name for name in again.processes.commands if name.startswith("simclr")} == {
            "simclr-baseline-seed0", "simclr-baseline-seed2",
        }  # fmt: skip
        assert again.ended == {"simclr-baseline-seed1": "done"}

    def test_time_is_over(self, place: Any) -> None:
        assert not place(fair.TAIL - 1).tick()

    def test_refused_without_part_4(self, tmp_path: Path) -> None:
        context = Context(torch.device("cpu"), True, None, None, tmp_path / "out", tmp_path / "work", time.monotonic() + 60)
        with pytest.raises(SystemExit, match="there is no generator, and nobody trains one"):
            fair.main(context)


class TestCommands:
    def test_runs_are_those_of_the_plan(self, tmp_path: Path) -> None:
        """reproduce.py, with the README's arguments, takes the runs for its own."""
        commands = Commands(Images(tmp_path / "train", tmp_path, tmp_path, tmp_path / "test", 5000), "cuda", False)
        free = {*ssl("train").FREE, *ssl("train").RECORDED}
        for arm in fair.ARMS:
            _, _, module, config, out, *settings = map(str, commands.run(arm, 2, tmp_path / "out"))
            assert (module, out) == ("benchmarks.gpu_parts.fair_run", str(tmp_path / "out"))
            own = ssl("config").flatten(ssl("config").load_settings(config, settings))
            plan = ssl("config").flatten(ssl("config").load_settings(CONFIGS / "cifar10-fair" / f"simclr-{arm}.yaml", ["seed=2"]))
            assert {name for name in own if own[name] != plan[name]} <= free
            assert own["trainer.accelerator"] == "gpu"
            assert fair.run_name(arm, 2) == ssl("reproduce").run_folder(tmp_path, "simclr", arm, 2).name


class TestProcesses:
    def test_states(self, tmp_path: Path) -> None:
        made = Processes(tmp_path / "logs", tmp_path / "place")
        assert made.state("a") == "absent"
        for name, code in {"good": "pwd; echo $OMP_NUM_THREADS", "bad": "exit 3", "long": "exec sleep 300"}.items():
            made.start(name, ["sh", "-c", code], threads=3)
        until = time.monotonic() + 30
        while "running" in (made.state("good"), made.state("bad")) and time.monotonic() < until:
            time.sleep(0.01)
        assert [made.state(name) for name in ("good", "bad", "long")] == ["done", "failed", "running"]
        assert (tmp_path / "logs" / "good.txt").read_text() == f"{tmp_path / 'place'}\n3\n"
        assert 0 <= made.age("long") < 60
        made.stop_all()
        assert [made.state(name) for name in ("good", "bad", "long")] == ["done", "failed", "failed"]


class TestWeak:
    def test_nearest_to_the_aims(self) -> None:
        found = {125: 0.2, 250: 0.33, 500: 0.47, 1000: 0.55, 2000: 0.66}
        assert weak.choose(found) == {"weak-1": 500, "weak-2": 1000}
        assert weak.choose({500: 0.5, 1000: 0.7}) == {"weak-1": 500, "weak-2": 1000}  # two different ones
        assert weak.choose({500: 0.5}) == {"weak-1": 500}
        assert weak.choose({}) == {}

    def test_without_a_judge(self) -> None:
        assert weak.choose_unmeasured([1000, 125, 250, 500]) == {"weak-1": 125, "weak-2": 500}
        assert weak.choose_unmeasured([125, 250]) == {"weak-1": 125, "weak-2": 250}
        assert weak.choose_unmeasured([125]) == {}


class TestChoice:
    @pytest.mark.parametrize("wrote", [pytest.param(False, marks=pytest.mark.slow), True])
    def test_cut_off(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrote: bool) -> None:
        """A choice that was written before the end stays: part 7 may have read it."""
        for step in (1, 2, 3, 4):
            (tmp_path / "snapshots" / f"{step:07d}").mkdir(parents=True)
            (tmp_path / "snapshots" / f"{step:07d}" / "training.json").write_text("{}")
        context = Context(torch.device("cpu"), True, None, None, tmp_path / "out", tmp_path, time.monotonic() + 60)
        context.out.mkdir()
        with contextlib.ExitStack() as stack:
            choice = weak.Choice(context, tmp_path / "snapshots", tmp_path, tmp_path, stack)
            written = "import pathlib; pathlib.Path('weak.json').write_text('{\"weak-1\": 2, \"weak-2\": 4}')\n" if wrote else ""
            choice.command = [sys.executable, "-c", f"import time, os; os.chdir({str(tmp_path)!r})\n{written}time.sleep(60)"]
            choice.begin()
            while wrote and not choice.path.exists():
                time.sleep(0.01)
            choice.end(True, 1.0)
        found = json.loads(choice.path.read_text())
        assert [found[arm] for arm in ("weak-1", "weak-2")] == ([2, 4] if wrote else [1, 3])
        assert (context.out / "weak-1" / "training.json").exists()


class TestKeepRun:
    """A run that was trained elsewhere: small, and evaluated like any other without its bank."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        write_photos(tmp_path / "train", 8, size=16)
        write_photos(tmp_path / "test", 4, size=16, seed=1)
        generate_bank(str(tmp_path / "train"), tmp_path / "bank", FakeGenerator(), variants=2, progress=False)
        return tmp_path

    def options(self, place: Path) -> list[str]:
        return [
            *TINY, f"data.train={place / 'train'}", f"data.test={place / 'test'}", f"generative.bank={place / 'bank'}",
            "trainer.epochs=2", "optimizer.warmup_epochs=0", "probe.every=2",
        ]  # fmt: skip

    def reproduce(self, monkeypatch: pytest.MonkeyPatch, place: Path, out: str, *settings: str, only: str = "--trained-only") -> None:
        call(
            monkeypatch, place, "reproduce", "--configs", str(CONFIGS / "cifar10-fair"), "--methods", "simclr", "--generators", "baseline",
            "generated", "--seeds", "0", "--probe-epochs", "2", "--out", out, *only.split(), *self.options(place), *settings,
        )  # fmt: skip

    @pytest.mark.slow
    def test_evaluated_without_its_bank(self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        chosen = ssl("config").load_settings(CONFIGS / "cifar10-fair" / "simclr-generated.yaml", [*self.options(place), "seed=0"])
        folder = place / "whole" / "simclr-generated-seed0"
        ssl("train").train(chosen, folder, quiet=True)
        (folder / "progress").write_text("1 2 3\n")
        kept = place / "kept" / folder.name
        keep_run(folder, kept)
        keep_run(folder, kept)  # again: replaced
        assert {path.name for path in kept.iterdir()} == {path.name for path in folder.iterdir()}
        a, b = (torch.load(path / "last.ckpt", weights_only=False) for path in (folder, kept))
        assert all(torch.equal(tensor, b["state_dict"][name]) for name, tensor in a["state_dict"].items())
        moments = [state["exp_avg_sq"] for state in a["optimizer_states"][0]["state"].values()]
        assert all(moment.any() for moment in moments)
        assert not any(state["exp_avg_sq"].any() for state in b["optimizer_states"][0]["state"].values())
        sizes = []
        for name in ("whole", "kept"):
            assert pack(place / name, place / f"{name}.zip") == []
            sizes.append(zipfile.ZipFile(place / f"{name}.zip").getinfo(f"{folder.name}/last.ckpt").compress_size)
        assert sizes[1] < 0.6 * sizes[0]

        self.reproduce(monkeypatch, place, "whole")
        (place / "bank").rename(place / "gone")
        capsys.readouterr()
        self.reproduce(monkeypatch, place, "kept")
        printed = capsys.readouterr().out
        assert "not trained to the end: simclr-baseline-seed0" in printed
        assert "simclr-generated-seed0 is trained" in printed
        whole, without = (json.loads((place / name / folder.name / "result.json").read_text()) for name in ("whole", "kept"))
        assert without == whole
        assert without["training"]["steps"] == 4

        # nothing is taken for trained that is not
        for name, change in {"steps": 5, "epochs": 3}.items():
            record = json.loads((folder / "training.json").read_text())
            (kept / "training.json").write_text(json.dumps(record | {name: change}))
            assert not ssl("train").is_trained(kept)
        (kept / "training.json").write_text(json.dumps(record))
        assert ssl("train").is_trained(kept)
        (kept / "result.json").unlink()
        shutil.copytree(place / "kept", place / "again")
        with pytest.raises(SystemExit, match=r"generative\.bank"):  # without the option nothing is taken on trust
            self.reproduce(monkeypatch, place, "again", only="")
        with pytest.raises(SystemExit, match=r"holds a run with other data\.holdout"):
            self.reproduce(monkeypatch, place, "kept", "data.holdout=2")
        (place / "train" / "class0" / "000.png").rename(place / "train" / "class0" / "other.png")
        with pytest.raises(SystemExit, match="was trained on other images than those of"):
            self.reproduce(monkeypatch, place, "kept")
        (kept / "last.ckpt").write_bytes((kept / "last.ckpt").read_bytes()[:100])
        with pytest.raises(SystemExit, match="--trained-only: none of the runs in kept is trained to its end"):
            self.reproduce(monkeypatch, place, "kept")
