"""What the tests of the Hub do in a process of its own: huggingface_hub reads its settings once, when it is imported."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def process(endpoint: str, home: Path, *, offline: bool = False) -> ProcessPoolExecutor:
    """Return one fresh process whose huggingface_hub speaks to `endpoint` and keeps its files in `home`."""
    settings = {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_VERBOSITY": "error", "NO_PROXY": "127.0.0.1,localhost",
    }  # fmt: skip
    # Its processes start with torch imported (conftest.py), which is slow, and without huggingface_hub, which has to see the settings.
    context = multiprocessing.get_context("forkserver")
    return ProcessPoolExecutor(1, context, _start, (settings,))


def load(name: str, cls: str = "", **options: Any) -> dict[str, Any]:
    """Load with `load_generator`, or with ``gt.<cls>.from_pretrained``, and return what names the result."""
    import gentransforms as gt

    generator = getattr(gt, cls).from_pretrained(name, **options) if cls else gt.load_generator(name, **options)
    return {"class": type(generator).__name__, "fingerprint": generator.fingerprint()}


def class_name(name: str, **options: Any) -> str:
    """Return the name of the class that `load_generator` would pick."""
    from gentransforms.generators.registry import find_class
    from gentransforms.hub.models import Source

    return find_class(Source(name, **options)).__name__


def license_of(name: str, **options: Any) -> tuple[str | None, str | None, float]:
    """Load a generator and return its licence, the link to its text, and how many seconds the Hub's client would have waited for it."""
    import gentransforms as gt

    waited: list[float] = []
    patient, time.sleep = time.sleep, waited.append
    try:
        generator = gt.load_generator(name, **options)
    finally:
        time.sleep = patient
    return generator.license, generator._license_link, sum(waited)


def download(name: str, cache_dir: Path) -> None:
    """Download a whole repository, as the command ``hf download`` does."""
    from huggingface_hub import snapshot_download

    snapshot_download(name, cache_dir=cache_dir)


def push(folder: str, repo_id: str, **options: Any) -> str:
    """Load the generator of a folder and push it to the Hub."""
    import gentransforms as gt

    return gt.load_generator(folder).push_to_hub(repo_id, **options)


def push_bank(folder: str, repo_id: str, **options: Any) -> str:
    """Push the bank of a folder to the Hub."""
    import gentransforms as gt

    return gt.Bank.open(folder).push_to_hub(repo_id, **options)


def read_bank(name: str, revision: str | None = None, *, token: str | None = None) -> dict[str, Any]:
    """Open a bank, logged in with a token if one is given, and return everything that is in it."""
    import gentransforms as gt

    with _logged_in(token):
        bank = gt.Bank.open(name, revision=revision)
    return {
        "keys": bank.keys,
        "marks": None if bank.marks is None else bank.marks.tolist(),
        "rows": [(key, v, bank.read([key], [v], decode=False)[0]) for key in bank.keys for v in bank.variants_of(key)],
        "columns": [batch.select(["key", "variant", "seed", "attempt"]).to_pylist() for batch in bank.batches()],
        "failed": bank.failed, "rejected": bank.rejected, "settings": bank.settings, "path": str(bank.path), "length": len(bank),
    }  # fmt: skip


def verify_bank(name: str) -> str:
    """Return the report of a bank."""
    import gentransforms as gt

    return str(gt.Bank.open(name).verify())


def read_in_a_worker(name: str, revision: str | None, context: str) -> list[tuple[int, Any, bool]]:
    """Read all images in a DataLoader worker that was started in this way, each with whether `datasets` was imported there."""
    import small_banks
    import torch

    import gentransforms as gt

    rows = _Told(small_banks.Rows(gt.Bank.open(name, revision=revision)))
    loader = torch.utils.data.DataLoader(rows, batch_size=None, num_workers=1, multiprocessing_context=context)
    return [(int(index), image.tolist(), bool(imported)) for image, index, imported in loader]


class _Told:
    """Rows, and whether this process has imported `datasets`."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int, bool]:
        return (*self.rows[index], "datasets" in sys.modules)


@contextlib.contextmanager
def _logged_in(token: str | None) -> Iterator[None]:
    if token is not None:
        os.environ["HF_TOKEN"] = token
    try:
        yield
    finally:
        os.environ.pop("HF_TOKEN", None)


def _start(settings: dict[str, str]) -> None:
    assert "huggingface_hub" not in sys.modules
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        del os.environ[name]
    os.environ.update(settings)
    time.sleep = lambda _seconds: None  # huggingface_hub waits 23 seconds in all before it gives a server up
