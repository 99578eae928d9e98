"""GenerativeAugment: its arguments, its selection, its getters, and each image as a function of source, generator and seed alone."""

from __future__ import annotations

import itertools
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from small_generators import Flat, grey_of, tiny_icgan
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

import gentransforms as gt
from gentransforms.errors import ConfigError, GeneratorError
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def seeds_of(sample: Any) -> Any:
    return sample[1]


def with_seeds(generator: gt.ImageGenerator, p: float, **options: Any) -> gt.GenerativeAugment:
    return gt.GenerativeAugment(generator, p, seeds_getter=seeds_of, **options)


class TestArguments:
    @pytest.mark.parametrize("p", [0, 1, 0.0, 1.0, 0.25, np.float64(0.25), np.float32(0.25)])
    def test_p_is_a_probability(self, p: float) -> None:
        assert gt.GenerativeAugment(Flat(), p).p == p

    @pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), float("inf"), "0.5", None, True, False, [0.5], 1j, torch.tensor(0.5)])
    def test_another_p_is_refused(self, p: Any) -> None:
        with pytest.raises(ConfigError, match=r"p=.*expected a number in \[0, 1\]"):
            gt.GenerativeAugment(Flat(), p)

    def test_half_by_default(self) -> None:
        augment = gt.GenerativeAugment(Flat())
        assert (augment.p, augment.output_size, augment.max_batch_size) == (0.5, "input", None)

    @pytest.mark.parametrize("size", [0, -1, 1.5, 2.0, "a", True, float("nan")])
    def test_another_max_batch_size_is_refused(self, size: Any) -> None:
        with pytest.raises(ConfigError, match=r"max_batch_size=.*expected a positive integer or None"):
            gt.GenerativeAugment(Flat(), max_batch_size=size)

    @pytest.mark.parametrize(
        "size",
        [
            "",
            "Input",
            "both",
            8,
            (8,),
            (8, 8, 8),
            (0, 8),
            (8, -1),
            (8.0, 8),
            ("8", 8),
            (True, 8),
            None,
            np.array([8, 8]),
            torch.tensor([8, 8]),
        ],
    )
    def test_another_output_size_is_refused(self, size: Any) -> None:
        with pytest.raises(ConfigError, match=r'output_size=.*expected "input", "generator" or \(height, width\)'):
            gt.GenerativeAugment(Flat(), output_size=size)

    @pytest.mark.parametrize("name", ["seeds_getter", "inputs_getter"])
    @pytest.mark.parametrize("getter", [3, "labels", {}, []])
    def test_a_getter_is_a_function(self, name: str, getter: Any) -> None:
        with pytest.raises(ConfigError, match=f"{name}=.*expected a function"):
            gt.GenerativeAugment(Flat(), **{name: getter})

    @pytest.mark.parametrize("generator", ["icgan-cifar10-32", None, torch.nn.Identity(), Flat, lambda images: images])
    def test_a_generator_is_an_image_generator(self, generator: Any) -> None:
        with pytest.raises(ConfigError, match=r"generator=.*expected an ImageGenerator"):
            gt.GenerativeAugment(generator)

    @pytest.mark.parametrize("size", [None, 8, (8,), (0, 8), (8.0, 8), "88"])
    def test_a_generator_that_does_not_say_its_size_is_named(self, size: Any) -> None:
        generator = Flat()
        generator.image_size = size
        with pytest.raises(GeneratorError, match=r"Flat.image_size is .*: expected \(height, width\)"):
            gt.GenerativeAugment(generator)

    @pytest.mark.parametrize("keeps", [None, 1, "yes"])
    def test_a_generator_that_does_not_say_whether_it_keeps_the_layout_is_named(self, keeps: Any) -> None:
        with pytest.raises(GeneratorError, match=r"Flat.preserves_geometry is .*: expected True or False"):
            gt.GenerativeAugment(Flat(preserves_geometry=keeps))

    def test_a_generator_that_leaves_both_out_is_named(self) -> None:
        class Forgetful(gt.ImageGenerator):
            def encode(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
                return {}

            def sample(self, condition: Any, seeds: Tensor) -> Tensor:
                return torch.zeros(len(seeds), 3, 8, 8)

        with pytest.raises(GeneratorError, match=r"Forgetful\.image_size"):
            gt.GenerativeAugment(Forgetful())

    def test_options_are_named(self) -> None:
        with pytest.raises(TypeError):
            gt.GenerativeAugment(Flat(), 0.5, seeds_of)

    def test_is_a_torchvision_transform_and_prints_as_one(self) -> None:
        augment = gt.GenerativeAugment(Flat(), p=0.25, output_size=(4, 5), max_batch_size=7)
        assert isinstance(augment, v2.Transform)
        text = repr(augment)
        assert "\n" not in text
        for part in ("GenerativeAugment", "p=0.25", "output_size=(4, 5)", "max_batch_size=7", "Flat"):
            assert part in text

    def test_from_pretrained_passes_its_options_on(self, tmp_path: Path) -> None:
        FakeGenerator(size=12).save_pretrained(tmp_path)
        augment = gt.GenerativeAugment.from_pretrained(
            tmp_path, 0.25, seeds_getter=seeds_of, inputs_getter=dict, max_batch_size=3, output_size="generator", dtype=torch.float64
        )
        assert isinstance(augment.generator, FakeGenerator)
        assert augment.generator.image_size == (12, 12)
        assert augment.generator.dtype == torch.float64
        assert (augment.p, augment.seeds_getter, augment.inputs_getter) == (0.25, seeds_of, dict)
        assert (augment.max_batch_size, augment.output_size) == (3, "generator")

    def test_from_pretrained_refuses_an_unknown_option(self, tmp_path: Path) -> None:
        FakeGenerator().save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match="unknown option 'truncation'"):
            gt.GenerativeAugment.from_pretrained(tmp_path, truncation=0.5)


