"""Load a generator by name: look at what is there, choose the class, load it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.base import FORMAT_VERSION, ImageGenerator
from gentransforms.generators.known import KNOWN, PretrainedTable
from gentransforms.hub import models as hub

__all__ = ["check_option_names", "choose_class", "find_class", "list_pretrained", "load_generator"]

# Our own classes, imported when a folder asks for them; users' classes register when they are defined.
_OURS = {
    "ICGAN": "gentransforms.generators.icgan.generator",
    "StableDiffusionVariation": "gentransforms.generators.diffusion.variation",
    "ControlNetVariation": "gentransforms.generators.diffusion.controlnet",
    "PipelineVariation": "gentransforms.generators.pipelines.variation",
}


def list_pretrained() -> PretrainedTable:
    """Return the known generators, each of a name that `load_generator` takes.

    Of each: its class, licence, whether it is gated, its usual size and steps, what it keeps of a source, and which options its
    repository needs. The one that is bundled comes first; the others are on the Hub, and licences are what was read in their cards.

    Example:
        >>> for row in list_pretrained()[:2]:
        ...     print(row.name, row.license)
        icgan-cifar10-32 Apache-2.0
        sd2-community/stable-diffusion-2-1-unclip-small CreativeML Open RAIL++-M
    """
    return KNOWN


def load_generator(name_or_path: str | Path, **options: Any) -> ImageGenerator:
    """Load any saved generator or repository in diffusers layout, as the class that fits what is there.

    A diffusers repository becomes a `ControlNetVariation` if it holds a ControlNet or ``controlnet=`` is given, a
    `StableDiffusionVariation` if it sees images by an embedding or ``ip_adapter=`` is given, else a `PipelineVariation`.

    Args:
        name_or_path: a bundled name, a folder, a Hub repository ``"organisation/name"``, or a checkpoint file (with ``config=``).
        options: those of `ImageGenerator.from_pretrained` (revision, device, dtype, token, cache_dir,
            local_files_only) and of the class found.

    Raises:
        WeightsError: if nothing is there, or its class is not known.
        ConfigError: if an option is unknown, with those that the class takes.

    Example:
        >>> load_generator("icgan-cifar10-32").image_size
        (32, 32)
    """
    kind = choose_class(name_or_path, options)
    check_option_names(kind, options)
    return kind.from_pretrained(name_or_path, **options)


def check_option_names(kind: type[ImageGenerator], names: Iterable[str]) -> None:
    """Raise unless a class's `from_pretrained` takes options of these names.

    Raises:
        ConfigError: with the names that it takes.
    """
    parameters = list(inspect.signature(kind.from_pretrained).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return  # it checks them itself
    known = sorted(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    if unknown := sorted(set(names) - set(known)):
        raise ConfigError(f"unknown option {unknown[0]!r} of {kind.__name__}: expected one of {', '.join(known)}")


def choose_class(name_or_path: str | Path, options: Mapping[str, Any]) -> type[ImageGenerator]:
    """Return the class that loads what a name or path stands for.

    Args:
        name_or_path: a bundled name, a folder, a Hub repository, or a checkpoint file of diffusers.
        options: of its ``from_pretrained``; those that say where to look are used here.

    Raises:
        WeightsError: if nothing is there, or its class is not known.
    """
    from gentransforms.generators.pipelines.opening import is_single_file

    if is_single_file(name_or_path):
        return _class("PipelineVariation", None)
    names = ("revision", "token", "cache_dir", "local_files_only")
    source = hub.Source(name_or_path, **{name: options[name] for name in names if name in options})
    return find_class(source, options)


def find_class(source: hub.Source, options: Collection[str] = ()) -> type[ImageGenerator]:
    """Return the class that loads what is in a folder or repository.

    Args:
        source: where.
        options: names of those that are given, such as ``controlnet`` or ``ip_adapter``.

    Raises:
        WeightsError: if nothing is there, or its class is not known.
    """
    description = hub.own_config(source)
    if description is None and (pipeline := hub.pipeline_class(source)) is not None:
        return _class(_class_for(pipeline, options), source)
    description = description or hub.read_config(source)
    hub.check_format(source, description, FORMAT_VERSION)
    return _class(description["class"], source)


def _class_for(pipeline: str, options: Collection[str]) -> str:
    """Return the class that serves a pipeline of diffusers best."""
    from gentransforms.generators.diffusion.loading import BASES

    if "controlnet" in options or ("ControlNet" in pipeline and pipeline in BASES):
        return "ControlNetVariation"
    # Our own loop sees an image by its embedding: those of text alone, with the same parts, run as image-to-image.
    by_embedding = pipeline in ("StableUnCLIPImg2ImgPipeline", "StableDiffusionImageVariationPipeline") or "ip_adapter" in options
    return "StableDiffusionVariation" if by_embedding else "PipelineVariation"


def _class(name: str, source: hub.Source | None) -> type[ImageGenerator]:
    if name in _OURS:
        return getattr(importlib.import_module(_OURS[name]), name)  # type: ignore[no-any-return]
    if name not in ImageGenerator.registered:
        known = sorted(set(_OURS) | set(ImageGenerator.registered))
        raise WeightsError(
            f"{source} holds the class {name!r}, which is not known here: import the module that defines it first "
            f"(known: {', '.join(known)})"
        )
    return ImageGenerator.registered[name]
