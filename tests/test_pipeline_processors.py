"""Settings of image processors and tokenizers that a pipeline's call reads are in the fingerprint, and survive saving."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch

import gentransforms as gt
from gentransforms.generators.pipelines.settings import describe_processor

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = torch.tensor([3, 4])


def with_an_adapter() -> gt.PipelineVariation:
    pipe = tiny_pipelines.img2img()
    pipe.register_modules(image_encoder=tiny_diffusion.image_encoder(), feature_extractor=tiny_diffusion.image_processor())
    pipe.load_ip_adapter(tiny_diffusion.ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
    return gt.PipelineVariation.from_pipeline(pipe, strength=0.5, num_inference_steps=2, guidance_scale=3.0, image_size=64)


def flux2() -> gt.PipelineVariation:
    options: dict[str, Any] = {"num_inference_steps": 2, "max_sequence_length": 16, "text_encoder_out_layers": (0, 1, 2), "image_size": 64}
    return gt.PipelineVariation.from_pipeline(tiny_pipelines.flux2_klein(), prompt="a", **options)


def redux() -> gt.PipelineVariation:
    pipe, prior = tiny_pipelines.flux_redux()
    return gt.PipelineVariation.from_pipeline(pipe, prior=prior, num_inference_steps=2, image_size=32)


def depth() -> gt.PipelineVariation:
    pipe, prior = tiny_pipelines.kandinsky_depth()
    given = tiny_diffusion.depth_estimator()
    return gt.PipelineVariation.from_pipeline(pipe, prior=prior, condition="depth", depth_estimator=given, image_size=64)


def change(part: Callable[[gt.PipelineVariation], Any], **values: Any) -> Callable[[gt.PipelineVariation], None]:
    def apply(generator: gt.PipelineVariation) -> None:
        for name, value in values.items():
            assert getattr(part(generator), name) != value
            setattr(part(generator), name, value)

    return apply


TEMPLATE = "be brief {% for m in messages %}{{ m['content'] }}{% endfor %}"
CHANGES: list[tuple[Callable[[], gt.PipelineVariation], Callable[[gt.PipelineVariation], None]]] = [
    (with_an_adapter, change(lambda g: g.pipe.feature_extractor, resample=2)),
    (with_an_adapter, change(lambda g: g.pipe.feature_extractor, do_center_crop=False)),
    (with_an_adapter, change(lambda g: g.pipe.feature_extractor, crop_size={"height": 24, "width": 24})),
    (redux, change(lambda g: g.prior.feature_extractor, resample=0)),
    (redux, change(lambda g: g.prior.feature_extractor, do_resize=False)),
    (depth, change(lambda g: g.depth_processor, resample=0)),
    (flux2, change(lambda g: g.pipe.tokenizer, chat_template=TEMPLATE)),
    (flux2, change(lambda g: g.pipe.tokenizer, padding_side="left")),
]


class TestFingerprint:
    @pytest.mark.parametrize(("make", "apply"), CHANGES, ids=[f"{make.__name__}-{i}" for i, (make, _) in enumerate(CHANGES)])
    def test_covers_them(self, make: Callable[[], gt.PipelineVariation], apply: Callable[[gt.PipelineVariation], None]) -> None:
        generator = make()
        before = generator.fingerprint()
        assert make().fingerprint() == before
        apply(generator)
        assert generator.fingerprint() != before

    def test_because_they_change_images(self) -> None:
        generator, images = flux2(), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        before = generator(images, SEEDS[:1])
        generator.pipe.tokenizer.chat_template = TEMPLATE
        assert (generator(images, SEEDS[:1]) - before).abs().max() > 1e-4

    @pytest.mark.parametrize("make", [redux, flux2])
    def test_is_the_same_after_loading(self, make: Callable[[], gt.PipelineVariation], tmp_path: Path) -> None:
        generator = make()
        if make is redux:
            generator.prior.feature_extractor.resample = 0
        generator.save_pretrained(tmp_path / "saved")
        assert gt.load_generator(tmp_path / "saved").fingerprint() == generator.fingerprint()


class TestDescribed:
    def test_without_versions_classes_and_places(self) -> None:
        processor = tiny_diffusion.image_processor()
        processor._processor_class, processor.name_or_path = "Some", "/here"
        found = describe_processor(processor)
        assert found.keys() >= {"resample", "crop_size", "do_resize", "do_rescale", "image_mean"}
        assert not found.keys() & {"image_processor_type", "_processor_class", "name_or_path", "transformers_version"}
        assert json.loads(json.dumps(found)) == found

    def test_of_texts_and_images(self) -> None:
        found = describe_processor(tiny_pipelines.qwen_processor())
        assert found["image_processor"]["patch_size"] == 14
        assert found["tokenizer"]["padding_side"] in ("left", "right")

    def test_other_parts_have_none(self) -> None:
        pipe = tiny_pipelines.flux()
        assert describe_processor(pipe.vae) == describe_processor(pipe.scheduler) == describe_processor(None) == {}
