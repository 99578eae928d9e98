"""Does the backbone merely copy the generator's encoder? Compares features by linear CKA and orthogonal Procrustes distance.

    python examples/ssl/similarity.py runs/simclr1 runs/simclr2 --generator icgan-cifar10-32 --data test.parquet --out similarity.json

Compares the features of the checkpoints with each other, and those of each checkpoint and of an untrained backbone of the first
one's architecture with those of the encoder, all on the same images. If training on generated views copied the encoder, a run would
be far more like it than a baseline is. The images are divided at random into disjoint subsets; OUT has the mean over the subsets and
the spread (standard deviation) for each pair, as the paper's table 2 has them, and a table in Markdown is printed.

CKA is written twice: plain, as reproduce.py reports it, which is too high if a subset has few images for the number of features (the
default, 2,000, is few for the 512 of a ResNet-18); and debiased, which is not. 1 - CKA and the Procrustes distance are the plain ones.

Sources: Kornblith et al., "Similarity of Neural Network Representations Revisited" (ICML 2019); Ding et al., "Grounding
Representation Similarity with Statistical Testing" (NeurIPS 2021); for the debiased estimate, Song et al., "Feature Selection via
Dependence Maximization" (JMLR 2012), as Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?" (ICLR 2021) use it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from arguments import positive
from backbones import build_backbone
from data import Source, open_images, spaced
from frozen import GeneratorsEncoder, extract_features, load_generator, load_run
from loading import WholeImages, load_into_memory, whole_loader
from shared import settle_device
from torch import Tensor
from torch.utils.data import Dataset
from trained import is_trained

import gentransforms as gt


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return the linear centred kernel alignment of features (N, D) and (N, E) of the same images: 0 to 1, 1 for rotations.

    It is biased upwards for few images: 2,000 images with 2,048 unrelated features give 0.5. Use ten times as many images as
    features, or `debiased_cka`.
    """
    x, y = _centred(x), _centred(y)
    cross = torch.linalg.matrix_norm(y.T @ x) ** 2
    return float(cross / (torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)))


def debiased_cka(x: Tensor, y: Tensor) -> float:
    """Return CKA of features (N, D) and (N, E) by the unbiased estimate of HSIC, N at least 4: about 0 for unrelated ones, however few.

    As an estimate it may be slightly below 0.
    """
    x, y = _centred(x), _centred(y)
    return float(_unbiased_hsic(x, y) / (_unbiased_hsic(x, x) * _unbiased_hsic(y, y)).sqrt())


def procrustes_distance(x: Tensor, y: Tensor) -> float:
    """Return min over rotations R of |X - Y R|^2 for centred features (N, D), (N, E) of norm 1: 0 for rotations, 2 at most."""
    x, y = (a / torch.linalg.matrix_norm(a) for a in (_centred(x), _centred(y)))
    return float((2 - 2 * torch.linalg.matrix_norm(x.T @ y, "nuc")).clamp(min=0))


