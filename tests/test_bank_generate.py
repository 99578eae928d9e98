"""Filling a bank: what is in it, whatever the shards, batches and failures on the way."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import errno
import importlib.metadata
import io
import itertools
import json
import os
import pickle
import signal
import stat
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
import torch
from bank_sources import Batches, Noise, Photos, is_reader
from small_banks import edit_json, manifest_of
from small_generators import Flat, Hungry, NotFinite, grey_of, tiny_icgan
from torch import Tensor
from torchvision import tv_tensors

import gentransforms as gt
from gentransforms.bank import Local
from gentransforms.bank.format.manifest import COPY, MANIFEST, Facts
from gentransforms.bank.format.unit import Unit, list_units
from gentransforms.bank.generate.plan import make_plan
from gentransforms.bank.generate.run import Summary, generate_bank, plan_bank
from gentransforms.errors import BankError, ConfigError, GeneratorError, MissingInputError
from gentransforms.sources.base import SourceSample
from gentransforms.testing import FakeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")


def lose_manifest(path: Path) -> None:
    """Remove the manifest of a bank, and its copy, which banks of earlier versions do not have."""
    (path / MANIFEST).unlink()
    (path / COPY).unlink()


def fill(path: Path, source: Any = None, generator: Any = None, **options: Any) -> Summary:
    """A bank of PNGs, which show the pixels as they were made."""
    options = {"variants": 3, "unit_size": 4, "image_format": "png", "progress": False} | options
    return generate_bank(source or Photos(), path, generator or FakeGenerator(), **options)


def table(path: Path) -> list[dict[str, Any]]:
    """All rows of a bank, unit by unit, read with pyarrow alone."""
    rows: list[dict[str, Any]] = []
    for unit in sorted(path.glob("unit-*.arrow")):
        with pa.memory_map(str(unit)) as file:
            rows += pa.ipc.open_stream(file).read_all().to_pylist()
    return rows


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of every unit."""
    return {unit.name: unit.read_bytes() for unit in path.glob("unit-*.arrow")}


def contents_of_a_whole(path: Path) -> dict[str, bytes]:
    fill(path)
    return contents(path)


def picture(row: Mapping[str, Any]) -> Any:
    return np.asarray(PIL.Image.open(io.BytesIO(row["image"]["bytes"])))


def sidecars(path: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(path.glob("unit-*.json"))]


SAMPLE = {"index": 0, "key": "photo-000000.jpg", "size": [16, 16], "mark": "", "inputs": ""}


class Features(FakeGenerator):
    """Its feature is a picture's mean colour against grey, and some seeds paint the opposite of their source."""

    instance_feature = "feature"

    def __init__(self, wrong: tuple[int, ...]) -> None:
        super().__init__(8)
        self.wrong = tuple(wrong)

    def encode(self, images: Tensor, **inputs: Any) -> dict[str, Tensor]:
        super().encode(images)
        return {"mean": images.mean((2, 3), keepdim=True), "feature": images.mean((2, 3)) - 0.5}

    def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
        super().sample(condition, seeds)
        wrong = torch.isin(seeds, torch.tensor(self.wrong))[:, None, None, None]
        return torch.where(wrong, 1 - condition["mean"], condition["mean"]).expand(-1, 3, 8, 8).contiguous()


class TestRows:
    def test_every_variant_of_every_source_in_order(self, tmp_path: Path) -> None:
        source = Photos(10)
        summary = fill(tmp_path, source)
        rows = table(tmp_path)
        assert [(row["key"], row["variant"]) for row in rows] == [(key, v) for key in source.keys for v in range(3)]
        assert [row["seed"] for row in rows] == gt.derive_seeds(0, [row["key"] for row in rows], [row["variant"] for row in rows]).tolist()
        assert {row["attempt"] for row in rows} == {0}
        assert (summary.images, summary.units, summary.units_done, summary.complete) == (30, 3, 3, True)
        assert summary.bytes == sum(len(row["image"]["bytes"]) for row in rows)

    def test_an_image_is_the_seeds_and_the_source_at_the_generators_size(self, tmp_path: Path) -> None:
        generator = FakeGenerator(16)
        fill(tmp_path, Photos(10, size=20), generator)
        for row in table(tmp_path):
            index = int(row["key"][6:12])
            noise = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(row["seed"]))
            expected = ((index / 255 + 0.1 * noise).clamp(0, 1) * 255).round()
            np.testing.assert_allclose(picture(row), expected.permute(1, 2, 0).numpy(), atol=1)

    def test_an_entry_can_be_made_again_online(self, tmp_path: Path) -> None:
        generator, rng = tiny_icgan(), torch.Generator().manual_seed(0)
        photos = [torch.randint(256, (3, 40, 48), dtype=torch.uint8, generator=rng) for _ in range(5)]
        fill(tmp_path, photos, generator)
        online = gt.GenerativeAugment(generator, 1.0, seeds_getter=lambda sample: sample["seed"], output_size="generator")
        for row in table(tmp_path)[::4]:
            again = online({"image": tv_tensors.Image(photos[row["key"]]), "seed": row["seed"]})["image"]
            np.testing.assert_allclose(picture(row).astype(int), again.permute(1, 2, 0).numpy().astype(int), atol=1)

    @pytest.mark.parametrize("size", [1, 7, 64])
    def test_batches_change_no_image_by_more_than_a_255th(self, tmp_path: Path, size: int) -> None:
        photos = [torch.randint(256, (3, 32, 32), dtype=torch.uint8) for _ in range(9)]
        fill(tmp_path / "reference", photos, tiny_icgan(), batch_size=27)
        fill(tmp_path / "bank", photos, tiny_icgan(), batch_size=size)
        pairs = list(zip(table(tmp_path / "reference"), table(tmp_path / "bank"), strict=True))
        assert len(pairs) == 27
        for ours, theirs in pairs:
            np.testing.assert_allclose(picture(ours).astype(int), picture(theirs).astype(int), atol=1)

    @pytest.mark.parametrize("image_format", ["jpeg", "webp"])
    def test_lossy_formats_are_what_they_say(self, tmp_path: Path, image_format: str) -> None:
        fill(tmp_path / "fine", generator=Flat((16, 16)), image_format=image_format, quality=95)
        fill(tmp_path / "coarse", image_format=image_format, quality=10)
        fill(tmp_path / "sharp", image_format=image_format, quality=95)
        for row in table(tmp_path / "fine"):
            opened = PIL.Image.open(io.BytesIO(row["image"]["bytes"]))
            assert (opened.format, opened.size, opened.mode) == (image_format.upper(), (16, 16), "RGB")
            np.testing.assert_allclose(np.asarray(opened), 255 * grey_of(row["seed"]), atol=4)
        assert sum(map(len, contents(tmp_path / "coarse").values())) < sum(map(len, contents(tmp_path / "sharp").values()))

    def test_jpegs_have_the_quality_asked_for(self, tmp_path: Path) -> None:
        generator = tiny_icgan()
        photo = torch.rand(3, 32, 32)
        fill(tmp_path, [photo], generator, image_format="jpeg", quality=90, variants=1)
        row = table(tmp_path)[0]
        pixels = (generator(photo[None], torch.tensor([row["seed"]]))[0] * 255).round().clamp(0, 255).byte()
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=90)
        assert PIL.Image.open(buffer).quantization == PIL.Image.open(io.BytesIO(row["image"]["bytes"])).quantization
        theirs, ours = np.asarray(PIL.Image.open(buffer)).astype(int), picture(row).astype(int)
        assert np.abs(ours - theirs).mean() < 1

    @pytest.mark.parametrize("image_format", ["jpeg", "png"])
    def test_pillow_encodes_where_torchvision_does_not(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_format: str) -> None:
        from gentransforms.bank.format import images as encoding

        fill(tmp_path / "torchvision", image_format=image_format)
        monkeypatch.setattr(encoding, "_operator", lambda _format: None)
        fill(tmp_path / "pillow", image_format=image_format)
        for ours, theirs in zip(table(tmp_path / "torchvision"), table(tmp_path / "pillow"), strict=True):
            limit = 0 if image_format == "png" else 12
            assert np.abs(picture(ours).astype(int) - picture(theirs).astype(int)).max() <= limit
        with pytest.raises(BankError, match='encoder: the bank has "torchvision", this call "pillow"'):
            fill(tmp_path / "torchvision", image_format=image_format)

    def test_keys_of_one_type_keep_it(self, tmp_path: Path) -> None:
        fill(tmp_path, [torch.rand(3, 8, 8)] * 2, variants=1)
        assert [row["key"] for row in table(tmp_path)] == [0, 1]

    def test_other_base_seeds_are_other_images(self, tmp_path: Path) -> None:
        fill(tmp_path / "a")
        fill(tmp_path / "b", base_seed=1)
        assert not {row["seed"] for row in table(tmp_path / "a")} & {row["seed"] for row in table(tmp_path / "b")}


