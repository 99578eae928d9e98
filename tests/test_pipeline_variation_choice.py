"""Which class opens what, and the texts that a pipeline is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gentransforms as gt
from gentransforms.cli.options import parse_options
from gentransforms.errors import ConfigError
from gentransforms.generators.diffusion.prompts.templates import fill_prompts, template_fields
from gentransforms.generators.registry import choose_class

OURS, LAYOUT, ANY = gt.StableDiffusionVariation, gt.ControlNetVariation, gt.PipelineVariation


class TestChoice:
    @pytest.mark.parametrize(
        ("pipeline", "options", "expected"),
        [
            ("StableUnCLIPImg2ImgPipeline", {}, OURS),
            ("StableDiffusionImageVariationPipeline", {}, OURS),
            ("StableDiffusionPipeline", {"ip_adapter": ("a/b", "", "c")}, OURS),
            ("StableDiffusionXLPipeline", {"ip_adapter": ("a/b", "", "c")}, OURS),
            ("StableDiffusionPipeline", {"controlnet": "a/b"}, LAYOUT),
            ("StableUnCLIPImg2ImgPipeline", {"controlnet": "a/b"}, LAYOUT),
            ("StableDiffusionControlNetPipeline", {}, LAYOUT),
            ("StableDiffusionXLControlNetPipeline", {}, LAYOUT),
            ("StableDiffusionPipeline", {}, ANY),
            ("StableDiffusionXLPipeline", {"strength": 0.5}, ANY),
            ("LatentConsistencyModelPipeline", {}, ANY),
            ("StableDiffusionImg2ImgPipeline", {}, ANY),
            ("StableDiffusionXLImg2ImgPipeline", {}, ANY),
            ("FluxPipeline", {"prior": "a/b"}, ANY),
            ("FluxImg2ImgPipeline", {}, ANY),
            ("KandinskyV22Pipeline", {"prior": "a/b"}, ANY),
            ("Flux2KleinPipeline", {}, ANY),
            ("QwenImageEditPipeline", {}, ANY),
            ("SanaSprintPipeline", {}, ANY),
            ("ZImagePipeline", {}, ANY),
            ("StableDiffusion3ControlNetPipeline", {"condition": "canny"}, ANY),
        ],
    )
    def test_of_a_folder(self, pipeline: str, options: dict[str, Any], expected: type, tmp_path: Path) -> None:
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
        assert choose_class(tmp_path, options) is expected

    def test_of_a_single_file(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").touch()
        assert choose_class(tmp_path / "model.safetensors", {}) is ANY
        assert choose_class("organisation/name/model.safetensors", {}) is ANY

    def test_of_the_known_names(self) -> None:
        table = gt.list_pretrained()
        assert len({row.name for row in table}) == len(table)
        assert {row.class_name for row in table} <= {"ICGAN", OURS.__name__, ANY.__name__}
        assert all(row.license and row.keeps and row.size > 0 and row.commercial and row.gated for row in table)
        lines = str(table).splitlines()
        assert len(lines) == len(table) + 1
        assert all(row.name in line and row.license in line for row, line in zip(table, lines[1:], strict=True))

    def test_options_of_the_command_line(self) -> None:
        given = [
            "prompt=a photo of a {label}",
            "strength=0.5",
            'cache={"name": "FirstBlockCache", "threshold": 0.1}',
            "safety_checker=null",
        ]
        cache = {"name": "FirstBlockCache", "threshold": 0.1}
        assert parse_options(given) == {"prompt": "a photo of a {label}", "strength": 0.5, "cache": cache, "safety_checker": None}


class TestTemplates:
    @pytest.mark.parametrize(
        ("prompt", "values", "expected"),
        [
            ("a {label}", {"label": ["cat", "d{o}g"]}, ["a cat", "a d{o}g"]),
            ("{label}, {label}", {"label": ["cat", "dog"]}, ["cat, cat", "dog, dog"]),
            ("{{label}} {score:.1f}", {"score": [0.25, 2]}, ["{label} 0.2", "{label} 2.0"]),
            ("no field, {{braces}}", {}, ["no field, {braces}"] * 2),
        ],
    )
    def test_are_filled(self, prompt: str, values: dict[str, Any], expected: list[str]) -> None:
        assert fill_prompts(prompt, values, 2) == expected
        assert set(template_fields(prompt)) == set(values)

    @pytest.mark.parametrize("prompt", ["a {", "a }", "a {0}", "a {}", "a {x.y}", "a {x[0]}", "{x:{y}}", "{prompts}", "{images}"])
    def test_that_are_none(self, prompt: str) -> None:
        with pytest.raises(ConfigError, match="prompt="):
            template_fields(prompt)

    @pytest.mark.parametrize(
        ("prompt", "values", "message"),
        [
            ("a {label}", {"label": "cat"}, "label='cat': expected a list or tensor of 2 values"),
            ("a {label}", {"label": ["cat"]}, "label has 1 entries: expected 2"),
            ("a {label:.2f}", {"label": ["cat", "dog"]}, r"prompt='a \{label:.2f\}' cannot be filled"),
        ],
    )
    def test_values_that_do_not_fit(self, prompt: str, values: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            fill_prompts(prompt, values, 2)
