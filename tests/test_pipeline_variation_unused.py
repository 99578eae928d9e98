"""Options of loading that have no effect are refused, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import tiny_single_file
import torch

import gentransforms as gt
from gentransforms.errors import ConfigError, WeightsError
from gentransforms.generators.pipelines import calls
from gentransforms.generators.pipelines.kinds.roles import find_roles

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unused") / "sd"
    tiny_diffusion.stable_diffusion().save_pretrained(folder)
    return folder


class IFInpaintingPipeline:
    def __call__(self, image: Any, mask_image: Any) -> None: ...


def test_messages_name_a_pipeline_with_its_article() -> None:
    with pytest.raises(WeightsError, match=r"^an IFInpaintingPipeline paints"):
        find_roles(IFInpaintingPipeline, False, ())


class TestUnused:
    @pytest.mark.filterwarnings("ignore:.*`torch_dtype` is deprecated")
    @pytest.mark.parametrize(
        "options", [{"variant": "fp16"}, {"quantization_config": "nonsense"}, {"depth_model": "/nowhere"}, {"revision": "main"}]
    )
    def test_of_a_single_file(self, layout: Path, options: dict[str, Any], tmp_path: Path) -> None:
        file = tiny_single_file.write(tiny_diffusion.stable_diffusion(), tmp_path / "model.safetensors")
        with pytest.raises(ConfigError, match=rf"{next(iter(options))}=.* has no effect on .*model\.safetensors"):
            gt.PipelineVariation.from_pretrained(file, config=layout, **options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"watermarker": "x"}, "watermarker='x': expected None"),
            ({"watermarker": False}, "watermarker=False: expected None"),
            ({"depth_model": "/nowhere"}, "depth_model='/nowhere' has no effect on .*only for condition='depth'"),
            ({"preserves_geometry": "no"}, "preserves_geometry='no': expected True or False"),
            ({"preserves_geometry": 1}, "preserves_geometry=1: expected True or False"),
        ],
    )
    def test_of_a_folder(self, layout: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            gt.PipelineVariation.from_pretrained(layout, **options)

    def test_a_safety_checker_where_there_is_none(self, tmp_path: Path) -> None:
        tiny_pipelines.flux().save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=r"safety_checker=Identity: a FluxImg2ImgPipeline has none"):
            gt.PipelineVariation.from_pretrained(tmp_path, safety_checker=torch.nn.Identity())
        gt.PipelineVariation.from_pretrained(tmp_path, safety_checker=None)

    def test_none_is_a_value_where_the_call_has_another_default(self) -> None:
        pipe = tiny_pipelines.img2img()
        given = {"negative_prompt": None, "guidance_scale": None, "strength": 0.5}
        assert calls.take_options(pipe, given) == {"guidance_scale": None, "strength": 0.5}
        sana = tiny_pipelines.sana_sprint()
        options: dict[str, Any] = {"num_inference_steps": 2, "max_sequence_length": 16, "use_resolution_binning": False, "image_size": 32}
        plain = gt.PipelineVariation.from_pipeline(sana, complex_human_instruction=None, **options)
        default = gt.PipelineVariation.from_pipeline(sana, **options)
        assert plain.fingerprint() != default.fingerprint()
        assert plain.config["options"]["complex_human_instruction"] is None
