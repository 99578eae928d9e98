"""A bank in a plain PyTorch loop: a real and a generated view of each image, each with its own classic augmentation.

    python examples/bank_pytorch.py

Writes ten small photos and their bank into a temporary folder and takes two SimCLR steps. For your own data you need a folder of
images and a bank of them, made by `gentransforms generate photos bank`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

import gentransforms as gt


class Views:
    """Turn a sample (image, label, key) into (real view, generated view, label). A class, so that it can be pickled for workers."""

    def __init__(self, bank: gt.Bank, p: float, size: int) -> None:
        # "native": variants keep the size they have in the bank; the random crop brings photos and variants to the same size.
        augment = gt.BankAugment(bank, p=p, output_size="native")
        self.two = gt.TwoViews(augment, classic(size, jitter=0.8), classic(size, jitter=0.4))

    def __call__(self, sample: Any) -> tuple[Tensor, Tensor, int]:
        (real, label, _), (generated, _, _) = self.two(sample)
        return real, generated, label


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


def make_photos(folder: Path) -> None:
    """Write the library's ten sample images as a folder of classes, each image slightly wider than high."""
    for sample in (Path(gt.__file__).parent / "samples").glob("*.png"):
        (folder / sample.stem).mkdir(parents=True)
        Image.open(sample).convert("RGB").resize((64, 48)).save(folder / sample.stem / "0.png")


def train(photos: Path, bank: Path) -> None:
    """Train for one epoch of two steps."""
    torch.manual_seed(0)  # with several GPUs: plus the rank
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # The bank is opened once, before the workers start; they share its memory.
    dataset = gt.with_keys(ImageFolder(str(photos)), transform=Views(gt.Bank.open(bank), p=0.5, size=32))
    loader = DataLoader(dataset, batch_size=5, shuffle=True, num_workers=2)
    model = resnet18(num_classes=64).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step, (real, generated, _) in enumerate(loader):
        loss = simclr_loss(model(real.to(device)), model(generated.to(device)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        photos, bank = Path(folder, "photos"), Path(folder, "bank")
        make_photos(photos)
        made = gt.generate_bank(photos, bank, "icgan-cifar10-32", variants=4, progress=False)
        print(f"bank: {made.images} variants")
        train(photos, bank)
