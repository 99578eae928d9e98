"""Pretrain a backbone on unlabelled images, with or without generated views.

    python examples/ssl/train.py --config examples/ssl/configs/cifar10/simclr-icgan.yaml --out runs/simclr-icgan \
        data.train=train.parquet data.test=test.parquet generative.bank=banks/cifar10

Any setting in config.py can be given as name=value. If the run is interrupted, the same command resumes it, and its loss curve is
the same as that of an uninterrupted run. OUT/last.ckpt is the checkpoint for evaluate.py, segment.py and similarity.py;
OUT/tensorboard holds the curves. Labels are used by the probes alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from accelerators import refuse_absent_devices
from config import Settings, load_settings
from contents import CONTENTS, describe_contents, hash_keys
from data import Source, open_images, refuse_missing, refuse_other_classes, refuse_unlabelled, spaced
from diverged import refuse_diverged
from generative import (
    bank_augment,
    choose_variants,
    count_without_variants,
    describe_generator,
    describe_variants,
    load_online,
    open_bank,
    p_at,
    warn_of_strangers,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from loading import (
    EpochBatches,
    FileViews,
    MemoryImages,
    WholeImages,
    load_into_memory,
    refuse_large_batch,
    train_loader,
    training_rows,
    warn_of_lost_classes,
    whole_loader,
)
from methods import METHODS
from pretraining import Bar
from probes import OnlineProbe
from quiet import hush
from saving import WholeFiles
from shared import flatten, read_record, refuse_another_run, settle_precision, write_record
from slurm import environments, requeue_at_signal
from torch import Tensor
from torch.utils.data import Dataset
from trained import has_begun, is_trained

import gentransforms as gt

# Settings that may change when a run is resumed.
FREE = (
    "data.train", "data.test", "data.workers", "generative.scores", "trainer.accelerator", "trainer.compile", "trainer.log_every",
    "trainer.checkpoint_every",
)  # fmt: skip
# And what may change once it has been trained: what was tried on held-out images is then measured on test images.
FREE_WHEN_TRAINED = (*FREE, "data.test_on_holdout")
# What a run records beside its settings.
RECORDED = ("keys_sha256", *CONTENTS, "bank_sha256", "bank_generator", "variants_sha256", "generator_fingerprint")
# What runs of earlier versions did not record.
LATER = (*CONTENTS, "generator_fingerprint")


def train(settings: Settings, out: Path, callbacks: Sequence[L.Callback] = (), quiet: bool = False) -> dict[str, Any]:
    """Start or resume a run in `out`; return the contents of ``out/training.json``."""
    requeue_at_signal()
    data, t = settings.data, settings.trainer
    for name in (data.train, data.test if data.test and not data.test_on_holdout else data.train):
        refuse_missing(name)
    refuse_absent_devices(t.accelerator, t.devices)
    source = open_images(data.train, data.image_column, data.label_column)
    refuse_unlabelled(source, data.test, data.test_on_holdout)
    refuse_large_batch(len(training_rows(source, settings)[0]), t.batch_size, t.devices * t.nodes, data.holdout)
    settings = settle(settings, out)
    trainer = build_trainer(settings, out, callbacks, quiet)
    warn_of_lost_classes(source, settings)
    dataset, generative, keys = training_data(source, settings)
    batches = EpochBatches(
        len(keys), settings.trainer.batch_size, settings.seed, lambda: module.batches_done, trainer.global_rank, trainer.world_size
    )
    augment = generative if generative is not None else getattr(dataset, "augment", None)
    variants = describe_variants(augment.banks[0], settings.generative) if isinstance(augment, gt.BankAugment) else {}
    if isinstance(augment, gt.GenerativeAugment):
        variants = describe_generator(augment.generator)
    open_run(out, settings, keys, describe_contents(source, training_rows(source, settings)[0]) | variants)
    L.seed_everything(settings.seed, verbose=False)
    classes = len(source.classes) if source.labels is not None else 0
    module = METHODS[settings.method.name](settings, classes, generative)
    if settings.trainer.compile:
        module.backbone.compile()
    probe_loaders = probe_data(source, settings, trainer, dataset) if classes else []
    if probe_loaders:
        trainer.callbacks.append(OnlineProbe(settings.probe, classes))  # type: ignore[attr-defined]
    last = out / "last.ckpt"
    if last.exists() and not zipfile.is_zipfile(last):  # torch writes zip files, whose directory is at the end
        raise SystemExit(f"{last} is truncated: copy it again, or delete it to start the run from the beginning")
    trainer.fit(
        module, train_loader(dataset, batches, settings.data.workers), probe_loaders or None,
        ckpt_path=last if last.exists() else None, weights_only=True,
    )  # fmt: skip
    refuse_diverged(module, last)
    trainer.save_checkpoint(last, weights_only=False)
    clock = next(c for c in trainer.callbacks if isinstance(c, Clock))  # type: ignore[attr-defined]
    record = {
        "images": len(keys), "epochs": settings.trainer.epochs, "steps": trainer.global_step, "seconds": round(clock.seconds, 1),
        "images_per_second": round(module.batches_done * settings.trainer.batch_size * trainer.world_size / max(clock.seconds, 1e-9), 1),
    }  # fmt: skip
    if "variants_sha256" in variants:
        record["images_without_variants"] = count_without_variants(augment.banks[0], keys, settings.generative)
    if trainer.is_global_zero:
        (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def training_data(source: Source, settings: Settings) -> tuple[Dataset[Any], gt.GenerativeAugment | gt.BankAugment | None, list[Any]]:
    """Return the training images, the source of generated ones on the device, and the images' keys."""
    g, data = settings.generative, settings.data
    rows, _ = training_rows(source, settings)
    if data.in_memory:
        dataset, rows = load_into_memory(source, rows, data.image_size)
        keys = [source.keys[row] for row in rows.tolist()]
        if g.source == "bank":
            bank, some = open_bank(settings, keys), spaced(len(keys), 256)
            warn_of_strangers(bank, [keys[i] for i in some.tolist()], dataset.images[some])
            bank, options = choose_variants(bank, g)
            return dataset, bank_augment(bank, keys, settings.trainer.devices, **options), keys
        if g.source != "online":
            return dataset, None, keys
        generator = load_online(g)
        if (side := max(generator.image_size)) > data.image_size:
            rank_zero_only(print)(
                f"data.in_memory=true: the generator of {side} pixels sees the images in data.image_size={data.image_size}; with "
                "data.in_memory=false it sees the original ones, as for a bank", flush=True,
            )  # fmt: skip
        return dataset, gt.GenerativeAugment(generator), keys
    keys = [source.keys[row] for row in rows.tolist()]
    online = gt.GenerativeAugment(load_online(g), output_size="generator") if g.source == "online" else None
    augment = None
    if g.source == "bank":
        bank, some = open_bank(settings, keys), spaced(len(keys), 64)
        seen, read = load_into_memory(source, rows[some], 64)
        warn_of_strangers(bank, [source.keys[row] for row in read.tolist()], seen.images)
        bank, options = choose_variants(bank, g)
        augment = gt.BankAugment(bank, keys_getter="last", output_size="native", **options)
    # Images for the generator come in its own size, so that they can be batched; the view is cropped on the device.
    size = None if online is None else max(online.generator.image_size)
    return FileViews(source, rows, settings, augment, partial(p_at, g, settings.trainer.epochs), size), online, keys


