"""What the actors of Ray tell each other, and what a run makes of their answers; a stand-in for Ray calls them in this process."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
from bank_sources import Breaking, Photos, is_reader
from torch import Tensor

from gentransforms.bank import Job, Ray
from gentransforms.bank.format.unit import Unit, list_units
from gentransforms.bank.generate import on_ray, run
from gentransforms.bank.generate.actor import UnitMaker, decode
from gentransforms.bank.generate.board import GIVEN_UP, MAKE, STOPPED, Board, Span
from gentransforms.bank.generate.progress import Progress
from gentransforms.bank.generate.run import Summary, generate_bank
from gentransforms.errors import BankError, GeneratorError
from gentransforms.sources.base import SourceSample
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS: dict[str, Any] = {"variants": 2, "unit_size": 4, "image_format": "png", "threads": 1, "progress": False}


class TestBoard:
    def test_a_unit_that_kills_three_workers_is_given_up_and_others_are_not(self) -> None:
        board = Board(nodes=lambda: {"a", "b"})
        assert [board.begin((0, 4), node)[0] for node in "abab"] == [MAKE, MAKE, MAKE, GIVEN_UP]
        assert board.begin((4, 8), "a")[0] == MAKE

    def test_deaths_of_nodes_do_not_count(self) -> None:
        alive = {"a"}
        board = Board(nodes=lambda: alive)
        for number in range(20):
            alive.add(f"spot-{number}")
            assert board.begin((0, 4), f"spot-{number}")[0] == MAKE
            alive.remove(f"spot-{number}")
        assert [board.begin((0, 4), "a")[0] for _ in range(4)] == [MAKE, MAKE, MAKE, GIVEN_UP]

    def test_a_unit_that_ends_has_killed_nobody(self) -> None:
        """Ray makes a finished unit again if the node that held its answer dies."""
        board = Board(nodes=lambda: {"a"})
        for _ in range(5):
            assert board.begin((0, 4), "a")[0] == MAKE
            board.end((0, 4), passed=False)

    def test_stop_names_what_has_begun(self) -> None:
        board = Board(nodes=set)
        for unit in ((4, 8), (0, 4)):
            board.begin(unit, "a")
        board.end((4, 8), passed=False)
        assert board.stop() == [(0, 4), (4, 8)]
        assert board.begin((8, 12), "a")[0] == STOPPED

    def test_one_worker_proves_for_all_that_the_generator_works(self) -> None:
        board = Board(nodes=set)
        for passed, known in ((False, False), (True, True), (False, True)):
            board.begin((0, 4), "a")
            board.end((0, 4), passed)
            assert board.begin((4, 8), "b")[1] is known
            board.end((4, 8), passed=False)


class Remote:
    """An actor's handle whose calls are made at once."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.target, name))


class Died(BaseException):
    """Stands for the death of a worker."""


class BoardOfOne(Board):
    """The board of a cluster of one node; a worker that dies does not get to tell it of an end."""

    def __init__(self) -> None:
        super().__init__(nodes=lambda: {"here"})

    def end(self, unit: Span, passed: bool) -> None:
        if not isinstance(sys.exception(), Died):
            super().end(unit, passed)


Schedule = Callable[[Board, Callable[[Span], tuple[str, Span, Any]], list[Span]], Iterator[tuple[str, Span, Any]]]


class Use(Protocol):
    def __call__(self, schedule: Schedule, lasting: bool = True) -> None: ...


