"""Find the arguments through which a diffusers pipeline takes a source."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from gentransforms.errors import WeightsError
from gentransforms.generators.pipelines.kinds.classes import (
    CONTROLS,
    MANAGED,
    call_parameters,
    check_kind,
    other_images,
    read_masks,
    takes_image,
)
from gentransforms.generators.pipelines.kinds.counterparts import advise
from gentransforms.wording import with_article

__all__ = ["Roles", "find_roles"]


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


def find_roles(cls: type, has_prior: bool, options: Collection[str], masked: bool = False) -> Roles:
    """Return the arguments through which a pipeline takes a source.

    Args:
        cls: class of the pipeline.
        has_prior: whether there is a pipeline that makes embeddings for it.
        options: names of the options of its call that are given.
        masked: whether its network is known to read a mask beside the image.

    Raises:
        WeightsError: if it takes no image, or needs what a generator cannot give, such as a mask.
    """
    check_kind(cls)
    name, parameters = cls.__name__, call_parameters(cls)
    needed = {n for n, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD} - {"self"}
    decoder = "image_embeds" in needed
    if masks := read_masks(cls):
        other = "its network takes a mask beside the image: use the repository of the base model, which was not trained for inpainting"
        if "control_mask" in masks:
            other = "its ControlNet takes a mask (control_mask): use a pipeline with a ControlNet that was not trained for inpainting"
        elif not masked:
            other = advise(cls)
        raise WeightsError(f"{with_article(name)} paints what a mask covers anew: {other}")
    if decoder and not has_prior:
        raise WeightsError(f"{with_article(name)} needs the embedding of an image: give prior=, its prior pipeline, which makes it")
    if not takes_image(cls) and not has_prior:
        by_prior = ", or give prior=" if name.startswith("Flux") else ""
        elsewhere = other_images(cls)
        what = f"takes images by other arguments than image ({', '.join(elsewhere)})" if elsewhere else "takes no image"
        raise WeightsError(f"{with_article(name)} {what}: {advise(cls)}{by_prior}")
    if unknown := sorted(needed - MANAGED - set(options)):
        raise WeightsError(f"{with_article(name)} needs {', '.join(unknown)}: give it as an option, or use another pipeline")
    if "ControlNetUnion" in name and "control_mode" not in options:
        raise WeightsError(
            f"{with_article(name)} has a ControlNet for several kinds of control maps: give the option control_mode, the number of the "
            "kind that is on the card of the ControlNet, such as 1 for depth"
        )
    control = next((n for n in CONTROLS if n in parameters), None)
    if control is None and "image" in parameters and any(word in name for word in ("ControlNet", "Adapter")):
        control = "image"
    source = "image" if "image" in parameters and control != "image" else None
    return Roles(source, control, "prompt" in parameters, decoder)
