"""A pipeline's safety checker and watermarker: which of them were removed, and how a trial goes without the checker."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from gentransforms.generators.pipelines.calls import inner_pipelines

__all__ = ["describe_safeguards", "unchecked"]


@contextlib.contextmanager
def unchecked(pipe: Any) -> Iterator[None]:
    """Take the safety checker off a pipeline and those inside it, inside the context: for images that nobody sees.

    It looks at each image alone, and of one that it blacks out nothing can be told. Pipelines that refuse to run without their checker
    (Cosmos) keep it.
    """
    removed = [(each, vars(each).get("safety_checker")) for each in (pipe, *inner_pipelines(pipe)) if hasattr(each, "run_safety_checker")]
    removed = [(each, checker) for each, checker in removed if checker is not None]
    for each, _ in removed:
        vars(each)["safety_checker"] = None  # past diffusers' __setattr__, which would write it into the configuration
    try:
        yield
    finally:
        for each, checker in removed:
            vars(each)["safety_checker"] = checker


def describe_safeguards(pipe: Any) -> dict[str, str]:
    """Return, for the pipelines that can have them, what is said of safety checker and watermarker in cards.

    Args:
        pipe: a diffusers pipeline.
    """
    taken, said = inspect.signature(type(pipe).__init__).parameters, {}
    if "safety_checker" in taken:
        checker = getattr(pipe, "safety_checker", None)
        said["Safety checker"] = (
            "none: it was left out, so generated images are not checked"
            if checker is None
            else f"`{type(checker).__name__}`: images that it blacks out count as failed, and their source is kept"
        )
    if "add_watermarker" in taken:
        mark = getattr(pipe, "watermark", None)
        said["Watermark"] = "none: it was left out" if mark is None else f"an invisible one, by `{type(mark).__name__}`"
    return said
