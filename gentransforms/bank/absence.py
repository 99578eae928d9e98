"""Say why a bank has no image for a key and a variant, and what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gentransforms.bank.format.damage import ADVICE
from gentransforms.bank.format.unit import UNREAD
from gentransforms.sources.contents import is_litter
from gentransforms.sources.keys import tell_other_root

if TYPE_CHECKING:
    from gentransforms.bank.reader import Bank

__all__ = ["explain_absence", "was_hidden"]


def explain_absence(bank: Bank, key: str | int, variant: int, asked: Sequence[str | int] = ()) -> str:
    """Return in one sentence why a bank has no image for a pair; `asked` are keys of the same data set."""
    lookup = bank._lookup
    own = lookup.variants_of(key)
    if bank.selection is not None and dataclasses.replace(lookup, kept=None).find_rows([key], [variant])[0] >= 0:
        what = f"the selection {bank.selection.where!r}" if bank.selection.where else "a selection"
        advice = f"the key has {own}" if own else 'use missing="source" in BankAugment'
        return f"variant {variant} of key {key!r} is left out by {what}: {advice}"
    if own and not 0 <= variant < bank.variants:
        return f"key {key!r} has no variant {variant}: the variants of this bank are 0 to {bank.variants - 1}"
    rejected = next((e for e in bank.rejected if e["key"] == key and type(e["key"]) is type(key) and e.get("variant") == variant), None)
    if rejected is not None:
        advice = f"choose among {own}, as variants_of(key) returns" if own else 'leave the key out, or use missing="source"'
        attempts, reason = rejected.get("attempts"), str(rejected.get("reason"))
        if not attempts:
            fix = "fix it and run generate with --retry-failed, or " if reason.startswith(UNREAD) else ""
            return f"variant {variant} of key {key!r} is lacking, because {reason}: {fix}{advice}"
        return f"variant {variant} of key {key!r} was rejected after {attempts} attempts ({reason}): {advice}"
    if own:
        return f"key {key!r} has variants {own}, but not {variant}: {bank._advice or ADVICE}"
    failed = next((e for e in bank.failed if e["key"] == key and type(e["key"]) is type(key)), None)
    if failed is not None:
        return (
            f"key {key!r} has no images, because its source could not be read ({failed.get('reason')}): "
            'fix it and run generate with --retry-failed, or use missing="source" in BankAugment'
        )
    return f"key {key!r} is not in this bank{_hint(bank, key, asked)}"


def was_hidden(bank: Bank, key: str | int) -> bool:
    """Return whether a key names a file that `gentransforms.open_source` leaves out of the folder that the bank was made of.

    torchvision's ImageFolder takes such files: ``"cat/.ipynb_checkpoints/1.jpg"``.
    """
    of_folder = (bank.manifest.get("source") or {}).get("decides", {}).get("kind") == "image folder"
    return of_folder and isinstance(key, str) and any(map(is_litter, key.split("/")))


def _hint(bank: Bank, key: str | int, asked: Sequence[str | int]) -> str:
    kind = bank._facts.key_type
    if type(key).__name__ != kind:
        twin: str | int | None = str(key) if kind == "str" else int(key) if str(key).removeprefix("-").isdecimal() else None
        found = f"; {twin!r} is in it" if twin is not None and bank._lookup.find_key(twin) >= 0 else ""
        return f", whose keys are {kind}: {key!r} is {type(key).__name__}, and '1' and 1 differ{found}"
    if was_hidden(bank, key):
        return (
            ": hidden files, and those in hidden folders, are left out of a bank of a folder: delete or move them, generate a bank of "
            'ImageFolder(root) itself, or use missing="source" in BankAugment'
        )
    if bank.missing_units:
        return f", of which {bank.missing_units:,} units have not been generated yet"
    if root := tell_other_root(key, bank.keys, asked):
        return f", but {root}"
    example = f" (its keys look like {bank.keys[0]!r})" if bank.keys else ""
    return f'{example}: generate a bank from the data set you read, or use missing="source" in BankAugment'
