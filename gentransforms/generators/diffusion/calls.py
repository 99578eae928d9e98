"""How pipelines of diffusers are called with sources of ours: what goes in by which name, and what comes out."""

from __future__ import annotations

import contextlib
import inspect
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gentransforms.errors import ConfigError

__all__ = [
    "call",
    "call_options",
    "check_call_options",
    "fill_prompts",
    "is_decoder_of_embeddings",
    "one_source_at_a_time",
    "takes_image",
    "template_fields",
    "to_pictures",
]  # fmt: skip

# What the generator itself gives.
_MANAGED = {
    "image", "image_embeds", "negative_image_embeds", "generator", "output_type", "return_dict", "num_images_per_prompt", "latents",
    "height", "width", "prompt", "prompt_embeds", "pooled_prompt_embeds", "callback", "callback_steps", "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
}  # fmt: skip
# Pipelines that read a list of images as several references for one result, and take PIL images only.
_ONE_SOURCE = ("Flux2", "QwenImageEdit", "FluxKontext", "OmniGen", "Chroma1Kontext")


def takes_image(cls: type) -> bool:
    """Whether a pipeline class makes images of an image, or of an image's embedding."""
    return bool({"image", "image_embeds"} & inspect.signature(cls.__call__).parameters.keys()) and hasattr(cls, "from_pretrained")


def is_decoder_of_embeddings(pipe: Any) -> bool:
    """Whether a pipeline wants the embedding of an image, which a prior makes: Kandinsky's decoders."""
    return "image_embeds" in inspect.signature(type(pipe).__call__).parameters


def one_source_at_a_time(pipe: Any) -> bool:
    """Whether a pipeline is given one source with all its variants, since it reads several as references for one image."""
    return type(pipe).__name__.startswith(_ONE_SOURCE)


def call_options(pipe: Any) -> list[str]:
    """Return the options that a pipeline's call takes, less what the generator gives."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    return sorted(n for n, p in parameters.items() if n != "self" and n not in _MANAGED and p.kind is not p.VAR_KEYWORD)


def check_call_options(pipe: Any, options: Mapping[str, Any]) -> None:
    """Raise unless a pipeline's call takes these options.

    Raises:
        ConfigError: with those that it takes.
    """
    known = call_options(pipe)
    if unknown := sorted(options.keys() - set(known)):
        what = f"unknown option {unknown[0]!r}" if unknown[0] not in _MANAGED else f"the option {unknown[0]!r} is set by the generator"
        raise ConfigError(f"{what}: a {type(pipe).__name__} takes {', '.join(known)}; beside them prompt, image_size, preserves_geometry")


def template_fields(prompt: str) -> tuple[str, ...]:
    """Return the names that a prompt takes from the inputs.

    Raises:
        ConfigError: if it is no valid template.

    Example:
        >>> template_fields("a photo of a {label}, {season}")
        ('label', 'season')
    """
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None]
    except ValueError as error:
        raise ConfigError(f"prompt={prompt!r}: not a template ({error}): write {{{{ and }}}} for braces that are meant") from error
    if bad := [name for name in names if not name.isidentifier()]:
        raise ConfigError(f"prompt={prompt!r}: {{{bad[0]}}} is no name: expected fields such as {{label}}")
    return tuple(dict.fromkeys(names))


def fill_prompts(prompt: str, values: Mapping[str, Sequence[Any]], count: int) -> list[str]:
    """Return the prompt of each image, its fields filled in.

    Example:
        >>> fill_prompts("a {label}", {"label": ["cat", "dog"]}, 2)
        ['a cat', 'a dog']
    """
    plain = {name: v.tolist() if isinstance(v, Tensor) else list(v) for name, v in values.items()}
    for name, entries in plain.items():
        if len(entries) != count:
            raise ConfigError(f"{name} has {len(entries)} entries: expected {count}, one for each image")
    return [prompt.format(**{name: entries[i] for name, entries in plain.items()}) for i in range(count)]


def call(pipe: Any, rngs: list[torch.Generator], size: tuple[int, int], arguments: Mapping[str, Any]) -> Tensor:
    """Return what a pipeline makes: (B, 3, h, w) float32 in [0, 1]; NaN for an image that its safety checker blacked out.

    Args:
        pipe: the pipeline.
        rngs: one for each image.
        size: (h, w) of the images.
        arguments: of the call.
    """
    taken = inspect.signature(type(pipe).__call__).parameters
    given = dict(arguments) | {"generator": rngs, "output_type": "pt", "height": size[0], "width": size[1]}
    with _quiet(pipe):
        result = pipe(**{name: value for name, value in given.items() if name in taken})
    made: Tensor = result.images.float()
    if type(pipe).__name__.startswith("KandinskyV22"):  # its tensors stay in [-1, 1]
        made = made / 2 + 0.5
    made = made.clamp(0, 1)
    flagged = getattr(result, "nsfw_content_detected", None)
    if flagged and any(flagged):
        made[torch.tensor([bool(f) for f in flagged], device=made.device)] = float("nan")
    return made


def to_pictures(images: Tensor) -> list[Any]:
    """Return PIL images of (B, 3, H, W) in [0, 1], for pipelines that take no tensors."""
    from torchvision.transforms.v2 import functional as TF

    return [TF.to_pil_image((image * 255).round().to(torch.uint8).cpu()) for image in images.clamp(0, 1)]


@contextlib.contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """No progress bar of the pipeline's: the caller's own tells of more than one image."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(**(before or {}) | {"disable": True})
    try:
        yield
    finally:
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before
