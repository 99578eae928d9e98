"""Silence Lightning's messages about hardware and loaders; its warnings remain."""

from __future__ import annotations

import logging
import warnings


def hush() -> None:
    """Hide Lightning's messages (lightly installs a second copy of it), and print warnings without source lines."""
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"
    for name in ("lightning", "lightning.fabric", "lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no `val_dataloader`")
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
