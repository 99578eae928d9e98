"""The report of evaluate.py: results that were found before stay in it, if they are of the same checkpoint and images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from contents import name_other_contents
from shared import name_changes, write_whole

# The options that decide a result; the others of ProbeOptions decide how fast it comes.
_OPTIONS = {
    "linear": ("epochs", "batch_size", "devices", "base_lr", "optimizer", "cached", "precision", "seed"),
    "knn": ("k", "temperature"),
}
_OF_ALL = ("image_size", "in_memory")


def start_report(out: Path, about: dict[str, Any], methods: tuple[str, ...]) -> dict[str, Any]:
    """Return what a report begins with: `about`, and the results that are in `out` already.

    Exit if these are of another checkpoint, of other images, or, for the `methods` that will be measured again, with other options. What
    a report of an earlier version lacks is not compared.
    """
    try:
        before = json.loads(out.read_text())
    except FileNotFoundError:
        return about
    except ValueError:
        raise SystemExit(f"{out} is no JSON: give another --out, or delete it") from None
    found = [name for name in _OPTIONS if isinstance(before, dict) and name in before]
    if not found:
        return about
    options, own = before.get("options", {}), about["options"]
    compared = [*_OF_ALL, *(name for method in found if method in methods for name in _OPTIONS[method])]
    changed = [
        *_name_other_subjects(before, about),
        *name_changes([name for name in compared if name in options and options[name] != own[name]], options, own),
    ]
    if changed:
        raise SystemExit(
            f"{out} has results ({', '.join(found)}) of other {', '.join(changed)}, which would be lost: give another --out, or delete it"
        )
    kept = [name for name in found if name not in methods]
    earlier = {name: options[name] for method in kept for name in _OPTIONS[method] if name in options}
    return about | {"options": own | earlier} | {name: before[name] for name in found}


def write_report(out: Path, report: dict[str, Any]) -> None:
    """Write the report, whole or not at all."""
    with write_whole(out) as partial:
        partial.write_text(json.dumps(report, indent=2) + "\n")


def _name_other_subjects(before: dict[str, Any], about: dict[str, Any]) -> list[str]:
    """Return in what two reports differ besides options: by hashes where both have them, else by what the user wrote."""
    hashed = ["checkpoint"] if "checkpoint_sha256" in before else []
    changed = ["checkpoint_sha256"] if hashed and before["checkpoint_sha256"] != about["checkpoint_sha256"] else []
    for part in ("train", "test"):
        changed += name_other_contents(before, about, f"{part}_")
        if any(name in before and name in about for name in (f"{part}_{kind}_sha256" for kind in ("files", "cells", "pixels"))):
            hashed.append(part)
    names = [name for name in ("checkpoint", "train", "test", "train_images") if name not in hashed]
    changed += [name for name in names if name in before and before[name] != about[name]]
    return name_changes(changed, before, about)
