"""The options that several commands share, described once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from gentransforms.cli.plain import WrongCall

__all__ = ["Device", "Generator", "MaxBatchSize", "Option", "Seed", "parse_options"]

Generator = Annotated[str, typer.Option(help="Bundled name, folder or Hub repository of the generator.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of all that is random; the same seed gives the same picture.")]
Device = Annotated[str, typer.Option(help="Where the generator runs, such as cpu or cuda.")]
MaxBatchSize = Annotated[int, typer.Option(min=1, help="Largest number of images generated at once; lower it to save memory.")]
Option = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="An argument of the generator's from_pretrained, such as truncation=0.5, dtype=bfloat16 or controlnet=ORG/NAME. "
        "The value is JSON, else a string. May be given several times.",
        show_default=False,
    ),
]


def parse_options(given: Sequence[str] | None) -> dict[str, Any]:
    """Return ``{"truncation": 0.5}`` of ``["truncation=0.5"]``.

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
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options
