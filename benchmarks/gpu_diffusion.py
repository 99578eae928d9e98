"""What only a GPU can show of Stable Diffusion: ``python -m benchmarks.gpu_diffusion [--out FILE] [--minutes 25]`` on a CUDA machine.

Full-size Stable Diffusion 2.1 unCLIP and Stable Diffusion 1.5 with a ControlNet, random weights: images per second with
dtypes, memory formats, torch.compile, batches and sizes, and their share of the measured matrix-product ceiling by counted
operations, beside the stock pipeline at batch 8 as the paper's script runs it. The file is written after each case; a case
that does not fit into memory is recorded as such, and cases that the minutes do not suffice for are listed.

`--device cpu --quick` runs the same code in miniature, so that the script is tested where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import gentransforms as gt
from benchmarks import full_size
from benchmarks.gpu import _name, matrix_ceiling, median_seconds

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

GUIDED: dict[str, Any] = {"num_inference_steps": 10, "guidance_scale": 10.0}
DRAFT: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 1.0}


@dataclass(frozen=True)
class Case:
    """One way of running: `family` is ``"unclip-small"`` or ``"controlnet"``, `steps` ``"10 guided"`` or ``"4 unguided"``."""

    family: str
    batch: int
    size: int = 512
    steps: str = "10 guided"
    dtype: str = "bfloat16"
    channels_last: bool = True
    compile: bool = False
    tiny_vae: bool = False
    stock: bool = False
    scheduler: str = "dpm++"


def cases() -> list[Case]:
    """What is measured, the most telling first."""
    unclip = "unclip-small"
    draft: dict[str, Any] = {"steps": "4 unguided", "tiny_vae": True}
    plain: dict[str, Any] = {"dtype": "float16", "channels_last": False}
    paper: dict[str, Any] = {"scheduler": "ddim", **plain}  # as its script runs the stock pipeline
    first = [Case(unclip, 8, stock=True, **paper), Case(unclip, 8, **paper)]
    first += [Case(unclip, 16), *(Case(unclip, batch, compile=True) for batch in (16, 32, 64))]
    first += [Case(unclip, batch, compile=True, **draft) for batch in (32, 64)]
    first += [Case("controlnet", 8, stock=True, **plain), Case("controlnet", 16), Case("controlnet", 16, compile=True)]
    rest = [Case(unclip, batch) for batch in (1, 4, 8, 32, 64)]
    rest += [Case(unclip, 16, dtype="float16"), Case(unclip, 16, channels_last=False), Case(unclip, 16, steps="4 unguided")]
    rest += [Case(unclip, 16, size=size) for size in (256, 768)] + [Case(unclip, 64, size=256)]
    return first + rest + [Case("controlnet", 32), Case("controlnet", 16, **draft)]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_diffusion.json"), help="JSON file for the figures")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--minutes", type=float, default=25.0, help="start no case after this time")
    parser.add_argument("--quick", action="store_true", help="miniature networks and three cases")
    args = parser.parse_args()
    device, start = torch.device(args.device), time.monotonic()
    ceiling = matrix_ceiling(device, 512 if args.quick else 8192)
    results: dict[str, Any] = {"device": _name(device), "torch": torch.__version__, "ceiling_tflops": ceiling, "rows": [], "left_out": []}
    chosen = [
        Case("unclip-small", 2, 32, dtype="float32", stock=True), Case("unclip-small", 2, 32), Case("controlnet", 2, 32, "4 unguided")
    ] if args.quick else cases()  # fmt: skip
    for case in chosen:
        if time.monotonic() - start > 60 * args.minutes:
            results["left_out"].append(asdict(case))
            continue
        row = asdict(case) | measure(case, device, ceiling, args.quick)
        results["rows"].append(row)
        print(" | ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        args.out.write_text(json.dumps(results, indent=2) + "\n")
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"wrote {args.out}")


@torch.no_grad()
def measure(case: Case, device: torch.device, ceiling: float, quick: bool) -> dict[str, Any]:
    """Return the figures of a case, or why there are none."""
    try:
        with FlopCounterMode(display=False) as counter:  # of the eager networks: a compiled one shows no operations
            our_run(Case(**{**asdict(case), "compile": False, "stock": False}), device, quick)()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        run = stock_run(case, device, quick) if case.stock else our_run(case, device, quick)
        seconds = median_seconds(run, device, 0.05 if quick else 2.0)
    except torch.cuda.OutOfMemoryError:
        return {"images_per_second": None, "failed": "out of memory"}
    finally:
        torch.compiler.reset()  # each case compiles anew: torch gives up after a number of variants of one network
        if device.type == "cuda":
            torch.cuda.empty_cache()
    tflops = counter.get_total_flops() / seconds / 1e12
    figures = {
        "images_per_second": round(case.batch / seconds, 2),
        "tflops": round(tflops, 4),
        "share_of_ceiling": round(tflops / ceiling, 4),
    }
    if device.type == "cuda":
        figures["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    return figures


def our_run(case: Case, device: torch.device, quick: bool) -> Callable[[], Tensor]:
    """Return a call that encodes and samples a batch."""
    generator = build(case, device, quick)
    images = torch.rand(case.batch, 3, 224, 224, device=device)
    seeds = torch.arange(case.batch)
    return lambda: generator(images, seeds)


def stock_run(case: Case, device: torch.device, quick: bool) -> Callable[[], Tensor]:
    """Return a call of the stock pipeline, from normalised tensors to tensors, with one rng for each image."""
    import diffusers
    import stock

    generator = build(case, device, quick)
    dtype, seeds = getattr(torch, case.dtype), torch.arange(case.batch)
    side = generator.image_encoder.config.image_size if case.family != "controlnet" else case.size
    image = torch.rand(case.batch, 3, side, side, device=device, dtype=dtype)
    if case.family != "controlnet":
        cls = diffusers.StableUnCLIPImg2ImgPipeline
        return lambda: stock.run(cls, generator, seeds, image=image, prompt=[""] * case.batch)
    parts = {"controlnet": generator.controlnets[0]}
    return lambda: stock.run(
        diffusers.StableDiffusionControlNetPipeline, generator, seeds, image=image, prompt=[""] * case.batch, parts=parts
    )


def build(case: Case, device: torch.device, quick: bool) -> Any:
    """Return the generator of a case on the device, random weights."""
    dtype = getattr(torch, case.dtype)
    options = (GUIDED if case.steps == "10 guided" else DRAFT) | {"image_size": case.size, "scheduler": case.scheduler}
    options |= {"channels_last": case.channels_last, "compile": case.compile}
    pipe = _pipeline(case.family, device, dtype, quick)
    if case.tiny_vae:
        pipe.register_modules(vae=full_size.tiny_vae().to(device, dtype))
    if case.family != "controlnet":
        return gt.StableDiffusionVariation.from_pipeline(pipe, **options)
    net = _miniature().controlnet(pipe.unet) if quick else full_size.controlnet(pipe.unet)
    return gt.ControlNetVariation(pipe, controlnet=net.to(device, dtype), condition="canny", **options)


def _pipeline(family: str, device: torch.device, dtype: torch.dtype, quick: bool) -> Any:
    if quick:
        return (_miniature().stable_diffusion() if family == "controlnet" else _miniature().unclip()).to(device, dtype)
    return full_size.build("sd15" if family == "controlnet" else family, device, dtype)


def _miniature() -> Any:
    import tiny_diffusion

    return tiny_diffusion


if __name__ == "__main__":
    main()
