"""What images are compared by: a function from (B, 3, H, W) in [0, 1] to features (B, D)."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentransforms.errors import ConfigError, GeneratorError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.placement import check_placement
from gentransforms.hub.models import find_cached
from gentransforms.paths import local_path
from gentransforms.surroundings import isolate
from gentransforms.wording import name_type, one_line

__all__ = ["Encoder", "load_encoder"]

DEFAULT = "facebook/dinov2-small"


@dataclass(frozen=True)
class Encoder:
    """An encoder, ready to run.

    Attributes:
        name: for the report.
        function: from (B, 3, H, W) float32 in [0, 1], on `device`, to (B, D).
        device: where it runs.
        own: whether it is the generator's own, which flatters the generator.
        digest: of its weights, for the cache of features; empty for a user's function or module, whose code no digest covers.
    """

    name: str
    function: Callable[[Tensor], Any]
    device: torch.device
    own: bool = False
    digest: str = ""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 features (B, D) on the CPU.

        Raises:
            GeneratorError: if the function returns anything else than one row of numbers for each image.
        """
        with isolate(self.device), _evaluating(self.function):
            features = self.function(images.to(self.device))
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images) or not features.is_floating_point():
            found = f"{features.dtype} of shape {tuple(features.shape)}" if isinstance(features, Tensor) else name_type(features)
            raise GeneratorError(
                f"the encoder {self.name} returned {found} for {len(images)} images: expected floating features (B, D), one row each"
            )
        return features.float().cpu()


