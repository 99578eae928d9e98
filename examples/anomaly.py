"""Find images that do not belong: compare an image with its own variants, and with its nearest normal images.

    python examples/anomaly.py
    python examples/anomaly.py --train train.parquet --test test.parquet
    python examples/anomaly.py --train train.parquet --test test.parquet --anomalies digits
    python examples/anomaly.py --train bottle/train --test bottle/test
    python examples/anomaly.py --train photos/good --test photos/new --anomalies photos/broken --generator ORG/NAME

A generator makes variants of what it knows. Of an image of another kind its variants may be less like the image: so the mean
distance between an image and its variants is tried as an anomaly score, beside plain k-NN, the mean distance to the nearest
normal images, in the same features. Without --anomalies, the classes of --test that --train lacks are the anomalies, as in the
folders of MVTec (train/good, test/good, test/broken, ...): each alone, then all of them, told from test images of a class that
--train has. If --train lacks none, each class (or those of --left-out) is the anomaly in turn, and its images are left out of the
normal ones. Classes are matched by name, or by number where they have no names. Mind that the bundled generator was trained on all
classes of CIFAR-10, without labels: it has seen these anomalies. Without --train and --test, the ten sample photos of the library
are told from digits, to show how it runs.

Prints the area under the ROC curve (AUROC) of each score, 0.5 is chance, with a 95% interval over images; --out writes them.
Measured figures and what follows from them: docs/beyond.md.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

import gentransforms as gt
from gentransforms.audit.encoders import Encoder, load_encoder
from gentransforms.sources import ImageSource
from gentransforms.sources.folder import ImageFolderSource

RESAMPLES = 1000
TOGETHER = "all of these"


def main() -> None:
    """Score, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", help="normal images, the references of k-NN: whatever gentransforms.open_source takes")
    parser.add_argument("--test", help="other normal images, to be told from the anomalies; with labels, unless --anomalies is given")
    parser.add_argument("--anomalies", help='images of another kind, or "digits" or "patches" for those that scikit-learn brings along')
    parser.add_argument("--left-out", nargs="+", metavar="CLASS", help="names or numbers of the classes that are the anomaly in turn")
    parser.add_argument("--generator", default="icgan-cifar10-32", help="bundled name, folder or repository")
    parser.add_argument("--encoder", default="generator", help="what images are compared by, as for gentransforms.audit_bank")
    parser.add_argument("--variants", type=int, default=4, help="variants of each image")
    parser.add_argument("--neighbours", type=int, default=5, help="k of k-NN")
    parser.add_argument("--limit", type=int, default=1000, help="images of --test and of --anomalies, evenly spaced")
    parser.add_argument("--references", type=int, default=5000, help="images of --train, evenly spaced")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="base seeds of the variants, each a row of its own")
    parser.add_argument("--device", default="cpu", help="cuda, mps or cpu")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    if (args.train is None) != (args.test is None):
        parser.error("--train and --test: give both, or neither")
    if args.anomalies and args.left_out:
        parser.error("--left-out: the anomalies are those of --anomalies: give one of the two")
    if args.train is None:  # every other sample photo is a reference
        args.train = args.test = str(Path(gt.__file__).parent / "samples")
        args.references, args.limit, args.anomalies = 5, 10, args.anomalies or "digits"
    generator = gt.load_generator(args.generator).to(args.device)
    encoder = load_encoder(args.encoder, lambda: generator, args.device)
    train, known, _ = load(args.train, args.references, generator)
    test, tested, names = load(args.test, args.limit, generator)
    if args.anomalies:
        anomalies = bring_along(args.anomalies, args.limit, generator)
        anomalies = load(args.anomalies, args.limit, generator)[0] if anomalies is None else anomalies
        test, known, tested = torch.cat([test, anomalies]), [""] * len(train), [""] * len(test) + [args.anomalies] * len(anomalies)
        turns = {args.anomalies: {args.anomalies}}
    else:
        numbered = {str(number): name for number, name in enumerate(names)} | {name: name for name in tested}
        whole = set(known) if len(known) < args.references else every_class(args.train)
        if lost := whole - set(known):
            warnings.warn(
                f"--references={args.references}: none is of the classes {some_of(lost)}, which --train has, so test images of these do "
                "not count as normal ones: references are evenly spaced, and in these data classes take turns, or some are rare; take "
                "more, or another number",
                stacklevel=1,
            )
        turns = anomalies_in_turn(whole, tested, [numbered.get(name, name) for name in args.left_out or ()])
    features, references = encode(encoder, test), encode(encoder, train)
    own = {f"own variants, seed {seed}": distances_to_variants(generator, encoder, test, args.variants, seed) for seed in args.seeds}
    rows = []
    for name, classes in turns.items():
        is_anomaly = torch.tensor([label in classes for label in tested])
        is_normal = torch.tensor([label in known and label not in classes for label in tested])
        among = is_anomaly | is_normal  # neither are other classes that the references lack
        normal = references[torch.tensor([label not in classes for label in known])]
        if not (is_anomaly.any() and is_normal.any() and len(normal)):
            raise SystemExit(
                f"{name!r} as the anomaly: {is_anomaly.sum()} tested images are of it, {is_normal.sum()} are normal, and {len(normal)} "
                f"references are left: expected some of each; --test has {some_of(tested)}, and --train {some_of(known)}"
            )
        scores = own | {f"{args.neighbours}-NN": distances_to_nearest(features, normal, args.neighbours)}
        for score, values in scores.items():
            area, (low, high) = auroc(values[among], is_anomaly[among])
            rows.append({"anomaly": name, "score": score, "auroc": area, "low": low, "high": high, "anomalies": int(is_anomaly.sum())})
            print(f"{name:12}  {score:24}  {area:.3f}  [{low:.3f}, {high:.3f}]", flush=True)
    for score in dict.fromkeys(row["score"] for row in rows) if len(turns) > 1 and TOGETHER not in turns else ():
        areas = [row["auroc"] for row in rows if row["score"] == score]
        print(f"{'mean':12}  {score:24}  {sum(areas) / len(areas):.3f}")
    if args.out is not None:
        args.out.write_text(json.dumps({"arguments": {k: str(v) for k, v in vars(args).items()}, "rows": rows}, indent=2) + "\n")


