"""What figures need besides the features: where options decide that one cannot be measured, it is known before the work."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from gentransforms.errors import ConfigError

__all__ = [
    "CELL", "HELD_OUT", "LABELLED", "NO_HOLDOUT", "NO_LABELS", "ONE_VARIANT", "SETS", "VARIED", "Given", "check_counts", "few_held_out",
    "few_sources",
]  # fmt: skip

LABELLED = ("label_agreement", "label_kappa", "drift/classes")
HELD_OUT = ("training_share", "training_share_others", "c_t")
VARIED = ("variant_distance", "vendi", "duplicate_variants")
SETS = ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage", "real_or_generated")

NO_LABELS = "no labels were given"
NO_HOLDOUT = "no holdout was given"
ONE_VARIANT = "every source has one variant: nothing to compare"
CELL = 200  # sources in a cell of C_T
_LEAST = 2  # sources: images are compared with each other
_HALF = 8  # sources in each half that sets are compared by


@dataclass(frozen=True)
class Given:
    """What options decide of an audit.

    Attributes:
        sources: how many are audited, at most.
        variants: how many each has, at most.
        labels: whether there are any.
        holdout: how many held-out images; None without a holdout.
        attributes: their names.

    Example:
        >>> Given(sources=100, variants=4).why_not("c_t")
        'no holdout was given'
    """

    sources: int
    variants: int
    labels: bool = False
    holdout: int | None = None
    attributes: Collection[str] = ()

    def why_not(self, name: str) -> str | None:
        """Return why a measure cannot be taken; None as far as that is not known before the images are read."""
        if name in LABELLED and not self.labels:
            return NO_LABELS
        if name in HELD_OUT:
            return NO_HOLDOUT if self.holdout is None else few_held_out(self.holdout, self.sources)
        if name in VARIED and self.variants < 2:
            return ONE_VARIANT
        return few_sources(self.sources) if name in SETS else None


def few_held_out(held_out: int, sources: int) -> str | None:
    """Return what is needed if a holdout is too small for so many sources; None if it is not."""
    if held_out >= sources:
        return None
    fewer = f", or limit={held_out}" if held_out >= _LEAST else ""
    return (
        f"{held_out:,} held-out image{'' if held_out == 1 else 's'} for {sources:,} sources: as many are needed, or distances cannot be "
        f"compared; give more{fewer}"
    )


def few_sources(sources: int) -> str | None:
    """Return what is needed if sources are too few to be compared as sets; None if they are not."""
    least = 2 * _HALF
    return None if sources >= least else f"{sources} sources with variants: sets of images are compared from {least} on"


def check_counts(sources: int, held_out: int | None = None) -> None:
    """Raise if there are too few images to audit, or a library that so many need is absent.

    Args:
        sources: how many.
        held_out: how many held-out images; None without a holdout.

    Raises:
        ConfigError: naming what is needed.
    """
    if sources < _LEAST:
        raise ConfigError(f"{sources} source(s) to audit: expected {_LEAST} or more, since images are compared with each other")
    if held_out is None:
        return
    few = few_held_out(held_out, sources)
    if few is not None:
        raise ConfigError(f"holdout: {few}")
    if sources >= 2 * CELL:
        try:
            import sklearn.cluster  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"holdout: needs scikit-learn ({error}): install it with pip install 'gentransforms[audit]'") from error