def compare(
    checkpoints: list[Path], generator: gt.ImageGenerator, source: Source, limit: int, condition: str | None = None,
    rows: Tensor | None = None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Return both CKA and the distance to the encoder's features for each checkpoint, and for an untrained backbone.

    At most `limit` images are used, evenly spaced among `rows`, by default all.
    """
    rows = torch.arange(len(source)) if rows is None else rows
    own, theirs = read_features(checkpoints, generator, source, rows[spaced(len(rows), limit)], condition)
    found = {}
    for name, features in own.items():
        measures = {"linear_cka": linear_cka, "debiased_cka": debiased_cka, "procrustes_distance": procrustes_distance}
        found[name] = {measure: round(of(features, theirs[name]), 4) for measure, of in measures.items()}
    return found


def compare_pairs(own: dict[str, Tensor], theirs: dict[str, Tensor], subsets: int) -> list[dict[str, Any]]:
    """Return both CKA, 1 - CKA and distance of each pair of runs, and of each network with the encoder.

    Args:
        own: features (N, D) by name, as `read_features` returns them; ``"untrained"`` is compared with the encoder alone.
        theirs: the encoder's features (N, E) of the same images by the same names.
        subsets: number of disjoint subsets of the images, drawn at random but always the same, over which mean and spread are taken.
    """
    pairs = [(a, b, own[a], own[b]) for a, b in combinations([name for name in own if name != "untrained"], 2)]
    pairs += [(name, "encoder", features, theirs[name]) for name, features in own.items()]
    # In the images' own order, each subset might have classes of its own.
    order = torch.randperm(len(pairs[0][2]), generator=torch.Generator().manual_seed(0))
    found = []
    for first, second, x, y in pairs:
        parts = [(x[rows], y[rows]) for rows in (order[i::subsets] for i in range(subsets))]
        cka, debiased, distances = ([f(*part) for part in parts] for f in (linear_cka, debiased_cka, procrustes_distance))
        measures = {
            "linear_cka": cka, "debiased_cka": debiased, "one_minus_cka": [1 - value for value in cka], "procrustes_distance": distances,
        }  # fmt: skip
        found.append({"first": first, "second": second} | {name: _mean_and_spread(values) for name, values in measures.items()})
    return found


def read_features(
    checkpoints: list[Path], generator: gt.ImageGenerator, source: Source, rows: Tensor, condition: str | None = None, device: str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the features (N, D) of an untrained backbone and of each checkpoint, and the encoder's (N, E), both by these names.

    The encoder sees the images in the size that the run was trained with.
    """
    encoder = GeneratorsEncoder(generator.to(device), condition)
    of_size: dict[int, Tensor] = {}
    own, theirs = {}, {}
    for path in [None, *checkpoints]:
        backbone, settings = load_run(path or checkpoints[0])
        if path is None:
            torch.manual_seed(0)
            backbone = build_backbone(settings.backbone).eval()
        size, name = settings.data.image_size, "untrained" if path is None else str(path)
        images: Dataset[Tensor] = load_into_memory(source, rows, size)[0] if settings.data.in_memory else WholeImages(source, rows, size)
        if size not in of_size:
            of_size[size] = extract_features(encoder, whole_loader(images, 100, 0), device)[0]
        own[name], theirs[name] = extract_features(backbone, whole_loader(images, 100, 0), device)[0], of_size[size]
    return own, theirs


def table(pairs: list[dict[str, Any]]) -> str:
    """Return the pairs as a Markdown table, mean ± spread."""
    measures = ("linear_cka", "debiased_cka", "one_minus_cka", "procrustes_distance")
    rows = [["first", "second", "CKA", "debiased CKA", "1 - CKA", "Procrustes distance"], ["---"] * 2 + ["---:"] * 4]
    for pair in pairs:
        cells = [f"{pair[m]['mean']:.3f}" + ("" if pair[m]["spread"] is None else f" ± {pair[m]['spread']:.3f}") for m in measures]
        rows.append([pair["first"], pair["second"], *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _mean_and_spread(values: Sequence[float]) -> dict[str, float | None]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    mean = round(statistics.fmean(values), 4) + 0.0  # 0 rather than -0
    return {"mean": mean, "spread": None if spread is None else round(spread, 4)}


def _unbiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """Return N (N - 3) times the unbiased estimate of HSIC of linear kernels, from centred features alone.

    Without their diagonals, whose entries are a and b, the kernels of centred features have row sums of -a and -b.
    """
    n, a, b = len(x), x.square().sum(dim=1), y.square().sum(dim=1)
    total = a.sum() * b.sum() / ((n - 1) * (n - 2))
    return torch.linalg.matrix_norm(y.T @ x) ** 2 - a @ b + total - 2 / (n - 2) * (a @ b)


def _centred(x: Tensor) -> Tensor:
    x = x.double()
    return x - x.mean(dim=0)


def main() -> None:
    """Parse the command line, compare and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="folders of runs, or their .ckpt")
    parser.add_argument("--generator", required=True, help="bundled name, folder or repository")
    parser.add_argument("--data", required=True, help="images, as data.train of the settings")
    parser.add_argument("--limit", type=positive, default=10_000, help="only so many, evenly spaced; default 10,000")
    parser.add_argument("--subsets", type=positive, default=5, help="disjoint subsets of the images, for the spread; default 5")
    parser.add_argument("--condition", help="which tensor of the encoder; by default its features, else the first")
    parser.add_argument("--device", default="cpu", help="auto, cuda, mps or cpu; default cpu")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the report")
    args = parser.parse_args()
    args.device = settle_device(args.device, f"--device {args.device}")
    for path in args.checkpoints:
        if path.is_dir() and not is_trained(path):
            raise SystemExit(f"{path} is not trained to its end: give its .ckpt to compare it all the same")
    generator, source = load_generator(args.generator, "--generator "), open_images(args.data)
    rows = spaced(len(source), args.limit)
    if len(rows) < 4 * args.subsets:
        raise SystemExit(f"--subsets {args.subsets}: expected at most {len(rows) // 4}, which gives each four of the {len(rows)} images")
    own, theirs = read_features(args.checkpoints, generator, source, rows, args.condition, args.device)
    pairs = compare_pairs(own, theirs, args.subsets)
    args.out.write_text(json.dumps({"images": len(rows), "subsets": args.subsets, "pairs": pairs}, indent=2) + "\n")
    print(table(pairs))


if __name__ == "__main__":
    main()