def anomalies_in_turn(known: Collection[str], tested: list[str], left_out: list[str]) -> dict[str, set[str]]:
    """Return what is the anomaly in turn, and its classes: those asked for, those that --train lacks, or each class.

    Args:
        known: the classes of --train, whichever of them the references are of.
        tested: the class of each tested image.
        left_out: the classes asked for.
    """
    strange = [] if left_out else in_order(set(tested) - set(known))
    if not strange:
        return {name: {name} for name in left_out or in_order(tested)}
    if not set(tested) & set(known):
        raise SystemExit(
            f"--test has the classes {some_of(tested)}, and --train {some_of(known)}: expected test images of a class that --train has, "
            "too, which are the normal ones; or give their folders: --train GOOD --test OTHER_GOOD --anomalies BROKEN"
        )
    print(f"the anomalies are the classes that --train lacks: {some_of(strange)}", flush=True)
    return {name: {name} for name in strange} | ({TOGETHER: set(strange)} if len(strange) > 1 else {})


def in_order(classes: Iterable[str]) -> list[str]:
    """Return the different classes, sorted; 10 comes after 2."""
    return sorted(set(classes), key=lambda name: (len(name) if name.isdecimal() else 0, name))


def some_of(classes: Iterable[str]) -> str:
    """Return the first of these classes, as text."""
    names = in_order(classes)
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def distances_to_variants(generator: gt.ImageGenerator, encoder: Encoder, images: Tensor, variants: int, seed: int) -> Tensor:
    """Return the mean distance between each image (N, 3, h, w) and its own variants: (N,)."""
    options: dict[str, Any] = {"encoder": encoder, "variants": variants, "base_seed": seed}
    scores = gt.audit_generator(generator, images, **options).scores
    keys, distances = (torch.tensor(scores[name].to_pylist()) for name in ("key", "distance"))
    return torch.zeros(len(images)).index_add_(0, keys, distances) / keys.bincount(minlength=len(images))


def distances_to_nearest(features: Tensor, references: Tensor, k: int) -> Tensor:
    """Return the mean distance of features (N, D) to the k nearest references (M, D): (N,)."""
    nearest = [torch.cdist(rows, references).topk(min(k, len(references)), largest=False).values for rows in features.split(500)]
    return torch.cat(nearest).mean(dim=1)


