"""Options that several commands share."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Annotated, Any, Optional, TypeVar

import typer

from gentransforms.bank.config import BankConfig
from gentransforms.cli.plain import WrongCall

__all__ = [
    "Columns",
    "Device",
    "Generator",
    "MaxBatchSize",
    "Option",
    "Seed",
    "WhiteLevel",
    "parse_columns",
    "parse_options",
    "with_settings",
]

_OWN = {"device": "--device", "name_or_path": "--generator"}

Command = TypeVar("Command", bound=Callable[..., None])

Generator = Annotated[str, typer.Option(help="Bundled name, folder or Hub repository of the generator.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed; the same seed gives the same picture.")]
Columns = Annotated[bool, typer.Option("--columns", help="Draw a column per source instead of a row: a wide picture.")]
WhiteLevel = Annotated[
    float | None,
    typer.Option(help="Value of white in grey images of more than 8 bits, such as 1023; by default 65535.", show_default=False),
]
Device = Annotated[str, typer.Option(help="Where the generator runs, such as cpu or cuda.")]
MaxBatchSize = Annotated[int, typer.Option(min=1, help="Largest number of images generated at once; lower it to save memory.")]
Option = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="An argument of the generator's from_pretrained, such as truncation=0.5, dtype=bfloat16 or controlnet=ORG/NAME. "
        "The value is parsed as JSON, or else taken as a string. Can be given several times.",
        show_default=False,
    ),
]


def parse_options(given: Sequence[str] | None) -> dict[str, Any]:
    """Parse ``["truncation=0.5"]`` into ``{"truncation": 0.5}``.

    Raises:
        WrongCall: if one is not NAME=VALUE.

    Example:
        >>> parse_options(["scheduler=dpm++", "image_size=[256, 512]"])
        {'scheduler': 'dpm++', 'image_size': [256, 512]}
    """
    options: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise WrongCall(f"--option {text}: expected NAME=VALUE, such as truncation=0.5")
        if name in _OWN:
            raise WrongCall(f"--option {text}: this has an option of its own: use {_OWN[name]}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def parse_columns(given: Sequence[str] | None) -> dict[str, str] | None:
    """Parse ``["prompts=caption"]`` into ``{"prompts": "caption"}``; None if there are none.

    Raises:
        WrongCall: if one is not INPUT=COLUMN.

    Example:
        >>> parse_columns(["prompts=caption", "labels=age"])
        {'prompts': 'caption', 'labels': 'age'}
    """
    pairs = {}
    for text in given or ():
        name, equals, column = text.partition("=")
        if not (name and equals and column):
            raise WrongCall(f"--columns {text}: expected INPUT=COLUMN, such as prompts=caption")
        pairs[name] = column
    return pairs or None


def with_settings(command: Command) -> Command:
    """Give a command whose last parameter is ``**settings`` an option for each field of `BankConfig`.

    An option has the name, type, default, range and description of its field.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    assert len(own) < len(signature.parameters), "a command that takes settings has **settings"
    options = [_setting_parameter(field) for field in dataclasses.fields(BankConfig)]
    command.__signature__ = signature.replace(parameters=[*own[:3], *options, *own[3:]])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *options)} | {"return": None}
    return command


def _setting_parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
    kind: Any = typing.get_type_hints(BankConfig)[field.name]
    choices = field.metadata.get("choices")
    if choices:
        kind = Optional[Enum(field.name, {choice: choice for choice in choices}, type=str)]  # noqa: UP045  # of a class made here
    bounds = {option: field.metadata[name] for option, name in (("min", "least"), ("max", "most")) if name in field.metadata}
    option = typer.Option(help=_setting_help()[field.name], **bounds)
    return inspect.Parameter(field.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=field.default, annotation=Annotated[kind, option])


def _setting_help() -> dict[str, str]:
    """Return the description of each field in the docstring of `BankConfig`."""
    arguments = re.search(r"Args:\n(.*?)\n\n", inspect.getdoc(BankConfig) or "", re.DOTALL)
    pairs = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", arguments[1] if arguments else "", re.MULTILINE)
    return {field.name: "" for field in dataclasses.fields(BankConfig)} | {name: re.sub(r"\s+", " ", text) for name, text in pairs}
