"""Import pyarrow only when needed: the library works without it until a bank is made or read."""

from __future__ import annotations

from typing import Any

from gentransforms.errors import ConfigError

__all__ = ["arrow"]


def arrow() -> Any:
    """Import and return the module pyarrow, with ``ipc``.

    Raises:
        ConfigError: if it is not installed, with the command that installs it.
    """
    try:
        import pyarrow as pa
        import pyarrow.ipc
    except ImportError as error:
        raise ConfigError(f"banks need pyarrow ({error}): install it with pip install 'gentransforms[bank]'") from error
    return pa
