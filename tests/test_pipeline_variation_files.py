"""Where pipelines come from, and what their cards say: single files, LoRAs, licences, safety checkers and watermarkers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import test_diffusion_state
import tiny_diffusion
import tiny_pipelines
import tiny_single_file
import torch
from torch import Tensor

import gentransforms as gt
from gentransforms.bank.share.card import bank_card
from gentransforms.errors import ConfigError, WeightsError
from gentransforms.hub.licenses import license_fields, license_link

pytestmark = pytest.mark.usefixtures("one_thread")
STRENGTH = {"strength": 0.5, "num_inference_steps": 2}
SEEDS = torch.tensor([3, 4])


def photos(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of text to image, with a card."""
    folder = tmp_path_factory.mktemp("repository") / "sd"
    tiny_diffusion.stable_diffusion().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: openrail++\n---\n# Tiny\n")
    return folder


@pytest.fixture(scope="module")
def single(layout: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A single file, and a layout without weights."""
    folder = tmp_path_factory.mktemp("single")
    shutil.copytree(layout, folder / "layout", ignore=shutil.ignore_patterns("*.safetensors"))
    return tiny_single_file.write(tiny_diffusion.stable_diffusion(), folder / "model.safetensors"), folder / "layout"


@pytest.mark.filterwarnings("ignore:.*`torch_dtype` is deprecated")
class TestSingleFile:
    def test_is_the_pipeline_that_it_was_made_from(self, single: tuple[Path, Path], layout: Path, tmp_path: Path) -> None:
        file, config = single
        loaded = gt.load_generator(file, config=config, **STRENGTH)
        expected = gt.PipelineVariation.from_pretrained(layout, **STRENGTH)
        assert type(loaded) is gt.PipelineVariation
        assert loaded.fingerprint() == expected.fingerprint()
        loaded.save_pretrained(tmp_path / "saved")
        again = gt.load_generator(tmp_path / "saved")
        made = expected(photos(1), SEEDS[:1])
        assert (again(photos(1), SEEDS[:1]) - made).abs().max() <= 1e-6

    def test_needs_a_layout(self, single: tuple[Path, Path]) -> None:
        with pytest.raises(ConfigError, match=r"config is missing: .*model.safetensors' is a single file; give config="):
            gt.load_generator(single[0])

    def test_only_a_single_file_takes_one(self, layout: Path) -> None:
        with pytest.raises(ConfigError, match=r"config=.*only for a single file"):
            gt.PipelineVariation.from_pretrained(layout, config=layout)

    @pytest.mark.parametrize(
        ("content", "suffix", "message"),
        [
            (b"<!DOCTYPE html><title>Sign in</title>", ".safetensors", "HTML"),
            (b"version https://git-lfs.github.com/spec/v1\n", ".safetensors", "Git LFS pointer"),
            (b"cos\nsystem\n(S'true'\ntR.", ".ckpt", "not loadable as a StableDiffusionImg2ImgPipeline"),
        ],
    )
    def test_files_of_another_kind(self, single: tuple[Path, Path], tmp_path: Path, content: bytes, suffix: str, message: str) -> None:
        (tmp_path / f"bad{suffix}").write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            gt.load_generator(tmp_path / f"bad{suffix}", config=single[1])

    def test_a_file_without_some_weights(self, single: tuple[Path, Path], tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = {name: tensor for name, tensor in load_file(single[0]).items() if "middle_block" not in name}
        save_file(weights, tmp_path / "part.safetensors")
        with pytest.raises(WeightsError, match=r"part\.safetensors"):
            gt.load_generator(tmp_path / "part.safetensors", config=single[1])

    def test_a_pipeline_that_opens_no_single_file(self, single: tuple[Path, Path], tmp_path: Path) -> None:
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyV22Img2ImgPipeline"}))
        with pytest.raises(WeightsError, match="opens no single file as a KandinskyV22Img2ImgPipeline"):
            gt.load_generator(single[0], config=tmp_path)


class TestLoras:
    def test_several_with_scales_are_merged(self, layout: Path, tmp_path: Path) -> None:
        files = [test_diffusion_state.write_lora(tmp_path / str(i), i) for i in range(2)]
        plain = gt.PipelineVariation.from_pretrained(layout, **STRENGTH)
        tuned = gt.PipelineVariation.from_pretrained(layout, lora={str(files[0]): 0.7, str(files[1]): -0.2}, **STRENGTH)
        from safetensors.torch import load_file

        loras = [load_file(file) for file in files]
        changed = 0
        for name, module in plain.pipe.unet.named_modules():
            if f"unet.{name}.lora_A.weight" in loras[0]:
                products = [lora[f"unet.{name}.lora_B.weight"] @ lora[f"unet.{name}.lora_A.weight"] for lora in loras]
                expected = module.weight + 0.7 * products[0] - 0.2 * products[1]
                assert torch.allclose(tuned.pipe.unet.get_submodule(name).weight, expected, atol=1e-6)
                changed += 1
        assert changed > 0
        assert not [name for name, _ in tuned.named_parameters() if "lora" in name]
        tuned.save_pretrained(tmp_path / "saved")
        again = gt.load_generator(tmp_path / "saved")
        assert again.fingerprint() == tuned.fingerprint() != plain.fingerprint()
        one = gt.PipelineVariation.from_pretrained(layout, lora=files[0], **STRENGTH)
        assert len({plain.fingerprint(), tuned.fingerprint(), one.fingerprint()}) == 3

    @pytest.mark.parametrize("lora", [3, {"a/b": "strong"}, {3: 1.0}, {}])
    def test_what_is_none_is_refused(self, layout: Path, lora: Any) -> None:
        with pytest.raises(ConfigError, match="lora="):
            gt.PipelineVariation.from_pretrained(layout, lora=lora, **STRENGTH)

    @pytest.mark.filterwarnings("ignore:.*lora:UserWarning")
    def test_one_for_another_base(self, layout: Path, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        save_file({"transformer.blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 8)}, tmp_path / "other.safetensors")
        with pytest.raises(WeightsError, match=r"lora"):
            gt.PipelineVariation.from_pretrained(layout, lora=tmp_path / "other.safetensors", **STRENGTH)


def with_checker() -> Any:
    """A pipeline whose safety checker finds every image with a bright first pixel unsafe."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    pipe = tiny_pipelines.img2img()
    vision = tiny_diffusion.image_encoder().config.to_dict()
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=32)).eval()
    checker.special_care_embeds_weights.data.fill_(1.0)
    checker.concept_embeds_weights.data.fill_(-1.0)  # lower than any cosine: all images are found unsafe
    pipe.register_modules(safety_checker=checker, feature_extractor=tiny_diffusion.image_processor())
    return pipe


