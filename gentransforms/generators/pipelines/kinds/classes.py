"""What classes of diffusers pipelines take and make, by their signatures; those that no generator can call are refused."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from gentransforms.errors import WeightsError
from gentransforms.wording import with_article

__all__ = ["CONTROLS", "MANAGED", "call_parameters", "check_kind", "is_modular", "other_images", "read_masks", "takes_image"]

# What the generator itself gives.
MANAGED = {
    "image", "image_embeds", "negative_image_embeds", "generator", "output_type", "return_dict", "num_images_per_prompt", "latents",
    "height", "width", "prompt", "prompt_embeds", "pooled_prompt_embeds", "callback", "callback_steps", "callback_on_step_end",
    "callback_on_step_end_tensor_inputs", "hint", "control_image",
    "ip_adapter_image", "ip_adapter_image_embeds",
}  # fmt: skip
CONTROLS = ("hint", "control_image")
_CODERS = ("vae", "movq", "vqvae", "vqgan")
_ENLARGES = re.compile("Upscale|SuperResolution")
_OTHER_IMAGES = re.compile(r"(?!control_|.*ip_adapter_)(\w+_)?images?")


def call_parameters(cls: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a pipeline's call."""
    return inspect.signature(cls.__call__).parameters


def takes_image(cls: type) -> bool:
    """Return whether a pipeline class generates from an image, its embedding or a control map."""
    parameters = call_parameters(cls)
    return any(name in parameters for name in ("image", "image_embeds", *CONTROLS)) and hasattr(cls, "from_pretrained")


def other_images(cls: type) -> list[str]:
    """Return where a pipeline class takes images that a generator does not give: other arguments, and the method ``invert``."""
    found = [name for name in call_parameters(cls) if _OTHER_IMAGES.fullmatch(name) and name != "image"]
    invert = getattr(cls, "invert", None)
    return [*found, *(["image of its method invert"] if callable(invert) and "image" in inspect.signature(invert).parameters else [])]


def read_masks(cls: type) -> list[str]:
    """Return the arguments through which a pipeline class is given what to paint anew."""
    return [name for name in ("mask_image", "control_mask") if name in call_parameters(cls)]


def is_modular(cls: type) -> bool:
    """Return whether a class is one of diffusers' modular pipelines, whose call takes a state and no arguments of its own."""
    return any(each.__name__ == "ModularPipeline" and each.__module__.startswith("diffusers.") for each in cls.__mro__)


def check_kind(cls: Any) -> None:
    """Check that a pipeline class makes images of its source's size, on latents.

    Raises:
        WeightsError: naming what does not fit, and what to use.
    """
    name, parts = cls.__name__, inspect.signature(cls.__init__).parameters
    if is_modular(cls):
        raise WeightsError(
            f"{with_article(name)} is a modular pipeline, whose call says nothing of what it takes: use the image-to-image pipeline of "
            "its model, such as diffusers.StableDiffusionXLImg2ImgPipeline for SDXL"
        )
    if "low_res_scheduler" in parts or _ENLARGES.search(name):
        raise WeightsError(
            f"{with_article(name)} enlarges its source, so that no image_size fits: use an image-to-image pipeline, and enlarge its "
            "images afterwards if you need to"
        )
    if not cls.__module__.startswith("diffusers."):  # what a pipeline of one's own takes and makes is found out at its first use
        return
    made = _outputs(cls)
    if "num_frames" in call_parameters(cls) or made & {"frames", "video"}:
        raise WeightsError(f"{with_article(name)} makes videos: use a pipeline that makes images")
    if made and "images" not in made:
        raise WeightsError(
            f"{with_article(name)} makes no images: its output holds {', '.join(sorted(made))}; use an image-to-image pipeline"
        )
    if takes_image(cls) and not any(coder in parts for coder in _CODERS):
        raise WeightsError(
            f"{with_article(name)} works without an autoencoder ({', '.join(_CODERS)}), on pixels; such pipelines of diffusers take and "
            "return tensors in other ranges than [0, 1]: use a pipeline on latents, such as the image-to-image pipelines of Stable "
            "Diffusion, SDXL or FLUX, or StableDiffusionVariation, which starts from the image's embedding"
        )


def _outputs(cls: Any) -> set[str]:
    """Return the fields of what a call returns, by the output classes that its code names; nothing if it names none."""
    call = inspect.unwrap(cls.__call__)
    code = getattr(call, "__code__", None)
    named = [call.__globals__.get(name) for name in code.co_names if name.endswith("Output")] if code is not None else []
    return {field.name for output in named if dataclasses.is_dataclass(output) for field in dataclasses.fields(output)}
