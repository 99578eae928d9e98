"""The BigGAN network with and without the exact rewrites: width as released (G_ch 96), 128 pixels, batch 8, float32."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gentransforms.generators.icgan.architecture import BigGANConfig
from gentransforms.generators.icgan.folding import fold
from gentransforms.generators.icgan.network import BigGANNetwork

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "icgan"))

CONFIG = BigGANConfig(resolution=128, G_ch=96, dim_z=120)


@pytest.fixture(scope="module")
def networks() -> dict[str, torch.nn.Module]:
    from networks import Generator

    torch.manual_seed(0)
    plain = Generator(CONFIG, merged=False).eval().requires_grad_(False)
    folded = BigGANNetwork(CONFIG)
    folded.load_state_dict(fold(plain.state_dict(), CONFIG, torch.float32))
    return {"plain": plain, "folded": folded}


@pytest.mark.parametrize("kind", ["plain", "folded"])
@torch.no_grad()
def test_network(benchmark: Any, kind: str, networks: dict[str, torch.nn.Module]) -> None:
    z = torch.randn(8, CONFIG.z_dim, generator=torch.Generator().manual_seed(0))
    features = torch.nn.functional.normalize(torch.randn(8, CONFIG.feature_dim, generator=torch.Generator().manual_seed(1)))
    benchmark.pedantic(networks[kind], (z, features), rounds=7, warmup_rounds=1)
