"""Licences by the names that the Hub takes in a card: one of its own list, or ``other`` with a name and a link."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["license_fields", "license_link"]

# https://huggingface.co/docs/hub/repositories-licenses; one that is missing here is written as ``other`` with its name.
_NAMES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0 artistic-2.0
    bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
    agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0
    odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
"""
_LISTED = frozenset(_NAMES.split())


def license_fields(license: str | None, link: str | None = None) -> dict[str, Any]:
    """Return what a card's metadata says of a licence.

    Args:
        license: a name of the Hub's list, or another.
        link: to its text, for one that is not in the list.

    Example:
        >>> license_fields("mit")
        {'license': 'mit'}
        >>> license_fields("CC BY 4.0")
        {'license': 'cc-by-4.0'}
        >>> license_fields("FLUX.1 [dev] licence")
        {'license': 'other', 'license_name': 'flux.1-dev-licence'}
    """
    if license is None:
        return {}
    name = re.sub(r"[^a-z0-9.]+", "-", license.lower()).strip("-")
    for listed in (license.lower(), name):
        if listed in _LISTED - {"other"}:
            return {"license": listed}
    fields = {"license": "other", "license_name": name if name != "other" else None, "license_link": link}
    return {key: value for key, value in fields.items() if value}


def license_link(link: Any, name: str, revision: str | None, remote: bool) -> str | None:
    """Return the address of a licence's text, which a card may name by its place in the repository; None if it has none."""
    if not isinstance(link, str) or link.startswith(("https://", "http://")):
        return link if isinstance(link, str) else None
    if not remote:
        return None
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name}/blob/{revision or 'main'}/{link}"
