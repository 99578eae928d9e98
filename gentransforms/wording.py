"""Parts of messages: the type of a value with its article, and the message of another error in one line."""

from __future__ import annotations

import re

__all__ = ["name_type", "one_line", "with_article"]

_REASON = 200


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line of bounded length; its type if the message is empty.

    Example:
        >>> one_line(ValueError("two\\nlines")), one_line(KeyError())
        ('two lines', 'KeyError')
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join(text.split())
    if len(line) > _REASON:
        line = f"{line[: _REASON - 1]}…"
    return line or type(error).__name__


def name_type(value: object) -> str:
    """Return the type of a value with its article, as messages name it.

    Example:
        >>> name_type(3), name_type("three")
        ('an int', 'a str')
    """
    return with_article(type(value).__name__)


def with_article(name: str) -> str:
    """Return a name with its indefinite article.

    Example:
        >>> with_article("ICGAN"), with_article("UNet2DModel"), with_article("UserDict"), with_article("Unheard")
        ('an ICGAN', 'a UNet2DModel', 'a UserDict', 'an Unheard')
    """
    # A "u" as in "UNet", "user", "uint8" and "unit" is spoken as a consonant.
    return f"{'an' if re.match('[AEIOaeio]|[Uu](?!s|ni|int|[A-Z])', name) else 'a'} {name}"
