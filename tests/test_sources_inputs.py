"""What a source gives beside its image: lists of images, masks and control maps."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from bank_sources import read
from source_files import Listed, mask_png, parquet, picture, png, tensor

from gentransforms.errors import ConfigError, SourceError
from gentransforms.sources import open_source


class TestListsOfImages:
    """A sample with several images in a list is refused: the first need not be the image."""

    @pytest.mark.parametrize(
        "sample",
        [
            {"images": [picture(0), picture(1)]}, ([picture(0), picture(1)], 3), ((tensor(0), tensor(1)), 3),
            {"x": {"y": (png(0), png(1))}},
            {"pages": [{"scan": picture(0)}, {"scan": picture(1)}]}, ({"left": picture(0), "right": picture(1)}, 3),
            {"images": [{"bytes": png(0), "path": None}] * 3},
        ],
        ids=range(7),
    )  # fmt: skip
    def test_in_samples(self, sample: Any) -> None:
        words = "holds [23] images, any of which may be the image: give a data set with one image a sample"
        with pytest.raises(ConfigError, match=r"sample 0 of this list: a (list|tuple|dict) in it " + words):
            open_source([sample])
        with pytest.raises(ConfigError, match="sample 1 of this list: .*" + words):
            open_source([picture(5), sample])
        other = (picture(5), sample)
        assert torch.equal(read(open_source([other]), 0).image, tensor(5))

    def test_one_image_in_a_list(self) -> None:
        for sample in ({"images": [picture(5)]}, {"data": {"mask": picture(1), "image": picture(5)}}, ([tensor(5)], 3)):
            assert torch.equal(read(open_source([sample]), 0).image, tensor(5))

    def test_a_mask_after_the_image_is_no_second_image(self) -> None:
        assert torch.equal(read(open_source([(picture(5), picture(1))]), 0).image, tensor(5))

    def test_named_beside_a_list(self) -> None:
        sample = {"crops": [picture(0), picture(1)], "photo": picture(5)}
        with pytest.raises(ConfigError, match="or name its entry with image_column="):
            open_source([sample])
        assert torch.equal(read(open_source([sample], image_column="photo"), 0).image, tensor(5))

    def test_in_a_sample_that_was_not_tried(self) -> None:
        source = open_source(Listed(*[([picture(0)], 3)] * 8, ([picture(0), picture(1)], 3), *[([picture(0)], 3)] * 9))
        with pytest.raises(SourceError, match="a list in it holds 2 images"):
            read(source, 8)

    @pytest.mark.parametrize("count", [1, 2])
    @pytest.mark.parametrize("kind", ["list", "large list", "of dicts", "of lists"])
    def test_column_of_a_hugging_face_data_set(self, kind: str, count: int, tmp_path: Path) -> None:
        images: Any = [{"bytes": png(i), "path": None} for i in range(count)]
        feature: Any = {
            "list": [datasets.Image()], "large list": datasets.LargeList(datasets.Image()), "of dicts": [{"scan": datasets.Image()}],
            "of lists": [[datasets.Image()]],
        }[kind]  # fmt: skip
        rows = {"of dicts": [{"scan": image} for image in images], "of lists": [images]}.get(kind, images)
        data = datasets.Dataset.from_dict({"views": [rows] * 2, "n": [0, 1]}, datasets.Features(views=feature, n=datasets.Value("int64")))
        words = r"'views' holds lists of images: expected one image a row, .* dataset\.map\(lambda row: \{'image': row\['views'\]\[0\]\}"
        for options in ({}, {"image_column": "views"}, {"inputs_getter": lambda row: {}}):
            with pytest.raises(ConfigError, match="this Dataset: " + words):
                open_source(data, **options)
        if kind in ("list", "large list"):  # what Parquet holds of the others depends on the version of datasets
            data.to_parquet(tmp_path / "a.parquet")
            for options in ({}, {"image_column": "views"}):
                with pytest.raises(ConfigError, match=r"a\.parquet: " + words):
                    open_source(tmp_path / "a.parquet", **options)
            mapped = data.map(lambda row: {"image": row["views"][0]}, remove_columns="views")  # as the error says
            assert torch.equal(read(open_source(mapped), 1).image, tensor(0))

    def test_a_column_of_images_beside_lists(self) -> None:
        images = [{"bytes": png(i), "path": None} for i in range(2)]
        features = datasets.Features(views=[datasets.Image()], photo=datasets.Image())
        data = datasets.Dataset.from_dict({"views": [images], "photo": [{"bytes": png(5), "path": None}]}, features)
        assert torch.equal(read(open_source(data), 0).image, tensor(5))


class TestMasks:
    """A mask has the size of its image as stored, and is turned with it."""

    @pytest.fixture
    def stored(self) -> Any:
        return numpy.random.default_rng(0).integers(0, 256, (6, 8), numpy.uint8)

    @staticmethod
    def photo(values: Any, code: int, kind: str = "PNG") -> bytes:
        """A grey image whose pixels are its mask's."""
        exif, file = PIL.Image.Exif(), io.BytesIO()
        exif[0x0112] = code
        PIL.Image.fromarray(values).save(file, kind, exif=exif)
        return file.getvalue()

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    @pytest.mark.parametrize("code", range(1, 9))
    def test_turned_with_its_image(self, code: int, kind: str, stored: Any, tmp_path: Path) -> None:
        photo = self.photo(stored, code, kind)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "x.png").write_bytes(photo)
        (tmp_path / "folder" / "m.png").write_bytes(mask_png(stored))
        (tmp_path / "folder" / "metadata.csv").write_text("file_name,mask\nx.png,m.png\n")
        for source in (
            open_source(tmp_path / "folder"),
            open_source(parquet(tmp_path / "a.parquet", image=[photo], mask=[mask_png(stored)])),
            open_source([{"image": PIL.Image.open(io.BytesIO(photo)) if kind == "PNG" else photo, "mask": torch.from_numpy(stored)}]),
            open_source([(photo, stored)], inputs_getter=lambda sample: {"masks": sample[1]}),
        ):
            sample = read(source, 0)
            assert torch.equal(sample.image[0].int(), sample.inputs["masks"].int())

    @pytest.mark.parametrize("code", [1, 3, 6, 8])
    def test_a_mask_with_an_orientation_of_its_own(self, code: int, stored: Any) -> None:
        source = open_source([{"image": self.photo(stored, code), "mask": self.photo(stored, code)}])
        sample = read(source, 0)
        assert torch.equal(sample.image[0].int(), sample.inputs["masks"])
        turned = self.photo(numpy.rot90(stored, 1 if code == 6 else 0).copy(), 6 if code == 6 else 3)
        if code == 1:  # the same size, and a tag that turns it
            assert torch.equal(
                read(open_source([{"image": self.photo(stored, 1), "mask": turned}]), 0).inputs["masks"],
                torch.from_numpy(stored).rot90(2).int(),
            )

    @pytest.mark.parametrize("size", [(8, 6), (3, 4), (6, 7), (1, 1)])
    def test_another_size_is_a_failed_source(self, size: tuple[int, int], stored: Any) -> None:
        mask = PIL.Image.fromarray(numpy.zeros(size, numpy.uint8))
        for value in (mask, torch.zeros(size, dtype=torch.int64)):
            for photo in (self.photo(stored, 6), self.photo(stored, 1), tensor(0)):
                with pytest.raises(SourceError, match=f"masks: {size[1]} x {size[0]} pixels, and its image is .*8 x 6"):
                    read(open_source([{"image": photo, "mask": value}]), 0)


