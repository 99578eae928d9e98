"""What both recipes share: settings in layers, the precision that fits the device, and the record of a run."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from icgan_example import FOLDER, example

TINY = ["encoder.widths=[4,8]", "encoder.blocks=[1,1]"]


def common(name: str) -> ModuleType:
    example("shared")  # puts examples/ on the path
    return importlib.import_module(f"common.{name}")


def cpuinfo(folder: Path, line: str) -> Path:
    (folder / "cpuinfo").write_text(f"processor\t: 0\n{line}\nbugs\t\t: spectre_v1\n")
    return folder / "cpuinfo"


class TestPrecision:
    """bfloat16 where the device computes in it, else float32; a run keeps what it began with."""

    @pytest.mark.parametrize(
        ("line", "expected", "reason"),
        [
            ("flags\t\t: fpu avx2 avx512f avx512_bf16", "bfloat16", "avx512_bf16"),
            ("flags\t\t: fpu avx2 amx_bf16 amx_tile", "bfloat16", "amx_bf16"),
            ("Features\t: fp asimd bf16 sve", "bfloat16", "bf16"),
            ("flags\t\t: fpu avx2 fma", "float32", "no bfloat16"),
            ("Features\t: fp asimd", "float32", "no bfloat16"),
        ],
    )
    def test_flags_of_the_processor(self, line: str, expected: str, reason: str, tmp_path: Path) -> None:
        chosen, said = common("precision").choose_precision("cpu", cpuinfo=cpuinfo(tmp_path, line))
        assert chosen == expected
        assert reason in said

    @pytest.mark.parametrize(("seconds", "expected"), [((0.1, 0.4), "float32"), ((0.4, 0.1), "bfloat16")])
    def test_steps_are_timed_where_no_flag_tells(
        self, seconds: tuple[float, float], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        precision = common("precision")
        times = dict(zip((torch.float32, torch.bfloat16), seconds, strict=True))
        monkeypatch.setattr(precision, "time_steps", times.__getitem__)
        chosen, said = precision.choose_precision("cpu", cpuinfo=tmp_path / "none")
        assert chosen == expected
        assert "400.0 ms" in said
        # processes of one run could differ in that
        assert precision.choose_precision("cpu", timed=False, cpuinfo=tmp_path / "none")[0] == "float32"

    def test_timing(self) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            assert 0 < common("precision").time_steps(dtype, steps=2) < 30

    @pytest.mark.parametrize(("supported", "expected"), [(True, "bfloat16"), (False, "float32")])
    def test_gpu(self, supported: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []

        def is_bf16_supported(including_emulation: bool = True) -> bool:
            asked.append(including_emulation)
            return supported

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
        assert common("precision").choose_precision("cuda:0")[0] == expected
        assert asked == [False]  # emulated bfloat16 would be slow there, too

    def test_settled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        precision = common("precision")
        monkeypatch.setattr(precision, "choose_precision", lambda device, timed: ("bfloat16", f"as {device} has it"))
        names = {"bfloat16": "bf16-mixed"}
        assert precision.settle_precision("float32", "bfloat16", "cpu")[0] == "float32"  # asked for by name
        assert precision.settle_precision("auto", "float32", "cpu")[0] == "float32"  # the run began so
        chosen, said = precision.settle_precision("auto", None, "cpu", names)
        assert (chosen, said) == ("bf16-mixed", "precision: bf16-mixed (as cpu has it)")


class TestDevice:
    """The device is asked for before anything is read."""

    @pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, "cpu")])
    def test_auto(self, there: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
        assert common("devices").settle_device("auto", "device=auto") == expected

    def test_of_this_machine(self) -> None:
        settle = common("devices").settle_device
        assert settle("cpu", "device=cpu") == "cpu"
        with pytest.raises(SystemExit, match=r"^--device nowhere: not a device of this machine \(.+\)$"):
            settle("nowhere", "--device nowhere")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
    def test_without_a_gpu(self) -> None:
        with pytest.raises(SystemExit, match=r"^device=cuda: not a device of this machine \(.+\)$"):
            common("devices").settle_device("cuda", "device=cuda")


class TestChanges:
    """Values are shown, hashes are named by what they are of."""

    @pytest.mark.parametrize(
        ("name", "word"),
        [
            ("images_sha256", "images"), ("keys_sha256", "images"), ("test_files_sha256", "test images"),
            ("train_sha256", "training images"), ("test_labels_sha256", "test labels"),
            ("bank_sha256", "bank"), ("variants_sha256", "choice of variants"),
            ("checkpoint_sha256", "checkpoint"), ("bank_generator", "generator of the bank"), ("generator_fingerprint", "generator"),
        ],
    )  # fmt: skip
    def test_hashes(self, name: str, word: str) -> None:
        changes = common("changes").name_changes
        assert changes([name, name], {name: "0" * 64}, {name: "a" * 64}) == [word]
        assert changes([name], {}, {name: "a" * 64}) == [word]

    def test_values(self) -> None:
        changes = common("changes").name_changes
        assert changes(["seed", "a.b"], {"seed": 0, "a.b": "x"}, {"seed": 1}) == ["seed (0, now 1)", "a.b ('x', now None)"]
        assert changes(["train"], {"train": "a"}, {"train": "b"}, then=" and") == ["train ('a' and 'b')"]


class TestRecord:
    """A folder is not continued with other settings."""

    def test_names_what_differs(self, tmp_path: Path) -> None:
        record = common("record")
        assert record.read_record(tmp_path / "run") == {}
        record.refuse_another_run(tmp_path / "run", {"seed": 1}, ())  # nothing there
        record.write_record(tmp_path / "run", {"seed": 1, "a.b": [1, 2], "device": "cpu"})
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["settings.yaml"]
        record.refuse_another_run(tmp_path / "run", {"seed": 1, "a.b": [1, 2], "device": "cuda"}, {"device"})
        with pytest.raises(SystemExit, match=r"other a\.b \(\[1, 2\], now \[1\]\), new \(None, now 3\), seed \(1, now None\)"):
            record.refuse_another_run(tmp_path / "run", {"a.b": [1], "device": "cpu", "new": 3}, {"device"})

    def test_what_earlier_versions_did_not_record(self, tmp_path: Path) -> None:
        """It is compared where both have it."""
        record = common("record")
        record.write_record(tmp_path, {"seed": 1, "images": "a"})
        record.refuse_another_run(tmp_path, {"seed": 1, "labels": "b"}, (), ("images", "labels"))
        with pytest.raises(SystemExit, match=r"other images \('a', now 'b'\): choose"):
            record.refuse_another_run(tmp_path, {"seed": 1, "images": "b"}, (), ("images", "labels"))


class TestGeneratorSettings:
    """The layers of examples/icgan; those of examples/ssl have tests of their own."""

    def load(self, path: Path | None, *overrides: str) -> Any:
        return example("settings").load_settings(path, list(overrides))

    def test_base(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text(f"base: {FOLDER / 'cifar10.yaml'}\nprecision: float32\ngenerator: {{steps: 7}}\n")
        base, own = self.load(FOLDER / "cifar10.yaml"), self.load(tmp_path / "a.yaml")
        assert (own.precision, own.generator.steps) == ("float32", 7)
        assert (own.generator.neighbours, own.encoder) == (base.generator.neighbours, base.encoder)

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("generator.stepps=3", r"'generator.stepps'; known: .*generator.steps"),
            ("encoder.widths=[]", "expected numbers of 1 or more"),
            ("encoder.widths=[4,0]", "expected numbers of 1 or more"),
            ("generator.feature_heads=2", "expected bool"),
            ("precision=float16", "expected auto, float32 or bfloat16"),
        ],
    )
    def test_refused(self, override: str, said: str) -> None:
        with pytest.raises(SystemExit, match=said):
            self.load(None, override)
