"""A bank whose bank.json is damaged or lost: its copy takes its place, and where there is none, the advice is right."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import PIL.Image
import pytest
from bank_process import killed_at
from bank_sources import Photos
from small_banks import edit_json

import gentransforms as gt
from gentransforms.bank.format.manifest import COPY, MANIFEST
from gentransforms.bank.format.unit import list_units
from gentransforms.bank.generate.run import Summary, generate_bank, plan_bank
from gentransforms.bank.importing import import_bank
from gentransforms.bank.share.export import export_bank
from gentransforms.bank.verify.checker import verify_bank
from gentransforms.errors import BankError
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, Any] = {"unit_size": 4, "image_format": "png"}
DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "not JSON": lambda file: file.write_bytes(file.read_bytes()[:-20]),
    "not text": lambda file: file.write_bytes(b"\xff\xfe\xfa" * 50),
    "empty": lambda file: file.write_bytes(b""),
    "lacks settings": lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), "settings": 3})),
    "not the manifest": lambda file: file.write_text("[]"),
}


def fill(path: Path, source: Any = None, variants: int = 2, **options: Any) -> Summary:
    return generate_bank(source or Photos(6), path, FakeGenerator(4), variants=variants, progress=False, **OPTIONS | options)


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """A bank that was extended, so that nothing but its manifest says what its units belong to."""
    fill(tmp_path / "bank")
    fill(tmp_path / "bank", variants=3, extend=True)
    return tmp_path / "bank"


def import_some(tmp_path: Path) -> Path:
    for folder, names in {"photos": ["a.png", "b.png"], "made": ["a_0.png", "b_0.png"]}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            PIL.Image.new("RGB", (4, 4)).save(tmp_path / folder / name)
    import_bank(tmp_path / "made", tmp_path / "photos", tmp_path / "imported", variants=1)
    return tmp_path / "imported"


class TestOpen:
    @pytest.mark.parametrize("damage", DAMAGE)
    def test_from_the_copy_with_a_warning(self, bank: Path, damage: str) -> None:
        whole = gt.Bank.open(bank)
        DAMAGE[damage](bank / MANIFEST)
        with pytest.warns(UserWarning, match=r"bank\.json: .*its copy bank\.json\.bak is used, and the next run of generate, or"):
            opened = gt.Bank.open(bank)
        assert opened.manifest == whole.manifest
        assert len(opened) == 18

    def test_where_a_value_was_edited_to_nonsense(self, bank: Path) -> None:
        manifest = json.loads((bank / MANIFEST).read_text())
        manifest["settings"]["variants"] = "three"
        (bank / MANIFEST).write_text(json.dumps(manifest))
        with pytest.warns(UserWarning, match=r"variants is 'three': .*restore the original: its copy bank\.json\.bak is used"):
            assert len(gt.Bank.open(bank)) == 18
        assert verify_bank(bank, repair=True).ok
        edit_json(bank / MANIFEST, settings=manifest["settings"])
        (bank / COPY).unlink()
        with pytest.raises(BankError, match=r"variants is 'three': .*restore the original"):
            gt.Bank.open(bank)

    def test_an_ordinary_one_without_one(self, bank: Path) -> None:
        """As an earlier version wrote it."""
        (bank / COPY).unlink()
        assert len(gt.Bank.open(bank)) == 18
        assert verify_bank(bank).ok

    def test_a_manifest_of_a_newer_version_is_not_damaged(self, bank: Path) -> None:
        manifest = json.loads((bank / MANIFEST).read_text())
        (bank / MANIFEST).write_text(json.dumps(manifest | {"format_version": 2}))
        with pytest.raises(BankError, match="upgrade gentransforms"):
            gt.Bank.open(bank)

    @pytest.mark.parametrize("copy", ["none", "damaged"])
    @pytest.mark.parametrize("damage", DAMAGE)
    def test_without_a_copy_nothing_is_to_be_deleted(self, bank: Path, damage: str, copy: str) -> None:
        (bank / COPY).unlink() if copy == "none" else (bank / COPY).write_text("{")
        saved = (bank / MANIFEST).read_bytes()
        DAMAGE[damage](bank / MANIFEST)
        for act in (lambda: gt.Bank.open(bank), lambda: fill(bank, variants=3)):
            with pytest.raises(BankError, match=r"bank\.json.*copy of") as caught:
                act()
            assert not re.search("delete|remove", str(caught.value))
        (bank / MANIFEST).write_bytes(saved)
        assert len(gt.Bank.open(bank)) == 18, "once it is put back"

    def test_the_advice_for_a_bank_that_was_not_extended_is_right(self, tmp_path: Path) -> None:
        fill(tmp_path)
        (tmp_path / COPY).unlink()
        (tmp_path / MANIFEST).write_text("{")
        with pytest.raises(BankError, match="move it away and run generate with the settings of this bank again"):
            gt.Bank.open(tmp_path)
        (tmp_path / MANIFEST).rename(tmp_path.parent / "away.json")
        assert fill(tmp_path).images == 0
        assert verify_bank(tmp_path).ok

    def test_the_advice_for_an_import_is_right(self, tmp_path: Path) -> None:
        path = import_some(tmp_path)
        (path / COPY).unlink()
        (path / MANIFEST).unlink()
        with pytest.raises(BankError, match="put a copy of it back, or run bank import with the settings of this bank again"):
            gt.Bank.open(path)
        assert import_bank(tmp_path / "made", tmp_path / "photos", path, variants=1).images == 2
        assert verify_bank(path).ok

    def test_an_export_is_downloaded_or_exported_again(self, bank: Path, tmp_path: Path) -> None:
        export_bank(gt.Bank.open(bank), tmp_path / "export")
        assert not (tmp_path / "export" / COPY).exists()
        (tmp_path / "export" / MANIFEST).write_text("{")
        with pytest.raises(BankError, match=r"not JSON .*: download it again, or export the bank again"):
            gt.Bank.open(tmp_path / "export")


@pytest.mark.filterwarnings("ignore:.*its copy bank.json.bak is used")
class TestRun:
    @pytest.mark.parametrize("damage", DAMAGE)
    def test_puts_the_copy_in_its_place(self, bank: Path, damage: str) -> None:
        before = (bank / MANIFEST).read_bytes()
        DAMAGE[damage](bank / MANIFEST)
        assert fill(bank, variants=3).images == 0
        assert (bank / MANIFEST).read_bytes() == before
        assert verify_bank(bank).ok

    def test_goes_on_with_new_sources_between_the_others(self, tmp_path: Path) -> None:
        """Their order is known from the bank alone."""
        fill(tmp_path, Photos(4, names="b-{}"))
        (tmp_path / MANIFEST).unlink()

        class More(Photos):
            def __init__(self) -> None:
                super().__init__(5)
                self.keys = ["a", *(f"b-{i}" for i in range(4))]

            def read(self, index: int) -> Any:
                return super().read(index - 1 if index else 4)

        assert fill(tmp_path, More(), extend=True).images == 2
        assert verify_bank(tmp_path).ok

    def test_a_plan_writes_nothing(self, bank: Path) -> None:
        (bank / MANIFEST).unlink()
        plan, _ = plan_bank(Photos(6), bank, FakeGenerator(4), variants=3, seconds=0.01, **OPTIONS)
        assert plan.left == ()
        assert not (bank / MANIFEST).exists()

    def test_extends_it(self, bank: Path) -> None:
        (bank / MANIFEST).unlink()
        assert fill(bank, variants=4, extend=True).images == 6
        assert [entry["variants"] for entry in gt.Bank.open(bank).manifest["history"]] == [2, 3]
        assert (bank / COPY).read_bytes() == (bank / MANIFEST).read_bytes()

    def test_of_an_import(self, tmp_path: Path) -> None:
        path = import_some(tmp_path)
        (path / MANIFEST).unlink()
        assert import_bank(tmp_path / "made", tmp_path / "photos", path, variants=1).images == 2
        assert verify_bank(path).ok

    @pytest.mark.parametrize("lacks", ["missing", "not JSON"])
    def test_gives_an_old_bank_a_copy(self, bank: Path, lacks: str) -> None:
        DAMAGE[lacks](bank / COPY)
        fill(bank, variants=3)
        assert (bank / COPY).read_bytes() == (bank / MANIFEST).read_bytes()

    def test_in_a_bank_that_may_only_be_read(self, bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def forbidden(*_: Any) -> Any:
            raise PermissionError(13, "Permission denied")

        from gentransforms.bank.format import locking

        (bank / COPY).unlink()
        monkeypatch.setattr(locking.Partial, "__enter__", forbidden)
        assert fill(bank, variants=3).complete

    def test_the_copy_follows_what_is_edited_in_info(self, bank: Path) -> None:
        manifest = json.loads((bank / MANIFEST).read_text())
        del manifest["info"]["samples"]
        edit_json(bank / MANIFEST, info=manifest["info"])
        assert [problem.kind for problem in verify_bank(bank).problems] == ["copy"]
        fill(bank, variants=3)
        assert json.loads((bank / COPY).read_text())["info"] == manifest["info"]
        assert verify_bank(bank).ok

    def test_a_copy_without_units_is_nothing(self, tmp_path: Path) -> None:
        """Somebody removed all files that they knew, for a bank with other settings."""
        fill(tmp_path)
        for file in (*tmp_path.glob("*.arrow"), *tmp_path.glob("*.json")):
            file.unlink()
        assert fill(tmp_path, variants=1).complete
        assert verify_bank(tmp_path).ok

    def test_never_replaces_the_copy_of_another_bank(self, bank: Path) -> None:
        """The manifest was edited to other settings: the copy is the only one that fits the units."""
        right = (bank / COPY).read_bytes()
        manifest = json.loads((bank / MANIFEST).read_text())
        manifest["settings"]["variants"] = 4
        edit_json(bank / MANIFEST, settings=manifest["settings"])
        with pytest.raises(
            BankError, match=r"was made with other settings than this bank's.* if bank\.json was changed, put the right one"
        ):
            fill(bank, variants=4)
        report = verify_bank(bank, repair=True)
        assert next(problem.kind for problem in report.problems) == "manifest"
        assert "put bank.json.bak in the place of both" in str(report)
        assert (bank / COPY).read_bytes() == right
        shutil.copy(bank / COPY, bank / MANIFEST)
        assert verify_bank(bank).ok

    @pytest.mark.parametrize("step", range(6))
    def test_killed_while_it_is_extended(self, tmp_path: Path, step: int) -> None:
        fill(tmp_path)
        with killed_at(step):
            fill(tmp_path, variants=3, extend=True)
        (tmp_path / MANIFEST).unlink()
        assert fill(tmp_path, variants=3, extend=True).rows == 18
        assert verify_bank(tmp_path).ok
        assert len(gt.Bank.open(tmp_path)) == 18


class TestFlippedBits:
    """A changed character that leaves bank.json readable: its checksum says that it is damaged, whatever the character stood for."""

    FLIPS: ClassVar[dict[str, tuple[bytes, bytes]]] = {
        "a mark": (b'"mark": "', b'"mark": "/'), "no mark": (b'"mark": "', b'"mark": "!'), "a size": (b'"created": "', b'"created": "1'),
        "a setting": (b'"base_seed": 0', b'"base_seed": 1'), "a name": (b'"samples"', b'"sampler"'),
        "the checksum": (b'"checksum": "', b'"checksum": "0'),
    }  # fmt: skip

    def flip(self, file: Path, what: str) -> None:
        data = file.read_bytes()
        assert self.FLIPS[what][0] in data
        file.write_bytes(data.replace(*self.FLIPS[what], 1))

    @pytest.mark.parametrize("what", FLIPS)
    @pytest.mark.filterwarnings("ignore:.*its copy bank.json.bak is used")
    def test_the_copy_takes_its_place(self, bank: Path, what: str) -> None:
        whole = (bank / MANIFEST).read_bytes()
        self.flip(bank / MANIFEST, what)
        report = verify_bank(bank)
        assert [problem.kind for problem in report.problems] == ["copy"]
        assert "bank.json has changed since it was written; its copy bank.json.bak is intact" in str(report)
        assert len(gt.Bank.open(bank)) == 18
        assert fill(bank, variants=3).images == 0, "the source is the one that the bank was started with"
        assert (bank / MANIFEST).read_bytes() == whole
        assert verify_bank(bank).ok

    @pytest.mark.parametrize("what", FLIPS)
    def test_in_the_copy(self, bank: Path, what: str) -> None:
        self.flip(bank / COPY, what)
        assert [problem.kind for problem in verify_bank(bank).problems] == ["copy"]
        assert verify_bank(bank, repair=True).ok
        assert (bank / MANIFEST).read_bytes() == (bank / COPY).read_bytes()

    @pytest.mark.parametrize("copy", ["none", "damaged"])
    @pytest.mark.filterwarnings("ignore:.*has changed since it was written")
    def test_without_a_copy_it_is_told_and_nothing_blesses_it(self, bank: Path, copy: str) -> None:
        whole = (bank / MANIFEST).read_bytes()
        (bank / COPY).unlink() if copy == "none" else (bank / COPY).write_text("{")
        self.flip(bank / MANIFEST, "a size")
        flipped = (bank / MANIFEST).read_bytes()
        with pytest.warns(UserWarning, match=r"bank\.json: has changed since it was written, and there is no intact copy: put one back"):
            assert len(gt.Bank.open(bank)) == 18
        assert fill(bank, variants=3).images == 0
        report = verify_bank(bank, repair=True)
        assert [problem.kind for problem in report.problems] == ["manifest"]
        assert (bank / MANIFEST).read_bytes() == flipped
        edit_json(bank / MANIFEST)
        assert verify_bank(bank, repair=True).ok, "as the problem says, if it was edited"
        (bank / MANIFEST).write_bytes(whole)
        assert verify_bank(bank, repair=True).ok

    def test_a_manifest_of_an_earlier_version_has_none(self, bank: Path) -> None:
        for name in (MANIFEST, COPY):
            edit_json(bank / name)
        assert verify_bank(bank).ok
        assert fill(bank, variants=3).images == 0


class TestVerify:
    @pytest.mark.parametrize("name", [MANIFEST, COPY])
    @pytest.mark.parametrize("damage", list(DAMAGE))
    def test_finds_and_repairs_it(self, bank: Path, damage: str, name: str) -> None:
        whole = (bank / MANIFEST).read_bytes()
        DAMAGE[damage](bank / name)
        if (name, damage) == (COPY, "missing"):  # as in a bank of an earlier version
            assert verify_bank(bank).ok
            return
        report = verify_bank(bank)
        assert [problem.kind for problem in report.problems] == ["copy"], report
        assert report.advice == "restore bank.json or its copy with --repair"
        report = verify_bank(bank, repair=True)
        assert report.ok
        assert "written anew" in str(report)
        assert (bank / MANIFEST).read_bytes() == (bank / COPY).read_bytes() == whole
        assert len(list_units(bank)) == 2

    def test_units_are_checked_all_the_same(self, bank: Path) -> None:
        (bank / MANIFEST).unlink()
        file = bank / list_units(bank)[0].file
        file.write_bytes(file.read_bytes()[:-100])
        report = verify_bank(bank, repair=True)
        assert [problem.kind for problem in report.problems] == ["size"]
        assert len(report.removed) == len(list_units(bank)) == 1
        fill(bank, variants=3)
        assert verify_bank(bank).ok


def test_a_bank_that_is_copied_file_by_file_has_its_copy(bank: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for file in bank.glob("*"):  # as `cp bank/*` does
        shutil.copy(file, tmp_path / "other")
    (tmp_path / "other" / MANIFEST).unlink()
    with pytest.warns(UserWarning, match="its copy"):
        assert len(gt.Bank.open(tmp_path / "other")) == 18
