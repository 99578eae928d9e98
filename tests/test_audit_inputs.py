"""What audits take: sources, labels, encoders, and the features of an earlier run."""

from __future__ import annotations

import enum
import io
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from audited import PROBED, N, NoisyForAudits, Pool, V, photos
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image

import gentransforms as gt
from gentransforms.audit.encoders import Encoder, load_encoder
from gentransforms.audit.labels import find_labels
from gentransforms.audit.reading import read_inputs
from gentransforms.audit.report import render
from gentransforms.errors import BankError, ConfigError, GeneratorError
from gentransforms.sources import SourceSample
from gentransforms.sources.parquet import ParquetSource
from gentransforms.testing import FakeGenerator


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audit") / "bank"
    gt.generate_bank(photos(), path, NoisyForAudits(), variants=V, progress=False, image_format="png")
    return path


def audit(bank: Path | gt.Bank, source: Any = None, **options: Any) -> gt.Audit:
    return gt.audit_bank(bank, photos() if source is None else source, **{"encoder": Pool(), "progress": False, **options})


def write_class_folders(root: Path, names: tuple[str, str]) -> None:
    """Write the photos into ``photos/NAME`` by label, and a bank of them."""
    for i, (image, label) in enumerate(photos()):
        folder = root / "photos" / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(folder / f"{i:03d}.png")
    gt.generate_bank(root / "photos", root / "bank", NoisyForAudits(), variants=2, progress=False)


