"""Describe a pipeline's safety checker and watermarker, and which of them were removed."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["describe_safeguards"]


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
