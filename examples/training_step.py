"""Generative augmentation in a plain training loop: in the training step, on the whole batch, on the GPU if there is one.

    python examples/training_step.py

The data are random pictures, so nothing is learnt: what counts is where the transform stands.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData
from torchvision.models import resnet18
from torchvision.transforms import v2

import gentransforms as gt

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

# The workers only load and collate. Pixels stay uint8 until they are on the device: four times fewer bytes to move.
train_set = FakeData(size=64, image_size=(3, 32, 32), num_classes=10, transform=v2.PILToTensor())
loader = DataLoader(train_set, batch_size=32, shuffle=True)

augment = gt.GenerativeAugment.from_pretrained("icgan-cifar10-32", p=0.5, device=device)
# Normalisation comes after it: a generator wants pixels, 0 to 255 or 0 to 1.
prepare = v2.Compose([augment, v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)])

model = resnet18(num_classes=10).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

for step, (images, labels) in enumerate(loader):
    images, labels = prepare(images.to(device)), labels.to(device)
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.3f}")
