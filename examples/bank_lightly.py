"""A bank in a lightly training loop: lightly's views and loss are unchanged, and the second view starts from a generated image.

    python examples/bank_lightly.py

lightly's `MultiViewTransform` makes each view with a separate transform. Here each of them receives the sample with its key, and
first takes out the image or one of its variants. Needs `pip install lightly`.
"""

from __future__ import annotations

import tempfile
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRViewTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

import gentransforms as gt


class Views:
    """Turn a sample (image, label, key) into ([view 0, view 1], label)."""

    def __init__(self, bank: gt.Bank, p: float, size: int) -> None:
        augment = gt.BankAugment(bank, p=p, output_size="native")
        classic = SimCLRViewTransform(input_size=size, cj_strength=0.5, gaussian_blur=0.0)
        the_image = itemgetter(0)  # of (image, label, key)
        self.views = MultiViewTransform([v2.Compose([the_image, classic]), v2.Compose([augment, the_image, classic])])

    def __call__(self, sample: Any) -> tuple[list[Tensor], int]:
        return self.views(sample), sample[1]


def make_photos(folder: Path) -> None:
    """Write the library's ten sample images as a folder of classes, each image slightly wider than high."""
    for sample in (Path(gt.__file__).parent / "samples").glob("*.png"):
        (folder / sample.stem).mkdir(parents=True)
        Image.open(sample).convert("RGB").resize((64, 48)).save(folder / sample.stem / "0.png")


def train(photos: Path, bank: Path) -> None:
    """Train for one epoch of two steps."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dataset = gt.with_keys(ImageFolder(str(photos)), transform=Views(gt.Bank.open(bank), p=1.0, size=32))
    loader = DataLoader(dataset, batch_size=5, shuffle=True, num_workers=2)
    backbone = resnet18()
    backbone.fc = nn.Identity()
    model = nn.Sequential(backbone, SimCLRProjectionHead(512, 512, 64)).to(device)
    criterion = NTXentLoss(temperature=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step, ((x0, x1), _) in enumerate(loader):  # as in lightly's own examples from here on
        loss = criterion(model(x0.to(device)), model(x1.to(device)))
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
