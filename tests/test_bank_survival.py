"""Whatever happens to a run, no image is lost, none occurs twice, and the bytes are those of a run that nothing happened to."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bank_process
import pyarrow as pa
import pytest
from bank_sources import Photos, Slow

from gentransforms.bank.format import locking
from gentransforms.bank.format import unit as writer
from gentransforms.bank.format.unit import list_units
from gentransforms.bank.generate import writing
from gentransforms.bank.generate.run import generate_bank
from gentransforms.bank.reader import Bank
from gentransforms.bank.verify.checker import verify_bank
from gentransforms.errors import BankError
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")


def units(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.glob("unit-*.arrow")}


def rows(path: Path) -> list[tuple[str, int]]:
    found = []
    for file in sorted(path.glob("unit-*.arrow")):
        table = pa.ipc.open_stream(file.read_bytes()).read_all()
        found += list(zip(table["key"].to_pylist(), table["variant"].to_pylist(), strict=True))
    return found


def images(path: Path) -> dict[tuple[str, int], bytes]:
    """The encoded images of the units, by key and variant."""
    tables = [pa.ipc.open_stream(file.read_bytes()).read_all() for file in path.glob("unit-*.arrow")]
    return {(row["key"], row["variant"]): row["image"]["bytes"] for table in tables for row in table.to_pylist()}


def fill(path: Path, **options: Any) -> Any:
    return generate_bank(Photos(bank_process.COUNT), path, Slow(), progress=False, **bank_process.OPTIONS | options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The units of a run that nothing happened to."""
    path = tmp_path_factory.mktemp("whole")
    fill(path)
    assert len(units(path)) == 20
    return units(path)


def check(path: Path, whole: dict[str, bytes]) -> None:
    """No image lost, none twice, the same bytes, and nothing left over."""
    assert rows(path) == [(f"photo-{i:06d}.jpg", v) for i in range(bank_process.COUNT) for v in range(bank_process.VARIANTS)]
    assert units(path) == whole
    assert list(path.glob("*.partial")) == list(path.glob(".*.partial")) == []


def wait_until(happened: Callable[[], object]) -> None:
    """Wait a minute at most."""
    deadline = time.monotonic() + 60
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.02)


class TestKilled:
    @pytest.mark.slow  # the tests below kill at each step of writing
    @pytest.mark.parametrize("times", [5, 30])
    def test_at_random_moments(self, tmp_path: Path, whole: dict[str, bytes], times: int) -> None:
        rng, kills, in_the_midst = random.Random(0), 0, 0
        while kills < times:
            before, ready = len(list_units(tmp_path)), bank_process.event()
            process = bank_process.start(bank_process.fill, str(tmp_path), 0.05, None, ready)
            assert ready.wait(60)
            enough = min(before + rng.randrange(7), 20)
            wait_until(lambda: len(list_units(tmp_path)) >= enough or not process.is_alive())  # noqa: B023
            process.join(0.1 * rng.random())  # a unit takes 0.1 seconds
            if process.is_alive():
                process.kill()
                process.join()
                kills += 1
                in_the_midst += len(list_units(tmp_path)) > before
            assert process.exitcode in (0, -signal.SIGKILL)
            if len(list_units(tmp_path)) == 20:  # done, and there are kills left: some units go missing
                for unit in rng.sample(list_units(tmp_path), 15):
                    (tmp_path / unit.file).unlink()
        assert in_the_midst >= times / 3, "kills of a run that had made a unit"
        fill(tmp_path)
        check(tmp_path, whole)

    @pytest.mark.parametrize("moment", bank_process.MOMENTS)
    def test_at_every_step_of_writing(self, tmp_path: Path, whole: dict[str, bytes], moment: str) -> None:
        after = 0 if moment == "manifest" else 7
        process = bank_process.start(bank_process.fill_and_die, str(tmp_path), moment, after)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert len(list_units(tmp_path)) < 20
        if moment != "manifest":  # a unit appears with its sidecar or not at all: it is missing, not damaged
            assert {problem.kind for problem in verify_bank(tmp_path).problems} == {"missing"}
            assert len(Bank.open(tmp_path, partial=True)) == len(list_units(tmp_path)) * bank_process.UNIT_SIZE * bank_process.VARIANTS
        fill(tmp_path)
        check(tmp_path, whole)


