"""Verifying a bank: each kind of damage is named, and repaired by making the unit again."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import shutil
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from small_banks import BASE_SEED, KEYS, edit_json, encoded, make_bank, pixels, png

import gentransforms as gt
from gentransforms.bank.format.manifest import COPY, MANIFEST, hash_manifest
from gentransforms.bank.format.unit import Row, Unit, plan_units, unit_schema
from gentransforms.bank.reader import Bank
from gentransforms.bank.verify import checker as verify
from gentransforms.bank.verify import rows as verified_rows
from gentransforms.bank.verify.checker import BankReport, Problem, find_faults, verify_bank
from gentransforms.bank.verify.report import damaged_units, remove_units
from gentransforms.errors import BankError, ConfigError

FIRST, MIDDLE, LAST = plan_units(10, 4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bank(tmp_path_factory.mktemp("bank") / "bank")


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A finished bank of 10 sources and 3 variants, to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "bank"))


def found(path: Path, **options: Any) -> list[tuple[str, str]]:
    return [(problem.unit, problem.kind) for problem in verify_bank(path, **options).problems]


def spoilt(path: Path, change: Callable[[list[Row]], list[Row]], **options: Any) -> BankReport:
    """What is found in a bank whose middle unit was written with other rows."""
    return verify_bank(make_bank(path, change=lambda unit, rows: change(rows) if unit == MIDDLE else rows, **options))


def rewrite(path: Path, unit: Unit, data: bytes) -> None:
    """Replace a unit's file, its sidecar telling of it as if it had been written so."""
    (path / unit.file).write_bytes(data)
    edit_json(path / unit.sidecar, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


class TestSoundBanks:
    def test_a_finished_one(self, path: Path) -> None:
        report = verify_bank(path)
        assert report.ok
        assert report.problems == []
        assert (report.units, report.rows, report.images, report.partials, report.removed) == (3, 30, 30, 0, ())
        assert str(report) == f"{path}: 3 units, 30 rows, 30 images decoded\nno problem"

    def test_through_the_bank(self, path: Path) -> None:
        assert Bank.open(path).verify() == verify_bank(str(path))

    @pytest.mark.parametrize("keys", [[], [3, 1, 2, -5, 2**62], ["1"], [f"ünï/{i}" for i in range(9)]])
    def test_of_any_keys(self, tmp_path: Path, keys: Any) -> None:
        assert verify_bank(make_bank(tmp_path, keys=keys)).ok

    @pytest.mark.parametrize("indexed", [True, False])
    def test_with_failed_sources_and_rejected_variants(self, tmp_path: Path, indexed: bool) -> None:
        failed = {KEYS[0]: "empty", KEYS[5]: "text", KEYS[9]: "text"}
        rejected = {(KEYS[1], 1): "far", **{(KEYS[6], v): "far" for v in range(3)}}
        report = verify_bank(make_bank(tmp_path, failed=failed, rejected=rejected, indexed=indexed))
        assert (report.ok, report.rows) == (True, 17)

    def test_of_which_no_source_could_be_read(self, tmp_path: Path) -> None:
        assert verify_bank(make_bank(tmp_path, failed=dict.fromkeys(KEYS, "empty"))).ok

    def test_with_images_that_were_drawn_again(self, tmp_path: Path) -> None:
        def drawn_again(unit: Unit, rows: list[Row]) -> list[Row]:
            seed = gt.derive_seeds(BASE_SEED, [rows[1].key], [1 + 2 * 3]).item()  # the third draw of variant 1 of 3
            return [rows[0], dataclasses.replace(rows[1], attempt=2, seed=seed), *rows[2:]]

        assert verify_bank(make_bank(tmp_path, change=drawn_again)).ok

    def test_leftovers_are_counted_and_fail_nothing(self, path: Path) -> None:
        for name in (f".{FIRST.file}.host.1.partial", ".bank.json.host.2.partial"):
            (path / name).write_bytes(b"half")
        report = verify_bank(path)
        assert (report.ok, report.partials) == (True, 2)
        assert "2 unfinished files left behind by a killed process; they do no harm" in str(report)

    def test_without_decoding(self, path: Path) -> None:
        report = verify_bank(path, images=False)
        assert (report.ok, report.rows, report.images) == (True, 30, 0)

    def test_tells_how_far_it_is(self, path: Path) -> None:
        calls: list[tuple[int, int]] = []
        verify_bank(path, threads=1, on_progress=lambda done, total: calls.append((done, total)))
        assert calls == [(1, 3), (2, 3), (3, 3)]

    def test_changes_nothing(self, path: Path) -> None:
        (path / MIDDLE.file).write_bytes(b"")
        before = {file.name: file.read_bytes() for file in path.iterdir()}
        verify_bank(path)
        assert {file.name: file.read_bytes() for file in path.iterdir()} == before

    def test_memory_is_bounded(self, tmp_path: Path) -> None:
        # 60 units of 2 images of 200 x 200 pixels: 14 MB of pixels in all, 240 kB in one unit.
        make_bank(tmp_path, keys=list(range(60)), variants=2, unit_size=1, size=(200, 200))
        verify_bank(tmp_path)
        tracemalloc.start()
        try:
            assert verify_bank(tmp_path).images == 120
            assert tracemalloc.get_traced_memory()[1] < 3_000_000  # of which a block of the file to hash is 1 MB
        finally:
            tracemalloc.stop()


class TestFiles:
    @pytest.mark.parametrize("unit", [FIRST, MIDDLE, LAST])
    def test_a_missing_unit(self, path: Path, unit: Unit) -> None:
        (path / unit.file).unlink()
        report = verify_bank(path)
        assert [(problem.unit, problem.kind) for problem in report.problems] == [(unit.name, "missing")]
        assert f"missing: {unit.name}: {unit.file} does not exist: run generate" in str(report)

    @pytest.mark.parametrize("unit", [FIRST, LAST])
    @pytest.mark.parametrize("cut", [0, 0.5, 0.99])
    def test_a_unit_that_was_cut(self, path: Path, unit: Unit, cut: float) -> None:
        data = (path / unit.file).read_bytes()
        (path / unit.file).write_bytes(data[: int(len(data) * cut)])
        with pytest.raises(BankError):
            Bank.open(path)
        report = verify_bank(path)
        assert [(problem.unit, problem.kind) for problem in report.problems] == [(unit.name, "size")]
        assert f"{unit.file} has {int(len(data) * cut):,} bytes, and its sidecar says {len(data):,}" in report.problems[0].text

    @pytest.mark.parametrize("place", [0, 0.1, 0.5, 0.9, 0.999])
    def test_a_flipped_bit_anywhere(self, path: Path, place: float) -> None:
        data = bytearray((path / MIDDLE.file).read_bytes())
        data[int(place * len(data))] ^= 4
        (path / MIDDLE.file).write_bytes(data)
        assert found(path) == [(MIDDLE.name, "checksum")]
        assert found(path, images=False) == [(MIDDLE.name, "checksum")]

    def test_a_unit_that_grew(self, path: Path) -> None:
        with (path / MIDDLE.file).open("ab") as file:
            file.write(b"more")
        assert found(path) == [(MIDDLE.name, "size")]

    @pytest.mark.parametrize("text", [None, "", "[]", "{", '"text"'])
    def test_a_sidecar_that_is_missing_or_no_sidecar(self, path: Path, text: str | None) -> None:
        if text is None:
            (path / MIDDLE.sidecar).unlink()
        else:
            (path / MIDDLE.sidecar).write_text(text)
        assert found(path) == [(MIDDLE.name, "sidecar")]

    def test_the_sidecar_of_another_unit(self, path: Path) -> None:
        shutil.copy(path / FIRST.sidecar, path / MIDDLE.sidecar)
        assert (MIDDLE.name, "sidecar") in found(path)

    def test_a_unit_of_other_settings(self, path: Path) -> None:
        edit_json(path / MIDDLE.sidecar, settings="0" * 32)
        report = verify_bank(path)
        assert [(problem.unit, problem.kind) for problem in report.problems] == [(MIDDLE.name, "settings")]
        assert "restore the right bank.json" in report.problems[0].text
        assert "move its two files away and run generate again" in report.problems[0].text

    @pytest.mark.parametrize("unit", [Unit(2, 6), Unit(8, 12), Unit(0, 10), Unit(12, 16)])
    def test_a_unit_that_is_not_of_the_plan(self, path: Path, unit: Unit) -> None:
        shutil.copy(path / FIRST.file, path / unit.file)
        assert found(path) == [(unit.name, "plan")]

    @pytest.mark.parametrize("data", [b"", b"not Arrow at all" * 9])
    def test_a_file_that_is_no_arrow_stream(self, path: Path, data: bytes) -> None:
        rewrite(path, MIDDLE, data)
        assert found(path) == [(MIDDLE.name, "arrow")]

    def test_a_file_of_other_columns(self, path: Path) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, unit_schema("int")):
            pass
        rewrite(path, MIDDLE, sink.getvalue().to_pybytes())
        assert found(path) == [(MIDDLE.name, "arrow")]

    @pytest.mark.parametrize("offset", [2**30, -5])
    def test_offsets_that_point_elsewhere(self, path: Path, offset: int) -> None:
        data = bytearray((path / FIRST.file).read_bytes())
        place = bytes(data).index(b"".join((i * len(KEYS[0])).to_bytes(4, "little") for i in range(13)))
        data[place + 20 : place + 24] = offset.to_bytes(4, "little", signed=True)
        rewrite(path, FIRST, bytes(data))
        assert found(path) == [(FIRST.name, "arrow")]

    def test_several_at_once(self, path: Path) -> None:
        (path / FIRST.file).unlink()
        (path / MIDDLE.sidecar).unlink()
        (path / LAST.file).write_bytes(b"")
        assert found(path) == [(FIRST.name, "missing"), (MIDDLE.name, "sidecar"), (LAST.name, "size")]


