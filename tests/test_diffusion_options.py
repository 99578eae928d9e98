"""The options of the diffusion generators: in every signature, with type and default, and checked by name."""

from __future__ import annotations

import inspect
import pydoc
from pathlib import Path
from typing import Any

import pytest
import tiny_diffusion as tiny

import gentransforms as gt
from gentransforms.errors import ConfigError

CLASSES = [gt.StableDiffusionVariation, gt.ControlNetVariation]
WAYS = ["__init__", "from_pipeline", "from_pretrained"]
SHARED = {
    "preset", "num_inference_steps", "guidance_scale", "guidance_interval", "cache_interval", "cache_branch",
    "scheduler", "eta", "image_size", "prompt", "negative_prompt", "noise_level", "foreground_bounds",
    "ip_adapter_scale", "decode_batch_size", "channels_last", "fuse_qkv", "compile",
}  # fmt: skip
CONTROL = {"controlnet", "condition", "conditioning_scale", "canny_thresholds", "palette", "strength"}


@pytest.fixture(scope="module")
def unclip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options") / "unclip"
    tiny.unclip().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(unclip: Path) -> gt.StableDiffusionVariation:
    return gt.StableDiffusionVariation.from_pretrained(unclip)


class TestSignatures:
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("kind", CLASSES)
    def test_name_every_option_with_its_type_and_default(self, kind: type, way: str) -> None:
        parameters = inspect.signature(getattr(kind, way)).parameters
        expected = SHARED | (CONTROL if kind is gt.ControlNetVariation else set())
        assert expected <= parameters.keys()
        for name in expected:
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY, name
            assert parameters[name].annotation is not inspect.Parameter.empty, name
            assert parameters[name].default is not inspect.Parameter.empty, name
        assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    @pytest.mark.parametrize("kind", CLASSES)
    def test_help_shows_them(self, kind: type) -> None:
        shown = pydoc.render_doc(kind)
        assert "num_inference_steps: 'int | None' = None" in shown
        assert "eta: 'float' = 0.0" in shown

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("kind", CLASSES)
    def test_docstrings_describe_each(self, kind: type, way: str) -> None:
        text = kind.__doc__ if way == "__init__" else getattr(kind, way).__doc__
        for name in set(inspect.signature(getattr(kind, way)).parameters) - {"self", "cls"}:
            assert f"    {name}: " in str(text), name

    def test_what_a_subclass_adds_counts(self) -> None:
        class More(gt.StableDiffusionVariation):
            def __init__(self, pipe: Any, *, extra: int = 1, **options: Any) -> None:
                super().__init__(pipe, **options)

        assert More.option_names() == SHARED | {"extra"}
        del gt.ImageGenerator.registered["More"]


class TestUnknownNames:
    def test_are_refused_by_python_where_the_class_is_called(self) -> None:
        with pytest.raises(TypeError, match="'steps'"):
            gt.StableDiffusionVariation.from_pipeline(tiny.unclip(), steps=3)  # type: ignore[call-arg]

    def test_are_refused_with_the_list_where_it_is_found(self, unclip: Path) -> None:
        with pytest.raises(ConfigError, match=r"unknown option 'steps' of StableDiffusionVariation: .*num_inference_steps.*variant"):
            gt.load_generator(unclip, steps=3)
        with pytest.raises(ConfigError, match=r"unknown option 'strength' of StableDiffusionVariation"):
            gt.GenerativeAugment.from_pretrained(str(unclip), p=0.5, strength=0.5)

    def test_in_a_saved_config_are_refused(self, unclip: Path, tmp_path: Path) -> None:
        gt.load_generator(unclip).save_pretrained(tmp_path / "saved")
        config = tmp_path / "saved" / "config.json"
        config.write_text(config.read_text().replace('"eta"', '"eat"'))
        with pytest.raises(ConfigError, match=r"saved: unknown option 'eat' in its config: .*eta"):
            gt.load_generator(tmp_path / "saved")


class TestConfig:
    def test_a_default_given_is_the_same_generator(self) -> None:
        pipe = tiny.unclip()
        plain = gt.StableDiffusionVariation.from_pipeline(pipe)
        given = gt.StableDiffusionVariation.from_pipeline(pipe, num_inference_steps=20, guidance_scale=10.0, image_size=32, prompt="")
        assert given.fingerprint() == plain.fingerprint()

    def test_a_scheduler_by_name_is_that_scheduler(self) -> None:
        pipe = tiny.unclip()
        named = gt.StableDiffusionVariation.from_pipeline(pipe, scheduler="euler")
        built = gt.StableDiffusionVariation.from_pipeline(pipe, scheduler=named.scheduler)
        assert named.fingerprint() == built.fingerprint() != gt.StableDiffusionVariation.from_pipeline(pipe).fingerprint()

    def test_how_it_is_computed_is_left_out(self) -> None:
        pipe = tiny.variation()
        plain = gt.StableDiffusionVariation.from_pipeline(pipe).fingerprint()
        for options in ({"compile": True}, {"channels_last": True}, {"decode_batch_size": 1}):
            generator = gt.StableDiffusionVariation.from_pipeline(pipe, **options)
            assert options.items() <= generator.config.items()
            assert generator.fingerprint() == plain

    @pytest.mark.parametrize(
        "options",
        [{"num_inference_steps": 3}, {"guidance_scale": 2.0}, {"eta": 0.5}, {"image_size": 48}, {"prompt": "b"}, {"noise_level": 5},
         {"negative_prompt": "b"}],
        ids=lambda options: next(iter(options)),
    )  # fmt: skip
    def test_each_option_that_decides_images_is_in_it(self, plain: gt.StableDiffusionVariation, options: dict[str, Any]) -> None:
        assert gt.StableDiffusionVariation.from_pipeline(plain.pipe, **options).fingerprint() != plain.fingerprint()

    def test_an_attribute_changed_later_is_seen(self) -> None:
        generator = gt.StableDiffusionVariation.from_pipeline(tiny.variation())
        before = generator.fingerprint()
        generator.guidance_scale = 3.0
        assert generator.fingerprint() != before

    def test_a_saved_option_is_replaced_by_one_given(self, unclip: Path, tmp_path: Path) -> None:
        gt.StableDiffusionVariation.from_pretrained(unclip, eta=0.5, prompt="a", num_inference_steps=3).save_pretrained(tmp_path / "saved")
        same = gt.StableDiffusionVariation.from_pretrained(tmp_path / "saved")
        assert (same.eta, same.prompt, same.num_inference_steps) == (0.5, "a", 3)
        other = gt.StableDiffusionVariation.from_pretrained(tmp_path / "saved", eta=0.0, prompt="")
        assert (other.eta, other.prompt, other.num_inference_steps) == (0.0, "", 3)
