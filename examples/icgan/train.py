"""Train an IC-GAN on your own images, without labels: first an encoder (SimCLR), then the generator.

    python examples/icgan/train.py --data photos/ --out runs/photos
    python examples/icgan/train.py --config examples/icgan/cifar10.yaml --data train.parquet --out runs/cifar10

Any setting in settings.py can be given as name=value: generator.steps=500 device=cpu. If the run is interrupted, the same
command resumes it where it stopped. The result, OUT/pretrained, loads with gentransforms.ICGAN.from_pretrained.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from divergence import read_mark, remedies
from encoder import train_encoder
from images import load_images
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from settings import Settings, load_settings
from shared import (
    flatten,
    name_changes,
    read_record,
    refuse_another_run,
    refuse_unwritable,
    settle_device,
    settle_precision,
    write_record,
)  # fmt: skip
from torch import Tensor

import gentransforms as gt
from gentransforms.generators.card import model_card
from gentransforms.generators.destination import check_folder
from gentransforms.hub.models import WEIGHTS_FILE
from gentransforms.testing import FakeGenerator

# Settings that may change when a run is resumed.
FREE = {
    "device", "compile", "checkpoint_every", "sample_every", "log_every", "generator.steps", "encoder.seconds", "generator.seconds",
    "generator.truncation",
}  # fmt: skip


def read_begun(out: Path) -> dict[str, Any]:
    """Return the settings of the run in `out`, empty before its first checkpoint: till then there is nothing to continue."""
    return read_record(out) if any((out / name).exists() for name in ("encoder.pt", "generator.pt")) else {}


def open_run(out: Path, settings: Settings, images: Tensor) -> None:
    """Write ``settings.yaml``, with a hash of the images; exit if the folder holds a run of other settings or images.

    A run that ended before its first checkpoint starts again, perhaps with other settings, and so do its curves. One that diverged may
    go on with lower learning rates or in float32, and ``after_divergence`` says from where.
    """
    record = flatten(settings) | {"images_sha256": hashlib.sha256(images.numpy().tobytes()).hexdigest()}
    if settings.limit is not None and not takes_the_first(out):
        record["limit_takes"] = "evenly spaced images"
    if before := read_begun(out):
        record |= {name: before[name] for name in ("after_divergence",) if name in before}
        may_change = FREE | remedies(out)
        begins = not (out / "generator.pt").exists() and not (out / "pretrained").exists()
        if begins:  # the encoder does not depend on them
            may_change |= {name for name in record if name.startswith("generator.")}
        refuse_another_run(out, record, may_change)
        changed = sorted(name for name in may_change - FREE if before.get(name) != record[name])
        if begins and any(name.startswith("generator.") for name in changed):
            for folder in ("snapshots", "samples", "tensorboard/generator"):
                if (out / folder).exists():
                    print(f"{out / folder}, of the generator with the former settings, is removed: it begins again", flush=True)
                    shutil.rmtree(out / folder)
        if changed and (mark := read_mark(out)):
            said = f"{mark['stage']} from step {mark['step']}: {', '.join(name_changes(changed, before, record))}"
            record["after_divergence"] = [*record.get("after_divergence", []), said]
    elif (out / "settings.yaml").exists():
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
    write_record(out, record)


def takes_the_first(out: Path) -> bool:
    """Return whether the run in `out` was begun by an earlier version, whose `limit` took the first images: it keeps them."""
    before = read_begun(out)
    return before.get("limit") is not None and "limit_takes" not in before


def read_card(path: Path | None) -> dict[str, Any] | None:
    """Return the sections of the model card, None if none are given; exit if there is no such file or a section is unknown."""
    if path is None:
        return None
    try:
        card = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SystemExit(f"--card {path}: {error}") from error
    if not isinstance(card, dict) or not card:
        raise SystemExit(f"--card {path}: expected names and texts, such as title: Flowers")
    try:
        model_card(FakeGenerator(), card)  # of another generator: written to no file, it shows whether these sections make a card
    except gt.GentransformsError as error:
        raise SystemExit(f"--card {path}: {error}") from error
    return card


def check_result(folder: Path) -> None:
    """Exit if the result cannot be written into this folder in the end, because it holds files that are not of an earlier run."""
    try:
        check_folder(folder, gt.ICGAN.__name__, [WEIGHTS_FILE])
    except gt.GentransformsError as error:
        raise SystemExit(f"--out {folder.parent}: {error}") from error


def main() -> None:
    """Parse the command line and run both stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="image folder, .parquet file or torchvision:NAME:ROOT")
    parser.add_argument("--out", required=True, type=Path, help="folder for checkpoints, samples, curves and the result")
    parser.add_argument("--config", type=Path, help="YAML file of settings")
    parser.add_argument(
        "--card", type=Path, help="YAML file with sections of the model card: title, license, training_data, …; others stay"
    )
    parser.add_argument("--only", choices=["encoder", "generator"], help="stop after this stage")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings, for example generator.steps=500")
    args = parser.parse_args()
    settings = load_settings(args.config, args.overrides)
    settings.device = settle_device(settings.device, f"device={settings.device}")
    card = read_card(args.card)
    refuse_unwritable(args.out, "--out")
    check_result(args.out / "pretrained")
    images = load_images(args.data, settings.resolution, settings.limit, first=takes_the_first(args.out))
    if len(images) < 2:
        raise SystemExit(f"--data {args.data}: {len(images)} image, expected 2 or more")
    settings.precision, said = settle_precision(settings.precision, read_begun(args.out).get("precision"), settings.device)
    print(f"device: {settings.device}; {said}", flush=True)
    open_run(args.out, settings, images)
    print(f"{len(images)} images of {settings.resolution} pixels from {args.data}", flush=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns) as progress:
        encoder = train_encoder(images, settings, args.out, progress)
        if args.only == "encoder":
            return
        from adversarial import train_generator
        from results import export

        torch.manual_seed(settings.seed)
        ready = train_generator(images, encoder, settings, args.out, progress)
    export(ready, encoder, args.out / "pretrained", settings.generator.truncation, card)
    print(f"wrote {args.out / 'pretrained'}: load it with gentransforms.ICGAN.from_pretrained")


if __name__ == "__main__":
    main()
