"""Evaluate a generator on labelled images: do variants keep the class, do they differ, are they copies?

    python examples/icgan/classifier.py --train train.parquet --test test.parquet --out runs/judge
    python examples/icgan/evaluate.py --generator icgan-cifar10-32 --judge runs/judge \
        --train train.parquet --test test.parquet --out runs/evaluation

The measures are those of `gentransforms.audit`; the variants are compared with the training images, which are not their sources.
With --bank instead of --generator, the variants are those of a bank of the test images, wherever they come from.
All distances are Euclidean, in the features of the classifier that classifier.py trained on the real training images.
"Same class" is the mean distance between two different real test images of the source's class. All seeds are fixed.
Writes evaluation.json, evaluation.md, variants.png, nearest.png and, by class, classes.png into OUT.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from classifier import Judge, load_judge, predict
from images import iterate_images, load_images, load_labels, open_images, resize
from measures import agreement, distance_from_source, diversity, knn_vote, spread_of_classes
from pictures import classes_picture, nearest_picture, variants_picture
from rich.progress import track
from shared import refuse_unwritable, settle_device, spaced, warn_of_absent_classes
from torch import Tensor

import gentransforms as gt
from gentransforms.audit.measures.likeness import frechet_distance, precision_recall_density_coverage
from gentransforms.audit.neighbours import nearest
from gentransforms.audit.pairs import BankPairs
from gentransforms.bank.reader import Bank
from gentransforms.sources import ImageSource

# What each figure means, in the order of the report.
MEANING = {
    "images": "generated images",
    "label_agreement": "share of variants that the classifier assigns to the source's class (aim 0.70)",
    "label_agreement_interval": "half the 95% interval of the agreement, over sources",
    "diversity": "mean distance between two variants of one source, over same class (aim 0.5 to 1.1)",
    "distance_from_source": "mean distance of a variant from its source, over same class (aim 0.6 or more)",
    "frechet_distance": "distance between the first variants and the real training images",
    "frechet_distance_real": "the same with real test images instead of variants: the lower limit",
    "precision": "share of the first variants within the support of as many real training images (3 nearest neighbours)",
    "recall": "share of these training images within the support of the first variants",
    "precision_real": "the same with real test images instead of variants: the upper limit",
    "recall_real": "the same with real test images instead of variants: the upper limit",
    "nearest_training_ratio": "first variants' median distance to the nearest training image, over that of real test images",
    "encoder_knn_accuracy": "20-NN accuracy of the generator's own encoder on real test images",
    "encoder_neighbour_agreement": "share of the 4 nearest training images, by that encoder, of the test image's class",
    "classifier_accuracy": "of the classifier on real test images",
    "images_per_second": "generated images, including encoding",
}


def main() -> None:
    """Evaluate and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--generator", default="icgan-cifar10-32", help="bundled name, folder or repository")
    what.add_argument("--bank", help="bank of the test images, whose first variants are measured")
    parser.add_argument("--judge", required=True, help="folder written by classifier.py")
    parser.add_argument("--train", required=True, help="labelled images the classifier was trained on")
    parser.add_argument("--test", required=True, help="labelled images to generate from")
    parser.add_argument("--out", required=True, type=Path, help="folder for the report")
    parser.add_argument("--variants", type=int, default=4, help="generated images of each test image")
    parser.add_argument("--limit", type=int, help="number of test images, for a quick look")
    parser.add_argument("--seed", type=int, default=0, help="base seed of the generated images")
    parser.add_argument("--batch-size", type=int, default=250, help="images generated at once")
    parser.add_argument("--device", default="cpu", help="auto, cuda, mps or cpu; default cpu")
    args = parser.parse_args()
    args.device = settle_device(args.device, f"--device {args.device}")
    if args.variants < 2:
        raise SystemExit(f"--variants {args.variants}: expected 2 or more, diversity is between variants")
    refuse_unwritable(args.out, "--out")
    generator = None if args.bank else gt.load_generator(args.generator).to(args.device)
    judge = load_judge(args.judge).to(args.device)
    size = judge.arguments["size"]
    (labels, names), (expected, test_names) = load_labels(args.train), load_labels(args.test)
    if not names == test_names == judge.names:
        raise SystemExit(f"classes: --train has {names}, --test {test_names}, the classifier {judge.names}: expected the same")
    rows = spaced(len(expected), args.limit)
    refuse_too_few(expected[rows])
    expected = choose_labels(expected, args.limit)
    train, sources = load_images(args.train, size), load_images(args.test, size, args.limit)
    start = time.perf_counter()
    if generator is None:
        settings = {"bank": args.bank, "variants": args.variants}
        made = read_variants(args.bank, open_images(args.test), rows.tolist(), args.variants, size)
    else:
        settings = {"generator": args.generator, "fingerprint": generator.fingerprint(), "seed": args.seed, "variants": args.variants}
        seen = load_sources(lambda size: load_images(args.test, size, args.limit), generator, sources)
        made = generate(generator, seen, expected, args.variants, args.seed, args.batch_size, size)
    seconds = time.perf_counter() - start
    figures, predicted, closest = measure(judge, train, sources, expected, made)
    if generator is not None:
        figures["images_per_second"] = predicted.numel() / seconds
    if figures["classifier_accuracy"] < 0.9:
        print(f"the classifier is right on {figures['classifier_accuracy']:.1%} of the real images: it should reach 90%")
    agrees = (predicted == expected[:, None]).float().mean(dim=1)
    per_class = {"label_agreement": agrees}
    if generator is not None and not generator.inputs and "features" in generator.encode(seen[:2].to(generator.device).float() / 255):
        known = train.split(500) if seen.shape[-1] == size else iterate_images(args.train, seen.shape[-1])
        right, same = encoder_votes(generator, known, labels, seen, expected)
        figures |= {"encoder_knn_accuracy": right.mean().item(), "encoder_neighbour_agreement": same.mean().item()}
        per_class |= {"encoder_knn_accuracy": right, "encoder_neighbour_agreement": same}
    figures = {name: _rounded(figures[name]) for name in MEANING if name in figures}
    classes = {
        name: {measure: _rounded(values[expected == i].mean().item()) for measure, values in per_class.items()}
        for i, name in enumerate(names) if (expected == i).any()
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "evaluation.json").write_text(json.dumps(settings | figures | {"classes": classes}, indent=2) + "\n")
    (args.out / "evaluation.md").write_text(markdown(figures))
    variants_picture(sources, expected, made, args.out / "variants.png")
    nearest_picture(sources, expected, made, train, closest, args.out / "nearest.png")
    if "encoder_knn_accuracy" in per_class:
        classes_picture(classes, args.out / "classes.png")
    print(markdown(figures))


