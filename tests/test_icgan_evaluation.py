"""The evaluation example: measures against closed forms and NumPy, and the scripts in miniature."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from icgan_example import FOLDER, example
from PIL import Image
from small_generators import Flat, grey_of, tiny_icgan
from torch.utils.tensorboard import SummaryWriter

import gentransforms as gt
from gentransforms.bank.generate.run import generate_bank

measures = example("measures")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def photos(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class TestAgreement:
    def test_counts(self) -> None:
        predicted = torch.tensor([[0, 0], [1, 0], [2, 2], [0, 1]])
        share, interval = measures.agreement(predicted, torch.tensor([0, 1, 0, 1]))
        assert share == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
        assert 0 < interval < 0.5

    def test_interval_is_that_of_a_mean_over_sources(self) -> None:
        predicted = (normal(500, 4) + normal(500, 1, seed=1) > 0).long()
        _, interval = measures.agreement(predicted, torch.zeros(500, dtype=torch.long))
        right = (predicted == 0).double().mean(dim=1).numpy()
        assert interval == pytest.approx(1.96 * numpy.std(right, ddof=1) / 500**0.5, rel=0.1)


class TestDistances:
    """Spread, diversity and distance from the source, each against loops over pairs."""

    def test_spread_of_classes(self) -> None:
        features, labels = normal(7, 3), torch.tensor([0, 1, 0, 1, 1, 0, 1])
        found = measures.spread_of_classes(features, labels)
        x = features.numpy()
        for i, label in enumerate(labels.tolist()):
            rows = [j for j in range(7) if labels[j] == label]
            pairs = [numpy.linalg.norm(x[a] - x[b]) for a in rows for b in rows if a < b]
            assert found[i].item() == pytest.approx(numpy.mean(pairs), rel=1e-5)

    def test_class_of_one_is_refused(self) -> None:
        with pytest.raises(SystemExit, match="class 2 has 1 image"):
            measures.spread_of_classes(normal(3, 2), torch.tensor([0, 0, 2]))

    def test_diversity_and_distance(self) -> None:
        variants, sources, spread = normal(4, 3, 5), normal(4, 5, seed=1), torch.tensor([1.0, 2.0, 3.0, 4.0])
        v, s = variants.numpy(), sources.numpy()
        among = [numpy.mean([numpy.linalg.norm(v[i, a] - v[i, b]) for a in range(3) for b in range(a)]) / (i + 1) for i in range(4)]
        away = [numpy.mean([numpy.linalg.norm(v[i, a] - s[i]) for a in range(3)]) / (i + 1) for i in range(4)]
        assert measures.diversity(variants, spread) == pytest.approx(numpy.mean(among), rel=1e-4)
        assert measures.distance_from_source(variants, sources, spread) == pytest.approx(numpy.mean(away), rel=1e-4)

    def test_copies_have_neither(self) -> None:
        sources = normal(4, 5)
        copies = sources[:, None].expand(-1, 3, -1)
        assert measures.diversity(copies, torch.ones(4)) == pytest.approx(0, abs=1e-3)
        assert measures.distance_from_source(copies, sources, torch.ones(4)) == 0

    def test_one_class_drawn_afresh_has_both_at_one(self) -> None:
        real, made = normal(500, 6), normal(500, 4, 6, seed=1)
        spread = measures.spread_of_classes(real, torch.zeros(500, dtype=torch.long))
        assert measures.diversity(made, spread) == pytest.approx(1, abs=0.03)
        assert measures.distance_from_source(made, real, spread) == pytest.approx(1, abs=0.03)


class TestKnnVote:
    def test_against_a_loop(self) -> None:
        queries, bank = normal(20, 4), normal(60, 4, seed=1)
        labels = torch.arange(60) % 3
        expected = torch.arange(20) % 3
        q, b = (x.numpy() / numpy.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (queries, bank))
        right, same = [], []
        for i in range(20):
            order = numpy.argsort(-(b @ q[i]))[:5]
            votes = [sum(numpy.exp(b[j] @ q[i] / 0.1) for j in order if labels[j] == c) for c in range(3)]
            right.append(numpy.argmax(votes) == expected[i].item())
            same.append(numpy.mean([labels[j].item() == expected[i].item() for j in order]))
        found = measures.knn_vote(queries, expected, bank, labels, k=5)
        numpy.testing.assert_allclose(found[0].numpy(), right)
        numpy.testing.assert_allclose(found[1].numpy(), same, rtol=1e-5)


class TestLabels:
    def test_names_of_parquet_classes(self, tmp_path: Path) -> None:
        table = pa.table({"label": [2, 0, 2]})
        pq.write_table(table, tmp_path / "plain.parquet")
        about = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog", "eel"]}}}}
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / "named.parquet")
        for name, expected in {"plain": ["0", "1", "2"], "named": ["cat", "dog", "eel"]}.items():
            labels, names = example("images").load_labels(str(tmp_path / f"{name}.parquet"))
            assert (labels.tolist(), names) == ([2, 0, 2], expected)

    def test_folder(self, tmp_path: Path) -> None:
        for name in ("dog/1.png", "cat/1.png", "dog/deep/2.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / name)
        labels, names = example("images").load_labels(str(tmp_path))
        assert (labels.tolist(), names) == ([0, 1, 1], ["cat", "dog"])

    def test_image_outside_a_class(self, tmp_path: Path) -> None:
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        with pytest.raises(SystemExit, match="one subfolder per class"):
            example("images").load_labels(str(tmp_path))

    @pytest.mark.parametrize(("source", "train"), [("torchvision:CIFAR10:/data", True), ("torchvision:CIFAR10:/data:test", False)])
    def test_torchvision(self, source: str, train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        def cifar(root: str, train: bool = True) -> list[tuple[Image.Image, int]]:
            return [(Image.new("RGB", (8, 8)), 4 + train), (Image.new("RGB", (8, 8)), 2)]

        images = example("images")
        monkeypatch.setattr("torchvision.datasets.CIFAR10", cifar)
        assert images.load_labels(source)[0].tolist() == [4 + train, 2]
        assert images.load_images(source, 8).shape == (2, 3, 8, 8)


class TestGenerate:
    """The variants that evaluate.py measures."""

    def test_class_labels_reach_a_generator_that_asks(self) -> None:
        generator = Flat(inputs=("labels",))
        example("evaluate").generate(generator, photos(5), torch.arange(5), 2, seed=0, batch_size=2)
        assert [given["labels"].tolist() for given in generator.given] == [[0, 1], [0, 1], [2, 3], [2, 3], [4], [4]]

    def test_seeds_are_those_of_key_and_variant(self) -> None:
        made = example("evaluate").generate(Flat(), photos(5), torch.arange(5), 3, seed=7, batch_size=2)
        assert made.shape == (5, 3, 3, 8, 8)
        expected = [[round(255 * grey_of(int(gt.derive_seeds(7, [i], [v])))) for v in range(3)] for i in range(5)]
        assert made[:, :, 0, 0, 0].tolist() == expected

    def test_images_that_are_not_finite_are_no_result(self) -> None:
        class Broken(Flat):
            def sample(self, condition: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> torch.Tensor:
                return super().sample(condition, seeds) * float("nan")

        with pytest.warns(UserWarning, match="NaN"), pytest.raises(SystemExit, match="10 generated images are not finite"):
            example("evaluate").generate(Broken(), photos(5), torch.arange(5), 2, seed=0)

    @pytest.mark.parametrize("labels", [[], [0, 0, 0], [0, 0, 0, 1]])
    def test_too_few_images(self, labels: list[int]) -> None:
        example("evaluate").refuse_too_few(torch.tensor([0, 0, 1, 1]))
        with pytest.raises(SystemExit, match=f"{len(labels)} test images, .* of the rarest class"):
            example("evaluate").refuse_too_few(torch.tensor(labels, dtype=torch.int64))

    def test_a_larger_generator_sees_larger_images(self) -> None:
        """The classifier's size is for the classifier: at 32 pixels, detail of a generator of 64 would be lost before it is seen."""

        class Larger(Flat):
            def sample(self, condition: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> torch.Tensor:
                return stripes[None].expand(len(seeds), -1, -1, -1)

        evaluate, generator = example("evaluate"), Larger((16, 16))
        stripes = (torch.arange(16) % 2).float().expand(3, 16, 16)
        asked = []
        full = (255 * stripes).to(torch.uint8)[None].expand(4, -1, -1, -1)
        sources = evaluate.load_sources(lambda size: asked.append(size) or full, generator, photos(4))
        made = evaluate.generate(generator, sources, torch.arange(4), 2, seed=0, size=8)
        assert asked == [16]
        assert torch.equal(generator.images[0], stripes[None].expand(4, -1, -1, -1))
        assert made.shape == (4, 2, 3, 8, 8)
        assert ((made[..., 1:-1].float() - 127.5).abs() < 20).all(), "with antialias, the stripes are grey"

    def test_others_see_what_the_classifier_sees(self) -> None:
        evaluate, judged = example("evaluate"), photos(4)
        assert evaluate.load_sources(lambda size: 1 / 0, Flat(), judged) is judged
        made = [evaluate.generate(Flat(), judged, torch.arange(4), 2, seed=0, size=size) for size in (None, 8)]
        assert torch.equal(*made)

    def test_limit_is_spread_over_the_whole_set(self) -> None:
        assert example("evaluate").spaced(10, 4).tolist() == [0, 2, 5, 7]
        assert example("evaluate").spaced(3, 4).tolist() == example("evaluate").spaced(3, None).tolist() == [0, 1, 2]


class TestReadVariants:
    """The variants of a bank that evaluate.py measures instead."""

    @pytest.fixture
    def bank(self, tmp_path: Path) -> Path:
        generate_bank(photos(6), tmp_path / "bank", Flat(), variants=3, progress=False)
        return tmp_path / "bank"

    def test_first_variants_of_each_key(self, bank: Path) -> None:
        made = example("evaluate").read_variants(str(bank), gt.open_source(photos(6)), [4, 0, 5], 2, 8)
        assert made.shape == (3, 2, 3, 8, 8)
        assert made.dtype == torch.uint8
        expected = [[round(255 * grey_of(int(gt.derive_seeds(0, [key], [v])))) for v in range(2)] for key in (4, 0, 5)]
        assert made[:, :, 1, 7, 7].tolist() == expected

    @pytest.mark.parametrize(
        ("images", "variants", "size", "said"),
        [
            (photos(7), 2, 8, r"--bank: .*bank: was made of 6 sources, and this source has 7, such as 6: .*expected a bank of the images"),
            (photos(7)[1:], 2, 8, r"--bank: .*bank: images of this source .* are other images, such as .*expected a bank of the images"),
            (255 - photos(6), 2, 8, r"--bank: .*bank: images of this source .* are other images, such as the one with the key 0"),
            (photos(6), 4, 8, r"--bank: .*bank: key 0 has no variant 3: .* with --variants 4 or more"),
            (photos(6), 2, 16, r"its images are of \(h, w\) = \(8, 8\), expected \(16, 16\)"),
        ],
        ids=["another number of images", "other rows", "other images", "fewer variants", "another size"],
    )
    def test_another_bank_is_refused(self, images: torch.Tensor, variants: int, size: int, said: str, bank: Path) -> None:
        with pytest.raises(SystemExit, match=said):
            example("evaluate").read_variants(str(bank), gt.open_source(images), [0], variants, size)

    def test_no_bank(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r"--bank: .*nowhere"):
            example("evaluate").read_variants(str(tmp_path / "nowhere"), gt.open_source(photos(2)), [0], 2, 8)


class TestScripts:
    """classifier.py, then evaluate.py and curves.py, by their own command lines."""

    @pytest.mark.parametrize("process", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_end_to_end(self, process: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for name, count in {"train": 60, "test": 12}.items():
            labels = torch.arange(count) % 2
            images = (60 + 120 * labels.view(-1, 1, 1, 1) + torch.randint(0, 60, (count, 3, 32, 32))).to(torch.uint8)
            cells = [{"bytes": self.png(image)} for image in images]
            pq.write_table(pa.table({"image": cells, "label": labels.numpy()}), tmp_path / f"{name}.parquet")
            for image, label, i in zip(images, labels, range(count), strict=True):  # the same as folders
                (tmp_path / name / f"class {label}").mkdir(parents=True, exist_ok=True)
                (tmp_path / name / f"class {label}" / f"{i}.png").write_bytes(self.png(image))
        tiny_icgan().save_pretrained(tmp_path / "generator")
        data = ["--train", "train.parquet", "--test", "test.parquet"]
        self.call(monkeypatch, "classifier", *data, "--out", "judge", "--epochs", "2", "--width", "16")
        record = json.loads((tmp_path / "judge" / "classifier.json").read_text())
        assert 0 <= record["test_accuracy"] <= 1
        evaluate = ["evaluate", *data, "--judge", "judge", "--generator", "generator", "--variants", "2"]
        self.call(monkeypatch, *evaluate, "--out", "report")
        if process:  # as a reader runs it: a process of its own finds the same
            self.run(tmp_path, *evaluate, "--out", "again")
        else:
            self.call(monkeypatch, *evaluate, "--out", "again")
        report, again = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("report", "again"))
        for figures in (report, again):
            assert figures.pop("images_per_second") > 0
        assert report == again
        assert report["images"] == 24
        assert report["classifier_accuracy"] == record["test_accuracy"]
        assert {"label_agreement", "diversity", "distance_from_source", "frechet_distance", "precision", "recall"} <= report.keys()
        assert (tmp_path / "report" / "evaluation.md").read_text().count("\n") == len(report) - 5 + 1 + 2
        assert report["classes"].keys() == {"0", "1"}
        halves = [entry["label_agreement"] for entry in report["classes"].values()]
        assert sum(halves) / 2 == pytest.approx(report["label_agreement"], abs=1e-3)
        for name, columns in {"variants.png": 3, "nearest.png": 4}.items():
            with Image.open(tmp_path / "report" / name) as picture:
                assert picture.size == ((2 * columns + 1) * 66 + 2, 2 * 66 + 2)
        with Image.open(tmp_path / "report" / "classes.png") as picture:
            assert picture.size[0] > 300
        # Images that were held out of the generator's training, but not of the judge's, are among --train.
        self.call(monkeypatch, "evaluate", "--train", "test.parquet", *evaluate[3:], "--out", "inside")
        inside = json.loads((tmp_path / "inside" / "evaluation.json").read_text())
        assert report.keys() - inside.keys() == {"nearest_training_ratio"}
        assert "nearest_training_ratio" in report
        assert inside["label_agreement"] == report["label_agreement"]
        self.bank(tmp_path, report, data, monkeypatch)
        self.curves(tmp_path, monkeypatch)
        with pytest.raises(SystemExit, match="with different names"):  # one of the lines would be missing
            self.call(monkeypatch, "curves", "--run", "a=x", "--run", "a=y", "--judge", "judge", "--test", "x", "--out", "x")
        folders = ["--train", "train", "--test", "test", "--judge", "judge"]
        for arguments, message in (
            ([*evaluate[:-1], "1"], "--variants 1"),
            ([*evaluate, "--limit", "3"], "3 test images, 3 of the rarest class"),
            (["evaluate", *folders], "the classifier ['0', '1']: expected the same"),
        ):
            with pytest.raises(SystemExit, match=re.escape(message)):
                self.call(monkeypatch, *arguments, "--out", "x")
            assert not (tmp_path / "x").exists()

    def png(self, image: torch.Tensor) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "png")
        return buffer.getvalue()

    def bank(self, folder: Path, report: dict[str, object], data: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """A bank of the test images by the same generator and seeds: the same figures, but for those of the generator itself."""
        generate_bank(str(folder / "test.parquet"), folder / "bank", folder / "generator", variants=3, progress=False)
        self.call(monkeypatch, "evaluate", *data, "--judge", "judge", "--bank", "bank", "--variants", "2", "--out", "of-bank")
        found = json.loads((folder / "of-bank" / "evaluation.json").read_text())
        assert (found.pop("bank"), found.pop("variants")) == ("bank", 2)
        classes, all_classes = found.pop("classes"), report["classes"]
        assert isinstance(all_classes, dict)
        assert classes == {name: {"label_agreement": values["label_agreement"]} for name, values in all_classes.items()}
        assert found == pytest.approx({name: report[name] for name in found}, abs=1e-3)
        assert report.keys() - found.keys() == {
            "generator", "fingerprint", "seed", "variants", "classes", "encoder_knn_accuracy", "encoder_neighbour_agreement",
        }  # fmt: skip

    def curves(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A run of two snapshots, the second the same generator: the same figures."""
        torch.save({"seconds": 1800.0}, folder / "encoder.pt")
        for step in (500, 1000):
            snapshot = folder / "snapshots" / f"{step:07d}"
            tiny_icgan().save_pretrained(snapshot)
            (snapshot / "training.json").write_text(json.dumps({"step": step, "seconds": 3.6 * step}))
        for name in ("encoder/loss", "generator/D", "generator/G", "generator/feature_distance"):
            with SummaryWriter(str(folder / "tensorboard" / name.partition("/")[0])) as writer:
                writer.add_scalar(name, 1.0, 1)
        data = ["--judge", "judge", "--test", "test.parquet", "--variants", "2"]
        self.call(monkeypatch, "curves", "--run", "G_ch=4=.", *data, "--out", "figures/all", "--losses")
        first, second = json.loads((folder / "figures" / "all.json").read_text())["G_ch=4"]
        assert (first.pop("steps"), second.pop("steps")) == (500, 1000)
        assert (first.pop("hours"), second.pop("hours")) == (1.0, 1.5)
        assert first == second
        report = json.loads((folder / "report" / "evaluation.json").read_text())
        assert {name: report[name] for name in first} == pytest.approx(first, abs=1e-3)
        for name in ("all.png", "all-losses.png"):
            with Image.open(folder / "figures" / name) as picture:
                assert min(picture.size) > 200

    def call(self, monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
        """Run a script's main in this process: importing everything again takes longer than what it does here."""
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
        example(script).main()

    def run(self, folder: Path, script: str, *arguments: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[1])}
        command = [sys.executable, str(FOLDER / f"{script}.py"), *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
