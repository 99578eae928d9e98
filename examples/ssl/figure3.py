"""The paper's figure 3 of your images: real ones, their classic augmentation, and what generators make of them.

    python examples/ssl/figure3.py --data test.parquet --out figure3.png
    python examples/ssl/figure3.py --data data/imagenet/val --generator generators/icgan-imagenet-256 \
        --stable-diffusion sd2-community/stable-diffusion-2-1-unclip-small --device cuda --out figure3.png

A column for each of the first ten classes, with its first image; --rows takes others. The classic augmentation is SimCLR's of the
paper. Every row of the picture is one draw, by --seed; nothing is picked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from arguments import positive
from config import ViewSettings
from data import Source, open_images
from frozen import load_generator
from loading import square
from PIL import Image, ImageDraw, ImageFont
from shared import settle_device
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from views import View

import gentransforms as gt

LEFT, TOP, GAP = 120, 22, 2  # pixels for names and between images


def first_of_each_class(source: Source, classes: int) -> list[int]:
    """Return the row of the first image of each of the first classes; without labels, the first rows."""
    if source.labels is None:
        return list(range(min(classes, len(source))))
    firsts = [(source.labels == label).nonzero()[:1].flatten().tolist() for label in range(min(classes, len(source.classes)))]
    return [row for first in firsts for row in first]  # a class may have no image


def augment_classically(images: Tensor, seed: int) -> Tensor:
    """Return SimCLR's view of images (N, 3, S, S) uint8, of the same shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        view: Tensor = View(ViewSettings(), images.shape[-1])(images.float() / 255)
    return F.to_dtype(view, torch.uint8, scale=True)


@torch.no_grad()
def generate(generator: gt.ImageGenerator, images: list[Image.Image], keys: list[str | int], seed: int) -> Tensor:
    """Return the first variant of each image as uint8 (N, 3, H, W), one at a time: large generators have room for one.

    Exits if one is not finite: NaN would be drawn as black.
    """
    seeds = gt.derive_seeds(seed, keys, [0] * len(keys))
    made = []
    for i, image in enumerate(images):
        own = square(image, max(generator.image_size))[None].to(generator.device).float() / 255
        made.append(generator(own, seeds[i : i + 1]).cpu())
    broken = [key for key, image in zip(keys, made, strict=True) if not image.isfinite().all()]
    if broken:
        raise SystemExit(
            f"{len(broken)} of {len(keys)} images by {type(generator).__name__} are not finite, such as that of {broken[0]!r}: nothing to "
            "draw; a generator that computes in float16 may need bfloat16 or float32"
        )
    return F.to_dtype(torch.cat(made), torch.uint8, scale=True)


def compose(rows: dict[str, Tensor], titles: list[str], cell: int) -> Image.Image:
    """Return the picture: a row of images (N, 3, H, W) uint8 for each name, N titles above; each image takes `cell` pixels."""
    count = len(titles)
    picture = Image.new("RGB", (LEFT + count * (cell + GAP) - GAP, TOP + len(rows) * (cell + GAP) - GAP), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        draw.text((LEFT + column * (cell + GAP) + cell // 2, TOP // 2), title[: cell // 8], "black", font, anchor="mm")
    for row, (name, images) in enumerate(rows.items()):
        top = TOP + row * (cell + GAP)
        draw.text((LEFT - 8, top + cell // 2), name, "black", font, anchor="rm")
        for column, image in enumerate(images):
            one = F.to_pil_image(image)
            whole = cell % one.width == 0 and one.width == one.height  # small images are shown as the pixels they are
            one = one.resize((cell, cell), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS)
            picture.paste(one, (LEFT + column * (cell + GAP), top))
    return picture


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images, as data.test of the settings")
    parser.add_argument("--generator", default="icgan-cifar10-32", help="IC-GAN: bundled name, folder or repository")
    parser.add_argument("--stable-diffusion", metavar="NAME", help="folder or repository for a row of Stable Diffusion, preset=paper")
    parser.add_argument("--classes", type=positive, default=10, help="number of columns; default 10")
    parser.add_argument("--rows", type=int, nargs="+", help="images by row instead of the first of each class")
    parser.add_argument("--cell", type=positive, default=96, help="pixels of each image in the picture; default 96")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="auto, cuda, mps or cpu; default cpu")
    parser.add_argument("--out", type=Path, required=True, help="picture to write: .png or .jpg")
    args = parser.parse_args()
    args.device = settle_device(args.device, f"--device {args.device}")
    source = open_images(args.data)
    chosen = args.rows or first_of_each_class(source, args.classes)
    if not all(0 <= row < len(source) for row in chosen):
        raise SystemExit(f"--rows {' '.join(map(str, chosen))}: expected rows from 0 to {len(source) - 1}, of {source.name!r}")
    images, keys = [source.read(row) for row in chosen], [source.keys[row] for row in chosen]
    size = min(224, *(min(image.size) for image in images))  # as in training: 224 pixels, or as many as there are
    real = torch.stack([square(image, size) for image in images])
    rows = {"real": real, "classic": augment_classically(real, args.seed)}
    rows["IC-GAN"] = generate(load_generator(args.generator, "--generator ").to(args.device), images, keys, args.seed)
    if args.stable_diffusion:
        generator = load_generator(args.stable_diffusion, "--stable-diffusion ", preset="paper").to(args.device)
        rows["Stable Diffusion"] = generate(generator, images, keys, args.seed)
    names = [""] * len(chosen) if source.labels is None else [source.classes[label] for label in source.labels[chosen].tolist()]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    compose(rows, [name.partition(",")[0] for name in names], args.cell).save(args.out)
    print(f"wrote {args.out}: rows {', '.join(map(str, chosen))} of {source.name}")


if __name__ == "__main__":
    main()