class TestManifest:
    def test_no_manifest(self, path: Path) -> None:
        (path / MANIFEST).unlink()
        (path / COPY).unlink()
        (path / MIDDLE.file).write_bytes(b"")
        assert found(path) == [("", "manifest"), (MIDDLE.name, "size")]  # what can be said without it, too

    @pytest.mark.parametrize("version", [0, 2])
    def test_another_version(self, path: Path, version: int) -> None:
        edit_json(path / MANIFEST, format_version=version)
        assert found(path) == [("", "manifest")]

    def test_no_json(self, path: Path) -> None:
        (path / MANIFEST).write_text("{")
        (path / COPY).unlink()
        assert found(path) == [("", "manifest")]

    def test_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(BankError, match="no such directory"):
            verify_bank(tmp_path / "none")

    @pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
    def test_threads_are_counted(self, path: Path, threads: Any) -> None:
        with pytest.raises(ConfigError, match="threads="):
            verify_bank(path, threads=threads)


class TestRows:
    @pytest.mark.parametrize(
        ("change", "kinds"),
        [
            (lambda rows: [rows[0], *rows], {"duplicate"}),
            (lambda rows: [*rows, rows[0]], {"duplicate", "order"}),
            (lambda rows: rows[1:], {"rows"}),
            (lambda rows: rows[3:], {"rows"}),
            (lambda rows: [rows[1], rows[0], *rows[2:]], {"order"}),
            (lambda rows: [rows[0], *rows[3:6], *rows[1:3], *rows[6:]], {"order"}),
            (lambda rows: [dataclasses.replace(rows[0], seed=rows[0].seed + 1), *rows[1:]], {"seed"}),
            (lambda rows: [dataclasses.replace(rows[0], attempt=1), *rows[1:]], {"seed"}),
            (lambda rows: [dataclasses.replace(rows[0], attempt=-1), *rows[1:]], {"seed"}),
            (lambda rows: [*rows, dataclasses.replace(rows[-1], variant=3)], {"variant", "seed"}),
            (lambda rows: [dataclasses.replace(rows[0], variant=-1), *rows[1:]], {"variant", "seed", "rows"}),
            (lambda rows: [dataclasses.replace(row, key=row.key + "x") if row.key == KEYS[4] else row for row in rows], {"seed"}),
            (lambda rows: rows + [dataclasses.replace(row, key="new") for row in rows[:3]], {"seed", "rows"}),
        ],
    )  # fmt: skip
    def test_each_kind_of_wrong_rows(self, tmp_path: Path, change: Any, kinds: set[str]) -> None:
        report = spoilt(tmp_path, change)
        assert {problem.unit for problem in report.problems} == {MIDDLE.name}
        assert {problem.kind for problem in report.problems} == kinds

    def test_the_texts_name_key_and_variant(self, tmp_path: Path) -> None:
        report = spoilt(tmp_path, lambda rows: [rows[0], rows[0], *rows[2:]])
        texts = {problem.kind: problem.text for problem in report.problems}
        assert texts["duplicate"] == f"has variant 0 of key '{KEYS[4]}' more than once"
        assert texts["rows"] == f"lacks variant 1 of key '{KEYS[4]}', which was not rejected"

    def test_another_count_than_the_sidecars(self, path: Path) -> None:
        edit_json(path / MIDDLE.sidecar, rows=11)
        assert found(path) == [(MIDDLE.name, "rows")]

    def test_a_failed_source_that_has_rows(self, path: Path) -> None:
        edit_json(path / MIDDLE.sidecar, failed=[{"key": KEYS[4], "reason": "empty"}])
        assert found(path) == [(MIDDLE.name, "rows")]

    @pytest.mark.parametrize("failed", [{}, 3, [3], [{}], [{"key": []}], [{"reason": "x"}]])
    def test_a_sidecar_of_strange_entries_does_not_stop_it(self, path: Path, failed: Any) -> None:
        edit_json(path / MIDDLE.sidecar, failed=failed)
        assert found(path) == []

    def test_a_source_in_two_units(self, tmp_path: Path) -> None:
        def copied(unit: Unit, rows: list[Row]) -> list[Row]:
            if unit != LAST:
                return rows
            seeds = gt.derive_seeds(BASE_SEED, [KEYS[0]] * 3, [0, 1, 2]).tolist()
            return [*(Row(KEYS[0], v, seeds[v], 0, png(0, v)) for v in range(3)), *rows[3:]]

        report = verify_bank(make_bank(tmp_path, change=copied))
        assert [(problem.unit, problem.kind) for problem in report.problems] == [(FIRST.name, "duplicate"), (LAST.name, "duplicate")]
        assert report.problems[1].text == f"has rows of key '{KEYS[0]}', and so has {FIRST.name}"

    def test_sources_in_another_order(self, tmp_path: Path) -> None:
        report = spoilt(tmp_path, lambda rows: [*rows[3:6], *rows[:3], *rows[6:]])
        assert [(problem.unit, problem.kind) for problem in report.problems] == [("", "keys")]

    def test_failed_sources_in_another_place(self, tmp_path: Path) -> None:
        make_bank(tmp_path, failed={KEYS[5]: "empty"})
        assert found(tmp_path) == []
        edit_json(tmp_path / MIDDLE.sidecar, failed=[{"key": KEYS[5], "reason": "empty", "index": 6}])
        assert found(tmp_path) == [("", "keys")]


