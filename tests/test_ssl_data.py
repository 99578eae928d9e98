"""What the recipes read and show: sources, batches, classic views, and generated images from a bank or a generator."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import kornia.enhance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from ssl_example import Operations, ssl, tiny, write_photos
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

import gentransforms as gt
from gentransforms.bank.generate.run import generate_bank
from gentransforms.bank.reader import Bank
from gentransforms.testing import FakeGenerator

pytestmark = [pytest.mark.filterwarnings("ignore:::lightning"), pytest.mark.filterwarnings("ignore:::pytorch_lightning")]


def photo(value: int, size: tuple[int, int] = (20, 20)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


class TestSources:
    def test_folder_with_classes(self, tmp_path: Path) -> None:
        source = ssl("data").open_images(str(write_photos(tmp_path, 6, classes=3)))
        assert source.classes == ["class0", "class1", "class2"]
        assert source.keys == ["class0/000.png", "class0/003.png", "class1/001.png", "class1/004.png", "class2/002.png", "class2/005.png"]
        assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert source.read(1).size == (20, 20)

    def test_folder_without(self, tmp_path: Path) -> None:
        photo(7).save(tmp_path / "b.png")
        photo(9).save(tmp_path / "a.jpg")
        (tmp_path / "notes.txt").write_text("no image")
        source = ssl("data").open_images(str(tmp_path))
        assert (source.keys, source.labels, source.classes) == (["a.jpg", "b.png"], None, [])
        assert source.read(1).getpixel((0, 0)) == (7, 7, 7)

    @pytest.mark.parametrize("struct", [True, False])
    def test_parquet(self, struct: bool, tmp_path: Path) -> None:
        cells: list[Any] = [png(photo(v)) for v in (1, 2, 3)]
        table = pa.table({"img": [{"bytes": c, "path": ""} for c in cells] if struct else cells, "label": [1, 0, 1]})
        pq.write_table(table, tmp_path / "x.parquet")
        source = ssl("data").open_images(str(tmp_path / "x.parquet"))
        assert (list(source.keys), source.labels.tolist(), source.classes) == ([0, 1, 2], [1, 0, 1], ["0", "1"])
        assert source.read(2).getpixel((3, 3)) == (3, 3, 3)

    def test_parquet_columns(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"x": [png(photo(1))], "y": [4]}), tmp_path / "x.parquet")
        source = ssl("data").open_images(str(tmp_path / "x.parquet"), "x", "y")
        assert source.labels.tolist() == [4]
        for image, label, said in ((None, None, "data.image_column"), ("x", "z", "no column 'z'")):
            with pytest.raises(SystemExit, match=said):
                ssl("data").open_images(str(tmp_path / "x.parquet"), image, label)

    def test_torchvision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class CIFAR10:
            classes = ("cat", "dog")
            targets = (1, 0)

            def __init__(self, root: str, train: bool = True) -> None:
                assert (root, train) == ("/data", False)

            def __len__(self) -> int:
                return 2

            def __getitem__(self, i: int) -> tuple[Image.Image, int]:
                return photo(i), self.targets[i]

        data = ssl("data")
        monkeypatch.setattr("torchvision.datasets.CIFAR10", CIFAR10)
        source = data.open_images("torchvision:CIFAR10:/data:test")
        assert (source.labels.tolist(), source.classes, list(source.keys)) == ([1, 0], ["cat", "dog"], [0, 1])

    @pytest.mark.parametrize(("split", "expected"), [("train", "train-standard"), ("train-standard", "train-standard"), ("val", "val")])
    def test_places365(self, split: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = {}

        class Places365(list[Any]):
            targets, classes = [0], ["a"]

            def __init__(self, root: str, split: str = "", small: bool = False) -> None:
                asked.update(split=split, small=small)
                super().__init__([(photo(0), 0)])

        data = ssl("data")
        monkeypatch.setattr("torchvision.datasets.Places365", Places365)
        data.open_images(f"torchvision:Places365:/data:{split}")
        assert asked == {"split": expected, "small": True}

    def test_split_of_a_data_set_that_has_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It would be all images, those trained on among them."""

        class Caltech101(list[Any]):
            y, classes = (0, 1), ("ant", "emu")

            def __init__(self, root: str, download: bool = False) -> None:
                super().__init__([(photo(0), 0), (photo(1), 1)])

        data = ssl("data")
        monkeypatch.setattr("torchvision.datasets.Caltech101", Caltech101)
        assert data.open_images("torchvision:Caltech101:/data").labels.tolist() == [0, 1]
        with pytest.raises(SystemExit, match="Caltech101 of torchvision has no splits: expected torchvision:Caltech101:/data"):
            data.open_images("torchvision:Caltech101:/data:test")

    def test_inaturalist(self, tmp_path: Path) -> None:
        files = ["train_val2018/a/1.jpg", "train_val2018/b/2.jpg"]
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True)
            photo(5).save(tmp_path / file)
        content = {
            "images": [{"id": 7, "file_name": files[0]}, {"id": 8, "file_name": files[1]}],
            "annotations": [{"image_id": 8, "category_id": 0}, {"image_id": 7, "category_id": 2}],
            "categories": [{"id": 0, "name": "owl"}, {"id": 1, "name": "elk"}, {"id": 2, "name": "fox"}],
        }
        (tmp_path / "train2018.json").write_text(json.dumps(content))
        source = ssl("data").open_images(f"inaturalist:{tmp_path}:train")
        assert (source.keys, source.labels.tolist(), source.classes) == (files, [2, 0], ["owl", "elk", "fox"])
        assert source.read(0).size == (20, 20)

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("nowhere/photos", "does not exist: expected an image folder"),
            ("none.parquet", "does not exist"),
            ("torchvision:CIFAR11:/x", r"torchvision has no data set 'CIFAR11'"),
            ("torchvision:CIFAR10:/nowhere", "not found or corrupted"),
            ("torchvision:CIFAR10", "expected torchvision:NAME:ROOT"),
            ("torchvision:CIFAR10:/data:trian", "no split 'trian', expected one of train, test"),
            ("torchvision:CIFAR10:/data:Train", "no split 'Train'"),
            ("torchvision:Places365:/data:test", "no split 'test', expected one of train, train-standard, val"),
            ("inaturalist:/nowhere:train", r"train2018\.json"),
            ("inaturalist:/nowhere", "expected inaturalist:ROOT:SPLIT"),
        ],
    )
    def test_missing(self, name: str, said: str) -> None:
        with pytest.raises(SystemExit, match=said):
            ssl("data").open_images(name)

    def test_a_stray_image_beside_the_classes_is_named(self, tmp_path: Path) -> None:
        write_photos(tmp_path, 4)
        photo(0).save(tmp_path / "stray.png")
        with pytest.warns(UserWarning, match=r"1 of 5 images lie in no subfolder, for example 'stray\.png'"):
            assert ssl("data").open_images(str(tmp_path)).labels is None

    def test_other_classes_are_named(self, tmp_path: Path) -> None:
        opened = [ssl("data").open_images(str(write_photos(tmp_path / str(n), 6, classes=n))) for n in (2, 3)]
        with pytest.raises(SystemExit, match=r"has 2 classes, .* 3: .*only in the first: \[\], only in the second: \['class2'\]"):
            ssl("data").refuse_other_classes(*opened)

    def test_classes_without_names(self) -> None:
        """A Parquet file's classes are numbers then; a test file in which the last ones do not occur fits."""
        opened = {n: ssl("data").Source(str(n), gt.open_source([photo(0)] * n), list(range(n)), [str(i) for i in range(n)]) for n in (2, 3)}
        ssl("data").refuse_other_classes(opened[3], opened[2])
        with pytest.raises(SystemExit, match=r"only in the second: \['2'\]"):
            ssl("data").refuse_other_classes(opened[2], opened[3])

    def test_sources_go_to_spawned_workers(self, tmp_path: Path) -> None:
        again = pickle.loads(pickle.dumps(ssl("data").open_images(str(write_photos(tmp_path, 4)))))
        assert again.read(3).size == (20, 20)
        assert len(again) == 4

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="no images"):
            ssl("data").open_images(str(tmp_path))

    def test_split(self) -> None:
        split = ssl("data").split_rows
        rows, held = split(100, 30, 20)
        assert held.tolist() == list(range(0, 100, 5))
        assert len(rows) == 30
        assert not set(rows.tolist()) & set(held.tolist())
        assert torch.equal(split(100, None, 20)[1], held)
        assert split(10, None, 0)[0].tolist() == list(range(10))
        with pytest.raises(SystemExit, match=r"data\.holdout=10"):
            split(10, None, 10)


