"""The training example: its parts against references, exact resume, and the whole script in miniature."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from icgan_example import FOLDER, TINY, Killed, StopAfter, example, photos, run, settings
from PIL import Image
from rich.progress import Progress
from torch.nn import functional as F

import gentransforms as gt


class TestResume:
    """A killed run goes on exactly: bit for bit the weights of an uninterrupted one."""

    @pytest.mark.parametrize("overrides", [
        ["precision=float32"], pytest.param(["precision=bfloat16", "encoder.feature_stages=2"], marks=pytest.mark.slow),
    ])  # fmt: skip
    def test_equals_an_uninterrupted_run(self, overrides: list[str], tmp_path: Path) -> None:
        whole = run(tmp_path / "whole", *overrides)
        for steps in ((3, 0), (3, 0), (10, 3)):  # ended in the encoder, later in the encoder, in the generator
            with pytest.raises(Killed):
                run(tmp_path / "killed", *overrides, steps=steps)
        resumed = run(tmp_path / "killed", *overrides)
        for name, tensor in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], tensor), name
        a, b = (torch.load(tmp_path / n / "generator.pt", weights_only=True) for n in ("whole", "killed"))
        assert a["step"] == b["step"] == 4
        assert all(torch.equal(t, b["critic"][name]) for name, t in a["critic"].items())
        # the curves, too, are those of one run
        scalars = example("curves").scalars
        for part, name in (("encoder", "encoder/loss"), ("generator", "generator/feature_distance")):
            curves = [scalars(tmp_path / n / "tensorboard" / part, name) for n in ("whole", "killed")]
            assert curves[0] == curves[1]
            assert len(curves[0]) == {"encoder": 6, "generator": 4}[part]

    @pytest.mark.slow
    def test_finish_changes_only_what_follows_it(self, tmp_path: Path) -> None:
        finish = ["generator.finish_neighbours=1", "generator.finish_consistency=50.0"]
        whole = tmp_path / "plain"
        plain = run(whole).state_dict()
        never, late = (
            run(tmp_path / name, f"generator.finish_from={start}", *finish, encoder_of=whole).state_dict()
            for name, start in (("never", 4), ("late", 3))
        )
        assert all(torch.equal(never[name], tensor) for name, tensor in plain.items())
        assert not all(torch.equal(late[name], tensor) for name, tensor in plain.items())
        with pytest.raises(Killed):  # the step before the finish is that of the plain run
            run(tmp_path / "cut", "generator.finish_from=3", *finish, steps=(10**6, 3), encoder_of=whole)
        with pytest.raises(Killed):
            run(tmp_path / "plain cut", steps=(10**6, 3), encoder_of=whole)
        a, b = (torch.load(tmp_path / n / "generator.pt", weights_only=True) for n in ("cut", "plain cut"))
        assert a["step"] == b["step"] > 0
        assert all(torch.equal(t, b["generator"][name]) for name, t in a["generator"].items())

    def test_training_moves_every_part(self, tmp_path: Path) -> None:
        run(tmp_path, "generator.truncation=1.4")
        state = torch.load(tmp_path / "generator.pt", weights_only=True)
        for folder, suffix in (("snapshots", ""), ("samples", ".png")):  # with sample_every=4
            assert {path.name for path in (tmp_path / folder).iterdir()} == {f"{step:07d}{suffix}" for step in (1, 2, 4)}
        record = json.loads((tmp_path / "snapshots" / "0000004" / "training.json").read_text())
        assert record["step"] == 4
        assert record["seconds"] >= 0
        saved = gt.load_generator(tmp_path / "snapshots" / "0000004")
        assert (saved.image_size, saved.config["truncation"]) == ((32, 32), 1.4)
        assert list((tmp_path / "tensorboard").iterdir())
        moved = [not torch.equal(t, state["average"][name]) for name, t in state["generator"].items() if name.endswith("weight")]
        assert all(moved)

    def test_partial_file_is_no_checkpoint(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pt"
        example("checkpoints").atomic_save({"step": 1}, path)
        with pytest.raises(AttributeError):  # a local function cannot be pickled: the write fails half-way
            example("checkpoints").atomic_save({"step": 2, "bad": lambda: None}, path)
        assert torch.load(path, weights_only=True) == {"step": 1}


class TestParts:
    """Losses and helpers against closed forms."""

    def test_decoupled_contrastive_loss_of_two_views(self) -> None:
        z = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        unit = z.numpy() / numpy.linalg.norm(z.numpy(), axis=1, keepdims=True)
        total = 0.0
        for i in range(8):
            partner = (i + 4) % 8
            others = [numpy.exp(unit[i] @ unit[j] / 0.3) for j in range(8) if j not in (i, partner)]
            total += numpy.log(sum(others)) - unit[i] @ unit[partner] / 0.3
        assert example("encoder").decoupled_contrastive_loss(z, 2, 0.3).item() == pytest.approx(total / 8)

    def test_decoupled_contrastive_loss_with_local_views(self) -> None:
        images, views = 3, 4
        z = torch.randn(images * views, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        unit = z.numpy() / numpy.linalg.norm(z.numpy(), axis=1, keepdims=True)
        losses = []
        for view in range(views):
            for image in range(images):
                anchor = unit[view * images + image]
                # the two global views are sought by all, the local ones by the global ones alone
                sought = [v for v in range(views) if v != view and (v < 2 or view < 2)]
                pull = numpy.mean([anchor @ unit[v * images + image] / 0.3 for v in sought])
                push = [numpy.exp(anchor @ unit[v * images + i] / 0.3) for v in range(views) for i in range(images) if i != image]
                losses.append(numpy.log(sum(push)) - pull)
        found = example("encoder").decoupled_contrastive_loss(z, views, 0.3).item()
        assert found == pytest.approx(numpy.mean(losses))

    def test_settled_statistics(self) -> None:
        features = gt.generators.icgan.features
        torch.manual_seed(0)
        encoder, images = features.SmallResNet((4, 8), (1, 1)), photos()
        example("encoder").settle_statistics(encoder, images, batches=300, batch_size=12)
        first = encoder.stem[0](images.float() / 255 * 2 - 1).detach()
        torch.testing.assert_close(encoder.stem[1].running_mean, first.mean(dim=(0, 2, 3)), atol=0.02, rtol=0.05)
        assert not encoder.training

    def test_schedule(self) -> None:
        rate = example("encoder")._warmup_cosine
        assert [rate(i, 4, 104) for i in (0, 3, 4, 54, 104)] == pytest.approx([0.25, 1.0, 1.0, 0.5, 0.0])

    @pytest.mark.parametrize(
        ("steps", "epochs", "per_epoch", "expected"),
        [(200, 14, 175, 200), (200, 60, 175, 200), (200, 14, 1, 1), (200, 14, 11, 15), (3, 2, 3, 0)],
    )
    def test_warm_up_of_a_small_data_set(
        self, steps: int, epochs: int, per_epoch: int, expected: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The learning rate is reached, and the epochs that are named are enough for the whole warm-up."""
        warmup, said = example("encoder").warmup_of(steps, epochs, per_epoch), capsys.readouterr().out
        assert warmup == expected
        total = epochs * per_epoch
        assert max(example("encoder")._warmup_cosine(i, warmup, total) for i in range(total)) == 1.0
        assert bool(said) == (expected < steps)
        if said:
            counted = f"{expected} step " if expected == 1 else f"{expected} steps "
            assert f"trains for {total} steps only, so its learning rate rises over {counted}instead of encoder.warmup_steps=" in said
            enough = int(said.partition("encoder.epochs=")[2].split()[0])
            assert example("encoder").warmup_of(steps, enough, per_epoch) == steps
            assert example("encoder").warmup_of(steps, enough - 1, per_epoch) < steps

    def test_an_encoder_that_was_begun_keeps_its_warm_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of an earlier version, too, which took all steps of the settings."""
        encoder, seen = example("encoder"), set()
        monkeypatch.setattr(encoder, "_warmup_cosine", lambda step, warmup, total: seen.add(warmup) or 1.0)
        chosen = settings("encoder.warmup_steps=200", "encoder.epochs=4", "encoder.batch_size=6")
        with pytest.raises(Killed):
            encoder.train_encoder(photos(), chosen, tmp_path, StopAfter(3))
        assert seen == {1}
        state = torch.load(tmp_path / "encoder.pt", weights_only=True)
        assert state.pop("warmup") == 1
        torch.save(state, tmp_path / "encoder.pt")
        seen.clear()
        encoder.train_encoder(photos(), chosen, tmp_path, Progress(disable=True))
        assert seen == {200}

    def test_crops_of_all_images_at_once_are_those_of_slices(self) -> None:
        crop = example("encoder")._augmentations(24, 0.25, 1.0)[0]
        images = photos(5).float() / 255
        torch.manual_seed(0)
        found = crop(images)
        assert crop.flags["cropping_mode"] == "resample"
        for i, corners in enumerate(crop._params["src"].long()):
            (left, top), (right, bottom) = corners[0].tolist(), corners[2].tolist()
            part = images[i : i + 1, :, top : bottom + 1, left : right + 1]
            expected = F.interpolate(part, (24, 24), mode="bilinear", align_corners=True)
            torch.testing.assert_close(found[i : i + 1], expected, atol=1e-3, rtol=0)

    def test_nearest_neighbours(self) -> None:
        features = F.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)))
        found = example("instances").nearest_neighbours(features, 5, batch_size=7)
        for i in range(30):
            distances = ((features - features[i]) ** 2).sum(1).numpy()
            assert set(found[i].tolist()) == set(numpy.argsort(distances)[:5].tolist())
            assert i in found[i]

    def test_whitening(self) -> None:
        rng = torch.Generator().manual_seed(0)
        features = torch.randn(4000, 6, generator=rng) @ torch.randn(6, 6, generator=rng) + 3
        mean, matrix = example("instances").whiten(features, 4)
        covariance = torch.cov(((features - mean) @ matrix.T).T)
        torch.testing.assert_close(covariance, torch.eye(4), atol=0.05, rtol=0)

    def test_average(self) -> None:
        a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        expected = 0.9 * a.weight.detach() + 0.1 * b.weight.detach()
        example("adversarial")._update_average(a, b, 0.9)
        torch.testing.assert_close(a.weight.detach(), expected)

    def test_standing_statistics(self) -> None:
        results, networks = example("results"), example("networks")
        config = gt.generators.icgan.architecture.BigGANConfig(resolution=32, G_ch=4, dim_z=8, feature_dim=5, shared_dim_feat=4)
        torch.manual_seed(0)
        generator = networks.Generator(config)
        before = {name: t.clone() for name, t in generator.state_dict().items()}
        features = F.normalize(torch.randn(10, 5))
        ready = results.with_statistics(generator, features, 16, batches=8)
        assert all(torch.equal(t, before[name]) for name, t in generator.state_dict().items())  # a copy
        # the first norm sees the first linear layer alone, whose output has mean bias = 0 and known variance
        weight = (generator.linear.normed()).detach().view(-1, 16, config.slot_dim)
        torch.testing.assert_close(ready.blocks[0][0].bn1.stored_var, weight.square().sum(2).mean(1), atol=0.01, rtol=0.3)

    def test_diffaugment(self) -> None:
        augment = example("adversarial")._diffaugment("color,translation,cutout")
        x = torch.rand(4, 3, 32, 32, requires_grad=True)
        out = augment(x)
        out.sum().backward()
        assert out.shape == x.shape
        assert x.grad is not None
        assert x.grad.abs().sum() > 0
        with pytest.raises(SystemExit, match=r"generator\.diffaugment='blur,color': expected any of color, cutout, translation"):
            settings("generator.diffaugment=blur,color")

    @pytest.mark.parametrize("resolution", [32, 64, 128])
    def test_discriminator(self, resolution: int) -> None:
        torch.manual_seed(0)
        critic = example("networks").Discriminator(4, resolution, 5)
        images, features = torch.randn(3, 3, resolution, resolution), F.normalize(torch.randn(3, 5))
        logits = critic(images, features)
        assert logits.shape == (3,)
        assert not torch.allclose(logits, critic(images, features.flip(0)))  # it hears the condition


class TestPace:
    """A stage with a limit of time goes through its whole schedule and ends, with fewer steps, in what can be loaded."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Seconds that pass as the test says."""

        class Clock:
            now = 100.0

            def perf_counter(self) -> float:
                return self.now

        clock = Clock()
        monkeypatch.setattr(example("pace"), "time", clock)
        return clock

    def test_position(self, clock: Any) -> None:
        without, limited, resumed = (example("pace").Pace(40, *more) for more in ((), (10,), (10, 5.0)))
        clock.now += 2
        assert [pace.position(3) for pace in (without, limited, resumed)] == [3, 8, 28]
        assert limited.position(9) == 9  # faster than its time
        assert resumed.seconds == 7

    def test_both_stages_end_in_time(self, clock: Any, tmp_path: Path) -> None:
        encoder, adversarial = example("encoder"), example("adversarial")

        class Slow(StopAfter):
            """A second for every step."""

            def update(self, *args: Any, **kwargs: Any) -> None:
                clock.now += 1

        progress = Slow(10**6)
        chosen = settings(
            "encoder.epochs=50", "encoder.seconds=5", "generator.steps=100", "generator.seconds=3", "generator.finish_from=75"
        )
        made = encoder.train_encoder(photos(), chosen, tmp_path, progress)
        adversarial.train_generator(photos(), made, chosen, tmp_path, progress)
        ends = [torch.load(tmp_path / f"{part}.pt", weights_only=True) for part in ("encoder", "generator")]
        assert [(end["step"], end["seconds"]) for end in ends] == [(150, 6), (100, 4)]  # the clock moves after a step's look at it
        assert ends[0]["schedule"]["last_epoch"] == 6  # steps that were taken
        assert ends[0]["optimizer"]["param_groups"][0]["lr"] < 0.01 * chosen.encoder.learning_rate
        *_, snapshot = sorted((tmp_path / "snapshots").iterdir())
        assert json.loads((snapshot / "training.json").read_text())["step"] == 4
        assert gt.load_generator(snapshot)(photos(2) / 255, torch.arange(2)).shape == (2, 3, 32, 32)
        before = clock.now  # the same command again: nothing is left to do
        adversarial.train_generator(photos(), encoder.train_encoder(photos(), chosen, tmp_path, progress), chosen, tmp_path, progress)
        assert clock.now == before


