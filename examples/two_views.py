"""Two views for self-supervised learning, as in the paper: one of the real image and one of a generated image.

    python examples/two_views.py

Takes two SimCLR steps. Both views get classic augmentation, the second one after it has been generated. The classic
augmentation is kornia's, which draws new parameters for each image of a batch; torchvision's transforms draw them once per batch.
"""

from __future__ import annotations

import kornia.augmentation as K
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

import gentransforms as gt


def simclr_loss(a: Tensor, b: Tensor, temperature: float = 0.2) -> Tensor:
    """Contrast (N, D) with (N, D): row i of one belongs to row i of the other (Chen et al., ICML 2020)."""
    z = F.normalize(torch.cat([a, b]), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    partner = torch.arange(len(z), device=z.device).roll(len(a))
    return F.cross_entropy(similarity, partner)


torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
classic = nn.Sequential(
    K.RandomResizedCrop((32, 32), scale=(0.2, 1.0)),
    K.RandomHorizontalFlip(),
    K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
    K.RandomGrayscale(p=0.2),
)
# p=1: the second view is always generated. The paper also tried 0.25, 0.5 and 0.75.
views = gt.TwoViews(gt.GenerativeAugment.from_pretrained("icgan-cifar10-32", p=1.0, device=device), classic, classic)
encoder = resnet18(num_classes=128).to(device)
optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)

for step in range(2):
    images = torch.rand(32, 3, 32, 32, device=device)  # your batch
    real, generated = views(images)
    loss = simclr_loss(encoder(real), encoder(generated))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.3f}")
