"""Stage 2: the instance-conditioned GAN on the frozen encoder's features.

Source: Casanova et al., "Instance-Conditioned GAN" (NeurIPS 2021), section 3.1: for an instance i with feature f_i, the
discriminator's real image is drawn from the nearest neighbours of f_i, and the generator is given f_i. The loss is the hinge
loss. In addition, a consistency loss measures the distance of a generated image's own feature from f_i, and optional small
discriminators look at the encoder's feature maps.
"""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import kornia.augmentation as K
import torch
from checkpoints import atomic_save, seed_step
from divergence import read_checkpoint, refuse_divergence, remove_mark
from instances import instance_features, nearest_neighbours, whiten
from networks import ConditionalNorm, Discriminator, FeatureHeads, Generator
from pace import Pace
from ranges import build_config
from results import export, save_grid, with_statistics
from rich.progress import Progress
from settings import Settings
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from gentransforms.generators.icgan.features import SmallResNet


def train_generator(images: Tensor, encoder: SmallResNet, settings: Settings, out: Path, progress: Progress) -> Generator:
    """Train on `images` (N, 3, R, R) uint8; return the averaged generator. Resumes from ``out/generator.pt``; exits if it diverges."""
    s, device = settings.generator, torch.device(settings.device)
    config = build_config(settings)
    images = images.to(device)
    features = instance_features(images, encoder)
    mean, whitening = whiten(features, s.shared_dim_feat)
    centred = F.normalize(features - mean, dim=1)
    neighbours = nearest_neighbours(centred, max(s.neighbours, s.finish_neighbours))
    # The critic is given whitened features: raw ones are nearly parallel, and spectral norm would not let it amplify differences.
    hints = (features - mean) @ whitening.T / 4
    generator = Generator(config)
    start_from_whitening(generator, mean, whitening)
    generator = generator.to(device, memory_format=torch.channels_last)
    critic = Critic(encoder, hints.shape[1], s.D_ch, settings.resolution, s.feature_heads).to(device, memory_format=torch.channels_last)
    augment = _diffaugment(s.diffaugment)
    average = copy.deepcopy(generator).requires_grad_(False)
    fused = device.type == "cuda"
    optimizer_G = torch.optim.Adam(generator.parameters(), lr=s.learning_rate_G, betas=(0.0, 0.999), fused=fused)
    optimizer_D = torch.optim.Adam(critic.parameters(), lr=s.learning_rate_D, betas=(0.0, 0.999), fused=fused)
    parts = {"generator": generator, "critic": critic, "average": average, "optimizer_G": optimizer_G, "optimizer_D": optimizer_D}
    start, before, state = 0, 0.0, read_checkpoint(settings, out, "generator", device)
    if state is not None:
        start, before = state["step"], state["seconds"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
        for optimizer, rate in ((optimizer_G, s.learning_rate_G), (optimizer_D, s.learning_rate_D)):
            optimizer.param_groups[0]["lr"] = rate  # lower ones than in the checkpoint, if training diverged after it
    if settings.compile:  # in place: the names of the weights stay
        generator.compile()
        critic.compile()
    pace = Pace(s.steps, s.seconds, before)
    writer = SummaryWriter(str(out / "tensorboard" / "generator"), purge_step=start)
    task = progress.add_task("generator", total=s.steps, completed=start)
    mixed = {"device_type": device.type, "dtype": getattr(torch, settings.precision), "enabled": settings.precision != "float32"}
    refuse = functools.partial(refuse_divergence, settings, out, "generator")

    def ready_at(step: int) -> Generator:
        ready = with_statistics(average, features, s.batch_size)
        refuse(step, {"average with standing statistics": ready})
        return ready

    done = start
    position = pace.position(done)
    while position < s.steps:
        # Another seed than the encoder's, so that the two stages never draw the same random numbers.
        seed_step(settings.seed + 1, done)
        k, consistency = s.neighbours, s.consistency
        if s.finish_from is not None and position >= s.finish_from:
            k, consistency = s.finish_neighbours, s.finish_consistency
        # Drawn on the CPU, the same on every device, and copied without waiting for the device.
        rows, places = (torch.randint(high, (s.batch_size,)) for high in (len(images), min(k, neighbours.shape[1])))
        rows, places = (x.to(device, non_blocking=True) for x in (rows, places))
        partners = neighbours[rows, places]
        real, f = images[partners].float() / 127.5 - 1, features[rows]
        hint = hints[rows]
        if s.flip:
            real = torch.where(torch.rand(s.batch_size, 1, 1, 1, device=device) < 0.5, real.flip(3), real)
        z = torch.randn(s.batch_size, config.z_dim).to(device, non_blocking=True)
        with torch.autocast(**mixed):
            fake = generator(z, f).float()
            maps = critic.look(fake)  # computed once: the critic's step uses them detached, the generator's with their graph
            seen = [torch.cat(pair).detach() for pair in zip(critic.look(real), maps, strict=True)]
            logits = critic(augment(torch.cat([real, fake.detach()])), seen, torch.cat([hint, hint]))
        on_real, on_fake = logits.float().chunk(2)
        loss_D = F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()
        optimizer_D.zero_grad(set_to_none=True)
        loss_D.backward()
        optimizer_D.step()
        critic.requires_grad_(False)
        with torch.autocast(**mixed):
            logits = critic(augment(fake), maps, hint)
        own = encoder.join([x.float() for x in maps])
        distance = (1 - (F.normalize(own - mean, dim=1) * centred[rows]).sum(1)).mean()
        loss_G = -logits.float().mean() + consistency * distance
        optimizer_G.zero_grad(set_to_none=True)
        loss_G.backward()
        optimizer_G.step()
        critic.requires_grad_(True)
        _update_average(average, generator, min(s.ema, (1 + done) / (10 + done)))
        done += 1
        position = pace.position(done)
        last = position >= s.steps
        progress.update(task, completed=min(position, s.steps))
        losses = {"loss D": loss_D, "loss G": loss_G, "feature distance": distance}
        if done % settings.log_every == 0:
            losses = {name: value.item() for name, value in losses.items()}
            refuse(done, losses)
            for name, value in zip(("D", "G", "feature_distance"), losses.values(), strict=True):
                writer.add_scalar(f"generator/{name}", value, done)
        samples, saves = is_sampled(done, settings.sample_every) or last, done % settings.checkpoint_every == 0 or last
        if samples or saves:
            refuse(done, losses | parts)
        # Before the checkpoint, so that a run killed in between writes its snapshot again.
        if samples:
            ready = ready_at(done)
            save_grid(ready, images, features, out / "samples" / f"{done:07d}.png", s.truncation)
            snapshot = out / "snapshots" / f"{done:07d}"
            export(ready, encoder, snapshot, s.truncation, None)
            record = {"step": done, "seconds": round(pace.seconds)}
            (snapshot / "training.json").write_text(json.dumps(record) + "\n")
        if saves:
            # A stage that its seconds have ended is complete, too.
            ended = {"step": s.steps if last else done, "seconds": pace.seconds}
            atomic_save({name: part.state_dict() for name, part in parts.items()} | ended, out / "generator.pt")
            remove_mark(out)
            found = f"D {loss_D.item():.3f} G {loss_G.item():.3f} dist {distance.item():.3f}"
            print(f"step {done}/{s.steps} {found} {pace.seconds:.0f} s", flush=True)
    writer.close()
    return ready_at(done)


def is_sampled(step: int, every: int) -> bool:
    """Return whether a snapshot is due: every so many steps and, since most changes at first, after 1/2, 1/4, 1/8 and 1/16 of them."""
    return step % every == 0 or any(step * part == every for part in (2, 4, 8, 16))


class Critic(nn.Module):
    """The pixel discriminator and, optionally, the heads on the frozen encoder's maps: logits (B, 1 or more)."""

    def __init__(self, encoder: SmallResNet, hint_dim: int, width: int, resolution: int, feature_heads: bool) -> None:
        super().__init__()
        self.pixels = Discriminator(width, resolution, hint_dim)
        self.heads = FeatureHeads(list(encoder.widths), hint_dim) if feature_heads else None
        self._encoder = [encoder]  # in a list, so that it is not part of this module's state

    def look(self, images: Tensor) -> list[Tensor]:
        """Return the encoder's maps of images (B, 3, R, R) in [-1, 1]."""
        return self._encoder[0].maps((images + 1).contiguous(memory_format=torch.channels_last) / 2)

    def forward(self, augmented: Tensor, maps: list[Tensor], hint: Tensor) -> Tensor:
        """Score images in [-1, 1], given as augmented pixels and feature maps, with hints (B, D)."""
        logits = self.pixels(augmented.contiguous(memory_format=torch.channels_last), hint)[:, None]
        return logits if self.heads is None else torch.cat([logits, self.heads(maps, hint)], dim=1)


@torch.no_grad()
def start_from_whitening(generator: Generator, mean: Tensor, whitening: Tensor) -> None:
    """Make the untrained generator's conditions vary as widely as its latent vector, so that it uses both from the start."""
    layer = generator.shared_feat
    layer.weight[: len(whitening)] = whitening
    layer.bias[: len(whitening)] = -whitening @ mean
    for norm in generator.modules():
        if isinstance(norm, ConditionalNorm):
            norm.gain.weight.mul_(0.3)
            norm.bias.weight.mul_(0.3)


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    if buffers := list(average.buffers()):
        torch._foreach_copy_(buffers, list(model.buffers()))


def _diffaugment(policy: str) -> nn.Module:
    """Differentiable augmentation of what the discriminator sees (Zhao et al., NeurIPS 2020), by kornia."""
    known = {
        "color": lambda: K.ColorJiggle(brightness=0.5, contrast=0.5, saturation=1.0, p=1.0),
        "translation": lambda: K.RandomAffine(0.0, translate=(0.125, 0.125), p=1.0),
        "cutout": lambda: K.RandomErasing(scale=(0.25, 0.25), ratio=(1.0, 1.0), p=0.5),
    }
    return nn.Sequential(*(known[name]() for name in policy.split(",") if name))
