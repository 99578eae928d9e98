"""Whether a run has been trained to its end, so that it can be measured."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import torch


def has_begun(out: Path) -> bool:
    """Return whether there is something to continue in `out`: a run that was killed before its first checkpoint starts again."""
    return any(out.glob("*.ckpt"))


def is_trained(out: Path) -> bool:
    """Return whether the run in `out` has been trained to its end: ``training.json`` and the checkpoint agree about its steps."""
    record, last = out / "training.json", out / "last.ckpt"
    if not record.exists() or not last.exists() or not zipfile.is_zipfile(last):
        return False
    checkpoint = torch.load(last, map_location="cpu", weights_only=False, mmap=True)
    steps, epochs = (json.loads(record.read_text())[name] for name in ("steps", "epochs"))
    return bool((steps, epochs) == (checkpoint["global_step"], checkpoint["settings"]["trainer"]["epochs"]))


def refuse_untrained(path: Path, purpose: str) -> None:
    """Exit if `path` is the folder of a run that is not trained to its end; its ``.ckpt`` is taken as it is."""
    if path.is_dir() and zipfile.is_zipfile(last := path / "last.ckpt") and not is_trained(path):
        raise SystemExit(f"{path} is not trained to its end: train it further, or give {last} to {purpose} it all the same")