def one_after_the_other(_: Board, make: Callable[[Span], Any], places: list[Span]) -> Iterator[Any]:
    """One actor; whoever dies is started again without limit, as Ray does."""
    for place in places:
        for _ in range(10):
            with contextlib.suppress(Died):
                yield make(place)
                break
        else:
            pytest.fail(f"{place} has killed ten workers")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Use:
    """A cluster of one node, in which actors run as the schedule has it."""
    kinds = ("RayActorError", "WorkerCrashedError", "NodeDiedError", "ObjectLostError", "LocalRayletDiedError")
    stand_in = SimpleNamespace(
        is_initialized=lambda: True,
        cluster_resources=lambda: {"CPU": 2.0},
        get=lambda value: value,
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "here"),
        exceptions=SimpleNamespace(**{kind: type(kind, (Exception,), {}) for kind in kinds}),
    )
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    monkeypatch.setattr(on_ray, "_post_board", lambda: contextlib.nullcontext(Remote(BoardOfOne())))

    def use(schedule: Schedule, lasting: bool = True) -> None:
        """Run actors by this schedule; with `lasting` False there is a new one for each unit."""

        def answers(_: Ray, job: Job, units: Any, board: Remote, *__: Any) -> Iterator[Any]:
            maker: list[UnitMaker] = []

            def make(place: Span) -> tuple[str, Span, Any]:
                maker[:] = (lasting and maker) or [UnitMaker([job], ".", 1, board)]
                try:
                    (answer,) = maker[0]({"start": [place[0]], "stop": [place[1]]})["answer"]
                except Died:
                    maker.clear()
                    raise
                return decode(answer)

            yield from schedule(board.target, make, [(unit.start, unit.stop) for unit in units])

        monkeypatch.setattr(Ray, "_answers", answers)

    use(one_after_the_other)
    return use


def fill(path: Path, source: Any, generator: Any = None, **options: Any) -> Summary:
    return generate_bank(source, path, generator or FakeGenerator(), **{"engine": Ray(actors=1, cpus=1)} | OPTIONS | options)


class Deadly(Photos):
    """Kills every worker that reads certain images."""

    def __init__(self, count: int, at: Any) -> None:
        super().__init__(count)
        self.at = at
        self.deaths: list[int] = []  # a run copies its source, but not this

    def read(self, index: int) -> SourceSample:
        if index in self.at and is_reader():
            self.deaths.append(index)
            raise Died
        return super().read(index)


class Nothing(FakeGenerator):
    """Makes NaN only, until a test repairs it."""

    broken = True

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        images = super().sample(condition, seeds)
        return images * float("nan") if self.broken else images


