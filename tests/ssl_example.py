"""Import the modules of examples/ssl, which import each other by plain names, as a script's folder does."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

FOLDER = Path(__file__).parents[1] / "examples" / "ssl"
CONFIGS = FOLDER / "configs"
# examples/icgan has scripts of these names too, so here they are loaded under names of their own.
_SHARED = ("train", "evaluate")

# Settings that make a run of seconds out of any configuration. Widths of [4, 8] would do, but with torch 2.14.1 the CPU backward
# of a channels_last 1x1 convolution with stride 2 from 4 to 8 channels corrupts the heap on some processors.
TINY = [
    "backbone.name=small", "backbone.widths=[8,16]", "backbone.blocks=[1,1]", "data.image_size=16", "data.limit=null", "data.holdout=0",
    "data.workers=0", "trainer.batch_size=4", "trainer.devices=1", "trainer.accumulate=1", "trainer.precision=32-true",
    "trainer.accelerator=cpu", "trainer.log_every=1", "method.hidden=16", "method.out=8", "probe.k=3",
]  # fmt: skip
TINY_METHOD = {"simsiam": ["method.predictor_hidden=4"], "byol": ["method.predictor_hidden=8"], "mocov2plus": ["method.queue=16"]}


class Operations(TorchDispatchMode):
    """Counts in `count` the operations of a block that compute something: on a GPU, about its launches."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def ssl(name: str) -> ModuleType:
    """Return the module ``examples/ssl/<name>.py``."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    for script in _SHARED:
        _own(script)
    return sys.modules[f"ssl_{name}"] if name in _SHARED else _with_own_scripts(name)


def tiny(method: str, *overrides: str, config: str | None = None) -> Any:
    """Return tiny settings of a method, or of a configuration ``folder/name``."""
    path = CONFIGS / f"{config or f'cifar10-small/{method}-baseline'}.yaml"
    return copy.deepcopy(_load(path, (*TINY, *TINY_METHOD.get(method, []), *overrides)))


@functools.cache
def _load(path: Path, overrides: tuple[str, ...]) -> Any:
    """Return settings that are not to be changed: many tests take the same ones, and reading YAML files takes long."""
    return ssl("config").load_settings(path, list(overrides))


def call(monkeypatch: pytest.MonkeyPatch, place: Path, script: str, *arguments: str) -> None:
    """Run a script's main as its command line does, in `place`; in this process, because importing everything takes long."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{script}.py"), *arguments])
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        ssl(script).main()


def miniature(words: list[str]) -> tuple[str, list[str]]:
    """Return script and arguments of a command ``python examples/ssl/SCRIPT.py …`` that a page shows, made one of seconds.

    Later settings win, so the command's own words stay, and are read; paths of the repository are made absolute, because
    in tests a command stands in another folder.
    """
    _, path, *arguments = words
    script = Path(path).stem
    arguments = [str(FOLDER.parents[1] / word) if word.startswith("examples/") else word for word in arguments]
    method = next((m for m in TINY_METHOD if any(f"/{m}-" in word for word in arguments)), "")
    if script == "reproduce":
        arguments = _ends(_ends(arguments, "--methods"), "--seeds")
    small = [*TINY, *TINY_METHOD.get(method, []), "data.image_size=32", "trainer.epochs=1"]
    held = ["data.holdout=4"] if any(word.startswith("data.holdout=") for word in words) else []
    # argparse takes settings in one place only, so options go before those of the command.
    before = {"make_bank": ["--variants", "1"], "reproduce": ["--variants", "1", "--probe-epochs", "1"]}
    behind = {
        "make_bank": small, "train": [*small, *held], "reproduce": small,
        "similarity": ["--limit", "8", "--subsets", "1", "--device", "cpu"], "figure3": ["--device", "cpu"],
        "evaluate": ["--epochs", "1", "--devices", "1", "--batch-size", "4", "--workers", "0"],
    }  # fmt: skip
    return script, [*before.get(script, []), *arguments, *behind[script]]


def _ends(arguments: list[str], option: str) -> list[str]:
    """Return arguments with the first and the last value alone of an option that has several."""
    if option not in arguments:
        return arguments
    first = arguments.index(option) + 1
    last = next((i for i in range(first, len(arguments)) if arguments[i].startswith("--") or "=" in arguments[i]), len(arguments))
    return arguments if last - first < 3 else [*arguments[: first + 1], *arguments[last - 1 :]]


def write_photos(folder: Path, count: int = 12, classes: int = 2, size: int = 20, seed: int = 0) -> Path:
    """Write small photos, a subfolder per class, each class of a colour of its own."""
    rng = torch.Generator().manual_seed(seed)
    for i in range(count):
        path = folder / f"class{i % classes}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        base = torch.full((size, size, 3), 60.0) + 120 * (i % classes) / max(1, classes - 1)
        pixels = (base + 30 * torch.randn(size, size, 3, generator=rng)).clamp(0, 255)
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)
    return folder


def _own(script: str) -> None:
    """Load a script as ``ssl_<script>``, once."""
    if f"ssl_{script}" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(f"ssl_{script}", FOLDER / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


def _with_own_scripts(name: str) -> ModuleType:
    """Import a module that may itself import the scripts by their plain names."""
    if name in sys.modules:
        return sys.modules[name]
    before = {script: sys.modules.get(script) for script in _SHARED}
    sys.modules.update({script: sys.modules[f"ssl_{script}"] for script in _SHARED})
    try:
        return importlib.import_module(name)
    finally:
        for script, module in before.items():
            if module is None:
                del sys.modules[script]
            else:
                sys.modules[script] = module
