"""What is set in a pipeline beside its components: in the fingerprint, and in what is saved."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from diffusers.models import attention_dispatch
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_img2img as xl_module
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import ConfigError
from gentransforms.generators.pipelines import settings

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS: dict[str, Any] = {"strength": 0.9, "num_inference_steps": 2}
EDIT: dict[str, Any] = {"num_inference_steps": 2, "max_sequence_length": 16, "text_encoder_out_layers": (0, 1, 2), "image_size": 64}
SEEDS = torch.tensor([3, 4])


def photos(size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


class Darkening:
    """Stands for the watermarker of diffusers, which needs a package that is not installed."""

    def apply_watermark(self, images: Tensor) -> Tensor:
        return images * 0.5


@pytest.fixture
def watermarker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xl_module, "is_invisible_watermark_available", lambda: True)
    monkeypatch.setattr(xl_module, "StableDiffusionXLWatermarker", Darkening, raising=False)


@pytest.mark.usefixtures("watermarker")
class TestWatermark:
    def test_left_out_stays_left_out(self, tmp_path: Path) -> None:
        tiny_pipelines.img2img_xl().save_pretrained(tmp_path / "xl")
        marked = gt.PipelineVariation.from_pretrained(tmp_path / "xl", **OPTIONS)
        plain = gt.PipelineVariation.from_pretrained(tmp_path / "xl", watermarker=None, **OPTIONS)
        made = plain(photos(), SEEDS)
        assert (marked(photos(), SEEDS) - made).abs().max() > 0.1
        assert marked.fingerprint() != plain.fingerprint()
        plain.save_pretrained(tmp_path / "plain")
        again = gt.PipelineVariation.from_pretrained(tmp_path / "plain")
        assert again.fingerprint() == plain.fingerprint()
        assert torch.equal(again(photos(), SEEDS), made)

    def test_one_that_is_missing_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny_pipelines.img2img_xl().save_pretrained(tmp_path / "xl")
        gt.PipelineVariation.from_pretrained(tmp_path / "xl", **OPTIONS).save_pretrained(tmp_path / "marked")
        assert gt.PipelineVariation.from_pretrained(tmp_path / "marked").pipe.watermark is not None
        monkeypatch.setattr(xl_module, "is_invisible_watermark_available", lambda: False)
        with pytest.raises(ConfigError, match="saved with the watermarker Darkening, and the installed diffusers gives it none"):
            gt.PipelineVariation.from_pretrained(tmp_path / "marked")
        assert gt.PipelineVariation.from_pretrained(tmp_path / "marked", watermarker=None).pipe.watermark is None


def keep_pixels(pipe: Any) -> None:
    pipe.image_processor.register_to_config(do_normalize=False)


def score_aesthetics(pipe: Any) -> None:
    pipe.register_to_config(requires_aesthetics_score=True)


def encode_to_zeros(pipe: Any) -> None:
    pipe.register_to_config(force_zeros_for_empty_prompt=not pipe.config.force_zeros_for_empty_prompt)


def mark(pipe: Any) -> None:
    pipe.watermark = Darkening()


def shorten(pipe: Any) -> None:
    pipe.tokenizer_max_length = 4


def distil(pipe: Any) -> None:
    pipe.register_to_config(is_distilled=True)


class TestSettings:
    @pytest.mark.parametrize(
        ("family", "change"),
        [
            ("img2img", keep_pixels),
            ("img2img_xl", encode_to_zeros),
            ("img2img_xl", mark),
            ("flux", shorten),
            ("flux2_klein", distil),
        ],
    )
    def test_change_images_and_fingerprint(self, family: str, change: Any, tmp_path: Path) -> None:
        pipe = getattr(tiny_pipelines, family)()
        options = EDIT if family == "flux2_klein" else OPTIONS | {"image_size": 32, "prompt": "abcdefgh"}
        if change in (encode_to_zeros, distil):
            options = options | {"guidance_scale": 4.0, "prompt": "abc" if change is distil else ""}
        generator = gt.PipelineVariation.from_pipeline(pipe, **options)
        generator.together = "nothing"  # without the trial
        size = generator.image_size[0]
        before, made = generator.fingerprint(), generator(photos(size)[:1], SEEDS[:1])
        assert generator.fingerprint() == before  # a call leaves nothing behind that counts
        change(pipe)
        changed = generator(photos(size)[:1], SEEDS[:1])
        assert not torch.equal(changed, made)
        assert generator.fingerprint() != before
        if change is mark:
            return
        generator.save_pretrained(tmp_path)
        again = gt.PipelineVariation.from_pretrained(tmp_path)
        assert again.fingerprint() == generator.fingerprint()
        assert (again(photos(size)[:1], SEEDS[:1]) - changed).abs().max() <= 1e-6

    def test_of_the_prior(self, tmp_path: Path) -> None:
        pipe, prior = tiny_pipelines.kandinsky()
        prior.note = 3  # stands for an attribute of a prior
        generator = gt.PipelineVariation.from_pipeline(pipe, prior=prior, num_inference_steps=2, image_size=32)
        before = generator.fingerprint()
        prior.note = 4
        assert generator.fingerprint() != before


class TestNotesOfCalls:
    """Plain attributes that a pipeline's own calls change: counts and the like."""

    def test_leave_the_fingerprint_where_it_is(self, tmp_path: Path) -> None:
        generator = gt.PipelineVariation.from_pipeline(counting(), **OPTIONS)
        generator._repeatable = True  # without a second image that tries the pipeline
        before = generator.fingerprint()
        for calls in (1, 2):
            generator(photos()[:1], SEEDS[:1])
            assert generator.pipe.calls == calls
            assert generator.pipe.last == (32, 32)
            assert generator.fingerprint() == before
        assert gt.PipelineVariation.from_pipeline(counting(), **OPTIONS).fingerprint() == before
        generator.pipe.strictness = 2  # which no call changes
        assert generator.fingerprint() != before
        generator.pipe.strictness = 1
        assert pickle.loads(pickle.dumps(generator)).fingerprint() == before

    def test_one_that_is_set_between_calls_counts_again(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(counting(), **OPTIONS)
        pipe, before, found = generator.pipe, generator.fingerprint(), []
        for value in (None, 100, None):
            if value is not None:
                pipe.calls = value
                found.append(generator.fingerprint())
            with settings.watched(pipe, generator._notes):
                pipe.calls, pipe.last = pipe.calls + 1, [32, 32]
            found.append(generator.fingerprint())
        assert found[0] == before
        assert len({before, *found[1:]}) == 2
        pipe.last = [64, 64]
        assert generator.fingerprint() not in (before, *found)

    def test_a_call_that_fails_adds_none(self) -> None:
        notes, pipe = settings.Notes(), counting()
        pipe.sizes = [1]

        def fail(**attributes: int) -> None:
            with settings.watched(pipe, notes):
                vars(pipe).update(attributes)
                raise MemoryError

        with pytest.raises(MemoryError):
            fail(strictness=2)
        assert settings.read_settings(pipe, notes)["attributes"]["strictness"] == 2
        with settings.watched(pipe, notes):
            pipe.calls = 1
            pipe.sizes.append(2)
        with pytest.raises(MemoryError):
            fail(calls=2)  # which is known to change
        found = settings.read_settings(pipe, notes)["attributes"]
        assert (found["calls"], found["sizes"]) == (0, [1])
        assert pickle.loads(pickle.dumps(notes)) == notes

    def test_of_the_prior(self) -> None:
        pipe, prior = tiny_pipelines.kandinsky()
        prior.calls = 0

        class Counting(type(prior.image_encoder)):  # type: ignore[misc]
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                prior.calls += 1
                return super().forward(*args, **kwargs)

        prior.image_encoder.__class__ = Counting
        generator = gt.PipelineVariation.from_pipeline(pipe, prior=prior, num_inference_steps=1, image_size=32)
        before = generator.fingerprint()
        generator.encode(photos())
        assert prior.calls
        assert generator.fingerprint() == before


def counting() -> Any:
    """A pipeline whose class counts its calls, and notes what it made."""
    pipe = tiny_pipelines.img2img()
    pipe.__class__ = StableDiffusionCountedImg2ImgPipeline
    pipe.calls, pipe.strictness = 0, 1
    return pipe


class StableDiffusionCountedImg2ImgPipeline(StableDiffusionImg2ImgPipeline):  # type: ignore[misc]
    @functools.wraps(StableDiffusionImg2ImgPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        made = super().__call__(*args, **kwargs)
        self.last = tuple(made.images.shape[-2:])
        return made


class TestAttentionBackends:
    def test_of_few_bits_are_recorded_and_not_saved(self, tmp_path: Path) -> None:
        pipe = tiny_pipelines.flux()
        generator = gt.PipelineVariation.from_pipeline(pipe, image_size=32, **OPTIONS)
        before = generator.fingerprint()
        processors = [module.processor for module in pipe.transformer.modules() if hasattr(module, "processor")]
        for backend, exact in (("native", True), ("flash", True), ("sage", False), (attention_dispatch.AttentionBackendName.SAGE, False)):
            for processor in processors:
                processor._attention_backend = backend
            assert (generator.fingerprint() == before) is exact
        assert generator.config["state"]["attention_backend"] == {"transformer": ["sage"]}
        with pytest.raises(ConfigError, match="transformer computes attention by sage"):
            generator.save_pretrained(tmp_path)

    def test_the_one_of_all_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = gt.PipelineVariation.from_pipeline(tiny_pipelines.flux(), image_size=32, **OPTIONS)
        before = generator.fingerprint()
        registry = attention_dispatch._AttentionBackendRegistry
        monkeypatch.setattr(registry, "_active_backend", attention_dispatch.AttentionBackendName.SAGE)
        assert generator.fingerprint() != before

    def test_generators_with_a_loop_of_their_own_refuse_them(self) -> None:
        generator = gt.StableDiffusionVariation(tiny_diffusion.unclip())
        for module in generator.unet.modules():
            if hasattr(module, "processor"):
                module.processor._attention_backend = "sage"
        with pytest.raises(ConfigError, match="unet computes attention by sage"):
            generator.fingerprint()
