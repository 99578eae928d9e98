"""Barlow Twins (Zbontar et al., ICML 2021): the cross-correlation of the two views' outputs should be the identity."""

from __future__ import annotations

from typing import Any

import torch
from config import BarlowTwinsSettings, Settings
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules import BarlowTwinsProjectionHead
from pretraining import Pretraining
from torch import Tensor, nn


class BarlowTwins(Pretraining):
    """Backbone and a three-layer projector; the correlation is taken over the batches of all devices."""

    def __init__(self, settings: Settings, *args: Any, **kwargs: Any) -> None:
        super().__init__(settings, *args, **kwargs)
        m = settings.method
        assert isinstance(m, BarlowTwinsSettings)
        self.projector = BarlowTwinsProjectionHead(self.backbone.width, m.hidden, m.out)
        self.criterion = BarlowTwinsLoss(m.redundancy, gather_distributed=True)
        self.loss_scale = m.loss_scale

    def heads(self) -> list[nn.Module]:
        return [self.projector]

    def step(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        features1, features2 = self.backbone(view1), self.backbone(view2)
        z1, z2 = self.projector(features1), self.projector(features2)
        with torch.autocast(view1.device.type, enabled=False):
            return features1, self.loss_scale * self.criterion(z1.float(), z2.float())
