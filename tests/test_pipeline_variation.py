"""Any pipeline of diffusers as a generator: agreement with its stock call, the contract, and what is encoded once."""

from __future__ import annotations

import json
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

import gentransforms as gt
from gentransforms.errors import ConfigError, GentransformsError, MissingInputError, WeightsError
from gentransforms.generators.diffusion import conditions
from gentransforms.testing import check_generator

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = torch.tensor([3, 4])
STRENGTH = {"strength": 0.5, "num_inference_steps": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "img2img": STRENGTH | {"guidance_scale": 3.0},
    "img2img_xl": STRENGTH | {"guidance_scale": 3.0},
    "lcm": STRENGTH,
    "flux": STRENGTH | {"max_sequence_length": 16},
    "kandinsky": {"num_inference_steps": 2},
    "flux2_klein": {"num_inference_steps": 2, "max_sequence_length": 16, "text_encoder_out_layers": (0, 1, 2), "image_size": 64},
}

# Beside those that the documentation names.
MORE: dict[str, dict[str, Any]] = {
    "stable_diffusion_3": STRENGTH | {"guidance_scale": 3.0, "max_sequence_length": 16},
    "flux_redux": {"num_inference_steps": 2},
    "z_image": STRENGTH | {"guidance_scale": 0.0, "max_sequence_length": 16},
    "sana_sprint": {
        "strength": 0.6, "num_inference_steps": 2, "max_sequence_length": 16, "use_resolution_binning": False,
        "complex_human_instruction": [],
    },
    "qwen_image": STRENGTH,
    "qwen_image_edit": {"num_inference_steps": 2, "negative_prompt": " ", "true_cfg_scale": 2.0},
    "kandinsky_depth": {"num_inference_steps": 2, "image_size": 64, "condition": "depth"},
}  # fmt: skip
FAMILIES |= MORE


def without(*families: str) -> list[Any]:
    """All families, of which these and those of MORE are slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in (*families, *MORE) else name for name in FAMILIES]


EVERY = without()


@cache
def parts(family: str) -> tuple[Any, Any]:
    try:
        made = getattr(tiny_pipelines, family)()
    except ImportError as error:
        pytest.skip(f"the installed diffusers lacks it: {error}")
    return made if isinstance(made, tuple) else (made, None)


def generator_of(family: str, **options: Any) -> gt.PipelineVariation:
    pipe, prior = parts(family)
    if family == "kandinsky_depth":
        options |= {"depth_estimator": estimator()}
    return gt.PipelineVariation.from_pipeline(pipe, prior=prior, **{"image_size": 32} | FAMILIES[family] | options)


@cache
def tried(family: str) -> gt.PipelineVariation:
    """The generator of a family, for tests that leave it as it was; its trial runs once."""
    return generator_of(family)


@cache
def estimator() -> tuple[Any, Any]:
    return tiny_diffusion.depth_estimator()


@pytest.fixture(autouse=True)
def _small_references(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen-Image-Edit brings each image to 1024 x 1024 pixels, which take minutes on a CPU; here to 64 x 64, in the stock call too."""
    if "qwen_image_edit" not in request.node.name:  # importing it takes seconds
        return
    try:
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as module
    except ImportError:
        return
    own = module.calculate_dimensions
    monkeypatch.setattr(module, "calculate_dimensions", lambda area, ratio: own(64 * 64, ratio))


def photos(count: int = 2, size: int = 32) -> Tensor:
    """Of whole steps of 8 bits, which PIL images can hold."""
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)).float() / 255


