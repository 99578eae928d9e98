"""How the command line reports errors: one plain line on stderr, and an exit code that says whose fault it is."""

from __future__ import annotations

import errno
import functools
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import typer
from typer.core import TyperGroup

from gentransforms.errors import ConfigError, DeviceError, GentransformsError, ImageError, MissingInputError, OtherBankError
from gentransforms.paths import local_path

__all__ = ["Failure", "PathsExpanded", "PlainGroup", "WrongCall", "count", "one_line"]

_TRACEBACK = "GENTRANSFORMS_TRACEBACK"


F = TypeVar("F", bound=Callable[..., Any])


class WrongCall(Exception):
    """The command is invalid as written: a bad path, name or value. Exit code 2."""


class Failure(Exception):
    """The command is valid, but carrying it out failed. Exit code 1."""


def one_line(text: str) -> str:
    """Return `text` with line breaks replaced by spaces; nothing is truncated or wrapped.

    Example:
        >>> one_line("2 keys do not fit:\\n\\tmissing a")
        '2 keys do not fit: missing a'
    """
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def count(number: int, thing: str) -> str:
    """Return a number with its noun in the singular or plural.

    Example:
        >>> count(1, "image"), count(2, "image")
        ('1 image', '2 images')
    """
    return f"{number} {thing}{'' if number == 1 else 's'}"


class PathsExpanded(typer.Typer):
    """A typer application whose commands get the paths among their arguments by the rule of `gentransforms.paths.local_path`."""

    def command(self, *args: Any, **options: Any) -> Callable[[F], F]:
        """Register a command."""
        register = super().command(*args, **options)

        def decorate(function: F) -> F:
            register(_with_local_paths(function))
            return function

        return decorate


def _with_local_paths(function: Any) -> Any:
    @functools.wraps(function)
    def command(**arguments: Any) -> Any:
        for name, value in arguments.items():
            if isinstance(value, Path):
                arguments[name] = local_path(value, name)
            elif isinstance(value, list):
                arguments[name] = [local_path(one, name) if isinstance(one, Path) else one for one in value]
        return function(**arguments)

    return command


class PlainGroup(TyperGroup):
    """A typer group that reports every error as one plain line, without usage, boxes or traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command; exit with 0, 1 (failure), 2 (invalid usage) or 130 (interrupted)."""
        standalone, options["standalone_mode"] = options.get("standalone_mode", True), False
        if not standalone:
            return super().main(*args, **options)
        with warnings.catch_warnings():
            warnings.formatwarning = _format_warning
            try:
                result = super().main(*args, **options)
            except KeyboardInterrupt:
                sys.exit(130)
            except Exception as error:
                if type(error).__name__ == "NoArgsIsHelpError":  # by name: of click, or of typer's own copy
                    typer.echo(error.format_message())  # type: ignore[attr-defined]
                    sys.exit(2)
                if os.environ.get(_TRACEBACK):
                    raise
                code, message = _explain(error)
                typer.echo(f"Error: {one_line(message)}", err=True)
                sys.exit(code)
        # An exit code if a command or --help asked to exit; our commands return nothing.
        sys.exit(result if isinstance(result, int) else 0)


def _explain(error: Exception) -> tuple[int, str]:
    """Return the exit code and message of `error`."""
    if isinstance(error, WrongCall | ConfigError | ImageError | MissingInputError | DeviceError | OtherBankError):
        return 2, str(error)
    if isinstance(error, Failure | GentransformsError):
        return 1, str(error)
    # By attribute, not by class: older versions of typer raise click's exceptions, newer ones their own copies.
    if hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return int(error.exit_code), error.format_message().rstrip(".") + hint  # type: ignore[attr-defined]
    if isinstance(error, typer.Abort):
        return 1, "aborted"
    if isinstance(error, OSError) and error.strerror:
        code = 2 if error.errno == errno.ENAMETOOLONG else 1
        return code, f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return 1, "out of memory: ask for fewer images or variants"
    return 1, f"unexpected {type(error).__name__}: {error}; set {_TRACEBACK}=1 to see where"


def _format_warning(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"Warning: {one_line(str(message))}\n"
