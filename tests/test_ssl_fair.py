"""The fair experiment of the recipes: banks of real images, its configurations and tries, and the figure of gain over agreement."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats
from small_generators import tiny_icgan
from ssl_example import CONFIGS, FOLDER, TINY, TINY_METHOD, call, ssl, write_photos

from gentransforms.bank.generate.run import generate_bank
from gentransforms.bank.reader import Bank
from gentransforms.testing import FakeGenerator

FAIR, CHOICES = CONFIGS / "cifar10-fair", CONFIGS / "cifar10-fair-choices"
FILES = sorted([*FAIR.glob("*.yaml"), *CHOICES.glob("*.yaml")])
METHODS = ("simclr", "simsiam", "byol", "mocov2plus", "barlowtwins")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:::pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


# Those of the first of each eight, like all of the experiment, take their step in every run of the tests, the other tries in slow ones.
FIRST = [next(iter(sorted(CHOICES.glob(f"simclr-{arm}-*.yaml")))) for arm in ("baseline", "generated")]


@functools.cache
def flat(path: Path) -> dict[str, Any]:
    return dict(ssl("config").flatten(ssl("config").load_settings(path)))


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    write_photos(root / "train", 8, size=16)
    generate_bank(str(root / "train"), root / "bank", FakeGenerator(), variants=2, progress=False)
    return root


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of miniature.py: 4 for training and 2 for tests of each of ten classes, and two copies."""
    root = tmp_path_factory.mktemp("toy")
    ssl("miniature").make_toy(root, 4, 2)
    (root / "train" / "cat" / "copy.png").write_bytes((root / "train" / "cat" / "0001.png").read_bytes())
    (root / "test" / "cat" / "copy.png").write_bytes((root / "train" / "cat" / "0002.png").read_bytes())
    return root


class TestConfigurations:
    def test_every_arm_of_the_experiment(self) -> None:
        arms = {f"simclr-{arm}" for arm in ("baseline", "generated", "weak-1", "weak-2", "neighbours", "oracle")}
        arms |= {f"{method}-{arm}" for method in METHODS for arm in ("baseline", "generated")}
        assert {path.stem for path in FAIR.glob("*.yaml")} == arms

    @pytest.mark.parametrize("method", METHODS)
    def test_settings_of_the_small_runs_on_all_images(self, method: str) -> None:
        """What was chosen for cifar10-small stands; images and epochs differ, and the augmentation once it is chosen anew."""
        small, fair = flat(CONFIGS / "cifar10-small" / f"{method}-baseline.yaml"), flat(FAIR / f"{method}-baseline.yaml")
        changed = {name for name in differing(small, fair) if not name.startswith("augmentation.view")}
        later = {"method.predictor_schedule"} if method == "simsiam" else set()
        assert changed <= {"data.limit", "trainer.epochs", "optimizer.warmup_epochs", "probe.every"} | later
        assert (fair["data.limit"], fair["data.holdout"], fair["data.test_on_holdout"]) == (None, 5000, False)

    def test_arms_differ_by_what_is_compared(self) -> None:
        generated = flat(FAIR / "simclr-generated.yaml")
        for arm in ("weak-1", "weak-2", "neighbours", "oracle"):
            other = flat(FAIR / f"simclr-{arm}.yaml")
            assert differing(generated, other) == {"generative.bank"}
            assert other["generative.bank"] == f"banks/cifar10-fair-{arm}"
        classic = {"baseline": flat(FAIR / "simclr-baseline.yaml"), "generated": generated}
        for method in METHODS:
            baseline, own = flat(FAIR / f"{method}-baseline.yaml"), flat(FAIR / f"{method}-generated.yaml")
            assert all(name.startswith(("generative.", "augmentation.view")) for name in differing(baseline, own))
            for name, arm in {"baseline": baseline, "generated": own}.items():  # one choice for all methods
                chosen = {key: value for key, value in arm.items() if key.startswith(("augmentation.view", "generative."))}
                assert chosen == {key: classic[name][key] for key in chosen}

    def test_eight_different_tries_for_each_arm(self) -> None:
        tries = {path.stem: flat(path) for path in CHOICES.glob("*.yaml")}
        for arm in ("baseline", "generated"):
            own = {name: values for name, values in tries.items() if name.startswith(f"simclr-{arm}-")}
            assert len({json.dumps(values, sort_keys=True) for values in own.values()}) == len(own) == 8
            for values in own.values():
                assert values["data.test_on_holdout"]
                changed = differing(flat(FAIR / f"simclr-{arm}.yaml"), values) - {"data.test_on_holdout"}
                assert all(name.startswith("augmentation.view") or name in ("generative.p", "generative.both_views") for name in changed)
        assert len(tries) == 16

    @pytest.mark.parametrize("path", sorted(CHOICES.glob("*.yaml")), ids=lambda path: path.stem)
    def test_names_of_tries_say_what_they_are(self, path: Path) -> None:
        values, (_, arm, *words) = flat(path), path.stem.split("-")
        jitters = {"mild": (0.2, 0.4), "milder": (0.3, 0.2)}
        if arm == "baseline":
            crop, jitter = (float(re.sub("[a-z]", "", word)) for word in words)
        else:
            views, p, name = words
            crop, jitter = jitters[name]
            assert (values["generative.p"], values["generative.both_views"]) == (float(p[1:]), views == "both")
        for view in ("view1", "view2"):
            names = ("crop_scale", "brightness", "contrast", "saturation", "hue")
            assert [values[f"augmentation.{view}.{n}"] for n in names] == [[crop, 1.0], jitter, jitter, jitter, pytest.approx(jitter / 4)]

    @pytest.mark.parametrize(
        "path",
        [
            pytest.param(path, id=f"{path.parent.name}/{path.stem}", marks=() if path in FIRST or path.parent == FAIR else pytest.mark.slow)
            for path in FILES
        ],
    )
    def test_takes_a_step(self, path: Path, photos: Path, tmp_path: Path) -> None:
        method, arm = path.stem.split("-")[:2]
        few = ["data.holdout=4", "trainer.epochs=1", "optimizer.warmup_epochs=0", "probe.every=9"]
        data = [f"data.train={photos / 'train'}", f"data.test={photos / 'train'}", f"generative.bank={photos / 'bank'}"]
        chosen = ssl("config").load_settings(path, [*TINY, *TINY_METHOD.get(method, []), *data, *few])
        record = ssl("train").train(chosen, tmp_path / "run", quiet=True)
        assert (record["steps"], record["images"]) == (1, 4)
        (loss,) = ssl("learning_curves").scalars(tmp_path / "run", "train/loss").values()
        assert -10 < loss < 100
        (share,) = ssl("learning_curves").scalars(tmp_path / "run", "train/generated").values()
        p = 0.0 if arm == "baseline" else chosen.generative.p
        assert share == p if p in (0, 1) else 0 <= share <= 1