class TestCoins:
    @pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
    @pytest.mark.parametrize("getter", [False, True])
    def test_are_binomial(self, p: float, getter: bool) -> None:
        count = 20_000
        generator = Flat(size=(1, 1))
        images = torch.zeros(count, 3, 1, 1)
        if getter:
            with_seeds(generator, p)(images, torch.arange(count))
        else:
            gt.GenerativeAugment(generator, p)(images)
        deviation = math.sqrt(count * p * (1 - p))
        assert abs(generator.rows - count * p) < 3 * deviation
        chosen = generator.rows / count
        assert 0 < chosen < 1

    def test_are_independent_of_each_other(self) -> None:
        # Neighbours agree in half of the cases at p = 0.5: 3 standard deviations.
        chosen = gt.GenerativeAugment(Flat(), 0.5).make_params([torch.zeros(20_000, 3, 1, 1)])["chosen"]
        assert abs((chosen[1:] == chosen[:-1]).sum().item() - 10_000) < 3 * math.sqrt(5_000)

    def test_are_independent_of_the_seeds(self) -> None:
        params = gt.GenerativeAugment(Flat(), 0.5).make_params([torch.zeros(4_000, 3, 1, 1)])
        pair = torch.stack([params["chosen"].double(), params["seeds"].double()])
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 4 / math.sqrt(4_000)

    @pytest.mark.parametrize("kind", ["batch", "pictures"])
    def test_the_generator_gets_exactly_the_chosen_images(self, kind: str) -> None:
        generator = Flat(size=(16, 16))
        augment = gt.GenerativeAugment(generator, 0.5)
        batch = (BATCH * 255).byte()
        sample: Any = [v2.functional.to_pil_image(image) for image in batch] if kind == "pictures" else batch
        result = augment(sample)
        rows = torch.stack([v2.functional.pil_to_tensor(image) for image in result]) if kind == "pictures" else result
        changed = [not row.equal(image) for row, image in zip(rows, batch, strict=True)]
        assert 0 < sum(changed) < 8  # with this seed
        assert generator.calls == 1
        assert generator.rows == sum(changed)
        torch.testing.assert_close(generator.images[0], batch[changed].float() / 255)
        greys = torch.tensor([round(grey_of(seed) * 255) for seed in generator.seeds[0]], dtype=torch.uint8)
        assert rows[changed].equal(greys.view(-1, 1, 1, 1).expand(-1, 3, 16, 16))  # scattered to their own places

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_unchosen_images_are_bit_identical(self, channels: int, dtype: torch.dtype) -> None:
        unit = torch.rand(32, channels, 10, 14)
        batch = (unit * 255).byte() if dtype == torch.uint8 else unit.to(dtype)
        seeds = torch.arange(32)
        augment = with_seeds(Flat(), 0.5)
        result, _ = augment(batch, seeds)
        chosen = {seed for batch_seeds in augment.generator.seeds for seed in batch_seeds}
        kept = [seed not in chosen for seed in range(32)]
        assert 0 < sum(kept) < 32
        assert result[kept].equal(batch[kept])

    @pytest.mark.parametrize(
        "image", [BATCH, BATCH[0], tv_tensors.Image(BATCH), PIL.Image.new("RGB", (5, 4))], ids=lambda i: type(i).__name__
    )
    def test_none_at_p_0(self, image: Any) -> None:
        generator = FakeGenerator()
        assert gt.GenerativeAugment(generator, 0.0)(image) is image
        assert gt.GenerativeAugment(generator, 0)({"x": [image]})["x"][0] is image
        assert (generator.calls, generator.rows, generator.encoded) == (0, 0, 0)

    @pytest.mark.parametrize(("size", "batches"), [(None, [8]), (8, [8]), (3, [3, 3, 2]), (1, [1] * 8)])
    def test_all_at_p_1_once_per_micro_batch(self, size: int | None, batches: list[int]) -> None:
        generator = Flat()
        gt.GenerativeAugment(generator, 1.0, max_batch_size=size)(BATCH)
        assert list(map(len, generator.images)) == batches
        assert list(map(len, generator.seeds)) == batches

    def test_a_picture_is_converted_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        converted: list[Any] = []
        from gentransforms import images

        convert = images.TF.pil_to_tensor
        monkeypatch.setattr(images.TF, "pil_to_tensor", lambda image: (converted.append(image), convert(image))[1])
        gt.GenerativeAugment(Flat(), 0.5)([PIL.Image.new("RGB", (5, 4)) for _ in range(4)])
        assert len(converted) == 4

    def test_draw_alike_whatever_p_is(self) -> None:
        states = []
        for p, size, dtype in itertools.product([0.0, 0.3, 0.9, 1.0], ["input", "generator"], [torch.float32, torch.uint8]):
            torch.manual_seed(11)
            gt.GenerativeAugment(FakeGenerator(), p, output_size=size)((BATCH * 255).to(dtype) if dtype == torch.uint8 else BATCH)
            states.append(torch.get_rng_state())
        assert all(state.equal(states[0]) for state in states)
        torch.manual_seed(11)
        assert not states[0].equal(torch.get_rng_state())

    def test_draw_alike_for_every_structure(self) -> None:
        def stream(sample: Any) -> Tensor:
            torch.manual_seed(11)
            gt.GenerativeAugment(FakeGenerator(), 0.5)(sample)
            return torch.rand(3)

        expected = stream(BATCH)
        assert stream(tv_tensors.Image((BATCH * 255).byte())).equal(expected)
        assert stream(BATCH.view(2, 4, 3, 16, 16)).equal(expected)
        assert stream([tv_tensors.Image(image) for image in BATCH]).equal(expected)
        assert stream([v2.functional.to_pil_image(image) for image in BATCH]).equal(expected)

    def test_the_chosen_at_a_smaller_p_are_chosen_at_a_larger_one(self) -> None:
        # The same random numbers after the same torch.manual_seed, so raising p only adds images.
        chosen = []
        for p in (0.0, 0.2, 0.5, 0.8, 1.0):
            torch.manual_seed(5)
            params = gt.GenerativeAugment(Flat(), p).make_params([torch.zeros(200, 3, 1, 1)])
            chosen.append(params["chosen"])
        assert all((smaller <= larger).all() for smaller, larger in itertools.pairwise(chosen))

    def test_manual_seed_reproduces(self) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(), 0.5)
        torch.manual_seed(1)
        first, second = augment(BATCH), augment(BATCH)
        torch.manual_seed(1)
        assert augment(BATCH).equal(first)
        assert augment(BATCH).equal(second)
        assert not first.equal(second)
        torch.manual_seed(2)
        assert not augment(BATCH).equal(first)

    def test_come_from_the_cpu_whatever_the_default_device_is(self) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(), 0.5)
        torch.manual_seed(1)
        expected = augment(BATCH)
        torch.manual_seed(1)
        with torch.device("meta"):
            assert augment(BATCH).equal(expected)


