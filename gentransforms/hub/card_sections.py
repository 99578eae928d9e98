"""The sections of a generator's card: how each is written, found again, and known to be about another state of the generator."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable

from gentransforms.hub.card_parts import PART, card_part

__all__ = [
    "FIELDS", "SECTIONS", "UNSAID", "card_section", "has_default_title", "has_license", "is_default", "is_empty", "is_model_card",
    "is_noted", "mark_sections", "named_parts", "outgrown", "weights_of", "with_note", "with_title",
]  # fmt: skip

UNSAID = "Not stated by whoever saved these weights."
SECTIONS = {
    "training_data": ("Training data", UNSAID),
    "evaluation": ("Evaluation", UNSAID),
    "intended_use": (
        "Intended use",
        "Augmenting training images of vision models: each image is replaced, with some probability, by a new image of the same content.",
    ),
    "limits": (
        "Limits",
        "The images are synthetic. They inherit the gaps and biases of the training data, may change features that a label or "
        "a measurement depends on, and are not suitable for evaluation sets. Inspect a grid of them before training.",
    ),
}
FIELDS = ("title", "description", "license", "license_link", *SECTIONS)  # what `card=` may hold

_NOTE = "*Stated before the options or weights of this generator changed: it may no longer hold.*"
_HEADER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(?P<yaml>.*?\n)??---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_OURS = re.compile(r"^library_name:\s*[\"']?gentransforms\b", re.MULTILINE)
_FIGURES = re.compile(r"^- Images: .*; keeps the source's layout: .*\n(?:- (?:Weights|Inputs besides the image): .*\n)*", re.MULTILINE)
_LICENCE = re.compile(r"(<!-- end of figures -->\s*)(- Licence: [^\n]*)")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")


def named_parts(card: Iterable[str]) -> list[str]:
    """Return the parts of a card that the entries of `card=` stand for.

    Example:
        >>> named_parts(["license_link", "limits", "license"])
        ['licence', 'limits']
    """
    return list(dict.fromkeys("licence" if name.startswith("license") else name for name in card))


def card_section(name: str, text: str) -> str:
    """Return one of the `SECTIONS` in Markdown, as a part with its heading."""
    return card_part(name, f"## {SECTIONS[name][0]}\n\n{text}")


def is_model_card(text: str) -> bool:
    """Return whether a card is that of a generator of ours, however it was edited, and not one of a bank, a project or another library."""
    header = _HEADER.match(text)
    return bool(header and _OURS.search(header["yaml"] or "")) or bool(_FIGURES.search(text))


def is_empty(text: str) -> bool:
    """Return whether a card has metadata at most, as that of a new repository of the Hub, which are not those of another library."""
    header = _HEADER.match(text)
    return not text[_begin(text) :].strip() and "library_name:" not in (header["yaml"] or "" if header else "")


def has_license(text: str) -> bool:
    """Return whether the metadata of a card state a licence."""
    header = _HEADER.match(text)
    return bool(
        header and re.search(r"^license(?:_name)?:(?:[ \t]*(?!null\b|[~#])\S|[ \t]*\n[ \t]*- )", header["yaml"] or "", re.MULTILINE)
    )


def has_default_title(text: str) -> bool:
    """Return whether the title of a card is the name of the generator's class, which is among its tags in lower case."""
    header, title = _HEADER.match(text), _title(text).removeprefix("# ")
    return bool(header and title and re.search(rf"^- {re.escape(title.lower())}$", header["yaml"] or "", re.MULTILINE))


def is_default(part: str) -> bool:
    """Return whether nobody wrote what a part says: it was not stated, or is the text that the library has for it."""
    name, text = _read(part)
    if name == "description":
        return text.startswith(("A ", "An ")) and text.endswith("image generator for [gentransforms], saved with `save_pretrained`.")
    if name == "licence":
        return text == f"- Licence: {UNSAID}"
    return name in SECTIONS and text.partition("\n")[2].strip() == SECTIONS[name][1]


def is_noted(part: str) -> bool:
    """Return whether a part says that it is about an earlier state of the generator."""
    return _NOTE in part


