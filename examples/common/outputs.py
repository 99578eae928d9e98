"""Whether results can be written, asked before the work whose results they are."""

from __future__ import annotations

import os
from pathlib import Path


def refuse_unwritable(folder: Path, option: str) -> None:
    """Exit if `folder`, as `option` names it, is not and cannot become a folder to write into. Nothing is created."""
    found = folder
    while not os.path.lexists(found) and found != found.parent:
        found = found.parent
    if not found.is_dir():
        raise SystemExit(f"{option} {folder}: {found} is not a folder: expected a folder, or a path where one can be made")
    if not os.access(found, os.W_OK | os.X_OK):
        raise SystemExit(f"{option} {folder}: nothing can be written into {found}: choose another, or change its permissions")
