"""Pipelines that no generator can call are refused by their class, before a download, and messages name what works."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_diffusion
import tiny_pipelines
import torch

import gentransforms as gt
from gentransforms.errors import WeightsError
from gentransforms.generators.pipelines.kinds.roles import find_roles

pytestmark = pytest.mark.usefixtures("one_thread")
WAY = re.compile(r"diffusers\.(\w+)\.from_pipe\(pipe, (?:torch_)?dtype=pipe\.dtype\)")


def kind(name: str) -> Any:
    found = getattr(diffusers, name, None)
    return found if found is not None else pytest.skip(f"the installed diffusers lacks {name}")


def refusal(cls: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        find_roles(cls, False, ())
    return str(caught.value)


class TestAdvice:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
            ("SanaSprintPipeline", "SanaSprintImg2ImgPipeline"),
            ("KandinskyV22CombinedPipeline", "KandinskyV22Img2ImgCombinedPipeline"),
            ("KandinskyV22InpaintPipeline", "KandinskyV22Img2ImgPipeline"),
            ("QwenImageEditInpaintPipeline", "QwenImageEditPipeline"),
            ("SanaPipeline", None),
            ("StableUnCLIPPipeline", None),  # its image-to-image pipeline has an image encoder beside the same parts
            ("StableDiffusionSAGPipeline", None),
            ("StableDiffusionDiffEditPipeline", None),
        ],
    )
    def test_names_a_class_only_where_there_is_one(self, name: str, expected: str | None) -> None:
        message = refusal(kind(name))
        way = WAY.search(message)
        assert (way and way[1]) == expected
        assert expected or "names no image-to-image pipeline of its parts" in message
        assert ("give prior=, its prior" in message) == (name == "KandinskyV22InpaintPipeline")

    @pytest.mark.parametrize(
        ("name", "argument"),
        [
            ("LEditsPPPipelineStableDiffusion", "image of its method invert"),
            ("BlipDiffusionPipeline", "reference_image"),
            ("OmniGenPipeline", "input_images"),
            ("JoyImageEditPlusPipeline", "images"),
            ("StableCascadeCombinedPipeline", "images"),
        ],
    )
    def test_names_other_arguments_that_take_images(self, name: str, argument: str) -> None:
        assert f"takes images by other arguments than image ({argument})" in refusal(kind(name))

    @pytest.mark.slow
    def test_works_with_real_parts(self) -> None:
        """The advice is followed to the letter, and the generator is built."""
        decoder, prior = tiny_pipelines.kandinsky()
        names = ("unet", "scheduler", "movq")
        cases = [
            (diffusers.SanaSprintPipeline(**tiny_pipelines.sana_sprint().components), {}),
            (diffusers.KandinskyV22InpaintPipeline(**{name: getattr(decoder, name) for name in names}), {"prior": prior}),
            (diffusers.QwenImageInpaintPipeline(**tiny_pipelines.qwen_image().components), {}),
            (tiny_diffusion.stable_diffusion().to(torch.bfloat16), {}),
        ]
        for pipe, options in cases:
            way = WAY.search(refusal(type(pipe)))
            assert way
            found = eval(way[0], {"diffusers": diffusers, "pipe": pipe})
            assert found.dtype == pipe.dtype
            gt.PipelineVariation.from_pipeline(found, **options)

    @pytest.mark.slow
    def test_of_every_class(self) -> None:
        """What a message names exists, is accepted, and takes the parts of the class at hand, of the same types."""
        named = 0
        for name in dir(diffusers):
            cls = getattr(diffusers, name, None) if name.endswith("Pipeline") or "LEdits" in name else None
            if not isinstance(cls, type) or not issubclass(cls, diffusers.DiffusionPipeline) or cls is diffusers.DiffusionPipeline:
                continue
            try:
                find_roles(cls, False, ())
                continue
            except WeightsError as error:
                message = str(error)
            assert "AutoPipeline" not in message
            if way := WAY.search(message):
                found = getattr(diffusers, way[1])
                assert find_roles(found, "prior=, its prior" in message, ("control_mode",)).source == "image"
                needed = {
                    n
                    for n, p in inspect.signature(found.__init__).parameters.items()
                    if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
                }
                assert needed <= inspect.signature(cls.__init__).parameters.keys()
                here, there = cls._get_signature_types(), found._get_signature_types()
                assert all(set(here[part]) & set(there[part]) for part in there if part in here), name
                named += 1
        assert named > 30


class TestKinds:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("MarigoldDepthPipeline", "makes no images: its output holds latent, prediction, uncertainty"),
            ("MarigoldNormalsPipeline", "makes no images"),
            ("MarigoldIntrinsicsPipeline", "makes no images"),
            ("Kandinsky5I2IPipeline", "makes no images: its output holds image;"),
            ("StableDiffusionLDM3DPipeline", "makes no images: its output holds depth"),
            ("SanaImageToVideoPipeline", "makes videos"),
            ("WanAnimatePipeline", "makes videos"),
            ("QwenImageControlNetInpaintPipeline", r"takes a mask \(control_mask\)"),
            ("StableDiffusion3ControlNetInpaintingPipeline", r"takes a mask \(control_mask\)"),
            ("FluxFillPipeline", "paints what a mask covers anew"),
            ("StableDiffusionXLControlNetUnionPipeline", "give the option control_mode"),
            ("StableDiffusionXLModularPipeline", "StableDiffusionXLModularPipeline is a modular pipeline"),
        ],
    )
    def test_are_refused_before_a_download(self, name: str, message: str, tmp_path: Path) -> None:
        cls = kind(name)
        with pytest.raises(WeightsError, match=message):
            gt.PipelineVariation(cls.__new__(cls))
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(WeightsError, match=message):
            gt.PipelineVariation.from_pretrained(tmp_path)

    def test_a_control_net_of_flux_for_several_kinds(self) -> None:
        from types import SimpleNamespace

        from gentransforms.generators.pipelines.kinds.supported import check_supported

        pipe = SimpleNamespace(controlnet=SimpleNamespace(union=True))
        with pytest.raises(WeightsError, match="give the option control_mode"):
            check_supported(pipe)
        check_supported(pipe, {"control_mode": 1})

    def test_a_repository_for_inpainting_with_the_network_of_a_base_model(self, tmp_path: Path) -> None:
        """It is opened as image to image, as one from text is."""
        parts = tiny_diffusion.stable_diffusion().components
        diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path)
        loaded = gt.PipelineVariation.from_pretrained(tmp_path, strength=0.5)
        assert type(loaded.pipe) is diffusers.StableDiffusionImg2ImgPipeline
