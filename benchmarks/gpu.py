"""What only a GPU can show of IC-GAN: ``python benchmarks/gpu.py [--out results.json] [--quick]`` on a CUDA machine.

1. Batch invariance and parity with the CPU, through GenerativeAugment on the device.
2. Images per second, TFLOP/s and share of the measured matrix-product ceiling of the released 256-pixel architecture
   (G_ch 96, random weights, bfloat16, channels_last), batches 32 to 256, with and without torch.compile, against
   generation of one image at a time by the same network without rewrites, as the paper's script does.

`--device cpu --quick` runs the same code in miniature, so that the script is tested where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import gentransforms as gt
from gentransforms.generators.icgan.architecture import BigGANConfig
from gentransforms.generators.icgan.folding import fold
from gentransforms.generators.icgan.network import BigGANNetwork

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "icgan"))

IMAGENET_256 = BigGANConfig(resolution=256, G_ch=96, dim_z=120)
MINIATURE = BigGANConfig(resolution=64, G_ch=4, dim_z=20, feature_dim=32, shared_dim_feat=16)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--quick", action="store_true", help="a miniature network and few repetitions")
    args = parser.parse_args()
    device = torch.device(args.device)
    results: dict[str, Any] = {"device": _name(device), "torch": torch.__version__, "checks": check(device)}
    print(json.dumps(results["checks"], indent=2), flush=True)
    results["ceiling_tflops"] = ceiling = matrix_ceiling(device, 512 if args.quick else 8192)
    print(f"matrix-product ceiling, bfloat16: {ceiling:.1f} TFLOP/s", flush=True)
    config, batches = (MINIATURE, [2, 4]) if args.quick else (IMAGENET_256, [32, 64, 128, 256])
    results["rows"] = throughput(config, device, batches, ceiling, args.quick)
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n")
        print(f"wrote {args.out}")


def check(device: torch.device) -> dict[str, float]:
    """Return the largest differences that the contracts bound: 1e-4 between batches, and between CPU and device."""
    # Full float32 for the comparison only: the rows below run as torch does by default.
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    generator, photos = gt.load_generator("icgan-cifar10-32"), torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seeds = torch.arange(7)

    def augment(images: torch.Tensor, chosen: torch.Tensor, size: int | None = None) -> torch.Tensor:
        transform = gt.GenerativeAugment(generator, p=1.0, seeds_getter=lambda _: chosen, max_batch_size=size)
        return transform(images).cpu()  # type: ignore[no-any-return]

    reference = augment(photos, seeds)
    generator.to(device)
    moved = photos.to(device)
    batch = augment(moved, seeds)
    alone = torch.cat([augment(moved[i : i + 1], seeds[i : i + 1]) for i in range(7)])
    found = {
        "alone_vs_batch": alone - batch,
        "reversed_vs_batch": augment(moved.flip(0), seeds.flip(0)).flip(0) - batch,
        "max_batch_size_3_vs_batch": augment(moved, seeds, 3) - batch,
        "device_vs_cpu": batch - reference,
    }
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    differences = {name: difference.abs().max().item() for name, difference in found.items()}
    worst = max(differences, key=lambda name: differences[name])
    if differences[worst] > 1e-4:
        raise SystemExit(f"{worst}: {differences[worst]:.2g}, expected at most 1e-4")
    return differences


@torch.no_grad()
def throughput(config: BigGANConfig, device: torch.device, batches: list[int], ceiling: float, quick: bool) -> list[dict[str, Any]]:
    """Return a row for every way of running, the paper's first."""
    from networks import Generator

    torch.manual_seed(0)
    plain = Generator(config, merged=False).eval()
    flops = {"plain": count(plain, config)}
    folded = BigGANNetwork(config)
    folded.load_state_dict(fold(plain.state_dict(), config, torch.float32))
    flops["folded"] = count(folded, config)
    plain, folded = plain.to(device), folded.to(device, torch.bfloat16, memory_format=torch.channels_last)
    rows = [measure("one at a time, no rewrites, float32", plain, config, device, 1, flops["plain"], ceiling, quick)]
    with torch.autocast(device.type, torch.bfloat16):
        rows.append(measure("one at a time, no rewrites, bfloat16", plain, config, device, 1, flops["plain"], ceiling, quick))
    runs: list[tuple[str, Callable[..., torch.Tensor]]] = [("rewritten, bfloat16, channels_last", folded)]
    if device.type == "cuda":
        runs.append(("the same, torch.compile", torch.compile(folded, dynamic=False)))
    cases = [(name, network, batch) for name, network in runs for batch in batches]
    rows += [measure(name, network, config, device, batch, flops["folded"], ceiling, quick) for name, network, batch in cases]
    for row in rows:
        for i, kind in enumerate(("float32", "bfloat16")):
            row[f"times_one_at_a_time_{kind}"] = round(row["images_per_second"] / rows[i]["images_per_second"], 2)
        print(" | ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return rows


def measure(
    name: str, network: Callable[..., torch.Tensor], config: BigGANConfig, device: torch.device,
    batch: int, flops: float, ceiling: float, quick: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return images per second and what follows from it: the median of repetitions, each about a second long."""
    dtype = next(network.parameters()).dtype if isinstance(network, BigGANNetwork) else torch.float32
    z = torch.randn(batch, config.z_dim, device=device, dtype=dtype)
    features = torch.nn.functional.normalize(torch.randn(batch, config.feature_dim, device=device, dtype=dtype))
    seconds = median_seconds(lambda: network(z, features), device, 0.05 if quick else 1.0)
    rate = batch / seconds
    tflops = rate * flops / 1e12
    figures = {"images_per_second": round(rate, 2), "tflops": round(tflops, 3), "share_of_ceiling": round(tflops / ceiling, 3)}
    return {"what": name, "batch": batch, **figures}


def median_seconds(run: Callable[[], Any], device: torch.device, duration: float, repetitions: int = 5) -> float:
    """Return the median over repetitions of the seconds a call takes, after two calls to warm up.

    Args:
        run: the call.
        device: waited for before the clock is read.
        duration: seconds of a repetition, which is at least one call.
        repetitions: of a call that takes longer than `duration`, three at most.
    """
    run()
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    once = time.perf_counter() - start
    calls = max(1, int(duration / max(once, 1e-6)))
    times = []
    for _ in range(repetitions if once < duration else min(3, repetitions)):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        _wait(device)
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


def matrix_ceiling(device: torch.device, size: int) -> float:
    """Return the TFLOP/s of a large bfloat16 matrix product: what the hardware gives to dense work."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / median_seconds(lambda: a @ a, device, 0.3) / 1e12


def count(network: torch.nn.Module, config: BigGANConfig) -> int:
    """Return the operations of one image (a multiply-add counts 2)."""
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, config.z_dim, device=device), torch.zeros(1, config.feature_dim, device=device))
    return counter.get_total_flops()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


if __name__ == "__main__":
    main()
