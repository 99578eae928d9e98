"""Map-style data sets as sources: torchvision's, PyTorch's, the user's own."""

from __future__ import annotations

import io
import json
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from bank_sources import read
from source_files import Listed, fill, mask_array, mask_png, picture, pixels, png, tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, default_collate
from torchvision import tv_tensors
from torchvision.datasets import CIFAR10, FakeData, ImageFolder
from torchvision.transforms import v2

from gentransforms.bank.generate.run import generate_bank
from gentransforms.errors import ConfigError, SourceError
from gentransforms.sources import map_style, open_source
from gentransforms.sources.base import ImageSource
from gentransforms.sources.keyed import with_keys
from gentransforms.sources.map_style import MapStyleSource
from gentransforms.testing import FakeGenerator


class TestMapStyle:
    """Any data set with a length and an index."""

    @pytest.mark.parametrize(
        "sample",
        [
            picture(5), (picture(5), 3), [picture(5), 3], {"image": picture(5)}, {"mask": mask_png([[1]]), "img": picture(5)},
            {"x": png(5)}, {"x": {"bytes": png(5), "path": None}}, png(5), tensor(5), (tensor(5),),
            (torch.zeros(1, 2, 2), tv_tensors.Image(tensor(5))), (3, {"deep": [picture(5)]}), (torch.tensor(3), tensor(5)),
            {"first": tensor(5), "second": tensor(6)},
        ],
        ids=range(14),
    )  # fmt: skip
    def test_which_is_the_image(self, sample: Any) -> None:
        image = read(open_source([sample]), 0).image
        assert type(image) is torch.Tensor
        assert torch.equal(image, tensor(5))

    def test_floating_and_grey_tensors(self) -> None:
        for image in (torch.rand(3, 4, 5), torch.rand(1, 4, 5), torch.zeros(1, 4, 5, dtype=torch.uint8)):
            assert torch.equal(read(open_source([image]), 0).image, image)
        assert not read(open_source([torch.rand(3, 4, 5, requires_grad=True)]), 0).image.requires_grad

    def test_pil_images_of_any_mode(self) -> None:
        source = open_source([PIL.Image.new("RGBA", (4, 2)), PIL.Image.new("I;16", (4, 2), 65535), PIL.Image.new("CMYK", (4, 2))])
        assert all(torch.equal(read(source, i).image, torch.full((3, 2, 4), 255, dtype=torch.uint8)) for i in range(3))

    @pytest.mark.parametrize("label", [3, numpy.int64(3), torch.tensor(3), numpy.uint8(3)])
    def test_labels(self, label: Any) -> None:
        for sample in ((picture(0), label), {"image": picture(0), "label": label}, {"image": picture(0), "labels": label}):
            found = read(open_source([sample]), 0).inputs
            assert found == {"labels": 3}
            assert type(found["labels"]) is int

    @pytest.mark.parametrize(
        "target", [True, 1.5, "cat", {"boxes": 1}, (1, 2), None, torch.tensor(1.0), torch.tensor(True), numpy.bool_(True)]
    )
    def test_targets_that_are_no_labels(self, target: Any) -> None:
        assert open_source([(picture(0), target)]).inputs == ()

    def test_inputs_of_dicts(self) -> None:
        sample = {
            "image": picture(0),
            "caption": "a cat",
            "text": "other",
            "mask": PIL.Image.fromarray(mask_array([[1, 2]])),
            "n": 1,
        }
        source = open_source([sample])
        assert set(source.inputs) == {"prompts", "masks"}
        assert read(source, 0).inputs["prompts"] == "a cat"
        assert read(source, 0).inputs["masks"].tolist() == mask_array([[1, 2]]).tolist()
        assert read(open_source([sample], columns={"prompts": "text", "labels": "n"}), 0).inputs["prompts"] == "text".replace(
            "text", "other"
        )

    @pytest.mark.parametrize(
        "mask",
        [
            torch.from_numpy(mask_array([[1, 2]])),
            torch.from_numpy(mask_array([[1, 2]]))[None],
            tv_tensors.Mask(torch.from_numpy(mask_array([[1, 2]]))),
            mask_array([[1, 2]], numpy.int64),
        ],
    )
    def test_masks(self, mask: Any) -> None:
        for image in (picture(0), tensor(0)):
            found = read(open_source([{"image": image, "masks": mask}]), 0).inputs["masks"]
            assert type(found) is torch.Tensor
            assert found.tolist() == mask_array([[1, 2]]).tolist()

    def test_image_column(self) -> None:
        source = open_source([{"image": picture(0), "other": picture(1)}], image_column="other")
        assert torch.equal(read(source, 0).image, tensor(1))
        with pytest.raises(ConfigError, match="image_column='no': the samples have 'image'"):
            open_source([{"image": picture(0)}], image_column="no")
        with pytest.raises(ConfigError, match="image_column='no': a sample is a tuple: expected a dict"):
            open_source([(picture(0), 1)], image_column="no")

    def test_inputs_getter(self) -> None:
        samples = [(picture(0), "x", PIL.Image.fromarray(mask_array([[4]]))), (picture(0), None, None)]
        source = open_source(samples, inputs_getter=lambda sample: {"prompts": sample[1], "masks": sample[2], "depth": 0.5})
        assert source.inputs == ("prompts", "masks", "depth")
        found = read(source, 0).inputs
        assert (found["prompts"], found["masks"].unique().tolist(), found["depth"]) == ("x", [4], 0.5)
        with pytest.raises(SourceError, match="prompts: missing"):
            read(source, 1)
        with pytest.raises(ConfigError, match=r"columns=.*: inputs_getter says what the inputs are"):
            open_source(samples, inputs_getter=lambda sample: {}, columns={"prompts": "x"})
        with pytest.raises(ConfigError, match="inputs_getter returned an int: expected a dict"):
            open_source(samples, inputs_getter=lambda sample: 3)  # type: ignore[arg-type, return-value]

    def test_inputs_getter_that_raises(self) -> None:
        source = open_source([(picture(0), {"a": "x"}), (picture(0), {})], inputs_getter=lambda sample: {"prompts": sample[1]["a"]})
        with pytest.raises(SourceError, match="inputs_getter raised KeyError: 'a'"):
            read(source, 1)

    def test_a_sample_that_raises(self) -> None:
        source = open_source(Listed((picture(0), 1), ValueError("two\nlines"), (picture(2), 3)))
        with pytest.raises(SourceError, match=r"^ValueError: two lines$"):
            read(source, 1)
        assert read(source, 2).inputs == {"labels": 3}

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), OSError(24, "Too many open files")])
    def test_what_passes(self, error: BaseException) -> None:
        source = open_source(Listed(*[picture(0)] * 8, error, *[picture(0)] * 9))  # which are not all tried
        with pytest.raises(type(error)) as raised:
            read(source, 8)
        assert raised.value is error
        with pytest.raises(type(error)):
            open_source(Listed(picture(0), error))

    @pytest.mark.parametrize(
        ("sample", "words"),
        [
            ((torch.zeros(3, 4, 4, dtype=torch.int64), 1), "an image of dtype torch.int64: expected uint8 or floating"),
            ((torch.zeros(4, 4, 3), 1), r"an image of shape \(4, 4, 3\): expected \(C, H, W\)"),
            ((torch.zeros(2, 3, 4, 4), 1), r"an image of shape \(2, 3, 4, 4\)"),
            (("text", 1), "no image in the sample: found a tuple of str, int"),
            (PIL.Image.new("RGB", (0, 3)), "0 x 3 pixels"),
            (b"text", "not an image"),
            ((picture(0), "cat"), "labels: missing"),
        ],
    )
    def test_samples_of_another_kind(self, sample: Any, words: str) -> None:
        source = open_source([(picture(0), 1), sample])
        with pytest.raises(SourceError, match=words):
            read(source, 1)

    def test_what_decides(self) -> None:
        def number(index: int) -> int:
            return index + 5

        sample = {"image": picture(0), "label": 3, "caption": "x"}
        source = open_source([sample], key=number)
        expected = {
            "kind": "data set", "key": number.__qualname__, "image_column": "image", "columns": {"labels": "label", "prompts": "caption"},
            "split": None, "inputs_getter": None,
        }  # fmt: skip
        assert json.loads(json.dumps(source.description["decides"])) == expected
        assert open_source([sample], key=number, image_column="image").description["decides"] == expected
        assert open_source([sample], key=[5]).description["decides"] == {**expected, "key": None}
        getter = MapStyleSource([sample], inputs_getter=dict).description["decides"]
        assert (getter["inputs_getter"], getter["columns"]) == ("dict", {})

    def test_first_samples_may_be_damaged(self) -> None:
        source = open_source(Listed(ValueError("x"), ValueError("y"), (picture(0), 3)))
        assert source.inputs == ("labels",)
        with pytest.raises(ConfigError, match="none of the samples tried of this Listed can be read: ValueError: x"):
            open_source(Listed(ValueError("x"), ValueError("y")))

    @pytest.mark.parametrize("change", ["pixels", "size", "keyed", "folder"])
    def test_random_transforms_are_refused(self, change: str, tmp_path: Path) -> None:
        torch.manual_seed(0)
        crop = v2.RandomCrop(3) if change != "size" else lambda image: image[..., : 1 + next(widths)]
        widths = iter(range(5))

        class Training(Listed):
            def __getitem__(self, index: int) -> Any:
                image, label = super().__getitem__(index)
                return crop(image), label

        data: Any = Training((tensor(0), 3), (tensor(1), 4))
        if change == "keyed":
            data = with_keys([(tensor(0), 3)], transform=lambda sample: (crop(sample[0]), *sample[1:]))
        if change == "folder":
            data = ImageFolder(fill(tmp_path, "a/x.png"), transform=crop)
        with pytest.raises(ConfigError, match=r"sample 0 of this \w+ has another image each time .* without random transforms"):
            open_source(data)

    @pytest.mark.parametrize(
        "change", [v2.RandomHorizontalFlip(), v2.RandomGrayscale(0.2), v2.RandomErasing(0.25)], ids=["flip", "grey", "erasing"]
    )
    @pytest.mark.parametrize("kind", ["object", "datasets"])
    def test_rare_random_transforms_are_refused(self, kind: str, change: Any) -> None:
        """One sample read twice shows a flip in half of the runs only; sixteen miss random grey in one run of 480."""

        class Training(Listed):
            def __getitem__(self, index: int) -> Any:
                return change(super().__getitem__(index))

        data: Any = Training(*map(tensor, range(40)))
        if kind == "datasets":
            rows = datasets.Dataset.from_dict({"n": list(range(40))})
            data = rows.with_transform(lambda batch: {"image": [change(tensor(n)) for n in batch["n"]]})
        for seed in range(20):
            torch.manual_seed(seed)
            with pytest.raises(ConfigError, match=r"has another image each time it is read: give the data set without random transforms"):
                open_source(data)

    @pytest.mark.parametrize("count", [1, 5, 16, 31, 1000])
    @pytest.mark.parametrize("seconds", [0, 100])
    def test_reads_when_opened(self, count: int, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sixteen samples at most, each twice; of a slow data set only the first twice, which changes no inputs."""

        class Counting(Listed):
            read: list[int] = []  # noqa: RUF012

            def __getitem__(self, index: int) -> Any:
                self.read.append(index)
                return super().__getitem__(index)

        data = Counting(*((tensor(0), None if i < count - 1 else 3) for i in range(count)))
        data.read.clear()
        monkeypatch.setattr(map_style.time, "monotonic", lambda: seconds * len(data.read))
        source = open_source(data)
        tried = set(data.read)
        assert len(tried) == min(count, 16)
        assert {data.read.count(index) for index in tried - {0}} <= ({1} if seconds else {2})
        assert data.read.count(0) == 2
        assert max(tried) >= count * 15 // 16 - 1  # spread
        assert source.inputs == (("labels",) if count <= 16 else ())

    def test_random_inputs_are_refused_where_they_are_used(self) -> None:
        class Captioned(Listed):
            reads = 0

            def __getitem__(self, index: int) -> Any:
                self.reads += 1
                label, views = super().__getitem__(index)
                return {"image": tensor(index), "caption": views[self.reads % len(views)], "label": label, "extra": object()}

        source = open_source(Captioned((0, ["x", "x"]), (1, ["a cat", "one cat"])))
        assert source.select(["labels"]).inputs == ("labels",)
        with pytest.raises(
            ConfigError, match="sample 1 of this Captioned has other prompts each time it is read: give the data set without"
        ):
            source.select(["prompts", "labels"])
        assert open_source(Captioned((0, ["x"]), (1, ["y"]))).select(["prompts"]).inputs == ("prompts",)
        source = open_source(Captioned((0, [None, "x"])))  # left out at random
        with pytest.raises(ConfigError, match="has other prompts each time"):
            source.select(["prompts"])

    @pytest.mark.parametrize("order", [1, -1])
    def test_a_first_sample_without_inputs(self, order: int, tmp_path: Path) -> None:
        """The inputs are the same in any order; an image without one fails if the generator takes it, and else does not."""
        grey = PIL.Image.fromarray(mask_array([[1]]))
        rows: Any = [{"image": picture(i), "caption": f"photo {i}", "label": i, "mask": grey, "control_map": picture(i)} for i in range(5)]
        rows[0] = {"image": picture(0), **dict.fromkeys(("caption", "label", "mask", "control_map"))}
        source = open_source(Listed(*rows[::order]), key=[f"{row['image'].getpixel((0, 0))}" for row in rows[::order]])
        assert set(source.inputs) == {"prompts", "labels", "masks", "control_maps"}
        assert source.description["decides"]["columns"]["prompts"] == "caption"
        without = source.keys[0 if order == 1 else -1]
        for name in source.inputs:
            with pytest.raises(SourceError, match=f"^{name}: missing for this image$"):
                read(source.select([name]), list(source.keys).index(without))
        done = generate_bank(source, tmp_path, FakeGenerator(), variants=1, progress=False)
        assert (done.images, len(done.failed)) == (5, 0)

        class Prompted(FakeGenerator):
            inputs = ("prompts",)

        done = generate_bank(source, tmp_path / "prompted", Prompted(), variants=1, progress=False)
        assert [(failed["key"], failed["reason"]) for failed in done.failed] == [(without, "prompts: missing for this image")]

    @pytest.mark.parametrize("order", [1, -1])
    def test_other_first_samples(self, order: int) -> None:
        def opened(*samples: Any, **options: Any) -> ImageSource:
            return open_source(Listed(*samples[::order]), **options)

        assert opened((picture(0), None), (picture(1), 3)).inputs == ("labels",)
        assert opened({"image": picture(0)}, {"image": picture(1), "text": "x"}).inputs == ("prompts",)
        assert opened({"image": None}, {"image": picture(1)}).description["decides"]["image_column"] == "image"
        assert opened({"image": picture(0), "t": None}, {"image": picture(1), "t": "x"}, columns={"prompts": "t"}).inputs == ("prompts",)
        assert opened({"image": picture(0), "t": None}, columns={"prompts": "t"}).inputs == ("prompts",)
        assert opened({"image": picture(0), "text": None, "mask": None}).inputs == ()
        assert opened({"image": picture(0)}, {"image": picture(1), "t": "x"}, columns={"prompts": "t"}).inputs == ("prompts",)
        with pytest.raises(ConfigError, match=r"columns=\{'prompts': 'u'\}: no such column in the samples, which has 'image', 't'"):
            opened({"image": picture(0), "t": None}, {"image": picture(1), "t": "x"}, columns={"prompts": "u"})
        getter = lambda sample: {} if sample[1] is None else {"prompts": sample[1]}  # noqa: E731
        assert opened((picture(0), None), (picture(1), "x"), inputs_getter=getter).inputs == ("prompts",)
        getter = lambda sample: {"prompts": sample[1]["a"]}  # noqa: E731
        assert opened((picture(0), {}), (picture(1), {"a": "x"}), inputs_getter=getter).inputs == ("prompts",)
        with pytest.raises(ConfigError, match="'image', 'depth' may be the image"):
            opened({"image": picture(0), "depth": None}, {"image": picture(1), "depth": picture(2)})
        with pytest.raises(ConfigError, match=r"none of the samples tried .*: inputs_getter raised KeyError: 'b'"):
            opened((picture(0), {}), inputs_getter=lambda sample: {"prompts": sample[1]["b"]})

    def test_only_images_that_can_be_read_are_compared(self) -> None:
        class Failing(Listed):
            reads = 0

            def __getitem__(self, index: int) -> Any:
                self.reads += 1
                if self.reads == 2:
                    raise ValueError("gone")
                return super().__getitem__(index)

        assert open_source(Failing((picture(0), 3))).inputs == ("labels",)
        assert open_source([(b"damaged", 3)]).inputs == ("labels",)
        assert open_source([torch.full((3, 2, 2), float("nan"))]).keys == range(1)
        assert open_source([torch.rand(3, 2, 2, dtype=torch.bfloat16)]).keys == range(1)

    def test_no_image(self) -> None:
        with pytest.raises(
            ConfigError, match="no image in the samples of this list: found a tuple of int, str; say where with image_column="
        ):
            open_source([(1, "a")])
        with pytest.raises(ConfigError, match="found a dict of 'a': int"):
            open_source([{"a": 1}])

    def test_torchvision(self, tmp_path: Path) -> None:
        source = open_source(FakeData(size=5, image_size=(3, 8, 8)))
        assert source.keys == range(5)
        reference, label = FakeData(size=5, image_size=(3, 8, 8))[4]
        assert torch.equal(read(source, 4).image, torch.from_numpy(numpy.array(reference)).permute(2, 0, 1))
        assert read(source, 4).inputs == {"labels": int(label)}
        decides = source.description.pop("decides")
        assert source.description == {"kind": "data set", "class": "torchvision.datasets.fakedata.FakeData"}
        empty = dict.fromkeys(("key", "image_column", "split", "inputs_getter"))
        assert decides == {"kind": "data set", "columns": {}, **empty}
        cifar = CIFAR10.__new__(CIFAR10)
        cifar.data, cifar.targets, cifar.transform, cifar.target_transform = numpy.stack([pixels(0), pixels(1)]), [4, 5], None, None
        assert read(open_source(cifar), 1).inputs == {"labels": 5}

    def test_tensor_dataset_and_subset(self) -> None:
        data = TensorDataset(torch.stack([tensor(i) for i in range(4)]), torch.tensor([5, 6, 7, 8]))
        source = open_source(Subset(data, [3, 1]))
        assert source.keys == [3, 1]
        assert read(source, 0).inputs == {"labels": 8}
        assert torch.equal(read(source, 1).image, tensor(1))

    def test_image_folder_object_is_as_the_folder(self, tmp_path: Path) -> None:
        fill(tmp_path, "a/x.png", "b/y.png")
        folder, objects = open_source(tmp_path), open_source(ImageFolder(tmp_path))
        assert folder.keys == objects.keys
        for i in range(2):
            assert torch.equal(read(folder, i).image, read(objects, i).image)
            assert read(folder, i).inputs == read(objects, i).inputs

    def test_orientation_of_an_image_folder_object(self, tmp_path: Path) -> None:
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        (tmp_path / "a").mkdir()
        picture(0).save(tmp_path / "a" / "x.png", exif=exif)
        source = open_source(ImageFolder(tmp_path))
        assert torch.equal(read(source, 0).image, read(open_source(tmp_path), 0).image)
        advised = ImageFolder(tmp_path, loader=lambda path: PIL.ImageOps.exif_transpose(PIL.Image.open(path)).convert("RGB"))
        assert torch.equal(read(open_source(advised), 0).image, read(source, 0).image)
        assert torch.equal(read(source, 0).image, v2.functional.pil_to_tensor(advised[0][0]))

    @pytest.mark.parametrize(("code", "back"), [(3, 180), (6, 270), (8, 90)])
    def test_a_data_set_that_rotates_photos_itself_is_told(self, code: int, back: int) -> None:
        exif, file = PIL.Image.Exif(), io.BytesIO()
        exif[0x0112] = code
        picture(0).save(file, "PNG", exif=exif)
        photos = [picture(i) for i in range(40)]  # of which sixteen are tried when the source is opened
        photos[1] = PIL.Image.open(file).rotate(back, expand=True)
        source = open_source(photos)
        with pytest.warns(UserWarning, match=f"sample 1 of this list .* EXIF orientation {code}: .* rotated itself is rotated again"):
            read(source, 1)
        read(source, 1)  # told once
        photos[1] = PIL.ImageOps.exif_transpose(PIL.Image.open(file))  # as the warning advises
        assert torch.equal(read(open_source(photos), 1).image, v2.functional.pil_to_tensor(photos[1]))

    def test_photos_that_pillow_rotates_itself(self) -> None:
        exif, file = PIL.Image.Exif(), io.BytesIO()
        exif[0x0112] = 6
        picture(0).save(file, "TIFF", exif=exif)
        for change in (lambda image: image, lambda image: image.convert("RGB")):
            data = [change(PIL.Image.open(file))]
            assert torch.equal(read(open_source(data), 0).image, v2.functional.pil_to_tensor(PIL.Image.open(file).convert("RGB")))

    @pytest.mark.parametrize("transform", [None, tuple])
    def test_keyed_data_set(self, transform: Callable[[Any], Any] | None) -> None:
        keyed = with_keys([(picture(0), 3), (picture(1), 4)], key=[70, 71], transform=transform)
        source = open_source(keyed)
        assert source.keys == [70, 71]
        assert read(source, 1).inputs == {"labels": 4}
        bare = open_source(with_keys([picture(0)], key=[70], transform=transform))
        assert bare.inputs == ()  # the key is no label

    @pytest.mark.parametrize("wrap", [lambda data: Subset(data, [3, 1]), lambda data: ConcatDataset([data, data])], ids=["part", "twice"])
    def test_keys_inside_another_data_set_are_no_labels(self, wrap: Callable[[Any], Any]) -> None:
        bare = with_keys([picture(i) for i in range(4)])
        keys = [7 + i for i in range(len(wrap(bare)))]
        assert open_source(wrap(bare), key=keys).inputs == ()
        assert open_source(wrap(with_keys([picture(i) for i in range(4)], key="image-{}".format)), key=keys).inputs == ()
        labelled = open_source(wrap(with_keys([(picture(i), i + 5) for i in range(4)])), key=keys)
        assert read(labelled, 0).inputs == {"labels": wrap(range(5, 9))[0]}
        batches = DataLoader(bare, batch_size=1, collate_fn=lambda batch: (batch[0][0], default_collate([batch[0][1]])))
        assert open_source(list(batches)).inputs == ()

    def test_one_thread_at_a_time(self) -> None:
        class Fragile(Listed):
            inside = 0

            def __getitem__(self, index: int) -> Any:
                self.inside += 1
                assert self.inside == 1
                sum(range(20_000))
                sample = super().__getitem__(index)
                self.inside -= 1
                return sample

        source = open_source(Fragile(*((picture(i), i) for i in range(40))))
        sys.setswitchinterval(1e-5)
        try:
            with ThreadPoolExecutor(8) as pool:
                assert [s.inputs["labels"] for s in pool.map(lambda i: read(source, i), range(40))] == list(range(40))
        finally:
            sys.setswitchinterval(0.005)

    def test_pickles(self) -> None:
        source = pickle.loads(pickle.dumps(open_source(Listed((picture(0), 3)))))
        assert read(source, 0).inputs == {"labels": 3}
        with ThreadPoolExecutor(2) as pool:
            assert len(list(pool.map(lambda i: read(source, i), [0] * 8))) == 8
