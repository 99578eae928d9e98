"""``gentransforms list``: list the known generators."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from gentransforms.generators.known import Pretrained

__all__ = ["list_generators"]


def list_generators() -> None:
    """List the generators that are known by name.

    Of each: its name, class and licence, size and steps, what its images keep of a photo, and the options it needs. "Gated" ones ask for
    consent on the Hub before the download. A table of one line each, or paragraphs on a terminal that is too narrow for it.

    \b
    Example:
      gentransforms list
    """
    from gentransforms.generators.registry import list_pretrained

    known, width = list_pretrained(), shutil.get_terminal_size().columns
    table = str(known)
    too_wide = sys.stdout.isatty() and max(map(len, table.splitlines())) > width
    typer.echo("\n\n".join(_describe(known, width)) if too_wide else table)


def _describe(known: Iterable[Pretrained], width: int) -> Iterable[str]:
    """Return a paragraph for each generator, wrapped to the width of a terminal."""
    for one in known:
        facts = [
            f"{one.description}: {one.class_name}, {one.size} pixels, {f'{one.steps} steps' if one.steps else 'one pass'}.",
            f"Keeps {one.keeps}.",
            f"Licence: {one.license}; commercial use: {one.commercial}; gated: {one.gated}.",
        ]
        if one.options:
            facts.append(f"Options: {one.options}.")
        text = textwrap.wrap(" ".join(facts), max(40, width), initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
        yield "\n".join([one.name, *text])