class TestImages:
    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            (b"", r"cannot be decoded (no bytes)"),
            (b"text", "cannot be decoded"),
            (png(5, 1)[:-30], "cannot be decoded"),
            (png(5, 1, (4, 7)), "is 4 x 7 pixels, expected 4 x 6"),
            (encoded(pixels(5, 1, (6, 4)), "JPEG"), "is 6 x 4 pixels, expected 4 x 6"),
        ],
    )
    def test_an_image_that_does_not_decode_or_fit(self, tmp_path: Path, data: bytes, expected: str) -> None:
        make_bank(tmp_path, image=lambda i, v: data if (i, v) == (5, 1) else png(i, v))
        report = verify_bank(tmp_path)
        assert [(problem.unit, problem.kind) for problem in report.problems] == [(MIDDLE.name, "image")]
        assert report.problems[0].text.startswith(f"variant 1 of key '{KEYS[5]}' ")
        assert expected in report.problems[0].text
        assert verify_bank(tmp_path, images=False).ok

    def test_grey_and_other_formats_are_fine(self, tmp_path: Path) -> None:
        grey = torch.full((1, 4, 6), 9, dtype=torch.uint8)
        formats = ("JPEG", "PNG", "WEBP")
        assert verify_bank(make_bank(tmp_path, image=lambda i, v: encoded(grey, formats[v]))).ok

    def test_many_bad_images_make_few_lines(self, tmp_path: Path) -> None:
        make_bank(tmp_path, keys=list(range(100)), unit_size=100, image=lambda i, v: b"text")
        report = verify_bank(tmp_path)
        assert len(report.problems) == 11
        assert report.problems[-1].text == "… and 290 more in this unit"

    @pytest.mark.parametrize("threads", [1, 3])
    def test_in_any_number_of_threads_the_same_order(self, tmp_path: Path, threads: int) -> None:
        bad = {(i, 0) for i in range(0, 200, 40)}
        make_bank(tmp_path, keys=list(range(200)), unit_size=200, image=lambda i, v: b"text" if (i, v) in bad else png(i, v))
        texts = [problem.text for problem in verify_bank(tmp_path, threads=threads).problems]
        assert [text.split(" cannot")[0] for text in texts] == [f"variant 0 of key {i}" for i in range(0, 200, 40)]


