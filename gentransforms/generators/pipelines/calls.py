"""Call diffusers pipelines: which argument takes the source image, and what comes out."""

from __future__ import annotations

import ast
import contextlib
import inspect
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentransforms.errors import ConfigError, GeneratorError, WeightsError
from gentransforms.generators.pipelines.supported import needs_a_mask
from gentransforms.wording import name_type, with_article

__all__ = [
    "Roles",
    "call",
    "call_options",
    "check_call_options",
    "find_roles",
    "inner_pipelines",
    "one_source_at_a_time",
    "source_of_call",
    "take_options",
    "takes_image",
    "to_pictures",
]

# What the generator itself gives.
_MANAGED = {
    "image", "image_embeds", "negative_image_embeds", "generator", "output_type", "return_dict", "num_images_per_prompt", "latents",
    "height", "width", "prompt", "prompt_embeds", "pooled_prompt_embeds", "callback", "callback_steps", "callback_on_step_end",
    "callback_on_step_end_tensor_inputs", "hint", "control_image",
    "ip_adapter_image", "ip_adapter_image_embeds",
}  # fmt: skip
# Pipelines that read a list of images as several references for one result, and take PIL images only: the image processor of FLUX.2
# refuses tensors, and Qwen-Image-Edit asks for the width and height of a PIL image.
_ONE_SOURCE = ("Flux2", "QwenImageEdit")
_CONTROLS = ("hint", "control_image")


@dataclass(frozen=True)
class Roles:
    """The arguments through which a pipeline takes a source; None for those that it lacks.

    Args:
        source: of the image itself.
        control: of a control map, made of the image.
        prompt: whether it takes a text.
        decoder: whether it needs the embedding of an image, which a prior makes.
    """

    source: str | None
    control: str | None
    prompt: bool
    decoder: bool


def find_roles(pipe: Any, has_prior: bool, options: Collection[str]) -> Roles:
    """Return the arguments through which a pipeline takes a source.

    Args:
        pipe: a diffusers pipeline.
        has_prior: whether there is a pipeline that makes embeddings for it.
        options: names of the options of its call that are given.

    Raises:
        WeightsError: if it takes no image, or needs what a generator cannot give, such as a mask.
    """
    name, parameters = type(pipe).__name__, _parameters(type(pipe))
    needed = {n for n, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD} - {"self"}
    decoder = "image_embeds" in needed
    if "mask_image" in parameters:
        other = (
            "its network takes a mask beside the image: use the repository of the base model, which was not trained for inpainting"
            if needs_a_mask(pipe)
            else "use the image-to-image pipeline of its parts, diffusers.AutoPipelineForImage2Image.from_pipe(pipe)"
        )
        raise WeightsError(f"{with_article(name)} paints what a mask covers anew: {other}")
    if "num_frames" in parameters:
        raise WeightsError(f"{with_article(name)} makes videos: use a pipeline that makes images")
    if decoder and not has_prior:
        raise WeightsError(f"{with_article(name)} needs the embedding of an image: give prior=, its prior pipeline, which makes it")
    if not takes_image(type(pipe)) and not has_prior:
        raise WeightsError(
            f"{with_article(name)} takes no image: use its image-to-image pipeline, "
            "diffusers.AutoPipelineForImage2Image.from_pipe(pipe), or give prior="
        )
    if unknown := sorted(needed - _MANAGED - set(options)):
        raise WeightsError(f"{with_article(name)} needs {', '.join(unknown)}: give it as an option, or use another pipeline")
    control = next((n for n in _CONTROLS if n in parameters), None)
    if control is None and "image" in parameters and any(word in name for word in ("ControlNet", "Adapter")):
        control = "image"
    source = "image" if "image" in parameters and control != "image" else None
    return Roles(source, control, "prompt" in parameters, decoder)


def takes_image(cls: type) -> bool:
    """Return whether a pipeline class generates from an image, its embedding or a control map."""
    parameters = _parameters(cls)
    return any(name in parameters for name in ("image", "image_embeds", *_CONTROLS)) and hasattr(cls, "from_pretrained")


def one_source_at_a_time(pipe: Any) -> bool:
    """Return whether a pipeline is known to read several sources as references for one image, and to take only PIL images."""
    return type(pipe).__name__.startswith(_ONE_SOURCE)


def call_options(pipe: Any) -> list[str]:
    """Return the options that a pipeline's call takes, less what the generator gives."""
    return sorted(n for n, p in _parameters(type(pipe)).items() if n != "self" and n not in _MANAGED and p.kind is not p.VAR_KEYWORD)


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
        what = f"unknown option {unknown[0]!r}" if unknown[0] not in _MANAGED else f"the option {unknown[0]!r} is set by the generator"
        raise ConfigError(f"{what}: {name_type(pipe)} takes {', '.join(known)}; beside them {', '.join(sorted(own))}")


def take_options(pipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a pipeline's call as it takes them, wherever they come from.

    Those that are None, and are so by default, are left out; None elsewhere is a value. Lists are tuples where the call takes tuples
    and no lists: JSON and the command line know lists alone.
    """
    parameters = _parameters(type(pipe))
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
    taken, name = _parameters(type(pipe)), type(pipe).__name__
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


def _parameters(cls: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls.__call__).parameters


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
