"""``gentransforms list``: the known generators."""

from __future__ import annotations

import typer

__all__ = ["list_generators"]


def list_generators() -> None:
    """Print the generators known by name.

    One line each: class, repository, licence and what it is.

    \b
    Example:
      gentransforms list
    """
    from gentransforms.generators.registry import list_pretrained

    typer.echo(str(list_pretrained()))
