"""Exact resume: atomic checkpoints, and random numbers that depend on the step alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def atomic_save(state: dict[str, Any], path: Path) -> None:
    """Write `state` beside `path`, then rename: a killed run leaves the old checkpoint or the new one, never half."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def seed_step(seed: int, step: int) -> None:
    """Seed torch from (seed, step), so that a resumed run draws what an uninterrupted one would have drawn."""
    torch.manual_seed((seed * 1_000_003 + step) * 2_654_435_761 % 2**31)
