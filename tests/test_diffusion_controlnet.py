"""ControlNet variation: agreement with the stock pipelines, appearance, geometry, counts, bad input."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import stock
import tiny_diffusion as tiny
import torch
from pairs import each_value, pairwise
from test_diffusion_variation import HostReads, adapted, agree, counted, no_pil  # noqa: F401
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

import gentransforms as gt
from gentransforms.errors import ConfigError, GeneratorError, MissingInputError, WeightsError
from gentransforms.testing import check_generator

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = ["a cat", "b", "c d", "a cat", ""]
SIZES = [(32, 32), (32, 48)]


@pytest.fixture(scope="module")
def base() -> Any:
    return tiny.stable_diffusion()


@pytest.fixture(scope="module")
def net(base: Any) -> Any:
    return tiny.controlnet(base.unet)


@pytest.fixture(scope="module")
def xl() -> Any:
    return tiny.stable_diffusion_xl()


@pytest.fixture(scope="module")
def net_xl(xl: Any) -> Any:
    return tiny.controlnet(xl.unet)


def batch(count: int = 5, size: tuple[int, int] = (32, 32)) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(12)
    return torch.rand(count, 3, *size, generator=rng), torch.tensor([3, 2**40 + 5, 0, 2**62, 99])[:count]


def red(images: Tensor) -> Tensor:
    """A condition of the user's: the red channel."""
    return images[:, :1].expand(-1, 3, -1, -1)


red.version = "1"  # type: ignore[attr-defined]


