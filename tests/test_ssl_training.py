"""Pretraining: every method in both arms, exact resume, and what is refused before anything is trained."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from ssl_example import CONFIGS, FOLDER, TINY, TINY_METHOD, call, ssl, tiny, write_photos

import gentransforms as gt
from gentransforms.bank.generate.run import generate_bank
from gentransforms.bank.reader import Bank
from gentransforms.testing import FakeGenerator

METHODS = ("simclr", "simsiam", "byol", "mocov2plus", "barlowtwins")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:::pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


class Killed(Exception):
    """Stands for the end of the process."""


class KillAfter(L.Callback):
    """Ends the process after so many batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_end(self, *args: Any) -> None:
        self.left -= 1
        if not self.left:
            raise Killed


class KillInProbe(L.Callback):
    """Ends the process while the probes look."""

    def on_validation_batch_end(self, *args: Any) -> None:
        raise Killed


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` (12 photos of 2 classes), ``test`` (6) and ``bank``, 2 variants of each."""
    root = tmp_path_factory.mktemp("photos")
    write_photos(root / "train", 12)
    write_photos(root / "test", 6, seed=1)
    generate_bank(str(root / "train"), root / "bank", FakeGenerator(), variants=2, image_format="png", progress=False)
    return root


@pytest.fixture(autouse=True)
def _small_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The online arms with a generator of no weight."""
    monkeypatch.setattr(ssl("generative").gt, "load_generator", lambda *args, **kwargs: FakeGenerator())


def settings(photos: Path, config: str, *overrides: str) -> Any:
    method = config.rpartition("/")[2].partition("-")[0]
    data = [f"data.train={photos / 'train'}", f"data.test={photos / 'test'}", f"generative.bank={photos / 'bank'}"]
    return tiny(method, *data, *overrides, config=config)


def run(chosen: Any, out: Path, kill: int | None = None) -> Any:
    """Train, ended after so many batches; return the checkpoint."""
    callbacks = [] if kill is None else [KillAfter(kill)]
    if kill is None:
        ssl("train").train(chosen, out, callbacks, quiet=True)
    else:
        with pytest.raises(Killed):
            ssl("train").train(chosen, out, callbacks, quiet=True)
    return torch.load(out / "last.ckpt", weights_only=True) if (out / "last.ckpt").exists() else None


def curve(out: Path, name: str = "train/loss") -> dict[int, float]:
    return ssl("learning_curves").scalars(out, name)


def quick(configs: list[str]) -> list[Any]:
    """All configurations, of which those that bring nothing new are slow tests.

    New is a method with or without generated views, an arm, or a folder. All values of all files are compared in test_ssl_settings.py.
    """
    seen: set[tuple[str, ...]] = set()
    chosen: list[Any] = []
    for config in configs:
        folder, _, name = config.partition("/")
        method, _, arm = name.partition("-")
        brings = {("method", method, str(arm == "baseline")), ("arm", arm), ("folder", folder)} - seen
        chosen.append(config if brings else pytest.param(config, marks=pytest.mark.slow))
        seen |= brings
    return chosen


class TestOneStep:
    """Every method, every arm, of images in memory and of files."""

    @pytest.mark.parametrize(
        "config",
        quick(
            [
                *(
                    f"{folder}/{method}-{arm}" for i, folder in enumerate(("cifar10", "cifar100", "cifar10-small", "cifar100-small"))
                    for method in METHODS[i:] + METHODS[:i] for arm in ("baseline", "icgan")
                ),
                *(f"imagenet/{method}-{arm}" for method in METHODS for arm in ("stable-diffusion", "baseline", "icgan")),
                *(f"{data}-solo-learn/{method}-baseline" for data in ("cifar10", "cifar100") for method in METHODS),
                *(f"imagenet/simclr-stable-diffusion-{arm}" for arm in ("both", "augmentation-none", "augmentation-crop")),
                "cifar10-figure4/simclr-baseline", "cifar10-figure4/simclr-generated-p1", "cifar10-figure4/simclr-generated-both-p1",
                "cifar10-table3/simclr-baseline", *(f"cifar10-table3/simclr-generated-augmentation-{a}" for a in ("none", "crop", "all")),
                *(f"{folder}/simclr-online" for folder in ("cifar10", "cifar10-small", "folder")), "folder/simclr-baseline",
                "folder/simclr-icgan",
            ]
        ),
    )  # fmt: skip
    def test_moves_what_it_should(self, config: str, photos: Path, tmp_path: Path) -> None:
        chosen = settings(photos, config, "data.limit=4", "trainer.epochs=1", "probe.every=1")
        torch.manual_seed(chosen.seed)
        before = ssl("methods").METHODS[chosen.method.name](chosen, 2).state_dict()
        state = run(chosen, tmp_path / "run")
        assert state["global_step"] == state["batches_done"] == 1
        (loss,) = curve(tmp_path / "run").values()
        assert -10 < loss < 100
        generated = curve(tmp_path / "run", "train/generated")
        assert list(generated.values()) == [0.0 if config.endswith("baseline") else 1.0]
        # Lightning seeds as seed_everything does, which is how the networks above were made, too.
        moved = {name for name, w in state["state_dict"].items() if name.endswith("weight") and not torch.equal(w, before[name])}
        assert any(name.startswith("backbone.") for name in moved)
        assert any(name.startswith("projector.") for name in moved)
        assert ("probe.weight" in moved) == (chosen.data.test is not None)
        for probe in ("probe/knn", "probe/linear"):
            assert all(0 <= value <= 1 for value in curve(tmp_path / "run", probe).values())
            assert len(curve(tmp_path / "run", probe)) == 1
        record = json.loads((tmp_path / "run" / "training.json").read_text())
        assert (record["steps"], record["images"]) == (1, 4)

    @pytest.mark.parametrize(
        "arm", ["imagenet/simclr-stable-diffusion-both", "cifar10-figure4/simclr-generated", "cifar10-figure4/simclr-generated-both"]
    )
    def test_other_probabilities_of_figure_4(self, arm: str, photos: Path, tmp_path: Path) -> None:
        for p in (0.25, 0.5, 0.75):
            state = run(settings(photos, f"{arm}-p{p}", "data.limit=4", "trainer.epochs=1", "data.test=null"), tmp_path / str(p))
            assert state["global_step"] == 1

    @pytest.mark.parametrize("p", [0.25, *(pytest.param(p, marks=pytest.mark.slow) for p in (0.5, 0.75))])
    def test_probabilities_of_the_paper(self, p: float, photos: Path, tmp_path: Path) -> None:
        chosen = settings(photos, f"imagenet/simclr-stable-diffusion-p{p}", "trainer.epochs=12", "probe.every=100")
        run(chosen, tmp_path)
        share = list(curve(tmp_path, "train/generated").values())
        assert len(share) == 36
        assert abs(sum(share) / 36 - p) < 4 * (p * (1 - p) / 144) ** 0.5
        assert len(set(share)) > 1

    def test_all_methods_learn_nothing_from_the_generator(self, photos: Path, tmp_path: Path) -> None:
        """The generator's weights are neither trained nor saved."""
        state = run(settings(photos, "folder/simclr-online", "trainer.epochs=1"), tmp_path)
        assert not [name for name in state["state_dict"] if "generator" in name or "strength" in name]
        record = yaml.safe_load((tmp_path / "settings.yaml").read_text())
        assert record["generator_fingerprint"] == FakeGenerator().fingerprint()
        assert {"files_sha256", "labels_sha256"} <= record.keys()

    @pytest.mark.parametrize(("size", "said"), [(8, True), (16, False)])
    def test_online_generator_of_small_squares_is_told(
        self, size: int, said: bool, photos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """In memory there is nothing larger than `image_size`; FakeGenerator is of 16 pixels."""
        chosen = settings(photos, "cifar10-small/simclr-online", f"data.image_size={size}")
        ssl("train").training_data(ssl("data").open_images(str(photos / "train")), chosen)
        assert ("the generator of 16 pixels sees the images in data.image_size=8; with" in capsys.readouterr().out) is said

    def test_online_generator_for_files(self, photos: Path, tmp_path: Path) -> None:
        """Squares for the generator come with the crops; generated images are cropped on the device."""
        chosen = settings(photos, "imagenet/simclr-baseline", "generative.source=online", "generative.generator=fake", "generative.p=0.5",
                          "generative.both_views=true", "trainer.epochs=6", "probe.every=100")  # fmt: skip
        run(chosen, tmp_path)
        share = list(curve(tmp_path, "train/generated").values())
        assert 0.2 < sum(share) / len(share) < 0.8

    def test_p_schedule(self, photos: Path, tmp_path: Path) -> None:
        for config in ("cifar10-small/simclr-icgan", "imagenet/simclr-icgan", "cifar10-small/simclr-online"):
            chosen = settings(photos, config, "generative.p=0", "generative.p_end=1", "trainer.epochs=2", "probe.every=100")
            run(chosen, tmp_path / config)
            assert list(curve(tmp_path / config, "train/generated").values()) == [0, 0, 0, 1, 1, 1]


class TestViewsOfABatch:
    def module(self, *overrides: str, generative: Any = None) -> Any:
        chosen = tiny("simclr", "data.image_size=8", *overrides)
        for view in (chosen.augmentation.view1, chosen.augmentation.view2):
            view.crop_scale, view.jitter_p, view.grey_p, view.flip_p = [1.0, 1.0], 0.0, 0.0, 0.0
        return ssl("methods").METHODS["simclr"](chosen, 0, generative)

    def red(self) -> Any:
        class Red(torch.nn.Module):
            def forward(self, sample: dict[str, Any], p: float, return_mask: bool) -> Any:
                assert return_mask
                made = torch.rand(len(sample["images"])) < p
                red = torch.where(made[:, None, None, None], torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1), sample["images"])
                return sample | {"images": red}, made

        return Red()

    def batch(self) -> dict[str, torch.Tensor]:
        return {"images": torch.full((50, 3, 8, 8), 51, dtype=torch.uint8), "rows": torch.arange(50), "labels": torch.zeros(50)}

    def test_neither_views_nor_a_generator_are_in_a_checkpoint(self) -> None:
        module, plain = self.module(generative=gt.GenerativeAugment(FakeGenerator())), self.module()
        assert module.state_dict().keys() == plain.state_dict().keys()
        assert not [name for name in plain.state_dict() if name.split(".")[0] in ("classic", "crops", "generative")]
        assert not [
            name for name, _ in (*module.named_parameters(), *module.named_buffers()) if name.startswith(("classic", "crops", "gen"))
        ]

    def test_view_1_is_real_and_view_2_generated(self) -> None:
        module = self.module("generative.p=0.5", generative=self.red())
        module.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        first, second, made = module.views(self.batch())
        torch.testing.assert_close(first, torch.full_like(first, 0.2))
        assert 10 < made.sum() < 40
        assert torch.equal((second[:, 0] > 0.9).flatten(1).all(1), made)
        torch.testing.assert_close(second[~made], torch.full_like(second[~made], 0.2))

    def test_each_view_crops_its_own_generated_images(self) -> None:
        """Of files with an online generator: whole for view 1, a corner for view 2, of images that are half red."""

        class HalfRed(torch.nn.Module):
            def forward(self, sample: dict[str, Any], p: float, return_mask: bool) -> Any:
                images = torch.zeros_like(sample["images"])
                images[:, 0, :, :8] = 1.0
                return sample | {"images": images}, torch.ones(len(images), dtype=torch.bool)

        chosen = self.module("generative.both_views=true", "data.in_memory=false").settings
        chosen.augmentation.view2.crop_scale = [0.05, 0.05]
        module = ssl("methods").METHODS["simclr"](chosen, 0, HalfRed())
        module.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        crops = {name: torch.zeros(50, 3, 8, 8, dtype=torch.uint8) for name in ("first", "second")}
        flags = {name: torch.zeros(50, dtype=torch.bool) for name in ("made1", "made2")}
        batch = crops | flags | {"squares": torch.zeros(50, 3, 16, 16, dtype=torch.uint8), "rows": torch.arange(50)}
        first, second, _ = module.views(batch)
        share1, share2 = (view[:, 0].mean((1, 2)) for view in (first, second))
        assert (share1 - 0.5).abs().max() < 0.2
        assert ((share2 < 0.05) | (share2 > 0.95)).float().mean() > 0.5

    def test_both_views_generated(self) -> None:
        module = self.module("generative.p=0.5", "generative.both_views=true", generative=self.red())
        module.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        first, second, _ = module.views(self.batch())
        reds = [(view[:, 0] > 0.9).flatten(1).all(1) for view in (first, second)]
        assert all(10 < red.sum() < 40 for red in reds)
        assert not torch.equal(*reds)  # each view has its own selection


def test_seed_is_torchs() -> None:
    found, expected = [], []
    for draws, seed in ((found, ssl("loading").set_seed), (expected, lambda number, _: torch.manual_seed(number))):
        for number in (0, 7, 2**31 - 1):
            seed(number, torch.device("cpu"))
            draws.append(torch.rand(3))
    assert all(map(torch.equal, found, expected))


class TestResume:
    """Killed and resumed, curves, probes and weights are those of an uninterrupted run, bit for bit."""

    @pytest.mark.parametrize(
        ("config", "overrides"),
        [
            ("cifar10-small/simclr-icgan", ["generative.p=0.5"]),
            pytest.param("cifar10-small/simclr-icgan", ["trainer.precision=bf16-mixed"], marks=pytest.mark.slow),
            ("cifar10-small/mocov2plus-baseline", []),
            ("cifar10-small/byol-icgan", ["trainer.accumulate=2"]),
            ("cifar10-small/barlowtwins-online", ["generative.p=0.5"]),
            pytest.param("imagenet/simsiam-icgan", ["generative.p=0.5"], marks=pytest.mark.slow),
            pytest.param("imagenet/simclr-baseline", ["data.workers=2"], marks=pytest.mark.slow),  # each run starts new ones
        ],
    )
    def test_equals_an_uninterrupted_run(self, config: str, overrides: list[str], photos: Path, tmp_path: Path) -> None:
        if config.endswith("-online"):
            config = config.replace("-online", "-baseline")
            overrides = [*overrides, "generative.source=online", "generative.generator=fake"]
        chosen = settings(photos, config, "trainer.epochs=4", "trainer.checkpoint_every=1", "probe.every=2", *overrides)
        whole = run(chosen, tmp_path / "whole")
        # Before any checkpoint, within an epoch, at the end of one; the last checkpoint stands behind a probe. (The batch in
        # which it is killed is never in a checkpoint.)
        for batches in (1, 2, 3):
            run(chosen, tmp_path / "killed", kill=batches)
        with pytest.raises(Killed):  # in the first probe, behind the sixth batch, which is repeated with its probe
            ssl("train").train(chosen, tmp_path / "killed", [KillInProbe()], quiet=True)
        steps = 4 if chosen.trainer.accumulate == 2 else 6
        assert torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["global_step"] == steps - 1
        run(chosen, tmp_path / "killed", kill=4)
        assert torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["batches_done"] > 6
        killed = run(chosen, tmp_path / "killed")
        assert killed["global_step"] == whole["global_step"]
        assert killed["batches_done"] == whole["batches_done"] == 12
        assert len(curve(tmp_path / "whole")) >= 6
        for name in ("train/loss", "train/generated", "train/linear_loss", "train/momentum", "probe/knn", "probe/linear"):
            assert curve(tmp_path / "killed", name) == curve(tmp_path / "whole", name), name
        assert list(curve(tmp_path / "whole", "train/loss")) == list(range(2 * steps))
        assert list(curve(tmp_path / "whole", "probe/knn")) == [steps - 1, 2 * steps - 1]
        for name, tensor in whole["state_dict"].items():
            assert torch.equal(killed["state_dict"][name], tensor), name
        for a, b in zip(whole.get("queues", []), killed.get("queues", []), strict=True):
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])

    @pytest.mark.slow
    def test_with_workers_that_read_ahead(self, photos: Path, tmp_path: Path) -> None:
        """Killed within its second epoch, when the workers have read more than was trained on."""
        options = ["trainer.epochs=2", "trainer.checkpoint_every=1", "data.workers=2", "data.test=null"]
        chosen = settings(photos, "imagenet/simclr-baseline", *options)
        whole = run(chosen, tmp_path / "whole")
        run(chosen, tmp_path / "killed", kill=5)
        killed = run(chosen, tmp_path / "killed")
        assert killed["batches_done"] == whole["batches_done"] == 6
        assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
        assert all(torch.equal(killed["state_dict"][name], w) for name, w in whole["state_dict"].items())

    def test_killed_in_its_last_probe(self, photos: Path, tmp_path: Path) -> None:
        chosen = settings(photos, "cifar10-small/simclr-baseline", "trainer.epochs=2", "trainer.checkpoint_every=1", "probe.every=2")
        whole = run(chosen, tmp_path / "whole")
        with pytest.raises(Killed):
            ssl("train").train(chosen, tmp_path / "killed", [KillInProbe()], quiet=True)
        killed = run(chosen, tmp_path / "killed")
        assert killed["batches_done"] == whole["batches_done"] == killed["global_step"] == 6
        assert all(torch.equal(killed["state_dict"][name], w) for name, w in whole["state_dict"].items())
        assert curve(tmp_path / "killed") == curve(tmp_path / "whole")

    def test_no_checkpoint_between_accumulated_batches(self, photos: Path, tmp_path: Path) -> None:
        """It would lack the gradients of the first. Of three batches an epoch, the second and the third end with a step."""
        chosen = settings(photos, "cifar10-small/byol-icgan", "trainer.epochs=4", "trainer.checkpoint_every=1", "trainer.accumulate=2")
        done = [run(chosen, tmp_path, kill=batches)["batches_done"] for batches in (4, 2, 2, 3, 3)]
        assert done == [3, 3, 3, 5, 6]

    def test_same_seed_same_run_other_seed_another(self, photos: Path, tmp_path: Path) -> None:
        curves = []
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            run(settings(photos, "cifar10-small/simclr-icgan", "trainer.epochs=1", f"seed={seed}"), tmp_path / name)
            curves.append(curve(tmp_path / name))
        assert curves[0] == curves[1]
        assert curves[0] != curves[2]

    def test_a_finished_run_stays_as_it_is(self, photos: Path, tmp_path: Path) -> None:
        chosen = settings(photos, "cifar10-small/simclr-baseline", "trainer.epochs=1")
        first, second = run(chosen, tmp_path), run(chosen, tmp_path)
        assert all(torch.equal(second["state_dict"][name], w) for name, w in first["state_dict"].items())
        assert second["batches_done"] == 3

    def test_a_killed_write_leaves_the_old_checkpoint(self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen = settings(photos, "cifar10-small/simclr-baseline", "trainer.epochs=2", "trainer.checkpoint_every=2")
        before = run(chosen, tmp_path, kill=3)
        save = torch.save

        def half(*args: Any, **kwargs: Any) -> None:
            save(*args, **kwargs)
            raise Killed

        monkeypatch.setattr(torch, "save", half)
        with pytest.raises(Killed):
            ssl("train").train(chosen, tmp_path, quiet=True)
        after = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert after["batches_done"] == before["batches_done"] == 2

    def test_a_write_that_ends_halfway_costs_nothing_on_any_file_system(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where temporary files are elsewhere, moving one is a copy, and it may end halfway."""
        chosen = settings(photos, "cifar10-small/simclr-baseline", "trainer.epochs=2", "trainer.checkpoint_every=2")
        run(chosen, tmp_path, kill=3)
        rename, killed = os.rename, []

        def across(source: Any, target: Any, **options: Any) -> None:
            if Path(source).parent != Path(target).parent:
                raise OSError(errno.EXDEV, "another file system")
            rename(source, target, **options)

        def half(source: Any, target: Any, **options: Any) -> None:
            killed.append(target)
            Path(target).write_bytes(Path(source).read_bytes()[:1000])
            raise Killed

        monkeypatch.setattr(os, "rename", across)
        monkeypatch.setattr(shutil, "copyfile", half)
        with contextlib.suppress(Killed):
            ssl("train").train(chosen, tmp_path, quiet=True)
        assert torch.load(tmp_path / "last.ckpt", weights_only=True)["batches_done"] == (2 if killed else 6)

    def test_curves_of_a_run_that_began_anew_are_its_own(self, photos: Path, tmp_path: Path) -> None:
        """The one before it had no checkpoint yet, so that the settings could change; it had been probed."""
        first = settings(photos, "cifar10-small/simclr-baseline", "trainer.epochs=9", "probe.every=1")
        run(first, tmp_path, kill=4)
        assert list(curve(tmp_path, "probe/knn")) == [2]
        run(settings(photos, "cifar10-small/simclr-baseline", "trainer.epochs=2", "probe.every=2"), tmp_path)
        assert list(curve(tmp_path, "probe/knn")) == [5]


class TestPrecision:
    def test_auto_is_settled_once(self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        """Begun where there is bfloat16, continued on a machine without; another run there is of float32."""
        module = sys.modules["common.precision"]
        chosen = settings(
            photos, "cifar10-small/simclr-baseline", "trainer.epochs=1", "trainer.checkpoint_every=1", "trainer.precision=auto"
        )
        monkeypatch.setattr(module, "choose_precision", lambda *_: ("bfloat16", "as tested"))
        run(chosen, tmp_path / "a", kill=2)
        monkeypatch.setattr(module, "choose_precision", lambda *_: ("float32", "as tested"))
        assert run(chosen, tmp_path / "a")["settings"]["trainer"]["precision"] == "bf16-mixed"
        assert run(chosen, tmp_path / "b")["settings"]["trainer"]["precision"] == "32-true"
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("precision: ")]
        assert said == [
            "precision: bf16-mixed (as tested)", "precision: bf16-mixed, with which this run began", "precision: 32-true (as tested)",
        ]  # fmt: skip
        other = settings(photos, "cifar10-small/simclr-baseline", "trainer.epochs=1", "trainer.precision=32-true")
        with pytest.raises(SystemExit, match=r"trainer\.precision \('bf16-mixed', now '32-true'\)"):
            ssl("train").train(other, tmp_path / "a", quiet=True)


class TestChosenVariants:
    @pytest.mark.parametrize("config", ["cifar10-small/simclr-icgan", "imagenet/simclr-icgan"])
    def test_the_run_says_which_and_is_continued_with_no_others(self, config: str, photos: Path, tmp_path: Path) -> None:
        bank = Bank.open(photos / "bank")
        rows = [(key, variant) for key in bank.keys for variant in bank.variants_of(key)]

        def write(name: str, good: Callable[[Any, int], bool]) -> str:
            columns = {"key": [k for k, _ in rows], "variant": [v for _, v in rows], "good": [good(*row) for row in rows]}
            pq.write_table(pa.table(columns), tmp_path / name)
            return f"generative.scores={tmp_path / name}"

        first = write("first.parquet", lambda key, variant: variant == 1 and key != bank.keys[0])
        short = ["trainer.epochs=1", "probe.every=1", "data.limit=null", "generative.select=good"]
        run(settings(photos, config, *short, first), tmp_path / "run")
        record = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
        assert (record["generative.select"], len(record["variants_sha256"])) == ("good", 64)
        assert json.loads((tmp_path / "run" / "training.json").read_text())["images_without_variants"] == 1
        other = settings(photos, config, *short, write("other.parquet", lambda _key, variant: variant == 1))
        with pytest.raises(SystemExit, match=r"other (bank, )?choice of variants: choose"):
            ssl("train").train(other, tmp_path / "run", quiet=True)
        moved = write("moved.parquet", lambda key, variant: variant == 1 and key != bank.keys[0])
        run(settings(photos, config, *short, moved), tmp_path / "run")

    def test_images_whose_variants_all_weigh_nothing_are_counted(self, photos: Path, tmp_path: Path) -> None:
        bank = Bank.open(photos / "bank")
        rows = [(key, variant) for key in bank.keys for variant in bank.variants_of(key)]
        weights = [0.0 if key in bank.keys[:2] else 1.0 for key, _ in rows]
        columns = {"key": [key for key, _ in rows], "variant": [variant for _, variant in rows], "realism": weights}
        pq.write_table(pa.table(columns), tmp_path / "scores.parquet")
        own = ["data.limit=null", "generative.weights=realism", f"generative.scores={tmp_path / 'scores.parquet'}"]
        chosen = settings(photos, "cifar10-small/simclr-icgan", *own)
        assert ssl("generative").count_without_variants(bank, list(bank.keys), chosen.generative) == 2


class TestDiverged:
    """NaN must not be saved, nor measured: it gave an accuracy of chance, with an interval."""

    def diverge(self, photos: Path, out: Path, *overrides: str) -> None:
        chosen = settings(photos, "cifar10-small/simclr-baseline", "trainer.epochs=3", "optimizer.base_lr=1e30", *overrides)
        run(chosen, out)

    def test_at_the_end(self, photos: Path, tmp_path: Path) -> None:
        words = r"by step 9 the training has diverged, .* nothing was saved\. .* with a lower optimizer\.base_lr than 1e\+30$"
        with pytest.raises(SystemExit, match=words):
            self.diverge(photos, tmp_path)
        assert not (tmp_path / "last.ckpt").exists()
        assert not (tmp_path / "training.json").exists()

    def test_before_a_checkpoint_which_stays_as_it_was(self, photos: Path, tmp_path: Path) -> None:
        """The first step has the learning rate of the warm-up, 0."""
        options = ["trainer.checkpoint_every=1", "optimizer.warmup_epochs=1"]
        with pytest.raises(SystemExit, match=r"last\.ckpt still holds those of an earlier step"):
            self.diverge(photos, tmp_path, *options)
        kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert kept["global_step"] >= 1
        assert ssl("diverged").is_finite(kept["state_dict"])

    def test_other_precision_as_advice(self) -> None:
        class Module(torch.nn.Module):
            settings = tiny("simclr", "trainer.precision=16-mixed")
            trainer = type("Trainer", (), {"global_step": 4})

        module = Module()
        ssl("diverged").refuse_diverged(module, Path("last.ckpt"))  # no weights
        module.weight = torch.nn.Parameter(torch.tensor([1.0, math.inf]))
        with pytest.raises(SystemExit, match=r"by step 4 .*, or trainer\.precision=32-true instead of 16-mixed$"):
            ssl("diverged").refuse_diverged(module, Path("last.ckpt"))
        module.weight.detach().fill_(1.0)
        module.probe = torch.nn.Linear(1, 1)
        module.probe.weight.detach().fill_(math.nan)
        with pytest.raises(SystemExit, match=r"the online linear layer has diverged, .* a lower probe\.linear_lr than 0\.1, or"):
            ssl("diverged").refuse_diverged(module, Path("last.ckpt"))

    def test_a_checkpoint_of_before_is_not_measured(self, photos: Path, tmp_path: Path) -> None:
        content = run(settings(photos, "cifar10-small/simclr-baseline", "trainer.epochs=1", "optimizer.warmup_epochs=0"), tmp_path)
        name = next(name for name in content["state_dict"] if name.startswith("backbone."))
        content["state_dict"][name].fill_(math.nan)
        torch.save(content, tmp_path / "last.ckpt")
        with pytest.raises(SystemExit, match=r"last\.ckpt' holds weights that are NaN or infinite: their training diverged"):
            ssl("frozen").load_run(tmp_path)


class TestRefused:
    def refused(self, chosen: Any, out: Path, said: str) -> None:
        with pytest.raises(SystemExit, match=said):
            ssl("train").train(chosen, out, quiet=True)
        assert not (out / "last.ckpt").exists()

    @pytest.mark.parametrize("config", ["cifar10-small/simclr-icgan", "imagenet/simclr-icgan"])
    def test_bank_of_other_images(self, config: str, photos: Path, tmp_path: Path) -> None:
        write_photos(tmp_path / "others" / "x", 5)
        chosen = settings(photos, config, f"data.train={tmp_path / 'others'}", "data.test=null")
        self.refused(
            chosen, tmp_path / "run", r"no images for 5 of the 5 training images, for example 'x/class0/000.png'.*its 12 keys are like"
        )

    def test_another_bank_in_the_place_of_its_own(self, photos: Path, tmp_path: Path) -> None:
        """Of the same images, so its keys fit; only what is in it differs."""

        def fill(seed: int) -> None:
            generate_bank(
                str(photos / "train"), tmp_path / "bank", FakeGenerator(), variants=2, image_format="png", base_seed=seed, progress=False
            )

        chosen = settings(photos, "cifar10-small/simclr-icgan", f"generative.bank={tmp_path / 'bank'}", "trainer.checkpoint_every=1")
        fill(0)
        run(chosen, tmp_path / "run", kill=2)
        record = yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())
        assert record["bank_generator"] == FakeGenerator().fingerprint()
        shutil.rmtree(tmp_path / "bank")
        fill(1)
        with pytest.raises(SystemExit, match=r"holds a run with other bank: choose"):
            ssl("train").train(chosen, tmp_path / "run", quiet=True)
        finished = tmp_path / "simclr-icgan-seed0"
        shutil.copytree(tmp_path / "run", finished)
        (finished / "result.json").write_text("{}")
        bank = ssl("generative").describe_variants(Bank.open(tmp_path / "bank"), chosen.generative)
        others = ssl("comparable").finished_seeds(tmp_path / "simclr-icgan-seed1")
        with pytest.raises(SystemExit, match="simclr-icgan-seed0 is a seed of the same arm, and was trained with another bank"):
            ssl("comparable").refuse_another_bank(others, bank)
        ssl("comparable").refuse_another_bank(others, record)
        assert others == [finished]
        assert ssl("comparable").finished_seeds(tmp_path / "simclr-weak-seed1") == []

    def test_held_out_images_instead_of_test_images(self, photos: Path, tmp_path: Path) -> None:
        """Only when the run is trained: its curve would be of both."""
        options = ["data.holdout=4", "trainer.epochs=2", "trainer.checkpoint_every=1", "probe.every=1"]
        tried, chosen = (
            settings(photos, "cifar10-small/simclr-baseline", *options, f"data.test_on_holdout={held}") for held in ("true", "false")
        )
        run(tried, tmp_path, kill=3)
        with pytest.raises(SystemExit, match=r"data\.test_on_holdout \(True, now False\)"):
            ssl("train").train(chosen, tmp_path, quiet=True)
        run(tried, tmp_path)
        assert len(curve(tmp_path, "probe/knn")) == 2
        run(chosen, tmp_path)
        assert not curve(tmp_path, "probe/knn")

    def test_unfinished_bank(self, photos: Path, tmp_path: Path) -> None:
        generate_bank(str(photos / "train"), tmp_path / "bank", FakeGenerator(), variants=1, unit_size=4, shard="0/3", progress=False)
        chosen = settings(photos, "cifar10-small/simclr-icgan", f"generative.bank={tmp_path / 'bank'}")
        self.refused(chosen, tmp_path / "run", "unfinished")

    def test_missing_folder(self, photos: Path, tmp_path: Path) -> None:
        self.refused(settings(photos, "cifar10-small/simclr-baseline", "data.train=no/where"), tmp_path, "'no/where' does not exist")

    @pytest.mark.parametrize(
        ("probes", "without"), [("data.test=photos/test", "data.test=null"), ("data.test_on_holdout=true", "data.test_on_holdout=false")]
    )
    def test_probes_of_training_images_without_labels(
        self, probes: str, without: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:  # fmt: skip
        """They were left out without a word."""
        monkeypatch.chdir(photos.parent)
        probes = probes.replace("photos", photos.name)
        flat = tmp_path / "flat"
        shutil.copytree(photos / "train" / "class0", flat)
        chosen = settings(photos, "cifar10-small/simclr-baseline", f"data.train={flat}", "data.holdout=1", probes)
        self.refused(chosen, tmp_path / "run", rf"flat' has no labels, which the probes of .* need: .* give {without}$")

    def test_nothing_is_said_before_the_paths_are_checked(self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Nor anything written: neither of the precision nor of the warm-up."""
        config = "cifar10-small/simclr-baseline"
        for wrong, said in (
            ("data.train=no/where", "'no/where' does not exist"), ("data.test=not/there", "'not/there' does not exist"),
            ("trainer.batch_size=64", r"expected no more than the 12 training images; for so few, give trainer\.batch_size=8"),
            ("trainer.accelerator=abacus", r"trainer\.accelerator=abacus: expected one of auto, cpu, cuda, gpu"),
        ):  # fmt: skip
            self.refused(settings(photos, config, "optimizer.warmup_epochs=9", "trainer.epochs=1", wrong), tmp_path / "run", said)
        assert capsys.readouterr().out == ""
        assert not (tmp_path / "run").exists()

    def test_devices_that_are_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        accelerators = ssl("accelerators")

        class GPU:
            count = 0

            def is_available(self) -> bool:
                return self.count > 0

            def auto_device_count(self) -> int:
                return self.count

        class Registry:
            def available_accelerators(self) -> set[str]:
                return {"cpu", "cuda", "mps"}

            def get(self, name: str) -> GPU:
                return GPU()

        monkeypatch.setattr(accelerators, "AcceleratorRegistry", Registry())
        refuse = accelerators.refuse_absent_devices
        refuse("auto", 8)
        for name in ("gpu", "cuda"):
            with pytest.raises(SystemExit, match=rf"^--device {name}: not a device of this machine$"):
                refuse(name, option="--device ")
        monkeypatch.setattr(GPU, "count", 1)
        refuse("gpu", 1)
        refuse("cpu", 2)  # processes
        with pytest.raises(SystemExit, match=r"^trainer\.accelerator=gpu: this machine has 1 of these devices, not 2$"):
            refuse("gpu", 2)

    def test_batch_larger_than_the_data(self, photos: Path, tmp_path: Path) -> None:
        chosen = settings(photos, "cifar10-small/simclr-baseline", "trainer.batch_size=13")
        self.refused(chosen, tmp_path, "batch_size=13: expected no more than the 12 training images")

    def test_other_classes_in_the_test_set(self, photos: Path, tmp_path: Path) -> None:
        write_photos(tmp_path / "test", 6, classes=3)
        chosen = settings(photos, "cifar10-small/simclr-baseline", f"data.test={tmp_path / 'test'}")
        self.refused(chosen, tmp_path / "run", "expected the same")

    def test_broken_checkpoint(self, photos: Path, tmp_path: Path) -> None:
        chosen = settings(photos, "cifar10-small/simclr-baseline", "trainer.epochs=1")
        run(chosen, tmp_path)
        whole = (tmp_path / "last.ckpt").read_bytes()
        (tmp_path / "last.ckpt").write_bytes(whole[:-500])
        with pytest.raises(SystemExit, match="is truncated"):
            ssl("train").train(chosen, tmp_path, quiet=True)
        assert (tmp_path / "last.ckpt").read_bytes() == whole[:-500]

    def test_resume_with_another_config(self, photos: Path, tmp_path: Path) -> None:
        config = "cifar10-small/simclr-baseline"
        run(settings(photos, config, "trainer.epochs=1"), tmp_path)
        before = torch.load(tmp_path / "last.ckpt", weights_only=True)["batches_done"]
        with pytest.raises(SystemExit, match=r"other optimizer\.base_lr \(0\.002, now 0\.5\), trainer\.epochs \(1, now 2\)"):
            ssl("train").train(settings(photos, config, "trainer.epochs=2", "optimizer.base_lr=0.5"), tmp_path, quiet=True)
        others = settings(photos, config, "trainer.epochs=1", f"data.train={write_photos(tmp_path / 'others', 16)}")
        with pytest.raises(SystemExit, match="holds a run with other images"):
            ssl("train").train(others, tmp_path, quiet=True)
        ssl("train").train(settings(photos, config, "trainer.epochs=1", "trainer.log_every=7"), tmp_path, quiet=True)  # this may change
        assert torch.load(tmp_path / "last.ckpt", weights_only=True)["batches_done"] == before

    @pytest.mark.parametrize(("warmup", "said"), [(1, True), (0, False)])
    def test_a_run_that_is_all_warm_up_is_told(
        self, warmup: int, said: bool, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = "cifar10-small/simclr-baseline"
        chosen = settings(photos, config, "trainer.epochs=1", f"optimizer.warmup_epochs={warmup}", "data.limit=4")
        ssl("train").settle(chosen, tmp_path)
        printed = capsys.readouterr().out
        assert (f"optimizer.warmup_epochs={warmup} and trainer.epochs=1: the learning rate rises to the end" in printed) == said

    def test_corrupt_image_mid_epoch(self, photos: Path, tmp_path: Path) -> None:
        write_photos(tmp_path / "photos", 12)
        (tmp_path / "photos" / "class0" / "004.png").write_bytes(b"broken")
        overrides = [f"data.train={tmp_path / 'photos'}", "trainer.epochs=1", "probe.every=1"]
        chosen = settings(photos, "imagenet/simclr-baseline", *overrides)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert run(chosen, tmp_path / "run")["batches_done"] == 3
        # Once in training, once among the neighbours of the probe at its end.
        said = [str(one.message) for one in caught if "class0/004.png" in str(one.message)]
        assert len(said) == 2
        assert all(one.endswith("the next image takes its place") for one in said)
        assert len(curve(tmp_path / "run", "probe/knn")) == 1


class SignalAfter(L.Callback):
    """The scheduler, a while after a batch has begun: first the signal, then the end."""

    def __init__(self, batch: int, end: int) -> None:
        self.batch, self.end = batch, end

    def on_before_backward(self, trainer: L.Trainer, module: Any, loss: Any) -> None:
        if module.batches_done == self.batch:
            os.kill(os.getpid(), signal.SIGUSR1)
        if module.batches_done == self.end:
            raise Killed


class TestSLURM:
    """A job near its time limit is requeued, and continues exactly from its last checkpoint, or from the start."""

    @pytest.fixture
    def job(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """The variables of a job and a scontrol that notes what it is told; returns the note."""
        for name in ("SLURM_NTASKS", "SLURM_JOB_ID"):
            monkeypatch.setenv(name, "1")
        for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
            monkeypatch.setenv(name, "0")
        monkeypatch.setenv("SLURM_JOB_NAME", "x")
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/told\n")
        (tmp_path / "bin" / "scontrol").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        monkeypatch.chdir(tmp_path)
        # What Lightning's own handler leaves, of another run.
        (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"of another run")
        before = signal.getsignal(signal.SIGUSR1)
        yield tmp_path / "told"
        signal.signal(signal.SIGUSR1, before)

    @pytest.mark.parametrize("checkpoint_every", [2, 100])
    def test_requeued(self, checkpoint_every: int, job: Path, photos: Path, tmp_path: Path) -> None:
        every = f"trainer.checkpoint_every={checkpoint_every}"
        chosen = settings(photos, "cifar10-small/simclr-icgan", "trainer.epochs=2", every, "probe.every=100")
        whole = run(chosen, tmp_path / "whole")
        assert not job.exists()
        with pytest.raises(Killed):
            ssl("train").train(chosen, tmp_path / "stopped", [SignalAfter(3, 5)], quiet=True)
        assert job.read_text() == "requeue 1\n"
        assert sorted(path.name for path in (tmp_path / "stopped").glob("*.ckpt")) == (["last.ckpt"] if checkpoint_every == 2 else [])
        state = run(chosen, tmp_path / "stopped")
        assert state["batches_done"] == state["global_step"] == whole["batches_done"] == 6
        assert curve(tmp_path / "stopped") == curve(tmp_path / "whole")
        assert all(torch.equal(state["state_dict"][name], w) for name, w in whole["state_dict"].items())

    def test_one_task_asks_and_for_its_part_of_an_array(self, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        slurm = ssl("slurm")
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
        monkeypatch.setenv("SLURM_PROCID", "1")
        slurm.requeue_at_signal()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not job.exists()
        monkeypatch.setenv("SLURM_PROCID", "0")
        child = os.fork()
        if child == 0:  # a worker, to which the scheduler sends the signal, too
            os.kill(os.getpid(), signal.SIGUSR1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert not job.exists()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert job.read_text() == "requeue 40_2\n"

    def test_scheduler_that_refuses(self, job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        ssl("slurm").requeue_at_signal()
        (job.parent / "bin" / "scontrol").write_text("#!/bin/sh\nexit 3\n")
        os.kill(os.getpid(), signal.SIGUSR1)
        assert "job 1 could not be requeued" in capsys.readouterr().err

    def test_probe_takes_no_checkpoint_of_another_program(self, job: Path, photos: Path, tmp_path: Path) -> None:
        run(settings(photos, "cifar10-small/simclr-baseline", "trainer.epochs=1"), tmp_path / "run")
        backbone, _ = ssl("frozen").load_run(tmp_path / "run")
        source = ssl("data").open_images(str(photos / "train"))
        part = (source, torch.arange(len(source)))
        for cached in (True, False):
            options = ssl("linear_probe").ProbeOptions(
                epochs=1, image_size=16, in_memory=True, workers=0, accelerator="cpu", batch_size=4, cached=cached, k=3
            )
            assert ssl("evaluate").evaluate(backbone, part, part, options)["linear"]["images"] == 12


class TestOptions:
    def test_without_labels(self, tmp_path: Path) -> None:
        for path in write_photos(tmp_path / "x", 8).rglob("*.png"):
            path.rename(tmp_path / path.name)
        chosen = tiny("simclr", f"data.train={tmp_path}", "data.test=null", "trainer.epochs=1")
        state = run(chosen, tmp_path / "run")
        assert not [name for name in state["state_dict"] if name.startswith("probe")]

    def test_held_out_images(self, photos: Path, tmp_path: Path) -> None:
        chosen = settings(
            photos, "cifar10-small/simclr-baseline", "data.holdout=4", "data.test_on_holdout=true", "trainer.epochs=1", "probe.every=1"
        )
        run(chosen, tmp_path)
        assert json.loads((tmp_path / "training.json").read_text())["images"] == 8
        assert curve(tmp_path, "probe/knn")

    def test_compile_is_asked_for(self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []
        monkeypatch.setattr(ssl("backbones").Backbone, "compile", lambda self: asked.append(self))
        run(settings(photos, "cifar10-small/simclr-baseline", "trainer.compile=true", "trainer.epochs=1"), tmp_path)
        assert len(asked) == 1

    @pytest.mark.slow
    def test_compiled_run_gives_the_same_losses(self, photos: Path, tmp_path: Path) -> None:
        for name in ("true", "false"):
            run(settings(photos, "cifar10-small/simclr-baseline", f"trainer.compile={name}", "trainer.epochs=1"), tmp_path / name)
        a, b = (list(curve(tmp_path / name).values()) for name in ("true", "false"))
        assert a == pytest.approx(b, rel=1e-3)

    @pytest.mark.slow
    @pytest.mark.parametrize("arm", ["simclr-icgan", *(f"{method}-baseline" for method in METHODS)])
    def test_two_devices(self, arm: str, photos: Path, tmp_path: Path) -> None:
        """DDP in two processes on the CPU, batches of 2 on each."""
        config = CONFIGS / "cifar10-small" / f"{arm}.yaml"
        overrides = [*TINY, *TINY_METHOD.get(arm.partition("-")[0], []), f"data.train={photos / 'train'}", f"data.test={photos / 'test'}",
                     f"generative.bank={photos / 'bank'}", "trainer.devices=2", "trainer.batch_size=2", "trainer.sync_batchnorm=false",
                     "trainer.epochs=2", "probe.every=1", "optimizer.name=lars", "optimizer.base_lr=0.4"]  # fmt: skip
        command = [sys.executable, str(FOLDER / "train.py"), "--config", str(config), "--out", "run", *overrides]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False, timeout=300)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
        assert state["global_step"] == state["batches_done"] == 6
        assert len(curve(tmp_path / "run", "probe/knn")) == 2
        assert state["optimizer_states"][0]["param_groups"][0]["initial_lr"] == pytest.approx(0.4 * 4 / 256)


class TestScript:
    def test_unknown_key_ends_with_one_sentence(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = str(CONFIGS / "cifar10" / "byol-icgan.yaml")
        with pytest.raises(SystemExit, match="unknown setting 'a'; known:"):
            call(monkeypatch, tmp_path, "train", "--config", config, "--out", "x", "a.b=1")
        assert not list(tmp_path.iterdir())

    def test_bank_and_training(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """make_bank.py, then train.py with the bank: the commands of the README in miniature."""
        write_photos(tmp_path / "photos", 8, size=32)
        config = ["--config", str(CONFIGS / "folder" / "simclr-icgan.yaml")]
        overrides = [*TINY, "data.image_size=32", "data.train=photos", "data.limit=6", "generative.bank=bank", "trainer.epochs=1"]
        monkeypatch.undo()  # the real generators
        call(monkeypatch, tmp_path, "make_bank", *config, "--generator", "icgan-cifar10-32", "--variants", "2", *overrides)
        assert "12 images made, 0 sources could not be read" in capsys.readouterr().out
        call(monkeypatch, tmp_path, "train", *config, "--out", "run", *overrides)
        (loss,) = curve(tmp_path / "run").values()
        assert f"train/loss={loss:.3g}" in capsys.readouterr().out  # in the bar
        assert len(Bank.open(tmp_path / "bank")) == 12
        assert list(curve(tmp_path / "run", "train/generated").values()) == [1.0]
