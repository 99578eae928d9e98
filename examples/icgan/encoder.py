"""Stage 1: a self-supervised encoder of the training images, which provides the instance features.

SimCLR (Chen et al., ICML 2020) with the decoupled loss (Yeh et al., ECCV 2022) and small local crops in addition to the two
global views (multi-crop; Caron et al., "SwAV", NeurIPS 2020). Small views are cheap, so the encoder learns more per second.
"""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path

import kornia.augmentation as K
import torch
from checkpoints import atomic_save, seed_step
from divergence import read_checkpoint, refuse_divergence, remove_mark
from pace import Pace
from rich.progress import Progress
from settings import Settings
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from gentransforms.generators.icgan.features import SmallResNet


def train_encoder(images: Tensor, settings: Settings, out: Path, progress: Progress) -> SmallResNet:
    """Train on `images` (N, 3, R, R) uint8 and return the encoder in eval mode; resumes from ``out/encoder.pt``, exits if it diverges."""
    s, device = settings.encoder, torch.device(settings.device)
    batch_size = min(s.batch_size, len(images))
    steps_per_epoch = len(images) // batch_size
    total = s.epochs * steps_per_epoch
    torch.manual_seed(settings.seed)
    encoder = SmallResNet(s.widths, s.blocks, s.feature_stages).to(device, memory_format=torch.channels_last)
    head = nn.Sequential(nn.Linear(s.widths[-1], s.widths[-1]), nn.ReLU(), nn.Linear(s.widths[-1], s.projection)).to(device)
    parameters = [*encoder.parameters(), *head.parameters()]
    # On a GPU the steps of so small a network are bound by launches: one kernel for all parameters.
    optimizer = torch.optim.AdamW(parameters, lr=s.learning_rate, weight_decay=s.weight_decay, fused=device.type == "cuda")
    large, small = (max(8, round(settings.resolution * side / 8) * 8) for side in (s.view_side, s.local_side))
    kinds = [(2, _augmentations(large, s.crop_scale, 1.0)), (s.local_views, _augmentations(small, s.local_scale, s.crop_scale))]
    start, before, warmup = 0, 0.0, warmup_of(s.warmup_steps, s.epochs, steps_per_epoch)
    state = read_checkpoint(settings, out, "encoder", device)
    if state is not None:
        start, before = state["step"], state["seconds"]
        warmup = state.get("warmup", s.warmup_steps)  # earlier versions took all of them
    pace = Pace(total, s.seconds, before)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _warmup_cosine(pace.position(i), warmup, total))
    parts = {"encoder": encoder, "head": head, "optimizer": optimizer, "schedule": schedule}
    if state is not None:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        (group,) = optimizer.param_groups
        group["lr"] *= s.learning_rate / group["initial_lr"]  # lower than in the checkpoint, if training diverged after it
        group["initial_lr"], schedule.base_lrs = s.learning_rate, [s.learning_rate]

    def project(groups: list[Tensor]) -> Tensor:
        return head(torch.cat([encoder.maps(group)[-1].mean(dim=(2, 3)) for group in groups]))

    project = torch.compile(project) if settings.compile else project
    writer = SummaryWriter(str(out / "tensorboard" / "encoder"), purge_step=start)
    task = progress.add_task("encoder", total=total, completed=start)
    images = images.to(device)
    step, order, drawn = start, torch.empty(0, dtype=torch.int64), -1
    refuse = functools.partial(refuse_divergence, settings, out, "encoder")
    last = pace.position(step) >= total
    if last:
        settle_statistics(encoder, images)
    while not last:
        seed_step(settings.seed, step)
        epoch, i = divmod(step, steps_per_epoch)
        if drawn != epoch:  # drawing 50,000 rows takes longer than the launches of a small network's step
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.seed * 100_003 + epoch))
            order, drawn = order.to(device, non_blocking=True), epoch
        batch = images[order[i * batch_size : (i + 1) * batch_size]].float() / 255
        with torch.no_grad():  # all views of one size at once, each with random numbers of its own
            made = [augment(batch.repeat(count, 1, 1, 1)) for count, augment in kinds if count]
            groups = [group.contiguous(memory_format=torch.channels_last) for group in made]
        with torch.autocast(device.type, getattr(torch, settings.precision), enabled=settings.precision != "float32"):
            projections = project(groups)
        loss = decoupled_contrastive_loss(projections.float(), 2 + s.local_views, s.temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        step += 1
        position = pace.position(step)
        last = position >= total
        progress.update(task, completed=min(position, total))
        if step % settings.log_every == 0:
            read = loss.item()
            refuse(step, {"loss": read})
            writer.add_scalar("encoder/loss", read, step)
        if step % settings.checkpoint_every == 0 or last:
            states = {name: part.state_dict() for name, part in parts.items()}
            if last:  # what is complete is finite, its settled statistics too
                states = copy.deepcopy(states)
                settle_statistics(encoder, images)
            refuse(step, {"loss": loss} | parts)
            # A stage that its seconds have ended is complete, too.
            ended = {"step": total if last else step, "seconds": pace.seconds, "warmup": warmup}
            atomic_save(states | ended, out / "encoder.pt")
            remove_mark(out)
            print(f"encoder step {step}/{total} loss {loss.item():.4f} {pace.seconds:.0f} s", flush=True)
    writer.close()
    return encoder.requires_grad_(False)


def warmup_of(steps: int, epochs: int, steps_per_epoch: int) -> int:
    """Return over how many steps the learning rate rises: at most a tenth of all, so that it is high for most of them."""
    total = epochs * steps_per_epoch
    if steps > total // 10:
        print(
            f"The encoder trains for {_steps(total)} only, so its learning rate rises over {_steps(total // 10)} instead of "
            f"encoder.warmup_steps={steps}. With few images, train for more epochs: encoder.epochs="
            f"{math.ceil(10 * steps / steps_per_epoch)} is enough for the whole warm-up.", flush=True,
        )  # fmt: skip
    return min(steps, total // 10)


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def decoupled_contrastive_loss(projections: Tensor, views: int, temperature: float) -> Tensor:
    """InfoNCE over several views, without the positives in the denominator.

    `projections` (views * N, D): rows i, i + N, … are views of one image, the global views first. Each row is attracted by
    its image's two global views, a global one also by the local ones (mean over these positives), and repelled by all
    views of other images. For two views this is the decoupled contrastive loss of Yeh et al. (ECCV 2022).
    """
    z = F.normalize(projections, dim=1)
    n = len(z) // views
    similarity = z @ z.T / temperature
    index = torch.arange(len(z), device=z.device)
    same = (index[:, None] - index) % n == 0
    is_global = index < 2 * n
    positive = same & (is_global[:, None] | is_global)
    positive.fill_diagonal_(False)
    attraction = (similarity * positive).sum(dim=1) / positive.sum(dim=1)
    return (torch.logsumexp(similarity.masked_fill(same, -torch.inf), dim=1) - attraction).mean()


@torch.no_grad()
def settle_statistics(encoder: SmallResNet, images: Tensor, batches: int = 40, batch_size: int = 250) -> None:
    """Replace the batch norm statistics, gathered on augmented crops, by means over whole images (N, 3, R, R) uint8."""
    rng = torch.Generator().manual_seed(0)
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    encoder.train()
    for i in range(batches):
        for norm in norms:
            norm.momentum = 1 / (i + 1)
        rows = torch.randint(len(images), (min(batch_size, len(images)),), generator=rng)
        encoder((images[rows.to(images.device)].float() / 255).contiguous(memory_format=torch.channels_last))
    encoder.eval()


def _augmentations(size: int, smallest: float, largest: float) -> nn.Module:
    return nn.Sequential(
        # All images at once; by slices, kornia's default, every image launches kernels of its own.
        K.RandomResizedCrop((size, size), scale=(smallest, largest), cropping_mode="resample"),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
    )


def _warmup_cosine(step: float, warmup: int, total: int) -> float:
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
