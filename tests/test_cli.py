"""The command line as a whole: help, errors, exit codes, and the commands that draw nothing."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from huggingface_hub.errors import GatedRepoError
from released import random_state, write_released
from typer.testing import CliRunner

import gentransforms as gt
from gentransforms.cli import augment, plain
from gentransforms.cli.list import list_generators
from gentransforms.cli.main import app, run
from gentransforms.cli.photos import sample_photos
from gentransforms.generators.icgan.architecture import BigGANConfig
from gentransforms.hub import models as hub

RUNNER = CliRunner()
TINY: dict[str, Any] = {
    "network": {"resolution": 32, "G_ch": 8, "dim_z": 16, "shared_dim_feat": 8, "feature_dim": 16, "G_attn": "0"},
    "feature_extractor": {"kind": "small-resnet", "widths": [8, 16], "blocks": [1, 1]},
}

LONG = Path(*["a folder with a long name " * 3] * 4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small generator."""
    folder = tmp_path_factory.mktemp("generators") / "tiny"
    gt.ICGAN(**TINY).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released folder with random weights."""
    config = BigGANConfig(resolution=32, G_ch=4, dim_z=16, G_attn="0", shared_dim=4, shared_dim_feat=8, feature_dim=16)
    return write_released(tmp_path_factory.mktemp("released") / "res32", config, random_state(config))


def refused(*arguments: str | Path, code: int = 2) -> str:
    """Run a call that fails, and return what it says, which is one line on stderr."""
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@dataclass(frozen=True)
class Processes:
    """Two true runs in `folder`, each with its exit code, stdout and stderr (of the right call: a terminal)."""

    folder: Path
    wrong: tuple[int, str, str]
    right: tuple[int, str, str]


@pytest.fixture(scope="module")
def processes(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Processes:
    folder = tmp_path_factory.mktemp("processes")
    screen, terminal = pty.openpty()

    def start(*arguments: object, stderr: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "gentransforms", *map(str, arguments)]
        # A narrow terminal, and a path many times as long.
        environment = os.environ | {"COLUMNS": "40"}
        return subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=stderr, text=True)

    # Most of their time goes to importing torch, so they run side by side.
    right = start("demo", "--variants", 2, "--generator", tiny, "--output", LONG / "grid.png", stderr=terminal)
    wrong = start("preview", LONG / "photo.jpg", stderr=subprocess.PIPE)
    os.close(terminal)
    drawn = "".join(read_terminal(screen))
    texts = [wrong.communicate(), right.communicate()]
    return Processes(folder, (wrong.returncode, *texts[0]), (right.returncode, texts[1][0], drawn))


def read_terminal(screen: int) -> Iterator[str]:
    """What is drawn on a terminal, until the last process on it has ended."""
    with os.fdopen(screen, "rb", buffering=0) as file, contextlib.suppress(OSError):  # EIO is how Linux says it ended
        while text := file.read(1 << 16):
            yield text.decode(errors="replace")


class TestApp:
    """What belongs to every command."""

    @pytest.mark.parametrize("command", ["", "demo", "preview", "convert", "convert icgan", "list"])
    @pytest.mark.parametrize("option", ["--help", "-h"])
    def test_help(self, command: str, option: str) -> None:
        result = RUNNER.invoke(app, [*command.split(), option])
        assert result.exit_code == 0
        assert result.stdout.startswith("Usage:")
        if command != "convert":
            assert f"gentransforms {command}" in result.stdout.split("Example")[1]

    @pytest.mark.parametrize("command", ["demo", "preview"])
    def test_help_describes_every_option_with_its_default(self, command: str) -> None:
        text = " ".join(RUNNER.invoke(app, [command, "--help"]).stdout.split())
        defaults = {"--generator": "icgan-cifar10-32", "--seed": "0", "--device": "cpu", "--max-batch-size": "64"}
        defaults |= {"--variants": "7", "--p": "1.0", "--output": "demo/augmentations.png", "--limit": "16"} if command == "demo" else {}
        defaults |= {"--variants": "8", "--output": "grid.png"} if command == "preview" else {}
        for option, default in defaults.items():
            assert f"[default: {default}" in text.split(f"{option} <")[1]

    def test_version(self) -> None:
        assert RUNNER.invoke(app, ["--version"]).stdout == f"gentransforms {gt.__version__}\n"

    @pytest.mark.parametrize("group", [[], ["bank"], ["convert"]])
    def test_without_a_command_the_help_is_printed(self, group: list[str]) -> None:
        result = RUNNER.invoke(app, group)
        assert (result.exit_code, result.stderr) == (2, "")
        assert "Commands:" in result.stdout

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ("dmo", ["'dmo'", "'demo'", "--help"]),
            ("demo --varians 3", ["--varians", "--variants", "demo --help"]),
            ("demo --variants many", ["--variants", "integer"]),
            ("demo --variants 0", ["--variants", "1"]),
            ("demo --p 1.5", ["--p", "1"]),
            ("demo --p nan", ["--p", "1"]),
            ("demo --seed -1", ["--seed", "0"]),
            ("demo --limit 0", ["--limit"]),
            ("demo --max-batch-size 0", ["--max-batch-size"]),
            ("demo too much", ["too", "much"]),
            ("demo --device foo", ["--device foo"]),
            ("demo --device meta", ["--device meta"]),
            ("demo --generator", ["--generator"]),
            ("preview", ["IMAGE", "preview --help"]),
            ("convert foo", ["'foo'", "convert --help"]),
            ("convert icgan a", ["DST"]),
            ("list --foo", ["--foo"]),
        ],
    )
    def test_wrong_call(self, arguments: str, words: list[str], tiny: str) -> None:
        generator = ["--generator", tiny] if arguments.startswith("demo") and "--generator" not in arguments else []
        message = refused(*arguments.split()[:1], *generator, *arguments.split()[1:])
        assert all(word in message for word in words), message

    def test_a_long_path_is_never_broken(self, processes: Processes) -> None:
        path = LONG / "photo.jpg"
        assert processes.wrong == (2, "", f"Error: {path}: no such file\n")

    def test_progress_is_drawn_on_a_terminal_and_reports_are_plain(self, processes: Processes) -> None:
        code, report, drawn = processes.right
        assert code == 0
        assert "generating" in drawn
        assert "20/20" in drawn
        lines = report.splitlines()
        assert lines[0].startswith("10 sources x 2 variants: 20 images made in ")
        assert lines[1:] == [f"wrote {LONG / 'grid.png'}"]
        assert (processes.folder / LONG / "grid.png").is_file()

    def test_run_is_the_script(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("HF_HUB_VERBOSITY", "error")
        monkeypatch.setattr(sys, "argv", ["gentransforms", "demo", "--foo"])
        with pytest.raises(SystemExit, match="2"):
            run()
        assert capsys.readouterr().err == "Error: No such option: --foo (see gentransforms demo --help)\n"


class TestErrors:
    """From an exception to one line and an exit code."""

    def group(self, error: BaseException) -> typer.Typer:
        broken = typer.Typer(cls=plain.PlainGroup, rich_markup_mode=None, pretty_exceptions_enable=False)

        @broken.callback(invoke_without_command=True)
        def fail() -> None:
            raise error

        return broken

    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (plain.WrongCall("a: no such file"), 2, "a: no such file"),
            (plain.Failure("a: could not be written"), 1, "a: could not be written"),
            (gt.errors.ConfigError("p=2: expected less"), 2, "p=2: expected less"),
            (gt.errors.MissingInputError("no labels"), 2, "no labels"),
            (gt.errors.WeightsError("2 keys:\n\tmissing a\n\tmissing b"), 1, "2 keys: missing a missing b"),
            (gt.errors.GeneratorError("wrong shape"), 1, "wrong shape"),
            (PermissionError(13, "Permission denied", "/a/b"), 1, "/a/b: Permission denied"),
            (OSError(28, "No space left on device"), 1, "No space left on device"),
            (OSError(36, "File name too long", "aaa"), 2, "aaa: File name too long"),
            (MemoryError(), 1, "out of memory: ask for fewer images or variants"),
            (torch.OutOfMemoryError("CUDA"), 1, "out of memory: ask for fewer images or variants"),
            (KeyError("a"), 1, "unexpected KeyError: 'a'; set GENTRANSFORMS_TRACEBACK=1 to see where"),
            (typer.Abort(), 1, "aborted"),
        ],
    )
    def test_one_line(self, error: Exception, code: int, message: str) -> None:
        result = RUNNER.invoke(self.group(error), [])
        assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"Error: {message}\n")

    def test_traceback_on_request(self) -> None:
        result = RUNNER.invoke(self.group(KeyError("a")), [], env={"GENTRANSFORMS_TRACEBACK": "1"})
        assert isinstance(result.exception, KeyError)

    def test_interrupted(self) -> None:
        result = RUNNER.invoke(self.group(KeyboardInterrupt()), [])
        assert (result.exit_code, result.output) == (130, "")


class Answer(OSError):
    """What the Hub's client raises where the Hub answered with an error."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status)


