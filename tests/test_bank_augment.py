"""BankAugment: which images it replaces, by which variants, in what it is given, and in a training loop."""

from __future__ import annotations

import collections
import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from small_banks import KEYS, SIZE, encoded, make_bank, pixels, png
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

import gentransforms as gt
from gentransforms.bank.reader import Bank
from gentransforms.errors import BankError, ConfigError, ImageError, MissingKeyError
from gentransforms.sources.sample_keys import RowKey
from gentransforms.testing import FakeGenerator, check_transform
from gentransforms.transforms.bank import BankAugment

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

GREY = torch.full((3, *SIZE), 200, dtype=torch.uint8)  # no image of the bank: its columns differ


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """10 sources of 3 variants."""
    return Bank.open(make_bank(tmp_path_factory.mktemp("bank") / "bank"))


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """The same with the keys 0 to 9."""
    return Bank.open(make_bank(tmp_path_factory.mktemp("bank") / "numbered", keys=list(range(10))))


@pytest.fixture(scope="module")
def gappy(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """Source 0 failed, source 2 has variants 0 and 2, source 9 none."""
    rejected = {(2, 1): "far", **{(9, v): "far" for v in range(3)}}
    path = make_bank(tmp_path_factory.mktemp("bank") / "gappy", keys=list(range(10)), failed={0: "truncated"}, rejected=rejected)
    return Bank.open(path)


def by_position(bank: Any, p: float = 0.5, **options: Any) -> BankAugment:
    """A transform of samples whose last element is the key."""
    return BankAugment(bank, p, **{"keys_getter": "last"} | options)


def number_of(sample: Any) -> Any:
    return sample[1]


def changed(image: Any) -> bool:
    return not GREY.equal(image if isinstance(image, Tensor) else TF.pil_to_tensor(image))


def is_variant(image: Tensor, position: int) -> bool:
    """Whether an image of the bank's size is one of a source's variants."""
    return any(image.equal(pixels(position, v)) for v in range(3))


class TestArguments:
    @pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), "0.5", None, True])
    def test_p_is_a_probability(self, bank: Bank, p: Any) -> None:
        with pytest.raises(ConfigError, match=r"p=.*expected a number in \[0, 1\]"):
            BankAugment(bank, p)

    @pytest.mark.parametrize("size", ["", "Native", 8, (8,), (0, 8), (8.0, 8), None])
    def test_output_size_is_one_of_these(self, bank: Bank, size: Any) -> None:
        with pytest.raises(ConfigError, match=r'output_size=.*expected "input", "generator", "native" or \(height, width\)'):
            BankAugment(bank, output_size=size)

    @pytest.mark.parametrize("missing", ["", "Error", None, True])
    def test_missing_is_one_of_these(self, bank: Bank, missing: Any) -> None:
        with pytest.raises(ConfigError, match=r'missing=.*expected "error" or "source"'):
            BankAugment(bank, missing=missing)

    @pytest.mark.parametrize("getter", [3, "key", "first", {}])
    def test_a_getter_is_a_function(self, bank: Bank, getter: Any) -> None:
        with pytest.raises(ConfigError, match=r"keys_getter=.*expected a function"):
            BankAugment(bank, keys_getter=getter)

    @pytest.mark.parametrize("other", [None, 3, {"bank"}, FakeGenerator])
    def test_a_bank_is_a_bank_or_its_path(self, other: Any) -> None:
        with pytest.raises(ConfigError, match=r"bank=.*expected a Bank"):
            BankAugment(other)

    def test_opens_a_path(self, bank: Bank, tmp_path: Path) -> None:
        assert BankAugment(str(bank.path)).banks[0].keys == BankAugment(bank.path).banks[0].keys == bank.keys
        with pytest.raises(BankError, match="no such directory"):
            BankAugment(tmp_path / "none")

    def test_is_a_torchvision_transform_and_prints_as_one(self, bank: Bank) -> None:
        augment = BankAugment(bank)
        assert isinstance(augment, v2.Transform)
        assert (augment.p, augment.missing, augment.output_size) == (0.5, "error", "input")
        assert "\n" not in repr(augment)
        for part in ("BankAugment(Bank(", "p=0.5", "output_size='input'", "missing='error'"):
            assert part in repr(augment)

    def test_has_nothing_to_train_or_save(self, bank: Bank) -> None:
        augment = BankAugment(bank)
        assert list(augment.parameters()) == []
        assert augment.state_dict() == {}


