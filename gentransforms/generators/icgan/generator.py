"""IC-GAN as an ImageGenerator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentransforms.errors import ConfigError, ImageError, MissingInputError, WeightsError
from gentransforms.generators.base import ImageGenerator
from gentransforms.generators.icgan.architecture import BigGANConfig, released_shapes
from gentransforms.generators.icgan.features import ResNet50Features, SmallResNet, build_extractor
from gentransforms.generators.icgan.folding import fold
from gentransforms.generators.icgan.network import BigGANNetwork
from gentransforms.generators.identity import named_weights
from gentransforms.hub import models as hub
from gentransforms.images import fit
from gentransforms.seeding import check_seeds, sample_truncated_noise
from gentransforms.surroundings import isolate_loading
from gentransforms.wording import name_type

__all__ = ["ICGAN"]


_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class ICGAN(ImageGenerator):
    """Instance-conditioned GAN: new images from the neighbourhood of a source image's feature.

    Args:
        network: the architecture, as a `BigGANConfig` or a dict of its fields.
        feature_extractor: the extractor of instance features, as a dict with its ``kind`` and arguments; None for a
            generator that only samples from given features.
        truncation: the latent vector is normal, truncated to ±2 · truncation; smaller is more typical, less diverse.

    Attributes:
        network: called as ``(z, features, labels=None) -> (B, 3, R, R)`` in [-1, 1].
        feature_extractor: called as ``(images) -> (B, feature_dim)``, or None.

    Raises:
        ConfigError: if an argument is not as described.

    Example:
        >>> import torch
        >>> generator = ICGAN.from_pretrained("icgan-cifar10-32", truncation=0.5)
        >>> photos = torch.rand(2, 3, 32, 32)
        >>> condition = generator.encode(photos)  # once, however many variants follow
        >>> [generator.sample(condition, torch.tensor(seeds)).shape for seeds in ([1, 2], [3, 4])]
        [torch.Size([2, 3, 32, 32]), torch.Size([2, 3, 32, 32])]

    Source: Casanova et al., "Instance-Conditioned GAN" (NeurIPS 2021).
    """

    preserves_geometry = False
    instance_feature = "features"
    network: BigGANNetwork
    feature_extractor: nn.Module | None

    def __init__(
        self,
        network: BigGANConfig | Mapping[str, Any],
        feature_extractor: Mapping[str, Any] | None = None,
        truncation: float = 0.7,
    ) -> None:
        super().__init__()
        self.architecture = network if isinstance(network, BigGANConfig) else _architecture(network)
        if isinstance(truncation, bool) or not isinstance(truncation, int | float) or not 0 < truncation < float("inf"):
            raise ConfigError(f"truncation={truncation!r}: expected a positive number; the paper uses 0.7")
        self.truncation = float(truncation)
        side = self.architecture.resolution
        self.image_size = (side, side)
        self.inputs = ("labels",) if self.architecture.class_cond else ()
        self.network = BigGANNetwork(self.architecture)
        self.feature_extractor = None if feature_extractor is None else build_extractor(feature_extractor)
        width = self.architecture.feature_dim if self.feature_extractor is None else self.feature_extractor.width
        if width != self.architecture.feature_dim:
            raise ConfigError(
                f"feature_extractor={dict(feature_extractor or {})}: its features have {width} numbers, "
                f"expected {self.architecture.feature_dim}, the network's feature_dim"
            )
        self._released = _Released({})
        if not self.network.linear_weight.is_meta:
            self._fold(_random_state(self.architecture), torch.float32)
            if self.feature_extractor is not None:
                self.feature_extractor.to(torch.float32)  # whatever torch's default is
            self.eval()

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build this generator again."""
        extractor = self.feature_extractor
        return {
            "network": self.architecture.to_dict(),
            "feature_extractor": None if extractor is None else extractor.config,
            "truncation": self.truncation,
        }

    @property
    def _reads_default_dtype(self) -> bool:
        # Every tensor that is created here has a dtype of its own. What a subclass, another library or a hook does is unknown, and
        # a compiled network would be compiled again.
        return type(self) is not ICGAN or any(_is_foreign(module) for module in self.modules())

    @property
    def required_inputs(self) -> tuple[str, ...]:
        """``labels``, for a class-conditional model."""
        return self.inputs

    def encode(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        """Return ``features`` (B, feature_dim), each of length 1, and ``labels`` (B,) int64 for a class-conditional model.

        Args:
            images: (B, 3, H, W) float32 in [0, 1]; the centre square is used, at the generator's resolution.
            labels: (B,) int64 class labels, for a class-conditional model.

        Raises:
            ImageError: if `images` has another shape or is not floating.
            MissingInputError: if the generator has no feature extractor, or needs labels and got none.
            ConfigError: if the labels have another shape or dtype, or (on the CPU) lie outside the classes.
        """
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            found = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            raise ImageError(f"images is {found}: expected (B, 3, H, W) floating in [0, 1]; GenerativeAugment takes other kinds")
        if self.feature_extractor is None:
            raise MissingInputError(
                "this ICGAN has no feature extractor, so it cannot encode photos: convert it again with "
                "`gentransforms convert icgan SRC DST --features swav.pth.tar`, or load it with "
                "ICGAN.from_pretrained(…, features='swav.pth.tar'); sample({'features': …}, seeds) works without"
            )
        condition = {}
        if self.architecture.class_cond:
            condition["labels"] = self._check_labels(labels, len(images))
        # Resized in float32 at least, as the transform does it, whatever the dtype of the weights.
        wide = torch.promote_types(torch.promote_types(images.dtype, self.dtype), torch.float32)
        images = fit(images.to(wide), self.image_size, self.preserves_geometry).to(self.dtype)
        return {"features": self.feature_extractor(images), **condition}

    def check_encode_inputs(self, inputs: Mapping[str, Any], count: int) -> None:
        """Check the class labels, as `ImageGenerator.check_encode_inputs` says."""
        if self.architecture.class_cond:
            self._check_labels(inputs.get("labels"), count)

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        """Return new images (B, 3, R, R) float32 in [0, 1].

        Args:
            condition: ``features`` (B, feature_dim), and ``labels`` (B,) int64 for a class-conditional model.
            seeds: (B,) int64 on the CPU.
        """
        check_seeds(seeds, len(condition["features"]))
        labels = self._check_labels(condition.get("labels"), len(seeds)) if self.architecture.class_cond else None
        bound = 2 * self.truncation
        z = sample_truncated_noise(seeds, (self.architecture.z_dim,), bound).to(self.device, non_blocking=True)
        made: Tensor = self.network(z, condition["features"], labels)
        return (made.float() + 1) / 2

    def _check_labels(self, labels: Tensor | None, count: int) -> Tensor:
        if labels is None:
            raise MissingInputError(
                "labels are missing: this ICGAN is class-conditional; pass labels= to encode, or give the transform "
                "inputs_getter=lambda sample: {'labels': sample[1]}"
            )
        if not isinstance(labels, Tensor) or labels.shape != (count,) or labels.dtype not in _INTEGERS:
            raise ConfigError(f"labels={labels!r}: expected ({count},) int64, one class per image")
        n_classes = self.architecture.n_classes
        if labels.device.type == "cpu" and count and not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
            raise ConfigError(f"labels from {int(labels.min())} to {int(labels.max())}: expected 0 to {n_classes - 1}")
        return labels.long()  # bytes would index as a mask

    @classmethod
    @isolate_loading()
    def from_pretrained(cls, name_or_path: str | Path, *, features: str | Path | None = None, **options: Any) -> ICGAN:
        """Load a generator; see `ImageGenerator.from_pretrained`.

        Args:
            name_or_path: a bundled name, a folder, or a Hub repository.
            features: a SwAV or torchvision ResNet-50 checkpoint, for a generator saved without a feature extractor.
            options: revision, device, dtype, token, cache_dir, local_files_only, and ``truncation``.
        """
        generator = super().from_pretrained(name_or_path, **options)
        if features is not None:
            from gentransforms.generators.icgan.released import load_resnet50_features

            generator.set_feature_extractor(load_resnet50_features(features))
        return generator

    def set_feature_extractor(self, extractor: nn.Module) -> None:
        """Give the generator a feature extractor, moved to its device and dtype, frozen and in eval mode.

        Raises:
            ConfigError: if it is not an extractor of this package, which a saved config can name, or its width is not the
                network's feature_dim.
        """
        if type(extractor) not in (ResNet50Features, SmallResNet):  # a subclass would be loaded as one of these
            raise ConfigError(
                f"extractor is {name_type(extractor)}: expected a ResNet50Features or a SmallResNet; "
                "gentransforms.generators.icgan.released.load_resnet50_features('swav.pth.tar') reads one, and features of another "
                "network can go to sample({'features': …}, seeds)"
            )
        if extractor.width != self.architecture.feature_dim:
            raise ConfigError(f"the features of the extractor have {extractor.width} numbers: expected {self.architecture.feature_dim}")
        self.feature_extractor = extractor.to(self.device, self.dtype).eval().requires_grad_(False)

    @classmethod
    def from_released(
        cls, state: Mapping[str, Tensor], architecture: BigGANConfig, extractor: nn.Module | None = None, dtype: torch.dtype = torch.float32
    ) -> ICGAN:
        """Build a generator from a state dict in the authors' names, and optionally a feature extractor.

        Raises:
            WeightsError: if keys or shapes are not those of the architecture, with the list.
        """
        with torch.device("meta"):
            generator = cls(architecture)
        generator.to_empty(device="cpu")
        generator._fold(state, dtype)
        if extractor is not None:
            generator.set_feature_extractor(extractor)
        return generator.eval()

    @classmethod
    def _from_weights(cls, source: hub.Source, config: dict[str, Any], weights: dict[str, Tensor], dtype: torch.dtype) -> ICGAN:
        state = {name.removeprefix("network."): t for name, t in weights.items() if name.startswith("network.")}
        extractor, kind = None, config.pop("feature_extractor", None)
        with torch.device("meta"):
            generator = cls(**config)
        try:
            check_state(state, generator.architecture)  # before memory is asked for
            generator.to_empty(device="cpu")
            generator._fold(state, dtype)
            if kind is not None:
                extractor = build_extractor(kind)
                saved = {n.removeprefix("feature_extractor."): t for n, t in weights.items() if n.startswith("feature_extractor.")}
                extractor.load_state_dict(saved, strict=True)
        except RuntimeError as error:
            raise WeightsError(f"{source}: the weights do not fit the config: {error}") from error
        unknown = sorted(n for n in weights if not n.startswith(("network.", "feature_extractor." if kind is not None else "network.")))
        if unknown:
            raise WeightsError(f"{source}: the weights do not fit the config: unexpected {unknown[:5]}")
        if extractor is not None:
            generator.set_feature_extractor(extractor)
        return generator

    def _fold(self, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        check_state(state, self.architecture)
        self.network.to(dtype).load_state_dict(fold(state, self.architecture, dtype))
        self._released = _Released(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if any(t.device.type not in ("cpu", "meta") for t in self._released.values()):  # torch.load with map_location moves every tensor
            self._released = _Released({name: t.cpu() for name, t in self._released.items()})

    def _saved_weights(self) -> dict[str, Tensor]:
        loaded = self._loaded_weights()
        _refuse_nonfinite(loaded, {f"network.{name}": tensor for name, tensor in named_weights(self.network).items()})
        # The network runs on folded weights, from which the released ones cannot be recovered; these are kept as loaded.
        if not self._is_folded(_DTYPES):
            raise WeightsError(
                "the network's weights were changed after loading: the saved format holds the weights before folding, "
                "so train with examples/icgan/train.py and convert the result"
            )
        return loaded

    def _identity_weights(self) -> dict[str, Tensor]:
        if self._is_folded((self.dtype,)):
            return self._loaded_weights()
        # Moved to a coarser dtype and back, the network makes other images than the released weights in this dtype.
        return self._saved_weights() | {f"in use.{name}": tensor for name, tensor in named_weights(self.network).items()}

    def _loaded_weights(self) -> dict[str, Tensor]:
        weights = {f"network.{name}": tensor for name, tensor in self._released.items()}
        if self.feature_extractor is not None:
            weights |= {f"feature_extractor.{name}": t for name, t in named_weights(self.feature_extractor).items()}
        return weights

    def _is_folded(self, dtypes: Sequence[torch.dtype]) -> bool:
        """Return whether the weights in use are the folded released ones, rounded to some of the dtypes."""
        folded = fold(self._released, self.architecture, torch.float64)
        return all(bool(_is_rounded(t.cpu(), folded[name], dtypes).all()) for name, t in named_weights(self.network).items())


def _refuse_nonfinite(loaded: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> None:
    """Raise WeightsError if weights hold NaN or infinity, as they were loaded or as the network computes with them."""
    if bad := [name for name, tensor in loaded.items() if not tensor.isfinite().all()]:
        raise WeightsError(
            f"{len(bad)} of the {len(loaded)} weights hold NaN or infinity, such as {bad[0]}: the training that made them diverged; go "
            "back to a checkpoint before that, and train on with a lower learning rate or in float32"
        )
    if bad := [name for name, tensor in used.items() if not tensor.isfinite().all()]:
        raise WeightsError(
            f"{bad[0]} holds NaN or infinity in {used[bad[0]].dtype}, though the loaded weights are finite: load the generator again, with "
            "dtype=torch.float32 if the weights are too large for another, or find what changed them"
        )


def _is_rounded(found: Tensor, folded: Tensor, dtypes: Sequence[torch.dtype]) -> Tensor:
    """Return which weights are the folded ones rounded to one of the dtypes, as a generator that was moved to it has them."""
    rounded, exact = torch.zeros(found.shape, dtype=torch.bool), found.double()
    for dtype in dtypes:
        limits = torch.finfo(dtype)
        # Half a unit in the last place, and some for rounding in two steps. Folding, in float64, may differ between machines.
        rtol, atol = max(0.65 * limits.eps, 1e-9), max(limits.smallest_normal * limits.eps, 1e-12)
        rounded |= (exact == exact.to(dtype).double()) & torch.isclose(exact, folded, rtol=rtol, atol=atol)
    return rounded


class _Released(dict[str, Tensor]):
    """The released weights, on the CPU. They never change, so copies of the generator share them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Released:
        return self


def check_state(state: Mapping[str, Tensor], architecture: BigGANConfig) -> None:
    """Raise unless `state` has exactly the keys and shapes of the architecture.

    Raises:
        WeightsError: with a list of the keys that are missing, unexpected or of the wrong shape.
    """
    expected = released_shapes(architecture)
    problems = [f"missing {name}" for name in expected.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if problems:
        raise WeightsError(f"{len(problems)} of the keys do not fit the architecture: {'; '.join(sorted(problems))}")


def _is_foreign(module: nn.Module) -> bool:
    known = type(module).__module__.startswith(("torch.nn.", "torchvision.", "gentransforms."))
    return not known or bool(module._compiled_call_impl or module._forward_hooks or module._forward_pre_hooks)


def _architecture(fields: Mapping[str, Any]) -> BigGANConfig:
    if not isinstance(fields, Mapping):
        raise ConfigError(f"network={fields!r}: expected a BigGANConfig or a dict of its fields")
    known = {field.name for field in dataclasses.fields(BigGANConfig)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ConfigError(f"network: unknown fields {unknown}, expected some of {sorted(known)}")
    try:
        return BigGANConfig(**fields)
    except ConfigError as error:
        raise ConfigError(f"network: {error}") from error


def _random_state(architecture: BigGANConfig) -> dict[str, Tensor]:
    """Return the weights of an untrained generator: small, so that images are grey with soft noise."""
    rng = torch.Generator("cpu").manual_seed(0)
    kind: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}  # whatever torch's defaults are set to
    state = {}
    for name, shape in released_shapes(architecture).items():
        if name.endswith(("stored_var", "running_var", "output_layer.0.gain", "bn.weight", "sv0")):
            state[name] = torch.ones(shape, **kind)
        elif name.endswith(("weight", "u0")):
            state[name] = torch.randn(shape, generator=rng, **kind)
        else:
            state[name] = torch.zeros(shape, **kind)
    return state