class TestSnapshots:
    @pytest.mark.parametrize(
        ("every", "expected"), [(4, [1, 2, 4, 8]), (6, [3, 6]), (1, [*range(1, 9)]), (32, [2, 4, 8]), (16, [1, 2, 4, 8]), (500, [])]
    )
    def test_halves_of_the_interval_come_before_it(self, every: int, expected: list[int]) -> None:
        assert [step for step in range(1, 9) if example("adversarial").is_sampled(step, every)] == expected


class TestSettings:
    """Defaults, then YAML, then arguments; unknown names are refused."""

    def test_layers(self, tmp_path: Path) -> None:
        (tmp_path / "s.yaml").write_text("seed: 3\ngenerator:\n  steps: 7\n  learning_rate_G: 1e-3\n")
        merged = example("settings").load_settings(tmp_path / "s.yaml", ["generator.steps=9"])
        assert (merged.seed, merged.generator.steps, merged.generator.learning_rate_G) == (3, 9, 1e-3)

    @pytest.mark.parametrize(
        "override",
        [
            "generator.stepps=3", "sede=1", "seed", "limit=abc", "generator=5", "encoder.widths=64", "precision=", "encoder.seconds=0",
            "generator.truncation=0", "resolution=33", "generator.G_ch=0", "generator.dim_z=3", "generator.G_attn=a", "generator.G_attn=48",
            "generator.G_param=sn", "generator.shared_dim_feat=0", "generator.D_ch=0", "generator.neighbours=0",
            "generator.steps=0", "generator.batch_size=1", "generator.learning_rate_G=0", "generator.learning_rate_D=-1", "generator.ema=1",
            "generator.consistency=-1", "generator.finish_from=-1", "generator.finish_neighbours=0", "generator.finish_consistency=-1",
            "generator.diffaugment=blur", "encoder.blocks=[1]", "encoder.feature_stages=3", "encoder.feature_stages=0", "encoder.epochs=0",
            "encoder.batch_size=1", "encoder.learning_rate=0", "encoder.weight_decay=-1", "encoder.warmup_steps=-1",
            "encoder.temperature=0", "encoder.projection=0", "encoder.view_side=0", "encoder.crop_scale=1.5", "encoder.local_views=-1",
            "encoder.local_side=0",
            "encoder.local_scale=0.5", "checkpoint_every=0", "sample_every=0", "log_every=0", "limit=0",
        ],
    )  # fmt: skip
    def test_refused(self, override: str) -> None:
        with pytest.raises(SystemExit, match=re.escape(override.partition("=")[0])):
            settings(override)

    def test_resolutions(self) -> None:
        """Those of the architecture; the message is one line that names the setting."""
        for resolution in (32, 64, 128, 256, 512):
            assert settings(f"resolution={resolution}", "generator.dim_z=16").resolution == resolution
        with pytest.raises(SystemExit, match=r"^resolution=33: expected one of \[32, 64, 128, 256, 512\]$"):
            settings("resolution=33")
        with pytest.raises(SystemExit, match=r"^generator\.dim_z=3: expected at least 4, one per slot$"):
            settings("generator.dim_z=3")

    def test_attention_where_there_is_a_block(self) -> None:
        assert settings("generator.G_attn=16", "generator.G_ch=4").generator.G_attn == "16"
        with pytest.raises(SystemExit, match=r"generator\.G_attn='64': expected 0, or some of 8, 16, 32 joined by _"):
            settings("generator.G_attn='64'", "generator.G_ch=4")
        with pytest.raises(SystemExit, match=r"generator\.G_attn='16': expected 0, or some of none"):  # an eighth of 4 channels
            settings("generator.G_attn='16'", "generator.G_ch=1")

    def test_numbers_that_yaml_reads_as_text(self) -> None:
        assert settings("generator.steps=2e4").generator.steps == 20_000

    def test_shipped_files(self) -> None:
        cpu, gpu = (example("settings").load_settings(FOLDER / f"cifar10{suffix}.yaml", []) for suffix in ("", "-gpu"))
        assert (cpu.device, gpu.device, gpu.precision) == ("auto", "cuda", "auto")
        # the same networks, so that either run makes the bundled weights
        for name in ("G_ch", "dim_z", "shared_dim_feat", "G_attn", "D_ch"):
            assert getattr(cpu.generator, name) == getattr(gpu.generator, name)
        assert (cpu.encoder.widths, cpu.encoder.feature_stages) == (gpu.encoder.widths, gpu.encoder.feature_stages)
        # under five minutes with reading, features and snapshots, and finished for as large a share as on the CPU
        assert gpu.encoder.seconds + gpu.generator.seconds < 240
        assert gpu.generator.finish_from / gpu.generator.steps == cpu.generator.finish_from / cpu.generator.steps
        assert cpu.encoder.seconds is cpu.generator.seconds is None


