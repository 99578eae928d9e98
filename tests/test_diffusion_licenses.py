"""Licences of LoRAs, IP-Adapters and ControlNets in what cards of the diffusion generators say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_diffusion_state
import tiny_diffusion as tiny
import torch
from safetensors.torch import load_file, save_file

import gentransforms as gt
from gentransforms.generators.part_licenses import add_licenses, lora_places, read_licenses

FAST: dict[str, Any] = {"num_inference_steps": 2, "scheduler": "ddim"}


def card(folder: Path, license: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\nlicense: {license}\n---\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two ControlNets and a LoRA."""
    folder = tmp_path_factory.mktemp("licenses")
    pipe = tiny.stable_diffusion()
    pipe.save_pretrained(folder / "base")
    card(folder / "base", "creativeml-openrail-m")
    for name in ("edges", "depth"):
        tiny.controlnet(pipe.unet).save_pretrained(folder / name)
    card(folder / "edges", "openrail")
    test_diffusion_state.write_lora(folder / "loras")
    card(folder / "loras", "cc-by-nc-4.0")
    return folder


class TestNotes:
    def test_of_controlnets_and_loras(self, root: Path, tmp_path: Path) -> None:
        pytest.importorskip("peft")
        parts = {"controlnet": [root / "edges", root / "depth"], "condition": ["canny", "canny"], "lora": root / "loras/lora0.safetensors"}
        generator = gt.ControlNetVariation.from_pretrained(root / "base", **parts, **FAST)
        expected = {
            "Licence of the weights": "creativeml-openrail-m",
            "Licence of the LoRA loras/lora0.safetensors": "cc-by-nc-4.0",
            f"Licence of the ControlNet {root.name}/edges": "openrail",
            f"Licence of the ControlNet {root.name}/depth": "unknown: look it up",
        }
        assert expected.items() <= generator.notes.items()
        generator.save_pretrained(tmp_path)
        again: Any = gt.load_generator(tmp_path)
        assert expected.items() <= again.notes.items()
        assert again.fingerprint() == generator.fingerprint()
        text = (tmp_path / "README.md").read_text()
        assert f"- Licence of the ControlNet {root.name}/depth: unknown: look it up" in text

    def test_of_a_pipeline_that_was_put_together(self, root: Path) -> None:
        from diffusers import ControlNetModel

        nets = [ControlNetModel.from_pretrained(root / "edges"), tiny.controlnet(tiny.unet())]
        generator = gt.ControlNetVariation.from_pipeline(tiny.stable_diffusion(), controlnet=nets, condition=["canny", "canny"], **FAST)
        notes = generator.notes
        assert notes["Licence of the ControlNet 1"] == "openrail"
        assert notes["Licence of the ControlNet 2"] == "unknown: look it up"
        assert "Licence of the weights" not in notes

    def test_of_an_ip_adapter(self, root: Path, tmp_path: Path) -> None:
        unet = tiny.stable_diffusion().unet
        models = tmp_path / "adapter/models"
        tiny.image_encoder().save_pretrained(models / "image_encoder")
        weights = {f"{part}.{name}": t for part, ts in tiny.ip_adapter(unet).items() for name, t in ts.items()}
        save_file({name: t.contiguous() for name, t in weights.items()}, models / "ip.safetensors")
        card(tmp_path / "adapter", "apache-2.0")
        choice = (str(tmp_path / "adapter"), "models", "ip.safetensors")
        generator = gt.StableDiffusionVariation.from_pretrained(root / "base", ip_adapter=choice, **FAST)
        name = f"Licence of the IP-Adapter {tmp_path.name}/adapter"
        assert generator.notes[name] == "apache-2.0"
        generator.save_pretrained(tmp_path / "saved")
        assert gt.load_generator(tmp_path / "saved").notes[name] == "apache-2.0"
        inside = gt.StableDiffusionVariation.from_pipeline(generator.pipe, **FAST)
        assert inside.notes["Licence of the IP-Adapter"] == "unknown: look it up"

    def test_of_a_lora_beside_the_weights(self, tmp_path: Path) -> None:
        pipe = tiny.stable_diffusion()
        test_diffusion_state.load_lora(pipe, test_diffusion_state.write_lora(tmp_path), "one")
        generator = gt.ControlNetVariation.from_pipeline(pipe, controlnet=tiny.controlnet(tiny.unet()), **FAST)
        assert generator.notes["Licence of the LoRA"] == "unknown: look it up"


class TestReadLicenses:
    def test_a_file_says_it_itself(self, tmp_path: Path) -> None:
        file = test_diffusion_state.write_lora(tmp_path)
        assert read_licenses({"the LoRA": file}, {}) == {f"the LoRA {tmp_path.name}/{file.name}": None}
        save_file(load_file(file), file, metadata={"modelspec.license": "CC-BY-4.0"})
        assert list(read_licenses({"the LoRA": file}, {}).values()) == ["CC-BY-4.0"]
        file.write_bytes(b"no weights")
        assert list(read_licenses({"the LoRA": file, "the prior": None}, {}).values()) == [None]

    def test_files_of_the_same_name_are_all_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files = [tmp_path / owner / "lora/w.safetensors" for owner in ("alice", "bob")]
        for file, license in zip(files, ("mit", "cc-by-nc-4.0"), strict=True):
            card(file.parent, license)
            file.touch()
        found = read_licenses({"the LoRA": [files[0], files[1], str(files[0])]}, {})
        assert found == {"the LoRA lora/w.safetensors": "mit", "the LoRA lora/w.safetensors (2)": "cc-by-nc-4.0"}
        monkeypatch.chdir(tmp_path / "alice")
        expected = {"the LoRA alice/lora": "mit", f"the prior {tmp_path.name}/alice": None}
        assert read_licenses({"the LoRA": "lora", "the prior": "."}, {}) == expected

    def test_of_a_saved_generator_and_of_new_parts(self, tmp_path: Path) -> None:
        for name, license in (("a/lora", "mit"), ("b/lora", "cc-by-nc-4.0"), ("prior", "apache-2.0")):
            card(tmp_path / name, license)
        saved = {"the LoRA a/lora": "mit", "the prior old/one": "openrail", "the depth model": None}
        here = f"the prior {tmp_path.name}/prior"
        assert add_licenses(saved, {"the LoRA": [], "the prior": None, "the depth model": None}, {}) == saved
        found = add_licenses(saved, {"the LoRA": [tmp_path / "a/lora"], "the prior": tmp_path / "prior"}, {})
        assert found == {"the LoRA a/lora": "mit", "the depth model": None, here: "apache-2.0"}
        other = add_licenses({"the LoRA b/lora": "mit"}, {"the LoRA": [tmp_path / "b/lora"]}, {})
        assert other == {"the LoRA b/lora": "mit", "the LoRA b/lora (2)": "cc-by-nc-4.0"}

    def test_a_network_without_a_place(self) -> None:
        assert read_licenses({"the VAE": torch.nn.Linear(1, 1)}, {}) == {"the VAE": None}

    def test_what_an_option_of_loras_names(self) -> None:
        assert lora_places(None) == []
        assert lora_places("a/b") == ["a/b"]
        assert lora_places(("a/b", "c.safetensors")) == ["a/b"]
        assert lora_places({"a/b": 0.5, ("c/d", "e.safetensors"): 1}) == ["a/b", "c/d"]