def pool_of(images: torch.Tensor, labels: list[int]) -> Any:
    return ssl("real_images").Pool.of(ssl("loading").MemoryImages(images, torch.tensor(labels)))


def noise(count: int, size: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


class TestPool:
    def test_equal_images_count_once(self) -> None:
        images = noise(5)
        images[3] = images[1]
        pool = pool_of(images, [0, 1, 2, 3, 4])
        assert torch.equal(pool.images.images, images[[0, 1, 2, 4]])
        assert pool.images.labels.tolist() == [0, 1, 2, 4]
        assert pool.find(torch.cat([images, noise(1, seed=1)])).tolist() == [0, 1, 2, 1, 3, -1]

    def test_one_level_of_one_pixel_is_another_image(self) -> None:
        image = noise(1)
        other = image.clone()
        other[0, 2, 3, 3] ^= 1
        assert pool_of(torch.cat([image, other]), [0, 0]).find(other).tolist() == [1]


class TestNearestOthers:
    def test_against_a_loop(self) -> None:
        rng = np.random.default_rng(0)
        pool, queries = rng.normal(3, 1, (40, 5)), rng.normal(3, 1, (12, 5))
        own = [-1] * 6 + [4, 0, 39, 7, 7, 11]
        queries[6:] = pool[own[6:]]  # nearest to themselves, if they were not left out
        found = ssl("real_images").nearest_others(torch.tensor(queries), torch.tensor(pool), torch.tensor(own), 3)
        mean = pool.mean(0)
        for query, mine, places in zip(queries, own, found.tolist(), strict=True):
            cosine = [np.dot(query - mean, p - mean) / np.linalg.norm(query - mean) / np.linalg.norm(p - mean) for p in pool]
            assert places == [place for place in np.argsort(cosine)[::-1] if place != mine][:3]

    def test_own_place_is_left_out_by_identity(self) -> None:
        """Two different images with the same features: each is the other's nearest."""
        features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]])
        assert ssl("real_images").nearest_others(features, features, torch.arange(4), 1)[:2].flatten().tolist() == [1, 0]


