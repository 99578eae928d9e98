"""The texts beside the prompt, and texts stored in a tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.prompts.templates import has_fields, template_fields

__all__ = ["check_shared", "from_bytes", "is_shared", "share", "shared_templates", "to_bytes"]

# Options of a pipeline's call that hold a text for each image, beside the prompt itself.
_SHARED = re.compile(r"(negative_|source_)?prompt(_\d+)?")


def shared_templates(options: Mapping[str, Any]) -> dict[str, str]:
    """Return those of the texts beside the prompt that have fields, as the prompt may.

    Example:
        >>> shared_templates({"prompt_2": "a {label}", "negative_prompt": "blurry", "strength": 0.5})
        {'prompt_2': 'a {label}'}
    """
    texts = {name: _text(value) for name, value in options.items() if _SHARED.fullmatch(name) and value is not None}
    return {name: text for name, text in texts.items() if has_fields(text)}


def is_shared(name: str) -> bool:
    """Return whether an option of a pipeline's call holds a text for each image, beside the prompt itself."""
    return _SHARED.fullmatch(name) is not None


def to_bytes(texts: Sequence[str]) -> Tensor:
    """Return texts as rows (B, L) uint8 of UTF-8, padded with zeros."""
    coded = [text.encode() for text in texts]
    longest = max(map(len, coded), default=0)
    return torch.tensor([list(text.ljust(longest, b"\0")) for text in coded], dtype=torch.uint8).reshape(len(texts), longest)


def from_bytes(rows: Tensor) -> list[str]:
    """Return the texts that `to_bytes` wrote."""
    return [bytes(row.tolist()).rstrip(b"\0").decode() for row in rows.cpu()]


def check_shared(options: Mapping[str, Any]) -> None:
    """Check that options such as ``negative_prompt`` and ``prompt_2`` are one text, or a list of one; it may have fields.

    Raises:
        ConfigError: if such an option is something else, or its fields are no names.
    """
    for name, value in options.items():
        if not _SHARED.fullmatch(name) or value is None or isinstance(value, str):
            continue
        if not (isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str)):
            raise ConfigError(f"{name}={value!r}: expected one string, which holds for every image, and may have fields such as {{label}}")
    for name, text in shared_templates(options).items():
        template_fields(text, name)


def share(options: Mapping[str, Any], count: int | None) -> dict[str, Any]:
    """Return options of a pipeline's call with such a text for each image: many pipelines ask for as many as there are prompts.

    Options that are dicts are copied: some pipelines add entries to them.

    Args:
        options: of the call.
        count: number of images; None for a single source, whose prompt is a string.

    Example:
        >>> share({"negative_prompt": "blurry", "strength": 0.5}, 2)
        {'negative_prompt': ['blurry', 'blurry'], 'strength': 0.5}
    """
    shared = {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}
    for name, value in options.items():
        if _SHARED.fullmatch(name) and value is not None:
            text = _text(value)
            shared[name] = text if count is None else [text] * count
    return shared


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value[0])
