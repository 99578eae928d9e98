"""Stable Diffusion variation: agreement with the stock pipelines, and counts of what runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import stock
import tiny_diffusion as tiny
import torch
from pairs import each_value, pairwise
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gentransforms as gt
from gentransforms.errors import ConfigError, ImageError, WeightsError
from gentransforms.generators.diffusion import appearance
from gentransforms.testing import check_generator, check_transform

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = [(32, 32), (32, 48), (48, 32)]
SCHEDULERS = [None, "ddim", "dpm++", "unipc", "euler", "lcm"]


@pytest.fixture(scope="module")
def unclip() -> Any:
    return tiny.unclip()


@pytest.fixture(scope="module")
def variation() -> Any:
    return tiny.variation()


def adapted(base: str, hidden: bool) -> Any:
    pipe = {"sd": tiny.stable_diffusion, "xl": tiny.stable_diffusion_xl}[base]()
    pipe.register_modules(image_encoder=tiny.image_encoder(), feature_extractor=tiny.image_processor())
    pipe.load_ip_adapter(tiny.ip_adapter(pipe.unet, hidden), subfolder="", weight_name="", image_encoder_folder=None)
    return pipe


@pytest.fixture(scope="module")
def shared() -> Callable[[str, bool], Any]:
    """Adapted pipelines built once, for tests that set the scale of the adapter."""
    return cache(adapted)


def batch(count: int = 5) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(11)
    return torch.rand(count, 3, 32, 32, generator=rng), torch.tensor([3, 2**40 + 5, 0, 2**62, 99])[:count]


def agree(made: Tensor, reference: Tensor) -> None:
    assert made.shape == reference.shape
    assert made.std() > 0.05, "the images are not flat, so that agreement says something"
    assert (made - reference).abs().max() <= 1e-4


class TestAgreementUnclip:
    @pairwise(scheduler=[None, "ddim", "dpm++"], guidance=[1.0, 10.0], level=[0, 100], size=SIZES[:2], count=[1, 5])
    def test_stock(self, unclip: Any, scheduler: str | None, guidance: float, level: int, size: tuple[int, int], count: int) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(
            unclip, num_inference_steps=3, guidance_scale=guidance, noise_level=level, scheduler=scheduler, image_size=size
        )
        images, seeds = batch(count)
        arguments = {"image": stock.normalised(generator, images), "prompt": [""] * count, "noise_level": level}
        agree(generator(images, seeds), stock.run(diffusers.StableUnCLIPImg2ImgPipeline, generator, seeds, **arguments))

    @pytest.mark.parametrize("size", SIZES[1:])
    def test_stock_at_other_sizes(self, unclip: Any, size: tuple[int, int]) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(unclip, num_inference_steps=2, image_size=size)
        images, seeds = batch(2)
        arguments = {"image": stock.normalised(generator, images), "prompt": [""] * 2}
        agree(generator(images, seeds), stock.run(diffusers.StableUnCLIPImg2ImgPipeline, generator, seeds, **arguments))

    def test_stock_with_noise_of_ddim_and_prompts(self, unclip: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(
            unclip, num_inference_steps=3, scheduler="ddim", eta=0.7, negative_prompt="zz top"
        )
        images, seeds = batch(3)
        prompts = ["a cat", "b", "a cat"]
        arguments = {"image": stock.normalised(generator, images), "prompt": prompts, "negative_prompt": ["zz top"] * 3}
        agree(generator(images, seeds, prompts=prompts), stock.run(diffusers.StableUnCLIPImg2ImgPipeline, generator, seeds, **arguments))

    def test_a_noise_level_for_each_image(self, unclip: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(unclip, num_inference_steps=2)
        images, seeds = batch(3)
        made = generator(images, seeds, noise_levels=torch.tensor([0, 999, 500]))
        for i, level in enumerate([0, 999, 500]):
            alone = gt.StableDiffusionVariation.from_pipeline(unclip, num_inference_steps=2, noise_level=level)
            agree(made[i : i + 1], alone(images[i : i + 1], seeds[i : i + 1]))
        assert (made - generator(images, seeds)).abs().max() > 1e-3

    def test_the_image_decides(self, unclip: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(unclip, num_inference_steps=2)
        images, _ = batch(2)
        a, b = generator(images, torch.tensor([1, 1]))
        assert (a - b).abs().max() > 1e-3


class TestAgreementVariation:
    @each_value(scheduler=SCHEDULERS, guidance=[1.0, 3.0], size=SIZES[:2], count=[1, 5])
    def test_stock(self, variation: Any, scheduler: str | None, guidance: float, size: tuple[int, int], count: int) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(
            variation, num_inference_steps=4, guidance_scale=guidance, scheduler=scheduler, image_size=size
        )
        images, seeds = batch(count)
        image = stock.normalised(generator, images)
        agree(generator(images, seeds), stock.run(diffusers.StableDiffusionImageVariationPipeline, generator, seeds, image=image))

    @pytest.mark.parametrize("size", SIZES[1:])
    def test_stock_at_other_sizes(self, variation: Any, size: tuple[int, int]) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(variation, num_inference_steps=2, image_size=size, scheduler="dpm++")
        images, seeds = batch(2)
        image = stock.normalised(generator, images)
        agree(generator(images, seeds), stock.run(diffusers.StableDiffusionImageVariationPipeline, generator, seeds, image=image))

    def test_defaults_are_those_of_the_stock_pipelines(self, unclip: Any, variation: Any) -> None:
        import inspect

        for pipe in (unclip, variation, adapted("sd", False), adapted("xl", False)):
            generator = gt.StableDiffusionVariation.from_pipeline(pipe)
            defaults = inspect.signature(type(pipe).__call__).parameters
            assert generator.num_inference_steps == defaults["num_inference_steps"].default
            assert generator.guidance_scale == defaults["guidance_scale"].default
            assert generator.scheduler.config == pipe.scheduler.config
            assert generator.image_size == (32, 32)


class TestStockDefaults:
    """Those of the pipeline given, not of the one whose prompt encoding is used for it."""

    def test_of_a_latent_consistency_model(self, tmp_path: Path) -> None:
        parts = tiny.stable_diffusion(time_cond_proj_dim=16).components
        pipe = diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
        options: dict[str, Any] = {"controlnet": tiny.controlnet(pipe.unet)}
        generator = gt.ControlNetVariation.from_pipeline(pipe, **options)
        assert (generator.num_inference_steps, generator.guidance_scale) == (4, 8.5)
        again = gt.ControlNetVariation.from_pipeline(generator.pipe, **options)
        assert again.fingerprint() == generator.fingerprint()
        pipe.save_pretrained(tmp_path / "stock")
        loaded = gt.ControlNetVariation.from_pretrained(tmp_path / "stock", **options)
        assert loaded.fingerprint() == generator.fingerprint()
        paper = gt.ControlNetVariation.from_pretrained(tmp_path / "stock", preset="paper", dtype=torch.float32, **options)
        assert (paper.num_inference_steps, paper.guidance_scale) == (10, 10.0)
        generator.save_pretrained(tmp_path / "saved")
        assert gt.load_generator(tmp_path / "saved").fingerprint() == generator.fingerprint()

    @each_value(name=["StableDiffusionImg2ImgPipeline", "StableDiffusionControlNetPipeline", "StableDiffusionXLControlNetPipeline"])
    def test_of_every_other_kind(self, name: str) -> None:
        import inspect

        from gentransforms.generators.diffusion.loading import BASES, stock_defaults

        kind = getattr(diffusers, name)
        defaults = inspect.signature(kind.__call__).parameters
        assert name in BASES
        expected = (defaults["num_inference_steps"].default, defaults["guidance_scale"].default)
        assert stock_defaults(kind.__new__(kind)) == expected == ((50, 5.0) if "XL" in name else (50, 7.5))


class TestAgreementIPAdapter:
    """The stock pipelines read a batch for an IP-Adapter as one sample with many images, so they run image by image."""

    @each_value(base=["sd", "xl"], hidden=[False, True], guidance=[1.0, 6.0], scheduler=[None, "ddim", "dpm++", "unipc"], size=SIZES[:2])
    def test_stock(self, shared: Any, base: str, hidden: bool, guidance: float, scheduler: str | None, size: tuple[int, int]) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(
            shared(base, hidden),
            num_inference_steps=3,
            guidance_scale=guidance,
            scheduler=scheduler,
            ip_adapter_scale=0.7,
            image_size=size,
        )
        images, seeds = batch(5)
        made = generator(images, seeds)
        cls = type(generator.pipe)
        for i in (0, 4):
            image = stock.normalised(generator, images[i : i + 1])
            agree(made[i : i + 1], stock.run(cls, generator, seeds[i : i + 1], prompt="", ip_adapter_image=image))
            agree(generator(images[i : i + 1], seeds[i : i + 1]), made[i : i + 1])

    @pytest.mark.parametrize("base", ["sd", "xl"])
    def test_stock_with_prompts_and_another_size(self, base: str) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(
            adapted(base, False), num_inference_steps=2, image_size=(48, 32), prompt="a dog", negative_prompt="bad"
        )
        images, seeds = batch(3)
        made = generator(images, seeds, prompts=["x", "a dog", "y z"])
        for i, prompt in enumerate(["x", "a dog", "y z"]):
            arguments = {"prompt": prompt, "negative_prompt": "bad", "ip_adapter_image": stock.normalised(generator, images[i : i + 1])}
            agree(made[i : i + 1], stock.run(type(generator.pipe), generator, seeds[i : i + 1], **arguments))
        agree(generator(images[1:2], seeds[1:2]), made[1:2])

    @pytest.mark.parametrize("zeros", [True, False])
    def test_stock_xl_of_other_configurations(self, zeros: bool) -> None:
        """The empty negative prompt encoded or zero, and a VAE that says how its latents are distributed."""
        pipe = adapted("xl", False)
        pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
        pipe.vae.register_to_config(latents_mean=[0.3, -0.2, 0.1, 0.5], latents_std=[0.8, 1.3, 1.1, 0.6])
        generator = gt.StableDiffusionVariation.from_pipeline(pipe, num_inference_steps=2)
        images, seeds = batch(1)
        arguments = {"prompt": "", "ip_adapter_image": stock.normalised(generator, images)}
        arguments["parts"] = {"force_zeros_for_empty_prompt": zeros}
        agree(generator(images, seeds), stock.run(diffusers.StableDiffusionXLPipeline, generator, seeds, **arguments))

    def test_an_xl_vae_that_overflows_stays_in_float32(self) -> None:
        pipe = adapted("xl", False)
        pipe.vae.register_to_config(force_upcast=True)
        generator = gt.StableDiffusionVariation.from_pipeline(pipe, num_inference_steps=2, scheduler="ddim")
        images, seeds = batch(2)
        expected = generator(images, seeds)
        generator.to(torch.float16)
        assert (generator.dtype, generator.vae.dtype) == (torch.float16, torch.float32)
        assert (generator(images, seeds) - expected).abs().mean() < 0.05
        plain = adapted("xl", False)
        plain.vae.register_to_config(force_upcast=False)
        assert gt.StableDiffusionVariation.from_pipeline(plain).to(torch.float16).vae.dtype == torch.float16

    def test_two_adapters_are_refused(self) -> None:
        pipe = adapted("sd", False)
        pipe.load_ip_adapter([tiny.ip_adapter(pipe.unet)] * 2, subfolder=["", ""], weight_name=["", ""], image_encoder_folder=None)
        with pytest.raises(ConfigError, match=r"2 IP-Adapters.*one"):
            gt.StableDiffusionVariation.from_pipeline(pipe)


class TestDistilled:
    def test_a_latent_consistency_model_takes_its_guidance_as_an_input(self) -> None:
        pipe = tiny.stable_diffusion(time_cond_proj_dim=32)
        pipe.register_modules(image_encoder=tiny.image_encoder(), feature_extractor=tiny.image_processor())
        pipe.load_ip_adapter(tiny.ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
        generator = gt.StableDiffusionVariation.from_pipeline(pipe, num_inference_steps=2, scheduler="lcm", guidance_scale=5.0)
        images, seeds = batch(1)
        with counted(generator) as counts:
            made = generator(images, seeds)
        assert counts.rows["unet"] == [1, 1]
        image = stock.normalised(generator, images)
        agree(made, stock.run(diffusers.StableDiffusionPipeline, generator, seeds, prompt="", ip_adapter_image=image))


class counted:
    """Counts the calls and rows of each network, and the VAE's decoded images."""

    def __init__(self, generator: Any) -> None:
        self.generator, self.calls, self.rows = generator, Counter[str](), dict[str, list[int]]()
        self.decoded: list[int] = []

    def __enter__(self) -> counted:
        self.hooks = [module.register_forward_hook(self.hook(name), with_kwargs=True) for name, module in self.generator.named_children()]
        self.decode, self.generator.vae.decode = self.generator.vae.decode, self.counting_decode
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
        del self.generator.vae.decode

    def hook(self, name: str) -> Any:
        def count(_module: Any, args: Any, kwargs: Any, _out: Any) -> None:
            self.calls[name] += 1
            first = args[0] if args else next(value for value in kwargs.values() if isinstance(value, Tensor))
            self.rows.setdefault(name, []).append(len(first))

        return count

    def counting_decode(self, latents: Tensor, **options: Any) -> Any:
        self.decoded.append(len(latents))
        return self.decode(latents, **options)


