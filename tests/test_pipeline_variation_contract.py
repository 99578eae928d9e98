"""Pipelines that break the contract, each in a way of its own: what is found out before the first batch, and what follows."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

import gentransforms as gt
from gentransforms.errors import ConfigError, GeneratorError, WeightsError
from gentransforms.generators.pipelines import adapters, calls, priors
from gentransforms.generators.pipelines.trial import find_dependence
from gentransforms.testing import check_generator

SEEDS = torch.tensor([5, 6, 7])
WAVES = torch.tensor([1.0, -1.0]).repeat(32)  # over the columns of an image of 64


class Net(ModelMixin, ConfigMixin):
    """One convolution, which changes nothing."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        nn.init.dirac_(self.conv.weight)

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.conv(images)
        return made


class Honest(DiffusionPipeline):
    """Noise of each image's own rng on a convolved source; counts its calls."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.register_modules(unet=unet)
        self._calls = 0

    def __call__(self, image: Tensor, generator: list[torch.Generator] | None = None, num_images_per_prompt: int = 1) -> Any:
        self._calls += 1
        assert generator is not None
        sources = self.read(image)
        sources = self.unet(sources).repeat_interleave(num_images_per_prompt, 0)
        return ImagePipelineOutput(images=self.make(sources, generator).clamp(0, 1))

    def read(self, image: Any) -> Tensor:
        assert isinstance(image, Tensor)
        return image

    def make(self, sources: Tensor, rngs: list[torch.Generator]) -> Tensor:
        return sources + 0.2 * torch.cat([torch.randn(1, 3, 8, 8, generator=rng) for rng in rngs])


class Normalised(Honest):
    """With the statistics of the batch, as a batch norm left in training mode."""

    def make(self, sources: Tensor, rngs: list[torch.Generator]) -> Tensor:
        return torch.nn.functional.batch_norm(super().make(sources, rngs), None, None, training=True) * 0.2 + 0.5


class SharedRng(Honest):
    """All noise from the first rng, as pipelines do that are given one."""

    def make(self, sources: Tensor, rngs: list[torch.Generator]) -> Tensor:
        return sources + 0.2 * torch.randn(len(sources), 3, 8, 8, generator=rngs[0])


class ByPosition(Honest):
    """Right for whatever stands first."""

    def make(self, sources: Tensor, rngs: list[torch.Generator]) -> Tensor:
        return super().make(sources, rngs) + 0.05 * torch.arange(len(sources)).view(-1, 1, 1, 1)


class BySecond(Honest):
    """Right in one order of two sources, wrong in the other."""

    def make(self, sources: Tensor, rngs: list[torch.Generator]) -> Tensor:
        made = super().make(sources, rngs)
        return made if len(made) < 2 or made[0].mean() < made[1].mean() else made.roll(1, 0)


class Single(Honest):
    """Of whatever batch, the first image."""

    def make(self, sources: Tensor, rngs: list[torch.Generator]) -> Tensor:
        return super().make(sources, rngs)[:1]


class FixedBatch(Honest):
    """With an option that is one value for each image."""

    def __call__(self, image: Tensor, generator: Any = None, num_images_per_prompt: int = 1, weights: Any = (1.0,)) -> Any:
        if len(weights) != len(generator):
            raise ValueError(f"expected {len(generator)} weights, got {len(weights)}")
        return super().__call__(image * weights[0], generator, num_images_per_prompt)


class References(Honest):
    """Several sources are references for one image."""

    def read(self, image: Any) -> Tensor:
        return super().read(image).mean(0, keepdim=True)


class Pictures(Honest):
    """Takes a PIL image alone."""

    def read(self, image: Any) -> Tensor:
        width, height = image.size
        return torch.tensor(list(image.tobytes())).view(1, height, width, 3).movedim(-1, 1) / 255


class GlobalNoise(Honest):
    """Draws from torch's global random state."""

    def make(self, sources: Tensor, rngs: list[torch.Generator]) -> Tensor:
        return sources + 0.2 * torch.randn(len(sources), 3, 8, 8)


class GlobalEncoder(Honest):
    """Its autoencoder draws from torch's global random state."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        self.vae = Careless()

    def make(self, sources: Tensor, rngs: list[torch.Generator]) -> Tensor:
        return super().make(self.vae.encode(sources), rngs)


class Careless(nn.Module):
    """Not a part of the pipeline's networks, yet what it encodes is kept."""

    def encode(self, images: Tensor) -> Tensor:
        return images + 0.2 * torch.randn_like(images)


