"""Call diffusers pipelines: the options that they take, and what comes out."""

from __future__ import annotations

import ast
import contextlib
import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentransforms.errors import ConfigError, GeneratorError
from gentransforms.generators.pipelines.kinds.classes import MANAGED, call_parameters
from gentransforms.wording import name_type

__all__ = [
    "call",
    "call_options",
    "check_call_options",
    "inner_pipelines",
    "one_source_at_a_time",
    "source_of_call",
    "take_options",
    "to_pictures",
]

# Pipelines that read a list of images as several references for one result, and take PIL images only: the image processor of FLUX.2
# refuses tensors, and Qwen-Image-Edit asks for the width and height of a PIL image.
_ONE_SOURCE = ("Flux2", "QwenImageEdit")


def one_source_at_a_time(pipe: Any) -> bool:
    """Return whether a pipeline is known to read several sources as references for one image, and to take only PIL images."""
    return type(pipe).__name__.startswith(_ONE_SOURCE)


def call_options(pipe: Any) -> list[str]:
    """Return the options that a pipeline's call takes, less what the generator gives."""
    return sorted(n for n, p in call_parameters(type(pipe)).items() if n != "self" and n not in MANAGED and p.kind is not p.VAR_KEYWORD)


def check_call_options(pipe: Any, options: Mapping[str, Any], own: Collection[str]) -> None:
    """Check that a pipeline's ``__call__`` has these options.

    Args:
        pipe: the pipeline.
        options: of its call.
        own: names of the options of the generator, for the message.

    Raises:
        ConfigError: with those that it takes.
    """
    known = call_options(pipe)
    if unknown := sorted(options.keys() - set(known)):
        what = f"unknown option {unknown[0]!r}" if unknown[0] not in MANAGED else f"the option {unknown[0]!r} is set by the generator"
        raise ConfigError(f"{what}: {name_type(pipe)} takes {', '.join(known)}; beside them {', '.join(sorted(own))}")


def take_options(pipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a pipeline's call as it takes them, wherever they come from.

    Those that are None, and are so by default, are left out; None elsewhere is a value. Lists are tuples where the call takes tuples
    and no lists: JSON and the command line know lists alone.
    """
    parameters = call_parameters(type(pipe))
    kept = {name: value for name, value in options.items() if value is not None or parameters[name].default is not None}
    return {name: tuple(value) if isinstance(value, list) and _takes_tuple(parameters[name]) else value for name, value in kept.items()}


def _takes_tuple(parameter: inspect.Parameter) -> bool:
    """Return whether an argument takes a tuple and no list, by its annotation, which may be a text, and its default."""
    annotation = parameter.annotation
    kinds = set[str]()
    if annotation is not parameter.empty:
        text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        with contextlib.suppress(SyntaxError):
            kinds = _kinds(ast.parse(text, mode="eval").body)
    return ("tuple" in kinds or isinstance(parameter.default, tuple)) and not kinds & {"list", "sequence"}


def _kinds(annotation: ast.expr) -> set[str]:
    """Return the names of the types that an annotation allows, in lower case, without what is inside them."""
    if isinstance(annotation, ast.BinOp):
        return _kinds(annotation.left) | _kinds(annotation.right)
    if isinstance(annotation, ast.Subscript):
        of, inside = _kinds(annotation.value), annotation.slice
        if not of & {"optional", "union"}:
            return of
        return set[str]().union(*map(_kinds, inside.elts if isinstance(inside, ast.Tuple) else [inside]))
    name = getattr(annotation, "attr", getattr(annotation, "id", None))
    return {str(name).lower()} if name else set()


def call(pipe: Any, rngs: list[torch.Generator], size: tuple[int, int], arguments: Mapping[str, Any]) -> Tensor:
    """Return what a pipeline makes: (B, 3, h, w) float32 in [0, 1]; NaN for an image that its safety checker blacked out.

    Args:
        pipe: the pipeline.
        rngs: one for each image.
        size: (h, w) of the images.
        arguments: of the call.

    Raises:
        GeneratorError: if it makes something else than that many images of that size.
    """
    taken, name = call_parameters(type(pipe)), type(pipe).__name__
    given = dict(arguments) | {"generator": rngs, "output_type": "pt", "height": size[0], "width": size[1]}
    with _quiet(pipe), _freed_on_failure(pipe):
        result = pipe(**{name: value for name, value in given.items() if name in taken})
    found: Any = getattr(result, "images", None)
    if isinstance(found, list) and found and all(isinstance(image, Tensor) for image in found):
        found = torch.stack(found)
    if isinstance(found, np.ndarray) and found.ndim == 4 and found.shape[3] == 3:  # whatever was asked for, as T2I-Adapter's pipeline
        found = torch.from_numpy(found).permute(0, 3, 1, 2).to(getattr(pipe, "_execution_device", pipe.device))
    if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[1] != 3:
        kind = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else name_type(found)
        raise GeneratorError(f"{name} returned {kind} as images: expected a tensor (B, 3, h, w)")
    if len(found) != len(rngs):
        raise GeneratorError(f"{name} made {len(found)} images where {len(rngs)} were asked for")
    if tuple(found.shape[2:]) != tuple(size):
        raise GeneratorError(
            f"{name} made images of {found.shape[2]} x {found.shape[3]} pixels where image_size={tuple(size)} was asked for: "
            f"give image_size={tuple(found.shape[2:])}"
        )
    made: Tensor = found.float()
    # Tensors of Kandinsky's decoders without an image processor stay in [-1, 1]. Combined pipelines return those of the decoder inside.
    if name.startswith("Kandinsky") and not hasattr(getattr(pipe, "decoder_pipe", pipe), "image_processor"):
        made = made / 2 + 0.5
    made = made.clamp(0, 1)
    flagged = getattr(result, "nsfw_content_detected", None) or getattr(result, "nsfw_detected", None)
    if flagged and any(flagged):
        made[torch.tensor([bool(f) for f in flagged], device=made.device)] = float("nan")
    return made


def to_pictures(images: Tensor) -> list[Any]:
    """Return PIL images of (B, 3, H, W) in [0, 1], for pipelines that take no tensors."""
    from torchvision.transforms.v2 import functional as TF

    return [TF.to_pil_image((image * 255).round().to(torch.uint8).cpu()) for image in images.clamp(0, 1)]


def source_of_call(pipe: Any) -> str:
    """Return the code of a pipeline's call, which shows what it does with an option; empty where it cannot be had."""
    try:
        return inspect.getsource(type(pipe).__call__)
    except (OSError, TypeError):
        return ""


@contextlib.contextmanager
def _freed_on_failure(pipe: Any) -> Iterator[None]:
    """Move offloaded networks back to the CPU after a failure, such as running out of memory; a call does so only at its end."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # the first error says more
            pipe.maybe_free_model_hooks()
        raise


def inner_pipelines(pipe: Any) -> list[Any]:
    """Return the pipelines inside a combined one, which hold its components and do its work."""
    return [value for value in vars(pipe).values() if hasattr(value, "components") and hasattr(value, "progress_bar")]


@contextlib.contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """Hide the progress bars of a pipeline and of those inside it: the caller's own covers more than one image."""
    several = [pipe, *inner_pipelines(pipe)]
    before = [vars(each).get("_progress_bar_config") for each in several]
    for each, own in zip(several, before, strict=True):
        each._progress_bar_config = {**(own or {}), "disable": True}
    try:
        yield
    finally:
        for each, own in zip(several, before, strict=True):
            if own is None:
                vars(each).pop("_progress_bar_config", None)
            else:
                each._progress_bar_config = own
