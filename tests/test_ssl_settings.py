"""Settings of the SSL recipes: every file loads, those of ImageNet are the paper's, and wrong ones are refused by name."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from ssl_example import CONFIGS, ssl

FILES = sorted(CONFIGS.rglob("*.yaml"))
METHODS = ("simclr", "simsiam", "byol", "mocov2plus", "barlowtwins")

# ../shared/PAPER.md, "Settings of the authors' released code", row by row.
LARS = {"optimizer.name": "lars", "optimizer.exclude_bias_and_norm": True}
SGD = {"optimizer.name": "sgd", "optimizer.momentum": 0.9}
TABLE: dict[str, dict[str, Any]] = {
    "simclr": LARS | {
        "method.hidden": 4096, "method.out": 512, "method.temperature": 0.2, "trainer.batch_size": 256, "trainer.accumulate": 1,
        "optimizer.base_lr": 0.3, "optimizer.weight_decay": 1e-6, "optimizer.eta": 0.02, "optimizer.clip": True,
    },
    "simsiam": SGD | {
        "method.hidden": 4096, "method.out": 4096, "method.predictor_hidden": 512, "trainer.batch_size": 64, "trainer.accumulate": 1,
        "optimizer.base_lr": 0.5, "optimizer.weight_decay": 1e-5,
        "method.predictor_schedule": "constant",  # not on that page: of Chen and He, and of solo-learn
    },
    "byol": LARS | {
        "method.hidden": 4096, "method.out": 256, "method.predictor_hidden": 4096, "method.momentum_start": 0.99,
        "method.momentum_end": 1.0, "trainer.batch_size": 256, "trainer.accumulate": 16, "optimizer.base_lr": 0.2,
        "optimizer.weight_decay": 1.5e-6, "optimizer.eta": 0.001, "optimizer.clip": False,
    },
    "mocov2plus": SGD | {
        "method.hidden": 2048, "method.out": 256, "method.queue": 65536, "method.temperature": 0.2, "method.momentum_start": 0.99,
        "method.momentum_end": 0.999, "trainer.batch_size": 64, "trainer.accumulate": 1, "optimizer.base_lr": 0.3,
        "optimizer.weight_decay": 3e-5,
    },
    "barlowtwins": LARS | {
        "method.hidden": 4096, "method.out": 4096, "method.redundancy": 0.0051, "method.loss_scale": 0.048, "trainer.batch_size": 64,
        "trainer.accumulate": 1, "optimizer.base_lr": 0.8, "optimizer.weight_decay": 1.5e-6, "optimizer.eta": 0.001,
        "optimizer.clip": False,
    },
}  # fmt: skip
COMMON = {
    "backbone.name": "resnet50", "backbone.stem": "imagenet", "trainer.epochs": 100, "trainer.devices": 4, "trainer.nodes": 1,
    "trainer.precision": "16-mixed", "trainer.sync_batchnorm": True, "optimizer.warmup_epochs": 10, "optimizer.warmup_start_lr": 3e-5,
    "optimizer.final_lr": 0.0, "data.image_size": 224, "augmentation.interpolation": "bicubic", "augmentation.generated": None,
    "data.limit": None, "data.holdout": 0, "generative.both_views": False, "generative.p_end": None,
}  # fmt: skip
BOTH = {
    "crop_scale": [0.08, 1.0], "jitter_p": 0.8, "grey_p": 0.2, "flip_p": 0.5, "blur_sigma": [0.1, 2.0], "blur_p": 0.5, "solarise_p": 0.0,
}  # fmt: skip
STRONG = dict(zip(("brightness", "contrast", "saturation", "hue"), (0.8, 0.8, 0.8, 0.2), strict=True))
WEAK = dict(zip(STRONG, (0.4, 0.4, 0.4, 0.1), strict=True))
ODD = dict(zip(STRONG, (0.4, 0.4, 0.2, 0.1), strict=True))
VIEWS = {
    "symmetric": (BOTH | STRONG, BOTH | STRONG),
    "symmetric-weak": (BOTH | WEAK, BOTH | WEAK),
    "asymmetric": (BOTH | ODD | {"blur_p": 1.0}, BOTH | ODD | {"blur_p": 0.1, "solarise_p": 0.2}),
}
OF_METHOD = {
    "simclr": "symmetric", "simsiam": "asymmetric", "byol": "asymmetric", "mocov2plus": "symmetric-weak", "barlowtwins": "asymmetric",
}  # fmt: skip
ARMS = {"baseline": {"generative.source": "none"}} | {
    arm: {"generative.source": "bank", "generative.bank": f"banks/imagenet-{arm}", "generative.p": 1.0}
    for arm in ("icgan", "stable-diffusion")
}

# Figure 4 and table 3 of the paper: beside p = 1 and all of the second view's augmentation, which the main runs have.
SHARES = ("0.25", "0.5", "0.75", "1")
ALONE = {"jitter_p": 0.0, "grey_p": 0.0, "blur_p": 0.0, "solarise_p": 0.0, "flip_p": 0.0}
GENERATED = {"augmentation-none": ALONE | {"crop_scale": [1.0, 1.0]}, "augmentation-crop": ALONE | {"crop_scale": [0.08, 1.0]}}
# ../shared/PAPER.md, "Reference numbers for our own baselines": settings, and the accuracy on CIFAR-10 and CIFAR-100.
SOLO_LEARN: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "simclr": (
        {"optimizer.name": "lars", "optimizer.base_lr": 0.4, "optimizer.weight_decay": 1e-4, "method.hidden": 2048, "method.out": 256,
         "method.temperature": 0.2},
        ("90.74", "65.78"),
    ),
    "simsiam": (
        {"optimizer.name": "sgd", "optimizer.base_lr": 0.5, "optimizer.weight_decay": 1e-5, "method.hidden": 2048, "method.out": 2048,
         "method.predictor_hidden": 512, "method.predictor_schedule": "constant"},
        ("90.51", "66.04"),
    ),
    "byol": (
        {"optimizer.name": "lars", "optimizer.base_lr": 1.0, "optimizer.weight_decay": 1e-5, "method.hidden": 4096, "method.out": 256,
         "method.momentum_start": 0.99, "method.momentum_end": 1.0},
        ("92.58", "70.46"),
    ),
    "mocov2plus": (
        {"optimizer.name": "sgd", "optimizer.base_lr": 0.3, "optimizer.weight_decay": 1e-4, "method.queue": 32768,
         "method.momentum_start": 0.99, "method.momentum_end": 0.999},
        ("92.94", "69.89"),
    ),
    "barlowtwins": (
        {"optimizer.name": "lars", "optimizer.base_lr": 0.3, "optimizer.weight_decay": 1e-4, "method.loss_scale": 0.1},
        ("92.10", "70.90"),
    ),
}  # fmt: skip


def load(path: Path, *overrides: str) -> Any:
    return ssl("config").load_settings(path, list(overrides))


@cache
def shipped(path: Path) -> Any:
    """One of the repository's files; read once, so the settings are not to be changed."""
    return load(path)