class TestKilledAtEveryRename:
    """A run that extends a bank or tries sources again; afterwards, some sources cannot be read any more."""

    def run(self, path: Path, broken: Sequence[int], count: int = 4, **options: Any) -> Any:
        options = {"variants": 2, "unit_size": 2, "image_format": "png", "threads": 1, "progress": False} | options
        return generate_bank(Photos(count, broken), path, FakeGenerator(4), **options)

    @pytest.mark.parametrize(
        "what",
        [
            {"variants": 3, "extend": True},
            {"count": 5, "extend": True},
            {"retry_failed": True},
            {"variants": 3, "extend": True, "times": 2},
        ],
        ids=["variants", "sources", "retry", "variants twice"],
    )
    def test_no_image_is_lost(self, tmp_path: Path, what: dict[str, Any]) -> None:
        what = dict(what)
        times = what.pop("times", 1)
        self.run(tmp_path / "before", [1])
        before, settings = (
            images(tmp_path / "before"),
            {name: value for name, value in what.items() if name not in ("extend", "retry_failed")},
        )
        assert len(before) == 6
        step, alive = 0, False
        while not alive:
            path = tmp_path / f"bank-{step}"
            shutil.copytree(tmp_path / "before", path)
            with bank_process.killed_at(step):
                self.run(path, [1], **what)
                alive = True
            if times > 1:  # extended once more, by a run that dies as early
                settings["variants"] = 4
                with bank_process.killed_at(step):
                    self.run(path, [1], variants=4, extend=True)
            summary = self.run(path, [0, 1, 2], **settings, extend=True)
            after = images(path)
            assert {place: after.get(place) for place in before} == before, f"after {step} steps"
            assert summary.complete
            assert not list(path.glob("former-*"))
            report = verify_bank(path)
            assert report.ok, report
            shutil.rmtree(path)
            step += 1
        assert step > 8

    def test_a_disk_that_is_full_leaves_a_unit_as_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run(tmp_path, [1])
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        for fails in (1, 2):
            calls: list[Any] = []

            def full(file: Any, fails: int = fails, calls: list[Any] = calls) -> None:
                calls.append(file)
                if len(calls) == fails:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(locking, "_sync", full)
            with pytest.raises(BankError, match="disk is full"):
                self.run(tmp_path, [], retry_failed=True)
            assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before

    def test_a_unit_that_another_process_tried_again_meanwhile_is_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It could read a source that this process could not."""
        original, others = writing.write_unit, []

        def late(*args: Any, **options: Any) -> bool:
            if not others:
                others.append(True)
                others.append(self.run(tmp_path, [], retry_failed=True))
            return original(*args, **options)

        self.run(tmp_path, [0, 1])
        monkeypatch.setattr(writing, "write_unit", late)
        self.run(tmp_path, [1], retry_failed=True)
        assert others[1].rows == 8
        assert len(Bank.open(tmp_path)) == 8
        assert verify_bank(tmp_path).ok


class TestTwoAtOnce:
    def test_on_one_bank_by_mistake(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        processes = [bank_process.start(bank_process.fill, str(tmp_path), 0.01) for _ in range(2)]
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0]
        check(tmp_path, whole)

    def test_as_shards(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        processes = [bank_process.start(bank_process.fill, str(tmp_path), 0.01, f"{i}/3") for i in range(3)]
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0, 0]
        check(tmp_path, whole)

    def test_a_unit_that_another_process_wrote_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
    ) -> None:
        original, asked = writer.is_done, []
        copied: dict[str, tuple[int, int]] = {}

        def files() -> dict[str, tuple[int, int]]:
            """Which file each is, and when it was written."""
            return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in tmp_path.glob("unit-*")}

        def done(directory: Path, unit: Any, *settings: Any) -> bool:
            asked.append(unit)
            if len(asked) == 1:  # between the last look and the writing, the other process finishes everything
                other = tmp_path.parent / "other"
                fill(other)
                for file in other.iterdir():
                    if file.name.startswith("unit"):
                        shutil.copy2(file, tmp_path)
                copied.update(files())
            return original(directory, unit, *settings)

        monkeypatch.setattr(writer, "is_done", done)
        assert fill(tmp_path).complete
        assert len(asked) >= 20, "once for each unit"
        assert len(copied) == 40
        assert files() == copied, "none of them was written again"
        check(tmp_path, whole)


class TestInterrupted:
    """Ctrl-C arrives in the main thread of a process."""

    def test_once_finishes_the_unit_in_flight(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        bank, printed = tmp_path / "bank", tmp_path / "printed"
        process = bank_process.start(bank_process.fill, str(bank), 0.1, None, None, str(printed))
        assert process.pid is not None
        wait_until(lambda: list_units(bank) or not process.is_alive())
        assert list_units(bank), "it had not begun within a minute"
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert process.exitcode not in (None, 0, -signal.SIGKILL)
        assert "KeyboardInterrupt" in printed.read_text()
        made = units(bank)
        assert 0 < len(made) < 20
        assert made.items() <= whole.items()
        assert not list(bank.glob(".*.partial"))
        fill(bank)
        check(bank, whole)

    def test_twice_stops_at_once(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        """In the midst of a batch of two minutes, which nothing but an interruption ends earlier."""
        bank, asleep, printed = tmp_path / "bank", tmp_path / "asleep", tmp_path / "printed"
        process = bank_process.start(bank_process.fill_and_fall_asleep, str(bank), 5, 120, str(asleep), str(printed))
        assert process.pid is not None
        try:
            wait_until(lambda: asleep.exists() or not process.is_alive())
            os.kill(process.pid, signal.SIGINT)
            time.sleep(0.5)
            assert process.is_alive(), "the first lets it go on"
            os.kill(process.pid, signal.SIGINT)
            process.join(30)
            assert not process.is_alive()
        finally:
            process.kill()
        assert process.exitcode not in (0, -signal.SIGKILL)
        assert "KeyboardInterrupt" in printed.read_text()
        assert units(bank).items() <= whole.items()
        fill(bank)
        check(bank, whole)

    def test_within_a_thread_leaves_the_handler_alone(self, tmp_path: Path) -> None:
        import threading

        before = signal.getsignal(signal.SIGINT)
        thread = threading.Thread(target=fill, args=(tmp_path,))
        thread.start()
        assert signal.getsignal(signal.SIGINT) is before
        thread.join()
        assert len(list_units(tmp_path)) == 20

    def test_the_first_asks_and_the_second_raises(self) -> None:
        from gentransforms.bank.generate.progress import stoppable

        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
        said: list[str] = []

        def press_twice() -> None:
            with stoppable(said.append) as stopped:
                assert not stopped()
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
                assert stopped()
                assert said == ["stopping after the current unit; press Ctrl-C again to stop at once; the same call resumes either way"]
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)

        try:
            with pytest.raises(KeyboardInterrupt):
                press_twice()
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        finally:
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


class TestFullDisk:
    def test_a_disk_that_is_too_small(self, tmp_path: Path, whole: dict[str, bytes]) -> None:
        disk = tmp_path / "disk"
        with small_disk(disk, "100k"):
            (disk / "lost+found").mkdir()
            with pytest.raises(BankError, match=r"the disk is full .*: free some space and run the same command again"):
                fill(disk)
            kept = units(disk)
            assert 0 < len(kept) < 20
            assert kept.items() <= whole.items(), "what is there is whole"
            assert not list(disk.glob(".*.partial")), "what could not be written takes no space"
            subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
            assert fill(disk).complete
            check(disk, whole)

    @pytest.mark.parametrize(
        ("calls", "number"),
        [
            pytest.param(calls, number, marks=() if (i + j) % 3 == 0 else pytest.mark.slow)
            for i, calls in enumerate([0, 1, 12, 13])
            for j, number in enumerate([errno.ENOSPC, errno.EDQUOT, errno.EIO])
        ],
    )
    def test_a_write_that_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes], number: int, calls: int
    ) -> None:
        original, count = locking._sync, 0

        def sync(file: Any) -> None:
            nonlocal count
            count += 1
            if count > calls:
                raise OSError(number, os.strerror(number), str(tmp_path / "x"))
            original(file)

        monkeypatch.setattr(locking, "_sync", sync)
        with pytest.raises(BankError) as failed:
            fill(tmp_path)
        monkeypatch.undo()
        assert ("the disk is full" in str(failed.value)) == (number != errno.EIO)
        assert os.strerror(number) in str(failed.value)
        assert "run the same command again" in str(failed.value)
        assert not list(tmp_path.glob(".*.partial"))
        assert units(tmp_path).items() <= whole.items()
        assert fill(tmp_path).complete
        check(tmp_path, whole)

    def test_a_directory_that_may_not_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(BankError, match="cannot be written"):
            fill(tmp_path / "file" / "bank")


class TestLeftOvers:
    def test_of_dead_processes_of_this_host_go(self, tmp_path: Path) -> None:
        process = bank_process.start(bank_process.fill_and_die, str(tmp_path), "before the unit", 2)
        process.join(60)
        assert len(list(tmp_path.glob(".*.partial"))) == 1
        fill(tmp_path)
        assert not list(tmp_path.glob(".*.partial"))

    def test_of_others_stay(self, tmp_path: Path) -> None:
        fill(tmp_path)
        theirs = [tmp_path / ".unit-1.arrow.another-host.12.partial", tmp_path / f".unit-1.arrow.{locking._host()}.{os.getppid()}.partial"]
        for path in theirs:
            path.write_text("")
        fill(tmp_path)
        assert all(path.exists() for path in theirs)

    def test_of_a_process_in_another_container_stay_while_they_are_written(self, tmp_path: Path) -> None:
        """Its host name may be ours, and no process of its number runs here."""
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        theirs = tmp_path / f".unit-1.arrow.{locking._host()}.{process.pid}-0123abcd.partial"
        with theirs.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert locking.remove_partials(tmp_path) == 0
            assert theirs.exists()
        assert locking.remove_partials(tmp_path) == 1
        assert not theirs.exists()