def choose_labels(labels: Tensor, limit: int | None) -> Tensor:
    """Return the labels of the images that `load_images` takes with `limit`; warn if some classes are not among them."""
    if limit is not None:
        warn_of_absent_classes(labels, "--limit", limit, lambda n: spaced(len(labels), n))
    return labels[spaced(len(labels), limit)]


def load_sources(load: Callable[[int], Tensor], generator: gt.ImageGenerator, judged: Tensor) -> Tensor:
    """Return the images to generate from: those of the classifier, `judged` (N, 3, S, S), or larger ones where the generator is larger.

    `load` returns the same images in a size.
    """
    size = max(judged.shape[-1], *generator.image_size)
    return judged if size == judged.shape[-1] else load(size)


def generate(
    generator: gt.ImageGenerator, images: Tensor, labels: Tensor, variants: int, seed: int, batch_size: int = 250, size: int | None = None
) -> Tensor:  # fmt: skip
    """Return uint8 (N, V, 3, H, W): variants of images (N, 3, H, W), a function of the generator, the images and the seed.

    `labels` (N,) are passed to generators with class labels only. With `size` the variants are resized to squares for the classifier.
    """
    needed = (lambda sample: {"labels": sample[2]}) if "labels" in generator.inputs else None
    augment = gt.GenerativeAugment(generator, p=1.0, seeds_getter=lambda sample: sample[1], inputs_getter=needed)
    made, images = [], images.to(generator.device)
    for rows in track(torch.arange(len(images)).split(batch_size), "generating"):
        keys = rows.tolist()
        draws = [augment(images[rows], gt.derive_seeds(seed, keys, [v] * len(keys)), labels[rows])[0] for v in range(variants)]
        made.append(torch.stack([draw if size is None else resize(draw, size) for draw in draws], dim=1).cpu())
    if augment.nonfinite_count:
        raise SystemExit(f"{augment.nonfinite_count} generated images are not finite: nothing to measure")
    return torch.cat(made)