class TestBatches:
    def test_a_source_is_encoded_once_and_batches_are_full(self, tmp_path: Path) -> None:
        generator = Batches((8, 8))
        fill(tmp_path, Photos(10), generator, batch_size=4, unit_size=10, variants=6)
        assert generator.encoded == [4, 4, 2]
        assert generator.sampled == [4] * 6 + [4] * 6 + [4] * 3

    def test_batches_do_not_cross_units(self, tmp_path: Path) -> None:
        generator = Batches((8, 8))
        fill(tmp_path, Photos(10), generator, batch_size=64, unit_size=4, variants=3)
        assert (generator.encoded, generator.sampled) == ([4, 4, 2], [12, 12, 6])

    def test_many_variants_of_one_source_are_several_batches(self, tmp_path: Path) -> None:
        generator = Batches((8, 8))
        fill(tmp_path, Photos(1), generator, batch_size=4, variants=10)
        assert (generator.encoded, generator.sampled) == ([1], [4, 4, 2])

    def test_the_generator_is_frozen_and_sees_no_autocast(self, tmp_path: Path) -> None:
        class Asking(FakeGenerator):
            asked: tuple[bool, ...] = ()

            def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
                self.asked = (self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"))
                return super().sample(condition, seeds)

        generator = Asking().train()
        with torch.autocast("cpu", torch.bfloat16):
            fill(tmp_path, generator=generator)
        assert generator.asked == (False, False, False)

    def test_inputs_are_handed_over_for_each_source(self, tmp_path: Path) -> None:
        generator = Batches((8, 8), inputs=("labels", "prompts", "masks"))
        fill(tmp_path, Photos(6, inputs=("labels", "prompts", "masks")), generator, unit_size=3)
        assert [given["labels"].tolist() for given in generator.given] == [[0, 1, 2], [3, 4, 5]]
        assert generator.given[1]["prompts"] == [f"a photo of number {i}" for i in (3, 4, 5)]
        assert generator.given[1]["masks"].shape == (3, 4, 4)
        assert json.loads((tmp_path / MANIFEST).read_text())["source"]["inputs"] == ["labels", "prompts", "masks"]

    def test_inputs_that_no_one_takes_stay_behind(self, tmp_path: Path) -> None:
        generator = Batches((8, 8), inputs=("labels",))
        fill(tmp_path, Photos(6, inputs=("labels", "prompts")), generator)
        assert set(generator.given[0]) == {"labels"}

    def test_an_input_that_is_needed_must_be_there(self, tmp_path: Path) -> None:
        class Needy(FakeGenerator):
            inputs = ("prompts",)

            def encode(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:  # type: ignore[override]
                return super().encode(images)

        with pytest.raises(MissingInputError, match=r"prompts are missing: Needy needs them.*columns="):
            fill(tmp_path, Photos(3, inputs=("labels",)), Needy())
        assert not list(tmp_path.iterdir())


class TestShards:
    def test_three_shards_make_the_same_bytes(self, tmp_path: Path) -> None:
        photos = [torch.randint(256, (3, 32, 32), dtype=torch.uint8) for _ in range(20)]
        fill(tmp_path / "whole", photos, tiny_icgan(), image_format="jpeg")
        for i in (2, 0, 1):
            summary = fill(tmp_path / "shards", photos, tiny_icgan(), image_format="jpeg", shard=f"{i}/3")
            assert summary.complete
        assert contents(tmp_path / "shards") == contents(tmp_path / "whole")
        assert [summary.units for summary in (summary,)] == [2], "a shard counts its own units"

    def test_the_number_of_workers_changes_no_byte(self, tmp_path: Path) -> None:
        for workers in (1, 4):
            fill(tmp_path / str(workers), Photos(9), tiny_icgan(), engine=Local(workers=workers))
        assert contents(tmp_path / "1") == contents(tmp_path / "4")

    @pytest.mark.parametrize("shard", ["3/3", "-1/3", "1", "a/b", "0/0", (0, 1, 2)])
    def test_a_shard_that_is_none(self, tmp_path: Path, shard: Any) -> None:
        with pytest.raises(ConfigError, match="expected 'i/n' with i from 0 to n - 1"):
            fill(tmp_path, shard=shard)


class TestResume:
    def test_nothing_is_made_twice(self, tmp_path: Path) -> None:
        fill(tmp_path)
        before, generator = contents(tmp_path), FakeGenerator()
        summary = fill(tmp_path, generator=generator)
        assert (summary.images, summary.complete, generator.calls) == (0, True, 0)
        assert contents(tmp_path) == before

    def test_only_units_that_are_missing_are_made(self, tmp_path: Path) -> None:
        fill(tmp_path)
        before = contents(tmp_path)
        (tmp_path / Unit(4, 8).file).unlink()
        assert fill(tmp_path).images == 12
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("damage", ["half", "empty", "no sidecar", "sidecar cut"])
    def test_a_damaged_unit_is_made_again(self, tmp_path: Path, damage: str) -> None:
        fill(tmp_path)
        before = contents(tmp_path)
        file, sidecar = tmp_path / Unit(4, 8).file, tmp_path / Unit(4, 8).sidecar
        if damage == "half":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        elif damage == "empty":
            file.write_bytes(b"")
        elif damage == "no sidecar":
            sidecar.unlink()
        else:
            sidecar.write_text(sidecar.read_text()[:20])
        assert fill(tmp_path).images == 12
        assert contents(tmp_path) == before
        assert len(sidecars(tmp_path)) == 3

    def test_a_lost_manifest_is_written_anew(self, tmp_path: Path) -> None:
        fill(tmp_path)
        manifest = json.loads((tmp_path / MANIFEST).read_text())
        lose_manifest(tmp_path)
        assert fill(tmp_path).images == 0
        again = json.loads((tmp_path / MANIFEST).read_text())
        assert {**again, "info": None} == {**manifest, "info": None}

    def test_a_lost_manifest_is_not_replaced_by_another(self, tmp_path: Path) -> None:
        fill(tmp_path)
        lose_manifest(tmp_path)
        with pytest.raises(BankError, match=r"bank\.json is missing, and unit-000000000-000000004\.arrow was made with other settings"):
            fill(tmp_path, base_seed=1)
        assert not (tmp_path / MANIFEST).exists()

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"variants": 4}, "variants: the bank has 3, this call 4"),
            ({"base_seed": 1}, "base_seed: the bank has 0, this call 1"),
            ({"batch_size": 5}, "batch_size: the bank has 64, this call 5"),
            ({"unit_size": 5}, "unit_size: the bank has 4, this call 5"),
            ({"image_format": "jpeg"}, 'image_format: the bank has "png", this call "jpeg"'),
            ({"min_similarity": 0.5, "generator": Features(())}, "min_similarity: the bank has nothing, this call 0.5"),
            (
                {"source": Photos(inputs=("labels",)), "generator": Flat((16, 16), inputs=("labels",))},
                'source inputs: the bank has [], this call ["labels"]',
            ),
            ({"max_attempts": 9}, "max_attempts: the bank has 5, this call 9"),
            ({"threads": 3}, "threads: the bank has 1, this call 3"),
            ({"source": Photos(9)}, "source count: the bank has 10, this call 9"),
            ({"source": Photos(names="other-{:06d}.jpg")}, "source keys: 10 of the bank's are missing from the source"),
            ({"generator": FakeGenerator(8)}, "generator fingerprint: the bank has"),
            ({"generator": Flat((16, 16))}, 'generator class: the bank has "FakeGenerator", this call "Flat"'),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_other_settings_are_refused_by_name(self, tmp_path: Path, change: dict[str, Any], named: str) -> None:
        fill(tmp_path)
        before = contents(tmp_path)
        with pytest.raises(BankError, match="this bank was made with other settings") as refused:
            fill(tmp_path, **change)
        assert named in str(refused.value)
        assert contents(tmp_path) == before

    @pytest.mark.parametrize(
        "samples",
        [
            [{"index": 0, "key": "photo-000000.jpg", "mean": [7.0]}], "none", [3], [{**SAMPLE, "mark": "!!!"}], [{**SAMPLE, "mark": "AAA"}],
            [{**SAMPLE, "mark": "AAAA"}], [{**SAMPLE, "mark": None}], [{**SAMPLE, "index": 1_000}], [{**SAMPLE, "index": "0"}],
        ],
    )  # fmt: skip
    def test_samples_of_another_version_are_explained(self, tmp_path: Path, samples: Any) -> None:
        fill(tmp_path)
        manifest = json.loads((tmp_path / MANIFEST).read_text())
        edit_json(tmp_path / MANIFEST, info=manifest["info"] | {"samples": samples})
        with pytest.raises(BankError, match=r"bank\.json: info samples is not what this version .* another directory; .* remove samples"):
            fill(tmp_path)
        del manifest["info"]["samples"]
        edit_json(tmp_path / MANIFEST, info=manifest["info"])
        assert fill(tmp_path).complete

    def test_quality_is_a_setting_of_what_has_one(self, tmp_path: Path) -> None:
        fill(tmp_path / "jpeg", image_format="jpeg")
        with pytest.raises(BankError, match="quality: the bank has 90, this call 50"):
            fill(tmp_path / "jpeg", image_format="jpeg", quality=50)
        fill(tmp_path / "png")
        assert fill(tmp_path / "png", quality=50).images == 0

    @pytest.mark.parametrize("what", ["colour", "size", "labels"])
    def test_other_sources_under_the_same_keys_are_refused(self, tmp_path: Path, what: str) -> None:
        class Others(Photos):
            def read(self, index: int) -> SourceSample:
                sample = super().read(index)
                image = sample.image + 40 if what == "colour" else sample.image[:, :8] if what == "size" else sample.image
                return SourceSample(image, {"labels": index % 7 + (what == "labels")})

        fill(tmp_path, Photos(10, inputs=("labels",)), Flat((16, 16), inputs=("labels",)), shard="0/2")
        with pytest.raises(BankError, match=r"the source is not the one that this bank was started with: the .* of 'photo-00000\d.jpg'"):
            fill(tmp_path, Others(10, inputs=("labels",)), Flat((16, 16), inputs=("labels",)))
        assert fill(tmp_path, Photos(10, broken=[0, 5], inputs=("labels",)), Flat((16, 16), inputs=("labels",))).complete

    def test_rows_in_another_order_are_refused(self, tmp_path: Path) -> None:
        """Rows 0, 12 and 23, the first, the middle and the last, stay where they were."""
        order = [0, *range(11, 0, -1), 12, *range(22, 12, -1), 23]
        fill(tmp_path, Noise(range(24)), shard="0/2")
        before = contents(tmp_path)
        with pytest.raises(BankError, match=r"the source is not the one that .*: the image of 'photo-000001.jpg' is a different one"):
            fill(tmp_path, Noise(order))
        assert contents(tmp_path) == before
        assert fill(tmp_path, Noise(range(24))).complete

    def test_images_of_one_mean_colour_are_told_apart(self, tmp_path: Path) -> None:
        fill(tmp_path, Noise(range(10), size=128), shard="0/2")
        with pytest.raises(BankError, match=r"the image of 'photo-000000\.jpg' is a different one"):
            fill(tmp_path, Noise(range(9, -1, -1), size=128))

    def test_at_most_64_sources_are_compared(self, tmp_path: Path) -> None:
        class Noting(Photos):
            def read(self, index: int) -> SourceSample:
                if not is_reader():
                    seen.append(index)
                return super().read(index)

        seen: list[int] = []
        fill(tmp_path, Noting(300), unit_size=100)
        begun, seen = seen, []
        fill(tmp_path, Noting(300), unit_size=100)
        assert seen == begun
        assert (len(seen), seen[0], seen[-1]) == (64, 0, 299)
        assert {b - a for a, b in itertools.pairwise(seen)} == {4, 5}, "spread evenly"

    @pytest.mark.parametrize("extend", [{"variants": 5}, {"source": Photos(12)}], ids=["variants", "sources"])
    def test_a_run_of_before_the_bank_was_extended_writes_no_more(self, tmp_path: Path, extend: dict[str, Any]) -> None:
        """Another process extends the bank, and finishes it, between two units of this run."""
        whole: dict[str, bytes] = {}

        class Overtaken(FakeGenerator):
            def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
                if not whole:
                    fill(tmp_path, **{"extend": True, **extend})
                    whole.update(contents(tmp_path))
                return super().sample(condition, seeds)

        Overtaken.__name__ = "FakeGenerator"  # the manifest names the class
        with pytest.raises(BankError, match=r"another process has extended the bank.*run it again with"):
            fill(tmp_path, generator=Overtaken())
        assert whole
        assert contents(tmp_path) == whole
        assert not list(tmp_path.glob("former-*"))
        assert fill(tmp_path, **extend).images == 0

    def test_a_grey_level_more_is_another_decoder(self, tmp_path: Path) -> None:
        class Brighter(Photos):
            def read(self, index: int) -> SourceSample:
                return SourceSample(super().read(index).image + 1)

        fill(tmp_path, shard="0/2")
        assert fill(tmp_path, Brighter()).complete

    def test_a_unit_of_other_settings_is_named(self, tmp_path: Path) -> None:
        fill(tmp_path / "a", base_seed=1)
        fill(tmp_path / "b", shard="0/2")
        for name in (Unit(4, 8).file, Unit(4, 8).sidecar):
            (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
        with pytest.raises(BankError, match=r"unit-000000004-000000008\.arrow: was made with other settings than this bank's"):
            fill(tmp_path / "b")
        lose_manifest(tmp_path / "b")
        with pytest.raises(BankError, match=r"bank\.json is missing, and unit-000000004-000000008\.arrow was made with other settings"):
            fill(tmp_path / "b")

    def test_a_lost_manifest_and_a_lost_sidecar(self, tmp_path: Path) -> None:
        fill(tmp_path)
        lose_manifest(tmp_path)
        (tmp_path / Unit(0, 4).sidecar).unlink()
        with pytest.raises(BankError, match=r"is missing, and so is unit-000000000-000000004\.json"):
            fill(tmp_path)

    def test_retrained_weights_are_another_generator(self, tmp_path: Path) -> None:
        fill(tmp_path)
        other = FakeGenerator()
        with torch.no_grad():
            other.strength.fill_(0.2)
        with pytest.raises(BankError, match="generator fingerprint"):
            fill(tmp_path, generator=other)

    @pytest.mark.parametrize(("version", "message"), [(0, "use the version of gentransforms that wrote it"), (2, "upgrade gentransforms")])
    def test_formats_of_other_versions(self, tmp_path: Path, version: int, message: str) -> None:
        fill(tmp_path)
        manifest = json.loads((tmp_path / MANIFEST).read_text())
        (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"format_version": version}))
        with pytest.raises(BankError, match=message):
            fill(tmp_path)

    def test_a_manifest_that_is_no_json(self, tmp_path: Path) -> None:
        fill(tmp_path)
        lose_manifest(tmp_path)
        (tmp_path / MANIFEST).write_text("{")
        with pytest.raises(BankError, match=r"bank\.json: not JSON .* move it away and run generate"):
            fill(tmp_path)

    def test_other_versions_are_told(self, tmp_path: Path) -> None:
        fill(tmp_path)
        manifest = json.loads((tmp_path / MANIFEST).read_text())
        manifest["info"]["versions"]["torch"] = "1.0"
        edit_json(tmp_path / MANIFEST, info=manifest["info"])
        with pytest.warns(UserWarning, match=r"started with other versions \(torch 1\.0 -> "):
            fill(tmp_path)

    def test_the_loser_of_a_race_takes_the_winners_threads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from gentransforms.bank.generate import begin

        original = begin.create_manifest

        def lose(directory: Path, manifest: Any) -> bool:
            original(directory, manifest | {"settings": manifest["settings"] | {"threads": 2}})
            return original(directory, manifest)

        monkeypatch.setattr(begin, "create_manifest", lose)
        assert fill(tmp_path).complete
        assert json.loads((tmp_path / MANIFEST).read_text())["settings"]["threads"] == 2
        monkeypatch.undo()
        assert gt.Bank.open(tmp_path).verify().ok

    def test_torch_defaults_change_nothing(self, tmp_path: Path) -> None:
        fill(tmp_path / "plain", generator=tiny_icgan())
        generator = tiny_icgan()
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        try:
            fill(tmp_path / "odd", generator=generator)
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
        assert contents(tmp_path / "odd") == contents(tmp_path / "plain")

    def test_threads_are_the_banks(self, tmp_path: Path) -> None:
        used = []

        class Asking(FakeGenerator):
            def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
                used.append(torch.get_num_threads())
                return super().sample(condition, seeds)

        fill(tmp_path, generator=Asking(), threads=2)
        (tmp_path / Unit(0, 4).file).unlink()
        fill(tmp_path, generator=Asking())
        assert set(used) == {2}
        assert torch.get_num_threads() == 1, "put back"

    def test_the_format_too_where_the_call_leaves_it_open(self, tmp_path: Path) -> None:
        options = {"variants": 2, "progress": False}
        gt.generate_bank(Photos(), tmp_path, FakeGenerator(), image_format="jpeg", quality=70, **options)  # type: ignore[arg-type]
        (tmp_path / Unit(0, 10).file).unlink()
        gt.generate_bank(Photos(), tmp_path, FakeGenerator(), **options)  # type: ignore[arg-type]
        assert {PIL.Image.open(io.BytesIO(row["image"]["bytes"])).format for row in table(tmp_path)} == {"JPEG"}
        with pytest.raises(BankError, match='image_format: the bank has "jpeg", this call "png"'):
            gt.generate_bank(Photos(), tmp_path, FakeGenerator(), image_format="png", **options)  # type: ignore[arg-type]


