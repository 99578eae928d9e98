"""BYOL (Grill et al., NeurIPS 2020): each view predicts the moving average network's output for the other."""

from __future__ import annotations

from typing import Any

import torch
from config import BYOLSettings, Settings
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from momentum import MomentumPretraining
from torch import Tensor, nn


class BYOL(MomentumPretraining):
    """Backbone, projector, predictor, and the moving average of the first two."""

    def __init__(self, settings: Settings, *args: Any, **kwargs: Any) -> None:
        super().__init__(settings, *args, **kwargs)
        m = settings.method
        assert isinstance(m, BYOLSettings)
        self.projector = BYOLProjectionHead(self.backbone.width, m.hidden, m.out)
        self.predictor = BYOLPredictionHead(m.out, m.predictor_hidden, m.out)
        self.criterion = NegativeCosineSimilarity()
        self.follow()

    def heads(self) -> list[nn.Module]:
        return [self.projector, self.predictor]

    def step(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        features1, features2 = self.backbone(view1), self.backbone(view2)
        p1, p2 = (self.predictor(self.projector(features)) for features in (features1, features2))
        with torch.no_grad():
            z1, z2 = (self.target_projector(self.target_backbone(view)) for view in (view1, view2))
        with torch.autocast(view1.device.type, enabled=False):
            # Squared distance of unit vectors, 2 - 2 cos, both ways round.
            loss = 4 + 2 * self.criterion(p1.float(), z2.float()) + 2 * self.criterion(p2.float(), z1.float())
        return features1, loss
