"""Boxes and key points that are plain tensors and lists are known by their names, and said to become wrong, once."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision import tv_tensors

import gentransforms as gt
from gentransforms.bank.generate.run import generate_bank
from gentransforms.errors import ImageError
from gentransforms.testing import FakeGenerator
from gentransforms.transforms.coordinates import find_coordinates

BOXES = torch.tensor([[1.0, 1.0, 9.0, 9.0]])
IMAGE = tv_tensors.Image(torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)))
Pair = collections.namedtuple("Pair", ["image", "boxes"])


@dataclasses.dataclass
class Target:
    boxes: Any
    parent: Any = None


class Batch(collections.UserDict):  # type: ignore[type-arg]
    """As those of transformers."""


VOC = {"annotation": {"object": [{"name": "dog", "bndbox": {"xmin": "1", "ymin": "1.5", "xmax": "9", "ymax": "9"}}]}}
# What is found where, in targets as libraries make them.
NAMED: dict[str, tuple[Any, str]] = {
    "torchvision": ((IMAGE, {"boxes": BOXES, "labels": torch.tensor([1])}), "[1]['boxes']"),
    "torchvision key points": ((IMAGE, {"labels": torch.tensor([1]), "keypoints": torch.rand(1, 17, 3)}), "[1]['keypoints']"),
    "DETR": (
        {"pixel_values": torch.rand(2, 3, 16, 16), "labels": [{"class_labels": torch.tensor([1]), "boxes": BOXES / 16}] * 2},
        "['labels'][0]['boxes']",
    ),
    "COCO": ((IMAGE, [{"segmentation": [[1.0] * 12], "bbox": [1.0, 1.0, 8.0, 8.0], "category_id": 1}]), "[1][0]['bbox']"),
    "the second annotation": ((IMAGE, [{"bbox": []}, {"bbox": (1, 1, 8, 8)}]), "[1][1]['bbox']"),
    "Hugging Face": ({"image": IMAGE, "objects": {"category": [1], "bbox": [[1, 1, 8, 8]]}}, "['objects']['bbox']"),
    "Pascal VOC": ((IMAGE, VOC), "[1]['annotation']['object'][0]['bndbox']"),
    "albumentations": ({"image": IMAGE, "bboxes": np.ones((1, 4))}, "['bboxes']"),
    "kornia": ({"image": IMAGE, "bbox_xyxy": BOXES[None]}, "['bbox_xyxy']"),
    "OpenMMLab": ({"img": IMAGE, "gt_bboxes": BOXES}, "['gt_bboxes']"),
    "a caption first": (("a dog", IMAGE, {"boxes": BOXES}), "[2]['boxes']"),
    "other letters": ((IMAGE, {"KeyPoints": BOXES}), "[1]['KeyPoints']"),
    "named tuple": (Pair(IMAGE, BOXES), ".boxes"),
    "in a named tuple": (Pair(IMAGE, {"boxes": BOXES}), ".boxes"),
    "dataclass": ((IMAGE, Target(BOXES)), "[1].boxes"),
    "UserDict": ((IMAGE, Batch(boxes=BOXES)), "[1]['boxes']"),
    "in a dict of dicts": ((IMAGE, {7: {"boxes": {"car": BOXES}}}), "[1][7]['boxes']"),
}
OTHERS: dict[str, Any] = {
    "no objects": (IMAGE, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}),
    "no annotations": (IMAGE, [{"bbox": [], "keypoints": None}]),
    "counts": {"image": IMAGE, "num_boxes": torch.tensor([1]), "num_keypoints": 17, "has_boxes": True, "boxes": 3},
    "flags": {"image": IMAGE, "boxes": torch.tensor([True])},
    "texts": {"image": IMAGE, "boxes": "boxes.json", "keypoints": ["nose", "left_eye"]},
    "other names": {"image": IMAGE, "box_labels": BOXES, "mailbox": BOXES, "inboxes": BOXES, "labels": BOXES},
    "no names": (IMAGE, BOXES, [BOXES, BOXES]),
    "a long list": (IMAGE, [1.0] * 1000),
}


class TestFindCoordinates:
    @pytest.mark.parametrize(("sample", "place"), NAMED.values(), ids=NAMED)
    def test_by_name(self, sample: Any, place: str) -> None:
        assert find_coordinates(sample) == place

    @pytest.mark.parametrize("sample", OTHERS.values(), ids=OTHERS)
    def test_nothing_else(self, sample: Any) -> None:
        assert find_coordinates(sample) is None

    def test_what_refers_to_itself(self) -> None:
        target = Target(None)
        target.parent = [target]
        assert find_coordinates((IMAGE, target)) is None

    def test_no_value_is_read(self) -> None:
        # Reading a value of a meta tensor fails, as reading one of an accelerator waits.
        assert find_coordinates({"boxes": torch.zeros(2, 4, device="meta")}) == "['boxes']"


class TestWarning:
    @pytest.mark.parametrize(("sample", "place"), NAMED.values(), ids=NAMED)
    def test_once_where_the_layout_changes(self, sample: Any, place: str) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(), p=1.0)
        with pytest.warns(UserWarning, match="by its name") as caught:
            augment(sample)
        (message,) = [str(warning.message) for warning in caught]
        assert message.startswith(f"GenerativeAugment: by its name, the entry {place} says where things are in an image; it stays as it is")
        assert "FakeGenerator does not keep the layout" in message
        assert "ControlNetVariation" in message
        augment(sample)  # without a word: once is enough

    @pytest.mark.parametrize("sample", [sample for sample, _ in NAMED.values()], ids=NAMED)
    def test_not_where_it_is_kept(self, sample: Any) -> None:
        gt.GenerativeAugment(FakeGenerator(preserves_geometry=True), p=1.0)(sample)

    @pytest.mark.parametrize("sample", OTHERS.values(), ids=OTHERS)
    def test_not_of_anything_else(self, sample: Any) -> None:
        gt.GenerativeAugment(FakeGenerator(), p=1.0)(sample)

    @pytest.mark.parametrize("output_size", ["generator", (20, 24)])
    def test_where_the_size_changes(self, output_size: Any) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(preserves_geometry=True), p=1.0, output_size=output_size)
        with pytest.warns(UserWarning, match=r"entry \[1\]\['boxes'\].*output_size=.* wrong if it counts pixels: .*v2\.Resize"):
            augment(IMAGE, {"boxes": BOXES})

    def test_at_the_first_sample_that_has_some(self) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(), p=1.0)
        augment(IMAGE, {"boxes": BOXES[:0]})
        with pytest.warns(UserWarning, match=r"entry \[1\]\['boxes'\]"):
            augment(IMAGE, {"boxes": BOXES})

    def test_beside_a_mask(self) -> None:
        """Both are said."""
        with pytest.warns(UserWarning, match="mark masks|by its name") as caught:
            gt.GenerativeAugment(FakeGenerator(), p=1.0)(IMAGE, {"masks": torch.ones(2, 16, 16, dtype=torch.uint8), "boxes": BOXES})
        assert ["mark masks" in str(warning.message) for warning in caught] == [False, True]

    def test_where_the_generator_is_given_masks(self) -> None:
        class Masked(FakeGenerator):
            inputs = ("masks",)

        augment = gt.GenerativeAugment(Masked(), p=1.0, inputs_getter=lambda sample: {"masks": sample[1]["mask"]})
        with pytest.warns(UserWarning, match=r"entry \[1\]\['boxes'\]"):
            augment(IMAGE, {"mask": torch.ones(16, 16, dtype=torch.uint8), "boxes": BOXES})

    def test_not_of_a_sample_without_an_image(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gt.GenerativeAugment(FakeGenerator(), p=1.0)({"boxes": BOXES.numpy(), "label": 3})
        assert ["found no image" in str(warning.message) for warning in caught] == [True]

    def test_by_a_bank(self, tmp_path: Path) -> None:
        photos = [PIL.Image.new("RGB", (16, 16), (40 * i, 90, 10)) for i in range(2)]
        generate_bank(photos, tmp_path, FakeGenerator(), variants=1, progress=False)
        augment = gt.BankAugment(tmp_path, p=1.0, keys_getter=lambda sample: sample[1]["image_id"])
        with pytest.warns(UserWarning, match=r"BankAugment: .*entry \[1\]\['boxes'\].*FakeGenerator, which made this bank, does not keep"):
            augment(photos[0], {"boxes": BOXES, "image_id": 0})

    def test_marked_boxes_are_refused(self) -> None:
        boxes = tv_tensors.BoundingBoxes(BOXES, format="XYXY", canvas_size=(16, 16))  # type: ignore[call-overload]
        with pytest.raises(ImageError, match="BoundingBoxes"):
            gt.GenerativeAugment(FakeGenerator(), p=1.0)(IMAGE, {"boxes": boxes})
