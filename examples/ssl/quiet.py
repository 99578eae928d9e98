"""Lightning without its advertising: what it tells of hardware and loaders is left out, its warnings stay."""

from __future__ import annotations

import logging
import warnings


def hush() -> None:
    """Keep Lightning's notes off the terminal (lightly brings a second package of it), and lines of code out of warnings."""
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}\n"
    for name in ("lightning", "lightning.fabric", "lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no `val_dataloader`")
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
