"""What a fingerprint covers: weights and options that decide images, whatever wraps them; and what it leaves out."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gentransforms as gt
from gentransforms.errors import ConfigError, GeneratorError, WeightsError
from gentransforms.seeding import sample_noise
from gentransforms.testing import FakeGenerator, check_generator


class Scaled(nn.Module):
    """A network whose function depends on an attribute that is no weight."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.weight * self.scale


class Wraps(gt.ImageGenerator):
    """A generator around a network of the user's."""

    image_size, preserves_geometry = (8, 8), True

    def __init__(self, net: nn.Module, noise: float = 0.1, compile: bool = False) -> None:
        super().__init__()
        self.net, self.noise = net, noise

    execution_options = ("compile",)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        return {"images": images}

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        images = self.net(condition["images"]) + self.noise * sample_noise(seeds, (3, 8, 8)).to(self.device)
        return images.clamp(0, 1).float()


class Hides(Wraps):
    """One whose network is no registered submodule."""

    def __init__(self, net: nn.Module) -> None:
        gt.ImageGenerator.__init__(self)
        self.hidden, self.noise = [net], 0.1

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        made: Tensor = self.hidden[0](condition["images"])
        return made.clamp(0, 1) * (sample_noise(seeds, (3, 8, 8)) / 50).exp().clamp(0, 1)


class Function(Wraps):
    def __init__(self, function: Any) -> None:
        super().__init__(network())
        self.__dict__["_init_config"] = {"function": function}


class Counts(Wraps):
    def __init__(self) -> None:
        super().__init__(network())
        self.__dict__["_init_config"] = {}
        self.register_buffer("count", torch.zeros(()))

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        self.count += 1
        return super().sample(condition, seeds)


def network(seed: int = 0, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 3, 1), activation(), nn.Conv2d(3, 3, 1))