class TestManifest:
    def test_says_each_thing_in_one_place(self, tmp_path: Path) -> None:
        generator = FakeGenerator(16)
        fill(tmp_path, Photos(10, inputs=("labels",)), generator, threads=2, min_similarity=None)
        manifest = json.loads((tmp_path / MANIFEST).read_text())
        expected = gt.BankConfig(variants=3, unit_size=4, image_format="png", threads=2)
        assert manifest["settings"] == dataclasses.asdict(expected)
        assert manifest["generator"] == {
            "class": "FakeGenerator", "fingerprint": generator.fingerprint(), "config": generator.config, "preserves_geometry": False,
            "image_size": [16, 16],
        }  # fmt: skip
        source = manifest["source"]
        assert (source.pop("count"), source.pop("key_type"), source.pop("inputs"), source.pop("decides")) == (10, "str", [], {})
        assert list(source) == ["keys"]
        assert (manifest["device"], manifest["encoder"]) == ("cpu", "torchvision")
        assert set(manifest["info"]) == {"created", "versions", "samples", "source", "generator_name", "generator_notes", "execution"}
        assert manifest["info"]["versions"]["torch"] == importlib.metadata.version("torch")

    def test_the_default_is_png_for_small_images_and_jpeg_for_large(self, tmp_path: Path) -> None:
        for size, expected in ((64, "PNG"), (72, "JPEG")):
            gt.generate_bank(Photos(2), tmp_path / expected, FakeGenerator(size), variants=1, progress=False)
            assert {PIL.Image.open(io.BytesIO(row["image"]["bytes"])).format for row in table(tmp_path / expected)} == {expected}

    def test_a_config_is_the_same_as_its_settings_by_name(self, tmp_path: Path) -> None:
        config = gt.BankConfig(variants=2, base_seed=5, image_format="png")
        gt.generate_bank(Photos(), tmp_path / "a", FakeGenerator(), config, unit_size=3, progress=False)
        gt.generate_bank(
            Photos(), tmp_path / "b", FakeGenerator(), variants=2, base_seed=5, image_format="png", unit_size=3, progress=False
        )
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_weights_are_hashed_once_in_a_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hashed: list[object] = []
        original = FakeGenerator.fingerprint
        monkeypatch.setattr(FakeGenerator, "fingerprint", lambda self: (hashed.append(self), original(self))[1])
        for runs in (1, 2):
            fill(tmp_path)
            assert len(hashed) == runs

    def test_versions_are_looked_up_package_by_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """All distributions together take 0.2 s."""
        from importlib import metadata

        from gentransforms.bank.generate import begin

        begin._package_versions.cache_clear()
        monkeypatch.setattr(metadata, "distributions", lambda *_, **__: pytest.fail("looked at every package installed"))
        fill(tmp_path)
        begin._package_versions.cache_clear()


