"""Show photos next to new images that the bundled generator makes of them.

    python examples/quickstart.py                # ten sample photos -> augmentations.png
    python examples/quickstart.py my_photos/     # your own: the first 20 in the folder and its subfolders

Each row shows a photo, followed by six variants of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2
from torchvision.utils import save_image

import gentransforms as gt

VARIANTS = 6
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(gt.__file__).parent / "samples"

# Photos of any size will do: the generator sees their centre square, resized.
square = v2.Compose([v2.ToImage(), v2.Resize(32), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True)])
paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".png", ".jpg", ".jpeg"})[:20]
if not paths:
    sys.exit(f"{folder}: expected a folder with .png or .jpg images")
photos = torch.stack([square(ImageOps.exif_transpose(Image.open(path)).convert("RGB")) for path in paths])  # upright

# p=1: replace every image. In training, p=0.5 keeps half of them real.
augment = gt.GenerativeAugment.from_pretrained("icgan-cifar10-32", p=1.0)
torch.manual_seed(0)
variants = [augment(photos) for _ in range(VARIANTS)]

rows = torch.stack([photos, *variants], dim=1)  # (photo, column, 3, 32, 32)
save_image(rows.flatten(0, 1), "augmentations.png", nrow=VARIANTS + 1, padding=1)
print(f"augmentations.png: {len(paths)} photos from {folder}, {VARIANTS} variants of each")
