"""Lists and dicts of OmegaConf, as Hydra passes them: taken wherever plain ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue
from small_banks import KEYS, make_bank

import gentransforms as gt
from gentransforms.containers import as_plain
from gentransforms.testing import FakeGenerator


def configured(value: Any) -> Any:
    """The value as a configuration file has it."""
    found = OmegaConf.create({"value": value}).value
    assert not isinstance(found, list | dict)
    return found


class TestAsPlain:
    def test_all_that_is_inside(self) -> None:
        config = OmegaConf.create({"size": 8, "nested": {"sizes": [["${size}", 2.5], {"a": None}]}})
        found = as_plain(config.nested)
        assert found == {"sizes": [[8, 2.5], {"a": None}]}
        assert (type(found), type(found["sizes"]), type(found["sizes"][0])) == (dict, list, list)

    def test_anything_else_is_returned_itself(self) -> None:
        for value in ([1], {"a": 1}, (2,), "text", None, torch.zeros(2), FakeGenerator):
            assert as_plain(value) is value

    def test_a_missing_value(self) -> None:
        with pytest.raises(MissingMandatoryValue):
            as_plain(configured(["???"]))


class TestArguments:
    def test_output_size(self) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(8), 1.0, output_size=configured([16, 12]))
        assert augment(torch.rand(2, 3, 8, 8)).shape == (2, 3, 16, 12)
        assert repr(augment) == repr(gt.GenerativeAugment(FakeGenerator(8), 1.0, output_size=(16, 12)))

    def test_banks_and_weights(self, tmp_path: Path) -> None:
        paths = [str(make_bank(tmp_path / name)) for name in ("a", "b")]
        augment = gt.BankAugment(configured(paths), weights=configured([1, 3]), keys_getter=lambda images: KEYS[: len(images)])
        assert len(augment.banks) == 2

    @pytest.mark.parametrize(
        ("name", "value"),
        [("image_size", [32, 48]), ("condition", ["canny"]), ("conditioning_scale", [0.5]), ("canny_thresholds", [0.2, 0.4])],
    )
    def test_diffusion(self, name: str, value: Any) -> None:
        base = tiny_diffusion.stable_diffusion()
        options: dict[str, Any] = {"controlnet": tiny_diffusion.controlnet(base.unet), "condition": "canny", "num_inference_steps": 1}
        built, wrapped, plain = (
            make(base, **options | {name: given})
            for make, given in (
                (gt.ControlNetVariation, configured(value)), (gt.ControlNetVariation.from_pipeline, configured(value)),
                (gt.ControlNetVariation, value),
            )
        )  # fmt: skip
        assert built.config == wrapped.config == plain.config
        assert built.fingerprint() == plain.fingerprint()

    def test_pipelines(self) -> None:
        options: dict[str, Any] = {"prompt": "a", "num_inference_steps": 4}
        pipe = tiny_pipelines.img2img()
        found = gt.PipelineVariation.from_pipeline(pipe, image_size=configured([32, 48]), **options)
        assert found.image_size == (32, 48)
        assert found.config == gt.PipelineVariation.from_pipeline(pipe, image_size=(32, 48), **options).config

    def test_a_saved_generator(self, tmp_path: Path) -> None:
        tiny_diffusion.stable_diffusion().save_pretrained(tmp_path / "pipe")
        tiny_diffusion.controlnet(tiny_diffusion.stable_diffusion().unet).save_pretrained(tmp_path / "net")
        options: dict[str, Any] = {"controlnet": configured([str(tmp_path / "net")]), "condition": configured(["canny"])}
        found = gt.ControlNetVariation.from_pretrained(tmp_path / "pipe", **options, image_size=configured([32, 32]))
        assert (found.conditions, found.image_size) == (["canny"], (32, 32))