def probe_data(source: Source, settings: Settings, trainer: L.Trainer, train: Dataset[Any]) -> list[Any]:
    """Return the loaders of the probes: training images as neighbours, and the test images (or the held-out ones)."""
    data = settings.data
    rows, held = training_rows(source, settings)
    if data.test_on_holdout:
        test, test_rows = source, held
    elif data.test is None:
        return []
    else:
        test = open_images(data.test, data.image_column, data.label_column)
        test_rows = torch.arange(len(test))
    refuse_other_classes(source, test)
    size = 500 if data.in_memory else 128
    # Each device takes its share; the shares of neighbours are equal, so that they can be gathered.
    rank, world = trainer.global_rank, trainer.world_size
    places = spaced(len(train), settings.probe.images)  # type: ignore[arg-type]
    places = places[: len(places) // world * world][rank::world]
    if isinstance(train, MemoryImages):
        neighbours: Dataset[Any] = MemoryImages(train.images[places], train.labels[places])
    else:
        neighbours = WholeImages(source, rows[places], data.image_size)
    return [whole_loader(images, size, data.workers) for images in (neighbours, whole_images(test, test_rows[rank::world], settings))]


def whole_images(source: Source, rows: Tensor, settings: Settings) -> Dataset[Any]:
    """Return unaugmented images for the probes."""
    size = settings.data.image_size
    return load_into_memory(source, rows, size)[0] if settings.data.in_memory else WholeImages(source, rows, size)


def build_trainer(settings: Settings, out: Path, callbacks: Sequence[L.Callback], quiet: bool) -> L.Trainer:
    """Return Lightning's trainer. Under SLURM it takes ranks and nodes from srun, which starts one process per device."""
    t = settings.trainer
    many = t.devices * t.nodes > 1
    # The bar shows numbers of the device; at every step it would wait for them.
    bar = [] if quiet else [Bar(refresh_rate=t.log_every)]
    return L.Trainer(
        accelerator=t.accelerator, devices=t.devices, num_nodes=t.nodes, strategy="ddp" if many else "auto", precision=t.precision,  # type: ignore[arg-type]
        max_epochs=t.epochs, accumulate_grad_batches=t.accumulate, sync_batchnorm=t.sync_batchnorm and many, use_distributed_sampler=False,
        check_val_every_n_epoch=settings.probe.every, num_sanity_val_steps=0, log_every_n_steps=t.log_every,
        logger=TensorBoardLogger(out, name="tensorboard", version=""),
        callbacks=[Clock(), Checkpoints(out / "last.ckpt", t.checkpoint_every), *bar, *callbacks], enable_checkpointing=False,
        enable_progress_bar=not quiet, enable_model_summary=False,
        plugins=[WholeFiles(), *environments()],
        default_root_dir=out,  # not the current folder: Lightning loads any checkpoint there that its handler for SLURM has saved
    )  # fmt: skip


class Checkpoints(L.Callback):
    """Saves ``last.ckpt`` every so many optimiser steps, before the next batch; exits if the training has diverged.

    Between two batches Lightning's counters are exact, so that a resumed run continues with the right batch, and probes where
    an uninterrupted one would. Between accumulated batches nothing is saved: the gradients of the first would be missing.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every, self.saved = path, every, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved = trainer.global_step  # a resumed run has this one already

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step > self.saved and trainer.global_step % self.every == 0:
            refuse_diverged(pl_module, self.path)
            trainer.save_checkpoint(self.path, weights_only=False)
            self.saved = trainer.global_step


class Clock(L.Callback):
    """Counts the seconds of training, including those before a resume."""

    def __init__(self) -> None:
        self.before, self.began = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self.before + time.perf_counter() - self.began

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = state_dict["seconds"]


def settle(settings: Settings, out: Path) -> Settings:
    """Return the settings with the precision that ``auto`` stands for: the one that the run in `out` began with, if it has begun."""
    t = settings.trainer
    accelerated = t.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    recorded = read_record(out).get("trainer.precision") if has_begun(out) else None
    names = {"bfloat16": "bf16-mixed", "float32": "32-true"}
    precision, said = settle_precision(t.precision, recorded, "cuda" if accelerated else "cpu", names, timed=t.devices * t.nodes == 1)
    rank_zero_only(print)(said, flush=True)
    if (warmup := settings.optimizer.warmup_epochs) >= t.epochs:
        rank_zero_only(print)(
            f"optimizer.warmup_epochs={warmup} and trainer.epochs={t.epochs}: the learning rate rises to the end and never falls; "
            "unless this is only a trial, give fewer epochs of warm-up", flush=True,
        )  # fmt: skip
    return replace(settings, trainer=replace(t, precision=precision))


def open_run(out: Path, settings: Settings, keys: Sequence[Any], facts: Mapping[str, str]) -> None:
    """Write ``settings.yaml``, with a hash of the images' keys, and `facts` about images and variants; exit if they are another run's."""
    record = flatten(settings) | {"keys_sha256": hash_keys(keys), **facts}
    if has_begun(out):
        refuse_another_run(out, record, FREE_WHEN_TRAINED if is_trained(out) else FREE, LATER)
        other_curves = read_record(out).get("data.test_on_holdout") != settings.data.test_on_holdout
    else:  # it starts from the beginning, perhaps with other settings, and its curves do so too
        other_curves = True
    if other_curves and rank_zero_only.rank == 0:
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
    write_record(out, record)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of settings")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and curves")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings, for example trainer.epochs=5")
    args = parser.parse_args()
    hush()
    record = train(load_settings(args.config, args.overrides), args.out)
    print(f"{record['steps']} steps in {record['seconds']} s; wrote {args.out / 'last.ckpt'}")


if __name__ == "__main__":
    main()