def stock(family: str, image: Tensor, seed: int, prompt: str = "") -> Tensor:
    """What the pipeline makes of one image with one rng."""
    pipe, prior = parts(family)
    options = {name: value for name, value in FAMILIES[family].items() if name not in ("image_size", "condition")}
    size = FAMILIES[family].get("image_size", 32)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        if family in ("kandinsky", "kandinsky_depth"):
            pixels = prior.image_processor(image[None], do_rescale=False, return_tensors="pt").pixel_values
            options["image_embeds"] = prior.image_encoder(pixels).image_embeds
            options |= {"negative_image_embeds": prior.get_zero_embed(), "height": size, "width": size}
            if family == "kandinsky_depth":
                options["hint"] = conditions.depth_maps(*estimator(), image[None])
        elif family in ("flux2_klein", "qwen_image_edit"):
            options |= {"image": TF.to_pil_image((image * 255).round().byte()), "prompt": prompt, "height": size, "width": size}
        elif family == "flux_redux":
            embeds = prior(TF.to_pil_image((image * 255).round().byte()), prompt=prompt)
            options |= {
                "prompt_embeds": embeds.prompt_embeds,
                "pooled_prompt_embeds": embeds.pooled_prompt_embeds,
                "height": 32,
                "width": 32,
            }
        else:
            options |= {"image": image[None], "prompt": prompt}
            if family in ("flux", "stable_diffusion_3", "z_image", "sana_sprint", "qwen_image"):
                options |= {"height": 32, "width": 32}
        made = pipe(**options, generator=torch.Generator().manual_seed(seed), output_type="pt").images
    pipe.set_progress_bar_config()
    return (made / 2 + 0.5).clamp(0, 1) if family.startswith("kandinsky") else made.float()


class TestFamilies:
    """Each family equals the stock call; of what pipelines of one kind share, the other tests take enough families for every kind."""

    @pytest.mark.parametrize("family", EVERY)
    def test_equal_the_stock_call(self, family: str) -> None:
        generator = tried(family)
        images = photos(2, generator.image_size[0])
        prompts = {"prompts": ["a cat", "dog"]} if generator.takes_prompt else {}
        made = generator(images, SEEDS, **prompts)
        assert made.std() > 0.05
        for i, prompt in enumerate(["a cat", "dog"]):
            expected = stock(family, images[i], int(SEEDS[i]), prompt)
            assert (made[i : i + 1] - expected).abs().max() <= 1e-4

    @pytest.mark.parametrize("family", without("img2img_xl", "kandinsky", "lcm", "flux", "flux2_klein"))
    def test_the_contract(self, family: str) -> None:
        check_generator(generator_of(family), images=photos(3, FAMILIES[family].get("image_size", 32)))

    @pytest.mark.parametrize("family", without("img2img", "img2img_xl", "lcm", "flux", "flux2_klein"))
    def test_each_source_is_encoded_once(self, family: str) -> None:
        generator = tried(family)
        pipe, prior = parts(family)
        encoders = [prior.image_encoder if prior is not None else pipe.vae.encoder]
        if family == "qwen_image_edit":  # which reads the picture with the instruction, and with the negative prompt
            encoders.append(pipe.text_encoder.model.visual)
        if family == "kandinsky_depth":
            encoders.append(generator.depth_estimator)
        images = photos(2, generator.image_size[0])
        generator(images, SEEDS)  # the first use tries the pipeline
        generator._once.clear()
        encoded = [0] * len(encoders)

        def count(i: int, args: Any, kwargs: Any) -> None:
            given = args[0] if args else kwargs.get("pixel_values", kwargs.get("hidden_states"))
            encoded[i] += 1 if given.ndim == 2 else len(given)

        hooks = [
            encoder.register_forward_hook(lambda _module, args, kwargs, _output, i=i: count(i, args, kwargs), with_kwargs=True)
            for i, encoder in enumerate(encoders)
        ]
        condition = generator.encode(images)
        for start in range(0, 10, 2):
            generator.sample(condition, torch.tensor([start, start + 1]))
        rows = {name: value.repeat_interleave(5, 0) for name, value in condition.items()}
        generator.sample(rows, torch.arange(10))
        for hook in hooks:
            hook.remove()
        expected = [3 if family.startswith("kandinsky") else 2, 2 * 2 if family == "qwen_image_edit" else 2]  # a black image beside them
        assert encoded == expected[: len(encoded)]

    @pytest.mark.parametrize("family", without("img2img", "img2img_xl", "lcm", "flux2_klein"))
    def test_saved_and_loaded(self, family: str, tmp_path: Path) -> None:
        generator = tried(family)
        generator.save_pretrained(tmp_path / "saved")
        again = gt.load_generator(tmp_path / "saved")
        assert isinstance(again, gt.PipelineVariation)
        assert again.fingerprint() == generator.fingerprint()
        images = photos(2, generator.image_size[0])
        assert (again(images, SEEDS) - generator(images, SEEDS)).abs().max() <= 1e-5