class TestRepair:
    def test_removes_damaged_units_so_that_they_are_made_again(self, path: Path, whole: Path) -> None:
        (path / FIRST.file).write_bytes((path / FIRST.file).read_bytes()[:100])
        (path / LAST.sidecar).unlink()
        report = verify_bank(path, repair=True)
        assert report.removed == (FIRST.name, LAST.name)
        assert not report.ok
        assert "2 units removed: run generate" in str(report)
        assert sorted(file.name for file in path.glob("unit-*")) == [MIDDLE.file, MIDDLE.sidecar]
        assert found(path) == [(FIRST.name, "missing"), (LAST.name, "missing")]
        make_bank(path, only=[0, 2])
        assert verify_bank(path).ok
        assert all((path / unit.file).read_bytes() == (whole / unit.file).read_bytes() for unit in (FIRST, MIDDLE, LAST))

    def test_leaves_a_sound_bank_alone(self, path: Path) -> None:
        before = sorted(file.name for file in path.iterdir())
        assert verify_bank(path, repair=True).removed == ()
        assert sorted(file.name for file in path.iterdir()) == before

    def test_leaves_alone_what_may_be_good(self, path: Path) -> None:
        # Another manifest was put in its place: every unit would be removed, and with it days of work.
        edit_json(path / FIRST.sidecar, settings="0" * 32)
        shutil.copy(path / FIRST.file, path / Unit(2, 6).file)
        assert verify_bank(path, repair=True).removed == ()
        assert (path / FIRST.file).exists()
        assert (path / Unit(2, 6).file).exists()

    @pytest.mark.parametrize("version", [None, 2])
    def test_removes_nothing_without_a_manifest_that_can_be_read(self, path: Path, version: int | None) -> None:
        edit_json(path / MANIFEST, format_version=version)
        (path / MIDDLE.file).write_bytes(b"")
        assert verify_bank(path, repair=True).removed == ()
        assert (path / MIDDLE.file).exists()

    def test_both_units_that_claim_a_source(self, tmp_path: Path) -> None:
        def copied(unit: Unit, rows: list[Row]) -> list[Row]:
            return [*rows, *(Row(KEYS[0], v, 0, 0, png(0, v)) for v in range(3))] if unit == LAST else rows

        assert verify_bank(make_bank(tmp_path, change=copied), repair=True).removed == (FIRST.name, LAST.name)


