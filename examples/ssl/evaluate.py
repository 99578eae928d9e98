"""Evaluate a frozen backbone: linear probe with the paper's settings and weighted k-NN, each with a 95% interval.

    python examples/ssl/evaluate.py runs/simclr --train data/imagenet/train --test data/imagenet/val --devices 4
    python examples/ssl/evaluate.py runs/simclr --train inaturalist:data/inat:train --test inaturalist:data/inat:val --devices 4
    python examples/ssl/evaluate.py runs/small --train train.parquet --test test.parquet --limit 10000 --cached

The checkpoint is a run of train.py, weights with torchvision's names and --backbone, or encoder:GENERATOR for the frozen encoder
of a generator, to compare with what its images could teach.
--train and --test are a folder with a subfolder per class, a .parquet file, torchvision:NAME:ROOT[:SPLIT] (CIFAR10,
CIFAR100, Food101, Places365, …) or inaturalist:ROOT:SPLIT. Writes OUT (by default evaluation.json beside the checkpoint). Results
that are in OUT already stay there; those of another checkpoint, other images or other options need another OUT. The folder of a run has
to be trained to its end; its .ckpt does not.

The paper's linear probe: LARS, lr 0.1 per 256 images, no decay, 512 images on each of 4 GPUs, no warm-up, cosine, 100
epochs (Places365: 45), random resized crop and flip. If it is interrupted, the same command resumes after the last complete
epoch. --cached trains on features of whole images instead, which are extracted once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerators import refuse_absent_devices
from arguments import positive
from backbones import Backbone
from config import BackboneSettings
from contents import describe_contents
from data import Source, open_images, refuse_other_classes, split_rows
from frozen import GeneratorsEncoder, extract_features, load_backbone, load_generator
from lightning.pytorch.utilities import rank_zero_only
from linear_probe import Features, ProbeCrops, ProbeOptions, linear_probe
from loading import WholeImages, load_into_memory, whole_loader
from measured import hash_checkpoint
from probes import knn, wilson
from quiet import hush
from reports import start_report, write_report
from shared import warn_of_absent_classes
from slurm import requeue_at_signal
from torch import Tensor
from torch.utils.data import Dataset
from trained import refuse_untrained


def evaluate(
    backbone: Backbone | GeneratorsEncoder,
    train: tuple[Source, Tensor],
    test: tuple[Source, Tensor],
    options: ProbeOptions,
    methods: tuple[str, ...] = ("linear", "knn"),
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Return accuracy, interval and number of test images for each method; `train` and `test` are sources and rows of them.

    `keep` is called with the results so far after each method, since the linear probe may have taken days. In `folder` an
    interrupted probe resumes; delete it when the results have been saved.
    """
    classes = len(train[0].classes)
    refuse_other_classes(train[0], test[0])
    # Each set is loaded into memory once, if at all.
    sets = [_whole(*part, options) for part in (train, test)]
    loaders = [whole_loader(images, 500 if options.in_memory else 128, options.workers) for images in sets]
    features = [extract_features(backbone, loader, _device(options)) for loader in loaders] if options.cached else []
    found: dict[str, Any] = {}
    if "linear" in methods:
        if options.cached:
            probe_sets: list[Dataset[Any]] = [Features(*part) for part in _standardised(features)]
        else:
            probe_sets = [sets[0] if options.in_memory else ProbeCrops(*train, options.image_size, options.seed), sets[1]]
        resume = None if options.cached or folder is None else (folder, _images(*train))
        accuracy, count = linear_probe(backbone, probe_sets[0], probe_sets[1], classes, options, resume)
        found["linear"] = _report(round(accuracy * count), count)
        keep(found)
    # After the linear probe, which may start one process per device; a single one computes k-NN.
    if "knn" in methods and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        device = _device(options)
        features = features or [extract_features(backbone, loader, device) for loader in loaders]
        if device != "cpu" and 3 * features[0][0].nbytes > torch.cuda.mem_get_info(device)[0]:
            device = "cpu"  # the neighbours, their normalised copy, and the similarities
        (bank, labels), (queries, expected) = [tuple(part.to(device) for part in parts) for parts in features]
        right = int((knn(queries, bank, labels, classes, options.k, options.temperature) == expected).sum())
        found["knn"] = _report(right, len(expected))
        keep(found)
    return found


def _device(options: ProbeOptions) -> str:
    """Return the device of this process."""
    gpu = options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if gpu else "cpu"


def _images(source: Source, rows: Tensor) -> str:
    """Return a hash of the images' keys and labels."""
    assert source.labels is not None, "refused before"
    named = "\n".join([source.name, *(repr(source.keys[row]) for row in rows.tolist())])
    return hashlib.sha256(named.encode() + source.labels[rows].numpy().tobytes()).hexdigest()


def _whole(source: Source, rows: Tensor, options: ProbeOptions) -> Dataset[Any]:
    return load_into_memory(source, rows, options.image_size)[0] if options.in_memory else WholeImages(source, rows, options.image_size)


