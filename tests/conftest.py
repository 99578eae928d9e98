"""What all tests share: fixed random states, and no GPU tests where there is no GPU."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
import typer.testing
from bank_process import PRELOADED
from hypothesis import settings

# The same examples in each run, and no limit of time on one: the machine may be busy.
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("fixed")

# One thread for each process: all networks are small, and the cores belong to the workers of pytest-xdist. In the environment too,
# for the processes that tests start.
torch.set_num_threads(1)
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# Collecting tests makes many objects that stay: looking for garbage meanwhile takes a quarter of that time.
gc.disable()

# A power cut is in no test, and each of some thousand waits for the disk takes milliseconds. Other processes wait: those of
# test_bank_survival.py, which are killed at every step of writing.
os.fsync = lambda _handle: None

# How long a DataLoader waits for a worker before it ends it: some never go by themselves, such as those in which an error was raised.
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 1.0

# Typer reads the signatures of all commands at every call of one. The name is private, and may go.
if hasattr(typer.testing, "_get_command"):
    typer.testing._get_command = functools.cache(typer.testing._get_command)

# Processes that have torch and the bank's modules imported already: seconds less for each. Here, because the first of them, in
# whatever test, starts the server that all of them come from.
multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)


# Files that take longest, or long for their few tests; in this order, as `pytest --durations=0` tells. A file that is not named comes
# after them, by the number of its tests.
LONGEST = (
    "test_docs", "test_diffusion_pretrained", "test_ssl_reproduce", "test_bank_ray", "test_ssl_training", "test_diffusion_variation",
    "test_cli_bank", "test_pipeline_variation", "test_icgan_training", "test_diffusion_controlnet", "test_diffusion_full_size",
    "test_diffusion_faster", "test_diffusion_state", "test_device_loops", "test_ssl_fair", "test_surroundings", "test_bank_generate",
    "test_diffusion_transform", "test_ssl_evaluation", "test_bank_survival", "test_transforms_workers", "test_gpu_all",
    "test_pipeline_variation_offload", "test_bank_hub", "test_diffusion_execution", "test_diffusion_old_repositories",
    "test_pipeline_variation_cache", "test_pipeline_variation_files", "test_cli", "test_public_surface", "test_other_machines",
    "test_icgan_evaluation", "test_bank_export",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, then those with most tests, so that no worker of pytest-xdist is left alone with one."""
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid} has an address in its name: give ids=, or workers of pytest-xdist disagree on it")
    tests = Counter(item.path for item in items)
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (order.get(item.path.stem, len(order)), -tests[item.path]))


def pytest_collection_finish() -> None:
    gc.enable()
    gc.set_threshold(100_000)
    _keep_what_is_there()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is not None and nextitem.path != item.path:
        _keep_what_is_there()


def _keep_what_is_there() -> None:
    """Collect garbage, and never look at the rest again: imported modules stay to the end, and a full collection of them takes seconds."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")


@pytest.fixture(autouse=True)
def _fixed_random_state() -> None:
    # Where there is no GPU, torch.manual_seed writes down the stack at each call, for the day that one appears: a millisecond.
    (torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed)(20240229)


@pytest.fixture
def no_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository of the Hub that is opened or created fails the test."""

    def fail(repo_id: str, *_rest: object) -> None:
        pytest.fail(f"{repo_id} was opened")

    monkeypatch.setattr("gentransforms.hub.client._open_repository", fail)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For many small networks: on busy cores, threads that wait for each other cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
