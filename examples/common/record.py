"""What a run was made with, in ``settings.yaml`` of its folder: a folder is never continued with other settings or images."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from common.changes import name_changes


def read_record(out: Path) -> dict[str, Any]:
    """Return the settings of the run in `out` by their full names, empty if it holds none."""
    path = out / "settings.yaml"
    return yaml.safe_load(path.read_text()) if path.exists() else {}


def refuse_another_run(out: Path, record: dict[str, Any], free: Collection[str], later: Collection[str] = ()) -> None:
    """Exit, naming what differs, if `out` holds a run of other settings; those named in `free` may change.

    Runs of earlier versions lack the entries named in `later`: they are compared if both records have them.
    """
    before = read_record(out)
    unknown = {name for name in later if name not in before or name not in record}
    differing = (name for name in sorted(record | before) if before.get(name) != record.get(name))
    names = [name for name in differing if name not in free and name not in unknown] if before else []
    if names:
        changed = ", ".join(name_changes(names, before, record))
        raise SystemExit(f"{out} holds a run with other {changed}: choose another --out, or the settings in {out / 'settings.yaml'}")


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Write ``settings.yaml``, whole or not at all: under SLURM the processes of all devices write it at once."""
    out.mkdir(parents=True, exist_ok=True)
    part = out / f"settings.{socket.gethostname()}-{os.getpid()}"
    part.write_text(yaml.safe_dump(record, sort_keys=False))
    part.replace(out / "settings.yaml")
