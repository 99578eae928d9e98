"""Measure a frozen backbone: linear probe with the paper's settings, and weighted k-NN, each with a 95% interval.

    python examples/ssl/evaluate.py runs/simclr --train data/imagenet/train --test data/imagenet/val --devices 4
    python examples/ssl/evaluate.py runs/simclr --train inaturalist:data/inat:train --test inaturalist:data/inat:val --devices 4
    python examples/ssl/evaluate.py runs/small --train train.parquet --test test.parquet --limit 10000 --cached

The checkpoint is a run of train.py, weights under torchvision's names with --backbone, or encoder:GENERATOR: the frozen
encoder that a generator brings along, which is what its images could teach if they taught no more than that one knows.
--train and --test are a folder with a subfolder per class, a .parquet file, torchvision:NAME:ROOT[:SPLIT] (CIFAR10,
CIFAR100, Food101, Places365, …) or inaturalist:ROOT:SPLIT. Writes OUT (by default evaluation.json beside the checkpoint).

The paper's linear probe: LARS, lr 0.1 per 256 images, no decay, 512 images on each of 4 GPUs, no warm-up, cosine, 100
epochs (Places365: 45), random resized crop and flip. --cached trains on the features of whole images instead, made once.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import lightning as L
import torch
from backbones import Backbone
from config import BackboneSettings, OptimizerSettings, ViewSettings
from data import Source, open_images, refuse_other_classes, split_rows
from frozen import GeneratorsEncoder, features_of, load_backbone, load_encoder
from lightning.pytorch.utilities import rank_zero_only
from loading import EpochBatches, MemoryImages, WholeImages, labels_of, load_into_memory, read_or_next, seed_of, train_loader, whole_loader
from optimizers import build_optimizer, build_schedule, parameter_groups
from probes import knn, wilson
from quiet import hush
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2
from views import device_crop, worker_crop


@dataclass
class ProbeOptions:
    """The paper's linear probe, and k-NN; `batch_size` is per device."""

    epochs: int = 100
    batch_size: int = 512
    devices: int = 1
    base_lr: float = 0.1
    optimizer: str = "lars"
    cached: bool = False
    k: int = 200
    temperature: float = 0.1
    image_size: int = 224
    in_memory: bool = False
    workers: int = 8
    accelerator: str = "auto"
    precision: str = "32-true"
    seed: int = 0


