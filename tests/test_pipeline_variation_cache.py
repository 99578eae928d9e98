"""diffusers' caches between the steps of a transformer: what they save, and that no call knows of another."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from diffusers import FluxImg2ImgPipeline
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.testing import check_generator

pytestmark = pytest.mark.usefixtures("one_thread")
pytest.importorskip("diffusers.hooks", reason="the installed diffusers has no caches")
SEEDS = torch.tensor([3, 4, 5])
STEPS = 4
OPTIONS: dict[str, Any] = {"image_size": 32, "strength": 1.0, "num_inference_steps": STEPS, "max_sequence_length": 16}
SKIPPING = {"name": "FirstBlockCache", "threshold": 10.0}  # all steps but the first
CACHES = {
    "first block": SKIPPING,
    "Taylor": {"name": "TaylorSeerCache", "cache_interval": 2, "disable_cache_before_step": 1},
    "magnitude": {"name": "MagCache", "num_inference_steps": STEPS, "mag_ratios": [1.0] * STEPS},
}


def pipe() -> Any:
    """FLUX with three blocks: the first is always computed."""
    from diffusers import FluxTransformer2DModel

    made = tiny_pipelines.flux()
    config = {name: value for name, value in made.transformer.config.items() if not name.startswith("_")} | {"num_layers": 3}
    torch.manual_seed(2)
    made.register_modules(transformer=FluxTransformer2DModel(**config).eval())
    return made


def chroma() -> Any:
    from diffusers import ChromaImg2ImgPipeline, ChromaTransformer2DModel

    flux = tiny_pipelines.flux()
    torch.manual_seed(2)
    transformer = ChromaTransformer2DModel(
        patch_size=1, in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 4, 8), approximator_hidden_dim=32, approximator_layers=1,
        approximator_num_channels=64,
    ).eval()  # fmt: skip
    parts = {"text_encoder": flux.text_encoder_2, "tokenizer": flux.tokenizer_2, "scheduler": flux.scheduler, "vae": flux.vae}
    return ChromaImg2ImgPipeline(**parts, transformer=transformer)


class Untold(FluxImg2ImgPipeline):
    """Calls its transformer a second time in each step, on other input, and does not tell the cache."""

    def __call__(self, image: Any, prompt: Any = None, generator: Any = None, num_images_per_prompt: int = 1, strength: float = 1.0,
                 num_inference_steps: int = 4, max_sequence_length: int = 16, height: Any = None, width: Any = None,
                 output_type: Any = "pt") -> Any:  # fmt: skip
        network = self.transformer
        again = [False]

        def twice(module: Any, args: Any, kwargs: Any) -> None:
            if not again[0]:
                again[0] = True
                with self.told(network, "other"):
                    network(*args, **kwargs | {"hidden_states": -kwargs["hidden_states"]})
                again[0] = False
                contexts.enter_context(self.told(network, "own"))

        contexts = ExitStack()
        hook = network.register_forward_pre_hook(twice, with_kwargs=True, prepend=True)
        with contexts:
            made = super().__call__(
                prompt=prompt, image=image, generator=generator, num_images_per_prompt=num_images_per_prompt, strength=strength,
                num_inference_steps=num_inference_steps, max_sequence_length=max_sequence_length, height=height, width=width,
                output_type=output_type,
            )  # fmt: skip
        hook.remove()
        return made

    def told(self, network: Any, name: str) -> Any:
        return nullcontext()


class Told(Untold):
    """Tells it."""

    def told(self, network: Any, name: str) -> Any:
        return network.cache_context(name)


def generator_of(cache: Any, **options: Any) -> gt.PipelineVariation:
    return gt.PipelineVariation.from_pipeline(pipe(), cache=cache, **OPTIONS | options)


def photos() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@contextmanager
def calls_of(module: torch.nn.Module) -> Iterator[list[int]]:
    count = [0]
    hook = module.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    yield count
    hook.remove()


class TestCache:
    @pytest.mark.parametrize("cache", list(CACHES.values()), ids=list(CACHES))
    def test_skips_steps_and_changes_images(self, cache: dict[str, Any]) -> None:
        generator, plain = generator_of(cache), generator_of(None)
        for made_first in (generator, plain):  # twice
            made_first(photos()[:1], SEEDS[:1])
        with calls_of(generator.transformer.transformer_blocks[1].attn.to_q) as computed:
            made = generator(photos()[:1], SEEDS[:1])
        assert computed[0] < STEPS
        with calls_of(plain.transformer.transformer_blocks[1].attn.to_q) as all_of_them:
            expected = plain(photos()[:1], SEEDS[:1])
        assert all_of_them[0] == STEPS
        assert 0 < (made - expected).abs().max() < 0.1
        assert generator.fingerprint() != plain.fingerprint()

    def test_that_skips_nothing_is_the_plain_loop(self) -> None:
        made = generator_of({"name": "FirstBlockCache", "threshold": 0.0})(photos()[:1], SEEDS[:1])
        assert (made - generator_of(None)(photos()[:1], SEEDS[:1])).abs().max() <= 1e-5

    @pytest.mark.slow
    @pytest.mark.parametrize("cache", list(CACHES.values()), ids=list(CACHES))
    def test_the_contract(self, cache: dict[str, Any]) -> None:
        check_generator(generator_of(cache), images=photos())

    def test_no_call_knows_of_another(self) -> None:
        generator = generator_of(SKIPPING)
        assert generator.together == "nothing"  # it decides by the change of a whole batch
        alone = generator(photos()[1:2], SEEDS[1:2])
        generator(photos()[:1], SEEDS[:1])
        assert torch.equal(generator(photos()[1:2], SEEDS[1:2]), alone)
        assert torch.equal(generator(photos(), SEEDS)[1:2], alone)

    def test_after_an_error_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = generator_of(SKIPPING)
        expected = generator(photos()[:1], SEEDS[:1])

        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("out of paper")

        with monkeypatch.context() as patch:
            patch.setattr(generator.pipe.vae, "decode", fail)
            with pytest.raises(RuntimeError, match="out of paper"):
                generator(photos()[:1], SEEDS[:1])
        assert not generator.transformer.is_cache_enabled
        assert torch.equal(generator(photos()[:1], SEEDS[:1]), expected)

    def test_nothing_is_left_in_the_pipeline(self) -> None:
        generator = generator_of(SKIPPING)
        generator(photos()[:1], SEEDS[:1])
        for module in generator.transformer.modules():
            assert "forward" not in vars(module)
            assert "_diffusers_hook" not in vars(module)

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        generator = generator_of(SKIPPING)
        generator.save_pretrained(tmp_path / "saved")
        again = gt.load_generator(tmp_path / "saved")
        assert again.fingerprint() == generator.fingerprint()
        assert (again(photos()[:1], SEEDS[:1]) - generator(photos()[:1], SEEDS[:1])).abs().max() <= 1e-5

    def test_a_configuration_of_diffusers_is_the_same(self) -> None:
        from diffusers.hooks import FirstBlockCacheConfig

        assert generator_of(FirstBlockCacheConfig(threshold=10.0)).config == generator_of(SKIPPING).config
        assert generator_of("FirstBlockCacheConfig").cache == {"name": "FirstBlockCache"}


class TestRefused:
    @pytest.mark.parametrize(
        ("cache", "message"),
        [
            ("DeepCache", r"cache='DeepCache': expected one of .*FirstBlockCache.*TaylorSeerCache"),
            ({"name": "FirstBlockCache", "treshold": 1}, "unknown setting 'treshold' of FirstBlockCache: it takes threshold"),
            ({"threshold": 1}, "expected an entry 'name'"),
            (3, "cache=3: expected a name"),
            ({"name": "MagCache", "num_inference_steps": 4}, "cache=.*MagCache"),
            (
                {"name": "PyramidAttentionBroadcast", "spatial_attention_block_skip_range": 2},
                "goes by timesteps, which a FluxImg2ImgPipeline does not tell",
            ),
        ],
    )
    def test_what_is_no_cache(self, cache: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            generator_of(cache)

    def test_networks_without_one(self) -> None:
        with pytest.raises(ConfigError, match="a UNet2DConditionModel has none: only transformers with diffusers' enable_cache do"):
            gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), cache="FirstBlockCache")

    def test_guided_calls_that_the_pipeline_does_not_tell_apart(self) -> None:
        with pytest.raises(ConfigError, match="which of its calls are those of the negative prompt"):
            generator_of(SKIPPING, negative_prompt="a", true_cfg_scale=2.0)

    @pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")  # by Chroma's own parts
    def test_several_calls_a_step_that_share_its_memory(self) -> None:
        """Chroma guides by guidance_scale, and says nothing to a cache."""
        guided = gt.PipelineVariation.from_pipeline(chroma(), cache=CACHES["Taylor"], **OPTIONS | {"guidance_scale": 4.0})
        with pytest.raises(ConfigError, match="a ChromaImg2ImgPipeline calls its transformer more than once a step with these options"):
            guided(photos()[:1], SEEDS[:1])
        with pytest.raises(ConfigError, match="more than once a step"):
            guided(photos(), SEEDS)
        assert "step" not in vars(guided.pipe.scheduler)
        assert "cache_context" not in vars(guided.transformer)
        alone = gt.PipelineVariation.from_pipeline(chroma(), cache=CACHES["Taylor"], **OPTIONS | {"guidance_scale": 0.0})
        check_generator(alone, images=photos())

    def test_several_calls_a_step_that_the_pipeline_tells_apart(self) -> None:
        made = pipe()
        told = gt.PipelineVariation.from_pipeline(Told(**made.components), cache=CACHES["Taylor"], **OPTIONS)
        untold = gt.PipelineVariation.from_pipeline(Untold(**made.components), cache=CACHES["Taylor"], **OPTIONS)
        plain = gt.PipelineVariation.from_pipeline(made, cache=CACHES["Taylor"], **OPTIONS)
        assert torch.equal(told(photos()[:1], SEEDS[:1]), plain(photos()[:1], SEEDS[:1]))
        with pytest.raises(ConfigError, match="an Untold calls its transformer more than once a step"):
            untold(photos()[:1], SEEDS[:1])

    @pytest.mark.parametrize(
        "cache", ["TextKVCache", {"name": "TaylorSeerCache", "cache_identifiers": ["nowhere"]}], ids=["other blocks", "no such part"]
    )
    def test_one_that_finds_nothing_to_work_in(self, cache: Any) -> None:
        made = pipe()
        with pytest.raises(ConfigError, match="it finds no part of a FluxTransformer2DModel to work in"):
            gt.PipelineVariation.from_pipeline(made, cache=cache, **OPTIONS)
        assert not made.transformer.is_cache_enabled

    def test_one_that_is_enabled_in_part(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = pipe()
        enable = type(made.transformer).enable_cache

        def fail(self: Any, config: Any) -> None:
            enable(self, config)
            self._cache_config = None
            raise ValueError("half of it")

        monkeypatch.setattr(type(made.transformer), "enable_cache", fail)
        with pytest.raises(ConfigError, match=r"cannot use it in a FluxImg2ImgPipeline \(half of it\)"):
            gt.PipelineVariation.from_pipeline(made, cache=SKIPPING, **OPTIONS)
        assert not any("_diffusers_hook" in vars(module) for module in made.transformer.modules())

    def test_one_that_the_pipeline_has_already(self) -> None:
        from diffusers.hooks import FirstBlockCacheConfig

        made = pipe()
        made.transformer.enable_cache(FirstBlockCacheConfig())
        with pytest.raises(ConfigError, match=r"disable_cache\(\), and give the generator cache="):
            gt.PipelineVariation.from_pipeline(made, **OPTIONS)

    def test_one_that_diffusers_cannot_use_there(self) -> None:
        made = tiny_pipelines.flux2_klein()
        options = {"num_inference_steps": 2, "max_sequence_length": 16, "text_encoder_out_layers": (0, 1, 2), "image_size": 64}
        generator = gt.PipelineVariation.from_pipeline(made, cache=SKIPPING, **options)
        with pytest.raises(ConfigError, match="cannot use it in a Flux2KleinPipeline with these options"):
            generator(torch.rand(1, 3, 64, 64), SEEDS[:1])

    def test_copies_have_their_own(self) -> None:
        generator = generator_of(SKIPPING)
        expected = generator(photos()[:1], SEEDS[:1])
        assert torch.equal(copy.deepcopy(generator)(photos()[:1], SEEDS[:1]), expected)
