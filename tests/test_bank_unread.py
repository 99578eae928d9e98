"""Sources that cannot be read for a moment: nothing is lost by it, and what is lacking is made later as if nothing had happened."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from bank_sources import Noise
from small_generators import NotFinite
from torch import Tensor
from typer.testing import CliRunner

import gentransforms as gt
from gentransforms.bank import Local
from gentransforms.bank.format.unit import list_units
from gentransforms.bank.generate.run import Summary, generate_bank, plan_bank
from gentransforms.bank.verify.checker import verify_bank
from gentransforms.cli.main import app
from gentransforms.errors import GeneratorError, MissingKeyError
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")


def fill(path: Path, source: Any, generator: Any = None, **options: Any) -> Summary:
    options = {"variants": 3, "unit_size": 4, "image_format": "png", "progress": False} | options
    return generate_bank(source, path, generator or FakeGenerator(), **options)


def rows(path: Path) -> dict[tuple[Any, int], dict[str, Any]]:
    tables = [pa.ipc.open_stream((path / unit.file).read_bytes()).read_all() for unit in list_units(path)]
    return {(row["key"], row["variant"]): row for table in tables for row in table.to_pylist()}


def seeds(key: str, numbers: Sequence[int]) -> list[int]:
    return gt.derive_seeds(0, [key] * len(numbers), numbers).tolist()


def failed(summary: Summary) -> list[Any]:
    return [entry["key"] for entry in summary.failed]


def variants(path: Path, key: str) -> list[int]:
    return gt.Bank.open(path).variants_of(key)


class Changed(FakeGenerator):
    """Makes NaN from the seeds in `bad`, which a test changes on the class, where no fingerprint sees it: as another machine may."""

    bad: Any = ()

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        images = super().sample(condition, seeds)
        images[[self.bad == "all" or seed in self.bad for seed in seeds.tolist()]] = float("nan")
        return images


class Strict(Changed):
    """With `bad`, makes black images, which are unlike all sources."""

    instance_feature = "mean"

    def encode(self, images: Tensor, **inputs: Any) -> dict[str, Tensor]:
        return {"mean": super().encode(images)["mean"] - 0.2}

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        return super().sample({"mean": condition["mean"] + 0.2}, seeds).nan_to_num(0.0)


class TestUnread:
    """Sources that cannot be read while a bank is extended or tried again, and can be read later."""

    LOST = ("photo-000005.jpg", "photo-000009.jpg")

    @pytest.fixture
    def grown(self, tmp_path: Path) -> dict[tuple[Any, int], dict[str, Any]]:
        """The rows of a bank that grew from 2 to 4 variants, and never lost a source."""
        for count in (2, 4):
            fill(tmp_path / "grown", Noise(range(10)), variants=count, extend=True)
        return rows(tmp_path / "grown")

    def lose(self, path: Path, **options: Any) -> Summary:
        fill(path, Noise(range(10)), variants=2)
        return fill(path, Noise(range(10), broken=[5, 9]), variants=4, extend=True, **options)

    def test_are_failed_sources(self, tmp_path: Path) -> None:
        summary = self.lose(tmp_path)
        assert failed(summary) == list(self.LOST)
        assert all("truncated" in entry["reason"] and "its source" not in entry["reason"] for entry in summary.failed)
        assert (summary.rejected, summary.complete, summary.rows) == ((), True, 36)
        assert failed(fill(tmp_path, Noise(range(10)), variants=4)) == list(self.LOST), "an ordinary run tries nothing again, but says so"
        report = verify_bank(tmp_path)
        assert report.ok, report
        bank = gt.Bank.open(tmp_path)
        assert bank.failed == [], "these have no images at all"
        with pytest.raises(
            MissingKeyError, match=r"is lacking, because its source could not be read: .*--retry-failed, or choose among \["
        ):
            bank.read([self.LOST[0]], [3])

    def test_the_run_reports_them_as_it_goes(self, tmp_path: Path) -> None:
        class Noting(Local):
            def make_units(self, *args: Any, **options: Any) -> Any:
                for report in super().make_units(*args, **options):
                    reports.append(report)
                    yield report

        reports: list[Any] = []
        self.lose(tmp_path, engine=Noting())
        assert [entry["key"] for report in reports for entry in report.failed] == list(self.LOST)
        assert not any(report.rejected for report in reports)

    def test_retried(self, tmp_path: Path, grown: dict[tuple[Any, int], dict[str, Any]]) -> None:
        self.lose(tmp_path / "bank")
        plan, _ = plan_bank(
            Noise(range(10)),
            tmp_path / "bank",
            FakeGenerator(),
            variants=4,
            unit_size=4,
            image_format="png",
            retry_failed=True,
            seconds=0.01,
        )
        assert [unit.start for unit in plan.left] == [4, 8]
        summary = fill(tmp_path / "bank", Noise(range(10)), variants=4, retry_failed=True)
        assert (summary.failed, summary.rejected, summary.rows) == ((), (), 40)
        assert rows(tmp_path / "bank") == grown
        assert verify_bank(tmp_path / "bank").ok

    def test_extended_later(self, tmp_path: Path, grown: dict[tuple[Any, int], dict[str, Any]]) -> None:
        self.lose(tmp_path / "bank")
        assert fill(tmp_path / "bank", Noise(range(10)), variants=5, extend=True).failed == ()
        fill(tmp_path / "grown", Noise(range(10)), variants=5, extend=True)
        assert rows(tmp_path / "bank") == rows(tmp_path / "grown")
        assert verify_bank(tmp_path / "bank").ok

    def test_extended_by_sources_alone(self, tmp_path: Path) -> None:
        self.lose(tmp_path)
        assert fill(tmp_path, Noise(range(12)), variants=4, extend=True).rows == 48

    def test_lost_a_second_time(self, tmp_path: Path) -> None:
        self.lose(tmp_path)
        again = fill(tmp_path, Noise(range(10), broken=[5]), variants=5, extend=True)
        assert failed(again) == [self.LOST[0]]
        assert variants(tmp_path, self.LOST[0]) == [0, 1]
        assert fill(tmp_path, Noise(range(10), broken=[5]), variants=5, retry_failed=True).failed == again.failed
        assert variants(tmp_path, self.LOST[0]) == [0, 1]
        fill(tmp_path, Noise(range(10)), variants=5, retry_failed=True)
        for count in (2, 4, 5):
            fill(tmp_path / "grown", Noise(range(10)), variants=count, extend=True)
        assert rows(tmp_path) == rows(tmp_path / "grown")

    def test_with_later_attempts(self, tmp_path: Path) -> None:
        """Variant 1 of a lost source took its second attempt, with seed number 3, which its new variant 3 may not take."""
        key = self.LOST[0]
        bad = NotFinite(tuple(seeds(key, [1])))
        for path, broken in ((tmp_path / "bank", [5]), (tmp_path / "grown", [])):
            fill(path, Noise(range(10)), bad, variants=2)
            fill(path, Noise(range(10), broken=broken), bad, variants=4, extend=True)
        for way in ("retry", "extend"):
            for name in ("bank", "grown"):
                shutil.copytree(tmp_path / name, tmp_path / way / name)
            options: dict[str, Any] = {"retry_failed": True} if way == "retry" else {"extend": True}
            for name in ("bank", "grown"):
                fill(tmp_path / way / name, Noise(range(10)), bad, variants=4 + (way == "extend"), **options)
            found = rows(tmp_path / way / "bank")
            assert found[key, 1]["attempt"] == 1
            assert found == rows(tmp_path / way / "grown")

    def test_variants_that_were_rejected_stay_rejected(self, tmp_path: Path) -> None:
        key = self.LOST[0]
        bad = NotFinite(tuple(seeds(key, [1 + 2 * attempt for attempt in range(5)])))
        fill(tmp_path, Noise(range(10)), bad, variants=2)
        summary = fill(tmp_path, Noise(range(10), broken=[5]), bad, variants=4, extend=True)
        assert failed(summary) == [key]
        assert [(entry["key"], entry["variant"]) for entry in summary.rejected] == [(key, 1)]
        summary = fill(tmp_path, Noise(range(10)), bad, variants=4, retry_failed=True)
        assert (summary.failed, len(summary.rejected), variants(tmp_path, key)) == ((), 1, [0, 2, 3])

    @pytest.mark.parametrize("history", [False, True])
    def test_a_retry_keeps_the_images_of_others_that_are_lost_now(self, tmp_path: Path, history: bool) -> None:
        if history:
            fill(tmp_path, Noise(range(10), broken=[4]), variants=2)
        fill(tmp_path, Noise(range(10), broken=[4]), extend=history)
        before, marks = rows(tmp_path), gt.Bank.open(tmp_path).marks
        summary = fill(tmp_path, Noise(range(10), broken=[5, 6]), retry_failed=True)
        assert (summary.failed, summary.rejected, summary.rows) == ((), (), 30), "nothing is lacking"
        after, bank = rows(tmp_path), gt.Bank.open(tmp_path)
        assert {place: after[place] for place in before} == before
        assert {key for key, _ in after.keys() - before.keys()} == {"photo-000004.jpg"}
        assert bank.marks is not None
        assert marks is not None
        assert [mark for key, mark in zip(bank.keys, bank.marks.tolist(), strict=True) if key != "photo-000004.jpg"] == marks.tolist()
        report = verify_bank(tmp_path)
        assert report.ok, report

    def test_a_retry_in_vain_changes_nothing(self, tmp_path: Path) -> None:
        fill(tmp_path, Noise(range(10), broken=[4]))
        before = rows(tmp_path)
        summary = fill(tmp_path, Noise(range(10), broken=[4, 5, 6, 7]), retry_failed=True)
        assert failed(summary) == ["photo-000004.jpg"]
        assert rows(tmp_path) == before

    def test_a_unit_that_is_damaged_is_not_taken_over(self, tmp_path: Path) -> None:
        fill(tmp_path, Noise(range(10), broken=[4]))
        file = tmp_path / list_units(tmp_path)[1].file
        file.write_bytes(file.read_bytes()[:-300] + bytes(300))
        summary = fill(tmp_path, Noise(range(10), broken=[5]), retry_failed=True)
        assert failed(summary) == ["photo-000005.jpg"]
        assert verify_bank(tmp_path).ok
        assert fill(tmp_path, Noise(range(10)), retry_failed=True).rows == 30

    @pytest.mark.parametrize("history", [False, True])
    def test_a_retry_keeps_images_that_are_rejected_now(self, tmp_path: Path, history: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if history:
            fill(tmp_path, Noise(range(10), broken=[4]), Changed(), variants=2)
        fill(tmp_path, Noise(range(10), broken=[4]), Changed(), extend=history)
        before, marks = rows(tmp_path), gt.Bank.open(tmp_path).marks
        monkeypatch.setattr(Changed, "bad", [*seeds("photo-000005.jpg", range(1, 15, 3 - history)), *seeds("photo-000006.jpg", range(15))])
        summary = fill(tmp_path, Noise(range(10)), Changed(), retry_failed=True)
        assert (summary.failed, summary.rejected, summary.rows) == ((), (), 30)
        after, bank = rows(tmp_path), gt.Bank.open(tmp_path)
        assert {place: after[place] for place in before} == before
        assert marks is not None
        assert bank.marks is not None
        assert [mark for key, mark in zip(bank.keys, bank.marks.tolist(), strict=True) if key != "photo-000004.jpg"] == marks.tolist()
        assert verify_bank(tmp_path).ok

    def test_what_was_never_made_may_be_rejected_by_a_retry(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(tmp_path, Noise(range(10), broken=[4]), Changed())
        monkeypatch.setattr(Changed, "bad", seeds("photo-000004.jpg", range(1, 15, 3)))
        summary = fill(tmp_path, Noise(range(10)), Changed(), retry_failed=True)
        assert ([(e["key"], e["variant"]) for e in summary.rejected], summary.rows) == ([("photo-000004.jpg", 1)], 29)
        assert verify_bank(tmp_path).ok

    def test_a_retry_keeps_images_that_are_too_unlike_now(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(tmp_path, Noise(range(6), broken=[4]), Strict(), min_similarity=0.9)
        before = rows(tmp_path)
        monkeypatch.setattr(Changed, "bad", "all")
        summary = fill(tmp_path, Noise(range(6)), Strict(), min_similarity=0.9, retry_failed=True)
        assert (summary.failed, len(summary.rejected)) == ((), 3), "of the source that was never made"
        assert rows(tmp_path) == before
        assert verify_bank(tmp_path).ok

    def test_a_retry_that_makes_only_nan_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With too few sources for a run to stop early."""
        fill(tmp_path, Noise(range(4), broken=[0]), Changed())
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        monkeypatch.setattr(Changed, "bad", "all")
        with pytest.raises(GeneratorError, match="NaN or infinity in every image of 4 sources, although the bank has images of them"):
            fill(tmp_path, Noise(range(4)), Changed(), retry_failed=True)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before

    @pytest.mark.parametrize("lost", [[], [1, 2, 3]])
    def test_nan_of_a_source_without_images_is_that_of_the_source(
        self, tmp_path: Path, lost: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = {"unit_size": 4 if lost else 1}  # units are tried again as a whole
        fill(tmp_path, Noise(range(4), broken=[0]), Changed(), **options)
        before = rows(tmp_path)
        monkeypatch.setattr(Changed, "bad", "all")
        summary = fill(tmp_path, Noise(range(4), broken=lost), Changed(), **options, retry_failed=True)
        assert (summary.failed, len(summary.rejected), rows(tmp_path)) == ((), 3, before)

    def test_the_command_line_says_so(self, tmp_path: Path) -> None:
        photos = sorted((Path(gt.__file__).parent / "samples").glob("*.png"))[:3]
        (tmp_path / "photos").mkdir()
        for photo in photos:
            shutil.copy(photo, tmp_path / "photos")
        command = ["generate", str(tmp_path / "photos"), str(tmp_path / "bank"), "--generator", "icgan-cifar10-32", "--device", "cpu"]
        assert CliRunner().invoke(app, [*command, "--variants", "1"]).exit_code == 0
        (tmp_path / "photos" / photos[1].name).write_bytes(photos[1].read_bytes()[:50])
        result = CliRunner().invoke(app, [*command, "--variants", "2", "--extend"])
        assert result.exit_code == 1
        assert f"failed: {photos[1].name}: " in result.stderr
        assert "1 source could not be read: fix and run with --retry-failed" in result.stderr
        shutil.copy(photos[1], tmp_path / "photos")
        assert CliRunner().invoke(app, [*command, "--variants", "2", "--retry-failed"]).exit_code == 0
        assert len(gt.Bank.open(tmp_path / "bank")) == 6