def auroc(scores: Tensor, is_anomaly: Tensor) -> tuple[float, tuple[float, float]]:
    """Return the area under the ROC curve, and its 95% interval by a bootstrap of normal images and of anomalies."""
    if not scores.isfinite().all():
        raise SystemExit(
            f"{(~scores.isfinite()).sum()} of {len(scores)} distances are not finite, so images cannot be ranked by them: are the "
            "generator and the encoder made for such images? Look with gentransforms preview, or try another --encoder"
        )
    rng = torch.Generator().manual_seed(0)
    levels, ranks = scores.unique(return_inverse=True)
    kinds = ranks[~is_anomaly], ranks[is_anomaly]
    drawn = [[kind[torch.randint(len(kind), (len(kind),), generator=rng)] for kind in kinds] for _ in range(RESAMPLES)]
    area, *areas = [_area(normal, anomalies, len(levels)) for normal, anomalies in [kinds, *drawn]]
    low, high = torch.tensor(areas, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return area, (low, high)


def _area(normal: Tensor, anomalies: Tensor, levels: int) -> float:
    """Return the share of pairs in which the anomaly ranks higher, ties by half: the area (Mann and Whitney, 1947)."""
    counts = normal.bincount(minlength=levels).double()
    below = counts.cumsum(0) - counts / 2
    return float(below[anomalies].mean()) / len(normal)


def encode(encoder: Encoder, images: Tensor) -> Tensor:
    """Return the features (N, D) of images (N, 3, h, w)."""
    return torch.cat([encoder(batch) for batch in images.split(250)])


def load(source: str, limit: int, generator: gt.ImageGenerator) -> tuple[Tensor, list[str], list[str]]:
    """Return at most `limit` images of a source, evenly spaced: (N, 3, h, w) in [0, 1], the class of each, and the names of all classes.

    A class without a name has its number. Images without a class have the name of the source: ``"good"`` for ``train/good``.
    """
    opened = gt.open_source(source)
    images, classes = [], []
    for place in [i * len(opened) // limit for i in range(limit)] if limit < len(opened) else range(len(opened)):
        (sample,) = opened.read_range(place, place + 1)
        if isinstance(sample, gt.GentransformsError):
            raise SystemExit(f"{source}: {opened.keys[place]!r} cannot be read: {sample}")
        images.append(resize(sample.image, generator))
        classes.append(class_of(source, opened, sample.inputs.get("labels")))
    return torch.stack(images), classes, opened.class_names("labels") or []


def every_class(source: str) -> set[str]:
    """Return the classes of all images of a source. Only those of a folder are known without reading the images."""
    opened = gt.open_source(source).select(["labels"])
    if isinstance(opened, ImageFolderSource):
        labels = opened.labels or [None]
    elif "labels" in opened.inputs:
        labels = [sample.inputs["labels"] for sample in opened.read_range(0, len(opened)) if not isinstance(sample, gt.GentransformsError)]
    else:
        labels = [None]
    return {class_of(source, opened, label) for label in set(labels)}


def class_of(source: str, opened: ImageSource, label: int | None) -> str:
    """Return the name of the class of a label, or its number, or the name of the source."""
    names = opened.class_names("labels") or []
    return Path(source).name if label is None else names[label] if 0 <= label < len(names) else str(label)


def bring_along(name: str, limit: int, generator: gt.ImageGenerator) -> Tensor | None:
    """Return images that scikit-learn holds: handwritten digits, or patches of two photographs; None for another name."""
    from sklearn import datasets

    if name == "digits":
        images = [torch.from_numpy(image / 16).float()[None] for image in datasets.load_digits().images]
    elif name == "patches":
        photos = [torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in datasets.load_sample_images().images]
        images = [patch for photo in photos for patch in photo.unfold(1, 64, 16).unfold(2, 64, 16).permute(1, 2, 0, 3, 4).flatten(0, 1)]
    else:
        return None
    some = images if limit >= len(images) else [images[i * len(images) // limit] for i in range(limit)]
    return torch.stack([resize(image, generator) for image in some])


def resize(image: Tensor, generator: gt.ImageGenerator) -> Tensor:
    """Return an image (C, H, W) as the generator sees it: the centre square, resized, (3, h, w) float32 in [0, 1]."""
    image = v2.functional.to_dtype(image.expand(3, -1, -1), torch.float32, scale=True)
    image = v2.functional.center_crop(image, [min(image.shape[-2:])])
    return F.interpolate(image[None], generator.image_size, mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)


if __name__ == "__main__":
    main()
