"""Control maps for pipelines that take one: depth for Kandinsky's, edges or poses for others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.diffusion import conditions, loading
from gentransforms.generators.diffusion.controlled import DEPTH_MODEL
from gentransforms.generators.identity import uncompiled
from gentransforms.hub import models as hub
from gentransforms.wording import with_article

__all__ = ["CONDITIONS", "DEPTH_FOLDER", "check_condition", "control_maps", "load_depth", "with_channels"]

CONDITIONS = ("canny", "depth", "maps")
DEPTH_FOLDER = "depth_estimator"  # in the folder of a saved generator
_LOW, _HIGH = 100 / 255, 200 / 255  # Canny's thresholds in the code of ControlNet's authors


def check_condition(condition: Any, needed: bool, pipeline: str, estimator: Any) -> None:
    """Check that a pipeline has a condition if, and only if, it takes a control map.

    Raises:
        WeightsError: if the condition is missing.
        ConfigError: if it is of no known kind, lacks its depth estimator, or is not needed.
    """
    if not needed and condition is not None:
        raise ConfigError(f"condition={condition!r}: {with_article(pipeline)} takes no control map")
    if estimator is not None and condition != "depth":
        raise ConfigError(
            f"depth_estimator has no effect on {with_article(pipeline)} with condition={condition!r}: leave it out; a pipeline that has "
            "one of its own uses that"
        )
    if not needed:
        return
    if condition is None:
        raise WeightsError(
            f"{with_article(pipeline)} takes a control map, not the image itself: give condition='depth', 'canny' or a function, "
            "or 'maps' for maps of your own; for Stable Diffusion, ControlNetVariation is faster"
        )
    if isinstance(condition, Mapping):
        raise ConfigError(f"condition: saved with the function {condition.get('function')!r}: pass it to from_pretrained, condition=…")
    if condition not in CONDITIONS and not callable(condition):
        raise ConfigError(f"condition={condition!r}: expected one of {', '.join(CONDITIONS)}, or a function")
    if condition == "depth" and estimator is None:
        raise ConfigError("condition='depth': give depth_estimator=(model, image processor), or depth_model= to from_pretrained")


def control_maps(condition: Any, images: Tensor, estimator: Any, processor: Any, given: Any, preserves_geometry: bool) -> Tensor:
    """Return the control maps (B, 3, h, w) of images, in [0, 1].

    Args:
        condition: one of `CONDITIONS`, or a function.
        images: (B, 3, h, w) floating in [0, 1], of the generator's size.
        estimator: a transformers depth-estimation model, for ``"depth"``.
        processor: its image processor.
        given: the maps themselves, for ``"maps"``, of the whole images.
        preserves_geometry: whether the generator sees its images whole, and not their centre alone.

    Raises:
        MissingInputError: if ``"maps"`` are not given.
        GeneratorError: if a function returns something else than control maps.
    """
    if condition == "canny":
        low, high = (torch.full((len(images),), value) for value in (_LOW, _HIGH))
        return conditions.canny_edges(conditions.canny_magnitude(images), low, high).expand(-1, 3, -1, -1)
    if condition == "depth":
        return conditions.depth_maps(estimator, processor, images)
    if condition == "maps":
        return conditions.given_maps(given, images.shape[-2:], len(images), preserves_geometry).to(images)
    return conditions.run_callable(condition, images)


def with_channels(pipe: Any, maps: Tensor) -> Tensor:
    """Return control maps (B, 3, h, w) with as many channels as a pipeline's control network takes: (B, 1, h, w) for some T2I-Adapters.

    Raises:
        ConfigError: if the network takes one channel, and the maps are coloured.
    """
    network = next((part for name in ("adapter", "controlnet") if (part := uncompiled(getattr(pipe, name, None))) is not None), None)
    taken = getattr(network, "config", {}).get("in_channels" if "Adapter" in type(network).__name__ else "conditioning_channels", 3)
    if taken != 1:
        return maps
    if not (maps == maps[:, :1]).all():
        raise ConfigError(
            f"condition: the control maps have three channels that differ, and the {type(network).__name__} takes one: give grey maps"
        )
    return maps[:, :1]


def load_depth(
    model: str | Path | None, source: hub.Source, saved: bool, dtype: torch.dtype, elsewhere: Mapping[str, Any]
) -> tuple[nn.Module, Any]:
    """Return a depth-estimation model of transformers and its image processor.

    Args:
        model: repository or folder; None for the one saved with the generator, or else Depth Anything.
        source: of the generator.
        saved: whether the generator was saved with one.
        dtype: to load in.
        elsewhere: options of `hub.Source`.
    """
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    own = saved and model is None
    place, folder = (source, DEPTH_FOLDER) if own else (hub.Source(model or DEPTH_MODEL, **elsewhere), None)
    try:
        estimator = loading.load_part(AutoModelForDepthEstimation, place, dtype, folder)
    except WeightsError as error:
        raise error if own or model is not None else WeightsError(f"{error}; or give depth_model=, another one") from error
    return estimator, loading.load_processor(AutoImageProcessor, place, folder)
