"""A moving average of the network: the target of BYOL, the key encoder of MoCo."""

from __future__ import annotations

import copy
from typing import Any

from config import Settings
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from pretraining import Pretraining
from torch import nn


class MomentumPretraining(Pretraining):
    """Keep a moving average of backbone and projector. Subclasses call `follow` after building both."""

    def __init__(self, settings: Settings, *args: Any, **kwargs: Any) -> None:
        super().__init__(settings, *args, **kwargs)
        self.projector: nn.Module
        self.target_backbone: nn.Module
        self.target_projector: nn.Module

    def follow(self) -> None:
        """Start the moving average as a copy."""
        self.target_backbone, self.target_projector = copy.deepcopy(self.backbone), copy.deepcopy(self.projector)
        for module in (self.target_backbone, self.target_projector):
            deactivate_requires_grad(module)

    def after_step(self, step: int, total: int) -> None:
        m: Any = self.settings.method
        momentum = momentum_at(step, total, m.momentum_start, m.momentum_end)
        update_momentum(self.backbone, self.target_backbone, momentum)
        update_momentum(self.projector, self.target_projector, momentum)
        self.figures["train/momentum"] = momentum


def momentum_at(step: int, total: int, start: float, end: float) -> float:
    """Return the momentum after a step, counted from 0: from `start` along a cosine to `end` at the last."""
    return cosine_schedule(step, total, start, end)
