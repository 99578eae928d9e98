"""Load any diffusers pipeline from a repository, folder or single file."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.diffusion.loading import _check_whole, _dtype, _options, _place, _weights_errors
from gentransforms.generators.pipelines.kinds.classes import check_kind, is_modular, read_masks, takes_image
from gentransforms.generators.pipelines.kinds.counterparts import find_counterpart
from gentransforms.generators.pipelines.kinds.roles import find_roles
from gentransforms.generators.unreadable import explain
from gentransforms.hub import models as hub
from gentransforms.paths import local_path
from gentransforms.wording import with_article

__all__ = ["Wanted", "check_opens", "is_single_file", "load_any", "load_single_file"]

# Whether there is a prior, and the names of the options of the pipeline's call.
Wanted = tuple[bool, Collection[str]]
_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")


def load_any(
    source: hub.Source,
    dtype: torch.dtype,
    variant: str | None = None,
    folder: str | None = None,
    wanted: Wanted | None = None,
    **passed: Any,
) -> Any:
    """Load the diffusers pipeline in a repository or folder.

    Args:
        source: where.
        dtype: to load in.
        variant: of the weight files.
        folder: in the repository, of another pipeline than its own.
        wanted: what a generator gives it: a pipeline from text or for inpainting is loaded as its image-to-image counterpart, and one
            that no generator can call is refused before its weights are fetched. None for a prior.
        passed: components that are there already, and other arguments of diffusers' ``from_pretrained``.

    Raises:
        WeightsError: if there is none, it is not one of diffusers, or it takes no image.
    """
    inside = f"{folder}/{hub.PIPELINE_FILE}" if folder else hub.PIPELINE_FILE
    cls = _find_class(source, json.loads(source.file(inside).read_text()).get("_class_name"), wanted)
    kind = {} if variant is None else {"variant": variant}
    place = _place(source) if folder is None else str(source.file(inside).parent)
    with _weights_errors(source, variant, folder):
        pipe = cls.from_pretrained(place, **_dtype(cls, dtype), **_options(source), **kind, **_for_constructor(cls, passed))
    _check_whole(source, pipe)
    return pipe


def is_single_file(name_or_path: str | Path) -> bool:
    """Return whether a name is that of a single checkpoint file: a local path, or ``"organisation/name/file.safetensors"`` on the Hub."""
    name = str(name_or_path)
    return name.endswith(_SUFFIXES) and (local_path(name_or_path, "name_or_path").is_file() or name.count("/") >= 2)


def _check_opens_files(name_or_path: str | Path, cls: type) -> None:
    if not hasattr(cls, "from_single_file"):
        raise WeightsError(
            f"{name_or_path}: diffusers opens no single file as {with_article(cls.__name__)}: give a folder or repository in its layout"
        )


def load_single_file(
    name_or_path: str | Path, config: str | Path | None, where: Mapping[str, Any], dtype: torch.dtype, wanted: Wanted, **passed: Any
) -> Any:
    """Load the pipeline in a single checkpoint file with diffusers' ``from_single_file``.

    Args:
        name_or_path: the file, or ``"organisation/name/file.safetensors"``.
        config: folder or repository in diffusers layout, of the same kind of pipeline; only its configurations and tokenizers are used.
        where: of `hub.Source`: revision, token, cache_dir, local_files_only.
        dtype: to load in.
        wanted: as in `load_any`.
        passed: components that are there already.

    Raises:
        ConfigError: if `config` is missing.
        WeightsError: if a file is missing, damaged or of another kind, or diffusers opens no single file of this pipeline.
    """
    if config is None:
        raise ConfigError(
            f"config is missing: {str(name_or_path)!r} is a single file; give config=, a folder or repository in diffusers layout of "
            "the same kind of pipeline, such as config='stabilityai/stable-diffusion-xl-base-1.0'"
        )
    import diffusers

    path, of_file = local_path(name_or_path, "name_or_path"), dict(where)
    layout = hub.Source(config, **{name: value for name, value in of_file.items() if name != "revision"})
    if not path.is_file():
        parts = str(name_or_path).split("/")
        path = hub.Source("/".join(parts[:2]), **of_file).file("/".join(parts[2:]))
    name = json.loads(layout.file(hub.PIPELINE_FILE).read_text()).get("_class_name")
    named = getattr(diffusers, name, None) if isinstance(name, str) else None
    if named is not None:  # first, since what the pipeline needs besides, such as a prior, would not help
        _check_opens_files(name_or_path, named)
    cls = _find_class(layout, name, wanted)
    _check_opens_files(name_or_path, cls)
    try:
        # With options for the layout: the file is here already.
        pipe = cls.from_single_file(
            str(path), config=_place(layout), **_dtype(cls, dtype), **_options(layout), **_for_constructor(cls, passed)
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, ImportError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = next(iter(lines), type(error).__name__).rstrip(".")
        if path.suffix != ".safetensors" or not _is_safetensors(path):
            text = explain(path, error)
        raise WeightsError(f"{name_or_path}: not loadable as {with_article(cls.__name__)} of the kind of {layout}: {text}") from error
    _check_whole(layout, pipe)
    return pipe


def _is_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def check_opens(pipe: Any, options: Mapping[str, Any]) -> None:
    """Raise if a saved pipeline would not be opened again, as its class is none that diffusers has under its name.

    Args:
        pipe: the pipeline.
        options: of the generator, for the message.

    Raises:
        ConfigError: with what to do.
    """
    import diffusers

    cls = type(pipe)
    if getattr(diffusers, cls.__name__, None) is not cls:
        given = "".join(f", {name}={value!r}" for name, value in options.items())
        raise ConfigError(
            f"{with_article(cls.__name__)} of {cls.__module__} is no class of diffusers, and its generator could not be loaded: loading "
            "runs no code that comes with files. Save the pipeline, generator.pipe.save_pretrained(folder), load that with its class or "
            "with diffusers.DiffusionPipeline.from_pretrained(folder, custom_pipeline=…), and build the generator again: "
            f"PipelineVariation.from_pipeline(pipe{given})"
        )


def _find_class(source: hub.Source, name: Any, wanted: Wanted | None) -> Any:
    """Return the class that a pipeline is loaded as.

    Raises:
        WeightsError: if diffusers has no such class, or a generator cannot call it.
    """
    import diffusers

    held = name[-1] if isinstance(name, list) and name else name
    cls: Any = getattr(diffusers, str(held), None)
    if isinstance(cls, type) and is_modular(cls):
        check_kind(cls)
    if not isinstance(name, str) or not isinstance(cls, type) or not issubclass(cls, diffusers.DiffusionPipeline):
        raise WeightsError(
            f"{source} holds {with_article(str(held))}, which the installed diffusers ({diffusers.__version__}) does not have: "
            "if it is one of diffusers, upgrade that; a community pipeline or a class of your own, whose code is not run here, has to be "
            "loaded with that class or with diffusers.DiffusionPipeline.from_pretrained(…, custom_pipeline=…), and passed to "
            "PipelineVariation.from_pipeline"
        )
    if wanted is None:
        return cls
    has_prior, options = wanted
    try:
        check_kind(cls)
        masked = bool(read_masks(cls))
        found = find_counterpart(cls) if masked or not (has_prior or takes_image(cls)) else cls
        find_roles(found or cls, has_prior, options)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    return found


def _for_constructor(cls: Any, passed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a pipeline's constructor that leave out what was passed as None.

    Raises:
        ConfigError: if the pipeline takes no such component.
    """
    given, taken = dict(passed), inspect.signature(cls.__init__).parameters
    checker = given.pop("safety_checker") if "safety_checker" in given and "safety_checker" not in taken else None
    if checker is not None:
        raise ConfigError(f"safety_checker={type(checker).__name__}: {with_article(cls.__name__)} has none: leave it out")
    if "safety_checker" in given and given["safety_checker"] is None and "requires_safety_checker" in taken:
        given["requires_safety_checker"] = False
    if "watermarker" in given and given.pop("watermarker") is None and "add_watermarker" in taken:
        given["add_watermarker"] = False
    return given
