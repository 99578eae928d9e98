"""Audits from end to end: a bank, a generator, the cache, gates, the files, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import io
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from audited import PROBED, N, NoisyForAudits, Pool, V, photos
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2.functional import to_pil_image

import gentransforms as gt
from gentransforms.audit.evidence import Measure
from gentransforms.audit.measures.needs import Given
from gentransforms.audit.result import NAMES
from gentransforms.audit.scores import COLUMNS
from gentransforms.audit.verdicts import give_verdicts
from gentransforms.errors import BankError, ConfigError, MissingKeyError


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audit") / "bank"
    gt.generate_bank(photos(), path, NoisyForAudits(), variants=V, progress=False, image_format="png")
    return path


@pytest.fixture(scope="module")
def audit(bank: Path) -> gt.Audit:
    return gt.audit_bank(bank, photos(), encoder=Pool(), labels="labels", holdout=photos(seed=5), progress=False)


class TestAuditBank:
    def test_measures_everything(self, audit: gt.Audit) -> None:
        assert audit.omitted == {}
        assert set(audit.measures) == set(NAMES)
        assert {m.part for m in audit.measures.values()} == {"integrity", "faithfulness", "diversity", "likeness", "copies", "drift"}
        assert all(isinstance(measure, Measure) for measure in audit.measures.values())
        assert audit.measures["rows"].value == N * V
        assert audit.measures["missing"].value == 0
        assert audit.measures["label_agreement"].value == 1
        assert audit.measures["source_retrieval"].value > 0.8

    def test_scores_have_a_row_for_each_variant(self, audit: gt.Audit) -> None:
        assert audit.scores.column_names == list(COLUMNS)
        pairs = list(zip(audit.scores["key"].to_pylist(), audit.scores["variant"].to_pylist(), strict=True))
        assert pairs == [(key, variant) for key in range(N) for variant in range(V)]
        assert set(audit.scores["label"].to_pylist()) == {"0", "1"}
        of_source: dict[object, list[tuple[float, int]]] = {}
        for key, similarity, place in zip(*(audit.scores[name].to_pylist() for name in ("key", "similarity", "place")), strict=True):
            of_source.setdefault(key, []).append((-similarity, place))
        assert all([place for _, place in sorted(own)] == list(range(1, len(own) + 1)) for own in of_source.values())
        assert audit.measures["source_similarity"].value == pytest.approx(sum(audit.scores["similarity"].to_pylist()) / (N * V), rel=1e-5)

    def test_classes_and_confusion(self, audit: gt.Audit) -> None:
        assert [(row["name"], row["sources"], row["agreement"]) for row in audit.classes] == [("0", N // 2, 1.0), ("1", N // 2, 1.0)]
        assert audit.confusion == [[N // 2 * V, 0], [0, N // 2 * V]]

    def test_says_what_it_rests_on(self, audit: gt.Audit, bank: Path) -> None:
        about = audit.about
        assert (about["encoder"], about["own_encoder"], about["sources"], about["variants"], about["holdout"]) == (
            "Pool",
            False,
            N,
            N * V,
            N,
        )
        assert about["bank"] == str(bank)
        assert about["judge_accuracy"] == 1

    def test_the_same_call_gives_the_same_figures(self, audit: gt.Audit, bank: Path) -> None:
        again = gt.audit_bank(bank, photos(), encoder=Pool(), labels=[i % 2 for i in range(N)], holdout=photos(seed=5), progress=False)
        assert again.to_dict()["measures"] == audit.to_dict()["measures"]

    def test_a_limit_takes_sources_evenly(self, bank: Path) -> None:
        some = gt.audit_bank(bank, photos(), encoder=Pool(), limit=10, progress=False)
        assert sorted(set(some.scores["key"].to_pylist())) == list(range(0, N, 4))
        assert "no labels" in some.omitted["label_agreement"]
        assert "no holdout" in some.omitted["c_t"]

    def test_a_classifier_of_the_user_judges(self, bank: Path) -> None:
        def redness(images: Tensor) -> Tensor:
            return torch.stack([images[:, 0].mean((1, 2)), images[:, 2].mean((1, 2))], dim=1)

        judged = gt.audit_bank(bank, photos(), encoder=Pool(), labels="labels", classifier=redness, progress=False)
        assert judged.about["judge"] == "redness"
        assert judged.measures["label_agreement"].value == 1
        turned = gt.audit_bank(bank, photos(), encoder=Pool(), labels="labels", classifier=lambda x: -redness(x), progress=False)
        assert turned.measures["label_agreement"].value == 0
        assert turned.measures["label_agreement"].reference == 0

    def test_attributes(self, bank: Path) -> None:
        found = gt.audit_bank(
            bank, photos(), encoder=Pool(), attributes={"colour": ["red" if i % 2 == 0 else "blue" for i in range(N)]}, progress=False
        )
        assert [row["name"] for row in found.attributes["colour"]] == ["blue", "red"]
        assert found.measures["drift/colour"].value == pytest.approx(0, abs=0.02)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_what_surrounds_the_call_changes_nothing(self, bank: Path, dtype: torch.dtype) -> None:
        source = photos()
        plain = gt.audit_bank(bank, source, encoder=Pool(), labels="labels", progress=False)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
                inside = gt.audit_bank(bank, source, encoder=Pool(), labels="labels", progress=False)
        finally:
            torch.set_default_dtype(before)
        assert inside.to_dict()["measures"] == plain.to_dict()["measures"]

    def test_intervals_stay_where_figures_can_be(self, audit: gt.Audit) -> None:
        for name, measure in audit.measures.items():
            if measure.interval is not None:
                assert measure.interval[0] <= measure.value <= measure.interval[1], name
            if name in ("precision", "recall", "coverage", "near_copies", "label_agreement", "drift/classes", "source_retrieval"):
                assert measure.interval is not None
                assert 0 <= measure.interval[0] <= measure.interval[1] <= 1, name

    def test_another_source_is_refused(self, bank: Path) -> None:
        with pytest.raises(BankError, match="source that the bank was made of"):
            gt.audit_bank(bank, photos(N - 1), encoder=Pool(), progress=False)
        with pytest.raises(BankError, match="source that the bank was made of"):
            gt.audit_bank(bank, photos(N + 1), encoder=Pool(), progress=False)

    @pytest.mark.parametrize("hidden", ["red/.1.png", "red/.ipynb_checkpoints/1-checkpoint.png", "__MACOSX/1.png"])
    def test_hidden_images_that_image_folder_takes_are_named(self, hidden: str, tmp_path: Path) -> None:
        for i, (image, _) in enumerate(photos(4)):
            path = tmp_path / "photos" / ("red", "blue")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image(image).save(path)
        (tmp_path / "photos" / hidden).parent.mkdir(exist_ok=True)
        to_pil_image(photos()[9][0]).save(tmp_path / "photos" / hidden)
        gt.generate_bank(tmp_path / "photos", tmp_path / "bank", NoisyForAudits(), variants=1, progress=False)
        both = ImageFolder(str(tmp_path / "photos"))
        assert len(both) == 5
        with pytest.raises(
            BankError, match=f"made of 4 sources, and this source has 5, such as '{re.escape(hidden)}': hidden files .* folder"
        ):
            gt.audit_bank(tmp_path / "bank", both, encoder=Pool(), progress=False)
        gt.audit_bank(tmp_path / "bank", tmp_path / "photos", encoder=Pool(), progress=False)  # as advised
        keyed = gt.with_keys(both, transform=gt.BankAugment(tmp_path / "bank", p=1.0))
        with pytest.raises(
            MissingKeyError, match=f"'{re.escape(hidden)}' is not in this bank: hidden files.*delete .*ImageFolder.*missing="
        ):
            [keyed[i] for i in range(5)]
        gt.generate_bank(both, tmp_path / "whole", NoisyForAudits(), variants=1, progress=False)  # as advised
        keyed = gt.with_keys(both, transform=gt.BankAugment(tmp_path / "whole", p=1.0))
        assert {keyed[i][2] for i in range(5)} == set(gt.Bank.open(tmp_path / "whole").keys)
        gt.audit_bank(tmp_path / "whole", both, encoder=Pool(), progress=False)

    def test_a_failed_source_is_counted_and_left_out(self, tmp_path: Path) -> None:
        class Broken:
            def __len__(self) -> int:
                return N

            def __getitem__(self, i: int) -> Any:
                if i == 3:
                    raise ValueError("cannot be read")
                return photos()[i]

        gt.generate_bank(Broken(), tmp_path / "bank", NoisyForAudits(), variants=V, progress=False)
        found = gt.audit_bank(tmp_path / "bank", Broken(), encoder=Pool(), progress=False)
        assert found.measures["failed"].value == 1
        assert found.about["sources"] == N - 1

    def test_failed_sources_that_were_deleted_are_not_missed(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        for i, (image, _) in enumerate(photos(12)):
            to_pil_image(image).save(tmp_path / "photos" / f"{i:02d}.png")
        broken = [tmp_path / "photos" / name for name in ("03b.png", "07b.png")]
        for path in broken:
            path.write_bytes(b"no image")
        gt.generate_bank(tmp_path / "photos", tmp_path / "bank", NoisyForAudits(), variants=2, progress=False)
        for path in broken:  # one, then both
            path.unlink()
            labels = [i % 2 for i, _ in enumerate((tmp_path / "photos").iterdir())]
            found = gt.audit_bank(tmp_path / "bank", tmp_path / "photos", encoder=Pool(), labels=labels, progress=False)
            assert (found.measures["failed"].value, found.measures["missing"].value, found.about["sources"]) == (2, 0, 12)
        for name, match in (
            ("99.png", "14 sources, 2 of which .* are gone, and this source has 13, such as '99.png': give the source"),
            ("98.png", "has 14, such as '98.png', '99.png'"),
        ):
            to_pil_image(photos()[0][0]).save(tmp_path / "photos" / name)
            with pytest.raises(BankError, match=match):  # as many as the bank had, but other ones
                gt.audit_bank(tmp_path / "bank", tmp_path / "photos", encoder=Pool(), progress=False)


class BrightForAudits(NoisyForAudits):
    """The source, a little brighter."""

    def sample(self, condition: Any, seeds: Tensor) -> Tensor:
        return (condition["images"] + self.noise).clamp(0, 1)


class TestDrift:
    """Brightened images: what moves, and what stays."""

    def test_of_brightened_images(self) -> None:
        images = torch.stack([image for image, _ in photos()]).float() / 255
        red, green, blue = images.unbind(1)
        spread = float((0.299 * red + 0.587 * green + 0.114 * blue).mean((1, 2)).std())
        options: dict[str, Any] = {"variants": 2, "encoder": Pool(), "labels": [i % 2 for i in range(N)], "progress": False}
        found = gt.audit_generator(BrightForAudits(noise=0.04), images, **options).measures
        assert found["drift/brightness"].value == pytest.approx(0.04 / spread, rel=1e-3)
        assert found["drift/saturation"].value < -0.1  # of the same differences of brighter channels
        for name in ("contrast", "sharpness", "edges"):
            assert found[f"drift/{name}"].value == pytest.approx(0, abs=1e-3), name
        assert found["drift/classes"].value == 0
        assert found["duplicate_variants"].value == 1


class TestAuditGenerator:
    def test_agrees_with_the_bank_of_the_same_seeds(self, audit: gt.Audit) -> None:
        found = gt.audit_generator(
            NoisyForAudits(), photos(), variants=V, encoder=Pool(), labels="labels", holdout=photos(seed=5), progress=False
        )
        for name, measure in found.measures.items():
            # The bank's images are rounded to bytes.
            assert measure.value == pytest.approx(audit.measures[name].value, abs=0.05, rel=0.05), name

    def test_takes_a_tensor(self) -> None:
        images = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        assert len(gt.audit_generator(NoisyForAudits(), images, variants=2, encoder="generator", progress=False).scores) == 40

    def test_its_own_encoder_flatters_it_and_the_report_says_so(self) -> None:
        images = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        found = gt.audit_generator(NoisyForAudits(), images, variants=2, encoder="auto", progress=False)
        assert found.about["own_encoder"]
        other = gt.audit_generator(NoisyForAudits(), images, variants=2, encoder=Pool(), progress=False)
        assert "flatters" in html(found)
        assert "flatters" not in html(other)
        first, second = (str(each).splitlines()[0] for each in (found, other))
        assert first == f"compared by the encoder {found.about['encoder']}, the generator's own, which flatters it"
        assert second == f"compared by the encoder {other.about['encoder']}"


class TestCache:
    def test_nothing_is_encoded_twice(self, bank: Path, tmp_path: Path, audit: gt.Audit) -> None:
        options: dict[str, Any] = {"encoder": Pool(), "labels": "labels", "holdout": photos(seed=5), "progress": False, "cache": tmp_path}
        first = gt.audit_bank(bank, photos(), **options)
        before = Pool.calls
        second = gt.audit_bank(bank, photos(), **options)
        assert Pool.calls == before + 2 * PROBED
        assert first.to_dict() == second.to_dict()
        assert first.to_dict()["measures"] == audit.to_dict()["measures"]

    def test_a_killed_audit_goes_on(self, bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from gentransforms.audit import collect

        monkeypatch.setattr(collect, "_CHUNK", 10)
        options: dict[str, Any] = {"encoder": Pool(), "progress": False, "cache": tmp_path}
        gt.audit_bank(bank, photos(), **options)
        for path in sorted(tmp_path.rglob("pairs-*"))[1:]:  # as if it had been killed after the first chunk
            path.unlink()
        (tmp_path / "x").write_text("")
        before = Pool.calls
        gt.audit_bank(bank, photos(), **options)
        assert Pool.calls - before == (N - 10) * (1 + V) + PROBED

    def test_a_damaged_chunk_is_made_again(self, bank: Path, tmp_path: Path) -> None:
        options: dict[str, Any] = {"encoder": Pool(), "progress": False, "cache": tmp_path}
        whole = gt.audit_bank(bank, photos(), **options)
        path = next(tmp_path.rglob("pairs-*"))
        path.write_bytes(path.read_bytes()[:100])
        assert gt.audit_bank(bank, photos(), **options).to_dict() == whole.to_dict()

    def test_another_encoder_has_features_of_its_own(self, bank: Path, tmp_path: Path) -> None:
        linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        gt.audit_bank(bank, photos(), encoder=linear, progress=False, cache=tmp_path)
        other = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        gt.audit_bank(bank, photos(), encoder=other, progress=False, cache=tmp_path)
        assert len(list(tmp_path.iterdir())) == 2


class TestGates:
    def test_those_that_hold_are_returned(self, audit: gt.Audit) -> None:
        assert audit.failed(["near_copies > 0.5", "source_retrieval < 2", "drift/brightness > 9"]) == ["source_retrieval < 2"]

    def test_those_that_no_audit_can_answer_are_refused_before_the_work(self) -> None:
        gt.Audit.check_gates(["near_copies > 0.5", "drift/age > 0.1"])
        given = Given(sources=16, variants=2, labels=True, holdout=16, attributes=["age"])
        gt.Audit.check_gates([*(f"{name} > 0.5" for name in NAMES), "drift/age > 0.1"], given)
        for gate, changed, match in (
            ("drift/agee > 0", {}, "no measure 'drift/agee': expected one of .*drift/age$"),
            ("label_kappa < 0", {"labels": False}, "label_kappa cannot be measured: no labels"),
            ("c_t < 0", {"holdout": None}, "no holdout"),
            ("c_t < 0", {"holdout": 15}, "15 held-out images for 16 sources: .*limit=15"),
            ("vendi < 2", {"variants": 1}, "one variant"),
            ("recall < 1", {"sources": 15}, "from 16 on"),
        ):
            with pytest.raises(ConfigError, match=match):
                gt.Audit.check_gates([gate], dataclasses.replace(given, **changed))
        for wrong in ("mising > 0", "near_copies >", "near_copies"):
            with pytest.raises(ConfigError):
                gt.Audit.check_gates([wrong])

    def test_unknown_and_omitted_measures_are_refused(self, audit: gt.Audit, bank: Path) -> None:
        with pytest.raises(ConfigError, match="source_retrieval"):
            audit.failed(["near_copy > 0.5"])
        without = gt.audit_bank(bank, photos(), encoder=Pool(), progress=False)
        with pytest.raises(ConfigError, match="no labels"):
            without.failed(["label_agreement < 0.5"])


def html(audit: gt.Audit) -> str:
    from gentransforms.audit.report import render

    return render(audit)


class TestSave:
    def test_writes_three_files(self, audit: gt.Audit, tmp_path: Path) -> None:
        report = audit.save(tmp_path / "out")
        assert report == tmp_path / "out" / "report.html"
        saved = json.loads((tmp_path / "out" / "audit.json").read_text())
        assert saved["measures"]["near_copies"]["value"] == audit.measures["near_copies"].value
        assert pq.read_table(tmp_path / "out" / "scores.parquet").equals(audit.scores)

    def test_the_report_is_whole_and_loads_nothing(self, audit: gt.Audit) -> None:
        page = html(audit)
        assert not re.search(r"""(src|href)=["'](?!data:)""", page)
        assert not re.search(r"https?://", page)
        for name, measure in audit.measures.items():
            assert name in page
            assert measure.meaning[1:30].split("<")[0].split("'")[0] in page
        assert "prefers-color-scheme: dark" in page
        assert "@media print" in page
        assert page.count("data:image/png;base64") > 20

    def test_a_figure_stands_apart_from_its_interval_and_a_line_shows_zero(self, audit: gt.Audit) -> None:
        page = html(audit)
        assert re.search(r"\d <span class=.soft.>\(", page)
        assert not re.search(r"\d<span|\d\(", page)
        points = [(m.value, *m.interval, m.reference or 0.0) for m in audit.measures.values() if m.interval is not None]
        assert page.count('class="zero"') == sum(min(own) < 0 < max(own) for own in points) > 0

    def test_what_users_name_is_escaped(self, tmp_path: Path) -> None:
        source = gt.open_source([image for image, _ in photos()], key=[f"<script>{i}</script>" for i in range(N)])
        gt.generate_bank(source, tmp_path / "bank", NoisyForAudits(), variants=2, progress=False)
        assert "<script>" not in html(gt.audit_bank(tmp_path / "bank", source, encoder=Pool(), progress=False))