class TestControlMaps:
    """A control map has the aspect ratio of its image as stored, at any resolution, and is turned with it."""

    stored = numpy.random.default_rng(0).integers(0, 256, (6, 8), numpy.uint8)

    @pytest.mark.parametrize("code", range(1, 9))
    def test_turned_with_its_image(self, code: int, tmp_path: Path) -> None:
        photo = TestMasks.photo(self.stored, code)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "x.png").write_bytes(photo)
        (tmp_path / "folder" / "m.dat").write_bytes(mask_png(self.stored))
        (tmp_path / "folder" / "metadata.csv").write_text("file_name,control_map\nx.png,m.dat\n")
        grey = torch.from_numpy(self.stored).expand(3, -1, -1)
        for source in (
            open_source(tmp_path / "folder"),
            open_source(parquet(tmp_path / "a.parquet", image=[photo], control_map=[mask_png(self.stored)])),
            open_source([{"image": photo, "control_map": PIL.Image.fromarray(self.stored)}]),
            open_source([(photo, grey)], inputs_getter=lambda sample: {"control_maps": sample[1]}),
        ):
            sample = read(source, 0)
            assert torch.equal(sample.image, sample.inputs["control_maps"])

    @pytest.mark.parametrize("code", [3, 6])
    def test_with_an_orientation_of_its_own(self, code: int) -> None:
        photo = TestMasks.photo(self.stored, code)
        sample = read(open_source([{"image": photo, "control_map": photo}]), 0)
        assert torch.equal(sample.image, sample.inputs["control_maps"])

    @pytest.mark.parametrize("size", [(3, 4), (12, 16), (512, 704)])
    def test_of_another_resolution(self, size: tuple[int, int]) -> None:
        control_map = PIL.Image.fromarray(numpy.zeros(size, numpy.uint8))
        for code, shape in ((1, size), (6, size[::-1])):
            source = open_source([{"image": TestMasks.photo(self.stored, code), "control_map": control_map}])
            assert read(source, 0).inputs["control_maps"].shape == (3, *shape)

    @pytest.mark.parametrize("size", [(8, 6), (6, 7), (6, 6), (512, 512)])
    def test_another_aspect_ratio_is_a_failed_source(self, size: tuple[int, int]) -> None:
        for value in (PIL.Image.fromarray(numpy.zeros(size, numpy.uint8)), torch.zeros(3, *size)):
            for photo in (TestMasks.photo(self.stored, 6), TestMasks.photo(self.stored, 1), tensor(0)):
                with pytest.raises(SourceError, match=f"control_maps: {size[1]} x {size[0]} pixels, and its image is .*8 x 6"):
                    read(open_source([{"image": photo, "control_map": value}]), 0)
