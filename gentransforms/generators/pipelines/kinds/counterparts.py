"""Find the image-to-image pipeline that diffusers has for the parts of another one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from gentransforms.errors import WeightsError
from gentransforms.generators.diffusion.loading import _dtype
from gentransforms.generators.pipelines.kinds.classes import call_parameters, check_kind, read_masks, takes_image

__all__ = ["advise", "find_counterpart"]


def find_counterpart(cls: Any) -> Any:
    """Return the image-to-image class that diffusers names for a pipeline from text or for inpainting, by its tables or its name.

    It takes the same parts, and a generator can call it, perhaps with a prior; None if there is none.
    """
    return next((other for other in _named(cls) if _is_usable(other) and _parts(other.__init__, needed=True) <= _parts(cls.__init__)), None)


def advise(cls: Any) -> str:
    """Return what to use in place of a pipeline class that takes no image, or a mask beside it, as messages say it."""
    found = find_counterpart(cls)
    if found is None:
        return "diffusers names no image-to-image pipeline of its parts; use another pipeline"
    # Without it, from_pipe brings the networks to float32.
    dtype = next(iter(_dtype(found, None)))  # type: ignore[arg-type]
    prior = ", and give prior=, its prior pipeline" if "image_embeds" in _parts(found.__call__, needed=True) else ""
    return f"use the image-to-image pipeline of its parts, diffusers.{found.__name__}.from_pipe(pipe, {dtype}=pipe.dtype){prior}"


def _named(cls: Any) -> Iterator[Any]:
    """Yield the classes that diffusers has beside a class, by their names and by its tables, those of the closest parts first."""
    import diffusers

    name = cls.__name__
    names = [name.replace("Inpaint", "Img2Img"), name.replace("Pipeline", "Img2ImgPipeline")]
    if "ControlNet" not in name:  # a ControlNet for inpainting reads a mask itself
        names.append(name.replace("Inpaint", ""))
    for each in names:
        found = getattr(diffusers, each, None)
        if isinstance(found, type) and found is not cls:
            yield found
    from diffusers.pipelines import auto_pipeline  # it imports most pipelines, which takes seconds

    to_images = auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING
    for table in (auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING, auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING):
        yield from (to_images[model] for model, kind in table.items() if kind is cls and model in to_images)


def _is_usable(cls: Any) -> bool:
    if not hasattr(cls, "from_pipe") or not takes_image(cls) or read_masks(cls):
        return False
    try:
        check_kind(cls)
    except WeightsError:
        return False
    return "image" in call_parameters(cls)


def _parts(method: Any, needed: bool = False) -> set[str]:
    """Return the names of the arguments of a constructor or a call, or only of those without a default."""
    given = inspect.signature(method).parameters
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {n for n, p in given.items() if n != "self" and p.kind not in several and not (needed and p.default is not p.empty)}
