"""A bank grows: more variants, more sources; what is there stays, and nothing is generated twice."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from bank_process import killed_at
from bank_sources import Noise, Photos
from small_generators import Flat, NotFinite
from torch import Tensor
from typer.testing import CliRunner

import gentransforms as gt
from gentransforms.bank import Local
from gentransforms.bank.format.manifest import MANIFEST
from gentransforms.bank.format.unit import list_units
from gentransforms.bank.generate.matching import KEYS, ArrangedSource
from gentransforms.bank.generate.run import Summary, generate_bank, plan_bank
from gentransforms.bank.share.card import bank_card
from gentransforms.bank.verify.checker import verify_bank
from gentransforms.cli.main import app
from gentransforms.errors import BankError
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")


def fill(path: Path, source: Any = None, generator: Any = None, **options: Any) -> Summary:
    options = {"variants": 3, "unit_size": 4, "image_format": "png", "progress": False} | options
    return generate_bank(source or Photos(), path, generator or FakeGenerator(), **options)


def rows(path: Path) -> dict[tuple[Any, int], dict[str, Any]]:
    found = {}
    for unit in list_units(path):
        for row in pa.ipc.open_stream((path / unit.file).read_bytes()).read_all().to_pylist():
            found[row["key"], row["variant"]] = row
    return found


def seeds(key: str, numbers: Sequence[int]) -> list[int]:
    return gt.derive_seeds(0, [key] * len(numbers), numbers).tolist()


class Some(Photos):
    """Photos of some numbers, in the order of their names, as a folder has them."""

    def __init__(self, numbers: Sequence[int], broken: Sequence[int] = ()) -> None:
        super().__init__(max(numbers) + 1, broken)
        self.numbers = list(numbers)
        self.keys = [self.keys[i] for i in numbers]  # type: ignore[assignment]

    def read(self, index: int) -> Any:
        return super().read(self.numbers[index])


class TestMoreVariants:
    def test_what_is_there_stays_and_the_rest_is_that_of_a_larger_bank(self, tmp_path: Path) -> None:
        fill(tmp_path / "bank")
        before = rows(tmp_path / "bank")
        generator = Flat((16, 16))
        summary = fill(tmp_path / "bank", variants=5, extend=True)
        after = rows(tmp_path / "bank")
        assert (summary.images, summary.rows, summary.units_done, summary.complete) == (20, 50, 3, True)
        assert {place: after[place] for place in before} == before
        fill(tmp_path / "large", variants=5)
        assert after == rows(tmp_path / "large"), "no image took a second attempt"
        assert verify_bank(tmp_path / "bank").ok
        assert not list((tmp_path / "bank").glob("former-*"))
        assert gt.Bank.open(tmp_path / "bank").variants == 5
        assert generator.seeds == []

    def test_only_what_is_lacking_is_generated(self, tmp_path: Path) -> None:
        fill(tmp_path)
        generator = FakeGenerator()
        fill(tmp_path, generator=generator, variants=4, extend=True, batch_size=64)
        assert generator.calls == 3, "a batch for each unit"

    def test_the_manifest_tells_its_history(self, tmp_path: Path) -> None:
        fill(tmp_path)
        fill(tmp_path, variants=5, extend=True)
        fill(tmp_path, Photos(12), variants=6, extend=True)
        manifest = json.loads((tmp_path / MANIFEST).read_text())
        assert (manifest["settings"]["variants"], manifest["source"]["count"]) == (6, 12)
        assert [(entry["variants"], entry["count"]) for entry in manifest["history"]] == [(3, 10), (5, 10)]
        assert all(entry["until"] > manifest["info"]["created"][:10] for entry in manifest["history"])
        assert len(rows(tmp_path)) == 72
        assert verify_bank(tmp_path).ok

    def test_is_refused_unless_asked_for(self, tmp_path: Path) -> None:
        fill(tmp_path)
        before = rows(tmp_path)
        with pytest.raises(BankError, match=r"variants: the bank has 3, this call 5.*extend=True \(--extend\) adds what is lacking"):
            fill(tmp_path, variants=5)
        with pytest.raises(BankError, match=r"source count: the bank has 10, this call 12.*extend=True"):
            fill(tmp_path, Photos(12))
        assert rows(tmp_path) == before

    @pytest.mark.parametrize(
        "change",
        [{"variants": 2}, {"base_seed": 1, "variants": 5}, {"source": Photos(9)}, {"source": Photos(12, names="x{}.jpg")}],
        ids=["fewer variants", "another seed", "fewer sources", "other sources"],
    )
    def test_anything_else_is_no_growth(self, tmp_path: Path, change: dict[str, Any]) -> None:
        fill(tmp_path)
        before = rows(tmp_path)
        with pytest.raises(BankError, match=r"other settings|lacks"):
            fill(tmp_path, **{"extend": True, **change})
        assert rows(tmp_path) == before
        assert "history" not in json.loads((tmp_path / MANIFEST).read_text())

    def test_extending_by_nothing_is_an_ordinary_run(self, tmp_path: Path) -> None:
        fill(tmp_path)
        assert fill(tmp_path, extend=True).images == 0
        assert fill(tmp_path / "new", extend=True).images == 30
        assert "history" not in json.loads((tmp_path / MANIFEST).read_text())

    def test_no_seed_is_used_for_two_variants(self, tmp_path: Path) -> None:
        """Variant 1 took its second attempt, whose seed number 4 would be that of the new variant 4."""
        key = "photo-000001.jpg"
        bad = NotFinite(tuple(seeds(key, [1])))
        fill(tmp_path / "bank", generator=bad)
        assert rows(tmp_path / "bank")[key, 1]["seed"] == seeds(key, [4])[0]
        fill(tmp_path / "bank", generator=bad, variants=6, extend=True)
        grown = rows(tmp_path / "bank")
        assert grown[key, 1]["seed"] == seeds(key, [4])[0]
        assert (grown[key, 4]["attempt"], grown[key, 4]["seed"]) == (1, seeds(key, [4 + 6])[0])
        assert len({row["seed"] for row in grown.values()}) == 60
        assert verify_bank(tmp_path / "bank").ok
        (tmp_path / "bank" / list_units(tmp_path / "bank")[0].file).unlink()
        fill(tmp_path / "bank", generator=bad, variants=6)
        assert rows(tmp_path / "bank") == grown, "a unit that is lost is made again as it was"


class TestMoreSources:
    def test_appended(self, tmp_path: Path) -> None:
        fill(tmp_path / "bank", Photos(10))
        before = {file.name: file.read_bytes() for file in (tmp_path / "bank").glob("unit-*.arrow")}
        summary = fill(tmp_path / "bank", Photos(15), extend=True)
        assert (summary.images, summary.rows, summary.units) == (15, 45, 5)
        after = {file.name: file.read_bytes() for file in (tmp_path / "bank").glob("unit-*.arrow")}
        assert before.items() <= after.items(), "units that lack nothing keep their files"
        assert gt.Bank.open(tmp_path / "bank").keys == Photos(15).keys
        assert verify_bank(tmp_path / "bank").ok
        assert fill(tmp_path / "bank", Photos(15)).images == 0

    def test_between_the_others(self, tmp_path: Path) -> None:
        few, many = Some([0, 3, 4, 8, 9]), Some(range(12))
        fill(tmp_path / "bank", few)
        before = rows(tmp_path / "bank")
        summary = fill(tmp_path / "bank", many, extend=True)
        assert (summary.images, summary.rows) == (21, 36)
        after = rows(tmp_path / "bank")
        assert {place: after[place] for place in before} == before
        fill(tmp_path / "large", Some(range(12)))
        assert after == rows(tmp_path / "large")
        assert gt.Bank.open(tmp_path / "bank").keys == [*few.keys, *(key for key in many.keys if key not in few.keys)]
        assert verify_bank(tmp_path / "bank").ok
        (tmp_path / "bank" / list_units(tmp_path / "bank")[2].file).unlink()
        assert fill(tmp_path / "bank", Some(range(12))).complete, "later runs know the order"
        assert rows(tmp_path / "bank") == after
        fill(tmp_path / "bank", Some(range(20)), extend=True)
        assert len(rows(tmp_path / "bank")) == 60

    def test_between_the_others_of_an_unfinished_bank(self, tmp_path: Path) -> None:
        fill(tmp_path, Some([0, 3, 4, 8, 9]), shard="0/2")
        with pytest.raises(
            BankError,
            match=r"unfinished, and the source begins with other keys .*: finish the bank with the source that it was started with",
        ):
            fill(tmp_path, Some(range(12)), extend=True)

    def test_a_source_that_lost_some(self, tmp_path: Path) -> None:
        fill(tmp_path, Some([0, 3, 4]))
        with pytest.raises(BankError, match=r"lacks 1 of the bank's 3 keys \('photo-000003\.jpg'\).*put these back"):
            fill(tmp_path, Some([0, 1, 2, 4]), extend=True)

    def test_a_folder(self, tmp_path: Path) -> None:
        photo = next((Path(gt.__file__).parent / "samples").glob("*.png")).read_bytes()
        (tmp_path / "photos").mkdir()
        for name in "bd":
            (tmp_path / "photos" / f"{name}.png").write_bytes(photo)
        fill(tmp_path / "bank", tmp_path / "photos")
        for name in "ace":
            (tmp_path / "photos" / f"{name}.png").write_bytes(photo)
        fill(tmp_path / "bank", tmp_path / "photos", variants=4, extend=True)
        assert gt.Bank.open(tmp_path / "bank").keys == ["b.png", "d.png", "a.png", "c.png", "e.png"]
        assert len(gt.Bank.open(tmp_path / "bank")) == 20

    def test_ranges_are_read_as_they_lie(self) -> None:
        class Noting(Photos):
            ranges: list[tuple[int, int]] = []  # noqa: RUF012

            def read_range(self, start: int, stop: int) -> Any:
                self.ranges.append((start, stop))
                return super().read_range(start, stop)

        noting = Noting(6)
        source = ArrangedSource(noting, [noting.keys[i] for i in (1, 2, 5, 0, 3, 4)], [1, 2, 5, 0, 3, 4])
        assert source.keys == [f"photo-{i:06d}.jpg" for i in (1, 2, 5, 0, 3, 4)]
        values = [int(sample.image[0, 0, 0]) for sample in source.read_range(0, 6)]  # type: ignore[union-attr]
        assert values == [1, 2, 5, 0, 3, 4]
        assert Noting.ranges == [(1, 3), (5, 6), (0, 1), (3, 5)]


class TestOtherImages:
    """The same keys, with other images: their variants would stand beside those of the first."""

    @pytest.mark.parametrize("more", [0, 4])
    def test_rows_in_another_order_are_refused(self, tmp_path: Path, more: int) -> None:
        order = [0, *range(11, 0, -1), 12, *range(22, 12, -1), 23, *range(24, 24 + more)]
        fill(tmp_path, Noise(range(24)))
        before = rows(tmp_path)
        with pytest.raises(BankError, match=r"the image of 'photo-000001\.jpg' is a different one"):
            fill(tmp_path, Noise(order), variants=5, extend=True)
        assert rows(tmp_path) == before
        assert "history" not in json.loads((tmp_path / MANIFEST).read_text())

    def test_what_was_added_is_compared_too(self, tmp_path: Path) -> None:
        fill(tmp_path, Noise(range(70)))
        fill(tmp_path, Noise(range(140)), extend=True, shard="0/2")
        samples = [sample["index"] for sample in json.loads((tmp_path / MANIFEST).read_text())["info"]["samples"]]
        assert (len(samples), sorted(samples), samples[0], samples[-1]) == (64, samples, 0, 139)
        with pytest.raises(BankError, match=r"the image of 'photo-0000(7|8)\d\.jpg' is a different one"):
            fill(tmp_path, Noise([*range(70), *range(139, 69, -1)]))
        assert fill(tmp_path, Noise(range(140))).complete

    def test_a_source_between_the_samples_is_compared_when_it_is_read_again(self, tmp_path: Path) -> None:
        fill(tmp_path, Noise(range(130)))
        samples = {sample["index"] for sample in json.loads((tmp_path / MANIFEST).read_text())["info"]["samples"]}
        a, b = sorted(set(range(20, 130)) - samples)[:2]
        order = list(range(130))
        order[a], order[b] = b, a
        with pytest.raises(BankError, match=f"the image of 'photo-{a:06d}.jpg' is a different one"):
            fill(tmp_path, Noise(order), variants=4, extend=True)
        before = rows(tmp_path)
        assert (f"photo-{a:06d}.jpg", 3) not in before
        assert fill(tmp_path, Noise(range(130)), variants=4).complete
        assert verify_bank(tmp_path).ok

    @pytest.mark.parametrize("damage", ["cut short", "other bytes"])
    def test_also_where_the_unit_of_before_is_damaged(self, tmp_path: Path, damage: str) -> None:
        fill(tmp_path, Noise(range(130)), unit_size=50)
        samples = {sample["index"] for sample in json.loads((tmp_path / MANIFEST).read_text())["info"]["samples"]}
        a, b = sorted(set(range(50)) - samples)[:2]
        order = list(range(130))
        order[a], order[b] = b, a
        file = tmp_path / list_units(tmp_path)[0].file
        data = file.read_bytes()
        file.write_bytes(data[:100] if damage == "cut short" else data[:-300] + bytes(300))
        with pytest.raises(BankError, match=f"the image of 'photo-{a:06d}.jpg' is a different one"):
            fill(tmp_path, Noise(order), variants=4, extend=True, unit_size=50)
        assert fill(tmp_path, Noise(range(130)), variants=4, unit_size=50).images == 50 * 4 + 80
        fill(tmp_path / "other", Noise(range(130)), variants=4, unit_size=50)
        assert rows(tmp_path) == rows(tmp_path / "other"), "nothing damaged was taken over"
        assert verify_bank(tmp_path).ok

    def test_the_marks_of_a_source_that_is_lost_meanwhile_stay(self, tmp_path: Path) -> None:
        fill(tmp_path, Photos(10))
        before = gt.Bank.open(tmp_path).marks
        fill(tmp_path, Photos(10, broken=[5]), variants=5, extend=True)
        after = gt.Bank.open(tmp_path).marks
        assert before is not None
        assert after is not None
        assert after.tolist() == before.tolist()


class TestOpen:
    """A bank that is open, here or in a worker, while another process extends it."""

    @pytest.mark.parametrize("finished", [True, False])
    def test_what_is_no_longer_there_is_explained(self, tmp_path: Path, finished: bool) -> None:
        fill(tmp_path)
        bank = gt.Bank.open(tmp_path)
        worker = pickle.dumps(bank)
        first = bank.read(bank.keys[:1], [0])
        fill(tmp_path, variants=5, extend=True, shard=None if finished else "0/3")
        assert bank.read(bank.keys[:1], [0]).equal(first), "what is mapped stays"
        for call in (lambda: bank.read(bank.keys[-1:], [0]), lambda: list(bank.batches()), lambda: gt.BankAugment(bank, in_memory=True)):
            with pytest.raises(BankError, match=r"another process has extended this bank .* open it again$"):
                call()
        with pytest.raises(BankError, match=r"bank\.json: has changed since this bank was opened.* open it again in the main process"):
            pickle.loads(worker)

    def test_what_is_damaged_is_not_called_extended(self, tmp_path: Path) -> None:
        fill(tmp_path)
        bank = gt.Bank.open(tmp_path)
        (tmp_path / list_units(tmp_path)[2].file).unlink()
        with pytest.raises(BankError, match=r"unit-000000008-000000010\.arrow: cannot be read .*bank verify --repair"):
            bank.read(bank.keys[-1:], [0])


class TestGone:
    """Sources that could not be read, and were removed."""

    @pytest.mark.parametrize(
        ("broken", "shard"), [([4], None), ([2, 3, 9], None), ([4], "1/2"), ([0], "0/2"), ([9], "0/2"), ([0, 1, 2, 3], "0/2")]
    )
    def test_the_bank_goes_on_without_them(self, tmp_path: Path, broken: list[int], shard: str | None) -> None:
        fill(tmp_path / "bank", Photos(10, broken=broken), shard=shard)
        fill(tmp_path / "whole", Photos(10, broken=broken))
        left = Some([i for i in range(10) if i not in broken])
        with pytest.warns(UserWarning, match=rf"{len(broken)} sources? that could not be read (is|are) gone \('photo-00000{broken[0]}"):
            summary = fill(tmp_path / "bank", left)
        assert summary.complete
        assert [entry["key"] for entry in summary.failed] == [f"photo-{i:06d}.jpg" for i in broken]
        assert rows(tmp_path / "bank") == rows(tmp_path / "whole")
        assert verify_bank(tmp_path / "bank").ok
        with pytest.warns(UserWarning, match="gone"):
            summary = fill(tmp_path / "bank", left, retry_failed=True)
        assert "is gone from the source" in summary.failed[0]["reason"]
        assert rows(tmp_path / "bank") == rows(tmp_path / "whole")

    def test_and_can_be_extended(self, tmp_path: Path) -> None:
        fill(tmp_path, Photos(10, broken=[4]))
        left = Some([i for i in range(12) if i != 4])
        more = r"source count: the bank has 10, this call 12; .*2 are new \('photo-000010.*--extend"
        with pytest.raises(BankError, match=more), pytest.warns(UserWarning, match="gone"):
            fill(tmp_path, left)
        with pytest.warns(UserWarning, match="gone"):
            assert fill(tmp_path, left, extend=True).rows == 33
        assert verify_bank(tmp_path).ok
        assert fill(tmp_path, Photos(12), retry_failed=True).rows == 36, "it may come back"

    @pytest.mark.parametrize("finished", [True, False])
    def test_one_that_has_images_is_named(self, tmp_path: Path, finished: bool) -> None:
        fill(tmp_path, Photos(10, broken=[4]), shard=None if finished else "1/2")
        named = r"1 of the bank's is missing from the source \('photo-000005\.jpg'\)"
        with pytest.raises(
            BankError, match=rf"source count: the bank has 10, this call 9; source keys: {named}\): put the missing sources"
        ):
            fill(tmp_path, Some([0, 1, 2, 3, 4, 6, 7, 8, 9], broken=[4]))

    def test_new_names_are_named(self, tmp_path: Path) -> None:
        fill(tmp_path)
        renamed = Photos(10)
        renamed.keys = [*renamed.keys[:5], "a.jpg", *renamed.keys[6:]]  # type: ignore[assignment]
        with pytest.raises(BankError, match=r"1 of the bank's is missing .*'photo-000005\.jpg'\), 1 is new \('a\.jpg'\)"):
            fill(tmp_path, renamed)

    def test_a_row_number_is_no_name(self, tmp_path: Path) -> None:
        """If row 4 of a table is removed, the following rows move up: their numbers are other images' keys."""
        photos = [pixel.clone() for pixel in Tensor([1, 2, 3, 4]).view(4, 1, 1, 1).expand(4, 3, 8, 8) / 10]
        photos[3] = photos[3] * 10  # out of range
        assert len(fill(tmp_path, photos).failed) == 1
        with pytest.raises(BankError, match=r"source count: the bank has 4, this call 3; source keys: .*missing"):
            fill(tmp_path, photos[1:])

    def test_another_order_is_arranged(self, tmp_path: Path) -> None:
        order = [3, 1, 2, 0, 4]
        right, wrong = Noise(order), Noise(range(5))
        right.keys = wrong.keys = [right.keys[i] for i in order]  # type: ignore[assignment]
        fill(tmp_path, Noise(range(5)))
        summary = fill(tmp_path, right)
        assert (summary.images, summary.complete) == (0, True)
        with pytest.raises(BankError, match=r"'photo-000000.jpg' is a different one"):
            fill(tmp_path, wrong)


