"""Bringing a card up to date that is pushed or saved again: what of it stays, and what becomes new."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from gentransforms.hub.card_parts import CARD_FILE, MARK, PART
from gentransforms.hub.card_sections import (
    SECTIONS,
    has_default_title,
    has_license,
    is_default,
    is_model_card,
    is_noted,
    mark_sections,
    outgrown,
    with_note,
    with_title,
)

__all__ = ["update_card"]

_STATED = ("licence", "description", "audit", *SECTIONS)  # by the user; the others follow from what is pushed
_UNMARKED = re.compile(r"^# Variants made by |^- Images: .* variants of each of ", re.MULTILINE)  # the card of a bank
_LICENCE = re.compile(r"(<!-- end of figures -->.*?^- Licence: )[^\n]*", re.DOTALL | re.MULTILINE)
_LICENCE_FIELDS = ("license", "license_name", "license_link")


def update_card(there: str, new: str, given: Collection[str] = ()) -> str:
    """Return the card that is there with the parts of a new one.

    Parts that the user states, such as the licence, are replaced if they are given now, and appended if the card has none; one that nobody
    has stated yet becomes that of the new card. Other parts that were removed from the card stay away.

    What is about something else than the new card describes does not stay as it is. The audit of another bank is removed. Training data
    and evaluation of a generator with other weights, or an evaluation with other options, become those of the new card; if it states
    none, a note says what they are about.

    A card without parts, such as one that was made on the website, gets those of the new one: its text follows that of the new card,
    and its metadata stay, the licence too unless one is given. The card of a bank that an earlier version wrote, without marks, is
    replaced, because what was written into it by hand cannot be told from the rest; its licence and further metadata stay.

    Args:
        there: the card that is there.
        new: the new one.
        given: names of the parts that the user stated now.

    Raises:
        ValueError: if the metadata of the card that is there are needed and cannot be read.

    Example:
        >>> from gentransforms.hub.card_parts import card_part
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
    if of_generator := is_model_card(new) and is_model_card(there):
        there = mark_sections(there)
    if MARK not in there:
        return _replace_unmarked(there, new, given)
    found = {match["name"]: match for match in PART.finditer(new)}
    old = {match["name"]: match[0] for match in PART.finditer(there)}
    parts = {name: match[0] for name, match in found.items() if name in given or name not in _STATED}
    left_open = {name for name in old.keys() - parts.keys() if is_default(old[name])}
    renewed = {name for name in left_open & found.keys() if not is_default(found[name][0])}
    if "licence" in renewed and has_license(there):  # somebody edited the metadata alone
        renewed.remove("licence")
    parts |= {name: found[name][0] for name in renewed}
    for name in set(outgrown(there, new)) & old.keys() - parts.keys() - left_open:
        newer = found[name][0] if name in found else ""
        parts[name] = newer if newer and not is_default(newer) and not is_noted(newer) else with_note(old[name])
    described = {match["of"] for match in found.values() if match["of"]}
    for match in reversed(list(PART.finditer(there))):
        if match["name"] == "audit" and "audit" not in parts and match["of"] not in described:
            there = there[: match.start()].rstrip("\n") + "\n\n" + there[match.end() :].lstrip("\n")
    updated = PART.sub(lambda match: parts.get(match["name"], match[0]), there).rstrip("\n")
    text = "\n\n".join([updated, *(parts[name] for name in given if name in parts and name not in old)]) + "\n"
    if of_generator and ("title" in given or has_default_title(there)):
        text = with_title(text, new)
    return _with_license(text, new) if "licence" in {*given, *renewed} else text


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
    """Return the card that is there with the licence in the metadata of a new one, in the place of the old one."""
    from huggingface_hub.repocard_data import CardData

    card, stated = _read(there), _read(new).data
    if all(card.data.get(name) == stated.get(name) for name in _LICENCE_FIELDS):
        return there
    fields: dict[str, Any] = {}
    old = card.data.to_dict()
    for name, value in (old if "license" in old else {"license": None, **old}).items():
        if name == "license":
            fields |= {key: stated.get(key) for key in _LICENCE_FIELDS if stated.get(key) is not None}
        elif name not in _LICENCE_FIELDS:
            fields[name] = value
    return f"---\n{CardData(**fields).to_yaml()}\n---\n{card.text}"


def _read(text: str) -> Any:
    """Return a card as the Hub's client reads it."""
    from huggingface_hub import RepoCard

    try:
        return RepoCard(text)
    except Exception as error:  # of the YAML parser's, too, which the client does not translate
        raise ValueError(f"the YAML at the top of its {CARD_FILE} cannot be read ({error}): correct it there, then try again") from error
