"""Generative augmentation in a plain training loop: on whole batches, inside the training step, on the GPU if there is one.

    python examples/training_step.py

The data are random images, so nothing is learnt; the example shows where the transform belongs.
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

# The workers only load and collate. Images stay uint8 until they are on the device, which is a quarter of the bytes to copy.
train_set = FakeData(size=64, image_size=(3, 32, 32), num_classes=10, transform=v2.PILToTensor())
loader = DataLoader(train_set, batch_size=32, shuffle=True)

augment = gt.GenerativeAugment.from_pretrained("icgan-cifar10-32", p=0.5, device=device)
# Normalise afterwards: a generator expects pixel values from 0 to 255 or from 0 to 1.
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
