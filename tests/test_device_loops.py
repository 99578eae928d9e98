"""No step of a training loop waits for the device: checked without one, on a pretended accelerator (pretend_device.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def steps(*which: str) -> dict[str, Any]:
    """Run loops in a process of their own: the pretended device stays registered for as long as a process lives."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "device_loops.py"), *which], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_transform() -> None:
    found = steps("check", "transform", "between", "inputs")
    # The tool itself sees what would wait.
    assert found.pop("check") == {
        "a blocking copy to the device": 1, "a number is read": 1, "a mask as an index": 1, "copied to the CPU": 1,
        "aten.nonzero waits": 1, "two devices": 1,
    }  # fmt: skip
    # Inputs are checked where they are given; once they are on the device, only the first call waits for a check with advice.
    advice, assertion = ["ConfigError"] * 2, ["IndexError"] * 2  # on a GPU, this is a failed assertion
    assert {name: found.pop(name) for name in list(found) if "labels" in name} == {
        "labels on cpu, first call": advice, "labels on cpu, later call": advice, "waits with labels on cpu": {},
        "labels on pretend:0, first call": advice, "labels on pretend:0, later call": assertion, "waits with labels on pretend:0": {},
    }  # fmt: skip
    # Images on one device and the generator on the other.
    crossed = {name: found.pop(name) for name in list(found) if isinstance(found[name], bool)}
    assert len(crossed) == 9
    assert {name for name, fine in crossed.items() if not fine} == set()
    assert set(found) == {"half", "all", "bytes"}
    assert {name: step["waits"] for name, step in found.items() if step["waits"]} == {}


@pytest.mark.slow
def test_generator_training() -> None:
    found = steps("icgan")
    assert set(found) == {"encoder", "generator", "judge"}
    assert {name: step["waits"] for name, step in found.items() if step["waits"]} == {}
    # What a step takes is bound by its launches on a GPU: benchmarks/GPU.md's part 4 has seconds for so many.
    assert found["encoder"]["launches"] < 1000
    assert found["generator"]["launches"] < 2200


@pytest.mark.slow
def test_self_supervised_training() -> None:
    """lightly's loss for pairs in a batch selects by a mask, and its queue reads where it stands; nothing else waits."""
    found = steps("ssl", "parts")
    parts = found.pop("parts of SimCLR")
    # A GPU waits for the host here: benchmarks/RESULTS.md has what each part took before the two views shared their operations.
    assert parts["views"] < 200
    assert parts["optimizer"] < 60
    assert sum(parts.values()) < 760
    assert set(found) == {"simclr", "byol", "simsiam", "barlowtwins", "mocov2plus", "k-NN"}
    lightlys = ("simclr.py", "mocov2plus.py", "torch:")
    assert [(name, where) for name, step in found.items() for where in step["waits"] if not where.startswith(lightlys)] == []
    assert sum(found["simclr"]["waits"].values()) <= 4
    assert sum(found["mocov2plus"]["waits"].values()) <= 2
    assert not found["byol"]["waits"]
