"""The index of a finished bank: it says what the units say, is removed when one changes, and is never trusted with an image."""

from __future__ import annotations

import base64
import functools
import json
import shutil
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from bank_sources import Photos
from small_banks import KEYS, SIZE, Rows, edit_json, make_bank, pixels, png
from torch import Tensor

import gentransforms as gt
from gentransforms.bank.format import index as index_module
from gentransforms.bank.format.index import INDEX, encode_marks, read_index, write_index
from gentransforms.bank.format.manifest import Facts, read_manifest
from gentransforms.bank.format.unit import Row, Unit, list_units, plan_units, write_unit
from gentransforms.bank.generate.run import generate_bank
from gentransforms.bank.reader import Bank
from gentransforms.bank.verify.checker import verify_bank
from gentransforms.errors import BankError, MissingKeyError
from gentransforms.testing import FakeGenerator

FIRST, MIDDLE, LAST = plan_units(10, 4)
GAPS: dict[str, Any] = {
    "failed": {KEYS[0]: "truncated"},
    "rejected": {(KEYS[2], 0): "far", (KEYS[2], 2): "far", **{(KEYS[9], v): "not finite" for v in range(3)}},
}
BANKS: dict[str, dict[str, Any]] = {
    "all images": {},
    "gaps": GAPS,
    "int keys": {"keys": [7, -3, 2**62, 0, 1, -(2**63)]},
    "any text": {"keys": ["é/ü b.jpg", "", "1", "a" * 1000, "\U0001f600"]},
    "no source": {"keys": []},
    "no source that can be read": {"failed": dict.fromkeys(KEYS, "empty")},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A finished bank of 10 sources and 3 variants, with its index."""
    assert write_index(make_bank(tmp_path / "bank"))
    return tmp_path / "bank"


def everything(bank: Bank) -> Tensor:
    pairs = [(key, variant) for key in bank.keys for variant in bank.variants_of(key)]
    return bank.read([key for key, _ in pairs], [variant for _, variant in pairs])


def described(bank: Bank) -> tuple[Any, ...]:
    images = everything(bank)
    return len(bank), bank.keys, [bank.variants_of(key) for key in bank.keys], bank.failed, bank.rejected, images.tolist()


class TestWriteIndex:
    @pytest.mark.parametrize("options", BANKS.values(), ids=BANKS)
    def test_a_bank_is_the_same_with_it_and_without(self, tmp_path: Path, options: dict[str, Any]) -> None:
        make_bank(tmp_path, **options)
        without = described(Bank.open(tmp_path))
        assert write_index(tmp_path)
        for unit in list_units(tmp_path):  # of which it needs none
            (tmp_path / unit.sidecar).unlink()
        assert described(Bank.open(tmp_path)) == without

    def test_opening_reads_it_alone(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*_: Any) -> Any:
            raise AssertionError("a unit was read")

        for name in ("map_file", "read_sidecar"):
            monkeypatch.setattr(index_module, name, refused)
        monkeypatch.setattr("gentransforms.bank.format.images._map_bytes", refused)
        assert len(Bank.open(path)) == 30
        monkeypatch.undo()

    @pytest.mark.parametrize("only", [[], [0, 2], [1]])
    def test_not_of_an_unfinished_bank(self, tmp_path: Path, only: list[int]) -> None:
        assert not write_index(make_bank(tmp_path, only=only))
        assert not (tmp_path / INDEX).exists()

    def test_not_of_a_damaged_one(self, tmp_path: Path) -> None:
        make_bank(tmp_path)
        (tmp_path / MIDDLE.file).write_bytes(b"half")
        with pytest.raises(BankError, match=rf"{MIDDLE.file}: damaged"):
            write_index(tmp_path)
        assert not (tmp_path / INDEX).exists()

    def test_one_that_is_right_stays(self, path: Path) -> None:
        before = (path / INDEX).stat().st_ino
        assert write_index(path)
        assert (path / INDEX).stat().st_ino == before

    def test_equal_banks_have_equal_indexes(self, path: Path, tmp_path: Path) -> None:
        assert write_index(make_bank(tmp_path / "other"))
        assert (path / INDEX).read_bytes() == (tmp_path / "other" / INDEX).read_bytes()

    def test_leaves_nothing_behind(self, path: Path) -> None:
        assert not list(path.glob(".*.partial"))

    def test_in_several_threads_at_once(self, tmp_path: Path) -> None:
        make_bank(tmp_path)
        written: list[bool] = []
        threads = [threading.Thread(target=lambda: written.append(write_index(tmp_path))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert written == [True] * 4
        assert verify_bank(tmp_path).ok

    def test_a_unit_that_changes_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_bank(tmp_path, failed={KEYS[5]: "truncated"})
        original, built = index_module.build_index, []

        def build(*arguments: Any) -> Any:
            built.append(original(*arguments))
            if len(built) == 1:  # another process makes the unit again, with all of its sources
                for name in (MIDDLE.file, MIDDLE.sidecar):
                    (tmp_path / name).unlink()
                make_bank(tmp_path, only=[1])
            return built[-1]

        monkeypatch.setattr(index_module, "build_index", build)
        assert write_index(tmp_path)
        assert len(built) == 2
        bank = Bank.open(tmp_path)
        assert (bank.keys, bank.failed) == (KEYS, [])
        assert verify_bank(tmp_path).ok


class TestGenerate:
    def fill(self, path: Path, **options: Any) -> Any:
        return generate_bank(Photos(6), path, FakeGenerator(8), variants=2, unit_size=2, progress=False, **options)

    def test_the_last_shard_writes_it(self, tmp_path: Path) -> None:
        for shard in ("0/3", "2/3"):
            self.fill(tmp_path, shard=shard)
            assert not (tmp_path / INDEX).exists()
        self.fill(tmp_path, shard="1/3")
        assert len(read_index(tmp_path, Facts.read(read_manifest(tmp_path), "")).lookup) == 12

    def test_a_run_that_has_nothing_to_make_writes_it_too(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        (tmp_path / INDEX).unlink()
        assert self.fill(tmp_path).images == 0
        assert (tmp_path / INDEX).exists()

    def test_a_unit_that_is_written_anew_takes_it_away_first(self, path: Path) -> None:
        """A run may be killed between the unit and the index."""
        sidecar = json.loads((path / MIDDLE.sidecar).read_text())
        assert write_unit(
            path, MIDDLE, [], "str", {"settings": sidecar["settings"], "failed": [], "rejected": []}, replaces=sidecar["sha256"]
        )
        assert not (path / INDEX).exists()
        assert len(Bank.open(path)) == 18

    def test_one_that_is_there_already_leaves_it(self, path: Path) -> None:
        sidecar = json.loads((path / MIDDLE.sidecar).read_text())
        assert not write_unit(path, MIDDLE, [], "str", {"settings": sidecar["settings"]})
        assert (path / INDEX).exists()

    def test_it_goes_when_a_unit_is_made_again(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        (tmp_path / Unit(2, 4).file).unlink()
        with warnings.catch_warnings(action="error"):
            assert len(Bank.open(tmp_path, partial=True)) == 8, "the units are counted, whatever the index says"
        self.fill(tmp_path, shard="0/3")  # not the one that is missing
        self.fill(tmp_path, shard="1/3")
        assert verify_bank(tmp_path).ok
        assert len(Bank.open(tmp_path)) == 12


def replace_column(file: Path, name: str | None) -> None:
    """Exchange two neighbours in a column, and keep the checksums; None removes the checksums."""
    with pa.ipc.open_stream(file.read_bytes()) as stream:
        batch = stream.read_next_batch()
    if name is None:
        batch = batch.replace_schema_metadata({b"gentransforms": batch.schema.metadata[b"gentransforms"]})
    else:
        place = batch.schema.get_field_index(name)
        (values,) = batch.column(place).to_pylist()
        values[1], values[2] = (values[1] + 1, values[2]) if name in ("file_start", "start") else (values[2], values[1])
        batch = batch.set_column(place, batch.schema.field(place), pa.array([values], batch.schema.field(place).type))
    with pa.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)


class TestUntrustedIndex:
    """A stale or damaged one costs time, never an image."""

    def opened(self, path: Path) -> tuple[Bank, list[str]]:
        with warnings.catch_warnings(record=True, action="always") as caught:
            bank = Bank.open(path)
        return bank, [str(warning.message) for warning in caught]

    @pytest.mark.parametrize("cut", [0, 1, 0.3, 0.8, 0.99])
    def test_cut_short(self, path: Path, cut: float) -> None:
        data = (path / INDEX).read_bytes()
        (path / INDEX).write_bytes(data[: int(cut) if cut == 1 else int(cut * len(data))])
        bank, said = self.opened(path)
        assert len(said) == 1
        assert "index.arrow: is damaged" in said[0]
        assert "verify" in said[0]
        assert everything(bank).equal(torch.stack([pixels(i, v) for i in range(10) for v in range(3)]))

    def test_a_flipped_bit_anywhere_gives_no_other_image(self, path: Path) -> None:
        """Not at opening, and not at reading: right, or an error of ours; never is a key of the bank said not to be in it."""
        data = (path / INDEX).read_bytes()
        right = 0
        for place in range(0, len(data), 7):
            spoilt = bytearray(data)
            spoilt[place] ^= 1 << (place % 8)
            (path / INDEX).write_bytes(spoilt)
            bank, _ = self.opened(path)
            for i in (0, 5, 9):
                try:
                    image = bank.read([KEYS[i]], [i % 3])[0]
                except MissingKeyError:
                    pytest.fail(f"byte {place}")
                except BankError:
                    continue
                assert image.equal(pixels(i, i % 3)), place
                right += 1
        assert right > 200

    @pytest.mark.parametrize("column", ["key", "hash", "order", "start", "variant"])
    def test_one_in_which_keys_are_not_found_is_told(self, path: Path, column: str) -> None:
        replace_column(path / INDEX, column)
        bank, said = self.opened(path)
        assert not said
        augment = gt.BankAugment(bank, p=1.0, missing="source")
        message = r"index\.arrow: has changed since it was written: `gentransforms bank verify --repair` rebuilds it"
        with pytest.raises(BankError, match=message):
            bank.read([*KEYS, "unknown"], [0] * (len(KEYS) + 1))
        with pytest.raises(BankError, match=message):
            augment({"image": torch.zeros(3, *SIZE), "key": "unknown"})
        assert [problem.text for problem in verify_bank(path).problems] == [
            f"{path / INDEX}: has changed since it was written: --repair rebuilds it"
        ]
        assert verify_bank(path, repair=True).index_rebuilt
        with pytest.raises(MissingKeyError):
            Bank.open(path).read(["unknown"], [0])

    def test_what_is_read_at_opening_is_checked_then(self, path: Path) -> None:
        replace_column(path / INDEX, "file_start")
        bank, said = self.opened(path)
        assert "has changed since it was written" in said[0]
        assert everything(bank).equal(torch.stack([pixels(i, v) for i in range(10) for v in range(3)]))

    def test_a_run_builds_it_anew(self, path: Path) -> None:
        before = (path / INDEX).read_bytes()
        replace_column(path / INDEX, "hash")
        assert write_index(path)
        assert (path / INDEX).read_bytes() == before

    def test_one_of_an_earlier_version_has_no_checksums(self, path: Path) -> None:
        replace_column(path / INDEX, None)
        bank, said = self.opened(path)
        assert not said
        with pytest.raises(MissingKeyError):
            bank.read(["unknown"], [0])
        assert verify_bank(path).ok

    def test_of_other_settings(self, path: Path, tmp_path: Path) -> None:
        make_bank(tmp_path / "other", variants=2)
        shutil.copy(path / INDEX, tmp_path / "other" / INDEX)
        bank, said = self.opened(tmp_path / "other")
        assert len(bank) == 20
        assert len(said) == 1
        assert "does not belong to the bank" in said[0]

    def test_of_a_bank_with_more_units(self, path: Path) -> None:
        (path / MIDDLE.file).unlink()
        with pytest.raises(BankError, match="unfinished: 1 of 3 units is missing"):
            Bank.open(path)
        assert len(Bank.open(path, partial=True)) == 18


class TestVerify:
    def spoil(self, path: Path) -> None:
        """Give the middle unit one row less, the index aside, as if another run had written it so."""
        copied = (path / INDEX).read_bytes()
        for name in (MIDDLE.file, MIDDLE.sidecar):
            (path / name).unlink()
        make_bank(path, only=[1], rejected={(KEYS[5], 1): "far"})
        (path / INDEX).write_bytes(copied)

    def test_a_right_one(self, path: Path) -> None:
        assert verify_bank(path).ok
        assert verify_bank(path, repair=True).index_rebuilt is False

    def test_one_that_says_something_else(self, path: Path) -> None:
        self.spoil(path)
        report = verify_bank(path)
        assert [(problem.unit, problem.kind) for problem in report.problems] == [("", "index")]
        assert MIDDLE.file in report.problems[0].text
        assert report.advice == "rebuild the index with --repair"

    @pytest.mark.parametrize("data", [b"", b"text" * 100])
    def test_one_that_is_none(self, path: Path, data: bytes) -> None:
        (path / INDEX).write_bytes(data)
        assert [problem.kind for problem in verify_bank(path).problems] == ["index"]

    def test_repair_builds_it_anew(self, path: Path) -> None:
        self.spoil(path)
        report = verify_bank(path, repair=True)
        assert (report.ok, report.removed, report.index_rebuilt) == (True, (), True)
        assert "the index was wrong and has been rebuilt" in str(report)
        assert verify_bank(path).ok
        assert len(Bank.open(path)) == 29

    def test_repair_of_a_unit_removes_it(self, path: Path) -> None:
        (path / LAST.file).write_bytes(b"half")
        assert verify_bank(path, repair=True).removed == (LAST.name,)
        assert not (path / INDEX).exists()

    @pytest.mark.parametrize(
        ("name", "value"),
        [("failed", [json.dumps({"key": KEYS[0], "reason": "?"})]), ("order", list(reversed(range(10)))), ("file_size", [1, 2, 3])],
    )
    def test_each_column_counts(self, path: Path, name: str, value: list[Any]) -> None:
        with pa.ipc.open_stream(path / INDEX) as stream:
            batch = stream.read_next_batch()
        place = batch.schema.get_field_index(name)
        batch = batch.set_column(place, batch.schema.field(place), pa.array([value], batch.schema.field(place).type))
        with pa.ipc.new_stream(path / INDEX, batch.schema) as stream:
            stream.write_batch(batch)
        assert [problem.kind for problem in verify_bank(path).problems] == ["index"]


class TestMarks:
    def add(self, path: Path, unit: Unit, count: int) -> None:
        marks = [bytes([unit.start + i] * 48) for i in range(count)]
        edit_json(path / unit.sidecar, marks=encode_marks(marks))

    @pytest.mark.parametrize("indexed", [True, False])
    def test_of_each_key(self, tmp_path: Path, indexed: bool) -> None:
        make_bank(tmp_path, failed={KEYS[1]: "empty"})
        for unit in (FIRST, MIDDLE, LAST):
            self.add(tmp_path, unit, unit.stop - unit.start - (unit == FIRST))
        assert write_index(tmp_path) or not indexed
        if not indexed:
            (tmp_path / INDEX).unlink()
        bank = Bank.open(tmp_path)
        assert bank.marks is not None
        assert (bank.marks.shape, bank.marks.dtype) == ((9, 48), np.uint8)
        assert bank.marks[:, 0].tolist() == [0, 1, 2, *range(4, 10)]
        assert bank.find_keys([KEYS[9], "none", KEYS[0]]).tolist() == [8, -1, 0]
        assert verify_bank(tmp_path).ok

    def test_where_a_unit_has_none(self, tmp_path: Path) -> None:
        make_bank(tmp_path)
        self.add(tmp_path, FIRST, 4)
        assert write_index(tmp_path)
        assert Bank.open(tmp_path).marks is None
        assert verify_bank(tmp_path).ok

    def test_other_ones_than_the_sidecars(self, tmp_path: Path) -> None:
        make_bank(tmp_path)
        for unit in (FIRST, MIDDLE, LAST):
            self.add(tmp_path, unit, unit.stop - unit.start)
        assert write_index(tmp_path)
        edit_json(tmp_path / MIDDLE.sidecar, marks=base64.b64encode(bytes(4 * 48)).decode())
        assert [problem.kind for problem in verify_bank(tmp_path).problems] == ["index"]


class TestLookup:
    def test_keys_whose_hashes_collide(self, tmp_path: Path) -> None:
        keys = ["plumless", "between", "buckeroo"]
        assert zlib.crc32(keys[0].encode()) == zlib.crc32(keys[2].encode())
        bank = Bank.open(make_bank(tmp_path, keys=keys))
        assert bank.read(["buckeroo", "plumless"], [1, 2]).equal(torch.stack([pixels(2, 1), pixels(0, 2)]))
        assert "between" in bank

    def test_a_key_twice_among_colliding_ones(self, tmp_path: Path) -> None:
        def change(unit: Unit, rows: list[Row]) -> list[Row]:
            return rows if unit.start < 2 else [Row("plumless", v, 0, 0, png(0, v)) for v in range(3)]

        make_bank(tmp_path, keys=["plumless", "buckeroo", "third"], unit_size=1, change=change)
        with pytest.raises(BankError, match="key 'plumless' has rows in two places"):
            Bank.open(tmp_path)

    @pytest.mark.parametrize("key", [2**63, -(2**63) - 1, 10**30])
    def test_numbers_that_no_bank_can_hold(self, tmp_path: Path, key: int) -> None:
        assert key not in Bank.open(make_bank(tmp_path, keys=[1, 2, 3]))

    def test_a_file_name_that_is_no_text(self, path: Path) -> None:
        assert "caf\udce9.jpg" not in Bank.open(path)

    def test_forked_and_spawned_workers_read_through_it(self, path: Path) -> None:
        loader = functools.partial(torch.utils.data.DataLoader, Rows(Bank.open(path)), batch_size=7, num_workers=2)
        images = torch.cat([images for images, _ in loader(multiprocessing_context="forkserver")])
        assert images.equal(torch.stack([pixels(i, v) for i in range(10) for v in range(3)]))