class TestVerdicts:
    """The limits that docs/audit.md states."""

    @pytest.mark.parametrize(
        ("part", "figures", "level"),
        [
            ("Faithfulness", {"label_agreement": (0.82, 0.9), "source_retrieval": (0.5, 0.1)}, "good"),
            ("Faithfulness", {"label_agreement": (0.7, 0.9), "source_retrieval": (0.5, 0.1)}, "check"),
            ("Faithfulness", {"label_agreement": (0.5, 0.9)}, "bad"),
            ("Faithfulness", {"label_agreement": (0.5, 0.45)}, "check"),
            ("Faithfulness", {"label_agreement": (0.95, 1.0), "label_kappa": (0.9, 1.0)}, "good"),
            ("Faithfulness", {"label_agreement": (0.95, 1.0), "label_kappa": (0.7, 1.0)}, "check"),
            ("Faithfulness", {"label_agreement": (0.95, 1.0), "label_kappa": (0.0, 1.0)}, "bad"),
            ("Faithfulness", {"label_agreement": (0.95, 0.95), "label_kappa": (0.0, 0.0)}, "check"),
            ("Faithfulness", {"source_similarity": (0.9, 0.95), "other_similarity": (0.3, 0.3)}, "good"),
            ("Faithfulness", {"source_similarity": (0.4, 0.95), "other_similarity": (0.3, 0.3)}, "bad"),
            ("Diversity", {"variant_distance": (0.6, 1.0), "duplicate_variants": (0.01, 0.0)}, "good"),
            ("Diversity", {"variant_distance": (0.6, 1.0), "duplicate_variants": (0.1, 0.0)}, "check"),
            ("Diversity", {"variant_distance": (0.1, 1.0)}, "bad"),
            ("Copies", {"near_copies": (0.015, 0.01)}, "good"),
            ("Copies", {"near_copies": (0.04, 0.01)}, "check"),
            ("Copies", {"near_copies": (0.2, 0.01)}, "bad"),
            ("Copies", {"near_copies": (0.01, 0.01), "source_copies": (0.05, 0.0)}, "check"),
            ("Copies", {"near_copies": (0.01, 0.01), "training_share_others": (0.7, 0.5)}, "bad"),
            ("Copies", {"near_copies": (0.3, 0.01), "training_share_others": (0.6, 0.5)}, "bad"),  # no share makes copies better
        ],
    )
    def test_follow_the_stated_limits(self, part: str, figures: dict[str, tuple[float, float]], level: str) -> None:
        measures = {
            name: Measure("part", value, (value - 0.01, value + 0.01), reference, "a figure")
            for name, (value, reference) in figures.items()
        }
        (verdict,) = give_verdicts(measures)
        assert verdict.title.startswith(part)
        assert verdict.level == level


