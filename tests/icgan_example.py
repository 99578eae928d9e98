"""Import the modules of examples/icgan, which import each other by plain names, as a script's folder does; runs in miniature."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.progress import Progress

FOLDER = Path(__file__).parents[1] / "examples" / "icgan"


def example(name: str) -> ModuleType:
    """Return the module ``examples/icgan/<name>.py``."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
    return importlib.import_module(name)


TINY = [
    "encoder.widths=[8,16]", "encoder.blocks=[1,1]", "encoder.epochs=2", "encoder.batch_size=8", "encoder.warmup_steps=1",
    "encoder.projection=4", "generator.G_ch=4", "generator.dim_z=8", "generator.shared_dim_feat=6", "generator.D_ch=4",
    "generator.neighbours=3", "generator.steps=4", "generator.batch_size=4", "checkpoint_every=2", "sample_every=4", "log_every=1",
    "precision=float32", "device=cpu",
]  # fmt: skip


class Killed(Exception):
    """Stands for the end of the process."""


class StopAfter(Progress):
    """A progress display that ends the process after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(disable=True)
        self.left = steps

    def update(self, *args: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def photos(count: int = 24) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    colours = torch.randint(256, (count, 3, 1, 1), generator=rng)
    return (colours + torch.randint(-40, 40, (count, 3, 32, 32), generator=rng)).clamp(0, 255).to(torch.uint8)


def settings(*overrides: str) -> Any:
    return example("settings").load_settings(None, [*TINY, *overrides])


def run(out: Path, *overrides: str, steps: tuple[int, int] = (10**6, 10**6), encoder_of: Path | None = None) -> Any:
    """Train both parts in `out`, each ended after so many steps; the encoder is that of another run if one is given."""
    out.mkdir(exist_ok=True)
    if encoder_of is not None:
        shutil.copy(encoder_of / "encoder.pt", out)
    chosen = settings(*overrides)
    encoder = example("encoder").train_encoder(photos(), chosen, out, StopAfter(steps[0]))
    torch.manual_seed(chosen.seed)
    return example("adversarial").train_generator(photos(), encoder, chosen, out, StopAfter(steps[1]))
