"""Training that came to NaN or infinity: it ends before any of it is written, so that its last checkpoint is finite.

What may have caused it can then be changed in the same folder, and the stage goes on from that checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from shared import flatten, is_finite, write_whole

if TYPE_CHECKING:
    from settings import Settings

MARK = "diverged.json"
RATES = {"encoder": ("encoder.learning_rate",), "generator": ("generator.learning_rate_G", "generator.learning_rate_D")}


def refuse_divergence(settings: Settings, out: Path, stage: str, step: int, values: Mapping[str, Any]) -> None:
    """Exit, naming the step, the first of the values that is not finite, and what to do.

    To read tensors waits for the device: for the steps at which values are read anyway.

    Args:
        settings: of the run.
        out: its folder.
        stage: ``encoder`` or ``generator``.
        step: that was done last.
        values: numbers, tensors, modules and states of optimizers by name.
    """
    found = next((name for name, value in values.items() if not is_finite(value)), None)
    if found is None:
        return
    path = out / f"{stage}.pt"
    kept = torch.load(path, map_location="cpu", weights_only=True)["step"] if path.exists() else 0
    goes_on = f"the {stage} begins again, as it has no checkpoint yet"
    if kept:
        goes_on = f"it goes on from {path}, the finite state of step {kept}; without that file, the {stage} begins again"
    _mark(out, stage, kept)
    raise SystemExit(f"{stage} step {step}: {found} is NaN or infinite, and was not written. {_advise(settings, stage)}: {goes_on}.")


def read_checkpoint(settings: Settings, out: Path, stage: str, device: torch.device) -> dict[str, Any] | None:
    """Return the last state of a stage, None before the first; exit if it is not finite, as earlier versions wrote it."""
    path = out / f"{stage}.pt"
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    if not is_finite(state):
        files = [path] if stage == "generator" or not (out / "generator.pt").exists() else [path, out / "generator.pt"]
        _mark(out, stage, 0)
        raise SystemExit(
            f"{path}, of step {state['step']}, holds NaN or infinity: an earlier version wrote it. Delete {' and '.join(map(str, files))}. "
            f"{_advise(settings, stage)}: the {stage} begins again."
        )
    return state


def read_mark(out: Path) -> dict[str, Any]:
    """Return the ``stage`` that diverged, and the ``step`` of its checkpoint, 0 for none; empty since its next checkpoint."""
    path = out / MARK
    return json.loads(path.read_text()) if path.exists() else {}  # type: ignore[no-any-return]


def remedies(out: Path) -> set[str]:
    """Return the settings that a run may change because it diverged."""
    mark = read_mark(out)
    return {*RATES[mark["stage"]], "precision"} if mark else set()


def remove_mark(out: Path) -> None:
    """Forget the divergence: a finite checkpoint follows it."""
    (out / MARK).unlink(missing_ok=True)


def _mark(out: Path, stage: str, step: int) -> None:
    with write_whole(out / MARK) as partial:
        partial.write_text(json.dumps({"stage": stage, "step": step}) + "\n")


def _advise(settings: Settings, stage: str) -> str:
    values = flatten(settings)
    rates = " and ".join(f"{name} (now {values[name]:g})" for name in RATES[stage])
    narrow = "" if settings.precision == "float32" else f", or with precision=float32 (now {settings.precision})"
    return f"Run the same command with a lower {rates}{narrow}"