@pytest.mark.usefixtures("cluster")
class TestDeadlyUnits:
    def test_are_named_after_all_others_are_made(self, tmp_path: Path) -> None:
        source = Deadly(24, at=[10])
        with pytest.raises(BankError) as error:
            fill(tmp_path, source)
        assert "killed its worker 3 times: unit-000000008-000000012 (sources 'photo-000008.jpg' to 'photo-000011.jpg')" in str(error.value)
        assert "; all others are done" in str(error.value)
        assert source.deaths == [10] * 3
        assert list_units(tmp_path) == [Unit(start, start + 4) for start in (0, 4, 12, 16, 20)]
        assert fill(tmp_path, Deadly(24, at=[])).images == 8

    def test_a_run_in_which_everything_dies_ends_early(self, tmp_path: Path) -> None:
        source = Deadly(400, at=range(400))
        with pytest.raises(BankError, match=r"97 others did not begin, because this befell so many"):
            fill(tmp_path, source)
        assert {index // 4 for index in source.deaths} <= {0, 1, 2, 3}, "and of the unit that was read ahead"
        assert len(source.deaths) >= 9
        assert list_units(tmp_path) == []

    def test_many_are_counted(self, tmp_path: Path) -> None:
        with pytest.raises(BankError, match=r"unit-000000032-000000036 \(\S+ '\S+' to '\S+'\) and 2 more; all others are done"):
            fill(tmp_path, Deadly(56, at=range(0, 56, 8)))
        assert len(list_units(tmp_path)) == 7

    def test_a_stop_tells_of_them_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stopped: list[bool] = []
        monkeypatch.setattr(run, "stoppable", lambda _: contextlib.nullcontext(lambda: bool(stopped)))
        monkeypatch.setattr(Progress, "on_unit", lambda *_: stopped.append(True) if len(list_units(tmp_path)) == 2 else None)
        with pytest.warns(UserWarning, match=r"unit-000000000-000000004 .*; the run was stopped"), pytest.raises(KeyboardInterrupt):
            fill(tmp_path, Deadly(24, at=[0]))
        assert len(list_units(tmp_path)) == 2


class TestNothingFinite:
    """With so few sources in a unit that no unit tells."""

    def test_stops_early_and_a_repaired_generator_makes_all(self, cluster: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Span] = []

        def count(_: Board, make: Callable[[Span], Any], places: list[Span]) -> Iterator[Any]:
            for place in places:
                asked.append(place)
                yield make(place)

        cluster(count)
        with pytest.raises(GeneratorError, match=r"Nothing made NaN or infinity .* first 8 sources"):
            fill(tmp_path, Photos(100), Nothing())
        assert (asked, list_units(tmp_path)) == ([(0, 4), (4, 8)], [])
        monkeypatch.setattr(Nothing, "broken", False)
        assert fill(tmp_path, Photos(100), Nothing()).complete

    def test_where_each_actor_makes_one_unit(self, cluster: Use, tmp_path: Path) -> None:
        cluster(lambda _, make, places: (make(place) for place in places), lasting=False)
        with pytest.raises(GeneratorError, match=r"first 8 sources"):
            fill(tmp_path, Photos(100), Nothing())
        assert list_units(tmp_path) == []


@pytest.mark.usefixtures("cluster")
class TestErrors:
    def test_are_the_users_own(self, tmp_path: Path) -> None:
        with pytest.raises(GeneratorError, match=r"Breaking\.sample returned shape"):
            fill(tmp_path, Photos(4), Breaking())

    @pytest.mark.parametrize("kind", ["RayActorError", "NodeDiedError", "ObjectLostError"])
    def test_a_cluster_that_is_lost(self, kind: str, cluster: Use, tmp_path: Path) -> None:
        def lost(_: Board, make: Callable[[Span], Any], places: list[Span]) -> Iterator[Any]:
            yield make(places[0])
            raise getattr(sys.modules["ray"].exceptions, kind)("The actor died.\n\tclass_name: MapWorker")

        cluster(lost)
        with pytest.raises(BankError, match=rf"the Ray cluster lost .* \({kind}: The actor died\.\): .*run the same command again"):
            fill(tmp_path, Photos(12))
        assert fill(tmp_path, Photos(12), engine="local").images == 16


class TestStop:
    def test_waits_for_what_has_begun_and_for_nothing_else(self, cluster: Use, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []

        def three_at_once(board: Board, make: Callable[[Span], Any], places: list[Span]) -> Iterator[Any]:
            for place in places[:3]:
                board.begin(place, "here")
            yield make(places[0])
            stopped.append(True)
            yield make(places[1])
            assert board.stopped
            board.stopped = False  # only so that this stand-in can finish what has begun
            finished = make(places[2])
            board.stopped = True
            for place in places[3:6]:
                asked.append(make(place)[0])
                yield STOPPED, place, None
            yield finished
            pytest.fail("waited for units that have not begun")

        stopped: list[bool] = []
        monkeypatch.setattr(run, "stoppable", lambda _: contextlib.nullcontext(lambda: bool(stopped)))
        cluster(three_at_once)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path, Photos(400))
        assert (asked, list_units(tmp_path)) == ([STOPPED] * 3, [Unit(0, 4), Unit(4, 8), Unit(8, 12)])

    def test_actors_hear_of_it_before_the_next_report(self) -> None:
        board, stopped = Board(nodes=set), threading.Event()
        with on_ray._relay(stopped.is_set, Remote(board), every=0.01):
            assert board.begin((0, 4), "a")[0] == MAKE
            stopped.set()
            deadline = time.monotonic() + 10
            while not board.stopped and time.monotonic() < deadline:
                time.sleep(0.01)
            assert board.begin((4, 8), "a")[0] == STOPPED
        assert not [thread for thread in threading.enumerate() if thread.name == "gentransforms-relay"]


def test_an_actors_module_imports_no_torch() -> None:
    """What kills a worker while it imports torch is counted, because the unit has begun before."""
    code = "import sys, gentransforms.bank.generate.actor; print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
