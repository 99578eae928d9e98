"""Frozen backbones: loading them from checkpoints, and extracting their features."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from backbones import Backbone, build_backbone
from config import BackboneSettings, Settings, build_settings
from safetensors import SafetensorError
from safetensors.torch import load_file
from shared import is_finite
from torch import Tensor, nn

import gentransforms as gt


class GeneratorsEncoder(nn.Module):
    """The encoder of a generator as a backbone: images (B, 3, S, S) in [0, 1] to flattened features (B, width).

    `condition` names one of the encoder's tensors; the default is its features, or else the first tensor.
    """

    def __init__(self, generator: gt.ImageGenerator, condition: str | None = None) -> None:
        super().__init__()
        self.generator, self.condition = generator.eval().requires_grad_(False), condition
        self.size = max(generator.image_size)
        self.width = self(torch.zeros(1, 3, self.size, self.size, device=generator.device)).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        found = self.generator.encode(images)
        name = self.condition or ("features" if "features" in found else next(iter(found)))
        if name not in found:
            raise SystemExit(f"--condition {name!r}: the encoder gives {sorted(found)}")
        return found[name].flatten(1).float()


def load_generator(name: str, option: str, **options: Any) -> gt.ImageGenerator:
    """Return a generator: bundled name, folder or repository; error messages show it after `option`, as the user wrote it."""
    try:
        return gt.load_generator(name, **options)
    except gt.GentransformsError as error:
        raise SystemExit(f"{option + name!r}: {error}") from error


def load_backbone(path: str | Path, backbone: BackboneSettings | None = None) -> tuple[Backbone, Settings | None]:
    """Return the frozen backbone of a run, and the run's settings.

    `path` is the folder of a run or its ``.ckpt``; or a file of weights under torchvision's names (``.pth``,
    ``.safetensors``), for which `backbone` gives the architecture; its classifier is ignored.
    """
    file, content = _read(Path(path))
    if "settings" in content:
        return _of_run(file, content)
    if backbone is None:
        raise SystemExit(f"{str(file)!r} does not tell its architecture: give --backbone, for example resnet50")
    content = content.get("state_dict", content.get("model", content))
    weights = {
        f"trunk.{name.removeprefix('module.')}": w for name, w in content.items() if not name.removeprefix("module.").startswith("fc.")
    }
    return _frozen(backbone, weights, file), None


def load_run(path: str | Path) -> tuple[Backbone, Settings]:
    """Return the frozen backbone and the settings of a run, given its folder or ``.ckpt``."""
    file, content = _read(Path(path))
    if "settings" not in content:
        raise SystemExit(f"{str(file)!r} does not come from train.py: expected the folder of a run, or its .ckpt")
    return _of_run(file, content)


def find_checkpoint(path: Path) -> Path:
    """Return the file that holds the weights, given the folder of a run or that file itself."""
    file = path / "last.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise SystemExit(f"no checkpoint {str(file)!r}: expected the folder of a run of train.py, a .ckpt, or a file of weights")
    return file


def _read(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file that holds the weights, and what is in it."""
    file = find_checkpoint(path)
    try:
        content = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise SystemExit(f"{str(file)!r} cannot be read: it is truncated, or holds more than weights; copy it again") from error
    if not isinstance(content, dict):
        raise SystemExit(f"{str(file)!r} holds a {type(content).__name__}: expected a dictionary of weights")
    return file, content


def _of_run(file: Path, content: dict[str, Any]) -> tuple[Backbone, Settings]:
    settings = build_settings(content["settings"])
    weights = {name.removeprefix("backbone."): w for name, w in content["state_dict"].items() if name.startswith("backbone.")}
    return _frozen(settings.backbone, weights, file), settings


def _frozen(s: BackboneSettings, weights: dict[str, Tensor], file: Path) -> Backbone:
    if not is_finite(weights):
        raise SystemExit(f"{str(file)!r} holds weights that are NaN or infinite: their training diverged, and there is nothing to measure")
    backbone = build_backbone(s)
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise SystemExit(f"{str(file)!r} does not hold the weights of {s.name} with the {s.stem} stem: {error}") from error
    return backbone.eval().requires_grad_(False)


@torch.no_grad()
def extract_features(backbone: nn.Module, batches: Iterable[dict[str, Tensor]], device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Return features (N, width) float32 and labels (N,) int64 of a loader of whole images."""
    backbone.to(device)
    features, labels = [], []
    for batch in batches:
        features.append(backbone(batch["images"].to(device, non_blocking=True).float() / 255).float().cpu())
        labels.append(batch["labels"])
    return torch.cat(features), torch.cat(labels)
