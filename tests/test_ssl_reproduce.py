"""The experiment as a whole: bank, arms, probes, table and figure in miniature; what is done is skipped."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_diffusion
import torch
from command_line import parse_command
from PIL import Image
from released import random_state, write_released
from ssl_example import CONFIGS, FOLDER, TINY, call, miniature, ssl, tiny, write_photos
from torchvision import datasets
from torchvision.models import resnet50

from gentransforms import generate_bank
from gentransforms.bank.reader import Bank
from gentransforms.cli.main import app
from gentransforms.generators.icgan.architecture import BigGANConfig
from gentransforms.testing import FakeGenerator

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:::pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


def record(method: str, generator: str, seed: int, linear: float, knn: float = 0.5, **more: Any) -> dict[str, Any]:
    probes = {
        name: {"accuracy": value, "interval": [value - 0.01, value + 0.01], "images": 100}
        for name, value in (("linear", linear), ("knn", knn))
    }
    return {"method": method, "generator": generator, "seed": seed, "folder": "x", "training": {"steps": 7}} | probes | more


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


class TestTable:
    def test_means_intervals_and_paired_gains(self) -> None:
        runs = [
            record("simclr", "baseline", 0, 0.80), record("simclr", "icgan", 0, 0.83), record("simclr", "baseline", 1, 0.70),
            record("simclr", "icgan", 1, 0.74), record("byol", "icgan", 0, 0.5),
        ]  # fmt: skip
        head, _, baseline, icgan, byol = rows(ssl("reproduce").table(runs))
        assert head == ["method", "generator", "seeds", "linear", "gain", "k-NN", "gain", "steps"]
        # two seeds: Student's t of one degree of freedom, 12.706, times half the difference of two values
        assert baseline[:5] == ["SimCLR", "baseline", "2", "75.00 ± 63.53", ""]
        assert icgan[:5] == ["SimCLR", "icgan", "2", "78.50 ± 57.18", "+3.50 ± 6.35"]
        # one seed: the interval of the test images; and no baseline to gain on
        assert byol[:5] == ["BYOL", "icgan", "1", "50.00 ± 1.00", ""]
        assert byol[7] == "7"

    def test_gain_of_one_seed(self) -> None:
        """Over the test images: that of two independent runs, each ± 1 point."""
        text = ssl("reproduce").table([record("simclr", "baseline", 0, 0.80), record("simclr", "icgan", 0, 0.83)])
        assert rows(text)[3][4] == "+3.00 ± 1.41"
        assert "of a gain, as if the images were others" in text

    def test_gains_over_another_arm(self) -> None:
        runs = [record("simclr", arm, seed, 0.5 + gain + 0.1 * seed) for arm, gain in (("best", 0.02), ("worst", 0.0)) for seed in (0, 1)]
        text = ssl("reproduce").table(runs, "worst")
        assert [row[4] for row in rows(text)[2:]] == ["+2.00 ± 0.00", ""]
        assert "relative to worst" in text
        assert [row[4] for row in rows(ssl("reproduce").table(runs))[2:]] == ["", ""]

    def test_similarity_with_the_encoder(self) -> None:
        """Means over the runs that have it; the untrained network is not among them."""
        untrained = {"linear_cka": 0.1, "procrustes_distance": 1.9}
        encoders = [
            {"untrained": untrained, f"run{seed}": {"linear_cka": cka, "procrustes_distance": distance}}
            for seed, (cka, distance) in enumerate([(0.25, 1.0), (0.35, 1.5)])
        ]
        runs = [record("simclr", "icgan", seed, 0.8, encoder=encoder) for seed, encoder in enumerate(encoders)]
        table = rows(ssl("reproduce").table([*runs, record("simclr", "icgan", 2, 0.8), record("byol", "icgan", 0, 0.8)]))
        assert table[0][-2:] == ["CKA with the encoder", "Procrustes distance"]
        assert table[2][-2:] == ["0.300 ± 0.635", "1.250 ± 3.176"]  # 12.706 times half the difference
        assert table[3][-2:] == ["", ""]

    @pytest.mark.parametrize("on_holdout", [True, False])
    def test_says_on_which_images(self, on_holdout: bool) -> None:
        text = ssl("reproduce").table([record("simclr", "baseline", 0, 0.8, measure={"on_holdout": on_holdout})])
        assert f"percent on the {'held-out' if on_holdout else 'test'} images." in text
        assert ("test images" in text) is not on_holdout


class TestComparable:
    """Runs of a table whose settings differ."""

    def test_a_run_without_a_checkpoint_has_not_begun(self, tmp_path: Path) -> None:
        """train.py starts it again, so it is not refused before."""
        self.finish(tmp_path, "baseline", 1)
        folder = tmp_path / "simclr-baseline-seed1"
        (folder / "result.json").unlink()
        refuse = ssl("reproduce").refuse_others
        refuse(self.plan("baseline", "optimizer.base_lr=0.5"), tmp_path)
        (folder / "last.ckpt").touch()
        with pytest.raises(SystemExit, match=r"holds a run with other .*optimizer\.base_lr"):
            refuse(self.plan("baseline", "optimizer.base_lr=0.5"), tmp_path)

    def finish(self, out: Path, arm: str, seed: int, *overrides: str) -> dict[str, Any]:
        """Write what a finished run leaves of its settings."""
        folder = out / f"simclr-{arm}-seed{seed}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("{}")
        shared = ssl("shared")
        settings = tiny("simclr", f"seed={seed}", "data.train=x", *overrides, config=f"cifar10-small/simclr-{arm}")
        shared.write_record(folder, shared.flatten(settings) | {"keys_sha256": "x"})
        return record("simclr", arm, seed, 0.5) | {"folder": str(folder)}

    def plan(self, arm: str, *overrides: str, seed: int = 1) -> list[Any]:
        return [("simclr", arm, seed, tiny("simclr", f"seed={seed}", "data.train=y", *overrides, config=f"cifar10-small/simclr-{arm}"))]

    @pytest.mark.parametrize(
        ("before", "now", "said"),
        [
            ("optimizer.base_lr=0.25", "optimizer.base_lr=0.5", r"other optimizer\.base_lr \(0\.25, now 0\.5\): the seeds of an arm"),
            ("augmentation.view2.hue=0", "trainer.epochs=50", r"other augmentation\.view2\.hue \(0\.0, now 0\.05\)"),
            ("augmentation.generated={hue: 0}", "trainer.epochs=50", r"augmentation\.generated\.hue \(0\.0, now None\)"),
            ("trainer.precision=bf16-mixed", "generative.bank=elsewhere", None),  # of another machine
            ("trainer.log_every=3", "probe.k=9", None),
        ],
    )
    def test_seeds_of_an_arm_have_the_same(self, before: str, now: str, said: str | None, tmp_path: Path) -> None:
        self.finish(tmp_path, "icgan", 0, before)
        for arm in ("icgan", "baseline"):
            with contextlib.nullcontext() if said is None or arm == "baseline" else pytest.raises(SystemExit, match=said):
                ssl("comparable").refuse_mixed_seeds(self.plan(arm, now), tmp_path)

    def test_arms_that_differ_otherwise_are_named(self, tmp_path: Path) -> None:
        runs = [self.finish(tmp_path, "baseline", seed, "trainer.epochs=2") for seed in (0, 1)]
        like = [self.finish(tmp_path, "icgan", seed, "trainer.epochs=2", "generative.p=0.5", "probe.every=1") for seed in (0, 1)]
        assert ssl("comparable").name_mixed_settings(runs + like, "baseline") == ""
        other = self.finish(tmp_path, "icgan", 2, "trainer.epochs=3", "trainer.precision=bf16-mixed")
        said = ssl("comparable").name_mixed_settings([*runs, *like, other], "baseline")
        assert said == (
            "SimCLR icgan differs from baseline not in its views alone: trainer.epochs (2 or 3, there 2), "
            "trainer.precision ('32-true' or 'bf16-mixed', there '32-true')."
        )
        ssl("reproduce").report([*runs, *like, other], tmp_path)
        assert (tmp_path / "results.md").read_text().endswith(f"\n\n{said}")

    def test_one_generator_makes_one_bank(self) -> None:
        plan = self.plan("icgan", "generative.bank=a") + self.plan("baseline", "generative.bank=b")
        ssl("reproduce").refuse_several_banks(plan, "icgan-cifar10-32")
        with pytest.raises(SystemExit, match="different banks, icgan a, best c, and it would make all of them"):
            ssl("reproduce").refuse_several_banks(
                [*plan, ("simclr", "best", 0, self.plan("icgan", "generative.bank=c")[0][3])], "icgan-cifar10-32"
            )


class TestFinished:
    def test_runs_of_all_commands_in_order(self, tmp_path: Path) -> None:
        """What another command put there counts; what is not done does not."""
        wanted = [("simclr", "baseline", 0), ("simclr", "baseline", 1), ("simclr", "icgan", 0), ("byol", "baseline", 0)]
        for method, generator, seed in reversed(wanted):
            folder = tmp_path / f"{method}-{generator}-seed{seed}"
            folder.mkdir()
            (folder / "result.json").write_text(json.dumps(record(method, generator, seed, 0.5)))
        (tmp_path / "byol-icgan-seed0").mkdir()
        (tmp_path / "byol-icgan-seed0" / "result.partial").write_text("{")
        found = ssl("reproduce").finished(tmp_path)
        assert [(run["method"], run["generator"], run["seed"]) for run in found] == wanted
        assert found[0]["folder"] == str(tmp_path / "simclr-baseline-seed0")


class TestMiniature:
    """The body of `make recipe`, smaller still."""

    def reproduce(self, monkeypatch: pytest.MonkeyPatch, place: Path, *extra: str, seeds: tuple[str, ...] = ("0",)) -> None:
        call(
            monkeypatch, place, "reproduce", "--configs", str(CONFIGS / "cifar10-small"), "--methods", "simclr", "--generators", "baseline",
            "icgan", "--seeds", *seeds, "--make-bank", "icgan-cifar10-32", "--variants", "2", "--encoder", "icgan-cifar10-32",
            "--probe-epochs", "2", "--out", "runs", *TINY, "data.image_size=32", "data.train=toy/train", "data.test=toy/test",
            "generative.bank=bank", "trainer.epochs=2", "optimizer.warmup_epochs=1", "probe.every=1", *extra,
        )  # fmt: skip

    def test_chain(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        place = tmp_path
        call(monkeypatch, place, "miniature", "toy", "--train", "3", "--test", "2")
        assert len(list((place / "toy" / "train").rglob("*.png"))) == 30
        assert len(list((place / "toy" / "test" / "cat").glob("*.png"))) == 2
        assert size_of(next((place / "toy").rglob("*.png"))) == (32, 32)

        self.reproduce(monkeypatch, place)
        results = json.loads((place / "runs" / "results.json").read_text())
        assert [(run["method"], run["generator"], run["seed"]) for run in results] == [("simclr", "baseline", 0), ("simclr", "icgan", 0)]
        assert [run["p"] for run in results] == [0.0, 1.0]
        assert {run["training"]["steps"] for run in results} == {2 * (30 // 4)}  # the same number in both arms
        assert all(run["linear"]["images"] == 20 for run in results)
        assert all(set(run["encoder"]) == {"untrained", run["folder"]} for run in results)
        assert (place / "runs" / "results.md").read_text().strip() in capsys.readouterr().out
        assert size_of(place / "runs" / "curves.png")[0] > 200
        assert len(Bank.open(place / "bank")) == 60

        # what is done is skipped, and a longer command adds to it
        times = {path: path.stat().st_mtime_ns for path in (place / "runs").glob("*/result.json")}
        (place / "runs" / "results.md").unlink()
        self.reproduce(monkeypatch, place)
        assert rows((place / "runs" / "results.md").read_text())[-1][:3] == ["SimCLR", "icgan", "1"], "nothing is left, and it is written"
        capsys.readouterr()
        self.reproduce(monkeypatch, place, seeds=("0", "1"))
        printed = capsys.readouterr().out
        assert "simclr-baseline-seed0" not in printed
        assert "simclr-baseline-seed1" in printed
        assert all(path.stat().st_mtime_ns == time for path, time in times.items())
        assert len(json.loads((place / "runs" / "results.json").read_text())) == 4

        # an arm of chosen variants, by the scores of an audit, beside the others; continued with no other choice
        bank = Bank.open(place / "bank")
        keys = [key for key in bank.keys for _ in range(2)]
        pq.write_table(pa.table({"key": keys, "variant": [0, 1] * 30, "place": [2, 1] * 30}), place / "scores.parquet")
        arms, scores = ("--generators", "icgan-best", "--gain-over", "icgan"), "generative.scores=scores.parquet"
        self.reproduce(monkeypatch, place, scores, "generative.select=place <= 1", *arms)
        chosen = json.loads((place / "runs" / "simclr-icgan-best-seed0" / "result.json").read_text())
        assert (chosen["select"], chosen["weights"], chosen["training"]["images_without_variants"]) == ("place <= 1", None, 0)
        assert rows((place / "runs" / "results.md").read_text())[-1][:3] == ["SimCLR", "icgan-best", "1"]
        with pytest.raises(SystemExit, match=r"generative\.select \('place <= 1', now 'place <= 2'\)"):
            self.reproduce(monkeypatch, place, scores, "generative.select=place <= 2", *arms)
        capsys.readouterr()

        # what was measured otherwise does not come into the same table
        with pytest.raises(SystemExit, match=r"evaluated with different probe_epochs \(2, now 3\)"):
            self.reproduce(monkeypatch, place, "--probe-epochs", "3", seeds=("2",))
        with pytest.raises(SystemExit, match=r"evaluated with different k \(3, now 2\)"):
            self.reproduce(monkeypatch, place, "probe.k=2", seeds=("2",))
        with pytest.raises(SystemExit, match="evaluated with different test_images"):
            self.reproduce(monkeypatch, place, "data.test=toy/train", seeds=("2",))
        assert not (place / "runs" / "simclr-baseline-seed2").exists()

        # other settings in the same folder are refused before anything runs
        with pytest.raises(SystemExit, match=r"holds a run with other optimizer\.base_lr"):
            self.reproduce(monkeypatch, place, "optimizer.base_lr=0.9")

    def test_a_choice_is_measured_on_test_images_without_new_training(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A run that was tried on held-out images is the chosen arm's run of that seed, copied."""
        call(monkeypatch, tmp_path, "miniature", "toy", "--train", "3", "--test", "2")

        def reproduce(out: str, *overrides: str) -> dict[str, Any]:
            call(
                monkeypatch, tmp_path, "reproduce", "--configs", str(CONFIGS / "cifar10-small"), "--methods", "simclr", "--generators",
                "baseline", "--seeds", "0", "--probe-epochs", "2", "--out", out, *TINY, "data.train=toy/train", "data.test=toy/test",
                "data.holdout=10", "trainer.epochs=2", "optimizer.warmup_epochs=1", "probe.every=2", *overrides,
            )  # fmt: skip
            found: dict[str, Any] = json.loads((tmp_path / out / "simclr-baseline-seed0" / "result.json").read_text())
            return found

        tried = reproduce("choices", "data.test_on_holdout=true")
        shutil.copytree(tmp_path / "choices", tmp_path / "runs", ignore=shutil.ignore_patterns("result*"))
        last = tmp_path / "runs" / "simclr-baseline-seed0" / "last.ckpt"
        weights = torch.load(last, weights_only=False)["state_dict"]
        measured = reproduce("runs")
        assert all(torch.equal(tensor, weights[name]) for name, tensor in torch.load(last, weights_only=False)["state_dict"].items())
        assert (tried["measure"]["on_holdout"], tried["linear"]["images"]) == (True, 10)
        assert (measured["measure"]["on_holdout"], measured["linear"]["images"]) == (False, 20)
        assert measured["training"]["steps"] == tried["training"]["steps"] == 2 * (20 // 4)


def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace torchvision's data sets by ones that note their name and take what the real ones take."""
    fetched: list[str] = []

    def stand_in(name: str, real: Any) -> Any:
        def made(*args: Any, **options: Any) -> None:
            bound = inspect.signature(real).bind(*args, **options).arguments
            assert bound.get("download") is True or name == "ImageNet"
            fetched.append(name)

        return made

    for name in ("ImageNet", "Food101", "Places365", "CIFAR10", "CIFAR100"):
        monkeypatch.setattr(datasets, name, stand_in(name, getattr(datasets, name)))
    return fetched


def shards(arguments: list[str]) -> list[list[str]]:
    """Return a small command for each of the shards that the one given is the first of."""
    if "--shard" not in arguments:
        return [arguments]
    at = arguments.index("--shard") + 1
    first, count = arguments[at].split("/")
    assert first == "0"
    small = ["--variants", "1", "--unit-size", "4"]
    return [[*arguments[:at], f"{i}/{count}", *arguments[at + 1 :], *small] for i in range(min(int(count), 2))]


def after(words: list[str], option: str) -> list[str]:
    """Return the values of an option that may have several."""
    rest = words[words.index(option) + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("--") or "=" in word), len(rest))]