class Backwards:
    """A user's engine: the last unit first, one after the other, noting what it was given."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []

    def make_units(self, job: Any, units: Any, *, on_images: Any, stopped: Any) -> Any:
        self.jobs.append(job)
        for unit in reversed(units):
            if stopped():
                return
            yield from Local(workers=1).make_units(pickle.loads(pickle.dumps(job)), [unit], on_images=on_images, stopped=stopped)


class TestEngines:
    def test_a_users_engine_makes_the_same_bytes(self, tmp_path: Path) -> None:
        fill(tmp_path / "local", Photos(10, broken=[3]), tiny_icgan())
        engine = Backwards()
        summary = fill(tmp_path / "bank", Photos(10, broken=[3]), tiny_icgan(), engine=engine)
        assert contents(tmp_path / "bank") == contents(tmp_path / "local")
        assert (summary.images, summary.units_done, summary.complete, len(summary.failed)) == (27, 3, True, 1)
        (job,) = engine.jobs
        assert (job.directory, job.device, job.config.variants, len(job.source)) == (tmp_path / "bank", "cpu", 3, 10)

    def test_it_gets_what_is_missing_alone(self, tmp_path: Path) -> None:
        given: list[Any] = []

        class Noting:
            def make_units(self, job: Any, units: Any, *, on_images: Any, stopped: Any) -> list[Any]:
                given.append(list(units))
                return []  # any iterable will do

        fill(tmp_path, shard="1/3")
        assert not fill(tmp_path, engine=Noting()).complete
        assert given == [[Unit(0, 4), Unit(8, 10)]]

    def test_it_is_told_of_ctrl_c_and_ended(self, tmp_path: Path) -> None:
        ended: list[bool] = []

        class Interrupted:
            def make_units(self, job: Any, units: Any, *, on_images: Any, stopped: Any) -> Any:
                try:
                    for report in Local().make_units(job, units, on_images=on_images, stopped=stopped):
                        os.kill(os.getpid(), signal.SIGINT)
                        time.sleep(0.01)
                        assert stopped()
                        yield report
                        return
                finally:
                    ended.append(True)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                fill(tmp_path, engine=Interrupted())
        finally:
            signal.signal(signal.SIGINT, before)
        assert ended == [True]

    def test_a_device_of_its_own_is_the_banks(self, tmp_path: Path) -> None:
        class Elsewhere(Backwards):
            device = "cuda"

            def make_units(self, job: Any, units: Any, *, on_images: Any, stopped: Any) -> Any:
                self.jobs.append(job)
                return iter(())

        engine = Elsewhere()
        fill(tmp_path, engine=engine)
        assert (engine.jobs[0].device, engine.jobs[0].config.threads) == ("cuda", None)
        assert json.loads((tmp_path / MANIFEST).read_text())["device"] == "cuda"

    @pytest.mark.parametrize("workers", [0, -1, 1.5, "two", True])
    def test_workers_out_of_range(self, workers: Any) -> None:
        with pytest.raises(ConfigError, match=r"workers=.*expected a positive integer"):
            Local(workers=workers)


class TestDirectories:
    def test_other_peoples_files_are_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "holiday.jpg").write_bytes(b"x")
        with pytest.raises(BankError, match=r"holds other files \(holiday\.jpg, …\): expected a directory that is new, empty or a bank's"):
            fill(tmp_path)

    def test_a_file_is_no_directory(self, tmp_path: Path) -> None:
        (tmp_path / "bank").write_text("")
        with pytest.raises(BankError, match="is a file"):
            fill(tmp_path / "bank")

    def test_parents_are_made(self, tmp_path: Path) -> None:
        assert fill(tmp_path / "a" / "b").complete

    def test_nothing_unfinished_is_left_behind(self, tmp_path: Path) -> None:
        fill(tmp_path)
        assert {path.suffix for path in tmp_path.iterdir() if path.name not in (".lock", COPY)} == {".arrow", ".json"}


class TestBegunMeanwhile:
    """Another process begins the same bank between this one's look at the directory and its own manifest."""

    def interleave(self, monkeypatch: pytest.MonkeyPatch, other: Callable[[], object]) -> None:
        from gentransforms.bank.generate import begin

        original, done = begin._check_empty, []

        def check(*arguments: Any) -> None:
            if not done:
                done.append(True)
                other()
            original(*arguments)

        monkeypatch.setattr(begin, "_check_empty", check)

    @pytest.mark.parametrize("units", [0, 1])
    def test_the_same_bank_is_shared(self, units: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Few:
            """An engine that leaves after so many units."""

            def make_units(self, job: Any, planned: Any, **options: Any) -> Any:
                return gt.bank.Local().make_units(job, planned[:units], **options)

        self.interleave(monkeypatch, lambda: fill(tmp_path / "bank", engine=Few()))
        assert fill(tmp_path / "bank").complete
        assert contents(tmp_path / "bank") == contents_of_a_whole(tmp_path / "whole")

    def test_other_settings_are_still_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.interleave(monkeypatch, lambda: fill(tmp_path / "bank", variants=2, shard="0/2"))
        with pytest.raises(BankError, match="variants"):
            fill(tmp_path / "bank")


class TestFailedSources:
    def test_is_recorded_and_the_others_are_made(self, tmp_path: Path) -> None:
        summary = fill(tmp_path, Photos(10, broken=[2, 9]))
        reason = "truncated: the file ends in the middle of the image"
        assert [(entry["key"], entry["index"]) for entry in summary.failed] == [("photo-000002.jpg", 2), ("photo-000009.jpg", 9)]
        assert {entry["reason"] for entry in summary.failed} == {reason}
        assert (summary.images, summary.complete) == (24, True)
        assert not {"photo-000002.jpg", "photo-000009.jpg"} & {row["key"] for row in table(tmp_path)}
        assert fill(tmp_path, Photos(10, broken=[2, 9])).failed == summary.failed, "told again by a run that makes nothing"

    def test_its_neighbours_do_not_change(self, tmp_path: Path) -> None:
        photos = [torch.randint(256, (3, 32, 32), dtype=torch.uint8) for _ in range(8)]
        fill(tmp_path / "good", photos, tiny_icgan())
        fill(tmp_path / "bad", [torch.zeros(5, 1, 1) if i == 1 else photo for i, photo in enumerate(photos)], tiny_icgan())
        good = {(row["key"], row["variant"]): row["image"]["bytes"] for row in table(tmp_path / "good")}
        bad = {(row["key"], row["variant"]): row["image"]["bytes"] for row in table(tmp_path / "bad")}
        assert bad == {place: image for place, image in good.items() if place[0] != 1}

    def test_of_a_whole_block(self, tmp_path: Path) -> None:
        summary = fill(tmp_path, Photos(10, broken=range(4, 8)), generator=(generator := Batches((8, 8))), batch_size=2)
        assert (summary.images, len(summary.failed), summary.complete) == (18, 4, True)
        assert generator.encoded == [2, 2, 2], "nothing is generated of sources that are not there"

    def test_inputs_of_the_others_stay_theirs(self, tmp_path: Path) -> None:
        generator = Batches((8, 8), inputs=("labels",))
        fill(tmp_path, Photos(4, broken=[0], inputs=("labels",)), generator)
        assert generator.given[0]["labels"].tolist()[1:] == [1, 2, 3]

    def test_once_mended_it_is_made_on_request(self, tmp_path: Path) -> None:
        fill(tmp_path / "whole")
        fill(tmp_path / "bank", Photos(10, broken=[2]))
        assert fill(tmp_path / "bank", Photos(10)).images == 0
        summary = fill(tmp_path / "bank", Photos(10), retry_failed=True)
        assert (summary.images, summary.failed) == (12, ())
        assert contents(tmp_path / "bank") == contents(tmp_path / "whole")

    @pytest.mark.parametrize("same", [True, False])
    def test_those_made_again_with_it_are_compared(self, tmp_path: Path, same: bool) -> None:
        """The other sources of its unit, which would be replaced by the variants of other images."""
        fill(tmp_path, Noise(range(130)), unit_size=50)
        sidecar = tmp_path / list_units(tmp_path)[0].sidecar
        samples = {sample["index"] for sample in json.loads((tmp_path / MANIFEST).read_text())["info"]["samples"]}
        broken, a, b = sorted(set(range(50)) - samples)[:3]
        told = json.loads(sidecar.read_text())
        reason = {"key": f"photo-{broken:06d}.jpg", "index": broken, "reason": "it could not be read then"}
        marks = base64.b64decode(told["marks"])
        told |= {"failed": [reason], "marks": base64.b64encode(marks[: broken * 48] + marks[broken * 48 + 48 :]).decode()}
        sidecar.write_text(json.dumps(told))
        before, order = contents(tmp_path), list(range(130))
        if same:
            assert fill(tmp_path, Noise(order), unit_size=50, retry_failed=True).images == 150
            return
        order[a], order[b] = b, a
        with pytest.raises(BankError, match=f"the image of 'photo-{a:06d}.jpg' is a different one"):
            fill(tmp_path, Noise(order), unit_size=50, retry_failed=True)
        assert contents(tmp_path) == before

    def test_a_batch_is_no_image(self, tmp_path: Path) -> None:
        class Batched(Photos):
            def read(self, index: int) -> SourceSample:
                image = super().read(index).image
                return SourceSample(torch.stack([image, image]) if index == 1 else image)

        summary = fill(tmp_path, Batched(3))
        assert [(entry["key"], entry["reason"]) for entry in summary.failed] == [
            ("photo-000001.jpg", "2 images of shape (2, 3, 16, 16): expected one, (C, H, W)")
        ]

    def test_an_image_outside_the_range_is_one(self, tmp_path: Path) -> None:
        summary = fill(tmp_path, [torch.rand(3, 8, 8), torch.full((3, 8, 8), 2.0)])
        assert [entry["key"] for entry in summary.failed] == [1]
        assert "expected the range [0, 1]" in summary.failed[0]["reason"]


class TestAttempts:
    def seeds(self, variants: list[int], key: str = "photo-000001.jpg") -> list[int]:
        return gt.derive_seeds(0, [key] * len(variants), variants).tolist()

    def test_what_is_not_finite_is_drawn_again(self, tmp_path: Path) -> None:
        first, second, third = self.seeds([1, 1 + 3, 1 + 6])
        fill(tmp_path / "clean")
        summary = fill(tmp_path / "bank", generator=NotFinite((first, second)))
        assert (summary.retried, summary.rejected, summary.images) == (1, (), 30)
        clean, rows = table(tmp_path / "clean"), table(tmp_path / "bank")
        for ours, theirs in zip(rows, clean, strict=True):
            if (ours["key"], ours["variant"]) == ("photo-000001.jpg", 1):
                assert (ours["attempt"], ours["seed"]) == (2, third)
            else:
                assert ours == theirs

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_and_given_up_at_last(self, tmp_path: Path, value: float) -> None:
        summary = fill(tmp_path, generator=NotFinite(tuple(self.seeds([2, 5])), value), max_attempts=2)
        assert summary.rejected == (
            {"key": "photo-000001.jpg", "index": 1, "variant": 2, "attempts": 2, "reason": "the generator made NaN or infinity"},
        )
        assert (summary.images, summary.complete) == (29, True)
        assert ("photo-000001.jpg", 2) not in {(row["key"], row["variant"]) for row in table(tmp_path)}

    def test_what_is_too_far_from_its_source_is_drawn_again(self, tmp_path: Path) -> None:
        wrong = (*self.seeds([0, 3, 1]), *self.seeds([2, 5], "photo-000003.jpg"))
        summary = fill(tmp_path / "gate", generator=Features(wrong), min_similarity=0.5, max_attempts=2)
        draws = {(row["key"], row["variant"]): row["attempt"] for row in table(tmp_path / "gate")}
        assert draws.pop(("photo-000001.jpg", 1)) == 1
        assert set(draws.values()) == {0}
        gone = {("photo-000001.jpg", 0), ("photo-000003.jpg", 2)}
        assert {(entry["key"], entry["variant"]) for entry in summary.rejected} == gone
        assert "similarity -1.000, below min_similarity=0.5" in summary.rejected[0]["reason"]
        assert (summary.retried, summary.images) == (1, 28)
        assert fill(tmp_path / "open", generator=Features(wrong)).retried == 0

    def test_the_gate_needs_a_feature(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="FakeGenerator has no instance feature to compare by"):
            fill(tmp_path, min_similarity=0.5)

    def test_icgan_and_the_gate(self, tmp_path: Path) -> None:
        photos = [torch.rand(3, 32, 32) for _ in range(4)]
        generator = tiny_icgan()
        free = fill(tmp_path / "free", photos, generator, min_similarity=-1.0)
        strict = fill(tmp_path / "strict", photos, generator, min_similarity=1.0, max_attempts=2)
        assert (free.images, free.rejected) == (12, ())
        assert (strict.images, len(strict.rejected)) == (0, 12), "no variant is its source"


class TestNothingFinite:
    """A generator that makes nothing but NaN must not fill a bank of no images."""

    class Broken(FakeGenerator):
        until = 10**9

        def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
            images = super().sample(condition, seeds)
            return images * float("nan") if self.calls <= self.until else images

    @pytest.mark.parametrize("unit_size", [1, 4, 100])
    def test_stops_early_and_writes_nothing(self, tmp_path: Path, unit_size: int) -> None:
        generator = self.Broken()
        with pytest.raises(GeneratorError, match=r"Broken made NaN or infinity .* first 8 sources, 2 attempts each.*dtype"):
            fill(tmp_path, Photos(100), generator, unit_size=unit_size, max_attempts=2, batch_size=3)
        assert list_units(tmp_path) == [], "so that a generator that was put right begins anew"
        assert generator.calls <= 8 * 2

    def test_a_few_bad_sources_at_the_beginning_are_theirs(self, tmp_path: Path) -> None:
        generator = self.Broken()
        generator.until = 7
        summary = fill(tmp_path, Photos(10), generator, unit_size=1, max_attempts=1)
        assert (summary.images, len(summary.rejected), summary.units_done, summary.complete) == (9, 21, 10, True)

    def test_too_few_sources_to_tell(self, tmp_path: Path) -> None:
        summary = fill(tmp_path, Photos(5), self.Broken())
        assert (summary.images, summary.rows, len(summary.rejected), summary.units_done) == (0, 0, 15, 2)
        assert not summary.complete

    def test_every_source_fails(self, tmp_path: Path) -> None:
        summary = fill(tmp_path, Photos(10, broken=range(10)))
        assert (summary.rows, len(summary.failed), summary.units_done) == (0, 10, 3)
        assert not summary.complete
        summary = fill(tmp_path, Photos(10), retry_failed=True)
        assert (summary.rows, summary.complete) == (30, True)

    def test_a_shard_without_units_is_complete(self, tmp_path: Path) -> None:
        assert fill(tmp_path, Photos(4), shard="1/2").complete


class TestStops:
    def test_units_that_are_finished_are_kept(self, tmp_path: Path) -> None:
        class Failing(FakeGenerator):
            def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
                if self.calls == 6:
                    raise RuntimeError("the seventh")
                return super().sample(condition, seeds)

        with pytest.raises(RuntimeError, match="the seventh"):
            fill(tmp_path, Photos(10), Failing(), unit_size=1)
        assert len(list_units(tmp_path)) == 6

    @pytest.mark.parametrize("when", ["before", "during"])
    def test_a_source_that_is_gone_is_no_failed_source(self, tmp_path: Path, when: str) -> None:
        class Gone(Photos):
            def read(self, index: int) -> SourceSample:
                if index in (6, 7) and is_reader() == (when == "during"):
                    raise OSError(errno.ESTALE, "Stale file handle")
                return super().read(index)

        with pytest.raises(BankError, match=r"'photo-000006.jpg' cannot be reached \(Stale file handle\): fix that and run"):
            fill(tmp_path, Gone())
        assert fill(tmp_path).failed == ()

    @pytest.mark.parametrize("count", [-1, 1])
    def test_a_source_that_yields_too_few_or_too_many(self, tmp_path: Path, count: int) -> None:
        class Miscounting(Photos):
            def read_range(self, start: int, stop: int) -> Any:
                yield from super().read_range(start, stop + count if stop == 8 and is_reader() else stop)

        with pytest.raises(BankError, match=r"Miscounting\.read_range\(\d, 8\) yielded \d samples: expected \d"):
            fill(tmp_path, Miscounting())

    @pytest.mark.parametrize("workers", [1, 3, 50])
    def test_each_thread_reads_a_range(self, tmp_path: Path, workers: int) -> None:
        ranges: list[tuple[int, int]] = []

        class Noting(Photos):
            def read_range(self, start: int, stop: int) -> Any:
                if is_reader():
                    ranges.append((start, stop))
                return super().read_range(start, stop)

        fill(tmp_path, Noting(20), unit_size=20, batch_size=10, engine=Local(workers=workers))
        assert sorted(place for start, stop in ranges for place in range(start, stop)) == list(range(20))
        assert max(stop - start for start, stop in ranges) == -(-10 // workers)

    def test_no_more_threads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        original, started = threading.Thread.start, []

        def start(thread: threading.Thread) -> None:
            started.append(thread)
            if len(started) == 3:
                raise RuntimeError("can't start new thread")
            original(thread)

        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            fill(tmp_path, engine=Local(workers=2))
        monkeypatch.undo()
        for thread in started[:2]:
            thread.join(10)
            assert not thread.is_alive(), "a thread that waits for ever keeps the process from ending"

    def test_a_reader_of_the_log_that_is_gone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from gentransforms.bank.generate import progress

        class Broken(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError

        monkeypatch.setattr(progress.Progress.__init__, "__defaults__", (True, 0.0))
        with contextlib.redirect_stderr(Broken()):
            assert fill(tmp_path, progress=True).complete

    def test_file_systems_without_hard_links_or_flushed_directories(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fsync = os.fsync

        def no_directories(handle: int) -> None:
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "Invalid argument")
            fsync(handle)

        def no_links(*_: object) -> None:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(os, "fsync", no_directories)
        monkeypatch.setattr(os, "link", no_links)
        assert fill(tmp_path).complete

    def test_two_threads_on_one_bank(self, tmp_path: Path) -> None:
        from bank_sources import Slow

        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(lambda _: fill(tmp_path, Photos(40), Slow.by(0.01)).complete, range(2)))
        assert done == [True, True]
        assert gt.Bank.open(tmp_path).verify().ok


class TestBadGenerators:
    @pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: x.double(), lambda x: x[:, :1]])
    def test_a_broken_contract_is_told(self, tmp_path: Path, change: Any) -> None:
        class Breaking(FakeGenerator):
            def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
                return change(super().sample(condition, seeds))  # type: ignore[no-any-return]

        with pytest.raises(GeneratorError, match=r"Breaking\.sample returned"):
            fill(tmp_path, generator=Breaking())
        assert list_units(tmp_path) == []

    @pytest.mark.parametrize("kind", ["cuda", "cpu", "python"])
    def test_out_of_memory_stops_with_advice(self, tmp_path: Path, kind: str) -> None:
        with pytest.raises(BankError, match=r"out of memory at batch_size=64, .* start a new bank with a smaller one"):
            fill(tmp_path, generator=Hungry(3, kind))
        assert list_units(tmp_path) == []

    def test_what_is_no_generator(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="expected an ImageGenerator, or its name"):
            fill(tmp_path, generator=3)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"variants": 0}, {"variants": True}, {"batch_size": 0}, {"unit_size": 0}, {"unit_size": 1.5}, {"quality": 0}, {"quality": 101},
            {"image_format": "gif"}, {"max_attempts": 0}, {"base_seed": "a"}, {"min_similarity": 2}, {"threads": 0},
            {"threads": True}, {"engine": "dask"}, {"engine": Local}, {"engine": 3}, {"config": {"variants": 3}},
        ],
        ids=str,
    )  # fmt: skip
    def test_arguments_are_checked_before_anything_is_written(self, tmp_path: Path, wrong: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}=.*expected"):
            fill(tmp_path / "bank", **wrong)
        assert not (tmp_path / "bank").exists()

    def test_by_name(self, tmp_path: Path) -> None:
        fill(tmp_path, [torch.rand(3, 32, 32)], "icgan-cifar10-32", variants=1)
        manifest = json.loads((tmp_path / MANIFEST).read_text())
        assert manifest["info"]["generator_name"] == "icgan-cifar10-32"
        assert manifest["generator"]["fingerprint"] == gt.load_generator("icgan-cifar10-32").fingerprint()


