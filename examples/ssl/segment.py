"""Train a segmentation head on the last feature maps of a frozen backbone and measure its mean IoU.

    python examples/ssl/segment.py runs/simclr
    python examples/ssl/segment.py runs/simclr-imagenet --data torchvision:VOCSegmentation:data/voc --epochs 30

Without --data, the images are synthetic: discs, squares and triangles of random colours and sizes on noise, so that colour does
not give the class away. The head is torchvision's FCN head; the backbone is frozen. The interval is a bootstrap over test images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from arguments import positive
from backbones import Backbone, build_backbone
from frozen import load_run
from loading import mix_seed, set_seed
from shared import settle_device, write_whole
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchvision import datasets
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF
from trained import refuse_untrained

IGNORED = 255  # the border of VOC's objects


def shapes(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, size, size) uint8 and masks (N, size, size) int64: 0 background, 1 disc, 2 square, 3 triangle."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    masks = torch.zeros(count, size, size, dtype=torch.int64)
    images = torch.rand(count, 3, 1, 1, generator=rng).expand(-1, -1, size, size).clone()
    for i in range(count):
        for kind in (torch.randperm(3, generator=rng)[:2] + 1).tolist():
            radius = size * (0.12 + 0.13 * torch.rand((), generator=rng))
            dy, dx = (axis - radius - (size - 2 * radius) * torch.rand((), generator=rng) for axis in (y, x))
            inside = {
                1: dx**2 + dy**2 <= radius**2,
                2: torch.maximum(dx.abs(), dy.abs()) <= 0.85 * radius,
                3: (dy <= radius * 0.8) & (dy >= 2 * dx.abs() - radius),
            }[kind]
            masks[i][inside] = kind
            images[i, :, inside] = torch.rand(3, 1, generator=rng)
    images += 0.1 * torch.randn(images.shape, generator=rng)
    return (images.clamp(0, 1) * 255).to(torch.uint8), masks


def voc(source: str, split: str, size: int) -> tuple[Tensor, Tensor]:
    """Return images and masks of ``torchvision:VOCSegmentation:ROOT``, resized to squares."""
    if not source.startswith("torchvision:VOCSegmentation:"):
        raise SystemExit(f"--data {source!r}: expected torchvision:VOCSegmentation:ROOT")
    root = source.removeprefix("torchvision:VOCSegmentation:")
    try:
        dataset = datasets.VOCSegmentation(root, image_set=split)
    except (OSError, RuntimeError) as error:
        raise SystemExit(f"--data {source!r}: {error}") from error
    images, masks = [], []
    for image, mask in dataset:
        images.append(TF.resize(TF.pil_to_tensor(image), [size, size], antialias=True))
        masks.append(TF.resize(TF.pil_to_tensor(mask), [size, size], v2.InterpolationMode.NEAREST)[0].long())
    return torch.stack(images), torch.stack(masks)


def train_head(backbone: Backbone, images: Tensor, masks: Tensor, classes: int, epochs: int, seed: int, device: str = "cpu") -> nn.Module:
    """Train a head on the frozen maps: AdamW, one cosine, horizontal flips."""
    torch.manual_seed(seed)
    head = FCNHead(backbone.width, classes).to(device)
    size = min(32, len(images))
    steps = epochs * (len(images) // size)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    head.train()
    for step in range(steps):
        set_seed(mix_seed(seed, step), device)
        rows = torch.randint(len(images), (size,))
        batch, target = images[rows].to(device).float() / 255, masks[rows].to(device)
        if torch.rand(()) < 0.5:
            batch, target = batch.flip(3), target.flip(2)
        loss = F.cross_entropy(_logits(backbone, head, batch), target, ignore_index=IGNORED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.eval()


@torch.no_grad()
def measure(backbone: Backbone, head: nn.Module, images: Tensor, masks: Tensor, classes: int, device: str = "cpu") -> dict[str, Any]:
    """Return mean IoU with a 95% bootstrap interval over images, and pixel accuracy."""
    confusion = torch.stack([
        multiclass_confusion_matrix(logits.argmax(0)[None], mask[None].to(device), classes, ignore_index=IGNORED)
        for batch, targets in zip(images.split(50), masks.split(50), strict=True)
        for logits, mask in zip(_logits(backbone, head, batch.to(device).float() / 255), targets, strict=True)
    ]).cpu()  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    again = [mean_iou(confusion[torch.randint(len(confusion), (len(confusion),), generator=rng)].sum(0)) for _ in range(1000)]
    low, high = torch.tensor(again).quantile(torch.tensor([0.025, 0.975])).tolist()
    total = confusion.sum(0)
    return {
        "mean_iou": round(mean_iou(total), 4), "interval": [round(low, 4), round(high, 4)],
        "pixel_accuracy": round(float(total.diagonal().sum() / total.sum()), 4), "images": len(images),
    }  # fmt: skip


def mean_iou(confusion: Tensor) -> float:
    """Return the mean over the classes that occur of intersection over union, from counts (true class, predicted class)."""
    both = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - both
    return float((both[union > 0] / union[union > 0]).mean())


def _logits(backbone: Backbone, head: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        maps = backbone.maps(images).float()
    return F.interpolate(head(maps), size=images.shape[-2:], mode="bilinear", align_corners=False)


def main() -> None:
    """Parse the command line, train the head, measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a run, or its .ckpt")
    parser.add_argument("--data", help="torchvision:VOCSegmentation:ROOT; by default synthetic shapes")
    parser.add_argument("--images", type=positive, default=1000, help="synthetic training images; a quarter as many to test")
    parser.add_argument("--image-size", type=positive, help="pixels; by default as pretrained, 64 at least")
    parser.add_argument("--epochs", type=positive, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="auto, cuda, mps or cpu; default cpu")
    parser.add_argument("--out", type=Path, help="JSON file; by default segmentation.json beside the checkpoint")
    args = parser.parse_args()
    args.device = settle_device(args.device, f"--device {args.device}")
    refuse_untrained(args.checkpoint, "measure")
    backbone, settings = load_run(args.checkpoint)
    size = args.image_size or max(64, settings.data.image_size)
    if args.data is None:
        classes = 4
        train, test = shapes(args.images, size, seed=args.seed), shapes(max(1, args.images // 4), size, seed=args.seed + 10_000)
    else:
        classes = 21
        train, test = voc(args.data, "train", size), voc(args.data, "val", size)
    torch.manual_seed(args.seed)
    untrained = build_backbone(settings.backbone).eval().requires_grad_(False)
    found = {}
    for name, network in {"pretrained": backbone, "untrained": untrained}.items():
        network.to(args.device)
        head = train_head(network, *train, classes, args.epochs, args.seed, args.device)
        found[name] = measure(network, head, *test, classes, args.device)
        print(f"{name}: mean IoU {found[name]['mean_iou']:.3f} (95% {found[name]['interval'][0]:.3f} to {found[name]['interval'][1]:.3f})")
    folder = args.checkpoint if args.checkpoint.is_dir() else args.checkpoint.parent
    with write_whole(args.out or folder / "segmentation.json") as partial:
        partial.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
