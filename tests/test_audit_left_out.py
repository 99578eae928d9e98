"""Audits of images that cannot be read, and of few: what is left out is counted, and what is left is measured."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from audited import PROBED, N, NoisyForAudits, Pool, V, photos

import gentransforms as gt
from gentransforms.audit.measures.integrity import tell_failed
from gentransforms.audit.measures.needs import few_held_out
from gentransforms.audit.report import render
from gentransforms.audit.verdicts import give_verdicts
from gentransforms.errors import BankError, ConfigError, SourceError

NAMES = [f"photo {i:02d}" for i in range(2 * N)]


class Photos:
    """The photos with their keys, of which some are broken."""

    def __init__(self, broken: Collection[int] = (), count: int = N, seed: int = 0) -> None:
        self.images, self.broken = photos(count, seed), set(broken)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        if i in self.broken:
            raise ValueError("truncated")
        return self.images[i]


def opened(photos: Photos, left_out: Collection[int] = ()) -> Any:
    """The photos as a source, some not even listed."""
    kept = [i for i in range(len(photos)) if i not in left_out]
    source = photos if not left_out else [photos[i] for i in kept]
    return gt.open_source(source, key=[NAMES[i] for i in kept])


def all_broken(count: int) -> Any:
    """A source of photos that broke after it was opened: one that is broken then is refused."""
    images = Photos(count=count)
    source = opened(images)
    images.broken = set(range(count))
    return source


def audit(source: Any, **options: Any) -> gt.Audit:
    given = {"variants": 2, "encoder": Pool(), "progress": False, **options}
    return gt.audit_generator(NoisyForAudits(), source, **given)


def figures(found: gt.Audit) -> dict[str, Any]:
    measures = found.to_dict()["measures"]
    return {name: value for name, value in measures.items() if name != "failed"} | {"omitted": found.omitted}


class TestUnreadableSources:
    """One photo that cannot be read ended an audit of a generator, after the features of all before it were made."""

    @pytest.mark.parametrize("labels", [None, "list", "labels"])
    @pytest.mark.parametrize("chunk", [5, 256])
    def test_are_as_if_they_were_not_there(self, labels: str | None, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """With their label, which one of them has alone, in the first chunk, a whole chunk, and the last place."""
        monkeypatch.setattr("gentransforms.audit.collect._CHUNK", chunk)
        broken = [0, 7, *range(10, 15), N - 1]
        source, whole = Photos(broken), Photos()
        given: Any = ["mine" if i == 7 else "ab"[i % 2] for i in range(N)] if labels == "list" else labels
        with pytest.warns(UserWarning, match=r"^8 of 40 sources could not .* are left out: such as 'photo 00', 'photo 07'") as told:
            found = audit(opened(source), labels=given)
        assert len(told) == 1
        assert told[0].filename == __file__
        without = audit(opened(whole, broken), labels=[x for i, x in enumerate(given) if i not in broken] if labels == "list" else given)
        assert figures(found) == figures(without)
        assert found.scores.equals(without.scores)
        assert found.classes == without.classes
        assert found.measures["failed"].value == 8
        assert without.measures["failed"].value == 0
        assert found.about["failed"]["sources"]["keys"] == [NAMES[i] for i in broken]
        assert "truncated" in found.about["failed"]["sources"]["reason"]

    def test_the_report_the_figures_and_the_verdict_say_so(self, tmp_path: Path) -> None:
        with pytest.warns(UserWarning, match="1 of 40 sources"):
            found = audit(opened(Photos([3])))
        sentence = "1 of 40 sources could not be read and is left out: "
        assert sentence in render(found)
        assert sentence in str(found)
        assert re.search(r"^failed +1 ", str(found), re.MULTILINE)
        assert give_verdicts(found.measures)[0][::3] == ("check", "1 source could not be read.")
        found.save(tmp_path)
        assert json.loads((tmp_path / "audit.json").read_text())["about"]["failed"]["sources"]["count"] == 1
        assert found.failed(["failed > 0"])

    def test_images_that_no_bank_would_take_are_not_encoded(self) -> None:
        images = [image.float() / 255 for image, _ in photos()]
        images[5][0, 0, 0], images[6] = torch.nan, images[6] * 255
        with pytest.warns(UserWarning, match=r"2 of 40 .* left out: 5, 6 \(.*NaN"):
            assert audit(images).about["sources"] == N - 2

    def test_of_a_bank_that_became_unreadable_are_counted_with_those_that_were(self, tmp_path: Path) -> None:
        gt.generate_bank(opened(Photos([3])), tmp_path / "bank", NoisyForAudits(), variants=V, progress=False)
        with pytest.warns(UserWarning, match="1 of 39 sources could not be read and is left out: 'photo 20'"):
            found = gt.audit_bank(tmp_path / "bank", opened(Photos([3, 20])), encoder=Pool(), labels="labels", progress=False)
        assert (found.measures["failed"].value, found.measures["missing"].value, found.about["sources"]) == (2, 0, N - 2)
        assert set(found.scores["key"].to_pylist()) == {name for i, name in enumerate(NAMES[:N]) if i not in (3, 20)}
        assert len(found.scores) == V * (N - 2)

    def test_in_a_cache_are_tried_again_and_the_rest_is_not(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gentransforms.audit.collect._CHUNK", 10)
        monkeypatch.setattr("gentransforms.audit.pairs._COMPARED", 1)  # or the cache is told from others by the images tested here
        source = Photos()
        gt.generate_bank(opened(source), tmp_path / "bank", NoisyForAudits(), variants=V, progress=False)

        def again(broken: Collection[int]) -> tuple[gt.Audit, int]:
            source.broken, before = set(broken), Pool.calls
            options: dict[str, Any] = {"encoder": Pool(), "labels": "labels", "cache": tmp_path / "cache", "progress": False}
            return gt.audit_bank(tmp_path / "bank", opened(source), **options), Pool.calls - before - PROBED

        for expected in (((N - 1) * (1 + V)), 0):
            with pytest.warns(UserWarning, match="'photo 21'"):
                found, encoded = again([21])
            assert (found.about["sources"], encoded) == (N - 1, expected)
        whole, encoded = again([])
        assert (whole.about["sources"], encoded) == (N, 10 * (1 + V))
        with pytest.warns(UserWarning, match="'photo 22'"):  # whose features are there and whose label is not
            found, encoded = again([22])
        assert (found.about["sources"], encoded) == (N - 1, 0)

    def test_if_all_are_it_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"^source: none of the 40 images can be read, such as 'photo 00': .*truncated"):
            audit(all_broken(N))
        gt.generate_bank(opened(Photos()), tmp_path / "bank", NoisyForAudits(), variants=1, progress=False)
        with pytest.raises(SourceError, match=r"^source: none of the 40"):
            gt.audit_bank(tmp_path / "bank", all_broken(N), encoder=Pool(), progress=False)

    @pytest.mark.filterwarnings("ignore:39 of 40 sources")
    def test_if_one_is_left_it_is_too_few(self) -> None:
        with pytest.raises(ConfigError, match="1 source"):
            audit(opened(Photos(range(1, N))))

    def test_a_disk_that_is_gone_ends_the_audit(self) -> None:
        class Gone(Photos):
            def __getitem__(self, i: int) -> Any:
                if i == 9:
                    raise OSError(5, "Input/output error")
                return super().__getitem__(i)

        with pytest.raises((BankError, OSError), match="Input/output error"):
            audit(Gone())


class TestUnreadableHoldout:
    def test_others_stand_in(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of N + 1 images for N sources, the last is to spare."""
        monkeypatch.setattr("gentransforms.audit.pairs._COMPARED", 1)  # or the cache is told from others by the images tested here
        held = Photos([3], N + 1, seed=5)
        with pytest.warns(UserWarning, match="^1 of 41 held-out images could not be read and is left out: 'photo 03'"):
            found = audit(photos(), holdout=opened(held), cache=tmp_path)
        without = audit(photos(), holdout=[image for i, image in enumerate(held.images) if i != 3])
        assert figures(found) == figures(without)
        assert found.about["holdout"] == N
        assert found.about["failed"]["holdout"]["keys"] == [NAMES[3]]
        assert found.measures["failed"].value == 0
        with pytest.warns(UserWarning, match="'photo 03'"):
            assert figures(audit(photos(), holdout=opened(held), cache=tmp_path)) == figures(found)
        held.broken = set()
        whole = audit(photos(), holdout=opened(held), cache=tmp_path)
        assert whole.about["failed"]["holdout"]["count"] == 0
        assert figures(whole) == figures(audit(photos(), holdout=held))
        assert len(list(tmp_path.iterdir())) == 1

    def test_if_none_does_the_figures_are_left_out_with_the_reason(self) -> None:
        with pytest.warns(UserWarning, match="2 of 40 held-out"):
            found = audit(photos(), holdout=opened(Photos([3, 4], seed=5)))
        for name in ("training_share", "training_share_others", "c_t"):
            assert found.omitted[name] == few_held_out(N - 2, N)
        with pytest.raises(ConfigError, match="38 held-out images for 40"):
            found.failed(["c_t < 0"])

    def test_the_same_folder_that_the_sources_are_of(self) -> None:
        with pytest.warns(UserWarning, match="1 of 40 sources .*; 1 of 40 held-out images"):
            found = audit(opened(Photos([3])), holdout=opened(Photos([3])))
        assert "c_t" in found.measures

    def test_if_all_are_it_is_an_error(self) -> None:
        with pytest.raises(SourceError, match=r"^holdout: none of the 45 images can be read"):
            audit(photos(), holdout=all_broken(45))