class TestAgreement:
    @pairwise(scheduler=[None, "ddim", "dpm++"], guidance=[1.0, 7.5], size=SIZES, count=[1, 5])
    def test_stock(self, base: Any, net: Any, scheduler: str | None, guidance: float, size: tuple[int, int], count: int) -> None:
        generator = gt.ControlNetVariation.from_pipeline(
            base, controlnet=net, condition=red, num_inference_steps=3, guidance_scale=guidance, scheduler=scheduler, image_size=size
        )
        images, seeds = batch(count, size)
        made = generator(images, seeds, prompts=PROMPTS[:count])
        arguments = {"prompt": PROMPTS[:count], "image": red(images), "parts": {"controlnet": net}}
        agree(made, stock.run(diffusers.StableDiffusionControlNetPipeline, generator, seeds, **arguments))

    @pytest.mark.parametrize("size", [(32, 48), (48, 32)])
    def test_stock_at_other_sizes_with_a_weight(self, base: Any, net: Any, size: tuple[int, int]) -> None:
        generator = gt.ControlNetVariation.from_pipeline(
            base, controlnet=net, condition=red, num_inference_steps=2, image_size=size, conditioning_scale=0.4, prompt="ab"
        )
        images, seeds = batch(2, size)
        arguments = {"prompt": ["ab"] * 2, "image": red(images), "parts": {"controlnet": net}, "controlnet_conditioning_scale": 0.4}
        agree(generator(images, seeds), stock.run(diffusers.StableDiffusionControlNetPipeline, generator, seeds, **arguments))

    def test_stock_with_several(self, base: Any, net: Any) -> None:
        other = tiny.controlnet(base.unet, seed=8)
        generator = gt.ControlNetVariation.from_pipeline(
            base, controlnet=[net, other], condition=[red, "canny"], conditioning_scale=[0.5, 1.2], num_inference_steps=2
        )
        images, seeds = batch(3)
        maps = [red(images), generator.encode(images)["control_1"].expand(-1, 3, -1, -1)]
        assert 0.02 < maps[1].mean() < 0.9
        arguments = {"prompt": [""] * 3, "image": maps, "controlnet_conditioning_scale": [0.5, 1.2]}
        parts = {"controlnet": diffusers.MultiControlNetModel([net, other])}
        cls = diffusers.StableDiffusionControlNetPipeline
        agree(generator(images, seeds), stock.run(cls, generator, seeds, parts=parts, **arguments))

    @each_value(scheduler=[None, "ddim", "dpm++"], guidance=[1.0, 7.5], strength=[0.5, 1.0], size=SIZES, count=[1, 5])
    def test_stock_from_the_sources_latents(
        self, base: Any, net: Any, scheduler: str | None, guidance: float, strength: float, size: tuple[int, int], count: int
    ) -> None:
        generator = gt.ControlNetVariation.from_pipeline(
            base, controlnet=net, condition=red, num_inference_steps=4, guidance_scale=guidance, scheduler=scheduler, strength=strength,
            image_size=size,
        )  # fmt: skip
        images, seeds = batch(count, size)
        arguments = {"prompt": [""] * count, "image": images, "control_image": red(images), "strength": strength}
        cls = diffusers.StableDiffusionControlNetImg2ImgPipeline
        agree(generator(images, seeds), stock.run(cls, generator, seeds, parts={"controlnet": net}, **arguments))

    @pytest.mark.parametrize("strength", [None, 0.5])
    def test_stock_with_a_scheduler_of_two_calls_a_step(self, base: Any, net: Any, strength: float | None) -> None:
        """A scheduler object, Heun's."""
        scheduler = diffusers.HeunDiscreteScheduler.from_config(base.scheduler.config)
        generator = gt.ControlNetVariation.from_pipeline(
            base, controlnet=net, condition=red, num_inference_steps=4, scheduler=scheduler, strength=strength
        )
        images, seeds = batch(2)
        arguments: dict[str, Any] = {"prompt": [""] * 2, "image": red(images), "parts": {"controlnet": net}}
        cls: Any = diffusers.StableDiffusionControlNetPipeline
        if strength is not None:
            arguments |= {"image": images, "control_image": red(images), "strength": strength}
            cls = diffusers.StableDiffusionControlNetImg2ImgPipeline
        agree(generator(images, seeds), stock.run(cls, generator, seeds, **arguments))

    @each_value(scheduler=[None, "ddim", "dpm++"], guidance=[1.0, 5.0], strength=[None, 0.5], size=SIZES, count=[1, 5])
    def test_stock_xl(
        self, xl: Any, net_xl: Any, scheduler: str | None, guidance: float, strength: float | None, size: tuple[int, int], count: int
    ) -> None:
        generator = gt.ControlNetVariation.from_pipeline(
            xl, controlnet=net_xl, condition=red, num_inference_steps=4, guidance_scale=guidance, scheduler=scheduler, strength=strength,
            image_size=size,
        )  # fmt: skip
        images, seeds = batch(count, size)
        arguments: dict[str, Any] = {"prompt": PROMPTS[:count], "image": red(images), "parts": {"controlnet": net_xl}}
        cls = diffusers.StableDiffusionXLControlNetPipeline
        if strength is not None:
            arguments |= {"image": images, "control_image": red(images), "strength": strength}
            cls = diffusers.StableDiffusionXLControlNetImg2ImgPipeline
        agree(generator(images, seeds, prompts=PROMPTS[:count]), stock.run(cls, generator, seeds, **arguments))

    def test_defaults_are_those_of_the_stock_pipelines(self, base: Any, xl: Any) -> None:
        classes = {
            base: (diffusers.StableDiffusionControlNetPipeline, diffusers.StableDiffusionControlNetImg2ImgPipeline),
            xl: (diffusers.StableDiffusionXLControlNetPipeline, diffusers.StableDiffusionXLControlNetImg2ImgPipeline),
        }
        for pipe, pair in classes.items():
            for cls, strength in zip(pair, (None, 0.8), strict=True):
                generator = gt.ControlNetVariation.from_pipeline(pipe, controlnet=tiny.controlnet(pipe.unet), strength=strength)
                defaults = inspect.signature(cls.__call__).parameters
                assert generator.num_inference_steps == defaults["num_inference_steps"].default
                assert generator.guidance_scale == defaults["guidance_scale"].default
                assert generator.scales == [defaults["controlnet_conditioning_scale"].default]
                assert generator.scheduler.config == pipe.scheduler.config

    @pytest.mark.parametrize("kind", ["sd", "xl"])
    def test_stock_with_an_ip_adapter(self, kind: str) -> None:
        pipe = adapted(kind, False)
        net = tiny.controlnet({"sd": tiny.stable_diffusion, "xl": tiny.stable_diffusion_xl}[kind]().unet)
        generator = gt.ControlNetVariation.from_pipeline(pipe, controlnet=net, condition=red, num_inference_steps=2)
        images, seeds = batch(2)
        made = generator(images, seeds)
        for i in range(2):  # the stock pipeline reads a batch as one sample with many images
            image = stock.normalised(generator, images[i : i + 1])
            arguments = {"prompt": "", "image": red(images[i : i + 1]), "ip_adapter_image": image, "parts": {"controlnet": net}}
            cls = {"sd": diffusers.StableDiffusionControlNetPipeline, "xl": diffusers.StableDiffusionXLControlNetPipeline}[kind]
            agree(made[i : i + 1], stock.run(cls, generator, seeds[i : i + 1], **arguments))


