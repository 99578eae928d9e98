"""Exports of banks: ordinary data sets that are the bank they were made of, with a card."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from small_banks import KEYS, SIZE, edit_json, encoded, make_bank, manifest_of, pixels, png

import gentransforms as gt
from gentransforms.bank.format import unit as writer
from gentransforms.bank.generate.run import generate_bank
from gentransforms.bank.share import export
from gentransforms.bank.share.card import bank_card
from gentransforms.bank.share.export import export_bank
from gentransforms.bank.verify.checker import verify_bank
from gentransforms.errors import BankError, ConfigError, MissingKeyError
from gentransforms.testing import FakeGenerator

COLUMNS = ["key", "variant", "seed", "attempt"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What `datasets` keeps, kept apart and thrown away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def everything(bank: gt.Bank) -> list[tuple[Any, ...]]:
    """All rows of a bank, its images as bytes."""
    names = [tuple(row[name] for name in COLUMNS) for batch in bank.batches() for row in batch.select(COLUMNS).to_pylist()]
    images = bank.read([row[0] for row in names], [row[1] for row in names], decode=False)
    return [(*row, image) for row, image in zip(names, images, strict=True)]


def exported(tmp_path: Path, folder: Path | None = None, **options: Any) -> Path:
    export_bank(gt.Bank.open(folder or make_bank(tmp_path / "bank")), tmp_path / "export", **options)
    return tmp_path / "export"


def check(original: gt.Bank, folder: Path) -> gt.Bank:
    """An export is its bank, and says nothing is wrong with it."""
    opened = gt.Bank.open(folder)
    assert everything(opened) == everything(original)
    assert (opened.keys, opened.variants, opened.image_size) == (original.keys, original.variants, original.image_size)
    assert (opened.failed, opened.rejected, opened.settings) == (original.failed, original.rejected, original.settings)
    report = verify_bank(folder)
    assert report.ok, report
    assert (report.rows, report.images) == (len(original), len(original))
    return opened


class TestExportBank:
    """From a bank to a folder."""

    def test_is_a_data_set_of_pictures(self, tmp_path: Path) -> None:
        folder = exported(tmp_path)
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
            "README.md", "bank.json", "data/train-00000-of-00001.parquet",
        }  # fmt: skip
        loaded = datasets.load_dataset(str(folder))
        assert list(loaded) == ["train"]
        rows = loaded["train"]
        assert isinstance(rows.features["image"], datasets.Image)
        assert {name: rows.features[name].dtype for name in COLUMNS} == {
            "key": "string", "variant": "int32", "seed": "int64", "attempt": "int32",
        }  # fmt: skip
        assert len(rows) == 30
        for place, row in enumerate(rows):
            source, variant = divmod(place, 3)
            assert (row["key"], row["variant"]) == (KEYS[source], variant)
            assert np.array_equal(np.asarray(row["image"]), pixels(source, variant).permute(1, 2, 0).numpy())

    @pytest.mark.parametrize("keys", [KEYS, [5, -3, 2**40, 0], ["1", "é/ü b.jpg", "日本"]], ids=["str", "int", "any text"])
    def test_opens_as_the_same_bank(self, tmp_path: Path, keys: list[Any]) -> None:
        folder = exported(tmp_path, make_bank(tmp_path / "bank", keys=keys, marked=True))
        opened = check(gt.Bank.open(tmp_path / "bank"), folder)
        assert opened.keys == keys
        assert torch.equal(opened.read([keys[2]], [1])[0], pixels(2, 1))

    def test_failed_sources_and_rejected_variants(self, tmp_path: Path) -> None:
        failed = {KEYS[0]: "a text file", KEYS[4]: "truncated", KEYS[5]: "truncated", KEYS[9]: "empty"}
        rejected = {(KEYS[1], 0): "NaN", (KEYS[3], 2): "far", **{(KEYS[6], v): "NaN" for v in range(3)}}
        folder = exported(tmp_path, make_bank(tmp_path / "bank", failed=failed, rejected=rejected), shard_bytes=1)
        opened = check(gt.Bank.open(tmp_path / "bank"), folder)
        assert [entry["key"] for entry in opened.failed] == list(failed)
        with pytest.raises(MissingKeyError, match=r"has no images, because its source could not be read \(truncated\)"):
            opened.read([KEYS[4]], [0])
        with pytest.raises(MissingKeyError, match=r"variant 2 of key .* was rejected"):
            opened.read([KEYS[3]], [2])

    @pytest.mark.parametrize("size", [1, 1500, 10**9])
    def test_files_of_about_a_size(self, tmp_path: Path, size: int) -> None:
        make_bank(tmp_path / "bank", unit_size=1)
        bank = gt.Bank.open(tmp_path / "bank")
        count = export_bank(bank, tmp_path / "export", shard_bytes=size)
        files = sorted((tmp_path / "export" / "data").iterdir())
        assert [file.name for file in files] == [f"train-{i:05d}-of-{count:05d}.parquet" for i in range(count)]
        assert count == {1: 10, 10**9: 1}.get(size, count)
        assert 1 < count < 10 or size != 1500
        largest = max(batch.nbytes for batch in bank.batches())
        assert all(sum(len(row["image"]["bytes"]) for row in pq.read_table(file).to_pylist()) <= max(size, largest) for file in files)
        check(bank, tmp_path / "export")

    @pytest.mark.parametrize("size", [1, 10**9], ids=["over files", "over record batches"])
    def test_rows_of_a_key_split(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        monkeypatch.setattr(writer, "_BATCH_BYTES", 2 * len(png(0, 0)))
        make_bank(tmp_path / "bank")
        bank = gt.Bank.open(tmp_path / "bank")
        first = next(bank.batches())
        assert first.num_rows % 3, "a key's three rows are not all in one batch"
        assert export_bank(bank, tmp_path / "export", shard_bytes=size) == (1 if size > 1 else len(list(bank.batches())))
        check(bank, tmp_path / "export")

    def test_of_an_export(self, tmp_path: Path) -> None:
        first = exported(tmp_path, shard_bytes=500)
        export_bank(gt.Bank.open(first), tmp_path / "second")
        check(gt.Bank.open(tmp_path / "bank"), tmp_path / "second")

    def test_of_a_generated_bank(self, tmp_path: Path) -> None:
        photos = [torch.full((3, 8, 8), 20 * i, dtype=torch.uint8) for i in range(5)]
        generate_bank(photos, tmp_path / "bank", FakeGenerator(8), variants=2, unit_size=2, progress=False)
        check(gt.Bank.open(tmp_path / "bank"), exported(tmp_path, tmp_path / "bank"))

    def test_not_among_other_files(self, tmp_path: Path) -> None:
        bank = gt.Bank.open(make_bank(tmp_path / "bank"))
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").write_text("x")
        for path in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
            with pytest.raises(BankError, match=f"{path}: already exists: expected a new or empty directory"):
                export_bank(bank, path)
        assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
        (tmp_path / "empty").mkdir()
        export_bank(bank, tmp_path / "empty")
        check(bank, tmp_path / "empty")

    def test_not_of_an_unfinished_bank(self, tmp_path: Path) -> None:
        bank = gt.Bank.open(make_bank(tmp_path / "bank", only=[0]), partial=True)
        with pytest.raises(BankError, match="unfinished, 2 units are missing: run generate again, then export it"):
            export_bank(bank, tmp_path / "export")
        assert not (tmp_path / "export").exists()

    @pytest.mark.parametrize("there", [True, False])
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
    def test_a_disk_that_is_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, there: bool) -> None:
        bank = gt.Bank.open(make_bank(tmp_path / "bank"))
        if there:
            (tmp_path / "export").mkdir()
        original, calls = pq.ParquetWriter.write_table, []

        def write_table(self: Any, *args: Any, **options: Any) -> None:
            calls.append(args)
            if len(calls) == 3:
                raise OSError(number, os.strerror(number))
            original(self, *args, **options)

        monkeypatch.setattr(pq.ParquetWriter, "write_table", write_table)
        with pytest.raises(BankError, match=f"^{tmp_path / 'export'}: cannot be written: {os.strerror(number)}") as refused:
            export_bank(bank, tmp_path / "export", shard_bytes=1)
        assert "\n" not in str(refused.value)
        assert (tmp_path / "export").exists() == there
        assert not there or list((tmp_path / "export").iterdir()) == []
        monkeypatch.undo()
        export_bank(bank, tmp_path / "export")
        assert verify_bank(tmp_path / "export").ok

    def test_interrupted_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        bank = gt.Bank.open(make_bank(tmp_path / "bank"))

        def stop(*_: Any, **__: Any) -> str:
            raise KeyboardInterrupt

        monkeypatch.setattr(export, "bank_card", stop)
        with pytest.raises(KeyboardInterrupt):
            export_bank(bank, tmp_path / "export")
        assert not (tmp_path / "export").exists()

    def test_where_nothing_may_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(BankError, match="cannot be written: Not a directory"):
            export_bank(gt.Bank.open(make_bank(tmp_path / "bank")), tmp_path / "file" / "export")

    @pytest.mark.parametrize("size", [0, -1, 1.5, True])
    def test_wrong_size(self, tmp_path: Path, size: Any) -> None:
        with pytest.raises(ConfigError, match=f"shard_bytes={size!r}: expected a positive integer"):
            export_bank(gt.Bank.open(make_bank(tmp_path / "bank")), tmp_path / "export", shard_bytes=size)

    def test_not_of_a_bank_without_images(self, tmp_path: Path) -> None:
        """`datasets` refuses to open a data set without rows."""
        with pytest.raises(BankError, match="has no images, because none could be generated: there is nothing to share"):
            exported(tmp_path, make_bank(tmp_path / "bank", failed=dict.fromkeys(KEYS, "empty")))
        assert not (tmp_path / "export").exists()


class TestOpenedExport:
    """What is special about opening an export."""

    def test_pickles_by_its_path(self, tmp_path: Path) -> None:
        opened = gt.Bank.open(exported(tmp_path))
        again = pickle.loads(pickle.dumps(opened))
        assert everything(again) == everything(opened)
        assert len(pickle.dumps(opened)) < 2000

    def test_feeds_the_transform(self, tmp_path: Path) -> None:
        augment = gt.BankAugment(gt.Bank.open(exported(tmp_path)), p=1.0, keys_getter="last")
        image, key = augment((torch.zeros(3, *SIZE, dtype=torch.uint8), KEYS[4]))
        assert key == KEYS[4]
        assert any(torch.equal(image, pixels(4, v)) for v in range(3))

    def test_is_not_filled(self, tmp_path: Path) -> None:
        photos = [torch.full((3, 8, 8), 20 * i, dtype=torch.uint8) for i in range(5)]
        generate_bank(photos, tmp_path / "bank", FakeGenerator(8), variants=2, progress=False)
        folder = exported(tmp_path, tmp_path / "bank")
        with pytest.raises(BankError, match="is the export of a bank, to which nothing can be added"):
            generate_bank(photos, folder, FakeGenerator(8), variants=2, progress=False)

    def test_has_no_revisions(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="is a directory on this machine and has no revisions"):
            gt.Bank.open(exported(tmp_path), revision="main")

    def test_another_export_in_its_place_is_another_bank(self, tmp_path: Path) -> None:
        folder = exported(tmp_path)
        assert len(gt.Bank.open(folder)) == 30
        shutil.rmtree(folder)
        export_bank(gt.Bank.open(make_bank(tmp_path / "other", keys=KEYS[:2])), folder)
        assert gt.Bank.open(folder).keys == KEYS[:2]

    @pytest.mark.parametrize("name", ["my bank [v2]", "a*b", "what?", "[!x]", "#1 é"])
    def test_in_a_folder_of_any_name(self, tmp_path: Path, name: str) -> None:
        folder = exported(tmp_path).rename(tmp_path / name)
        check(gt.Bank.open(tmp_path / "bank"), folder)

    def test_where_datasets_keeps_small_data_sets_in_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 10**9)  # HF_DATASETS_IN_MEMORY_MAX_SIZE
        check(gt.Bank.open(make_bank(tmp_path / "bank", marked=True)), exported(tmp_path, tmp_path / "bank"))

    @pytest.mark.parametrize("when", ["opened", "read"])
    @pytest.mark.parametrize("damage", ["cut", "an image", "a key", "another", "no Arrow"])
    def test_damage_in_the_cache(self, tmp_path: Path, damage: str, when: str) -> None:
        """The advice names the folder that has to go, and is right."""
        folder = exported(tmp_path)
        whole = everything(gt.Bank.open(folder))
        bank = gt.Bank.open(folder)
        file = bank._images.find_file(0)
        data, image = file.read_bytes(), png(0, 0)
        place = data.index(image)
        changed = {
            "cut": data[: len(data) // 2],
            "an image": data.replace(image, bytes(len(image))),
            "a key": data.replace(KEYS[0].encode(), KEYS[1].encode()),
            "another": data[:place],
            "no Arrow": bytes(len(data)),
        }[damage]
        file.unlink()  # it may be mapped
        file.write_bytes(changed)
        with pytest.raises(BankError, match="in its cache is damaged") as caught:
            (bank if when == "read" else gt.Bank.open(folder)).read(KEYS, [0] * len(KEYS))
        assert "--repair" not in str(caught.value)
        assert "download" not in str(caught.value)
        named, verified = re.findall(
            r"remove the folder (.*) and open the bank again; .* `gentransforms bank verify (.*)`", str(caught.value)
        )[0]
        assert verify_bank(verified).ok, "nothing is wrong with the export"
        assert Path(named) == file.parent
        shutil.rmtree(named)
        assert everything(gt.Bank.open(folder)) == whole

    def test_damage_of_the_export_itself(self, tmp_path: Path) -> None:
        """An image with its right length: the advice for the cache leads to the file."""
        folder = exported(tmp_path)
        file = folder / "data" / "train-00000-of-00001.parquet"
        data = file.read_bytes()
        file.write_bytes(data.replace(png(0, 0), bytes(len(png(0, 0)))))
        with pytest.raises(BankError, match=r"cannot be decoded .* `gentransforms bank verify") as caught:
            gt.Bank.open(folder).read(KEYS, [0] * len(KEYS))
        report = verify_bank(re.findall(r"`gentransforms bank verify (.*)`", str(caught.value))[0])
        assert [problem.kind for problem in report.problems] == ["checksum"]
        assert report.advice == "download the damaged files again, or export the bank again"

    def test_a_missing_file(self, tmp_path: Path) -> None:
        folder = exported(tmp_path, shard_bytes=500)
        (folder / "data" / "train-00001-of-00003.parquet").unlink()
        with pytest.raises(BankError, match=r"data/train-00001-of-00003\.parquet is missing: download it again, or export the bank again"):
            gt.Bank.open(folder)

    def test_a_pointer_of_git_lfs(self, tmp_path: Path) -> None:
        folder = exported(tmp_path)
        (folder / "data" / "train-00000-of-00001.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(BankError, match=r"has 43 bytes, expected [\d,]+: download it again"):
            gt.Bank.open(folder)

    def test_no_manifest(self, tmp_path: Path) -> None:
        folder = exported(tmp_path)
        (folder / "bank.json").unlink()
        with pytest.raises(BankError, match=r"no bank\.json in this directory"):
            gt.Bank.open(folder)

    def test_a_manifest_of_the_bank_itself(self, tmp_path: Path) -> None:
        folder = exported(tmp_path)
        shutil.copy(tmp_path / "bank" / "bank.json", folder)
        with pytest.raises(BankError, match="lists no Parquet files, so it is not the manifest of an exported bank"):
            gt.Bank.open(folder)


class TestMarks:
    """Exports keep the marks of the sources, by which row numbers are checked."""

    FAILED = {KEYS[0]: "a text file", KEYS[5]: "truncated"}  # noqa: RUF012

    @staticmethod
    def unmark(folder: Path) -> Path:
        """The export as an earlier version wrote it."""
        info = json.loads((folder / "bank.json").read_text())["info"]
        del info["marks"]
        edit_json(folder / "bank.json", info=info)
        (folder / "marks.npy").unlink(missing_ok=True)
        return folder

    @pytest.mark.parametrize("size", [1, 500, 10**9])
    def test_are_those_of_the_bank(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        monkeypatch.setattr(writer, "_BATCH_BYTES", 2 * len(png(0, 0)))  # rows of a key in several files
        original = gt.Bank.open(make_bank(tmp_path / "bank", failed=self.FAILED, rejected={(KEYS[3], 0): "far"}, marked=True))
        export_bank(original, tmp_path / "export", shard_bytes=size)
        opened = check(original, tmp_path / "export")
        expected = [[10 * i] * 48 for i, key in enumerate(KEYS) if key not in self.FAILED]
        for bank in (opened, pickle.loads(pickle.dumps(opened))):
            assert bank.marks.tolist() == expected
        chosen = opened.select(np.arange(len(opened)) >= 6)
        assert chosen.marks is not None
        assert chosen.marks.tolist() == expected[2:]

    def test_pass_on_to_an_export_of_the_export(self, tmp_path: Path) -> None:
        first = exported(tmp_path, make_bank(tmp_path / "bank", marked=True))
        export_bank(gt.Bank.open(first), tmp_path / "second")
        assert gt.Bank.open(tmp_path / "second").marks.tolist() == [[10 * i] * 48 for i in range(10)]  # type: ignore[union-attr]

    def test_are_not_claimed_where_there_are_none(self, tmp_path: Path) -> None:
        first = self.unmark(exported(tmp_path, make_bank(tmp_path / "bank", marked=True)))
        export_bank(gt.Bank.open(first), tmp_path / "second")
        assert gt.Bank.open(tmp_path / "second").marks is None
        assert not (tmp_path / "second" / "marks.npy").exists()

    def test_the_data_set_is_read_without_them(self, tmp_path: Path) -> None:
        folder = exported(tmp_path, make_bank(tmp_path / "bank", marked=True))
        assert (folder / "marks.npy").exists()
        loaded = datasets.load_dataset(str(folder))
        assert (list(loaded), len(loaded["train"]), loaded["train"].column_names) == (["train"], 30, [*COLUMNS, "image"])

    @pytest.mark.parametrize("batch", [False, True])
    def test_other_rows_under_the_same_numbers_are_refused(self, tmp_path: Path, batch: bool) -> None:
        rng = torch.Generator().manual_seed(0)
        cells = torch.randint(0, 256, (60, 3, 4, 4), dtype=torch.uint8, generator=rng)
        images = list(cells.repeat_interleave(4, 2).repeat_interleave(4, 3))
        generate_bank(images, tmp_path / "bank", FakeGenerator(16), variants=1, progress=False)
        augment = gt.BankAugment(exported(tmp_path, tmp_path / "bank"), p=1.0, keys_getter="last" if batch else None)

        def use(part: list[torch.Tensor]) -> None:
            if batch:
                augment((torch.stack(part), torch.arange(len(part))))
            else:
                gt.with_keys(part, transform=augment)

        use(images)
        augment = gt.BankAugment(tmp_path / "export", p=1.0, keys_getter="last" if batch else None)
        with pytest.raises(ConfigError, match=r"the images are not those of the bank: the image with the key 0 looks like .* source 20"):
            use(images[20:])

    def test_an_export_of_before_says_once_that_nothing_checks_its_numbers(self, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
        folder = self.unmark(exported(tmp_path, make_bank(tmp_path / "bank", keys=[7, 3, 5], marked=True)))
        with pytest.warns(UserWarning, match=r"nothing can check that the numbers .* export has no marks .* export the bank again") as told:
            bank = gt.Bank.open(folder)
        assert len(told) == 1
        assert told[0].filename == __file__
        assert (bank.keys, bank.marks) == ([7, 3, 5], None)
        recwarn.clear()
        pickle.loads(pickle.dumps(bank))
        bank.select(np.arange(9) < 3)
        gt.Bank.open(self.unmark(exported(tmp_path / "names", make_bank(tmp_path / "names" / "bank"))))
        assert not recwarn, "not in a worker, nor where keys are names"

    @pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "fewer", "pickled", "entry"])
    def test_a_damaged_file_is_named(self, tmp_path: Path, damage: str) -> None:
        folder = exported(tmp_path, make_bank(tmp_path / "bank", marked=True))
        file, data = folder / "marks.npy", (folder / "marks.npy").read_bytes()
        info = json.loads((folder / "bank.json").read_text())["info"]
        if damage == "missing":
            file.unlink()
        elif damage == "cut":
            file.write_bytes(data[:-1])
        elif damage == "flipped":
            file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        elif damage == "entry":
            edit_json(folder / "bank.json", info=info | {"marks": {"file": "marks.npy"}})
        else:
            np.save(file, np.zeros((9, 48), np.uint8) if damage == "fewer" else np.array([{"a": 1}], dtype=object), allow_pickle=True)
            edit_json(folder / "bank.json", info=info | {"marks": info["marks"] | {"bytes": file.stat().st_size}})
        report = verify_bank(folder)
        assert [(problem.unit, problem.kind) for problem in report.problems] == [
            ("", "manifest") if damage == "entry" else ("marks.npy", {"missing": "missing", "cut": "size"}.get(damage, "checksum"))
        ]
        if damage != "flipped":  # which opening does not look for, as in the other files
            with pytest.raises(BankError, match=r"marks.*(download it again|export or push the bank again)"):
                gt.Bank.open(folder)

    def test_an_interrupted_export_leaves_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "export").mkdir()
        monkeypatch.setattr(export, "bank_card", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            exported(tmp_path, make_bank(tmp_path / "bank", marked=True))
        assert list((tmp_path / "export").iterdir()) == []


class TestVerifyExport:
    """`verify_bank` of an export checks its files, rows and images."""

    def kinds(self, folder: Path) -> set[tuple[str, str]]:
        report = verify_bank(folder)
        assert not report.ok
        return {(problem.unit.removeprefix("data/"), problem.kind) for problem in report.problems}

    def rewritten(self, folder: Path, change: Any, file: str = "data/train-00000-of-00001.parquet") -> Path:
        """The export with other rows, and a manifest as if they had been written so."""
        table = pq.read_table(folder / file)
        rows = change(table.to_pylist())
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / file)
        data = (folder / file).read_bytes()
        manifest = json.loads((folder / "bank.json").read_text())
        import hashlib

        facts = {"file": file, "rows": len(rows), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        edit_json(folder / "bank.json", info={**manifest["info"], "files": [facts]})
        return folder

    def test_a_sound_one(self, tmp_path: Path) -> None:
        folder = exported(tmp_path, shard_bytes=500)
        seen: list[tuple[int, int]] = []
        report = verify_bank(folder, on_progress=lambda done, count: seen.append((done, count)))
        assert str(report) == f"{folder}: 3 files, 30 rows, 30 images decoded\nno problem"
        assert seen == [(1, 3), (2, 3), (3, 3)]
        assert verify_bank(folder, images=False).images == 0
        assert gt.Bank.open(folder).verify().ok

    def test_a_bit_that_flipped(self, tmp_path: Path) -> None:
        folder = exported(tmp_path, shard_bytes=500)
        file = folder / "data" / "train-00001-of-00003.parquet"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        assert self.kinds(folder) == {(file.name, "checksum")}

    def test_missing_cut_and_strange_files(self, tmp_path: Path) -> None:
        folder = exported(tmp_path, shard_bytes=500)
        first, second, third = sorted((folder / "data").iterdir())
        first.unlink()
        second.write_bytes(second.read_bytes()[:-1])
        shutil.copy(third, folder / "data" / "train-00009-of-00010.parquet")
        assert self.kinds(folder) == {(first.name, "missing"), (second.name, "size"), ("train-00009-of-00010.parquet", "plan")}

    def test_all_files_missing(self, tmp_path: Path) -> None:
        folder = exported(tmp_path)
        (folder / "data" / "train-00000-of-00001.parquet").unlink()
        assert self.kinds(folder) == {("train-00000-of-00001.parquet", "missing")}

    @pytest.mark.parametrize(
        ("change", "kind"),
        [
            (lambda rows: rows[1:], "rows"),
            (lambda rows: [row for row in rows if row["key"] != KEYS[9]], "rows"),
            (lambda rows: [*rows, rows[0]], "duplicate"),
            (lambda rows: [rows[1], rows[0], *rows[2:]], "order"),
            (lambda rows: [*rows[3:6], *rows[:3], *rows[6:]], "keys"),
            (lambda rows: [{**rows[0], "seed": 1}, *rows[1:]], "seed"),
            (lambda rows: [{**rows[0], "image": {"bytes": b"no picture", "path": None}}, *rows[1:]], "image"),
            (lambda rows: [{**rows[0], "image": {"bytes": encoded(torch.zeros(3, 9, 9).byte(), "PNG"), "path": None}}, *rows[1:]], "image"),
            (lambda rows: [{**rows[0], "key": None}, *rows[1:]], "arrow"),
        ],
        ids=["no first row", "no last key", "a row twice", "order of variants", "order of keys", "seed", "image", "size", "no key"],
    )
    def test_wrong_rows(self, tmp_path: Path, change: Any, kind: str) -> None:
        folder = self.rewritten(exported(tmp_path), change)
        assert kind in {found for _, found in self.kinds(folder)}

    def test_no_manifest(self, tmp_path: Path) -> None:
        folder = exported(tmp_path)
        (folder / "bank.json").unlink()
        assert self.kinds(folder) == {("", "manifest")}

    def test_is_not_repaired(self, tmp_path: Path) -> None:
        folder = exported(tmp_path)
        with pytest.raises(ConfigError, match=r"cannot make again: verify it without repair, and .* export the bank again"):
            verify_bank(folder, repair=True)


class TestBankCard:
    """What the Hub shows of a bank."""

    def parts(self, card: str) -> tuple[dict[str, Any], str]:
        _, head, text = card.split("---\n", 2)
        return yaml.safe_load(head), text

    def test_says_all_that_is_needed(self, tmp_path: Path) -> None:
        photos = [torch.full((3, 8, 8), 20 * i, dtype=torch.uint8) for i in range(3)]
        generator = FakeGenerator(8)
        generate_bank(photos, tmp_path / "bank", generator, variants=2, base_seed=77, image_format="jpeg", quality=85, progress=False)
        folder = exported(tmp_path, tmp_path / "bank", license="cc-by-nc-4.0", description="Of my cat.", repo_id="me/cats")
        head, text = self.parts((folder / "README.md").read_text())
        assert head["license"] == "cc-by-nc-4.0"
        assert "synthetic" in head["tags"]
        assert head["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}]
        for needed in (
            "FakeGenerator", generator.fingerprint(), "derive_seeds(77, key, variant + attempt * 2)", "jpeg, quality 85", "8 x 8 pixels",
            "6, up to 2 variants of each of 3 source images", "cc-by-nc-4.0", "Of my cat.", "**synthetic**", "not suitable for evaluation",
            'gt.Bank.open("me/cats")', 'datasets.load_dataset("me/cats", split="train")',
        ):  # fmt: skip
            assert needed in text, needed
        shown, manifest = json.loads(text.split("```json\n")[1].split("```")[0]), gt.Bank.open(tmp_path / "bank").manifest
        assert set(shown) == {"settings", "generator", "source", "device", "encoder"}
        assert all(shown[name] == manifest[name] for name in shown)

    def test_how_to_load_is_code_that_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_bank(tmp_path / "bank")
        folder = exported(tmp_path, tmp_path / "bank", repo_id="org/bank")
        (tmp_path / "org").mkdir()
        folder.rename(tmp_path / "org" / "bank")
        monkeypatch.chdir(tmp_path)
        code = (tmp_path / "org" / "bank" / "README.md").read_text().split("```python\n")[1].split("```")[0]
        names: dict[str, Any] = {}
        exec(code, names)
        assert len(names["bank"]) == 30
        assert isinstance(names["augment"], gt.BankAugment)

    def test_unknown_licence(self) -> None:
        head, text = self.parts(bank_card(manifest_of(KEYS), 30))
        assert "license" not in head
        assert "Licence: Not stated by whoever shared this bank." in text

    def test_images_that_others_made(self) -> None:
        manifest = manifest_of(KEYS)
        manifest["settings"] |= {"base_seed": None, "quality": None, "image_format": "jpeg"}
        _, text = self.parts(bank_card(manifest, 30))
        assert "Seeds: unknown, because the images were generated elsewhere" in text
        assert "Encoding: jpeg\n" in text

    @pytest.mark.parametrize(
        ("given", "shown"),
        [("icgan-cifar10-32", "icgan-cifar10-32"), ("org/generator", "org/generator"), ("/home/me/secret", "Painter"), (None, "Painter")],
    )
    def test_names_the_generator_but_no_path_of_this_machine(self, given: str | None, shown: str) -> None:
        manifest = manifest_of(KEYS)
        manifest["info"]["generator_name"] = given
        head, text = self.parts(bank_card(manifest, 30))
        assert head["pretty_name"] == f"Variants made by {shown}"
        assert f"# Variants made by {shown}\n" in text
        assert "secret" not in text

    def test_a_description_cannot_break_the_metadata(self) -> None:
        head, text = self.parts(bank_card(manifest_of(KEYS), 30, description="---\nlicense: mit\n---"))
        assert "license" not in head
        assert "license: mit" in text