class HostReads(TorchDispatchMode):
    """Counts the operations by which Python waits for a tensor's value."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero"):
            self.reads[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images cannot go through PIL."""
    import PIL.Image

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image went through PIL")

    for name in ("fromarray", "frombytes", "frombuffer", "new"):
        monkeypatch.setattr(PIL.Image, name, refuse)
    monkeypatch.setattr(PIL.Image.Image, "resize", refuse)


KINDS: dict[str, Callable[[], Any]] = {
    "unclip": tiny.unclip, "variation": tiny.variation, "ip-adapter": lambda: adapted("sd", False),
    "ip-adapter-plus": lambda: adapted("sd", True), "xl": lambda: adapted("xl", False),
}  # fmt: skip


@pytest.fixture(scope="module")
def pipes() -> Callable[[str], Any]:
    """Pipelines built once, for tests that leave them as they are."""
    return cache(lambda kind: KINDS[kind]())


@pytest.fixture(params=KINDS)
def pipe(pipes: Any, request: pytest.FixtureRequest) -> Any:
    return pipes(request.param)


class TestCounts:
    @each_value(kind=list(KINDS), guidance=[1.0, 4.0], scheduler=["ddim", "dpm++", "unipc"])
    def test_one_unet_call_a_step(self, pipes: Any, kind: str, guidance: float, scheduler: str) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(
            pipes(kind), num_inference_steps=3, guidance_scale=guidance, scheduler=scheduler
        )
        images, seeds = batch(5)
        with counted(generator) as counts:
            generator(images, seeds)
        assert counts.rows["unet"] == [10 if guidance > 1 else 5] * 3
        assert sum(counts.decoded) == 5

    def test_sources_are_encoded_once_for_all_variants(self, pipe: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(pipe, num_inference_steps=1)
        images, _ = batch(2)
        generator(images[:1], torch.tensor([5]))  # the shared conditions: once in the generator's life
        with counted(generator) as counts:
            condition = generator.encode(images)
            repeated = {name: value.repeat_interleave(8, dim=0) for name, value in condition.items()}
            made = generator.sample(repeated, torch.arange(16))
        assert counts.rows["image_encoder"] == [2]
        assert counts.calls["unet"] == 1
        assert counts.decoded == [16]
        assert counts.calls["text_encoder"] == 0
        agree(made[9:10], generator(images[1:], torch.tensor([9])))

    def test_the_empty_prompt_is_encoded_once_in_a_life(self, pipe: Any) -> None:
        if getattr(pipe, "text_encoder", None) is None:
            pytest.skip("takes no text")
        generator = gt.StableDiffusionVariation.from_pipeline(pipe, num_inference_steps=1)
        images, seeds = batch(3)
        with counted(generator) as counts:
            for _ in range(3):
                generator(images, seeds)
        assert counts.rows["text_encoder"] == [1]
        import copy

        with counted(twin := copy.deepcopy(generator)) as counts:
            agree(twin(images, seeds), generator(images, seeds))
        assert counts.calls["text_encoder"] == 0

    def test_equal_prompts_are_encoded_once(self, unclip: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(unclip, num_inference_steps=1)
        images, _ = batch(4)
        with counted(generator) as counts:
            generator.encode(images, prompts=["a", "b", "a", "a"])
        assert counts.rows["text_encoder"] == [2]

    @each_value(kind=list(KINDS), guidance=[1.0, 4.0], scheduler=["dpm++", "unipc"])
    def test_nothing_waits_for_the_device(self, pipes: Any, kind: str, guidance: float, scheduler: str) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(
            pipes(kind), num_inference_steps=3, guidance_scale=guidance, scheduler=scheduler
        )
        images, seeds = batch(2)
        generator(images, seeds)
        with HostReads() as mode:
            generator(images, seeds)
        assert sum(mode.reads.values()) <= 1, mode.reads

    def test_a_call_leaves_the_scheduler_as_it_was(self, variation: Any) -> None:
        """Schedulers count their steps: threads that sample at once each need their own."""
        generator = gt.StableDiffusionVariation.from_pipeline(variation, num_inference_steps=2, scheduler="unipc")
        before = {name: str(value) for name, value in vars(generator.scheduler).items()}
        generator(*batch(1))
        assert {name: str(value) for name, value in vars(generator.scheduler).items()} == before

    def test_the_counter_of_reads_counts(self) -> None:
        with HostReads() as mode:
            bool(torch.ones(1) > 0)
        assert sum(mode.reads.values()) == 1

    def test_no_safety_checker(self) -> None:
        pipe = tiny.variation()
        pipe.register_modules(safety_checker=torch.nn.Identity())
        generator = gt.StableDiffusionVariation.from_pipeline(pipe, num_inference_steps=1)
        assert generator.pipe.safety_checker is None
        assert "safety_checker" not in dict(generator.named_children())

    def test_no_pil(self, pipe: Any, no_pil: None) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(pipe, num_inference_steps=1)
        images = torch.nn.functional.interpolate(batch(2)[0], size=(50, 40))  # of another size, so that it is resized
        generator(images, batch(2)[1])

    @pytest.mark.parametrize("slices", [1, 2, None])
    def test_the_vae_decodes_in_slices_when_asked(self, unclip: Any, slices: int | None) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(unclip, num_inference_steps=1, decode_batch_size=slices)
        images, seeds = batch(5)
        with counted(generator) as counts:
            made = generator(images, seeds)
        assert counts.decoded == {1: [1] * 5, 2: [2, 2, 1], None: [5]}[slices]
        agree(made, gt.StableDiffusionVariation.from_pipeline(unclip, num_inference_steps=1)(images, seeds))


class TestContract:
    @pytest.mark.parametrize("kind", [kind if kind == "ip-adapter-plus" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
    def test_every_kind_keeps_the_contract_of_generators(self, pipes: Any, kind: str) -> None:
        check_generator(gt.StableDiffusionVariation.from_pipeline(pipes(kind), num_inference_steps=2))

    def test_with_prompts_and_levels(self, unclip: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(unclip, num_inference_steps=1)
        assert generator.inputs == ("prompts", "noise_levels")
        check_generator(generator, prompts=["a", "b", "c", "d"], noise_levels=torch.tensor([0, 1, 2, 3]))

    @pytest.mark.slow
    def test_as_a_transform(self, variation: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(variation, num_inference_steps=1, guidance_scale=1.0, scheduler="dpm++")
        check_transform(gt.GenerativeAugment(generator, p=0.5))

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{"channels_last": True}, {"image_size": 48, "scheduler": "unipc"}], ids=str)
    def test_options_that_leave_the_contract(self, variation: Any, options: dict[str, Any]) -> None:
        pipe = tiny.variation() if "channels_last" in options else variation
        check_generator(gt.StableDiffusionVariation.from_pipeline(pipe, num_inference_steps=2, **options))

    def test_channels_last_changes_no_image(self) -> None:
        images, seeds = batch(3)
        plain = gt.StableDiffusionVariation.from_pipeline(tiny.unclip(), num_inference_steps=2)(images, seeds)
        agree(gt.StableDiffusionVariation.from_pipeline(tiny.unclip(), num_inference_steps=2, channels_last=True)(images, seeds), plain)

    def test_compile_runs_the_unet_through_torch_compile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compiled: list[Any] = []
        monkeypatch.setattr(torch.nn.Module, "compile", lambda module, *_, **__: compiled.append(module))
        generator = gt.StableDiffusionVariation.from_pipeline(tiny.variation(), compile=True)
        assert compiled == [generator.unet]

    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [
            *((kind, torch.bfloat16) for kind in KINDS),
            *(pytest.param(kind, torch.float64, marks=() if kind == "unclip" else pytest.mark.slow) for kind in KINDS),
        ],
    )
    def test_dtypes(self, kind: str, dtype: torch.dtype) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(KINDS[kind](), num_inference_steps=2, scheduler="ddim")
        images, seeds = batch(2)
        expected = generator(images, seeds)
        generator.to(dtype)
        made = generator(images, seeds)
        assert generator.dtype == dtype
        assert made.dtype == torch.float32
        assert (made - expected).abs().mean() < (0.05 if dtype == torch.bfloat16 else 1e-4)

    def test_it_is_frozen(self, unclip: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(unclip)
        assert not any(parameter.requires_grad for parameter in generator.parameters())
        assert not any(module.training for module in generator.modules())


class TestPreprocess:
    def test_is_the_processors_own_up_to_rounding(self) -> None:
        """Against transformers' own processor through PIL, which rounds to 8 bits after resizing."""
        import numpy as np
        import PIL.Image

        rng = np.random.default_rng(0)
        low = PIL.Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)).resize((80, 60), PIL.Image.Resampling.BICUBIC)
        processor = tiny.image_processor(32)
        expected = torch.as_tensor(np.asarray(processor(low, return_tensors="pt").pixel_values))
        images = torch.as_tensor(np.asarray(low).copy()).permute(2, 0, 1)[None] / 255
        found = appearance.preprocess(images, processor, 32)
        assert found.shape == expected.shape == (1, 3, 32, 32)
        assert (found - expected).abs().max() < 0.03  # of a range of about 4: two steps of 8 bits

    def test_normalises_with_the_processors_numbers(self) -> None:
        processor = type("Processor", (), {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 0.125]})()
        found = appearance.preprocess(torch.full((1, 3, 8, 8), 0.5), processor, 8)
        assert torch.allclose(found[0, :, 0, 0], torch.tensor([0.8, 1.2, 1.6]))


class TestBadInput:
    def make(self, **options: Any) -> Any:
        return gt.StableDiffusionVariation.from_pipeline(tiny.unclip(), **options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"scheduler": "ddmi"}, r"scheduler='ddmi'.*ddim.*dpm\+\+.*unipc.*euler.*lcm"),
            ({"scheduler": 3}, r"scheduler=3\b.*ddim"),
            ({"num_inference_steps": 0}, r"num_inference_steps=0\b.*positive"),
            ({"num_inference_steps": 2.5}, r"num_inference_steps=2.5\b.*integer"),
            ({"guidance_scale": -1}, r"guidance_scale=-1\b.*\b0\b"),
            ({"guidance_scale": float("nan")}, r"guidance_scale=nan\b.*number"),
            ({"eta": 2.0}, r"eta=2.0\b.*\b0\b.*\b1\b"),
            ({"image_size": 33}, r"image_size=33\b.*multiples of 2\b.*\(32, 32\)"),
            ({"image_size": (32, 0)}, r"image_size=\(32, 0\).*\(height, width\)"),
            ({"noise_level": 1000}, r"noise_level=1000\b.*\b0\b.*\b999\b"),
            ({"noise_level": -1}, r"noise_level=-1\b.*\b0\b.*\b999\b"),
            ({"noise_level": 0.5}, r"noise_level=0.5\b.*integer.*\b0\b.*\b999\b"),
            ({"prompt": ["a"]}, r"prompt=\['a'\].*string.*encode"),
            ({"preset": "papre"}, r"preset='papre'.*'paper'.*'fast'"),
            ({"decode_batch_size": 0}, r"decode_batch_size=0\b.*positive.*None"),
            ({"ip_adapter_scale": 1.0}, r"ip_adapter_scale=1.0\b.*IP-Adapter"),
        ],
    )
    def test_options(self, unclip: Any, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            gt.StableDiffusionVariation.from_pipeline(unclip, **options)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"prompts": ["a"]}, r"prompts\b.*\b1\b.*\b2\b"),
            ({"prompts": "ab"}, r"prompts='ab'.*\b2\b"),
            ({"prompts": [1, 2]}, r"prompts=\[1, 2\].*string"),
            ({"noise_levels": torch.tensor([1, 1000])}, r"noise_level=1000\b.*\b0\b.*\b999\b"),
            ({"noise_levels": torch.tensor([1])}, r"noise_levels\b.*\(1,\).*\(2,\)"),
            ({"noise_levels": torch.tensor([0.5, 1])}, r"noise_levels\b.*torch.float32.*int64"),
        ],
    )
    def test_inputs(self, unclip: Any, inputs: dict[str, Any], message: str) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(unclip, num_inference_steps=1)
        with pytest.raises(ConfigError, match=message):
            generator(batch(2)[0], torch.tensor([1, 2]), **inputs)

    def test_inputs_of_other_kinds(self, variation: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(variation)
        with pytest.raises(ConfigError, match=r"prompts=.*no text encoder"):
            generator.encode(batch(1)[0], prompts=["a"])
        with pytest.raises(ConfigError, match=r"noise_levels=.*unCLIP"):
            generator.encode(batch(1)[0], noise_levels=torch.tensor([1]))
        with pytest.raises(ConfigError, match=r"prompt='a cat'.*no text encoder"):
            gt.StableDiffusionVariation.from_pipeline(variation, prompt="a cat")
        with pytest.raises(ConfigError, match=r"noise_level=10.*unCLIP"):
            gt.StableDiffusionVariation.from_pipeline(variation, noise_level=10)

    @pytest.mark.parametrize("images", [torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(3, 32, 32), "image"])
    def test_images(self, variation: Any, images: Any) -> None:
        with pytest.raises(ImageError, match=r"expected \(B, 3, H, W\) floating in \[0, 1\]"):
            gt.StableDiffusionVariation.from_pipeline(variation).encode(images)

    def test_a_pipeline_that_does_not_see_images(self) -> None:
        with pytest.raises(WeightsError, match="ip_adapter="):
            gt.StableDiffusionVariation.from_pipeline(tiny.stable_diffusion())

    def test_a_pipeline_of_another_kind(self) -> None:
        blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        unet = diffusers.UNet2DModel(8, block_out_channels=(8, 8), norm_num_groups=4, **blocks)
        pipe = diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler())
        with pytest.raises(WeightsError, match=r"DDPMPipeline.*StableUnCLIPImg2ImgPipeline"):
            gt.StableDiffusionVariation.from_pipeline(pipe)

    def test_a_pipeline_without_its_image_encoder(self) -> None:
        pipe = tiny.unclip()
        pipe.image_encoder = None
        with pytest.raises(WeightsError, match="image_encoder"):
            gt.StableDiffusionVariation.from_pipeline(pipe)


