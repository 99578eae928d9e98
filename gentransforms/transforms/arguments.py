"""Check the arguments that the transforms share."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

from gentransforms.containers import as_plain
from gentransforms.errors import ConfigError

__all__ = ["check_output_size", "check_p"]


def check_p(p: object) -> float:
    """Return `p` as a float.

    Raises:
        ConfigError: if it is not a number in [0, 1].

    Example:
        >>> check_p(1)
        1.0
    """
    if isinstance(p, bool) or not isinstance(p, Real) or not 0 <= float(p) <= 1:
        raise ConfigError(f"p={p!r}: expected a number in [0, 1]")
    return float(p)


def check_output_size(size: object, names: Sequence[str] = ("input", "generator")) -> str | tuple[int, int]:
    """Return `size` if it is one of `names`, or two positive integers.

    Raises:
        ConfigError: otherwise.

    Example:
        >>> check_output_size([32, 48])
        (32, 48)
    """
    size = as_plain(size)
    if isinstance(size, str) and size in names:
        return size
    if isinstance(size, tuple | list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
        return size[0], size[1]
    known = ", ".join(f'"{name}"' for name in names)
    raise ConfigError(f"output_size={size!r}: expected {known} or (height, width) in pixels")
