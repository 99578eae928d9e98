"""Are the variants, as a set, like real images?

Every figure compares variants of one random half of the sources with the real images of the other half; its reference
replaces each variant by its source. So sample sizes are equal, and exact copies give the reference itself. Both are means
over the same random halves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gentransforms.audit.evidence import CPU, Evidence, Measure
from gentransforms.audit.intervals import Resamples, subsampling_interval
from gentransforms.audit.measures.needs import SETS, few_sources
from gentransforms.audit.neighbours import radii, squared_distances

__all__ = ["frechet_distance", "kernel_distance", "measure_likeness", "precision_recall_density_coverage", "real_or_generated"]

_PART = "likeness"
_SPLITS = 20
_MOST = 3000  # images a side: the cost of supports grows with the square
_K = 5
_FOLDS = 5
_SEED = 0

# What a figure cannot leave.
_RANGES = {
    "frechet_distance": (0.0, math.inf), "density": (0.0, math.inf),
    "precision": (0.0, 1.0), "recall": (0.0, 1.0), "coverage": (0.0, 1.0),
}  # fmt: skip
_MEANINGS = {
    "frechet_distance": "Fréchet distance between variants and real images in the encoder's features (Heusel et al., 2017); "
    "good is near the reference, real against real",
    "kernel_distance": "squared maximum mean discrepancy with a cubic kernel (Bińkowski et al., 2018); good is near the reference, about 0",
    "precision": "share of variants within the support of real images (Kynkäänniemi et al., 2019): do they look real? "
    "good is near the reference",
    "recall": "share of real images within the support of variants: does everything occur? good is near the reference",
    "density": "how densely real images surround a variant (Naeem et al., 2020); good is near the reference",
    "coverage": "share of real images with a variant in their neighbourhood (Naeem et al., 2020); good is near the reference",
}


def measure_likeness(e: Evidence, resamples: Resamples) -> dict[str, Measure | str]:
    """Return how far variants and real images differ as sets, or why a measure is left out."""
    sources = (e.counts > 0).nonzero()[:, 0]
    few = few_sources(len(sources))
    if few is not None:
        return dict.fromkeys(SETS, few)
    taken = min(len(sources) // 2, _MOST)
    first = e.counts.cumsum(0) - e.counts
    rng = torch.Generator("cpu").manual_seed(_SEED)
    values: dict[str, list[float]] = {name: [] for name in _MEANINGS}
    references: dict[str, list[float]] = {name: [] for name in _MEANINGS}
    for split in range(_SPLITS):
        order = sources[torch.randperm(len(sources), generator=rng)]
        half, rest = order[:taken], order[taken : 2 * taken]
        variants = first[half] + split % e.counts[half]
        for found, points in ((values, e.variants[variants]), (references, e.real[half])):
            for name, value in _compare(points, e.real[rest], e.device).items():
                found[name].append(value)
    result: dict[str, Measure | str] = {}
    for name, meaning in _MEANINGS.items():
        value, (low, high) = subsampling_interval(values[name], taken, len(sources))
        least, most = _RANGES.get(name, (-math.inf, math.inf))
        interval = max(low, least), min(high, most)
        reference, _ = subsampling_interval(references[name], taken, len(sources))
        result[name] = Measure(_PART, value, interval, reference, meaning)
    result["real_or_generated"] = _told_apart(e, sources, first, resamples)
    return result


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) of the Gaussians fitted to a and b, (N, D) each.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium" (2017).

    Example:
        >>> import torch
        >>> points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(points, points + torch.tensor([2.0, 0.0, 0.0])), 4)
        4.0
    """
    a, b = a.double(), b.double()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    x, y = (a - a.mean(0)) / (len(a) - 1) ** 0.5, (b - b.mean(0)) / (len(b) - 1) ** 0.5  # A = x^T x, B = y^T y
    if min(len(a), len(b)) < a.shape[1]:
        # The roots of the eigenvalues of A B are the singular values of x y^T: a smaller matrix, and exact where A is singular.
        cross = torch.linalg.svdvals(x @ y.T).sum()
    else:
        # The eigenvalues of A B are those of the symmetric B^(1/2) A B^(1/2), real and not negative.
        values, vectors = torch.linalg.eigh(y.T @ y)
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        cross = torch.linalg.eigvalsh(root @ (x.T @ x) @ root).clamp(min=0).sqrt().sum()
    # Not below 0, where it can come to lie by rounding.
    return max(0.0, float(shift + x.square().sum() + y.square().sum() - 2 * cross))


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Return the unbiased squared maximum mean discrepancy of a and b, (N, D) each, with the kernel (x.y / D + 1)^3.

    Source: Bińkowski et al., "Demystifying MMD GANs" (ICLR 2018), equation 4.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x.double() @ y.double().T / x.shape[1] + 1) ** 3

    def among(x: Tensor) -> Tensor:
        values = kernel(x, x)
        return (values.sum() - values.trace()) / (len(x) * (len(x) - 1))

    return float(among(a) + among(b) - 2 * kernel(a, b).mean())