class TestPrompts:
    def test_a_template_takes_its_fields_from_the_inputs(self) -> None:
        generator = generator_of("img2img", prompt="a photo of {label}")
        assert generator.inputs == ("label", "prompts")
        assert generator.required_inputs == ("label",)
        made = generator(photos(), SEEDS, label=["cat", "dog"])
        for i, prompt in enumerate(["a photo of cat", "a photo of dog"]):
            assert (made[i : i + 1] - stock("img2img", photos()[i], int(SEEDS[i]), prompt)).abs().max() <= 1e-4
        by_number = generator(photos(), SEEDS, label=torch.tensor([1, 2]))
        assert (by_number - made).abs().max() >= 0

    def test_a_field_that_is_missing_is_named(self) -> None:
        with pytest.raises(MissingInputError, match=r"label is missing: prompt='a \{label\}'.*inputs_getter"):
            generator_of("img2img", prompt="a {label}").encode(photos())

    def test_through_the_transform(self) -> None:
        generator = generator_of("img2img", prompt="a {label}")
        augment = gt.GenerativeAugment(generator, p=1.0, inputs_getter=lambda sample: {"label": sample["label"]})
        made = augment({"image": photos(), "label": ["cat", "dog"]})["image"]
        assert made.shape == (2, 3, 32, 32)

    @pytest.mark.parametrize("prompt", ["a {", "a {0}", "a {x.y}", 3])
    def test_that_are_no_templates(self, prompt: Any) -> None:
        with pytest.raises(ConfigError, match="prompt="):
            generator_of("img2img", prompt=prompt)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"prompts": ["a"]}, r"prompts\b.*\b1\b.*\b2\b"),
            ({"label": ["a"]}, r"label has 1 entries: expected 2"),
            ({"tint": [1, 2]}, "tint"),
        ],
    )
    def test_that_are_not_one_for_each_image(self, inputs: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            generator_of("img2img", prompt="a {label}").encode(photos(), **inputs)

    def test_any_text_survives(self) -> None:
        from gentransforms.generators.pipelines.texts import from_bytes, to_bytes

        texts = ["", "a", "été 日本", "a  b "]
        assert from_bytes(to_bytes(texts)) == texts
        assert from_bytes(to_bytes([])) == []


class TestOptions:
    def test_unknown_ones_are_refused_with_the_list(self) -> None:
        with pytest.raises(ConfigError, match=r"unknown option 'strenght': a \w+ takes .*guidance_scale.*strength"):
            generator_of("img2img", strenght=0.5)

    @pytest.mark.parametrize("name", ["generator", "output_type", "num_images_per_prompt", "callback_on_step_end"])
    def test_what_the_generator_sets_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match=rf"the option '{name}' is set by the generator"):
            generator_of("img2img", **{name: 1})

    def test_are_in_the_fingerprint(self) -> None:
        several = [generator_of("img2img"), generator_of("img2img", strength=0.6), generator_of("img2img", prompt="a"),
                   generator_of("img2img", image_size=64)]  # fmt: skip
        assert len({generator.fingerprint() for generator in several}) == len(several)

    def test_a_layout_is_kept_only_where_the_user_says_so(self) -> None:
        assert not generator_of("img2img").preserves_geometry
        assert generator_of("img2img", preserves_geometry=True).preserves_geometry


