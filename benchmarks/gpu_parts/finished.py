"""Finished runs of examples/ssl, made small to come back: everything but the optimiser's moments, which nobody needs any more."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.gpu_parts.scripts import replace


def keep_run(folder: Path, target: Path) -> None:
    """Copy a finished run, with zeros in the place of its optimiser's state: a zip file holds them in no space.

    The copy is evaluated like the run, by ``reproduce.py`` or ``evaluate.py``; it is not to be trained on.
    """
    checkpoint = torch.load(folder / "last.ckpt", map_location="cpu", weights_only=False)
    for optimizer in checkpoint["optimizer_states"]:
        for state in optimizer["state"].values():
            state.update({name: torch.zeros_like(value) for name, value in state.items() if torch.is_tensor(value) and value.ndim})
    replace(folder, target, leave_out=("*.ckpt", "*.partial"), add=lambda part: torch.save(checkpoint, part / "last.ckpt"))
