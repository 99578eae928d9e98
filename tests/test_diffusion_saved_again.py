"""Saved again into the same folder: the weights that are loaded are the new ones, in however many files the old ones were."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion as tiny
import tiny_pipelines
import torch
from torch import nn

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.hub.replaced import replaced_files

pytestmark = pytest.mark.usefixtures("one_thread")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def mode(path: Path) -> int:
    return path.stat().st_mode


def save(generator: Any, folder: Path, patch: pytest.MonkeyPatch, sharded: bool) -> None:
    """Save, in files of 100 kB in place of 10 GB."""
    from diffusers.models.modeling_utils import ModelMixin
    from transformers import PreTrainedModel

    with patch.context() as here:
        for kind in (ModelMixin, PreTrainedModel):

            def small(self: Any, where: Any, *args: Any, own: Any = kind.save_pretrained, **options: Any) -> Any:
                return own(self, where, *args, **{**options, "max_shard_size": "100KB"})

            if sharded:
                here.setattr(kind, "save_pretrained", small)
        generator.save_pretrained(folder)


def change(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)


def variation() -> Any:
    return gt.StableDiffusionVariation.from_pipeline(tiny.unclip(), num_inference_steps=2)


def controlled() -> Any:
    pipe = tiny.stable_diffusion()
    return gt.ControlNetVariation.from_pipeline(pipe, controlnet=tiny.controlnet(pipe.unet), num_inference_steps=2)


def any_pipeline() -> Any:
    return gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), strength=0.5, num_inference_steps=4)


class TestSavedAgain:
    @pytest.mark.parametrize(
        ("make", "sharded"),
        [
            *((make, False) for make in (variation, any_pipeline)),
            pytest.param(controlled, False, marks=pytest.mark.slow),
            (variation, True),
            *(pytest.param(make, True, marks=pytest.mark.slow) for make in (controlled, any_pipeline)),
        ],
    )
    def test_the_new_weights_are_loaded(self, make: Any, sharded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        generator, folder = make(), tmp_path / "saved"
        save(generator, folder, monkeypatch, not sharded)
        assert any(".index.json" in name for name in files(folder)) is not sharded
        for network in generator.children():
            change(network)
        for name in ("unet/notes.txt", "unet/diffusion_pytorch_model.fp16.safetensors", "model-00001-of-00002.safetensors"):
            (folder / name).write_text("of others")
        save(generator, folder, monkeypatch, sharded)
        assert gt.load_generator(folder).fingerprint() == generator.fingerprint()
        save(generator, tmp_path / "clean", monkeypatch, sharded)
        assert files(folder) == files(tmp_path / "clean") | {
            "unet/notes.txt", "unet/diffusion_pytorch_model.fp16.safetensors", "model-00001-of-00002.safetensors",
        }  # fmt: skip
        assert not [path for path in folder.iterdir() if path.name.startswith(".")], "nothing is left behind"

    def test_into_the_folder_it_was_loaded_from(self, tmp_path: Path) -> None:
        variation().save_pretrained(tmp_path)
        generator = gt.load_generator(tmp_path)
        change(generator.unet)
        generator.save_pretrained(tmp_path)
        assert gt.load_generator(tmp_path).fingerprint() == generator.fingerprint()

    def test_a_save_that_fails_leaves_the_old_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = variation()
        generator.save_pretrained(tmp_path / "old")
        before, there = generator.fingerprint(), files(tmp_path / "old")
        change(generator.unet)
        with monkeypatch.context() as here:
            here.setattr(
                type(generator.vae), "save_pretrained", lambda *args, **options: (_ for _ in ()).throw(OSError(28, "no space left"))
            )
            for folder in ("old", "new"):
                with pytest.raises(OSError, match="no space left"):
                    generator.save_pretrained(tmp_path / folder)
        assert files(tmp_path / "old") == there
        assert gt.load_generator(tmp_path / "old").fingerprint() == before
        assert not (tmp_path / "new").exists()

    def test_permissions_are_those_of_new_files(self, tmp_path: Path) -> None:
        variation().save_pretrained(tmp_path / "saved")
        (tmp_path / "plain").mkdir()
        (tmp_path / "plain" / "file").touch()
        for path, like in ((tmp_path / "saved", tmp_path / "plain"), (tmp_path / "saved" / "unet", tmp_path / "plain")):
            assert mode(path) == mode(like)
        assert mode(tmp_path / "saved" / "config.json") == mode(tmp_path / "plain" / "file")

    @pytest.mark.usefixtures("no_repository")
    def test_a_card_that_is_refused_makes_no_folder_and_no_repository(self, tmp_path: Path) -> None:
        for save in (partial(variation().save_pretrained, tmp_path / "saved"), partial(variation().push_to_hub, "org/name")):
            with pytest.raises(ConfigError, match="card"):
                save(card={"colour": "red"})
        assert not (tmp_path / "saved").exists()


class TestReplacedFiles:
    @pytest.mark.parametrize(
        ("written", "there", "expected"),
        [
            (["a/m.safetensors"], ["a/m-00001-of-00002.safetensors", "a/m.safetensors.index.json"], [0, 1]),
            (
                ["a/m-00001-of-00001.safetensors", "a/m.safetensors.index.json"],
                ["a/m.safetensors", "a/m-00001-of-00002.safetensors"],
                [0, 1],
            ),
            (["a/m.safetensors"], ["a/m.fp16.safetensors", "a/m.bin", "a/mm.safetensors", "b/m-00001-of-00002.safetensors"], []),
            (["a/m.safetensors"], ["a/m-1.safetensors", "a/b/m-00001-of-00002.safetensors", "m.safetensors.index.json"], []),
            (["m.safetensors", "a/config.json"], ["m-00001-of-00002.safetensors", "a/m.safetensors"], []),
            (["a[1]/m.safetensors"], ["a[1]/m.safetensors.index.json", "a1/m.safetensors.index.json"], [0]),
            ([], ["a/m.safetensors"], []),
        ],
    )
    def test_of_weights_in_the_same_folder(self, written: list[str], there: list[str], expected: list[int]) -> None:
        assert replaced_files(written, [*there, *written]) == sorted(there[i] for i in expected)
