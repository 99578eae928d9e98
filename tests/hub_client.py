"""What the tests of the Hub do in a process of its own: huggingface_hub reads its settings once, when it is imported."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def process(endpoint: str, home: Path, *, offline: bool = False) -> ProcessPoolExecutor:
    """Return one fresh process whose huggingface_hub speaks to `endpoint` and keeps its files in `home`."""
    settings = {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_VERBOSITY": "error", "NO_PROXY": "127.0.0.1,localhost",
    }  # fmt: skip
    # Its processes start with torch imported, which is slow, and without huggingface_hub, which has to see the settings.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gentransforms"])
    return ProcessPoolExecutor(1, context, _start, (settings,))


def load(name: str, cls: str = "", **options: Any) -> dict[str, Any]:
    """Load with `load_generator`, or with ``gt.<cls>.from_pretrained``, and return what names the result."""
    import gentransforms as gt

    generator = getattr(gt, cls).from_pretrained(name, **options) if cls else gt.load_generator(name, **options)
    return {"class": type(generator).__name__, "fingerprint": generator.fingerprint}


def push(folder: str, repo_id: str, **options: Any) -> str:
    """Load the generator of a folder and push it to the Hub."""
    import gentransforms as gt

    return gt.load_generator(folder).push_to_hub(repo_id, **options)


def _start(settings: dict[str, str]) -> None:
    assert "huggingface_hub" not in sys.modules
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        del os.environ[name]
    os.environ.update(settings)
    time.sleep = lambda _seconds: None  # huggingface_hub waits 23 seconds in all before it gives a server up
