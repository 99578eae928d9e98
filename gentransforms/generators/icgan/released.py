"""Read the authors' released folders and the checkpoints of their feature extractor, weights only.

A released folder ``<name>/`` holds ``state_dict_best*.pth`` (its key ``config`` is the architecture) and
``G_ema_best*.pth`` (the averaged generator). Source: the released models of Casanova et al. (NeurIPS 2021).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from gentransforms.errors import ConversionError, GentransformsError
from gentransforms.generators.icgan.architecture import BigGANConfig
from gentransforms.generators.icgan.features import ResNet50Features
from gentransforms.generators.unreadable import explain
from gentransforms.paths import local_path

__all__ = ["load_resnet50_features", "read_released"]


def read_released(source: str | Path) -> tuple[dict[str, Tensor], BigGANConfig]:
    """Return the state dict (without ``module.`` prefixes) and the architecture of a released folder."""
    folder = local_path(source, "source")
    records = sorted(folder.glob("state_dict_best*.pth"))
    if not records:
        raise ConversionError(f"{folder}: no state_dict_best*.pth found: expected the folder of a released IC-GAN")
    loaded = [(_load(path), path) for path in records]
    for record, path in loaded:
        if not isinstance(record, Mapping) or not isinstance(record.get("config"), Mapping):
            raise ConversionError(f"{path}: no 'config' in it: expected the state_dict_best*.pth of a released IC-GAN")
    record, path = min(loaded, key=lambda pair: float(pair[0].get("best_FID", float("inf"))))
    weights = folder / path.name.replace("state_dict_", "G_ema_")
    if not weights.is_file():
        raise ConversionError(f"{folder}: {weights.name} is missing, which belongs to {path.name}")
    state = {name.removeprefix("module."): tensor for name, tensor in _tensors(weights).items()}
    if "shared_feat.weight" not in state:
        raise ConversionError(f"{weights}: missing shared_feat.weight: is this an instance-conditional BigGAN generator?")
    feature_dim = state["shared_feat.weight"].shape[-1]
    has_table = "shared.weight" in state or bool(record["config"].get("class_cond"))
    return state, BigGANConfig.from_released(record["config"], feature_dim=feature_dim, has_table=has_table)


def load_resnet50_features(path: str | Path) -> ResNet50Features:
    """Return the extractor with the weights of a SwAV or torchvision ResNet-50 checkpoint, ``.pth`` or ``.safetensors``.

    SwAV's ``module.`` prefix, projection head and prototypes, and a classifier ``fc``, are dropped.

    Raises:
        ConversionError: if the file cannot be read, or keys are missing, unexpected or of the wrong shape.
    """
    tensors = _tensors(local_path(path, "features"))
    state = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    state = {name: t for name, t in state.items() if not name.startswith(("projection_head", "prototypes", "fc."))}
    extractor = ResNet50Features()
    try:
        extractor.backbone.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ConversionError(f"{path}: not a ResNet-50 checkpoint in torchvision's layout: {error}") from error
    return extractor.eval().requires_grad_(False)


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ConversionError(f"{path}: cannot be read as safetensors: {explain(path, error)}") from error
    loaded = _load(path)
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(loaded, Mapping) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise ConversionError(f"{path}: expected a dict of tensors")
    return dict(loaded)


def _load(path: Path) -> Any:
    """Unpickle with ``weights_only=True``, and of NumPy only what a stored float64 scalar needs."""
    scalar = numpy.float64(0).__reduce__()[0]
    allowed: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed += [numpy.dtype, type(numpy.dtype(numpy.float64))]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        if isinstance(error, GentransformsError):
            raise
        raise ConversionError(f"{path}: cannot be read as weights alone: {explain(path, error)}") from None  # torch advises to unpickle