class TestSeedsGetter:
    def test_the_seed_alone_makes_the_image(self) -> None:
        seeds = torch.tensor([5, 1, 2**62, 7, 0, 3, 9, 4])
        result, given = with_seeds(Flat(), 1.0)(BATCH, seeds)
        assert given is seeds
        torch.testing.assert_close(result[:, 0, 0, 0], torch.tensor([grey_of(seed) for seed in seeds.tolist()]))

    def test_gets_the_sample_as_it_was_given(self) -> None:
        seen: list[Any] = []
        augment = gt.GenerativeAugment(Flat(), 0.0, seeds_getter=lambda sample: (seen.append(sample), [0] * 8)[1])
        pair, mapping = (BATCH, torch.arange(8)), {"images": BATCH, "key": "a"}
        augment(*pair)
        assert seen.pop() == pair
        augment(pair)
        assert seen.pop() is pair
        augment(mapping)
        assert seen.pop() is mapping
        augment(BATCH)
        assert seen.pop() is BATCH

    def test_is_asked_once_per_call(self) -> None:
        calls: list[int] = []
        gt.GenerativeAugment(Flat(), 0.5, seeds_getter=lambda sample: (calls.append(1), [1, 2])[1])([tv_tensors.Image(BATCH[0])] * 2)
        assert calls == [1]

    def test_draws_nothing(self) -> None:
        for p in (0.0, 0.5, 1.0):
            state = torch.get_rng_state()
            with_seeds(FakeGenerator(), p)(BATCH, torch.arange(8))
            assert torch.get_rng_state().equal(state)

    def test_coins_are_monotone_in_p(self) -> None:
        seeds, images = torch.arange(500), torch.zeros(500, 3, 1, 1)
        chosen = []
        for p in (0.0, 0.1, 0.5, 0.9, 1.0):
            generator = Flat(size=(1, 1))
            with_seeds(generator, p)(images, seeds)
            chosen.append({seed for batch in generator.seeds for seed in batch})
        assert all(smaller <= larger for smaller, larger in itertools.pairwise(chosen))
        assert (len(chosen[0]), len(chosen[-1])) == (0, 500)

    def test_the_coin_is_a_hash_of_the_seed(self) -> None:
        # Not of its position: the same seed gives the same selection anywhere, and neighbouring seeds give unrelated ones.
        generator = Flat(size=(1, 1))
        with_seeds(generator, 0.5)(torch.zeros(8, 3, 1, 1), torch.tensor([7] * 8))
        assert generator.rows in (0, 8)
        generator = Flat(size=(1, 1))
        with_seeds(generator, 0.5)(torch.zeros(4_000, 3, 1, 1), torch.arange(4_000))
        chosen = set(generator.seeds[0])
        agree = sum((seed in chosen) == (seed + 1 in chosen) for seed in range(3_999))
        assert abs(agree - 2_000) < 3 * math.sqrt(1_000)

    @pytest.mark.parametrize("p", [0.3, 0.5, 1.0])
    def test_one_image_is_made_again_out_of_any_batch(self, p: float) -> None:
        augment = with_seeds(FakeGenerator(), p)
        seeds = gt.derive_seeds(0, [f"{i}.jpg" for i in range(8)], [0] * 8)
        together, _ = augment(BATCH, seeds)
        assert sum(not a.equal(b) for a, b in zip(together, BATCH, strict=True)) > 0
        for i in range(8):
            alone, _ = augment(BATCH[i], seeds[i])
            torch.testing.assert_close(alone, together[i], atol=1e-5, rtol=0)
            alone, _ = augment(v2.functional.to_pil_image((BATCH[i] * 255).byte()), int(seeds[i]))
            batch, _ = augment((BATCH * 255).byte(), seeds)
            assert v2.functional.pil_to_tensor(alone).equal(batch[i])

    @pytest.mark.parametrize(
        "seeds",
        [
            torch.arange(7),
            torch.arange(8).float(),
            torch.arange(8).int(),
            torch.arange(8).view(8, 1),
            torch.arange(8, device="meta"),
            3,
            None,
            "a",
        ],
        ids=str,
    )
    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_other_seeds_are_refused(self, seeds: Any, p: float) -> None:
        with pytest.raises(ConfigError, match="seeds_getter"):
            gt.GenerativeAugment(Flat(), p, seeds_getter=lambda sample: seeds)(BATCH)

    def test_a_mistake_in_the_getter_is_the_users_to_see(self) -> None:
        with pytest.raises(KeyError, match="seed"):
            gt.GenerativeAugment(Flat(), seeds_getter=lambda sample: sample["seed"])({"image": BATCH})


