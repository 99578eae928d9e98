"""The same bank on Ray: two actors on this machine, of which one is killed. Each actor takes seconds to start, so there are few."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bank_sources import Black, Breaking, Deadly, Noting, Photos, Poisoned
from PIL import Image
from small_generators import tiny_icgan

from gentransforms.bank import Ray
from gentransforms.bank.generate.run import generate_bank
from gentransforms.errors import BankError, ConfigError, GeneratorError
from gentransforms.testing import FakeGenerator

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

# Ray warns of its own settings and leaves files and processes to the end of the interpreter.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
OPTIONS: dict[str, Any] = {"variants": 3, "unit_size": 4, "image_format": "png", "threads": 1, "progress": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray of two CPUs, whose workers find the modules of the tests."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), before]))
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_worker_niceness", "0")  # workers wait for whatever else runs otherwise, such as the other tests
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000, logging_level="error")
    yield
    ray.shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def contents(path: Path) -> dict[str, bytes]:
    return {unit.name: unit.read_bytes() for unit in path.glob("unit-*.arrow")}


@pytest.mark.usefixtures("cluster", "one_thread")
class TestRay:
    @pytest.mark.slow
    @pytest.mark.parametrize("actors", [1, 2])
    def test_makes_the_same_bytes_where_an_actor_is_killed(self, actors: int, tmp_path: Path) -> None:
        """The killed one is started again, and its unit is made; a source that cannot be read is told of."""
        flag = tmp_path / "killed"
        source = Deadly(18, 10, str(flag), broken=[3])
        summary = generate_bank(source, tmp_path / "ray", tiny_icgan(), engine=Ray(actors=actors, cpus=1), **OPTIONS)
        assert flag.exists(), "nothing was killed"
        assert (summary.images, summary.units_done, summary.complete) == (51, 5, True)
        assert [entry["key"] for entry in summary.failed] == ["photo-000003.jpg"]
        generate_bank(source, tmp_path / "local", tiny_icgan(), **OPTIONS)
        assert len(contents(tmp_path / "ray")) == 5
        assert contents(tmp_path / "ray") == contents(tmp_path / "local")

    def test_by_name_it_resumes_what_the_local_engine_began_where_the_caller_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Relative paths are those of the caller: actors have other directories. Ray's settings are left as they were."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "photos").mkdir()
        for i in range(8):
            Image.new("RGB", (16, 16), (25 * i, 0, 0)).save(tmp_path / "photos" / f"{i}.png")
        generate_bank("photos", "bank", FakeGenerator(), shard="0/2", **OPTIONS)
        context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
        monkeypatch.setattr(context, "enable_progress_bars", True)  # as another user of the cluster has them
        before = logger.level
        logger.setLevel(logging.INFO)
        summary = generate_bank("photos", "bank", FakeGenerator(), engine="ray", **OPTIONS)
        assert (summary.images, summary.complete, summary.failed) == (12, True, ())
        generate_bank("photos", "local", FakeGenerator(), **OPTIONS)
        assert len(contents(tmp_path / "bank")) == 2
        assert contents(tmp_path / "bank") == contents(tmp_path / "local")
        assert not [path.name for path in (tmp_path / "bank").iterdir() if path.name.endswith(".partial")]
        assert (context.enable_progress_bars, logger.level) == (True, logging.INFO)
        logger.setLevel(before)

    @pytest.mark.slow
    def test_a_unit_that_kills_every_actor_is_named_after_the_others_are_made(self, tmp_path: Path) -> None:
        log = tmp_path / "deaths"
        with pytest.raises(
            BankError, match=r"killed its worker 3 times: unit-000000004-000000008 \(\S+ 'photo-000004.jpg' to .*; all others"
        ):
            generate_bank(Poisoned(18, 5, str(log)), tmp_path / "bank", FakeGenerator(), engine=Ray(actors=2, cpus=1), **OPTIONS)
        assert len(log.read_text()) == 3
        assert len(contents(tmp_path / "bank")) == 4
        assert generate_bank(Poisoned(18, -1, str(log)), tmp_path / "bank", FakeGenerator(), **OPTIONS).images == 12

    @pytest.mark.slow
    def test_nothing_but_nan_in_small_units_stops_the_run(self, tmp_path: Path) -> None:
        options = OPTIONS | {"unit_size": 3}
        with pytest.raises(GeneratorError, match=r"Black made NaN or infinity in every image of the first \d+ sources"):
            generate_bank(Photos(48), tmp_path, Black(), engine=Ray(actors=2, cpus=1), **options)
        assert contents(tmp_path) == {}

    @pytest.mark.slow
    def test_ctrl_c_keeps_the_units_of_all_actors(self, tmp_path: Path) -> None:
        """Each has begun its second unit, and takes long for it."""
        slow, begun = Noting.by(0.5), tmp_path / "begun"
        begun.mkdir()
        slow.directory = str(begun)

        def press() -> None:
            deadline = time.monotonic() + 300
            while len(list(begun.iterdir())) < 4 and time.monotonic() < deadline:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        thread = threading.Thread(target=press)
        thread.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                generate_bank(Photos(80), tmp_path / "bank", slow, engine=Ray(actors=2, cpus=1), batch_size=1, **OPTIONS)
        finally:
            signal.signal(signal.SIGINT, before)
            thread.join()
        started = len(list(begun.iterdir()))
        assert 4 <= started <= 6
        assert len(contents(tmp_path / "bank")) == started

    def test_more_than_the_cluster_has(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"actors=3, cpus=1: the Ray cluster has only 2 CPUs"):
            generate_bank(Photos(4), tmp_path, FakeGenerator(), engine=Ray(actors=3, cpus=1), **OPTIONS)
        with pytest.raises(ConfigError, match=r"gpus=1: the Ray cluster has only 0 GPUs"):
            generate_bank(Photos(4), tmp_path / "gpus", FakeGenerator(), engine=Ray(gpus=1), **OPTIONS)

    def test_errors_of_the_generator_are_the_users_own(self, tmp_path: Path) -> None:
        with pytest.raises(GeneratorError, match=r"Breaking\.sample returned shape"):
            generate_bank(Photos(4), tmp_path, Breaking(), engine=Ray(actors=1, cpus=1), **OPTIONS)


class TestOptions:
    def test_gpus_or_cpus(self) -> None:
        with pytest.raises(ConfigError, match=r"cpus=1: Ray places actors by GPUs or by CPUs"):
            Ray(actors=1, gpus=1, cpus=1)

    @pytest.mark.parametrize("wrong", [{"actors": 0}, {"actors": 1.5}, {"gpus": -1}, {"cpus": "two"}, {"workers": 0}], ids=str)
    def test_numbers_out_of_range(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}=.*expected"):
            Ray(**wrong)

    def test_gpus_mean_cuda_wherever_the_generator_is_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        jobs: list[Any] = []
        monkeypatch.setattr(Ray, "make_units", lambda _self, job, *_, **__: (jobs.append(job), iter(()))[1])
        generate_bank(Photos(4), tmp_path, FakeGenerator(), engine=Ray(actors=1, gpus=1), **OPTIONS)
        assert (jobs[0].device, jobs[0].config.threads) == ("cuda", None)
        assert jobs[0].generator.device.type == "cpu"
