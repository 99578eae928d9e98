"""Banks: filling one against the bare encoder, reading one against torchvision's ImageFolder, opening a large one.

Ratios are of medians of one run; `python -m benchmarks.report` prints them.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import gentransforms as gt
from benchmarks.bank_generators import Free, Same, smooth_images
from gentransforms.bank.format.description import describe_bank
from gentransforms.bank.format.images import Encoding
from gentransforms.bank.format.index import write_index
from gentransforms.bank.format.manifest import create_manifest, hash_keys, hash_manifest
from gentransforms.bank.format.unit import Row, plan_units, write_unit

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
FILLED, READ, SIDE = 12_000, 4000, 224


def test_bank_bare_encoder(benchmark: Any) -> None:
    """As many threads as there are cores, encoding uint8 images that are in memory already."""
    images = (smooth_images(64, SIDE) * 255).round().to(torch.uint8)
    encoding = Encoding("jpeg", 90)

    def encode() -> int:
        with ThreadPoolExecutor(CORES) as pool:
            return sum(len(data) for data in pool.map(encoding.encode, [images[i % 64] for i in range(FILLED)]))

    assert benchmark.pedantic(encode, rounds=5, warmup_rounds=1) > 0


def test_bank_generate(benchmark: Any, tmp_path: Path) -> None:
    """A whole run: sources read, a generator that costs nothing, encoding, writing."""
    source, generator = Same(FILLED // 10, SIDE), Free(SIDE)

    def fresh() -> tuple[tuple[Path], dict[str, Any]]:
        shutil.rmtree(tmp_path / "bank", ignore_errors=True)
        return (tmp_path / "bank",), {}

    def fill(path: Path) -> int:
        return gt.generate_bank(source, path, generator, variants=10, progress=False).images

    assert benchmark.pedantic(fill, setup=fresh, rounds=5, warmup_rounds=1) == FILLED


class _Files(Dataset[Any]):
    """Random images of an ImageFolder, decoded to uint8 tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = ImageFolder(str(folder), transform=v2.PILToTensor())

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Any:
        return self.folder[index][0]


class _Rows(Dataset[Any]):
    """The same images as rows of a bank."""

    def __init__(self, bank: gt.Bank) -> None:
        self.bank, self.keys = bank, bank.keys

    def __len__(self) -> int:
        return len(self.bank)

    def __getitem__(self, index: int) -> Any:
        return self.bank.read([self.keys[index // 10]], [index % 10])[0]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[gt.Bank, Path]:
    """A bank of 4,000 JPEGs of 224 pixels, and the same bytes as files."""
    root = tmp_path_factory.mktemp("read")
    gt.generate_bank(Same(READ // 10, SIDE), root / "bank", Free(SIDE), variants=10, progress=False)
    bank = gt.Bank.open(root / "bank")
    (root / "files" / "class").mkdir(parents=True)
    for key in bank.keys:
        for variant, data in enumerate(bank.read([key] * 10, range(10), decode=False)):
            (root / "files" / "class" / f"{key:06d}_{variant}.jpeg").write_bytes(data)
    return bank, root / "files"


def _epoch(dataset: Dataset[Any]) -> int:
    loader = DataLoader(dataset, batch_size=64, shuffle=True, num_workers=2, generator=torch.Generator().manual_seed(0))
    return sum(len(batch) for batch in loader)


@pytest.mark.parametrize("kind", ["bank", "files"])
def test_bank_loader(benchmark: Any, both: tuple[gt.Bank, Path], kind: str) -> None:
    """An epoch in random order through a DataLoader with two workers."""
    dataset: Dataset[Any] = _Rows(both[0]) if kind == "bank" else _Files(both[1])
    assert benchmark.pedantic(_epoch, (dataset,), rounds=5, warmup_rounds=1) == READ


def fake_bank(path: Path, sources: int, variants: int, unit_size: int = 1000) -> Path:
    """A bank of that many rows, whose images are 100 bytes that are none."""
    keys = [f"n{i // 1000:08d}/image_{i:08d}.JPEG" for i in range(sources)]
    generator = {"class": "Free", "fingerprint": "0", "config": {}, "preserves_geometry": False, "image_size": [224, 224]}
    source = {"count": sources, "keys": hash_keys(keys), "key_type": "str", "inputs": [], "decides": {}}
    config = gt.BankConfig(variants=variants, unit_size=unit_size, image_format="jpeg", quality=90, threads=1)
    manifest = describe_bank(config, generator, source, device="cpu", encoder="torchvision", info={})
    create_manifest(path, manifest)
    facts = {"settings": hash_manifest(manifest), "failed": [], "rejected": [], "retried": 0}
    for unit in plan_units(sources, unit_size):
        rows = [Row(keys[i], v, 0, 0, b"\xff" * 100) for i in range(unit.start, unit.stop) for v in range(variants)]
        write_unit(path, unit, rows, "str", facts)
    assert write_index(path)
    return path


@pytest.fixture(scope="module")
def hundred_thousand(tmp_path_factory: pytest.TempPathFactory) -> gt.Bank:
    return gt.Bank.open(fake_bank(tmp_path_factory.mktemp("rows") / "bank", 10_000, 10, unit_size=100))


def test_bank_rows(benchmark: Any, hundred_thousand: gt.Bank) -> None:
    """256 random rows of 100,000, not decoded."""
    rng = torch.Generator().manual_seed(0)
    keys = [hundred_thousand.keys[i] for i in torch.randint(10_000, (256,), generator=rng).tolist()]
    variants = torch.randint(10, (256,), generator=rng).tolist()
    assert len(benchmark(hundred_thousand.read, keys, variants, decode=False)) == 256


@pytest.mark.parametrize(
    ("sources", "variants", "unit_size"), [(100_000, 10, 1000), (1_000_000, 1, 1000), (1_280_000, 1, 100)], ids=["10", "1", "12800"]
)
def test_bank_open(benchmark: Any, tmp_path_factory: pytest.TempPathFactory, sources: int, variants: int, unit_size: int) -> None:
    """Opening a million rows in 100 and in 1,000 units, and the keys of ImageNet in 12,800 units."""
    path = fake_bank(tmp_path_factory.mktemp("open") / "bank", sources, variants, unit_size)
    assert len(benchmark.pedantic(gt.Bank.open, (path,), rounds=5, warmup_rounds=1)) == sources * variants
    shutil.rmtree(path)