class TestMemory:
    def test_squares(self, tmp_path: Path) -> None:
        image = Image.new("RGB", (40, 20), "white")
        image.paste((0, 0, 0), (10, 0, 30, 20))  # the centre square is black
        image.save(tmp_path / "x.png")
        source = ssl("data").open_images(str(tmp_path))
        dataset, rows = ssl("loading").load_into_memory(source, torch.tensor([0]), 8)
        assert dataset.images.shape == (1, 3, 8, 8)
        assert dataset.images.max() == 0
        assert rows.tolist() == [0]
        assert dataset.labels.tolist() == [-1]

    def test_corrupt_images_are_named_and_left_out(self, tmp_path: Path) -> None:
        write_photos(tmp_path, 4, classes=1)
        (tmp_path / "class0" / "001.png").write_bytes(b"broken")
        source = ssl("data").open_images(str(tmp_path))
        with pytest.warns(UserWarning, match=r"1 of 4 images are left out: image 'class0/001.png'"):
            dataset, rows = ssl("loading").load_into_memory(source, torch.arange(4), 8)
        assert rows.tolist() == [0, 2, 3]
        assert len(dataset) == 3

    def test_nothing_readable(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"broken")
        source = ssl("data").open_images(str(tmp_path))
        with pytest.warns(UserWarning, match="left out"), pytest.raises(SystemExit, match="none of the 1 images"):
            ssl("loading").load_into_memory(source, torch.arange(1), 8)