def encoded(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    to_pil_image(image).save(buffer, "PNG")
    return buffer.getvalue()


def store(kind: str, root: Path, kinds: list[str | int]) -> Any:
    """Write the photos with a column ``kind``, or write that column anew; return the source."""
    if kind == "parquet":
        pq.write_table(pa.table({"image": [encoded(image) for image, _ in photos()], "kind": kinds}), root / "photos.parquet")
        return root / "photos.parquet"
    if kind == "data set":
        return [{"image": image, "kind": one} for (image, _), one in zip(photos(), kinds, strict=True)]
    (root / "photos").mkdir(exist_ok=True)
    for i, (image, _) in enumerate(photos()):
        (root / "photos" / f"{i:03d}.png").write_bytes(encoded(image))
    lines = [json.dumps({"file_name": f"{i:03d}.png", "kind": one}) for i, one in enumerate(kinds)]
    (root / "photos" / "metadata.jsonl").write_text("\n".join(lines))
    return root / "photos"


def counts(rows: Any) -> dict[str, int]:
    return {row["name"]: row["sources"] for row in rows}


def colours(images: Tensor) -> Tensor:
    """Blue, another colour, red."""
    return torch.stack([images[:, 2].mean((1, 2)), -images.mean((1, 2, 3)), images[:, 0].mean((1, 2))], dim=1)


class Animal(enum.StrEnum):
    CAT = "cat"


class LabelledForAudits(NoisyForAudits):
    """As bright as its label."""

    inputs = required_inputs = ("labels",)

    def encode(self, images: Tensor, labels: Any = None) -> dict[str, Tensor]:
        return {**super().encode(images), "labels": torch.as_tensor(labels)}

    def sample(self, condition: Any, seeds: Tensor) -> Tensor:
        return (super().sample(condition, seeds) + 0.2 * condition["labels"].view(-1, 1, 1, 1)).clamp(0, 1)


class TestSource:
    def test_other_images_with_the_same_row_numbers_are_refused(self, bank: Path) -> None:
        for other in (photos(seed=3), photos()[::-1], [photos()[(i + 2) % N] for i in range(N)]):
            with pytest.raises(BankError, match="other images"):
                audit(bank, other)

    def test_the_same_images_encoded_again_are_taken(self, bank: Path) -> None:
        rng = torch.Generator().manual_seed(0)
        again = [
            ((image.float() + torch.randint(-3, 4, image.shape, generator=rng)).clamp(0, 255).byte(), label) for image, label in photos()
        ]
        assert audit(bank, again).measures["rows"].value == N * V

    def test_a_tensor_as_source_and_as_holdout(self, bank: Path) -> None:
        images, others = (torch.stack([image for image, _ in photos(seed=seed)]) for seed in (0, 5))
        assert audit(bank, images, holdout=others).about["holdout"] == N

    def test_an_unfinished_bank_counts_what_is_missing(self, tmp_path: Path) -> None:
        gt.generate_bank(photos(), tmp_path / "bank", NoisyForAudits(), variants=2, unit_size=10, shard="0/2", progress=False)
        found = audit(gt.Bank.open(tmp_path / "bank", partial=True))
        assert (found.measures["rows"].value, found.measures["missing"].value) == (N, N)
        assert found.failed(["missing > 0"])

    def test_what_a_selection_leaves_out_is_not_missing(self, bank: Path) -> None:
        opened = gt.Bank.open(bank)
        mask = np.arange(N * V) % V != 0
        found = audit(opened.select(mask))
        assert (found.measures["rows"].value, found.measures["missing"].value) == (N * (V - 1), 0)
        assert set(found.scores["variant"].to_pylist()) == {1, 2}

    def test_says_whose_images_they_are(self, bank: Path) -> None:
        assert audit(bank).about["fingerprint"] == NoisyForAudits().fingerprint()


class TestLabels:
    def test_of_another_length_are_refused_before_the_work(self, bank: Path) -> None:
        before = Pool.calls
        with pytest.raises(ConfigError, match="39 labels for 40"):
            audit(bank, labels=[0] * 39)
        assert Pool.calls == before

    @pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, pa.array, iter], ids=lambda kind: kind.__name__)
    def test_a_list_an_array_or_a_tensor(self, bank: Path, kind: Any) -> None:
        assert [row["sources"] for row in audit(bank, labels=kind([i % 2 for i in range(N)])).classes] == [N // 2] * 2

    @pytest.mark.parametrize(
        ("name", "label"),
        [
            *(("1", one) for one in (1, 1.0, True, np.int64(1), np.uint8(1), np.float32(1), np.True_, torch.tensor(1), torch.tensor([1]))),
            *(("1", one) for one in (torch.tensor(1.0), torch.tensor(True), torch.tensor(1, dtype=torch.uint8), np.array(1))),
            *(("cat", one) for one in ("cat", np.str_("cat"), np.array("cat"), Animal.CAT)),
        ],
        ids=repr,
    )
    def test_numbers_and_text_of_any_type(self, name: str, label: Any) -> None:
        pairs: Any = types.SimpleNamespace(places=[0, 1, 3], source=gt.open_source([image for image, _ in photos(4)]))
        other = "ant" if name == "cat" else 0
        numbers, names = find_labels("labels", [label, other, label, label], pairs)
        assert (numbers.tolist(), names) == ([1, 0, 1], [str(other), name])

    @pytest.mark.parametrize(
        "label", [None, 0.5, np.float64(0.5), float("nan"), torch.tensor(0.5), torch.tensor([1, 2]), b"cat", [1], 1j], ids=repr
    )
    def test_one_that_is_neither_is_named_wherever_it_stands(self, label: Any) -> None:
        pairs: Any = types.SimpleNamespace(places=[0, 1], source=gt.open_source([image for image, _ in photos(2)]))
        for labels in ([label, 1], [1, label]):
            with pytest.raises(ConfigError, match=re.escape(f"{label!r}: expected whole numbers, or text")):
                find_labels("labels", labels, pairs)

    def test_what_is_no_list_is_refused(self) -> None:
        pairs: Any = types.SimpleNamespace(places=[0, 1], source=gt.open_source([image for image, _ in photos(2)]))
        for labels in (3, torch.tensor(3), {0: "cat", 1: "dog"}, {0, 1}):
            with pytest.raises(ConfigError, match=r"attributes\['age'\]=.*: expected a list with a label for each image"):
                find_labels("attributes['age']", labels, pairs)

    def test_what_is_no_label_is_named(self, bank: Path) -> None:
        for wrong in (None, 0.5, "cat"):
            with pytest.raises(ConfigError, match=repr(wrong)):
                audit(bank, labels=[0] * 39 + [wrong])

    def test_an_unknown_name_is_refused_with_those_there_are(self, bank: Path) -> None:
        with pytest.raises(ConfigError, match="'labels'"):
            audit(bank, gt.open_source(photos()), labels="category")
        with pytest.raises(ConfigError, match="category"):
            audit(bank, attributes={"kind": "category"})

    def test_columns_of_numbers_and_of_text(self, tmp_path: Path) -> None:
        cells = []
        for image, _ in photos():
            buffer = io.BytesIO()
            to_pil_image(image).save(buffer, "PNG")
            cells.append({"bytes": buffer.getvalue()})
        kinds = ["red" if label == 0 else "blue" for _, label in photos()]
        table = pa.table({"image": cells, "kind": kinds, "number": [label for _, label in photos()], "age": [i // 20 for i in range(N)]})
        pq.write_table(table, tmp_path / "photos.parquet")
        gt.generate_bank(tmp_path / "photos.parquet", tmp_path / "bank", NoisyForAudits(), variants=2, progress=False)
        for labels, names in (("kind", ["blue", "red"]), ("number", ["0", "1"])):
            found = audit(tmp_path / "bank", tmp_path / "photos.parquet", labels=labels, attributes={"years": "age"})
            assert [row["name"] for row in found.classes] == names
            assert found.measures["label_agreement"].value == 1
            assert [row["before"] for row in found.attributes["years"]] == [0.5, 0.5]
            assert "drift/years" in found.measures

    @pytest.mark.parametrize("kind", ["parquet", "data set"])
    def test_columns_of_named_classes(self, kind: str, tmp_path: Path) -> None:
        """In the order of their numbers, as a classifier scores them; by what `datasets` leaves in the file, or by the data set itself."""
        cells = []
        for image, _ in photos():
            buffer = io.BytesIO()
            to_pil_image(image).save(buffer, "PNG")
            cells.append({"bytes": buffer.getvalue(), "path": None})
        table = pa.table({"image": cells, "label": [2 * label for _, label in photos()]})
        names = ["red", "green", "blue"]
        about = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": about}})})
        pq.write_table(table, tmp_path / "photos.parquet")
        source: Any = tmp_path / "photos.parquet"
        if kind == "data set":
            datasets = pytest.importorskip("datasets")
            source = datasets.Dataset(table)
        gt.generate_bank(source, tmp_path / "bank", NoisyForAudits(), variants=2, progress=False)
        found = audit(tmp_path / "bank", source, labels="label", attributes={"colours": "label"})
        assert sorted(row["name"] for row in found.classes) == ["blue", "red"]
        assert [row["name"] for row in found.attributes["colours"]] == ["red", "blue"]
        assert {row["name"]: row["sources"] for row in found.classes} == {"red": N // 2, "blue": N // 2}

    def test_an_attribute_may_not_take_the_name_of_a_measure(self, bank: Path) -> None:
        with pytest.raises(ConfigError, match="brightness"):
            audit(bank, attributes={"brightness": [0] * N})

    def test_class_folders(self, tmp_path: Path) -> None:
        write_class_folders(tmp_path, ("red", "blue"))
        for labels in ("folders", "labels"):
            found = audit(tmp_path / "bank", tmp_path / "photos", labels=labels)
            assert [row["name"] for row in found.classes] == ["blue", "red"]
        assert gt.open_source(tmp_path / "photos").class_names("labels") == ["blue", "red"]

    def test_class_folders_that_are_numbers(self, tmp_path: Path) -> None:
        """Their names are not the places of classes: 10 stands before 2."""
        write_class_folders(tmp_path, ("10", "2"))
        assert {row["name"] for row in audit(tmp_path / "bank", tmp_path / "photos", labels="labels").classes} == {"10", "2"}


class TestClassifier:
    def test_is_asked_once_for_each_image_and_cached(self, bank: Path, tmp_path: Path) -> None:
        class Redness(nn.Module):
            seen = 0

            def forward(self, images: Tensor) -> Tensor:
                Redness.seen += len(images)
                return torch.stack([images[:, 0].mean((1, 2)), images[:, 2].mean((1, 2))], dim=1)

        first = audit(bank, labels="labels", classifier=Redness(), cache=tmp_path)
        assert Redness.seen == N * (1 + V) + PROBED
        assert first.measures["label_agreement"].value == 1
        assert audit(bank, labels="labels", classifier=Redness(), cache=tmp_path).to_dict() == first.to_dict()
        assert Redness.seen == N * (1 + V) + 2 * PROBED

    def test_a_limit_does_not_change_which_class_a_score_is_of(self, bank: Path, tmp_path: Path) -> None:
        """That of place 1, which 9 sources of 40 leave out, lies between the others, as do those that folders and columns name."""
        labels: list[Any] = ["blue" if label else "red" for _, label in photos()]
        labels[1] = "green"
        source = store("parquet", tmp_path, labels)
        for i, ((image, _), label) in enumerate(zip(photos(), labels, strict=True)):
            (tmp_path / "folders" / label).mkdir(parents=True, exist_ok=True)
            (tmp_path / "folders" / label / f"{i:03d}.png").write_bytes(encoded(image))
        for place, of in (("columns", source), ("class folders", tmp_path / "folders")):
            gt.generate_bank(of, tmp_path / place, NoisyForAudits(), variants=2, progress=False)
        for path, images, given in (
            (bank, photos(), labels), (tmp_path / "columns", source, "kind"), (tmp_path / "columns", source, np.array(labels)),
            (tmp_path / "class folders", tmp_path / "folders", "folders"), (tmp_path / "class folders", tmp_path / "folders", "labels"),
        ):  # fmt: skip
            found = audit(path, images, labels=given, classifier=colours, limit=9)
            assert found.measures["label_agreement"].value == 1
            assert [(row["name"], row["before"]) for row in found.classes if row["sources"] == 0] == [("green", 0)]
            assert [row["name"] for row in found.classes] == ["blue", "green", "red"]
            assert "no image of this class" in render(found)
            assert len(audit(path, images, labels=given, limit=9).classes) == 2

    def test_classes_that_no_audited_source_has_may_be_seen(self, bank: Path) -> None:
        labels = [2 * (i % 2) if i != 1 else 3 for i in range(N)]
        found = audit(bank, labels=labels, classifier=lambda x: torch.tensor([0.0, 0.0, 1.0]).expand(len(x), 3), limit=9)
        assert found.measures["drift/classes"].value == 1
        assert [row["after"] for row in found.classes] == [0, 0, 1]
        assert [row[2] for row in found.confusion] == [5 * V, 4 * V, 0]

    def test_labels_of_images_that_could_not_be_read_need_be_none(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        for i, (image, _) in enumerate(photos(12)):
            (tmp_path / "photos" / f"{i:02d}.png").write_bytes(encoded(image) if i else b"no image")
        gt.generate_bank(tmp_path / "photos", tmp_path / "bank", NoisyForAudits(), variants=2, progress=False)
        labels = [None, *["zebra" if i % 2 == 0 else "ant" for i in range(1, 12)]]
        found = audit(tmp_path / "bank", tmp_path / "photos", labels=labels, classifier=lambda x: colours(x)[:, ::2])
        assert counts(found.classes) == {"ant": 6, "zebra": 5}
        assert found.measures["label_agreement"].value == 1

    @pytest.mark.parametrize("scores", [3, 2])
    def test_scores_all_classes_that_the_source_names_or_those_there_are(self, scores: int, tmp_path: Path) -> None:
        table = pa.table({"image": [encoded(image) for image, _ in photos()], "label": [2 * (label == 0) for _, label in photos()]})
        names = {"label": {"_type": "ClassLabel", "names": ["blue", "green", "red"]}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": names}})})
        pq.write_table(table, tmp_path / "photos.parquet")
        gt.generate_bank(tmp_path / "photos.parquet", tmp_path / "bank", NoisyForAudits(), variants=2, progress=False)
        options = {"labels": "label", "classifier": lambda x: colours(x)[:, :: 4 - scores], "limit": 9}
        found = audit(tmp_path / "bank", tmp_path / "photos.parquet", **options)
        assert found.measures["label_agreement"].value == 1
        assert counts(found.classes) == {"blue": 4, "red": 5} | ({"green": 0} if scores == 3 else {})

    def test_classes_that_only_images_tell_are_asked_for(self, bank: Path) -> None:
        source = [(image, 1 if i == 1 else 2 * label) for i, (image, label) in enumerate(photos())]
        with pytest.raises(ConfigError, match=r"3 scores .* 2 classes.*limit leaves out classes, give the labels as a list"):
            audit(bank, source, labels="labels", classifier=colours, limit=9)

    def test_one_of_other_classes_is_refused(self, bank: Path) -> None:
        with pytest.raises(ConfigError, match=r"3 scores .* 2 classes"):
            audit(bank, labels="labels", classifier=lambda images: images.mean((2, 3)))
        before = Pool.calls
        with pytest.raises(ConfigError, match=r"3 scores .* 2 classes"):  # before the work, where the labels are known
            audit(bank, labels=[i % 2 for i in range(N)], classifier=lambda images: images.mean((2, 3)))
        assert Pool.calls == before
        with pytest.raises(ConfigError, match="labels="):
            audit(bank, classifier=lambda images: images.mean((2, 3)))


class TestLoadEncoder:
    def test_what_cannot_be_one_is_refused_with_what_can(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for wrong in (3, None, str(tmp_path / "empty"), "torchvision:nothing"):
            with pytest.raises(ConfigError, match="encoder="):
                load_encoder(wrong, lambda: None)

    def test_without_a_generator_auto_says_what_to_give(self) -> None:
        with pytest.raises(ConfigError, match="torchvision:resnet50"):
            load_encoder("generator", lambda: None)

    def test_a_model_without_its_library_asks_no_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("socket.socket.connect", None)
        with pytest.raises(ConfigError, match=r'encoder=\'resnet50\'.*"torchvision:resnet50" or "timm:resnet50"'):
            load_encoder("resnet50", lambda: None)

    def test_a_transformers_model_from_a_folder(self, tmp_path: Path) -> None:
        from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

        config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
        model = Dinov2Model(config).eval()
        model.save_pretrained(tmp_path)
        BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(tmp_path)
        encoder = load_encoder(str(tmp_path), lambda: None)
        features = encoder(torch.rand(2, 3, 8, 8))
        assert features.shape == (2, 16)
        assert not encoder.own
        assert load_encoder(encoder, lambda: None) is encoder

    def save_vit(self, folder: Path, cls: str, without: str = " ") -> None:
        """A small ViT, whose checkpoint lacks the weights that begin so."""
        import transformers
        from safetensors.torch import load_file, save_file

        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
        )
        torch.manual_seed(0)
        getattr(transformers, cls)(config).save_pretrained(folder)
        file = folder / "model.safetensors"
        kept = {name: t for name, t in load_file(file).items() if not name.removeprefix("vit.").startswith(without)}
        save_file(kept, file, metadata={"format": "pt"})
        transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)

    @pytest.mark.parametrize(("cls", "pooled"), [("ViTForImageClassification", False), ("ViTModel", True)])
    def test_a_pooling_layer_that_was_not_trained_is_not_used(self, cls: str, pooled: bool, tmp_path: Path) -> None:
        """A classifier's checkpoint has none, and transformers fills it with random numbers, in each process others."""
        self.save_vit(tmp_path, cls)
        images = torch.rand(2, 3, 16, 16)
        one, other = (load_encoder(str(tmp_path), lambda: None) for _ in range(2))
        assert one(images).equal(other(images))
        assert one.digest == other.digest
        assert (one(images).abs().amax() <= 1) == pooled  # the pooled output is a hyperbolic tangent

    def test_a_checkpoint_that_lacks_more_is_refused(self, tmp_path: Path) -> None:
        self.save_vit(tmp_path, "ViTModel", without="layernorm")
        with pytest.raises(ConfigError, match=r"2 weights are not in its checkpoint, such as 'layernorm\.bias'.*would be random"):
            load_encoder(str(tmp_path), lambda: None)

    @pytest.mark.parametrize("device", ["gpu", "cuda:77", 1.5])
    def test_a_device_that_is_not_there_is_named(self, device: Any) -> None:
        with pytest.raises(ConfigError, match=f"device={device!r}: not usable here"):
            load_encoder("torchvision:resnet18", lambda: None, device=device)

    @pytest.mark.parametrize(
        "function", [lambda x: x.mean(), lambda x: x[:1].flatten(1), lambda x: x.flatten(1).long(), lambda x: "features"], ids=range(4)
    )
    def test_features_of_another_shape_are_refused(self, function: Any) -> None:
        with pytest.raises(GeneratorError, match=r"\(B, D\)"):
            load_encoder(function, lambda: None)(torch.rand(3, 3, 8, 8))

    def test_a_surrounding_autocast_changes_nothing(self) -> None:
        linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        encoder, images = load_encoder(linear, lambda: None), torch.rand(2, 3, 8, 8)
        with torch.autocast("cpu", torch.bfloat16):
            inside = encoder(images)
        assert torch.equal(inside, encoder(images))

    def test_images_without_features_of_one_length_are_refused(self, bank: Path) -> None:
        lengths = iter(range(4, 100))
        with pytest.raises(GeneratorError, match="one number of features"):
            audit(bank, encoder=lambda images: images.flatten(1)[:, : next(lengths)], limit=30)

    def test_a_module_in_training_is_in_eval_mode_only_for_the_audit(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Dropout(0.5)).train()
        model[2].eval()
        encoder, images = load_encoder(model, lambda: None), torch.rand(3, 3, 8, 8)
        assert torch.equal(encoder(images), encoder(images))
        assert [module.training for module in model] == [True, True, False]
        assert int(model[1].num_batches_tracked) == 0

    def test_auto_asks_no_network(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        import socket

        def refuse(*_: Any) -> None:
            raise AssertionError("the network was asked")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        images = [(255 * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i))).to(torch.uint8) for i in range(8)]
        generator = gt.load_generator("icgan-cifar10-32", truncation=0.5)
        gt.generate_bank(images, tmp_path / "bank", generator, variants=1, progress=False)
        found = audit(tmp_path / "bank", images, encoder="auto")
        assert found.about["own_encoder"]

    def test_a_torchvision_model_without_its_head(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchvision import models

        real = models.get_model
        monkeypatch.setattr(models, "get_model", lambda name, weights: real(name, weights=None))
        for name, width in (("resnet18", 512), ("squeezenet1_1", 512)):
            features = load_encoder(f"torchvision:{name}", lambda: None)(torch.rand(2, 3, 8, 8))
            assert features.shape == (2, width)
        with pytest.raises(ConfigError, match="not a classifier of images"):
            load_encoder("torchvision:r3d_18", lambda: None)

    def test_a_timm_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def create_model(name: str, pretrained: bool, num_classes: int) -> nn.Module:
            assert (name, pretrained, num_classes) == ("tiny", True, 0)
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

        data = types.SimpleNamespace(
            resolve_data_config=lambda _, model: {"input_size": (3, 16, 16), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 1.0)}
        )
        monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model, data=data))
        encoder = load_encoder("timm:tiny", lambda: None)
        torch.testing.assert_close(encoder(torch.ones(2, 3, 8, 8)), torch.tensor([[2.0, 1.0, 0.5]] * 2))
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(ConfigError, match="pip install timm"):
            load_encoder("timm:tiny", lambda: None)


class TestReadInputs:
    @pytest.mark.parametrize("kind", ["parquet", "several files", "folder", "class folders"])
    def test_as_with_the_images_and_without_decoding_them(self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if kind == "class folders":
            for i, (image, label) in enumerate(photos()):
                (tmp_path / "photos" / str(label)).mkdir(parents=True, exist_ok=True)
                (tmp_path / "photos" / str(label) / f"{i}.png").write_bytes(encoded(image))
            source = gt.open_source(tmp_path / "photos")
        elif kind == "several files":
            for part in range(2):
                store("parquet", tmp_path, [f"{part} {i}" for i in range(N)])
                (tmp_path / "photos.parquet").rename(tmp_path / f"test-{part}.parquet")
            pq.write_table(pa.table({"image": [b""], "kind": ["of another split"]}), tmp_path / "train-0.parquet")
            source = gt.open_source(tmp_path, split="test", columns={"kinds": "kind", "again": "kind"})
        else:
            source = gt.open_source(store(kind, tmp_path, [f"kind {i}" for i in range(N)]), columns={"kinds": "kind"})
        places = [0, 1, 2, 5, 8, 9, len(source) - 1]
        with_images = [next(source.read_range(place, place + 1)).inputs for place in places]
        for module in ("folder", "parquet"):
            monkeypatch.setattr(f"gentransforms.sources.{module}.decode_oriented", None)
        assert read_inputs(source, places) == with_images
        assert read_inputs(source.select(()), places) == [{}] * len(places)

    def test_a_subclass_is_asked_itself(self, tmp_path: Path) -> None:
        class Renamed(ParquetSource):
            def read_range(self, start: int, stop: int) -> Any:
                for sample in super().read_range(start, stop):
                    yield SourceSample(sample.image, {"kinds": "mine"})

        source = Renamed(store("parquet", tmp_path, ["kind"] * N), columns={"kinds": "kind"})
        assert read_inputs(source, [3, 4, 7]) == [{"kinds": "mine"}] * 3


class TestCachedFeatures:
    @pytest.mark.parametrize("kind", ["parquet", "folder", "data set"])
    def test_labels_are_those_that_the_source_has_now(self, kind: str, tmp_path: Path) -> None:
        def again(kinds: list[Any], **options: Any) -> gt.Audit:
            return audit(tmp_path / "bank", store(kind, tmp_path, kinds), cache=tmp_path / "cache", **options)

        halves, thirds = [i % 2 for i in range(N)], ["abc"[i % 3] for i in range(N)]
        gt.generate_bank(store(kind, tmp_path, halves), tmp_path / "bank", NoisyForAudits(), variants=2, progress=False)
        assert again(halves).classes == []
        encoded_before = Pool.calls
        found = again(halves, labels="kind", attributes={"kinds": "kind"})
        assert counts(found.classes) == counts(found.attributes["kinds"]) == {"0": 20, "1": 20}
        assert counts(again(thirds, labels="kind").classes) == {"a": 14, "b": 13, "c": 13}
        assert Pool.calls == encoded_before + 2 * PROBED, "features were not taken from the cache"

    def test_columns_that_one_input_was_read_from_are_told_apart(self, tmp_path: Path) -> None:
        numbers = {"tens": [i // 10 for i in range(N)], "thirds": [i % 3 for i in range(N)]}
        pq.write_table(pa.table({"image": [encoded(image) for image, _ in photos()], **numbers}), tmp_path / "photos.parquet")
        gt.generate_bank(tmp_path / "photos.parquet", tmp_path / "bank", NoisyForAudits(), variants=2, progress=False)
        for column, count in (("tens", 4), ("thirds", 3)):
            source = gt.open_source(tmp_path / "photos.parquet", columns={"labels": column})
            assert len(audit(tmp_path / "bank", source, labels="labels", cache=tmp_path / "cache").classes) == count

    def test_of_a_killed_audit_go_on_with_the_labels_of_all_images(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from gentransforms.audit import collect

        monkeypatch.setattr(collect, "_CHUNK", 10)
        source = store("data set", tmp_path, [i // 10 for i in range(N)])
        gt.generate_bank(source, tmp_path / "bank", NoisyForAudits(), variants=2, progress=False)
        whole = audit(tmp_path / "bank", source, labels="kind", cache=tmp_path / "cache")
        for path in sorted((tmp_path / "cache").rglob("pairs-*"))[1:3]:
            path.unlink()
        assert audit(tmp_path / "bank", source, labels="kind", cache=tmp_path / "cache").to_dict() == whole.to_dict()

    def test_a_bank_made_again_with_other_inputs_has_features_of_its_own(self, tmp_path: Path) -> None:
        """Its manifest is the same: of 80 sources, it describes the inputs of 64."""

        def make(brightest: int) -> dict[str, Any]:
            columns = {"image": [encoded(image) for image, _ in photos(80)], "label": [brightest * (i == 4) for i in range(80)]}
            pq.write_table(pa.table(columns), tmp_path / "photos.parquet")
            gt.generate_bank(tmp_path / "photos.parquet", tmp_path / "bank", LabelledForAudits(), variants=2, unit_size=10, progress=False)
            found = [audit(tmp_path / "bank", tmp_path / "photos.parquet", cache=cache) for cache in (tmp_path / "cache", None)]
            assert found[0].to_dict() == found[1].to_dict()
            return found[0].to_dict()

        first, manifest = make(0), (tmp_path / "bank" / "bank.json").read_bytes()
        for path in (tmp_path / "bank").glob("unit-000000000-*"):
            path.unlink()
        (tmp_path / "bank" / "index.arrow").unlink()
        assert make(2)["measures"]["source_similarity"] != first["measures"]["source_similarity"]
        assert (tmp_path / "bank" / "bank.json").read_bytes() == manifest

    def test_a_source_decoded_otherwise_has_features_of_its_own(self, tmp_path: Path) -> None:
        """Although the images that are compared with the bank's marks, 64 of 80, are the same."""
        (tmp_path / "photos").mkdir()
        for i, (image, _) in enumerate(photos(80)):
            (tmp_path / "photos" / f"{i:03d}.png").write_bytes(encoded(image))
        deep = torch.arange(64).view(8, 8) * 15
        PIL.Image.fromarray(deep.numpy().astype(np.uint16)).save(tmp_path / "photos" / "004.png")
        dark, bright = (gt.open_source(tmp_path / "photos", white_level=level) for level in (65535, 1023))
        gt.generate_bank(dark, tmp_path / "bank", NoisyForAudits(), variants=2, progress=False)
        for source in (dark, bright):
            assert audit(tmp_path / "bank", source, cache=tmp_path / "cache").to_dict() == audit(tmp_path / "bank", source).to_dict()

    def test_a_holdout_seen_in_another_size_has_features_of_its_own(self, bank: Path, tmp_path: Path) -> None:
        """Of an encoder known by its weights, which is not told by what it returns."""
        encoder = Encoder("texture", lambda x: x[:, :, ::2, ::2].flatten(2)[:, :, :16].flatten(1), torch.device("cpu"), digest="weights")
        gt.generate_bank(photos(), tmp_path / "bank", FakeGenerator(16), variants=2, progress=False)
        for path in (bank, tmp_path / "bank"):
            found, fresh = (audit(path, encoder=encoder, holdout=photos(seed=5), cache=cache) for cache in (tmp_path / "cache", None))
            assert found.to_dict() == fresh.to_dict()

    def test_a_function_is_known_by_what_it_returns(self, bank: Path, tmp_path: Path) -> None:
        seen = []

        def make(power: float) -> Any:
            def encoder(images: Tensor) -> Tensor:
                seen.append(len(images))
                return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) ** power

            return encoder

        first = audit(bank, encoder=make(1.0), cache=tmp_path)
        seen.clear()
        assert audit(bank, encoder=make(1.0), cache=tmp_path).to_dict() == first.to_dict()
        assert sum(seen) == PROBED
        for _ in range(2):
            other = audit(bank, encoder=make(2.0), cache=tmp_path)
            assert other.to_dict()["measures"] == audit(bank, encoder=make(2.0)).to_dict()["measures"]

    def test_another_holdout_of_the_same_description_has_features_of_its_own(self, bank: Path, tmp_path: Path) -> None:
        for seed in (5, 6):
            found = audit(bank, holdout=photos(seed=seed), cache=tmp_path)
            assert found.measures["training_share"] == audit(bank, holdout=photos(seed=seed)).measures["training_share"]

    def test_another_selection_of_the_same_size_has_features_of_its_own(self, bank: Path, tmp_path: Path) -> None:
        for place in range(2):
            opened = gt.Bank.open(bank).select(np.arange(N * V) % V == place)
            assert set(audit(opened, cache=tmp_path).scores["variant"].to_pylist()) == {place}

    def test_large_images_are_read_in_smaller_chunks(self, bank: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        from gentransforms.audit import collect

        whole = audit(bank, holdout=photos(seed=5))
        monkeypatch.setattr(collect, "_MOST_IN_CHUNK", 192 * (1 + V) * 7)
        monkeypatch.setattr(collect, "_MOST_IN_BATCH", 192 * 5)
        sizes: list[int] = []

        def encoder(images: Tensor) -> Tensor:
            sizes.append(len(images))
            return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)

        parts = audit(bank, holdout=photos(seed=5), encoder=encoder, cache=tmp_path)
        assert max(sizes) == 5
        assert len(list(tmp_path.rglob("pairs-*"))) == 6
        assert parts.to_dict()["measures"] == whole.to_dict()["measures"]
