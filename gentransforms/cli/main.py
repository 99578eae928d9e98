"""The command ``gentransforms``, and the options common to all its commands."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from gentransforms.cli import bank, convert
from gentransforms.cli.demo import demo
from gentransforms.cli.generate import generate
from gentransforms.cli.list import list_generators
from gentransforms.cli.plain import PathsExpanded, PlainGroup
from gentransforms.cli.preview import preview

__all__ = ["app", "run"]

# Plain text throughout: Rich's boxes wrap, and would break a path in two.
app = PathsExpanded(
    cls=PlainGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from gentransforms import __version__

        typer.echo(f"gentransforms {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def gentransforms(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Augment images with generative models.

    `gentransforms COMMAND --help` describes a command. Exit codes: 0 success, 1 failure, 2 invalid usage, 130 interrupted.

    \b
    Example:
      gentransforms demo --output demo.png
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


app.command()(demo)
app.command()(preview)
app.command()(generate)
app.add_typer(convert.app, name="convert")
app.add_typer(bank.app, name="bank")
app.command("list")(list_generators)


def run() -> None:
    """Run the command line and exit."""
    # The Hub's client reports every retry; users only need to know whether it worked in the end.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file name need not be valid text
    app(prog_name="gentransforms")