@cache
def flat(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = ssl("config").flatten(shipped(path))
    return values


class TestFiles:
    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).with_suffix("").as_posix())
    def test_loads_as_what_its_name_says(self, path: Path) -> None:
        settings = shipped(path)
        method, _, arm = path.stem.partition("-")
        assert settings.method.name == method
        source = {"baseline": "none", "online": "online"}.get(arm.partition("-")[0], "bank")
        assert settings.generative.source == source

    @pytest.mark.parametrize(
        "name", [*(f"imagenet/{method}-icgan" for method in METHODS), "imagenet/simclr-stable-diffusion-augmentation-none",
                 "cifar10-figure4/simclr-generated-both-p0.25", "cifar100-solo-learn/byol-baseline"]
    )  # fmt: skip
    def test_written_settings_are_read_back(self, name: str) -> None:
        path = CONFIGS / f"{name}.yaml"
        again = ssl("config").build_settings(dataclasses.asdict(shipped(path)))
        assert ssl("config").flatten(again) == flat(path)

    def test_there_is_one_for_every_run_of_the_issue(self) -> None:
        names = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in FILES}
        expected = {f"imagenet/{method}-{arm}" for method in METHODS for arm in ARMS}
        expected |= {f"imagenet/simclr-stable-diffusion-p{p}" for p in (0.25, 0.5, 0.75)}
        small = ("cifar10", "cifar100", "cifar10-small", "cifar100-small")
        expected |= {f"{folder}/{method}-{arm}" for folder in small for method in METHODS for arm in ("baseline", "icgan")}
        expected |= {"folder/simclr-baseline", "folder/simclr-icgan"}
        expected |= {f"{data}-solo-learn/{method}-baseline" for data in ("cifar10", "cifar100") for method in METHODS}
        expected |= {"imagenet/simclr-stable-diffusion-both", "cifar10-figure4/simclr-baseline", "cifar10-table3/simclr-baseline"}
        expected |= {f"imagenet/simclr-stable-diffusion-both-p{p}" for p in (0.25, 0.5, 0.75)}
        expected |= {f"imagenet/simclr-stable-diffusion-{arm}" for arm in GENERATED}
        expected |= {f"cifar10-figure4/simclr-generated{both}-p{p}" for both in ("", "-both") for p in SHARES}
        expected |= {f"cifar10-table3/simclr-generated-augmentation-{arm}" for arm in ("none", "crop", "all")}
        assert expected <= names

    @pytest.mark.parametrize(
        "folder", ["imagenet", "cifar10", "cifar100", "cifar10-small", "cifar100-small", "folder", "cifar10-figure4", "cifar10-table3"]
    )
    def test_arms_differ_by_the_generated_view_alone(self, folder: str) -> None:
        for path in sorted((CONFIGS / folder).glob("*.yaml")):
            base = flat(path.with_name(f"{path.stem.partition('-')[0]}-baseline.yaml"))
            arm = flat(path)
            generative = {f"generative.{n}" for n in ("source", "bank", "generator", "p", "scores", "select", "weights", "both_views")}
            differing = {name for name in base.keys() | arm.keys() if arm.get(name) != base.get(name)}
            assert {name for name in differing if not name.startswith("augmentation.generated")} <= generative, path
            assert differing <= generative or "-augmentation-" in path.stem, path

    def test_small_images_get_the_small_stem(self) -> None:
        for folder in ("cifar10", "cifar100", "cifar10-solo-learn", "cifar100-solo-learn"):
            for path in (CONFIGS / folder).glob("*.yaml"):
                assert (shipped(path).backbone.name, shipped(path).backbone.stem) == ("resnet18", "cifar")


