"""Part 6: filling a bank: images per second with JPEG encoding and files beside the bare generator. Aim: 0.9 of it.

IC-GAN 256 with random weights, as in part 2: 256-pixel JPEGs keep the processor's cores busy, 32-pixel ones would not.
"""

from __future__ import annotations

import io
import shutil

import torch
from PIL import Image
from torch import nn

import gentransforms as gt
from benchmarks import gpu
from benchmarks.gpu_parts.context import Context, run
from benchmarks.gpu_parts.icgan import build
from gentransforms.generators.icgan.features import ResNet50Features, SmallResNet

VARIANTS = 10


def main(context: Context) -> None:
    """Measure the bare generator, then as many sources as fit into the time that is left."""
    device, quick = context.device, context.quick
    config, batch = (gpu.MINIATURE, 10) if quick else (gpu.IMAGENET_256, 200)
    plain, _ = build(config, device)
    state = {name: tensor.cpu() for name, tensor in plain.state_dict().items()}
    extractor = SmallResNet((8, config.feature_dim), (1, 1)) if quick else ResNet50Features()
    generator = gt.ICGAN.from_released(state, config, extractor)
    generator = generator.to(device, torch.float32 if quick else torch.bfloat16, memory_format=torch.channels_last)
    size = config.resolution
    images, seeds = torch.rand(batch, 3, size, size, device=device), torch.arange(batch)
    with torch.no_grad():
        condition = generator.encode(images)
        seconds = gpu.median_seconds(lambda: generator.sample(condition, seeds), device, 0.05 if quick else 0.5)
    bare = batch / seconds
    context.write(bare_images_per_second=round(bare, 1))
    count = 4 if quick else max(40, int(min(5000, 0.5 * context.left() * bare / VARIANTS)))
    photos = [encoded(size, i) for i in range(min(count, 40))]
    source = [{"image": {"bytes": photos[i % len(photos)], "path": None}, "key": i} for i in range(count)]
    settings = {"variants": VARIANTS, "batch_size": batch, "image_format": "jpeg", "progress": False}
    bank = context.work / "filled-bank"
    shutil.rmtree(bank, ignore_errors=True)  # of an earlier call
    summary = gt.generate_bank(source, bank, generator, **settings)
    share = summary.images_per_second / bare
    found = {"bank_images_per_second": round(summary.images_per_second, 1), "share_of_bare_generator": round(share, 3)}
    context.write(
        images=summary.images, summary={"bare_images_per_second": round(bare, 1), **found}, missed=["share"] if share < 0.9 else []
    )


def encoded(size: int, seed: int) -> bytes:
    """A smooth random JPEG."""
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    pixels = (nn.functional.interpolate(coarse, size, mode="bilinear")[0] * 255).to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "jpeg")
    return buffer.getvalue()


if __name__ == "__main__":
    run(main, __doc__)
