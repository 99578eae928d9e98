"""Inputs of a source, such as labels, prompts or images, are compared from run to run by what they hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from bank_sources import Photos

import gentransforms as gt
from gentransforms.bank.generate.inputs import digest_inputs
from gentransforms.bank.generate.run import Summary, generate_bank
from gentransforms.errors import BankError
from gentransforms.sources.base import SourceSample
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")


class Opaque:
    """Its `repr` is an address."""


@dataclasses.dataclass
class Pose:
    angles: tuple[float, ...]
    held: Any = None


def picture(red: int, mode: str = "RGB") -> PIL.Image.Image:
    image = PIL.Image.new("RGB", (40, 40), (10, 20, 30))
    image.putpixel((21, 21), (red, 0, 0))
    return image.convert(mode)


def palette(red: int) -> PIL.Image.Image:
    """Two colours; all pixels are the first one's number, whatever its colour is."""
    image = PIL.Image.new("P", (8, 8), 0)
    image.putpalette([red, 0, 0, 255, 255, 255])
    return image


def large(value: int) -> np.ndarray[Any, Any]:
    """More entries than NumPy shows."""
    array = np.zeros((50, 50), np.uint8)
    array[25, 25] = value
    return array


VALUES: dict[str, Callable[[int], Any]] = {
    "label": lambda i: i,
    "number": lambda i: i / 3,
    "prompt": lambda i: f"a photo of number {i}",
    "nothing or not": lambda i: None if i == 1 else False,
    "tensor": lambda i: torch.tensor([[i, 2]]),
    "tensors": lambda i: [torch.zeros(50, 50), torch.full((50, 50), i)],
    "array": large,
    "shape": lambda i: np.zeros((i, 6 // i)),
    "type": lambda i: np.zeros(4, np.int32 if i == 1 else np.float32),
    "array of objects": lambda i: np.array([f"{i}", None, [i]], dtype=object),
    "array of text": lambda i: np.array([f"{i}", "b"]),
    "not contiguous": lambda i: large(i).T[::-1],
    "NumPy's number": lambda i: np.float32(i / 3),
    "NumPy's long number": lambda i: np.longdouble(i) / 3,
    "NumPy's date": lambda i: np.datetime64(f"2026-11-0{i}"),
    "picture": picture,
    "grey picture": lambda i: picture(100 * i, "L"),
    "pictures": lambda i: {"front": picture(7), "back": [picture(i)]},
    "palette": palette,
    "size": lambda i: PIL.Image.new("L", (i, 6 // i)),
    "mode": lambda i: PIL.Image.new("L" if i == 1 else "P", (4, 4)),
    "mapping": lambda i: {"a": i, 3: "b", (1, 2): None},
    "set": lambda i: {f"{i}", "b", "c"},
    "bytes": lambda i: bytes([i, 2]),
    "path": lambda i: Path(f"maps/{i}.png"),
    "object that says what it holds": lambda i: Pose((0.5, float(i))),
}


class TestDigestInputs:
    @pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
    def test_follows_from_what_a_value_holds(self, make: Callable[[int], Any]) -> None:
        first, again, other = (digest_inputs({"style": make(i)}) for i in (1, 1, 2))
        assert first == again
        assert first[0] != other[0]
        assert first[1] == {}, "nothing is left out"

    def test_of_labels_prompts_and_masks_is_that_of_earlier_versions(self) -> None:
        text = json.dumps({"labels": 3, "masks": [[1, 0]], "prompts": ["é", None]})
        expected = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        assert digest_inputs({"prompts": ("é", None), "labels": 3, "masks": torch.tensor([[1, 0]])}) == (expected, {})

    def test_no_order_that_means_nothing(self) -> None:
        assert list({0, 8}) != list({8, 0}), "as they were added"
        assert digest_inputs({"x": {0, 8}}) == digest_inputs({"x": {8, 0}})
        assert digest_inputs({"x": {"a": 1, "b": 2}}) == digest_inputs({"x": {"b": 2, "a": 1}})
        assert digest_inputs({"x": [0, 8]}) != digest_inputs({"x": [8, 0]})

    @pytest.mark.parametrize("value", [Opaque, lambda: [Opaque()], lambda: {"a": Opaque()}, lambda: Pose((), Opaque())])
    def test_an_object_without_a_lasting_form_is_left_out(self, value: Callable[[], Any]) -> None:
        kept = value(), value()  # at different addresses
        first, again = (digest_inputs({"labels": 3, "style": one}) for one in kept)
        assert first == again
        assert first[1] == {"style": "Pose" if isinstance(kept[0], Pose) else "Opaque"}
        assert first[0] != digest_inputs({"labels": 4, "style": kept[0]})[0], "the others are compared"


class Styled(FakeGenerator):
    inputs = ("style",)

    def encode(self, images: torch.Tensor, style: Any = None) -> Any:
        return super().encode(images)


class TestResume:
    """A bank whose generator takes an input of the user's own."""

    @staticmethod
    def fill(path: Path, style: Callable[[int], Any], **options: Any) -> Summary:
        class Given(Photos):
            def read(self, index: int) -> SourceSample:
                return SourceSample(torch.full((3, 16, 16), 9 * index, dtype=torch.uint8), {"style": style(index)})

        source = Given(4, inputs=("style",))
        return generate_bank(source, path, Styled(16), variants=2, unit_size=2, image_format="png", progress=False, **options)

    def test_pictures(self, tmp_path: Path) -> None:
        assert self.fill(tmp_path, picture, shard="0/2").images == 4
        assert self.fill(tmp_path, picture).images == 4
        assert len(gt.Bank.open(tmp_path)) == 8
        with pytest.raises(BankError, match=r"the inputs of 'photo-000002\.jpg' \(style\) are different"):
            self.fill(tmp_path, lambda i: picture(i + (i == 2)))

    def test_what_cannot_be_compared_is_told_when_the_bank_is_begun(self, tmp_path: Path) -> None:
        with pytest.warns(
            UserWarning, match="input 'style': a later run cannot compare values of the class Opaque, .* give a tensor"
        ) as told:
            self.fill(tmp_path, lambda _: Opaque(), shard="0/2")
        assert len(told) == 1
        assert self.fill(tmp_path, lambda _: Opaque()).complete
