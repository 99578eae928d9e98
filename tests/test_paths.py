"""Every path that a user gives: ``~`` is expanded, and an address never becomes a local folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
import torch
from small_banks import make_bank
from small_generators import tiny_icgan
from typer.testing import CliRunner

import gentransforms as gt
from gentransforms.audit.result import Audit
from gentransforms.bank.importing import import_bank
from gentransforms.bank.selection import Selection
from gentransforms.bank.share.export import export_bank
from gentransforms.bank.verify.checker import verify_bank
from gentransforms.cli.main import app
from gentransforms.errors import ConfigError
from gentransforms.generators.icgan.convert import convert_icgan
from gentransforms.generators.icgan.released import load_resnet50_features
from gentransforms.paths import local_path
from gentransforms.sources.folder import ImageFolderSource
from gentransforms.sources.parquet import ParquetSource
from gentransforms.testing import FakeGenerator

ADDRESSES = ["s3://bucket/bank", "hf://datasets/org/bank", "file:///data/bank", "https://example.org/bank", "gs://b", "HDFS://b/c"]


class TestLocalPath:
    def test_the_home_directory(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert local_path("~/bank") == local_path(Path("~/bank")) == tmp_path / "bank"
        assert local_path("~") == tmp_path
        assert local_path("a/~/b") == Path("a/~/b")

    def test_a_user_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match=r"bank='~nobody-at-all/x': this machine has no such user"):
            local_path("~nobody-at-all/x", "bank")
        (tmp_path / "~nobody-at-all").mkdir()
        assert local_path("~nobody-at-all") == Path("~nobody-at-all")

    @pytest.mark.parametrize("path", ["bank", "a/b", "/a/b", ".", "..", "a:b", "12:30/x", "C:\\photos", "C:/photos", "d:x", "a b/ü"])
    def test_what_is_a_path_stays_one(self, path: str) -> None:
        assert local_path(path) == Path(path)

    @pytest.mark.parametrize("address", ADDRESSES)
    @pytest.mark.parametrize("kind", [str, Path])
    def test_addresses_are_refused_with_what_to_do(self, address: str, kind: Callable[[str], Any]) -> None:
        with pytest.raises(ConfigError) as refused:
            local_path(kind(address), "source")
        message = str(refused.value)
        assert message.startswith("source=")
        assert address.split(":")[0] in message
        advice = {"file": "'/data/bank'", "hf": "'org/name'"}.get(address.split(":")[0], "copy it to a disk, or mount it")
        assert advice in message

    def test_a_folder_whose_name_looks_like_a_scheme(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "run:" / "a").mkdir(parents=True)
        assert local_path("run:/a") == Path("run:/a")
        with pytest.raises(ConfigError, match="is an address"):
            local_path("run:/b")

    @pytest.mark.parametrize("wrong", ["", b"bank", 3, None, "a\0b"])
    def test_what_is_no_path(self, wrong: Any) -> None:
        with pytest.raises(ConfigError, match=r"source=.*(expected a path|null character)"):
            local_path(wrong, "source")

    def test_other_kinds_of_paths(self, tmp_path: Path) -> None:
        class Own(os.PathLike[str]):
            def __fspath__(self) -> str:
                return "own"

        assert local_path(Own()) == Path("own")
        assert local_path(PureWindowsPath("C:/a")) == Path("C:\\a")


def _photos() -> list[Any]:
    return [torch.zeros(3, 8, 8)]


# Every function that takes a path, given one; those that write are given the folder to write to.
ENTRIES: dict[str, Callable[[Any], Any]] = {
    "generate_bank": lambda path: gt.generate_bank(_photos(), path, FakeGenerator(), progress=False),
    "generate_bank source": lambda path: gt.generate_bank(path, "bank", FakeGenerator(), progress=False),
    "generate_bank generator": lambda path: gt.generate_bank(_photos(), "bank", path, progress=False),
    "plan_bank": lambda path: gt.plan_bank(_photos(), path, FakeGenerator(), seconds=0.01),
    "open_source": lambda path: gt.open_source(path),
    "ImageFolderSource": ImageFolderSource,
    "ParquetSource": ParquetSource,
    "Bank.open": lambda path: gt.Bank.open(path),
    "verify_bank": verify_bank,
    "export_bank": lambda path: export_bank(gt.Bank.open(make_bank(Path(tempfile.mkdtemp(dir=".")))), path),
    "import_bank": lambda path: import_bank("variants", "photos", path),
    "import_bank variants": lambda path: import_bank(path, "photos", "bank"),
    "Selection.save": lambda path: Selection("0", torch.ones(3, dtype=torch.bool).numpy()).save(path),
    "Selection.load": Selection.load,
    "Audit.save": lambda path: Audit.save(object.__new__(Audit), path),
    "load_generator": gt.load_generator,
    "from_pretrained": gt.ICGAN.from_pretrained,
    "from_pretrained cache_dir": lambda path: gt.ICGAN.from_pretrained("icgan-cifar10-32", cache_dir=path),
    "diffusion from_pretrained": gt.StableDiffusionVariation.from_pretrained,
    "ControlNetVariation.from_pretrained": gt.ControlNetVariation.from_pretrained,
    "GenerativeAugment.from_pretrained": gt.GenerativeAugment.from_pretrained,
    "save_pretrained": lambda path: tiny_icgan().save_pretrained(path),
    "convert_icgan": lambda path: convert_icgan(path, "converted"),
    "load_resnet50_features": load_resnet50_features,
}
COMMANDS = {
    "generate": ("generate", "photos", "PATH"),
    "generate source": ("generate", "PATH", "bank"),
    "generate --generator": ("generate", "photos", "bank", "--generator", "PATH"),
    "generate --summary": ("generate", "photos", "bank", "--summary", "PATH"),
    "preview": ("preview", "PATH"),
    "preview --output": ("preview", "photos/cat.png", "-o", "PATH"),
    "demo --images": ("demo", "--images", "PATH"),
    "demo --output": ("demo", "-o", "PATH"),
    "convert": ("convert", "icgan", "PATH", "converted"),
    "convert destination": ("convert", "icgan", "released", "PATH"),
    "convert --features": ("convert", "icgan", "released", "converted", "--features", "PATH"),
    "bank info": ("bank", "info", "PATH"),
    "bank verify": ("bank", "verify", "PATH"),
    "bank export": ("bank", "export", "PATH", "exported"),
    "bank export output": ("bank", "export", "made", "PATH"),
    "bank push": ("bank", "push", "PATH", "org/name"),
    "bank import": ("bank", "import", "PATH", "photos", "bank"),
    "bank import source": ("bank", "import", "variants", "PATH", "bank"),
    "bank import bank": ("bank", "import", "variants", "photos", "PATH"),
}


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, in which an address would become a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


class TestEntries:
    @pytest.mark.parametrize("name", ENTRIES)
    def test_of_the_library_refuse_addresses(self, name: str, nowhere: Path) -> None:
        for kind in (str, Path):
            with pytest.raises(ConfigError, match=r"s3:/.*is an address, expected a path on this machine"):
                ENTRIES[name](kind("s3://bucket/thing"))
        assert not list(nowhere.glob("s3*"))

    @pytest.mark.parametrize("name", COMMANDS)
    def test_of_the_command_line_refuse_addresses(self, name: str, nowhere: Path) -> None:
        arguments = ["s3://bucket/thing" if part == "PATH" else part for part in COMMANDS[name]]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2, result.output
        assert "s3:/" in result.stderr
        assert "is an address, expected a path on this machine" in result.stderr
        assert result.stderr.count("\n") == 1
        assert not list(nowhere.iterdir())

    @pytest.mark.parametrize("name", ["generate_bank", "save_pretrained", "Selection.save"])
    def test_those_that_write_expand_the_home_directory(self, name: str, nowhere: Path) -> None:
        (nowhere / "home").mkdir()
        ENTRIES[name]("~/thing")
        assert (nowhere / "home" / "thing").exists()
        assert not (nowhere / "~").exists()

    def test_those_that_read_expand_the_home_directory(self, nowhere: Path) -> None:
        (nowhere / "home").mkdir()
        make_bank(nowhere / "home" / "bank")
        tiny_icgan().save_pretrained("~/generator")
        assert len(gt.Bank.open("~/bank")) == 30
        assert verify_bank("~/bank").ok
        assert isinstance(gt.load_generator("~/generator"), gt.ICGAN)
        for arguments in (["bank", "verify", "~/bank"], ["bank", "info", "~/bank"]):
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output

    def test_a_photo_in_the_home_directory(self, nowhere: Path) -> None:
        (nowhere / "home").mkdir()
        photo = (Path(gt.__file__).parent / "samples" / "cat.png").read_bytes()
        (nowhere / "home" / "cat.png").write_bytes(photo)
        result = CliRunner().invoke(app, ["preview", "~/cat.png", "-o", "~/grid.png", "--variants", "1"])
        assert result.exit_code == 0, result.output
        assert (nowhere / "home" / "grid.png").is_file()
