"""What an audit rests on: the features of every image, and which variant belongs to which source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gentransforms.audit.measures.needs import check_counts
from gentransforms.errors import ConfigError, GeneratorError

__all__ = ["CPU", "Evidence", "Measure", "mean_per_source"]

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Measure:
    """One figure of an audit.

    Attributes:
        part: of the report that it belongs to, such as ``"faithfulness"``.
        value: of the generated images.
        interval: 95% interval over sources; None where there is nothing to vary.
        reference: the same figure among real images, or what chance gives; None where there is none.
        meaning: what it is and what is good, in one sentence.
    """

    part: str
    value: float
    interval: tuple[float, float] | None
    reference: float | None
    meaning: str


@dataclass(frozen=True)
class Evidence:
    """Features of real and generated images, paired.

    Attributes:
        keys: of the N sources.
        real: (N, D) float32, features of the sources.
        variants: (M, D) float32, features of the variants, ordered by source.
        owner: (M,) int64, the row of `real` that each variant was made from; ascending.
        number: (M,) int64, which variant of its source each is.
        labels: (N,) int64, the class of each source; None without labels.
        classes: the names of the classes.
        holdout: (H, D) float32, features of real images that the generator has not seen; None if there are none.
        statistics: (N, S) float32, simple figures of the pixels of each source; see `pixels.STATISTICS`.
        variant_statistics: (M, S) float32, the same of the variants.
        device: where distances are computed.

    Raises:
        GeneratorError: if features hold NaN or infinity, naming the image, or have different lengths.
        ConfigError: if sizes do not fit, or there is nothing to measure.
    """

    keys: Sequence[str | int]
    real: Tensor
    variants: Tensor
    owner: Tensor
    number: Tensor
    labels: Tensor | None = None
    classes: Sequence[str] = ()
    holdout: Tensor | None = None
    statistics: Tensor | None = None
    variant_statistics: Tensor | None = None
    device: torch.device = CPU

    def __post_init__(self) -> None:
        check_counts(len(self.real))
        if not len(self.variants):
            raise ConfigError("no variants to audit: expected finite images of some of the sources")
        if self.real.ndim != 2 or self.variants.ndim != 2 or self.real.shape[1] != self.variants.shape[1]:
            shapes = f"{tuple(self.real.shape)} and {tuple(self.variants.shape)}"
            raise GeneratorError(
                f"the encoder's features have the shapes {shapes}: expected (images, features), with one number of features"
            )
        if self.labels is not None and len(self.labels) != len(self.real):
            raise ConfigError(f"labels: {len(self.labels)} for {len(self.real)} sources: expected one for each, in order")
        assert bool((self.owner[1:] >= self.owner[:-1]).all()), "variants are ordered by source"
        for what, features in {"source": self.real, "variant": self.variants, "held-out image": self.holdout}.items():
            if features is not None and not bool(torch.isfinite(features).all()):
                row = int((~torch.isfinite(features).all(dim=1)).nonzero()[0])
                name = self.keys[row] if what == "source" else self.keys[int(self.owner[row])] if what == "variant" else row
                raise GeneratorError(
                    f"the encoder's features of {what} {name!r} hold NaN or infinity: expected finite numbers; "
                    "check the encoder's dtype and the range [0, 1] it is given, or choose another encoder"
                )

    @property
    def counts(self) -> Tensor:
        """How many variants each source has: (N,) int64."""
        return torch.bincount(self.owner, minlength=len(self.real))

    def grouped(self) -> tuple[Tensor, Tensor]:
        """Return the variants of each source side by side: rows of `variants` (N, V), and which of these are there (N, V) bool.

        V is the largest number of variants of a source; places without a variant hold row 0.
        """
        counts = self.counts
        places = torch.arange(len(self.owner)) - (counts.cumsum(0) - counts)[self.owner]
        rows = torch.zeros(len(self.real), int(counts.max()), dtype=torch.int64)
        rows[self.owner, places] = torch.arange(len(self.owner))
        return rows, torch.arange(rows.shape[1]) < counts[:, None]


def mean_per_source(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """Return the mean of `values` (M,) for each of `count` sources: (count,) float64, NaN for a source without values.

    Example:
        >>> import torch
        >>> mean_per_source(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2]), 3).tolist()
        [2.0, nan, 5.0]
    """
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, owner, values.double())
    return sums / torch.bincount(owner, minlength=count)
