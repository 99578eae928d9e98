"""What a user's subclass of a transform may override: `make_params` and `transform`, as of any v2.Transform."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_banks import KEYS, SIZE, make_bank
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

import gentransforms as gt
from gentransforms.errors import ConfigError, ImageError
from gentransforms.kornia import RandomGenerative
from gentransforms.testing import FakeGenerator, check_transform

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def fixed_seeds(sample: Any) -> list[int]:
    return list(range(6))


def seeded(augment: Callable[..., Any], *args: Any, **options: Any) -> Any:
    torch.manual_seed(7)
    return augment(*args, **options)


class Blend(gt.GenerativeAugment):
    """Half source, half new image."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return (inpt + super().transform(inpt, params)) / 2


class NeverFirst(gt.GenerativeAugment):
    """Leaves the first image of a batch as it is; with torchvision's signature."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params = super().make_params(flat_inputs)
        params["chosen"][0] = False
        return params


class NeverFirstWithP(gt.GenerativeAugment):
    def make_params(self, flat_inputs: list[Any], p: float | None = None) -> dict[str, Any]:
        params = super().make_params(flat_inputs, p)
        params["chosen"][0] = False
        return params


class TestTransform:
    @pytest.mark.parametrize("options", [{}, {"seeds_getter": fixed_seeds}])
    @pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
    def test_a_blend(self, p: float, options: dict[str, Any]) -> None:
        new, mask = seeded(gt.GenerativeAugment(FakeGenerator(), p, **options), BATCH, return_mask=True)
        found, own_mask = seeded(Blend(FakeGenerator(), p, **options), BATCH, return_mask=True)
        assert found.equal((BATCH + new) / 2)
        assert own_mask.equal(mask)
        chain = v2.Compose([Blend(FakeGenerator(), p, **options), v2.Identity()])
        assert seeded(chain, BATCH).equal(found)

    def test_fulfils_the_contract_of_a_transform(self) -> None:
        class Plain(gt.GenerativeAugment):
            def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
                return super().transform(inpt, params)

        check_transform(Plain(FakeGenerator(), 0.5))

    def test_is_given_each_image_with_its_own_params(self) -> None:
        class Weighted(gt.GenerativeAugment):
            def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
                return super().make_params(flat_inputs) | {"weight": torch.arange(6) / 10, "name": "weighted", "range": [0, 1]}

            def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
                given.append((inpt, params))
                weight = params["weight"].reshape(-1, *[1] * (inpt.ndim - 1))[0 if inpt.ndim == 3 else ...]
                return torch.lerp(inpt, super().transform(inpt, params), weight)

        given: list[tuple[Any, dict[str, Any]]] = []
        getters: dict[str, Any] = {"seeds_getter": fixed_seeds, "inputs_getter": lambda sample: {"names": list("abcdef")}}
        generator = Named()
        views = [BATCH[:3], BATCH[3], BATCH[4:]]  # of (C, H, W) the second
        views = [tv_tensors.Image(view) for view in views]
        results = Weighted(generator, 1.0, **getters)({"views": views, "label": 3})["views"]
        assert generator.calls == 1  # for all images together
        assert [image is view for (image, _), view in zip(given, views, strict=True)] == [True] * 3
        assert [params["seeds"].tolist() for _, params in given] == [[0, 1, 2], [3], [4, 5]]
        assert [params["inputs"]["names"] for _, params in given] == [["a", "b", "c"], ["d"], ["e", "f"]]
        assert all(params["name"] == "weighted" and params["range"] == [0, 1] for _, params in given)
        new = gt.GenerativeAugment(Named(), 1.0, **getters)(BATCH)
        expected = torch.lerp(BATCH, new, (torch.arange(6) / 10)[:, None, None, None])
        torch.testing.assert_close(torch.cat([results[0], results[1][None], results[2]]).as_subclass(Tensor), expected)

    def test_pictures_one_by_one_and_generated_at_once(self) -> None:
        class Grey(gt.GenerativeAugment):
            def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
                return super().transform(inpt, params).convert("L")

        pictures = [TF.to_pil_image(image) for image in BATCH]
        augment, plain = Grey(FakeGenerator(), 0.5), gt.GenerativeAugment(FakeGenerator(), 0.5)
        assert [p.tobytes() for p in seeded(augment, pictures)] == [p.convert("L").tobytes() for p in seeded(plain, pictures)]
        assert augment.generator.calls == plain.generator.calls == 1

    def test_other_images_and_params_than_those_given(self) -> None:
        class Edited(gt.GenerativeAugment):
            def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
                return self.change(super().transform, inpt, params)

        def in_place(transform: Any, inpt: Any, params: dict[str, Any]) -> Any:
            transform(inpt, params)
            params["seeds"] += 1
            return transform(inpt, params)

        def item(transform: Any, inpt: Any, params: dict[str, Any]) -> Any:
            params["seeds"] = params["seeds"] + 1
            return transform(inpt, params)

        changes: list[tuple[Any, Any]] = [
            (lambda transform, inpt, params: transform(inpt.flip(0) / 2, params), ([0, 1, 2, 3, 4, 5], lambda x: x.flip(-4) / 2)),
            (lambda transform, inpt, params: transform(inpt, params | {"seeds": params["seeds"] + 1}), ([1, 2, 3, 4, 5, 6], lambda x: x)),
            (in_place, ([1, 2, 3, 4, 5, 6], lambda x: x)),
            (item, ([1, 2, 3, 4, 5, 6], lambda x: x)),
        ]
        halves = [BATCH[:3], BATCH[3:]]
        for mode in (torch.no_grad, torch.inference_mode):
            for change, (seeds, made_of) in changes:
                expected = [
                    gt.GenerativeAugment(FakeGenerator(), 1.0, seeds_getter=lambda _, s=own: s)(made_of(half))
                    for half, own in zip(halves, (seeds[:3], seeds[3:]), strict=True)
                ]
                augment = Edited(FakeGenerator(), 1.0, seeds_getter=lambda _: torch.arange(6))
                augment.change = change
                with mode():
                    found = augment(list(halves))
                torch.testing.assert_close(found, expected)

    def test_an_image_for_which_it_asks_nothing(self) -> None:
        class Never(gt.GenerativeAugment):
            def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
                return inpt

        augment = Never(FakeGenerator(), 1.0)
        assert augment(BATCH) is BATCH
        assert augment.generator.calls == 0

    def test_on_the_instance(self) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(), 1.0)
        augment.transform = lambda inpt, params: inpt + 1
        assert augment(BATCH).equal(BATCH + 1)

    def test_not_overridden_nothing_is_split(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gentransforms.transforms.replace.split_params", None)
        gt.GenerativeAugment(FakeGenerator(), 1.0)(BATCH)
        NeverFirst(FakeGenerator(), 1.0)(BATCH)

    def test_params_of_another_number_of_images_are_refused(self) -> None:
        augment = gt.GenerativeAugment(FakeGenerator(), 1.0)
        params = augment.make_params([BATCH])
        for image, count in ((BATCH[:4], 4), (BATCH[0], 1), (TF.to_pil_image(BATCH[0]), 1)):
            with pytest.raises(ImageError, match=f"params are those of 6 images, and the batch has {count}: draw parameters for this"):
                augment.transform(image, params)

    def test_make_params_of_another_number_of_images_is_refused(self) -> None:
        class First(gt.GenerativeAugment):
            def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
                return super().make_params([flat_inputs[0][:1]])

        for kind in (First, type("BlendedFirst", (Blend, First), {})):
            with pytest.raises(ImageError, match="params are those of 1 images, and the batch has 6"):
                kind(FakeGenerator(), 1.0)(BATCH)


class Named(FakeGenerator):
    inputs = ("names",)


class TestMakeParams:
    @pytest.mark.parametrize("kind", [NeverFirst, NeverFirstWithP])
    @pytest.mark.parametrize("options", [{}, {"seeds_getter": fixed_seeds}])
    def test_never_the_first(self, kind: type[gt.GenerativeAugment], options: dict[str, Any]) -> None:
        plain, augment = gt.GenerativeAugment(FakeGenerator(), 0.7, **options), kind(FakeGenerator(), 0.7, **options)
        for call in ({}, {"p": 0.3}, {"p": 1.0}, {"p": 0.0}):
            expected, mask = seeded(plain, BATCH, return_mask=True, **call)
            found, own = seeded(augment, BATCH, return_mask=True, **call)
            assert own.tolist() == [False, *mask[1:].tolist()]
            assert found[0].equal(BATCH[0])
            torch.testing.assert_close(found[1:], expected[1:])

    @pytest.mark.parametrize("kind", [NeverFirst, NeverFirstWithP])
    def test_the_seeds_of_the_getter_stay_as_they_are(self, kind: type[gt.GenerativeAugment]) -> None:
        class Next(kind):  # type: ignore[misc, valid-type]
            def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
                params: dict[str, Any] = super().make_params(flat_inputs)
                params["seeds"] += 1
                return params

        seeds = torch.arange(6)
        found = Next(FakeGenerator(), 1.0, seeds_getter=lambda _: seeds)(BATCH)
        assert seeds.tolist() == [0, 1, 2, 3, 4, 5]
        expected = gt.GenerativeAugment(FakeGenerator(), 1.0, seeds_getter=lambda _: seeds + 1)(BATCH)
        torch.testing.assert_close(found[1:], expected[1:])

    def test_draws_nothing_with_seeds(self) -> None:
        state = torch.get_rng_state()
        NeverFirst(FakeGenerator(), 0.5, seeds_getter=fixed_seeds)(BATCH)
        assert torch.get_rng_state().equal(state)

    def test_one_that_uses_neither_p_nor_seeds_is_told_so(self) -> None:
        class Own(gt.GenerativeAugment):
            def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
                return {"chosen": torch.ones(6, dtype=torch.bool), "seeds": torch.arange(6), "inputs": {}}

        class OwnWithP(Own):
            def make_params(self, flat_inputs: list[Any], **options: Any) -> dict[str, Any]:
                return super().make_params(flat_inputs) | {"chosen": torch.arange(6) < 6 * options.get("p", self.p)}

        assert Own(FakeGenerator(), 0.5)(BATCH, return_mask=True)[1].all()
        assert OwnWithP(FakeGenerator(), 0.5)(BATCH, p=1 / 6, return_mask=True)[1].tolist() == [True] + [False] * 5
        with pytest.raises(ConfigError, match=r"p=1\.0: Own\.make_params does not use it: .* take an argument p=None"):
            Own(FakeGenerator(), 0.5)(BATCH, p=1.0)
        for kind in (Own, OwnWithP):
            with pytest.raises(ConfigError, match=r"seeds_getter: Own\w*\.make_params does not use its seeds: let it call super\(\)"):
                kind(FakeGenerator(), 0.5, seeds_getter=fixed_seeds)(BATCH)

    def test_another_transform_inside_draws_its_own(self) -> None:
        inner = gt.GenerativeAugment(FakeGenerator(), 0.0)

        class Both(gt.GenerativeAugment):
            def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
                others.append(inner.make_params(flat_inputs))
                assert inner(BATCH) is BATCH
                return super().make_params(flat_inputs)

        others: list[dict[str, Any]] = []
        augment = Both(FakeGenerator(), 0.5, seeds_getter=fixed_seeds)
        assert augment(BATCH, p=1.0, return_mask=True)[1].all()
        assert not others[0]["chosen"].any()
        assert others[0]["seeds"].tolist() != [0, 1, 2, 3, 4, 5]
        drawn = gt.GenerativeAugment(FakeGenerator(), 0.5, seeds_getter=fixed_seeds).make_params([BATCH])  # outside of a call
        assert drawn["seeds"].tolist() != [0, 1, 2, 3, 4, 5]


class TestBankAugment:
    def test_the_same_hooks(self, tmp_path: Path) -> None:
        class BlendFromBank(gt.BankAugment):
            def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
                params = super().make_params(flat_inputs)
                params["chosen"][0] = False
                return params

            def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
                return (inpt + super().transform(inpt, params)) / 2

        make_bank(tmp_path)
        options: dict[str, Any] = {"keys_getter": lambda _: KEYS[:4], "check_sources": False}
        views = [torch.rand(2, 3, *SIZE), torch.rand(2, 3, *SIZE)]
        for call in ({}, {"p": 0.6}):
            plain, mask = seeded(gt.BankAugment(tmp_path, 1.0, **options), views, return_mask=True, **call)
            found, own = seeded(BlendFromBank(tmp_path, 1.0, **options), views, return_mask=True, **call)
            assert own.tolist() == [False, *mask[1:].tolist()]
            assert found[0][0].equal(views[0][0])
            for after, before, new in zip(torch.cat(found)[1:], torch.cat(views)[1:], torch.cat(plain)[1:], strict=True):
                assert after.equal((before + new) / 2)

    def test_the_mask_without_variants(self, tmp_path: Path) -> None:
        class Halved(gt.BankAugment):
            def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
                return super().transform(inpt / 2, params)

        make_bank(tmp_path)
        augment = Halved(tmp_path, 1.0, keys_getter=lambda _: [KEYS[0], "none"], missing="source", check_sources=False)
        found, mask = augment(torch.ones(2, 3, *SIZE), return_mask=True)
        assert mask.tolist() == [True, False]
        assert found[1].eq(0.5).all()

    def test_params_of_another_number_of_images_are_refused(self, tmp_path: Path) -> None:
        make_bank(tmp_path)
        augment = gt.BankAugment(tmp_path, 1.0, check_sources=False)
        params = augment.make_params([torch.rand(3, 3, *SIZE)]) | {"keys": KEYS[:3]}
        with pytest.raises(ImageError, match="params are those of 3 images, and the batch has 2"):
            augment.transform(torch.rand(2, 3, *SIZE), params)


class TestRandomGenerative:
    def test_kornias_hooks(self) -> None:
        class Own(RandomGenerative):
            def generate_parameters(self, batch_shape: Any) -> dict[str, Tensor]:
                return super().generate_parameters(batch_shape) | {"weight": torch.full((batch_shape[0],), 0.5)}

            def apply_transform(self, input: Tensor, params: Any, flags: Any, transform: Any = None) -> Tensor:
                return torch.lerp(input, super().apply_transform(input, params, flags, transform), params["weight"][0])

        expected = seeded(RandomGenerative(FakeGenerator(), 0.5), BATCH)
        augment = Own(FakeGenerator(), 0.5)
        torch.testing.assert_close(seeded(augment, BATCH), (BATCH + expected) / 2)
        assert augment._params["weight"].shape == (6,)

    def test_of_those_not_chosen(self) -> None:
        class Dark(RandomGenerative):
            def apply_non_transform(self, input: Tensor, params: Any, flags: Any, transform: Any = None) -> Tensor:
                return torch.zeros_like(input)

        expected = seeded(RandomGenerative(FakeGenerator(), 0.5), BATCH)
        augment = Dark(FakeGenerator(), 0.5)
        found = seeded(augment, BATCH)
        chosen = augment._params["batch_prob"] > 0.5
        assert 0 < chosen.sum() < 6
        assert found[chosen].equal(expected[chosen])
        assert not found[~chosen].any()