class TestInputsGetter:
    def run(self, values: Any, inputs: tuple[str, ...] = ("labels", "masks", "prompts"), p: float = 0.5, **options: Any) -> Flat:
        generator = Flat(inputs=inputs)
        augment = gt.GenerativeAugment(
            generator, p, seeds_getter=lambda sample: list(range(8)), inputs_getter=lambda sample: values, **options
        )
        augment(BATCH)
        return generator

    def test_values_are_gathered_by_the_coin(self) -> None:
        values = {
            "labels": torch.arange(100, 108),
            "masks": torch.arange(8).view(8, 1, 1, 1).expand(8, 1, 16, 16),
            "prompts": [f"photo {i}" for i in range(8)],
        }
        generator = self.run(values)
        (seeds,), (given,) = generator.seeds, generator.given
        assert 0 < len(seeds) < 8
        assert given["labels"].tolist() == [100 + seed for seed in seeds]
        assert given["masks"][:, 0, 0, 0].tolist() == seeds
        assert given["prompts"] == [f"photo {seed}" for seed in seeds]

    def test_micro_batches_have_their_own(self) -> None:
        generator = self.run({"labels": list(range(8)), "prompts": list("abcdefgh")}, p=1.0, max_batch_size=3)
        assert [given["labels"].tolist() for given in generator.given] == [[0, 1, 2], [3, 4, 5], [6, 7]]
        assert [given["prompts"] for given in generator.given] == [list("abc"), list("def"), list("gh")]

    def test_only_names_in_the_generators_inputs_are_passed(self) -> None:
        values = {"labels": list(range(8)), "prompts": list("abcdefgh"), "other": 3}
        assert set(self.run(values, inputs=("prompts",)).given[0]) == {"prompts"}
        assert self.run(values, inputs=()).given[0] == {}

    @pytest.mark.parametrize(
        ("values", "hint"),
        [({"prompt": list("abcdefgh")}, "; 'prompt' may mean 'prompts'"), ({"caption": list("abcdefgh")}, "")],
        ids=lambda value: next(iter(value), None),
    )
    def test_values_that_the_generator_does_not_take_are_named(self, values: Any, hint: str) -> None:
        (name,) = values
        with pytest.warns(UserWarning, match=f"returned '{name}': Flat takes 'prompts', and ignores others{hint}$"):
            assert self.run(values, inputs=("prompts",)).given[0] == {}

    def test_names_are_looked_at_once(self) -> None:
        augment = gt.GenerativeAugment(Flat(inputs=("prompts",)), 1.0, inputs_getter=lambda sample: {"caption": list("abcdefgh")})
        with pytest.warns(UserWarning, match="ignores others"):
            augment(BATCH)
        with warnings.catch_warnings(action="error"):
            augment(BATCH)

    def test_a_misspelt_name_beside_a_right_one(self) -> None:
        values = {"labels": list(range(8)), "prompt": list("abcdefgh")}
        with pytest.warns(UserWarning, match="'prompt' may mean 'prompts'"):
            assert set(self.run(values, inputs=("labels", "prompts")).given[0]) == {"labels"}

    def test_what_is_absent_is_not_passed(self) -> None:
        assert set(self.run({"labels": list(range(8))}).given[0]) == {"labels"}
        assert self.run({}).given[0] == {}

    def test_one_image_has_one_value(self) -> None:
        generator = Flat(inputs=("labels", "prompts"))
        augment = gt.GenerativeAugment(generator, 1.0, inputs_getter=lambda sample: {"labels": sample[1], "prompts": sample[2]})
        augment(PIL.Image.new("RGB", (8, 8)), 7, "a cat")
        augment(BATCH[0], torch.tensor(7), "a cat")
        for given in generator.given:
            assert given["labels"].tolist() == [7]
            assert given["prompts"] == ["a cat"]

    def test_a_batch_of_more_dimensions(self) -> None:
        generator = Flat(inputs=("labels",))
        augment = gt.GenerativeAugment(generator, 1.0, inputs_getter=lambda sample: {"labels": sample[1]})
        augment(BATCH.view(2, 4, 3, 16, 16), torch.arange(8).view(2, 4))
        assert generator.given[0]["labels"].tolist() == list(range(8))

    def test_pictures_of_a_list_have_one_each(self) -> None:
        generator = Flat(inputs=("masks",))
        augment = gt.GenerativeAugment(generator, 1.0, inputs_getter=lambda sample: {"masks": sample["masks"]})
        sizes = [(8, 8), (6, 9)]
        augment({"images": [PIL.Image.new("RGB", size) for size in sizes], "masks": [torch.zeros(1, h, w) for w, h in sizes]})
        assert [tuple(mask.shape) for mask in generator.given[0]["masks"]] == [(1, 8, 8), (1, 9, 6)]

    def test_labels_reach_a_real_generator(self) -> None:
        generator = gt.ICGAN(
            network={"resolution": 32, "G_ch": 8, "dim_z": 16, "shared_dim_feat": 8, "feature_dim": 16, "G_attn": "0", "class_cond": True}
            | {"n_classes": 5, "shared_dim": 4},
            feature_extractor={"kind": "small-resnet", "widths": [8, 16], "blocks": [1, 1]},
        )
        images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 4, 2, 2])
        augment = gt.GenerativeAugment(
            generator, 1.0, inputs_getter=lambda sample: {"labels": sample[1]}, seeds_getter=lambda s: [1, 2, 3, 3]
        )
        result, passed = augment(images, labels)
        assert passed is labels
        expected = generator(images, torch.tensor([1, 2, 3, 3]), labels=labels)
        torch.testing.assert_close(result, expected.clamp(0, 1), atol=1e-4, rtol=0)
        with pytest.raises(gt.GentransformsError, match="inputs_getter"):
            gt.GenerativeAugment(generator, 1.0)(images)

    @pytest.mark.parametrize("values", [None, [1], {"labels": 3}, {"labels": [1, 2]}, {"prompts": "a cat"}, {"labels": None}], ids=str)
    def test_other_values_are_refused(self, values: Any) -> None:
        with pytest.raises(ConfigError, match="inputs_getter"):
            self.run(values)