class BlackFirst(Honest):
    """A safety checker blacks out its first two images; the others are of torch's global random state."""

    def __call__(self, image: Tensor, generator: list[torch.Generator] | None = None, num_images_per_prompt: int = 1) -> Any:
        made = super().__call__(image, generator, num_images_per_prompt)
        made.nsfw_content_detected = [self._calls <= 2] * len(made.images)
        return made

    def make(self, sources: Tensor, rngs: list[torch.Generator]) -> Tensor:
        return sources + 0.2 * torch.randn(len(sources), 3, 8, 8)


class Remembers(Honest):
    """Its images depend on earlier calls."""

    def make(self, sources: Tensor, rngs: list[torch.Generator]) -> Tensor:
        return super().make(sources, rngs) + 0.01 * self._calls


class Larger(Honest):
    """Makes images of its own size."""

    def make(self, sources: Tensor, rngs: list[torch.Generator]) -> Tensor:
        return super().make(sources, rngs).repeat_interleave(2, -1).repeat_interleave(2, -2)


class Latents(Honest):
    """Makes no images."""

    def make(self, sources: Tensor, rngs: list[torch.Generator]) -> Tensor:
        return super().make(sources, rngs)[:, :1]


def generator_of(kind: type[Honest], **options: Any) -> gt.PipelineVariation:
    return gt.PipelineVariation.from_pipeline(kind(Net()), image_size=8, **options)