class TestPlanBank:
    def test_counts_what_is_left(self, tmp_path: Path) -> None:
        options = {"variants": 3, "unit_size": 4, "image_format": "png"}
        plan, _ = plan_bank(Photos(), tmp_path / "bank", FakeGenerator(), seconds=0.01, **options)
        assert (plan.sources, plan.images, len(plan.units), plan.done, plan.images_left) == (10, 30, 3, 0, 30)
        assert not (tmp_path / "bank").exists(), "planning writes nothing"
        fill(tmp_path / "bank")
        (tmp_path / "bank" / Unit(8, 10).file).unlink()
        plan, _ = plan_bank(Photos(), tmp_path / "bank", FakeGenerator(), seconds=0.01, **options)
        assert (plan.done, plan.images_left) == (2, 6)
        plan, _ = plan_bank(Photos(), tmp_path / "bank", FakeGenerator(), seconds=0.01, shard="1/2", **options)
        assert (plan.images, len(plan.units), plan.done) == (12, 1, 1)

    def test_bytes_are_those_of_the_bank(self, tmp_path: Path) -> None:
        summary = fill(tmp_path / "bank")
        _, estimate = plan_bank(Photos(), tmp_path / "other", FakeGenerator(), variants=3, unit_size=4, image_format="png", seconds=0.5)
        assert estimate.images >= 12
        assert estimate.bytes_per_image == pytest.approx(summary.bytes / 30, rel=0.05)

    def test_the_rate_is_that_of_a_slow_generator(self, tmp_path: Path) -> None:
        from bank_sources import Slow

        _, estimate = plan_bank(Photos(20), tmp_path / "bank", Slow.by(0.1), variants=2, batch_size=4, seconds=1.0)
        assert 10 < estimate.images_per_second <= 40, "4 images in a tenth of a second"

    def test_settings_of_a_bank_are_compared(self, tmp_path: Path) -> None:
        fill(tmp_path)
        with pytest.raises(BankError, match="variants: the bank has 3, this call 4"):
            plan_bank(Photos(), tmp_path, FakeGenerator(), variants=4, unit_size=4, image_format="png")

    def test_the_banks_threads_are_timed(self, tmp_path: Path) -> None:
        used = []

        class Asking(FakeGenerator):
            def sample(self, condition: Mapping[str, Tensor], seeds: Tensor) -> Tensor:
                used.append(torch.get_num_threads())
                return super().sample(condition, seeds)

        plan_bank(Photos(), tmp_path / "bank", Asking(), threads=2, seconds=0)
        assert set(used) == {2}
        assert torch.get_num_threads() == 1

    def test_nothing_readable(self, tmp_path: Path) -> None:
        with pytest.raises(BankError, match="nothing could be timed, because none of the first sources could be read"):
            plan_bank(Photos(4, broken=range(4)), tmp_path / "bank", FakeGenerator(), seconds=0.01)

    def test_unknown_arguments(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"unknown setting 'varaints': expected one of variants, base_seed, .*open_source"):
            plan_bank(Photos(), tmp_path / "bank", FakeGenerator(), varaints=3)  # type: ignore[call-arg]


