"""How often the check of a bank's sources refuses right rows, and how often it misses wrong ones.

For data sets of many kinds, a bank has the marks of some images. Then a data set is compared with it as `with_keys` does, 8 images
at first and up to 64 where they do not tell: the right rows, and several kinds of wrong ones, changed by an augmentation.

    python -m benchmarks.resemblance --parquet cifar10/test.parquet --wrong --only CIFAR-10
"""

from __future__ import annotations

import argparse
import io
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from gentransforms.sources.resemblance import compare_marks, mark

Change = Callable[[Tensor], Tensor]
Marks = npt.NDArray[np.uint8]


def one_channel(image: Tensor) -> Tensor:
    return image[:1].expand(3, -1, -1)


def normalise(image: Tensor) -> Tensor:
    """To mean 0 and deviation 1 as on ImageNet, and back into [0, 1], as the check needs it."""
    scaled = TF.normalize(image.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return ((scaled + 2.2) / 5).clamp(0, 1)


LIGHT: dict[str, Change] = {
    "none": lambda image: image,
    "resize": v2.Resize(50),
    "flip": v2.RandomHorizontalFlip(),
    "crop, padding 4": v2.Compose([v2.RandomCrop(32, 4), v2.RandomHorizontalFlip()]),
    "resized crop (0.5, 1)": v2.RandomResizedCrop(32, (0.5, 1.0)),
    "colour jitter 0.2": v2.ColorJitter(0.2, 0.2, 0.2, 0.05),
    "blur": v2.GaussianBlur(5, (0.5, 1.5)),
    "cutout": v2.RandomErasing(1.0, (0.1, 0.3)),
    "posterise": v2.RandomPosterize(3, 1.0),
    "normalise": normalise,
}
STRONG: dict[str, Change] = {
    "resized crop (0.08, 1)": v2.Compose([v2.RandomResizedCrop(32, (0.08, 1.0)), v2.RandomHorizontalFlip()]),
    "colour jitter 0.8": v2.ColorJitter(0.8, 0.8, 0.8, 0.2),
    "grey": v2.Grayscale(3),
    "invert": v2.RandomInvert(1.0),
    "solarise 1.0": v2.RandomSolarize(0, 1.0),
    "solarise 0.5": v2.RandomSolarize(128, 1.0),
    "equalise": v2.RandomEqualize(1.0),
    "zoom out": v2.RandomZoomOut(0, (1.5, 3.0), 1.0),
    "pad": v2.Pad(16),
    "rotate": v2.RandomRotation(90),
    "red only": one_channel,
    "SimCLR": v2.Compose([
        v2.RandomResizedCrop(32, (0.2, 1.0)), v2.RandomHorizontalFlip(), v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
        v2.RandomGrayscale(0.2), v2.RandomApply([v2.GaussianBlur(3)], 0.5),
    ]),
    "channels swapped": lambda image: image.flip(0),
    "elastic": v2.ElasticTransform(80.0),
    "TrivialAugment": v2.TrivialAugmentWide(),
    "edges": lambda image: (TF.rgb_to_grayscale(image).float().diff(dim=-1).abs()[..., :-1, :] * 4).clamp(0, 255).to(torch.uint8),
    "noise only": lambda image: torch.randint_like(image, 256),
}  # fmt: skip


def load_parquet(path: Path, count: int) -> tuple[list[Tensor], list[int]]:
    table = pq.ParquetFile(path).read().slice(0, count)
    pictures = [PIL.Image.open(io.BytesIO(cell["bytes"])).convert("RGB") for cell in table["image"].to_pylist()]
    labels = table["label"].to_pylist()
    return [TF.pil_to_tensor(picture) for picture in pictures], labels


def smooth(count: int, rng: torch.Generator) -> list[Tensor]:
    """Images of blobs of one to eight cells."""

    def layer(cells: int) -> Tensor:
        grid = torch.rand(count, 3, cells, cells, generator=rng)
        return torch.nn.functional.interpolate(grid, (32, 32), mode="bilinear")

    mixed = sum(layer(cells) / cells**0.5 for cells in (1, 2, 4, 8))
    return list((mixed / mixed.amax() * 255).to(torch.uint8))


def make_sets(path: Path, rows: int) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Return, for each kind of data, `rows` images of the bank and as many others of the same kind."""
    rng = torch.Generator().manual_seed(0)
    natural, labels = load_parquet(path, max(2 * rows, 6_000))
    cats = [image for image, label in zip(natural, labels, strict=True) if label == 3]
    sets = {"CIFAR-10": natural[: 2 * rows], "CIFAR-10 cats": cats[: 2 * min(rows, 500)], "blobs": smooth(2 * rows, rng)}
    from sklearn.datasets import load_digits, load_sample_image

    digits = torch.from_numpy(load_digits().images * 15.9).to(torch.uint8)[:, None]
    digits = TF.resize(digits[torch.randperm(len(digits), generator=rng)], [32, 32])
    sets["digits"] = list(digits.expand(-1, 3, -1, -1)[: 2 * min(rows, 890)])
    sets["plain colours"] = [
        colour.view(3, 1, 1).expand(3, 32, 32) for colour in torch.randint(0, 256, (2 * rows, 3), dtype=torch.uint8, generator=rng)
    ]
    sets["plain greys"] = [torch.full((3, 32, 32), i % 256, dtype=torch.uint8) for i in range(2 * rows)]
    sets["noise"] = list(torch.randint(0, 256, (2 * rows, 3, 32, 32), dtype=torch.uint8, generator=rng))
    china = TF.resize(torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1), [160])
    lefts = torch.linspace(0, china.shape[-1] - 64, 2 * rows)
    sets["pan over a photo"] = [TF.resize(TF.crop(china, 60, int(left), 64, 64), [32, 32]) for left in lefts]
    one = natural[0].float()
    sets["all alike"] = [
        (one + 6 * torch.randn(3, 1, 1, generator=rng) + 4 * torch.randn(3, 32, 32, generator=rng)).clamp(0, 255).to(torch.uint8)
        for _ in range(2 * rows)
    ]
    sets["mirrored pairs"] = [image for photo in natural[:rows] for image in (photo, photo.flip(-1))]
    inverted = [image for photo in natural[:rows] for image in (photo, 255 - photo)]
    sets["inverted pairs"] = inverted
    return {name: (images[: len(images) // 2], images[len(images) // 2 :]) for name, images in sets.items()}


def verdict(data: list[Tensor], change: Change, marks: Marks) -> str:
    """As check_dataset does: 8 images spread over the data set, then 16, 32, 64."""
    seen: dict[int, Marks] = {}
    found = "unsure"
    for size in (8, 16, 32, 64):
        for place in np.unique(np.linspace(0, len(data) - 1, min(size, len(data))).astype(int)).tolist():
            if place not in seen:
                seen[place] = mark(change(data[place]))
        own = np.array(list(seen))
        found = compare_marks(np.stack(list(seen.values()))[own < len(marks)], own[own < len(marks)], marks).verdict
        if found in ("right", "wrong") or size >= len(data):
            return found
    return found


def wrong_rows(images: list[Tensor], other: list[Tensor], rng: np.random.Generator) -> dict[str, list[Tensor]]:
    count = len(images)
    shuffled = [images[i] for i in rng.permutation(count)]
    start = int(rng.integers(count // 10, count // 2))
    return {
        "select(range)": images[start:],
        "shuffle": shuffled,
        "shift by one": images[1:] + images[:1],
        "every tenth": images[9::10],
        "other split": other,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parquet", type=Path, required=True, help="CIFAR-10's test split")
    parser.add_argument("--rows", type=int, default=1000, help="images of a bank")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--wrong", action="store_true", help="wrong rows too")
    parser.add_argument("--only", nargs="*", help="data sets")
    args = parser.parse_args()
    print(f"{args.rows} rows; of {args.seeds} seeds: refused (r), warned of (w), accepted (a)")
    spent, calls = 0.0, 0
    for name, (images, others) in make_sets(args.parquet, args.rows).items():
        if args.only and name not in args.only:
            continue
        marks = np.stack([mark(image) for image in images])
        for number, (change_name, change) in enumerate({**LIGHT, **STRONG}.items()):
            counts: dict[str, Counter[str]] = {}
            for seed in range(args.seeds):
                torch.manual_seed(seed)
                rng = np.random.default_rng(seed)
                turn = int(rng.integers(len(images)))  # so that each seed compares other samples
                right = images[turn:] + images[:turn]
                cases = {"right": right} | (wrong_rows(right, others, rng) if args.wrong else {})
                for case, data in cases.items():
                    began = time.process_time()
                    counts.setdefault(case, Counter())[verdict(data, change, np.roll(marks, -turn, 0))] += 1
                    spent, calls = spent + time.process_time() - began, calls + 1
            if not number:
                print(f"\n{name:24}" + "".join(f"{case:>16}" for case in counts))
            cells = (f"{count['wrong']}r {count['unlike']}w {count['right']}a" for count in counts.values())
            print(f"{change_name:24}" + "".join(f"{cell:>16}" for cell in cells), flush=True)
    print(f"\n{spent / calls * 1e3:.0f} ms of processor time a comparison")


if __name__ == "__main__":
    main()
