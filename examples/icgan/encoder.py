"""Step 1: a self-supervised encoder of the training images (SimCLR), the source of the instance features."""

from __future__ import annotations

import math
from pathlib import Path

import kornia.augmentation as K
import torch
from checkpoints import atomic_save, seed_step
from rich.progress import Progress
from settings import Settings
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from gentransforms.generators.icgan.features import SmallResNet


def train_encoder(images: Tensor, settings: Settings, out: Path, progress: Progress) -> SmallResNet:
    """Train on `images` (N, 3, R, R) uint8 and return the encoder in eval mode; resumes from ``out/encoder.pt``."""
    s, device = settings.encoder, torch.device(settings.device)
    batch_size = min(s.batch_size, len(images))
    steps_per_epoch = len(images) // batch_size
    total = s.epochs * steps_per_epoch
    torch.manual_seed(settings.seed)
    encoder = SmallResNet(s.widths, s.blocks).to(device, memory_format=torch.channels_last)
    head = nn.Sequential(nn.Linear(encoder.width, encoder.width), nn.ReLU(), nn.Linear(encoder.width, s.projection)).to(device)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=s.learning_rate, weight_decay=s.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _warmup_cosine(i, s.warmup_steps, total))
    views = _augmentations(settings.resolution, s.crop_scale)
    path, start = out / "encoder.pt", 0
    parts = {"encoder": encoder, "head": head, "optimizer": optimizer, "schedule": schedule}
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        start = state["step"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=start)
    task = progress.add_task("encoder", total=total, completed=start)
    images = images.to(device)
    for step in range(start, total):
        seed_step(settings.seed, step)
        epoch, i = divmod(step, steps_per_epoch)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.seed * 100_003 + epoch))
        rows = order[i * batch_size : (i + 1) * batch_size].to(device)
        batch = images[rows].float() / 255
        with torch.no_grad():
            pair = torch.cat([views(batch), views(batch)]).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, getattr(torch, settings.precision), enabled=settings.precision != "float32"):
            projections = head(encoder.pooled(pair))
        loss = decoupled_contrastive_loss(projections.float(), s.temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.update(task, advance=1)
        if (step + 1) % 20 == 0:
            writer.add_scalar("encoder/loss", loss.item(), step + 1)
        if (step + 1) % settings.checkpoint_every == 0 or step + 1 == total:
            atomic_save({name: part.state_dict() for name, part in parts.items()} | {"step": step + 1}, path)
            print(f"encoder step {step + 1}/{total} loss {loss.item():.4f}", flush=True)
    writer.close()
    return encoder.eval().requires_grad_(False)


def decoupled_contrastive_loss(projections: Tensor, temperature: float) -> Tensor:
    """Decoupled contrastive loss: InfoNCE without the positive pair in the denominator.

    `projections` (2N, D): row i and row i + N are two views of one image.
    """
    z = F.normalize(projections, dim=1)
    n = len(z) // 2
    similarity = z @ z.T / temperature
    index = torch.arange(2 * n, device=z.device)
    partner = index.roll(n)
    positive = similarity[index, partner]
    excluded = torch.zeros_like(similarity, dtype=torch.bool)
    excluded[index, index] = excluded[index, partner] = True
    return (torch.logsumexp(similarity.masked_fill(excluded, -torch.inf), dim=1) - positive).mean()


def _augmentations(size: int, crop_scale: float) -> nn.Module:
    return nn.Sequential(
        K.RandomResizedCrop((size, size), scale=(crop_scale, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
    )


def _warmup_cosine(step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
