"""Workers that live on from epoch to epoch show other images in each: with the seeds of docs/seeds.md, and with torch's random state."""

from __future__ import annotations

import importlib
import itertools
import re
import sys
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from small_banks import SIZE, make_bank
from torch import Tensor
from torch.utils.data import DataLoader

import gentransforms as gt
from gentransforms.testing import FakeGenerator

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")]

PAGE = Path(__file__).parents[1] / "docs" / "seeds.md"
PHOTOS = torch.rand(8, 3, *SIZE, generator=torch.Generator().manual_seed(4))
NEEDED = "import torch\n\nimport gentransforms as gt\n\n"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The data set of the page, in a module that spawned workers can import."""
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "class Photos(Dataset)" in b)
    (tmp_path / "module_of_the_page.py").write_text(NEEDED + block)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("module_of_the_page").Photos
    del sys.modules["module_of_the_page"]


def expected(augment: gt.GenerativeAugment, epoch: int) -> Tensor:
    seeds = gt.derive_seeds(0, list(range(len(PHOTOS))), [epoch] * len(PHOTOS))
    images: Tensor = augment({"image": PHOTOS, "seed": seeds})["image"]
    return images


class TestTheEpochOfThePage:
    @pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
    def test_reaches_workers(self, start: str, photos: Any) -> None:
        if start not in torch.multiprocessing.get_all_start_methods():
            pytest.skip(f"no {start} here")
        augment = gt.GenerativeAugment(FakeGenerator(), 0.5, seeds_getter=itemgetter("seed"))
        dataset = photos(PHOTOS, augment)
        loader = DataLoader(dataset, 2, num_workers=1, persistent_workers=True, multiprocessing_context=start)
        shown = []
        for epoch in (0, 3, 4):
            dataset.epoch.fill_(epoch)
            shown.append(torch.cat(list(loader)))
            torch.testing.assert_close(shown[-1], expected(augment, epoch), atol=1e-5, rtol=0)
            next(iter(loader))  # an epoch that is left early: what the workers made in advance is not shown in the next
        assert not any(a.equal(b) for a, b in itertools.pairwise(shown))


class Drawn(torch.utils.data.Dataset[Tensor]):
    def __init__(self, augment: Any) -> None:
        self.augment = augment

    def __len__(self) -> int:
        return len(PHOTOS)

    def __getitem__(self, index: int) -> Tensor:
        images: Tensor = self.augment({"image": PHOTOS[index], "key": index})["image"]
        return images


class TestRandomState:
    @pytest.mark.parametrize("kind", ["generator", "bank"])
    def test_goes_on_from_epoch_to_epoch(self, kind: str, tmp_path: Path) -> None:
        if kind == "bank":
            make_bank(tmp_path / "bank", keys=list(range(len(PHOTOS))))
        options: dict[str, Any] = {"check_sources": False}
        augment = gt.BankAugment(tmp_path / "bank", 0.5, **options) if kind == "bank" else gt.GenerativeAugment(FakeGenerator(), 0.5)
        loader = DataLoader(Drawn(augment), 2, num_workers=1, persistent_workers=True)
        first, second = (torch.cat(list(loader)) for _ in range(2))
        assert not first.equal(second)