class TestBatches:
    def batches(self, done: int = 0, count: int = 23, size: int = 4, **options: Any) -> Any:
        return ssl("loading").EpochBatches(count, size, 5, lambda: done, **options)

    def test_every_epoch_is_a_shuffle_of_its_own(self) -> None:
        first, second = ([row for batch in self.batches(done) for row, _ in batch] for done in (0, 5))
        for rows in (first, second):
            assert len(rows) == len(set(rows)) == 20
        assert first != second
        assert {epoch for batch in self.batches(5) for _, epoch in batch} == {1}

    @pytest.mark.parametrize("done", [1, 3, 4])
    def test_goes_on_in_the_middle(self, done: int) -> None:
        assert list(self.batches(done)) == list(self.batches(0))[done:]

    def test_devices_share_one_shuffle(self) -> None:
        parts = [list(self.batches(0, count=26, rank=rank, world=3)) for rank in range(3)]
        assert [len(part) for part in parts] == [2, 2, 2]
        rows = [row for part in parts for batch in part for row, _ in batch]
        assert len(set(rows)) == 24
        one = list(self.batches(0, count=26, size=12))
        together = [[sample for part in parts for sample in part[i]] for i in range(2)]
        assert together == one  # as one device with the whole batch

    def test_batch_larger_than_the_data(self) -> None:
        with pytest.raises(SystemExit, match=r"batch_size=4: expected no more than the 3 training images; .*batch_size=2 and more"):
            self.batches(count=3)
        with pytest.raises(SystemExit, match=r"on each of 2 devices: expected no more than the 7"):
            self.batches(count=7, world=2)
        refuse = ssl("loading").refuse_large_batch
        refuse(256, 256)
        with pytest.raises(SystemExit, match=r"give trainer\.batch_size=64 and more trainer\.epochs, or hold .* than data\.holdout=50$"):
            refuse(200, 256, holdout=50)
        with pytest.raises(SystemExit, match=r"more images are needed$"):
            refuse(3, 4, world=2)


