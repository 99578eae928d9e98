"""Load any diffusers pipeline from a repository, folder or single file."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.diffusion.loading import _check_whole, _dtype, _options, _place, _weights_errors
from gentransforms.generators.pipelines.calls import takes_image
from gentransforms.generators.unreadable import explain
from gentransforms.hub import models as hub
from gentransforms.paths import local_path
from gentransforms.wording import with_article

__all__ = ["is_single_file", "load_any", "load_single_file"]

_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")


def load_any(
    source: hub.Source, dtype: torch.dtype, variant: str | None = None, folder: str | None = None, needs_image: bool = False, **passed: Any
) -> Any:
    """Load the diffusers pipeline in a repository or folder.

    Args:
        source: where.
        dtype: to load in.
        variant: of the weight files.
        folder: in the repository, of another pipeline than its own.
        needs_image: whether it must take an image: a pipeline from text is loaded as its image-to-image counterpart.
        passed: components that are there already, and other arguments of diffusers' ``from_pretrained``.

    Raises:
        WeightsError: if there is none, it is not one of diffusers, or it takes no image.
    """
    inside = f"{folder}/{hub.PIPELINE_FILE}" if folder else hub.PIPELINE_FILE
    cls = _find_class(source, json.loads(source.file(inside).read_text()).get("_class_name"), needs_image)
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


def load_single_file(
    name_or_path: str | Path, config: str | Path | None, where: Mapping[str, Any], dtype: torch.dtype, needs_image: bool, **passed: Any
) -> Any:
    """Load the pipeline in a single checkpoint file with diffusers' ``from_single_file``.

    Args:
        name_or_path: the file, or ``"organisation/name/file.safetensors"``.
        config: folder or repository in diffusers layout, of the same kind of pipeline; only its configurations and tokenizers are used.
        where: of `hub.Source`: revision, token, cache_dir, local_files_only.
        dtype: to load in.
        needs_image: as in `load_any`.
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
    path, of_file = local_path(name_or_path, "name_or_path"), dict(where)
    layout = hub.Source(config, **{name: value for name, value in of_file.items() if name != "revision"})
    if not path.is_file():
        parts = str(name_or_path).split("/")
        path = hub.Source("/".join(parts[:2]), **of_file).file("/".join(parts[2:]))
    cls = _find_class(layout, json.loads(layout.file(hub.PIPELINE_FILE).read_text()).get("_class_name"), needs_image)
    if not hasattr(cls, "from_single_file"):
        raise WeightsError(
            f"{name_or_path}: diffusers opens no single file as {with_article(cls.__name__)}: give a folder or repository in its layout"
        )
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


def _find_class(source: hub.Source, name: Any, needs_image: bool) -> Any:
    import diffusers

    cls: Any = getattr(diffusers, str(name), None)
    if not isinstance(cls, type) or not issubclass(cls, diffusers.DiffusionPipeline):
        raise WeightsError(
            f"{source} holds {with_article(name)}, which the installed diffusers ({diffusers.__version__}) does not have: "
            "upgrade diffusers; code that comes with a repository is not run"
        )
    if not needs_image or takes_image(cls):
        return cls
    found = next((c for c in _counterparts(cls) if takes_image(c)), None)
    if found is None:
        raise WeightsError(
            f"{source} holds {with_article(name)}, which takes no image, and diffusers has no image-to-image pipeline of its parts"
        )
    return found


def _counterparts(cls: Any) -> list[Any]:
    """Return the image-to-image pipelines that diffusers names for a pipeline from text, or has beside it by their names."""
    import diffusers
    from diffusers.pipelines import auto_pipeline

    found = []
    for model, kind in auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items():
        if kind is cls and (other := auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.get(model)) is not None:
            found.append(other)
    beside = getattr(diffusers, cls.__name__.replace("Pipeline", "Img2ImgPipeline"), None)
    return [*found, *([beside] if isinstance(beside, type) else [])]


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
