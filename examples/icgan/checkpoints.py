"""Exact resume: atomic checkpoints, and random numbers that depend on the step alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from shared import write_whole


def atomic_save(state: dict[str, Any], path: Path) -> None:
    """Write `state` to `path`, whole or not at all."""
    with write_whole(path) as partial:
        torch.save(state, partial)


def seed_step(seed: int, step: int) -> None:
    """Seed torch from (seed, step), so that a resumed run draws what an uninterrupted one would have drawn."""
    torch.manual_seed((seed * 1_000_003 + step) * 2_654_435_761 % 2**31)
