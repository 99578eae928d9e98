"""Generators for the tests: one whose images are known in closed form, a small real one, and ones that misbehave.

In a module of their own, so that DataLoader workers and pickle find them.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import gentransforms as gt
from gentransforms.testing import FakeGenerator


class Flat(gt.ImageGenerator):
    """Makes images of one flat grey, ``(seed mod 251) / 250``, and notes everything it is given."""

    def __init__(self, size: tuple[int, int] = (8, 8), preserves_geometry: bool = False, inputs: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.image_size, self.preserves_geometry, self.inputs = tuple(size), preserves_geometry, tuple(inputs)
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.images: list[Tensor] = []
        self.seeds: list[list[int]] = []
        self.given: list[dict[str, Any]] = []

    def encode(self, images: Tensor, **inputs: Any) -> dict[str, Tensor]:
        self.images.append(images.clone())
        self.given.append(inputs)
        return {"unit": torch.ones(len(images), 1, 1, 1, device=self.device)}

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        self.seeds.append(seeds.tolist())
        grey = ((seeds % 251).float() / 250).to(self.device)
        return (grey.view(-1, 1, 1, 1) * condition["unit"]).expand(-1, 3, *self.image_size).contiguous()

    @property
    def calls(self) -> int:
        return len(self.seeds)

    @property
    def rows(self) -> int:
        return sum(map(len, self.seeds))


def grey_of(seed: int) -> float:
    """The grey that `Flat` paints for a seed."""
    return (seed % 251) / 250


def tiny_icgan() -> gt.ICGAN:
    """The real network at a size for tests, with random weights in both its halves: a copy of its own each time."""
    return copy.deepcopy(_tiny_icgan())


@functools.cache
def _tiny_icgan() -> gt.ICGAN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return gt.ICGAN(
            network={"resolution": 32, "G_ch": 8, "dim_z": 16, "shared_dim_feat": 8, "feature_dim": 16, "G_attn": "0"},
            feature_extractor={"kind": "small-resnet", "widths": [8, 16], "blocks": [1, 1]},
        )


class Hungry(FakeGenerator):
    """Runs out of memory above a number of rows, as CUDA or as the CPU's allocator does."""

    def __init__(self, fits: int = 3, kind: str = "cuda") -> None:
        super().__init__()
        self.fits, self.kind, self.tried = fits, kind, []

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        self.tried.append(len(seeds))
        if len(seeds) > self.fits:
            if self.kind == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            if self.kind == "cudnn":
                raise RuntimeError("GET was unable to find an engine to execute this computation")
            if self.kind == "cpu":
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: 8000 bytes")
            if self.kind == "python":
                raise MemoryError
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return super().sample(condition, seeds)


class NotFinite(FakeGenerator):
    """Puts one bad pixel into the images of some seeds."""

    def __init__(self, bad: tuple[int, ...] = (13,), value: float = float("nan"), preserves_geometry: bool = False) -> None:
        super().__init__(preserves_geometry=preserves_geometry)
        self.bad, self.value = tuple(bad), value

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        images = super().sample(condition, seeds)
        images[torch.isin(seeds, torch.tensor(self.bad)), 1, 2, 3] = self.value
        return images


class Returning(FakeGenerator):
    """Returns whatever `change` makes of the right images."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Any:
        return self.change(super().sample(condition, seeds))


class OnCuda(FakeGenerator):
    """Reports a CUDA device once told to: a stand-in where there is none."""

    reported: torch.device | None = None

    @property
    def device(self) -> torch.device:
        return super().device if self.reported is None else self.reported


class Many(FakeGenerator):
    """Has more tensors than forkserver passes files to a process, of every sort; its noise depends on all of them."""

    def __init__(self, count: int = 300) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.layers = torch.nn.ParameterList([torch.rand(2, 3, generator=random) for _ in range(count)])
        self.layers.append(self.layers[0])  # tied
        buffers = {
            "whole": (whole := torch.rand(4, 6, generator=random)),
            "view": whole[1:3, ::2],
            "bits": whole.view(torch.int32),
            "turned": torch.rand(5, 2, generator=random).t(),
            "spread": torch.rand(3, 1, generator=random).expand(3, 4),
            "empty": torch.zeros(0, 3),
            "short": torch.rand(3, generator=random).bfloat16(),
            "long": torch.rand(3, generator=random, dtype=torch.float64),
            "pairs": torch.rand(3, generator=random, dtype=torch.complex64),
            "flags": torch.rand(5, generator=random) > 0.5,
            "number": torch.tensor(3),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)
        self.unregistered = torch.rand(3, generator=random)

    def tensors(self) -> dict[str, Tensor]:
        return {**dict(self.named_parameters(remove_duplicate=False)), **dict(self.named_buffers()), "unregistered": self.unregistered}

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        total = sum((t.abs() if t.is_complex() else t).double().sum() for t in self.tensors().values())
        return (super().sample(condition, seeds) * torch.frac(torch.as_tensor(total)).float()).clamp(0, 1)
