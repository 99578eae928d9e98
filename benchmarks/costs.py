"""What an image costs with each generator, in counted operations (a multiply-add counts 2): ``python -m benchmarks.costs``.

The networks stand on the meta device, at the size of the released ones: shapes and operations, no weights. A source is encoded, then
one variant is made. With ``dpm++`` and ``ddim``, n steps are n passes through the network, and with guidance twice as many rows; PNDM,
the scheduler that comes with some repositories, takes one pass more. H100-hours are the operations over `MEASURED`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import gentransforms as gt
from benchmarks import full_size

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

# TFLOP/s of one H100 in bfloat16, from benchmarks/RESULTS.md, "On a GPU": IC-GAN 256 at batch 256; Stable Diffusion 2.1 unCLIP at batch
# 32, 512 pixels, not compiled. That the other diffusion models, sizes and steps reach unCLIP's rate is an assumption.
MEASURED = {"IC-GAN, compiled": 409.0, "IC-GAN, not compiled": 202.3, "diffusion": 238.4}
IMAGENET_256 = {"resolution": 256, "G_ch": 96, "dim_z": 120}
GUIDED: dict[str, Any] = {"num_inference_steps": 10, "guidance_scale": 10.0, "scheduler": "dpm++"}
DRAFT: dict[str, Any] = {"preset": "fast"}
CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("unCLIP small, 512, 10 steps, guidance", "unclip-small", GUIDED),
    ("unCLIP large, 512, 10 steps, guidance", "unclip-large", GUIDED),
    ("unCLIP small, 256, 10 steps, guidance", "unclip-small", GUIDED | {"image_size": 256}),
    ("unCLIP small, 512, 4 steps, tiny VAE", "unclip-small", DRAFT | {"vae": "tiny"}),
    ("sd-image-variations, 512, 10 steps, guidance", "variation", GUIDED),
    ("SD 1.5 + IP-Adapter, 512, 10 steps, guidance", "sd15", GUIDED | {"ip_adapter": True}),
    ("SDXL + IP-Adapter, 1024, 10 steps, guidance", "sdxl", GUIDED | {"ip_adapter": True, "image_size": 1024}),
    ("SD 1.5 + ControlNet canny, 512, 10 steps, guidance", "sd15", GUIDED),
)


def main() -> None:
    """Count and print a Markdown table."""
    print("| generator | TFLOP per image | H100-hours per million images |\n|---|---:|---:|")
    for name, generator, side, rate in generators():
        cost = sum(counted(generator, side))
        print(f"| {name} | {cost:.1f} | {hours(cost * 1e6, rate)} |", flush=True)


def generators() -> Iterator[tuple[str, gt.ImageGenerator, int, float]]:
    """Yield name, generator on the meta device, pixels of a side, and the TFLOP/s that an H100 reaches with it."""
    with torch.device("meta"):
        icgan = gt.ICGAN(network=IMAGENET_256, feature_extractor={"kind": "resnet50"})
    for how in ("compiled", "not compiled"):
        yield f"IC-GAN, ImageNet 256, {how}", icgan, 256, MEASURED[f"IC-GAN, {how}"]
    for name, kind, options in CASES:
        yield name, built(kind, dict(options)), int(options.get("image_size", 512)), MEASURED["diffusion"]


@torch.no_grad()
def counted(generator: gt.ImageGenerator, side: int) -> tuple[float, float]:
    """Return the TFLOP of encoding a source, and of making a variant of it."""
    with FlopCounterMode(display=False) as encoding:
        condition = generator.encode(torch.rand(1, 3, side, side, device="meta"))
    with FlopCounterMode(display=False) as making:
        generator.sample(condition, torch.tensor([0]))
    return encoding.get_total_flops() / 1e12, making.get_total_flops() / 1e12


def hours(tflop: float, rate: float) -> str:
    """Return the H100-hours of so many operations at a rate in TFLOP/s, to about two digits: one run measured the rates."""
    number = tflop / rate / 3600
    return f"{number:,.{0 if number >= 10 else 1 if number >= 1 else 2}f}"


def built(kind: str, options: dict[str, Any]) -> gt.ImageGenerator:
    """Return one of `CASES` on the meta device."""
    pipe = full_size.build(kind)
    options = {"image_size": 512} | options
    with torch.device("meta"):
        if options.pop("vae", None):
            pipe.register_modules(vae=full_size.tiny_vae())
        adapted = options.pop("ip_adapter", False)
        net = full_size.controlnet(pipe.unet) if kind == "sd15" and not adapted else None
        if adapted:
            import tiny_diffusion

            pipe.register_modules(image_encoder=full_size.image_encoder("ViT-H/14"))
            weights = tiny_diffusion.ip_adapter(pipe.unet, embedding=1024)
    if adapted:
        pipe.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
    if net is None:
        return gt.StableDiffusionVariation.from_pipeline(pipe, **options)
    # Edges in advance: they take less than 0.3% of one UNet call (tests/test_diffusion_full_size.py).
    return gt.ControlNetVariation(pipe, controlnet=net, condition=lambda images: images, **options)


if __name__ == "__main__":
    main()
