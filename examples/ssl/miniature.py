"""A toy data set for trying the recipes offline: variants of the ten sample photos, one class per photo.

    python examples/ssl/miniature.py toy --train 40 --test 20

Writes toy/train/CLASS/*.png and toy/test/CLASS/*.png. It shows that everything runs; the results mean nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F
from torchvision.utils import save_image

import gentransforms as gt


def make_toy(out: Path, train: int, test: int) -> None:
    """Write `train` and `test` images of each class."""
    generator = gt.load_generator("icgan-cifar10-32")
    for photo in sorted((Path(gt.__file__).parent / "samples").glob("*.png")):
        source = F.to_dtype(F.pil_to_tensor(Image.open(photo).convert("RGB")), torch.float32, scale=True)[None]
        with torch.no_grad():
            made = generator(
                source.expand(train + test, -1, -1, -1), gt.derive_seeds(1, [photo.stem] * (train + test), range(train + test))
            )
        for i, image in enumerate(made):
            folder = out / ("train" if i < train else "test") / photo.stem
            folder.mkdir(parents=True, exist_ok=True)
            save_image(image, folder / f"{i:04d}.png")


def main() -> None:
    """Parse the command line and write the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=40, help="images of each class")
    parser.add_argument("--test", type=int, default=20, help="images of each class")
    args = parser.parse_args()
    make_toy(args.out, args.train, args.test)
    print(f"wrote {10 * args.train} training and {10 * args.test} test images into {args.out}")


if __name__ == "__main__":
    main()