class TestCall:
    """What is said in a call, for that call alone."""

    @pytest.mark.parametrize("getter", [False, True])
    def test_p(self, getter: bool) -> None:
        options: dict[str, Any] = {"seeds_getter": lambda sample: list(range(8))} if getter else {}
        augment = gt.GenerativeAugment(FakeGenerator(), 0.5, **options)
        assert augment(BATCH, p=0.0).equal(BATCH)
        assert not any(a.equal(b) for a, b in zip(augment(BATCH, p=1), BATCH, strict=True))
        assert augment.p == 0.5
        torch.manual_seed(0)
        expected = gt.GenerativeAugment(FakeGenerator(), 0.2, **options)(BATCH)
        torch.manual_seed(0)
        assert augment(BATCH, p=0.2).equal(expected)

    @pytest.mark.parametrize("p", [-0.1, 1.5, "often", True, float("nan")])
    def test_p_is_checked(self, p: Any) -> None:
        with pytest.raises(ConfigError, match=r"p=.*expected a number in \[0, 1\]"):
            gt.GenerativeAugment(FakeGenerator())(BATCH, p=p)

    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    def test_the_mask_says_which_images_are_new(self, p: float) -> None:
        labels = torch.arange(8)
        result, mask = gt.GenerativeAugment(FakeGenerator(), p)((BATCH, labels), return_mask=True)
        assert (mask.dtype, mask.device.type) == (torch.bool, "cpu")
        assert mask.tolist() == [not a.equal(b) for a, b in zip(result[0], BATCH, strict=True)]
        assert result[1] is labels

    def test_the_mask_of_several_images_and_of_one(self) -> None:
        sample = [tv_tensors.Image(BATCH[:2]), PIL.Image.new("RGB", (8, 8)), tv_tensors.Image(BATCH[2])]
        _, mask = gt.GenerativeAugment(FakeGenerator(), 1.0)(sample, return_mask=True)
        assert mask.tolist() == [True] * 4
        assert gt.GenerativeAugment(FakeGenerator(), 0.0)(BATCH[0], return_mask=True)[1].tolist() == [False]