class TestFileViews:
    def dataset(self, folder: Path, *overrides: str, **options: Any) -> Any:
        settings = tiny("simclr", f"data.train={folder}", "data.image_size=12", *overrides)
        source = ssl("data").open_images(str(folder))
        return ssl("loading").FileViews(source, torch.arange(len(source)), settings, **options)

    def test_sample(self, tmp_path: Path) -> None:
        sample = self.dataset(write_photos(tmp_path))[(3, 0)]
        assert sample["first"].shape == sample["second"].shape == (3, 12, 12)
        assert sample["first"].dtype == torch.uint8
        assert not torch.equal(sample["first"], sample["second"])
        assert (sample["labels"], sample["rows"], sample["made1"], sample["made2"]) == (0, 3, False, False)

    def test_depends_on_seed_epoch_and_place_alone(self, tmp_path: Path) -> None:
        dataset = self.dataset(write_photos(tmp_path))
        state = torch.get_rng_state()
        first = dataset[(3, 0)]["first"]
        assert torch.equal(state, torch.get_rng_state())
        torch.manual_seed(99)
        assert torch.equal(first, pickle.loads(pickle.dumps(dataset.crops)) and dataset[(3, 0)]["first"])
        assert not torch.equal(first, dataset[(3, 1)]["first"])
        assert not torch.equal(first, self.dataset(tmp_path, "seed=1")[(3, 0)]["first"])

    def test_leaves_the_random_numbers_of_devices_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without workers it is read in the process that trains on a GPU."""
        monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("it seeded all GPUs"))
        monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: pytest.fail("it seeded a GPU"))
        assert self.dataset(write_photos(tmp_path), augment=self.augment(tmp_path), p=lambda epoch: 1.0)[(3, 0)]["made2"]

    def augment(self, folder: Path) -> gt.BankAugment:
        """Variants of one colour each, of the photos in a folder, which are told from them by it."""
        source = ssl("data").open_images(str(folder))

        class Red(FakeGenerator):
            def sample(self, condition: Any, seeds: Tensor) -> Tensor:
                return torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(len(seeds), 3, 16, 16)

        generate_bank(folder, folder.parent / "bank", Red(), variants=2, image_format="png", progress=False)
        assert list(source.keys) == list(Bank.open(folder.parent / "bank").keys)
        return gt.BankAugment(folder.parent / "bank", keys_getter="last", output_size="native")

    def test_variant_with_probability_p(self, tmp_path: Path) -> None:
        augment = self.augment(write_photos(tmp_path / "photos"))
        dataset = self.dataset(tmp_path / "photos", augment=augment, p=lambda epoch: 0.3)
        plain = self.dataset(tmp_path / "photos")
        made = [dataset[(place, epoch)] for epoch in range(20) for place in range(12)]
        share = np.mean([sample["made2"] for sample in made])
        assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 240)
        assert all(sample["made2"] == (int(sample["second"][0].float().mean()) == 255) for sample in made)
        assert not any(sample["made1"] for sample in made)
        for place in range(12):  # what stays real is cropped as without a bank
            sample, other = made[place], plain[(place, 0)]
            assert torch.equal(sample["first"], other["first"])
            assert sample["made2"] or torch.equal(sample["second"], other["second"])

    def test_p_follows_the_epoch(self, tmp_path: Path) -> None:
        augment = self.augment(write_photos(tmp_path / "photos"))
        dataset = pickle.loads(pickle.dumps(self.dataset(tmp_path / "photos", augment=augment, p=float)))
        assert [dataset[(0, epoch)]["made2"] for epoch in (0, 1)] == [False, True]

    def test_corrupt_image_mid_epoch(self, tmp_path: Path) -> None:
        dataset = self.dataset(write_photos(tmp_path, 12, classes=1))
        (tmp_path / "class0" / "004.png").write_bytes(b"broken")
        with pytest.warns(UserWarning, match=r"'class0/004.png'.*the next image takes its place"):
            sample = dataset[(4, 0)]
        assert sample["rows"] == 5

    def test_many_corrupt_images_end_it(self, tmp_path: Path) -> None:
        dataset = self.dataset(write_photos(tmp_path, 12, classes=1))
        for path in tmp_path.rglob("*.png"):
            path.write_bytes(b"broken")
        with pytest.warns(UserWarning, match="takes its place"), pytest.raises(OSError, match="cannot be read"):
            dataset[(0, 0)]


class TestWholeImages:
    def test_corrupt_image(self, tmp_path: Path) -> None:
        """The probes go on, too: the next image takes its place, with its own label."""
        write_photos(tmp_path, 6)
        (tmp_path / "class0" / "004.png").write_bytes(b"broken")
        source = ssl("data").open_images(str(tmp_path))
        at = source.keys.index("class0/004.png")
        whole = ssl("loading").WholeImages(source, torch.arange(6), 16)
        with pytest.warns(UserWarning, match=r"'class0/004.png'.*the next image takes its place"):
            sample = whole[at]
        assert sample["rows"] == at + 1
        assert sample["labels"] == source.labels[at + 1]

    def test_resize_and_centre_crop(self, tmp_path: Path) -> None:
        """224 pixels: 256 on the shorter side, then the centre."""
        image = Image.effect_noise((400, 320), 60).convert("RGB")
        image.save(tmp_path / "x.png")
        source = ssl("data").open_images(str(tmp_path))
        found = ssl("loading").WholeImages(source, torch.tensor([0]), 224)[0]["images"]
        resized = image.resize((320, 256), Image.Resampling.BICUBIC).crop((48, 16, 272, 240))
        difference = found.float() - torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float()
        assert difference.abs().max() <= 1


class TestViews:
    def view(self, size: int = 16, crop: bool = False, **values: Any) -> Any:
        nothing = dict.fromkeys(("jitter_p", "grey_p", "blur_p", "solarise_p", "flip_p"), 0.0)
        return ssl("views").View(ssl("config").ViewSettings(**nothing | values), size, crop=crop)

    def images(self, count: int = 400) -> Tensor:
        return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def share(self, images: Tensor, out: Tensor) -> float:
        return (out != images).flatten(1).any(1).float().mean().item()

    def test_nothing(self) -> None:
        assert torch.equal(self.view()(self.images()), self.images())

    @pytest.mark.parametrize("name", ["jitter_p", "grey_p", "blur_p", "solarise_p", "flip_p"])
    @pytest.mark.parametrize("p", [0.2, 1.0])
    def test_each_image_has_its_own_coin(self, name: str, p: float) -> None:
        share = self.share(self.images(), self.view(**{name: p})(self.images()))
        # The narrowest Gaussians, with a sigma below 0.17, change no float32.
        assert abs(share - p) <= 4 * np.sqrt(p * (1 - p) / 400) + (0.06 * p if name == "blur_p" else 0)

    def test_flip(self) -> None:
        assert torch.equal(self.view(flip_p=1.0)(self.images()), self.images().flip(3))

    def test_solarise(self) -> None:
        images = self.images()
        out = self.view(solarise_p=1.0)(images)
        torch.testing.assert_close(out, torch.where(images >= 0.5, 1 - images, images))

    def test_grey(self) -> None:
        images = self.images()
        luminance = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
        torch.testing.assert_close(self.view(grey_p=1.0)(images), luminance.expand_as(images), atol=1e-3, rtol=0)

    def test_brightness(self) -> None:
        """Each image by a factor of its own, uniform in 0.6 to 1.4."""
        images = torch.full((400, 3, 8, 8), 0.5)
        view = self.view(8, jitter_p=1.0, brightness=0.4, contrast=0.0, saturation=0.0, hue=0.0)
        factors = view(images).mean(dim=(1, 2, 3)) / 0.5
        assert 0.6 <= factors.min() < 0.62
        assert 1.38 < factors.max() <= 1.4001
        assert abs(factors.mean() - 1) < 0.05

    def test_blur_strength(self) -> None:
        """A point spreads as the Gaussians of sigma 0.1 to 2 spread it, cut off at the kernel's edge."""
        point = torch.zeros(60, 3, 224, 224)
        point[:, :, 112, 112] = 1
        out = self.view(224, blur_p=1.0)(point)[:, 0]
        offsets = (torch.arange(224) - 112.0) ** 2
        sigma = (out.sum(1) * offsets).sum(1).div(out.sum((1, 2))).sqrt()
        assert sigma.max() > 1.8
        assert sigma.max() < 2.01
        assert sigma.min() < 0.4

    def test_crop(self) -> None:
        """Of a ramp, the range that is left is the share of the side that was cut out."""
        ramp = torch.linspace(0, 1, 64).view(1, 1, 1, 64).expand(300, 3, 64, 64)
        out = self.view(32, crop=True, crop_scale=[0.25, 0.25])(ramp)
        assert out.shape == (300, 3, 32, 32)
        widths = (out[:, 0, 16, -1] - out[:, 0, 16, 0]) * 63 / 64 + 1 / 64
        assert 0.42 < widths.min() < 0.46  # half the side, times the square root of 3/4 …
        assert 0.54 < widths.max() < 0.6  # … to 4/3
        assert out.min() >= 0
        assert out.max() <= 1

    def test_whole_images_instead_of_crops(self) -> None:
        """With crop_scale [1, 1]: an image of the training size stays as it is, another is resized, and its centre square taken."""
        assert torch.equal(self.view(crop=True, crop_scale=[1.0, 1.0])(self.images()), self.images())
        wide = torch.randint(0, 256, (32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
        expected = Image.fromarray(wide).resize((24, 16), Image.Resampling.BICUBIC).crop((4, 0, 20, 16))
        crop = ssl("crops").worker_crop(ssl("config").ViewSettings(crop_scale=[1.0, 1.0]), 16, "bicubic")
        assert abs(np.asarray(crop(Image.fromarray(wide))).astype(int) - np.asarray(expected)).max() <= 1
        out = self.view(crop=True, crop_scale=[1.0, 1.0])(torch.from_numpy(wide.copy()).permute(2, 0, 1)[None] / 255)[0]
        assert (out * 255 - torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1)).abs().max() <= 2

    def kornias(self, s: Any, size: int) -> nn.Sequential:
        """A view by kornia's own modules, one after the other."""
        kernel = max(3, size // 10 // 2 * 2 + 1)
        return nn.Sequential(
            K.RandomResizedCrop((size, size), scale=tuple(s.crop_scale), resample="BICUBIC", cropping_mode="resample"),
            nn.Hardtanh(0, 1),
            K.ColorJitter(s.brightness, s.contrast, s.saturation, s.hue, p=s.jitter_p),
            K.RandomGrayscale(p=s.grey_p),
            *([K.RandomGaussianBlur((kernel, kernel), tuple(s.blur_sigma), p=s.blur_p)] if s.blur_p else []),
            *([K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=s.solarise_p)] if s.solarise_p else []),
            K.RandomHorizontalFlip(p=s.flip_p),
        )

    def pair(self, preset: str, **values: Any) -> tuple[Any, list[nn.Sequential]]:
        own = {"preset": preset, "view1": values, "view2": values}
        s = ssl("config").build_settings({"augmentation": own, "data": {"train": "none"}}).augmentation
        return ssl("views").TwoClassicViews(s, 16, crop=True), [self.kornias(view, 16) for view in (s.view1, s.view2)]

    @pytest.mark.parametrize("preset", ["symmetric", "asymmetric"])
    @pytest.mark.parametrize("side", [16, 12])
    def test_both_at_once_are_kornias_one_after_the_other(self, preset: str, side: int) -> None:
        """With the same random numbers, whatever the orders of the jitter; the second view's images may be of another size."""
        views, kornias = self.pair(preset)
        first, second, none = torch.rand(6, 3, 16, 16), torch.rand(6, 3, side, 12), torch.zeros(6, dtype=torch.bool)
        for seed in range(4):
            torch.manual_seed(seed)
            found = [*views(first, second, none, none), torch.rand(1)]
            torch.manual_seed(seed)
            expected = [*(view(images).clamp(0, 1) for view, images in zip(kornias, (first, second), strict=True)), torch.rand(1)]
            # The crop is kornia's up to rounding, which the jitter multiplies; around a threshold, solarising makes it more.
            for a, b in zip(found, expected, strict=True):
                assert ((a - b).abs() < 1e-4).float().mean() > 0.999

    @pytest.mark.parametrize(("preset", "share"), [("symmetric", 0.65), ("asymmetric", 0.75)])
    def test_both_at_once_take_fewer_operations(self, preset: str, share: float) -> None:
        views, kornias = self.pair(preset, blur_p=0.0)
        images, none = torch.rand(6, 3, 16, 16), torch.zeros(6, dtype=torch.bool)
        with Operations() as ours:
            views(images, images, none, none)
        with Operations() as theirs:
            for view in kornias:
                view(images)
        assert ours.count < share * theirs.count

    def test_views_of_a_batch_at_once_are_those_of_each(self) -> None:
        """Bit for bit, also where the views differ or leave steps out."""
        for values in ({}, {"jitter_p": 0.0, "flip_p": 0.0}, {"hue": 0.0}, {"crop_scale": [1.0, 1.0], "jitter_p": 1.0}):
            for preset in ("symmetric", "asymmetric"):
                views, _ = self.pair(preset, **values)
                images, none = torch.rand(6, 3, 16, 16), torch.zeros(6, dtype=torch.bool)
                torch.manual_seed(1)
                found = views(images, images, none, none)
                torch.manual_seed(1)
                assert torch.equal(found[0], views.view1(images))
                assert torch.equal(found[1], views.view2(images))

    def test_hues_are_kornias(self) -> None:
        """Also of grey pixels, of those with two equal channels, and by shifts of half a turn."""
        images = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        images[:10] = images[:10].mul(3).round() / 3  # many ties
        images[10:14] = images[10:14, :1]
        turns = torch.linspace(-0.5, 0.5, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
        found = ssl("hue").shift_hue(images, turns)
        torch.testing.assert_close(found, kornia.enhance.adjust_hue(images, turns * 2 * torch.pi), atol=1e-5, rtol=0)
        torch.testing.assert_close(ssl("hue").shift_hue(images, torch.zeros(40)), images, atol=1e-6, rtol=0)
        assert torch.equal(found[10:14], images[10:14])

    @pytest.mark.parametrize("shape", [(12, 12), (8, 12), (9, 5)])
    @pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
    def test_crops_are_kornias(self, shape: tuple[int, int], interpolation: str) -> None:
        images = torch.rand(32, 3, *shape)
        kornias = K.RandomResizedCrop((12, 12), scale=(0.08, 1.0), resample=interpolation.upper(), cropping_mode="resample")
        crop = ssl("crops").device_crop(ssl("config").ViewSettings(), 12, interpolation)
        torch.manual_seed(0)
        found = crop(images)
        torch.manual_seed(0)
        torch.testing.assert_close(found, kornias(images), atol=1e-4, rtol=0)

    @pytest.mark.parametrize("shape", [(16, 16), (20, 48), (40, 9), (64, 64)])
    @pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
    def test_crops_of_larger_images_are_torchvisions(self, shape: tuple[int, int], interpolation: str) -> None:
        """With antialias, as the workers crop real ones: some boxes are larger than the result, some smaller."""
        images = torch.rand(32, 3, *shape)
        crop = ssl("crops").device_crop(ssl("config").ViewSettings(), 12, interpolation)
        torch.manual_seed(0)
        drawn = crop.forward_parameters(images.shape)
        for image, found, corners in zip(images, crop(images, drawn), drawn["src"].long(), strict=True):
            (left, top), (right, bottom) = corners[0].tolist(), corners[2].tolist()
            box = [top, left, bottom - top + 1, right - left + 1]
            expected = F.resized_crop(image, *box, [12, 12], v2.InterpolationMode(interpolation), antialias=True)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    def test_generated_images_show_no_more_texture_than_real_ones(self) -> None:
        """Of an online generator's larger images: their noise would tell the generated view from the real one."""
        torch.manual_seed(0)
        images = torch.rand(64, 1, 96, 96).expand(-1, 3, -1, -1).contiguous()
        settings = ssl("config").ViewSettings(crop_scale=[0.9, 1.0])
        made = ssl("crops").device_crop(settings, 24, "bicubic")(images)
        real = torch.stack([ssl("crops").worker_crop(settings, 24, "bicubic")(image) for image in images])
        assert made.std().item() == pytest.approx(real.std().item(), rel=0.03)

    def test_generated_images_get_their_own(self) -> None:
        s = ssl("config").AugmentationSettings()
        for view in (s.view1, s.view2):
            view.jitter_p, view.grey_p, view.blur_p, view.flip_p = 0.0, 0.0, 0.0, 1.0
        s.generated = ssl("config").ViewSettings(jitter_p=0.0, grey_p=0.0, blur_p=0.0, flip_p=0.0)
        views = ssl("views").TwoClassicViews(s, 16, crop=False)
        images, made = self.images(10), torch.arange(10) % 3 == 0
        for some in (made, torch.zeros(10, dtype=torch.bool), torch.ones(10, dtype=torch.bool)):
            first, second = views(images, images, torch.zeros(10, dtype=torch.bool), some)
            assert torch.equal(first, images.flip(3))
            assert torch.equal(second, torch.where(some[:, None, None, None], images, images.flip(3)))


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """Four variants of each of ten grey images; key k is grey level 20 k."""
    path = tmp_path_factory.mktemp("bank")
    sources = [torch.full((3, 16, 16), 20 * k, dtype=torch.uint8) for k in range(10)]
    generate_bank(sources, path, FakeGenerator(), variants=4, image_format="png", progress=False)
    return Bank.open(path)


class TestBankInTheStep:
    @pytest.mark.parametrize("memory", [None, 0])
    def test_variants_of_the_right_images(self, bank: Bank, memory: int | None) -> None:
        keys = [7, 2, 5]
        augment = ssl("generative").bank_augment(bank, keys, memory=memory)
        rows = torch.tensor([2, 0, 1])
        images = torch.stack([torch.full((3, 16, 16), 20 * keys[row] / 255) for row in rows])
        sample, made = augment({"images": images, "rows": rows}, p=1.0, return_mask=True)
        assert made.all()
        for image, row in zip(sample["images"], rows.tolist(), strict=True):
            possible = bank.read([keys[row]] * 4, [0, 1, 2, 3]).float() / 255
            assert any(torch.allclose(image, variant) for variant in possible)
        sample, made = augment({"images": images, "rows": rows}, p=0.0, return_mask=True)
        assert sample["images"] is images
        assert not made.any()

    def test_read_at_each_step_where_memory_is_short(self, bank: Bank) -> None:
        images, rows = torch.stack([torch.full((3, 16, 16), 20 * key / 255) for key in (7, 5, 4)]), torch.tensor([3, 1, 0])
        results = []
        for memory in (None, 0):
            augment = ssl("generative").bank_augment(bank, [4, 5, 6, 7], memory=memory)
            torch.manual_seed(3)
            results.append(augment({"images": images, "rows": rows}, p=0.7, return_mask=True))
        assert torch.equal(results[0][0]["images"], results[1][0]["images"])
        assert torch.equal(results[0][1], results[1][1])

    def test_memory_is_shared_by_processes(self, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
        variants = 10 * 4 * 3 * 16 * 16  # bytes of the four variants of ten images
        monkeypatch.setattr(ssl("generative").os, "sysconf", {"SC_PHYS_PAGES": variants // 1024 * 4, "SC_PAGE_SIZE": 1024}.__getitem__)
        made: list[bool] = []
        monkeypatch.setattr(gt, "BankAugment", lambda bank, in_memory, **options: made.append(in_memory))
        for processes in (1, 2):
            ssl("generative").bank_augment(bank, [4, 5, 6, 7], processes)
        assert made == [True, False]

    def test_variants_are_chosen_and_weighed_by_scores(self, bank: Bank, tmp_path: Path) -> None:
        """By an expression, by a file, or by weights; images of which none is left stay as they are."""
        rows = [(key, variant) for key in range(10) for variant in range(4)]
        scores = pa.table({
            "key": [key for key, _ in rows], "variant": [v for _, v in rows], "good": [key > 0 and v >= 2 for key, v in rows],
            "score": [float(v == 1) for _, v in rows],
        })  # fmt: skip
        pq.write_table(scores, tmp_path / "scores.parquet")
        bank.select(scores, "good").selection.save(tmp_path / "good.json")
        given, hashes = {"bank": str(bank.path), "scores": str(tmp_path / "scores.parquet")}, []
        for options, allowed in (
            ({"select": "good"}, [2, 3]), ({"select": str(tmp_path / "good.json")}, [2, 3]), ({"weights": "score"}, [1]),
            ({"select": "not good", "weights": "score"}, [1]), ({}, [0, 1, 2, 3]),
        ):  # fmt: skip
            s = ssl("config").GenerativeSettings(source="bank", **given, **options)
            chosen, arguments = ssl("generative").choose_variants(bank, s)
            described = ssl("generative").describe_variants(chosen, s)
            assert (len(described["bank_sha256"]), described["bank_generator"]) == (64, bank.manifest["generator"]["fingerprint"])
            hashes.append(described.get("variants_sha256"))
            augment = ssl("generative").bank_augment(chosen, list(range(10)), **arguments)
            images = torch.full((40, 3, 16, 16), 140 / 255)
            torch.manual_seed(0)
            out, made = augment({"images": images, "rows": torch.full((40,), 7)}, p=1.0, return_mask=True)
            possible = bank.read([7] * len(allowed), allowed).float() / 255
            near = (out["images"][:, None] - possible[None]).abs().amax((2, 3, 4)) < 1e-6
            assert near.any(1).all()
            assert near.any(0).all()
            if options.get("select") in ("good", str(tmp_path / "good.json")):
                out, made = augment({"images": images, "rows": torch.zeros(40, dtype=torch.int64)}, p=1.0, return_mask=True)
                assert not made.any()
                assert torch.equal(out["images"], images)
        assert hashes[0] == hashes[1]
        assert hashes[-1] is None
        assert len(set(hashes)) == 4
        pq.write_table(scores.set_column(3, "score", pa.array([1.0] * 40)), tmp_path / "scores.parquet")
        other = ssl("generative").describe_variants(bank, ssl("config").GenerativeSettings(**given, weights="score"))
        assert other["variants_sha256"] not in hashes

    @pytest.mark.parametrize(("options", "said"), [({"select": "god"}, "no column 'god'"), ({"weights": "good"}, "column is bool")])
    def test_scores_that_say_nothing_of_it(self, bank: Bank, tmp_path: Path, options: dict[str, str], said: str) -> None:
        rows = [(key, variant) for key in range(10) for variant in range(4)]
        pq.write_table(
            pa.table({"key": [k for k, _ in rows], "variant": [v for _, v in rows], "good": [True] * 40}), tmp_path / "s.parquet"
        )
        s = ssl("config").GenerativeSettings(source="bank", bank=str(bank.path), scores=str(tmp_path / "s.parquet"), **options)
        with pytest.raises(SystemExit, match=rf"generative\.select=.*{said}"):
            ssl("generative").choose_variants(bank, s)

    def test_bank_of_another_data_set(self, bank: Bank) -> None:
        refuse = ssl("generative").refuse_foreign
        refuse(bank, [0, 9], "b")
        with pytest.raises(SystemExit, match=r"no images for 2 of the 3 training images, for example 10, 11; its 10 keys are like 0, 1, 2"):
            refuse(bank, [3, 10, 11], "b")
        with pytest.raises(SystemExit, match=r"2 of the 2 training images, for example 'cat/1.png', '1'"):
            refuse(bank, ["cat/1.png", "1"], "b")

    def test_row_numbers_of_another_data_set(self, tmp_path: Path) -> None:
        """Keys fit, images do not: told by their looks, of enough images."""
        sources = torch.randint(256, (40, 3, 1, 1), generator=torch.Generator().manual_seed(0)).expand(-1, -1, 16, 16).to(torch.uint8)
        generate_bank(list(sources), tmp_path, FakeGenerator(), variants=1, progress=False)
        bank, check = Bank.open(tmp_path), ssl("generative").warn_of_strangers
        check(bank, list(range(40)), sources)
        check(bank, list(range(31)), sources[:31].flip(0))  # too few to say
        for others in (sources.flip(0), 255 - sources, torch.zeros_like(sources)):
            with pytest.warns(UserWarning, match="does the bank belong to this data set"):
                check(bank, list(range(40)), others)

    def test_no_bank(self, tmp_path: Path) -> None:
        settings = tiny("simclr", "generative.source=bank", f"generative.bank={tmp_path / 'none'}")
        with pytest.raises(SystemExit, match=r"generative.bank="):
            ssl("generative").open_bank(settings, [0])


class TestOnline:
    def test_unknown_generator(self) -> None:
        with pytest.raises(SystemExit, match=r"generative.generator='no/such/generator'"):
            ssl("generative").load_online(tiny("simclr", "generative.source=online", "generative.generator=no/such/generator").generative)


class TestSchedule:
    def test_p_over_epochs(self) -> None:
        at, settings = ssl("generative").p_at, ssl("config").GenerativeSettings
        assert [at(settings(p=0.7), 5, epoch) for epoch in range(5)] == [0.7] * 5
        assert [at(settings(p=0.0, p_end=1.0), 5, epoch) for epoch in range(6)] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
        assert [at(settings(p=1.0, p_end=0.5), 2, epoch) for epoch in range(2)] == [1.0, 0.5]
