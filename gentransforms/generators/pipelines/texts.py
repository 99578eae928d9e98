"""Fill prompt templates, and store prompts in a tensor."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gentransforms.errors import ConfigError

__all__ = ["check_shared", "fill_prompts", "from_bytes", "share", "template_fields", "to_bytes"]

# Options of a pipeline's call that hold a text for each image, beside the prompt itself.
_SHARED = re.compile(r"(negative_|source_)?prompt(_\d+)?")


def template_fields(prompt: str) -> tuple[str, ...]:
    """Return the names of the fields of a prompt template.

    Raises:
        ConfigError: if it is no valid template.

    Example:
        >>> template_fields("a photo of a {label}, {season}")
        ('label', 'season')
    """
    try:
        parsed = [(name, spec) for _, name, spec, _ in string.Formatter().parse(prompt) if name is not None]
    except ValueError as error:
        raise ConfigError(f"prompt={prompt!r}: not a template ({error}): write {{{{ and }}}} for braces that are meant") from error
    for name, spec in parsed:
        if not name.isidentifier():
            raise ConfigError(f"prompt={prompt!r}: {{{name}}} is no name: expected fields such as {{label}}")
        if spec and "{" in spec:
            raise ConfigError(f"prompt={prompt!r}: a field inside the format of {{{name}}}: write the format out, such as {{{name}:.2f}}")
        if name in ("images", "prompts", "seeds", "control_maps"):
            raise ConfigError(f"prompt={prompt!r}: {{{name}}} is the name of another input: call the field something else")
    return tuple(dict.fromkeys(name for name, _ in parsed))


def fill_prompts(prompt: str, values: Mapping[str, Sequence[Any]], count: int) -> list[str]:
    """Fill in a prompt template for each image.

    Raises:
        ConfigError: if there is not one value for each image, or a value does not fit the format of its field.

    Example:
        >>> fill_prompts("a {label}", {"label": ["cat", "dog"]}, 2)
        ['a cat', 'a dog']
    """
    plain = {}
    for name, given in values.items():
        if isinstance(given, str) or not hasattr(given, "__len__") or (isinstance(given, Tensor) and given.ndim != 1):
            raise ConfigError(f"{name}={given!r}: expected a list or tensor of {count} values, one for each image")
        plain[name] = given.tolist() if isinstance(given, Tensor) else list(given)
    for name, entries in plain.items():
        if len(entries) != count:
            raise ConfigError(f"{name} has {len(entries)} entries: expected {count}, one for each image")
    try:
        return [prompt.format(**{name: entries[i] for name, entries in plain.items()}) for i in range(count)]
    except (ValueError, TypeError, LookupError) as error:
        raise ConfigError(f"prompt={prompt!r} cannot be filled with {plain!r}: {error}") from error


def to_bytes(texts: Sequence[str]) -> Tensor:
    """Return texts as rows (B, L) uint8 of UTF-8, padded with zeros."""
    coded = [text.encode() for text in texts]
    longest = max(map(len, coded), default=0)
    return torch.tensor([list(text.ljust(longest, b"\0")) for text in coded], dtype=torch.uint8).reshape(len(texts), longest)


def from_bytes(rows: Tensor) -> list[str]:
    """Return the texts that `to_bytes` wrote."""
    return [bytes(row.tolist()).rstrip(b"\0").decode() for row in rows.cpu()]


def check_shared(options: Mapping[str, Any]) -> None:
    """Check that options such as ``negative_prompt`` and ``prompt_2`` are one text, or a list of one.

    Raises:
        ConfigError: if such an option is something else.
    """
    for name, value in options.items():
        if not _SHARED.fullmatch(name) or value is None or isinstance(value, str):
            continue
        if not (isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str)):
            raise ConfigError(f"{name}={value!r}: expected one string, which holds for every image")


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
            text = value if isinstance(value, str) else value[0]
            shared[name] = text if count is None else [text] * count
    return shared
