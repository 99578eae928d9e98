"""A bank of CIFAR-10, killed twice on the way, resumed, verified and read: ``python -m benchmarks.bank_run --data TRAIN.parquet``.

The bundled generator makes 10 variants of each of the first images. Every step is a command that a user would type; each
is printed before it runs. The kills are SIGKILL, after a third and after two thirds of the units.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import gentransforms as gt
from gentransforms.sources import open_source


def main() -> None:
    """Run all steps and print what they show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Parquet file of images")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bank"), help="folder for the subset, the bank and a second, uninterrupted one"
    )
    parser.add_argument("--images", type=int, default=5000, help="how many images of the file, from its beginning")
    parser.add_argument("--twice", action="store_true", help="make the bank a second time without kills, and compare the bytes")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    source = args.out / "source.parquet"
    pq.write_table(pq.read_table(args.data).slice(0, args.images), source, row_group_size=500)
    bank = args.out / "bank"
    units = -(-args.images // 100)
    command = ["gentransforms", "generate", str(source), str(bank), "--variants", "10"]
    show([*command, "--plan"])
    for share in (1 / 3, 2 / 3):
        kill_at(command, bank, int(units * share))
    show([*command, "--summary", str(args.out / "summary.json")])
    show(["gentransforms", "bank", "verify", str(bank)])
    show(["gentransforms", "bank", "info", str(bank)])
    read(source, bank)
    print(f"units: {len(list(bank.glob('*.arrow')))}, SHA-256 of all of them: {digest(bank)}")
    if args.twice:
        show([*command[:3], str(args.out / "uninterrupted"), *command[4:]])
        print(f"the bytes of an uninterrupted run are the same: {digest(bank) == digest(args.out / 'uninterrupted')}")


def show(command: list[str]) -> None:
    """Print a command, then run it."""
    print("$", shlex.join(command), flush=True)
    begun = time.perf_counter()
    subprocess.run([str(Path(sys.executable).with_name(command[0])), *command[1:]], check=True)
    print(f"({time.perf_counter() - begun:.1f} s)\n", flush=True)


def kill_at(command: list[str], bank: Path, units: int) -> None:
    """Run a command until that many units are there; then kill it."""
    print("$", shlex.join(command), f"# killed at {units} units", flush=True)
    process = subprocess.Popen([str(Path(sys.executable).with_name(command[0])), *command[1:]])
    while process.poll() is None and len(list(bank.glob("*.arrow"))) < units:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    print(
        f"(exit {process.wait()}, {len(list(bank.glob('*.arrow')))} units, {len(list(bank.glob('.*.partial')))} partial files)\n",
        flush=True,
    )


def read(source: Path, bank: Path) -> None:
    """Read the bank in a loop, as training would: real and generated view of each image."""
    opened = gt.Bank.open(bank)
    rows = open_source(source)
    images: Any = [(sample.image, i) for i, sample in enumerate(rows.read_range(0, len(rows)))]
    crop = v2.Compose([v2.RandomResizedCrop(32, scale=(0.2, 1.0), antialias=True), v2.RandomHorizontalFlip()])
    views = gt.TwoViews(gt.BankAugment(opened, p=1.0), crop, crop)
    torch.manual_seed(0)
    loader = DataLoader(gt.with_keys(images, transform=views), batch_size=256, shuffle=True, num_workers=2)
    begun, count = time.perf_counter(), 0
    for real, generated in loader:
        assert real[0].shape == generated[0].shape
        count += len(real[0])
    seconds = time.perf_counter() - begun
    print(
        json.dumps(
            {"keys": len(opened.keys), "rows": len(opened), "pairs read by a DataLoader": count, "pairs per second": round(count / seconds)}
        )
    )


def digest(bank: Path) -> str:
    """Return the SHA-256 of the units of a bank, one after the other."""
    found = hashlib.sha256()
    for unit in sorted(bank.glob("*.arrow")):
        found.update(unit.read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
