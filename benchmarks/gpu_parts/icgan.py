"""Part 2: IC-GAN 256 with random weights: images per second, TFLOP/s and share of the measured matrix ceiling.

Aims on an H100: 3,000 images per second, 40% of the ceiling, 100 times the paper's way. If one is missed, a profile says why.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu
from benchmarks.gpu_parts.context import Context, profile, run
from gentransforms.generators.icgan.architecture import BigGANConfig
from gentransforms.generators.icgan.folding import fold
from gentransforms.generators.icgan.network import BigGANNetwork

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "icgan"))

AIMS = {"images_per_second": 3000.0, "share_of_ceiling": 0.4, "times_the_papers_way": 100.0}
COMPILING = 25.0  # seconds that have to be left for torch.compile


@torch.no_grad()
def main(context: Context) -> None:
    """Measure the paper's way, the batches, and at the best of them a CUDA graph and, if there is time, a compiled network."""
    device, quick = context.device, context.quick
    config, batches = (gpu.MINIATURE, [2, 4]) if quick else (gpu.IMAGENET_256, [32, 128, 256])
    ceiling = gpu.matrix_ceiling(device, 512 if quick else 8192)
    context.write(ceiling_tflops=round(ceiling, 1))
    plain, network = build(config, device)
    flops = {"plain": gpu.count(plain, config), "folded": gpu.count(network, config)}
    network = network.to(torch.bfloat16, memory_format=torch.channels_last)
    rows: list[dict[str, Any]] = []

    def add(name: str, call: Callable[[Tensor, Tensor], Any], batch: int, dtype: torch.dtype, kind: str) -> None:
        seconds = gpu.median_seconds(bound(call, config, batch, device, dtype), device, 0.05 if quick else 0.4)
        rows.append(row(name, batch, seconds, flops[kind], ceiling))
        for one in rows:
            one["times_the_papers_way"] = round(one["images_per_second"] / rows[0]["images_per_second"], 1)
        best = max(rows, key=lambda one: one["images_per_second"])
        context.write(rows=rows, summary={name: best[name] for name in ("what", "batch", *AIMS)})
        print(rows[-1], flush=True)

    add("the paper's way: one at a time, no rewrites, float32", plain, 1, torch.float32, "plain")
    for batch in batches:
        add("rewritten, bfloat16, channels_last", network, batch, torch.bfloat16, "folded")
    batch = max(rows[1:], key=lambda one: one["images_per_second"])["batch"]
    if device.type == "cuda":
        graph = captured(network, config, batch, device)
        add("the same as a CUDA graph", lambda z, features: graph(), batch, torch.bfloat16, "folded")
    missed = find_missed(rows)
    context.write(missed=missed)
    if missed:  # before the compiler, which may take what is left
        profile(context, "icgan256", bound(network, config, batch, device, torch.bfloat16))
    if device.type == "cuda" and context.left() > COMPILING:
        add("the same, torch.compile", torch.compile(network, dynamic=False), batch, torch.bfloat16, "folded")
        context.write(missed=find_missed(rows))


def find_missed(rows: list[dict[str, Any]]) -> list[str]:
    """Return the aims that the fastest way does not reach."""
    best = max(rows, key=lambda one: one["images_per_second"])
    return [name for name, aim in AIMS.items() if best[name] < aim]


def build(config: BigGANConfig, device: torch.device) -> tuple[torch.nn.Module, BigGANNetwork]:
    """Return the network as published and as rewritten, with the same random weights, made on the device: a CPU takes seconds."""
    from networks import Generator

    torch.manual_seed(0)
    with device:
        plain, network = Generator(config, merged=False).eval(), BigGANNetwork(config)
    network.load_state_dict(fold(plain.state_dict(), config, torch.float32))
    return plain, network


def bound(
    call: Callable[[Tensor, Tensor], Any], config: BigGANConfig, batch: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], Any]:
    """Return a call with inputs of a batch."""
    z = torch.randn(batch, config.z_dim, device=device, dtype=dtype)
    features = torch.nn.functional.normalize(torch.randn(batch, config.feature_dim, device=device, dtype=dtype))
    return lambda: call(z, features)


def captured(network: torch.nn.Module, config: BigGANConfig, batch: int, device: torch.device) -> Callable[[], None]:
    """Return the replay of a CUDA graph of one batch."""
    call = bound(network, config, batch, device, torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def row(name: str, batch: int, seconds: float, flops: float, ceiling: float) -> dict[str, Any]:
    """Return the figures of one way of running; `flops` are those of one image."""
    rate = batch / seconds
    tflops = rate * flops / 1e12
    return {
        "what": name, "batch": batch, "images_per_second": round(rate, 2), "tflops": round(tflops, 3),
        "share_of_ceiling": round(tflops / ceiling, 3),
    }  # fmt: skip


if __name__ == "__main__":
    run(main, __doc__)
