"""Transforms inside torch.fx and torch.func: they say what does not work, and differentiate alike in both modes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_banks import KEYS, SIZE, make_bank
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import gentransforms as gt
from gentransforms.errors import ImageError
from gentransforms.kornia import RandomGenerative
from gentransforms.testing import FakeGenerator

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is (deprecated|not supported):FutureWarning"),  # by torch.func.jvp itself
]

BATCH = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(9))
KINDS: tuple[Any, ...] = (gt.GenerativeAugment, RandomGenerative)


class Net(nn.Module):
    def __init__(self, augment: Any) -> None:
        super().__init__()
        self.augment = augment
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(self.augment(images) if self.training else images)
        return features


@pytest.mark.filterwarnings("ignore:.torch.jit.trace(_method)?. is (deprecated|not supported):FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", KINDS)
class TestJitTrace:
    def test_a_choice_is_not_recorded(self, kind: Any) -> None:
        net = Net(kind(FakeGenerator(8), 0.5))
        with pytest.raises(ImageError, match=rf"{kind.__name__} was called inside torch\.jit\.trace .*, or set its p to 0"):
            torch.jit.trace(net.train(), BATCH)
        assert torch.jit.trace(net.eval(), BATCH)(BATCH).equal(net(BATCH))

    def test_without_replacements_as_advised(self, kind: Any) -> None:
        net = Net(kind(FakeGenerator(8), 0.0)).train()
        traced = torch.jit.trace(net, BATCH, check_trace=False)
        other = 1 - BATCH[:2]
        assert traced(other).equal(net(other))


def bank_augment(path: Path, p: float = 1.0) -> gt.BankAugment:
    make_bank(path)
    return gt.BankAugment(path, p, keys_getter=lambda images: KEYS[: len(images)], check_sources=False)


@pytest.mark.parametrize("kind", KINDS)
class TestFx:
    def test_a_trace_that_would_leave_the_transform_out_is_refused(self, kind: Any) -> None:
        name = kind.__name__
        net = Net(kind(FakeGenerator(8), 1.0))
        message = rf"{name} was called with a torch\.fx\.Proxy: .*tracer_kwargs=\{{\"leaf_modules\": \[{name}\]\}}\), or a torch\.fx\.Tr"
        with pytest.raises(ImageError, match=message):
            create_feature_extractor(net, ["body"])
        with pytest.raises(ImageError, match=message):
            torch.fx.symbolic_trace(net.train())

    def test_features_as_advised(self, kind: Any) -> None:
        net = Net(kind(FakeGenerator(8), 1.0))
        extractor = create_feature_extractor(net, ["body"], tracer_kwargs={"leaf_modules": [kind]}, suppress_diff_warning=True)
        for training, calls in ((True, 1), (False, 0), (True, 1)):
            extractor.train(training)
            before = net.augment.generator.calls
            torch.manual_seed(2)
            found = extractor(BATCH)["body"]
            assert net.augment.generator.calls - before == calls
            torch.manual_seed(2)
            assert found.equal(net.train(training)(BATCH))

    def test_a_tracer_as_advised(self, kind: Any) -> None:
        class Tracer(torch.fx.Tracer):
            def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
                return isinstance(m, kind) or super().is_leaf_module(m, module_qualified_name)

        net = Net(kind(FakeGenerator(8), 1.0)).train()
        traced = torch.fx.GraphModule(net, Tracer().trace(net))
        torch.manual_seed(2)
        expected = net(BATCH)
        torch.manual_seed(2)
        assert traced(BATCH).equal(expected)


class TestBankInFx:
    def test_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"BankAugment was called with a torch\.fx\.Proxy"):
            create_feature_extractor(Net(bank_augment(tmp_path)), ["body"])


class TestForwardMode:
    """No derivative of a new image, as in reverse mode, and that of the source where it is kept."""

    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("kind", KINDS)
    def test_agrees_with_reverse_mode(self, kind: Any, p: float) -> None:
        augment, direction = kind(FakeGenerator(8), p), torch.rand(BATCH.shape)

        def loss(images: Tensor) -> Tensor:
            torch.manual_seed(1)
            return augment(images).square().sum()

        reverse = (torch.func.grad(loss)(BATCH) * direction).sum()
        torch.testing.assert_close(torch.func.jvp(loss, (BATCH,), (direction,))[1], reverse)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(BATCH, direction)
            tangent = torch.autograd.forward_ad.unpack_dual(loss(dual)).tangent
        torch.testing.assert_close(torch.zeros(()) if tangent is None else tangent, reverse)
        assert (reverse == 0) == (p == 1)

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_an_outer_level(self, kind: Any) -> None:
        augment = kind(FakeGenerator(8), 1.0)

        def derivative(function: Any, at: Tensor) -> Any:
            return torch.func.jvp(function, (at,), (torch.ones_like(at),))[1]

        # The inner derivative is the new image itself, so the outer one is 0.
        assert not derivative(lambda x: derivative(lambda y: augment(x) * y, BATCH), BATCH).any()
        assert augment.generator.calls == 1

    def test_a_generator_called_by_itself_has_derivatives(self) -> None:
        generator = FakeGenerator(8)
        found = torch.func.jvp(lambda images: generator(images, torch.arange(4)), (BATCH,), (torch.ones_like(BATCH),))[1]
        assert found.any()

    def test_of_a_bank(self, tmp_path: Path) -> None:
        augment = bank_augment(tmp_path)
        images = torch.rand(4, 3, *SIZE)
        assert not torch.func.jvp(augment, (images,), (torch.ones_like(images),))[1].any()
        assert not torch.func.grad(lambda x: augment(x).sum())(images).any()


class TestVmap:
    MESSAGE = r" was called inside torch\.func\.vmap, .*: apply it to the whole batch before, and map the rest of the model over the result"

    @pytest.mark.parametrize("randomness", ["error", "same", "different"])
    @pytest.mark.parametrize("p", [0.5, 1.0])
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_refused(self, kind: Any, p: float, randomness: str) -> None:
        net = Net(kind(FakeGenerator(8), p))

        def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
            return torch.func.functional_call(net, parameters, (image[None],)).sum()

        per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness=randomness)
        with pytest.raises(ImageError, match=kind.__name__ + self.MESSAGE):
            per_sample(dict(net.named_parameters()), BATCH)
        models = torch.func.vmap(lambda weight: net.augment(BATCH) * weight, randomness=randomness)
        with pytest.raises(ImageError, match=self.MESSAGE):
            models(torch.ones(2))
        with pytest.raises(ImageError, match=r"jacfwd and hessian use vmap, too"):
            torch.func.jacfwd(lambda images: net.augment(images).sum(), randomness=randomness)(BATCH)

    def test_a_bank_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="BankAugment" + self.MESSAGE):
            torch.func.vmap(bank_augment(tmp_path), randomness="same")(torch.rand(2, 4, 3, *SIZE))

    @pytest.mark.parametrize("kind", KINDS)
    def test_as_advised(self, kind: Any) -> None:
        net = Net(kind(FakeGenerator(8), 0.5))

        def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
            return torch.func.functional_call(net.body, parameters, (image[None],)).sum()

        per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
        found = per_sample(dict(net.body.named_parameters()), net.augment(BATCH))
        assert found["0.weight"].shape == (4, 4, 3, 3, 3)
        assert torch.func.jacrev(lambda images: net.augment(images).mean())(BATCH).shape == BATCH.shape