class TestKeys:
    def test_entry_of_a_dict(self, bank: Bank) -> None:
        sample = {"image": GREY, "label": 7, "key": KEYS[3]}
        result = BankAugment(bank, 1.0)(sample)
        assert is_variant(result["image"], 3)
        assert (result["label"], result["key"], list(result)) == (7, KEYS[3], list(sample))
        assert sample["image"] is GREY

    @pytest.mark.parametrize("sample", [(GREY, 7, KEYS[3]), (GREY, KEYS[3]), [GREY, KEYS[3]], ({"image": GREY}, KEYS[3])])
    def test_last_of_a_tuple_or_list_if_asked_for(self, bank: Bank, sample: Any) -> None:
        result = BankAugment(bank, 1.0, keys_getter="last")(sample)
        assert is_variant(result[0]["image"] if isinstance(result[0], dict) else result[0], 3)
        assert type(result) is type(sample)
        assert list(result[1:]) == list(sample[1:])
        with pytest.raises(ConfigError, match=r'with_keys.* entry "key".*keys_getter="last"'):
            BankAugment(bank, 1.0)(sample)

    def test_last_of_the_arguments(self, bank: Bank) -> None:
        image, key = BankAugment(bank, 1.0, keys_getter="last")(GREY, KEYS[3])
        assert is_variant(image, 3)
        assert key == KEYS[3]

    @pytest.mark.parametrize("sample", [GREY, {"image": GREY}, (GREY,), PIL.Image.new("RGB", (6, 4))])
    def test_last_of_what_has_no_last(self, bank: Bank, sample: Any) -> None:
        augment = BankAugment(bank, 1.0, keys_getter="last")
        with pytest.raises(ConfigError, match=r'keys_getter="last".*expected a tuple or list'):
            augment(sample)

    @pytest.mark.parametrize("kind", [list, tuple])
    def test_one_for_each_image_of_a_batch(self, bank: Bank, kind: Any) -> None:
        images, keys = by_position(bank, 1.0)([torch.stack([GREY] * 4), kind(KEYS[2:6])])
        assert keys == kind(KEYS[2:6])
        assert all(is_variant(images[i], i + 2) for i in range(4))

    @pytest.mark.parametrize("kind", [torch.tensor, np.array, list, lambda keys: torch.tensor(keys, dtype=torch.int32)])
    def test_numbers_as_a_loader_collates_them(self, numbered: Bank, kind: Any) -> None:
        images, _ = by_position(numbered, 1.0)(torch.stack([GREY] * 3), kind([8, 1, 8]))
        assert [int(image[0, 0, 0]) for image in images] == [8, 1, 8]

    @pytest.mark.parametrize("image", [GREY, tv_tensors.Image(GREY), TF.to_pil_image(GREY)], ids=["tensor", "tv", "PIL"])
    @pytest.mark.parametrize("key", [4, np.int64(4), torch.tensor(4), torch.tensor([4]), [4], KEYS[4]])
    def test_what_may_be_a_label_is_never_a_key(self, numbered: Bank, bank: Bank, image: Any, key: Any) -> None:
        for sample in ((image, key), [image, key], (image, 7, key), {"image": image, "label": key}):
            for either in (numbered, bank):
                with pytest.raises(ConfigError, match=r"no key is marked .*with_keys.*keys_getter="):
                    BankAugment(either, 1.0)(sample)
                with pytest.raises(ConfigError, match="no key is marked"):
                    BankAugment(either, 0.0, missing="source")(sample)
        assert changed(BankAugment(bank if isinstance(key, str) else numbered, 1.0, keys_getter=number_of)((image, key))[0])
        assert changed(BankAugment(bank if isinstance(key, str) else numbered, 1.0)({"image": image, "key": key})["image"])

    @pytest.mark.parametrize("workers", [0, 1])
    def test_labels_of_a_plain_loader_are_never_keys(self, numbered: Bank, workers: int) -> None:
        # Each label is a key of the bank: taken for one, it would bring another image's variant, and nobody would know.
        batch = next(iter(DataLoader([(GREY, 9 - i) for i in range(10)], batch_size=10, num_workers=workers)))
        with pytest.raises(ConfigError, match="no key is marked"):
            BankAugment(numbered, 1.0)(batch)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_numbers_of_with_keys(self, numbered: Bank, workers: int) -> None:
        augment = BankAugment(numbered, 1.0)
        bare = gt.with_keys([GREY] * 10)
        assert is_variant(augment(bare[4])[0], 4)
        assert is_variant(augment(list(bare[4]))[0], 4)
        assert is_variant(augment(GREY, [bare[4][1]])[0], 4)
        assert is_variant(augment(pickle.loads(pickle.dumps(bare[4])))[0], 4)
        labelled = gt.with_keys([(GREY, 9 - i) for i in range(10)], transform=augment)
        assert all(is_variant(labelled[i][0], i) for i in range(10))
        images, keys = augment(next(iter(DataLoader(bare, batch_size=10, num_workers=workers))))
        assert (keys.dtype, keys.tolist()) == (torch.int64, list(range(10)))
        assert all(is_variant(image, i) for i, image in enumerate(images))

    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("named", [False, True])
    def test_batches_of_with_keys_beside_labels(self, bank: Bank, numbered: Bank, named: bool, workers: int) -> None:
        keyed = gt.with_keys([(GREY, 9 - i) for i in range(10)], key=KEYS if named else None)
        batch = next(iter(DataLoader(keyed, batch_size=10, num_workers=workers)))
        images, labels, keys = BankAugment(bank if named else numbered, 1.0)(batch)
        assert labels.tolist() == list(range(9, -1, -1))
        assert list(keys) == (KEYS if named else list(range(10)))
        assert all(is_variant(image, i) for i, image in enumerate(images))

    def test_dicts_of_with_keys_in_batches(self, numbered: Bank) -> None:
        keyed = gt.with_keys([{"image": GREY, "label": 9 - i} for i in range(10)])
        batch = BankAugment(numbered, 1.0)(next(iter(DataLoader(keyed, batch_size=10))))
        assert all(is_variant(image, i) for i, image in enumerate(batch["image"]))

    def test_wherever_the_marked_key_stands(self, numbered: Bank) -> None:
        _, key = gt.with_keys([GREY] * 10)[4]
        for sample in ((key, GREY), {"image": GREY, "target": (3, key)}, ((GREY, 3), [key])):
            leaves = torch.utils._pytree.tree_leaves(BankAugment(numbered, 1.0)(sample))
            assert is_variant(next(leaf for leaf in leaves if isinstance(leaf, Tensor)), 4)

    def test_keys_on_their_way_to_a_device_and_what_is_computed_with_them(self, numbered: Bank) -> None:
        _, keys = next(iter(DataLoader(gt.with_keys([GREY] * 10), batch_size=10)))
        for moved in (keys.to("cpu", non_blocking=True), keys.clone(), keys[:10], keys.to(torch.int32), copy.deepcopy(keys)):
            assert is_variant(BankAugment(numbered, 1.0)(torch.stack([GREY] * 10), moved)[0][4], 4)
        labels = torch.arange(10).flip(0)[keys]  # looked up by the keys, and no keys themselves
        for others in (labels, keys % 2, keys + 0, keys.float()):
            with pytest.raises(ConfigError, match="no key is marked"):
                BankAugment(numbered, 1.0)(torch.stack([GREY] * 10), others)

    def test_of_a_batch_with_leading_dimensions(self, numbered: Bank) -> None:
        images, _ = by_position(numbered, 1.0)(GREY.expand(2, 3, 3, *SIZE), torch.arange(6).view(2, 3))
        assert images[..., 0, 0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]

    def test_of_several_images_in_one_sample(self, bank: Bank) -> None:
        augment = BankAugment(bank, 1.0, keys_getter=lambda sample: sample["keys"])
        pair = [tv_tensors.Image(GREY), tv_tensors.Image(torch.stack([GREY, GREY]))]
        result = augment({"pair": pair, "keys": KEYS[:3]})["pair"]
        assert is_variant(result[0], 0)
        assert is_variant(result[1][0], 1)
        assert is_variant(result[1][1], 2)

    def test_by_a_getter(self, bank: Bank) -> None:
        augment = BankAugment(bank, 1.0, keys_getter=lambda sample: KEYS[sample["row"]])
        assert is_variant(augment({"image": GREY, "row": 6})["image"], 6)

    @pytest.mark.parametrize("sample", [GREY, (GREY,), [GREY], {"image": GREY, "id": "x"}, PIL.Image.new("RGB", (6, 4))])
    def test_a_sample_without_key_is_told_of_with_keys(self, bank: Bank, sample: Any) -> None:
        with pytest.raises(ConfigError, match=r"with_keys.*keys_getter="):
            BankAugment(bank)(sample)

    @pytest.mark.parametrize(("keys", "count"), [([KEYS[0]], 1), (KEYS[:3], 3), ([], 0), (KEYS[0], 1)])
    def test_another_number_of_keys_than_images(self, bank: Bank, keys: Any, count: int) -> None:
        with pytest.raises(ConfigError, match=f"{count} keys for 2 images"):
            by_position(bank)(torch.stack([GREY] * 2), keys)

    @pytest.mark.parametrize("key", [1.5, None, True, torch.tensor(1.0), torch.tensor(True), b"a", object()])
    def test_a_key_of_no_kind(self, numbered: Bank, key: Any) -> None:
        for augment, sample in ((by_position(numbered), (GREY, key)), (BankAugment(numbered), {"image": GREY, "key": key})):
            with pytest.raises(ConfigError, match="expected keys that are str or int"):
                augment(sample)

    @pytest.mark.filterwarnings("ignore:.*found no image")
    def test_a_sample_without_image_passes(self, bank: Bank) -> None:
        sample = {"label": 3, "text": "a"}
        assert BankAugment(bank)(sample) == sample