def with_note(part: str) -> str:
    """Return a part with a note, below its heading, that it is about an earlier state of the generator."""
    if is_noted(part):
        return part
    return re.sub(r"\A([^\n]*\n(?:#+ [^\n]*\n+)?)", lambda match: f"{match[1].rstrip()}\n\n{_NOTE}\n\n", part, count=1)


def outgrown(there: str, new: str) -> Collection[str]:
    """Return the names of the parts of the card that is there which say something about another generator than that of the new card.

    The figures name the state of weights and options that a card is about. Training data are those of the weights, and an evaluation
    is one of both. A card that names no state, such as one of an earlier version, is taken at its word.
    """
    was, now = _state(there), _state(new)
    if not was or was == now:
        return ()
    return ("evaluation",) if now.partition("_")[0] == was.partition("_")[0] else ("evaluation", "training_data")


def weights_of(card: str) -> str:
    """Return the digest of the weights that the figures of a card are about; empty if they name none."""
    return _state(card).partition("_")[0]


def with_title(there: str, new: str) -> str:
    """Return the card that is there with the title of a new one."""
    title = _title(new)
    found = _title(there)
    if title and found:
        at = there.index(found, _begin(there))
        return there[:at] + title + there[at + len(found) :]
    begin = _begin(there)
    return f"{there[:begin].rstrip()}\n\n{title}\n\n{there[begin:].lstrip()}" if title else there


def mark_sections(text: str) -> str:
    """Return a generator's card whose parts all have marks, also where an earlier version wrote none or somebody removed them."""
    if not any(match["name"] == "figures" for match in PART.finditer(text)):
        text = _FIGURES.sub(lambda match: card_part("figures", match[0]) + "\n", text, count=1)
    text = _LICENCE.sub(lambda match: match[1] + card_part("licence", match[2]), text, count=1)
    marked = {match["name"] for match in PART.finditer(text)}
    if "description" not in marked and (title := _title(text)):
        begin = text.index(title, _begin(text)) + len(title)
        end = text.find("<!-- gentransforms: figures", begin)
        if end >= 0 and (words := text[begin:end].strip()) and "\n#" not in words:
            text = f"{text[:begin]}\n\n{card_part('description', words)}\n\n{text[end:]}"
    for name, (heading, _) in SECTIONS.items():
        if name not in marked and (place := _find_section(text, heading)):
            begin, end = place
            text = f"{text[:begin]}{card_part(name, text[begin:end])}\n\n{text[end:]}".rstrip("\n") + "\n"
    return text


def _read(part: str) -> tuple[str, str]:
    match = PART.fullmatch(part)
    return (match["name"], part.partition("\n")[2].rpartition("\n")[0].strip()) if match else ("", part)


def _state(card: str) -> str:
    return next((match["of"] or "" for match in PART.finditer(card) if match["name"] == "figures"), "")


def _begin(text: str) -> int:
    """Return where the text of a card begins, after its metadata."""
    header = _HEADER.match(text)
    return header.end() if header else 0


def _headings(text: str) -> list[tuple[int, str]]:
    """Return place and text of the lines that are headings of the first or second level, outside of code."""
    found, at, fence = [], _begin(text), ""
    for line in text[at:].splitlines(keepends=True):
        if code := _FENCE.match(line):
            if not fence:
                fence = code[1]
            elif code[1].startswith(fence):
                fence = ""
        elif not fence and re.match(r"##? ", line):
            found.append((at, line.strip()))
        at += len(line)
    return found


def _title(text: str) -> str:
    return next((line for _, line in _headings(text) if line.startswith("# ")), "")


def _find_section(text: str, heading: str) -> tuple[int, int] | None:
    """Return where a section without marks begins and ends: at the next heading, or at the next part."""
    places = [*_headings(text), (len(text), "")]
    for (begin, line), (end, _) in itertools.pairwise(places):
        if line == f"## {heading}":
            part = text.find("<!-- gentransforms:", begin, end)
            return begin, end if part < 0 else part
    return None