class TestSafeguards:
    @pytest.mark.filterwarnings("ignore:.*safety checker:UserWarning")
    def test_black_images_of_a_real_checker_are_failures(self, tmp_path: Path) -> None:
        pipe = with_checker()
        pipe.save_pretrained(tmp_path / "checked")
        (tmp_path / "checked/README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
        generator = gt.load_generator(tmp_path / "checked", **STRENGTH)
        assert generator(photos(), SEEDS).isnan().all()
        augment = gt.GenerativeAugment(generator, p=1.0)
        with pytest.warns(UserWarning, match="finite|NaN"):
            kept = augment(photos())
        assert torch.equal(kept, photos())
        assert int(augment.nonfinite_count) == 2
        assert generator.notes["Safety checker"].startswith("`StableDiffusionSafetyChecker`: images that it blacks out count as failed")
        without = gt.load_generator(tmp_path / "checked", safety_checker=None, **STRENGTH)
        assert without(photos(), SEEDS).isfinite().all()
        assert without.notes["Safety checker"].startswith("none: it was left out")
        assert without.fingerprint() != generator.fingerprint()

    def test_watermarkers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pipe = tiny_pipelines.img2img_xl()
        assert gt.PipelineVariation(pipe).notes["Watermark"] == "none: it was left out"
        pipe.save_pretrained(tmp_path / "xl")
        loaded = gt.PipelineVariation.from_pretrained(tmp_path / "xl", watermarker=None)
        assert loaded.pipe.watermark is None
        monkeypatch.setattr(loaded.pipe, "watermark", torch.nn.Identity())
        assert loaded.notes["Watermark"] == "an invisible one, by `Identity`"

    def test_others_have_neither(self) -> None:
        assert gt.PipelineVariation(tiny_pipelines.flux()).notes == {}


class TestCards:
    def test_of_a_saved_generator(self, layout: Path, tmp_path: Path) -> None:
        generator = gt.PipelineVariation.from_pretrained(layout, safety_checker=None, **STRENGTH)
        assert generator.license == "openrail++"
        generator.save_pretrained(tmp_path / "saved")
        text = (tmp_path / "saved/README.md").read_text()
        assert text.startswith("---\n")
        assert "license: openrail++" in text.split("---")[1]
        assert "- Licence: openrail++" in text
        assert "- Safety checker: none: it was left out" in text
        assert gt.load_generator(tmp_path / "saved").license == "openrail++"
        generator.save_pretrained(tmp_path / "other", card={"license": "mit"})
        text = (tmp_path / "other/README.md").read_text()
        assert "license: mit" in text.split("---")[1]
        assert "- Licence of the weights: openrail++" in text

    def test_of_a_bank(self, layout: Path, tmp_path: Path) -> None:
        generator = gt.PipelineVariation.from_pretrained(layout, safety_checker=None, **STRENGTH)
        data = [{"image": photo, "key": i} for i, photo in enumerate(photos(2))]
        gt.generate_bank(gt.open_source(data), tmp_path / "bank", generator, variants=1, progress=False)
        manifest = gt.Bank.open(tmp_path / "bank").manifest
        text = bank_card(manifest, 2)
        assert "- Licence of the weights: openrail++" in text
        assert "- Safety checker of the generator: none: it was left out, so generated images are not checked" in text
        assert "license:" not in text.split("---")[1]  # that of the images is for the user to state

    def test_a_licence_with_a_name_of_its_own(self, layout: Path, tmp_path: Path) -> None:
        (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: flux-1-dev-non-commercial-license\n---\n")
        from gentransforms.hub.models import Source, read_license

        assert read_license(Source(tmp_path)).name == "flux-1-dev-non-commercial-license"
        (tmp_path / "README.md").write_text("no front matter: [")
        assert read_license(Source(tmp_path)).name is None
        (tmp_path / "README.md").write_text("---\n: [broken\n---\n")
        assert read_license(Source(tmp_path)).name is None

    @pytest.mark.parametrize(
        ("link", "written"), [("https://example.org/terms", "license_link: https://example.org/terms"), ("LICENSE.md", None)]
    )
    def test_one_that_the_hub_does_not_list_is_written_as_it_takes_it(
        self, layout: Path, tmp_path: Path, link: str, written: str | None
    ) -> None:
        folder = tmp_path / "repository"
        shutil.copytree(layout, folder)
        (folder / "README.md").write_text(
            f"---\nlicense: other\nlicense_name: flux-1-dev-non-commercial-license\nlicense_link: {link}\n---\n"
        )
        generator = gt.PipelineVariation.from_pretrained(folder, safety_checker=None, **STRENGTH)
        generator.save_pretrained(tmp_path / "saved")
        lines = (tmp_path / "saved/README.md").read_text().split("---")[1].splitlines()
        assert "license: other" in lines
        assert "license_name: flux-1-dev-non-commercial-license" in lines
        assert [line for line in lines if line.startswith("license_link")] == ([written] if written else [])
        again = gt.load_generator(tmp_path / "saved")
        assert again.license == generator.license == "flux-1-dev-non-commercial-license"
        again.save_pretrained(tmp_path / "twice")
        assert (tmp_path / "twice/README.md").read_text().split("---")[1] == (tmp_path / "saved/README.md").read_text().split("---")[1]

    @pytest.mark.parametrize(
        ("license", "fields"),
        [
            (None, {}),
            ("Apache-2.0", {"license": "apache-2.0"}),
            ("openrail++", {"license": "openrail++"}),
            ("other", {"license": "other", "license_link": "x"}),
            ("Our Own (2026)", {"license": "other", "license_name": "our-own-2026", "license_link": "x"}),
        ],
    )
    def test_fields(self, license: str | None, fields: dict[str, str]) -> None:
        assert license_fields(license, "x") == fields

    def test_a_link_in_a_repository(self) -> None:
        assert license_link("LICENSE.md", "a/b", None, True) == "https://huggingface.co/a/b/blob/main/LICENSE.md"
        assert license_link("LICENSE.md", "a/b", "v1", True) == "https://huggingface.co/a/b/blob/v1/LICENSE.md"
        assert license_link("LICENSE.md", "a/b", None, False) is None
        assert license_link(None, "a/b", None, True) is None

    @pytest.mark.filterwarnings("ignore:.*`torch_dtype` is deprecated")
    def test_of_pipelines_single_files_and_parts(self, layout: Path, single: tuple[Path, Path], tmp_path: Path) -> None:
        from diffusers import StableDiffusionImg2ImgPipeline

        pipe = StableDiffusionImg2ImgPipeline.from_pretrained(layout, safety_checker=None, requires_safety_checker=False)
        assert gt.PipelineVariation.from_pipeline(pipe, **STRENGTH).license == "openrail++"
        assert gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), **STRENGTH).license is None
        shutil.copy(single[0], tmp_path / "model.safetensors")
        (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
        assert gt.load_generator(tmp_path / "model.safetensors", config=single[1], **STRENGTH).license == "mit"

        files = [test_diffusion_state.write_lora(tmp_path / str(i), i) for i in range(2)]
        (files[0].parent / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
        tuned = gt.PipelineVariation.from_pretrained(layout, lora={str(file): 0.5 for file in files}, **STRENGTH)
        names = [f"Licence of the LoRA {file.parent.name}/{file.name}" for file in files]
        tuned.save_pretrained(tmp_path / "saved")
        for generator in (tuned, gt.load_generator(tmp_path / "saved")):
            assert generator.notes["Licence of the weights"] == "openrail++"
            assert (generator.notes[names[0]], generator.notes[names[1]]) == ("cc-by-nc-4.0", "unknown: look it up")
        assert "Licence of the LoRA" in (tmp_path / "saved/README.md").read_text()