class TestRefused:
    def test_a_prompt_that_nothing_reads(self) -> None:
        with pytest.raises(ConfigError, match=r"prompt='a': a KandinskyV22PriorPipeline takes no prompt"):
            generator_of("kandinsky", prompt="a")

    def test_pipelines_that_take_no_image(self) -> None:
        with pytest.raises(WeightsError, match=r"StableDiffusionPipeline takes no image: use .*Img2ImgPipeline\.from_pipe"):
            gt.PipelineVariation.from_pipeline(tiny_diffusion.stable_diffusion())

    def test_decoders_without_their_prior(self) -> None:
        with pytest.raises(WeightsError, match=r"KandinskyV22Pipeline needs the embedding of an image: give prior="):
            gt.PipelineVariation.from_pipeline(parts("kandinsky")[0])

    def test_pipelines_that_diffusers_does_not_have(self, tmp_path: Path) -> None:
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "NobodysPipeline"}))
        with pytest.raises(WeightsError, match=r"NobodysPipeline, which the installed diffusers .* does not have"):
            gt.load_generator(tmp_path)


class Scaled:
    """An attention processor with a setting."""

    def __init__(self, factor: float) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.factor = factor
        self._own = AttnProcessor2_0()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        made: Tensor = self._own(*args, **kwargs)
        return made * self.factor


def replaced_forward(pipe: Any) -> None:
    own = pipe.unet.mid_block.forward
    pipe.unet.mid_block.forward = lambda *args, **kwargs: own(*args, **kwargs) * 0.5


def noise_levels(pipe: Any) -> None:
    pipe.scheduler.alphas_cumprod = pipe.scheduler.alphas_cumprod**2


def hooked(pipe: Any) -> None:
    pipe.unet.register_forward_pre_hook(lambda module, args: None)


def padded(pipe: Any) -> None:
    pipe.vae.decoder.conv_in.padding_mode = "circular"


class TestChangedInPlace:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (replaced_forward, r"the forward method of unet\.mid_block was replaced"),
            (noise_levels, r"scheduler\.alphas_cumprod of the \w+ was changed"),
            (hooked, r"unet has a forward hook .*remove\(\)"),
            (padded, r"vae\.decoder\.conv_in\.padding_mode is 'circular'"),
        ],
    )
    def test_what_no_fingerprint_covers_is_refused(self, change: Any, message: str) -> None:
        pipe = tiny_pipelines.img2img()
        generator = gt.PipelineVariation.from_pipeline(pipe, **STRENGTH)
        generator.fingerprint()
        change(pipe)
        with pytest.raises(ConfigError, match=message):
            generator.fingerprint()
        with pytest.raises(ConfigError, match=message):
            gt.PipelineVariation.from_pipeline(pipe, **STRENGTH)

    def test_settings_of_attention_processors_are_in_the_fingerprint(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), **STRENGTH)
        found, processors = [generator.fingerprint()], dict(generator.pipe.unet.attn_processors)
        first, *_, last = processors
        for changed in ({name: Scaled(0.5) for name in processors}, {name: Scaled(0.1) for name in processors},
                        {first: Scaled(0.5)}, {last: Scaled(0.5)}):  # fmt: skip
            generator.pipe.unet.set_attn_processor(processors | changed)
            found.append(generator.fingerprint())
        assert len(set(found)) == 5
        generator.pipe.unet.set_attn_processor(processors)
        assert generator.fingerprint() == found[0]