class TestMissing:
    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_an_unknown_key_is_an_error_whatever_its_coin_says(self, bank: Bank, p: float) -> None:
        with pytest.raises(MissingKeyError, match=r'key \'birds/1\.jpg\' is not in this bank.*missing="source" in BankAugment'):
            by_position(bank, p)(GREY, "birds/1.jpg")

    @pytest.mark.parametrize(
        ("key", "why"), [(RowKey(0), r"could not be read \(truncated\)"), (RowKey(9), r"rejected after 5 attempts"), ("1", "1 is")]
    )
    def test_why_it_has_none_is_said(self, gappy: Bank, key: Any, why: str) -> None:
        with pytest.raises(MissingKeyError, match=why):
            by_position(gappy)(GREY, key)

    def test_the_source_instead(self, gappy: Bank) -> None:
        augment = by_position(gappy, 1.0, missing="source")
        images, _ = augment(torch.stack([GREY] * 5), [0, 1, 9, 77, 3])
        assert [image.equal(GREY) for image in images] == [True, False, True, True, False]
        assert is_variant(images[1], 1)
        assert is_variant(images[4], 3)
        assert augment.missing_count == 3
        sole = augment((tv_tensors.Image(GREY), RowKey(0)))[0]
        assert sole.equal(GREY)
        assert augment.missing_count == 4

    def test_only_images_that_were_to_be_replaced_are_counted(self, bank: Bank) -> None:
        augment = by_position(bank, 0.0, missing="source")
        augment(GREY, "unknown")
        assert augment.missing_count == 0

    def test_variants_come_from_those_that_are_there(self, gappy: Bank) -> None:
        images, _ = by_position(gappy, 1.0)(GREY.expand(200, 3, *SIZE), [2] * 200)
        counts = collections.Counter(images[:, 1, 0, 0].tolist())
        assert set(counts) == {0, 2}
        assert 70 < counts[0] < 130  # 4.2 standard deviations

    def test_an_image_that_does_not_decode(self, tmp_path: Path) -> None:
        make_bank(tmp_path, image=lambda i, v: b"text" if i == 5 else png(i, v))
        augment = by_position(tmp_path, 1.0)
        assert is_variant(augment(GREY, KEYS[4])[0], 4)
        with pytest.raises(BankError, match="cannot be decoded"):
            augment(GREY, KEYS[5])


