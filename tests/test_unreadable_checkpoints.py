"""Files that are no checkpoints are named as what they are, with what to do; nobody is told to unpickle them all the same."""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_diffusion as tiny
import torch
from safetensors.torch import save
from torch import nn

import gentransforms as gt
from gentransforms.errors import ConversionError, WeightsError
from gentransforms.generators.icgan.released import load_resnet50_features, read_released

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456789\n"


def stylegan() -> bytes:
    """As the released pickles begin: persistent objects of torch_utils, whose code they carry."""
    return b"\x80\x04\x95" + b"\x8c\x17torch_utils.persistence\x94\x8c\x15_reconstruct_persistent_obj" + b"training.networks" * 100


def whole_module() -> bytes:
    buffer = io.BytesIO()
    torch.save(nn.Linear(2, 2), buffer)
    return buffer.getvalue()


def truncated() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1000)}, buffer)
    return buffer.getvalue()[:2000]


FOREIGN: dict[str, tuple[Callable[[], bytes], list[str]]] = {
    "html": (
        lambda: b"\n<!DOCTYPE html>\n<html><title>Google Drive - Virus scan warning</title>",
        ["HTML page", "download the file itself"],
    ),
    "lfs": (lambda: POINTER, ["Git LFS pointer", "git lfs pull"]),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), ["HDF5", "PyTorch"]),
    "stylegan": (stylegan, ["StyleGAN", "state dict"]),
    "json": (lambda: b'{"error": "Repository not found"}', ["JSON", "download"]),
    "empty": (lambda: b"", ["empty"]),
    "safetensors": (lambda: save({"a": torch.zeros(2)}), ["safetensors", "suffix"]),
    "archive": (lambda: gzip.compress(b"weights"), ["archive", "unpack"]),
    "module": (whole_module, ["torch.nn.modules.linear.Linear", "state_dict"]),
    "pickle": (lambda: pickle.dumps({"a": Path("x")}), ["pathlib", "state_dict"]),
    "truncated": (truncated, ["damaged", "download"]),
    "text": (lambda: b"hello", ["no checkpoint"]),
}


class TestFiles:
    @pytest.mark.parametrize("kind", FOREIGN)
    def test_where_a_feature_extractor_is_expected(self, kind: str, tmp_path: Path) -> None:
        content, named = FOREIGN[kind]
        file = tmp_path / "resnet.pth"
        file.write_bytes(content())
        self.check(lambda: load_resnet50_features(file), [str(file), *named])

    @pytest.mark.parametrize("kind", ["html", "lfs", "stylegan"])
    def test_where_a_released_generator_is_expected(self, kind: str, tmp_path: Path) -> None:
        content, named = FOREIGN[kind]
        (tmp_path / "state_dict_best0.pth").write_bytes(content())
        self.check(lambda: read_released(tmp_path), ["state_dict_best0.pth", *named])

    def check(self, read: Callable[[], object], named: list[str]) -> None:
        with pytest.raises(ConversionError) as raised:
            read()
        message = str(raised.value)
        assert all(part in message for part in named), message
        assert "weights_only" not in message
        assert "\n" not in message

    def test_damaged_safetensors(self, tmp_path: Path) -> None:
        file = tmp_path / "resnet.safetensors"
        for content, named in ((save({"a": torch.zeros(2)})[:-4], "damaged"), (POINTER, "pointer")):
            file.write_bytes(content)
            self.check(lambda: load_resnet50_features(file), [named])


class TestRepositories:
    """A diffusers repository whose files are not what they should be."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        tiny.variation().save_pretrained(tmp_path / "repository")
        return tmp_path / "repository"

    @pytest.mark.parametrize(("content", "named"), [(POINTER, "Git LFS pointer"), (b"<html></html>", "HTML page")])
    def test_cloned_without_lfs(self, folder: Path, content: bytes, named: str) -> None:
        file = next((folder / "unet").glob("*.safetensors"))
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=rf"unet/{file.name} cannot be read: it is an? {named}"):
            gt.load_generator(folder)

    def test_a_pickle_with_other_objects(self, folder: Path) -> None:
        file = next((folder / "unet").glob("*.safetensors"))
        file.unlink()
        torch.save({"conv_in.weight": Path("x")}, folder / "unet" / "diffusion_pytorch_model.bin")
        with pytest.raises(WeightsError) as raised:
            gt.load_generator(folder)
        assert "weights_only" not in str(raised.value)
        assert "\n" not in str(raised.value)
