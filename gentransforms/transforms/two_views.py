"""`TwoViews`: a real and a generated view of a sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from gentransforms.errors import ConfigError

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
        (classic1(sample), classic2(generative(sample))).

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
        generated = self.generative(sample)
        if self.classic1 is not None or self.classic2 is not None:
            generated = _copy_shared(generated, sample)
        return _maybe(self.classic1, sample), _maybe(self.classic2, generated)


def _copy_shared(generated: Any, sample: Any) -> Any:
    """Return `generated` with copies of the tensors that are those of `sample`: an in-place transform of one view, such as
    ``v2.Normalize(…, inplace=True)``, must not change the other.
    """
    own = set(map(id, tree_flatten(sample)[0]))
    flat, spec = tree_flatten(generated)
    return tree_unflatten([leaf.clone() if isinstance(leaf, Tensor) and id(leaf) in own else leaf for leaf in flat], spec)


def _maybe(transform: Callable[..., Any] | None, sample: Any) -> Any:
    return sample if transform is None else transform(sample)
