"""First figures for a trained 32-pixel generator, on labelled Parquet files. Labels are used here only.

    python examples/icgan/quick_check.py --generator icgan-cifar10-32 --train train.parquet --test test.parquet

k-NN accuracy: of the generator's own encoder, on real test images (20 weighted neighbours among the training images).
Label agreement: share of generated images whose k-NN label, in that same feature space, is the source's label. The
generator was trained to match these features, so read it as an upper bound; an independent classifier is the real test.
Copying: the median distance, in pixels' root mean square, from a generated image to its source, and between real images
of one class.
"""

from __future__ import annotations

import argparse
import json

import pyarrow.parquet as pq
import torch
from images import load_images
from torch import Tensor

import gentransforms as gt


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="icgan-cifar10-32", help="bundled name, folder or repository")
    parser.add_argument("--train", required=True, help="Parquet with columns image and label")
    parser.add_argument("--test", required=True, help="Parquet with columns image and label")
    parser.add_argument("--variants", type=int, default=1, help="generated images of each test image")
    args = parser.parse_args()
    generator = gt.load_generator(args.generator)
    size = generator.image_size[0]
    real, labels = load_images(args.train, size), _labels(args.train)
    sources, expected = load_images(args.test, size), _labels(args.test)
    with torch.no_grad():
        bank = _features(generator, real)
        accuracy = (_vote(_features(generator, sources), bank, labels) == expected).float().mean().item()
        agreement, copies = [], []
        for variant in range(args.variants):
            made = _generate(generator, sources, variant)
            agreement.append((_vote(_features(generator, made), bank, labels) == expected).float().mean().item())
            copies.append(_distance(made, sources))
        order = expected.argsort(stable=True)
        neighbours = _distance(sources[order][:-1], sources[order][1:])
    figures = {
        "knn_accuracy": accuracy,
        "label_agreement_own_features": sum(agreement) / len(agreement),
        "rms_distance_to_source": torch.cat(copies).median().item(),
        "rms_distance_same_class": neighbours.median().item(),
        "images": len(sources) * args.variants,
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}, indent=2))


def _labels(path: str) -> Tensor:
    return torch.tensor(pq.read_table(path, columns=["label"]).column(0).to_pylist())


def _features(generator: gt.ImageGenerator, images: Tensor) -> Tensor:
    return torch.cat([generator.encode(batch.float() / 255)["features"] for batch in images.split(500)])


def _generate(generator: gt.ImageGenerator, images: Tensor, variant: int) -> Tensor:
    seeds = gt.derive_seeds(0, range(len(images)), [variant] * len(images))
    augment = gt.GenerativeAugment(generator, p=1.0, seeds_getter=lambda sample: sample[1])
    return torch.cat([augment(batch, s)[0] for batch, s in zip(images.split(500), seeds.split(500), strict=True)])


def _vote(queries: Tensor, bank: Tensor, labels: Tensor, k: int = 20, temperature: float = 0.1) -> Tensor:
    """Weighted k-NN (Wu et al., CVPR 2018): (N,) the label with most weight."""
    votes = []
    for rows in queries.split(500):
        similarity, index = (rows @ bank.T).topk(k, dim=1)
        weights = torch.zeros(len(rows), int(labels.max()) + 1)
        votes.append(weights.scatter_add_(1, labels[index], (similarity / temperature).exp()).argmax(1))
    return torch.cat(votes)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return ((a.float() - b.float()) / 255).square().flatten(1).mean(1).sqrt()


if __name__ == "__main__":
    main()