class TestAppearance:
    @pytest.mark.parametrize("kind", ["unclip", pytest.param("variation", marks=pytest.mark.slow)])
    def test_the_sources_embedding_with_a_controlnet(self, kind: str) -> None:
        """No stock pipeline offers it: without weight it is the image variation, with weight the map decides too."""
        pipe = {"unclip": tiny.unclip, "variation": tiny.variation}[kind]()
        net = tiny.controlnet(tiny.unet())
        images, seeds = batch(3)
        without = gt.StableDiffusionVariation.from_pipeline(pipe, num_inference_steps=2)(images, seeds)
        off = gt.ControlNetVariation.from_pipeline(pipe, controlnet=net, condition=red, conditioning_scale=0.0, num_inference_steps=2)
        agree(off(images, seeds), without)
        generator = gt.ControlNetVariation.from_pipeline(pipe, controlnet=net, condition=red, num_inference_steps=2)
        made = generator(images, seeds)
        assert (made - without).abs().max() > 1e-2
        condition = generator.encode(images)
        swapped = {**condition, "image_embeds": condition["image_embeds"].flip(0)}
        assert (generator.sample(swapped, seeds) - made).abs().max() > 1e-3
        check_generator(generator)

    @pytest.mark.parametrize("guidance", [1.0, 4.0])
    @pytest.mark.parametrize("labelled", [False, True])
    def test_unclip_residuals_by_hand(self, labelled: bool, guidance: float) -> None:
        """One step of the UNet with class labels and residuals, put together from the components; some ControlNets take labels too."""
        pipe = tiny.unclip()
        net = tiny.controlnet(pipe.unet if labelled else tiny.unet())
        generator = gt.ControlNetVariation.from_pipeline(
            pipe, controlnet=net, condition=red, num_inference_steps=1, guidance_scale=guidance, conditioning_scale=0.6, scheduler="dpm++"
        )
        images, seeds = batch(1)
        rng = torch.Generator().manual_seed(int(seeds[0]))
        with torch.no_grad():
            embeds = pipe.image_encoder(stock.normalised(generator, images)).image_embeds
            labels = pipe.noise_image_embeddings(embeds, 0, generator=[rng])
            latents = torch.randn(1, 4, 16, 16, generator=rng)
            text = pipe.encode_prompt("", "cpu", 1, False)[0]
            generator.scheduler.set_timesteps(1)
            t = generator.scheduler.timesteps[0]

            def predict(labels: Tensor) -> Tensor:
                to_net = {"class_labels": labels} if labelled else {}
                down, mid = net(latents, t, text, red(images), conditioning_scale=0.6, **to_net, return_dict=False)
                residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
                predicted: Tensor = pipe.unet(latents, t, text, class_labels=labels, **residuals).sample
                return predicted

            without = predict(torch.zeros_like(labels))
            predicted = without + guidance * (predict(labels) - without)
            latents = generator.scheduler.step(predicted, t, latents).prev_sample
            expected = (pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        agree(generator(images, seeds), expected)

    def test_strength_keeps_the_source(self, base: Any, net: Any) -> None:
        """The UNet is first shown the source's latents with the noise of the step begun at, in closed form; and no step too many."""
        images, seeds = batch(3)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        for strength in (0.02, 0.3, 1.0):
            generator = gt.ControlNetVariation.from_pipeline(
                base, controlnet=net, condition=red, strength=strength, num_inference_steps=50, scheduler="ddim", guidance_scale=1.0
            )
            seen: list[Any] = []
            hook = generator.unet.register_forward_pre_hook(lambda _module, args, seen=seen: seen.append(args))
            generator(images, seeds)
            hook.remove()
            steps = max(1, round(50 * strength))
            noisy, t = seen[0]
            assert (len(seen), int(t)) == (steps, 20 * steps - 1)
            kept = (1 - betas).cumprod(0)[int(t)].float()
            with torch.no_grad():
                latents = base.vae.encode(2 * images - 1).latent_dist
            for i, seed in enumerate(seeds.tolist()):
                rng = torch.Generator().manual_seed(seed)
                drawn, noise = torch.randn(latents.mean[0].shape, generator=rng), torch.randn(latents.mean[0].shape, generator=rng)
                source = base.vae.config.scaling_factor * (latents.mean[i] + latents.std[i] * drawn)
                assert (noisy[i] - (kept.sqrt() * source + (1 - kept).sqrt() * noise)).abs().max() < 1e-4


class TestConditions:
    @pytest.mark.parametrize("condition", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("canny", "segmentation")), red])
    def test_the_contract_of_generators(self, base: Any, net: Any, condition: Any) -> None:
        generator = gt.ControlNetVariation.from_pipeline(base, controlnet=net, condition=condition, num_inference_steps=1)
        inputs: dict[str, Any] = {"masks": torch.randint(0, 150, (4, 20, 20))} if condition == "segmentation" else {}
        if condition is red:
            inputs["prompts"] = ["a", "b", "c", "d"]
        check_generator(generator, **inputs)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["base", "unclip"])
    def test_the_contract_with_strength_and_drawn_thresholds(self, base: Any, net: Any, kind: str) -> None:
        generator = gt.ControlNetVariation.from_pipeline(
            base if kind == "base" else tiny.unclip(), controlnet=net, num_inference_steps=3, strength=0.7, scheduler="ddim", eta=0.5,
            canny_thresholds=((0.1, 0.3), (0.3, 0.9)),
        )  # fmt: skip
        check_generator(generator)

    def test_a_source_goes_through_the_vae_once_whatever_the_variants(self, base: Any, net: Any) -> None:
        generator = gt.ControlNetVariation.from_pipeline(base, controlnet=net, num_inference_steps=2, strength=0.5)
        images, _ = batch(2)
        encoded: list[int] = []
        hook = base.vae.encoder.register_forward_hook(lambda _module, args, _out: encoded.append(len(args[0])))
        generator.sample({name: v.repeat_interleave(4, dim=0) for name, v in generator.encode(images).items()}, torch.arange(8))
        hook.remove()
        assert encoded == [2]

    def test_depth(self, base: Any, net: Any) -> None:
        generator = gt.ControlNetVariation.from_pipeline(
            base, controlnet=net, condition="depth", depth_estimator=tiny.depth_estimator(), num_inference_steps=1
        )
        check_generator(generator)
        images, _ = batch(3)
        condition = generator.encode(images)
        assert condition["control_0"].shape == (3, 3, 32, 32)
        with counted(generator) as counts:
            generator.sample({name: v.repeat_interleave(4, dim=0) for name, v in generator.encode(images).items()}, torch.arange(12))
        assert counts.rows["depth_estimator"] == [3]

    def test_depth_without_a_model(self, base: Any, net: Any) -> None:
        with pytest.raises(ConfigError, match=r"condition='depth'.*depth_estimator="):
            gt.ControlNetVariation.from_pipeline(base, controlnet=net, condition="depth")

    def test_thresholds_are_drawn_by_the_seed(self, base: Any, net: Any) -> None:
        generator = gt.ControlNetVariation.from_pipeline(
            base, controlnet=net, condition="canny", canny_thresholds=((0.05, 0.1), (0.1, 0.6)), num_inference_steps=1, image_size=96,
            guidance_scale=1.0,
        )  # fmt: skip
        images = torch.nn.functional.interpolate(batch(1)[0], size=(96, 96), mode="bilinear")
        condition = generator.encode(images)
        assert set(condition) == {"magnitude_0"}
        maps = []

        def keep(_module: Any, args: Any) -> None:
            maps.append(args[0])

        hook = net.controlnet_cond_embedding.register_forward_pre_hook(keep)
        rows = condition["magnitude_0"].expand(16, -1, -1, -1)
        made = generator.sample({"magnitude_0": rows}, torch.arange(16))
        generator.sample({"magnitude_0": rows[:1]}, torch.tensor([7]))
        hook.remove()
        assert len({float(row.mean()) for row in maps[0]}) > 10, "each variant has thresholds of its own"
        assert torch.equal(maps[1][0], maps[0][7]), "and they follow from the seed alone"
        assert set(maps[0].unique().tolist()) == {0.0, 1.0}
        assert len(made) == 16

    @pytest.mark.parametrize("masks", ["tensor", "list", "arrays", "PIL"])
    def test_masks_are_handed_over_by_the_transform(self, base: Any, net: Any, masks: str) -> None:
        palette = [[0, 0, 0], [255, 0, 0], [0, 255, 0]]
        generator = gt.ControlNetVariation.from_pipeline(
            base, controlnet=net, condition="segmentation", palette=palette, num_inference_steps=1
        )
        seen = []
        net_hook = net.controlnet_cond_embedding.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        augment = gt.GenerativeAugment(generator, p=1.0, inputs_getter=lambda sample: {"masks": sample["mask"]})
        mask = torch.zeros(2, 40, 40, dtype=torch.int64)
        mask[0, :20], mask[1, :, 20:] = 1, 2
        kinds: dict[str, Any] = {
            "tensor": tv_tensors.Mask(mask), "list": list(mask), "arrays": [m.numpy() for m in mask],
            "PIL": [PIL.Image.fromarray(m.numpy().astype(np.uint8), "P") for m in mask],
        }  # fmt: skip
        augment = gt.GenerativeAugment(generator, p=1.0, inputs_getter=lambda _: {"masks": kinds[masks]})
        augment(torch.rand(2, 3, 40, 40))
        net_hook.remove()
        expected = torch.zeros(2, 3, 32, 32)
        expected[0, 0, :16], expected[1, 1, :, 16:] = 1, 1
        assert torch.equal(seen[0], expected)
        assert torch.equal(generator.encode(torch.rand(2, 3, 40, 40), masks=kinds[masks])["control_0"], expected), "called directly"

    def test_a_function_that_returns_something_else(self, base: Any, net: Any) -> None:
        generator = gt.ControlNetVariation.from_pipeline(base, controlnet=net, condition=lambda images: images[:, :1])
        with pytest.raises(GeneratorError, match=r"\(2, 1, 32, 32\).*torch.float32.*cpu.*\(2, 3, 32, 32\)"):
            generator.encode(batch(2)[0])

    def test_a_function_gets_images_of_the_generators_size(self, base: Any, net: Any) -> None:
        shapes = []

        def look(images: Tensor) -> Tensor:
            shapes.append(tuple(images.shape))
            assert images.min() >= 0
            assert images.max() <= 1
            return images

        generator = gt.ControlNetVariation.from_pipeline(base, controlnet=net, condition=look, num_inference_steps=1)
        gt.GenerativeAugment(generator, p=1.0)(torch.rand(2, 3, 50, 70))
        assert shapes == [(2, 3, 32, 32)]


