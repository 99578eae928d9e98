"""Learning rate, schedules, LARS and the moving average, by value at several steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from lightly.utils import lars
from ssl_example import CONFIGS, Operations, ssl, tiny
from torch import nn

pytestmark = [pytest.mark.filterwarnings("ignore:::lightning"), pytest.mark.filterwarnings("ignore:::pytorch_lightning")]


class TestLearningRate:
    @pytest.mark.parametrize(
        ("method", "expected"),
        # base x (batch per GPU x 4) / 256 x accumulated batches
        [("simclr", 0.3 * 4), ("simsiam", 0.5), ("byol", 0.2 * 4 * 16), ("mocov2plus", 0.3), ("barlowtwins", 0.8)],
    )
    def test_rule_of_the_paper(self, method: str, expected: float) -> None:
        s = ssl("config").load_settings(CONFIGS / "imagenet" / f"{method}-baseline.yaml")
        assert ssl("optimizers").learning_rate(s.optimizer, s.trainer) == pytest.approx(expected)

    @pytest.mark.parametrize(("batch", "devices", "nodes", "accumulate", "factor"), [(128, 1, 1, 1, 0.5), (64, 8, 2, 3, 12.0)])
    def test_rule(self, batch: int, devices: int, nodes: int, accumulate: int, factor: float) -> None:
        config = ssl("config")
        trainer = config.TrainerSettings(batch_size=batch, devices=devices, nodes=nodes, accumulate=accumulate)
        assert ssl("optimizers").learning_rate(config.OptimizerSettings(base_lr=0.3), trainer) == pytest.approx(0.3 * factor)


class TestSchedule:
    def rates(self, lr: float, warmup: int, total: int, start: float, final: float) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
        schedule = ssl("optimizers").build_schedule(optimizer, lr, warmup, total, start, final)
        found = []
        for _ in range(total):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    def test_values(self) -> None:
        rates = self.rates(1.2, warmup=11, total=112, start=3e-5, final=0.0)
        assert rates[0] == pytest.approx(3e-5)  # the first step has the start value
        assert rates[5] == pytest.approx((3e-5 + 1.2) / 2)
        assert rates[10] == pytest.approx(1.2)  # the last warm-up step has the whole rate
        assert rates[11] == pytest.approx(1.2)
        assert rates[61] == pytest.approx(0.6)  # half-way down
        assert rates[36] == pytest.approx(1.2 * (1 + math.cos(math.pi / 4)) / 2)
        assert rates[-1] == pytest.approx(0.0, abs=1e-12)
        assert np.all(np.diff(rates[:11]) > 0)
        assert np.all(np.diff(rates[11:]) < 0)

    def test_final_rate(self) -> None:
        assert self.rates(0.5, 2, 20, 0.1, 0.05)[-1] == pytest.approx(0.05)

    def test_constant_group(self) -> None:
        weights = [nn.Parameter(torch.ones(1)) for _ in range(2)]
        optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": 0.5, "constant": True}], lr=0.2)
        schedule = ssl("optimizers").build_schedule(optimizer, 0.2, 2, 6, 0.1, 0.0)
        rates = []
        for _ in range(6):
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
        assert [constant for _, constant in rates] == [0.5] * 6
        assert [rate for rate, _ in rates][::5] == pytest.approx([0.1, 0.0])

    def test_no_warmup(self) -> None:
        rates = self.rates(0.8, 0, 41, 0.8, 0.0)
        assert (rates[0], rates[20], rates[40]) == pytest.approx((0.8, 0.4, 0.0), abs=1e-12)

    def test_one_step_of_warmup(self) -> None:
        assert self.rates(0.8, 1, 10, 3e-5, 0.0)[:2] == pytest.approx([0.8, 0.8])


class TestMomentum:
    @pytest.mark.parametrize(("start", "end"), [(0.99, 1.0), (0.99, 0.999)])
    def test_values(self, start: float, end: float) -> None:
        at = ssl("momentum").momentum_at
        assert at(0, 101, start, end) == pytest.approx(start)
        assert at(50, 101, start, end) == pytest.approx((start + end) / 2)
        assert at(25, 101, start, end) == pytest.approx(end - (end - start) * (1 + math.cos(math.pi / 4)) / 2)
        assert at(100, 101, start, end) == pytest.approx(end)

    def test_average(self) -> None:
        module = ssl("methods").METHODS["byol"](tiny("byol", "method.momentum_start=0.9"), 0)
        module.log = lambda *args, **kwargs: None
        before = [p.clone() for p in module.target_projector.parameters()]
        with torch.no_grad():
            for p in module.projector.parameters():
                p.add_(1.0)
        module.after_step(0, 100)
        for old, new, online in zip(before, module.target_projector.parameters(), module.projector.parameters(), strict=True):
            torch.testing.assert_close(new, 0.9 * old + 0.1 * online.detach())
            assert not new.requires_grad


def reference(
    weights: list[np.ndarray], gradients: list[list[np.ndarray]], lr: float, wd: float, eta: float, clip: bool, scaled: bool
) -> Any:
    """LARS (You et al., 2017) with momentum 0.9, a weight at a time."""
    velocity = [np.zeros_like(w) for w in weights]
    for step in gradients:
        for i, g in enumerate(step):
            if scaled:
                norm, of_g = np.linalg.norm(weights[i]), np.linalg.norm(g)
                rate = eta * norm / (of_g + wd * norm + 1e-8)
                rate = min(rate / lr, 1.0) if clip else rate
                g = rate * (g + wd * weights[i]) if norm > 0 and of_g > 0 else g
            else:
                g = g + wd * weights[i]
            velocity[i] = 0.9 * velocity[i] + g
            weights[i] = weights[i] - lr * velocity[i]
    return weights


class TestLARS:
    def arrays(self, seed: int = 0) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
        rng = np.random.default_rng(seed)
        shapes = [(4, 3), (2, 2, 3, 3), (5,)]
        return [rng.normal(size=s) for s in shapes], [[rng.normal(size=s) * 10.0**-step for s in shapes] for step in range(4)]

    def run(self, optimizer: Any, parameters: list[nn.Parameter], gradients: list[list[np.ndarray]]) -> list[np.ndarray]:
        for step in gradients:
            for p, g in zip(parameters, step, strict=True):
                p.grad = torch.tensor(g)
            optimizer.step()
        return [p.detach().numpy() for p in parameters]

    @pytest.mark.parametrize("scaled", [True, False])
    @pytest.mark.parametrize("clip", [True, False])
    @pytest.mark.parametrize("wd", [0.0, 0.1])
    def test_against_numpy(self, wd: float, clip: bool, scaled: bool) -> None:
        weights, gradients = self.arrays()
        parameters = [nn.Parameter(torch.tensor(w)) for w in weights]
        groups = [{"params": parameters, "scaled": scaled}]
        optimizer = ssl("optimizers").LARS(groups, lr=0.3, momentum=0.9, weight_decay=wd, eta=0.02, clip=clip)
        found = self.run(optimizer, parameters, gradients)
        for a, b in zip(found, reference(weights, gradients, 0.3, wd, 0.02, clip, scaled), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)
        assert optimizer.param_groups[0]["weight_decay"] == wd

    def test_is_lightlys_where_that_suffices(self) -> None:
        weights, gradients = self.arrays(1)
        results = []
        for kind in ("ours", "lightly"):
            parameters = [nn.Parameter(torch.tensor(w)) for w in weights]
            if kind == "ours":
                optimizer = ssl("optimizers").LARS([{"params": parameters}], lr=0.3, momentum=0.9, weight_decay=0.1, eta=0.02, clip=False)
            else:
                optimizer = lars.LARS(parameters, lr=0.3, momentum=0.9, weight_decay=0.1, trust_coefficient=0.02)
            results.append(self.run(optimizer, parameters, gradients))
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)

    def test_weights_or_gradients_of_zero(self) -> None:
        parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))]
        optimizer = ssl("optimizers").LARS([{"params": parameters}], lr=0.5, momentum=0.0, weight_decay=0.1, eta=0.02, clip=True)
        parameters[0].grad, parameters[1].grad = torch.ones(3), torch.zeros(3)
        optimizer.step()
        assert torch.equal(parameters[0], torch.full((3,), -0.5))  # as it comes
        assert torch.equal(parameters[1], torch.ones(3))

    def test_operations_do_not_grow_with_the_layers(self) -> None:
        counts = []
        for layers in (3, 30):
            parameters = [nn.Parameter(torch.ones(4, 3)) for _ in range(layers)]
            optimizer = ssl("optimizers").LARS([{"params": parameters}], lr=0.3, momentum=0.9, weight_decay=0.1, eta=0.02, clip=True)
            self.run(optimizer, parameters, [[np.ones((4, 3), np.float32)] * layers])  # the first step makes the momenta
            with Operations() as counted:
                optimizer.step()
            counts.append(counted.count)
        assert counts[0] == counts[1] < 30

    def test_continues_a_checkpoint_of_lightlys(self) -> None:
        """Runs that were begun when the optimiser was lightly's, with its names in the groups."""
        weights, gradients = self.arrays(2)
        parameters = [nn.Parameter(torch.tensor(w)) for w in weights]
        theirs = lars.LARS(parameters, lr=0.3, momentum=0.9, weight_decay=0.1, trust_coefficient=0.02)
        self.run(theirs, parameters, gradients[:2])
        ours = ssl("optimizers").LARS([{"params": parameters}], lr=0.3, momentum=0.9, weight_decay=0.1, eta=0.02, clip=False)
        ours.load_state_dict(theirs.state_dict())
        found = self.run(ours, parameters, gradients[2:])
        for a, b in zip(found, reference(weights, gradients, 0.3, 0.1, 0.02, False, True), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)

    def test_state_survives(self) -> None:
        weights, gradients = self.arrays(2)
        parameters = [nn.Parameter(torch.tensor(w)) for w in weights]
        optimizer, again = (
            ssl("optimizers").LARS([{"params": parameters}], lr=0.3, momentum=0.9, weight_decay=0.1, eta=0.02, clip=True) for _ in range(2)
        )
        self.run(optimizer, parameters, gradients[:2])
        again.load_state_dict(optimizer.state_dict())
        found = self.run(again, parameters, gradients[2:])
        for a, b in zip(found, reference(weights, gradients, 0.3, 0.1, 0.02, True, True), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)


