"""Training that has diverged: weights of NaN or infinity are not saved, and not measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import lightning as L
import torch
from torch import Tensor


def all_finite(weights: Iterable[Tensor]) -> bool:
    """Return whether no weight is NaN or infinite."""
    finite = [tensor.isfinite().all() for tensor in weights if tensor.is_floating_point()]
    return not finite or bool(torch.stack(finite).all())  # one transfer from the device, not one for each tensor


def refuse_diverged(module: L.LightningModule, checkpoint: Path) -> None:
    """Exit if weights in training are NaN or infinite; what `checkpoint` holds stays as it is.

    Parameters are the same in all processes, so all of them exit; statistics of batch norm may differ.
    """
    if all_finite(module.parameters()):
        return
    optimizer, probe, precision = module.settings.optimizer, module.settings.probe, module.settings.trainer.precision
    linear = all_finite(weight for name, weight in module.named_parameters() if not name.startswith("probe."))
    lower = f"probe.linear_lr than {probe.linear_lr}" if linear else f"optimizer.base_lr than {optimizer.base_lr}"
    kept = f"{checkpoint} still holds those of an earlier step" if checkpoint.exists() else "nothing was saved"
    other = "" if precision == "32-true" else f", or trainer.precision=32-true instead of {precision}"
    raise SystemExit(
        f"by step {module.trainer.global_step} the {'online linear layer' if linear else 'training'} has diverged, its weights are NaN or "
        f"infinite; {kept}. Train in another folder with a lower {lower}{other}"
    )