@contextlib.contextmanager
def _evaluating(function: Any) -> Iterator[None]:
    """Put a module into eval mode, and back: the user may be in the middle of training it."""
    training = [module for module in function.modules() if module.training] if isinstance(function, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def load_encoder(encoder: Any, generator: Callable[[], ImageGenerator | None], device: torch.device | str | int | None = None) -> Encoder:
    """Return the encoder that `encoder` names or is.

    Args:
        encoder: ``"auto"``: DINOv2-small if it is in the cache of the Hub (never the network, so that the same call gives the
            same figures), else the generator's own; ``"generator"``: its `instance_feature`; ``"torchvision:NAME"``,
            ``"timm:NAME"``, a transformers vision model by repository or folder; a module, or a function.
        generator: gives the generator, where it is needed; None if there is none.
        device: where it runs; by default CUDA where there is one, and a module of the user's where it is.

    Raises:
        ConfigError: if there is no such encoder.
    """
    place = check_placement(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(encoder, Encoder):
        return encoder
    if isinstance(encoder, str | Path):
        encoder = str(encoder)
        if encoder == "auto":
            # From its folder: by its name, transformers would ask the network for adapters.
            folder = find_cached(DEFAULT, ("config.json", "preprocessor_config.json", "model.safetensors"))
            return _own(generator(), place, encoder) if folder is None else _wrap(DEFAULT, *_transformers(str(folder)), device=place)
        if encoder == "generator":
            return _own(generator(), place, encoder)
        kind, colon, name = encoder.partition(":")
        if colon and kind in ("torchvision", "timm"):
            return _wrap(encoder, *(_torchvision if kind == "torchvision" else _timm)(name), device=place)
        return _wrap(encoder, *_transformers(encoder), device=place)
    if isinstance(encoder, nn.Module):
        if device is None:
            place = next((tensor.device for tensor in (*encoder.parameters(), *encoder.buffers())), place)
        return Encoder(type(encoder).__name__, encoder.to(place), place)
    if callable(encoder):
        return Encoder(getattr(encoder, "__name__", type(encoder).__name__), encoder, place)
    raise ConfigError(
        f'encoder={encoder!r}: expected "auto", "generator", "torchvision:NAME", "timm:NAME", the repository or folder of a '
        "transformers vision model, or a module or function from images to features"
    )


def _wrap(name: str, model: nn.Module, preprocessing: _Preprocessing, *, device: torch.device) -> Encoder:
    model.to(device).eval()
    digest = hashlib.blake2b(f"{name} {preprocessing}".encode(), digest_size=16)
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)

    def encode(images: Tensor) -> Tensor:
        features: Tensor = model(preprocessing(images))
        return features.mean(dim=tuple(range(2, features.ndim))) if features.ndim > 2 else features  # maps, where a model has no pooling

    return Encoder(name, encode, device, digest=digest.hexdigest())


def _own(generator: ImageGenerator | None, device: torch.device, asked: str) -> Encoder:
    if generator is None or generator.instance_feature is None:
        lacks = "there is no generator at hand" if generator is None else f"{type(generator).__name__} has no instance_feature"
        raise ConfigError(
            f'encoder={asked!r}: {lacks}: give encoder="torchvision:resnet50", a transformers vision model such as {DEFAULT!r}, '
            "or a function from images to features"
        )
    feature = generator.instance_feature
    if generator.required_inputs:
        raise ConfigError(
            f"encoder={asked!r}: {type(generator).__name__} encodes an image with {', '.join(generator.required_inputs)}, which variants "
            'do not have: give another encoder, such as "torchvision:resnet50"'
        )
    generator.to(device=device).eval()
    return Encoder(
        f"{type(generator).__name__}'s own", lambda images: generator.encode(images)[feature], device, own=True,
        digest=generator.fingerprint(),
    )  # fmt: skip


@dataclass(frozen=True)
class _Preprocessing:
    """Resize and normalise as a model was trained."""

    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, images: Tensor) -> Tensor:
        resized = F.interpolate(images, size=self.size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return (resized - resized.new_tensor(self.mean)[:, None, None]) / resized.new_tensor(self.std)[:, None, None]


class _Pooled(nn.Module):
    """The pooled output of a transformers vision model, or its class token where there is none, or none that was trained."""

    def __init__(self, model: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.model, self.pooled = model, pooled

    def forward(self, pixels: Tensor) -> Any:
        output = self.model(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None) if self.pooled else None
        return output.last_hidden_state[:, 0] if pooled is None else pooled


def _torchvision(name: str) -> tuple[nn.Module, _Preprocessing]:
    from torchvision import models

    try:
        weights = models.get_model_weights(name).DEFAULT
    except ValueError as error:
        raise ConfigError(f"encoder='torchvision:{name}': no such model of torchvision: {error}") from error
    if {"video", "detection", "segmentation", "optical_flow"} & set(type(weights).__module__.split(".")):
        raise ConfigError(f"encoder='torchvision:{name}': not a classifier of images: expected one, such as torchvision:resnet50")
    try:
        model = models.get_model(name, weights=weights)
    except Exception as error:  # of the download
        raise ConfigError(f"encoder='torchvision:{name}': its weights cannot be loaded: {one_line(error)}") from error
    head = next(head for head in ("fc", "classifier", "heads", "head") if hasattr(model, head))
    transform = weights.transforms()
    # Where the classes are a convolution of a map, the map is pooled.
    in_maps = any(isinstance(layer, nn.Conv2d) for layer in getattr(model, head).modules())
    setattr(model, head, nn.AdaptiveAvgPool2d(1) if in_maps else nn.Identity())
    return model, _Preprocessing((int(transform.crop_size[0]), int(transform.crop_size[-1])), transform.mean, transform.std)


def _timm(name: str) -> tuple[nn.Module, _Preprocessing]:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"encoder='timm:{name}': timm is not installed ({error}): pip install timm") from error
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # of the registry or the download
        raise ConfigError(f"encoder='timm:{name}': cannot be loaded: {one_line(error)}") from error
    config = timm.data.resolve_data_config({}, model=model)
    _, height, width = config["input_size"]
    return model, _Preprocessing((height, width), config["mean"], config["std"])


def _transformers(name: str) -> tuple[nn.Module, _Preprocessing]:
    """Return a vision model and its preprocessing."""
    from transformers import AutoImageProcessor, AutoModel

    place = str(local_path(name, "encoder")) if name.startswith("~") else name
    if "/" not in place and not Path(place).is_dir():  # no repository of a user or organisation: the network need not be asked
        raise ConfigError(
            f'encoder={name!r}: neither a folder nor a repository such as "facebook/dinov2-small": for a model of another library give '
            f'"torchvision:{name}" or "timm:{name}"'
        )
    try:
        model, report = AutoModel.from_pretrained(place, trust_remote_code=False, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(place)
    except Exception as error:  # of the client, the network or the files
        raise ConfigError(
            f"encoder={name!r}: no such encoder: as a transformers vision model it cannot be loaded: {one_line(error)}"
        ) from error
    pooled = _check_missing(name, model, report["missing_keys"])
    if hasattr(model.config, "mask_ratio"):
        model.config.mask_ratio = 0.0  # a masked autoencoder sees the whole image
    side = _find_side(processor)
    mean, std = (getattr(processor, name, None) or fallback for name, fallback in (("image_mean", (0.0,) * 3), ("image_std", (1.0,) * 3)))
    return _Pooled(getattr(model, "vision_model", model), pooled), _Preprocessing((side, side), mean, std)


def _check_missing(name: str, model: nn.Module, missing: Iterable[str]) -> bool:
    """Return whether the pooling layer is in the checkpoint; without it, transformers fills it with random numbers, in each process others.

    Raises:
        ConfigError: if layers of the vision model itself are not there.
    """
    own = [key for key in missing if not hasattr(model, "vision_model") or key.startswith("vision_model.")]
    lost = sorted(key for key in own if not {"pooler", "mask_token"} & set(key.split(".")))  # no mask hides a patch here
    if lost:
        raise ConfigError(
            f"encoder={name!r}: {len(lost)} weights are not in its checkpoint, such as {lost[0]!r}: its features would be random; give one "
            "whose model is that of its config.json"
        )
    with torch.no_grad():
        for key in own:  # unused; the same in each process, for the digest
            model.get_parameter(key).zero_()
    return not any("pooler" in key.split(".") for key in own)


def _find_side(processor: Any) -> int:
    for size in (getattr(processor, "crop_size", None), getattr(processor, "size", None)):
        for name in ("height", "shortest_edge"):
            try:
                side = size[name] if size is not None else None
            except (KeyError, TypeError):
                side = None
            if side:
                return int(side)
    return 224