def precision_recall_density_coverage(
    made: Tensor, real: Tensor, k: int = _K, device: torch.device = CPU
) -> tuple[float, float, float, float]:
    """Compare supports: unions of balls around points that reach to their k-th nearest other point.

    Args:
        made: (M, D) features.
        real: (N, D) features.
        k: neighbours.
        device: where distances are computed.

    Returns:
        precision and recall (Kynkäänniemi et al., NeurIPS 2019), density and coverage (Naeem et al., ICML 2020).

    Example:
        >>> import torch
        >>> points = torch.arange(20.0)[:, None]
        >>> precision_recall_density_coverage(points, points, k=2)[:2]
        (1.0, 1.0)
    """
    k = min(k, len(made) - 1, len(real) - 1)
    real_radius, made_radius = (radii(points, k, device).square().to(device) for points in (real, made))
    mean = real.mean(dim=0)
    inside_real = 0
    density = 0.0
    inside_made = torch.zeros(len(real), dtype=torch.bool, device=device)
    nearest = torch.full((len(real),), torch.inf, device=device)
    for start, squares in squared_distances(made - mean, real - mean, device):
        balls = squares <= real_radius
        inside_real += int(balls.any(dim=1).sum())
        density += float(balls.sum())
        inside_made |= (squares <= made_radius[start : start + len(squares), None]).any(dim=0)
        nearest = torch.minimum(nearest, squares.amin(dim=0))
    return (
        inside_real / len(made),
        float(inside_made.double().mean()),
        density / (k * len(made)),
        float((nearest <= real_radius).double().mean()),
    )


def real_or_generated(a: Tensor, b: Tensor, folds: int = _FOLDS) -> Tensor:
    """Return how often a linear classifier tells a pair apart: (N,) float64, 0, 0.5 or 1 for each pair.

    Ridge regression on standardised features, fitted on the pairs of the other folds: a pair is never split.

    Args:
        a: (N, D) features.
        b: (N, D) features, paired with `a`.
        folds: how many.
    """
    count = len(a)
    folds = min(folds, count)
    fold = torch.randperm(count, generator=torch.Generator("cpu").manual_seed(_SEED)) % folds
    both = torch.cat([a, b]).double()
    both = (both - both.mean(dim=0)) / both.std(dim=0).clamp(min=1e-12)
    x, y = both[:count], both[count:]
    right = torch.zeros(count, dtype=torch.float64)
    # Sums over all folds once; each fold's own are taken off.
    grams = [x[rows].T @ x[rows] + y[rows].T @ y[rows] for rows in (fold == f for f in range(folds))]
    moments = [
        (x[rows].sum(0) - y[rows].sum(0), x[rows].sum(0) + y[rows].sum(0), int(rows.sum())) for rows in (fold == f for f in range(folds))
    ]
    gram = sum(grams, torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64))
    for f in range(folds):
        difference = sum((m[0] for i, m in enumerate(moments) if i != f), torch.zeros(x.shape[1], dtype=torch.float64))
        total = sum((m[1] for i, m in enumerate(moments) if i != f), torch.zeros(x.shape[1], dtype=torch.float64))
        size = 2 * sum(m[2] for i, m in enumerate(moments) if i != f)
        centre = total / size
        scatter = gram - grams[f] - size * torch.outer(centre, centre)
        scatter.diagonal().add_(max(1.0, 0.01 * size))
        direction = torch.linalg.solve(scatter, difference)
        rows = fold == f
        scores_a, scores_b = (x[rows] - centre) @ direction, (y[rows] - centre) @ direction
        right[rows] = (_step(scores_a) + _step(-scores_b)) / 2
    return right


def _step(scores: Tensor) -> Tensor:
    """Return 1 where a score is above 0, 0.5 where it is 0, else 0."""
    return (scores > 0).double() + 0.5 * (scores == 0).double()


def _told_apart(e: Evidence, sources: Tensor, first: Tensor, resamples: Resamples) -> Measure:
    rows = sources[torch.randperm(len(sources), generator=torch.Generator("cpu").manual_seed(_SEED))[: 2 * _MOST]]
    right = torch.full((len(e.real),), torch.nan, dtype=torch.float64)
    right[rows] = real_or_generated(e.real[rows], e.variants[first[rows]])
    value, interval = resamples.mean(right)
    half = len(rows) // 2
    reference = float(real_or_generated(e.real[rows[:half]], e.real[rows[half : 2 * half]]).mean())
    meaning = (
        "accuracy of a linear classifier that tells a source from its variant, on pairs it was not fitted on; 0.5 is best, "
        "the reference tells real from real"
    )
    return Measure(_PART, value, interval, reference, meaning)


def _compare(points: Tensor, real: Tensor, device: torch.device) -> dict[str, float]:
    names = ("precision", "recall", "density", "coverage")
    supports = dict(zip(names, precision_recall_density_coverage(points, real, device=device), strict=True))
    return {"frechet_distance": frechet_distance(points, real), "kernel_distance": kernel_distance(points, real), **supports}