class TestGroups:
    def test_biases_and_norms_are_left_alone(self) -> None:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
        s = ssl("config").OptimizerSettings(exclude_bias_and_norm=True)
        weights, others = ssl("optimizers").parameter_groups([network], s)
        assert {tuple(p.shape) for p in weights["params"]} == {(4, 3, 3, 3), (2, 4)}
        assert {tuple(p.shape) for p in others["params"]} == {(4,), (2,)}
        assert len(others["params"]) == 4  # conv bias, two of the norm, linear bias
        assert others["weight_decay"] == 0.0
        assert others["scaled"] is False

    def test_all_together_for_sgd(self) -> None:
        s = ssl("config").OptimizerSettings(name="sgd", exclude_bias_and_norm=False, weight_decay=1e-5)
        (group,) = ssl("optimizers").parameter_groups([nn.Linear(2, 2)], s)
        optimizer = ssl("optimizers").build_optimizer([group], s, 0.5)
        assert isinstance(optimizer, torch.optim.SGD)
        assert (optimizer.defaults["momentum"], optimizer.defaults["weight_decay"], optimizer.defaults["lr"]) == (0.9, 1e-5, 0.5)

    def test_predictor_of_simsiam_has_a_schedule_of_its_own(self) -> None:
        """Chen and He keep it constant; without the setting it is with the rest."""
        words = ["method.predictor_hidden=4", "optimizer.exclude_bias_and_norm=true"]
        module = ssl("methods").METHODS["simsiam"](tiny("simsiam", *words, "method.predictor_schedule=constant"), 0)
        own = [group for group in module.groups() if group.get("constant")]
        assert {id(p) for group in own for p in group["params"]} == {id(p) for p in module.predictor.parameters()}
        assert [group["name"] for group in own] == ["predictor weights", "predictor bias and norm"]
        assert own[1]["weight_decay"] == 0.0
        assert len(module.groups()) == 4
        assert len(ssl("methods").METHODS["simsiam"](tiny("simsiam", *words), 0).groups()) == 2

    def test_what_does_not_train_is_not_there(self) -> None:
        module = ssl("methods").METHODS["byol"](tiny("byol"), 2)
        groups = ssl("optimizers").parameter_groups([module.backbone, *module.heads()], module.settings.optimizer)
        ids = {id(p) for group in groups for p in group["params"]}
        assert not ids & {id(p) for p in module.target_backbone.parameters()}
        assert {id(p) for p in module.backbone.parameters()} <= ids
        assert {id(p) for p in module.predictor.parameters()} <= ids
