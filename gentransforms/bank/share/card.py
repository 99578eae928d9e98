"""The data set card of a shared bank, with the main figures of its audit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentransforms.bank.format.manifest import AGREED, hash_manifest
from gentransforms.errors import BankError
from gentransforms.hub.card_parts import card_part
from gentransforms.hub.client import is_repository
from gentransforms.hub.datasets import card_metadata
from gentransforms.hub.licenses import license_fields
from gentransforms.hub.models import bundled_names
from gentransforms.paths import local_path

if TYPE_CHECKING:
    from gentransforms.bank.reader import Bank

__all__ = ["AUDIT_FILE", "AUDIT_FORMAT", "AUDIT_VERSION", "bank_card", "read_audit"]

AUDIT_FILE, AUDIT_FORMAT, AUDIT_VERSION = "audit.json", "gentransforms-audit", 1

_MAIN = (
    "source_similarity", "source_retrieval", "label_agreement", "variant_distance", "duplicate_variants", "frechet_distance", "precision",
    "recall", "near_copies", "training_share_others", "drift/classes", "drift/brightness", "drift/sharpness",
)  # fmt: skip

_NO_LICENCE = "Not stated by whoever shared this bank. The licences of the source images and of the generator's weights apply."


def bank_card(
    manifest: Mapping[str, Any],
    rows: int,
    *,
    license: str | None = None,
    description: str = "",
    repo_id: str | None = None,
    audit: Mapping[str, Any] | None = None,
) -> str:
    """Return a data set card in Markdown, with the metadata that the Hub reads.

    Args:
        manifest: manifest of the bank.
        rows: number of images in it.
        license: licence of the images, such as ``"cc-by-nc-4.0"``; one that the Hub does not list is stated as ``other`` with its name.
        description: a paragraph written by the user.
        repo_id: the bank's future repository on the Hub.
        audit: contents of the ``audit.json`` of an audit of the bank.

    Example:
        >>> generator = {"class": "ICGAN", "fingerprint": "0f"}
        >>> manifest = {"generator": generator, "source": {"count": 2}, "settings": {"variants": 10, "base_seed": 0}, "info": {}}
        >>> "They are **synthetic**" in bank_card(manifest, 20)
        True
    """
    settings, generator, source, info = (manifest[name] for name in ("settings", "generator", "source", "info"))
    given = str(info.get("generator_name") or "")
    # A path on the machine where the bank was generated means nothing to others.
    name = given if given in bundled_names() or is_repository(given) else generator["class"]
    where, digest = repo_id or "ORG/NAME", hash_manifest(manifest)
    metadata = card_metadata(
        **license_fields(license), pretty_name=f"Variants made by {name}", tags=["synthetic", "data-augmentation", "gentransforms"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    )  # fmt: skip
    facts = {
        "Images": f"{rows:,}, up to {settings['variants']} variants of each of {source['count']:,} source images",
        "Size": " x ".join(map(str, generator.get("image_size", []))) + " pixels",
        "Generator": f"`{generator['class']}`" + (f", `{name}`" if name != generator["class"] else ""),
        "Fingerprint": f"`{generator['fingerprint']}`",
        "Seeds": _seeds(settings, manifest.get("history", [])),
        "Encoding": _encoding(settings),
        "Created": f"{info.get('created')}, with {', '.join(f'{n} {v}' for n, v in info.get('versions', {}).items())}",
    } | {f"{what} of the generator" if "weights" not in what else what: text for what, text in info.get("generator_notes", {}).items()}
    agreed = json.dumps({name: manifest.get(name) for name in AGREED}, indent=2)
    lines = [f"---\n{metadata}\n---\n", f"# Variants made by {name}\n", card_part("description", description) + "\n" if description else ""]
    lines += [
        "A [gentransforms] bank: images that a generative model generated from source images, to augment training data.",
        "They are **synthetic**: they are not photographs, not suitable for evaluation, and may show things that the source does not.\n",
        card_part("figures", "\n".join(f"- {what}: {text}" for what, text in facts.items())) + "\n",
        card_part("licence", f"- Licence: {license or _NO_LICENCE}") + "\n",
        "\n## Usage\n",
        "```python\nimport gentransforms as gt\n",
        f'bank = gt.Bank.open("{where}")',
        "augment = gt.BankAugment(bank, p=0.5)  # for samples with keys: see gt.with_keys\n```\n",
        f'Or as an ordinary data set: `datasets.load_dataset("{where}", split="train")`.\n',
        "Each row: `key` (the source image), `variant`, `seed`, `attempt` (0 unless the variant was tried again) and `image`.\n",
        *([] if audit is None else [card_part("audit", _audit_section(audit), of=digest) + "\n"]),
        card_part("settings", f"## Settings\n\n```json\n{agreed}\n```", of=digest),
    ]
    return "\n".join(lines) + "\n"


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


def _audit_section(audit: Mapping[str, Any]) -> str:
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


def _seeds(settings: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    if settings["base_seed"] is None:
        return "unknown, because the images were generated elsewhere"
    stages = sorted({*(before["variants"] for before in history), settings["variants"]})
    if len(stages) == 1:
        return f"`derive_seeds({settings['base_seed']}, key, variant + attempt * {settings['variants']})`"
    which = f"where variants is the first of {', '.join(map(str, stages))} that is larger than variant"
    return f"`derive_seeds({settings['base_seed']}, key, variant + attempt * variants)`, {which}"


def _encoding(settings: Mapping[str, Any]) -> str:
    quality = settings.get("quality")
    return str(settings.get("image_format")) + ("" if quality is None or settings.get("image_format") == "png" else f", quality {quality}")
