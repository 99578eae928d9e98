"""The comparison of networks with what their configurations build."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_diffusion as tiny
import torch

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.generators import structure


@pytest.fixture
def unbuildable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A pipeline whose VAE needs values to be built, as a constructor that computes with its weights does."""
    pipe = tiny.variation()
    kind = type(pipe.vae)

    def refuse(*_: Any, **__: Any) -> Any:
        torch.empty(1, device="meta").item()

    structure._build.cache_clear()
    monkeypatch.setattr(structure, "_told", set())
    monkeypatch.setattr(kind, "from_config", classmethod(refuse))
    yield pipe
    structure._build.cache_clear()


class TestCheckStructure:
    def test_a_network_that_cannot_be_built_without_weights_is_named_once(self, unbuildable: Any) -> None:
        with pytest.warns(UserWarning, match=r"vae \(AutoencoderKL\) cannot be built.*RuntimeError.*not checked.*fingerprint"):
            generator = gt.StableDiffusionVariation.from_pipeline(unbuildable)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            generator.fingerprint()
            gt.StableDiffusionVariation.from_pipeline(unbuildable)

    def test_the_others_are_compared_nevertheless(self, unbuildable: Any) -> None:
        unbuildable.unet.down_blocks[0].resnets[0].output_scale_factor = 2.0
        with pytest.raises(ConfigError, match=r"unet\.down_blocks.*output_scale_factor"):
            gt.StableDiffusionVariation.from_pipeline(unbuildable)
