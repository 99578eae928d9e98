"""`offload=` of PipelineVariation: where its networks wait, and what moving, copying, converting and saving do with it.

The CPU stands for the accelerator, as accelerate's hooks allow it; the class at the end needs a GPU.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_pipelines
import torch
from torch import Tensor, nn

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.state import is_offloaded
from gentransforms.generators.pipelines.execution import offloading

accelerate = pytest.importorskip("accelerate")
pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS: dict[str, Any] = {"strength": 0.9, "num_inference_steps": 2, "image_size": 32}
SEEDS = torch.tensor([3])
WAYS = ["model", "sequential"]


def photo() -> Tensor:
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def generator_of(pipe: Any = None, **options: Any) -> gt.PipelineVariation:
    generator = gt.PipelineVariation.from_pipeline(pipe or tiny_pipelines.img2img(), **(OPTIONS | options))
    generator._repeatable = True  # without a second image that tries the pipeline
    return generator


@pytest.fixture(scope="module")
def expected() -> Tensor:
    return generator_of()(photo(), SEEDS)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DiffusionPipeline

    def sequential(self: Any, device: torch.device) -> None:  # diffusers' asks for cpu:0, which accelerate takes for another device
        for part in self.components.values():
            if isinstance(part, nn.Module):
                accelerate.cpu_offload(part, device, offload_buffers=len(part._parameters) > 0)

    monkeypatch.setattr(DiffusionPipeline, "enable_sequential_cpu_offload", sequential)
    monkeypatch.setattr(offloading, "find_accelerator", lambda: torch.device("cpu"))


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two pretended GPUs: on which one the pipeline was asked to compute."""
    from diffusers import DiffusionPipeline

    found: list[str] = []
    monkeypatch.setattr(offloading, "find_accelerator", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(offloading, "_reach", lambda device: None)
    monkeypatch.setattr(DiffusionPipeline, "enable_model_cpu_offload", lambda _self, device: found.append(str(device)))
    return found


def hooked(generator: Any) -> bool:
    return any(map(is_offloaded, generator._networks().values()))


# Where both ways go the same path through our code, the one that leaves more to undo: layer by layer, with weights on the meta device.
# Layer by layer takes twice as long; the same images by it, and a pipeline that stays so, are in the default suite.
BY_MODEL = pytest.mark.parametrize("way", ["model", pytest.param("sequential", marks=pytest.mark.slow)])


@pytest.mark.usefixtures("accelerator")
class TestOffload:
    @pytest.mark.parametrize("way", WAYS)
    def test_same_images_and_fingerprint(self, way: str, expected: Tensor, tmp_path: Path) -> None:
        generator, plain = generator_of(offload=way), generator_of()
        assert hooked(generator)
        assert any(p.is_meta for p in generator.parameters()) is (way == "sequential")
        assert generator.dtype == torch.float32
        assert generator.config["offload"] == way
        made = generator(photo(), SEEDS)
        assert torch.equal(made, expected)
        assert generator.fingerprint() == plain.fingerprint()
        assert torch.equal(generator(photo(), SEEDS), made)
        assert hooked(generator)
        generator.save_pretrained(tmp_path)
        again = gt.PipelineVariation.from_pretrained(tmp_path)
        assert "offload" not in again.config, "it is a matter of the machine"
        assert again.fingerprint() == plain.fingerprint()

    @BY_MODEL
    def test_copies_and_pickles(self, way: str, expected: Tensor) -> None:
        generator = generator_of(offload=way)
        generator(photo(), SEEDS)
        augment = gt.GenerativeAugment(generator, p=1.0)
        for other in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator)), copy.deepcopy(augment).generator):
            assert not hooked(other), "hooks come with the next image"
            assert not any(p.is_meta for p in other.parameters())
            assert torch.equal(other(photo(), SEEDS), expected)
            assert hooked(other)
            assert other.pipe.unet is other.unet is not generator.unet
        assert torch.equal(generator(photo(), SEEDS), expected)

    def test_copies_of_a_transform_have_all_weights(self, expected: Tensor) -> None:
        """Layer by layer, weights wait behind placeholders that are freed when the hooks are taken off for the copy."""
        generator = generator_of(offload="sequential")
        augment = gt.GenerativeAugment(generator, p=1.0)
        shapes = {name: parameter.shape for name, parameter in generator.named_parameters()}
        for _ in range(3):
            assert any(p.is_meta for p in generator.parameters())
            other = copy.deepcopy(augment).generator
            assert {name: parameter.shape for name, parameter in other.named_parameters()} == shapes
            assert not any(p.is_meta for p in other.parameters())
            generator._hook()
        assert torch.equal(other(photo(), SEEDS), expected)

    def test_the_accelerator_by_another_name(self, expected: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """As ``cuda`` against ``cuda:0``, which tensors say."""
        monkeypatch.setattr(offloading, "find_accelerator", lambda: torch.device("cpu", 0))
        generator = generator_of(offload="model")
        assert torch.equal(gt.GenerativeAugment(generator, p=1.0, seeds_getter=lambda _: SEEDS)(photo()), expected)
        bank = [torch.zeros(3, 32, 32, dtype=torch.uint8)]
        assert gt.generate_bank(bank, tmp_path / "bank", generator, variants=1, progress=False).images == 1

    @BY_MODEL
    def test_hooks_that_others_take_off_and_set(self, way: str, expected: Tensor) -> None:
        pipe = tiny_pipelines.img2img()
        generator = generator_of(pipe, offload=way)
        pipe.remove_all_hooks()
        assert torch.equal(generator(photo(), SEEDS), expected)
        assert hooked(generator)
        pipe.remove_all_hooks()
        other = generator_of(pipe, offload=way)
        generator.to("cpu")
        assert not hooked(other)
        assert torch.equal(other(photo(), SEEDS), expected)
        assert hooked(other)

    @pytest.mark.parametrize("way", WAYS)
    def test_the_pipeline_stays_offloaded(self, way: str, tmp_path: Path) -> None:
        generator = generator_of(offload=way)
        for use in (copy.deepcopy, lambda made: made.fingerprint(), lambda made: made.save_pretrained(tmp_path)):
            use(generator)
            assert hooked(generator)

    @BY_MODEL
    def test_to_the_cpu_and_back(self, way: str, expected: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = generator_of(offload=way)
        generator.to("cpu")
        assert not hooked(generator)
        assert generator.device == torch.device("cpu")
        assert torch.equal(generator(photo(), SEEDS), expected)
        assert not hooked(generator), "it computes where all of it is"
        generator._offload_to = torch.device("cpu")
        generator(photo(), SEEDS)
        assert hooked(generator)

    @BY_MODEL
    def test_other_dtypes(self, way: str) -> None:
        generator = generator_of(offload=way).to(torch.float64)
        assert hooked(generator)
        assert {p.dtype for p in generator.unet.parameters()} == {torch.float64}
        plain = generator_of().to(torch.float64)
        assert torch.equal(generator(photo(), SEEDS), plain(photo(), SEEDS))
        assert generator.fingerprint() == plain.fingerprint()

    @BY_MODEL
    def test_with_a_prior(self, way: str) -> None:
        pipe, prior = tiny_pipelines.kandinsky()
        options = {"num_inference_steps": 1, "image_size": 32}
        made = gt.PipelineVariation.from_pipeline(pipe, prior=prior, **options)(photo(), SEEDS)
        generator = gt.PipelineVariation.from_pipeline(pipe, prior=prior, offload=way, **options)
        assert is_offloaded(prior.image_encoder)
        assert torch.equal(generator(photo(), SEEDS), made)

    @BY_MODEL
    def test_a_network_that_is_replaced(self, way: str) -> None:
        generator = generator_of(offload=way)
        old, other = generator.unet, tiny_pipelines.img2img().unet
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(0.5)
        generator.unet = other
        assert not is_offloaded(old)
        assert torch.equal(generator(photo(), SEEDS), generator_of(generator.pipe)(photo(), SEEDS))


@pytest.mark.usefixtures("accelerator")
class TestFailures:
    """A lack of memory in a call: the pipeline's call frees the accelerator only at its end."""

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    def test_in_the_pipeline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        generator, freed = generator_of(offload="model"), []
        monkeypatch.setattr(generator.pipe.unet, "forward", TestFailures.fail)
        monkeypatch.setattr(generator.pipe, "maybe_free_model_hooks", lambda: freed.append(1))
        with pytest.raises(MemoryError):
            generator(photo(), SEEDS)
        assert freed

    def test_in_the_prior(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pipe, prior = tiny_pipelines.kandinsky()
        generator = gt.PipelineVariation.from_pipeline(pipe, prior=prior, offload="model", num_inference_steps=1, image_size=32)
        freed: list[int] = []
        monkeypatch.setattr(prior, "maybe_free_model_hooks", lambda: freed.append(1))
        monkeypatch.setattr(prior.image_encoder, "forward", TestFailures.fail)
        with pytest.raises(MemoryError):
            generator.encode(photo())
        assert freed


class TestMoving:
    def test_to_other_cards(self, cards: list[str]) -> None:
        generator = generator_of(offload="model")
        assert generator.device == torch.device("cuda", 0)
        for name, place in (("cuda:1", torch.device("cuda", 1)), ("cpu", None), ("cuda:0", torch.device("cuda", 0))):
            generator._apply(Mover(name))
            assert generator._offload_to == place
        assert cards == ["cuda:0", "cuda:1", "cuda:0"]
        assert generator.unet.conv_in.weight.device.type == "cpu"

    def test_to_meta_is_refused(self, cards: list[str]) -> None:
        with pytest.raises(ConfigError, match=r"offload='model': the device meta has no values"):
            generator_of(offload="model").to("meta")

    @pytest.mark.parametrize(
        ("change", "asked"),
        [
            (lambda m: m.to("cpu"), "cpu"),
            (lambda m: m.cpu(), "cpu"),
            (lambda m: m.to("meta"), "meta"),
            (lambda m: m.half(), None),
            (lambda m: m.to(memory_format=torch.channels_last), None),
            (lambda m: m.share_memory(), None),
        ],
    )
    def test_which_device_is_asked_for(self, change: Any, asked: str | None) -> None:
        found = []

        class Asked(nn.Module):
            def _apply(self, fn: Any, recurse: bool = True) -> Any:
                found.append(offloading.asked_device(fn))
                return self

        change(Asked())
        assert found == [None if asked is None else torch.device(asked)]


class Mover:
    """What `.to(device)` gives to `nn.Module._apply`, with tensors that only say where they are."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def __call__(self, tensor: Tensor) -> Any:
        if tensor.is_meta:
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        return Placed(tensor, self.device)


class Placed:
    def __init__(self, tensor: Tensor, device: torch.device) -> None:
        self.tensor, self.device, self.dtype = tensor, device, tensor.dtype

    def cpu(self) -> Tensor:
        return self.tensor


class TestRefused:
    def test_without_an_accelerator(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(offloading, "find_accelerator", lambda: None)
        with pytest.raises(ConfigError, match=r"offload='model': .*there is none here: leave offload out; .*dtype=torch\.bfloat16"):
            generator_of(offload="model")
        with pytest.raises(ConfigError, match="offload='sequential'"):  # before it looks for files
            gt.PipelineVariation.from_pretrained(tmp_path / "nothing", offload="sequential")

    def test_other_ways(self) -> None:
        with pytest.raises(ConfigError, match="offload='group': expected 'model', 'sequential', or None"):
            generator_of(offload="group")

    @pytest.mark.usefixtures("accelerator")
    def test_devices_that_do_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="device='gpuu'"):
            gt.PipelineVariation.from_pretrained(tmp_path, device="gpuu", offload="model")

    @pytest.mark.usefixtures("accelerator")
    def test_on_the_cpu(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"device='cpu' and offload='model'"):
            gt.PipelineVariation.from_pretrained(tmp_path, device="cpu", offload="model")

    @pytest.mark.usefixtures("accelerator")
    def test_a_pipeline_that_is_offloaded_already(self) -> None:
        pipe = tiny_pipelines.img2img()
        pipe.enable_model_cpu_offload(device="cpu")
        with pytest.raises(ConfigError, match=r"offload='model': \w+ is offloaded already.*remove_all_hooks"):
            generator_of(pipe, offload="model")

    def test_an_accelerator_that_is_gone(self, cards: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        pickled = pickle.dumps(generator_of(offload="model"))

        def fail(device: torch.device) -> None:
            raise RuntimeError("Found no NVIDIA driver")

        monkeypatch.setattr(offloading, "_reach", fail)
        with pytest.raises(ConfigError, match=r"offload='model': not possible on cuda:0 \(Found no NVIDIA driver\)"):
            pickle.loads(pickled)(photo(), SEEDS)


class TestCameOffloaded:
    """A pipeline on which its owner enabled offloading."""

    def test_it_stays_where_it_computes(self, expected: Tensor) -> None:
        pipe = tiny_pipelines.img2img()
        pipe.enable_model_cpu_offload(device="cpu")
        generator = generator_of(pipe)
        assert torch.equal(generator.to("cpu")(photo(), SEEDS), expected)
        assert torch.equal(generator.share_memory()(photo(), SEEDS), expected)
        assert hooked(generator)
        with pytest.raises(ConfigError, match=r"came offloaded.*cannot be moved to cuda:1.*remove_all_hooks.*offload='model'"):
            generator._apply(Mover("cuda:1"))
        with pytest.raises(ConfigError, match=r"came offloaded.*cannot change to torch\.float16"):
            generator.half()

    def test_a_model_that_holds_it_moves_without_it(self, expected: Tensor) -> None:
        """Lightning takes a model to the CPU at the end of a fit; here, it leaves the CPU."""
        pipe = tiny_pipelines.img2img()
        pipe.enable_model_cpu_offload(device="cpu")
        augment = gt.GenerativeAugment(generator_of(pipe), p=1.0, seeds_getter=lambda _: SEEDS)
        augment._held.follow(lambda tensor: SimpleNamespace(device=torch.device("cuda", 1), is_meta=False))  # type: ignore[arg-type,return-value]
        assert hooked(augment.generator)
        model = nn.ModuleDict({"augment": augment, "body": nn.Linear(1, 1)})
        for move in (lambda m: m.cpu(), lambda m: m.to(torch.float64), lambda m: m.share_memory()):
            assert torch.equal(move(model)["augment"](photo()), expected)
        assert hooked(augment.generator)


@pytest.mark.gpu
class TestOnAGpu:
    @pytest.mark.parametrize("way", WAYS)
    def test_images_and_where_weights_wait(self, way: str) -> None:
        plain = generator_of().to("cuda")
        made = plain(photo().cuda(), SEEDS)
        generator = generator_of(offload=way)
        assert generator.device.type == "cuda"
        again = generator(photo().cuda(), SEEDS)
        assert again.is_cuda
        assert (again - made).abs().max() <= 1e-3
        assert {p.device.type for p in generator.parameters()} == {"cpu" if way == "model" else "meta"}
        assert generator.fingerprint() == plain.fingerprint()
        generator.to("cpu")
        assert (generator(photo(), SEEDS) - made.cpu()).abs().max() <= 1e-3
        generator.to("cuda")
        assert (copy.deepcopy(generator)(photo().cuda(), SEEDS) - made).abs().max() <= 1e-3
        assert (generator.to(torch.float64)(photo().cuda(), SEEDS) - made).abs().max() <= 1e-2

    def test_a_prior_and_the_transform(self) -> None:
        pipe, prior = tiny_pipelines.kandinsky()
        options = {"num_inference_steps": 1, "image_size": 32}
        generator = gt.PipelineVariation.from_pipeline(pipe, prior=prior, offload="model", **options)
        made = generator(photo().cuda(), SEEDS)
        assert {p.device.type for p in pipe.unet.parameters()} == {"cpu"}
        augment = gt.GenerativeAugment(generator, p=1.0).to("cpu")
        assert (generator(photo(), SEEDS) - made.cpu()).abs().max() <= 1e-3
        assert augment(photo()).shape == (1, 3, 32, 32)

    @pytest.mark.parametrize("way", [*WAYS, "group"])
    def test_in_a_transform_and_a_bank(self, way: str, tmp_path: Path) -> None:
        if way == "group":
            pipe = tiny_pipelines.img2img()
            pipe.enable_group_offload(onload_device=torch.device("cuda"), offload_type="leaf_level")
            generator = generator_of(pipe)
        else:
            generator = generator_of(offload=way)
        augment = gt.GenerativeAugment(generator, p=1.0, seeds_getter=lambda _: SEEDS)
        plain = generator_of()(photo(), SEEDS)
        assert (augment(photo()) - plain).abs().max() <= 1e-3
        assert (augment(photo().cuda()).cpu() - plain).abs().max() <= 1e-3
        images = [torch.zeros(3, 32, 32, dtype=torch.uint8)]
        assert gt.generate_bank(images, tmp_path / "bank", generator, variants=1, progress=False).images == 1
