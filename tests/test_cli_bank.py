"""`gentransforms generate` and `gentransforms bank`: from files to a bank, and what is done with it."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from small_banks import KEYS, edit_json, encoded, make_bank, pixels
from torchvision.transforms.v2 import functional as TF
from typer.testing import CliRunner

import gentransforms as gt
from gentransforms import sources
from gentransforms.bank import Local, Ray
from gentransforms.bank import importing as authors
from gentransforms.bank.config import BankConfig
from gentransforms.bank.format.unit import Unit, list_units
from gentransforms.bank.generate import pipeline, progress, writing
from gentransforms.bank.generate import run as generate
from gentransforms.bank.generate.plan import Estimate, Plan
from gentransforms.bank.share import export
from gentransforms.bank.verify.checker import verify_bank
from gentransforms.cli.main import app

RUNNER = CliRunner()
BUNDLED = "icgan-cifar10-32"
TINY: dict[str, Any] = {
    "network": {"resolution": 32, "G_ch": 8, "dim_z": 16, "shared_dim_feat": 8, "feature_dim": 16, "G_attn": "0"},
    "feature_extractor": {"kind": "small-resnet", "widths": [8, 16], "blocks": [1, 1]},
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small generator."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("generators") / "tiny"
    gt.ICGAN(**TINY).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(7):
        path = folder / ("cats" if i % 2 else "dogs") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(photo(i))
    return folder


def photo(number: int) -> bytes:
    rng = np.random.default_rng(number)
    return encoded(torch.from_numpy(rng.integers(0, 256, (3, 40, 36), dtype=np.uint8)), "PNG")


def keys_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def run(*arguments: object, code: int = 0) -> Any:
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def refused(*arguments: object, code: int = 2) -> str:
    """Run a call that fails, and return what it says, which is one line on stderr."""
    result = run(*arguments, code=code)
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


def make(photos: Path, bank: Path, tiny: str, *more: object, code: int = 0) -> Any:
    """A small bank of PNGs in four units."""
    options = ("--generator", tiny, "--variants", 3, "--unit-size", 2, "--image-format", "png", "--threads", 1)
    return run("generate", photos, bank, *options, *more, code=code)


def files(bank: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in bank.glob("*.arrow")}


class TestGenerate:
    """`gentransforms generate`."""

    def test_a_folder_with_the_bundled_generator(self, photos: Path, tmp_path: Path) -> None:
        result = run("generate", photos, tmp_path / "bank", "--variants", 2)
        assert re.fullmatch(
            rf"14 images generated in [\d.]+ s, [\d.]+ images/s; 1 of 1 unit complete: {tmp_path / 'bank'}\n", result.stdout
        ), result.stdout  # fmt: skip
        assert result.stderr == ""
        bank = gt.Bank.open(tmp_path / "bank")
        assert sorted(bank.keys) == keys_of(photos)
        assert (len(bank), bank.variants, bank.image_size) == (14, 2, (32, 32))
        assert bank.manifest["info"]["generator_name"] == BUNDLED
        assert bank.manifest["generator"]["fingerprint"] == gt.load_generator(BUNDLED).fingerprint()
        assert verify_bank(tmp_path / "bank").ok

    def test_a_parquet_file(self, tiny: str, tmp_path: Path) -> None:
        table = pa.table({"name": ["a", "b", "c"], "shot": [photo(i) for i in range(3)], "other": [b"", b"", b""]})
        pq.write_table(table, tmp_path / "photos.parquet")
        make(tmp_path / "photos.parquet", tmp_path / "bank", tiny, "--key", "name", "--image-column", "shot")
        assert gt.Bank.open(tmp_path / "bank").keys == ["a", "b", "c"]
        make(tmp_path / "photos.parquet", tmp_path / "numbered", tiny, "--image-column", "shot")
        assert gt.Bank.open(tmp_path / "numbered").keys == [0, 1, 2]

    def test_is_what_the_function_makes(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        make(photos, tmp_path / "bank", tiny, "--base-seed", 7)
        generate.generate_bank(
            photos, tmp_path / "same", tiny, variants=3, unit_size=2, image_format="png", threads=1, base_seed=7, progress=False
        )
        assert files(tmp_path / "bank") == files(tmp_path / "same")
        assert gt.Bank.open(tmp_path / "bank").settings == gt.Bank.open(tmp_path / "same").settings

    def test_a_class_conditional_generator_takes_the_class_folders(self, photos: Path, tmp_path: Path) -> None:
        network = TINY["network"] | {"class_cond": True, "n_classes": 2, "shared_dim": 4}
        gt.ICGAN(network, TINY["feature_extractor"]).save_pretrained(tmp_path / "generator")
        make(photos, tmp_path / "bank", str(tmp_path / "generator"))
        bank, generator = gt.Bank.open(tmp_path / "bank"), gt.load_generator(tmp_path / "generator")
        assert bank.manifest["source"]["inputs"] == ["labels"]
        for key in (bank.keys[0], bank.keys[-1]):
            square = TF.center_crop(TF.pil_to_tensor(PIL.Image.open(photos / key)), [36, 36])
            image = TF.resize(square.float() / 255, [32, 32], antialias=True)[None]
            seeds, label = gt.derive_seeds(0, [key], [1]), torch.tensor([["cats", "dogs"].index(str(key).split("/")[0])])
            made = (generator(image, seeds, labels=label) * 255).round()[0]
            other = (generator(image, seeds, labels=1 - label) * 255).round()[0]
            found = bank.read([key], [1])[0].float()
            assert (found - made).abs().max() <= 2
            assert (found - other).abs().max() > 10, "the label matters"

    def test_labels_that_no_folder_gives(self, tmp_path: Path) -> None:
        network = TINY["network"] | {"class_cond": True, "n_classes": 2, "shared_dim": 4}
        gt.ICGAN(network, TINY["feature_extractor"]).save_pretrained(tmp_path / "generator")
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "a.png").write_bytes(photo(0))
        message = refused("generate", tmp_path / "photos", tmp_path / "bank", "--generator", tmp_path / "generator")
        assert "labels are missing: ICGAN needs them" in message
        assert not (tmp_path / "bank").exists()

    def test_a_column_of_labels(self, tmp_path: Path) -> None:
        network = TINY["network"] | {"class_cond": True, "n_classes": 2, "shared_dim": 4}
        gt.ICGAN(network, TINY["feature_extractor"]).save_pretrained(tmp_path / "generator")
        pq.write_table(pa.table({"image": [photo(0), photo(1)], "kind": [1, 0]}), tmp_path / "photos.parquet")
        make(tmp_path / "photos.parquet", tmp_path / "bank", str(tmp_path / "generator"), "--columns", "labels=kind")
        assert len(gt.Bank.open(tmp_path / "bank")) == 6

    def test_options_of_the_generator(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        make(photos, tmp_path / "bank", tiny, "--option", "truncation=0.5")
        assert gt.Bank.open(tmp_path / "bank").manifest["generator"]["config"]["truncation"] == 0.5

    def test_dtype_is_that_of_torch(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        make(photos, tmp_path / "bank", tiny, "--option", "dtype=float64")
        expected = gt.load_generator(tiny, dtype=torch.float64).fingerprint()
        assert gt.Bank.open(tmp_path / "bank").manifest["generator"]["fingerprint"] == expected

    def test_the_name_is_told_whatever_the_class_keeps(
        self, photos: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gt.ICGAN, "from_pretrained", lambda *_, **__: gt.ICGAN(**TINY).eval())
        make(photos, tmp_path / "bank", tiny)
        assert gt.Bank.open(tmp_path / "bank").manifest["info"]["generator_name"] == tiny

    def test_again_makes_nothing(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        make(photos, tmp_path / "bank", tiny)
        before = files(tmp_path / "bank")
        assert make(photos, tmp_path / "bank", tiny).stdout.startswith("0 images generated in ")
        assert files(tmp_path / "bank") == before

    def test_shards(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        make(photos, tmp_path / "whole", tiny)
        first = make(photos, tmp_path / "bank", tiny, "--shard", "0/3")
        assert first.stdout.startswith("9 images generated in "), first.stdout
        assert "; 2 of 2 units complete: " in first.stdout
        assert [unit.start for unit in list_units(tmp_path / "bank")] == [0, 6]
        for shard in ("1/3", "2/3"):
            make(photos, tmp_path / "bank", tiny, "--shard", shard)
        assert files(tmp_path / "bank") == files(tmp_path / "whole")
        assert "0 of 0 units" in make(photos, tmp_path / "bank", tiny, "--shard", "4/5").stdout, "more shards than units"

    def test_summary(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        make(photos, tmp_path / "bank", tiny, "--summary", tmp_path / "summary.json")
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert {name: summary[name] for name in ("path", "images", "units", "units_done", "complete", "failed", "rejected")} == {
            "path": str(tmp_path / "bank"), "images": 21, "units": 4, "units_done": 4, "complete": True, "failed": [], "rejected": [],
        }  # fmt: skip
        assert summary["images_per_second"] > 0

    def test_rejected_variants_are_told(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        result = make(photos, tmp_path / "bank", tiny, "--min-similarity", 1, "--max-attempts", 2, code=1)
        assert result.stdout.startswith("0 images generated")
        first, last = result.stderr.splitlines()
        assert re.fullmatch(r"Warning: 21 variants rejected; the first: similarity .*, below min_similarity=1\.0", first)
        assert re.fullmatch(r"Error: no image could be generated in 4 units, .*; the first: cats/1\.png: similarity .*", last)


class TestFailedSources:
    """Exit code 1, a line for each, and the others are made."""

    @pytest.fixture
    def broken(self, photos: Path, tmp_path: Path) -> Path:
        folder = Path(shutil.copytree(photos, tmp_path / "photos"))
        (folder / "cats" / "1.png").write_bytes(b"")
        (folder / "dogs" / "4.png").write_bytes(photo(4)[:500])
        return folder

    def test_lines_and_number(self, broken: Path, tiny: str, tmp_path: Path) -> None:
        for made in (15, 0):  # and again by a run that makes nothing
            result = make(broken, tmp_path / "bank", tiny, "--summary", tmp_path / "summary.json", code=1)
            assert result.stdout.startswith(f"{made} images generated in ")
            first, second, last = result.stderr.splitlines()
            assert re.fullmatch(r"failed: cats/1\.png: .+", first)
            assert re.fullmatch(r"failed: dogs/4\.png: .+", second)
            assert last == "Error: 2 sources could not be read: fix and run with --retry-failed, or ignore this; all others are done"
            summary = json.loads((tmp_path / "summary.json").read_text())
            assert [entry["key"] for entry in summary["failed"]] == ["cats/1.png", "dogs/4.png"]
        assert len(gt.Bank.open(tmp_path / "bank")) == 15

    def test_mended(self, broken: Path, photos: Path, tiny: str, tmp_path: Path) -> None:
        make(photos, tmp_path / "whole", tiny)
        make(broken, tmp_path / "bank", tiny, code=1)
        for name in ("cats/1.png", "dogs/4.png"):
            shutil.copy(photos / name, broken / name)
        make(broken, tmp_path / "bank", tiny, "--retry-failed")
        assert files(tmp_path / "bank") == files(tmp_path / "whole")

    def test_very_many_are_counted(self, monkeypatch: pytest.MonkeyPatch, photos: Path, tiny: str, tmp_path: Path) -> None:
        failed = tuple({"key": i, "index": i, "reason": "two\nlines"} for i in range(250))
        done = generate.Summary(str(tmp_path), 1, 1, 0, 0, 0, 1.0, 0.0, failed, (), 5)
        monkeypatch.setattr(generate, "generate_bank", lambda *_, **__: done)
        lines = make(photos, tmp_path / "bank", tiny, code=1).stderr.splitlines()
        assert lines[:2] == ["failed: 0: two lines", "failed: 1: two lines"]
        assert len(lines) == 101
        assert lines[-1].startswith("Error: 250 sources could not be read (the other 150 are listed in the sidecars): ")


class TestNothingMade:
    """Exit code 1, and what is wrong in one line."""

    def test_every_source_fails(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(photos, tmp_path / "photos"))
        for file in folder.rglob("*.png"):
            file.write_bytes(b"")
        result = make(folder, tmp_path / "bank", tiny, "--summary", tmp_path / "summary.json", code=1)
        assert "no image could be generated in 4 units" in result.stderr
        assert "cats/1.png: the file is empty" in result.stderr.splitlines()[-1]
        assert json.loads((tmp_path / "summary.json").read_text())["complete"] is False

    def test_a_generator_of_nan(self, photos: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        original = gt.ICGAN.sample
        monkeypatch.setattr(gt.ICGAN, "sample", lambda *args: original(*args) * float("nan"))
        folder = Path(shutil.copytree(photos, tmp_path / "photos"))
        for i in range(7, 12):
            (folder / "dogs" / f"{i}.png").write_bytes(photo(i))
        message = make(folder, tmp_path / "bank", tiny, code=1).stderr
        assert message.startswith("Error: ICGAN made NaN or infinity in every image of the first 8 sources, 5 attempts each")
        assert message.count("\n") == 1
        assert list_units(tmp_path / "bank") == []


class TestUnitsThatAreNotThere:
    """Exit code 1, though nothing raised: another machine wrote them elsewhere, or they were removed meanwhile."""

    def test_elsewhere(self, monkeypatch: pytest.MonkeyPatch, photos: Path, tiny: str, tmp_path: Path) -> None:
        original, elsewhere = writing.write_unit, tmp_path / "elsewhere"
        elsewhere.mkdir()

        def of_its_own(_directory: Path, *args: Any, **options: Any) -> bool:  # a disk that others do not see, as on a Ray node
            return original(elsewhere, *args, **options)

        monkeypatch.setattr(writing, "write_unit", of_its_own)
        result = make(photos, tmp_path / "bank", tiny, "--summary", tmp_path / "summary.json", code=1)
        assert "; 0 of 4 units complete" in result.stdout
        assert result.stderr == (
            f"Error: 4 of 4 units missing, although nothing failed: {tmp_path / 'bank'} must be the same directory for all "
            "processes that fill it; make sure that it is on a file system that all nodes (of Ray, for example) share, and run the same "
            "command again\n"
        )  # fmt: skip
        assert json.loads((tmp_path / "summary.json").read_text())["complete"] is False

    def test_come_before_sources_that_failed(self, monkeypatch: pytest.MonkeyPatch, photos: Path, tiny: str, tmp_path: Path) -> None:
        failed = ({"key": 0, "index": 0, "reason": "cut"},)
        done = generate.Summary(str(tmp_path), 4, 3, 0, 0, 0, 1.0, 0.0, failed, (), 5)
        monkeypatch.setattr(generate, "generate_bank", lambda *_, **__: done)
        first, last = make(photos, tmp_path / "bank", tiny, code=1).stderr.splitlines()
        assert first == "failed: 0: cut"
        assert last.startswith("Error: 1 of 4 units missing")


class TestPlan:
    """`gentransforms generate --plan`."""

    def plan(self, photos: Path, bank: Path, tiny: str, *more: object) -> dict[str, str]:
        result = make(photos, bank, tiny, "--plan", "--seconds", 0.05, *more)
        assert result.stderr == ""
        return dict(line.split(": ", 1) for line in result.stdout.splitlines())

    def test_options_that_would_do_nothing(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        call = ("generate", photos, tmp_path / "bank", "--generator", tiny)
        assert "--plan makes no images to summarise" in refused(*call, "--plan", "--summary", tmp_path / "done.json")
        assert "--seconds: this is an option of --plan" in refused(*call, "--seconds", 3)
        assert not (tmp_path / "bank").exists()

    def test_says_all_and_writes_nothing(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        lines = self.plan(photos, tmp_path / "bank", tiny)
        assert not (tmp_path / "bank").exists()
        assert list(lines) == ["sources", "images", "bytes", "rate", "units", "time"]
        assert lines["sources"] == "7"
        assert lines["images"] == "21 (3 of each source)"
        assert lines["units"] == "4: 0 done, 4 left"
        assert re.fullmatch(r"[\d.]+ images/s", lines["rate"])
        assert re.fullmatch(r"\d+\.\d\d hours for the 21 images left \(.+\)", lines["time"])
        size, each = re.fullmatch(r"([\d.]+) kB \((\d+) per image, measured on \d+\)", lines["bytes"]).groups()  # type: ignore[union-attr]
        assert float(size) == pytest.approx(21 * int(each) / 1000, rel=0.02)
        make(photos, tmp_path / "bank", tiny)
        bank = gt.Bank.open(tmp_path / "bank")
        made = bank.read([key for key in bank.keys for _ in range(3)], [0, 1, 2] * 7, decode=False)
        assert float(size) * 1000 == pytest.approx(sum(map(len, made)), rel=0.1), "the bytes that the bank then has"

    def test_rate_and_hours_agree(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        lines = self.plan(photos, tmp_path / "bank", tiny, "--variants", 3_000_000)
        rate, hours = float(lines["rate"].split()[0]), float(lines["time"].split()[0])
        assert hours == pytest.approx(21_000_000 / rate / 3600, rel=0.01)

    def test_of_a_bank_that_is_begun(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        make(photos, tmp_path / "bank", tiny)
        (tmp_path / "bank" / Unit(6, 7).file).unlink()
        before = sorted((tmp_path / "bank").iterdir())
        lines = self.plan(photos, tmp_path / "bank", tiny)
        assert (lines["units"], lines["images"]) == ("4: 3 done, 1 left", "21 (3 of each source)")
        assert "for the 3 images left" in lines["time"]
        assert sorted((tmp_path / "bank").iterdir()) == before
        lines = self.plan(photos, tmp_path / "bank", tiny, "--shard", "1/2")
        assert (lines["units"], lines["images"]) == ("2: 1 done, 1 left", "9 (3 of each source, this shard)")

    def test_of_a_finished_bank(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        make(photos, tmp_path / "bank", tiny)
        lines = self.plan(photos, tmp_path / "bank", tiny)
        assert lines["units"] == "4: 4 done, 0 left"
        assert lines["time"] == "0.00 hours for the 0 images left (0 s)"

    def test_of_a_shard_without_units(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        message = refused("generate", photos, tmp_path / "bank", "--generator", tiny, "--shard", "8/9", "--plan")
        assert "shard has no units, because there are fewer units than shards" in message


class TestRefused:
    """Wrong calls, and banks of others."""

    def test_other_settings(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        make(photos, tmp_path / "bank", tiny)
        before = files(tmp_path / "bank")
        for options, named in {
            ("--variants", 4): "variants: the bank has 3, this call 4",
            ("--base-seed", 1): "base_seed: the bank has 0, this call 1",
            ("--option", "truncation=0.5"): "generator config truncation: the bank has ",
            ("--batch-size", 8): "batch_size: the bank has 64, this call 8",
        }.items():
            result = make(photos, tmp_path / "bank", tiny, *options, code=2)  # again and again: no use
            assert result.stderr.count("\n") == 1
            assert result.stderr.startswith(f"Error: {tmp_path / 'bank'}: this bank was made with other settings (")
            assert named in result.stderr
        assert files(tmp_path / "bank") == before

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ("--variants 0", ["--variants", "1"]),
            ("--variants many", ["--variants", "integer"]),
            ("--varians 3", ["--varians", "--variants"]),
            ("--batch-size 0", ["--batch-size"]),
            ("--unit-size 0", ["--unit-size"]),
            ("--image-format gif", ["--image-format", "jpeg", "webp", "png"]),
            ("--quality 101", ["--quality"]),
            ("--min-similarity 2", ["--min-similarity"]),
            ("--max-attempts 0", ["--max-attempts"]),
            ("--shard 3/3", ["shard='3/3'", "from 0 to n - 1"]),
            ("--shard 1", ["shard='1'"]),
            ("--columns caption", ["--columns caption", "INPUT=COLUMN"]),
            ("--columns labels=", ["--columns labels="]),
            ("--key name", ["key='name'", "image folder"]),
            ("--split test", ["split='test'"]),
            ("--engine dask", ["--engine", "local", "ray"]),
            ("--threads 0", ["--threads"]),
            ("--workers 0", ["--workers"]),
            ("--actors 0", ["--actors"]),
            ("--engine ray --gpus 1 --cpus 1", ["cpus=1", "omit one"]),
            ("--option truncation", ["--option truncation"]),
            ("--option colour=1", ["colour"]),
            ("--option dtype=blue", ["dtype='blue'", "torch.bfloat16"]),
            ("--device foo", ["--device foo"]),
            ("--generator no-such-generator", ["'no-such-generator'", "gentransforms list"]),
            ("--summary nowhere/summary.json", ["--summary nowhere/summary.json", "a folder that exists"]),
            ("--seconds -1 --plan", ["--seconds"]),
            ("extra", ["extra"]),
        ],
    )
    def test_wrong_call(self, options: str, words: list[str], photos: Path, tiny: str, tmp_path: Path) -> None:
        generator = [] if "--generator" in options else ["--generator", tiny]
        message = refused("generate", photos, tmp_path / "bank", *generator, *options.split())
        assert all(word in message for word in words), message
        assert not (tmp_path / "bank").exists()

    def test_no_arguments(self) -> None:
        assert "generate --help" in refused("generate")

    def test_no_source(self, tiny: str, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "text.txt").write_text("x")
        for name, words in {"nothing": "no such file or folder", "empty": "no images", "text.txt": "expected a folder of images"}.items():
            message = refused("generate", tmp_path / name, tmp_path / "bank", "--generator", tiny)
            assert str(tmp_path / name) in message
            assert words in message
        assert not (tmp_path / "bank").exists()

    def test_a_directory_of_others(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("x")
        assert "holds other files (thesis.tex" in refused("generate", photos, tmp_path, "--generator", tiny)

    def test_a_generator_without_feature_extractor(self, photos: Path, tmp_path: Path) -> None:
        gt.ICGAN(TINY["network"]).save_pretrained(tmp_path / "features")
        message = refused("generate", photos, tmp_path / "bank", "--generator", tmp_path / "features")
        assert "feature extractor" in message


class TestOptions:
    """Each argument of the function is an option of the same name."""

    # What is no option: the two arguments of the command, and what holds options of its own.
    NOT = ("source", "path", "settings")

    def command(self, *names: str) -> Any:
        command: Any = typer.main.get_command(app)
        for name in names:
            command = command.commands[name]
        return command

    def options(self, *names: str) -> set[str]:
        return {option.removeprefix("--") for parameter in self.command(*names).params for option in parameter.opts}

    def test_of_generate_bank(self) -> None:
        functions = (generate.generate_bank, BankConfig, Local, Ray, gt.open_source)
        arguments = {name.replace("_", "-") for function in functions for name in inspect.signature(function).parameters}
        # A function cannot be written on a command line.
        assert arguments - {*self.NOT, "inputs-getter"} <= self.options("generate")

    def test_of_the_other_functions(self) -> None:
        for names, function, aside in (
            (("bank", "verify"), verify_bank, {"path", "on-progress"}),
            (("bank", "export"), export.export_bank, {"bank", "directory"}),
            (("bank", "push"), export.push_bank, {"bank", "repo-id", "options"}),
            (("bank", "import"), authors.import_bank, {"variants-folder", "source", "path"}),
        ):
            arguments = {name.replace("_", "-") for name in inspect.signature(function).parameters} - aside
            assert arguments <= self.options(*names), names

    def test_defaults_are_the_functions(self) -> None:
        defaults = {parameter.name: parameter.default for parameter in self.command("generate").params}
        for function in (generate.generate_bank, BankConfig, Local, Ray):
            for name, parameter in inspect.signature(function).parameters.items():
                if name not in (*self.NOT, "generator"):
                    found = defaults[name]
                    assert getattr(found, "value", found) == parameter.default, name

    def test_settings_are_described_as_in_python(self) -> None:
        described = {parameter.name: parameter.help for parameter in self.command("generate").params}
        text = " ".join((inspect.getdoc(BankConfig) or "").split())
        for field in dataclasses.fields(BankConfig):
            assert f"{field.name}: {described[field.name]}" in text

    SETTINGS: ClassVar = {
        "variants": 4, "base_seed": -3, "batch_size": 5, "unit_size": 6, "image_format": "webp", "quality": 77, "min_similarity": 0.25,
        "max_attempts": 8, "threads": 3,
    }  # fmt: skip
    SOURCE: ClassVar = {
        "key": "name", "image_column": "shot", "columns": {"labels": "kind", "prompts": "caption"}, "split": "test", "config": "small",
        "revision": "v1", "token": "hf_none", "white_level": 1023.0,
    }  # fmt: skip
    RUN: ClassVar = {"shard": "1/2", "retry_failed": True, "extend": True, "progress": False}
    ENGINE: ClassVar = {"actors": 2, "cpus": 1.5, "workers": 2}

    @pytest.mark.parametrize("plan", [False, True])
    def test_every_one_reaches_it(self, photos: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: bool) -> None:
        calls: list[tuple[Any, ...]] = []

        def record(*args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            nothing = Plan(tmp_path, 1, 1, (), ()), Estimate(1, 1.0, 1.0)
            return nothing if plan else generate.Summary(str(tmp_path), 1, 1, 0, 0, 0, 1.0, 0.0, (), (), 5)

        monkeypatch.setattr(generate, "plan_bank" if plan else "generate_bank", record)
        monkeypatch.setattr(sources, "open_source", lambda *args, **kwargs: (args, kwargs))
        assert self.SETTINGS.keys() == {field.name for field in dataclasses.fields(BankConfig)}
        arguments: list[object] = ["--engine", "ray", *(["--plan", "--seconds", 3] if plan else [])]
        for name, value in (self.SETTINGS | self.SOURCE | self.RUN | self.ENGINE).items():
            option = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                arguments.append(option if value else f"--no-{option[2:]}")
            elif isinstance(value, dict):
                arguments += [part for item in value.items() for part in (option, "=".join(item))]
            else:
                arguments += [option, value]
        run("generate", photos, tmp_path / "bank", "--generator", tiny, *arguments)
        (((source, bank, generator, config), kwargs),) = calls
        assert (source, bank, config) == (((str(photos),), self.SOURCE), tmp_path / "bank", BankConfig(**self.SETTINGS))
        assert generator.fingerprint() == gt.load_generator(tiny).fingerprint()
        expected = {**self.RUN, "engine": Ray(**self.ENGINE)}
        if plan:
            expected.pop("progress")
            expected["seconds"] = 3.0
        assert kwargs == expected

    def test_of_one_engine_alone(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        for option in ("actors", "gpus", "cpus"):
            message = refused("generate", photos, tmp_path / "bank", "--generator", tiny, f"--{option}", 1)
            assert f"--{option}" in message
            assert "--engine ray" in message

    @pytest.mark.parametrize("command", ["generate", "bank", "bank info", "bank verify", "bank export", "bank push", "bank import"])
    def test_help(self, command: str) -> None:
        text = run(*command.split(), "--help").stdout
        assert text.startswith("Usage: ")
        if command != "bank":
            assert f"gentransforms {command} " in text.split("Example")[1]

    @pytest.mark.parametrize("command", ["generate", "bank info", "bank verify", "bank export", "bank push", "bank import"])
    def test_help_describes_every_option(self, command: str) -> None:
        for parameter in self.command(*command.split()).params:
            if parameter.name != "help":
                assert parameter.help, parameter.name

    def test_help_of_generate_says_what_happens(self) -> None:
        text = " ".join(run("generate", "--help").stdout.split())
        for words in (
            "run the same command again to resume", "Ctrl-C finishes the current unit", "a second Ctrl-C stops at once",
            "exit code is 1 if a source could not be read", "[default: icgan-cifar10-32]", "--shard $SLURM_ARRAY_TASK_ID",
        ):  # fmt: skip
            assert words in text


class TestUnitSizeOnClusters:
    """What docs/cluster.md and its script say of the unit that has to be finished between SLURM's signal and the end."""

    PAGE = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")
    SCRIPT = (Path(__file__).parents[1] / "examples" / "slurm" / "generate.sbatch").read_text(encoding="utf-8")

    def test_the_rate_below_which_the_default_is_too_large(self) -> None:
        images = BankConfig().unit_size * int(re.search(r"--variants (\d+)", self.SCRIPT)[1])  # type: ignore[index]
        seconds = int(re.search(r"--signal=INT@(\d+)\n", self.SCRIPT)[1])  # type: ignore[index]
        rate = float(re.search(r"slower than ([\d.]+) images per second", " ".join(self.SCRIPT.split()))[1])  # type: ignore[index]
        assert rate == pytest.approx(images / seconds, abs=0.05)

    def test_the_sizes_leave_half_of_the_time(self) -> None:
        rows = re.findall(r"^\| ([\d.]+) \| (\d+)", self.PAGE, re.MULTILINE)
        assert len(rows) == 4
        assert all(int(size) * 10 / float(rate) <= 300 / 2 for rate, size in rows)
        for size, rate in ((15, 1.0), (6, 0.4)):
            assert f"--unit-size {size}" in self.SCRIPT
            assert size * 10 / rate == 150


