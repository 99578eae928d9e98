"""SimCLR (Chen et al., ICML 2020): the two views of an image attract, all others of the batch repel."""

from __future__ import annotations

from typing import Any

import torch
from config import Settings, SimCLRSettings
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from pretraining import Pretraining
from torch import Tensor, nn


class SimCLR(Pretraining):
    """Backbone, two-layer projector without batch norm, NT-Xent over the batches of all devices."""

    def __init__(self, settings: Settings, *args: Any, **kwargs: Any) -> None:
        super().__init__(settings, *args, **kwargs)
        m = settings.method
        assert isinstance(m, SimCLRSettings)
        self.projector = SimCLRProjectionHead(self.backbone.width, m.hidden, m.out, batch_norm=False)
        self.criterion = NTXentLoss(m.temperature, gather_distributed=True)

    def heads(self) -> list[nn.Module]:
        return [self.projector]

    def step(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        features1, features2 = self.backbone(view1), self.backbone(view2)
        z1, z2 = self.projector(features1), self.projector(features2)
        with torch.autocast(view1.device.type, enabled=False):
            return features1, self.criterion(z1.float(), z2.float())
