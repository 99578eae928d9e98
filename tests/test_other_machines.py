"""Machines without fcntl, fork or sched_getaffinity, as Windows is: there the package, the transform and a bank work too.

Everything imports, fills, verifies and repairs; only two processes on one bank are not kept apart.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gentransforms as gt
from gentransforms.hub.client import is_repository
from gentransforms.testing import FakeGenerator

# torch asks sys.platform, so it is imported first; what comes after finds a machine without these.
WITHOUT = """
import sys, os, torch, torchvision, pyarrow
missing = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty")
assert not {"gentransforms", "filelock"} & set(sys.modules)
for name in missing:
    sys.modules[name] = None
for name in ("fork", "forkpty", "sched_getaffinity", "register_at_fork"):
    delattr(os, name)

import gentransforms as gt
from gentransforms.testing import FakeGenerator

folder, bank = sys.argv[1:]
images = torch.rand(4, 3, 16, 16)
assert gt.GenerativeAugment(FakeGenerator(), p=1)(images).shape == images.shape
for shard in ("0/2", "1/2"):
    gt.generate_bank(folder, bank, FakeGenerator(), variants=2, unit_size=2, shard=shard, progress=False)
assert gt.generate_bank(folder, bank, FakeGenerator(), variants=2, unit_size=2, progress=False).complete
from gentransforms.bank.format.locking import remove_partials
opened = gt.Bank.open(bank)
assert opened.verify().ok
assert remove_partials(opened.path) == 0
sorted(opened.path.glob("unit-*.arrow"))[1].write_bytes(b"half")
assert len(gt.Bank.open(bank).verify(repair=True).removed) == 1
assert gt.generate_bank(folder, bank, FakeGenerator(), variants=2, unit_size=2, progress=False).images == 4
opened = gt.Bank.open(bank)
assert gt.BankAugment(opened, p=1)({"key": opened.keys[0], "image": images[0]})["image"].shape == images[0].shape
assert not any(sys.modules[name] for name in missing)
print(*opened.keys)
"""


class TestWithoutPosix:
    @pytest.mark.slow  # an interpreter of its own
    def test_transform_and_bank(self, tmp_path: Path) -> None:
        """The bank is the one made here, byte by byte."""
        samples = sorted((Path(gt.__file__).parent / "samples").glob("*.png"))[:5]
        for i, sample in enumerate(samples):
            (tmp_path / "photos" / f"class{i % 2}" / "more").mkdir(parents=True, exist_ok=True)
            shutil.copy(sample, tmp_path / "photos" / f"class{i % 2}" / "more")
        # filelock says so on a POSIX system without fcntl; on Windows it has locks of another kind.
        command = [sys.executable, "-W", "error", "-W", "ignore:only soft file lock", "-c", WITHOUT, "photos", "bank"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        gt.generate_bank(tmp_path / "photos", tmp_path / "here", FakeGenerator(), variants=2, unit_size=2, progress=False)
        there, here = gt.Bank.open(tmp_path / "bank"), gt.Bank.open(tmp_path / "here")
        assert there.keys == here.keys
        assert done.stdout.split() == [f"class{i}/more/{s.name}" for i in (0, 1) for s in samples[i::2]]
        for variant in (0, 1):
            numbers = [variant] * len(here.keys)
            assert there.read(here.keys, numbers, decode=False) == here.read(here.keys, numbers, decode=False)
        assert not list((tmp_path / "bank").glob(".*.partial"))

    def test_a_drive_is_no_repository(self) -> None:
        assert [is_repository(name) for name in ("C:/bank", "d:/bank", "C:\\bank/x", "org/bank")] == [False, False, False, True]
