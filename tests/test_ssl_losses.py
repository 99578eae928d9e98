"""The five losses against NumPy, written out from the papers, values and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ssl_example import ssl, tiny
from torch import Tensor, nn

pytestmark = [pytest.mark.filterwarnings("ignore:::lightning"), pytest.mark.filterwarnings("ignore:::pytorch_lightning")]


class Same(nn.Module):
    """The identity as a network is one: its output is another tensor, without gradient where there is to be none."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1


def module_of(method: str, *overrides: str) -> Any:
    """A method whose networks are identities: the two views are the projections themselves."""
    module = ssl("methods").METHODS[method](tiny(method, "method.out=8", *overrides), 0)
    for name in ("backbone", "projector", "predictor", "target_backbone", "target_projector"):
        if hasattr(module, name):
            setattr(module, name, Same())
    return module


def projections(seed: int, count: int = 6, width: int = 8) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(count, width, generator=rng, requires_grad=True) for _ in range(2)]


def unit(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def simclr(z1: np.ndarray, z2: np.ndarray, temperature: float) -> float:
    """Chen et al. (2020), equation 1, over all 2N anchors."""
    z = unit(np.concatenate([z1, z2]))
    n, total = len(z1), 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        denominator = sum(np.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i)
        total -= np.log(np.exp(z[i] @ z[partner] / temperature) / denominator)
    return total / (2 * n)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (unit(a) * unit(b)).sum(1)


def simsiam(z1: np.ndarray, z2: np.ndarray) -> float:
    return -0.5 * cosine(z1, z2).mean() - 0.5 * cosine(z2, z1).mean()


def byol(z1: np.ndarray, z2: np.ndarray) -> float:
    """Grill et al. (2020), equation 2, both ways round."""
    return 2 * ((unit(z1) - unit(z2)) ** 2).sum(1).mean()


def barlow(z1: np.ndarray, z2: np.ndarray, redundancy: float, scale: float) -> float:
    """Zbontar et al. (2021), equations 1 and 2; batch norm adds 1e-5 to the variance."""
    a, b = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (z1, z2))
    c = a.T @ b / len(a)
    on = sum((1 - c[i, i]) ** 2 for i in range(len(c)))
    off = sum(c[i, j] ** 2 for i, j in itertools.product(range(len(c)), repeat=2) if i != j)
    return scale * (on + redundancy * off)


REFERENCES: dict[str, tuple[list[str], Callable[..., float]]] = {
    "simclr": (["method.temperature=0.3"], lambda a, b: simclr(a, b, 0.3)),
    "simsiam": ([], simsiam),
    "byol": ([], byol),
    "barlowtwins": (["method.redundancy=0.02", "method.loss_scale=0.3"], lambda a, b: barlow(a, b, 0.02, 0.3)),
}


class TestAgainstReferences:
    @pytest.mark.parametrize("seed", [0, 1, 2])
    @pytest.mark.parametrize("method", REFERENCES)
    def test_value(self, method: str, seed: int) -> None:
        overrides, reference = REFERENCES[method]
        z1, z2 = projections(seed)
        features, loss = module_of(method, *overrides).step(z1, z2)
        assert torch.equal(features, z1)
        assert loss.item() == pytest.approx(reference(z1.detach().double().numpy(), z2.detach().double().numpy()), rel=1e-5)

    @pytest.mark.parametrize("method", ["simclr", "barlowtwins"])
    def test_gradient(self, method: str) -> None:
        overrides, reference = REFERENCES[method]
        z1, z2 = projections(3)
        module_of(method, *overrides).step(z1, z2)[1].backward()
        a, b = (z.detach().double().numpy() for z in (z1, z2))
        for i, j in ((0, 0), (2, 5), (5, 7)):
            for place, gradient in ((0, z1.grad), (1, z2.grad)):
                pair = [[a.copy(), b.copy()] for _ in range(2)]
                pair[0][place][i, j] += 1e-4
                pair[1][place][i, j] -= 1e-4
                slope = (reference(*pair[0]) - reference(*pair[1])) / 2e-4
                assert gradient is not None
                assert gradient[i, j].item() == pytest.approx(slope, rel=2e-3, abs=1e-6)

    @pytest.mark.parametrize(("method", "factor"), [("simsiam", 0.5), ("byol", 2.0)])
    def test_what_is_predicted_gets_no_gradient(self, method: str, factor: float) -> None:
        """Each view's gradient is that of its own prediction alone."""
        z1, z2 = projections(4)
        module_of(method).step(z1, z2)[1].backward()
        u1, u2 = (z.detach().double().numpy() for z in (z1, z2))
        norm = np.linalg.norm(u1, axis=1, keepdims=True)
        expected = -factor * (unit(u2) - cosine(u1, u2)[:, None] * unit(u1)) / norm / len(u1)
        assert z1.grad is not None
        np.testing.assert_allclose(z1.grad.numpy(), expected, rtol=1e-4, atol=1e-6)


