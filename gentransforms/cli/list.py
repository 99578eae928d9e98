"""``gentransforms list``: list the known generators."""

from __future__ import annotations

import typer

__all__ = ["list_generators"]


def list_generators() -> None:
    """List the generators that are known by name.

    One line per generator: its name, class and licence, size and steps, what its images keep of a photo, and the options it needs.

    \b
    Example:
      gentransforms list
    """
    from gentransforms.generators.registry import list_pretrained

    typer.echo(str(list_pretrained()))