class TestCall:
    def test_p_and_the_mask(self, numbered: Bank) -> None:
        augment, batch = by_position(numbered, 0.5), torch.stack([GREY] * 10)
        (images, _), mask = augment(batch, torch.arange(10), return_mask=True)
        assert mask.tolist() == [changed(image) for image in images]
        for p in (0.0, 1.0):
            (images, _), mask = augment(batch, torch.arange(10), p=p, return_mask=True)
            assert mask.tolist() == [bool(p)] * 10
            assert [changed(image) for image in images] == [bool(p)] * 10
        assert augment.p == 0.5

    def test_what_is_missing_was_not_replaced(self, gappy: Bank) -> None:
        (images, _), mask = by_position(gappy, 1.0, missing="source")(torch.stack([GREY] * 5), [0, 1, 9, 77, 3], return_mask=True)
        assert mask.tolist() == [changed(image) for image in images] == [False, True, False, False, True]


class TestChance:
    @pytest.mark.parametrize("p", [0.0, 0.2, 0.7, 1.0])
    def test_p_is_respected_image_by_image(self, numbered: Bank, p: float) -> None:
        count = 4000
        images, _ = by_position(numbered, p)(GREY.expand(count, 3, *SIZE), torch.zeros(count, dtype=torch.int64))
        replaced = (images[:, 0, 0, 0] == 0).sum().item()
        assert abs(replaced - p * count) <= 4.5 * (count * p * (1 - p)) ** 0.5
        assert all(image.equal(GREY) for image in images[images[:, 0, 0, 0] != 0][:20])

    def test_variants_are_uniform(self, tmp_path: Path) -> None:
        bank = Bank.open(make_bank(tmp_path, keys=[0, 1], variants=10))
        count = 5000
        images, _ = by_position(bank, 1.0)(GREY.expand(count, 3, *SIZE), torch.arange(count) % 2)
        for key in (0, 1):
            observed = torch.bincount(images[key::2, 1, 0, 0].int(), minlength=10).double()
            expected = count / 2 / 10
            assert ((observed - expected) ** 2 / expected).sum() < 33.7  # chi-square of 9 degrees, 1 in 10,000

    def test_coin_and_variant_are_independent(self, numbered: Bank) -> None:
        # Variants of the images that a small p chooses: a variant that depended on the selection would always be the first.
        images, _ = by_position(numbered, 0.1)(GREY.expand(6000, 3, *SIZE), torch.zeros(6000, dtype=torch.int64))
        observed = torch.bincount(images[images[:, 0, 0, 0] == 0][:, 1, 0, 0].int(), minlength=3).double()
        assert ((observed - observed.mean()) ** 2 / observed.mean()).sum() < 18.5  # chi-square of 2 degrees, 1 in 10,000

    def test_each_step_draws_anew_and_manual_seed_reproduces(self, numbered: Bank) -> None:
        augment, batch, keys = by_position(numbered, 0.5), GREY.expand(10, 3, *SIZE), torch.arange(10)
        torch.manual_seed(4)
        first, second = augment(batch, keys)[0], augment(batch, keys)[0]
        assert not first.equal(second)
        torch.manual_seed(4)
        assert augment(batch, keys)[0].equal(first)
        assert augment(batch, keys)[0].equal(second)

    @pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
    def test_the_random_stream_goes_on_alike_for_every_p_and_for_the_online_generator(self, gappy: Bank, p: float) -> None:
        batch, keys = GREY.expand(7, 3, *SIZE), [0, 1, 2, 3, 4, 5, 99]
        torch.manual_seed(1)
        gt.GenerativeAugment(FakeGenerator(), 0.5)(batch)
        expected = torch.rand(3)
        torch.manual_seed(1)
        by_position(gappy, p, missing="source")(batch, keys)
        assert torch.rand(3).equal(expected)

    def test_the_same_images_are_chosen_as_by_the_online_generator(self, numbered: Bank) -> None:
        batch = GREY.expand(50, 3, *SIZE)
        torch.manual_seed(1)
        online = gt.GenerativeAugment(FakeGenerator(), 0.5)(batch)
        torch.manual_seed(1)
        read, _ = by_position(numbered, 0.5)(batch, torch.arange(50) % 10)
        changed = [(images != GREY).flatten(1).any(dim=1).tolist() for images in (online, read)]
        assert changed[0] == changed[1]
        assert 0 < sum(changed[0]) < 50

    def test_a_batch_of_one_and_a_single_image_agree(self, numbered: Bank) -> None:
        augment = by_position(numbered, 1.0)
        torch.manual_seed(2)
        alone = augment(GREY, RowKey(3))[0]
        torch.manual_seed(2)
        assert augment(GREY[None], [3])[0][0].equal(alone)

    def test_params_say_what_was_drawn(self, numbered: Bank) -> None:
        augment = by_position(numbered, 0.5)
        params = augment.make_params([GREY.expand(5, 3, *SIZE)])
        assert (params["chosen"].shape, params["chosen"].dtype) == ((5,), torch.bool)
        assert (params["uniforms"].shape, params["uniforms"].dtype) == ((5,), torch.float64)
        params = {"chosen": torch.tensor([True, False]), "uniforms": torch.tensor([1 - 2**-53, 0.5], dtype=torch.float64), "keys": [4, 5]}
        images = augment.transform(torch.stack([GREY, GREY]), params)
        assert images.equal(torch.stack([pixels(4, 2), GREY]))

    @pytest.mark.parametrize("kind", ["meta", "cpu"])
    def test_whatever_torchs_default_device_is(self, numbered: Bank, kind: str) -> None:
        with torch.device(kind):
            image, _ = by_position(numbered, 1.0)(GREY, RowKey(3))
        assert is_variant(image, 3)


