"""The processes that tests start."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

from bank_process import PRELOADED


def tell_modules(queue: Any) -> None:
    queue.put(set(sys.modules))


def test_a_process_of_the_forkserver_has_everything_imported() -> None:
    """A module that is missing there is skipped in silence, and each process that a test starts takes seconds more."""
    context = multiprocessing.get_context("forkserver")
    queue = context.Queue()
    process = context.Process(target=tell_modules, args=(queue,))
    process.start()
    assert queue.get(timeout=120) >= set(PRELOADED)
    process.join()