def _standardised(parts: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Standardise the features by the training images' mean and deviation; the layer stays linear and is easier to train."""
    mean, deviation = parts[0][0].mean(dim=0), parts[0][0].std(dim=0).clamp(min=1e-6)
    return [((features - mean) / deviation, labels) for features, labels in parts]


def _report(right: int, count: int) -> dict[str, Any]:
    low, high = wilson(right, count)
    return {"accuracy": round(right / count, 5), "interval": [round(low, 5), round(high, 5)], "images": count}


FREELY: dict[str, Callable[[str], Any]] = {
    "epochs": positive, "batch_size": positive, "devices": positive, "base_lr": float, "optimizer": str, "k": positive, "workers": int,
    "accelerator": str, "precision": str, "seed": int,
}  # fmt: skip
CHOICES = {"optimizer": ("lars", "sgd", "adamw")}


def main() -> None:
    """Parse the command line, evaluate and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a run, .ckpt, weights under torchvision's names, or encoder:GENERATOR")
    parser.add_argument("--train", required=True, help="labelled images for the linear layer and k-NN")
    parser.add_argument("--test", required=True, help="labelled images to evaluate on")
    parser.add_argument("--out", type=Path, help="JSON file of the report")
    parser.add_argument("--methods", nargs="+", choices=["linear", "knn"], default=["linear", "knn"])
    parser.add_argument("--limit", type=positive, help="number of training images, evenly spaced")
    parser.add_argument("--backbone", choices=["resnet18", "resnet50"], help="architecture of a file of weights")
    parser.add_argument("--stem", choices=["imagenet", "cifar"], default="imagenet", help="architecture of a file of weights")
    parser.add_argument("--cached", action="store_true", help="train on features of whole images, extracted once")
    parser.add_argument("--image-size", type=positive, help="pixels; default: as in pretraining")
    parser.add_argument("--image-column", help="of a .parquet file")
    parser.add_argument("--label-column", help="of a .parquet file")
    for name, kind in FREELY.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, choices=CHOICES.get(name), help=f"default {getattr(ProbeOptions, name)}"
        )
    args = parser.parse_args()
    hush()
    requeue_at_signal()
    given = BackboneSettings(name=args.backbone, stem=args.stem) if args.backbone else None
    options = ProbeOptions(cached=args.cached)
    backbone: Backbone | GeneratorsEncoder
    if args.checkpoint.startswith("encoder:"):
        generator = load_generator(args.checkpoint.removeprefix("encoder:"), "encoder:")
        backbone, digest = GeneratorsEncoder(generator), generator.fingerprint()
        options.image_size, options.in_memory = backbone.size, backbone.size <= 64
    else:
        refuse_untrained(Path(args.checkpoint), "evaluate")
        backbone, settings = load_backbone(args.checkpoint, given)
        digest = hash_checkpoint(Path(args.checkpoint))
        if settings is not None:
            options.image_size, options.in_memory = settings.data.image_size, settings.data.in_memory
    for name in ("image_size", *FREELY):
        if getattr(args, name) is not None:
            setattr(options, name, getattr(args, name))
    if args.epochs is None and "places365" in args.train.lower():
        options.epochs = 45
    refuse_absent_devices(options.accelerator, options.devices, "--accelerator ")
    train, test = (open_images(name, args.image_column, args.label_column) for name in (args.train, args.test))
    rows = split_rows(len(train), args.limit, 0)[0]
    if args.limit is not None:
        warn_of_absent_classes(train.labels, "--limit", args.limit, lambda n: split_rows(len(train), n, 0)[0])
    path = Path(args.checkpoint)
    out = args.out or (path if path.is_dir() else path.parent) / "evaluation.json"
    parts = {"train": (train, rows), "test": (test, torch.arange(len(test)))}
    about = {
        "checkpoint": args.checkpoint, "checkpoint_sha256": digest, "train": args.train, "test": args.test, "train_images": len(rows),
        **{f"{part}_{name}": value for part, what in parts.items() for name, value in describe_contents(*what).items()},
        "options": asdict(options),
    }  # fmt: skip
    report = start_report(out, about, tuple(args.methods))
    # Of a probe that is not yet done; a run's own folder holds the run's checkpoints. Not out.stem: of lr0.3 and lr0.5 it is the same.
    folder = out.with_name(f"{out.name.removesuffix('.json')}-linear")

    def keep(found: dict[str, Any]) -> None:
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # with several devices, one of the processes reports
            write_report(out, report | found)

    found = evaluate(backbone, parts["train"], parts["test"], options, tuple(args.methods), keep, folder)
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return
    if "linear" in args.methods and not args.cached:
        shutil.rmtree(folder, ignore_errors=True)
    for name, result in found.items():
        low, high = result["interval"]
        print(f"{name}: {result['accuracy']:.2%} (95% {low:.2%} to {high:.2%}) on {result['images']} images")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