class TestImages:
    def test_passes_the_battery(self, bank: Bank) -> None:
        def keys(sample: Any) -> list[str]:
            images = [x for x in torch.utils._pytree.tree_leaves(sample) if isinstance(x, PIL.Image.Image) or getattr(x, "ndim", 0) > 2]
            return [KEYS[i % 10] for i in range(1 if isinstance(images[0], PIL.Image.Image) else images[0].shape[:-3].numel())]

        for p in (0.0, 0.5, 1.0):
            check_transform(by_position(bank, p, keys_getter=keys))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("wrap", [lambda image: image, tv_tensors.Image])
    def test_every_dtype_has_the_same_image(self, bank: Bank, dtype: torch.dtype, wrap: Any) -> None:
        image, _ = by_position(bank, 1.0)((wrap(TF.to_dtype(GREY, dtype, scale=True)), KEYS[3]))
        assert image.dtype == dtype
        assert type(image) is type(wrap(GREY))
        variant = next(pixels(3, v) for v in range(3) if round(float(image[1, 0, 0]) * (1 if dtype == torch.uint8 else 255)) == v)
        torch.testing.assert_close(image.as_subclass(Tensor).double(), TF.to_dtype(variant, dtype, scale=True).double(), atol=1e-2, rtol=0)

    def test_a_pil_image(self, bank: Bank) -> None:
        image, _ = by_position(bank, 1.0)(PIL.Image.new("RGB", SIZE[::-1], "white"), KEYS[3])
        assert isinstance(image, PIL.Image.Image)
        assert is_variant(TF.pil_to_tensor(image), 3)

    def test_a_grey_image_stays_grey(self, bank: Bank) -> None:
        luma = torch.stack([PIL_luma(pixels(3, v)) for v in range(3)])
        for image in (torch.full((1, *SIZE), 200, dtype=torch.uint8), PIL.Image.new("L", SIZE[::-1], 200)):
            made, _ = by_position(bank, 1.0)(image, KEYS[3])
            made = made if isinstance(made, Tensor) else TF.pil_to_tensor(made)
            assert made.shape == (1, *SIZE)
            assert min((made.int() - one.int()).abs().max().item() for one in luma) <= 1

    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    def test_nothing_is_modified(self, numbered: Bank, p: float) -> None:
        batch = torch.stack([GREY] * 6)
        by_position(numbered, p)(batch, torch.arange(6))
        assert batch.equal(torch.stack([GREY] * 6))

    def test_an_image_that_stays_is_the_very_same(self, bank: Bank) -> None:
        picture = PIL.Image.new("RGB", (9, 9))
        assert by_position(bank, 0.0)((picture, KEYS[0]))[0] is picture
        assert by_position(bank, 0.0)((GREY, KEYS[0]))[0] is GREY

    def test_an_empty_batch(self, bank: Bank) -> None:
        images, _ = by_position(bank, 1.0)(torch.zeros(0, 3, 8, 8), [])
        assert images.shape == (0, 3, 8, 8)

    @pytest.mark.parametrize("image", [torch.full((3, 8, 8), 2.0), torch.full((3, 8, 8), float("nan"))])
    def test_floating_images_out_of_range(self, bank: Bank, image: Tensor) -> None:
        with pytest.raises(ImageError, match="floating image with"):
            by_position(bank)(image, KEYS[0])

    def test_another_mode_or_shape(self, bank: Bank) -> None:
        with pytest.raises(ImageError, match=r"use image\.convert"):
            by_position(bank)(PIL.Image.new("CMYK", (8, 8)), KEYS[0])
        with pytest.raises(ImageError, match="looks like"):
            by_position(bank)(torch.zeros(8, 8, 3), KEYS[0])

    def test_a_gradient_flows_to_a_source_that_was_kept(self, numbered: Bank) -> None:
        batch = torch.full((20, 3, *SIZE), 0.5, requires_grad=True)
        images, _ = by_position(numbered, 0.5)(batch, [0] * 20)
        images.sum().backward()
        assert batch.grad is not None
        assert batch.grad.flatten(1).any(dim=1).tolist() == (images == 0.5).flatten(1).all(dim=1).tolist()

    @pytest.mark.gpu
    def test_on_another_device(self, numbered: Bank) -> None:
        batch = torch.stack([GREY] * 10)
        for p in (0.0, 0.5, 1.0):
            torch.manual_seed(3)
            expected, _ = by_position(numbered, p)(batch, torch.arange(10))
            torch.manual_seed(3)
            images, _ = by_position(numbered, p)(batch.cuda(), torch.arange(10, device="cuda"))
            assert images.is_cuda
            assert images.cpu().equal(expected)


def PIL_luma(image: Tensor) -> Tensor:
    grey: Tensor = TF.pil_to_tensor(TF.to_pil_image(image).convert("L"))
    return grey


