"""Parts of a card that are written anew when it is pushed again; the rest belongs to whoever edits it on the Hub."""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["CARD_FILE", "card_part", "update_card"]

CARD_FILE = "README.md"

_STATED = ("licence", "description", "audit")  # by the user; the others follow from what is pushed
_PART = re.compile(r"<!-- gentransforms: (?P<name>\w+) -->\n.*?<!-- end of (?P=name) -->", re.DOTALL)


def card_part(name: str, text: str) -> str:
    """Return a part of a card in Markdown, between comments that the Hub does not show.

    Args:
        name: one word.
        text: Markdown.

    Example:
        >>> card_part("figures", "- Images: 20")
        '<!-- gentransforms: figures -->\\n- Images: 20\\n\\n<!-- end of figures -->'
    """
    return f"<!-- gentransforms: {name} -->\n{text.strip()}\n\n<!-- end of {name} -->"


def update_card(there: str, new: str, given: Collection[str] = ()) -> str:
    """Return the card that is there with the parts of a new one.

    Parts that the user states, such as the licence, are replaced if they are given now, and appended if the card has none. Other parts
    that were removed from the card stay away.

    Args:
        there: the card that is there.
        new: the new one.
        given: names of the parts that the user stated now.

    Example:
        >>> update_card("My words.", card_part("figures", "30"))
        'My words.\\n'
        >>> update_card("My words.\\n" + card_part("figures", "20"), card_part("figures", "30"))
        'My words.\\n<!-- gentransforms: figures -->\\n30\\n\\n<!-- end of figures -->\\n'
    """
    parts = {match["name"]: match[0] for match in _PART.finditer(new) if match["name"] in given or match["name"] not in _STATED}
    old = {match["name"] for match in _PART.finditer(there)}
    updated = _PART.sub(lambda match: parts.get(match["name"], match[0]), there).rstrip("\n")
    text = "\n\n".join([updated, *(parts[name] for name in given if name in parts and name not in old)]) + "\n"
    return _with_license(text, new) if "licence" in given else text


def _with_license(there: str, new: str) -> str:
    """Return the card that is there with the licence in the metadata of a new one."""
    from huggingface_hub import RepoCard

    card, stated = RepoCard(there), RepoCard(new).data
    for name in ("license", "license_name", "license_link"):
        card.data.pop(name, None)
        if (value := stated.get(name)) is not None:
            card.data[name] = value
    return str(card)
