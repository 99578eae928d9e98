"""The methods by name."""

from __future__ import annotations

from barlowtwins import BarlowTwins
from byol import BYOL
from mocov2plus import MoCoV2Plus
from pretraining import Pretraining
from simclr import SimCLR
from simsiam import SimSiam

METHODS: dict[str, type[Pretraining]] = {
    "simclr": SimCLR, "simsiam": SimSiam, "byol": BYOL, "mocov2plus": MoCoV2Plus, "barlowtwins": BarlowTwins,
}  # fmt: skip
