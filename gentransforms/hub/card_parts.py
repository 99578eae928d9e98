"""Parts of a card that are written anew when it is pushed again; the rest belongs to whoever edits it on the Hub."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

__all__ = ["CARD_FILE", "card_part", "update_card"]

CARD_FILE = "README.md"

_MARK = "<!-- gentransforms:"
_STATED = ("licence", "description", "audit")  # by the user; the others follow from what is pushed
_PART = re.compile(r"<!-- gentransforms: (?P<name>\w+)(?: of (?P<of>\w+))? -->\n.*?<!-- end of (?P=name) -->", re.DOTALL)
_UNMARKED = re.compile(r"^# Variants made by |^- Images: .*(?: variants of each of |keeps the source's layout: )", re.MULTILINE)
_LICENCE = re.compile(r"(<!-- end of figures -->.*?^- Licence: )[^\n]*", re.DOTALL | re.MULTILINE)
_LICENCE_FIELDS = ("license", "license_name", "license_link")


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
    return f"{_MARK} {name}{f' of {of}' if of else ''} -->\n{text.strip()}\n\n<!-- end of {name} -->"


def update_card(there: str, new: str, given: Collection[str] = ()) -> str:
    """Return the card that is there with the parts of a new one.

    Parts that the user states, such as the licence, are replaced if they are given now, and appended if the card has none. An audit
    of something else than the new card describes is removed. Other parts that were removed from the card stay away.

    A card without parts, such as one that was made on the website, gets those of the new one: its text follows that of the new card,
    and its metadata stay, the licence too unless one is given. One that an earlier version wrote, without marks, is replaced, because
    what was written into it by hand cannot be told from the rest; its licence and further metadata stay.

    Args:
        there: the card that is there.
        new: the new one.
        given: names of the parts that the user stated now.

    Raises:
        ValueError: if the metadata of the card that is there are needed and cannot be read.

    Example:
        >>> figures = card_part("figures", "30")
        >>> update_card("My words.\\n" + card_part("figures", "20"), figures)
        'My words.\\n<!-- gentransforms: figures -->\\n30\\n\\n<!-- end of figures -->\\n'
        >>> print(update_card("---\\nlicense: mit\\n---\\nMy words.", "---\\ntags:\\n- synthetic\\n---\\n" + figures))
        ---
        tags:
        - synthetic
        license: mit
        ---
        <!-- gentransforms: figures -->
        30
        <BLANKLINE>
        <!-- end of figures -->
        <BLANKLINE>
        My words.
        <BLANKLINE>
    """
    if _MARK not in there:
        return _replace_unmarked(there, new, given)
    found = list(_PART.finditer(new))
    parts = {match["name"]: match[0] for match in found if match["name"] in given or match["name"] not in _STATED}
    described = {match["of"] for match in found if match["of"]}
    for match in reversed(list(_PART.finditer(there))):
        if match["name"] == "audit" and "audit" not in parts and match["of"] not in described:
            there = there[: match.start()].rstrip("\n") + "\n\n" + there[match.end() :].lstrip("\n")
    old = {match["name"] for match in _PART.finditer(there)}
    updated = _PART.sub(lambda match: parts.get(match["name"], match[0]), there).rstrip("\n")
    text = "\n\n".join([updated, *(parts[name] for name in given if name in parts and name not in old)]) + "\n"
    return _with_license(text, new) if "licence" in given else text


def _replace_unmarked(there: str, new: str, given: Collection[str]) -> str:
    """Return a new card with the metadata, and the text if it is not ours, of a card that is there and has no parts."""
    from huggingface_hub.repocard_data import CardData

    generated = bool(_UNMARKED.search(there))
    old, card = _read(there), _read(new)
    theirs, ours = ({name: value for name, value in read.data.to_dict().items() if value} for read in (old, card))
    text = card.text.rstrip("\n") + "\n"
    if "licence" not in given and (name := theirs.get("license_name") or theirs.get("license")):
        ours = {field: value for field, value in ours.items() if field not in _LICENCE_FIELDS}
        name, link = ", ".join(map(str, name)) if isinstance(name, list) else str(name), theirs.get("license_link")
        text = _LICENCE.sub(lambda match: match[1] + (f"[{name}]({link})" if link else name), text, count=1)
        ours |= {field: theirs[field] for field in _LICENCE_FIELDS if field in theirs}
    theirs = {field: value for field, value in theirs.items() if field not in (*_LICENCE_FIELDS, *(ours if generated else ()))}
    tags = theirs.get("tags", [])
    if tags := [tags] if isinstance(tags, str) else tags:
        theirs["tags"] = [*tags, *(tag for tag in ours.get("tags", ()) if tag not in tags)]
    if not generated and re.search(r"\w", old.text):
        text += "\n" + old.text.strip("\n") + "\n"
    return f"---\n{CardData(**{**ours, **theirs}).to_yaml()}\n---\n{text}"


def _with_license(there: str, new: str) -> str:
    """Return the card that is there with the licence in the metadata of a new one."""
    card, stated = _read(there), _read(new).data
    for name in _LICENCE_FIELDS:
        card.data.pop(name, None)
        if (value := stated.get(name)) is not None:
            card.data[name] = value
    return str(card)


def _read(text: str) -> Any:
    """Return a card as the Hub's client reads it."""
    from huggingface_hub import RepoCard

    try:
        return RepoCard(text)
    except Exception as error:  # of the YAML parser's, too, which the client does not translate
        raise ValueError(f"the YAML at the top of its {CARD_FILE} cannot be read ({error}): correct it there, and push again") from error