class TestStructure:
    def test_params_are_made_and_applied_separately(self) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(), 0.5)
        torch.manual_seed(4)
        params = augment.make_params([BATCH])
        torch.manual_seed(4)
        expected = augment(BATCH)
        assert params["chosen"].shape == params["seeds"].shape == (8,)
        assert params["chosen"].dtype == torch.bool
        assert params["seeds"].dtype == torch.int64
        assert augment.transform(BATCH, params).equal(expected)
        assert augment.transform(BATCH, params).equal(expected)  # as often as one likes

    def test_seeds_fill_63_bits(self) -> None:
        seeds = gt.GenerativeAugment(Flat()).make_params([torch.zeros(1000, 3, 1, 1)])["seeds"]
        assert seeds.min() >= 0
        assert len(set(seeds.tolist())) == 1000
        bits = [(seeds >> bit & 1).sum().item() for bit in range(63)]
        assert all(abs(count - 500) < 4 * math.sqrt(250) for count in bits)

    @pytest.mark.parametrize(
        "options", [{}, {"seeds_getter": lambda sample: list(range(8)), "inputs_getter": lambda sample: {"labels": list(range(8))}}]
    )
    def test_nothing_drawn_stays_on_the_module(self, options: dict[str, Any]) -> None:
        class Silent(FakeGenerator):
            def sample(self, condition: Any, seeds: Tensor) -> Tensor:
                before = self.calls, self.rows
                images = super().sample(condition, seeds)
                self.calls, self.rows = before
                self.encoded = 0
                return images

        augment = gt.GenerativeAugment(Silent(), 0.5, **options)
        augment(BATCH)
        before = {name: dict(vars(module)) for name, module in augment.named_modules()}
        augment(BATCH)
        after = {name: dict(vars(module)) for name, module in augment.named_modules()}
        for name, values in before.items():
            assert values.keys() == after[name].keys()
            assert all(after[name][key] is value or after[name][key] == value for key, value in values.items()), name

    def test_a_subclass_may_choose_its_own_params(self) -> None:
        class FirstOnly(gt.GenerativeAugment):
            def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
                params = super().make_params(flat_inputs)
                params["chosen"] = torch.arange(len(params["chosen"])) == 0
                return params

        result = FirstOnly(Flat(), 0.5)(BATCH)
        assert not result[0].equal(BATCH[0])
        assert result[1:].equal(BATCH[1:])