class TestMoCo:
    def reference(self, q: np.ndarray, k: np.ndarray, queue: np.ndarray, temperature: float) -> float:
        """He et al. (2020), equation 1."""
        q, k, total = unit(q), unit(k), 0.0
        for i in range(len(q)):
            positive = np.exp(q[i] @ k[i] / temperature)
            total -= np.log(positive / (positive + sum(np.exp(q[i] @ n / temperature) for n in queue)))
        return total / len(q)

    def test_symmetric_loss_and_a_queue_per_view(self) -> None:
        module = module_of("mocov2plus", "method.queue=16", "method.temperature=0.3")
        queues = [module.criterion1.memory_bank.bank.double().numpy().copy(), module.criterion2.memory_bank.bank.double().numpy().copy()]
        for step in range(4):  # 4 x 6 keys go once round the queue of 16
            z1, z2 = projections(step)
            loss = module.step(z1, z2)[1]
            a, b = (z.detach().double().numpy() for z in (z1, z2))
            # the keys of view 2 are what queries of view 1 seek, so their negatives are earlier keys of view 2
            expected = self.reference(a, b, queues[1], 0.3) / 2 + self.reference(b, a, queues[0], 0.3) / 2
            assert loss.item() == pytest.approx(expected, rel=1e-5)
            start = (0, 6, 12, 0)[step]
            for queue, keys in zip(queues, (a, b), strict=True):
                queue[start : start + 6] = unit(keys)[: 16 - start]

    def test_keys_get_no_gradient(self) -> None:
        module = module_of("mocov2plus", "method.queue=16")
        z1, z2 = projections(0)
        queue = module.criterion2.memory_bank.bank.double().numpy().copy()
        module.step(z1, z2)[1].backward()
        a, b = (z.detach().double().numpy() for z in (z1, z2))
        shifted = [a.copy(), a.copy()]
        shifted[0][1, 2] += 1e-4
        shifted[1][1, 2] -= 1e-4
        slope = (self.reference(shifted[0], b, queue, 0.2) - self.reference(shifted[1], b, queue, 0.2)) / 2e-4 / 2
        assert z1.grad is not None
        assert z1.grad[1, 2].item() == pytest.approx(slope, rel=2e-3, abs=1e-6)