class TestCounts:
    @pytest.mark.parametrize("guidance", [1.0, 4.0])
    def test_one_call_of_each_network_a_step(self, base: Any, net: Any, guidance: float) -> None:
        generator = gt.ControlNetVariation.from_pipeline(
            base, controlnet=net, num_inference_steps=3, guidance_scale=guidance, scheduler="dpm++"
        )
        images, seeds = batch(5)
        calls: list[int] = []
        embedded: list[int] = []
        hooks = [
            net.register_forward_hook(lambda _m, args, _k, _o: calls.append(len(args[0])), with_kwargs=True),
            net.controlnet_cond_embedding.register_forward_hook(lambda _m, args, _o: embedded.append(len(args[0]))),
        ]
        with counted(generator) as counts:
            generator(images, seeds)
        for hook in hooks:
            hook.remove()
        rows = 10 if guidance > 1 else 5
        assert counts.rows["unet"] == calls == [rows] * 3
        assert embedded == [5], "control maps are embedded once, not at every step and not twice for guidance"
        assert sum(counts.decoded) == 5
        assert type(net.controlnet_cond_embedding).__name__ == "ControlNetConditioningEmbedding", "the network is left as it was"

    @pytest.mark.parametrize(
        ("scheduler", "thresholds"), [("unipc", ((0.1, 0.2), (0.2, 0.4))), pytest.param("dpm++", (0.2, 0.4), marks=pytest.mark.slow)]
    )
    def test_nothing_waits_for_the_device(self, base: Any, net: Any, scheduler: str, thresholds: Any) -> None:
        """But one look of Canny's, before the steps; kornia's blur looks at its own sigma, on the CPU whatever the device."""
        generator = gt.ControlNetVariation.from_pipeline(
            base, controlnet=net, num_inference_steps=4, scheduler=scheduler, strength=0.5, canny_thresholds=thresholds
        )
        images, seeds = batch(2)
        generator(images, seeds)
        with HostReads() as mode:
            generator(images, seeds)
        assert mode.reads == {"equal": 1, "_local_scalar_dense": 1}
        plain = gt.ControlNetVariation.from_pipeline(base, controlnet=net, condition=red, num_inference_steps=4, scheduler=scheduler)
        plain(images, seeds)
        with HostReads() as mode:
            plain(images, seeds)
        assert sum(mode.reads.values()) == 0, mode.reads

    @pytest.mark.slow
    def test_networks_are_compiled_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not anew at each step or call; what is made of a network's graph is left to torch."""
        graphs: list[Any] = []

        def backend(graph: Any, _inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        compiling = torch.nn.Module.compile
        monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiling(module, backend=backend))
        pipe = tiny.stable_diffusion()
        options: dict[str, Any] = {"controlnet": tiny.controlnet(pipe.unet), "condition": red, "num_inference_steps": 3}
        images, seeds = batch(2)
        expected = gt.ControlNetVariation.from_pipeline(pipe, **options)(images, seeds)
        generator = gt.ControlNetVariation.from_pipeline(pipe, compile=True, **options)
        try:
            agree(generator(images, seeds), expected)
            generator(images, seeds)
        finally:
            torch.compiler.reset()
        assert len(graphs) == 2, "the UNet's and the ControlNet's"

    @pytest.mark.parametrize("condition", ["canny", "depth", "segmentation"])
    def test_no_pil(self, base: Any, net: Any, condition: str, no_pil: None) -> None:  # noqa: F811
        generator = gt.ControlNetVariation.from_pipeline(
            base, controlnet=net, condition=condition, depth_estimator=tiny.depth_anything(), num_inference_steps=1, strength=1.0
        )
        masks = {"masks": torch.zeros(2, 50, 40, dtype=torch.int64)} if condition == "segmentation" else {}
        generator(batch(2, (50, 40))[0], batch(2)[1], **masks)