class TestTellFailed:
    def test_names_a_few(self) -> None:
        one = {"count": 1000, "of": 2000, "keys": list("abcdefgh"), "reason": "is empty"}
        expected = "1,000 of 2,000 held-out images could not be read and are left out: such as 'a', 'b', 'c' (is empty)"
        assert tell_failed({"sources": {"count": 0, "of": 9, "keys": [], "reason": None}, "holdout": one}) == [expected]


class TestBeforeTheWork:
    """What options decide is refused before an image is encoded."""

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"holdout": photos(2)}, "^holdout: 2 held-out images for 40 sources: as many are needed.* or limit=2$"),
            ({"holdout": photos(1)}, "^holdout: 1 held-out image for 40 sources: as many are needed.*give more$"),
            ({"holdout": photos(9), "limit": 10}, "9 held-out images for 10"),
            ({"limit": 1}, "1 source"),
            ({"seed": "zero"}, "seed='zero'"),
        ],
        ids=str,
    )
    def test_is_refused(self, options: dict[str, Any], match: str) -> None:
        before = Pool.calls
        with pytest.raises(ConfigError, match=match):
            audit(photos(), **options)
        assert Pool.calls == before


class TestFew:
    """The least that there can be: 2 sources, and without one of them nothing is left to compare with."""

    @pytest.mark.parametrize(("variants", "duplicates"), [(1, True), (2, False)])
    @pytest.mark.parametrize("labels", [None, "one class", "two classes", "a class each"])
    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_all_figures_are_numbers_or_have_a_reason(
        self, count: int, labels: str | None, variants: int, duplicates: bool, tmp_path: Path
    ) -> None:
        images = [image for image, _ in photos(count)]
        images[1] = images[0] if duplicates else images[1]
        given = {"one class": [0] * count, "two classes": [i % 2 for i in range(count)], "a class each": list(range(count))}.get(
            labels or ""
        )
        found = audit(images, variants=variants, labels=given, attributes=given and {"age": given}, holdout=photos(count, seed=5))
        for name, measure in found.measures.items():
            numbers = [measure.value, *(measure.interval or ()), *([] if measure.reference is None else [measure.reference])]
            assert all(map(math.isfinite, numbers)), name
        assert all(found.omitted.values())
        if count == 2 and given:
            assert "drift/age" in (found.omitted if labels != "one class" else found.measures)
        assert found.save(tmp_path).exists()

    def test_of_two_no_interval_pretends_to_know(self) -> None:
        """Without one of two sources, the other has no real image beside it."""
        found = audit(photos(2), holdout=photos(2, seed=5))
        for name, measure in found.measures.items():
            if name.startswith("drift/") or name in ("variant_distance", "nearest_ratio"):
                assert measure.interval is None, name
        for name, most in (
            ("source_copies", 1),
            ("duplicate_variants", 1),
            ("near_copies", 1),
            ("training_share_others", 1),
            ("authpct", 100),
        ):
            assert found.measures[name].interval == (0, most), name
