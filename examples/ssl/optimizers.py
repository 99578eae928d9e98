"""Optimisers, their parameter groups, and the learning rate schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from config import OptimizerSettings, TrainerSettings
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import nn


class LARS(torch.optim.SGD):
    """LARS (You et al., 2017): torch's SGD with momentum, on gradients that are scaled layer by layer.

    The gradient g of weights w, with its decay, is multiplied by ``eta |w| / (|g| + weight_decay |w|)``. `clip` limits this rate,
    divided by lr, to 1, so that LARS never speeds a layer up. A group is scaled unless it has ``"scaled": False``, with or without
    decay: lightly's LARS, which this is otherwise equal to, does not scale groups without, which would turn the linear probe into
    plain SGD.
    """

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float, eta: float, clip: bool) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, foreach=True)
        self.eta, self.clip = eta, clip

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Scale the gradients; SGD applies the momentum."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in weights]
            decay = group["weight_decay"]
            if weights and group.get("scaled", True):
                # On tensors throughout: reading a norm would synchronise with the device at every layer.
                of_weights, of_gradients = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(gradients))
                rates = self.eta * of_weights / (of_gradients + decay * of_weights + 1e-8)
                if self.clip:
                    rates = (rates / group["lr"]).clamp(max=1.0)
                moving = (of_weights > 0) & (of_gradients > 0)
                torch._foreach_add_(gradients, torch._foreach_mul(weights, (decay * moving.to(rates.dtype)).unbind()))
                torch._foreach_mul_(gradients, torch.where(moving, rates, torch.ones_like(rates)).unbind())
            elif weights and decay:
                torch._foreach_add_(gradients, weights, alpha=decay)
            group["weight_decay"] = 0.0
        try:
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        return loss


def learning_rate(optimizer: OptimizerSettings, trainer: TrainerSettings) -> float:
    """Return base_lr x (batch per device x devices) / 256, times the batches that are accumulated."""
    return optimizer.base_lr * trainer.batch_size * trainer.devices * trainer.nodes / 256 * trainer.accumulate


def parameter_groups(modules: Iterable[nn.Module], s: OptimizerSettings) -> list[dict[str, Any]]:
    """Return the trained parameters; with exclude_bias_and_norm, biases and norms apart: no decay, no LARS scaling."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    if not s.exclude_bias_and_norm:
        return [{"name": "weights", "params": parameters}]
    return [
        {"name": "weights", "params": [p for p in parameters if p.ndim > 1]},
        {"name": "bias and norm", "params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "scaled": False},
    ]


def build_optimizer(groups: list[dict[str, Any]], s: OptimizerSettings, lr: float) -> torch.optim.Optimizer:
    """Return the optimiser named in the settings."""
    if s.name == "lars":
        return LARS(groups, lr=lr, momentum=s.momentum, weight_decay=s.weight_decay, eta=s.eta, clip=s.clip)
    if s.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=s.momentum, weight_decay=s.weight_decay)
    assert s.name == "adamw", s.name
    return torch.optim.AdamW(groups, lr=lr, weight_decay=s.weight_decay, fused=True)


def build_schedule(
    optimizer: torch.optim.Optimizer, lr: float, warmup_steps: int, total_steps: int, start_lr: float, final_lr: float
) -> CosineWarmupScheduler:
    """Return linear warm-up, from `start_lr` at the first step to `lr` at the last of it, then a cosine to `final_lr`.

    Groups with ``"constant": True`` keep their rate. lightly's schedule is one step ahead: its first step does not have the start
    value. So it is told to start one step earlier.
    """
    warmup_steps = min(warmup_steps, total_steps)
    start = start_lr / lr
    if warmup_steps > 1:
        start -= (1 - start) / (warmup_steps - 1)
    schedule = CosineWarmupScheduler(optimizer, warmup_steps, total_steps, warmup_start_value=start, end_value=final_lr / lr)
    for i, group in enumerate(optimizer.param_groups):
        if group.get("constant"):
            schedule.lr_lambdas[i] = lambda _step: 1.0
            group["lr"] = schedule.base_lrs[i]
    return schedule
