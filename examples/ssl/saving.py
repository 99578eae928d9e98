"""Checkpoints that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from shared import write_whole


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then renames it: a killed run leaves the old one or the new one.

    Lightning's own way is to write it into the folder of temporary files and to move it. Where that is another file system, as on
    most clusters, the move is a copy, and being killed in it costs both.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint; Lightning calls this in one of the processes."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as partial:
            torch.save(checkpoint, partial)
