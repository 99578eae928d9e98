"""Fields of prompts: filled by every generator that takes a prompt, and in every text that a pipeline takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_diffusion
import tiny_pipelines
import torch
from torch import Tensor

import gentransforms as gt
from gentransforms.errors import ConfigError, MissingInputError
from gentransforms.generators.diffusion.prompts.templates import fill_templates, has_fields

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = torch.tensor([3, 4])
FAST: dict[str, Any] = {"num_inference_steps": 1, "guidance_scale": 2.0}
KINDS = ["unclip", "controlnet"]


def photos() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(9))


def agree(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5)


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    base = tiny_diffusion.stable_diffusion()
    return {"unclip": tiny_diffusion.unclip(), "controlnet": base, "net": tiny_diffusion.controlnet(base.unet)}


def generator_of(kind: str, parts: dict[str, Any], **options: Any) -> Any:
    if kind == "unclip":
        return gt.StableDiffusionVariation.from_pipeline(parts[kind], **FAST, **options)
    return gt.ControlNetVariation.from_pipeline(parts[kind], controlnet=parts["net"], **FAST, **options)


class TestHasFields:
    @pytest.mark.parametrize("text", ["{label}", "a {label:.2f} b", "{{{label}}}", "{été}", "{label!r}", "{x.y}", "{x[0]}", "{a} {"])
    def test_of_names_in_single_braces(self, text: str) -> None:
        assert has_fields(text)

    @pytest.mark.parametrize("text", ["", "a", "{", "}", "{}", "{0}", "{{label}}", "{bad hands}", "{{{{label}}}}", "{ label}", "{1girl}"])
    def test_not_of_other_braces(self, text: str) -> None:
        assert not has_fields(text)


class TestFillTemplates:
    def test_names_the_option_whose_field_is_missing(self) -> None:
        with pytest.raises(MissingInputError, match=r"tint is missing: prompt_2='\{tint\}' needs it.*inputs_getter"):
            fill_templates({"prompt": "a {label}", "prompt_2": "{tint}"}, {"label": ["a", "b"]}, 2)

    def test_names_the_option_that_cannot_be_filled(self) -> None:
        with pytest.raises(ConfigError, match=r"prompt_2='\{label:d\}' cannot be filled"):
            fill_templates({"prompt_2": "{label:d}"}, {"label": ["a", "b"]}, 2)

    @pytest.mark.parametrize("values", [np.array(1), np.zeros((2, 2)), torch.zeros(2, 2), "ab", 3], ids=str)
    def test_names_what_is_no_list(self, values: Any) -> None:
        with pytest.raises(ConfigError, match=r"(?s)label=.*expected a list or tensor of 2 values"):
            fill_templates({"prompt": "a {label}"}, {"label": values}, 2)


@pytest.mark.parametrize("kind", KINDS)
class TestDiffusion:
    def test_are_inputs(self, kind: str, parts: dict[str, Any]) -> None:
        generator = generator_of(kind, parts, prompt="a {label} {{b}}")
        assert generator.inputs[:2] == ("label", "prompts")
        assert generator.required_inputs == ("label",)
        made = generator(photos(), SEEDS, label=["c", "d"])
        plain = generator_of(kind, parts)
        assert agree(made, plain(photos(), SEEDS, prompts=["a c {b}", "a d {b}"]))
        assert agree(generator(photos(), SEEDS, prompts=["e", "f"]), plain(photos(), SEEDS, prompts=["e", "f"]))
        by_number = generator(photos(), SEEDS, label=torch.tensor([1, 2]))
        assert agree(by_number, plain(photos(), SEEDS, prompts=["a 1 {b}", "a 2 {b}"]))

    def test_through_the_transform(self, kind: str, parts: dict[str, Any]) -> None:
        def inputs_of(sample: Any) -> dict[str, Any]:
            return {"label": sample["label"]}

        generator = generator_of(kind, parts, prompt="a {label}")
        augment = gt.GenerativeAugment(generator, p=1.0, inputs_getter=inputs_of, seeds_getter=lambda _: SEEDS)
        made = augment({"image": photos(), "label": ["c", "d"]})["image"]
        assert (made - generator_of(kind, parts)(photos(), SEEDS, prompts=["a c", "a d"])).abs().max() <= 1e-5
        with pytest.raises(MissingInputError, match="label"):
            gt.GenerativeAugment(generator, p=1.0)(photos())

    def test_that_are_missing_or_unknown_are_named(self, kind: str, parts: dict[str, Any]) -> None:
        generator = generator_of(kind, parts, prompt="a {label}")
        with pytest.raises(MissingInputError, match=r"label is missing: prompt='a \{label\}' needs it.*inputs_getter"):
            generator.encode(photos())
        with pytest.raises(ConfigError, match=r"tint=\[1, 2\]: no field of prompt='a \{label\}'"):
            generator.encode(photos(), label=["c", "d"], tint=[1, 2])
        with pytest.raises(ConfigError, match=r"label has 1 entries: expected 2"):
            generator.encode(photos(), label=["c"])

    @pytest.mark.parametrize("prompt", ["a {x.y}", "a {label} {", "{masks}", "{foreground}", "{prompts}"])
    def test_that_are_no_names_are_refused(self, kind: str, prompt: str, parts: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="prompt="):
            generator_of(kind, parts, prompt=prompt)
        generator = generator_of(kind, parts, prompt="a")
        with pytest.raises(ConfigError, match="prompt="):
            generator.prompt = prompt
        assert generator.prompt == "a"

    def test_braces_without_a_name_stay_what_they_are(self, kind: str, parts: dict[str, Any]) -> None:
        text = "{a b} {{c}}"
        generator = generator_of(kind, parts, prompt=text, negative_prompt="{")
        plain = generator_of(kind, parts, negative_prompt="{")
        assert generator.required_inputs == ()
        assert agree(generator(photos(), SEEDS), plain(photos(), SEEDS, prompts=[text, text]))

    def test_of_a_negative_prompt_are_taken_literally(self, kind: str, parts: dict[str, Any]) -> None:
        with pytest.warns(UserWarning, match=r"negative_prompt='no \{label\}': its braces are taken literally.*PipelineVariation"):
            generator = generator_of(kind, parts, negative_prompt="no {label}")
        assert generator.required_inputs == ()

    def test_follow_the_prompt(self, kind: str, parts: dict[str, Any]) -> None:
        generator = generator_of(kind, parts, prompt="a {label}")
        others = generator.inputs[1:]
        generator.prompt = "b {tint} {label}"
        assert generator.inputs == ("tint", "label", *others)
        generator.prompt = "b"
        assert (generator.inputs, generator.required_inputs) == (others, ())
        assert agree(generator(photos(), SEEDS), generator_of(kind, parts, prompt="b")(photos(), SEEDS))

    def test_fill_a_bank_and_are_saved(self, kind: str, parts: dict[str, Any], tmp_path: Path) -> None:
        generator_of(kind, parts, prompt="a {label}").save_pretrained(tmp_path / "saved")
        generator: Any = gt.load_generator(tmp_path / "saved")
        data = [{"image": photo, "key": i, "label": name} for i, (photo, name) in enumerate(zip(photos(), ["c", "d"], strict=True))]
        source = gt.open_source(data, columns={"label": "label"})
        gt.generate_bank(source, tmp_path / "bank", generator, variants=1, base_seed=5, image_format="png", progress=False)
        bank = gt.Bank.open(tmp_path / "bank")
        seeds = gt.derive_seeds(5, [0, 1], [0, 0])
        expected = generator_of(kind, parts)(photos(), seeds, prompts=["a c", "a d"])
        assert (torch.as_tensor(bank.read([0, 1], [0, 0])) / 255 - expected).abs().max() < 0.01


OPTIONS: dict[str, Any] = {"num_inference_steps": 2, "strength": 0.5, "guidance_scale": 3.0}


class TestPipelineTexts:
    def test_equal_the_stock_call(self) -> None:
        pipe = tiny_pipelines.img2img_xl()
        pipe.set_progress_bar_config(disable=True)
        texts = {"prompt": "a {label}", "prompt_2": "{tint} {{b}}", "negative_prompt": ["no {label}"], "negative_prompt_2": "e {f g}"}
        generator = gt.PipelineVariation.from_pipeline(pipe, **OPTIONS, **texts)
        assert generator.inputs == (*generator.required_inputs, "prompts") == ("label", "tint", "prompts")
        made = generator(photos(), SEEDS, label=["c", "d"], tint=torch.tensor([1, 2]))
        assert generator.together == "sources"
        alone = [generator(photos()[i : i + 1], SEEDS[i : i + 1], label=["cd"[i]], tint=[i + 1]) for i in range(2)]
        assert (made - torch.cat(alone)).abs().max() <= 1e-4
        for i in range(2):
            filled = {
                "prompt": f"a {'cd'[i]}",
                "prompt_2": f"{i + 1} {{b}}",
                "negative_prompt": f"no {'cd'[i]}",
                "negative_prompt_2": "e {f g}",
            }
            rng = torch.Generator().manual_seed(int(SEEDS[i]))
            with torch.no_grad():
                expected = pipe(image=photos()[i : i + 1], generator=rng, output_type="pt", **OPTIONS, **filled).images
            assert (made[i : i + 1] - expected).abs().max() <= 1e-4

    def test_where_one_source_runs_at_a_time(self) -> None:
        pipe = tiny_pipelines.img2img()
        generator = gt.PipelineVariation.from_pipeline(pipe, prompt="a", negative_prompt="no {label}", **OPTIONS)
        together = generator(photos(), SEEDS, label=["c", "d"])
        for kind in ("variants", "nothing"):
            generator.together = kind
            assert (generator(photos(), SEEDS, label=["c", "d"]) - together).abs().max() <= 1e-4
        assert (generator(photos(), SEEDS, label=["c", "c"]) - together)[1].abs().max() > 1e-3

    def test_are_needed_beside_prompts(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), prompt="a {tint}", negative_prompt="no {label}", **OPTIONS)
        with pytest.raises(MissingInputError, match=r"label is missing: negative_prompt='no \{label\}' needs it"):
            generator.encode(photos(), prompts=["a", "b"])
        assert generator.encode(photos(), prompts=["a", "b"], label=["c", "d"]).keys() == {"images", "prompts", "negative_prompt"}

    def test_that_are_no_names_are_refused(self) -> None:
        for text in ("{x.y}", "{label} {", "{prompts}"):
            with pytest.raises(ConfigError, match="negative_prompt="):
                gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), negative_prompt=text)

    def test_that_are_unknown_are_named_with_every_text(self) -> None:
        generator = gt.PipelineVariation.from_pipeline(tiny_pipelines.img2img(), prompt="a", negative_prompt="no {label}", **OPTIONS)
        with pytest.raises(ConfigError, match=r"tint=\['x', 'y'\]: no field of prompt='a', negative_prompt='no \{label\}'"):
            generator.encode(photos(), label=["c", "d"], tint=["x", "y"])
