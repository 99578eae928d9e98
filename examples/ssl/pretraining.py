"""The base of all methods: two views of a batch, a loss, an optimiser with its schedule, and an online linear layer."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

import lightning as L
import torch
from backbones import build_backbone
from config import Settings
from crops import device_crop
from generative import p_at, put
from lightning.pytorch.callbacks import TQDMProgressBar
from loading import mix_seed, set_seed
from optimizers import build_optimizer, build_schedule, learning_rate, parameter_groups
from torch import Tensor, nn
from torch.nn import functional as F
from views import TwoClassicViews

import gentransforms as gt


class Bar(TQDMProgressBar):
    """A progress bar with the figures of the latest batch.

    It reads them when it is drawn, which waits for the device; Lightning would process what is logged to it in every step.
    """

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        figures = {name: float(value) for name, value in getattr(pl_module, "figures", {}).items()}
        return figures | super().get_metrics(trainer, pl_module)


class Pretraining(L.LightningModule, ABC):
    """Base class of the methods. A method adds its heads, lists them in `heads`, and turns two views into features and a loss.

    Args:
        settings: the settings of the run.
        classes: number of classes for the online linear layer; 0 without labels.
        generative: makes generated images on the device; None where there are none, or the loader brings them.
    """

    def __init__(self, settings: Settings, classes: int, generative: gt.GenerativeAugment | gt.BankAugment | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = build_backbone(settings.backbone)
        self.probe = nn.Linear(self.backbone.width, classes) if classes else None
        self.batches_done = 0
        self.figures: dict[str, Tensor | float] = {}  # of the latest batch, for the curves and the bar
        s, size = settings.augmentation, settings.data.image_size
        # Views and crops have no state, and a transform holds its generator unregistered: a checkpoint has the model alone.
        self.generative = generative
        # In a tuple, so that they stay where they are: kornia draws on the device that its module was moved to, and reads what it drew.
        crops = [device_crop(s.generated or view, size, s.interpolation) for view in (s.view1, s.view2)]
        self._augmentations = (TwoClassicViews(s, size, crop=settings.data.in_memory), crops)

    @property
    def classic(self) -> TwoClassicViews:
        """The classic augmentations of both views."""
        return self._augmentations[0]

    @property
    def crops(self) -> list[nn.Module]:
        """The crops of generated images, for each view."""
        return self._augmentations[1]

    @abstractmethod
    def heads(self) -> list[nn.Module]:
        """Return the modules to train in addition to the backbone."""

    @abstractmethod
    def step(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of the real view (B, width) and the loss of views (B, 3, S, S)."""

    def groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups of the optimiser; those marked ``"constant": True`` keep their learning rate."""
        return parameter_groups([self.backbone, *self.heads()], self.settings.optimizer)

    def after_step(self, step: int, total: int) -> None:
        """Run after optimiser step `step`, counted from 0, for example to update a momentum network."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        # The random numbers of a batch depend on the seed and its number alone, so that a resumed run draws the same ones.
        set_seed(mix_seed(self.settings.seed, self.batches_done, self.global_rank, 1), self.device)
        self.batches_done += 1
        with torch.autocast(self.device.type, enabled=False):
            view1, view2, made = self.views(batch)
        features, loss = self.step(view1, view2)
        self.figures = {"train/loss": loss.detach(), "train/generated": made.float().mean()}
        return loss + self._watch(features, batch["labels"])

    def views(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return both views (B, 3, S, S) float in [0, 1] of a batch of loading.py, and which of the second are generated."""
        g, rows = self.settings.generative, batch["rows"]
        if "images" in batch:
            first = second = batch["images"].float() / 255
            made1 = made2 = torch.zeros(len(rows), dtype=torch.bool)
            if self.generative is not None:
                second, made2 = self._generate(second, rows)
                if g.both_views:
                    first, made1 = self._generate(first, rows)
        else:
            first, second = batch["first"].float() / 255, batch["second"].float() / 255
            made1, made2 = batch["made1"], batch["made2"]
            if self.generative is not None:  # images from files are already cropped, generated ones are not
                squares = batch["squares"].float() / 255
                second, made2 = _replace(second, *self._generate(squares, rows), self.crops[1])
                if g.both_views:
                    first, made1 = _replace(first, *self._generate(squares, rows), self.crops[0])
        return (*self.classic(first, second, made1, made2), made2)

    def _generate(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, S, S), each replaced with the probability of this epoch, and (B,) bool: which were."""
        assert self.generative is not None
        p = p_at(self.settings.generative, self.settings.trainer.epochs, self.current_epoch)
        sample, made = self.generative({"images": images, "rows": rows}, p=p, return_mask=True)
        return sample["images"], made

    def transfer_batch_to_device(self, batch: dict[str, Tensor], device: torch.device, dataloader_idx: int) -> dict[str, Tensor]:
        """Move everything but the tensors that are read on the CPU: reading them on the device would synchronise with it."""
        stay = {name: batch.pop(name) for name in ("rows", "made1", "made2") if name in batch}
        return super().transfer_batch_to_device(batch, device, dataloader_idx) | stay

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        step = self.trainer.global_step  # of this step, from 0 on: Lightning counts it afterwards
        self.after_step(step, self.total_steps)
        if (step + 1) % self.settings.trainer.log_every == 0 and self.logger is not None:
            # By our own step number: Lightning's for the curves is not exact after a resume.
            self.logger.log_metrics({name: float(value) for name, value in self.figures.items()}, step)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """Return features and labels, for probes.py."""
        features = self.backbone(batch["images"].float() / 255).float()
        logits = None if self.probe is None else self.probe(features)
        return {"features": features, "logits": logits, "labels": batch["labels"]}

    def configure_optimizers(self) -> dict[str, Any]:
        s, t = self.settings.optimizer, self.settings.trainer
        lr = learning_rate(s, t)
        groups = self.groups()
        if self.probe is not None:
            own = {"lr": self.settings.probe.linear_lr, "weight_decay": 0.0, "scaled": False}
            groups.append({"name": "probe", "params": list(self.probe.parameters())} | own)
        optimizer = build_optimizer(groups, s, lr)
        steps_per_epoch = self.total_steps // t.epochs
        schedule = build_schedule(optimizer, lr, s.warmup_epochs * steps_per_epoch, self.total_steps, s.warmup_start_lr, s.final_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return int(self.trainer.estimated_stepping_batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches_done"] = self.batches_done
        checkpoint["settings"] = dataclasses.asdict(self.settings)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_done = checkpoint["batches_done"]

    def _watch(self, features: Tensor, labels: Tensor) -> Tensor | float:
        """Return the loss of the linear layer, which does not reach the backbone."""
        if self.probe is None:
            return 0.0
        loss = F.cross_entropy(self.probe(features.detach()).float(), labels)
        self.figures["train/linear_loss"] = loss.detach()
        return loss


def _replace(crops: Tensor, images: Tensor, made: Tensor, crop: nn.Module) -> tuple[Tensor, Tensor]:
    """Put crops of the generated images in the place of those of the real ones."""
    if not made.any():
        return crops, made
    return put(crops, made, crop(images[made.nonzero().squeeze(1).to(images.device, non_blocking=True)]).clamp(0, 1)), made
