"""Load a generator by name: look at what is there, choose the class, load it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.base import FORMAT_VERSION, ImageGenerator
from gentransforms.hub import models as hub

__all__ = ["PretrainedTable", "check_option_names", "choose_class", "find_class", "list_pretrained", "load_generator"]

# Our own classes, imported when a folder asks for them; users' classes register when they are defined.
_OURS = {
    "ICGAN": "gentransforms.generators.icgan.generator",
    "StableDiffusionVariation": "gentransforms.generators.diffusion.variation",
    "ControlNetVariation": "gentransforms.generators.diffusion.controlnet",
    "PipelineVariation": "gentransforms.generators.pipelines.variation",
}


@dataclass(frozen=True)
class Pretrained:
    """One row of `list_pretrained`."""

    name: str
    class_name: str
    repository: str
    license: str
    description: str


class PretrainedTable(tuple[Pretrained, ...]):
    """Known generators, as a tuple of rows that prints as a table."""

    def __str__(self) -> str:
        header = ("name", "class", "repository", "licence", "what it is")
        rows = [header] + [(r.name, r.class_name, r.repository, r.license, r.description) for r in self]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    __repr__ = __str__


_KNOWN = PretrainedTable(
    [
        Pretrained(
            "icgan-cifar10-32", "ICGAN", "bundled with the package", "Apache-2.0",
            "IC-GAN, 32 pixels, trained on CIFAR-10 without labels",
        ),
    ]
)  # fmt: skip


def list_pretrained() -> PretrainedTable:
    """Return the known generators: name, class, repository, licence, and what each is.

    Example:
        >>> [row.name for row in list_pretrained()]
        ['icgan-cifar10-32']
    """
    return _KNOWN


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
    # From an image and a text alone our own loop makes nothing: it wants to see the image by its embedding.
    by_its_call = pipeline not in BASES or ("Img2Img" in pipeline and "UnCLIP" not in pipeline)
    return "PipelineVariation" if by_its_call and "ip_adapter" not in options else "StableDiffusionVariation"


def _class(name: str, source: hub.Source | None) -> type[ImageGenerator]:
    if name in _OURS:
        return getattr(importlib.import_module(_OURS[name]), name)  # type: ignore[no-any-return]
    if name not in ImageGenerator.registered:
        known = sorted(set(_OURS) | set(ImageGenerator.registered))
        raise WeightsError(
            f"{source} holds a {name!r}, which is not known here: import the module that defines it first (known: {', '.join(known)})"
        )
    return ImageGenerator.registered[name]