class TestPaper:
    @pytest.mark.parametrize("arm", ARMS)
    @pytest.mark.parametrize("method", METHODS)
    def test_every_value(self, method: str, arm: str) -> None:
        settings = flat(CONFIGS / "imagenet" / f"{method}-{arm}.yaml")
        expected = COMMON | TABLE[method] | ARMS[arm]
        for view, values in zip(("view1", "view2"), VIEWS[OF_METHOD[method]], strict=True):
            expected |= {f"augmentation.{view}.{name}": value for name, value in values.items()}
        assert {name: settings[name] for name in expected} == expected
        # nothing of the views or the method stands outside the table
        assert {name for name in settings if name.startswith("augmentation.view")} <= set(expected)
        assert {name for name in settings if name.startswith("method.")} <= {*expected, "method.name"}

    @pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
    def test_other_probabilities(self, p: float) -> None:
        main = flat(CONFIGS / "imagenet" / "simclr-stable-diffusion.yaml")
        other = flat(CONFIGS / "imagenet" / f"simclr-stable-diffusion-p{p}.yaml")
        assert {name: other[name] for name in other if other[name] != main[name]} == {"generative.p": p}

    @pytest.mark.parametrize("p", SHARES)
    def test_both_views_generated(self, p: str) -> None:
        """Figure 4, at full size and in small: the runs differ in p and in the number of generated views."""
        name = "" if p == "1" else f"-p{p}"
        runs = [flat(CONFIGS / "imagenet" / f"simclr-stable-diffusion{both}{name}.yaml") for both in ("", "-both")]
        runs += [flat(CONFIGS / "cifar10-figure4" / f"simclr-generated{both}-p{p}.yaml") for both in ("", "-both")]
        for one, both in (runs[:2], runs[2:]):
            assert one["generative.p"] == both["generative.p"] == float(p)
            assert {key: both[key] for key in both if both[key] != one[key]} == {"generative.both_views": True}
            assert both["generative.source"] == "bank"
        zero = flat(CONFIGS / "cifar10-figure4" / "simclr-baseline.yaml")
        changed = {key for key in one if one[key] != zero[key]} - {"generative.p"}  # which says nothing without a source
        assert changed == {"generative.source", "generative.bank"}
        assert (zero["generative.source"], zero["generative.bank"]) == ("none", None)

    @pytest.mark.parametrize("arm", GENERATED)
    def test_augmentation_of_generated_images(self, arm: str) -> None:
        """Table 3: the main run but for what generated images get; real ones keep theirs."""
        main = flat(CONFIGS / "imagenet" / "simclr-stable-diffusion.yaml")
        other = flat(CONFIGS / "imagenet" / f"simclr-stable-diffusion-{arm}.yaml")
        generated = {key.removeprefix("augmentation.generated."): other[key] for key in other if key.startswith("augmentation.generated.")}
        assert {key: value for key, value in generated.items() if key.endswith("_p") or key == "crop_scale"} == GENERATED[arm]
        assert all(other[key] == main[key] for key in main if key != "augmentation.generated")
        small = shipped(CONFIGS / "cifar10-table3" / f"simclr-generated-{arm}.yaml").augmentation
        view2 = {"crop_scale": small.view2.crop_scale} if arm == "augmentation-crop" else {}
        assert dataclasses.asdict(small.generated) == dataclasses.asdict(small.view2) | GENERATED[arm] | view2

    def test_all_augmentation_in_small(self) -> None:
        assert shipped(CONFIGS / "cifar10-table3" / "simclr-generated-augmentation-all.yaml").augmentation.generated is None
        for path in (CONFIGS / "cifar10-table3").glob("*augmentation*.yaml"):
            assert (shipped(path).generative.p, shipped(path).generative.both_views) == (1.0, False)

    def test_linear_probe(self) -> None:
        options = ssl("evaluate").ProbeOptions()
        assert (options.optimizer, options.base_lr, options.batch_size, options.epochs) == ("lars", 0.1, 512, 100)


