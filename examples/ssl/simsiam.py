"""SimSiam (Chen and He, CVPR 2021): each view predicts the other, whose output gets no gradient."""

from __future__ import annotations

from typing import Any

import torch
from config import Settings, SimSiamSettings
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from optimizers import parameter_groups
from pretraining import Pretraining
from torch import Tensor, nn


class SimSiam(Pretraining):
    """Backbone, three-layer projector with batch norm, predictor with a bottleneck."""

    def __init__(self, settings: Settings, *args: Any, **kwargs: Any) -> None:
        super().__init__(settings, *args, **kwargs)
        m = settings.method
        assert isinstance(m, SimSiamSettings)
        self.projector = SimSiamProjectionHead(self.backbone.width, m.hidden, m.out)
        self.predictor = SimSiamPredictionHead(m.out, m.predictor_hidden, m.out)
        self.criterion = NegativeCosineSimilarity()

    def heads(self) -> list[nn.Module]:
        return [self.projector, self.predictor]

    def groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups; the paper's predictor has a constant rate, because it has to keep up with what it predicts."""
        m, s = self.settings.method, self.settings.optimizer
        assert isinstance(m, SimSiamSettings)
        if m.predictor_schedule is None:
            return super().groups()
        predictor = [group | {"name": f"predictor {group['name']}", "constant": True} for group in parameter_groups([self.predictor], s)]
        return [*parameter_groups([self.backbone, self.projector], s), *predictor]

    def step(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        features1, features2 = self.backbone(view1), self.backbone(view2)
        z1, z2 = self.projector(features1), self.projector(features2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        with torch.autocast(view1.device.type, enabled=False):
            loss = self.criterion(p1.float(), z2.detach().float()) / 2 + self.criterion(p2.float(), z1.detach().float()) / 2
        return features1, loss