class TestScores:
    def test_columns_that_need_labels_are_no_reason_to_choose_without_them(self, bank: Path) -> None:
        scores = gt.audit_bank(bank, photos(), encoder=Pool(), progress=False).scores
        for expression in ("agrees", "not agrees", 'label == "0"', 'label < "0"'):
            with pytest.raises(ConfigError, match="empty in these scores"):
                gt.Bank.open(bank).select(scores, expression)


class TestCard:
    """What an export says of a bank's audit."""

    def test_takes_up_the_main_figures(self, audit: gt.Audit, bank: Path, tmp_path: Path) -> None:
        from gentransforms.bank.share.export import export_bank

        audit.save(tmp_path / "audit")
        for place in ("audit", "audit/audit.json"):
            folder = tmp_path / place.replace("/", "-")
            export_bank(gt.Bank.open(bank), tmp_path / "export" / folder.name, audit=tmp_path / place)
            card = (tmp_path / "export" / folder.name / "README.md").read_text()
            for name in ("source_retrieval", "near_copies", "label_agreement", "training_share_others"):
                measure = audit.measures[name]
                assert f"| `{name}` | {measure.value:.3g} | {measure.interval[0]:.3g} to {measure.interval[1]:.3g} |" in card
                assert measure.meaning in card
            assert f"{N * V} variants of {N} sources, compared by `Pool`" in card

    def test_of_another_bank_or_none_is_refused(self, audit: gt.Audit, bank: Path, tmp_path: Path) -> None:
        from gentransforms.bank.share.export import export_bank

        audit.save(tmp_path / "audit")
        gt.generate_bank(photos(), tmp_path / "other", NoisyForAudits(noise=0.2), variants=V, progress=False)
        with pytest.raises(BankError, match="audit of"):
            export_bank(gt.Bank.open(tmp_path / "other"), tmp_path / "export", audit=tmp_path / "audit")
        (tmp_path / "audit" / "audit.json").write_text('{"format": 3}')
        for place in ("audit", "nothing"):
            with pytest.raises(BankError, match="bank audit"):
                export_bank(gt.Bank.open(bank), tmp_path / "export", audit=tmp_path / place)
        assert not (tmp_path / "export").exists()