class TestHeads:
    """The heads of PAPER.md, at full width, on ResNet-50's 2048 features."""

    @pytest.mark.parametrize(
        ("method", "linear", "norms"),
        [
            ("simclr", [(2048, 4096), (4096, 512)], 0),
            ("simsiam", [(2048, 4096), (4096, 4096), (4096, 4096), (4096, 512), (512, 4096)], 4),
            ("byol", [(2048, 4096), (4096, 256), (256, 4096), (4096, 256)], 2),
            ("mocov2plus", [(2048, 2048), (2048, 256)], 0),
            ("barlowtwins", [(2048, 4096), (4096, 4096), (4096, 4096)], 2),
        ],
    )
    def test_layers(self, method: str, linear: list[tuple[int, int]], norms: int) -> None:
        settings = ssl("config").load_settings(
            ssl("config").Path(__file__).parents[1] / f"examples/ssl/configs/imagenet/{method}-baseline.yaml"
        )
        with torch.device("meta"):
            module = ssl("methods").METHODS[method](settings, 1000)
        found = [layer for head in module.heads() for layer in head.modules() if isinstance(layer, nn.Linear)]
        assert [(layer.in_features, layer.out_features) for layer in found] == linear
        assert sum(isinstance(layer, nn.BatchNorm1d) for head in module.heads() for layer in head.modules()) == norms
        assert module.backbone.width == 2048


class TestMixedPrecision:
    @pytest.mark.parametrize("method", [*REFERENCES, "mocov2plus"])
    def test_losses_are_float32(self, method: str) -> None:
        """As under mixed precision: projections of 16 bits, losses computed in 32, for all methods."""
        z1, z2 = (z.bfloat16() for z in projections(0))
        module, again = module_of(method), module_of(method)
        if method == "mocov2plus":
            for name in ("criterion1", "criterion2"):
                getattr(again, name).memory_bank.bank.copy_(getattr(module, name).memory_bank.bank)
        with torch.autocast("cpu", torch.bfloat16):
            found = module.step(z1, z2)[1]
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(again.step(z1.float(), z2.float())[1].item(), rel=1e-6)


WORLD, STEPS = 2, 3


def images_of(method: str) -> tuple[Tensor, Tensor]:
    """Two views (8, 5) of a batch, of which each of two processes gets four rows.

    Of Barlow Twins the halves hold the same rows in other orders, paired otherwise: each process normalises by its own batch.
    """
    rng = torch.Generator().manual_seed(5)
    if method != "barlowtwins":
        return torch.randn(8, 5, generator=rng), torch.randn(8, 5, generator=rng)
    a, b = (torch.randn(4, 5, generator=rng) for _ in range(2))
    return torch.cat([a, a[[2, 0, 3, 1]]]), torch.cat([b, b[[1, 2, 0, 3]]])


def train_layer(method: str, rank: int, world: int) -> list[Tensor]:
    """Return losses, weights and queues of a few steps of one layer under the loss; processes share gradients as DDP does."""
    torch.manual_seed(0)
    module, layer = module_of(method, "method.queue=16" if method == "mocov2plus" else "method.out=8"), nn.Linear(5, 8, bias=False)
    share = slice(rank * 8 // world, (rank + 1) * 8 // world)
    found = []
    for _ in range(STEPS):
        layer.zero_grad()
        loss = module.step(*(layer(view[share]) for view in images_of(method)))[1]
        loss.backward()
        parts = [loss.detach(), layer.weight.grad]
        if world > 1:
            for part in parts:
                torch.distributed.all_reduce(part)
                part /= world
        with torch.no_grad():
            layer.weight -= layer.weight.grad
        found += [parts[0].clone(), layer.weight.detach().clone()]
    if method == "mocov2plus":
        found += [criterion.memory_bank.bank for criterion in (module.criterion1, module.criterion2)]
    return found


def in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    torch.save({method: train_layer(method, rank, WORLD) for method in METHODS}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


METHODS = [*REFERENCES, "mocov2plus"]


@pytest.mark.slow
class TestTwoProcesses:
    def test_equals_one_process_with_the_whole_batch(self, tmp_path: Path) -> None:
        """Losses, weights and MoCo's queues over three steps: negatives, correlations and keys come from all processes."""
        torch.multiprocessing.spawn(in_process, (str(tmp_path),), nprocs=WORLD)
        shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
        for method in METHODS:
            for n, (expected, *found) in enumerate(zip(train_layer(method, 0, 1), *(share[method] for share in shares), strict=True)):
                for one in found:
                    torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5, msg=lambda text, m=method, n=n: f"{m} {n}: {text}")
