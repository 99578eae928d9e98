"""What the tests of a bank's survival do in processes of their own: fill a bank, and die at a given moment."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COUNT, VARIANTS, UNIT_SIZE = 40, 3, 2
OPTIONS: dict[str, Any] = {"variants": VARIANTS, "unit_size": UNIT_SIZE, "batch_size": 4, "image_format": "png", "threads": 1}

# Moments at which a process can die: the function that it then calls, by name.
MOMENTS = ("before the file", "half the file", "before the sync", "before the sidecar", "before the unit", "after the unit", "manifest")

# What each process that comes from the server of multiprocessing has imported already.
PRELOADED = ["torch", "torchvision.transforms.v2", "pandas", "pyarrow", "gentransforms.bank.generate.run", "gentransforms.bank.reader"]

_CONTEXT = multiprocessing.get_context("forkserver")


def event() -> Any:
    """An event that a process of `start` can set."""
    return _CONTEXT.Event()


def start(target: Callable[..., None], *args: Any) -> multiprocessing.process.BaseProcess:
    """Start a process that has torch imported already (conftest.py); pytest's own has threads, and is not to be forked."""
    process = _CONTEXT.Process(target=target, args=args)
    process.start()
    return process


def fill(path: str, seconds: float = 0.0, shard: str | None = None, ready: Any = None, printed: str | None = None) -> None:
    """Fill the bank, `seconds` for each batch; `ready` is set when the imports are done; `printed` is the file for standard error."""
    if printed is not None:
        os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT), 2)
    import torch
    from bank_sources import Photos, Slow

    from gentransforms.bank.generate.run import generate_bank

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if ready is not None:
        ready.set()
    generate_bank(Photos(COUNT), path, Slow.by(seconds), shard=shard, progress=False, **OPTIONS)


def fill_and_fall_asleep(path: str, batches: int, seconds: float, flag: str, printed: str) -> None:
    """Fill the bank; after some batches one takes so many seconds, and the flag, a file, is made when it begins.

    `printed` is the file that standard error goes to.
    """
    os.dup2(os.open(printed, os.O_WRONLY | os.O_CREAT), 2)
    from bank_sources import Photos, Slow

    from gentransforms.bank.generate.run import generate_bank

    # Two signals are one to Python while a module is loaded, as pyarrow loads pandas for the first unit.
    importlib.import_module("pandas")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    generator, count = Slow(), 0
    original = generator.sample

    def sample(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count > batches:
            generator.seconds = seconds
            Path(flag).touch()
        return original(*args)

    generator.sample = sample  # type: ignore[method-assign]
    generate_bank(Photos(COUNT), path, generator, progress=False, **OPTIONS)


def fill_and_die(path: str, moment: str, after: int) -> None:
    """Fill the bank until a moment has come for the time number `after`; then be killed as by SIGKILL."""
    from gentransforms.bank.format import locking
    from gentransforms.bank.format import unit as writer

    count = 0

    def due() -> bool:
        nonlocal count
        count += 1
        return count > after

    def before(owner: Any, name: str, applies: Callable[..., bool] = lambda *_: True) -> None:
        original = getattr(owner, name)

        def dying(*args: Any, **kwargs: Any) -> Any:
            if applies(*args) and due():
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, dying)

    if moment == "before the file":
        before(writer, "unit_schema")
    elif moment == "half the file":
        before(writer._Hashed, "write", lambda _self, data: len(data) > 500)
    elif moment == "before the sync":
        before(locking, "_sync")
    elif moment == "before the sidecar":
        before(Path, "replace", lambda _self, target: target.name.startswith("unit-") and target.suffix == ".json")
    elif moment == "before the unit":
        before(Path, "replace", lambda _self, target: str(target).endswith(".arrow"))
    elif moment == "after the unit":
        before(writer, "sync_directory")
    else:
        before(os, "link")
    fill(path)


class Killed(BaseException):
    """In place of a signal, which would need a process for each step."""


@contextlib.contextmanager
def killed_at(step: int) -> Iterator[list[str]]:
    """Die before the renaming or removal number `step`, and change no name after that; yields the names of those that were done."""
    import pytest  # not where processes import this module

    done: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "unlink"):
            real = getattr(Path, name)

            def dying(self: Path, *args: Any, original: Any = real, **options: Any) -> Any:
                if len(done) >= step:
                    raise Killed
                result = original(self, *args, **options)
                done.append(self.name)
                return result

            patch.setattr(Path, name, dying)
        with contextlib.suppress(Killed):
            yield done
