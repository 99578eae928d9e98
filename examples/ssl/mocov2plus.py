"""MoCo v2+: MoCo v2 (Chen et al., 2020) with each view once the query and once the key."""

from __future__ import annotations

from typing import Any

import torch
from config import MoCoSettings, Settings
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from momentum import MomentumPretraining
from torch import Tensor, nn


class MoCoV2Plus(MomentumPretraining):
    """Backbone and projector, their moving average, and one queue of its keys for each view.

    One queue for both would hold the key of an image's one view when its other view is the query: a false negative.
    """

    def __init__(self, settings: Settings, *args: Any, **kwargs: Any) -> None:
        super().__init__(settings, *args, **kwargs)
        m = settings.method
        assert isinstance(m, MoCoSettings)
        self.projector = MoCoProjectionHead(self.backbone.width, m.hidden, m.out)
        self.criterion1, self.criterion2 = (
            NTXentLoss(m.temperature, memory_bank_size=(m.queue, m.out), gather_distributed=True) for _ in range(2)
        )
        self.follow()

    def heads(self) -> list[nn.Module]:
        return [self.projector]

    def step(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        features1, features2 = self.backbone(view1), self.backbone(view2)
        q1, q2 = self.projector(features1), self.projector(features2)
        with torch.no_grad():
            k1, k2 = (self.target_projector(self.target_backbone(view)) for view in (view1, view2))
        with torch.autocast(view1.device.type, enabled=False):
            loss = self.criterion2(q1.float(), k2.float()) / 2 + self.criterion1(q2.float(), k1.float()) / 2
        return features1, loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the queues, which lightly leaves out of a module's state."""
        super().on_save_checkpoint(checkpoint)
        queues = (self.criterion1.memory_bank, self.criterion2.memory_bank)
        checkpoint["queues"] = [(queue.bank, queue.bank_ptr) for queue in queues]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        for criterion, (bank, pointer) in zip((self.criterion1, self.criterion2), checkpoint["queues"], strict=True):
            criterion.memory_bank.bank.copy_(bank)
            criterion.memory_bank.bank_ptr.copy_(pointer)
