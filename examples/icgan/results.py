"""The results of a run: the averaged generator with standing statistics, sample grids, and folders that can be loaded."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from networks import ConditionalNorm, Generator, OutputNorm
from torch import Tensor, nn
from torchvision.utils import save_image

from gentransforms.generators.icgan.features import SmallResNet
from gentransforms.generators.icgan.generator import ICGAN


@torch.no_grad()
def with_statistics(average: Generator, features: Tensor, batch_size: int, batches: int = 32) -> Generator:
    """Return a copy whose batch norm statistics are means over `batches` fresh batches ("standing statistics")."""
    ready = copy.deepcopy(average).train()
    rng = torch.Generator().manual_seed(0)
    norms = [m for m in ready.modules() if isinstance(m, ConditionalNorm | OutputNorm)]
    for i in range(batches):
        for norm in norms:
            norm.momentum = 1 / (i + 1)
        rows = torch.randint(len(features), (batch_size,), generator=rng).to(features.device)
        ready(torch.randn(batch_size, ready.config.z_dim, generator=rng).to(features.device), features[rows])
    return ready.eval()


@torch.no_grad()
def save_grid(
    generator: Generator, images: Tensor, features: Tensor, path: Path, truncation: float, sources: int = 12, variants: int = 8
) -> None:
    """Write a grid with one row per source: the source, then its variants, with z truncated as in the library."""
    rng = torch.Generator().manual_seed(1)
    rows = torch.arange(0, len(images), max(1, len(images) // sources), device=features.device)[:sources]
    bound = 2 * truncation
    z = nn.init.trunc_normal_(torch.empty(len(rows) * variants, generator.config.z_dim), 0, 1, -bound, bound, generator=rng)
    made = generator(z.to(features.device), features[rows].repeat_interleave(variants, 0)) / 2 + 0.5
    grid = torch.cat([images[rows, None].float() / 255, made.unflatten(0, (len(rows), variants))], dim=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(grid.flatten(0, 1).cpu(), path, nrow=variants + 1, padding=1)


def export(ready: Generator, encoder: SmallResNet, folder: Path, truncation: float, card: dict[str, str] | None) -> ICGAN:
    """Write generator and encoder as a folder that `ICGAN.from_pretrained` loads, in float16 where that can hold them."""
    state = {name: tensor.cpu() for name, tensor in ready.state_dict().items()}
    generator = ICGAN.from_released(state, ready.config, copy.deepcopy(encoder))
    generator.truncation = truncation
    tensors = [*state.values(), *encoder.state_dict().values()]
    fits = all(bool(t.to(torch.float16).isfinite().all()) for t in tensors if t.is_floating_point())
    if not fits:
        print(f"{folder}: some weights are beyond the range of float16, so they are written in float32", flush=True)
    generator.save_pretrained(folder, dtype=torch.float16 if fits else torch.float32, card=card)
    return generator