class TestCompanions:
    BOXES = tv_tensors.BoundingBoxes(torch.tensor([[0, 0, 2, 2]]), format="XYXY", canvas_size=SIZE)
    MASK = tv_tensors.Mask(torch.zeros(1, *SIZE))
    POINTS = tv_tensors.KeyPoints(torch.tensor([[1, 1]]), canvas_size=SIZE)

    @pytest.mark.parametrize("companion", [BOXES, MASK, POINTS], ids=lambda c: type(c).__name__)
    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_refused_where_the_layout_was_not_kept(self, bank: Bank, companion: Any, p: float) -> None:
        with pytest.raises(ImageError, match=rf"tv_tensors\.{type(companion).__name__} and Painter, which made this bank"):
            by_position(bank, p)({"image": GREY, "target": companion, "key": KEYS[0]})

    @pytest.mark.parametrize("companion", [BOXES, MASK, POINTS], ids=lambda c: type(c).__name__)
    def test_pass_where_it_was(self, tmp_path: Path, companion: Any) -> None:
        augment = BankAugment(make_bank(tmp_path, preserves_geometry=True), 1.0)
        result = augment({"image": GREY, "target": companion, "key": KEYS[0]})
        assert result["target"] is companion
        assert is_variant(result["image"], 0)
        for size in ("generator", "native", (4, 6)):
            with pytest.raises(ImageError, match="output_size="):
                BankAugment(tmp_path, output_size=size)({"image": GREY, "target": companion, "key": KEYS[0]})  # type: ignore[arg-type]

    def test_video_is_refused(self, bank: Bank) -> None:
        with pytest.raises(ImageError, match=r"tv_tensors\.Video"):
            by_position(bank)((tv_tensors.Video(torch.zeros(5, 3, 8, 8)), KEYS[0]))


class TestSizes:
    def test_input_stretches_the_variant_to_the_image(self, bank: Bank) -> None:
        image, _ = by_position(bank, 1.0)(torch.zeros(3, 8, 12), KEYS[3])
        assert image.shape == (3, 8, 12)
        torch.testing.assert_close(image[0], torch.full((8, 12), 3 / 255))
        assert image[2].diff(dim=1).min() >= 0  # the blue ramp

    @pytest.mark.parametrize(("size", "expected"), [("generator", SIZE), ((10, 14), (10, 14)), ([3, 3], (3, 3))])
    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    def test_generator_and_numbers_size_every_image(self, numbered: Bank, size: Any, expected: tuple[int, int], p: float) -> None:
        images, _ = by_position(numbered, p, output_size=size)(torch.zeros(12, 3, 9, 9, dtype=torch.uint8), torch.arange(12) % 10)
        assert images.shape == (12, 3, *expected)

    def test_an_image_that_stays_is_cut_as_the_generator_saw_it(self, bank: Bank) -> None:
        # 4 x 6 of a 12 x 12 image: rows 2 to 9, where this image is white.
        image = torch.zeros(3, 12, 12, dtype=torch.uint8)
        image[:, 2:10] = 255
        kept, _ = by_position(bank, 0.0, output_size="generator")(image, KEYS[0])
        assert kept.shape == (3, *SIZE)
        assert kept.eq(255).all()

    def test_native_leaves_the_image_or_gives_the_variant(self, bank: Bank) -> None:
        picture = PIL.Image.new("RGB", (20, 30))
        always, never = (by_position(bank, p, output_size="native") for p in (1.0, 0.0))
        assert is_variant(TF.pil_to_tensor(always(picture, KEYS[3])[0]), 3)
        assert never(picture, KEYS[3])[0] is picture
        assert is_variant(always(torch.zeros(3, 30, 20, dtype=torch.uint8), KEYS[3])[0], 3)
        half = by_position(bank, 0.5, output_size="native")
        sizes = {half(picture, KEYS[3])[0].size for _ in range(20)}
        assert sizes == {(20, 30), SIZE[::-1]}

    def test_native_of_batches(self, numbered: Bank) -> None:
        batch, keys = torch.zeros(6, 3, 9, 9, dtype=torch.uint8), list(range(6))
        assert by_position(numbered, 1.0, output_size="native")(batch, keys)[0].shape == (6, 3, *SIZE)
        assert by_position(numbered, 0.0, output_size="native")(batch, keys)[0] is batch
        same = torch.stack([GREY] * 6)
        assert by_position(numbered, 0.5, output_size="native")(same, keys)[0].shape == same.shape

    def test_native_never_mixes_sizes_in_a_batch(self, numbered: Bank) -> None:
        batch, keys = torch.zeros(2, 3, 9, 9, dtype=torch.uint8), [1, 2]
        augment = by_position(numbered, 0.01, output_size="native")
        with pytest.raises(ConfigError, match=r'would mix 4 x 6 variants with 9 x 9 images in one batch: use output_size="generator"'):
            augment(batch, keys)
        with pytest.raises(ConfigError, match="would mix"):
            by_position(numbered, 1.0, missing="source", output_size="native")(batch, [1, 99])