def mixing(pipe: Any) -> Any:
    """A pipeline whose images depend on their batch."""
    own = pipe.vae.decode

    def decode(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        return own(latents + latents.mean(0, keepdim=True), *args, **kwargs)

    pipe.vae.decode = decode
    return pipe


class TestContract:
    def test_a_pipeline_that_mixes_images_runs_one_at_a_time(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(mixing(tiny_pipelines.img2img()), **STRENGTH)
        with pytest.warns(UserWarning, match=r"StableDiffusionImg2ImgPipeline: its images depend on .*: it runs one image at a time"):
            made = generator(photos(), SEEDS)
        alone = torch.cat([generator(photos()[i : i + 1], SEEDS[i : i + 1]) for i in range(2)])  # without another warning
        assert torch.equal(made, alone)
        assert generator.together == "nothing"

    def test_the_trial_leaves_the_random_state_alone(self) -> None:
        generator = generator_of("img2img")
        before = torch.get_rng_state()
        generator(photos(), SEEDS)
        assert torch.equal(before, torch.get_rng_state())
        assert generator.together == "sources"

    def test_black_images_of_a_safety_checker_are_failures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pipe = tiny_pipelines.img2img()
        generator = gt.PipelineVariation.from_pipeline(pipe, **STRENGTH)
        generator.together = "sources"

        def check(image: Tensor, device: Any, dtype: Any) -> tuple[Tensor, list[bool]]:
            return image * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1), [False, True]

        monkeypatch.setattr(pipe, "run_safety_checker", check)
        made = generator(photos(), SEEDS)
        assert made[0].isfinite().all()
        assert made[1].isnan().all()
        augment = gt.GenerativeAugment(generator, p=1.0)
        with pytest.warns(UserWarning, match="finite|NaN"):
            kept = augment(photos())
        assert torch.equal(kept[1], photos()[1])
        assert int(augment.nonfinite_count) == 1

    def test_bars_of_the_pipeline_come_back(self) -> None:
        pipe = tiny_pipelines.img2img()
        pipe.set_progress_bar_config(leave=False)
        gt.PipelineVariation.from_pipeline(pipe, **STRENGTH)(photos(1), SEEDS[:1])
        assert pipe._progress_bar_config == {"leave": False}

    def test_pickled_it_makes_the_same(self) -> None:
        generator = generator_of("img2img")
        made = generator(photos(), SEEDS)
        assert torch.equal(pickle.loads(pickle.dumps(generator))(photos(), SEEDS), made)

    def test_fills_a_bank(self, tmp_path: Path) -> None:
        data = [{"image": photo, "key": i, "label": i % 2} for i, photo in enumerate(photos(3))]
        generator = generator_of("img2img", prompt="a {label}")
        source = gt.open_source(data, columns={"label": "label"})
        gt.generate_bank(source, tmp_path / "bank", generator, variants=2, progress=False)
        assert len(gt.Bank.open(tmp_path / "bank")) == 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    pipes = {"img2img": parts("img2img")[0], "sd": tiny_diffusion.stable_diffusion(), "unclip": tiny_diffusion.unclip()}
    pipes |= {"decoder": parts("kandinsky")[0], "prior": parts("kandinsky")[1]}
    for name, pipe in pipes.items():
        pipe.save_pretrained(root / name)
    return {name: root / name for name in pipes}


class TestLoading:
    def test_load_generator_picks_what_serves_best(self, folders: dict[str, Path]) -> None:
        assert type(gt.load_generator(folders["unclip"])) is gt.StableDiffusionVariation
        assert type(gt.load_generator(folders["img2img"], strength=0.5)) is gt.PipelineVariation
        assert type(gt.load_generator(folders["decoder"], prior=folders["prior"])) is gt.PipelineVariation

    def test_a_repository_of_text_to_image_is_loaded_as_image_to_image(self, folders: dict[str, Path]) -> None:
        loaded = gt.PipelineVariation.from_pretrained(folders["sd"], safety_checker=None, **STRENGTH)
        built = gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), **STRENGTH)
        assert torch.equal(loaded(photos(), SEEDS), built(photos(), SEEDS))

    def test_a_prior_from_its_folder(self, folders: dict[str, Path]) -> None:
        loaded = gt.load_generator(folders["decoder"], prior=folders["prior"], image_size=32, num_inference_steps=2)
        assert (loaded(photos(), SEEDS) - generator_of("kandinsky")(photos(), SEEDS)).abs().max() <= 1e-5

    @pytest.mark.parametrize("options", [{"strenght": 1}, {"revision": "main"}])
    def test_errors_are_ours(self, folders: dict[str, Path], options: dict[str, Any]) -> None:
        with pytest.raises(GentransformsError, match=next(iter(options))):
            gt.load_generator(folders["img2img"], **options)
