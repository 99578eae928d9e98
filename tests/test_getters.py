"""What getters return, brought to one value per image."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision import tv_tensors

from gentransforms.errors import ConfigError
from gentransforms.sources.keys import as_keys
from gentransforms.transforms.getters import gather, per_image_inputs, per_image_keys, per_image_seeds

ONE = torch.zeros(3, 4, 4)
BATCH = torch.zeros(4, 3, 4, 4)
GRID = torch.zeros(2, 2, 3, 4, 4)
PICTURE = PIL.Image.new("RGB", (4, 4))


def named(value: Any) -> str:
    """A value's text as a test's name: without addresses, which differ between the processes of pytest-xdist."""
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", str(value))


class TestPerImageSeeds:
    @pytest.mark.parametrize(
        ("images", "seeds", "expected"),
        [
            ([ONE], 7, [7]),
            ([ONE], [7], [7]),
            ([ONE], torch.tensor(7), [7]),
            ([ONE], torch.tensor([7]), [7]),
            ([ONE], np.int64(7), [7]),
            ([PICTURE], 2**63 - 1, [2**63 - 1]),
            ([PICTURE], -1, [-1]),
            ([BATCH], [1, 2, 3, 4], [1, 2, 3, 4]),
            ([BATCH], (1, 2, 3, 4), [1, 2, 3, 4]),
            ([BATCH], torch.tensor([1, 2, 3, 4]), [1, 2, 3, 4]),
            ([BATCH], np.array([1, 2, 3, 4]), [1, 2, 3, 4]),
            ([BATCH], [torch.tensor(n) for n in (1, 2, 3, 4)], [1, 2, 3, 4]),
            ([GRID], torch.tensor([1, 2, 3, 4]), [1, 2, 3, 4]),
            ([GRID], torch.tensor([[1, 2], [3, 4]]), [1, 2, 3, 4]),
            ([PICTURE, PICTURE], [1, 2], [1, 2]),
            ([ONE, BATCH], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
            ([BATCH[:0]], [], []),
            ([BATCH[:0]], torch.empty(0, dtype=torch.int64), []),
        ],
        ids=named,
    )
    def test_one_int64_per_image(self, images: list[Any], seeds: Any, expected: list[int]) -> None:
        result = per_image_seeds(seeds, images)
        assert result.dtype == torch.int64
        assert result.device.type == "cpu"
        assert result.tolist() == expected

    @pytest.mark.parametrize(
        "seeds",
        [
            [1, 2, 3],
            torch.arange(5),
            7,
            torch.arange(4).float(),
            torch.arange(4).int(),
            torch.arange(4).view(4, 1),
            torch.arange(4).view(1, 4),
            torch.arange(4).view(2, 2),
            torch.arange(4).bool(),
            torch.arange(4, device="meta"),
            [1.0, 2.0, 3.0, 4.0],
            [1, 2, 3, 2**63],
            [[1, 2], [3]],
            None,
            "1234",
            ["1", "2", "3", "4"],
            {0: 1},
            object(),
            [],
        ],
        ids=named,
    )
    def test_anything_else_is_refused_by_name(self, seeds: Any) -> None:
        with pytest.raises(ConfigError, match="seeds_getter"):
            per_image_seeds(seeds, [BATCH])

    def test_another_count_says_what_was_counted(self) -> None:
        with pytest.raises(ConfigError, match=r"expected \(2,\), one seed per image \(PIL RGB 4 x 4, PIL L 4 x 4\): if"):
            per_image_seeds([7], [PICTURE, PICTURE.convert("L")])


class TestPerImageInputs:
    def given(self, value: Any, *images: Any) -> Any:
        return per_image_inputs({"labels": value}, images, ["labels"])["labels"]

    @pytest.mark.parametrize("image", [ONE, PICTURE, tv_tensors.Image(ONE)], ids=["tensor", "PIL", "tv_tensor"])
    def test_a_sample_of_one_image_gives_its_own_value(self, image: Any) -> None:
        assert self.given(3, image).tolist() == [3]
        assert self.given(torch.tensor(3), image).tolist() == [3]
        assert self.given(np.int64(3), image).tolist() == [3]
        assert self.given(0.5, image).tolist() == [0.5]
        assert self.given("a cat", image) == ["a cat"]
        assert self.given(torch.zeros(1, 4, 4), image).shape == (1, 1, 4, 4)

    def test_a_batch_gives_tensors_and_lists_of_its_length(self) -> None:
        assert self.given(torch.tensor([1, 2, 3, 4]), BATCH).tolist() == [1, 2, 3, 4]
        assert self.given([1, 2, 3, 4], BATCH).tolist() == [1, 2, 3, 4]
        assert self.given((1, 2, 3, 4), BATCH).tolist() == [1, 2, 3, 4]
        assert self.given(np.array([1, 2, 3, 4]), BATCH).tolist() == [1, 2, 3, 4]
        assert self.given([np.int64(n) for n in range(4)], BATCH).tolist() == [0, 1, 2, 3]
        assert self.given(list("abcd"), BATCH) == ["a", "b", "c", "d"]
        assert self.given(torch.zeros(4, 1, 8, 8), BATCH).shape == (4, 1, 8, 8)

    def test_integers_stay_integers(self) -> None:
        assert self.given([1, 2, 3, 4], BATCH).dtype == torch.int64
        assert self.given(1, ONE).dtype == torch.int64

    def test_a_batch_of_more_dimensions(self) -> None:
        assert self.given(torch.tensor([[1, 2], [3, 4]]), GRID).tolist() == [1, 2, 3, 4]
        assert self.given(torch.tensor([1, 2, 3, 4]), GRID).tolist() == [1, 2, 3, 4]
        assert self.given(torch.arange(4 * 25).view(2, 2, 1, 5, 5), GRID).equal(torch.arange(100).view(4, 1, 5, 5))
        assert self.given([1, 2, 3, 4], GRID).tolist() == [1, 2, 3, 4]

    def test_several_images_have_one_value_each(self) -> None:
        assert self.given([1, 2], PICTURE, PICTURE).tolist() == [1, 2]
        assert self.given(["a", "b"], PICTURE, PICTURE) == ["a", "b"]

    def test_masks_are_stacked_if_they_can_be(self) -> None:
        masks = [tv_tensors.Mask(torch.full((1, 4, 4), n)) for n in (1, 2)]
        stacked = self.given(masks, PICTURE, PICTURE)
        assert type(stacked) is torch.Tensor
        assert stacked.equal(torch.stack([torch.full((1, 4, 4), n) for n in (1, 2)]))
        other = [masks[0], tv_tensors.Mask(torch.zeros(1, 6, 5, dtype=torch.int64))]
        assert [tuple(mask.shape) for mask in self.given(other, PICTURE, PICTURE)] == [(1, 4, 4), (1, 6, 5)]

    @pytest.mark.parametrize("name", ["masks", "foreground", "control_maps"])
    @pytest.mark.parametrize("kind", ["array", "PIL", "read-only", "reversed"])
    def test_maps_of_any_kind_as_collated(self, name: str, kind: str) -> None:
        """What tuple(zip(*batch)) makes of a data set whose masks are arrays or PIL images."""
        values = np.random.default_rng(0).integers(0, 3, (2, 4, 4), dtype=np.uint8)
        form: Any = {"array": np.array, "PIL": PIL.Image.fromarray, "reversed": lambda v: v[:, ::-1].copy()[:, ::-1]}.get(kind)
        maps = tuple(form(v) if form else np.asarray(PIL.Image.fromarray(v)) for v in values)
        for images in ([BATCH[:2]], [PICTURE, PICTURE]):
            found = per_image_inputs({name: maps}, images, [name])[name]
            assert found.reshape(2, 4, 4).equal(torch.from_numpy(values))
        lone = per_image_inputs({name: maps[0]}, [ONE], [name])[name]
        assert lone.reshape(1, 4, 4).equal(torch.from_numpy(values[:1]))

    def test_a_pil_image_that_is_no_map_stays_one(self) -> None:
        assert self.given([PICTURE, PICTURE], BATCH[:2]) == [PICTURE, PICTURE]
        assert self.given(PICTURE, ONE) == [PICTURE]

    def test_arrays_of_strings_and_lists_of_arrays(self) -> None:
        assert self.given(np.array(["a", "b"]), BATCH[:2]) == ["a", "b"]
        assert self.given(np.array([["a", "b"]]), ONE) == [["a", "b"]]
        assert self.given(np.str_("a"), ONE) == ["a"]
        assert self.given([np.array(1), np.array(2)], BATCH[:2]).tolist() == [1, 2]
        assert self.given([np.str_("a"), np.array("b")], BATCH[:2]) == ["a", "b"]

    def test_a_control_map_in_another_mode(self) -> None:
        with pytest.raises(ConfigError, match=r"control_maps: PIL image in mode 'RGBA'.*convert"):
            per_image_inputs({"control_maps": PICTURE.convert("RGBA")}, [ONE], ["control_maps"])

    def test_a_map_with_its_channels_last(self) -> None:
        with pytest.raises(ConfigError, match=r"it is \(6, 8, 3\), and expected as \(C, H, W\).*transpose\(2, 0, 1\)"):
            per_image_inputs({"control_maps": np.zeros((6, 8, 3))}, [torch.zeros(3, 6, 8)], ["control_maps"])

    @pytest.mark.parametrize(
        ("images", "value", "words"),
        [
            (
                [PICTURE, PICTURE.convert("L")],
                np.zeros((4, 4)),
                r"labels=\(4, 4\).* \(PIL RGB 4 x 4, PIL L 4 x 4\).*Mask\(mask\)",
            ),
            ([PICTURE, PICTURE.convert("L")], [np.zeros((4, 4))], r"labels=a list of one, \(4, 4\): expected one value for each of 2"),
            ([BATCH, BATCH], BATCH, r"each of 8 images \(\(4, 3, 4, 4\), \(4, 3, 4, 4\)\).*make the images tv_tensors\.Image"),
            ([ONE] * 6, list(range(40)), r"labels=a list of 40: .*\(3, 4, 4\), …\): if"),
            ([BATCH], [1], r"labels=\[1\]: expected one value for each of 4 images$"),
        ],
    )
    def test_another_count_says_what_was_counted(self, images: list[Any], value: Any, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            self.given(value, *images)

    @pytest.mark.parametrize(
        ("images", "mask", "words"),
        [
            ([torch.zeros(3, 6, 8)], torch.zeros(1, 8, 6), "6 x 8 pixels, and its image is 8 x 6"),
            ([torch.zeros(2, 3, 6, 8)], torch.zeros(2, 3, 4), "4 x 3 pixels, and its image is 8 x 6"),
            ([PIL.Image.new("RGB", (8, 6))], PIL.Image.new("L", (6, 8)), "6 x 8 pixels, and its image is 8 x 6"),
            ([torch.zeros(3, 6, 8), torch.zeros(3, 4, 4)], [torch.zeros(6, 8), torch.zeros(6, 8)], "8 x 6 pixels, and its image is 4 x 4"),
        ],
    )
    def test_a_mask_of_another_size_names_both(self, images: list[Any], mask: Any, words: str) -> None:
        with pytest.raises(ConfigError, match=f"a mask of {words}"):
            per_image_inputs({"masks": mask}, images, ["masks"])

    @pytest.mark.parametrize(
        ("images", "control_map", "words"),
        [
            ([torch.zeros(3, 6, 8)], torch.zeros(3, 8, 6), "6 x 8 pixels, and its image is 8 x 6"),
            ([torch.zeros(2, 3, 6, 8)], torch.zeros(2, 1, 6, 6), "6 x 6 pixels, and its image is 8 x 6"),
            ([PIL.Image.new("RGB", (100, 97))], torch.zeros(3, 100, 97), "97 x 100 pixels, and its image is 100 x 97"),
            ([torch.zeros(3, 6, 8), torch.zeros(3, 4, 4)], [torch.zeros(3, 6, 8)] * 2, "8 x 6 pixels, and its image is 4 x 4"),
        ],
    )
    def test_a_control_map_of_another_aspect_ratio_names_both(self, images: list[Any], control_map: Any, words: str) -> None:
        with pytest.raises(ConfigError, match=f"a control map of {words}: expected the same aspect ratio"):
            per_image_inputs({"control_maps": control_map}, images, ["control_maps"])

    @pytest.mark.parametrize("size", [(6, 8), (3, 4), (48, 64), (512, 704)])
    def test_a_control_map_may_have_another_resolution(self, size: tuple[int, int]) -> None:
        values = {"control_maps": torch.zeros(2, 3, *size)}
        assert per_image_inputs(values, [torch.zeros(2, 3, 6, 8)], ["control_maps"])["control_maps"].shape == (2, 3, *size)

    def test_a_mask_is_a_plain_tensor_to_a_generator(self) -> None:
        assert type(self.given(tv_tensors.Mask(torch.zeros(4, 8, 8)), BATCH)) is torch.Tensor

    def test_only_names_that_the_generator_knows_are_passed(self) -> None:
        values = {"labels": [1, 2, 3, 4], "prompts": list("abcd"), "other": object()}
        assert set(per_image_inputs(values, [BATCH], ["labels", "masks"])) == {"labels"}
        assert per_image_inputs(values, [BATCH], []) == {}

    @pytest.mark.parametrize(
        "value",
        [
            [1],
            torch.tensor([1, 2, 3]),
            torch.tensor(3),
            3,
            None,
            "abcd",
            b"abcd",
            {"a": 1, "b": 2, "c": 3, "d": 4},
            {1, 2, 3, 4},
            range(4),
            np.zeros(3),
        ],
        ids=named,
    )
    def test_another_count_or_kind_is_refused_by_name(self, value: Any) -> None:
        with pytest.raises(ConfigError, match=r"inputs_getter: labels=.*each of 4 images"):
            self.given(value, BATCH)

    @pytest.mark.parametrize("values", [None, [1], torch.zeros(4), "labels"], ids=named)
    def test_what_is_no_dict_is_refused(self, values: Any) -> None:
        with pytest.raises(ConfigError, match=r"inputs_getter returned a .*expected a dict"):
            per_image_inputs(values, [BATCH], ["labels"])


class TestColumnsOfOne:
    """Samples that are columns of one row, as Hugging Face data sets pass them to their transforms."""

    @pytest.mark.parametrize("image", [ONE, PICTURE], ids=["tensor", "picture"])
    def test_a_value_in_a_list_stays_one(self, image: Any) -> None:
        values = {"labels": [3], "prompts": ["a dog"], "noise_levels": torch.tensor([200])}
        found = per_image_inputs(values, [image], list(values))
        assert found["labels"].tolist() == [3]
        assert found["prompts"] == ["a dog"]
        assert found["noise_levels"].tolist() == [200]

    def test_other_lists_are_one_value(self) -> None:
        with pytest.raises(ConfigError, match="expected one value"):
            per_image_inputs({"labels": [1, 2]}, [BATCH[:1]], ["labels"])


class TestGather:
    @pytest.mark.parametrize("mask", [[True, False, True], [False] * 3, [True] * 3])
    def test_takes_the_chosen_in_order(self, mask: list[bool]) -> None:
        expected = [i for i, selected in enumerate(mask) if selected]
        chosen = torch.tensor(mask)
        assert gather(torch.arange(3), chosen).tolist() == expected
        assert gather([0, 1, 2], chosen) == expected
        assert gather((0, 1, 2), chosen) == expected
        assert gather(torch.zeros(3, 2, 5), chosen).shape == (len(expected), 2, 5)

    def test_reads_nothing_from_a_device(self) -> None:
        # Reading a number from a meta tensor fails, as reading one from an accelerator waits.
        assert gather(torch.zeros(3, 2, device="meta"), torch.tensor([True, False, True])).shape == (2, 2)


class TestAsKeys:
    @pytest.mark.parametrize("keys", [[3, 1], (3, 1), torch.tensor([3, 1]), np.array([3, 1], np.int16), [np.int64(3), torch.tensor(1)]])
    def test_numbers_of_any_kind_are_ints(self, keys: Any) -> None:
        found = as_keys(keys, "keys")
        assert found == [3, 1]
        assert [type(key) for key in found] == [int, int]

    @pytest.mark.parametrize("keys", [["a", "1"], ("a", "1"), np.array(["a", "1"]), iter(["a", "1"])])
    def test_text_stays_text(self, keys: Any) -> None:
        found = as_keys(keys, "keys")
        assert found == ["a", "1"]
        assert [type(key) for key in found] == [str, str]

    @pytest.mark.parametrize("key", [1.0, None, True, np.bool_(True), torch.tensor(True), torch.tensor(1.0), b"a", [1], np.float32(1)])
    def test_another_kind_is_refused_by_name(self, key: Any) -> None:
        with pytest.raises(ConfigError, match=r"names: .*expected keys that are str or int"):
            as_keys([0, key], "names")

    @pytest.mark.parametrize("keys", ["cat", b"cat", 3, None])
    def test_a_lone_one_is_no_list(self, keys: Any) -> None:
        with pytest.raises(ConfigError, match=r"names=.*expected a list of keys"):
            as_keys(keys, "names")


class TestPerImageKeys:
    @pytest.mark.parametrize("key", ["cat", 3, torch.tensor(3), np.int64(3), ["cat"], torch.tensor([3])])
    def test_of_one_image(self, key: Any) -> None:
        assert per_image_keys(key, [torch.zeros(3, 4, 4)]) in (["cat"], [3])

    @pytest.mark.parametrize("keys", [[1, 2, 3, 4], torch.tensor([1, 2, 3, 4]), torch.tensor([[1, 2], [3, 4]]), np.array([[1, 2], [3, 4]])])
    def test_of_a_batch(self, keys: Any) -> None:
        assert per_image_keys(keys, [torch.zeros(2, 2, 3, 4, 4)]) == [1, 2, 3, 4]
        assert per_image_keys(keys, [torch.zeros(3, 4, 4)] * 4) == [1, 2, 3, 4]

    @pytest.mark.parametrize(("keys", "count"), [("cat", 1), ([1], 1), ([1, 2, 3], 3), ([], 0)])
    def test_another_count_is_refused(self, keys: Any, count: int) -> None:
        with pytest.raises(ConfigError, match=f"{count} keys for 2 images"):
            per_image_keys(keys, [torch.zeros(2, 3, 4, 4)])

    def test_another_count_says_what_was_counted(self) -> None:
        with pytest.raises(ConfigError, match=r"1 keys for 2 images.*keys_getter= \(PIL RGB 4 x 4, PIL L 4 x 4\): if"):
            per_image_keys("cat", [PICTURE, PICTURE.convert("L")])