def photos(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float() / 255


def one_by_one(kind: type[Honest], **options: Any) -> Tensor:
    """What the pipeline itself makes of each image alone."""
    pipe = generator_of(kind, **options).pipe
    made = []
    with torch.no_grad():
        for photo, seed in zip(photos(), SEEDS.tolist(), strict=True):
            made.append(pipe(photo[None], generator=[torch.Generator().manual_seed(seed)], **options).images)
    return torch.cat(made)


class TestTogether:
    @pytest.mark.parametrize(
        ("kind", "together", "message"),
        [
            (Honest, "sources", None),
            (Normalised, "nothing", "its images depend on what else is in the batch: it runs one image at a time"),
            (SharedRng, "nothing", "its images depend on"),
            (ByPosition, "nothing", "its images depend on"),
            (BySecond, "nothing", "its images depend on"),
            (Single, "nothing", "it takes no batch of sources .*made 1 images where 2 were asked for"),
            (FixedBatch, "nothing", r"it takes no batch of sources \(expected 2 weights, got 1\): it runs one image at a time"),
            (References, "variants", "it runs one source at a time, with all its variants"),
        ],
    )
    def test_what_goes_through_one_call(self, kind: type[Honest], together: str, message: str | None) -> None:
        generator = generator_of(kind)
        if message is None:
            made = generator(photos(), SEEDS)
        else:
            with pytest.warns(UserWarning, match=f"^{kind.__name__}: .*{message}"):
                made = generator(photos(), SEEDS)
        assert generator.together == together
        assert (made - one_by_one(kind)).abs().max() <= 1e-6
        again = generator(photos(), SEEDS)  # without another warning
        assert torch.equal(made, again)
        before = generator.pipe._calls
        generator(photos(1).expand(3, -1, -1, -1), SEEDS)
        assert generator.pipe._calls - before == {"sources": 1, "variants": 1, "nothing": 3}[together]

    @pytest.mark.filterwarnings("ignore:.*runs one:UserWarning")
    @pytest.mark.parametrize("kind", [Honest, Normalised, SharedRng, ByPosition, BySecond, Single, FixedBatch, References])
    def test_the_contract_holds_however_it_is_called(self, kind: type[Honest]) -> None:
        check_generator(generator_of(kind), images=photos())

    def test_the_first_single_image_is_made_again(self) -> None:
        """Of a PIL image, which this pipeline refuses, and as before."""
        generator = generator_of(Normalised)
        generator(photos(1), SEEDS[:1])
        assert generator.pipe._calls == 3
        assert generator.together is None  # which only a batch needs
        generator(photos(1), SEEDS[1:2])
        assert generator.pipe._calls == 4
        again = copy.deepcopy(generator)
        again(photos(1), SEEDS[:1])
        assert again.pipe._calls == 5

    def test_what_a_batch_has_shown_is_not_tried_again(self) -> None:
        generator = generator_of(Honest)
        generator(photos(), SEEDS)
        before = generator.pipe._calls
        generator(photos(1), SEEDS[:1])
        assert generator.pipe._calls == before + 1

    def test_pictures_where_it_takes_no_tensors(self) -> None:
        generator = generator_of(Pictures)
        made = generator(photos(), SEEDS)
        assert generator.together == "variants"
        expected = generator_of(Honest)(photos(), SEEDS)
        assert (made - expected).abs().max() <= 1e-6  # the photos are of whole steps of 8 bits

    def test_copies_know_what_was_found_out(self) -> None:
        generator = generator_of(SharedRng)
        with pytest.warns(UserWarning, match="one image at a time"):
            made = generator(photos(), SEEDS)
        for again in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
            assert torch.equal(again(photos(), SEEDS), made)

    def test_the_trial_is_the_same_whatever_comes(self) -> None:
        """It tries images of its own, so that two machines with different sources come to the same conclusion."""
        batches = (photos(), torch.zeros(3, 3, 8, 8), torch.full((2, 3, 8, 8), 0.5))
        for batch in batches:
            generator = generator_of(Normalised)
            with pytest.warns(UserWarning, match="one image at a time"):
                generator(batch, SEEDS[: len(batch)])


class TestIpAdapter:
    def test_the_source_is_what_it_sees(self) -> None:
        """Image to image with an IP-Adapter, which reads several images as references for one."""
        pipe = tiny_pipelines.img2img()
        pipe.register_modules(image_encoder=tiny_diffusion.image_encoder(), feature_extractor=tiny_diffusion.image_processor())
        pipe.load_ip_adapter(tiny_diffusion.ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
        options = {"strength": 0.5, "num_inference_steps": 2}
        generator = gt.PipelineVariation.from_pipeline(pipe, **options)
        images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float() / 255
        made = generator(images, SEEDS[:2])
        assert generator.together == "variants"
        for image, seed, found in zip(images, SEEDS.tolist(), made, strict=False):
            picture, rng = TF.to_pil_image((image * 255).round().byte()), torch.Generator().manual_seed(seed)
            with torch.no_grad():
                expected = pipe("", image[None], ip_adapter_image=picture, generator=rng, output_type="pt", **options).images[0]
            assert (found - expected).abs().max() <= 1e-4
        finer = [adapters.adapter_pixels(pipe, torch.full((1, 3, 32, 32), value / 255)) for value in (100.0, 100.4)]
        assert 0 < (finer[1] - finer[0]).max() < 0.4 / 255 / 0.2, "values between the steps of 8 bits arrive"
        with pytest.raises(ConfigError, match="the option 'ip_adapter_image' is set by the generator"):
            gt.PipelineVariation.from_pipeline(pipe, ip_adapter_image=1)


class TestSources:
    @torch.no_grad()
    def test_redux_sees_tensors(self) -> None:
        """Of images of 8 bits the same as of PIL images; values between their steps arrive too."""
        _, prior = tiny_pipelines.flux_redux()
        image = torch.randint(0, 255, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float() / 255
        made, finer = (priors.embed(prior, batch, ["a"], (32, 32))["prompt_embeds"] for batch in (image, image + 0.4 / 255))
        expected = prior(TF.to_pil_image((image[0] * 255).round().byte()), prompt="a").prompt_embeds
        assert (made - expected).abs().max() <= 1e-5
        assert (finer - made).abs().max() > 1e-5
        assert prior.feature_extractor.do_rescale

    @pytest.mark.parametrize("family", ["flux2_klein", "qwen_image_edit"])
    def test_that_must_be_pictures(self, family: str) -> None:
        """If this fails, the installed diffusers takes tensors: give them, and say so in docs/pipelines.md."""
        pipe = getattr(tiny_pipelines, family)()
        assert calls.one_source_at_a_time(pipe)
        options = {"max_sequence_length": 16, "text_encoder_out_layers": (0, 1, 2)} if family == "flux2_klein" else {}
        with pytest.raises((TypeError, ValueError), match=r"must be a PIL\.Image|not subscriptable"):
            pipe(prompt="a", image=torch.rand(1, 3, 64, 64), num_inference_steps=1, **options)


class TestFindDependence:
    """Over functions of rows, in types in which rounding must be told from dependence."""

    IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.25
    HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)

    @HALF
    @pytest.mark.parametrize(
        "effect",
        [
            lambda rows: 0.0095 * (len(rows) - 1),  # of the size alone
            lambda rows: 0.004 * torch.arange(len(rows)).view(-1, 1, 1, 1),  # of the place
            lambda rows: 0.006 * torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1) * (len(rows) - 1),  # of colours, that cancel out
            lambda rows: 0.008 * (torch.tensor(rows).float().mean() - 0.5) * WAVES,  # of the other's content, without a shift
            lambda rows: 0.01 * rows[0] * WAVES,  # of whatever stands first
        ],
        ids=["size", "place", "colour", "content", "first"],
    )
    def test_dependence_below_the_rounding_of_pixels(self, effect: Any, dtype: torch.dtype) -> None:
        def make(rows: Any) -> Tensor:
            rows = list(rows)
            return self.IMAGES[rows] + effect(rows)

        assert find_dependence(make, "sources", "X", dtype) == "its images depend on what else is in the batch"

    @HALF
    def test_rounding_that_changes_with_the_size(self, dtype: torch.dtype) -> None:
        def make(rows: Any) -> Tensor:
            noise = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(len(rows)))
            return self.IMAGES[list(rows)] + 0.008 * noise

        assert find_dependence(make, "sources", "X", dtype) is None

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("no"),
            MemoryError(),
            RuntimeError("MPS backend out of memory"),
            RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
        ],
    )
    def test_no_memory_is_no_refusal_of_a_batch(self, error: BaseException) -> None:
        def make(rows: Any) -> Tensor:
            if len(rows) > 1:
                raise error
            return self.IMAGES[list(rows)]

        with pytest.raises(type(error)):
            find_dependence(make, "sources", "X", torch.float32)


