"""examples/ssl/make_bank.py and `gentransforms generate` continue each other's banks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ssl_example import ssl, tiny, write_photos

import gentransforms as gt
from gentransforms.testing import FakeGenerator


class Labelled(FakeGenerator):
    inputs = ("labels",)


@pytest.fixture(params=["folder", "parquet"])
def photos(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = write_photos(tmp_path / "photos", 8)
    if request.param == "folder":
        return folder
    files = sorted(folder.rglob("*.png"))
    pq.write_table(pa.table({"img": [file.read_bytes() for file in files], "label": [i // 4 for i in range(8)]}), tmp_path / "x.parquet")
    return tmp_path / "x.parquet"


def make(photos: Path, generator: Any, *overrides: str, **options: Any) -> Any:
    settings = tiny("simclr", "generative.source=bank", f"data.train={photos}", f"generative.bank={photos.parent / 'bank'}", *overrides)
    return ssl("make_bank").make_bank(settings, generator, variants=2, progress=False, **options)


def generate(photos: Path, generator: Any, **options: Any) -> Any:
    return gt.generate_bank(photos, photos.parent / "bank", generator, variants=2, progress=False, **options)


class TestMakeBank:
    @pytest.mark.parametrize("kind", [FakeGenerator, Labelled])
    def test_a_complete_bank_of_the_command_line_is_accepted(self, kind: Any, photos: Path) -> None:
        assert generate(photos, kind()).images == 16
        for overrides in ([], ["data.limit=5"], ["data.holdout=2"]):
            assert make(photos, kind(), *overrides).images == 0

    def test_either_continues_the_other(self, photos: Path) -> None:
        assert generate(photos, FakeGenerator(), shard="0/2", unit_size=2).images == 8
        assert make(photos, FakeGenerator(), "data.limit=5", unit_size=2).images == 8
        (photos.parent / "bank").rename(photos.parent / "other")
        assert make(photos, FakeGenerator()).images == 16
        assert generate(photos, FakeGenerator()).images == 0

    def test_a_bank_of_some_rows_is_continued_as_it_was_begun(self, photos: Path) -> None:
        assert make(photos, FakeGenerator(), "data.limit=5").images == 10
        assert make(photos, FakeGenerator(), "data.limit=5").images == 0
        assert len(gt.Bank.open(photos.parent / "bank").keys) == 5

    def test_a_bank_of_all_rows_of_an_earlier_version(self, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as earlier:
            earlier.setattr(ssl("make_bank"), "open_whole", lambda *_: None)
            assert make(photos, FakeGenerator()).images == 16
        assert make(photos, FakeGenerator()).images == 0

    def test_other_settings_are_still_refused(self, photos: Path) -> None:
        generate(photos, FakeGenerator())
        with pytest.raises(gt.GentransformsError, match=r"made with other settings.*generator"):
            make(photos, Labelled())
