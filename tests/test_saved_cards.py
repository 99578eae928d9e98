"""Cards of generators that are saved again: what a folder keeps, what travels with the generator, and which folders are refused."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from huggingface_hub import ModelCard
from test_pretrained import Tinted

import gentransforms as gt
from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.card import model_card
from gentransforms.generators.destination import check_folder
from gentransforms.hub import models as hub
from gentransforms.hub.card_sections import (
    has_license,
    is_default,
    is_model_card,
    mark_sections,
    named_parts,
    outgrown,
    with_note,
    with_title,
)
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")
CARD = {
    "title": "Ann's flowers", "description": "Flowers.", "license": "cc-by-4.0", "training_data": "My 36 photos.",
    "evaluation": "Agreement 0.71.", "limits": "No weeds.",
}  # fmt: skip
NOTE = "*Stated before the options or weights of this generator changed: it may no longer hold.*"


def read(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def edit(folder: Path, *changes: tuple[str, str]) -> None:
    text = read(folder)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "README.md").write_text(text, encoding="utf-8")


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def section(text: str, heading: str) -> str:
    """What stands below a heading, without marks."""
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return re.sub(r"<!--.*?-->", "", found[1]).strip()


def variation() -> Any:
    return gt.StableDiffusionVariation.from_pipeline(tiny_diffusion.unclip(), num_inference_steps=2)


def pipeline() -> Any:
    return gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), strength=0.5, num_inference_steps=2)


MAKERS: list[Callable[[], Any]] = [lambda: Tinted(6), variation, pipeline]
ALL = pytest.mark.parametrize("make", MAKERS, ids=["plain", "diffusion", "pipeline"])


class TestRefused:
    """A folder with files that are not of an earlier save stays as it is."""

    @ALL
    @pytest.mark.parametrize(
        ("files", "said"),
        [
            ({"README.md": "# My project\n\nMonths of notes.\n"}, r"README\.md is not the card of a generator"),
            ({"config.json": '{"model_type": "vit"}'}, r"config\.json is not of a generator"),
        ],
    )
    def test_of_every_class(self, make: Callable[[], Any], files: dict[str, str], said: str, tmp_path: Path) -> None:
        generator = make()
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        before = content(tmp_path)
        for card in (None, {}, CARD):
            with pytest.raises(WeightsError, match=f"^{tmp_path}/.*{said}.* not replaced: choose a new folder, or move that file away"):
                generator.save_pretrained(tmp_path, card=card)
        assert content(tmp_path) == before
        assert {path.name for path in tmp_path.iterdir()} == set(before)

    @pytest.mark.parametrize("text", ["", "[]", "{", '{"format": "onnx"}'])
    def test_configs(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(WeightsError, match=r"config\.json is not of a generator"):
            check_folder(tmp_path, "Tinted")

    @pytest.mark.parametrize("text", [b"\xff\xfe", b"---\nlicense: mit\n---\nMine", b"---\nlibrary_name: diffusers\n---\n"])
    @pytest.mark.parametrize("saved", [False, True])
    def test_cards(self, text: bytes, saved: bool, tmp_path: Path) -> None:
        if saved:
            Tinted().save_pretrained(tmp_path)
        (tmp_path / "README.md").write_bytes(text)
        with pytest.raises(WeightsError, match=r"README\.md is not the card of a generator"):
            check_folder(tmp_path, "Tinted")

    def test_the_card_of_a_bank(self, tmp_path: Path) -> None:
        from test_card_parts import bank

        (tmp_path / "README.md").write_text(bank("new"))
        with pytest.raises(WeightsError, match=r"README\.md is not the card of a generator"):
            Tinted().save_pretrained(tmp_path)

    @pytest.mark.parametrize("name", ["config.json", "README.md"])
    def test_names_that_are_no_files(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "a" / name).mkdir(parents=True)
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / name).symlink_to(tmp_path / "nowhere")
        for folder in ("a", "b"):
            with pytest.raises(WeightsError, match="not replaced"):
                check_folder(tmp_path / folder, "Tinted")

    def test_weights_of_others(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(b"theirs")
        with pytest.raises(WeightsError, match=r"model\.safetensors was not saved with gentransforms"):
            Tinted().save_pretrained(tmp_path)
        check_folder(tmp_path, "PipelineVariation")  # which writes no such file

    def test_another_class(self, tmp_path: Path) -> None:
        FakeGenerator().save_pretrained(tmp_path, card=CARD)
        before = content(tmp_path)
        with pytest.raises(WeightsError, match="holds a generator of the class 'FakeGenerator', and this is 'Tinted': choose a new folder"):
            Tinted().save_pretrained(tmp_path)
        assert content(tmp_path) == before

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(WeightsError, match="file is a file: expected a folder to save into"):
            Tinted().save_pretrained(tmp_path / "file")

    def test_broken_metadata_are_not_replaced(self, tmp_path: Path) -> None:
        Tinted().save_pretrained(tmp_path, card=CARD)
        edit(tmp_path, ("license: cc-by-4.0", "license: [cc"))
        before = content(tmp_path)
        with pytest.raises(
            WeightsError, match=r"(?s)README\.md: the YAML at the top .* cannot be read .*: correct it there, then try again$"
        ):
            Tinted().save_pretrained(tmp_path, card={"license": "mit"})
        assert content(tmp_path) == before

    @ALL
    def test_other_files_may_lie_beside(self, make: Callable[[], Any], tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        make().save_pretrained(tmp_path)
        make().save_pretrained(tmp_path)  # over the first
        assert (tmp_path / "notes.txt").read_text() == "mine"


class TestDtype:
    @pytest.mark.parametrize("make", [Tinted, variation])
    def test_that_cannot_hold_the_weights(self, make: Callable[[], Any], tmp_path: Path) -> None:
        """In float16, 1e5 is infinite; a generator whose weights are so already says what it is."""
        generator = make()
        name, weight = next((n, t) for n, t in generator.named_parameters() if t.is_floating_point())
        weight.detach().view(-1)[0] = 1e5
        with pytest.raises(
            WeightsError, match=rf"^dtype=torch\.float16: 1 of \d+ weights, such as {re.escape(name)}, reach beyond .*65504"
        ):
            generator.save_pretrained(tmp_path / "saved", dtype=torch.float16)
        assert not (tmp_path / "saved").exists()
        generator.save_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
        weight.detach().view(-1)[0] = 6e4
        generator.save_pretrained(tmp_path / "saved", dtype=torch.float16)


class TestSavedAgain:
    @pytest.mark.parametrize("text", ["", "---\nlicense: mit\ntags:\n- flowers\n---\n", "---\nlicense: mit\ntags: [flowers]\n---"])
    def test_the_clone_of_a_new_repository(self, text: str, tmp_path: Path) -> None:
        """Its card has metadata at most, which stay."""
        (tmp_path / "README.md").write_text(text)
        FakeGenerator().save_pretrained(tmp_path)
        saved = ModelCard.load(tmp_path / "README.md", ignore_metadata_errors=False)
        assert is_model_card(str(saved))
        if text:
            assert (saved.data.license, "flowers" in saved.data.tags) == ("mit", True)
            assert FakeGenerator.from_pretrained(tmp_path).license == "mit"

    """Saved into the folder of an earlier save."""

    @ALL
    def test_what_was_edited_stays(self, make: Callable[[], Any], tmp_path: Path) -> None:
        generator = make()
        generator.save_pretrained(tmp_path, card=CARD)
        edit(
            tmp_path,
            ("# Ann's flowers", "# Ben's flowers"), ("## Limits", "## My limits"), ("license: cc", "language: en\nlicense: cc"),
            ("## How to load", "## Thanks\n\nTo Ann.\n\n## How to load"),
        )  # fmt: skip
        expected = read(tmp_path)
        edit(tmp_path, ("Inputs besides", "Other inputs than"))
        generator.save_pretrained(tmp_path)
        assert read(tmp_path) == expected
        gt.load_generator(tmp_path).save_pretrained(tmp_path)
        assert read(tmp_path) == expected

    def test_only_the_sections_that_are_given_change(self, tmp_path: Path) -> None:
        Tinted(6).save_pretrained(tmp_path, card=CARD)
        edit(tmp_path, ("## Limits", "## My limits"), ("No weeds.", "No weeds!"))
        Tinted(6).save_pretrained(tmp_path, card={"evaluation": "Agreement 0.9.", "title": "Flowers", "license": "mit"})
        text, data = read(tmp_path), ModelCard.load(tmp_path / "README.md").data
        assert section(text, "Evaluation") == "Agreement 0.9."
        assert section(text, "My limits") == "No weeds!"
        assert re.findall("^# .*", text, re.MULTILINE)[0] == "# Flowers"
        assert (data.license, text.count("- Licence: mit\n"), "cc-by" in text, "Ann" in text) == ("mit", 1, False, False)
        Tinted(6).save_pretrained(tmp_path, card={"limits": "None."})
        assert (section(read(tmp_path), "Limits"), "My limits" in read(tmp_path)) == ("None.", False)

    def test_a_licence_of_the_weights_that_differs_is_named(self, tmp_path: Path) -> None:
        generator = Tinted(6)
        generator.license = "openrail++"
        for card in ({"license": "mit"}, None):
            generator.save_pretrained(tmp_path, card=card)
            assert "- Licence of the weights: openrail++\n" in read(tmp_path)
            assert "- Licence: mit\n" in read(tmp_path)
        loaded = gt.load_generator(tmp_path)
        edit(tmp_path, ("license: mit", "license: apache-2.0"), ("Licence: mit", "Licence: apache-2.0"))
        loaded.save_pretrained(tmp_path)  # which was loaded from there: the card says what its licence is
        assert "- Licence: apache-2.0\n" in read(tmp_path)
        assert ": mit" not in read(tmp_path)

    def test_a_licence_for_which_there_is_a_link(self, tmp_path: Path) -> None:
        Tinted(6).save_pretrained(tmp_path, card={"license": "ours"})
        Tinted(6).save_pretrained(tmp_path, card={"license_link": "https://example.org/terms"})
        data = ModelCard.load(tmp_path / "README.md").data
        assert (data.license, data.license_name, data.license_link) == ("other", "ours", "https://example.org/terms")

    def test_an_empty_card_begins_a_new_one(self, tmp_path: Path) -> None:
        Tinted(6).save_pretrained(tmp_path, card=CARD)
        gt.load_generator(tmp_path).save_pretrained(tmp_path, card={})
        assert read(tmp_path).count("Not stated by whoever saved these weights.") == 2
        assert "license: cc-by-4.0" in read(tmp_path)  # the generator's own

    def test_unknown_sections_leave_the_folder_alone(self, tmp_path: Path) -> None:
        Tinted(6).save_pretrained(tmp_path, card=CARD)
        before = content(tmp_path)
        with pytest.raises(ConfigError, match=r"card: unknown sections \['colour'\]"):
            Tinted(6).save_pretrained(tmp_path, card={"colour": "red"})
        assert content(tmp_path) == before

    def test_half_the_bytes_are_the_same_generator(self, tmp_path: Path) -> None:
        generator = Tinted(6)
        torch.nn.init.constant_(generator.tint, 1 / 3)
        generator.save_pretrained(tmp_path, card=CARD, dtype=torch.float16)
        for dtype in (None, torch.float16):
            gt.load_generator(tmp_path).save_pretrained(tmp_path, dtype=dtype)
            assert NOTE not in read(tmp_path)
        generator.save_pretrained(tmp_path, dtype=torch.bfloat16)
        assert section(read(tmp_path), "Training data") == f"{NOTE}\n\nMy 36 photos."

    def test_a_card_without_marks(self, tmp_path: Path) -> None:
        """Of an earlier version, or tidied by its owner: nothing of it is lost, and its sections are found by their headings."""
        Tinted(6).save_pretrained(tmp_path, card=CARD | {"evaluation": "```\n## no heading\n```\nAgreement 0.71."})
        (tmp_path / "README.md").write_text(re.sub(r"<!--.*?-->\n?", "", read(tmp_path)) + "\n## Thanks\n\nTo Ann.\n")
        Tinted(6).save_pretrained(tmp_path, card={"limits": "None.", "description": "Mine."})
        text = read(tmp_path)
        assert (section(text, "Limits"), section(text, "Thanks")) == ("None.", "To Ann.")
        assert section(text, "Training data") == "My 36 photos."
        for once in ("Mine.", "Ann's flowers", "- Weights: ", "- Licence: ", "Agreement 0.71.", "no heading", "## How to load"):
            assert text.count(once) == 1, once
        assert "Flowers." not in text

    def test_a_card_with_its_metadata_alone(self, tmp_path: Path) -> None:
        Tinted(6).save_pretrained(tmp_path)
        (tmp_path / "README.md").write_text("---\nlibrary_name: gentransforms\nlicense: mit\n---\nAll in my own words.\n")
        Tinted(6).save_pretrained(tmp_path)
        text = read(tmp_path)
        assert text.endswith("All in my own words.\n")
        assert "- Weights: " in text
        assert ModelCard.load(tmp_path / "README.md").data.license == "mit"

    def test_a_licence_that_was_edited_in_the_metadata(self, tmp_path: Path) -> None:
        Tinted(6).save_pretrained(tmp_path)
        edit(tmp_path, ("library_name", "license: mit\nlibrary_name"))
        generator = Tinted(6)
        generator.license = "apache-2.0"
        generator.save_pretrained(tmp_path)
        assert ModelCard.load(tmp_path / "README.md").data.license == "mit"
        assert "- Licence of the weights: apache-2.0\n" in read(tmp_path)


class TestOtherState:
    """What was stated of other weights or options does not stay as if it were of these."""

    @ALL
    def test_weights_or_options(self, make: Callable[[], Any], tmp_path: Path) -> None:
        generator = make()
        generator.save_pretrained(tmp_path, card=CARD)
        options: dict[str, Any] = (
            {"strength": 0.75} if not isinstance(generator, gt.StableDiffusionVariation) else {"num_inference_steps": 3}
        )
        changed = gt.load_generator(tmp_path, **options)
        for _ in range(2):
            changed.save_pretrained(tmp_path)
            assert section(read(tmp_path), "Evaluation") == f"{NOTE}\n\nAgreement 0.71."
            assert section(read(tmp_path), "Training data") == "My 36 photos."
        with torch.no_grad():
            next(changed.parameters()).mul_(0.5)
        for _ in range(2):
            changed.save_pretrained(tmp_path)
            assert section(read(tmp_path), "Evaluation") == f"{NOTE}\n\nAgreement 0.71."
            assert section(read(tmp_path), "Training data") == f"{NOTE}\n\nMy 36 photos."
        changed.save_pretrained(tmp_path, card={"evaluation": "0.8."})
        assert section(read(tmp_path), "Evaluation") == "0.8."

    def test_a_note_that_was_removed_stays_away(self, tmp_path: Path) -> None:
        Tinted(6).save_pretrained(tmp_path, card=CARD)
        Tinted(6, strength=0.2).save_pretrained(tmp_path)
        edit(tmp_path, (f"{NOTE}\n\nAgreement 0.71.", "Agreement 0.75."))
        Tinted(6, strength=0.2).save_pretrained(tmp_path)
        assert section(read(tmp_path), "Evaluation") == "Agreement 0.75."
        Tinted(6, strength=0.3).save_pretrained(tmp_path)
        assert section(read(tmp_path), "Evaluation") == f"{NOTE}\n\nAgreement 0.75."

    def test_nothing_is_noted_of_what_nobody_stated(self, tmp_path: Path) -> None:
        for strength in (0.1, 0.2):
            Tinted(6, strength=strength).save_pretrained(tmp_path)
        assert NOTE not in read(tmp_path)

    def test_execution_options_change_nothing(self, tmp_path: Path) -> None:
        class Quick(Tinted):
            execution_options = ("strength",)

        for strength in (0.1, 0.2):
            Quick(6, strength=strength).save_pretrained(tmp_path, card=CARD if strength == 0.1 else None)
        assert NOTE not in read(tmp_path)

    def test_another_generator_brings_its_own_card(self, tmp_path: Path) -> None:
        """Its licence above all: that of the folder was given to weights that are no longer there."""
        other = Tinted(6)
        torch.nn.init.zeros_(other.tint)
        other.save_pretrained(tmp_path / "other", card={"training_data": "Cats.", "license": "cc-by-nc-4.0"})
        Tinted(6).save_pretrained(tmp_path / "mine", card=CARD | {"license": "mit"})
        gt.load_generator(tmp_path / "other").save_pretrained(tmp_path / "mine")
        assert read(tmp_path / "mine") == read(tmp_path / "other")
        assert gt.load_generator(tmp_path / "mine").license == "cc-by-nc-4.0"

    def test_a_licence_that_was_set_after_loading(self, tmp_path: Path) -> None:
        Tinted(6).save_pretrained(tmp_path / "first", card=CARD)
        generator = gt.load_generator(tmp_path / "first")
        generator.license = "apache-2.0"
        for name in ("second", "first"):
            generator.save_pretrained(tmp_path / name)
            assert ModelCard.load(tmp_path / name / "README.md").data.license == "apache-2.0"
            assert "- Licence: apache-2.0\n" in read(tmp_path / name)
            assert "cc-by-4.0" not in read(tmp_path / name)


class TestTravels:
    """A card goes with the generator that was loaded with it."""

    @ALL
    def test_into_a_new_folder(self, make: Callable[[], Any], tmp_path: Path) -> None:
        make().save_pretrained(tmp_path / "first", card=CARD)
        edit(tmp_path / "first", ("No weeds.", "No weeds, in my own words."))
        loaded = gt.load_generator(tmp_path / "first")
        for i, generator in enumerate((loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)))):
            generator.save_pretrained(tmp_path / str(i))
            assert read(tmp_path / str(i)) == read(tmp_path / "first")
        loaded.save_pretrained(tmp_path / "given", card={"limits": "None."})
        assert read(tmp_path / "given") == read(tmp_path / "first").replace("No weeds, in my own words.", "None.")

    def test_of_the_bundled_generator(self, tmp_path: Path) -> None:
        gt.load_generator("icgan-cifar10-32").save_pretrained(tmp_path / "same")
        bundled = read(hub.BUNDLED / "icgan-cifar10-32")
        assert read(tmp_path / "same") == bundled
        gt.load_generator("icgan-cifar10-32", truncation=0.5).save_pretrained(tmp_path / "other")
        assert section(read(tmp_path / "other"), "Evaluation").startswith(f"{NOTE}\n\nMeasured on the 10,000 CIFAR-10 test images")
        assert section(read(tmp_path / "other"), "Training data") == section(bundled, "Training data")

    def test_fills_what_the_folder_leaves_open(self, tmp_path: Path) -> None:
        Tinted(6).save_pretrained(tmp_path / "first", card=CARD)
        Tinted(6).save_pretrained(tmp_path / "second")
        gt.load_generator(tmp_path / "first").save_pretrained(tmp_path / "second")
        text = read(tmp_path / "second")
        assert all(words in text for words in CARD.values())
        assert ModelCard.load(tmp_path / "second/README.md").data.license == "cc-by-4.0"

    def test_the_words_of_the_folder_count_more(self, tmp_path: Path) -> None:
        for name in ("first", "second"):
            Tinted(6).save_pretrained(tmp_path / name, card=CARD | {"evaluation": f"The {name}."})
        gt.load_generator(tmp_path / "first").save_pretrained(tmp_path / "second")
        assert section(read(tmp_path / "second"), "Evaluation") == "The second."

    def test_a_card_of_another_library_does_not(self, tmp_path: Path) -> None:
        tiny_pipelines.img2img().save_pretrained(tmp_path / "sd")
        (tmp_path / "sd/README.md").write_text("---\nlicense: openrail++\n---\n# Stable Diffusion\n\n## Training data\n\nLAION.\n")
        generator = gt.PipelineVariation.from_pretrained(tmp_path / "sd", strength=0.5, num_inference_steps=2)
        generator.save_pretrained(tmp_path / "saved")
        assert "LAION" not in read(tmp_path / "saved")
        assert "- Licence: openrail++\n" in read(tmp_path / "saved")
        with pytest.raises(WeightsError, match=r"README\.md is not the card of a generator"):
            generator.save_pretrained(tmp_path / "sd")

    def test_by_a_pipeline_of_diffusers(self, tmp_path: Path) -> None:
        from diffusers import StableDiffusionImg2ImgPipeline

        pipeline().save_pretrained(tmp_path / "first", card=CARD)
        pipe = StableDiffusionImg2ImgPipeline.from_pretrained(tmp_path / "first")
        gt.PipelineVariation.from_pipeline(pipe, strength=0.75, num_inference_steps=2).save_pretrained(tmp_path / "second")
        text = read(tmp_path / "second")
        assert (section(text, "Training data"), section(text, "Limits")) == ("My 36 photos.", "No weeds.")
        assert section(text, "Evaluation") == f"{NOTE}\n\nAgreement 0.71."

    def test_broken_metadata_of_where_it_was_loaded_from(self, tmp_path: Path) -> None:
        Tinted(6).save_pretrained(tmp_path / "first", card=CARD)
        edit(tmp_path / "first", ("license: cc-by-4.0", "license: [cc"))
        generator = gt.load_generator(tmp_path / "first")
        with pytest.raises(WeightsError, match=f"(?s)^{tmp_path}/first: the YAML at the top of its README.md cannot be read"):
            generator.save_pretrained(tmp_path / "second", card={"license": "mit"})
        assert not (tmp_path / "second").exists()
        generator.save_pretrained(tmp_path / "second", card={})

    def test_the_licence_of_the_attribute(self, tmp_path: Path) -> None:
        Tinted(6).save_pretrained(tmp_path / "first", card=CARD)
        generator = gt.load_generator(tmp_path / "first")
        generator.license = "mit"
        generator.save_pretrained(tmp_path / "second")
        assert "license: mit\n" in read(tmp_path / "second")
        assert "cc-by" not in read(tmp_path / "second")

    def test_a_card_that_could_not_be_read_is_missed(self, tmp_path: Path) -> None:
        Tinted(6).save_pretrained(tmp_path / "first", card=CARD)
        (tmp_path / "first/README.md").write_bytes(b"\xff")
        generator = gt.load_generator(tmp_path / "first")
        with pytest.warns(UserWarning, match=f"^the card of {tmp_path}/first could not be read when it was loaded"):
            generator.save_pretrained(tmp_path / "second")
        generator.save_pretrained(tmp_path / "third", card={})


class TestCardSections:
    """The parts of which this is made, on cards that people edit."""

    CARD = model_card(FakeGenerator(), CARD)

    def test_are_ours(self) -> None:
        assert is_model_card(self.CARD)
        assert is_model_card(re.sub("<!--.*?-->", "", self.CARD))
        assert is_model_card("---\r\nlibrary_name: gentransforms\r\n---\r\n")
        for other in ("", "---\n---\n", "library_name: gentransforms\n", "---\nlibrary_name: diffusers\n---\n", "# gentransforms\n"):
            assert not is_model_card(other)

    def test_marking_twice_is_marking_once(self) -> None:
        assert mark_sections(self.CARD) == self.CARD
        marked = mark_sections(re.sub(r"<!--.*?-->\n?", "", self.CARD))
        assert mark_sections(marked) == marked
        names = re.findall("<!-- gentransforms: (\\w+)", marked)
        assert sorted(names) == sorted(re.findall("<!-- gentransforms: (\\w+)", self.CARD))

    def test_defaults(self) -> None:
        parts = {match[1]: match[0] for match in re.finditer(r"<!-- gentransforms: (\w+).*?<!-- end of \1 -->", self.CARD, re.DOTALL)}
        assert [name for name, part in parts.items() if is_default(part)] == ["intended_use"]
        plain = model_card(FakeGenerator(), {})
        parts = {match[1]: match[0] for match in re.finditer(r"<!-- gentransforms: (\w+).*?<!-- end of \1 -->", plain, re.DOTALL)}
        assert [name for name, part in parts.items() if not is_default(part)] == ["figures"]
        assert not is_default("no part")

    def test_a_note_without_a_heading(self) -> None:
        part = "<!-- gentransforms: evaluation -->\nGood.\n\n<!-- end of evaluation -->"
        assert with_note(part) == part.replace("Good.", f"\n{NOTE}\n\nGood.")
        assert with_note(with_note(part)) == with_note(part)

    def test_a_title_that_was_removed(self) -> None:
        assert with_title("---\na: b\n---\nText.", "# New\n").splitlines() == ["---", "a: b", "---", "", "# New", "", "Text."]
        assert with_title("# Old\n", "Text.") == "# Old\n"

    def test_states(self) -> None:
        cards = [f"<!-- gentransforms: figures{of} -->\nx\n\n<!-- end of figures -->" for of in ("", " of a_b", " of a_c", " of d_b")]
        assert not any(outgrown(cards[0], card) for card in cards)  # it does not say what it is about
        assert [sorted(outgrown(cards[1], card)) for card in cards] == [
            ["evaluation", "training_data"], [], ["evaluation"], ["evaluation", "training_data"],
        ]  # fmt: skip

    def test_licences(self) -> None:
        for line in ("license: mit", "license: ncsa", "license_name: x", "license: [mit]"):
            assert has_license(f"---\na: b\n{line}\n---\n")
        for line in ("license:", "license: null", "license: ~", "license_link: x", "my_license: x"):
            assert not has_license(f"---\na: b\n{line}\n---\n")
        assert named_parts({"license_link": 1, "license": 2, "title": 3}) == ["licence", "title"]


def test_the_config_names_no_card(tmp_path: Path) -> None:
    """What a generator remembers of its card is not part of what it is."""
    Tinted(6).save_pretrained(tmp_path, card=CARD)
    loaded = gt.load_generator(tmp_path)
    assert loaded.fingerprint() == Tinted(6).fingerprint()
    assert "card" not in json.dumps(loaded.config)
