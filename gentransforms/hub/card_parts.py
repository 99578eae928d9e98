"""Parts of a card that are written anew when it is saved or pushed again; the rest belongs to whoever edits it."""

from __future__ import annotations

import re

__all__ = ["CARD_FILE", "MARK", "PART", "card_part"]

CARD_FILE = "README.md"

MARK = "<!-- gentransforms:"
PART = re.compile(r"<!-- gentransforms: (?P<name>\w+)(?: of (?P<of>\w+))? -->\n.*?<!-- end of (?P=name) -->", re.DOTALL)


def card_part(name: str, text: str, of: str = "") -> str:
    """Return a part of a card in Markdown, between comments that the Hub does not show.

    Args:
        name: one word.
        text: Markdown.
        of: digest of what the part is about.

    Example:
        >>> card_part("figures", "- Images: 20")
        '<!-- gentransforms: figures -->\\n- Images: 20\\n\\n<!-- end of figures -->'
        >>> card_part("audit", "- Recall: 0.5", of="0f").splitlines()[0]
        '<!-- gentransforms: audit of 0f -->'
    """
    return f"{MARK} {name}{f' of {of}' if of else ''} -->\n{text.strip()}\n\n<!-- end of {name} -->"
