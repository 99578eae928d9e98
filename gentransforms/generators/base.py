"""The interface of all generators: encode a source image once, then sample any number of variants from the result."""

from __future__ import annotations

import inspect
import itertools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.arguments import Recorded, check_saveable, copy_plain
from gentransforms.generators.card import check_card, next_card
from gentransforms.generators.destination import check_folder
from gentransforms.generators.identity import describe_argument, fingerprint, named_weights, to_json, unsaved_state
from gentransforms.generators.placement import check_placement
from gentransforms.generators.turns import take_turn
from gentransforms.hub import models as hub
from gentransforms.hub.card_sections import named_parts
from gentransforms.hub.client import sha256, upload
from gentransforms.hub.replaced import replacing
from gentransforms.paths import local_path
from gentransforms.seeding import check_seeds
from gentransforms.surroundings import isolate_loading
from gentransforms.wording import with_article

__all__ = ["FORMAT_VERSION", "ImageGenerator"]

FORMAT_VERSION = 1
G = TypeVar("G", bound="ImageGenerator")


class ImageGenerator(nn.Module, ABC, metaclass=Recorded):
    """An instance-conditioned image generator.

    A subclass sets `image_size` and `preserves_geometry` as class or instance attributes and implements `encode` and
    `sample`; nothing else is required. Its networks are registered submodules, called through ``__call__``. Its
    constructor's arguments are its `config`, which follows attributes that hold one under its own name. If all are JSON-able,
    `save_pretrained` works; a module passed to the constructor, ``__init__(self, net)``, is described by its class and structure,
    which is enough for a bank.

    Every image must be a function of (source image, generator, seed) alone: draw noise with
    `gentransforms.seeding.sample_noise`, never from torch's global random state.
    `gentransforms.testing.check_generator` checks this contract.

    Attributes:
        image_size: (h, w) of the generated images, in pixels.
        preserves_geometry: whether the layout of the source is kept, so that its boxes and masks stay valid.
        inputs: names of the further inputs of `encode`, one value per image, such as ``("labels",)``.
        instance_feature: the entry of the condition that describes the content of an image, such as ``"features"``; banks use
            it to compare variants with their source (``min_similarity``). None if there is none.
        name_or_path: where it was loaded from, which banks record; None if it was built. Not part of its config.
        license: licence of its weights, by the Hub's name for it, as the card beside them states it; None if that is not known.
        execution_options: names in `config` that affect how images are computed, and change them by rounding alone, such as
            ``("compile",)``. They are not in the fingerprint.

    Example:
        >>> import torch
        >>> from gentransforms.seeding import sample_noise
        >>> class Noisy(ImageGenerator):
        ...     image_size, preserves_geometry = (8, 8), False
        ...     def encode(self, images):
        ...         return {"mean": images.mean((2, 3), keepdim=True)}
        ...     def sample(self, condition, seeds):
        ...         noise = sample_noise(seeds, (3, 8, 8)).to(condition["mean"].device)
        ...         return (condition["mean"] + 0.1 * noise).clamp(0, 1)
        >>> Noisy()(torch.rand(2, 3, 8, 8), torch.tensor([1, 2])).shape
        torch.Size([2, 3, 8, 8])
    """

    image_size: tuple[int, int]
    preserves_geometry: bool
    inputs: tuple[str, ...] = ()
    instance_feature: str | None = None
    name_or_path: str | None = None
    license: str | None = None
    execution_options: tuple[str, ...] = ()
    _license_link: str | None = None  # to its text, where the Hub has no name for it
    _loaded_card: str | None = ""  # the card of where it was loaded from; None if it could not be read
    _part_licenses: Mapping[str, str | None] = MappingProxyType({})  # of LoRAs and other parts from elsewhere, by what they are
    registered: ClassVar[dict[str, type[ImageGenerator]]] = {}
    _init_config: dict[str, Any]
    _followed: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        ImageGenerator.registered[cls.__name__] = cls

    def __new__(cls, *args: Any, **kwargs: Any) -> ImageGenerator:
        # Record the constructor's arguments, so that a subclass need not implement `config`.
        instance = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)
        except TypeError:  # unpickling passes no arguments; a wrong call fails in __init__ with a better message
            return instance
        bound.apply_defaults()
        config = {name: copy_plain(value) for name, value in list(bound.arguments.items())[1:]}
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                config |= config.pop(name, {})
            elif parameter.kind is parameter.VAR_POSITIONAL and not config.get(name):
                config.pop(name, None)
        instance.__dict__["_init_config"] = config
        return instance

    @abstractmethod
    def encode(self, images: Tensor, **inputs: Any) -> Mapping[str, Tensor]:
        """Return the condition of each image: a mapping of tensors with leading B.

        Args:
            images: (B, 3, H, W) float32 in [0, 1], on the generator's device.
            inputs: one value per image for each name in `inputs`: a tensor with leading B, or a list.
        """

    def check_encode_inputs(self, inputs: Mapping[str, Any], count: int) -> None:
        """Raise if inputs are wrong; a subclass checks here what `encode` can read on the CPU alone.

        Transforms and banks call it before they move inputs to the generator's device, where reading a value would wait. Of inputs
        that are on an accelerator already, a transform passes copies on the CPU, at its first call only. Called directly, a
        generator does not call it, so `encode` should check, too. By default it checks nothing. A
        subclass with an `encode` of its own does not inherit the checks, as it may take other inputs.

        Args:
            inputs: those that are given, by name, as for `encode`.
            count: the number of images.

        Raises:
            ConfigError: if a value is out of range, such as a label that is no class.
        """

    @abstractmethod
    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        """Return one new image per row of the condition: (B, 3, *image_size) float32 in [0, 1].

        Args:
            condition: what `encode` returned, or rows of it.
            seeds: (B,) int64 on the CPU.
        """

    def forward(self, images: Tensor, seeds: Tensor, **inputs: Any) -> Tensor:
        """Return ``sample(encode(images, **inputs), seeds)``; seeds must be (B,) int64 on the CPU, one for each image.

        Threads may call it at once; they take turns.
        """
        check_seeds(seeds, len(images))
        with take_turn(self):
            return self.sample(self.encode(images, **inputs), seeds)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that rebuild this generator with ``type(self)(**config)``; JSON-able.

        An attribute that holds an argument under its own name is followed: ``generator.strength = 0.5`` changes the config too.
        A module among the arguments is replaced with a description: its class, and a hash of its structure.
        """
        current = {name: vars(self)[name] for name in self._followed if name in vars(self)}
        return {name: describe_argument(copy_plain(value)) for name, value in (self._init_config | current).items()}

    @property
    def notes(self) -> dict[str, str]:
        """What the cards of this generator and of its banks say beside the figures: the licence of its weights, what was left out."""
        own = {} if self.license is None else {"Licence of the weights": self.license}
        return own | {f"Licence of {part}": license or "unknown: look it up" for part, license in self._part_licenses.items()}

    def _set_license(self, found: hub.License) -> None:
        self.license, self._license_link = found.name, found.link

    def _remember_card(self, source: hub.Source | None) -> None:
        """Keep the card of where it was loaded from, for the next one, and the licence that it states."""
        if source is not None:
            self._loaded_card = hub.read_card(source)
            self._set_license(hub.read_license(source, self._loaded_card or ""))

    @property
    def required_inputs(self) -> tuple[str, ...]:
        """The names in `inputs` that `encode` requires."""
        parameters = inspect.signature(self.encode).parameters
        return tuple(n for n in self.inputs if n in parameters and parameters[n].default is inspect.Parameter.empty)

    @property
    def device(self) -> torch.device:
        """Where the generator's weights are; the CPU for one without weights."""
        # Lazily: listing the 1,830 tensors of a diffusion pipeline takes 11 ms, and happened several times per call.
        return next((t.device for t in itertools.chain(self.parameters(), self.buffers())), torch.device("cpu"))

    @property
    def _is_held_in_place(self) -> bool:
        """Whether it computes on one device for good, and cannot be moved to another."""
        return False

    @property
    def _reads_default_dtype(self) -> bool:
        """Whether images may depend on torch's default dtype, so that it has to be float32, in all threads, while they are made."""
        return True

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the generator's weights; float32 for one without weights."""
        tensors = itertools.chain(self.parameters(), self.buffers())
        return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)

    def fingerprint(self) -> str:
        """Return 32 hexadecimal digits that identify this generator: a hash of class, config, dtype, every weight and every buffer.

        The device, `execution_options` and ``torch.compile`` are left out, because they change images by rounding alone. The
        hash is computed from the current weights at each call, in about a second per gigabyte.

        Raises:
            ConfigError: if the config is not JSON-able.
            WeightsError: if weights are on the meta device.
        """
        config = {name: value for name, value in self.config.items() if name not in self.execution_options}
        return fingerprint(type(self).__name__, config, self.dtype, self._identity_weights())

    def save_pretrained(self, directory: str | Path, *, dtype: torch.dtype | None = None, card: Mapping[str, Any] | None = None) -> None:
        """Write ``config.json``, ``model.safetensors`` and a model card, ``README.md``, into `directory`.

        The card of an earlier save there is kept as it was edited, or else that of where the generator was loaded from. Its figures are
        renewed, and a note marks what was stated of other weights or options: training data and evaluation.

        Args:
            directory: created if it does not exist; files of an earlier save are replaced when all are written.
            dtype: dtype of the floating weights in the file; unchanged by default.
            card: text of the model card by section, for those that are to change: any of ``title``, ``description``, ``training_data``,
                ``license``, ``license_link``, ``intended_use``, ``limits``, ``evaluation``. ``card={}`` begins a new card.

        Raises:
            ConfigError: if the config is not JSON-able, an argument of the constructor is a module, or a section of the
                card is unknown.
            WeightsError: if `directory` holds a generator of another class, files that are not ours, or `dtype` cannot hold the weights.

        Example:
            >>> import tempfile
            >>> from gentransforms.testing import FakeGenerator
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     FakeGenerator().save_pretrained(folder, card={"license": "mit"})
            ...     FakeGenerator.from_pretrained(folder).license
            'mit'
        """
        from safetensors.torch import save_file

        directory = local_path(directory, "directory")
        description = {"format": "gentransforms", "format_version": FORMAT_VERSION, "class": type(self).__name__}
        check_folder(directory, type(self).__name__, [hub.WEIGHTS_FILE])
        config = self._describe_saved(dtype, card)
        page = next_card(self, card, directory, dtype)
        weights = {name: t.detach().cpu().contiguous().clone() for name, t in self._saved_weights().items()}
        weights = {name: t.to(dtype) if dtype is not None and t.is_floating_point() else t for name, t in weights.items()}
        with replacing(directory) as folder:
            save_file(weights, folder / hub.WEIGHTS_FILE, metadata={"format": "pt"})
            # safetensors makes its file readable by the owner only; give it the usual permissions.
            umask = os.umask(0)
            os.umask(umask)
            (folder / hub.WEIGHTS_FILE).chmod(0o666 & ~umask)
            description |= {"weights_sha256": sha256(folder / hub.WEIGHTS_FILE), "config": json.loads(config)}
            (folder / hub.CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n")
            (folder / hub.CARD_FILE).write_text(page, encoding="utf-8")

    def push_to_hub(self, repo_id: str, *, dtype: torch.dtype | None = None, card: Mapping[str, Any] | None = None, **options: Any) -> str:
        """Save and upload to the Hub repository `repo_id`, with a model card; return the address of the commit.

        Args:
            repo_id: ``"organisation/name"``, or the name alone for a repository of your own; created if it does not exist.
            dtype: as in `save_pretrained`.
            card: as in `save_pretrained`: of a repository that has a card, the given sections are replaced, and what else was written on
                the Hub stays, the licence included. ``card={}`` writes a new one.
            options: ``private``, ``token``, ``revision``, ``commit_message``.

        Raises:
            ConfigError: as in `save_pretrained`, before the repository is created.
            WeightsError: if the Hub refuses the repository or the files.
        """
        if type(self).save_pretrained.__module__.partition(".")[0] == "gentransforms":  # another may write what ours cannot
            self._describe_saved(dtype, card)
        return upload(
            lambda directory: self.save_pretrained(directory, dtype=dtype, card=card),
            repo_id,
            given=None if card == {} else named_parts(card or ()),
            **options,
        )

    def _describe_saved(self, dtype: torch.dtype | None, card: Mapping[str, Any] | None) -> str:
        """Return the configuration as JSON; raise ConfigError if the generator cannot be saved, or not with sections of such names."""
        check_card(card or ())
        config = self.config
        for name, value in self._init_config.items():
            if isinstance(value, nn.Module) and isinstance(config.get(name), dict):
                raise ConfigError(
                    f"{type(self).__name__} was built with {name}=<{type(value).__name__}>, a module, which a saved config cannot "
                    f"hold: build it inside {type(self).__name__}.__init__ from numbers and strings; banks work as it is"
                )
        extra = [name for name, value in self.state_dict().items() if not isinstance(value, Tensor)]
        if extra and type(self)._saved_weights is ImageGenerator._saved_weights:
            raise ConfigError(
                f"{type(self).__name__} has extra state that is no tensor, {extra[0]!r}, which safetensors cannot hold: make it an "
                "argument of the constructor or a buffer; banks work as it is"
            )
        check_saveable(type(self), config)
        return to_json(config)

    @classmethod
    @isolate_loading()
    def from_pretrained(
        cls: type[G],
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> G:
        """Load a saved generator, in eval mode.

        Args:
            name_or_path: a bundled name, a folder, or a Hub repository ``"organisation/name"``.
            revision: commit, tag or branch of a Hub repository.
            device: device to load it to; the CPU by default.
            dtype: dtype of its weights; float32 by default.
            token: token for a private repository.
            cache_dir: directory for downloads.
            local_files_only: use only files that have been downloaded already.
            options: constructor arguments that replace those of the saved config.

        Raises:
            WeightsError: if a file is missing, damaged, of another class or of a newer format.
            ConfigError: if an option is unknown.
        """
        place = check_placement(device, dtype)
        source = hub.Source(name_or_path, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
        description = hub.read_config(source)
        hub.check_format(source, description, FORMAT_VERSION)
        _check_class(cls, source, description)
        config = description["config"] | options
        _check_options(cls, source, config, options)
        weights = hub.read_weights(source, description.get("weights_sha256"))
        try:
            generator = cls._from_weights(source, config, weights, dtype or torch.float32)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
        generator.name_or_path = str(name_or_path)
        generator._remember_card(source)
        return generator.to(device=place).eval()

    @classmethod
    def _from_weights(cls: type[G], source: hub.Source, config: dict[str, Any], weights: dict[str, Tensor], dtype: torch.dtype) -> G:
        generator = cls(**config)
        try:
            generator.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise WeightsError(f"{source}: the weights do not fit the config of {cls.__name__}: {error}") from error
        return generator.to(dtype)

    def _saved_weights(self) -> dict[str, Tensor]:
        """Return what `save_pretrained` writes."""
        return named_weights(self)

    def _identity_weights(self) -> dict[str, Tensor]:
        """Return what `fingerprint` covers."""
        # The classes of this package derive such buffers from their config.
        own = unsaved_state(self) if type(self)._saved_weights is ImageGenerator._saved_weights else {}
        return self._saved_weights() | own | self._argument_weights()

    def _argument_weights(self) -> dict[str, Tensor]:
        """Return the weights of modules passed to the constructor that are not submodules of the generator."""
        own = set(map(id, self.modules()))
        given = {name: value for name, value in self._init_config.items() if isinstance(value, nn.Module) and id(value) not in own}
        return {f"{name}.{key}": tensor for name, module in given.items() for key, tensor in named_weights(module).items()}


def _check_class(cls: type[ImageGenerator], source: hub.Source, description: Mapping[str, Any]) -> None:
    saved = ImageGenerator.registered.get(description["class"])
    if inspect.isabstract(cls) or (saved is not None and not issubclass(saved, cls)) or description["class"] != cls.__name__:
        raise WeightsError(
            f"{source} holds {with_article(description['class'])}, not {with_article(cls.__name__)}: "
            f"use gentransforms.load_generator({str(source)!r})"
        )


def _check_options(cls: type[ImageGenerator], source: hub.Source, config: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = sorted(parameters)
    for name in config:
        if name not in known:
            what = f"unknown option {name!r}" if name in options else f"{source}: unknown entry {name!r} in the config"
            raise ConfigError(f"{what} of {cls.__name__}: expected one of {', '.join(known) or 'none'}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in config and parameter.kind is not parameter.VAR_POSITIONAL:
            raise ConfigError(f"{source}: the config lacks {name!r}, which {cls.__name__} needs")