def evaluate(
    backbone: Backbone | GeneratorsEncoder,
    train: tuple[Source, Tensor],
    test: tuple[Source, Tensor],
    options: ProbeOptions,
    methods: tuple[str, ...] = ("linear", "knn"),
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Return accuracy, interval and number of test images for each method; `train` and `test` are sources and rows of them.

    `keep` gets what is found so far after each method: the linear probe may have taken days.
    """
    classes = len(train[0].classes)
    refuse_other_classes(train[0], test[0])
    # Each set once in memory, where it goes there at all.
    sets = [_whole(*part, options) for part in (train, test)]
    loaders = [whole_loader(images, 500 if options.in_memory else 128, options.workers) for images in sets]
    features = [features_of(backbone, loader, _device(options)) for loader in loaders] if options.cached else []
    found: dict[str, Any] = {}
    if "linear" in methods:
        if options.cached:
            probe_sets: list[Dataset[Any]] = [Features(*part) for part in _standardised(features)]
        else:
            probe_sets = [sets[0] if options.in_memory else ProbeCrops(*train, options.image_size), sets[1]]
        accuracy, count = linear_probe(backbone, probe_sets[0], probe_sets[1], classes, options)
        found["linear"] = _report(round(accuracy * count), count)
        keep(found)
    # After the linear probe, which may start a process for each device: one of them suffices for the neighbours.
    if "knn" in methods and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        device = _device(options)
        features = features or [features_of(backbone, loader, device) for loader in loaders]
        if device != "cpu" and 3 * features[0][0].nbytes > torch.cuda.mem_get_info(device)[0]:
            device = "cpu"  # neighbours, their normalised copy, and similarities
        (bank, labels), (queries, expected) = [tuple(part.to(device) for part in parts) for parts in features]
        right = int((knn(queries, bank, labels, classes, options.k, options.temperature) == expected).sum())
        found["knn"] = _report(right, len(expected))
    return found


def linear_probe(
    backbone: Backbone | GeneratorsEncoder, train: Dataset[Any], test: Dataset[Any], classes: int, options: ProbeOptions
) -> tuple[float, int]:
    """Train the linear layer; return its accuracy after the last epoch and the number of test images."""
    L.seed_everything(options.seed, verbose=False)
    trainer = L.Trainer(
        accelerator=options.accelerator, devices=options.devices, strategy="ddp" if options.devices > 1 else "auto",
        precision=options.precision, max_epochs=options.epochs, use_distributed_sampler=False, logger=False,  # type: ignore[arg-type]
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    module = LinearProbe(backbone, classes, options)
    size = min(options.batch_size, len(train) // trainer.world_size)  # type: ignore[arg-type]
    batches = EpochBatches(len(train), size, options.seed, lambda: module.batches_done, trainer.global_rank, trainer.world_size)  # type: ignore[arg-type]
    trainer.fit(module, train_loader(train, batches, options.workers))
    share = _share(test, trainer.global_rank, trainer.world_size)
    result = trainer.test(module, whole_loader(share, 500, options.workers), verbose=False)[0]
    return result["accuracy"], len(test)  # type: ignore[arg-type]


class LinearProbe(L.LightningModule):
    """A linear layer on frozen features; batches hold images, or the features themselves."""

    def __init__(self, backbone: Backbone | GeneratorsEncoder, classes: int, options: ProbeOptions) -> None:
        super().__init__()
        self.options, self.batches_done = options, 0
        self.layer = nn.Linear(backbone.width, classes)
        nn.init.normal_(self.layer.weight, std=0.01)
        nn.init.zeros_(self.layer.bias)
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        crop = [device_crop(ViewSettings(), options.image_size, "bicubic")] if options.in_memory else []
        # In a tuple: neither trained nor saved with the layer.
        self._frozen = (backbone, nn.Sequential(*crop, K.RandomHorizontalFlip()))

    def on_fit_start(self) -> None:
        for module in self._frozen:
            module.to(self.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        torch.manual_seed(seed_of(self.options.seed, self.batches_done, self.global_rank))
        self.batches_done += 1
        return F.cross_entropy(self(batch, augment=True), batch["labels"])

    def forward(self, batch: dict[str, Tensor], augment: bool = False) -> Tensor:
        """Return logits (B, classes)."""
        if "features" in batch:
            return self.layer(batch["features"])
        backbone, view = self._frozen
        with torch.no_grad():
            images = batch["images"].float() / 255
            features = backbone(view(images).clamp(0, 1) if augment else images)
        return self.layer(features)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.accuracy.update(self(batch), batch["labels"])

    def on_test_epoch_end(self) -> None:
        self.log("accuracy", self.accuracy.compute())

    def configure_optimizers(self) -> dict[str, Any]:
        o = self.options
        lr = o.base_lr * o.batch_size * o.devices / 256
        s = OptimizerSettings(name=o.optimizer, base_lr=o.base_lr, weight_decay=0.0, warmup_epochs=0)
        optimizer = build_optimizer(parameter_groups([self.layer], s), s, lr)
        schedule = build_schedule(optimizer, lr, 0, int(self.trainer.estimated_stepping_batches), lr, 0.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Features(MemoryImages):
    """Features (N, width) and labels (N,) in batches."""

    def __getitems__(self, samples: Any) -> dict[str, Tensor]:
        batch = super().__getitems__(samples)
        return {"features": batch.pop("images")} | batch


class ProbeCrops(Dataset[Any]):
    """Random resized crops of images that are read anew in every epoch; flips follow on the device."""

    def __init__(self, source: Source, rows: Tensor, size: int) -> None:
        self.source, self.rows, self.labels = source, rows.tolist(), labels_of(source)[rows]
        self.transform = v2.Compose([worker_crop(ViewSettings(), size, "bicubic"), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, sample: tuple[int, int]) -> dict[str, Any]:
        place, epoch = sample
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(epoch, place))
            image, at = read_or_next(self.source, self.rows, place)
            return {"images": self.transform(image), "labels": self.labels[at], "rows": at}


def _device(options: ProbeOptions) -> str:
    """Return the device of this process."""
    gpu = options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if gpu else "cpu"


def _share(images: Dataset[Any], rank: int, world: int) -> Dataset[Any]:
    """Return every `world`-th of the images, so that each is counted once."""
    if isinstance(images, MemoryImages):
        return type(images)(images.images[rank::world], images.labels[rank::world])
    return torch.utils.data.Subset(images, range(rank, len(images), world))  # type: ignore[arg-type]


def _whole(source: Source, rows: Tensor, options: ProbeOptions) -> Dataset[Any]:
    return load_into_memory(source, rows, options.image_size)[0] if options.in_memory else WholeImages(source, rows, options.image_size)


def _standardised(parts: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Scale every feature by the mean and deviation of the training images: the layer stays linear, its steps become even."""
    mean, deviation = parts[0][0].mean(dim=0), parts[0][0].std(dim=0).clamp(min=1e-6)
    return [((features - mean) / deviation, labels) for features, labels in parts]


def _report(right: int, count: int) -> dict[str, Any]:
    low, high = wilson(right, count)
    return {"accuracy": round(right / count, 5), "interval": [round(low, 5), round(high, 5)], "images": count}


FREELY: dict[str, type] = {
    "epochs": int, "batch_size": int, "devices": int, "base_lr": float, "optimizer": str, "k": int, "workers": int,
    "accelerator": str, "precision": str, "seed": int,
}  # fmt: skip


def main() -> None:
    """Parse the command line, evaluate and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a run, .ckpt, weights under torchvision's names, or encoder:GENERATOR")
    parser.add_argument("--train", required=True, help="labelled images for the linear layer and the neighbours")
    parser.add_argument("--test", required=True, help="labelled images to measure on")
    parser.add_argument("--out", type=Path, help="JSON file of the report")
    parser.add_argument("--methods", nargs="+", choices=["linear", "knn"], default=["linear", "knn"])
    parser.add_argument("--limit", type=int, help="only so many training images, evenly spaced")
    parser.add_argument("--backbone", choices=["resnet18", "resnet50"], help="of a file of weights")
    parser.add_argument("--stem", choices=["imagenet", "cifar"], default="imagenet", help="of a file of weights")
    parser.add_argument("--cached", action="store_true", help="train on features of whole images, made once")
    parser.add_argument("--image-size", type=int, help="pixels; by default as pretrained")
    parser.add_argument("--image-column", help="of a .parquet file")
    parser.add_argument("--label-column", help="of a .parquet file")
    for name, kind in FREELY.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"default {getattr(ProbeOptions, name)}")
    args = parser.parse_args()
    hush()
    given = BackboneSettings(name=args.backbone, stem=args.stem) if args.backbone else None
    options = ProbeOptions(cached=args.cached)
    backbone: Backbone | GeneratorsEncoder
    if args.checkpoint.startswith("encoder:"):
        backbone = load_encoder(args.checkpoint.removeprefix("encoder:"))
        options.image_size, options.in_memory = backbone.size, backbone.size <= 64
    else:
        backbone, settings = load_backbone(args.checkpoint, given)
        if settings is not None:
            options.image_size, options.in_memory = settings.data.image_size, settings.data.in_memory
    for name in ("image_size", *FREELY):
        if getattr(args, name) is not None:
            setattr(options, name, getattr(args, name))
    if args.epochs is None and "places365" in args.train.lower():
        options.epochs = 45
    train, test = (open_images(name, args.image_column, args.label_column) for name in (args.train, args.test))
    rows = split_rows(len(train), args.limit, 0)[0]
    path = Path(args.checkpoint)
    out = args.out or (path if path.is_dir() else path.parent) / "evaluation.json"
    about = {"checkpoint": args.checkpoint, "train": args.train, "test": args.test, "train_images": len(rows)}

    def keep(found: dict[str, Any]) -> None:
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # with several devices, one of the processes reports
            out.write_text(json.dumps(about | found, indent=2) + "\n")

    found = evaluate(backbone, (train, rows), (test, torch.arange(len(test))), options, tuple(args.methods), keep)
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return
    keep(found)
    for name, result in found.items():
        low, high = result["interval"]
        print(f"{name}: {result['accuracy']:.2%} (95% {low:.2%} to {high:.2%}) on {result['images']} images")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