class TestStopped:
    """Whatever happens to a run that extends a bank, the next one goes on."""

    def test_in_the_middle(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        original = FakeGenerator.sample

        def failing(self: FakeGenerator, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
            if self.calls == 2:
                raise RuntimeError("the third")
            return original(self, condition, seeds)

        fill(tmp_path)
        before = rows(tmp_path)
        monkeypatch.setattr(FakeGenerator, "sample", failing)
        with pytest.raises(RuntimeError, match="the third"):
            fill(tmp_path, variants=5, extend=True)
        monkeypatch.undo()
        with pytest.raises(BankError, match="unfinished: 1 of 3 units is missing"):
            gt.Bank.open(tmp_path)
        summary = fill(tmp_path, variants=5)
        assert (summary.images, summary.rows, summary.complete) == (4, 50, True)
        assert {place: rows(tmp_path)[place] for place in before} == before
        assert verify_bank(tmp_path).ok

    def test_right_after_the_manifest(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from gentransforms.bank.generate import run

        fill(tmp_path)
        before = rows(tmp_path)
        monkeypatch.setattr(run, "retire_units", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path, variants=5, extend=True)
        monkeypatch.undo()
        assert fill(tmp_path, variants=5).images == 20
        assert {place: rows(tmp_path)[place] for place in before} == before

    def test_a_former_unit_that_is_damaged_is_generated_anew(self, tmp_path: Path) -> None:
        fill(tmp_path)
        before = rows(tmp_path)
        unit = list_units(tmp_path)[1]
        (tmp_path / unit.file).write_bytes((tmp_path / unit.file).read_bytes()[:100])
        summary = fill(tmp_path, variants=5, extend=True)
        assert (summary.images, summary.rows) == (6 * 2 + 4 * 5, 50)
        assert {place: rows(tmp_path)[place] for place in before} == before

    def test_shards_extend_it_together(self, tmp_path: Path) -> None:
        fill(tmp_path / "bank")
        for shard in ("0/2", "1/2"):
            assert fill(tmp_path / "bank", variants=5, extend=True, shard=shard).complete
        fill(tmp_path / "whole", variants=5)
        assert rows(tmp_path / "bank") == rows(tmp_path / "whole")
        assert len(json.loads((tmp_path / "bank" / MANIFEST).read_text())["history"]) == 1

    def test_an_unfinished_bank_with_more_variants(self, tmp_path: Path) -> None:
        fill(tmp_path / "bank", shard="0/2")
        summary = fill(tmp_path / "bank", variants=5, extend=True)
        assert (summary.images, summary.rows) == (6 * 2 + 4 * 5, 50)

    def test_sources_that_failed(self, tmp_path: Path) -> None:
        fill(tmp_path, Photos(10, broken=[1, 2]))
        summary = fill(tmp_path, Photos(10, broken=[2, 5]), variants=5, extend=True)
        assert [entry["key"] for entry in summary.failed] == ["photo-000002.jpg", "photo-000005.jpg"]
        found = rows(tmp_path)
        assert [variant for key, variant in found if key == "photo-000001.jpg"] == [0, 1, 2, 3, 4], "it can be read now"
        assert [variant for key, variant in found if key == "photo-000005.jpg"] == [0, 1, 2], "what it had it keeps"
        assert summary.rejected == ()
        assert verify_bank(tmp_path).ok


class TestPlan:
    def test_of_an_extension_writes_nothing(self, tmp_path: Path) -> None:
        fill(tmp_path)
        before = sorted((file.name, file.stat().st_mtime_ns) for file in tmp_path.iterdir())
        options: dict[str, Any] = {"variants": 5, "unit_size": 4, "image_format": "png", "seconds": 0.01}
        plan, _ = plan_bank(Photos(12), tmp_path, FakeGenerator(), extend=True, **options)
        assert (plan.images, plan.images_left, len(plan.left), plan.kept) == (60, 30, 4, 30)
        assert sorted((file.name, file.stat().st_mtime_ns) for file in tmp_path.iterdir()) == before
        with pytest.raises(BankError, match="extend=True"):
            plan_bank(Photos(12), tmp_path, FakeGenerator(), **options)

    def test_says_so(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        fill(tmp_path)
        fill(tmp_path, variants=5, extend=True, progress=True, engine=Local(1))
        assert f"extending a bank of 30 images by 20: {tmp_path}" in capsys.readouterr().err


def test_the_order_is_kept_only_where_it_differs(tmp_path: Path) -> None:
    fill(tmp_path / "a", Photos(10))
    fill(tmp_path / "a", Photos(12), extend=True)
    assert not (tmp_path / "a" / KEYS).exists()
    fill(tmp_path / "b", Some([0, 3]))
    fill(tmp_path / "b", Some([0, 1, 3]), extend=True)
    assert json.loads((tmp_path / "b" / KEYS).read_text()) == [f"photo-{i:06d}.jpg" for i in (0, 3, 1)]


def test_card_and_info_tell_of_it(tmp_path: Path) -> None:
    fill(tmp_path)
    fill(tmp_path, Photos(12), variants=5, extend=True)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert "variant + attempt * variants" in bank_card(manifest, 60)
    assert "3, 5" in bank_card(manifest, 60)
    said = CliRunner().invoke(app, ["bank", "info", str(tmp_path)]).stdout
    assert "history: 3 variants of 10 sources until " in said


class TestKilledEarly:
    """A run that extends a bank is killed: what it has not come to belongs to the bank all the same."""

    @pytest.mark.parametrize("how", [{"variants": 4}, {"count": 14}])
    def test_units_from_before_count_as_missing(self, tmp_path: Path, how: dict[str, Any]) -> None:
        count, settings, path = how.get("count", 10), {"variants": how.get("variants", 3)}, tmp_path / "bank"
        seen = set[int]()
        for step in range(40):
            shutil.rmtree(path, ignore_errors=True)
            fill(path)
            before = rows(path)
            with killed_at(step) as done:
                fill(path, Photos(count), extend=True, **settings)
            manifest = json.loads((path / MANIFEST).read_text())
            if not manifest.get("history"):
                continue
            problems = verify_bank(path, repair=True).problems
            assert {problem.kind for problem in problems} <= {"missing"}, f"killed after {done}"
            assert gt.Bank.open(path, partial=True).missing_units == len(problems)
            early = sum("is from before the bank was extended" in problem.text for problem in problems)
            if not early:
                break
            seen.add(early)
            assert verify_bank(path).advice == "run generate again, which makes the missing units"
            with pytest.raises(BankError, match=r"unfinished: .* run generate with the settings of this bank again to finish it"):
                gt.Bank.open(path)
            shown = CliRunner().invoke(app, ["bank", "info", str(path)])
            assert shown.exit_code == 0
            assert "unfinished" in shown.output
            fill(path, Photos(count), **settings)
            assert {place: row for place, row in rows(path).items() if place in before} == before
            assert len(gt.Bank.open(path)) == count * settings["variants"]
            assert verify_bank(path).ok
        assert {1, 2, 3} <= seen

    def test_a_damaged_one_is_told(self, tmp_path: Path) -> None:
        fill(tmp_path)
        with killed_at(4) as done:
            fill(tmp_path, variants=4, extend=True)
        assert MANIFEST in str(done) or json.loads((tmp_path / MANIFEST).read_text()).get("history")
        file = tmp_path / list_units(tmp_path)[-1].file
        file.write_bytes(file.read_bytes()[:-5] + b"wrong")
        assert {problem.kind for problem in verify_bank(tmp_path).problems if problem.unit == file.stem} == {"missing", "checksum"}
        assert fill(tmp_path, variants=4).rows == 40
        assert verify_bank(tmp_path).ok
