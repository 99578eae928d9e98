"""The main figures of an audit, for the card of a shared bank."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentransforms.bank.format.manifest import hash_manifest
from gentransforms.errors import BankError
from gentransforms.paths import local_path

if TYPE_CHECKING:
    from gentransforms.bank.reader import Bank

__all__ = ["AUDIT_FILE", "AUDIT_FORMAT", "AUDIT_VERSION", "audit_section", "read_audit"]

AUDIT_FILE, AUDIT_FORMAT, AUDIT_VERSION = "audit.json", "gentransforms-audit", 1

_MAIN = (
    "source_similarity", "source_retrieval", "label_agreement", "variant_distance", "duplicate_variants", "frechet_distance", "precision",
    "recall", "near_copies", "training_share_others", "drift/classes", "drift/brightness", "drift/sharpness",
)  # fmt: skip


def read_audit(path: str | Path, bank: Bank) -> dict[str, Any]:
    """Return what ``audit.json`` says, from that file or the folder that it is in.

    Raises:
        BankError: if it cannot be read, or is the audit of another bank.
    """
    file = local_path(path, "audit")
    file = file / AUDIT_FILE if file.is_dir() else file
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        known = (found["format"], found["format_version"]) == (AUDIT_FORMAT, AUDIT_VERSION)
        of_bank = found["about"].get("bank_digest")
    except OSError as error:
        raise BankError(f"{file}: cannot be read: {error.strerror or error}: expected what `gentransforms bank audit` wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BankError(f"{file}: is not the audit.json of an audit: expected what `gentransforms bank audit` wrote") from error
    if not known:
        raise BankError(f"{file}: is not an audit of this version: audit the bank again")
    if of_bank != hash_manifest(bank.manifest):
        raise BankError(f"{file}: is the audit of {found['about'].get('bank')}, and not of {bank.path} as it is: audit this bank")
    audited: dict[str, Any] = found
    return audited


def audit_section(audit: Mapping[str, Any]) -> str:
    """Return a section of a card in Markdown: the main figures, each with its interval, its reference and what it means."""
    about, measures = audit["about"], audit["measures"]
    encoder = f"`{about['encoder']}`" + (", the generator's own encoder, which flatters it" if about["own_encoder"] else "")
    lines = [
        "## Audit\n",
        f"{about['variants']:,} variants of {about['sources']:,} sources, compared by {encoder}. The reference is the same figure among "
        "real images, or chance. Written by `gentransforms bank audit`.\n",
        "| figure | value | 95% interval | reference | what it is |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for name in _MAIN:
        if name in measures:
            one = measures[name]
            interval = "" if one["interval"] is None else f"{one['interval'][0]:.3g} to {one['interval'][1]:.3g}"
            reference = "" if one["reference"] is None else f"{one['reference']:.3g}"
            lines.append(f"| `{name}` | {one['value']:.3g} | {interval} | {reference} | {one['meaning']} |")
    return "\n".join(lines) + "\n"
