"""Quality of the features: weighted k-NN and an online linear layer during pretraining, and intervals for accuracies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from config import ProbeSettings
from lightly.utils.benchmarking.knn import knn_predict
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy


class OnlineProbe(L.Callback):
    """Logs ``probe/knn`` and ``probe/linear``, accuracies on the second validation loader; the first one provides the neighbours."""

    def __init__(self, settings: ProbeSettings, classes: int) -> None:
        self.settings, self.classes = settings, classes
        self.neighbours: list[tuple[Tensor, Tensor]] = []
        # Without torchmetrics' checks of the labels, which would synchronise with the device at every batch.
        self.knn, self.linear = (MulticlassAccuracy(classes, average="micro", validate_args=False) for _ in range(2))
        self.bank: tuple[Tensor, Tensor] | None = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.neighbours, self.bank = [], None
        for metric in (self.knn, self.linear):
            metric.reset()
            metric.to(pl_module.device)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        features, labels = outputs["features"], outputs["labels"]
        if dataloader_idx == 0:
            self.neighbours.append((features, labels))
            return
        if self.bank is None:
            parts = [torch.cat(part) for part in zip(*self.neighbours, strict=True)]
            # From all devices: (devices, N, …) to (devices x N, …).
            bank = [x if trainer.world_size == 1 else pl_module.all_gather(x).flatten(0, 1) for x in parts]
            self.bank, self.neighbours = (bank[0], bank[1]), []
        self.knn.update(knn(features, *self.bank, self.classes, self.settings.k, self.settings.temperature), labels)
        if outputs["logits"] is not None:
            self.linear.update(outputs["logits"], labels)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.bank is None:
            return
        found = {"probe/knn": self.knn.compute(), "probe/linear": self.linear.compute()}
        pl_module.log_dict(found, prog_bar=True, logger=False)
        if trainer.logger is not None:
            trainer.logger.log_metrics({name: float(value) for name, value in found.items()}, trainer.global_step - 1)


def knn(queries: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Return (B,) the class chosen by the k most similar rows of bank (N, D), each with weight exp(cosine / temperature)."""
    queries, bank = F.normalize(queries.float(), dim=1), F.normalize(bank.float(), dim=1)
    k = min(k, len(bank))
    # In parts: the votes take queries x k x classes numbers.
    size = max(1, 20_000_000 // (k * classes))
    return torch.cat([knn_predict(part, bank.T, labels, classes, k, temperature)[:, 0] for part in queries.split(size)])


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95% interval of an accuracy on `count` independent images (Wilson, 1927)."""
    z = 1.959964
    share, extra = right / count, z * z / count
    centre = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / count + extra / (4 * count)) / (1 + extra)
    return max(0.0, centre - half), min(1.0, centre + half)


# Student's t at 97.5% for 1, 2, … degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean over seeds and half its 95% interval (Student's t); None for a single seed."""
    if len(values) < 2:
        return statistics.fmean(values), None
    t = _T[min(len(values) - 1, len(_T)) - 1]  # for more than ten degrees of freedom, a slightly wide interval
    return statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(len(values))


Accuracy = tuple[float, Sequence[float]]  # of one run: a share, and its interval over the images, low and high


def mean_accuracy(runs: Sequence[Accuracy]) -> tuple[float, float]:
    """Return the mean over seeds and half its 95% interval; of a single seed, that over the images."""
    mean, half = mean_interval([share for share, _ in runs])
    return mean, _half(runs[0]) if half is None else half


def mean_gain(pairs: Sequence[tuple[Accuracy, Accuracy]]) -> tuple[float, float]:
    """Return the mean gain of the first over the second of each pair, and half its 95% interval; of a single pair, over the images.

    The latter takes the two runs as independent. On the same images they are not, and it is wider than it need be.
    """
    mean, half = mean_interval([own - base for (own, _), (base, _) in pairs])
    return mean, math.hypot(*map(_half, pairs[0])) if half is None else half


def percent(share: float, half: float, sign: str = "") -> str:
    """Return a share and half its interval in percent, such as ``62.36 ± 0.95``; ``sign="+"`` gives gains their sign."""
    return f"{100 * share:{sign}.2f} ± {100 * half:.2f}"


def _half(run: Accuracy) -> float:
    low, high = run[1]
    return (high - low) / 2