class TestMeanwhile:
    """Another process fills the bank while it is checked."""

    def publish(self, path: Path, whole: Path) -> None:
        """Put the middle unit in its place, as the writer does: the sidecar first, each file by being renamed."""
        for name in (MIDDLE.sidecar, MIDDLE.file):
            shutil.copy(whole / name, path / "copy")
            (path / "copy").rename(path / name)

    def test_a_unit_that_appears_while_it_is_looked_at(self, path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in (MIDDLE.file, MIDDLE.sidecar):
            (path / name).unlink()
        original = verify.read_sidecar

        def then_published(directory: Path, unit: Unit) -> Any:
            found = original(directory, unit)
            if unit == MIDDLE:
                self.publish(path, whole)
            return found

        monkeypatch.setattr(verify, "read_sidecar", then_published)
        report = verify_bank(path, repair=True)
        monkeypatch.undo()
        assert (report.removed, [problem.kind for problem in report.problems]) == ((), ["missing"])
        if not (path / MIDDLE.file).exists():
            self.publish(path, whole)
        assert verify_bank(path).ok

    def test_a_damaged_unit_that_is_made_again_before_it_is_removed(self, path: Path, whole: Path) -> None:
        (path / MIDDLE.file).write_bytes(b"half")
        (path / LAST.sidecar).unlink()
        report = verify_bank(path, repair=True, on_progress=lambda done, _: self.publish(path, whole) if done == 3 else None)
        assert report.removed == (LAST.name,)
        assert [(problem.unit, problem.kind) for problem in report.problems] == [(LAST.name, "sidecar")]
        assert (path / MIDDLE.file).read_bytes() == (whole / MIDDLE.file).read_bytes()

    def test_units_that_shared_a_source(self, tmp_path: Path, whole: Path) -> None:
        """What damages a unit is in another; if that one is made again meanwhile, this one is removed all the same, and no harm done."""

        def copied(unit: Unit, rows: list[Row]) -> list[Row]:
            return [*rows, *(Row(KEYS[0], v, 0, 0, png(0, v)) for v in range(3))] if unit == MIDDLE else rows

        path = make_bank(tmp_path / "bank", change=copied)
        report = verify_bank(path, repair=True, on_progress=lambda done, _: self.publish(path, whole) if done == 3 else None)
        assert report.removed == (FIRST.name,)
        assert found(path) == [(FIRST.name, "missing")]

    def test_it_waits_for_the_one_that_holds_the_lock(self, path: Path, whole: Path) -> None:
        (path / MIDDLE.file).write_bytes(b"half")
        checked, reports = threading.Event(), list[BankReport]()

        def repair() -> None:
            reports.append(verify_bank(path, repair=True, on_progress=lambda done, _: checked.set() if done == 3 else None))

        with (path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            thread = threading.Thread(target=repair)
            thread.start()
            assert checked.wait(60)
            time.sleep(0.3)
            assert (path / MIDDLE.file).read_bytes() == b"half", "it waits"
            self.publish(path, whole)
        thread.join(60)
        assert reports[0].removed == ()
        assert verify_bank(path).ok

    def test_a_unit_that_is_gone_already(self, path: Path) -> None:
        (path / MIDDLE.file).write_bytes(b"half")
        report = verify_bank(path, repair=True, on_progress=lambda done, _: (path / MIDDLE.file).unlink() if done == 3 else None)
        assert (report.removed, [problem.kind for problem in report.problems]) == ((), ["missing"])


class TestRemoveUnits:
    def test_only_those_that_are_damaged_still(self, path: Path) -> None:
        assert remove_units(path, [FIRST.name, MIDDLE.name], lambda name: name == MIDDLE.name) == (MIDDLE.name,)
        assert found(path) == [(MIDDLE.name, "missing")]

    def test_files_that_cannot_be_removed(self, path: Path) -> None:
        (path / MIDDLE.file).unlink()
        (path / MIDDLE.file).mkdir()
        with pytest.raises(BankError, match=rf"{MIDDLE.name}: cannot be removed: .*: fix it and repair again"):
            remove_units(path, [MIDDLE.name], lambda name: True)


class TestAdvice:
    """What to do, by the kinds of problems; --repair is not promised where it removes nothing."""

    REMAKE, REPAIR = "run generate again, which makes the missing units", "remove damaged units with --repair, then run generate again"
    MOVE = "move units with other settings away (another run wrote them, or one with other threads), which --repair does not do"

    @pytest.mark.parametrize(
        ("kinds", "expected"),
        [
            ([], ""),
            (["missing"], REMAKE),
            (["image"], REPAIR),
            (["missing", "checksum"], REPAIR),
            (["settings"], f"{MOVE}, then run generate again"),
            (["plan"], f"{MOVE}, then run generate again"),
            (["keys"], f"{MOVE}, then run generate again"),
            (["settings", "missing", "size"], f"{MOVE}, {REPAIR}"),
            (["copy"], "restore bank.json or its copy with --repair"),
            (["index", "copy"], "restore bank.json or its copy and rebuild the index with --repair"),
            (["copy", "missing"], REMAKE),
            (["copy", "size"], REPAIR),
            (["manifest", "size"], "fix bank.json first, as described above; without it, --repair removes nothing"),
        ],
    )
    def test_by_kinds(self, kinds: list[str], expected: str) -> None:
        problems = [Problem("" if kind in ("keys", "manifest", "copy") else f"unit-{i}", kind, "text") for i, kind in enumerate(kinds)]
        assert BankReport("bank", problems=problems).advice == expected

    def test_a_damaged_unit_of_other_settings_is_not_removed(self) -> None:
        problems = [Problem("unit-0", "settings", "x"), Problem("unit-0", "size", "x")]
        assert damaged_units(problems) == []
        assert BankReport("bank", problems=problems).advice == f"{self.MOVE}, then run generate again"

    def test_once_they_are_removed(self) -> None:
        problems = [Problem("unit-0", "size", "x"), Problem("unit-1", "image", "x")]
        assert BankReport("bank", problems=problems, removed=("unit-0", "unit-1")).advice == self.REMAKE
        assert BankReport("bank", problems=problems, removed=("unit-0",)).advice == self.REPAIR

    def test_of_an_export(self) -> None:
        report = BankReport("export", problems=[Problem("data/0.parquet", "checksum", "x")], exported=True)
        assert report.advice == "download the damaged files again, or export the bank again"

    @pytest.mark.parametrize("kind", ["settings", "plan", "keys", "manifest"])
    def test_repair_indeed_removes_none_of_those(self, path: Path, kind: str) -> None:
        if kind == "settings":
            edit_json(path / MIDDLE.sidecar, settings="0" * 32)
        elif kind == "plan":
            shutil.copy(path / FIRST.file, path / Unit(2, 6).file)
        elif kind == "manifest":
            (path / MANIFEST).unlink()
            (path / COPY).unlink()
        else:
            manifest = json.loads((path / MANIFEST).read_text())
            manifest["source"]["keys"] = "0" * 32
            for name in (MANIFEST, COPY):
                edit_json(path / name, source=manifest["source"])
            for unit in (FIRST, MIDDLE, LAST):
                edit_json(path / unit.sidecar, settings=hash_manifest(manifest))
        before = sorted(file.name for file in path.glob("unit-*"))
        report = verify_bank(path, repair=True)
        assert [problem.kind for problem in report.problems] == [kind]
        assert sorted(file.name for file in path.glob("unit-*")) == before


class TestDecoder:
    """A machine that decodes none of the images must not remove them all."""

    def undecodable(self, monkeypatch: pytest.MonkeyPatch, spared: int = 0) -> None:
        def broken(data: bytearray, **options: Any) -> Any:
            if bytes(data) in {png(0, v) for v in range(spared)}:
                return original(data, **options)
            raise BankError("cannot identify image file")

        original = verified_rows.decode_rgb
        monkeypatch.setattr(verified_rows, "decode_rgb", broken)

    def test_nothing_is_removed(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.undecodable(monkeypatch)
        assert {problem.kind for problem in verify_bank(path).problems} == {"image"}
        before = sorted(file.name for file in path.iterdir())
        with pytest.raises(BankError, match=r"none of its 30 images can be decoded here, .*cannot identify .* nothing was removed"):
            verify_bank(path, repair=True)
        assert sorted(file.name for file in path.iterdir()) == before
        monkeypatch.undo()
        assert verify_bank(path).ok

    def test_where_some_are_decoded_the_others_are_damaged(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.undecodable(monkeypatch, spared=1)
        assert len(verify_bank(path, repair=True).removed) == 3

    def test_a_small_bank(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_bank(tmp_path, keys=KEYS[:3])
        self.undecodable(monkeypatch)
        assert len(verify_bank(tmp_path, repair=True).removed) == 1


class TestReport:
    def test_many_problems_of_a_kind_make_few_lines(self, tmp_path: Path) -> None:
        make_bank(tmp_path, keys=list(range(50)), unit_size=1, only=[0])
        report = verify_bank(tmp_path)
        assert len(report.problems) == 49
        lines = str(report).splitlines()
        assert len(lines) == 13
        assert lines[0] == f"{tmp_path}: 1 unit, 3 rows, 3 images decoded"
        assert lines[-2:] == ["missing: … and 39 more", "49 problems"]

    def test_is_frozen(self) -> None:
        report = BankReport("bank", problems=[Problem("", "keys", "they differ")])
        assert not report.ok
        assert str(report).splitlines()[1:] == ["keys: they differ", "1 problem"]
        with pytest.raises(dataclasses.FrozenInstanceError):
            report.rows = 3  # type: ignore[misc]


class TestUnitFaults:
    def test_none_in_a_sound_unit(self) -> None:
        assert find_faults(FIRST, {"unit": FIRST.name, "bytes": 7, "settings": "s"}, 7, "s") == []
        assert find_faults(FIRST, {"unit": FIRST.name, "bytes": 7, "settings": "other"}, 7, None) == []

    @pytest.mark.parametrize(
        ("sidecar", "kind"),
        [
            ({"bytes": 7, "settings": "s"}, "sidecar"),
            ({"unit": FIRST.name, "settings": "s"}, "size"),
            ({"unit": FIRST.name, "bytes": "7", "settings": "s"}, "size"),
            ({"unit": FIRST.name, "bytes": 7}, "settings"),
        ],
    )
    def test_each_entry_counts(self, sidecar: dict[str, Any], kind: str) -> None:
        assert [fault[0] for fault in find_faults(FIRST, sidecar, 7, "s")] == [kind]
