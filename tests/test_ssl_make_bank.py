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

    @pytest.mark.parametrize("limit", [[], ["data.limit=5"]])
    @pytest.mark.parametrize(
        ("columns", "options"),
        [
            ({"label": ["cat", "dog"] * 4}, ["data.label_column=label"]),
            ({"label": [0.0, 1.0] * 4}, ["data.label_column=label"]),
            ({"image": None}, []),
        ],
    )
    def test_files_that_the_command_line_needs_options_for(
        self, columns: dict[str, Any], options: list[str], limit: list[str], tmp_path: Path
    ) -> None:
        images = [file.read_bytes() for file in sorted(write_photos(tmp_path / "photos", 8).rglob("*.png"))]
        table = {"img": images} | {name: values or images for name, values in columns.items()}
        pq.write_table(pa.table(table), tmp_path / "x.parquet")
        made = 10 if limit else 16
        assert make(tmp_path / "x.parquet", FakeGenerator(), *options, *limit).images == made
        assert make(tmp_path / "x.parquet", FakeGenerator(), *options, *limit).images == 0

    def test_labels_that_only_the_recipe_recognises(self, tmp_path: Path) -> None:
        """CIFAR-100 of the Hub has its labels in `fine_label`."""
        images = [file.read_bytes() for file in sorted(write_photos(tmp_path / "photos", 8).rglob("*.png"))]
        pq.write_table(pa.table({"img": images, "fine_label": [i // 4 for i in range(8)]}), tmp_path / "x.parquet")
        assert make(tmp_path / "x.parquet", Labelled()).images == 16
        assert make(tmp_path / "x.parquet", Labelled()).images == 0
