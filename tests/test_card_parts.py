"""Cards that are pushed again: those of the website, of earlier versions, and with the audit of another bank."""

from __future__ import annotations

import re
import types
from typing import Any

import pytest
from huggingface_hub import HfApi, RepoCard
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from gentransforms.bank.share.card import bank_card
from gentransforms.errors import WeightsError
from gentransforms.generators.card import model_card
from gentransforms.hub.card_update import update_card
from gentransforms.testing import FakeGenerator

AUDIT = {
    "about": {"encoder": "x", "own_encoder": False, "variants": 20, "sources": 2},
    "measures": {"source_retrieval": {"value": 0.987, "interval": None, "reference": None, "meaning": "m"}},
}


def bank(fingerprint: str, **options: Any) -> str:
    generator = {"class": "ICGAN", "fingerprint": fingerprint}
    manifest = {"generator": generator, "source": {"count": 2}, "settings": {"variants": 10, "base_seed": 0}, "info": {}}
    return bank_card(manifest, 20, **options)


def unmarked(card: str) -> str:
    """A card as earlier versions wrote it."""
    return re.sub(r"<!--.*?-->\n?", "", card)


CARDS = {"bank": bank("new"), "model": model_card(FakeGenerator(), {})}


def data(card: str) -> dict[str, Any]:
    fields: dict[str, Any] = RepoCard(card).data.to_dict()
    return fields


class TestUpdateCard:
    """What of a card stays, and what becomes new."""

    @pytest.mark.parametrize("new", CARDS.values(), ids=CARDS)
    @pytest.mark.parametrize("there", ["", "\n", "---\nlicense: null\n---\n"])
    def test_an_empty_card_becomes_the_new_one(self, there: str, new: str) -> None:
        updated = update_card(there, new)
        assert data(updated) == data(new)
        assert RepoCard(updated).text.strip() == RepoCard(new).text.strip()
        assert update_card(updated, new) == updated

    @pytest.mark.parametrize("new", CARDS.values(), ids=CARDS)
    def test_a_card_of_the_website(self, new: str) -> None:
        there = "---\nlicense: mit\nlanguage: en\ntags: [mine, data-augmentation]\n---\n# Mine\n\nMy words.\n"
        updated = update_card(there, new)
        tags = ["mine", "data-augmentation", *(tag for tag in data(new)["tags"] if tag != "data-augmentation")]
        assert data(updated) == data(new) | {"license": "mit", "language": "en", "tags": tags}
        body = RepoCard(updated).text
        assert body.count("\n- Licence: mit\n") == 1
        assert body.replace("- Licence: mit", "").startswith(RepoCard(new).text[:100])
        assert body.endswith("\n\n# Mine\n\nMy words.\n")
        assert "Not stated by whoever s" not in body.partition("## ")[0]
        assert update_card(updated, new) == updated

    @pytest.mark.parametrize(
        ("header", "line"),
        [
            ("license: other\nlicense_name: ours\nlicense_link: LICENSE", "[ours](LICENSE)"),
            ("license: [mit, apache-2.0]", "mit, apache-2.0"),
            ("license: other\nlicense_name: a\\1b", r"a\1b"),
        ],
    )
    def test_its_licence(self, header: str, line: str) -> None:
        there = f"---\n{header}\n---\n"
        updated = update_card(there, bank("new", license="gpl", description="- Licence: none"))
        assert {name: value for name, value in data(updated).items() if "license" in name} == data(there)
        assert "\n- Licence: none\n" in updated
        assert f"\n- Licence: {line}\n" in updated
        updated = update_card(there, bank("new", license="Our Terms"), ["licence"])
        assert {name: value for name, value in data(updated).items() if "license" in name} == {
            "license": "other",
            "license_name": "our-terms",
        }
        assert "\n- Licence: Our Terms\n" in updated

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (bank("old", license="mit"), CARDS["bank"]),
            (bank("old", license="mit").replace("# Variants made by ICGAN", "# Mine"), CARDS["bank"]),
        ],
    )
    def test_a_card_of_an_earlier_version(self, old: str, new: str) -> None:
        old = unmarked(old).replace("license: mit", "license: mit\nlanguage: en").replace("tags:\n", "tags:\n- old\n")
        old = old.replace("pretty_name: ", "pretty_name: Old ")
        updated = update_card(old, new)
        assert data(updated) == data(new) | {"license": "mit", "language": "en"}
        assert updated.count("\n- Licence: mit\n") == 1
        for gone in ("`old`", "Mine", "My own."):
            assert gone not in updated

    def test_an_audit_stays_with_its_bank(self) -> None:
        first = bank("old", audit=AUDIT, license="mit") + "\nMy words.\n"
        assert update_card(first, bank("old")) == first
        settings = first.index("<!-- gentransforms: settings")
        assert "0.987" in update_card(first[:settings], bank("old"))
        updated = update_card(first, bank("new"))
        assert updated == bank("new", license="mit") + "\nMy words.\n"
        assert bank("new", audit=AUDIT, license="mit") + "\nMy words.\n" == update_card(first, bank("new", audit=AUDIT), ["audit"])
        assert "0.987" in update_card(updated, bank("new", audit=AUDIT), ["audit"])

    def test_an_audit_of_an_unknown_bank_goes(self) -> None:
        first = re.sub(" of [0-9a-f]+ -->", " -->", bank("old", audit=AUDIT))
        assert "0.987" not in update_card(first, bank("old"))

    @pytest.mark.parametrize("header", ["license: [mit", "- a list", "a: b: c"])
    def test_metadata_that_cannot_be_read(self, header: str) -> None:
        with pytest.raises(
            ValueError, match=r"^(?s:the YAML at the top of its README.md cannot be read \(.*\): correct it there, then try again)$"
        ):
            update_card(f"---\n{header}\n---\n", bank("new"))
        with pytest.raises(ValueError, match="correct it there"):
            update_card(f"---\n{header}\n---\n" + bank("old").partition("---\n\n")[2], bank("new", license="mit"), ["licence"])


class TestFetchedCard:
    """A card that is there must not be replaced unseen."""

    @pytest.fixture
    def uploaded(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Folders that would be uploaded."""
        folders: list[str] = []

        def upload_folder(_: HfApi, folder_path: str, **__: Any) -> types.SimpleNamespace:
            folders.append(folder_path)
            return types.SimpleNamespace(commit_url="address")

        monkeypatch.setattr(HfApi, "create_repo", lambda _, repo_id, **__: types.SimpleNamespace(repo_id=repo_id))
        monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
        return folders

    @pytest.mark.parametrize("error", [LocalEntryNotFoundError("timed out"), ValueError("Force download failed due to the above error.")])
    def test_no_network(self, uploaded: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        def download(*_: Any, force_download: bool, **__: Any) -> str:
            assert force_download
            raise error from ConnectionError("timed out")

        monkeypatch.setattr(HfApi, "hf_hub_download", download)
        with pytest.raises(WeightsError, match=r"^me/x: the upload failed: its README.md, .* fetched \(timed out\): push again$"):
            FakeGenerator().push_to_hub("me/x")
        assert not uploaded

    def test_no_card(self, uploaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def download(*_: Any, **__: Any) -> str:
            raise EntryNotFoundError("none")

        monkeypatch.setattr(HfApi, "hf_hub_download", download)
        assert FakeGenerator().push_to_hub("me/x") == "address"
        assert len(uploaded) == 1
