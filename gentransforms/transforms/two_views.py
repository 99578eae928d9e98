"""`TwoViews`: a real and a generated view of a sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from gentransforms.errors import ConfigError
from gentransforms.transforms.memory import copy_shared, find_changed, note_versions

__all__ = ["TwoViews"]


class TwoViews(nn.Module):
    """Return two views of one sample, as the paper trains on them: a real one and a generated one.

    Works with an online generator (`GenerativeAugment`) or a bank (`BankAugment`), on single samples of a data set or on
    batches.

    Args:
        generative: generates the image of the second view; its `p` says how often.
        classic1: classic augmentation of the real view, or None.
        classic2: classic augmentation of the generated view, or None.

    Returns:
        (classic1(sample), classic2(generative(sample))). The two share no memory: what `generative` returns of the sample, such as a
        kept image, a crop of it or a label, is copied.

    Raises:
        ConfigError: if an argument is not a transform, or `generative` changes the sample in place.

    Example:
        >>> import torch
        >>> from torchvision.transforms import v2
        >>> from gentransforms import GenerativeAugment
        >>> from gentransforms.testing import FakeGenerator
        >>> views = TwoViews(GenerativeAugment(FakeGenerator(), p=1.0), v2.RandomCrop(12), v2.RandomCrop(12))
        >>> real, generated = views(torch.rand(4, 3, 16, 16))
        >>> real.shape == generated.shape == (4, 3, 12, 12)
        True

    Source: Ayromlou et al. (AAAI 2025), section 3.
    """

    def __init__(
        self, generative: Callable[..., Any], classic1: Callable[..., Any] | None = None, classic2: Callable[..., Any] | None = None
    ) -> None:
        super().__init__()
        for name, view in {"generative": generative, "classic1": classic1, "classic2": classic2}.items():
            if not callable(view) and (view is not None or name == "generative"):
                raise ConfigError(f"{name}={view!r}: expected a transform")
        self.generative, self.classic1, self.classic2 = generative, classic1, classic2

    def forward(self, *inputs: Any) -> tuple[Any, Any]:
        """Return the two views."""
        sample = inputs if len(inputs) > 1 else inputs[0]
        versions = note_versions(sample)
        generated = self.generative(sample)
        if (changed := find_changed(versions)) is not None:
            raise ConfigError(
                f"generative, a {type(self.generative).__name__}, changed a tensor {tuple(changed.shape)} of the sample in place, and with "
                "it the real view: expected a transform that leaves its input alone; move what works in place to classic2, or use "
                "inplace=False"
            )
        generated = copy_shared(generated, sample)
        return _maybe(self.classic1, sample), _maybe(self.classic2, generated)


def _maybe(transform: Callable[..., Any] | None, sample: Any) -> Any:
    return sample if transform is None else transform(sample)