class TestPresets:
    def test_paper(self, unclip: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(unclip, preset="paper")
        assert (generator.num_inference_steps, generator.guidance_scale, generator.eta, generator.noise_level) == (10, 10.0, 0.0, 0)
        assert generator.prompt == ""
        assert isinstance(generator.scheduler, diffusers.DDIMScheduler)
        assert generator.scheduler.config.timestep_spacing == "trailing"
        assert generator.scheduler.config.rescale_betas_zero_snr is True
        assert generator.scheduler.config.prediction_type == "v_prediction", "the repository's own"
        generator.scheduler.set_timesteps(10)
        assert generator.scheduler.timesteps.tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
        assert generator.scheduler.alphas_cumprod[-1] == 0

    def test_fast(self, variation: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(variation, preset="fast")
        assert generator.num_inference_steps == 4
        assert not generator.guided

    def test_an_option_given_wins(self, unclip: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(unclip, preset="paper", num_inference_steps=3, guidance_scale=2.0)
        assert (generator.num_inference_steps, generator.guidance_scale) == (3, 2.0)

    def test_nothing_applies_without_a_name(self, unclip: Any) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(unclip)
        assert type(generator.scheduler) is type(unclip.scheduler)
        assert generator.scheduler.config.timestep_spacing == "leading"
