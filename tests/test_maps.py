"""Masks and control maps from arrays and PIL images."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from gentransforms.errors import ConfigError
from gentransforms.generators.maps import MAPS, as_map, as_maps, as_tensor

CLASSES = np.random.default_rng(0).integers(0, 3, (4, 6), dtype=np.uint8)
PHOTO = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8))


class TestAsMap:
    @pytest.mark.parametrize("name", ["masks", "foreground"])
    @pytest.mark.parametrize("mode", ["L", "P", "1", "I", "F"])
    def test_a_pil_mask_has_the_values_that_torchvision_keeps(self, name: str, mode: str) -> None:
        mask = PIL.Image.fromarray(CLASSES).convert(mode) if mode != "P" else PIL.Image.fromarray(CLASSES, "P")
        found, expected = as_map(name, mask), tv_tensors.Mask(mask)
        assert type(found) is Tensor
        assert found.dtype == expected.dtype
        assert found.equal(expected.as_subclass(Tensor))

    @pytest.mark.parametrize("mode", ["I;16", "I;16B"])
    def test_a_mask_of_16_bits(self, mode: str) -> None:
        values = (CLASSES.astype(np.uint16) + 40_000).astype("<u2" if mode == "I;16" else ">u2")
        mask = PIL.Image.frombytes(mode, (6, 4), values.tobytes())
        assert np.array_equal(as_map("masks", mask)[0], values.astype(np.int64))
        assert as_map("masks", mask).max() > 40_000  # torch.uint16 has no maximum

    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_a_pil_map_is_read_as_an_image(self, mode: str) -> None:
        picture = PHOTO.convert(mode)
        assert as_map("control_maps", picture).equal(v2.functional.pil_to_tensor(picture))

    @pytest.mark.parametrize(("mode", "advice"), [("1", "'RGB' or 'L'"), ("P", "convert"), ("RGBA", "convert"), ("I;16", "'RGB' or 'L'")])
    def test_a_map_of_another_mode_is_refused_as_an_image_is(self, mode: str, advice: str) -> None:
        with pytest.raises(ConfigError, match=f"control_maps: PIL image in mode '{mode}'.*{advice}"):
            as_map("control_maps", PIL.Image.new(mode, (6, 4)))

    @pytest.mark.parametrize("name", MAPS)
    def test_tensors_and_arrays_keep_their_values(self, name: str) -> None:
        assert as_map(name, CLASSES).equal(torch.from_numpy(CLASSES))
        assert type(as_map(name, tv_tensors.Mask(CLASSES))) is Tensor
        assert as_map(name, torch.zeros(2, 3, dtype=torch.uint16)).dtype == torch.int64

    @pytest.mark.parametrize(
        ("value", "named"), [(None, "a NoneType"), ("m.png", "a str"), ([[1]], "a list"), (np.array(["a"]), "an array of <U1")], ids=str
    )
    @pytest.mark.parametrize("name", MAPS)
    def test_anything_else_is_named(self, name: str, value: Any, named: str) -> None:
        with pytest.raises(ConfigError, match=f"{name} holds {named}: expected tensors, arrays or PIL images"):
            as_map(name, value)


class TestAsMaps:
    @pytest.mark.parametrize(
        "masks",
        [
            [CLASSES, CLASSES], (CLASSES, CLASSES), [PIL.Image.fromarray(CLASSES)] * 2, np.stack([CLASSES] * 2),
            [torch.from_numpy(CLASSES), CLASSES[None]],
        ],
        ids=["list", "tuple", "PIL", "array", "mixed"],
    )  # fmt: skip
    def test_each_is_a_tensor(self, masks: Any) -> None:
        found = as_maps("masks", masks, 2)
        assert len(found) == 2
        assert all(mask.reshape(4, 6).equal(torch.from_numpy(CLASSES)) for mask in found)

    def test_a_tensor_stays_one(self) -> None:
        masks = torch.zeros(2, 4, 6)
        assert as_maps("masks", masks, 2).data_ptr() == masks.data_ptr()  # type: ignore[union-attr]
        assert as_maps("masks", [], 0) == []

    @pytest.mark.parametrize("masks", [torch.zeros(3, 4, 6), np.zeros((3, 4, 6)), [CLASSES] * 3])
    def test_another_count(self, masks: Any) -> None:
        with pytest.raises(ConfigError, match="masks has 3 entries: expected 2, one for each image"):
            as_maps("masks", masks, 2)

    @pytest.mark.parametrize(
        ("masks", "named"), [(PHOTO, "an Image"), (3, "an int"), ("ab", "a str"), (torch.tensor(1), "a Tensor"), ({0: 1, 1: 2}, "a dict")]
    )
    def test_what_is_no_list(self, masks: Any, named: str) -> None:
        with pytest.raises(ConfigError, match=f"masks is {named}: expected"):
            as_maps("masks", masks, 2)


class TestAsTensor:
    @pytest.mark.parametrize(
        "array",
        [
            CLASSES, CLASSES[:, ::-1], CLASSES.T, CLASSES.astype(">i4"), np.asarray(PHOTO), CLASSES.astype(np.uint16),
            CLASSES.astype(np.uint64), CLASSES / 2, CLASSES > 1, np.array(3), np.zeros((0, 4)),
        ],
        ids=lambda array: f"{array.dtype.str}-{array.shape}",
    )  # fmt: skip
    def test_of_numbers(self, array: Any) -> None:
        found = as_tensor(array)  # without a warning, also of the read-only array of a picture
        assert isinstance(found, Tensor)
        assert tuple(found.shape) == array.shape
        assert np.array_equal(found.numpy(), array)

    @pytest.mark.parametrize(
        ("array", "expected"),
        [(np.array(["a", "b"]), ["a", "b"]), (np.array("a"), "a"), (np.str_("a"), "a"), (np.array(["a", None], object), ["a", None])],
        ids=str,
    )
    def test_of_anything_else(self, array: Any, expected: Any) -> None:
        assert as_tensor(array) == expected

    def test_shares_memory_where_both_could_change_it(self) -> None:
        array = np.zeros(3)
        as_tensor(array)[0] = 1
        assert array[0] == 1