class TestCommands:
    """``gentransforms bank audit`` and ``select``."""

    @pytest.fixture
    def places(self, tmp_path: Path) -> Path:
        for i, (image, label) in enumerate(photos()):
            folder = tmp_path / "photos" / ("red", "blue")[label]
            folder.mkdir(parents=True, exist_ok=True)
            to_pil_image(image).save(folder / f"{i:03d}.png")
        NoisyForAudits().save_pretrained(tmp_path / "noisy")
        gt.generate_bank(tmp_path / "photos", tmp_path / "bank", gt.load_generator(tmp_path / "noisy"), variants=2, progress=False)
        return tmp_path

    def call(self, *arguments: Any) -> Any:
        from typer.testing import CliRunner

        from gentransforms.cli.main import app

        return CliRunner().invoke(app, ["bank", *map(str, arguments)])

    def test_from_a_bank_to_a_selection(self, places: Path) -> None:
        out = places / "audit"
        audited = self.call(
            "audit", places / "bank", places / "photos", "--encoder", "generator", "--label-column", "folders", "--out", out
        )
        assert audited.exit_code == 0, audited.output
        assert "source_retrieval" in audited.output
        assert str(out / "report.html") in audited.output
        chosen = self.call(
            "select", places / "bank", "--scores", out / "scores.parquet", "--where", "rank <= 2", "-o", places / "best.json"
        )
        assert chosen.exit_code == 0, chosen.output
        bank = gt.Bank.open(places / "bank", selection=places / "best.json")
        ranks = pq.read_table(out / "scores.parquet")["rank"].to_pylist()
        assert len(bank) == sum(rank <= 2 for rank in ranks)

    def test_gates(self, places: Path) -> None:
        call = ["audit", places / "bank", places / "photos", "--encoder", "generator", "--out", places / "audit"]
        assert self.call(*call, "--fail-if", "missing > 0").exit_code == 0
        failed = self.call(*call, "--fail-if", "missing > 0", "--fail-if", "source_retrieval > 0.01")
        assert failed.exit_code == 1
        assert "source_retrieval > 0.01" in failed.output
        assert "missing > 0" not in failed.output
        assert (places / "audit" / "report.html").exists()

    def test_an_export_with_the_audit(self, places: Path) -> None:
        out = places / "audit"
        assert self.call("audit", places / "bank", places / "photos", "--encoder", "generator", "--out", out).exit_code == 0
        done = self.call("export", places / "bank", places / "export", "--audit", out)
        assert done.exit_code == 0, done.output
        assert "| `source_retrieval` |" in (places / "export" / "README.md").read_text()

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (["--fail-if", "near_copies"], "near_copies"),
            (["--fail-if", "nothing > 1"], "nothing"),
            (["--encoder", "torchvision:nothing"], "torchvision:nothing"),
            (["--limit", "0"], "limit"),
            (["--label-column", "class"], "class"),
            (["--holdout-split", "test"], "--holdout"),
            (["--fail-if", "training_share > 0.5"], "no holdout was given"),
            (["--fail-if", "label_agreement < 0.5"], "no labels were given"),
            (["--fail-if", "drift/agee > 0.5", "--attribute-column", "labels"], "drift/labels"),
            (["--fail-if", "recall < 0.5", "--limit", "15"], "from 16 on"),
            (["--holdout", "photos/red"], "holdout: 20 held-out images for 40 sources"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_wrong_call_says_what_before_the_work(
        self, places: Path, options: list[str], named: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(places)
        call = ["audit", places / "bank", places / "photos", "--out", places / "audit", "--encoder", "generator"]
        found = self.call(*call, *options)
        assert found.exit_code == 2, found.output
        assert named in found.output
        assert not (places / "audit").exists()


class TestSourceOptions:
    """``gentransforms bank audit`` opens a source as ``gentransforms generate`` does."""

    OF_HUB: ClassVar = {"config": "small", "revision": "v1", "token": "hf_none"}
    GIVEN: ClassVar = {
        "key": "name", "image_column": "shot", "columns": {"prompts": "caption", "labels": "kind"}, "split": "test", "white_level": 1023.0,
        **OF_HUB,
    }  # fmt: skip

    def command(self, *names: str) -> Any:
        import typer.main

        from gentransforms.cli.main import app

        command: Any = typer.main.get_command(app)
        for name in names:
            command = command.commands[name]
        return command

    def call(self, *arguments: Any) -> Any:
        from typer.testing import CliRunner

        from gentransforms.cli.main import app

        return CliRunner().invoke(app, ["bank", "audit", *map(str, arguments), "--encoder", "generator"])

    def test_are_those_of_generate(self) -> None:
        of_source = set(inspect.signature(gt.open_source).parameters) - {"source", "inputs_getter"}  # no function on a command line
        for names in (("generate",), ("bank", "audit")):
            assert of_source <= {parameter.name for parameter in self.command(*names).params}, names
        assert of_source == self.GIVEN.keys()

    @pytest.mark.parametrize("holdout", ["none", "same", "local", "hub"])
    def test_reach_the_source_and_those_that_apply_the_holdout(self, holdout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "holdout").mkdir()
        monkeypatch.setenv("HOME", str(tmp_path))
        importlib.import_module("gentransforms.audit.run")  # which keeps the functions it imports
        opened: list[Any] = []
        monkeypatch.setattr("gentransforms.audit.labels.open_labelled", lambda *args, **options: opened.append((args, options)))
        monkeypatch.setattr("gentransforms.sources.open_source", lambda *args, **options: opened.append((args, options)))
        place = {"none": None, "same": "org/photos", "local": "~/holdout", "hub": "org/other"}[holdout]
        options = [] if place is None else ["--holdout", place, "--holdout-split", "val"]
        for name, value in self.GIVEN.items():
            for one in ["=".join(pair) for pair in value.items()] if isinstance(value, dict) else [value]:
                options += [f"--{name.replace('_', '-')}", one]
        self.call(tmp_path / "bank", "org/photos", *options, "--label-column", "kind")  # there is no bank, which comes later
        (args, of_source), *others = opened
        assert args == ("org/photos", {"--label-column": "kind"})
        assert of_source == self.GIVEN
        expected = {"image_column": "shot", "white_level": 1023.0, "split": "val"}
        expected |= {"same": self.OF_HUB, "hub": {"token": "hf_none"}, "local": {"token": None}}.get(holdout, {})
        assert others == ([] if place is None else [((place,), expected)])

    def test_a_wrong_column_is_refused(self, tmp_path: Path) -> None:
        found = self.call(tmp_path / "bank", tmp_path, "--columns", "caption")
        assert (found.exit_code, "--columns caption: expected INPUT=COLUMN" in found.output) == (2, True)

    def test_a_bank_of_deep_images_is_audited_with_its_white_level(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        for i, (image, _) in enumerate(photos(8)):
            deep = image[0].numpy().astype(np.uint16) * 4
            PIL.Image.fromarray(deep).save(tmp_path / "photos" / f"{i}.png")
        NoisyForAudits().save_pretrained(tmp_path / "noisy")
        source = gt.open_source(tmp_path / "photos", white_level=1023)
        gt.generate_bank(source, tmp_path / "bank", gt.load_generator(tmp_path / "noisy"), variants=2, progress=False)
        call = [tmp_path / "bank", tmp_path / "photos", "--out", tmp_path / "audit", "--white-level"]
        assert self.call(*call, 1023).exit_code == 0
        refused = self.call(*call, 65535)
        assert refused.exit_code == 1
        assert "the bank was made with white_level=1023, not 65535" in refused.output

    def test_columns_named_besides_those_of_the_labels(self, tmp_path: Path) -> None:
        cells = []
        for image, _ in photos():
            buffer = io.BytesIO()
            to_pil_image(image).save(buffer, "PNG")
            cells.append(buffer.getvalue())
        table = pa.table({"shot": cells, "pair": cells, "age": [i // 20 for i in range(N)], "kind": ["ab"[i % 2] for i in range(N)]})
        pq.write_table(table, tmp_path / "photos.parquet")
        NoisyForAudits().save_pretrained(tmp_path / "noisy")
        source = gt.open_source(tmp_path / "photos.parquet", columns={"masks": "pair", "labels": "age"})
        gt.generate_bank(source, tmp_path / "bank", gt.load_generator(tmp_path / "noisy"), variants=2, progress=False)
        found = self.call(
            tmp_path / "bank", tmp_path / "photos.parquet", "--columns", "masks=pair", "--columns", "labels=age", "--out",
            tmp_path / "audit", "--label-column", "labels", "--attribute-column", "kind",
        )  # fmt: skip
        assert found.exit_code == 0, found.output
        saved = json.loads((tmp_path / "audit" / "audit.json").read_text())
        assert [row["name"] for row in saved["classes"]] == ["0", "1"]
        assert [row["name"] for row in saved["attributes"]["kind"]] == ["a", "b"]