class TestSoloLearn:
    @pytest.mark.parametrize("place", [0, 1], ids=["cifar10", "cifar100"])
    @pytest.mark.parametrize("method", METHODS)
    def test_every_value_and_the_aim(self, method: str, place: int) -> None:
        folder = CONFIGS / f"{('cifar10', 'cifar100')[place]}-solo-learn"
        settings = flat(folder / f"{method}-baseline.yaml")
        values, aims = SOLO_LEARN[method]
        expected = values | {"trainer.epochs": 1000, "trainer.batch_size": 256, "trainer.devices": 1, "trainer.accumulate": 1,
                             "backbone.name": "resnet18", "backbone.stem": "cifar", "generative.source": "none", "data.limit": None,
                             "data.train": f"torchvision:{('CIFAR10', 'CIFAR100')[place]}:data"}  # fmt: skip
        assert {name: settings[name] for name in expected} == expected
        assert f"The aim: {aims[place]}% " in (folder / f"{method}-baseline.yaml").read_text()


class TestLayers:
    def test_defaults_file_base_arguments(self, tmp_path: Path) -> None:
        (tmp_path / "below.yaml").write_text("seed: 1\ndata: {train: x, limit: 5}\ntrainer: {epochs: 7, batch_size: 9}\n")
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "above.yaml").write_text("base: ../below.yaml\ntrainer: {epochs: 8}\noptimizer: {base_lr: 4e-4}\n")
        s = load(tmp_path / "sub" / "above.yaml", "data.limit=null", "optimizer.weight_decay=1e-3")
        assert (s.seed, s.data.limit, s.trainer.epochs, s.trainer.batch_size) == (1, None, 8, 9)
        assert (s.optimizer.base_lr, s.optimizer.weight_decay, s.trainer.nodes) == (4e-4, 1e-3, 1)

    def test_another_method_takes_nothing_from_the_one_below(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("data: {train: x}\nmethod: {name: simclr, temperature: 0.7}\n")
        (tmp_path / "b.yaml").write_text("base: a.yaml\nmethod: {name: byol, hidden: 3}\n")
        assert load(tmp_path / "b.yaml").method == ssl("config").BYOLSettings(hidden=3)

    @pytest.mark.parametrize("order", [1, -1])
    def test_order_of_arguments(self, order: int) -> None:
        words = ["method.name=byol", "method.hidden=77", "method.momentum_start=0.5"][::order]
        method = load(CONFIGS / "cifar10-small" / "simclr-baseline.yaml", *words).method
        assert method == ssl("config").BYOLSettings(hidden=77, momentum_start=0.5)

    def test_milder_augmentation_starts_from_the_second_view(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("data: {train: x}\naugmentation: {preset: asymmetric, generated: {hue: 0.0}}\n")
        generated, view2 = load(tmp_path / "a.yaml").augmentation.generated, load(tmp_path / "a.yaml").augmentation.view2
        assert generated.hue == 0.0
        assert (generated.blur_p, generated.solarise_p, generated.saturation) == (0.1, 0.2, 0.2)
        assert view2.hue == 0.1


class TestRefused:
    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("data.limit=0", "expected more than 0"),
            ("data.limit=-5", "expected more than 0"),
            ("data.holdout=-1", "expected 0 or more"),
            ("data.workers=-1", "expected 0 or more"),
            ("optimizer.base_lr=0", "expected more than 0"),
            ("augmentation.view1.crop_scale=[0.3]", "expected two numbers"),
            ("augmentation.view2.blur_sigma=[2.0, 0.1]", "the smaller first"),
            ("backbone.blocks=[1]", "expected as many numbers as backbone.widths"),
            ("trainer.precision=fp16", "expected one of auto, 32-true, 16-mixed, bf16-mixed"),
            ("trainer.epochs=true", "expected int"),
            ("trainer.epoch=3", r"trainer.epoch'; known:.*trainer.epochs"),
            ("sede=1", "unknown setting 'sede'"),
            ("method.temprature=1", "method.temprature'; known:.*method.temperature"),
            ("generative.p=1.5", r"generative.p=1.5: expected a probability"),
            ("generative.p=-0.1", "generative.p=-0.1"),
            ("generative.p_end=2", "generative.p_end=2"),
            ("augmentation.view1.blur_p=7", "augmentation.view1.blur_p=7"),
            ("generative.p=often", "generative.p='often': expected float"),
            ("method.name=dino", "method.name='dino'"),
            ("augmentation.preset=wild", "augmentation.preset='wild'"),
            ("backbone.name=vit", "backbone.name='vit'"),
            ("generative.source=bank", "needs generative.bank"),
            ("generative.select=place <= 5", "generative.select='place <= 5': a bank is needed, generative.source is 'none'"),
            ("generative.weights=realism", "a bank is needed"),
            ("generative.source=online", "needs generative.generator"),
            ("trainer.epochs=0", "trainer.epochs=0: expected more than 0"),
            ("trainer.batch_size=1", "trainer.batch_size=1"),
            ("trainer.batch_size=2.5", "trainer.batch_size=2.5: expected int"),
            ("trainer.sync_batchnorm=3", "trainer.sync_batchnorm=3: expected bool"),
            ("data.train=", "data.train"),
            ("trainer=5", "expected settings below it"),
            ("backbone.widths=64", r"backbone.widths=64: expected list\[int\]"),
            ("backbone.widths=[]", "at least one"),
            ("seed=[1]", r"seed=\[1\]: expected int"),
            ("generative.p=null", "generative.p=None: expected float"),
            ("augmentation.generated=5", "expected settings below it"),
            ("epochs", "expected name=value"),
            ("data.limit=[", "is not YAML"),
        ],
    )
    def test_says_what_and_what_else(self, override: str, said: str) -> None:
        with pytest.raises(SystemExit, match=said):
            load(CONFIGS / "cifar10-small" / "simclr-baseline.yaml", override)

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (["generative.select=place <= 5"], r"generative.select='place <= 5' needs generative.scores=scores\.parquet"),
            (["generative.weights=realism"], "needs generative.scores"),
            (["generative.select=best.json", "generative.weights=realism"], "needs generative.scores"),
        ],
    )
    def test_variants_are_chosen_by_scores(self, overrides: list[str], said: str) -> None:
        path = CONFIGS / "cifar10-small" / "simclr-icgan.yaml"
        with pytest.raises(SystemExit, match=said):
            load(path, *overrides)
        load(path, "generative.select=best.json")
        for arm in ("baseline", "icgan"):  # like generative.bank, it may be given to all arms of an experiment
            load(path.with_name(f"simclr-{arm}.yaml"), "generative.scores=s.parquet")
        load(path, "generative.select=place <= 5", "generative.weights=realism", "generative.scores=s.parquet")

    def test_schedule_of_the_predictor(self) -> None:
        with pytest.raises(SystemExit, match=r"method\.predictor_schedule='cosine': expected one of constant"):
            load(CONFIGS / "cifar10-small" / "simsiam-baseline.yaml", "method.predictor_schedule=cosine")

    def test_held_out_images_where_there_are_none(self) -> None:
        with pytest.raises(SystemExit, match=r"data\.test_on_holdout=True needs data\.holdout"):
            load(CONFIGS / "cifar10" / "simclr-baseline.yaml", "data.test_on_holdout=true")

    def test_a_key_of_another_method(self) -> None:
        with pytest.raises(SystemExit, match=r"unknown setting 'method.queue'"):
            load(CONFIGS / "cifar10-small" / "simclr-baseline.yaml", "method.queue=5")

    def test_files(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="no settings file"):
            load(tmp_path / "none.yaml")
        (tmp_path / "list.yaml").write_text("- 1\n")
        with pytest.raises(SystemExit, match="expected names and values"):
            load(tmp_path / "list.yaml")
        (tmp_path / "quotes.yaml").write_text("a: “b\nc: [\n")
        with pytest.raises(SystemExit, match="not YAML"):
            load(tmp_path / "quotes.yaml")

    def test_yaml_is_plain(self) -> None:
        """One of the released code's defects: files with curly quotes that no parser takes."""
        for path in FILES:
            assert isinstance(yaml.safe_load(path.read_text(encoding="ascii")), dict), path
