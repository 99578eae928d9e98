"""Seconds per step of SimCLR: this recipe compared with lightly's own loop, and the cost of a bank or an online generator.

    python examples/ssl/speed.py --data train.parquet --backbone small --out speed.json
    python examples/ssl/speed.py --data train.parquet --backbone resnet18 --batch-size 128 --steps 5 --out speed.json
    OMP_NUM_THREADS=1 python examples/ssl/speed.py --data train.parquet --batch-size 4 --steps 60 --device cpu --arms baseline \
        --out speed.json backbone.widths=[8,16,32] method.hidden=16 method.out=8 optimizer.name=lars trainer.precision=32-true

The last one shows what the host does in a step: the arithmetic of such a network is next to nothing. The report has the seconds on
the clock, and those that the process's threads computed, which other load on the machine disturbs less.

Everything runs on one device in one process. Each figure is the median over steps, after two warm-up steps; the arms take turns,
so that other load on the machine affects them equally. lightly's loop is the one from its documentation: SimCLRTransform on PIL
images in a loader, with the same backbone, projector, loss, optimiser and precision.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from accelerators import refuse_absent_devices
from arguments import positive
from backbones import build_backbone
from config import Settings, load_settings
from data import open_images
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from make_bank import make_bank
from optimizers import build_optimizer, learning_rate, parameter_groups
from quiet import hush
from torch.utils.data import DataLoader, Dataset
from train import settle, train

WARMUP = 2


class Stopwatch(L.Callback):
    """Records the time at the end of each batch, so that loading is included."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append((time.perf_counter(), time.process_time()))

    @property
    def seconds(self) -> list[tuple[float, float]]:
        """Of each step after the warm-up: on the clock, and computed by the process's threads."""
        pairs = zip(self.times[WARMUP - 1 :], self.times[WARMUP:], strict=False)
        return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs]


def ours(settings: Settings) -> list[tuple[float, float]]:
    """Return seconds per step of train.py."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        train(settings, Path(folder) / "run", [watch], quiet=True)
    return watch.seconds


def lightlys(settings: Settings, workers: int) -> list[tuple[float, float]]:
    """Return seconds per step of lightly's loop, with as many steps."""
    t, size = settings.trainer, settings.data.image_size
    device = torch.device("cuda" if torch.cuda.is_available() and t.accelerator != "cpu" else "cpu")
    dataset = Transformed(settings, SimCLRTransform(input_size=size, gaussian_blur=0.0))
    loader = DataLoader(dataset, t.batch_size, shuffle=True, drop_last=True, num_workers=workers)
    backbone = build_backbone(settings.backbone).to(device)
    m: Any = settings.method
    projector = SimCLRProjectionHead(backbone.width, m.hidden, m.out, batch_norm=False).to(device)
    criterion = NTXentLoss(m.temperature)
    optimizer = build_optimizer(
        parameter_groups([backbone, projector], settings.optimizer), settings.optimizer, learning_rate(settings.optimizer, t)
    )
    watch = Stopwatch()
    for (x1, x2), _ in loader:
        with torch.autocast(device.type, torch.bfloat16, enabled=t.precision == "bf16-mixed"):
            z1, z2 = (projector(backbone(x.to(device))) for x in (x1, x2))
        loss = criterion(z1.float(), z2.float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        watch.on_train_batch_end()
    return watch.seconds


class Transformed(Dataset[Any]):
    """PIL images in memory, each through lightly's transform."""

    def __init__(self, settings: Settings, transform: Any) -> None:
        source = open_images(settings.data.train)
        self.images = [source.read(row) for row in range(min(len(source), settings.data.limit or len(source)))]
        # lightly normalises in its transform, our backbones normalise by themselves.
        transform.transforms = [_without_normalisation(view) for view in transform.transforms]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.transform(self.images[i]), i


def _without_normalisation(view: Any) -> Any:
    inner = getattr(view, "transform", view)
    inner.transforms = [step for step in inner.transforms if type(step).__name__ != "Normalize"]
    return view


def measure(
    data: str,
    backbone: str,
    batch_size: int,
    steps: int,
    rounds: int,
    workers: int,
    device: str,
    only: list[str] | None,
    overrides: list[str],
) -> dict[str, Any]:
    """Return the median seconds per step of every arm, with their ratios, or of some."""
    config = Path(__file__).parent / "configs" / "cifar10-small" / "simclr-baseline.yaml"
    count = batch_size * (steps + WARMUP)
    common = [
        f"data.train={data}", "data.test=null", f"data.limit={count}", "data.holdout=0", f"trainer.batch_size={batch_size}",
        "trainer.epochs=1", f"trainer.accelerator={device}", f"backbone.name={backbone}", "backbone.stem=cifar",
        "optimizer.warmup_epochs=0", *overrides,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        precision = settle(load_settings(config, common), Path(folder)).trainer.precision
        common.append(f"trainer.precision={precision}")
        bank = [f"generative.bank={folder}/bank", "generative.source=bank"]
        if only is None or "bank" in only:
            make_bank(load_settings(config, [*common, *bank]), "icgan-cifar10-32", variants=2, progress=False)
        arms = {
            "baseline": lambda: ours(load_settings(config, common)),
            "bank": lambda: ours(load_settings(config, [*common, *bank])),
            "online": lambda: ours(load_settings(config, [*common, "generative.source=online", "generative.generator=icgan-cifar10-32"])),
            "lightly": lambda: lightlys(load_settings(config, common), 0),
            f"lightly, {workers} workers": lambda: lightlys(load_settings(config, common), workers),
        }
        arms = {name: run for name, run in arms.items() if only is None or name in only}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
        for _ in range(rounds):
            for name, run in arms.items():
                times[name] += run()
    seconds, computed = ({name: statistics.median(t[i] for t in values) for name, values in times.items()} for i in (0, 1))
    found: dict[str, Any] = {"precision": precision}
    for name, values in (("seconds per step", seconds), ("processor seconds per step", computed)):
        found[name] = {arm: round(value, 4) for arm, value in values.items()}
    if only is None:
        best = min(value for name, value in seconds.items() if name.startswith("lightly"))
        ratios = {
            "lightly over ours (aim: 1 or more)": best / seconds["baseline"],
            "bank over baseline (aim: 1.05 or less)": seconds["bank"] / seconds["baseline"],
            "online over baseline (aim: 2 or less)": seconds["online"] / seconds["baseline"],
        }
        found["ratios"] = {name: round(value, 3) for name, value in ratios.items()}
    return found


def main() -> None:
    """Parse the command line, measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images of 32 pixels, as data.train of the settings")
    parser.add_argument("--backbone", choices=["small", "resnet18"], default="small")
    parser.add_argument("--batch-size", type=positive, default=256)
    parser.add_argument("--steps", type=positive, default=10, help="timed steps in every round")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of lightly's loader; it is also measured without workers")
    parser.add_argument("--device", default="auto", help="cpu or gpu")
    parser.add_argument("--arms", nargs="+", choices=["baseline", "bank", "online"], help="only these, without ratios")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the report")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings, for example optimizer.name=lars")
    args = parser.parse_args()
    hush()
    refuse_absent_devices(args.device, option="--device ")
    found = measure(
        args.data, args.backbone, args.batch_size, args.steps, args.rounds, args.workers, args.device, args.arms, args.overrides
    )  # fmt: skip
    found |= {"backbone": args.backbone, "batch_size": args.batch_size, "threads": torch.get_num_threads()}
    args.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