class TestVeryManyUnits:
    def test_the_plan_warns_and_says_which_size_helps(self, tmp_path: Path) -> None:
        manifest = manifest_of([], unit_size=1)
        manifest["source"]["count"] = 50_001
        with pytest.warns(UserWarning, match=r"50,001 units of two files each.*unit_size=2 there are at most 50,000"):
            plan = make_plan(tmp_path, Facts.read(manifest, "bank.json"))
        assert len(plan.left) == 50_001
        manifest["settings"]["unit_size"] = 2
        assert len(make_plan(tmp_path, Facts.read(manifest, "bank.json")).left) == 25_001

    def test_a_run_that_begins_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from gentransforms.bank.generate import plan

        monkeypatch.setattr(plan, "_MANY", 5)
        with pytest.warns(UserWarning, match=r"10 units .*unit_size=2"):
            fill(tmp_path, unit_size=1)
        fill(tmp_path, unit_size=1)  # too late to be changed: nothing is said


class TestProgress:
    def test_lines_where_there_is_no_terminal(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from gentransforms.bank.generate import progress

        monkeypatch.setattr(progress.Progress.__init__, "__defaults__", (True, 0.0))
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            fill(tmp_path, Photos(10, broken=[1]), progress=True)
        lines = said.getvalue().splitlines()
        assert lines[0].startswith("9/30 images, ")
        assert "images/s" in lines[0]
        assert " left" in lines[0]
        assert lines[-1].endswith(", 1 failed")

    def test_silence_within_the_half_minute_and_on_request(self, tmp_path: Path) -> None:
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            fill(tmp_path / "a", progress=True)
            fill(tmp_path / "b", progress=False)
        assert said.getvalue() == ""


class TestSummary:
    def test_is_json(self, tmp_path: Path) -> None:
        text = json.dumps(fill(tmp_path, Photos(5, broken=[0])).to_dict())
        assert json.loads(text)["failed"][0]["key"] == "photo-000000.jpg"
        assert json.loads(text)["complete"] is True