class TestRefusedBeforeTraining:
    def test_no_test_images_no_labels_other_classes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_photos(tmp_path / "photos", 8)
        write_photos(tmp_path / "three", 6, classes=3)
        write_photos(tmp_path / "bare", 4, classes=1)
        for photo in (tmp_path / "bare" / "class0").iterdir():
            photo.rename(tmp_path / "bare" / photo.name)
        for test, said in (("null", "data.test is not set"), ("three", "expected the same"), ("bare", "'bare' has no labels")):
            with pytest.raises(SystemExit, match=said):
                call(
                    monkeypatch, tmp_path, "reproduce", "--configs", str(CONFIGS / "folder"), "--methods", "simclr",
                    "--generators", "baseline", "--out", "runs", *TINY, "data.train=photos", f"data.test={test}",
                )  # fmt: skip
        assert not (tmp_path / "runs").exists()

    def test_no_bank_no_generator_a_bank_of_other_images(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The arm with generated images comes last: without a look ahead, the baseline would be trained before the error."""
        write_photos(tmp_path / "photos", 8)
        generate_bank(write_photos(tmp_path / "fewer", 3), tmp_path / "bank", FakeGenerator(size=32), variants=1, progress=False)
        for arm, setting, said, *options in (
            ("icgan", "generative.bank=banks/new", r"--make-bank absent, generative\.bank='banks/new': ", "--make-bank", "absent"),
            ("icgan", "generative.bank=bank", r"--make-bank icgan-cifar10-32, .*'bank': ", "--make-bank", "icgan-cifar10-32"),
            ("icgan", "generative.bank=absent", r"generative\.bank='absent': "),
            ("icgan", "generative.bank=bank", "has no images for 5 of the 8 training images"),
            ("online", "generative.generator=absent", r"generative\.generator='absent': "),
        ):
            with pytest.raises(SystemExit, match=said):
                call(
                    monkeypatch, tmp_path, "reproduce", "--configs", str(CONFIGS / "folder"), "--methods", "simclr", "--generators",
                    "baseline", arm, *options, "--out", "runs", *TINY, "data.train=photos", "data.test=photos", setting,
                )  # fmt: skip
            assert not (tmp_path / "runs").exists()

    def test_gains_over_an_arm_that_is_none(self, tmp_path: Path) -> None:
        plan = [("simclr", "icgan", 0, tiny("simclr"))]
        refuse, configs = ssl("reproduce").refuse_unknown_arm, CONFIGS / "cifar10-small"
        for arm in ("baseline", "icgan-best"):
            refuse(arm, plan, configs, tmp_path)
        with pytest.raises(SystemExit, match=r"--gain-over basline: no such arm; expected one of baseline, icgan, icgan-best, icgan-worst"):
            refuse("basline", plan, configs, tmp_path)
        (tmp_path / "simclr-own-seed0").mkdir()
        (tmp_path / "simclr-own-seed0" / "result.json").write_text(json.dumps(record("simclr", "own", 0, 0.5)))
        refuse("own", plan, configs, tmp_path)

    def test_runs_that_would_be_measured_differently(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r"a and b would be evaluated with different k \(200 and 20\)"):
            ssl("reproduce").refuse_other_measures([{"k": 200, "probe": "cached"}, {"k": 20, "probe": "cached"}], ["a", "b"], tmp_path)


class TestReadme:
    """The commands of examples/ssl/README.md, one after the other in one place; those of docs/hour.md are run by test_docs.py."""

    def commands(self, language: str = "bash") -> list[list[str]]:
        """Those of README.md, and of docs/reproduce-small.md, which has what is too long for it."""
        text = "\n".join(
            path.read_text(encoding="utf-8") for path in (FOLDER / "README.md", FOLDER.parents[1] / "docs" / "reproduce-small.md")
        )
        fences = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        return [shlex.split(line) for block in fences for line in block.replace("\\\n", " ").splitlines() if line]

    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder with what the page takes as given: both halves of ImageNet, released weights, a data set to download."""
        write_photos(tmp_path / "data" / "imagenet" / "train", 8, size=32)
        write_photos(tmp_path / "data" / "imagenet" / "val", 4, size=32, seed=1)
        config = BigGANConfig(resolution=32, G_ch=4, dim_z=8, shared_dim_feat=4, G_attn="0")
        write_released(tmp_path / "icgan_biggan_imagenet_res256", config, random_state(config))
        swav = {f"module.{name}": t for name, t in resnet50().state_dict().items() if not name.startswith("fc.")}
        torch.save(swav, tmp_path / "swav_800ep_pretrain.pth.tar")
        tiny_diffusion.unclip().save_pretrained(tmp_path / "sd2-community" / "stable-diffusion-2-1-unclip-small")
        opened = ssl("data").open_images

        def open_images(name: str, *columns: str | None) -> Any:
            """Data sets that cannot be fetched here are ImageNet's stand-in; that each of them opens shows test_ssl_data.py."""
            split = "val" if name.endswith((":test", ":val")) else "train"
            return opened(f"data/imagenet/{split}" if name.startswith(("torchvision:", "inaturalist:")) else name, *columns)

        monkeypatch.setattr(ssl("evaluate"), "open_images", open_images)
        return tmp_path

    @pytest.mark.slow
    def test_full_size_in_miniature(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fetched = stand_ins(monkeypatch)
        ran = []
        for words in self.commands():
            match words:
                case ["python", "-c", code]:
                    exec(code, {})
                case ["gentransforms", *arguments]:
                    monkeypatch.chdir(place)
                    for shard in shards(arguments):
                        with pytest.raises(SystemExit) as ended:
                            app(shard, prog_name="gentransforms")
                        assert ended.value.code in (0, None), shard
                case _:
                    script, arguments = miniature(words)
                    call(monkeypatch, place, script, *arguments)
                    ran.append(script)
        assert ran == ["train"] * 3 + ["evaluate", "reproduce"] + ["evaluate"] * 5 + ["similarity", "figure3"]
        assert size_of(place / "runs" / "figure3.png")[1] > 4 * 96  # four rows
        assert fetched == ["ImageNet", "ImageNet", "Food101", "Places365", "Places365", "CIFAR10", "CIFAR100"]
        assert {path.name for path in (place / "runs" / "simclr-icgan").glob("*.json")} == {
            "training.json", "evaluation.json", "inat.json", "food.json", "places.json", "cifar10.json", "cifar100.json",
        }  # fmt: skip
        # of five methods the first and the last; the others' files are there, and test_ssl_settings.py compares all their values
        ran = [(run["method"], run["generator"]) for run in json.loads((place / "runs" / "imagenet" / "results.json").read_text())]
        assert ran == [(method, arm) for method in ("simclr", "barlowtwins") for arm in ("baseline", "icgan", "stable-diffusion")]
        for words in (words for words in self.commands() if "--methods" in words):
            arms = [f"{method}-{arm}.yaml" for method in after(words, "--methods") for arm in after(words, "--generators")]
            assert len(arms) == 15
            assert {CONFIGS.parents[2] / after(words, "--configs")[0] / arm for arm in arms} <= set((CONFIGS / "imagenet").iterdir())

    @pytest.mark.parametrize(("language", "expected"), [("text", (25, 70)), ("bash", (12, 15))])
    def test_commands_of_our_own_runs(self, language: str, expected: tuple[int, int] | None) -> None:
        """Too long to run here: every option and every setting in them exists. Those that the slow test runs are read, too."""
        arms = scripts = 0
        for words in self.commands(language):
            if language == "bash" and words[:2] == ["python", "-c"]:
                compile(words[2], "README.md", "exec")
                continue
            if words[0] == "gentransforms":
                for shard in shards(words[1:]):
                    parse_command(shard)
                continue
            assert words[0] == "python"
            module = words[1] == "-m"  # of the benchmarks
            script = CONFIGS.parents[2] / (f"{words[2].replace('.', '/')}.py" if module else words[1])
            known = script.read_text(encoding="utf-8")
            for word in (word for word in words if word.startswith("--")):
                assert f'"{word}"' in known or word[2:] in ssl("evaluate").FREELY, word
            overrides = [word for word in words if "=" in word]
            if "--config" in words and words[1].startswith("examples/ssl/"):
                ssl("config").load_settings(CONFIGS.parents[2] / after(words, "--config")[0], overrides)
            if "--configs" in words:
                for method in after(words, "--methods"):
                    for generator in after(words, "--generators"):
                        path = CONFIGS.parents[2] / after(words, "--configs")[0] / f"{method}-{generator}.yaml"
                        ssl("config").load_settings(path, overrides)
                        arms += 1
            scripts += 1
        assert scripts > 5
        assert expected in (None, (scripts, arms))

    def table(self, below: str) -> list[list[str]]:
        """Return the rows of the first table below a heading."""
        text = (FOLDER / "README.md").read_text(encoding="utf-8")
        section = text[text.index(f"\n## {below}") :]
        return rows(section[: section.index("\n\n", section.index("\n|"))])[2:]

    def test_gains_of_the_paper_are_the_differences_of_its_values(self) -> None:
        def number(text: str) -> float:
            return float(text.replace("−", "-"))

        marked, lines = [], self.table("Table 1")
        assert len(lines) == 15
        for name, *cells in lines:
            if not name.startswith("+"):
                method, baseline = name, [number(cell) for cell in cells]
                continue
            for place, (cell, before) in enumerate(zip(cells, baseline, strict=True)):
                value, gain, asterisk = re.fullmatch(r"([\d.]+) \(([+−][\d.]+)\)( \*)?", cell).groups()  # type: ignore[union-attr]
                assert number(gain) == pytest.approx(number(value) - before, abs=1e-6), (method, name, place)
                marked += [(method, name, place)] if asterisk else []
        # ../shared/PAPER.md, "Misprints"
        assert marked == [
            ("SimCLR", "+ IC-GAN", 2), ("SimCLR", "+ IC-GAN", 3), ("SimCLR", "+ Stable Diffusion", 3), ("MoCo", "+ IC-GAN", 2),
            ("MoCo", "+ Stable Diffusion", 4), ("BYOL", "+ IC-GAN", 0), ("BYOL", "+ Stable Diffusion", 1), ("SimSiam", "+ IC-GAN", 1),
        ]  # fmt: skip
        baseline_of_table3, *others = [(number(row[1]), row[2]) for row in self.table("Table 3")]
        assert [number(gain) for _, gain in others] == pytest.approx([value - baseline_of_table3[0] for value, _ in others])
        assert all(number(row[1][:5]) + number(row[2]) == pytest.approx(1) for row in self.table("Table 2"))

    def test_small_runs_beside_the_paper_are_those_of_the_table(self) -> None:
        small = {row[0]: row for row in rows((FOLDER / "README.md").read_text(encoding="utf-8")) if row[1:2] in (["baseline"], ["icgan"])}
        for row in self.table("Figure 5"):
            name = {"MoCo": "MoCo v2+"}.get(row[0], row[0])
            assert row[5] == small[name][4]

    def test_table_is_that_of_the_figure(self) -> None:
        """All five methods, both arms, and gains that are the differences of the accuracies beside them."""
        names = ssl("learning_curves").TITLES.values()
        read = rows((FOLDER / "README.md").read_text(encoding="utf-8"))
        found = [row for row in read if row[0] in names and row[1:2] in (["baseline"], ["icgan"])]
        assert len(found) == 10
        for baseline, icgan in zip(found[::2], found[1::2], strict=True):
            assert (baseline[0], baseline[1], icgan[1]) == (icgan[0], "baseline", "icgan")
            assert baseline[7] == icgan[7]  # the same number of steps
            for accuracy, gain in ((3, 4), (5, 6)):
                difference = float(icgan[accuracy].split()[0]) - float(baseline[accuracy].split()[0])
                assert difference == pytest.approx(float(icgan[gain].split()[0]), abs=0.011)

    def test_table_of_the_fair_experiment(self) -> None:
        """Gains are over the baseline of the same seeds; the intervals of a single seed are those of independent runs."""
        text = (FOLDER / "README.md").read_text(encoding="utf-8")
        read = rows(text)
        head = read.index(["arm", "second view", "label agreement", "diversity", "seeds", "linear", "gain", "k-NN", "gain"])
        baseline, *arms = read[head + 2 : head + 8]
        assert [row[0] for row in arms] == ["generated", "weak-2", "weak-1", "neighbours", "oracle"]
        found = re.search(
            r"The baseline's runs reach ([\d.]+), ([\d.]+) and ([\d.]+)% linear and ([\d.]+), ([\d.]+) and ([\d.]+)% k-NN", text
        )
        assert found is not None
        numbers, wilson = [float(number) for number in found.groups()], ssl("probes").wilson
        for accuracy, runs in ((5, numbers[:3]), (7, numbers[3:])):
            assert float(baseline[accuracy].split()[0]) == pytest.approx(sum(runs) / 3, abs=0.011)
            for row in arms:
                (own, half), (gain, both) = ((float(number) for number in row[i].split(" ± ")) for i in (accuracy, accuracy + 1))
                seeds = int(row[4])
                assert gain == pytest.approx(own - sum(runs[:seeds]) / seeds, abs=0.011)
                if seeds == 1:
                    low, high = wilson(round(100 * own), 10_000)
                    least, most = wilson(round(100 * runs[0]), 10_000)
                    assert half == pytest.approx(50 * (high - low), abs=0.011)
                    assert both == pytest.approx(50 * math.hypot(high - low, most - least), abs=0.011)


class TestSpeed:
    @pytest.mark.slow
    def test_report(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_photos(tmp_path / "photos", 12, size=32)
        options = ["--batch-size", "4", "--steps", "1", "--rounds", "1", "--workers", "0", "--device", "cpu"]
        call(monkeypatch, tmp_path, "speed", "--data", "photos", *options, "--out", "speed.json")
        report = json.loads((tmp_path / "speed.json").read_text())
        assert set(report["seconds per step"]) == {"baseline", "bank", "online", "lightly", "lightly, 0 workers"}
        assert all(value > 0 for value in report["ratios"].values())
        call(monkeypatch, tmp_path, "speed", "--data", "photos", *options, "--arms", "baseline", "--out", "speed.json")
        report = json.loads((tmp_path / "speed.json").read_text())
        assert "ratios" not in report
        for what in ("seconds per step", "processor seconds per step"):
            assert list(report[what]) == ["baseline"]
            assert report[what]["baseline"] > 0

    def test_loading(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_photos(tmp_path / "photos", 12, size=32)
        generate_bank(str(tmp_path / "photos"), tmp_path / "bank", FakeGenerator(), variants=2, progress=False)
        options = ["--config", str(CONFIGS / "imagenet" / "simclr-icgan.yaml"), "--rounds", "2", "--batches", "2", "--out", "loading.json"]
        overrides = [*TINY, "data.train=photos", "generative.bank=bank"]
        call(monkeypatch, tmp_path, "loading_speed", *options, *overrides)
        report = json.loads((tmp_path / "loading.json").read_text())
        assert set(report["images per second"]) == {"real", "bank"}
        assert all(value > 0 for value in report["images per second"].values())
        with pytest.raises(SystemExit, match=r"in memory see speed\.py"):
            call(monkeypatch, tmp_path, "loading_speed", *options, *overrides, "data.in_memory=true")


class TestCurves:
    def test_later_values_of_a_resumed_run_win(self, tmp_path: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for start, value in ((0, 1.0), (2, 5.0)):
            writer = SummaryWriter(str(tmp_path / "tensorboard"))
            for step in range(start, start + 3):
                writer.add_scalar("x", value + step, step)
            writer.close()
        assert ssl("learning_curves").scalars(tmp_path, "x") == {0: 1, 1: 2, 2: 7, 3: 8, 4: 9}
        assert ssl("learning_curves").scalars(tmp_path, "y") == {}

    def test_an_arm_has_one_colour(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the panel of a method without a baseline, too."""
        module, figures = ssl("learning_curves"), []
        monkeypatch.setattr(module, "scalars", lambda folder, name: {1: 0.5})
        monkeypatch.setattr(module.plt, "close", figures.append)
        runs = [record("simclr", "baseline", 0, 0.5), record("simclr", "icgan", 0, 0.5), record("byol", "icgan", 0, 0.5)]
        module.draw_curves(runs, tmp_path / "curves.png")
        colours = [(line.get_label(), line.get_color()) for ax in figures[0].axes for line in ax.lines]
        assert colours == [("baseline (1)", "C0"), ("icgan (1)", "C1"), ("icgan (1)", "C1")]