class TestBatchInvariance:
    """Image i alone, in a batch of 7, in another order, under another max_batch_size: equal within 1e-4."""

    @pytest.mark.parametrize(
        "make", [tiny_icgan, FakeGenerator, lambda: FakeGenerator(preserves_geometry=True)], ids=["icgan", "fake", "layout"]
    )
    @pytest.mark.parametrize("size", [(32, 32), (40, 28)])
    def test_an_image_depends_on_source_generator_and_seed_alone(self, make: Any, size: tuple[int, int]) -> None:
        generator = make()
        images = torch.rand(7, 3, *size)
        seeds = gt.derive_seeds(3, list(range(7)), [1] * 7)
        together, _ = with_seeds(generator, 1.0)(images, seeds)
        assert all((a - b).abs().max() > 0.01 for a, b in itertools.combinations(together, 2))

        alone = torch.stack([with_seeds(generator, 1.0)(image, seed)[0] for image, seed in zip(images, seeds, strict=True)])
        torch.testing.assert_close(alone, together, atol=1e-4, rtol=0)

        order = torch.tensor([3, 0, 6, 5, 1, 2, 4])
        shuffled, _ = with_seeds(generator, 1.0)(images[order], seeds[order])
        torch.testing.assert_close(shuffled, together[order], atol=1e-4, rtol=0)

        for limit in (1, 2, 3, 5, 7, 64):
            limited, _ = with_seeds(generator, 1.0, max_batch_size=limit)(images, seeds)
            torch.testing.assert_close(limited, together, atol=1e-4, rtol=0)

        some, _ = with_seeds(generator, 0.5)(images, seeds)
        replaced = [not a.equal(b) for a, b in zip(some, images, strict=True)]
        assert 0 < sum(replaced) < 7
        torch.testing.assert_close(some[replaced], together[replaced], atol=1e-4, rtol=0)

    def test_on_one_thread_or_two(self) -> None:
        generator, images, seeds = tiny_icgan(), torch.rand(5, 3, 32, 32), torch.arange(5)
        expected, _ = with_seeds(generator, 1.0)(images, seeds)
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            double, _ = with_seeds(generator, 1.0)(images, seeds)
        finally:
            torch.set_num_threads(threads)
        torch.testing.assert_close(double, expected, atol=1e-4, rtol=0)