class Photos(Dataset[Any]):
    """Transformed samples of one source image with their key."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Any:
        return self.transform((GREY, RowKey(index % 10)))


def epoch(dataset: Dataset[Any], context: str = "fork", workers: int = 2) -> Tensor:
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, multiprocessing_context=context if workers else None)
    images: Tensor = torch.cat([batch[0] for batch in loader])
    return images


class TestInMemory:
    @pytest.mark.parametrize("size", ["input", "generator", "native", (8, 8)])
    def test_reads_the_same(self, gappy: Bank, size: Any) -> None:
        batch, keys = torch.stack([GREY] * 12), [*range(10), 2, 77]
        results = []
        for in_memory in (False, True):
            augment = by_position(gappy, 0.8, missing="source", output_size=size, in_memory=in_memory)
            torch.manual_seed(1)
            results.append(augment(batch, keys, return_mask=True))
        (one, _), mask = results[0]
        (other, _), same = results[1]
        assert other.equal(one)
        assert same.equal(mask)
        assert mask.any()

    def test_copies_and_pickles(self, numbered: Bank) -> None:
        augment = by_position(numbered, 1.0, in_memory=True)
        for again in (pickle.loads(pickle.dumps(augment)), copy.deepcopy(augment)):
            assert is_variant(again(GREY, 4)[0], 4)

    def test_decodes_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        bank = Bank.open(make_bank(tmp_path, keys=list(range(10))))
        augment = by_position(bank, 1.0, in_memory=True)
        monkeypatch.setattr(Bank, "read", lambda *_: pytest.fail("the bank is read in the call"))
        assert is_variant(augment(GREY, 4)[0], 4)


class TestLoops:
    def test_in_a_compose_with_classic_augmentations(self, bank: Bank) -> None:
        view = v2.Compose([by_position(bank, 1.0), v2.RandomHorizontalFlip(1.0), v2.ToDtype(torch.float32, scale=True)])
        image, key = view(GREY, KEYS[3])
        assert is_variant((image.flip(-1) * 255).round().to(torch.uint8), 3)
        assert key == KEYS[3]

    def test_two_views_of_one_image(self, numbered: Bank) -> None:
        views = gt.TwoViews(by_position(numbered, 1.0), v2.RandomHorizontalFlip(1.0), None)
        (real, _), (generated, key) = views((torch.stack([GREY] * 3), torch.tensor([4, 5, 6])))
        assert real.equal(torch.stack([GREY] * 3))
        assert [is_variant(image, i) for image, i in zip(generated, key.tolist(), strict=True)] == [True] * 3

    def test_p_for_each_sample_and_step(self, numbered: Bank) -> None:
        views = gt.TwoViews(by_position(numbered, 0.5))
        replaced = [not views((GREY, RowKey(1)))[1][0].equal(GREY) for _ in range(200)]
        assert 70 < sum(replaced) < 130

    def test_workers_and_epochs_differ_and_manual_seed_reproduces(self, tmp_path: Path) -> None:
        # One source of 200 variants, read by every worker at once: equal draws would show.
        make_bank(tmp_path, keys=[0], variants=200, unit_size=1)
        dataset = Photos(v2.Compose([lambda sample: (sample[0], RowKey(0)), by_position(tmp_path, 1.0)]))
        torch.manual_seed(1)
        first, second = epoch(dataset), epoch(dataset)
        for one, other in ((first[:4], first[4:8]), (first, second)):  # batches of two workers, and two epochs
            assert not one[:, 1, 0, 0].equal(other[:, 1, 0, 0])
        torch.manual_seed(1)
        assert epoch(dataset).equal(first)
        assert epoch(dataset).equal(second)

    @pytest.mark.parametrize("context", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
    def test_in_workers_that_open_the_bank_again(self, numbered: Bank, context: str) -> None:
        images = epoch(Photos(by_position(numbered, 1.0)), context, workers=1)
        assert all(is_variant(image, i % 10) for i, image in enumerate(images))

    def test_copies_read_the_same_bank(self, numbered: Bank) -> None:
        augment = by_position(numbered, 0.5, missing="source", keys_getter=number_of)
        for again in (pickle.loads(pickle.dumps(augment)), copy.deepcopy(augment)):
            assert repr(again) == repr(augment)
            torch.manual_seed(1)
            expected = augment(torch.stack([GREY] * 9), list(range(9)))[0]
            torch.manual_seed(1)
            assert again(torch.stack([GREY] * 9), list(range(9)))[0].equal(expected)
        assert copy.deepcopy(augment).banks[0] is numbered


class TestSeveralBanks:
    """Two generators' variants of one data set, drawn by weight."""

    KEYS = ("a", "b", "c")

    def bank(self, path: Path, colour: int, variants: int = 2, size: tuple[int, int] = SIZE, **options: Any) -> Bank:
        """A bank in which variant v of every key is of one colour, ``colour + v``."""

        def paint(_position: int, variant: int) -> bytes:
            return encoded(torch.full((3, *size), colour + variant, dtype=torch.uint8), "PNG")

        return Bank.open(make_bank(path, keys=options.pop("keys", self.KEYS), variants=variants, size=size, image=paint, **options))

    def colours(self, augment: BankAugment, count: int, key: str = "a") -> Tensor:
        images = augment({"image": torch.zeros(count, 3, *SIZE, dtype=torch.uint8), "key": [key] * count})["image"]
        assert images.flatten(1).float().var(1).max() == 0, "an image is of one bank"
        return images[:, 0, 0, 0]

    def test_are_drawn_by_weight_and_variants_uniformly(self, tmp_path: Path) -> None:
        banks = [self.bank(tmp_path / "1", 10, variants=2), self.bank(tmp_path / "2", 100, variants=4)]
        augment = BankAugment(banks, p=1.0, weights=[3, 1])
        torch.manual_seed(0)
        found = torch.bincount(self.colours(augment, 8000).long(), minlength=256) / 8000
        expected = torch.zeros(256)
        expected[10:12], expected[100:104] = 3 / 4 / 2, 1 / 4 / 4
        # Five standard deviations of a share of 8,000 draws.
        assert (found - expected).abs().max() < 5 * (0.375 * 0.625 / 8000) ** 0.5
        torch.manual_seed(0)
        equal = self.colours(BankAugment(banks, p=1.0), 8000) >= 100
        assert abs(equal.float().mean() - 0.5) < 5 * (0.25 / 8000) ** 0.5

    def test_of_one_bank_in_a_list_as_of_the_bank(self, tmp_path: Path) -> None:
        bank = self.bank(tmp_path, 10, variants=7)
        found = []
        for given in (bank, [bank], (bank.path,)):
            torch.manual_seed(3)
            found.append(self.colours(BankAugment(given, p=0.5), 50).tolist())
        assert found[0] == found[1] == found[2]
        assert len(set(found[0])) == 8, "seven variants, and images that were not selected"

    def test_as_many_numbers_are_drawn_as_for_one(self, tmp_path: Path) -> None:
        one, two = self.bank(tmp_path / "1", 10), self.bank(tmp_path / "2", 100)
        states = []
        for banks in (one, [one, two]):
            torch.manual_seed(0)
            self.colours(BankAugment(banks, p=0.5), 9)
            states.append(torch.get_rng_state())
        assert states[0].equal(states[1])

    def test_a_bank_without_variants_of_a_key_is_left_out(self, tmp_path: Path) -> None:
        banks = [self.bank(tmp_path / "1", 10, failed={"b": "truncated"}), self.bank(tmp_path / "2", 100)]
        augment = BankAugment(banks, p=1.0, weights=[100, 1])
        assert set(self.colours(augment, 50, "b").tolist()) == {100, 101}
        assert set(self.colours(augment, 50, "a").tolist()) >= {10, 11}

    def test_a_key_that_none_of_them_has(self, tmp_path: Path) -> None:
        banks = [self.bank(tmp_path / str(i), 10, failed={"b": "truncated"}) for i in range(2)]
        with pytest.raises(MissingKeyError, match=r"'b' has no images.*truncated.*1 more banks"):
            self.colours(BankAugment(banks), 1, "b")
        augment = BankAugment(banks, p=1.0, missing="source")
        assert self.colours(augment, 4, "b").tolist() == [0] * 4
        assert augment.missing_count == 4

    def test_images_of_several_sizes_are_resized_once(self, tmp_path: Path) -> None:
        banks = [self.bank(tmp_path / "1", 10, size=(4, 6)), self.bank(tmp_path / "2", 100, size=(16, 16))]
        for output_size, expected in (("input", SIZE), ((9, 11), (9, 11))):
            augment = BankAugment(banks, p=1.0, output_size=output_size)
            images = augment({"image": torch.zeros(60, 3, *SIZE, dtype=torch.uint8), "key": ["a"] * 60})["image"]
            assert tuple(images.shape[-2:]) == expected
            assert set(images[:, 0, 0, 0].tolist()) == {10, 11, 100, 101}
        for output_size in ("generator", "native"):
            with pytest.raises(ConfigError, match=rf"output_size='{output_size}': the banks have images of 4 x 6 and 16 x 16"):
                BankAugment(banks, output_size=output_size)

    @pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")], [1, "2"], [True, 1], 2, "12"])
    def test_wrong_weights(self, tmp_path: Path, weights: Any) -> None:
        banks = [self.bank(tmp_path / str(i), 10) for i in range(2)]
        with pytest.raises(ConfigError, match=r"weights=.*expected a list of 2 positive numbers"):
            BankAugment(banks, weights=weights)

    @pytest.mark.parametrize("banks", [[], [None], {"a": 1}, 3, None])
    def test_what_is_no_bank(self, banks: Any) -> None:
        with pytest.raises(ConfigError, match="expected a Bank or the path of one, or a list of them"):
            BankAugment(banks)

    def test_keys_of_two_kinds(self, tmp_path: Path) -> None:
        banks = [self.bank(tmp_path / "text", 10), self.bank(tmp_path / "numbers", 10, keys=(0, 1))]
        with pytest.raises(ConfigError, match=r"the keys of .*numbers are int and those of .*text are str"):
            BankAugment(banks)

    def test_geometry_is_kept_only_if_all_keep_it(self, tmp_path: Path) -> None:
        keeps, loses = (self.bank(tmp_path / str(kept), 10, preserves_geometry=kept) for kept in (True, False))
        boxes = tv_tensors.BoundingBoxes([[0, 0, 2, 2]], format="XYXY", canvas_size=SIZE)
        sample = {"image": torch.zeros(3, *SIZE, dtype=torch.uint8), "boxes": boxes, "key": "a"}
        BankAugment([keeps, keeps])(sample)
        with pytest.raises(ImageError, match="these banks"):
            BankAugment([keeps, loses])(sample)

    def test_travels_to_another_process(self, tmp_path: Path) -> None:
        augment = BankAugment([self.bank(tmp_path / "1", 10), self.bank(tmp_path / "2", 100)], p=1.0, weights=[1, 2])
        for again in (copy.deepcopy(augment), pickle.loads(pickle.dumps(augment))):
            torch.manual_seed(0)
            first = self.colours(augment, 20)
            torch.manual_seed(0)
            assert self.colours(again, 20).equal(first)
        assert "weights=[1.0, 2.0]" in repr(augment)
