"""What the pages advise for Lightning, taken together: every step draws what follows from the run's seed, the step and the rank."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchvision.transforms import v2

import gentransforms as gt
from gentransforms.testing import FakeGenerator

L = pytest.importorskip("lightning")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:::lightning")]

ROOT = Path(__file__).parents[1]
IMAGES = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(5))
STEPS = 6  # of a fit: two epochs of three batches


class Recording(gt.GenerativeAugment):
    """Keeps what it made."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        made.append(super().forward(*inputs, **options))
        return made[-1]


made: list[Tensor] = []


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return IMAGES[index], index % 10


class Endless(IterableDataset[Any]):
    """Without a length, so that Lightning fetches a batch ahead."""

    def __iter__(self) -> Any:
        return iter(Pairs()[i] for i in range(len(IMAGES)))


class Resumable(DataLoader[Any]):
    """Goes on in the middle of an epoch, as torchdata's StatefulDataLoader does."""

    at = 0

    def __iter__(self) -> Any:
        start, self.at = self.at, 0
        for i, batch in enumerate(super().__iter__()):
            if i >= start:
                self.at = (i + 1) % len(self)
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


class Saving(L.Callback):  # type: ignore[name-defined, misc]
    """Save a checkpoint after a step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def modules_of_the_pages() -> list[type]:
    """The classes of all pages that show a LightningModule."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"), reverse=True)]
    found: list[type] = []
    for page in pages:
        for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            if "(L.LightningModule)" in block:
                names: dict[str, Any] = {"torch": torch, "nn": nn, "gt": gt, "v2": v2, "DataLoader": DataLoader}
                exec(block, names)
                found.append(names["Classifier"])
    return found


@pytest.fixture(scope="module")
def advised() -> type:
    """A module that follows all pages at once."""
    return type("Advised", tuple(modules_of_the_pages()), {})


def fit(
    cls: type, loader: Any = None, *, epochs: int = 2, seed: int = 0, rank: int = 0, resumed: Path | None = None, **options: Any
) -> list[Tensor]:
    """Return what the transform made in each step of a fit."""
    L.seed_everything(seed, verbose=False)
    module: Any = type("OnRank", (cls,), {"global_rank": property(lambda self: rank)})(Recording(FakeGenerator(), 0.5), seed=seed)
    loader = Resumable(Pairs(), 4) if loader is None else loader
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, **options,
    )  # fmt: skip
    made.clear()
    trainer.fit(module, loader, DataLoader(Pairs(), 5), ckpt_path=resumed)
    return list(made)


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(a.equal(b) for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def whole(advised: type) -> list[Tensor]:
    """What a fit makes that nothing interrupts."""
    steps = fit(advised)
    assert len(steps) == STEPS
    return steps


class TestAdvice:
    def test_other_images_in_every_epoch(self, whole: list[Tensor]) -> None:
        assert not any(a.equal(b) for a, b in zip(whole[:3], whole[3:], strict=True))

    @pytest.mark.parametrize("step", [2, 3, 4])
    def test_resumed(self, step: int, advised: type, whole: list[Tensor], tmp_path: Path) -> None:
        """At the end of an epoch (3) and in the middle of one."""
        path = tmp_path / "step.ckpt"
        fit(advised, callbacks=[Saving(step, path)])
        assert same(fit(advised, resumed=path), whole[step:])

    def test_resumed_after_an_epoch(self, advised: type, whole: list[Tensor], tmp_path: Path) -> None:
        class AtTheEnd(L.Callback):  # type: ignore[name-defined, misc]
            def on_train_end(self, trainer: Any, *_: Any) -> None:
                trainer.save_checkpoint(tmp_path / "epoch.ckpt")

        fit(advised, epochs=1, callbacks=[AtTheEnd()])
        assert same(fit(advised, resumed=tmp_path / "epoch.ckpt"), whole[3:])

    def test_other_images_on_every_rank(self, advised: type, whole: list[Tensor]) -> None:
        other = fit(advised, rank=1)
        assert not any(a.equal(b) for a, b in zip(whole, other, strict=True))

    def test_other_images_with_another_seed(self, advised: type, whole: list[Tensor]) -> None:
        other = fit(advised, seed=1)
        assert not any(a.equal(b) for a, b in zip(whole, other, strict=True))

    @pytest.mark.parametrize("how", ["accumulated", "validated often", "no length", "workers"])
    def test_whatever_goes_on_around_a_step(self, how: str, advised: type, whole: list[Tensor]) -> None:
        loaders = {"no length": DataLoader(Endless(), 4), "workers": DataLoader(Pairs(), 4, num_workers=1, prefetch_factor=3)}
        options: dict[str, Any] = {"accumulated": {"accumulate_grad_batches": 2}, "validated often": {"val_check_interval": 1}}
        assert same(fit(advised, loaders.get(how), **options.get(how, {})), whole)