class Gated(GatedRepoError):
    """What it raises where a repository's conditions have not been accepted."""

    def __init__(self, status: int) -> None:
        OSError.__init__(self, f"status {status}")
        self.response = SimpleNamespace(status_code=status)


class TestGeneratorOption:
    """What --generator refuses, and with which exit code."""

    def test_unknown_name(self) -> None:
        message = refused("demo", "--generator", "icgan-cifar11")
        assert "'icgan-cifar11'" in message
        assert "gentransforms list" in message

    def test_folder_of_something_else(self, tmp_path: Path) -> None:
        assert str(tmp_path) in refused("demo", "--generator", tmp_path)

    def test_damaged_weights_are_a_failure(self, tiny: str, tmp_path: Path) -> None:
        for file in Path(tiny).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes()[: 5000 if file.suffix == ".safetensors" else None])
        message = refused("demo", "--generator", tmp_path, code=1)
        assert f"{tmp_path}: model.safetensors" in message

    def test_generator_that_needs_more_than_photos(self, tmp_path: Path) -> None:
        network = TINY["network"] | {"class_cond": True, "n_classes": 5, "shared_dim": 4}
        gt.ICGAN(network, TINY["feature_extractor"]).save_pretrained(tmp_path / "labels")
        assert "labels" in refused("demo", "--generator", tmp_path / "labels")
        gt.ICGAN(TINY["network"]).save_pretrained(tmp_path / "features")
        assert "feature extractor" in refused("demo", "--generator", tmp_path / "features", "-o", tmp_path / "a.png")

    def test_hub_out_of_reach_is_a_failure(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        assert "some/name" in refused("demo", "--generator", "some/name", code=1)

    @pytest.mark.parametrize(
        ("cause", "code"),
        [
            (None, 2),
            (ValueError("no repository's name"), 2),
            (FileNotFoundError("not in the cache"), 1),
            (ConnectionError("hung up"), 1),
            (Answer(404), 2),
            (Answer(503), 1),
            (Gated(403), 1),
        ],
    )
    def test_whose_fault_it_is(self, cause: Exception | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(source: hub.Source, _filename: str) -> Path:
            raise gt.errors.WeightsError(f"{source}: not fetched") from cause

        monkeypatch.setattr(hub.Source, "file", fail)
        assert "org/name: not fetched" in refused("demo", "--generator", "org/name", code=code)

    @pytest.mark.parametrize(("option", "own"), [("device=cuda", "--device"), ("name_or_path=x", "--generator")])
    def test_options_with_an_option_of_their_own(self, option: str, own: str, tmp_path: Path) -> None:
        photo = str(sample_photos()[0])
        assert f"--option {option}: this has an option of its own: use {own}" in refused("preview", photo, "--option", option)

    def test_default_is_bundled(self) -> None:
        assert augment.DEFAULT_GENERATOR in [row.name for row in gt.list_pretrained()]


class TestList:
    """`gentransforms list`."""

    def test_prints_the_table(self) -> None:
        result = RUNNER.invoke(app, ["list"])
        assert (result.exit_code, result.stdout) == (0, f"{gt.list_pretrained()}\n")

    def test_fits_a_narrow_terminal(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("COLUMNS", "72")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        list_generators()
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= 72
        words = " ".join(printed.split())
        for row in gt.list_pretrained():
            assert row.name in printed
            for part in (row.description, f"Keeps {row.keeps}.", f"Licence: {row.license};", row.options):
                assert " ".join(part.split()) in words


class TestConvertIcgan:
    """`gentransforms convert icgan`."""

    def test_converts_and_says_what_was_written(self, released: Path, tmp_path: Path) -> None:
        card = tmp_path / "new" / "out" / "README.md"
        for again in (False, True):  # the second time over the first
            if again:
                card.write_text(card.read_text().replace("# ", "# My own ", 1))
            result = RUNNER.invoke(app, ["convert", "icgan", str(released), str(tmp_path / "new" / "out")])
            assert result.exit_code == 0, result.output
            assert result.stdout.startswith(f"wrote {tmp_path / 'new' / 'out'}: ICGAN, 32 x 32 pixels, ")
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
        assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["README.md", "config.json", "model.safetensors"]
        assert gt.load_generator(tmp_path / "new" / "out").image_size == (32, 32)
        assert "\n# My own " in card.read_text()
        card.write_text("mine")
        assert "README.md is not the card of a generator" in refused("convert", "icgan", released, card.parent)
        assert card.read_text() == "mine"

    def test_wrong_calls(self, released: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "README.md").write_text("mine")
        out = tmp_path / "out"
        assert f"SRC {tmp_path / 'no'}: no such folder" in refused("convert", "icgan", tmp_path / "no", out)
        assert "expected a folder" in refused("convert", "icgan", tmp_path / "file", out)
        assert "state_dict_best" in refused("convert", "icgan", tmp_path / "full", out)
        assert f"--features {tmp_path / 'no.pth'}: no such file" in refused(
            "convert", "icgan", released, out, "--features", tmp_path / "no.pth"
        )
        assert "this is a file" in refused("convert", "icgan", released, tmp_path / "file")
        assert "other files" in refused("convert", "icgan", released, tmp_path / "full")
        other = {"config.json": '{"model_type": "bert"}', "model.safetensors": "mine"}  # of another library
        (tmp_path / "bert").mkdir()
        for name, content in other.items():
            (tmp_path / "bert" / name).write_text(content)
        assert "other files" in refused("convert", "icgan", released, tmp_path / "bert")
        assert {path.name: path.read_text() for path in (tmp_path / "bert").iterdir()} == other
        assert (tmp_path / "full" / "README.md").read_text() == "mine"
        assert not out.exists()

    def test_damaged_weights_leave_nothing(self, released: Path, tmp_path: Path) -> None:
        for file in released.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes()[: 3000 if file.name.startswith("G_ema") else None])
        message = refused("convert", "icgan", tmp_path, tmp_path / "new" / "out", code=1)
        assert str(tmp_path / "G_ema_best0.pth") in message
        assert list((tmp_path / "new").iterdir()) == []

    def test_unwritable_destination(self, released: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        message = refused("convert", "icgan", released, tmp_path / "file" / "out", code=1)
        assert str(tmp_path / "file" / "out") in message

    def test_features_that_are_none(self, released: Path, tmp_path: Path) -> None:
        (tmp_path / "swav.pth").write_bytes(b"not weights")
        message = refused("convert", "icgan", released, tmp_path / "out", "--features", tmp_path / "swav.pth", code=1)
        assert str(tmp_path / "swav.pth") in message
        assert not (tmp_path / "out").exists()
