"""Training that has diverged: weights of NaN or infinity are not saved."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from shared import is_finite


def refuse_diverged(module: L.LightningModule, checkpoint: Path) -> None:
    """Exit if weights in training are NaN or infinite; what `checkpoint` holds stays as it is.

    Parameters are the same in all processes, so all of them exit; statistics of batch norm may differ.
    """
    if is_finite([*module.parameters()]):
        return
    optimizer, probe, precision = module.settings.optimizer, module.settings.probe, module.settings.trainer.precision
    linear = is_finite([weight for name, weight in module.named_parameters() if not name.startswith("probe.")])
    lower = f"probe.linear_lr than {probe.linear_lr}" if linear else f"optimizer.base_lr than {optimizer.base_lr}"
    kept = f"{checkpoint} still holds those of an earlier step" if checkpoint.exists() else "nothing was saved"
    other = "" if precision == "32-true" else f", or trainer.precision=32-true instead of {precision}"
    raise SystemExit(
        f"by step {module.trainer.global_step} the {'online linear layer' if linear else 'training'} has diverged, its weights are NaN or "
        f"infinite; {kept}. Train in another folder with a lower {lower}{other}"
    )
