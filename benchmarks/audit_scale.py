"""The cost of an audit once its features are there: ``python -m benchmarks.audit_scale``.

A bank of 10 variants of 10,000 sources, 384 features, 10 classes and 10,000 held-out images, filled by a process of its own. What the
audit takes after encoding is printed, and the peak of its memory, beside the load of the machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gentransforms as gt
from gentransforms.audit import run
from gentransforms.seeding import sample_noise

SIDE, CLASSES = 8, 10


class Photos:
    """Images of noise around the colour of their class, with labels."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        rng = torch.Generator().manual_seed(self.seed * 10_000_000 + i)
        colour = torch.tensor([i % CLASSES, i * 3 % CLASSES, i * 7 % CLASSES]).view(3, 1, 1) / CLASSES
        image = 0.5 * colour + 0.5 * torch.rand(3, SIDE, SIDE, generator=rng)
        return (255 * image).to(torch.uint8), i % CLASSES


class NoisyForScale(gt.ImageGenerator):
    """The source with noise."""

    image_size, preserves_geometry = (SIDE, SIDE), False

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        return {"images": images}

    def sample(self, condition: Any, seeds: Tensor) -> Tensor:
        return (condition["images"] + 0.15 * sample_noise(seeds, (3, SIDE, SIDE))).clamp(0, 1)


class RandomFeatures(nn.Module):
    """As many features as DINOv2-small has, of full rank."""

    def __init__(self, width: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.register_buffer("weights", torch.randn(3 * SIDE * SIDE, width, generator=rng) / 4)

    def forward(self, images: Tensor) -> Tensor:
        return torch.sin((images.flatten(1) - 0.5) @ self.weights)


def main() -> None:
    """Fill a bank and its features, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, default=10_000)
    parser.add_argument("--variants", type=int, default=10)
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--holdout", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="keep the bank and the features here")
    parser.add_argument("--step", choices=["fill", "measure"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step is None:
        with tempfile.TemporaryDirectory() as folder:
            given = [] if args.folder else ["--folder", folder]
            for step in ("fill", "measure"):
                subprocess.run([sys.executable, "-m", "benchmarks.audit_scale", *sys.argv[1:], *given, "--step", step], check=True)
        return
    bank = args.folder / "bank"
    if args.step == "fill":
        gt.generate_bank(Photos(args.sources), bank, NoisyForScale(), variants=args.variants, image_format="png", progress=False)
        return
    base, load = _peak(), os.getloadavg()[0]
    seconds: dict[str, float] = {}
    run.analyse = _timed(run.analyse, seconds)
    gt.audit_bank(
        bank, Photos(args.sources), encoder=RandomFeatures(args.features), labels="labels", holdout=Photos(args.holdout, seed=1),
        progress=False,
    )  # fmt: skip
    features = (args.sources * (1 + args.variants) + args.holdout) * args.features * 4 / 2**20
    print(
        f"{args.sources:,} sources x {args.variants} variants, {args.features} features, {torch.get_num_threads()} threads: "
        f"{seconds['processor']:.0f} s of processor time, {seconds['clock']:.0f} s by the clock at a load of {load:.1f} to "
        f"{os.getloadavg()[0]:.1f}; peak {_peak():,.0f} MiB, of which {base:,.0f} before and {features:,.0f} of features: "
        f"{_peak() - features:,.0f} above the features"
    )


def _timed(function: Callable[..., Any], seconds: dict[str, float]) -> Callable[..., Any]:
    """Return a function that notes what it takes: all that follows once the features are there."""

    def timed(*args: Any) -> Any:
        begun, processor = time.perf_counter(), time.process_time()
        found = function(*args)
        seconds.update(clock=time.perf_counter() - begun, processor=time.process_time() - processor)
        return found

    return timed


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
