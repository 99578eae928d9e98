"""The tree of errors, and what their messages say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import tiny_pipelines
import torch
from small_generators import Flat
from torchvision import tv_tensors

import gentransforms as gt
from gentransforms import errors
from gentransforms.testing import FakeGenerator

PARENTS = {
    errors.ImageError: (gt.GentransformsError, ValueError),
    errors.GeneratorError: (gt.GentransformsError, RuntimeError),
    errors.ConfigError: (gt.GentransformsError, ValueError),
    errors.WeightsError: (gt.GentransformsError, RuntimeError),
    errors.ConversionError: (errors.WeightsError,),
    errors.MissingInputError: (gt.GentransformsError, RuntimeError),
    errors.DeviceError: (gt.GentransformsError, RuntimeError),
    errors.SourceError: (gt.GentransformsError, RuntimeError),
    errors.BankError: (gt.GentransformsError, RuntimeError),
    errors.MissingKeyError: (errors.BankError, LookupError),
    errors.OtherBankError: (errors.BankError,),
}


class TestTree:
    @pytest.mark.parametrize(("error", "parents"), PARENTS.items(), ids=lambda value: getattr(value, "__name__", ""))
    def test_each_error_has_the_documented_parents(self, error: type, parents: tuple[type, ...]) -> None:
        assert error.__bases__ == parents

    def test_the_tree_holds_nothing_else(self) -> None:
        assert {getattr(errors, name) for name in errors.__all__} == {gt.GentransformsError, *PARENTS}

    def test_the_docstring_shows_every_error(self) -> None:
        assert all(name in (errors.__doc__ or "") for name in errors.__all__)

    def test_the_base_is_a_plain_exception(self) -> None:
        assert errors.GentransformsError.__bases__ == (Exception,)
        assert gt.GentransformsError is errors.GentransformsError


def _augment(**options: Any) -> gt.GenerativeAugment:
    return gt.GenerativeAugment(options.pop("generator", None) or FakeGenerator(), **options)


IMAGE = torch.zeros(3, 8, 8)
BOXES = tv_tensors.BoundingBoxes(torch.tensor([[0, 0, 2, 2]]), format="XYXY", canvas_size=(8, 8))

# A wrong call, its error, and what the message must hold: the argument, the value found, what was expected, what to do.
WRONG: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "p": (lambda: _augment(p=1.5), errors.ConfigError, ("p=1.5", "expected", "[0, 1]")),
    "a name for a generator": (
        lambda: gt.GenerativeAugment("icgan-cifar10-32"),
        errors.ConfigError,
        ("generator='icgan-cifar10-32'", "expected an ImageGenerator", "from_pretrained"),
    ),
    "max_batch_size": (lambda: _augment(max_batch_size=0), errors.ConfigError, ("max_batch_size=0", "expected a positive integer")),
    "output_size": (lambda: _augment(output_size="big"), errors.ConfigError, ("output_size='big'", "expected", "generator")),
    "seeds_getter": (lambda: _augment(seeds_getter=3), errors.ConfigError, ("seeds_getter=3", "expected a function")),
    "inputs_getter": (lambda: _augment(inputs_getter={}), errors.ConfigError, ("inputs_getter={}", "expected a function")),
    "seeds returned": (
        lambda: _augment(seeds_getter=lambda sample: [1, 2])(IMAGE),
        errors.ConfigError,
        ("seeds_getter", "(2,)", "expected (1,)", "one seed per image"),
    ),
    "inputs returned": (
        lambda: _augment(generator=Flat(inputs=("labels",)), inputs_getter=lambda sample: {"labels": [1]})(torch.zeros(2, 3, 8, 8)),
        errors.ConfigError,
        ("inputs_getter", "labels=[1]", "expected one value for each of 2 images"),
    ),
    "normalised image": (lambda: _augment()(IMAGE - 2), errors.ImageError, ("from -2 to -2", "expected the range [0, 1]", "Normalize")),
    "NaN": (lambda: _augment()(IMAGE * float("nan")), errors.ImageError, ("NaN", "expected finite", "fix or drop")),
    "PIL mode": (lambda: _augment()(PIL.Image.new("RGBA", (8, 8))), errors.ImageError, ("'RGBA'", "expected", "convert('RGB')")),
    "channels": (
        lambda: _augment()(torch.zeros(8, 8, 3)),
        errors.ImageError,
        ("(8, 8, 3)", "expected 1 or 3", "image.movedim(-1, -3)"),
    ),
    "dtype": (lambda: _augment()(IMAGE.long()), errors.ImageError, ("torch.int64", "expected uint8, or floating", "image.to(torch.uint8)")),
    "boxes": (lambda: _augment()(IMAGE, BOXES), errors.ImageError, ("BoundingBoxes", "FakeGenerator", "ControlNetVariation")),
    "boxes resized": (
        lambda: _augment(generator=FakeGenerator(preserves_geometry=True), output_size="generator")(IMAGE, BOXES),
        errors.ImageError,
        ("BoundingBoxes", "output_size='generator'", 'use output_size="input"', "v2.Resize"),
    ),
    "video": (lambda: _augment()(tv_tensors.Video(torch.zeros(2, 3, 8, 8))), errors.ImageError, ("tv_tensors.Video", "expected images")),
    "keys": (lambda: gt.derive_seeds(0, [1.5], [0]), errors.ConfigError, ("keys", "1.5", "float", "expected int or str")),
    "lengths": (lambda: gt.derive_seeds(0, ["a"], [0, 1]), errors.ConfigError, ("1 entries", "2", "expected equal lengths")),
}


class TestMessages:
    @pytest.mark.parametrize("case", WRONG)
    def test_says_what_was_found_expected_and_what_to_do(self, case: str) -> None:
        call, error, parts = WRONG[case]
        with pytest.raises(error) as caught:
            call()
        message = str(caught.value)
        assert [part for part in parts if part not in message] == []
        assert "\n" not in message

    @pytest.mark.parametrize("case", WRONG)
    def test_one_except_clause_catches_them_all(self, case: str) -> None:
        with pytest.raises(gt.GentransformsError):
            WRONG[case][0]()

    def test_an_unknown_keyword_argument_is_refused_by_python(self) -> None:
        with pytest.raises(TypeError, match="probability"):
            gt.GenerativeAugment(FakeGenerator(), probability=0.5)

    @pytest.mark.parametrize(
        ("generator", "found", "advice"),
        [
            (tiny_pipelines.img2img, "StableDiffusionImg2ImgPipeline", r"; wrap the pipeline: PipelineVariation\.from_pipeline\(pipe\)"),
            (lambda: torch.nn.Linear(1, 1), "Linear", "; write a subclass whose encode and sample call it"),
            (lambda: torch.sigmoid, "builtin_function_or_method", "; write a subclass whose encode and sample call it"),
            (lambda: FakeGenerator, "class FakeGenerator", "; build one of the class"), (lambda: torch.nn.Linear, "class Linear", ""),
            (lambda: Path("folder"), r"PosixPath\('folder'\)", r"; GenerativeAugment\.from_pretrained takes a name or a folder"),
            (lambda: [FakeGenerator()], "list", ""), (lambda: None, "None", ""),
        ],
    )  # fmt: skip
    def test_what_is_no_generator_is_named_with_advice(self, generator: Any, found: str, advice: str, tmp_path: Path) -> None:
        given = generator()
        with pytest.raises(errors.ConfigError, match=rf"^generator={found}: expected an ImageGenerator{advice}"):
            gt.GenerativeAugment(given)
        for call in (lambda: gt.generate_bank([IMAGE], tmp_path / "bank", given), lambda: gt.audit_generator(given, [IMAGE])):
            if not isinstance(given, Path):
                with pytest.raises(errors.ConfigError, match=rf"^generator={found}: .* or its name, folder or repository{advice}"):
                    call()
