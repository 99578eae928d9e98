"""Make released IC-GAN folders of any variant, with random weights: what the tests convert when ../shared is absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from gentransforms.generators.icgan.architecture import BigGANConfig, released_shapes

SHARED = Path(__file__).parents[2] / "shared" / "parity" / "icgan"
FOLDERS = ("icgan_biggan_imagenet_res64", "cc_icgan_biggan_imagenet_res64", "icgan_biggan_coco_res128")


def random_state(config: BigGANConfig, seed: int = 0) -> dict[str, Tensor]:
    """Weights that move every path: gains, biases, attention and statistics far from their neutral values."""
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in released_shapes(config).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("var"):
            state[name] = torch.rand(shape, generator=rng) + 0.5
        else:
            state[name] = torch.randn(shape, generator=rng) * (0.3 if name.endswith("mean") else 1.0)
    return state


def released_config(config: BigGANConfig) -> dict[str, Any]:
    """The authors' ``config`` dictionary for an architecture."""
    fields = config.to_dict()
    statistics = fields.pop("statistics")
    del fields["feature_dim"]
    return fields | {
        "mybn": statistics == "mybn", "cross_replica": statistics == "cross_replica", "instance_cond": True,
        "G_shared": True, "G_shared_feat": True, "bottom_width": 4, "norm_style": "bn", "num_G_SVs": 1,
        "num_G_SV_itrs": 1, "G_kernel_size": 3, "G_nl": "inplace_relu", "n_classes": fields["n_classes"] or 1000,
    }  # fmt: skip


def write_released(
    folder: Path, config: BigGANConfig, state: dict[str, Tensor], *, number: int = 0, best_fid: float = 10.0, prefix: str = ""
) -> Path:
    """Write a released folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"config": released_config(config), "best_FID": numpy.float64(best_fid), "itr": 3}
    torch.save(record, folder / f"state_dict_best{number}.pth")
    torch.save({prefix + name: tensor for name, tensor in state.items()}, folder / f"G_ema_best{number}.pth")
    return folder
