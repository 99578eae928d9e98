"""Generators that make NaN, and engines that make one unit at a time, of too few sources to tell by itself."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from bank_sources import Photos
from torch import Tensor

from gentransforms.bank import Local
from gentransforms.bank.format.unit import list_units
from gentransforms.bank.generate.run import Summary, generate_bank, plan_bank
from gentransforms.errors import GeneratorError
from gentransforms.sources.base import SourceSample
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")


class Dark(FakeGenerator):
    """Makes NaN of images that are darker than `below`, which tests change on the class, where no fingerprint sees it."""

    below = 2.0

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        images = super().sample(condition, seeds)
        images[condition["mean"].flatten(1).mean(1) < self.below] = float("nan")
        return images


class UnitByUnit:
    """An engine that makes each unit by a call of its own, in another process as it were."""

    def __init__(self) -> None:
        self.units = 0

    def make_units(self, job: Any, units: Any, *, on_images: Any, stopped: Any) -> Iterator[Any]:
        for unit in units:
            self.units += 1
            for report in Local(workers=1).make_units(pickle.loads(pickle.dumps(job)), [unit], on_images=on_images, stopped=stopped):
                yield pickle.loads(pickle.dumps(report))


def fill(path: Path, count: int, **options: Any) -> Summary:
    options = {"variants": 3, "unit_size": 6, "image_format": "png", "engine": UnitByUnit(), "progress": False} | options
    return generate_bank(options.pop("source", None) or Photos(count), path, Dark(), **options)


def contents(path: Path) -> dict[str, bytes]:
    return {unit.name: (path / unit.file).read_bytes() for unit in list_units(path)}


@pytest.fixture(params=["local", "unit by unit"])
def engine(request: pytest.FixtureRequest) -> Any:
    return "local" if request.param == "local" else UnitByUnit()


class TestNothingFinite:
    @pytest.mark.parametrize("unit_size", [1, 6, 8])
    def test_stops_early_and_writes_nothing(self, unit_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = UnitByUnit()
        with pytest.raises(GeneratorError, match=r"Dark made NaN or infinity in every image of the first (8|12) sources"):
            fill(tmp_path, 48, engine=engine, unit_size=unit_size)
        assert (engine.units, list_units(tmp_path)) == (-(-8 // unit_size), [])
        monkeypatch.setattr(Dark, "below", 0.0)
        summary = fill(tmp_path, 48, unit_size=unit_size)
        assert (summary.images, summary.complete) == (144, True)

    def test_units_wait_for_one_that_has_images(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The bytes, and the report of each unit, are those of the local engine."""
        monkeypatch.setattr(Dark, "below", 4.5 / 255)
        one, other = fill(tmp_path / "bank", 24, unit_size=2), fill(tmp_path / "local", 24, unit_size=2, engine="local")
        assert contents(tmp_path / "bank") == contents(tmp_path / "local")
        assert (one.images, one.rejected, one.units_done) == (57, other.rejected, 12)
        assert len(one.rejected) == 15

    def test_too_few_sources_to_tell(self, engine: Any, tmp_path: Path) -> None:
        summary = fill(tmp_path, 5, engine=engine, unit_size=2)
        assert (summary.images, len(summary.rejected), summary.units_done, summary.complete) == (0, 15, 3, False)

    def test_of_sources_that_cannot_be_read_nothing_is_known(self, engine: Any, tmp_path: Path) -> None:
        summary = fill(tmp_path, 20, engine=engine, unit_size=2, source=Photos(20, broken=range(20)))
        assert (summary.rows, len(summary.failed), summary.units_done) == (0, 20, 10)


class TestRetry:
    def test_takes_units_that_were_rejected_throughout(self, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(tmp_path / "bank", 7, unit_size=4)
        monkeypatch.setattr(Dark, "below", 0.0)
        assert fill(tmp_path / "bank", 7, unit_size=4).images == 0, "an ordinary run tries nothing again"
        settings: dict[str, Any] = {"variants": 3, "unit_size": 4, "image_format": "png"}
        plan, _ = plan_bank(Photos(7), tmp_path / "bank", Dark(), retry_failed=True, seconds=0.01, **settings)
        assert len(plan.left) == 2
        summary = fill(tmp_path / "bank", 7, unit_size=4, engine=engine, retry_failed=True)
        assert (summary.images, summary.rejected, summary.complete) == (21, (), True)
        fill(tmp_path / "fresh", 7, unit_size=4)
        assert contents(tmp_path / "bank") == contents(tmp_path / "fresh")

    def test_is_not_stopped_by_sources_that_were_rejected_before(
        self, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No generator makes anything of fourteen dark ones, and that does not keep a retry from a source behind them."""
        monkeypatch.setattr(Dark, "below", 13.5 / 255)
        options: dict[str, Any] = {"engine": engine, "unit_size": 7}
        first = fill(tmp_path, 28, **options, source=DarkInside(28, broken=[27]))
        assert (first.rows, len(first.rejected), len(first.failed)) == (39, 42, 1)
        again = fill(tmp_path, 28, **options, source=DarkInside(28), retry_failed=True)
        assert (again.rows, len(again.rejected), again.failed) == (42, 42, ())


class DarkInside(Photos):
    """The fourteen darkest are behind seven others."""

    def read(self, index: int) -> SourceSample:
        return super().read([*range(14, 21), *range(14), *range(21, 28)][index])