def read_variants(path: str, source: ImageSource, rows: list[int], variants: int, size: int) -> Tensor:
    """Return uint8 (N, V, 3, size, size): the first variants that a bank of `source` has of the images in these rows.

    Row numbers fit any images, so the bank's marks of its sources are compared with up to 64 images too.
    """
    try:
        bank = Bank.open(path)
        BankPairs(bank, source)  # refuses other images than those the bank was made of
        if bank.image_size != (size, size):
            raise SystemExit(f"--bank {path}: its images are of (h, w) = {bank.image_size}, expected {(size, size)} like the classifier's")
        keys = [source.keys[row] for row in rows]
        return torch.stack([bank.read(keys, [v] * len(keys)) for v in range(variants)], dim=1)
    except gt.GentransformsError as error:
        raise SystemExit(f"--bank: {error} (expected a bank of the images in --test, with --variants {variants} or more)") from error


def refuse_too_few(labels: Tensor) -> None:
    """Exit if distances within a class, or to the third nearest image, would have nothing to measure."""
    rarest = min(labels.unique(return_counts=True)[1].tolist(), default=0)
    if len(labels) < 4 or rarest < 2:
        raise SystemExit(
            f"{len(labels)} test images, {rarest} of the rarest class: expected at least 4, and 2 of each class; raise --limit"
        )


def measure(judge: Judge, train: Tensor, sources: Tensor, expected: Tensor, made: Tensor) -> tuple[dict[str, float], Tensor, Tensor]:
    """Return the figures, the predicted labels (N, V), and (N,) the training image nearest to each source's first variant."""
    guesses, real = predict(judge, sources)
    _, bank = predict(judge, train)
    predicted, features = predict(judge, made.flatten(0, 1))
    predicted, features = predicted.view(made.shape[:2]), features.unflatten(0, made.shape[:2])
    spread = spread_of_classes(real, expected)
    share, interval = agreement(predicted, expected)
    some = torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))[: len(real)]
    first = features[:, 0].contiguous()
    precision, recall, *_ = precision_recall_density_coverage(first, bank[some], k=3)
    precision_real, recall_real, *_ = precision_recall_density_coverage(real, bank[some], k=3)
    near, closest = nearest(first, bank)
    figures = {
        "images": float(predicted.numel()),
        "label_agreement": share,
        "label_agreement_interval": interval,
        "diversity": diversity(features, spread),
        "distance_from_source": distance_from_source(features, real, spread),
        "frechet_distance": frechet_distance(first, bank),
        "frechet_distance_real": frechet_distance(real, bank),
        "precision": precision,
        "recall": recall,
        "precision_real": precision_real,
        "recall_real": recall_real,
        "classifier_accuracy": (guesses == expected).float().mean().item(),
    }
    if own := nearest(real, bank)[0].median().item():
        figures["nearest_training_ratio"] = near.median().item() / own
    else:
        print("nearest_training_ratio is left out: most test images are among the training images, at distance 0")
    return figures, predicted, closest


def encoder_votes(
    generator: gt.ImageGenerator, train: Iterable[Tensor], labels: Tensor, sources: Tensor, expected: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (N,) whether the generator's encoder recognises each source's class, and (N,) how many of its 4 nearest share it.

    `train` are batches of training images (B, 3, S, S) uint8.
    """
    bank, queries = (
        torch.cat([generator.encode(b.to(generator.device).float() / 255)["features"].float().cpu() for b in batches])
        for batches in (train, sources.split(500))
    )
    # Features lie in a narrow cone; like train.py, compare them relative to their mean.
    mean = bank.mean(dim=0)
    return knn_vote(queries - mean, expected, bank - mean, labels, k=20)[0], knn_vote(queries - mean, expected, bank - mean, labels, k=4)[1]


def markdown(figures: dict[str, float]) -> str:
    """Return the figures as a table."""
    rows = [f"| {name} | {value:g} | {MEANING[name]} |" for name, value in figures.items()]
    return "\n".join(["| figure | value | what it is |", "| --- | ---: | --- |", *rows]) + "\n"


def _rounded(value: float) -> float:
    return round(value, 4) if value < 100 else round(value)


if __name__ == "__main__":
    main()