class TestDrawOfClass:
    labels = torch.tensor([0, 1] * 10)

    def draw(self, wanted: list[int], own: list[int], seeds: list[int], k: int = 4) -> torch.Tensor:
        found: torch.Tensor = ssl("real_images").draw_of_class(torch.tensor(wanted), self.labels, torch.tensor(own), k, torch.tensor(seeds))
        return found

    def test_different_others_of_the_class(self) -> None:
        wanted, own = [0, 1] * 100, [0, 1, 2, -1] * 50
        for label, mine, places in zip(wanted, own, self.draw(wanted, own, list(range(200))).tolist(), strict=True):
            assert len(set(places)) == 4
            assert mine not in places
            assert all(self.labels[place] == label for place in places)

    def test_uniform(self) -> None:
        """Each of the nine others as often as the others, in each place; chi-squared at 99.9%."""
        drawn = self.draw([0] * 1800, [4] * 1800, list(range(1800)))
        for places in drawn.T:
            counts = np.bincount(places, minlength=20)[[0, 2, 6, 8, 10, 12, 14, 16, 18]]
            assert counts.sum() == 1800
            assert stats.chisquare(counts).pvalue > 0.001

    def test_all_others_and_own_seeds(self) -> None:
        assert sorted(self.draw([1], [3], [5], k=9)[0].tolist()) == [1, 5, 7, 9, 11, 13, 15, 17, 19]
        together, alone = self.draw([0, 1, 1], [0, 1, 3], [7, 8, 9]), self.draw([1], [3], [9])
        assert torch.equal(together[2], alone[0])


class TestShuffle:
    def test_every_row_in_an_order_of_its_own(self) -> None:
        places = torch.arange(10).repeat(600, 1)
        found = ssl("real_images").shuffle(places, torch.arange(600))
        assert torch.equal(found.sort(dim=1).values, places)
        assert stats.chisquare(np.bincount(found[:, 0], minlength=10)).pvalue > 0.001
        assert torch.equal(ssl("real_images").shuffle(places[:1], torch.tensor([599]))[0], found[599])