class TestProgress:
    """Where stderr is no terminal: a plain line every half minute."""

    LINE = re.compile(r"\d+/21 images, [\d.]+ images/s, .+ left")

    def lines(self, photos: Path, bank: Path, tiny: str, monkeypatch: pytest.MonkeyPatch, step: float, *more: object) -> list[str]:
        """What is said if each look at the clock is `step` seconds after the last."""
        now = iter(step * i for i in range(10**6))
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now)))
        return str(make(photos, bank, tiny, *more).stderr).splitlines()

    def test_every_half_minute(self, photos: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert inspect.signature(progress.Progress).parameters["every"].default == 30
        often = self.lines(photos, tmp_path / "a", tiny, monkeypatch, 31.0)
        assert len(often) >= 4
        assert all(self.LINE.fullmatch(line) for line in often), often
        assert self.lines(photos, tmp_path / "b", tiny, monkeypatch, 0.1) == []
        assert self.lines(photos, tmp_path / "c", tiny, monkeypatch, 31.0, "--no-progress") == []

    def test_failures_are_in_it(self, photos: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = Path(shutil.copytree(photos, tmp_path / "photos"))
        (folder / "cats" / "1.png").write_bytes(b"")
        monkeypatch.setattr(progress.Progress.__init__, "__defaults__", (True, 0.0))
        said = make(folder, tmp_path / "bank", tiny, code=1).stderr.splitlines()
        assert any(line.endswith(" left, 1 failed") for line in said), said


def read_terminal(screen: int) -> str:
    """What is drawn on a terminal, until the last process on it has ended."""
    drawn = ""
    with os.fdopen(screen, "rb", buffering=0) as file, contextlib.suppress(OSError):  # EIO is how Linux says it ended
        while text := file.read(1 << 16):
            drawn += text.decode(errors="replace")
    return drawn


@contextlib.contextmanager
def on_a_terminal(folder: Path, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A true run whose stderr is a terminal, and that terminal's other end."""
    screen, terminal = pty.openpty()
    # Ctrl-C is ignored where tests run in the background, and that is inherited.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from gentransforms.cli.main import run; run()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=terminal, text=True)
    os.close(terminal)
    try:
        yield process, screen
    finally:
        process.kill()
        process.wait()


class TestCtrlC:
    """A true process on a terminal: interrupted, and resumed by the same command."""

    @pytest.mark.slow  # two interpreters; in this process, test_bank_survival interrupts and resumes, and the next test has the exit code
    def test_gives_130_and_the_same_command_resumes(self, photos: Path, tmp_path: Path) -> None:
        many = tmp_path / "photos"
        many.mkdir()
        for i in range(30):
            (many / f"{i:03d}.png").symlink_to(photos / keys_of(photos)[i % 7])
        options = ("--variants", 2, "--unit-size", 1, "--batch-size", 1, "--image-format", "png", "--threads", 1)
        command = ("generate", many, "bank", "--generator", BUNDLED, *options)
        with on_a_terminal(tmp_path, *command) as (process, screen):
            deadline = time.monotonic() + 240
            while len(list_units(tmp_path / "bank")) < 2 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            drawn = read_terminal(screen)
            printed, _ = process.communicate()
        assert process.returncode == 130, drawn
        assert printed == ""
        assert "stopping after the current unit; press Ctrl-C again to stop at once" in drawn
        assert "Traceback" not in drawn
        assert drawn.rfind("\x1b[?25h") > drawn.rfind("\x1b[?25l") >= 0, "the cursor is on again"
        made = files(tmp_path / "bank")
        assert 2 <= len(made) < 30
        assert not list((tmp_path / "bank").glob(".*.partial"))

        with on_a_terminal(tmp_path, *command) as (process, screen):
            drawn = read_terminal(screen)
            printed, _ = process.communicate()
        assert process.returncode == 0, drawn
        left = 2 * (30 - len(made))
        assert printed.startswith(f"{left} images generated in ")
        assert "generating" in drawn
        assert f"{left}/{left}" in drawn
        assert re.search(r"[\d.]+ images/s", drawn)
        assert re.search(r"\d:\d\d:\d\d", drawn), "the time left"
        assert drawn.rfind("\x1b[?25h") > drawn.rfind("\x1b[?25l") >= 0
        assert files(tmp_path / "bank").items() >= made.items()
        report = verify_bank(tmp_path / "bank")
        assert report.ok, report
        assert report.rows == 60

    def test_before_anything_is_made(self, photos: Path, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr(pipeline, "_make_unit", interrupted)
        result = RUNNER.invoke(app, ["generate", str(photos), str(tmp_path / "bank"), "--generator", tiny])
        assert (result.exit_code, result.stdout, result.stderr.strip()) == (130, "", "")


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    return make_bank(tmp_path / "bank")


class TestBankInfo:
    """`gentransforms bank info`."""

    def test_a_finished_bank(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        make(photos, tmp_path / "bank", tiny, "--base-seed", 7)
        result = run("bank", "info", tmp_path / "bank")
        lines = dict(line.split(": ", 1) for line in result.stdout.splitlines())
        assert lines.pop("created")
        assert lines == {
            "bank": f"{tmp_path / 'bank'} (complete)",
            "images": "21 of 7 keys, 32 x 32 pixels",
            "sources": "7, with 3 variants of each requested",
            "failed": "0 sources, 0 variants rejected",
            "generator": f"ICGAN {tiny}",
            "fingerprint": gt.load_generator(tiny).fingerprint(),
            "base seed": "7",
            "encoding": "png",
        }

    def test_an_unfinished_one(self, tmp_path: Path) -> None:
        make_bank(tmp_path / "bank", only=[1], failed={KEYS[4]: "x"}, rejected={(KEYS[5], 0): "y"})
        text = run("bank", "info", tmp_path / "bank").stdout
        assert "(unfinished, 2 units missing)" in text
        assert "images: 8 of 3 keys, 4 x 6 pixels" in text
        assert "failed: 1 source, 1 variant rejected" in text

    def test_json(self, bank: Path) -> None:
        (bank / Unit(8, 10).file).unlink()
        told = json.loads(run("bank", "info", bank, "--json").stdout)
        state = told.pop("state")
        manifest = json.loads((bank / "bank.json").read_text())
        assert manifest.pop("checksum")
        assert told == manifest
        assert state == {
            "path": str(bank), "complete": False, "missing_units": 1, "images": 24, "keys": 8, "failed": 0, "rejected": 0,
        }  # fmt: skip

    @pytest.mark.parametrize("command", ["info", "verify", "export", "push"])
    def test_no_bank(self, command: str, tmp_path: Path) -> None:
        more = {"export": [tmp_path / "out"], "push": ["org/name"]}.get(command, [])
        assert f"{tmp_path / 'nothing'}: no such directory" in refused("bank", command, tmp_path / "nothing", *more)
        (tmp_path / "file").write_text("")
        assert f"{tmp_path / 'file'}: expected the directory of a bank" in refused("bank", command, tmp_path / "file", *more)

    def test_a_directory_that_is_none(self, tmp_path: Path) -> None:
        assert "no bank.json in this directory" in refused("bank", "info", tmp_path, code=1)

    def test_revision_of_a_directory(self, bank: Path) -> None:
        assert "revision='main'" in refused("bank", "info", bank, "--revision", "main")


class TestBankVerify:
    """`gentransforms bank verify`."""

    def test_a_sound_bank(self, bank: Path) -> None:
        assert run("bank", "verify", bank).stdout == f"{bank}: 3 units, 30 rows, 30 images decoded\nno problem\n"
        assert "0 images decoded" in run("bank", "verify", bank, "--no-images", "--threads", 1).stdout

    def test_damage_is_repaired_and_made_again(self, photos: Path, tiny: str, tmp_path: Path) -> None:
        make(photos, tmp_path / "bank", tiny)
        before = files(tmp_path / "bank")
        unit = tmp_path / "bank" / Unit(2, 4).file
        data = bytearray(unit.read_bytes())
        data[-200] ^= 1
        unit.write_bytes(data)
        result = run("bank", "verify", tmp_path / "bank", code=1)
        assert f"checksum: {Unit(2, 4).name}: " in result.stdout
        assert result.stderr == (
            f"Error: {tmp_path / 'bank'}: 1 problem: remove damaged units with --repair, then run generate again\n"
        )  # fmt: skip
        result = run("bank", "verify", tmp_path / "bank", "--repair", code=1)
        assert "1 unit removed" in result.stdout
        assert "run generate again, which makes the missing units" in result.stderr
        assert "run generate again, which makes the missing units" in run("bank", "verify", tmp_path / "bank", code=1).stderr
        make(photos, tmp_path / "bank", tiny)
        assert files(tmp_path / "bank") == before
        run("bank", "verify", tmp_path / "bank")

    def test_repair_is_not_promised_for_units_of_other_settings(self, bank: Path) -> None:
        edit_json(bank / Unit(4, 8).sidecar, settings="0" * 32)
        for options in ((), ("--repair",)):
            result = run("bank", "verify", bank, *options, code=1)
            assert f"settings: {Unit(4, 8).name}: " in result.stdout
            assert result.stderr == (
                f"Error: {bank}: 1 problem: move units with other settings away (another run wrote them, or one with other "
                "threads), which --repair does not do, then run generate again\n"
            )  # fmt: skip

    def test_an_export(self, bank: Path, tmp_path: Path) -> None:
        run("bank", "export", bank, tmp_path / "export")
        assert "1 file, 30 rows, 30 images decoded\nno problem" in run("bank", "verify", tmp_path / "export").stdout
        file = tmp_path / "export" / "data" / "train-00000-of-00001.parquet"
        file.write_bytes(file.read_bytes()[:-1])
        assert "download the damaged files again, or export the bank again" in run("bank", "verify", tmp_path / "export", code=1).stderr
        assert "is an export" in refused("bank", "verify", tmp_path / "export", "--repair")

    def test_progress_on_a_terminal(self, bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        drawn = Terminal()
        monkeypatch.setattr(sys, "stderr", drawn)
        monkeypatch.setenv("TERM", "xterm")
        with pytest.raises(SystemExit) as left, contextlib.redirect_stdout(io.StringIO()):
            typer.main.get_command(app).main(["bank", "verify", str(bank)])
        assert left.value.code == 0
        assert "checking" in drawn.getvalue()
        assert "3/3" in drawn.getvalue()


class TestBankExport:
    """`gentransforms bank export`."""

    def test_writes_a_data_set(self, bank: Path, tmp_path: Path) -> None:
        options = ("--license", "mit", "--description", "Of my cat.", "--repo-id", "me/cats", "--shard-bytes", 500)
        result = run("bank", "export", bank, tmp_path / "export", *options)
        assert result.stdout == f"30 images in 3 Parquet files: {tmp_path / 'export'}\n"
        card = (tmp_path / "export" / "README.md").read_text()
        assert all(words in card for words in ("license: mit", "Of my cat.", 'Bank.open("me/cats")'))
        assert verify_bank(tmp_path / "export").ok

    def test_refused(self, bank: Path, tmp_path: Path) -> None:
        assert f"{bank}: already exists" in refused("bank", "export", bank, bank, code=1)
        (bank / Unit(0, 4).file).unlink()
        assert "unfinished: 1 of 3 units is missing" in refused("bank", "export", bank, tmp_path / "export", code=1)
        assert "--shard-bytes" in refused("bank", "export", bank, tmp_path / "export", "--shard-bytes", 0)
        assert "argument 'output'" in refused("bank", "export", bank)


class TestBankPush:
    """`gentransforms bank push`."""

    def test_options(self, bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def push(self: gt.Bank, repo_id: str, **options: Any) -> str:
            calls.append((self.path, repo_id, options))
            return "https://hub/datasets/org/name/commit/1"

        monkeypatch.setattr(gt.Bank, "push_to_hub", push)
        assert run("bank", "push", bank, "org/name").stdout == "https://hub/datasets/org/name/commit/1\n"
        more = ("--license", "mit", "--description", "Of my cat.", "--private", "--revision", "dev", "--commit-message", "First")
        run("bank", "push", bank, "org/name", *more)
        plainly = {"license": None, "description": "", "private": None, "revision": None, "commit_message": None}
        fully = {"license": "mit", "description": "Of my cat.", "private": True, "revision": "dev", "commit_message": "First"}
        assert calls == [(bank, "org/name", plainly), (bank, "org/name", fully)]

    def test_refused(self, bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def push(*_: Any, **__: Any) -> str:
            raise gt.errors.BankError("org/name: the upload failed: 401")

        monkeypatch.setattr(gt.Bank, "push_to_hub", push)
        assert refused("bank", "push", bank, "org/name", code=1) == "Error: org/name: the upload failed: 401\n"


class TestBankImport:
    """`gentransforms bank import`."""

    @pytest.fixture
    def made(self, photos: Path, tmp_path: Path) -> Path:
        for key in keys_of(photos):
            for variant in range(10):
                path = tmp_path / "made" / f"{key[:-4]}_{variant}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(pixels(0, variant, (8, 8)), "JPEG"))
        return tmp_path / "made"

    def test_all_variants(self, made: Path, photos: Path, tmp_path: Path) -> None:
        result = run("bank", "import", made, photos, tmp_path / "bank", "--unit-size", 3, "--workers", 2)
        assert result.stdout == f"70 images of 7 sources imported: {tmp_path / 'bank'}\n"
        assert result.stderr == ""
        run("bank", "verify", tmp_path / "bank")
        text = run("bank", "info", tmp_path / "bank").stdout
        assert all(line in text for line in ("base seed: unknown\n", "encoding: jpeg\n", "generator: imported\n"))

    def test_missing_ones_are_told(self, made: Path, photos: Path, tmp_path: Path) -> None:
        for name in ("cats/1_4.JPEG", "dogs/6_0.JPEG"):
            (made / name).unlink()
        result = run("bank", "import", made, photos, tmp_path / "bank")
        assert result.stdout == f"68 images of 7 sources imported: {tmp_path / 'bank'}\n"
        assert result.stderr == (
            "Warning: no file was found for 2 variants, such as variant 4 of cats/1.png, variant 0 of dogs/6.png: recorded as rejected; "
            "once they exist, the same command adds them\n"
        )
        shutil.copy(made / "cats" / "1_0.JPEG", made / "cats" / "1_4.JPEG")
        result = run("bank", "import", made, photos, tmp_path / "bank")
        assert result.stdout == f"69 images of 7 sources imported: {tmp_path / 'bank'}\n"
        assert "no file was found for 1 variant, such as variant 0 of dogs/6.png" in result.stderr

    def test_refused(self, made: Path, photos: Path, tmp_path: Path) -> None:
        assert "no such folder" in refused("bank", "import", tmp_path / "nothing", photos, tmp_path / "bank")
        assert "no such file or folder" in refused("bank", "import", made, tmp_path / "nothing", tmp_path / "bank")
        assert "is not one of variants=5" in refused("bank", "import", made, photos, tmp_path / "bank", "--variants", 5, code=1)
        shutil.copy(made / "cats" / "1_0.JPEG", made / "cats" / "99_0.JPEG")
        message = refused("bank", "import", made, photos, tmp_path / "bank", code=1)
        assert "1 of 71 files have no source, such as cats/99_0.JPEG" in message
