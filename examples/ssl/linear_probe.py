"""A linear layer on a frozen backbone with the paper's settings, on one device or several, with resume."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import lightning as L
import torch
from backbones import Backbone
from config import OptimizerSettings, ViewSettings
from crops import device_crop, worker_crop
from data import Source
from frozen import GeneratorsEncoder
from lightning.pytorch.callbacks import ModelCheckpoint
from loading import EpochBatches, MemoryImages, mix_seed, read_labels, read_or_next, set_seed, train_loader, whole_loader
from optimizers import build_optimizer, build_schedule, parameter_groups
from saving import WholeFiles
from shared import is_finite
from slurm import environments
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2


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


def linear_probe(
    backbone: Backbone | GeneratorsEncoder, train: Dataset[Any], test: Dataset[Any], classes: int, options: ProbeOptions,
    resume: tuple[Path, str] | None = None,
) -> tuple[float, int]:  # fmt: skip
    """Train the linear layer; return its accuracy after the last epoch and the number of test images.

    `resume` is as in `fit_linear`.
    """
    module, trainer = fit_linear(backbone, train, classes, options, resume)
    share = _share(test, trainer.global_rank, trainer.world_size)
    result = trainer.test(module, whole_loader(share, 500, options.workers), verbose=False)[0]
    return result["accuracy"], len(test)  # type: ignore[arg-type]


def fit_linear(
    backbone: Backbone | GeneratorsEncoder, train: Dataset[Any], classes: int, options: ProbeOptions,
    resume: tuple[Path, str] | None = None,
) -> tuple[LinearProbe, L.Trainer]:  # fmt: skip
    """Train the linear layer; return it with its trainer.

    `resume` is a folder, in which every epoch is saved, and a hash of the training images: an interrupted probe with the same
    backbone, options and images resumes there.

    Raises:
        SystemExit: if its weights are NaN or infinite in the end.
    """
    folder, images = resume or (None, "")
    L.seed_everything(options.seed, verbose=False)
    checkpoint = [] if folder is None else [ModelCheckpoint(folder, "last", every_n_epochs=1, enable_version_counter=False)]
    trainer = L.Trainer(
        accelerator=options.accelerator, devices=options.devices, strategy="ddp" if options.devices > 1 else "auto",
        precision=options.precision, max_epochs=options.epochs, use_distributed_sampler=False, logger=False,  # type: ignore[arg-type]
        enable_model_summary=False, enable_progress_bar=False, num_sanity_val_steps=0, limit_val_batches=0,
        enable_checkpointing=folder is not None, callbacks=checkpoint, plugins=[WholeFiles(), *environments()],  # type: ignore[arg-type]
        # Never the current folder: Lightning loads any checkpoint there that its handler for SLURM has saved.
        default_root_dir=folder or Path(tempfile.gettempdir(), "no-such-probe"),
    )  # fmt: skip
    # Of few images a batch has fewer, and the learning rate follows it.
    options = replace(options, batch_size=min(options.batch_size, len(train) // trainer.world_size))  # type: ignore[arg-type]
    module = LinearProbe(backbone, classes, options, "" if folder is None else _identity(backbone, options, images))
    places = trainer.global_rank, trainer.world_size
    batches = EpochBatches(len(train), options.batch_size, options.seed, lambda: module.batches_done, *places)  # type: ignore[arg-type]
    last = None if folder is None else folder / "last.ckpt"
    again = last is not None and zipfile.is_zipfile(last) and torch.load(last, weights_only=True)["identity"] == module.identity
    trainer.fit(module, train_loader(train, batches, options.workers), ckpt_path=last if again else None, weights_only=True)
    if not is_finite(module):
        raise SystemExit(
            "the linear probe has diverged, its weights are NaN or infinite: give evaluate.py a lower --base-lr than "
            f"{options.base_lr:g}, or another --optimizer than {options.optimizer}"
        )
    return module, trainer


class LinearProbe(L.LightningModule):
    """A linear layer on frozen features; batches hold images, or the features themselves."""

    def __init__(self, backbone: Backbone | GeneratorsEncoder, classes: int, options: ProbeOptions, identity: str = "") -> None:
        super().__init__()
        self.options, self.batches_done, self.identity = options, 0, identity
        self.layer = nn.Linear(backbone.width, classes)
        nn.init.normal_(self.layer.weight, std=0.01)
        nn.init.zeros_(self.layer.bias)
        self.accuracy = MulticlassAccuracy(classes, average="micro", validate_args=False)
        crop = [device_crop(ViewSettings(), options.image_size, "bicubic")] if options.in_memory else []
        # In a tuple, so that they are neither trained nor saved.
        self._frozen = (backbone, nn.Sequential(*crop, K.RandomHorizontalFlip()))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(batches_done=self.batches_done, identity=self.identity)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_done = checkpoint["batches_done"]

    def on_fit_start(self) -> None:
        for module in self._frozen:
            module.to(self.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        set_seed(mix_seed(self.options.seed, self.batches_done, self.global_rank), self.device)
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
    """Random resized crops of images that are read again in every epoch; the device flips them."""

    def __init__(self, source: Source, rows: Tensor, size: int, seed: int) -> None:
        self.source, self.rows, self.labels, self.seed = source, rows.tolist(), read_labels(source)[rows], seed
        self.transform = v2.Compose([worker_crop(ViewSettings(), size, "bicubic"), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, sample: tuple[int, int]) -> dict[str, Any]:
        place, epoch = sample
        with torch.random.fork_rng(devices=[]):
            set_seed(mix_seed(self.seed, epoch, place))
            image, at = read_or_next(self.source, self.rows, place)
            return {"images": self.transform(image), "labels": self.labels[at], "rows": at}


def _identity(backbone: nn.Module, options: ProbeOptions, images: str) -> str:
    """Return a hash of what the linear layer depends on: weights, images, and all options but those of the machine."""
    found = hashlib.sha256(json.dumps([images, asdict(replace(options, workers=0, accelerator="", k=0, temperature=0.0))]).encode())
    for tensor in backbone.state_dict().values():
        found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _share(images: Dataset[Any], rank: int, world: int) -> Dataset[Any]:
    """Return every `world`-th of the images, so that each is counted once."""
    if isinstance(images, MemoryImages):
        return type(images)(images.images[rank::world], images.labels[rank::world])
    return torch.utils.data.Subset(images, range(rank, len(images), world))  # type: ignore[arg-type]
