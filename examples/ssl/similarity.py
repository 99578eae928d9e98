"""Does the backbone merely copy the generator's encoder? Compares features by linear CKA and orthogonal Procrustes distance.

    python examples/ssl/similarity.py runs/baseline runs/icgan --generator icgan-cifar10-32 --data test.parquet --out similarity.json

Compares the features of each checkpoint, and of an untrained backbone of the same architecture, with those of the encoder on the
same images. If training on generated views copied the encoder, its run would score far higher than the baseline.

Sources: Kornblith et al., "Similarity of Neural Network Representations Revisited" (ICML 2019); Ding et al., "Grounding
Representation Similarity with Statistical Testing" (NeurIPS 2021).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from arguments import positive
from backbones import build_backbone
from data import Source, open_images, spaced
from frozen import GeneratorsEncoder, extract_features, load_generator, load_run
from loading import WholeImages, load_into_memory, whole_loader
from torch import Tensor
from torch.utils.data import Dataset

import gentransforms as gt


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return the linear centred kernel alignment of features (N, D) and (N, E) of the same images: 0 to 1, 1 for rotations.

    It is biased upwards for few images: 2,000 images with 2,048 unrelated features give 0.5. Use ten times as many images as
    features.
    """
    x, y = _centred(x), _centred(y)
    cross = torch.linalg.matrix_norm(y.T @ x) ** 2
    return float(cross / (torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)))


def procrustes_distance(x: Tensor, y: Tensor) -> float:
    """Return min over rotations R of |X - Y R|^2 for centred features (N, D), (N, E) of norm 1: 0 for rotations, 2 at most."""
    x, y = (a / torch.linalg.matrix_norm(a) for a in (_centred(x), _centred(y)))
    return float((2 - 2 * torch.linalg.matrix_norm(x.T @ y, "nuc")).clamp(min=0))


def compare(
    checkpoints: list[Path], generator: gt.ImageGenerator, source: Source, limit: int, condition: str | None = None
) -> dict[str, dict[str, float]]:
    """Return CKA and distance to the encoder's features for each checkpoint, and for an untrained backbone."""
    rows = spaced(len(source), limit)
    encoder = GeneratorsEncoder(generator, condition)
    theirs: dict[int, Tensor] = {}
    found: dict[str, dict[str, float]] = {}
    for path in [None, *checkpoints]:
        backbone, settings = load_run(path or checkpoints[0])
        if path is None:
            torch.manual_seed(0)
            backbone = build_backbone(settings.backbone).eval()
        size = settings.data.image_size
        images: Dataset[Tensor] = load_into_memory(source, rows, size)[0] if settings.data.in_memory else WholeImages(source, rows, size)
        if size not in theirs:
            theirs[size] = extract_features(encoder, whole_loader(images, 100, 0), str(generator.device))[0]
        own, _ = extract_features(backbone, whole_loader(images, 100, 0))
        values = {"linear_cka": linear_cka(own, theirs[size]), "procrustes_distance": procrustes_distance(own, theirs[size])}
        found["untrained" if path is None else str(path)] = {name: round(value, 4) for name, value in values.items()}
    return found


def _centred(x: Tensor) -> Tensor:
    x = x.double()
    return x - x.mean(dim=0)


def main() -> None:
    """Parse the command line, compare and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="folders of runs, or their .ckpt")
    parser.add_argument("--generator", required=True, help="bundled name, folder or repository")
    parser.add_argument("--data", required=True, help="images, as data.train of the settings")
    parser.add_argument("--limit", type=positive, default=2000, help="only so many, evenly spaced")
    parser.add_argument("--condition", help="which tensor of the encoder; by default its features, else the first")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the report")
    args = parser.parse_args()
    generator = load_generator(args.generator, "--generator ")
    found = compare(args.checkpoints, generator, open_images(args.data), args.limit, args.condition)
    args.out.write_text(json.dumps(found, indent=2) + "\n")
    for name, values in found.items():
        print(f"{name}: linear CKA {values['linear_cka']:.3f}, Procrustes distance {values['procrustes_distance']:.3f}")


if __name__ == "__main__":
    main()