class TestImages:
    """Folder, Parquet and torchvision data sets, labels unread."""

    def picture(self, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> Image.Image:
        return Image.effect_noise(size, 50).convert(mode)

    def test_folder(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        self.picture().save(tmp_path / "sub" / "b.png")
        self.picture((32, 32), "L").save(tmp_path / "a.jpg")
        (tmp_path / "notes.txt").write_text("no image")
        images = example("images").load_images(str(tmp_path), 32)
        assert images.shape == (2, 3, 32, 32)
        expected = numpy.asarray(Image.open(tmp_path / "sub" / "b.png").convert("RGB"))[:, 4:36]
        numpy.testing.assert_array_equal(images[1].permute(1, 2, 0).numpy(), expected)

    @pytest.mark.parametrize("struct", [True, False])
    def test_parquet(self, struct: bool, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        self.picture((32, 32)).save(buffer, "png")
        cell = {"bytes": buffer.getvalue(), "path": "x"} if struct else buffer.getvalue()
        pq.write_table(pa.table({"image": [cell] * 3}), tmp_path / "x.parquet")
        assert example("images").load_images(str(tmp_path / "x.parquet"), 32, limit=2).shape == (2, 3, 32, 32)

    def test_limit_is_spread_over_the_whole_set(self, tmp_path: Path) -> None:
        """A folder is sorted by class, so that the first images are of one."""
        load = example("images").load_images
        for i in range(10):
            (tmp_path / f"{i // 5}").mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(tmp_path / f"{i // 5}" / f"{i}.png")
        assert load(str(tmp_path), 8, limit=4)[:, 0, 0, 0].tolist() == [0, 20, 50, 70]
        assert load(str(tmp_path), 8, limit=4, first=True)[:, 0, 0, 0].tolist() == [0, 10, 20, 30]
        assert torch.equal(load(str(tmp_path), 8, limit=20), load(str(tmp_path), 8))
        batches = list(example("images").iterate_images(str(tmp_path), 8, batch_size=4))
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert torch.equal(torch.cat(batches), load(str(tmp_path), 8))

    def test_a_run_of_an_earlier_version_keeps_its_first_images(self, tmp_path: Path) -> None:
        train, images = example("train"), photos(4)
        (tmp_path / "encoder.pt").touch()
        assert not train.takes_the_first(tmp_path)
        train.open_run(tmp_path, settings("limit=4"), images)
        assert not train.takes_the_first(tmp_path)
        train.open_run(tmp_path, settings("limit=4"), images)
        record = example("shared").read_record(tmp_path)
        assert record.pop("limit_takes") == "evenly spaced images"
        example("shared").write_record(tmp_path, record)
        assert train.takes_the_first(tmp_path)
        train.open_run(tmp_path, settings("limit=4"), images)
        assert train.takes_the_first(tmp_path)
        example("shared").write_record(tmp_path, record | {"limit": None})
        assert not train.takes_the_first(tmp_path)
        train.open_run(tmp_path, settings(), images)

    def test_torchvision(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images = example("images")
        monkeypatch.setattr("torchvision.datasets.CIFAR10", lambda root: [(self.picture((32, 32)), 1)] * 2)
        assert images.load_images("torchvision:CIFAR10:/data", 32).shape == (2, 3, 32, 32)

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("torchvision:CIFAR10:/data:Train", "no split 'Train', expected one of train, test"),
            ("torchvision:Caltech101:/data:test", "Caltech101 of torchvision has no splits"),
            ("torchvision:CIFAR11:/data", "torchvision has no data set 'CIFAR11'"),
            ("torchvision:CIFAR10", "expected torchvision:NAME:ROOT"),
        ],
    )
    def test_splits_that_are_not_there(self, source: str, said: str) -> None:
        """A misspelt one must not become the test images, nor one of none all of them."""
        with pytest.raises(SystemExit, match=said):
            example("images").load_images(source, 32)

    def test_empty(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="no images"):
            example("images").load_images(str(tmp_path), 32)


class TestBegun:
    """A folder holds a run from its first checkpoint on."""

    def test_other_settings_before_the_first_checkpoint(self, tmp_path: Path) -> None:
        train, images = example("train"), photos(4)
        train.open_run(tmp_path, settings("encoder.epochs=14"), images)
        (tmp_path / "tensorboard").mkdir()
        assert train.read_begun(tmp_path) == {}
        train.open_run(tmp_path, settings("encoder.epochs=1"), images)
        assert not (tmp_path / "tensorboard").exists()  # the curves of the run that never was
        (tmp_path / "encoder.pt").touch()
        with pytest.raises(SystemExit, match=r"holds a run with other encoder\.epochs \(1, now 2\): choose"):
            train.open_run(tmp_path, settings("encoder.epochs=2"), images)
        with pytest.raises(SystemExit, match="holds a run with other images: choose another --out"):  # without their hashes
            train.open_run(tmp_path, settings("encoder.epochs=1"), photos(5))


class TestScript:
    """`python examples/icgan/train.py` from photos to a generator that loads."""

    def call(self, monkeypatch: pytest.MonkeyPatch, place: Path, *arguments: str) -> None:
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["train.py", "--data", "photos", "--out", "run", *arguments])
        example("train").main()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["resolution=33"], "^resolution=33: expected one of"),
            (["device=nowhere"], "^device=nowhere: not a device of this machine"),
            (["--card", "none.yaml"], "^--card none.yaml: .*No such file"),
            (["--card", "card.yaml"], r"^--card card.yaml: card: unknown sections \['titel'\]"),
            (["device=cpu"], "'photos'"),
        ],
    )
    def test_refused_before_anything_is_read_or_written(
        self, arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """There is no folder of images; the precision is not said either."""
        (tmp_path / "card.yaml").write_text("titel: x\n")
        with pytest.raises(SystemExit, match=said):
            self.call(monkeypatch, tmp_path, *arguments)
        assert not (tmp_path / "run").exists()
        assert capsys.readouterr().out == ""

    def test_a_result_that_could_not_be_written_is_refused_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "run" / "pretrained").mkdir(parents=True)
        (tmp_path / "run" / "pretrained" / "README.md").write_text("# My project\n")
        with pytest.raises(
            SystemExit, match=r"^--out run: run/pretrained/README\.md is not the card of a generator .* choose a new folder"
        ):
            self.call(monkeypatch, tmp_path, "device=cpu")
        assert (tmp_path / "run" / "pretrained" / "README.md").read_text() == "# My project\n"

    def test_the_card_of_an_earlier_call(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was edited in it, and what an earlier --card stated, stays; a --card changes what it names."""
        (tmp_path / "photos").mkdir()
        for i, photo in enumerate(photos()):
            Image.fromarray(photo.permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{i:03d}.png")
        card = {"title": "Flowers", "license": "mit", "training_data": "36 photos.", "evaluation": "0.71 of them.", "limits": "No weeds."}
        (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
        (tmp_path / "other.yaml").write_text(yaml.safe_dump({"limits": "None."}))
        page = tmp_path / "run" / "pretrained" / "README.md"
        tiny = [*TINY, "generator.steps=1", "encoder.epochs=1"]
        self.call(monkeypatch, tmp_path, *tiny, "--card", "card.yaml")
        page.write_text(page.read_text().replace("# Flowers", "# Ann's flowers"))
        edited = page.read_text()
        self.call(monkeypatch, tmp_path, *tiny)
        assert page.read_text() == edited
        self.call(monkeypatch, tmp_path, *tiny, "generator.truncation=1.2", "--card", "other.yaml")
        assert gt.load_generator(page.parent).truncation == 1.2
        for words in ("# Ann's flowers", "license: mit", "\n\n36 photos.", "it may no longer hold.*\n\n0.71 of them.", "\n\nNone."):
            assert words in page.read_text()
        assert "No weeds." not in page.read_text()

    def test_one_image(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "photos").mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / "photos" / "a.png")
        with pytest.raises(SystemExit, match="--data photos: 1 image, expected 2 or more"):
            self.call(monkeypatch, tmp_path, *TINY)

    @pytest.mark.slow
    def test_end_to_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "photos").mkdir()
        for i, photo in enumerate(photos()):
            Image.fromarray(photo.permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{i:03d}.png")
        (tmp_path / "card.yaml").write_text(yaml.safe_dump({"title": "tiny", "license": "apache-2.0"}))
        command = [str(FOLDER / "train.py"), "--data", "photos", "--out", "run", "--card", "card.yaml", *TINY, "precision=auto"]
        environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[1])}
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert "wrote run/pretrained" in done.stdout
        chosen = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())["precision"]
        assert chosen in ("float32", "bfloat16")
        assert f"precision: {chosen} (" in done.stdout
        generator = gt.load_generator(tmp_path / "run" / "pretrained")
        assert generator.encode(photos(4) / 255)["features"].shape == (4, 16)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [*command, "seed=5"])
        with pytest.raises(SystemExit, match="run with other seed"):
            example("train").main()
        assert f"precision: {chosen}, with which this run began" in capsys.readouterr().out
        # the exported, folded network in float16 is the averaged one that was trained
        ready = run(tmp_path / "run")
        condition, z = generator.encode(photos(4) / 255), torch.randn(4, 6)
        with torch.no_grad():
            expected = ready(z.new_zeros(4, 8), condition["features"])
            found = generator.network(z.new_zeros(4, 8), condition["features"])
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
        assert "# tiny" in (tmp_path / "run" / "pretrained" / "README.md").read_text()
