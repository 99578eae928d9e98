"""Calls of our command line that a page shows, read without being carried out."""

from __future__ import annotations


def parse_command(arguments: list[str]) -> None:
    """Check a call of ``gentransforms``, to its last option."""
    import typer.main

    from gentransforms.cli.main import app

    command = typer.main.get_command(app)
    context = command.make_context("gentransforms", list(arguments))
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        command = command.commands[rest[0]]
        context = command.make_context(rest[0], rest[1:], parent=context)