class TestWrappedModule:
    def test_passes_the_checks(self) -> None:
        check_generator(Wraps(network()))
        check_generator(Hides(network()))

    def test_fills_a_bank(self, tmp_path: Path) -> None:
        images = [{"image": torch.rand(3, 8, 8), "key": i} for i in range(4)]
        source = gt.with_keys(images, key="key") if not hasattr(gt, "open_source") else images
        for _ in range(2):  # the second call finds the bank complete, made by the same generator
            gt.generate_bank(source, tmp_path / "bank", Wraps(network()), variants=2, base_seed=1, progress=False)
        assert len(gt.Bank.open(tmp_path / "bank")) == 8

    @pytest.mark.parametrize("kind", [Wraps, Hides])
    def test_another_network_is_another_generator(self, kind: Any) -> None:
        several = [kind(network()), kind(network(1)), kind(network(0, nn.ReLU)), kind(Scaled()), kind(Scaled(0.5)), kind(Scaled().half())]
        assert len({generator.fingerprint() for generator in several}) == len(several)
        assert kind(network()).fingerprint() == kind(network()).fingerprint()

    def test_a_changed_weight_is_seen(self) -> None:
        for generator in (Wraps(network()), Hides(network())):
            before = generator.fingerprint()
            with torch.no_grad():
                generator._init_config["net"][0].weight.add_(1)
            assert generator.fingerprint() != before

    def test_a_buffer_that_is_not_saved_is_seen(self) -> None:
        """Such as an edit direction that the constructor reads from a file."""

        def directed(value: float) -> Wraps:
            generator = Wraps(Scaled())
            generator.register_buffer("direction", torch.full((3,), value), persistent=False)
            return generator

        assert directed(0.5).fingerprint() == directed(0.5).fingerprint()
        assert len({directed(0.0).fingerprint(), directed(0.5).fingerprint(), Wraps(Scaled()).fingerprint()}) == 3

    def test_extra_state_is_seen_and_not_saved(self, tmp_path: Path) -> None:
        class Calibrated(Scaled):
            def get_extra_state(self) -> Any:
                return {"limit": self.limit}

            def set_extra_state(self, state: Any) -> None:
                self.limit = state["limit"]

        def calibrated(limit: float) -> gt.ImageGenerator:
            network = Calibrated()
            network.limit = limit
            generator = FakeGenerator()
            generator.network = network
            return generator

        assert calibrated(0.5).fingerprint() == calibrated(0.5).fingerprint() != calibrated(0.6).fingerprint()
        with pytest.raises(ConfigError, match=r"FakeGenerator has extra state that is no tensor, 'network._extra_state'.*a buffer"):
            calibrated(0.5).save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()

    def test_copies_are_the_same(self) -> None:
        generator = Wraps(network(), 0.2)
        for twin in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
            assert twin.fingerprint() == generator.fingerprint()
            assert twin._init_config["net"] is twin.net

    @pytest.mark.usefixtures("no_repository")
    def test_is_not_saved(self, tmp_path: Path) -> None:
        generator = Wraps(network())
        for save in (lambda: generator.save_pretrained(tmp_path / "saved"), lambda: generator.push_to_hub("org/name")):
            with pytest.raises(ConfigError, match=r"Wraps was built with net=<Sequential>, a module.*inside Wraps.__init__"):
                save()
        assert not (tmp_path / "saved").exists()

    def test_one_that_saves_itself_is_pushed_as_it_saves_itself(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        class Saves(Wraps):
            def save_pretrained(self, directory: Any, **options: Any) -> None:
                (Path(directory) / "all.txt").write_text(f"{options['card']}")

        monkeypatch.setattr("gentransforms.generators.base.upload", lambda save, repo_id, **options: save(tmp_path))
        Saves(network()).push_to_hub("org/name", card={"mine": "any"})
        assert (tmp_path / "all.txt").read_text() == "{'mine': 'any'}"

    def test_what_has_no_fingerprint_fails_the_checks(self) -> None:
        with pytest.raises(GeneratorError, match=r"cannot fill a bank: .*cannot be written as JSON"):
            check_generator(Function(torch.sin))

    def test_one_that_changes_in_use_fails_the_checks(self) -> None:
        with pytest.raises(GeneratorError, match="making images changed the fingerprint"):
            check_generator(Counts())


class TestHowItIsComputed:
    def test_execution_options_are_left_out(self) -> None:
        assert Wraps(network(), compile=True).fingerprint() == Wraps(network()).fingerprint()
        assert Wraps(network(), compile=True).config["compile"] is True
        assert Wraps(network(), noise=0.2).fingerprint() != Wraps(network()).fingerprint()

    def test_the_memory_format_is_left_out(self) -> None:
        generator = Wraps(network())
        before = generator.fingerprint()
        assert generator.to(memory_format=torch.channels_last).fingerprint() == before

    def test_compiled_parts_are_seen_through(self) -> None:
        plain, compiled = Wraps(network()), Wraps(network())
        compiled.net = torch.compile(compiled.net)
        assert compiled.fingerprint() == plain.fingerprint()
        inner = Wraps(network())
        inner.net[0] = torch.compile(inner.net[0])
        assert inner.fingerprint() == plain.fingerprint()
        assert Wraps(torch.compile(network())).fingerprint() == plain.fingerprint()

    def test_a_compiled_icgan_is_saved_as_it_is(self, tmp_path: Path) -> None:
        generator = gt.load_generator("icgan-cifar10-32")
        expected = generator.fingerprint()
        generator.network = torch.compile(generator.network)
        generator.feature_extractor = torch.compile(generator.feature_extractor)
        assert generator.fingerprint() == expected
        generator.save_pretrained(tmp_path)
        assert gt.load_generator(tmp_path).fingerprint() == expected

    def test_a_compiled_generator_of_the_users_is_saved_as_it_is(self, tmp_path: Path) -> None:
        class Builds(Wraps):
            def __init__(self, seed: int = 0) -> None:
                super().__init__(network(seed))
                self.__dict__["_init_config"] = {"seed": seed}

        generator = Builds(5)
        expected = generator.fingerprint()
        generator.net = torch.compile(generator.net)
        generator.save_pretrained(tmp_path)
        assert Builds.from_pretrained(tmp_path).fingerprint() == expected

    def test_weights_without_values_are_refused(self) -> None:
        with pytest.raises(WeightsError, match=r"'strength' is on the meta device.*remove_all_hooks"):
            FakeGenerator().to("meta").fingerprint()

    def test_tensor_subclasses_are_hashed_by_their_parts(self) -> None:
        from torch.testing._internal.two_tensor import TwoTensor

        def of(a: float, b: float) -> str:
            generator = Wraps(network())
            generator.register_buffer("quantised", TwoTensor(torch.full((2,), a), torch.full((2,), b)))
            return generator.fingerprint()

        assert of(1, 2) == of(1, 2)
        assert len({of(1, 2), of(2, 2), of(1, 3), of(2, 1)}) == 4