class TestGeometry:
    @pytest.mark.parametrize("size", [(32, 32), (40, 64), (97, 33)])
    def test_targets_pass_through(self, base: Any, net: Any, size: tuple[int, int]) -> None:
        generator = gt.ControlNetVariation.from_pipeline(base, controlnet=net, num_inference_steps=1)
        assert generator.preserves_geometry is True
        sample = {
            "image": tv_tensors.Image(torch.rand(3, *size)),
            "boxes": tv_tensors.BoundingBoxes(torch.tensor([[1, 2, 9, 11]]), format="XYXY", canvas_size=size),
            "mask": tv_tensors.Mask(torch.randint(0, 3, size)),
            "points": tv_tensors.KeyPoints(torch.tensor([[4, 5]]), canvas_size=size),
        }
        out = v2.Compose([gt.GenerativeAugment(generator, p=1.0)])(sample)
        assert out["image"].shape == (3, *size)
        assert not torch.equal(out["image"], sample["image"])
        for name in ("boxes", "mask", "points"):
            assert out[name] is sample[name]

    def test_the_map_is_of_the_whole_image(self, base: Any, net: Any) -> None:
        """A bar at the left edge of a wide image stands at the left edge of the map: nothing was cropped."""
        generator = gt.ControlNetVariation.from_pipeline(base, controlnet=net, condition=red, num_inference_steps=1)
        seen: list[Tensor] = []
        hook = net.controlnet_cond_embedding.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        images = torch.zeros(1, 3, 32, 128)
        images[..., :16] = 1
        gt.GenerativeAugment(generator, p=1.0)(images)
        hook.remove()
        assert seen[0][0, 0, :, :3].min() > 0.9
        assert seen[0][0, 0, :, 6:].max() < 0.1


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"condition": "cany"}, r"condition='cany'.*canny.*depth.*segmentation"),
            ({"condition": ["canny", "canny"]}, r"\b2 conditions\b.*\b1\b"),
            ({"strength": 1.5}, r"strength=1.5\b.*\b0\b.*\b1\b"),
            ({"strength": 0.01, "num_inference_steps": 10}, r"strength=0.01\b.*\b10\b"),
            ({"conditioning_scale": [1.0, 2.0]}, r"conditioning_scale=\[1.0, 2.0\].*\b1\b"),
            ({"conditioning_scale": -1}, r"conditioning_scale=-1\b.*\b0\b"),
            ({"canny_thresholds": (0.5, 0.2)}, r"canny_thresholds=\(0.5, 0.2\).*\(low, high\)"),
            ({"canny_thresholds": 0.5}, r"canny_thresholds=0.5\b.*\(low, high\)"),
            ({"palette": [[1, 2]]}, r"palette=\[\[1, 2\]\].*\(K, 3\).*\b255\b"),
            ({"image_size": 31}, r"image_size=31\b.*multiples of 2\b"),
        ],
    )
    def test_options(self, base: Any, net: Any, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            gt.ControlNetVariation.from_pipeline(base, controlnet=net, **options)

    def test_no_controlnet(self, base: Any) -> None:
        with pytest.raises(ConfigError, match="controlnet"):
            gt.ControlNetVariation.from_pipeline(base)

    def test_a_pipeline_that_holds_its_controlnet(self, base: Any, net: Any) -> None:
        pipe = diffusers.StableDiffusionControlNetPipeline(**base.components, controlnet=net, requires_safety_checker=False)
        generator = gt.ControlNetVariation.from_pipeline(pipe, num_inference_steps=1)
        assert list(generator.controlnets) == [net]
        with pytest.raises(WeightsError, match="ip_adapter="):
            gt.StableDiffusionVariation.from_pipeline(pipe)

    @pytest.mark.parametrize(
        ("masks", "error", "message"),
        [
            (None, MissingInputError, r"masks\b.*condition='segmentation'"),
            (torch.zeros(1, 8, 8, dtype=torch.int64), ConfigError, r"masks\b.*\b1\b.*\b2\b"),
            (torch.zeros(2, 8, 8), ConfigError, r"masks\b.*\(2, 8, 8\).*torch.float32.*\(B, H, W\)"),
            (torch.full((2, 8, 8), 150), ConfigError, r"masks\b.*\b150\b.*\b0\b.*\b149\b"),
            (torch.full((2, 8, 8), -1), ConfigError, r"masks\b.*-1\b.*\b0\b.*\b149\b"),
            ([None, None], ConfigError, r"masks holds a NoneType: expected tensors, arrays or PIL images"),
            (["a.png", "b.png"], ConfigError, r"masks holds a str"),
            ([[[1]], [[2]]], ConfigError, r"masks holds a list"),
            (3, ConfigError, r"masks is an int"),
            ([np.zeros((8, 8))] * 2, ConfigError, r"masks\b.*\(1, 8, 8\).*torch.float64"),
            ([PIL.Image.new("RGB", (8, 8))] * 2, ConfigError, r"masks\b.*\(1, 3, 8, 8\).*expected \(B, H, W\)"),
        ],
    )
    def test_masks(self, base: Any, net: Any, masks: Any, error: type[Exception], message: str) -> None:
        generator = gt.ControlNetVariation.from_pipeline(base, controlnet=net, condition="segmentation", num_inference_steps=1)
        with pytest.raises(error, match=message):
            generator.encode(batch(2)[0], masks=masks)

    def test_no_masks_in_the_transform(self, base: Any, net: Any) -> None:
        generator = gt.ControlNetVariation.from_pipeline(base, controlnet=net, condition="segmentation", num_inference_steps=1)
        with pytest.raises(MissingInputError, match="masks"):
            gt.GenerativeAugment(generator, p=1.0)(torch.rand(2, 3, 32, 32))

    def test_wrong_number_of_prompts(self, base: Any, net: Any) -> None:
        generator = gt.ControlNetVariation.from_pipeline(base, controlnet=net, num_inference_steps=1)
        with pytest.raises(ConfigError, match=r"prompts\b.*\b3\b.*\b2\b"):
            generator.encode(batch(2)[0], prompts=["a", "b", "c"])