class TestRefused:
    @pytest.mark.parametrize("kind", [GlobalNoise, Remembers])
    def test_images_that_differ_with_each_call(self, kind: type[Honest]) -> None:
        with pytest.raises(GeneratorError, match=rf"^{kind.__name__} makes another image of the same source and rng with each call"):
            generator_of(kind)(photos(), SEEDS)

    @pytest.mark.parametrize("kind", [GlobalNoise, Remembers, GlobalEncoder])
    def test_single_images_that_differ_with_each_call(self, kind: type[Honest]) -> None:
        """As a bank with batches of one makes them."""
        with pytest.raises(GeneratorError, match=rf"^{kind.__name__} makes another image of the same source and rng with each call"):
            generator_of(kind)(photos(1), SEEDS[:1])

    @pytest.mark.parametrize("count", [1, 3])
    def test_where_it_was_known_that_nothing_goes_together(self, count: int) -> None:
        """As with a cache that decides for a whole batch."""
        generator = generator_of(GlobalNoise)
        generator.together = "nothing"
        with pytest.raises(GeneratorError, match="with each call"):
            generator(photos(count), SEEDS[:count])

    def test_an_image_that_shows_nothing_decides_nothing(self) -> None:
        generator = generator_of(BlackFirst)
        assert generator(photos(1), SEEDS[:1]).isnan().all()
        with pytest.raises(GeneratorError, match="with each call"):
            generator(photos(1), SEEDS[:1])

    def test_another_size_with_the_size_to_give(self) -> None:
        with pytest.raises(GeneratorError, match=r"images of 16 x 16 pixels where image_size=\(8, 8\).*give image_size=\(16, 16\)"):
            generator_of(Larger)(photos(), SEEDS)

    def test_no_images(self) -> None:
        with pytest.raises(GeneratorError, match=r"Latents returned a tensor \(1, 1, 8, 8\) as images"):
            generator_of(Latents)(photos(1), SEEDS[:1])

    def test_the_error_of_a_pipeline_is_its_own(self) -> None:
        """Not that of the second try, with pictures."""
        with pytest.raises(ValueError, match="expected 1 weights, got 2"):
            generator_of(FixedBatch, weights=[1.0, 2.0])(photos(1), SEEDS[:1])

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("StableDiffusionInpaintPipeline", "paints what a mask covers anew.*StableDiffusionImg2ImgPipeline"),
            ("StableVideoDiffusionPipeline", "makes videos"),
            ("CycleDiffusionPipeline", "needs source_prompt: give it as an option"),
            ("StableDiffusionControlNetPipeline", "takes a control map, not the image itself: give condition=.*ControlNetVariation"),
            ("KandinskyV22ControlnetPipeline", "needs the embedding of an image: give prior="),
        ],
    )
    def test_pipelines_that_are_told_of_a_source_in_another_way(self, name: str, message: str) -> None:
        import diffusers

        kind: Any = getattr(diffusers, name)
        with pytest.raises(WeightsError, match=message):
            gt.PipelineVariation(kind.__new__(kind))

    def test_a_condition_that_nothing_takes(self) -> None:
        with pytest.raises(ConfigError, match="condition='depth': a Honest takes no control map"):
            generator_of(Honest, condition="depth")
