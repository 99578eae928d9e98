"""Reading a bank: what it says of itself, each image, and what is missing, in one process and in many."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_banks import KEYS, SIZE, Rows, edit_json, encoded, grey_jpeg, make_bank, manifest_of, pixels, png
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from gentransforms.bank.format import images as segments
from gentransforms.bank.format.index import INDEX, Index, save_index, write_index
from gentransforms.bank.format.lookup import LookupBuilder
from gentransforms.bank.format.manifest import COPY, MANIFEST, Facts, create_manifest, hash_manifest
from gentransforms.bank.format.unit import Row, Unit, list_units, unit_schema, write_unit
from gentransforms.bank.reader import Bank
from gentransforms.errors import BankError, ConfigError, MissingKeyError

pytestmark = [
    # Python 3.12 and newer warn of every fork of a process with threads, as DataLoader makes them.
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished bank of 10 sources and 3 variants, in units of 4 sources."""
    path = make_bank(tmp_path_factory.mktemp("bank") / "bank")
    assert write_index(path)
    return path


@pytest.fixture(scope="module", params=["index", "sidecars"])
def bank(request: pytest.FixtureRequest, path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """The same bank, opened from its index, and from the sidecars of its units."""
    return Bank.open(path if request.param == "index" else make_bank(tmp_path_factory.mktemp("bank") / "bank"))


@pytest.fixture(scope="module", params=["index", "sidecars"])
def gappy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """A bank in which the first source failed, the third has variant 1 only, and the last none."""
    rejected = {(KEYS[2], 0): "not similar", (KEYS[2], 2): "not similar", **{(KEYS[9], v): "not finite" for v in range(3)}}
    path = make_bank(tmp_path_factory.mktemp("bank") / "gappy", failed={KEYS[0]: "truncated"}, rejected=rejected)
    if request.param == "index":
        assert write_index(path)
    return Bank.open(path)


def everything(bank: Bank) -> Tensor:
    pairs = [(key, variant) for key in bank.keys for variant in bank.variants_of(key)]
    return bank.read([key for key, _ in pairs], [variant for _, variant in pairs])


class TestOpen:
    def test_what_it_says_of_itself(self, path: Path) -> None:
        bank = Bank.open(path)
        assert len(bank) == 30
        assert bank.keys == KEYS
        assert (bank.variants, bank.image_size, bank.preserves_geometry, bank.generator_name) == (3, SIZE, False, "Painter")
        manifest = json.loads((path / MANIFEST).read_text())
        assert manifest.pop("checksum")
        assert bank.manifest == manifest
        assert bank.settings == bank.manifest["settings"]
        assert (bank.failed, bank.rejected) == ([], [])
        assert bank.path == path.absolute()

    def test_takes_a_string_and_a_relative_path(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(path.parent)
        opened = Bank.open(path.name)
        assert opened.keys == Bank.open(str(path)).keys == KEYS
        monkeypatch.chdir("/")
        assert pickle.loads(pickle.dumps(opened)).keys == KEYS

    def test_prints_in_one_line(self, bank: Bank) -> None:
        text = repr(bank)
        assert "\n" not in text
        for part in ("Bank(", "30 images 4x6", "10 keys", "variants=3", "Painter", str(bank.path)):
            assert part in text

    @pytest.mark.parametrize("key", [*KEYS[:2], np.str_(KEYS[0])])
    def test_contains_its_keys(self, bank: Bank, key: str) -> None:
        assert key in bank

    @pytest.mark.parametrize("key", ["", "cats", 0, 1.0, True, None, b"dogs/000.jpg", ("a",), [KEYS[0]]])
    def test_contains_nothing_else(self, bank: Bank, key: Any) -> None:
        assert key not in bank

    def test_keys_that_are_numbers(self, tmp_path: Path) -> None:
        bank = Bank.open(make_bank(tmp_path / "bank", keys=[7, -3, 2**40, 0, 1]))
        assert bank.keys == [7, -3, 2**40, 0, 1]
        assert all(key in bank for key in (7, np.int64(-3), torch.tensor(2**40)))
        assert not any(key in bank for key in ("7", True, 7.0, 3))
        assert bank.read(torch.tensor([2**40, 7]), np.array([1, 2])).equal(torch.stack([pixels(2, 1), pixels(0, 2)]))

    def test_without_sources(self, tmp_path: Path) -> None:
        bank = Bank.open(make_bank(tmp_path / "bank", keys=[]))
        assert (len(bank), bank.keys) == (0, [])
        assert bank.read([], []).shape == (0, 3, *SIZE)
        with pytest.raises(MissingKeyError):
            bank.read([1], [0])

    def test_of_which_no_source_could_be_read(self, tmp_path: Path) -> None:
        bank = Bank.open(make_bank(tmp_path / "bank", failed=dict.fromkeys(KEYS, "empty")))
        assert (len(bank), bank.keys, len(bank.failed)) == (0, [], 10)
        with pytest.raises(MissingKeyError, match=r"could not be read \(empty\)"):
            bank.read([KEYS[3]], [0])

    def test_failed_and_rejected_are_told(self, gappy: Bank) -> None:
        assert gappy.keys == [key for key in KEYS if key not in (KEYS[0], KEYS[9])]
        assert len(gappy) == 7 * 3 + 1
        assert [(entry["key"], entry["reason"]) for entry in gappy.failed] == [(KEYS[0], "truncated")]
        assert [(entry["key"], entry["variant"], entry["attempts"]) for entry in gappy.rejected[:2]] == [(KEYS[2], 0, 5), (KEYS[2], 2, 5)]
        assert len(gappy.rejected) == 5

    def test_a_revision_is_not_a_directorys(self, path: Path) -> None:
        with pytest.raises(ConfigError, match="revision='main'"):
            Bank.open(path, revision="main")

    def test_a_unit_in_several_record_batches(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gentransforms.bank.format.unit._BATCH_BYTES", 2 * len(png(0, 0)))  # so that keys span batches
        bank = Bank.open(make_bank(tmp_path / "bank"))
        with pa.ipc.open_stream(tmp_path / "bank" / Unit(0, 4).file) as stream:
            assert len(list(stream)) > 3
        assert bank.keys == KEYS
        assert everything(bank).equal(torch.stack([pixels(i, v) for i in range(10) for v in range(3)]))

    def test_leftovers_of_a_killed_process_do_no_harm(self, tmp_path: Path) -> None:
        make_bank(tmp_path)
        (tmp_path / f".{Unit(0, 4).file}.host.1.partial").write_bytes(b"half")
        (tmp_path / "README.md").write_text("a card")
        assert len(Bank.open(tmp_path)) == 30


class TestOpenRefuses:
    def test_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(BankError, match=r"none: no such directory.*generate"):
            Bank.open(tmp_path / "none")

    def test_no_manifest(self, tmp_path: Path) -> None:
        make_bank(tmp_path)
        (tmp_path / MANIFEST).unlink()
        (tmp_path / COPY).unlink()
        with pytest.raises(BankError, match=r"bank\.json: is missing, but there are units: put a copy of it back, or run generate"):
            Bank.open(tmp_path)

    @pytest.mark.parametrize(("version", "expected"), [(0, "format version 0"), (2, "newer than this library.*upgrade"), ("1", "'1'")])
    def test_another_format_version(self, tmp_path: Path, version: Any, expected: str) -> None:
        make_bank(tmp_path)
        edit_json(tmp_path / MANIFEST, format_version=version)
        with pytest.raises(BankError, match=expected):
            Bank.open(tmp_path)

    @pytest.mark.parametrize(
        ("section", "name", "value"),
        [
            ("settings", "variants", 0), ("settings", "variants", "3"), ("settings", "unit_size", 0), ("settings", "base_seed", "5"),
            ("generator", "image_size", [4]), ("generator", "image_size", [4, 0]), ("generator", "image_size", "4x6"),
            ("generator", "class", None), ("generator", "preserves_geometry", 1),
            ("source", "key_type", "float"), ("source", "count", -1), ("source", "keys", None),
        ],
    )  # fmt: skip
    def test_a_manifest_edited_by_hand(self, tmp_path: Path, section: str, name: str, value: Any) -> None:
        manifest = manifest_of(KEYS)
        manifest[section][name] = value
        create_manifest(tmp_path, manifest)
        with pytest.raises(BankError, match=rf"bank\.json: {section} {name} .*restore the original"):
            Bank.open(tmp_path)

    @pytest.mark.parametrize("section", ["settings", "generator", "source", "info"])
    def test_a_manifest_that_lacks_a_section(self, tmp_path: Path, section: str) -> None:
        make_bank(tmp_path)
        edit_json(tmp_path / MANIFEST, **{section: None})
        (tmp_path / COPY).unlink()
        with pytest.raises(BankError, match=rf"bank\.json: lacks {section}"):
            Bank.open(tmp_path)

    def test_an_unfinished_bank_unless_told(self, tmp_path: Path) -> None:
        make_bank(tmp_path, only=[0, 2])
        with pytest.raises(BankError, match=r"unfinished: 1 of 3 units is missing, 12 of 30 images: run generate .* partial=True"):
            Bank.open(tmp_path)
        bank = Bank.open(tmp_path, partial=True)
        assert bank.keys == [*KEYS[:4], *KEYS[8:]]
        assert bank.read([KEYS[9]], [2])[0].equal(pixels(9, 2))
        assert "1 units missing" in repr(bank)
        with pytest.raises(MissingKeyError, match=f"'{KEYS[5]}' is not in this bank, of which 1 units have not been generated yet"):
            bank.read([KEYS[5]], [0])

    def test_a_bank_of_no_unit_yet(self, tmp_path: Path) -> None:
        make_bank(tmp_path, only=[])
        with pytest.raises(BankError, match="3 of 3 units are missing, 30 of 30 images"):
            Bank.open(tmp_path)
        assert len(Bank.open(tmp_path, partial=True)) == 0

    @pytest.mark.parametrize("partial", [False, True])
    @pytest.mark.parametrize("cut", [0, 0.5, 0.999])
    def test_a_unit_that_was_cut(self, tmp_path: Path, partial: bool, cut: float) -> None:
        make_bank(tmp_path)
        file = tmp_path / Unit(4, 8).file
        data = file.read_bytes()
        file.write_bytes(data[: int(cut * len(data))])
        with pytest.raises(BankError, match=r"unit-000000004-000000008\.arrow: damaged: .* bytes, and its sidecar says .*verify"):
            Bank.open(tmp_path, partial=partial)

    def test_a_unit_without_its_sidecar(self, tmp_path: Path) -> None:
        make_bank(tmp_path)
        (tmp_path / Unit(4, 8).sidecar).unlink()
        with pytest.raises(BankError, match=r"unit-000000004-000000008\.json is missing"):
            Bank.open(tmp_path)

    def test_a_unit_of_other_settings(self, tmp_path: Path) -> None:
        make_bank(tmp_path)
        edit_json(tmp_path / Unit(4, 8).sidecar, settings="0" * 32)
        with pytest.raises(BankError, match=r"unit-000000004-000000008\.arrow was made with other settings") as refused:
            Bank.open(tmp_path)
        assert "move its two files away and run generate again" in str(refused.value)
        assert "damaged" not in str(refused.value)
        assert "--repair" not in str(refused.value), "it would not remove it"

    @pytest.mark.parametrize(
        ("data", "expected"), [(b"", "Arrow"), (b"not Arrow at all" * 9, "Arrow"), (b"\xff\xff\xff\xff\x08\x00\x00\x00abcdefgh", "Arrow")]
    )
    def test_a_unit_that_is_no_arrow_stream(self, tmp_path: Path, data: bytes, expected: str) -> None:
        make_bank(tmp_path)
        (tmp_path / Unit(4, 8).file).write_bytes(data)
        edit_json(tmp_path / Unit(4, 8).sidecar, bytes=len(data))
        with pytest.raises(BankError, match=rf"unit-000000004-000000008\.arrow: .*{expected}"):
            Bank.open(tmp_path)

    def test_a_unit_of_other_columns(self, tmp_path: Path) -> None:
        make_bank(tmp_path)
        file = tmp_path / Unit(4, 8).file
        with pa.ipc.new_stream(file, unit_schema("int")):
            pass
        edit_json(tmp_path / Unit(4, 8).sidecar, bytes=file.stat().st_size)
        with pytest.raises(BankError, match="has the columns key: int64"):
            Bank.open(tmp_path)

    def test_fewer_rows_than_the_sidecar_says(self, tmp_path: Path) -> None:
        make_bank(tmp_path)
        edit_json(tmp_path / Unit(4, 8).sidecar, rows=13)
        with pytest.raises(BankError, match="has 12 rows, and its sidecar says 13"):
            Bank.open(tmp_path)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (lambda rows: [rows[1], rows[0], *rows[2:]], "out of order"),
            (lambda rows: [rows[0], *rows], "twice"),
            (lambda rows: [*rows, Row(rows[-1].key, 3, 0, 0, b"")], "not one of 0 to 2"),
            (lambda rows: [Row(rows[0].key, -1, 0, 0, b""), *rows], "not one of 0 to 2"),
            (lambda rows: [*rows[3:], *rows[:3], *rows[3:6]], "rows in two places"),
        ],
    )
    def test_rows_that_are_not_a_banks(self, tmp_path: Path, change: Any, expected: str) -> None:
        make_bank(tmp_path, change=lambda unit, rows: change(rows) if unit.start == 4 else rows)
        with pytest.raises(BankError, match=expected):
            Bank.open(tmp_path)

    def test_a_key_in_two_units(self, tmp_path: Path) -> None:
        change = {8: KEYS[0]}
        make_bank(tmp_path, change=lambda unit, rows: [Row(change.get(unit.start, row.key), *_rest(row)) for row in rows[:3]])
        with pytest.raises(BankError, match=rf"key '{KEYS[0]}' has rows in two places"):
            Bank.open(tmp_path)

    def test_offsets_that_point_elsewhere_do_not_crash_the_process(self, tmp_path: Path) -> None:
        make_bank(tmp_path)
        file = tmp_path / Unit(0, 4).file
        data = bytearray(file.read_bytes())
        offsets = np.arange(13, dtype=np.int32) * len(KEYS[0])
        place = bytes(data).index(offsets.tobytes())
        data[place + 20 : place + 24] = np.int32(2**30).tobytes()
        file.write_bytes(data)
        with pytest.raises(BankError, match="its keys are damaged"):
            Bank.open(tmp_path)


def _rest(row: Row) -> tuple[int, int, int, bytes]:
    return row.variant, row.seed, row.attempt, row.image


def open_together(paths: list[Path]) -> None:
    with ExitStack() as opened:
        for path in paths:
            opened.enter_context(path.open("rb"))


class TestManyUnits:
    def test_no_file_descriptor_is_kept(self, tmp_path: Path) -> None:
        make_bank(tmp_path, keys=list(range(200)), variants=1, unit_size=1)
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        bank = Bank.open(tmp_path)
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        assert bank.read([199], [0])[0].equal(pixels(199, 0))

    def test_more_units_than_files_may_be_open(self, tmp_path: Path) -> None:
        make_bank(tmp_path, keys=list(range(100)), variants=1, unit_size=1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208
        most = next(itertools.islice((n for n in itertools.count() if n not in used), 30, None))  # room for 30 files
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                open_together([tmp_path / unit.file for unit in list_units(tmp_path)])
            bank = Bank.open(tmp_path)
            images = bank.read(bank.keys, [0] * 100)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert images[:, 0, 0, 0].tolist() == list(range(100))

    @pytest.mark.parametrize("indexed", [True, False])
    def test_at_most_64_are_mapped_at_a_time(self, tmp_path: Path, indexed: bool) -> None:
        make_bank(tmp_path, keys=list(range(150)), variants=1, unit_size=1)
        assert write_index(tmp_path) or not indexed
        if not indexed:
            (tmp_path / INDEX).unlink()
        bank = Bank.open(tmp_path)

        def count() -> int:
            return sum(f"{tmp_path}/unit-" in line for line in Path("/proc/self/maps").read_text().splitlines())

        assert count() == 0, "they are mapped when they are read"
        assert bank.read(bank.keys, [0] * 150)[:, 0, 0, 0].tolist() == list(range(150))
        assert count() == 64
        assert bank.read([0], [0])[0].equal(pixels(0, 0)), "one that was let go is mapped again"
        bank.read([3, 0, 3, 0], [0] * 4)
        assert count() == 64
        del bank
        assert count() == 0

    def test_what_was_read_once_stays_when_the_files_are_gone(self, tmp_path: Path) -> None:
        bank = Bank.open(make_bank(tmp_path))
        bank.read([KEYS[0], KEYS[4]], [0, 0])
        for unit in list_units(tmp_path):
            (tmp_path / unit.file).unlink()
        assert bank.read(KEYS[:8], [2] * 8).equal(torch.stack([pixels(i, 2) for i in range(8)]))
        with pytest.raises(BankError, match=rf"{Unit(8, 10).file}: cannot be read .*No such file.*verify"):
            bank.read(KEYS[8:], [2] * 2)

    def test_a_unit_that_changed_since_is_noticed(self, tmp_path: Path) -> None:
        """Whatever another run puts there, an image is that of its key and variant, or an error."""
        bank = Bank.open(make_bank(tmp_path / "bank"))
        make_bank(tmp_path / "other", keys=[key.replace("dogs", "fish") for key in KEYS])
        for unit in list_units(tmp_path / "bank")[:2]:
            shutil.copy(tmp_path / "other" / unit.file, tmp_path / "bank" / unit.file)
        with pytest.raises(BankError, match=rf"{Unit(0, 4).file}: row 2 is not variant 2 of key '{KEYS[0]}'.*open the bank again"):
            bank.read([KEYS[0]], [2])
        assert bank.read([KEYS[1]], [2])[0].equal(pixels(1, 2))
        (tmp_path / "bank" / Unit(8, 10).file).write_bytes(b"short")
        with pytest.raises(BankError, match=rf"{Unit(8, 10).file}: has 5 bytes, expected"):
            bank.read([KEYS[9]], [0])

    @pytest.mark.slow
    def test_66_000_units_open_from_an_index(self) -> None:
        """More than Linux lets a process map (65,530); of their files, only those that are read need more than a name."""
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            self.open_many(Path(folder), 66_000)

    def open_many(self, tmp_path: Path, count: int) -> None:
        keys = [f"photos/{i}.jpg" for i in range(count)]
        manifest = manifest_of(keys, 1, 1)
        create_manifest(tmp_path, manifest)
        facts = Facts.read(manifest, "")
        first, last = facts.units()[0], facts.units()[-1]
        for unit in facts.units()[1:-1]:
            os.mknod(f"{tmp_path}/{unit.file}")
        for unit in (first, last):
            rows = [Row(keys[unit.start], 0, 0, 0, png(unit.start, 0))]
            assert write_unit(tmp_path, unit, rows, "str", {"settings": facts.digest})
        builder = LookupBuilder(1, integer_keys=False)
        builder.add("all", 0, [pa.record_batch([keys, [0] * count], schema=pa.schema([("key", pa.string()), ("variant", pa.int32())]))])
        lookup = dataclasses.replace(
            builder.build(), files=[unit.file for unit in facts.units()], file_starts=np.arange(count + 1),
            file_sizes=np.full(count, (tmp_path / last.file).stat().st_size),
        )  # fmt: skip
        save_index(tmp_path, facts, Index(lookup))
        bank = Bank.open(tmp_path)
        assert (len(bank), bank.keys) == (count, keys)
        assert bank.read([keys[-1]], [0])[0].equal(pixels(count - 1, 0))
        assert keys[65_900] in bank
        assert "photos/100000.jpg" not in bank


class TestRead:
    def test_every_image_is_the_one_that_was_written(self, bank: Bank) -> None:
        images = everything(bank)
        assert images.dtype == torch.uint8
        assert images.equal(torch.stack([pixels(i, v) for i in range(10) for v in range(3)]))

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=20))
    def test_any_pairs_in_any_order(self, bank: Bank, pairs: list[tuple[int, int]]) -> None:
        keys, variants = [KEYS[i] for i, _ in pairs], [v for _, v in pairs]
        assert bank.read(keys, variants, decode=False) == [png(i, v) for i, v in pairs]
        expected = torch.stack([pixels(i, v) for i, v in pairs]) if pairs else torch.empty(0, 3, *SIZE, dtype=torch.uint8)
        assert bank.read(keys, variants).equal(expected)

    @pytest.mark.parametrize("kind", [list, tuple, np.array])
    def test_takes_lists_tuples_and_arrays(self, bank: Bank, kind: Any) -> None:
        assert bank.read(kind(KEYS[:2]), kind([2, 0])).equal(torch.stack([pixels(0, 2), pixels(1, 0)]))

    def test_of_nothing(self, bank: Bank) -> None:
        empty = bank.read([], [])
        assert (empty.shape, empty.dtype) == ((0, 3, *SIZE), torch.uint8)
        assert bank.read([], [], decode=False) == []

    def test_what_is_read_is_the_readers_own(self, bank: Bank) -> None:
        first = bank.read(KEYS[:1], [0])
        first.zero_()
        assert bank.read(KEYS[:1], [0])[0].equal(pixels(0, 0))

    def test_whatever_torchs_default_device_is(self, bank: Bank) -> None:
        with torch.device("meta"):
            images = bank.read(KEYS[:1], [0])
        assert images[0].equal(pixels(0, 0))

    def test_where_variants_have_gaps(self, gappy: Bank) -> None:
        assert gappy.variants_of(KEYS[2]) == [1]
        assert gappy.variants_of(KEYS[3]) == [0, 1, 2]
        assert gappy.variants_of(KEYS[0]) == gappy.variants_of("unknown") == []
        pairs = [(i, v) for i in range(1, 9) for v in ([1] if i == 2 else [0, 1, 2])]
        assert everything(gappy).equal(torch.stack([pixels(i, v) for i, v in pairs]))

    def test_in_threads(self, bank: Bank) -> None:
        results: list[Tensor] = []
        threads = [threading.Thread(target=lambda: results.append(everything(bank))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        assert all(result.equal(results[0]) for result in results)

    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_of_every_format_as_pillow_decodes_it(self, tmp_path: Path, image_format: str, mode: str, monkeypatch: Any) -> None:
        rng = torch.Generator().manual_seed(0)
        images = [torch.randint(256, (3 if mode == "RGB" else 1, *SIZE), generator=rng, dtype=torch.uint8) for _ in range(30)]
        bank = Bank.open(make_bank(tmp_path / "bank", image=lambda i, v: encoded(images[3 * i + v], image_format)))
        read = everything(bank)
        monkeypatch.setattr(segments, "_DECODE", None)  # a torchvision without decoders: Pillow alone
        assert read.equal(everything(bank))
        if image_format == "PNG":
            assert read.equal(torch.stack([image.expand(3, -1, -1) for image in images]))

    def test_half_the_decoders_speed_is_not_lost_to_pillow(self) -> None:
        assert segments._DECODE is not None  # of the torchvision that we are tested with


class TestMissing:
    def test_an_unknown_key(self, bank: Bank) -> None:
        with pytest.raises(MissingKeyError, match=r"key 'birds/1.jpg' is not in this bank \(its keys look like 'dogs/000.jpg'\)") as caught:
            bank.read(["birds/1.jpg"], [0])
        assert isinstance(caught.value, LookupError)
        assert str(bank.path) in str(caught.value)

    @pytest.mark.parametrize(
        ("key", "root"), [("000.jpg", "the folder that contains 'dogs' as the root"), ("train/dogs/000.jpg", "the folder 'train' in it as")]
    )
    def test_of_another_root_folder(self, bank: Bank, key: str, root: str) -> None:
        with pytest.raises(MissingKeyError, match=f"key '{key}' is not in this bank, but 'dogs/000.jpg' is: .*{root}"):
            bank.read([key], [0])

    def test_the_first_of_several_is_named_and_the_others_counted(self, bank: Bank) -> None:
        with pytest.raises(MissingKeyError, match=r"'a' is not .*; 2 of these 3 pairs have no image"):
            bank.read([KEYS[0], "a", "b"], [0, 0, 0])

    def test_a_number_where_keys_are_text(self, bank: Bank) -> None:
        with pytest.raises(MissingKeyError, match=r"whose keys are str: 5 is int, and '1' and 1 differ"):
            bank.read([5], [0])

    @pytest.mark.parametrize(("keys", "asked", "twin"), [([0, 1, 5], "5", "5 is"), (["0", "1", "5"], 5, "'5' is")])
    def test_a_key_of_the_other_type_that_would_be_there(self, tmp_path: Path, keys: Any, asked: Any, twin: str) -> None:
        bank = Bank.open(make_bank(tmp_path / "bank", keys=keys))
        with pytest.raises(MissingKeyError, match=rf"'1' and 1 differ; {twin}"):
            bank.read([asked], [0])

    @pytest.mark.parametrize("variant", [-1, 3, 2**40])
    def test_a_variant_that_was_not_asked_for(self, bank: Bank, variant: int) -> None:
        with pytest.raises(MissingKeyError, match=rf"has no variant {variant}: the variants of this bank are 0 to 2"):
            bank.read([KEYS[0]], [variant])

    def test_a_source_that_could_not_be_read(self, gappy: Bank) -> None:
        with pytest.raises(MissingKeyError, match=rf"'{KEYS[0]}' has no images, because its source could not be read \(truncated\)"):
            gappy.read([KEYS[0]], [0])

    def test_a_variant_that_was_rejected(self, gappy: Bank) -> None:
        with pytest.raises(
            MissingKeyError, match=rf"variant 2 of key '{KEYS[2]}' was rejected after 5 attempts \(.*\): choose among \[1\]"
        ):
            gappy.read([KEYS[2]], [2])

    def test_a_source_of_which_every_variant_was_rejected(self, gappy: Bank) -> None:
        with pytest.raises(MissingKeyError, match=rf"variant 0 of key '{KEYS[9]}' was rejected after 5 attempts \(not finite\): leave"):
            gappy.read([KEYS[9]], [0])

    @pytest.mark.parametrize("key", [1.5, None, True, b"a", ("a",)])
    def test_a_key_of_no_kind(self, bank: Bank, key: Any) -> None:
        with pytest.raises(ConfigError, match=r"keys: .*expected keys that are str or int"):
            bank.read([key], [0])
        with pytest.raises(ConfigError, match="str or int"):
            bank.variants_of(key)

    @pytest.mark.parametrize("keys", ["cats", 7, None])
    def test_a_lone_key(self, bank: Bank, keys: Any) -> None:
        with pytest.raises(ConfigError, match=r"keys=.*expected a list of keys"):
            bank.read(keys, [0])

    @pytest.mark.parametrize("variants", [["0"], [0.0], [True], torch.tensor([0.0])])
    def test_a_variant_of_no_kind(self, bank: Bank, variants: Any) -> None:
        with pytest.raises(ConfigError, match=r"variants: .*expected"):
            bank.read([KEYS[0]], variants)

    def test_other_lengths(self, bank: Bank) -> None:
        with pytest.raises(ConfigError, match="keys has 2 entries and variants has 1"):
            bank.read(KEYS[:2], [0])

    @pytest.mark.parametrize(
        ("spoilt", "reason"),
        [
            (b"", r"cannot be decoded \(no bytes\)"), (b"text", r"cannot be decoded \(cannot identify.*\)"),
            (png(5, 1)[:-30], r"cannot be decoded \(the PNG is cut off\)"), (png(5, 1, (4, 7)), "is 4 x 7 pixels, expected 4 x 6"),
        ],
    )  # fmt: skip
    def test_an_image_that_does_not_decode(self, tmp_path: Path, spoilt: bytes, reason: str) -> None:
        make_bank(tmp_path, image=lambda i, v: spoilt if (i, v) == (5, 1) else png(i, v))
        bank = Bank.open(tmp_path)
        with pytest.raises(BankError, match=rf"{Unit(4, 8).file}: variant 1 of key '{KEYS[5]}' {reason}: .*verify"):
            bank.read([KEYS[4], KEYS[5]], [0, 1])
        assert bank.read([KEYS[5]], [1], decode=False) == [spoilt]


class TestCopies:
    def test_pickle_opens_it_again(self, bank: Bank) -> None:
        data = pickle.dumps(bank)
        assert len(data) < 1000
        again = pickle.loads(data)
        assert again is not bank
        assert everything(again).equal(everything(bank))
        assert everything(pickle.loads(pickle.dumps(again))).equal(everything(bank))

    def test_copies_share_it(self, bank: Bank) -> None:
        assert copy.deepcopy(bank) is bank
        assert copy.copy(bank) is bank
        assert copy.deepcopy({"transforms": [bank]})["transforms"][0] is bank

    def test_a_bank_that_changed_is_not_taken_for_the_same(self, tmp_path: Path) -> None:
        data = pickle.dumps(Bank.open(make_bank(tmp_path)))
        edit_json(tmp_path / MANIFEST, info={"created": "later"})
        with pytest.raises(BankError, match=r"bank\.json: has changed since this bank was opened"):
            pickle.loads(data)

    def test_a_bank_that_is_gone(self, tmp_path: Path) -> None:
        data = pickle.dumps(Bank.open(make_bank(tmp_path / "bank")))
        (tmp_path / "bank").rename(tmp_path / "other")
        with pytest.raises(BankError, match="no such directory"):
            pickle.loads(data)

    def test_an_unfinished_bank_has_the_same_rows_everywhere(self, tmp_path: Path) -> None:
        make_bank(tmp_path, only=[0, 2])
        data = pickle.dumps(Bank.open(tmp_path, partial=True))
        make_bank(tmp_path, only=[1])  # goes on meanwhile
        assert pickle.loads(data).keys == [*KEYS[:4], *KEYS[8:]]
        (tmp_path / Unit(8, 10).file).unlink()
        with pytest.raises(BankError, match="unfinished"):
            pickle.loads(data)


class TestLoaders:
    @pytest.mark.parametrize("context", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
    def test_workers_read_what_the_main_process_opened(self, path: Path, context: str) -> None:
        bank = Bank.open(path)
        bank.read(KEYS, [0] * 10)  # used before
        loader = DataLoader(Rows(bank), batch_size=4, num_workers=2, multiprocessing_context=context)
        for _ in range(1 if context != "fork" else 2):
            batches = list(loader)
            assert torch.cat([index for _, index in batches]).tolist() == list(range(30))
            assert torch.cat([images for images, _ in batches]).equal(everything(bank))
        assert bank.read(KEYS[:1], [0])[0].equal(pixels(0, 0))

    def test_two_ddp_processes_read_disjoint_rows(self, path: Path, tmp_path: Path) -> None:
        torch.multiprocessing.start_processes(_ddp_process, (2, str(path), str(tmp_path)), nprocs=2, start_method="forkserver")
        seen = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
        assert sorted(torch.cat([index for index, _ in seen]).tolist()) == list(range(30))
        assert not set(seen[0][0].tolist()) & set(seen[1][0].tolist())
        expected = everything(Bank.open(path))
        for index, images in seen:
            assert images.equal(expected[index])


def _ddp_process(rank: int, world: int, path: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=world)
    try:
        rows = Rows(Bank.open(path))
        sampler: Any = DistributedSampler(rows, shuffle=True, seed=3)
        batches = list(DataLoader(rows, batch_size=4, sampler=sampler, num_workers=1, multiprocessing_context="fork"))
        torch.save((torch.cat([index for _, index in batches]), torch.cat([images for images, _ in batches])), Path(out) / f"{rank}.pt")
        count = torch.tensor([sum(len(index) for _, index in batches)])
        dist.all_reduce(count)
        assert count.item() == len(rows)
    finally:
        dist.destroy_process_group()


class TestSize:
    @pytest.mark.slow
    def test_a_million_rows_open_quickly_and_lightly(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gentransforms.bank.format.locking._sync", lambda file: file.flush())
        keys = [f"n{i // 1000:08d}/n{i // 1000:08d}_{i}.JPEG" for i in range(1_000_000)]
        manifest = manifest_of(keys, 1, 1000)
        create_manifest(tmp_path, manifest)
        for start in range(0, len(keys), 1000):
            rows = [Row(key, 0, 0, 0, png(1, 1)) for key in keys[start : start + 1000]]
            write_unit(tmp_path, Unit(start, start + 1000), rows, "str", {"settings": hash_manifest(manifest)})
        code = (
            "import sys, time; from gentransforms.bank.reader import Bank\n"
            "def size(): return int(open('/proc/self/status').read().split('VmRSS:')[1].split()[0]) / 1024\n"
            "before, begun = size(), time.process_time()\n"
            "bank = Bank.open(sys.argv[1]); print(len(bank), time.process_time() - begun, size() - before)"
        )
        printed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        count, seconds, megabytes = printed.stdout.split()
        assert int(count) == 1_000_000
        assert float(seconds) < 2
        assert float(megabytes) < 500

    @pytest.mark.slow  # a timing
    def test_256_random_rows_of_100_000_within_10_ms(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gentransforms.bank.format.locking._sync", lambda file: file.flush())
        make_bank(tmp_path, keys=list(range(10_000)), variants=10, unit_size=500, image=lambda i, v: grey_jpeg(0, 0))
        bank = Bank.open(tmp_path)
        assert len(bank) == 100_000
        rng = np.random.default_rng(0)
        times = []
        for _ in range(7):
            keys, variants = rng.integers(0, 10_000, 256), rng.integers(0, 10, 256)
            begun = time.perf_counter()
            bank.read(keys, variants, decode=False)
            times.append(time.perf_counter() - begun)
        assert min(times) < 0.010
