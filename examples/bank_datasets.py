"""A bank with Hugging Face `datasets`: `with_transform` makes the views, and a column holds the key of each image.

    python examples/bank_datasets.py

The bank is made from the data set object with the keys of that column, so the rows can be sorted or filtered afterwards. Needs
`pip install datasets`.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.models import resnet18
from torchvision.transforms import v2

import gentransforms as gt


def make_views(two: gt.TwoViews, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Turn the columns "image", "name" and "label" into "real", "generated" and "label", row by row."""
    pairs = [two({"image": i.convert("RGB"), "key": k}) for i, k in zip(columns["image"], columns["name"], strict=True)]
    real, generated = ([view["image"] for view in views] for views in zip(*pairs, strict=True))
    return {"real": real, "generated": generated, "label": columns["label"]}


def classic(size: int, jitter: float) -> v2.Compose:
    """The usual augmentation of self-supervised learning, on single images."""
    colours = v2.ColorJitter(jitter, jitter, jitter, jitter / 4)
    return v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.2, 1.0)), v2.RandomHorizontalFlip(), v2.RandomApply([colours], p=0.8),
        v2.RandomGrayscale(p=0.2), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3),
    ])  # fmt: skip


def simclr_loss(a: Tensor, b: Tensor, temperature: float = 0.2) -> Tensor:
    """Contrast (N, D) with (N, D): row i of one belongs to row i of the other (Chen et al., ICML 2020)."""
    z = F.normalize(torch.cat([a, b]), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    partner = torch.arange(len(z), device=z.device).roll(len(a))
    return F.cross_entropy(similarity, partner)


def photos() -> datasets.Dataset:
    """The library's ten sample images as a data set, each image slightly wider than high."""
    files = sorted((Path(gt.__file__).parent / "samples").glob("*.png"))
    columns = {
        "image": [Image.open(file).convert("RGB").resize((64, 48)) for file in files],
        "name": [file.stem for file in files],
        "label": list(range(len(files))),
    }
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def train(dataset: datasets.Dataset, bank: Path) -> None:
    """Train for one epoch of two steps."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    augment = gt.BankAugment(gt.Bank.open(bank), p=0.5, output_size="native")
    two = gt.TwoViews(augment, classic(32, jitter=0.8), classic(32, jitter=0.4))
    # `partial`, not a lambda, so that it can be pickled for spawned workers.
    loader = DataLoader(dataset.with_transform(partial(make_views, two)), batch_size=5, shuffle=True, num_workers=2)
    model = resnet18(num_classes=64).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step, batch in enumerate(loader):
        loss = simclr_loss(model(batch["real"].to(device)), model(batch["generated"].to(device)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        dataset, bank = photos(), Path(folder, "bank")
        made = gt.generate_bank(gt.open_source(dataset, key="name"), bank, "icgan-cifar10-32", variants=4, progress=False)
        print(f"bank: {made.images} variants")
        train(dataset, bank)
