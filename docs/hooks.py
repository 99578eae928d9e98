"""Pages of the site that are files of the repository: index, changelog, and the recipes' README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
_SOURCES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "reproduce.md": "examples/ssl/README.md"}


def on_page_read_source(page: Any, config: Any) -> str | None:
    """Return the repository's file for such a page, its links made relative to docs/; None for any other page."""
    name = _SOURCES.get(page.file.src_uri)
    if name is None:
        return None
    up = "../" * name.count("/")
    return (_ROOT / name).read_text(encoding="utf-8").replace(f"]({up}docs/", "](")
