"""Prompt templates: their fields become inputs of a generator, with one value for each image."""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from gentransforms.errors import ConfigError, MissingInputError

__all__ = ["INPUTS", "fill_prompts", "fill_templates", "has_fields", "template_fields"]

INPUTS = ("images", "prompts", "seeds", "control_maps")  # of every generator that takes prompts, or of those that may
# A single brace, or one beside doubled ones, before a name.
_FIELD = re.compile(r"(?<!\{)(?:\{\{)*\{[^\W\d]\w*[}:!.\[]")


def has_fields(text: str) -> bool:
    """Return whether a text looks like a template with fields; where it does not, braces may be meant as such.

    Example:
        >>> [has_fields(text) for text in ("a {label}", "a {{label}}", "{bad hands}", "{")]
        [True, False, False, False]
    """
    return _FIELD.search(text) is not None


def template_fields(text: str, name: str = "prompt", taken: Collection[str] = INPUTS) -> tuple[str, ...]:
    """Return the names of the fields of a prompt template.

    Args:
        text: the template.
        name: the option that holds it, for messages.
        taken: names of other inputs, which no field can have.

    Raises:
        ConfigError: if it is no valid template.

    Example:
        >>> template_fields("a photo of a {label}, {season}")
        ('label', 'season')
    """
    try:
        parsed = [(field, spec) for _, field, spec, _ in string.Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise ConfigError(f"{name}={text!r}: not a template ({error}): write {{{{ and }}}} for braces that are meant") from error
    for field, spec in parsed:
        if not field.isidentifier():
            raise ConfigError(f"{name}={text!r}: {{{field}}} is no name: expected fields such as {{label}}")
        if spec and "{" in spec:
            raise ConfigError(f"{name}={text!r}: a field inside the format of {{{field}}}: write the format out, such as {{{field}:.2f}}")
        if field in taken:
            raise ConfigError(f"{name}={text!r}: {{{field}}} is the name of another input: call the field something else")
    return tuple(dict.fromkeys(field for field, _ in parsed))


def fill_prompts(text: str, values: Mapping[str, Sequence[Any]], count: int, name: str = "prompt") -> list[str]:
    """Fill in a prompt template for each image.

    Raises:
        ConfigError: if there is not one value for each image, or a value does not fit the format of its field.

    Example:
        >>> fill_prompts("a {label}", {"label": ["cat", "dog"]}, 2)
        ['a cat', 'a dog']
    """
    plain = {}
    for field, given in values.items():
        if isinstance(given, str) or not hasattr(given, "__len__") or getattr(given, "ndim", 1) != 1:  # of a tensor or an array
            raise ConfigError(f"{field}={given!r}: expected a list or tensor of {count} values, one for each image")
        plain[field] = given.tolist() if isinstance(given, Tensor) else list(given)
    for field, entries in plain.items():
        if len(entries) != count:
            raise ConfigError(f"{field} has {len(entries)} entries: expected {count}, one for each image")
    try:
        return [text.format(**{field: entries[i] for field, entries in plain.items()}) for i in range(count)]
    except (ValueError, TypeError, LookupError) as error:
        raise ConfigError(f"{name}={text!r} cannot be filled with {plain!r}: {error}") from error


def fill_templates(templates: Mapping[str, str], values: Mapping[str, Any], count: int) -> dict[str, list[str]]:
    """Fill in those of several texts that have fields; the others are left out.

    Args:
        templates: texts by the options that hold them.
        values: for each field, one value per image.
        count: number of images.

    Raises:
        MissingInputError: if the value of a field is missing.
        ConfigError: if values do not fit.

    Example:
        >>> fill_templates({"prompt": "a {label}", "negative_prompt": "blurry"}, {"label": ["cat", "dog"]}, 2)
        {'prompt': ['a cat', 'a dog']}
    """
    filled = {}
    for name, text in templates.items():
        if not has_fields(text):
            continue
        if lacking := [field for field in template_fields(text, name, ()) if field not in values]:
            raise MissingInputError(
                f"{lacking[0]} is missing: {name}={text!r} needs it; give the transform "
                f"inputs_getter=lambda sample: {{{lacking[0]!r}: …}} with one value per image"
            )
        filled[name] = fill_prompts(text, values, count, name)
    return filled