class TestRealVariants:
    """The script, on toy images."""

    def run(self, monkeypatch: pytest.MonkeyPatch, toy: Path, kind: str, *options: str, settings: tuple[str, ...] = ()) -> None:
        before = ["--generator", "icgan-cifar10-32"] if kind == "neighbours" else []
        config = ["--config", str(FAIR / f"simclr-{kind}.yaml"), "--variants", "3"]
        overrides = ["data.train=train", "data.holdout=0", f"generative.bank=banks/{kind}"]
        call(monkeypatch, toy, "real_variants", "--kind", kind, *before, *config, *options, *overrides, *settings)

    def rows(self, bank: Path, data: Path) -> dict[str, list[bytes]]:
        """Return the pixels of each source's variants, all of which must be images of `data`."""
        opened = Bank.open(bank)
        known = {pixels(path) for path in data.rglob("*.png")}
        read = {key: [image.numpy().tobytes() for image in opened.read([key] * 3, range(3))] for key in map(str, opened.keys)}
        assert all(image in known for images in read.values() for image in images)
        return read

    @pytest.mark.parametrize("kind", ["neighbours", "oracle"])
    def test_banks_of_training_and_test_images(
        self, kind: str, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.run(monkeypatch, toy, kind)
        assert "123 images of 41 sources, out of 40 (1 copies left out)" in capsys.readouterr().out
        self.run(monkeypatch, toy, kind, "--of", "test", "--out", f"banks/{kind}-test")
        for sources, name, count in (("train", kind, 41), ("test", f"{kind}-test", 21)):
            read = self.rows(toy / "banks" / name, toy / "train")
            assert read.keys() == {path.relative_to(toy / sources).as_posix() for path in (toy / sources).rglob("*.png")}
            classes = {pixels(path): path.parent.name for path in (toy / "train").rglob("*.png")}
            for key, images in read.items():
                assert len(set(images)) == 3
                assert pixels(toy / sources / key) not in images  # nor does a copy of the source count as another image
            same = np.mean([classes[image] == key.partition("/")[0] for key, images in read.items() for image in images])
            record = json.loads((toy / "banks" / f"{name}.json").read_text())
            assert record["same_label"] == pytest.approx(same, abs=1e-4)
            assert kind == "neighbours" or same == 1
            assert (record["sources"], record["pool"], record["sources_in_pool"]) == (count, 40, 41 if sources == "train" else 1)
        report = Bank.open(toy / "banks" / kind).verify()
        assert report.ok

        # the same command has nothing to do; others are refused
        manifest = (toy / "banks" / kind / "bank.json").read_bytes()
        self.run(monkeypatch, toy, kind)
        assert (toy / "banks" / kind / "bank.json").read_bytes() == manifest
        assert {path.name for path in (toy / "banks").iterdir()} >= {kind, f"{kind}.json", f"{kind}-test"}
        with pytest.raises(SystemExit, match=r"made with other seed \(0, now 1\): choose another folder"):
            self.run(monkeypatch, toy, kind, "--seed", "1")

    def test_neighbours_are_the_nearest_by_the_encoder(self, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run(monkeypatch, toy, "neighbours", settings=("generative.bank=banks/near",))
        files = sorted((toy / "train").rglob("*.png"))
        files.remove(toy / "train" / "cat" / "copy.png")
        images = torch.stack([torch.frombuffer(bytearray(pixels(path)), dtype=torch.uint8).view(3, 32, 32) for path in files])
        with torch.no_grad():
            features = ssl("frozen").load_generator("icgan-cifar10-32", "").encode(images.float() / 255)["features"].double().numpy()
        features -= features.mean(0)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        self.run(monkeypatch, toy, "neighbours", "--among", "5", settings=("generative.bank=banks/among",))
        read, among = (self.rows(toy / "banks" / name, toy / "train") for name in ("near", "among"))
        farther = 0
        for i, path in enumerate(files):
            key, order = path.relative_to(toy / "train").as_posix(), [j for j in np.argsort(-features @ features[i]) if j != i]
            assert set(read[key]) == {pixels(files[j]) for j in order[:3]}
            assert len(set(among[key])) == 3
            assert set(among[key]) <= {pixels(files[j]) for j in order[:5]}
            farther += len(set(among[key]) - set(read[key]))
        assert farther == pytest.approx(len(files) * 3 * 2 / 5, rel=0.3)  # two of five are not the nearest three
        assert [json.loads((toy / "banks" / f"{name}.json").read_text())["among"] for name in ("near", "among")] == [None, 5]

    def test_interrupted_import_is_continued(self, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        script = ssl("real_variants")
        imported = script.import_bank

        def interrupted(*args: Any, **options: Any) -> None:
            imported(*args, **options, unit_size=4)
            for unit in sorted((toy / "banks" / "oracle-cut").glob("unit-*"))[6:]:
                unit.unlink()
            raise KeyboardInterrupt

        cut = ("generative.bank=banks/oracle-cut",)
        monkeypatch.setattr(script, "import_bank", interrupted)
        with pytest.raises(KeyboardInterrupt):
            self.run(monkeypatch, toy, "oracle", settings=cut)
        assert {path.name for path in (toy / "banks").iterdir() if "cut" in path.name} == {"oracle-cut", "oracle-cut.json"}
        with pytest.raises(SystemExit, match="other seed"):
            self.run(monkeypatch, toy, "oracle", "--seed", "1", settings=cut)
        monkeypatch.setattr(script, "import_bank", lambda *args, **options: imported(*args, **options, unit_size=4))
        self.run(monkeypatch, toy, "oracle", settings=cut)
        self.run(monkeypatch, toy, "oracle", settings=("generative.bank=banks/oracle-whole",))
        cut_bank, whole = (self.rows(toy / "banks" / f"oracle-{name}", toy / "train") for name in ("cut", "whole"))
        assert cut_bank == whole

    def test_row_numbers_of_held_out_images_are_no_keys(self, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The keys are those that training expects, and held-out images are nobody's variants."""
        self.run(monkeypatch, toy, "neighbours", settings=("generative.bank=banks/held", "data.holdout=10"))
        settings = ssl("config").load_settings(FAIR / "simclr-neighbours.yaml", ["data.train=train", "data.holdout=10"])
        source = ssl("data").open_images("train")
        rows, held = ssl("loading").training_rows(source, settings)
        read = self.rows(toy / "banks" / "held", toy / "train")
        assert list(read) == [source.keys[row] for row in rows.tolist()]
        # "copy" may be held out, but not the image that it is a copy of
        trained = {pixels(toy / "train" / source.keys[row]) for row in rows.tolist()}
        apart = {pixels(toy / "train" / source.keys[row]) for row in held.tolist()} - trained
        assert apart
        assert not apart & {image for images in read.values() for image in images}

    def test_refused(self, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for kind, options, said in (
            ("oracle", ["--generator", "icgan-cifar10-32"], "expected none, it draws by labels alone"),
            ("oracle", ["--of", "test"], "--out is not set"),
            ("oracle", ["--variants", "4"], "--variants 4: 'train' has 3 different other images of class"),
            ("neighbours", ["--variants", "40"], "--variants 40: 'train' has 39 different other images for some sources"),
            ("neighbours", ["--among", "40"], "--among 40: 'train' has 39 different other images for some sources"),
            ("neighbours", ["--among", "3"], "--kind neighbours --among 3: expected more than --variants 3"),
            ("oracle", ["--among", "5"], "--kind oracle --among 5: expected none, it draws from the whole class"),
            ("neighbours", ["--generator", "nowhere"], "--generator nowhere"),
        ):
            with pytest.raises(SystemExit, match=re.escape(said)):
                self.run(monkeypatch, toy, kind, *options, settings=("generative.bank=banks/refused",))
        with pytest.raises(SystemExit, match="a generator, whose encoder finds them"):
            call(monkeypatch, toy, "real_variants", "--kind", "neighbours", "--config", str(FAIR / "simclr-neighbours.yaml"))
        assert not (toy / "banks" / "refused").exists()
        (toy / "other").mkdir(exist_ok=True)
        with pytest.raises(SystemExit, match="was not made by this script"):
            self.run(monkeypatch, toy, "oracle", settings=("generative.bank=other",))

    def test_oracle_needs_labels(self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for i, path in enumerate(sorted((toy / "train").rglob("*.png"))[:6]):
            (tmp_path / "bare").mkdir(exist_ok=True)
            (tmp_path / "bare" / f"{i}.png").write_bytes(path.read_bytes())
        with pytest.raises(SystemExit, match="'bare' has no labels"):
            self.run(monkeypatch, tmp_path, "oracle", settings=("data.train=bare",))
        self.run(monkeypatch, tmp_path, "neighbours", settings=("data.train=bare",))
        assert "same_label" not in json.loads((tmp_path / "banks" / "neighbours.json").read_text())

    def test_recipe_trains_on_it(self, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run(monkeypatch, toy, "oracle", settings=("generative.bank=banks/trained",))
        overrides = [*TINY, "data.image_size=32", "data.train=train", "data.test=null", "generative.bank=banks/trained", "trainer.epochs=1"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # others of the class may look no more like the source than like another
            settings = ssl("config").load_settings(FAIR / "simclr-oracle.yaml", [*overrides, "optimizer.warmup_epochs=0"])
            record = ssl("train").train(settings, toy / "run", quiet=True)
        assert record["images"] == 41
        assert set(ssl("learning_curves").scalars(toy / "run", "train/generated").values()) == {1.0}


def pixels(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1)).tobytes()


# Accuracies of three seeds, as results.json has them; the third arm has one more, and the baseline another.
ACCURACY = {
    "baseline": {0: 0.50, 1: 0.52, 2: 0.51, 9: 0.10},
    "generated": {0: 0.53, 1: 0.54, 2: 0.55},
    "oracle": {0: 0.60, 1: 0.63, 2: 0.62, 7: 0.99},
}
AGREEMENT = {"generated": (0.7012, 0.0049), "oracle": (0.95, 0.002)}


class TestGainOverAgreement:
    """The script on made-up results."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        runs = [self.result(arm, seed, a) for arm, seeds in ACCURACY.items() for seed, a in seeds.items()]
        runs.append(self.result("generated", 0, 0.99, method="byol"))
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "results.json").write_text(json.dumps(runs))
        for arm, (share, half) in AGREEMENT.items():
            self.write(tmp_path / arm, label_agreement=share, label_agreement_interval=half)
        return tmp_path

    def result(self, arm: str, seed: int, accuracy: float, method: str = "simclr", steps: int = 100) -> dict[str, Any]:
        probes = {
            name: {"accuracy": share, "interval": [share - 0.012, share + 0.01]}
            for name, share in (("linear", accuracy), ("knn", accuracy / 2))
        }  # fmt: skip
        return {"method": method, "generator": arm, "seed": seed, "training": {"steps": steps}, "measure": {"on_holdout": False}} | probes

    def write(self, folder: Path, **values: Any) -> None:
        folder.mkdir(exist_ok=True)
        common = {"images": 40000.0, "classifier_accuracy": 0.9401, "diversity": 0.81}
        (folder / "evaluation.json").write_text(json.dumps(common | values))

    def run(self, monkeypatch: pytest.MonkeyPatch, place: Path, *options: str) -> None:
        arms = [word for arm in AGREEMENT for word in ("--arm", f"{arm}={arm}")]
        call(monkeypatch, place, "gain_over_agreement", "runs", *arms, "--out", "assets/gain.png", *options)

    def expected(self, arm: str, scale: float = 100) -> tuple[float, float, float, float]:
        """Return accuracy and gain with half their intervals, by SciPy, over the seeds that both arms have."""
        own, base = (np.array([ACCURACY[name][seed] for seed in (0, 1, 2)]) * scale for name in (arm, "baseline"))
        halves = [stats.t.interval(0.95, 2, 0, stats.sem(x))[1] for x in (own, own - base)]
        return own.mean(), halves[0], (own - base).mean(), halves[1]

    @pytest.mark.parametrize(("measure", "scale"), [("linear", 100), ("knn", 50)])
    def test_numbers_drawn_and_written(self, measure: str, scale: float, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        script, drawn = ssl("gain_over_agreement"), []
        draw = script.draw
        monkeypatch.setattr(script, "draw", lambda *args: drawn.append(draw(*args)) or drawn[-1])
        self.run(monkeypatch, place, "--measure", measure)
        (axes,) = drawn[0].axes
        names = [text.get_text() for text in axes.texts]
        assert names == ["generated", "oracle"]  # by agreement
        assert axes.get_title() == "SimCLR, test images"
        markers = set()
        for name, bars in zip(names, axes.containers, strict=True):
            line, _, (horizontal, vertical) = bars.lines
            ((x, y),) = line.get_xydata()
            (low, _), (high, _) = horizontal.get_segments()[0]
            (_, bottom), (_, top) = vertical.get_segments()[0]
            share, half = AGREEMENT[name]
            _, _, gain, gain_half = self.expected(name, scale)
            assert [x, low, high] == pytest.approx([100 * share, 100 * (share - half), 100 * (share + half)])
            assert [y, bottom, top] == pytest.approx([gain, gain - gain_half, gain + gain_half], abs=1e-2)
            markers.add(line.get_marker())
        assert len(markers) == 2  # the ceiling is marked
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert any("ceiling" in text for text in legend)
        assert (place / "assets" / "gain.png").stat().st_size > 1000
        text = (place / "runs" / "gain-over-agreement.md").read_text()
        table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")][2:]
        for row, name in zip(table, names, strict=True):
            share, half = AGREEMENT[name]
            found = [float(number) for cell in (row[3], *row[5:]) for number in cell.split(" ± ")]
            assert found == pytest.approx([100 * share, 100 * half, *self.expected(name, scale)], abs=0.011)
            assert (row[0], row[2], row[4]) == (name, "3", "0.81")
            assert row[-1].startswith("+")

    def test_one_seed(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its intervals are over images; it is drawn hollow, and the table says what is missing."""
        script, drawn = ssl("gain_over_agreement"), []
        draw, results = script.draw, place / "runs" / "results.json"
        monkeypatch.setattr(script, "draw", lambda *args: drawn.append(draw(*args)) or drawn[-1])
        self.run(monkeypatch, place)
        text = (place / "runs" / "gain-over-agreement.md").read_text()
        assert "one seed" not in text
        assert "test images" in text
        runs = [run for run in json.loads(results.read_text()) if run["generator"] != "oracle" or run["seed"] == 1]
        results.write_text(json.dumps(runs))
        self.run(monkeypatch, place)
        said = [figure.axes[0].get_legend().get_title().get_text() for figure in drawn]
        assert ["one seed" in title for title in said] == [False, True]
        line, _, (_, vertical) = drawn[1].axes[0].containers[1].lines
        assert line.get_fillstyle() == "none"
        assert drawn[1].axes[0].containers[0].lines[0].get_fillstyle() == "full"
        (_, bottom), (_, top) = vertical.get_segments()[0]
        half = 100 * np.hypot(0.011, 0.011)
        assert [bottom, top] == pytest.approx([11 - half, 11 + half], abs=1e-6)
        text = (place / "runs" / "gain-over-agreement.md").read_text()
        assert (
            "| oracle | real images of the class: a ceiling, by labels | 1 | 95.00 ± 0.20 | 0.81 | 63.00 ± 1.10 | +11.00 ± 1.56 |" in text
        )
        assert "With one seed, the intervals of accuracy and gain are over test images: they lack the variation" in text

    def test_arms_that_are_not_drawn_are_named(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        call(monkeypatch, place, "gain_over_agreement", "runs", "--arm", "oracle=oracle", "--out", "gain.svg")
        assert "generated is not drawn: there is no --arm generated=FOLDER" in capsys.readouterr().out
        assert (place / "gain.svg").exists()

    def test_refused(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write(place / "other", label_agreement=0.5, label_agreement_interval=0.1, classifier_accuracy=0.93)
        self.write(place / "fewer", label_agreement=0.5, label_agreement_interval=0.1, images=20000.0)
        self.write(place / "without", label_agreement=0.5)
        (place / "broken").mkdir()
        (place / "broken" / "evaluation.json").write_text("{")
        for options, said in (
            (["--arm", "weak"], "--arm weak: expected NAME=FOLDER"),
            (["--arm", "oracle=oracle"], "--arm oracle is given twice"),
            (["--arm", "weak=generated"], "--arm weak: expected an arm with runs beside baseline, there is generated, oracle"),
            (["--arm", "baseline=generated"], "--arm baseline: expected an arm with runs beside baseline"),
            (["--arm", "weak=other"], "accuracy of the classifier 0.9401 and 0.93"),
            (["--arm", "weak=fewer"], "images 40000.0 and 20000.0"),
            (["--arm", "weak=without"], "has no label_agreement_interval"),
            (["--arm", "weak=broken"], "is no JSON"),
            (["--arm", "weak=nowhere"], "nowhere/evaluation.json: No such file"),
            (["--method", "simsiam"], "no run of --method simsiam, only of ['byol', 'simclr']"),
            (["--over", "nothing"], "--over nothing: there is no such arm"),
        ):
            with pytest.raises(SystemExit, match=re.escape(said)):
                self.run(monkeypatch, place, *options)
        assert not (place / "assets").exists()

    def test_runs_that_cannot_be_compared(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        results = place / "runs" / "results.json"
        runs = json.loads(results.read_text())
        fewer = [run for run in runs if not (run["generator"] == "oracle" and run["seed"] != 7)]
        longer = [run | ({"training": {"steps": 150}} if run["generator"] == "oracle" else {}) for run in runs]
        for changed, said in ((fewer, "oracle has no seed in common with baseline"), (longer, r"numbers of steps \[100, 150\]")):
            results.write_text(json.dumps(changed))
            with pytest.raises(SystemExit, match=said):
                self.run(monkeypatch, place)
        again = next(run for run in runs if (run["generator"], run["seed"]) == ("oracle", 1)) | {"folder": "runs/copy"}
        for what in ("generator_fingerprint", "bank_generator"):  # online, or of a bank
            results.write_text(json.dumps([run | {what: "d0b1"} for run in runs]))
            self.write(place / "generated", label_agreement=0.7, label_agreement_interval=0.01, fingerprint="5bb8")
            with pytest.raises(SystemExit, match="--arm generated: its runs had images of the generator d0b1, and 5bb8 was evaluated"):
                self.run(monkeypatch, place)
        self.write(place / "generated", label_agreement=0.7, label_agreement_interval=0.01, fingerprint="d0b1")
        self.run(monkeypatch, place)
        results.write_text(json.dumps([*runs, again]))
        with pytest.raises(SystemExit, match=r"results.json has two runs of oracle with seed 1 \(None and runs/copy\): expected one"):
            self.run(monkeypatch, place)
        results.unlink()
        with pytest.raises(SystemExit, match=r"results\.json: No such file"):
            self.run(monkeypatch, place)


class TestPlan:
    """The commands of configs/cifar10-fair/README.md: every script, option and setting in them exists."""

    def commands(self) -> list[list[str]]:
        fences = re.findall(r"^```bash\n(.*?)^```$", (FAIR / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        return [shlex.split(line) for block in fences for line in block.splitlines() if line]

    def test_commands(self) -> None:
        used, root = set(), FOLDER.parents[1]
        for words in self.commands():
            if words[:2] == ["python", "-c"]:
                compile(words[2], "README.md", "exec")
                continue
            assert words[0] == "python"
            known = (root / words[1]).read_text(encoding="utf-8")
            for word in words:
                assert not word.startswith("--") or f'"{word}"' in known, word
            overrides = [word for word in words if re.match(r"[a-z]+\.[a-z0-9_]+=", word) and words[1].startswith("examples/ssl/")]
            if "--config" in words and words[1].startswith("examples/ssl/"):
                used.add(root / words[words.index("--config") + 1])
                ssl("config").load_settings(root / words[words.index("--config") + 1], overrides)
            if "--configs" in words:
                folder = root / words[words.index("--configs") + 1]
                for method in values_of(words, "--methods"):
                    for arm in values_of(words, "--generators"):
                        used.add(folder / f"{method}-{arm}.yaml")
                        ssl("config").load_settings(folder / f"{method}-{arm}.yaml", overrides)
        assert {path for path in FILES if path not in used} == set()

    @pytest.mark.slow
    def test_in_miniature(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """All of them, one after the other: 140 toy images, 20 held out, a generator of random weights, a step or two for each run."""
        write_parquet(tmp_path, train=14, test=4)
        for path in ("pretrained", *(f"snapshots/{step:07d}" for step in (500, 1000))):
            folder = tmp_path / "runs" / "fair-generator" / path
            tiny_icgan().save_pretrained(folder)
            (folder / "training.json").write_text(json.dumps({"step": 1, "seconds": 1}))
        torch.save({"seconds": 1.0}, tmp_path / "runs" / "fair-generator" / "encoder.pt")
        tiny = [*TINY, "data.image_size=32", "data.holdout=20", "trainer.epochs=1", "trainer.batch_size=50", "optimizer.warmup_epochs=0"]
        small = {"reproduce": tiny, "make_bank": ["data.holdout=20"], "real_variants": ["data.holdout=20"]}
        before = {"reproduce": ["--probe-epochs", "1"], "classifier": ["--epochs", "1", "--width", "16"]}
        root, ran = FOLDER.parents[1], []
        for words in self.commands():
            monkeypatch.chdir(tmp_path)
            if words[1] == "-c":
                exec(words[2].replace("50000, None, 5000", "140, None, 20"), {})
                continue
            script, arguments = Path(words[1]), [str(root / word) if word.startswith("examples/") else word for word in words[2:]]
            arguments = [*before.get(script.stem, []), *arguments, *small.get(script.stem, [])]
            if script.parent.name == "ssl":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # variants of random weights look no more like their source than like another
                    call(monkeypatch, tmp_path, script.stem, *arguments)
            elif script.stem != "train":  # the generator is there already; examples/icgan has modules of the same names, hence a process
                environment = os.environ | {"PYTHONPATH": str(root)}
                done = subprocess.run([sys.executable, str(root / script), *arguments], env=environment, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
            ran.append(script.stem)
        assert len(pq.read_table(tmp_path / "train45k.parquet")) == 120
        assert sorted({(name, ran.count(name)) for name in ran}) == [
            ("classifier", 1), ("curves", 1), ("evaluate", 5), ("gain_over_agreement", 1), ("make_bank", 3), ("real_variants", 4),
            ("reproduce", 8), ("train", 1),
        ]  # fmt: skip
        results = {name: json.loads((tmp_path / "runs" / name / "results.json").read_text()) for name in ("cifar10-fair", "fair-choices")}
        assert [len(results[name]) for name in ("cifar10-fair", "fair-choices")] == [46, 16]
        assert all(run["linear"]["images"] == 20 for run in results["fair-choices"])
        assert all(run["linear"]["images"] == 40 for run in results["cifar10-fair"])
        assert {run["training"]["images"] for runs in results.values() for run in runs} == {120}
        table = (tmp_path / "runs" / "cifar10-fair" / "gain-over-agreement.md").read_text()
        assert all(f"| {arm} |" in table for arm in ("generated", "weak-1", "weak-2", "neighbours", "oracle"))
        assert (tmp_path / "docs" / "assets" / "gain-over-agreement.png").exists()


def write_parquet(folder: Path, **counts: int) -> None:
    """Write toy images, so many of each class, as train.parquet and test.parquet."""
    ssl("miniature").make_toy(folder / "toy", counts["train"], counts["test"])
    for name in counts:
        paths = sorted((folder / "toy" / name).rglob("*.png"))
        classes = sorted({path.parent.name for path in paths})
        labels = [classes.index(path.parent.name) for path in paths]
        pq.write_table(pa.table({"image": [{"bytes": path.read_bytes()} for path in paths], "label": labels}), folder / f"{name}.parquet")


def values_of(words: list[str], option: str) -> list[str]:
    rest = words[words.index(option) + 1 :]
    return rest[: next((i for i, word in enumerate(rest) if word.startswith("--") or "=" in word), len(rest))]
