"""Part 3: Stable Diffusion 2.1 unCLIP at full size, random weights, bfloat16, 512 pixels: ours beside the stock pipeline.

10 steps with guidance at batches 32, 8 and 1, and 4 steps without guidance with the tiny VAE. At batch 32 also in the contiguous
memory format, since a profile of channels_last showed a quarter of the time in copies between formats, and compiled. Aims on an
H100: 25 and 130 images per second, 60% of the measured ceiling, at least 1.3 times stock at the same batch. If one is missed, a
profile says why.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import gentransforms as gt
from benchmarks import full_size, gpu
from benchmarks.gpu_diffusion import DRAFT, GUIDED
from benchmarks.gpu_parts.context import Context, profile, run

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

CALLS = 6  # of a case that takes long: two to warm up, three to measure, and one more for what the first prepares
AT_THE_END = 6.0  # seconds that are kept for the profile
COMPILING = 80.0  # seconds that compiling the whole networks may take


@torch.no_grad()
def main(context: Context) -> None:
    """Measure the most telling cases first; each is saved as soon as it is there, and those that no longer fit are named."""
    import stock
    import tiny_diffusion

    device, quick = context.device, context.quick
    dtype, size = (torch.float32, 32) if quick else (torch.bfloat16, 512)
    ceiling = gpu.matrix_ceiling(device, 512 if quick else 8192)
    context.write(ceiling_tflops=round(ceiling, 1))
    pipe = tiny_diffusion.unclip().to(device) if quick else full_size.build("unclip-small", device, dtype)
    options = {"image_size": size, "channels_last": not quick}
    small, middle, large = (1, 1, 2) if quick else (1, 8, 32)
    steps = GUIDED | ({"num_inference_steps": 2} if quick else {})
    plain = gt.StableDiffusionVariation.from_pipeline(pipe, **steps, image_size=size)  # before the others change its memory format
    side, rows = plain.image_encoder.config.image_size, []

    def ours(generator: Any, batch: int) -> Callable[[], Tensor]:
        images, seeds = torch.rand(batch, 3, side, side, device=device), torch.arange(batch)
        return lambda: generator(images, seeds)

    def theirs(generator: Any, batch: int) -> Callable[[], Tensor]:
        images, seeds = torch.rand(batch, 3, side, side, device=device, dtype=dtype), torch.arange(batch)
        return lambda: stock.run(diffusers.StableUnCLIPImg2ImgPipeline, generator, seeds, image=images, prompt=[""] * batch)

    def leave_out(name: str, steps: str, batch: int, expected: float) -> None:
        print(f"no time for {name}, {steps}, batch {batch}: {expected:.0f} s of {context.left():.0f} s", flush=True)
        context.write(left_out=[*context.result.get("left_out", []), f"{name}, {steps}, batch {batch}"])

    def add(name: str, steps: str, call: Callable[[], Tensor], batch: int, flops: float) -> None:
        known = [row for row in rows if name.startswith(row["what"]) and row["batch"] <= batch and "failed" not in row]
        rate = max(known, key=lambda row: row["batch"])["images_per_second"] if known else batch
        expected = CALLS * batch / rate
        if not quick and context.left() < expected + AT_THE_END:
            leave_out(name, steps, batch, expected)
            return
        try:
            # Batch 32 takes seconds, and compiling needs them more than a third repetition does.
            seconds = gpu.median_seconds(call, device, 0.05 if quick else 0.4, 2 if batch == large else 5)
        except torch.OutOfMemoryError:
            rows.append({"what": name, "steps": steps, "batch": batch, "failed": "out of memory"})
        else:
            tflops = batch * flops / seconds / 1e12
            rows.append({
                "what": name, "steps": steps, "batch": batch, "images_per_second": round(batch / seconds, 2),
                "tflops": round(tflops, 3), "share_of_ceiling": round(tflops / ceiling, 3),
            })  # fmt: skip
        context.write(rows=rows, summary=summarise(rows))
        print(rows[-1], flush=True)

    flops = count(ours(plain, 1))
    add("ours, contiguous", "10 guided", ours(plain, large), large, flops)
    guided = gt.StableDiffusionVariation.from_pipeline(pipe, **steps, **options)
    add("ours", "10 guided", ours(guided, large), large, flops)
    if quick or context.left() < COMPILING + AT_THE_END:  # nothing ends it before the part's limit does
        leave_out("ours, compiled", "10 guided", large, COMPILING)
    else:
        parts = pipe.components | {"unet": copy.deepcopy(pipe.unet), "vae": copy.deepcopy(pipe.vae)}
        compiled = gt.StableDiffusionVariation.from_pipeline(type(pipe)(**parts), **steps, **options, compile="full")
        add("ours, compiled", "10 guided", ours(compiled, large), large, flops)
        del compiled, parts
    add("stock", "10 guided", theirs(guided, large), large, flops)
    kept = pipe.vae
    pipe.register_modules(vae=(kept if quick else full_size.tiny_vae().to(device, dtype)))
    draft = gt.StableDiffusionVariation.from_pipeline(pipe, **DRAFT, **options)
    add("ours, tiny VAE", "4 unguided", ours(draft, large), large, count(ours(draft, 1)))
    pipe.register_modules(vae=kept)
    for batch in sorted({small, middle}):
        add("ours", "10 guided", ours(guided, batch), batch, flops)
        add("stock", "10 guided", theirs(guided, batch), batch, flops)
    summary = summarise(rows)
    aims = {"images_per_second": 25.0, "draft_images_per_second": 130.0, "share_of_ceiling": 0.6, "times_stock": 1.3}
    missed = [name for name, aim in aims.items() if summary.get(name, 0) < aim]
    context.write(missed=missed)
    if missed:
        profile(context, "unclip", ours(guided, middle))


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures that have an aim."""
    found: dict[str, Any] = {}
    guided = {(row["what"], row["batch"]): row for row in rows if row["steps"] == "10 guided" and "failed" not in row}
    own = [row for (what, _), row in guided.items() if what.startswith("ours")]
    if own:
        best = max(own, key=lambda row: row["images_per_second"])
        found = {name: best[name] for name in ("what", "batch", "images_per_second", "share_of_ceiling")}
        found |= {f"{what}, batch {batch}": row["images_per_second"] for (what, batch), row in guided.items() if what.startswith("ours, ")}
        ratios = [
            row["images_per_second"] / guided["stock", batch]["images_per_second"]
            for (what, batch), row in guided.items() if what == "ours" and ("stock", batch) in guided
        ]  # fmt: skip
        found |= {"times_stock": round(min(ratios), 2)} if ratios else {}
    draft = [row["images_per_second"] for row in rows if row["steps"] == "4 unguided" and "failed" not in row]
    return found | ({"draft_images_per_second": draft[0]} if draft else {})


def count(call: Callable[[], Tensor]) -> int:
    """Return the operations of a call (a multiply-add counts 2)."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


if __name__ == "__main__":
    run(main, __doc__)
